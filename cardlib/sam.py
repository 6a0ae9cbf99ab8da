"""What a SAM and a host do for a terminal: oracles that hold keys and never show them.

:class:`CardSam` asks a PSAM by APDUs (card.md §7, keys.md); a key store can do the same in software. The
formulas below are shared by all who hold keys in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Condition
from typing import Annotated, NamedTuple, Protocol

from cardlib.apdu import SW, Command
from cardlib.crypto.keys import Algorithm, pad80, xor
from cardlib.errors import FormatError, LineTimeout, MacMismatch, OneCardError, Refused, StatusError, TransportError
from cardlib.fields import Raw, Record, U
from cardlib.iso7816 import MAC_SIZE, MF, read_binary, select, verify_pin
from cardlib.profile import PsamApplication, PsamIdentity, Purpose, TransactionType, card_serial_of, issuer_id
from cardlib.transport import Transport, exchange

SAM_DF = 0x1001
IDENTITY, TERMINAL_NUMBER, APPLICATION = 0x0015, 0x0016, 0x0017
LEVEL = 1 << 5
"""Usage byte of enterprise keys in a SAM: one factor, the card serial (card.md §7.5)."""
LOADED_USAGE = {
    Purpose.CONTROL: LEVEL | 0x01,
    Purpose.PURCHASE: LEVEL | 0x02,
    Purpose.PIN_UNBLOCK: LEVEL | 0x03,
    Purpose.MAINTENANCE: LEVEL | 0x05,
    Purpose.CARD: LEVEL | 0x07,
    Purpose.TERMINAL: LEVEL | 0x0A,
    Purpose.RECHARGE: LEVEL | 0x0B,
    Purpose.REFUND: LEVEL | 0x0C,
}
"""Usage byte of each key that a SAM may hold; load, unload and TAC keys stay with the host (profile.md)."""
AUTHENTICATING = (Purpose.TERMINAL, Purpose.RECHARGE)
PROTECTING = (Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK)
ENCIPHER, MAC_WITH_IV = 0x00, 0x05
"""P1 of 80FA (card.md §7.6)."""
LIST_KEYS = Command(0x80, 0xEA, 0x00, 0x00, le=0)
SESSION_LOST = (SW.INVALID_STATE, SW.CONDITIONS)
HEALTHY = (SW.MAC_WRONG, SW.CONDITIONS, SW.KEY_INDEX, SW.KEY_NOT_FOUND, SW.COUNTER_FULL)
"""Refusals of a SAM that is well; after any other it is opened anew (its PIN state may be gone)."""


@dataclass(frozen=True, slots=True)
class PurchaseInit(Record):
    """What a card answers to INITIALIZE FOR PURCHASE, withdrawal and composite purchase (card.md §4.3)."""

    balance_fen: Annotated[int, U(4)]
    seq: Annotated[int, U(2)]
    overdraft_fen: Annotated[int, U(3)]
    key_version: Annotated[int, U(1)]
    algorithm: Annotated[int, U(1)]
    rand4: Annotated[bytes, Raw(4)]


@dataclass(frozen=True, slots=True)
class LoadInit(Record):
    """What a card answers to INITIALIZE FOR LOAD and UNLOAD (card.md §4.2, §4.5)."""

    balance_fen: Annotated[int, U(4)]
    seq: Annotated[int, U(2)]
    key_version: Annotated[int, U(1)]
    algorithm: Annotated[int, U(1)]
    rand4: Annotated[bytes, Raw(4)]
    mac1: Annotated[bytes, Raw(4)]


class SamInfo(NamedTuple):
    """Who a SAM is: its serial (8), the terminal number it holds (6), the enterprise whose keys it has."""

    serial: bytes
    terminal: bytes
    enterprise_id: int


class SamKey(NamedTuple):
    """One line of LIST KEYS (keys.md)."""

    purpose: int
    version: int
    algorithm: int
    kcv: bytes


def purchase_seed(init: PurchaseInit, terminal_seq: int) -> bytes:
    """Session seed of purchase, withdrawal and composite purchase (card.md §1.5)."""
    return init.rand4 + init.seq.to_bytes(2, "big") + (terminal_seq & 0xFFFF).to_bytes(2, "big")


def purchase_mac1_input(amount_fen: int, kind: TransactionType, terminal: bytes, when: bytes) -> bytes:
    """Input of a purchase's MAC1 and, the same bytes, of a load's and an unload's MAC2 (card.md §4.2, §4.3)."""
    return amount_fen.to_bytes(4, "big") + bytes([kind]) + terminal + when


load_mac2_input = purchase_mac1_input


def load_seed(init: LoadInit) -> bytes:
    """Session seed of load and unload (card.md §1.5)."""
    return init.rand4 + init.seq.to_bytes(2, "big") + b"\x80\x00"


def load_mac1_input(init: LoadInit, amount_fen: int, kind: TransactionType, terminal: bytes) -> bytes:
    """Input of a load's or unload's MAC1 (card.md §4.2)."""
    return init.balance_fen.to_bytes(4, "big") + amount_fen.to_bytes(4, "big") + bytes([kind]) + terminal


class Sam(Protocol):
    """What a terminal's SAM does. ``factor`` is the card's serial (8), ``when`` 7 BCD bytes of local time.

    Methods raise TransportError (SAM gone), StatusError (SAM says no, key or version missing) or, where keys
    are in this process, NotFound and Refused for the same.
    """

    @property
    def open_seq(self) -> int | None:
        """Terminal sequence of the purchase whose MAC2 can still be verified here."""

    def info(self) -> SamInfo:
        """Who this SAM is; costs nothing."""

    def card_answer(self, factor: bytes, version: int, challenge: bytes) -> bytes:
        """What a genuine card answers to INTERNAL AUTHENTICATE over ``challenge`` of 8 bytes (key 30)."""

    def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        """8-byte cryptogram for EXTERNAL AUTHENTICATE as TERMINAL (39/01) or RECHARGE (39/02)."""

    def purchase_mac1(
        self, init: PurchaseInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes
    ) -> tuple[int, bytes]:
        """Next terminal sequence, never given twice, and MAC1 with the SAM's own terminal number (card.md §7.2)."""

    def verify_mac2(self, mac2: bytes) -> None:
        """Confirm the open purchase, once. Raises MacMismatch; Refused ``no_session`` when none is open."""

    def refund_mac2(self, init: LoadInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes) -> bytes:
        """MAC2 of a load that undoes the last confirmed purchase (keys.md REFUND). Raises MacMismatch for MAC1."""


class Host(Sam, Protocol):
    """What the enterprise's host or issuing SAM does beside: the keys that no terminal holds (profile.md)."""

    def load_mac2(
        self, init: LoadInit, amount_fen: int, kind: TransactionType, terminal: bytes, when: bytes, factor: bytes
    ) -> bytes:
        """MAC2 of a load under key 3F. Checks the card's MAC1 first (MacMismatch)."""

    def unload_mac2(self, init: LoadInit, amount_fen: int, terminal: bytes, when: bytes, factor: bytes) -> bytes:
        """MAC2 of an unload under key 3D. Checks the card's MAC1 first (MacMismatch)."""

    def verify_mac3(
        self, init: LoadInit, amount_fen: int, terminal: bytes, when: bytes, factor: bytes, mac3: bytes
    ) -> None:
        """Check the card's proof of an unload (card.md §4.5). Raises MacMismatch."""

    def verify_tac(self, factor: bytes, version: int, algorithm: int, data: bytes, tac: bytes) -> None:
        """Check a TAC over :func:`cardlib.records.tac_input`. Raises MacMismatch."""

    def protect(
        self,
        purpose: Purpose,
        factor: bytes,
        version: int,
        header: bytes,
        data: bytes,
        challenge: bytes,
        encrypt: bool = False,
    ) -> bytes:
        """Secure messaging under MAINTENANCE or PIN_UNBLOCK: data (or ciphertext) || MAC for the 4-byte header."""

    def holds(self, purpose: Purpose) -> bool:
        """Whether this host has the keys of a purpose; what it has not, another host proves."""


def list_keys(sam: Transport) -> list[SamKey]:
    """LIST KEYS of a SAM that nobody opened: purpose, version, algorithm, check value of each key (keys.md)."""
    return _key_lines(exchange(sam, LIST_KEYS))


def _key_lines(raw: bytes) -> list[SamKey]:
    if len(raw) % 6:
        raise FormatError(f"the SAM lists its keys in {len(raw)} bytes, no multiple of 6")
    return [SamKey(raw[i], raw[i + 1], raw[i + 2], raw[i + 3 : i + 6]) for i in range(0, len(raw), 6)]


def wants_pin(sam: Transport) -> bool:
    """Whether a SAM, DF 1001 current, wants its terminal's PIN; costs no try.

    A derivation of type 0 is always refused: with 6982 before the PIN, with 6985 otherwise (card.md §7.5, keys.md).
    """
    try:
        exchange(sam, Command(0x80, 0x1A, 0x00, 0x00))
    except StatusError as e:
        if e.sw in (SW.SECURITY, SW.CONDITIONS):
            return e.sw == SW.SECURITY
        raise
    raise FormatError("the SAM derives keys of type 0, which none may")


class CardSam:
    """A PSAM behind a transport. Opening selects, reads who it is, verifies the terminal's PIN, lists its keys.

    ``pin`` gives the terminal's PIN when the SAM has one; it is asked once per opening and not kept.
    ``failed`` becomes true when the way to the SAM broke: a pool then opens it anew.
    """

    def __init__(self, transport: Transport, pin: Callable[[], bytes] | None = None) -> None:
        self.transport = transport
        self.failed = False
        self.open_seq: int | None = None
        select(transport, MF)
        identity = PsamIdentity.decode(read_binary(transport, IDENTITY))
        terminal = read_binary(transport, TERMINAL_NUMBER)
        select(transport, SAM_DF)
        application = PsamApplication.decode(read_binary(transport, APPLICATION))
        if pin:
            verify_pin(transport, pin())
        enterprise_id = int.from_bytes(application.issuer[4:], "big")
        if len(terminal) != 6 or application.issuer != issuer_id(enterprise_id):
            raise FormatError("the SAM holds no terminal number, or belongs to no enterprise")
        self._info = SamInfo(card_serial_of(identity.serial), terminal, enterprise_id)
        self._algorithms = {(key.purpose, key.version): key.algorithm for key in self.keys()}

    def info(self) -> SamInfo:
        """See :class:`Sam`."""
        return self._info

    def close(self) -> None:
        """Let the SAM go."""
        self.open_seq = None
        self.transport.close()

    def keys(self) -> list[SamKey]:
        """LIST KEYS: purpose, version, algorithm and check value of each key (keys.md)."""
        return _key_lines(self._ask(LIST_KEYS))

    def card_answer(self, factor: bytes, version: int, challenge: bytes) -> bytes:
        """See :class:`Sam`. 801A with type 7, then 80FA (card.md §7.5, §7.6)."""
        return self._encipher(Purpose.CARD, factor, version, challenge)

    def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        """See :class:`Sam`. 801A with type 0A or 0B, then 80FA; SM4 halves are XORed (card.md §8)."""
        if purpose not in AUTHENTICATING:
            raise Refused("key_usage", f"a terminal does not authenticate as {purpose.name.lower()}")
        return _folded(self._encipher(purpose, factor, version, challenge))

    def purchase_mac1(
        self, init: PurchaseInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes
    ) -> tuple[int, bytes]:
        """See :class:`Sam`. 8070 (card.md §7.2)."""
        data = b"".join(
            (
                init.rand4,
                init.seq.to_bytes(2, "big"),
                amount_fen.to_bytes(4, "big"),
                bytes([kind]),
                when,
                bytes([init.key_version, init.algorithm]),
                factor,
            )
        )
        self.open_seq = None
        answer = self._ask(Command(0x80, 0x70, 0x00, 0x00, data, 8), 8)
        self.open_seq = int.from_bytes(answer[:4], "big")
        return self.open_seq, answer[4:]

    def verify_mac2(self, mac2: bytes) -> None:
        """See :class:`Sam`. 8072 (card.md §7.3)."""
        self.open_seq = None
        try:
            self._ask(Command(0x80, 0x72, 0x00, 0x00, mac2))
        except StatusError as e:
            if e.sw == SW.MAC_WRONG:
                raise MacMismatch("the card's payment proof (MAC2) is wrong") from e
            if e.sw in SESSION_LOST:
                raise Refused("no_session", "the SAM has no open purchase to check this proof against") from e
            raise

    def refund_mac2(self, init: LoadInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes) -> bytes:
        """See :class:`Sam`. 8074 REFUND (keys.md)."""
        data = init.encode() + amount_fen.to_bytes(4, "big") + bytes([kind]) + when + factor
        try:
            return self._ask(Command(0x80, 0x74, 0x00, 0x00, data, 4), 4)
        except StatusError as e:
            if e.sw == SW.MAC_WRONG:
                raise MacMismatch("the card's proof of the undo (MAC1) is wrong") from e
            raise

    def _encipher(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        data = challenge.ljust(self._block(purpose, version), b"\0")
        self._derive(purpose, factor, version)
        return self._crypt(data)

    def _block(self, purpose: Purpose, version: int) -> int:
        return 16 if self._algorithms.get((purpose, version)) == Algorithm.SM4 else 8

    def _derive(self, purpose: Purpose, factor: bytes, version: int) -> None:
        self._ask(Command(0x80, 0x1A, LOADED_USAGE[purpose], version, factor))

    def _crypt(self, data: bytes) -> bytes:
        return self._ask(Command(0x80, 0xFA, ENCIPHER, 0x00, data, len(data)), len(data))

    def _ask(self, command: Command, size: int | None = None) -> bytes:
        try:
            answer = exchange(self.transport, command)
        except (TransportError, StatusError, FormatError) as e:
            if not (isinstance(e, StatusError) and e.sw in HEALTHY):
                self.failed = True
                self.open_seq = None
            raise
        if size is not None and len(answer) != size:
            self.failed = True
            raise FormatError(f"the SAM answers {command.header.hex().upper()} with {len(answer)} bytes, not {size}")
        return answer


class IssuingSam(CardSam):
    """The SAM of an issuing station: a :class:`Host` as far as its keys go (profile.md, held by).

    It writes files, unblocks PINs and proves control and purchase keys. Load, unload and TAC keys stay with the
    enterprise's host, which proves them later.
    """

    def holds(self, purpose: Purpose) -> bool:
        """See :class:`Host`."""
        return any(held == purpose for held, _ in self._algorithms)

    def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        """See :class:`Sam`; with the control key too."""
        if purpose is not Purpose.CONTROL:
            return super().authenticate(purpose, factor, version, challenge)
        return _folded(self._encipher(purpose, factor, version, challenge))

    def protect(
        self,
        purpose: Purpose,
        factor: bytes,
        version: int,
        header: bytes,
        data: bytes,
        challenge: bytes,
        encrypt: bool = False,
    ) -> bytes:
        """See :class:`Host`. 801A, then 80FA to encipher and 80FA with IV for the MAC (card.md §1.6, §7.6)."""
        if purpose not in PROTECTING:
            raise Refused("key_usage", f"the {purpose.name.lower()} key protects no commands")
        block = self._block(purpose, version)
        self._derive(purpose, factor, version)
        if encrypt:
            clear = bytes([len(data)]) + data
            data = self._crypt(clear if len(clear) % block == 0 else pad80(clear, block))
        signed = pad80(header + bytes([len(data) + MAC_SIZE]) + data, block)
        iv = challenge.ljust(block, b"\0")
        return data + self._ask(Command(0x80, 0xFA, MAC_WITH_IV, 0x00, iv + signed, MAC_SIZE), MAC_SIZE)

    def load_mac2(self, *_: object, **__: object) -> bytes:
        """See :class:`Host`: never in a SAM (card.md §7.7)."""
        raise _host_only(Purpose.LOAD)

    def unload_mac2(self, *_: object, **__: object) -> bytes:
        """See :class:`Host`: never in a SAM."""
        raise _host_only(Purpose.UNLOAD)

    def verify_mac3(self, *_: object, **__: object) -> None:
        """See :class:`Host`: never in a SAM."""
        raise _host_only(Purpose.UNLOAD)

    def verify_tac(self, *_: object, **__: object) -> None:
        """See :class:`Host`: never in a SAM; who holds the TAC key can forge payments (profile.md)."""
        raise _host_only(Purpose.TAC)


def _folded(answer: bytes) -> bytes:
    """A cryptogram of 8 bytes: SM4 halves are XORed (card.md §8)."""
    return answer if len(answer) == 8 else xor(answer[:8], answer[8:])


def _host_only(purpose: Purpose) -> Refused:
    return Refused("key_usage", f"the {purpose.name.lower()} key is with the enterprise's host, in no SAM")


def monotonic_ms() -> int:
    """Milliseconds that never go back; the default clock of :class:`SamPool`."""
    return time.monotonic_ns() // 1_000_000


class _Slot:
    """One SAM of a pool: closed until its first lease, closed again after an error."""

    def __init__(self, opener: Callable[[], CardSam]) -> None:
        self.opener = opener
        self.sam: CardSam | None = None
        self.taken = False
        self.usable_at_ms = 0
        self.trouble = ""


class SamPool:
    """Leases each SAM to one user at a time, never takes it back, opens it anew after an error.

    ``openers`` reset and open one SAM each. A SAM that does not open stays aside for ``quarantine_ms``.
    Usable from any thread; waiting costs no polling.
    """

    def __init__(
        self,
        openers: Sequence[Callable[[], CardSam]],
        quarantine_ms: int = 30_000,
        now_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        self._slots = [_Slot(opener) for opener in openers]
        self._quarantine_ms = quarantine_ms
        self._now_ms = now_ms
        self._changed = Condition()
        self._closed = False

    @contextmanager
    def lease(self, timeout_ms: int = 5_000) -> Iterator[CardSam]:
        """A SAM of one's own for the ``with`` block.

        Raises LineTimeout when all stay in use for ``timeout_ms``, Refused ``sam_unusable`` when there is none
        that works, ``sam_pool_closed`` after :meth:`close`.
        """
        deadline = self._now_ms() + timeout_ms
        while True:
            slot = self._take(deadline)
            try:
                sam = slot.sam or slot.opener()
            except OneCardError as e:
                self._give_back(slot, None, str(e))
                continue
            except BaseException:
                self._give_back(slot, None, "interrupted while opening")
                raise
            try:
                yield sam
            finally:
                self._give_back(slot, sam, "")
            return

    def close(self) -> None:
        """Close the SAMs that are free; those in use are closed when they come back."""
        with self._changed:
            self._closed = True
            for slot in self._slots:
                if not slot.taken and slot.sam:
                    _close(slot.sam)
                    slot.sam = None
            self._changed.notify_all()

    def _take(self, deadline: int) -> _Slot:
        with self._changed:
            while True:
                if self._closed:
                    raise Refused("sam_pool_closed", "the terminal is shutting down")
                now = self._now_ms()
                for slot in self._slots:
                    if not slot.taken and slot.usable_at_ms <= now:
                        slot.taken = True
                        return slot
                if not any(slot.taken for slot in self._slots):
                    trouble = "; ".join(slot.trouble for slot in self._slots) or "none is fitted"
                    raise Refused("sam_unusable", f"no SAM works: {trouble}. Check that it is seated, then try again")
                if now >= deadline:
                    raise LineTimeout("all SAMs are in use: try again")
                ends = [slot.usable_at_ms for slot in self._slots if not slot.taken]
                self._changed.wait((min([deadline, *ends]) - now) / 1000)

    def _give_back(self, slot: _Slot, sam: CardSam | None, trouble: str) -> None:
        """Put a slot back: its SAM closed when it failed or the pool is closed, aside when it did not open."""
        with self._changed:
            keep = sam is not None and not sam.failed and not self._closed
            if sam is not None and not keep:
                _close(sam)
            slot.sam = sam if keep else None
            slot.taken = False
            slot.trouble = trouble
            slot.usable_at_ms = self._now_ms() + self._quarantine_ms if trouble else 0
            self._changed.notify_all()


def _close(sam: CardSam) -> None:
    """Close a SAM that is given up; an error changes nothing, opening it anew tells whether it works."""
    with suppress(OneCardError):
        sam.close()
