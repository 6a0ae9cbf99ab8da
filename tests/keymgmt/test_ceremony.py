"""Key ceremonies: the right parts make the key, every wrong one is named, and no file ever holds a part in clear."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import pytest
import shamir_mnemonic  # type: ignore[import-untyped]  # ships no types

from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.keys import xor
from cardlib.crypto.sealing import Argon2Params, public_of, seal_to, unseal_from
from cardlib.errors import (
    BadKcv,
    ConfigError,
    Conflict,
    CryptoError,
    FormatError,
    MacMismatch,
    NotFound,
    OneCardError,
    Refused,
)
from cardlib.profile import Purpose
from keymgmt import ceremony as steps
from keymgmt import keysheet
from keymgmt.ceremony import Ceremony, Scheme, Slip, Terms
from keymgmt.keys import KeyRef, KeyState
from keymgmt.store import FileStore
from simulator.world import QUICK
from tests.keymgmt.test_store import CHEAP
from tests.secretwatch import register

REF = KeyRef(Purpose.CARD, 2)
SECRET = "the leader's own words"
CUSTODIANS = ("li", "wang", "zhao", "qian", "sun")
VALUE = bytes.fromhex("404142434445464748494A4B4C4D4E4F")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cost of deriving keys that suits tests."""
    monkeypatch.setattr(Argon2Params.__init__, "__defaults__", (QUICK.memory_kib, QUICK.iterations, QUICK.lanes))
    register(SECRET, "the ceremony secret")


def terms(scheme: Scheme = Scheme.COMPONENTS, needed: int = 3, total: int = 3, **more: object) -> Terms:
    given = {"ref": REF, "algorithm": Algorithm.TDES, "generated": False, "expected": b"", "leader": "boss",
             "started_ms": 1} | more  # fmt: skip
    return Terms(scheme=scheme, needed=needed, total=total, **given)  # type: ignore[arg-type]  # by name


def begin(agreed: Terms, seed: int = 1) -> Ceremony:
    return steps.start(agreed, SECRET, Random(seed).randbytes)


def part(value: bytes, algorithm: Algorithm = Algorithm.TDES) -> str:
    """A component as another system prints it."""
    return f"{value.hex()} {make_key(value, algorithm).kcv.hex()}"


def parts(value: bytes, count: int, seed: int = 2) -> list[bytes]:
    """Values that give ``value`` by XOR."""
    rng = Random(seed)
    made = [rng.randbytes(16) for _ in range(count - 1)]
    last = value
    for one in made:
        last = xor(last, one)
    return [*made, last]


def shares(value: bytes, needed: int, total: int) -> list[str]:
    """The same shares each time, as another system would make them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shamir_mnemonic.shamir, "RANDOM_BYTES", Random(value).randbytes)
        made: list[str] = shamir_mnemonic.generate_mnemonics(1, [(needed, total)], value, iteration_exponent=0)[0]
    return made


def draw(ceremony: Ceremony, operator: str, seed: int = 3) -> tuple[Ceremony, Slip]:
    return steps.draw(ceremony, operator, lambda: SECRET, Random(f"{operator}{seed}").randbytes)


def enter(ceremony: Ceremony, operator: str, text: str) -> Ceremony:
    return steps.enter(ceremony, operator, text, Random(operator).randbytes)


def all_entered(ceremony: Ceremony, texts: Sequence[str]) -> Ceremony:
    for operator, text in zip(CUSTODIANS, texts, strict=False):
        ceremony = enter(ceremony, operator, text)
    return ceremony


def confirmed(ceremony: Ceremony) -> Ceremony:
    ceremony = steps.combine(ceremony, SECRET)
    for one in ceremony.entered:
        ceremony = steps.confirm(ceremony, one.operator, ceremony.result)
    return ceremony


def store(folder: Path) -> FileStore:
    return FileStore.create_file(folder / "keys", b"open sesame", CHEAP)


@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4])
def test_components_that_exist(tmp_path: Path, algorithm: Algorithm) -> None:
    """Components brought from elsewhere make the key whose check value was announced, whoever comes first."""
    kcv = make_key(VALUE, algorithm).kcv
    ceremony = begin(terms(algorithm=algorithm, expected=kcv))
    ceremony = all_entered(ceremony, [part(one, algorithm) for one in reversed(parts(VALUE, 3))])
    with store(tmp_path) as keys:
        info = steps.finish(steps.combine(ceremony, SECRET), SECRET, keys)
        assert (info.ref, info.algorithm, info.kcv) == (REF, algorithm, kcv)
        assert (info.state, info.made_by) == (KeyState.PENDING, "boss")
        assert keys.handle(REF, bytes(8)).kcv == make_key(VALUE, algorithm).diversify(bytes(8)).kcv


def test_every_choice_of_shares() -> None:
    """Any 3 of 5 shares brought from elsewhere make the same key, and 4 or 5 of them do too."""
    made = shares(VALUE, 3, 5)
    for count in (3, 4, 5):
        for some in itertools.combinations(made, count):
            ceremony = all_entered(begin(terms(Scheme.SHARES, 3, 5)), some)
            assert steps.combine(ceremony, SECRET).result == make_key(VALUE).kcv


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4])
def test_generated_parts(tmp_path: Path, scheme: Scheme, algorithm: Algorithm) -> None:
    """Parts drawn here, each shown to its custodian, entered again from paper, make a key that nobody saw."""
    ceremony = begin(terms(scheme, 2 if scheme is Scheme.SHARES else 3, 3, generated=True, algorithm=algorithm))
    texts = {}
    for operator in CUSTODIANS[:3]:
        ceremony, slip = draw(ceremony, operator)
        texts[operator] = slip.text
        assert slip.text not in repr(slip) + repr(ceremony)
    assert len(set(texts.values())) == 3
    for operator in reversed(CUSTODIANS[:3]):
        ceremony = enter(ceremony, operator, texts[operator].upper() if operator == "li" else texts[operator])
    with store(tmp_path) as keys:
        info = steps.finish(confirmed(ceremony), SECRET, keys)
        if scheme is Scheme.COMPONENTS:
            values = [bytes.fromhex(re.sub("^[^ ]* | [^ ]*$", "", text)) for text in texts.values()]
            assert info.kcv == make_key(xor(xor(values[0], values[1]), values[2]), algorithm).kcv
        else:
            value = shamir_mnemonic.combine_mnemonics(list(texts.values())[:2])
            assert info.kcv == make_key(value, algorithm).kcv


def test_shares_come_from_the_given_randomness() -> None:
    """One seed gives one set of shares, and the library's own source is back in place afterwards."""
    before = shamir_mnemonic.shamir.RANDOM_BYTES
    agreed = terms(Scheme.SHARES, 2, 3, generated=True)
    texts = [draw(begin(agreed, seed), "li")[1].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert shamir_mnemonic.shamir.RANDOM_BYTES is before


def test_nothing_in_clear_on_disk(tmp_path: Path) -> None:
    """The ceremony's file shows no part, no share that waits and no key, at any step; afterwards it is gone."""
    for scheme in Scheme:
        ceremony = begin(terms(scheme, 2, 2, generated=True))
        slips = []
        for operator in CUSTODIANS[:2]:
            ceremony, slip = draw(ceremony, operator)
            slips.append(slip)
            steps.save(tmp_path, ceremony)
            ceremony = enter(steps.load(tmp_path, REF), operator, slip.text)
            steps.save(tmp_path, ceremony)
            raw = steps.path_of(tmp_path, REF).read_bytes()
            for text in [one.text for one in slips]:
                assert text.encode() not in raw
                for word in text.split()[1:-1]:
                    assert len(word) < 5 or word.encode() not in raw
                if scheme is Scheme.COMPONENTS:
                    assert bytes.fromhex(re.sub("^[^ ]* | [^ ]*$", "", text)) not in raw
        assert steps.path_of(tmp_path, REF).stat().st_mode & 0o077 == 0
        assert steps.load(tmp_path, REF) == ceremony
        steps.wipe(tmp_path, REF)
        assert not list(tmp_path.iterdir())
        with pytest.raises(NotFound):
            steps.load(tmp_path, REF)


def test_custodians_cannot_open_the_file() -> None:
    """All custodians together with the file open no part without the leader's secret, and none can be relabelled."""
    ceremony = all_entered(begin(terms()), [part(one) for one in parts(VALUE, 3)])
    with pytest.raises(CryptoError, match="ceremony secret is wrong"):
        steps.combine(ceremony, "a custodian's guess")
    one, two, three = ceremony.custodians
    swapped = (replace(one, sealed=two.sealed), replace(two, sealed=one.sealed), three)
    for bad in (swapped, (replace(one, operator="eve"), two, three), (replace(one, number=3), two, three)):
        with pytest.raises(MacMismatch):
            steps.combine(replace(ceremony, custodians=bad), SECRET)
    elsewhere = all_entered(begin(terms(), seed=9), [part(one) for one in parts(VALUE, 3)])
    with pytest.raises(MacMismatch):
        steps.combine(replace(ceremony, custodians=elsewhere.custodians), SECRET)


def _mistyped_word(text: str) -> str:
    words = text.split()
    return " ".join([*words[:9], "academic" if words[9] != "academic" else "acid", *words[10:]])


def _unknown_word(text: str) -> str:
    return " ".join([*text.split()[:9], "onecard", *text.split()[10:]])


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda text: text[:-1], FormatError, "6"),
        (lambda text: text[:-7], FormatError, "check value is missing"),
        (lambda text: text[1:], FormatError, "32 hexadecimal"),
        (lambda text: "", FormatError, "32 hexadecimal"),
        (lambda text: "G" + text[1:], FormatError, "32 hexadecimal"),
        (lambda text: ("1" if text[0] != "1" else "2") + text[1:], BadKcv, "mistyped"),
        (lambda text: part(bytes(16)), Refused, "zero"),
        (lambda text: part(b"\1" * 16), Refused, "zero"),
        (lambda text: "A1B2C3D4-1-4 " + text, Refused, "another set"),
    ],
)
def test_wrong_components(spoil: Callable[[str], str], error: type[OneCardError], says: str) -> None:
    """A component that is mistyped, incomplete, zero or of another set is refused, named, and changes nothing."""
    good = part(parts(VALUE, 3)[0])
    with pytest.raises(error, match=says) as wrong:
        enter(begin(terms()), "li", spoil(good))
    assert good[:32].upper() not in str(wrong.value).upper()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (_mistyped_word, FormatError, "checksum"),
        (_unknown_word, FormatError, "word 10"),
        (lambda text: " ".join(text.split()[:-1]), FormatError, "19 were given"),
        (lambda text: " ".join([*text.split()[:-2], text.split()[-1], text.split()[-2]]), FormatError, "checksum"),
        (lambda text: "", FormatError, "0 were given"),
        (lambda text: shares(VALUE, 3, 3)[0], Refused, "needed"),
        (lambda text: shamir_mnemonic.generate_mnemonics(2, [(2, 3), (2, 3)], VALUE)[0][0], Refused, "another kind"),
        (lambda text: shares(bytes(range(32)), 2, 3)[0], Refused, "another kind"),
    ],
)  # fmt: skip
def test_wrong_shares(spoil: Callable[[str], str], error: type[OneCardError], says: str) -> None:
    """A share with a mistyped, missing or swapped word, of another kind or threshold is refused; no word is shown."""
    good = shares(VALUE, 2, 3)[0]
    with pytest.raises(error, match=says) as wrong:
        enter(begin(terms(Scheme.SHARES, 2, 3)), "li", spoil(good))
    assert not {word for word in good.split() if len(word) > 6} & set(str(wrong.value).split())


def test_mixed_up_shares() -> None:
    """Shares of two sets do not go together, nor one share twice, nor one of a number that this set has not."""
    ours, theirs = shares(VALUE, 2, 5), shares(bytes(range(1, 17)), 2, 3)
    ceremony = enter(begin(terms(Scheme.SHARES, 2, 3)), "li", ours[0])
    with pytest.raises(Refused, match="another set") as refused:
        enter(ceremony, "wang", theirs[1])
    assert refused.value.reason == "mixed_up"
    with pytest.raises(Conflict, match="twice"):
        enter(ceremony, "wang", ours[0])
    with pytest.raises(Refused, match="number 5"):
        enter(ceremony, "wang", ours[4])


def test_mixed_up_components() -> None:
    """Sheets of two ceremonies do not go together; the same or an equal component is refused from another custodian."""
    ceremony, slip = draw(begin(terms(generated=True)), "li")
    ceremony, other = draw(ceremony, "wang")
    _, foreign = draw(begin(terms(generated=True), seed=5), "li", seed=6)
    with pytest.raises(Refused, match="another set"):
        enter(ceremony, "li", foreign.text)
    with pytest.raises(Conflict, match="mixed up"):
        enter(ceremony, "li", other.text)
    with pytest.raises(BadKcv, match="drawn for li"):
        enter(ceremony, "li", part(parts(VALUE, 3)[0]))
    with pytest.raises(Refused, match="draws one first"):
        enter(ceremony, "zhao", slip.text)
    first = part(parts(VALUE, 3)[0])
    brought = enter(begin(terms()), "li", first)
    with pytest.raises(Conflict, match="cancel"):
        enter(brought, "wang", first)
    assert enter(brought, "li", first) == brought
    with pytest.raises(Refused, match="already"):
        enter(brought, "li", part(parts(VALUE, 3)[1]))
    sheets = enter(begin(terms()), "li", slip.text)
    with pytest.raises(Refused, match="another set"):
        enter(sheets, "wang", foreign.text)


def test_who_may_do_what() -> None:
    """The leader is no custodian, a custodian has one part, and nobody comes when all parts are given out."""
    ceremony = begin(terms(generated=True))
    with pytest.raises(Refused, match="leads"):
        draw(ceremony, "boss")
    with pytest.raises(Refused, match="leads"):
        enter(begin(terms()), "boss", part(VALUE))
    for operator in CUSTODIANS[:3]:
        ceremony, _ = draw(ceremony, operator)
    with pytest.raises(Conflict, match="have their custodians"):
        draw(ceremony, "qian")
    with pytest.raises(Refused, match="none is drawn"):
        draw(begin(terms()), "li")
    with pytest.raises(Refused, match="no custodian"):
        steps.confirm(ceremony, "qian", b"123")
    with pytest.raises(Refused, match="not known yet"):
        steps.confirm(ceremony, "li", b"123")


def test_drawn_again_until_entered() -> None:
    """Killed before he saw it, a custodian draws again: a new component, or the same share; not once he entered it."""
    for scheme in Scheme:
        ceremony, first = draw(begin(terms(scheme, 2, 2, generated=True)), "li", seed=1)
        ceremony, second = draw(ceremony, "li", seed=2)
        assert (first.text == second.text) is (scheme is Scheme.SHARES)
        assert len(ceremony.custodians) == 1
        ceremony = enter(ceremony, "li", second.text)
        with pytest.raises(Refused):
            draw(ceremony, "li")


def test_missing_parts() -> None:
    """Too few components or shares make no key; generated shares are all to be confirmed from paper."""
    with pytest.raises(Refused, match="2 of 3 components") as refused:
        steps.combine(all_entered(begin(terms()), [part(one) for one in parts(VALUE, 3)[:2]]), SECRET)
    assert refused.value.reason == "parts"
    with pytest.raises(Refused, match="2 of 3 shares"):
        steps.combine(all_entered(begin(terms(Scheme.SHARES, 3, 5)), shares(VALUE, 3, 5)[:2]), SECRET)
    ceremony = begin(terms(Scheme.SHARES, 2, 3, generated=True))
    for operator in CUSTODIANS[:2]:
        ceremony, slip = draw(ceremony, operator)
        ceremony = enter(ceremony, operator, slip.text)
    with pytest.raises(Refused, match="2 of 3 shares"):
        steps.combine(ceremony, SECRET)


def test_wrong_result() -> None:
    """Another key than the announced one, a zero or weak key, and shares that only look alike are refused."""
    values = parts(VALUE, 3)
    with pytest.raises(BadKcv):
        steps.combine(all_entered(begin(terms(expected=b"\1\2\3")), [part(one) for one in values]), SECRET)
    for weak in (bytes(16), b"\1" * 16, bytes(range(8)) * 2):
        with pytest.raises(Refused, match="weak"):
            steps.combine(all_entered(begin(terms()), [part(one) for one in parts(weak, 3)]), SECRET)
    good = shares(VALUE, 3, 4)
    forged = replace_value(good[3])
    ceremony = all_entered(begin(terms(Scheme.SHARES, 3, 4)), [*good[:3], forged])
    with pytest.raises(CryptoError, match=r"belong together|agree"):
        steps.combine(ceremony, SECRET)
    with pytest.raises(CryptoError, match="belong together"):
        steps.combine(all_entered(begin(terms(Scheme.SHARES, 3, 4)), [*good[:2], forged]), SECRET)


def replace_value(text: str) -> str:
    """A share with a right checksum, of the right set, and of another value."""
    share = shamir_mnemonic.Share.from_mnemonic(text)
    forged: str = replace(share, value=bytes(reversed(share.value))).mnemonic()
    return forged


def test_all_confirm(tmp_path: Path) -> None:
    """An unannounced key goes into the store only when each custodian confirmed its check value, as it is now."""
    made = shares(VALUE, 2, 3)
    ceremony = steps.combine(all_entered(begin(terms(Scheme.SHARES, 2, 3)), made[:2]), SECRET)
    with store(tmp_path) as keys:
        with pytest.raises(BadKcv):
            steps.confirm(ceremony, "li", b"\1\2\3")
        ceremony = steps.confirm(ceremony, "li", ceremony.result)
        assert steps.unconfirmed(ceremony) == ["wang"]
        with pytest.raises(Refused, match="wang") as refused:
            steps.finish(ceremony, SECRET, keys)
        assert refused.value.reason == "confirmation"
        later = steps.combine(enter(ceremony, "zhao", made[2]), SECRET)
        assert steps.unconfirmed(later) == ["li", "wang", "zhao"]
        ceremony = steps.confirm(ceremony, "wang", ceremony.result)
        info = steps.finish(ceremony, SECRET, keys)
        assert steps.finish(ceremony, SECRET, keys) == info
        assert len(keys.list()) == 1


def test_key_exists_already(tmp_path: Path) -> None:
    """A key that somebody else made meanwhile is not written over."""
    ceremony = confirmed(all_entered(begin(terms()), [part(one) for one in parts(VALUE, 3)]))
    with store(tmp_path) as keys:
        made = keys.create(REF, Algorithm.TDES, "somebody")
        with pytest.raises(Conflict, match="exists already"):
            steps.finish(ceremony, SECRET, keys)
        assert list(keys.list()) == [made]


@pytest.mark.parametrize(
    "bad",
    [
        {"needed": 1, "total": 1},
        {"needed": 1, "total": 2, "scheme": Scheme.SHARES},
        {"needed": 3, "total": 2, "scheme": Scheme.SHARES},
        {"needed": 2, "total": 17, "scheme": Scheme.SHARES},
        {"needed": 2, "total": 3},
        {"algorithm": Algorithm.DES},
        {"ref": KeyRef(Purpose.CARD, 256)},
    ],
)
def test_terms_that_cannot_be(bad: dict[str, object]) -> None:
    """One part is no ceremony, and single DES no new key."""
    with pytest.raises((ConfigError, Refused, FormatError)):
        begin(terms(**bad))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(FormatError, match="8 characters"):
        steps.start(terms(), "short", Random(1).randbytes)


def test_damaged_files(tmp_path: Path) -> None:
    """A file that was cut, edited or renamed is refused, and says what to do."""
    steps.save(tmp_path, all_entered(begin(terms()), [part(one) for one in parts(VALUE, 3)]))
    path = steps.path_of(tmp_path, REF)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(FormatError):
            steps.load(tmp_path, REF)
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(FormatError):
            steps.load(tmp_path, REF)
    steps.path_of(tmp_path, KeyRef(Purpose.CARD, 3)).write_bytes(good)
    with pytest.raises(FormatError, match="mixed up"):
        steps.load(tmp_path, KeyRef(Purpose.CARD, 3))


def test_sheets_are_read_back() -> None:
    """The first line of a text sheet is what is entered; page and PDF are well formed; the page says the same."""
    for scheme in Scheme:
        ceremony, slip = draw(begin(terms(scheme, 2, 2, generated=True)), "li")
        assert enter(ceremony, "li", keysheet.as_text(slip).decode().splitlines()[0]).entered
        page = ET.fromstring(keysheet.as_svg(slip))
        words = " ".join(one.text or "" for one in page.iter("{http://www.w3.org/2000/svg}text"))
        assert slip.text in words
        assert f"Custodian li. Ceremony set {ceremony.set}." in words
        assert len(list(page.iter("{http://www.w3.org/2000/svg}path"))) == 1
        assert keysheet.as_pdf(slip).startswith(b"%PDF-1.4")


def test_sealed_to_a_public_key() -> None:
    """X25519 as RFC 7748 §6.1 has it; what is sealed opens with its private key and label only."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    assert public_of(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    rng = Random(1)
    private = rng.randbytes(32)
    box = seal_to(public_of(private), b"a part", b"label", rng.randbytes)
    assert unseal_from(private, box, b"label") == b"a part"
    for key, data, label in ((alice, box, b"label"), (private, box, b"other"), (private, box[:-1], b"label"),
                             (private, bytes(32) + box[32:], b"label"), (private, box[:20], b"label"),
                             (private, bytes([box[0] ^ 1]) + box[1:], b"label")):  # fmt: skip
        with pytest.raises(MacMismatch):
            unseal_from(key, data, label)
    with pytest.raises(MacMismatch):
        seal_to(bytes(32), b"a part", b"label", rng.randbytes)
