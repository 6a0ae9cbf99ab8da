"""A root key made by several custodians, none of whom ever has it (keys.md, "Ceremony").

The key is the XOR of n components, or comes from k of n shares. Each custodian is an operator with a step of his own
and sees only his own part, with its own check value. A leader, who is no custodian, starts and finishes.

- *generated*: the program draws each part (``draw``), its custodian keeps it on paper and enters it again (``enter``);
- *entered*: custodians bring parts that exist already, of another system or on a sheet.

**Parts** are text. A component: ``SET-NUMBER-OF``, its 32 hexadecimal digits, its check value of 6; the first word may
be missing on components of other systems. A share: the words of SLIP-39 (library ``shamir-mnemonic``), whose checksum
finds mistyped words and whose identifier finds shares of another set. Its passphrase is empty, so its key stretching
protects nothing and is at its minimum; its randomness is ours while it splits.

**At rest** each part waits sealed (X25519, AES-256-GCM) to a key made for this ceremony alone, whose private half is
sealed under the leader's ceremony secret (Argon2id). So a custodian who reads the file, or all custodians but one,
learn nothing of the others' parts. What this does not protect from: the leader with the file and a program of his own
(he is watched, and is no custodian); who may write into the folder and puts a ceremony of his own there (custodians
compare the set number, which stands for its public key); who reads the memory of the process that finishes.
The file is replaced as a whole and synced at each step: a killed step is simply run again.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum, unique
from functools import reduce
from hashlib import sha256
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import NamedTuple, Protocol

import cbor2

from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.keys import xor
from cardlib.crypto.sealing import Argon2Params, argon2id, public_of, seal, seal_to, unseal, unseal_from
from cardlib.errors import BadKcv, ConfigError, Conflict, CryptoError, FormatError, MacMismatch, NotFound, Refused
from cardlib.profile import Purpose
from keymgmt.keyblock import Importer, is_single_des
from keymgmt.keys import KeyInfo, KeyRef
from keymgmt.store import replace_file, sync_folder

MAGIC = b"ONECERE\x01"
MAX_PARTS = 16
MIN_SECRET = 8
_COMPONENT = re.compile(r"(?:([0-9A-F]{8})-(\d{1,2})-(\d{1,2}) )?((?:[0-9A-F] ?){32})(?: ([0-9A-F]{6}))?")
_LIBRARY = Lock()


@unique
class Scheme(StrEnum):
    """How the parts make the key."""

    COMPONENTS = "components"
    SHARES = "shares"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is agreed at the start: the key, ``needed`` of ``total`` parts, and its check value if that is known."""

    ref: KeyRef
    algorithm: Algorithm
    scheme: Scheme
    needed: int
    total: int
    generated: bool
    expected: bytes
    leader: str
    started_ms: int

    def check(self) -> None:
        """Raises FormatError, ConfigError, Refused("algorithm") for what can't be a ceremony."""
        self.ref.check()
        if self.algorithm not in (Algorithm.TDES, Algorithm.SM4):
            raise Refused("algorithm", "new keys are TDES or SM4: single DES is for old cards only")
        if not 2 <= self.needed <= self.total <= MAX_PARTS:
            raise ConfigError(f"a key has 2 to {MAX_PARTS} parts, and at least 2 of them make it")
        if self.scheme is Scheme.COMPONENTS and self.needed != self.total:
            raise ConfigError("all components are needed: name shares when some of them shall be enough")


@dataclass(frozen=True, slots=True)
class Custodian:
    """One custodian's part: ``sealed`` is empty until he entered it, ``confirmed`` is about the key's check value."""

    operator: str
    number: int
    check: bytes
    sealed: bytes = b""
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A ceremony between two steps. ``origin``: the set that the parts are of; ``result``: the key's check value."""

    terms: Terms
    public: bytes
    box: bytes = field(repr=False)
    origin: str
    waiting: tuple[bytes, ...] = field(repr=False, default=())
    custodians: tuple[Custodian, ...] = ()
    result: bytes = b""

    @property
    def set(self) -> str:
        """Number of this ceremony, 8 hexadecimal digits: on its sheets, and for custodians to compare."""
        return sha256(self.public).hexdigest()[:8].upper()

    @property
    def entered(self) -> tuple[Custodian, ...]:
        """Custodians whose parts are there."""
        return tuple(one for one in self.custodians if one.sealed)

    def of(self, operator: str) -> Custodian | None:
        """The part of a custodian, if he has one."""
        return next((one for one in self.custodians if one.operator == operator), None)


class Slip(NamedTuple):
    """A part on its way to its custodian's eyes; ``text`` is the secret."""

    ceremony: Ceremony
    custodian: Custodian
    text: str

    def __repr__(self) -> str:
        return f"<Slip of {self.custodian.operator}>"


class Store(Importer, Protocol):
    """A key store that a ceremony can end in."""

    def info(self, ref: KeyRef) -> KeyInfo:
        """Attributes of one key. Raises NotFound."""


# The steps. Each gives the ceremony as it is after it; saving is up to the caller, after the audit log has it.


def start(terms: Terms, secret: str, random_bytes: Callable[[int], bytes]) -> Ceremony:
    """Begin: a key pair for this ceremony; shares to be generated are split at once and wait sealed.

    Raises what :meth:`Terms.check` does, FormatError for a ceremony secret that is too short.
    """
    terms.check()
    if len(secret) < MIN_SECRET:
        raise FormatError(f"a ceremony secret has at least {MIN_SECRET} characters")
    private, salt = random_bytes(32), random_bytes(16)
    public = public_of(private)
    box = salt + seal(argon2id(secret.encode(), salt, Argon2Params()), private, MAGIC + public, random_bytes)
    made = Ceremony(terms, public, box, "")
    if not terms.generated or terms.scheme is Scheme.COMPONENTS:
        return replace(made, origin=made.set if terms.generated else "")
    shares = _split(random_bytes(16), terms, random_bytes)
    waiting = tuple(
        seal_to(public, text.encode(), _label(made, "", number), random_bytes) for number, text in enumerate(shares, 1)
    )
    return replace(made, origin=_share(shares[0]).set, waiting=waiting)


def draw(
    ceremony: Ceremony, operator: str, secret: Callable[[], str], random_bytes: Callable[[int], bytes]
) -> tuple[Ceremony, Slip]:
    """Give a custodian his part. Until he entered it he may ask again: for a new component, or the same share.

    ``secret`` asks the leader for the ceremony secret, which opens waiting shares only. Raises Refused, Conflict.
    """
    terms, own = ceremony.terms, _custodian(ceremony, operator)
    if not terms.generated:
        raise Refused("ceremony", "this ceremony takes parts that exist already: enter yours, none is drawn")
    number = own.number if own else _free(ceremony)
    if terms.scheme is Scheme.SHARES:
        private = _open(ceremony, secret())
        text = unseal_from(private, ceremony.waiting[number - 1], _label(ceremony, "", number), "the share").decode()
        check = _share(text).check
    else:
        value = random_bytes(16)
        check = _acceptable(ceremony, value, own)
        spaced = " ".join(re.findall("....", value.hex().upper()))
        text = f"{ceremony.set}-{number}-{terms.total} {spaced} {check.hex().upper()}"
    made = Custodian(operator, number, check)
    after = replace(ceremony, custodians=(*(one for one in ceremony.custodians if one is not own), made))
    return after, Slip(after, made, text)


def enter(ceremony: Ceremony, operator: str, text: str, random_bytes: Callable[[int], bytes]) -> Ceremony:
    """Take a custodian's part. The same one again changes nothing.

    Raises FormatError for a mistyped part, BadKcv, Refused("custodian", "mixed_up"), Conflict for one that is there.
    """
    part = _component(ceremony, text) if ceremony.terms.scheme is Scheme.COMPONENTS else _share(text)
    own = ceremony.of(operator)
    if own and own.sealed and own.check == part.check:
        return ceremony
    own = _custodian(ceremony, operator)
    terms, what = ceremony.terms, ceremony.terms.scheme[:-1]
    if terms.generated and own is None:
        raise Refused("custodian", f"no {what} was drawn for {operator}: he draws one first")
    _same_set(ceremony, part)
    number = part.number or (own.number if own else _free(ceremony))
    other = next((one for one in ceremony.custodians if one.number == number and one is not own), None)
    if other:
        raise Conflict(f"{what} {number} is {other.operator}'s: the same one twice, or sheets were mixed up")
    if own and (own.number != number or own.check != part.check):
        raise BadKcv(f"this is not the {what} that was drawn for {operator}, whose number is {own.number}")
    if terms.scheme is Scheme.COMPONENTS:
        _acceptable(ceremony, part.secret, own)
    sealed = seal_to(ceremony.public, part.secret, _label(ceremony, operator, number, part.check), random_bytes)
    made = Custodian(operator, number, part.check, sealed)
    others = [replace(one, confirmed=False) for one in ceremony.custodians if one is not own]
    return replace(ceremony, origin=ceremony.origin or part.set, custodians=(*others, made), result=b"")


def combine(ceremony: Ceremony, secret: str) -> Ceremony:
    """Find the key's check value, for all to confirm.

    Raises Refused("parts") when some are missing, CryptoError when they don't belong together, BadKcv when the key is
    not the announced one, Refused("algorithm") when it is weak.
    """
    return replace(ceremony, result=make_key(_value(ceremony, secret), ceremony.terms.algorithm).kcv)


def confirm(ceremony: Ceremony, operator: str, kcv: bytes) -> Ceremony:
    """A custodian says which check value he saw. Raises Refused("custodian", "ceremony"), BadKcv."""
    own = ceremony.of(operator)
    if own is None:
        raise Refused("custodian", f"{operator} is no custodian of this ceremony")
    if not ceremony.result:
        raise Refused("ceremony", "the key's check value is not known yet: the leader runs finish first")
    if kcv != ceremony.result:
        raise BadKcv(f"the key's check value is {ceremony.result.hex().upper()}, not {kcv.hex().upper()}")
    sure = tuple(replace(one, confirmed=True) if one is own else one for one in ceremony.custodians)
    return replace(ceremony, custodians=sure)


def unconfirmed(ceremony: Ceremony) -> list[str]:
    """Custodians who have not confirmed the key's check value; nobody need when it was announced at the start."""
    return [] if ceremony.terms.expected else [one.operator for one in ceremony.entered if not one.confirmed]


def finish(ceremony: Ceremony, secret: str, store: Store) -> KeyInfo:
    """Put the key into a store. Killed behind that, a second run finds it there.

    Raises Refused("confirmation") when a custodian has not confirmed, Conflict when there is another key by that name,
    and what :func:`combine` does.
    """
    terms = ceremony.terms
    if not ceremony.result or unconfirmed(ceremony):
        missing = ", ".join(unconfirmed(ceremony))
        raise Refused("confirmation", f"the key's check value must be confirmed by {missing or 'all'}")
    value = _value(ceremony, secret)
    try:
        there = store.info(terms.ref)
    except NotFound:
        return store.import_key(terms.ref, terms.algorithm, value, ceremony.result, terms.leader)
    if (there.kcv, there.algorithm, there.made_by) != (ceremony.result, terms.algorithm, terms.leader):
        raise Conflict(f"key {terms.ref} exists already, and is another: abort this ceremony and make the next version")
    return there


# The file.


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One step at a time: hold the folder's lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def path_of(folder: Path, ref: KeyRef) -> Path:
    """Where the ceremony of a key waits between its steps."""
    return folder / f"ceremony-{ref.purpose.name.lower()}-{ref.version}"


def load(folder: Path, ref: KeyRef) -> Ceremony:
    """Read a ceremony. Raises NotFound, FormatError when the file is damaged."""
    path = path_of(folder, ref)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        _scrub(_over(path))
        raise NotFound(f"there is no ceremony for key {ref}: it was finished or aborted, or never started") from None
    body, digest = raw[len(MAGIC) : -32], raw[-32:]
    if not raw.startswith(MAGIC) or sha256(body).digest() != digest:
        raise FormatError(f"{path.name} is damaged, or of another version: abort the ceremony and start it again")
    terms, public, box, origin, waiting, custodians, result = cbor2.loads(body)
    purpose, version, algorithm, scheme, *rest = terms
    found = KeyRef(Purpose(purpose), version)
    if found != ref:
        raise FormatError(f"{path.name} is the ceremony of key {found}: files were mixed up")
    return Ceremony(
        Terms(found, Algorithm(algorithm), Scheme(scheme), *rest), public, box, origin, tuple(waiting),
        tuple(Custodian(*one) for one in custodians), result,
    )  # fmt: skip


def save(folder: Path, ceremony: Ceremony) -> None:
    """Write a ceremony: after a power cut it is as before this step or as after it."""
    t = ceremony.terms
    terms = [
        int(t.ref.purpose), t.ref.version, int(t.algorithm), t.scheme.value, t.needed, t.total, t.generated,
        t.expected, t.leader, t.started_ms,
    ]  # fmt: skip
    custodians = [[one.operator, one.number, one.check, one.sealed, one.confirmed] for one in ceremony.custodians]
    body = cbor2.dumps(
        [terms, ceremony.public, ceremony.box, ceremony.origin, list(ceremony.waiting), custodians, ceremony.result]
    )
    replace_file(path_of(folder, t.ref), MAGIC + body + sha256(body).digest())


def wipe(folder: Path, ref: KeyRef) -> None:
    """Overwrite and remove a ceremony's file; what a disk keeps of older copies stays sealed. Raises NotFound.

    Power that goes in between leaves a ceremony that is over, and the next look at it wipes on.
    """
    path = path_of(folder, ref)
    if not path.exists():
        raise NotFound(f"there is no ceremony for key {ref}")
    path.replace(_over(path))
    sync_folder(folder)
    _scrub(_over(path))


def _over(path: Path) -> Path:
    return path.with_name(path.name + ".over")


def _scrub(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync_folder(path.parent)


# Parts.


class _Part(NamedTuple):
    """What a custodian's text says: its set and number where they are on it, check value, the secret itself."""

    set: str
    number: int
    check: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"<part {self.number} of {self.set}>"


def _component(ceremony: Ceremony, text: str) -> _Part:
    terms = ceremony.terms
    match = _COMPONENT.fullmatch(" ".join(text.upper().split()))
    if not match:
        raise FormatError("a component is written: 32 hexadecimal digits, then its check value of 6")
    set_, number, total, digits, said = match.groups()
    value = bytes.fromhex(digits)
    check = make_key(value, terms.algorithm).kcv
    if said is None:
        raise FormatError("the component's check value is missing: write its 6 digits behind the component")
    if check.hex().upper() != said:
        raise BadKcv(
            f"the component is mistyped: its check value would be {check.hex().upper()}, the sheet says {said}"
        )
    if total is not None and (int(total) != terms.total or not 1 <= int(number) <= terms.total):
        raise Refused(
            "mixed_up", f"this is component {number} of {total}, and this ceremony has {terms.total}: another set"
        )
    return _Part(set_ or "", int(number or 0), check, value)


def _slip39() -> ModuleType:
    import shamir_mnemonic  # type: ignore[import-untyped]  # noqa: PLC0415  # ships no types; reads a word list

    library: ModuleType = shamir_mnemonic
    return library


def _share(text: str) -> _Part:
    library = _slip39()
    words = text.lower().split()
    for number, word in enumerate(words, 1):
        if word not in library.wordlist.WORD_INDEX_MAP:
            raise FormatError(f"word {number} of the share is mistyped: no share has it")
    try:
        share = library.Share.from_mnemonic(" ".join(words))
    except library.MnemonicError:  # its text quotes words
        raise FormatError(
            f"the share is mistyped: its checksum is wrong or words are missing ({len(words)} were given)"
        ) from None
    if share.group_count != 1 or len(share.value) != 16:
        raise Refused("mixed_up", "the share is of another kind: not of one group, or not of a key of 16 bytes")
    secret = " ".join(words).encode()
    set_ = f"{share.identifier:04X}/{share.member_threshold}/{share.iteration_exponent}/{int(share.extendable)}"
    return _Part(set_, share.index + 1, sha256(b"onecard share" + secret).digest()[:3], secret)


def _same_set(ceremony: Ceremony, part: _Part) -> None:
    terms, what = ceremony.terms, ceremony.terms.scheme[:-1]
    if ceremony.origin and part.set and part.set != ceremony.origin:
        raise Refused("mixed_up", f"the {what} is of another set than this ceremony's: sheets were mixed up")
    if terms.scheme is Scheme.SHARES and int(part.set.split("/")[1]) != terms.needed:
        raise Refused("mixed_up", f"the share is of a set of which another number than {terms.needed} is needed")
    if part.number > terms.total:
        raise Refused("mixed_up", f"the {what} has number {part.number}, and this ceremony has {terms.total}")


def _acceptable(ceremony: Ceremony, value: bytes, own: Custodian | None) -> bytes:
    """Check value of a component; refuses one that adds nothing, or that cancels another."""
    algorithm = ceremony.terms.algorithm
    check = make_key(value, algorithm).kcv
    if check == make_key(bytes(16), algorithm).kcv:  # for TDES also when nothing but parity bits is set
        raise Refused("component", "the component is zero: it adds nothing to the key")
    for one in ceremony.custodians:
        if one is not own and one.check == check:
            raise Conflict(f"the component equals {one.operator}'s: two equal components cancel each other")
    return check


def _split(value: bytes, terms: Terms, random_bytes: Callable[[int], bytes]) -> Sequence[str]:
    library = _slip39()
    with _LIBRARY:  # its source of randomness is a variable of its module
        before, library.shamir.RANDOM_BYTES = library.shamir.RANDOM_BYTES, random_bytes
        try:
            [made] = library.generate_mnemonics(1, [(terms.needed, terms.total)], value, iteration_exponent=0)
        finally:
            library.shamir.RANDOM_BYTES = before
    return [str(one) for one in made]


def _join(shares: Sequence[str], needed: int) -> bytes:
    """The value that any ``needed`` of the shares give, once all of them agree on it."""
    library = _slip39()
    first, more = shares[:needed], shares[needed:]
    try:
        values = {bytes(library.combine_mnemonics(some)) for some in [first, *([*first[1:], one] for one in more)]}
    except library.MnemonicError:
        raise CryptoError("the shares do not belong together: abort, and find out whose is wrong") from None
    if len(values) != 1:
        raise CryptoError("the shares do not agree on one key: abort, and find out whose is wrong")
    return values.pop()


def _value(ceremony: Ceremony, secret: str) -> bytes:
    terms = ceremony.terms
    needed = terms.total if terms.generated else terms.needed
    if len(ceremony.entered) < needed:
        raise Refused("parts", f"{len(ceremony.entered)} of {needed} {terms.scheme} are there: the others come first")
    private = _open(ceremony, secret)
    parts = [
        unseal_from(
            private, one.sealed, _label(ceremony, one.operator, one.number, one.check), f"{one.operator}'s part"
        )
        for one in ceremony.entered
    ]
    if terms.scheme is Scheme.COMPONENTS:
        value = reduce(xor, parts)
    else:
        value = _join([part.decode() for part in parts], terms.needed)
    key = make_key(value, terms.algorithm)
    if len(set(value)) == 1 or (terms.algorithm is Algorithm.TDES and is_single_des(value)):
        raise Refused("algorithm", "the key is weak (zero, or single DES in disguise): abort, and use other parts")
    if terms.expected:
        key.check(terms.expected, f"key {terms.ref}")
    return value


def _open(ceremony: Ceremony, secret: str) -> bytes:
    salt, sealed = ceremony.box[:16], ceremony.box[16:]
    try:
        return unseal(argon2id(secret.encode(), salt, Argon2Params()), sealed, MAGIC + ceremony.public, "the ceremony")
    except MacMismatch as e:
        raise CryptoError("the ceremony secret is wrong, or the ceremony's file was changed") from e


def _label(ceremony: Ceremony, operator: str, number: int, check: bytes = b"") -> bytes:
    """What a sealed part is bound to: it can't be moved to another ceremony, key, custodian or number."""
    terms = ceremony.terms
    return cbor2.dumps(
        [ceremony.public, int(terms.ref.purpose), terms.ref.version, int(terms.algorithm), operator, number, check]
    )


def _custodian(ceremony: Ceremony, operator: str) -> Custodian | None:
    own = ceremony.of(operator)
    if operator == ceremony.terms.leader:
        raise Refused("custodian", f"{operator} leads this ceremony and can open its file: he is no custodian")
    if own and own.sealed:
        raise Refused("custodian", f"{operator} has entered his part already: another part needs another custodian")
    return own


def _free(ceremony: Ceremony) -> int:
    taken = {one.number for one in ceremony.custodians}
    free = [number for number in range(1, ceremony.terms.total + 1) if number not in taken]
    if not free:
        raise Conflict(f"all {ceremony.terms.total} {ceremony.terms.scheme} have their custodians")
    return free[0]
