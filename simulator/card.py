"""A simulated CPU card: the COS of card.md over transactional memory, bytes in, bytes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

from cardlib.apdu import SW
from cardlib.crypto import Algorithm
from cardlib.errors import CardRemoved, ConfigError, FormatError
from simulator import snapshot
from simulator.files import BLOCKED, UNBLOCKED, Df, Ef, KeyFile, KeyRecord, key_id
from simulator.handlers import OK, Counted, Handler, Refusal, expect_le, files, keys, purse, security, structure
from simulator.nvm import MEMORY_BYTES, Cell, Nvm, Power, Powered

VENDOR_MF = bytes.fromhex("38FFFF080801")
VENDOR_KEY_FILE = KeyFile(0x0200, 0x01, 0x08)
CONTROL_HEADER = bytes.fromhex("39F0080833")
"""Header of the vendor's 39/00: any use, change in MF state 8, next state 8, three tries (card.md §12)."""

GET_RESPONSE_HEAD = b"\x00\xc0"
GET_RESPONSE, SELECT, GET_CHALLENGE, PROVE, APP_UNBLOCK, CREATE_FILE = 0xC0, 0xA4, 0x84, 0x5A, 0x18, 0xE0

GET_CHIP = b"\x80\xca\x00\x00"
"""GET MESSAGE (card.md §7.8): the number that the vendor gave the chip."""

HISTORICAL = b"ONECARD"
"""Historical bytes of the ATR, of no real vendor."""

HANDLERS: Mapping[int, Handler] = {
    0x00A4: files.select,
    0x00B0: files.read_binary,
    0x04B0: files.read_binary,
    0x00D6: files.update_binary,
    0x04D6: files.update_binary,
    0x00D0: files.update_binary,
    0x04D0: files.update_binary,
    0x00B2: files.read_record,
    0x04B2: files.read_record,
    0x00DC: files.update_record,
    0x04DC: files.update_record,
    0x00E2: files.append_record,
    0x04E2: files.append_record,
    0x00C0: files.get_response,
    0x0084: security.get_challenge,
    0x0082: security.external_authenticate,
    0x0088: security.internal_authenticate,
    0x0020: security.verify_pin,
    0x805E: security.change_pin,
    0x8024: security.unblock_pin,
    0x8424: security.unblock_pin,
    0x801E: security.application_block,
    0x841E: security.application_block,
    0x8018: security.application_unblock,
    0x8418: security.application_unblock,
    0x8016: security.card_block,
    0x8416: security.card_block,
    0x80E0: structure.create_file,
    0x800E: structure.erase_df,
    0x80E4: structure.delete_df,
    0x84E4: structure.delete_df,
    0x80D4: keys.write_key,
    0x84D4: keys.write_key,
    0x8050: purse.initialize,
    0x8052: purse.credit_for_load,
    0x8054: purse.debit,
    0x8058: purse.update_overdraft,
    0x80DC: purse.update_cache,
    0x805C: purse.get_balance,
    0x805A: purse.get_transaction_prove,
}
"""``CLA << 8 | INS`` → handler."""

CLASSES = frozenset((0x00, 0x04, 0x80, 0x84))


def atr(t0: bool) -> bytes:
    """ATR: as PC/SC readers build it for ISO 14443-4 cards, or of a T=0 card with contacts."""
    if t0:
        return bytes((0x3B, 0x60 | len(HISTORICAL), 0, 0)) + HISTORICAL
    body = bytes((0x80 | len(HISTORICAL), 0x80, 0x01)) + HISTORICAL
    check = 0
    for byte in body:
        check ^= byte
    return b"\x3b" + body + bytes((check,))


@dataclass(frozen=True, slots=True)
class Quirks:
    """Where cards differ from OC-1's choice, as data.

    ``log_seq_rule``: the counter in a log record is the one after the transaction, or before it (card.md §4.9).
    """

    log_seq_rule: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        if self.log_seq_rule not in ("after", "before"):
            raise ConfigError(f"log_seq_rule {self.log_seq_rule!r}: use after or before")


class ScriptedRandom:
    """Random numbers from given bytes first; when they are used up the generator continues (card.md §12)."""

    def __init__(self, script: bytes, then: Callable[[int], bytes] = os.urandom) -> None:
        self._script = script
        self._then = then

    def __call__(self, size: int) -> bytes:
        """Draw ``size`` bytes."""
        drawn, self._script = self._script[:size], self._script[size:]
        return drawn if len(drawn) == size else drawn + self._then(size - len(drawn))


class Card(Powered):
    """One face of a card. A second ``Card`` on the same ``nvm`` is the other face of the same chip (profile.md).

    A card has no power until :meth:`reset`, except that a new object is already reset. ``t0``: data of a command
    with data wait for GET RESPONSE (61xx) and a wrong Le answers 6Cxx; without it answers come directly.
    """

    KIND: ClassVar[str] = "card"
    handlers: ClassVar[Mapping[int, Handler]] = HANDLERS

    def __init__(
        self,
        nvm: Nvm | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        *,
        quirks: Quirks | None = None,
        t0: bool = False,
    ) -> None:
        self.nvm = Nvm() if nvm is None else nvm
        self.random_bytes = random_bytes
        self.quirks = quirks or Quirks()
        self.t0 = t0
        self.power = Power()
        self.mf_cell: Cell[Df | None] = self.nvm.root("mf", None)
        self.blocked = self.nvm.root("blocked", False)
        self.epoch = self.nvm.root("epoch", 0)
        self.reset()

    @classmethod
    def blank(cls, random_bytes: Callable[[int], bytes] = os.urandom, *, memory_bytes: int = MEMORY_BYTES) -> Self:
        """A card without MF."""
        return cls(Nvm(memory_bytes), random_bytes)

    @classmethod
    def vendor_fresh(
        cls,
        transport_key: bytes,
        random_bytes: Callable[[int], bytes] = os.urandom,
        *,
        algorithm: Algorithm = Algorithm.TDES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Self:
        """A card as its vendor delivers it: an MF of rights 08 with 39/00 = ``transport_key`` (8 or 16 bytes)."""
        if len(transport_key) not in ((16,) if algorithm == Algorithm.SM4 else (8, 16)):
            raise ConfigError(f"transport key of {len(transport_key)} bytes: a card key has 16 (or 8 for single DES)")
        card = cls.blank(random_bytes, memory_bytes=memory_bytes)
        reserved = b"\xff\x04" if algorithm == Algorithm.SM4 else b"\xff\xff"
        mf = structure.make_mf(VENDOR_MF + reserved + structure.MF_NAME, memory_bytes)
        mf.key_file.value = VENDOR_KEY_FILE
        mf.keys.value = {key_id(0x39, 0): KeyRecord(0, CONTROL_HEADER, transport_key, mf.algorithm)}
        card.mf_cell.value = mf
        card.reset()
        return card

    # Snapshots --------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Everything persistent, keys in clear: a versioned image with an integrity check (docs/simulator.md)."""
        with self.nvm.lock:
            if self.nvm.torn:
                self.nvm.recover(Power())
            memory, extra = snapshot.dump(self.nvm), self._extra()
        body = {"kind": self.KIND, "quirks": asdict(self.quirks), **memory, "extra": extra}
        if self.chip:
            body["chip"] = self.chip
        return snapshot.seal(body)

    @classmethod
    def restore(cls, image: bytes, random_bytes: Callable[[int], bytes] = os.urandom, *, t0: bool = False) -> Self:
        """The card of a snapshot, freshly reset. Raises FormatError for anything that is not one of this kind."""
        body = snapshot.unseal(image)
        with snapshot.reading():
            if body["kind"] != cls.KIND:
                raise FormatError(f"the image holds a {body['kind']}, not a {cls.KIND}")
            card = cls(snapshot.load(body), random_bytes, quirks=Quirks(**body["quirks"]), t0=t0)
            card._restore_extra(body["extra"])
            card.chip = snapshot.as_bytes(body.get("chip", b""))
        card.reset()
        return card

    def _extra(self) -> dict[str, Any]:
        """What a kind of card keeps beside its files."""
        return {}

    def _restore_extra(self, extra: dict[str, Any]) -> None:
        """Inverse of :meth:`_extra`."""

    # Volatile state ---------------------------------------------------------------------------------------------

    @property
    def chip(self) -> bytes:
        """The number that the vendor gave the chip, told by GET MESSAGE; without one the chip knows no such command."""
        number: bytes = self.nvm.root("chip", b"").value
        return number

    @chip.setter
    def chip(self, number: bytes) -> None:
        self.nvm.root("chip", b"").value = number

    @property
    def atr(self) -> bytes:
        """Answer to reset."""
        return atr(self.t0)

    @property
    def mf(self) -> Df:
        """The MF (6A81 on a blank card)."""
        mf = self.mf_cell.value
        if mf is None:
            raise Refusal(SW.NOT_SUPPORTED)
        return mf

    def _forget(self) -> None:
        self.mf_state = self.df_state = 0
        self.ef: Ef | None = None
        self.record_index: int | None = None
        self.challenge = self.used_challenge = b""
        self.session: purse.Session | None = None
        self.used_session: purse.Session | None = None
        self.waiting = b""
        self.apdu = b""
        self.fresh: frozenset[Df] = frozenset()
        self.seen_epoch = self.epoch.value
        mf = self.mf_cell.value
        self.no_mf = mf is None
        if mf is not None:
            self.df: Df = mf

    def enter(self, df: Df) -> None:
        """Make a directory current: its security state is cleared, the MF's only when it is the MF."""
        if df.parent is None:
            self.mf_state = 0
        self.df_state = 0
        self.df = df
        self.ef = self.record_index = None
        if self.fresh:
            self.fresh &= {df}

    def adopt_mf(self, mf: Df) -> None:
        """The MF just made becomes current; its rights wait until it is left (card.md §12)."""
        self.df, self.no_mf = mf, False
        self.fresh = frozenset((mf,))

    def set_ef(self, ef: Ef) -> None:
        """Make an elementary file current."""
        self.ef, self.record_index = ef, None

    def allowed(self, right: int) -> bool:
        """Access right ``0Y``: MF state at least Y; ``XY``: DF state from Y to X (card.md §6.1)."""
        high = right >> 4
        if self.fresh and self.df in self.fresh:
            return True
        if not high:
            return self.mf_state >= right
        return right & 15 <= self.df_state <= high

    def reach(self, state: int) -> None:
        """Set the security state of the current DF, and of the MF when it is current."""
        self.df_state = state
        if self.df.parent is None:
            self.mf_state = state

    def find_key(self, key_type: int, kid: int) -> KeyRecord | None:
        """The key that an authentication command means."""
        return self.df.key(key_type, kid)

    # Commands ---------------------------------------------------------------------------------------------------

    def transceive(self, command: bytes) -> bytes:
        """Run one command APDU; returns data and status word. Raises CardRemoved when there is no power (any more)."""
        if not self.power.on:
            raise CardRemoved("the card has no power: present and reset it")
        with self.nvm.lock:
            try:
                answer = self._run(command)
                self._mark_use()
                if self.power.armed:
                    self.power.step()
            except CardRemoved:
                self.power_off()
                raise
        return answer

    def _mark_use(self) -> None:
        """A command of this face ends what goes on over the air in the same application (ota.md, Sessions)."""
        if not self.no_mf:
            self.df.uses += 1

    def _run(self, command: bytes) -> bytes:
        nvm = self.nvm
        if nvm.torn:
            nvm.recover(self.power)  # the other face lost power in the middle
        if command[:2] != GET_RESPONSE_HEAD:
            # Every command, refused and malformed ones too, uses up challenge and purse session (card.md §12).
            self.used_challenge, self.challenge = self.challenge, b""
            self.used_session, self.session = self.session, None
            self.waiting = b""
        try:
            answer = self._dispatch(command)
        except Refusal as refusal:
            if isinstance(refusal, Counted):
                nvm.commit(self.power)
            else:
                nvm.abort()
            return refusal.sw.to_bytes(2, "big")
        nvm.commit(self.power)
        return self._announce(command, answer) if self.t0 else answer

    def _dispatch(self, command: bytes) -> bytes:
        size = len(command)
        if size > 5:
            end = 5 + command[4]
            data = command[5:end]
            if size == end:
                le = None
            elif size == end + 1 and data:
                le = command[end]
            else:
                raise Refusal(SW.LENGTH)
        elif size >= 4:
            data, le = b"", (command[4] if size == 5 else None)
        else:
            raise Refusal(SW.LENGTH)
        if command[:4] == GET_CHIP and self.chip and not data:
            expect_le(le, len(self.chip))
            return self.chip + OK
        cla, ins = command[0], command[1]
        handler = self.handlers.get(cla << 8 | ins)
        if handler is None:
            known = cla in CLASSES and all(code & 0xFF != ins for code in self.handlers)
            raise Refusal(SW.INS if known else SW.CLA)
        self._check_alive(ins)
        self.apdu = command
        return handler(self, cla, command[2], command[3], data, le)

    def _check_alive(self, ins: int) -> None:
        """Blank card, blocked card, blocked application: what is still answered (card.md §3.2, §12)."""
        if self.no_mf:
            if self.mf_cell.value is not None:
                self._forget()
            elif ins != CREATE_FILE:
                raise Refusal(SW.NOT_SUPPORTED)
            else:
                return
        if self.blocked.value:
            raise Refusal(SW.NOT_SUPPORTED)
        if self.seen_epoch != self.epoch.value:
            self._leave_deleted()
        state = self.df.blocked.value
        if state != UNBLOCKED and ins not in (SELECT, GET_CHALLENGE, APP_UNBLOCK, GET_RESPONSE):
            if ins == PROVE and state == BLOCKED:
                return
            raise Refusal(SW.NOT_SUPPORTED)

    def _leave_deleted(self) -> None:
        """Files were erased: nothing that is gone stays current."""
        self.seen_epoch = self.epoch.value
        if not self.df.attached:
            self.df, self.df_state = self.mf, self.mf_state
        if self.ef is not None and self.df.files.value.get(self.ef.fid) is not self.ef:
            self.ef = self.record_index = None

    def _announce(self, command: bytes, answer: bytes) -> bytes:
        """T=0: data of a command with data wait for GET RESPONSE; a wrong Le is told."""
        size = len(answer) - 2
        if not size or command[1] == GET_RESPONSE:
            return answer
        if len(command) > 5:
            self.waiting = answer[:-2]
            return bytes((0x61, size & 0xFF))
        if len(command) == 5 and command[4] not in (0, size):
            return bytes((0x6C, size & 0xFF))
        return answer
