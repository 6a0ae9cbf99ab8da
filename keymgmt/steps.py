"""What washing, slots and personalising share: a journal of steps, and careful single acts on a card.

Each job asks the card first and the journal second: after a power cut the journal may lack its last entry,
the card never does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cardlib.apdu import SW, Command
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict, CryptoError, FormatError, StatusError
from cardlib.iso7816 import (
    MF,
    create_file,
    external_authenticate,
    get_challenge,
    read_binary,
    select,
    tries_left,
    write_key_sealed,
)
from cardlib.profile import CardIdentity, FileSpec, load_profile
from cardlib.transport import Transport, send
from keymgmt.handle import KeyHandle

ADD = 0x01
OURS_TRIED = "our key tried"
TRY_AGAIN = "told to try again"
NOT_COUNTED = 15
"""Tries that a key with error counter FF answers (card.md §6.4)."""
TRIES = 3
"""Tries of a vendor's key that was never refused (card.md §12)."""
Payload = Callable[[bytes, bytes], bytes]
"""``payload(header, challenge)``: E || MAC of WRITE KEY."""
DF_ALGORITHM = {Algorithm.TDES: b"\xff\xff", Algorithm.SM4: b"\xff\x04"}
"""Reserved bytes of CREATE DF (card.md §12)."""


class StepJournal(Protocol):
    """Remembers which steps of a job were done. ``done`` returns only when that is on disk."""

    def done(self, job: str, step: str) -> None:
        """Write that a step is done; saying it twice is allowed."""

    def steps(self, job: str) -> Sequence[str]:
        """Steps done so far, oldest first."""


class MemorySteps:
    """A step journal that lives as long as the process."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[str]] = {}

    def done(self, job: str, step: str) -> None:
        """See :class:`StepJournal`."""
        self._jobs.setdefault(job, []).append(step)

    def steps(self, job: str) -> Sequence[str]:
        """See :class:`StepJournal`."""
        return tuple(self._jobs.get(job, ()))

    def forget_last(self, job: str) -> None:
        """Lose the last entry, as a crash would."""
        self._jobs.get(job, []).pop()


class FileSteps(MemorySteps):
    """A step journal in a file of JSON lines, each synced; a torn last line is ignored."""

    def __init__(self, path: Path) -> None:
        """Raises FormatError when a line other than the last is damaged."""
        super().__init__()
        raw = path.read_bytes() if path.exists() else b""
        whole, _, _ = raw.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                job, step = json.loads(line)
            except ValueError as e:
                raise FormatError(f"{path.name}, line {number}, is damaged") from e
            super().done(job, step)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, len(whole) + bool(whole))

    def done(self, job: str, step: str) -> None:
        """See :class:`StepJournal`."""
        os.write(self._fd, json.dumps([job, step]).encode() + b"\n")
        os.fsync(self._fd)
        super().done(job, step)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)


def read_identity(card: Transport) -> CardIdentity | None:
    """Who a card says it is, from its MF; None before its washing began. Leaves the MF selected."""
    select(card, MF)
    try:
        return CardIdentity.decode(read_binary(card, load_profile().file("identity").fid))
    except StatusError as e:
        if e.sw == SW.FILE_NOT_FOUND:
            return None
        raise


def chip_number(card: Transport) -> str | None:
    """The number that tells this chip from all others, in capital hexadecimal: what the vendor's batch file names.

    GET MESSAGE of the card (card.md §7.8), else the UID that a contactless reader gives; None where neither is there.
    A UID that the chip makes anew at each presentation (4 bytes from 08) is none.
    """
    answer = send(card, Command(0x80, 0xCA, 0, 0, le=0))
    contactless = card.atr[:1] == b"\x3b" and card.atr[1] & 0xF0 == 0x80 and card.atr[2:4] == b"\x80\x01"
    if answer.sw != SW.OK and contactless:
        answer = send(card, Command(0xFF, 0xCA, 0, 0, le=0))
        if len(answer.data) == 4 and answer.data[0] == 0x08:
            return None
    number = answer.data
    return number.hex().upper() if answer.sw == SW.OK and 4 <= len(number) <= 16 else None


def require_card(card: Transport, serial: bytes) -> CardIdentity:
    """Make sure that the washed card a job is for is in the field. Raises Conflict."""
    identity = read_identity(card)
    if identity is None or not identity.wash_version:
        raise Conflict("this card is not washed yet: wash it first")
    if identity.serial != serial:
        raise Conflict(f"this is card {identity.serial.hex().upper()}: present card {serial.hex().upper()}")
    return identity


def attempt(card: Transport, kid: int, cryptogram: Callable[[bytes], bytes]) -> int | None:
    """One EXTERNAL AUTHENTICATE: None when the card accepts, else the tries it leaves (15: not counted).

    Raises CryptoError when the key is locked.
    """
    try:
        external_authenticate(card, kid, cryptogram(get_challenge(card, 8)))
    except StatusError as e:
        left = tries_left(e)
        if left is None:
            raise
        if left == 0:
            raise CryptoError("the card's key is locked: this card can't be used any more, return it") from e
        return left
    return None


def authenticates(card: Transport, kid: int, cryptogram: Callable[[bytes], bytes]) -> bool:
    """Whether the card accepts one EXTERNAL AUTHENTICATE. Raises CryptoError when the key is locked."""
    return attempt(card, kid, cryptogram) is None


def initial_holds(
    card: Transport, job: str, initial: KeyHandle, ours: Callable[[bytes], bytes] | None, journal: StepJournal
) -> bool:
    """Authenticate with 39/00: our key first where the card says that it may have it, then the vendor's, once.

    True when the vendor's key still holds. Raises CryptoError when neither does. ``job`` names this very card: its
    counter must not be run down, so a key that was refused is not tried again (keys.md, Washing). After our key's
    first try the vendor's comes first: right, it gives all tries back; against ours it costs none.
    """
    kcv = initial.kcv.hex().upper()
    known = journal.steps(job)
    tried_ours = OURS_TRIED in known
    if ours and not tried_ours:
        journal.done(job, OURS_TRIED)  # before: tears here must not cost the vendor's key one try each
        if authenticates(card, 0, ours):
            return False

    def sent(challenge: bytes) -> bytes:
        journal.done(job, _sent(kcv))  # before: a try whose answer is lost may have been counted
        return initial.cryptogram(challenge)

    left = 0
    if not was_refused(known, kcv):
        left = attempt(card, 0, sent) or 0
        if not left:
            journal.done(job, accepted(kcv))
            return True
        # Our key is in place when an earlier run got that far: only it is not counted, so this costs nothing.
        if ours and tried_ours and left == NOT_COUNTED and authenticates(card, 0, ours):
            return False
        journal.done(job, f"refused, {left} left")
        journal.done(job, f"initial key {kcv} refused")
    tried = f"it was tried once, the card allows {left} more" if left else "it was tried once and is not tried again"
    raise CryptoError(
        f"the initial key with check value {kcv} is not this card's: {tried}. Look up the card's batch and wash it "
        "with that batch's key"
    )


def was_refused(known: Sequence[str], kcv: str) -> bool:
    """Whether a card's steps say that it refused the initial key with this check value (hexadecimal)."""
    return f"initial key {kcv} refused" in known


def may_try(known: Sequence[str], kcv: str, *, trusted: bool = True) -> bool:
    """Whether a card keeps a try for later even if it refuses this key too, whatever happened in ``known``.

    A try whose answer was lost counts. A key that this card accepted once (``trusted``: the steps are of this card
    and no other) is right, so that it costs nothing.
    """
    left = TRIES
    for step in known:
        if step.endswith("accepted") or step == TRY_AGAIN:
            left = TRIES
        elif step == OURS_TRIED or step.endswith("sent"):
            left -= 1
        elif step.endswith(" left"):
            left = int(step.split()[1])
    return (trusted and accepted(kcv) in known) or left > 1  # one to be kept


def _sent(kcv: str) -> str:
    return f"initial key {kcv} sent"


def accepted(kcv: str) -> str:
    """The step that says that a card took the initial key with this check value."""
    return f"initial key {kcv} accepted"


def put_key(card: Transport, key_type: int, kid: int, payload: Payload) -> None:
    """Add a key, or replace it where an interrupted job left one."""
    try:
        write_key_sealed(card, ADD, kid, payload)
    except StatusError as e:
        if e.sw != SW.P1P2:
            raise
        write_key_sealed(card, key_type, kid, payload)


def create_missing(card: Transport, file: FileSpec) -> None:
    """Create a file unless an interrupted job did."""
    try:
        create_file(card, file.fid, file.create)
    except StatusError as e:
        if e.sw != SW.P1P2:
            raise
