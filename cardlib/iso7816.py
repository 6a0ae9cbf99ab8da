"""Card commands of card.md §3 and §6 from the terminal's and issuer's side: one plain function each.

A file is named by its short identifier or its FID, of which the low five bits count (card.md §12); 0 is the
current file. Secure messaging (§1.6) comes in as a callable: the key may live in a SAM or a key store.
Every function raises StatusError when the card says no and TransportError when the card is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cardlib.apdu import Command
from cardlib.crypto.keys import Key, pad80
from cardlib.errors import FormatError, StatusError
from cardlib.transport import Transport, exchange

Protect = Callable[[bytes, bytes, bytes], bytes]
"""``protect(header, data, challenge)``: header is CLA INS P1 P2 with the 4 in CLA; gives data or ciphertext || MAC4."""

MF = 0x3F00
MAC_SIZE = 4
CHALLENGE = 4
"""Challenge that terminals ask for before secure messaging (card.md §1.6)."""


class ReadGuard(Protocol):
    """Secure messaging of a protected READ (card.md §1.6)."""

    def request(self, header: bytes, size: int, challenge: bytes) -> bytes:
        """Command data field for a READ of ``size`` bytes; ``header`` has the 4 in CLA."""

    def reveal(self, answer: bytes, challenge: bytes) -> bytes:
        """Check the MAC behind an answer and give its data in clear. Raises MacMismatch, FormatError."""


@dataclass(frozen=True, slots=True)
class SecureMessaging:
    """Both directions of card.md §1.6 under a key in this process, MAC only or encrypt-then-MAC."""

    key: Key
    encrypt: bool = False

    def __call__(self, header: bytes, data: bytes, challenge: bytes) -> bytes:
        """A :data:`Protect`. Raises FormatError when the result does not fit a short APDU."""
        body = self.key.seal(data) if self.encrypt and data else data
        return self._signed(header, body, challenge)

    def request(self, header: bytes, size: int, challenge: bytes) -> bytes:
        """See :class:`ReadGuard`; an encrypted READ carries the length wanted in one enciphered block."""
        body = self.key.encrypt(pad80(bytes([size]), self.key.block)) if self.encrypt else b""
        return self._signed(header, body, challenge)

    def reveal(self, answer: bytes, challenge: bytes) -> bytes:
        """See :class:`ReadGuard`."""
        data, mac = answer[:-MAC_SIZE], answer[-MAC_SIZE:]
        self.key.verify(data, mac, "MAC of the protected answer", challenge)
        return self.key.unseal(data) if self.encrypt else data

    def _signed(self, header: bytes, body: bytes, challenge: bytes) -> bytes:
        size = len(body) + MAC_SIZE
        if len(header) != 4 or size > 255:
            raise FormatError(f"secure messaging: header of {len(header)}, data of {size} bytes")
        return body + self.key.mac(header + bytes([size]) + body, challenge)


def protected(card: Transport, command: Command, protect: Protect | None) -> bytes:
    """Send a command, under secure messaging when ``protect`` is given: challenge first, CLA with the 4."""
    if protect:
        challenge = get_challenge(card, CHALLENGE)
        command = command._replace(cla=command.cla | 4)
        command = command._replace(data=protect(command.header, command.data, challenge))
    return exchange(card, command)


# Selecting and reading (§3)


def select(card: Transport, fid: int = MF) -> bytes:
    """Make a file current by its identifier; returns the FCI of a DF, nothing for an EF."""
    return exchange(card, Command(0x00, 0xA4, 0x00, 0x00, fid.to_bytes(2, "big"), 0))


def select_name(card: Transport, name: bytes) -> bytes:
    """Make a DF current by its name (AID); returns its FCI."""
    return exchange(card, Command(0x00, 0xA4, 0x04, 0x00, name, 0))


def _binary(ins: int, file: int, offset: int) -> Command:
    if file & 0x1F:
        if not 0 <= offset <= 0xFF:
            raise FormatError(f"offset {offset} in file {file:04X}: select the file to go beyond 255")
        return Command(0x00, ins, 0x80 | file & 0x1F, offset)
    if not 0 <= offset <= 0x7FFF:
        raise FormatError(f"offset {offset} is beyond a file")
    return Command(0x00, ins, offset >> 8, offset & 0xFF)


def _record(ins: int, file: int, number: int, by_tag: bool) -> Command:
    return Command(0x00, ins, number, (file & 0x1F) << 3 | (0 if by_tag else 4))


def read_binary(card: Transport, file: int, offset: int = 0, le: int = 0) -> bytes:
    """Read ``le`` bytes of a transparent file, 0 to its end."""
    return exchange(card, _binary(0xB0, file, offset)._replace(le=le))


def read_record(card: Transport, file: int, number: int, by_tag: bool = False, le: int = 0) -> bytes:
    """Read one record by number (cyclic: 1 is the newest), or the first with a tag (composite identifier)."""
    return exchange(card, _record(0xB2, file, number, by_tag)._replace(le=le))


def _read_guarded(card: Transport, command: Command, guard: ReadGuard) -> bytes:
    challenge = get_challenge(card, CHALLENGE)
    command = command._replace(cla=command.cla | 4)
    data = guard.request(command.header, command.le or 0, challenge)
    return guard.reveal(exchange(card, command._replace(data=data)), challenge)


def read_binary_guarded(card: Transport, file: int, size: int, guard: ReadGuard, offset: int = 0) -> bytes:
    """Read ``size`` bytes under secure messaging. Raises MacMismatch when the answer's MAC is wrong."""
    return _read_guarded(card, _binary(0xB0, file, offset)._replace(le=size), guard)


def read_record_guarded(card: Transport, file: int, number: int, size: int, guard: ReadGuard) -> bytes:
    """Read one record of ``size`` bytes under secure messaging. Raises MacMismatch."""
    return _read_guarded(card, _record(0xB2, file, number, by_tag=False)._replace(le=size), guard)


# Writing (§3, §1.6)


def update_binary(card: Transport, file: int, data: bytes, offset: int = 0, protect: Protect | None = None) -> None:
    """Write into a transparent file."""
    protected(card, _binary(0xD6, file, offset)._replace(data=data), protect)


def update_record(
    card: Transport, file: int, number: int, data: bytes, protect: Protect | None = None, by_tag: bool = False
) -> None:
    """Replace a record, by number or by tag; a variable one keeps its length."""
    protected(card, _record(0xDC, file, number, by_tag)._replace(data=data), protect)


def append_record(card: Transport, file: int, data: bytes, protect: Protect | None = None) -> None:
    """Append a record; in a cyclic file it becomes number 1."""
    protected(card, Command(0x00, 0xE2, 0x00, (file & 0x1F) << 3, data), protect)


# Authentication and PIN (§3, §3.1)


def get_challenge(card: Transport, size: int = 8) -> bytes:
    """Random bytes of the card, 4, 8 or (SM4) 16; good for exactly the next command."""
    challenge = exchange(card, Command(0x00, 0x84, 0x00, 0x00, le=size))
    if len(challenge) != size:
        raise FormatError(f"the card gave a challenge of {len(challenge)} bytes instead of {size}")
    return challenge


def external_authenticate(card: Transport, kid: int, cryptogram: bytes) -> None:
    """Prove to the card that we hold key 39/``kid``: the 8-byte cryptogram over its last challenge."""
    exchange(card, Command(0x00, 0x82, 0x00, kid, cryptogram))


def internal_authenticate(card: Transport, kid: int, data: bytes, p1: int = 0) -> bytes:
    """Let the card compute with its key: P1 0 encrypts (type 30), 1 decrypts (31), 2 gives a MAC (32)."""
    return exchange(card, Command(0x00, 0x88, p1, kid, data, 0))


def pin_bytes(digits: str) -> bytes:
    """A PIN of 4 to 12 digits as the card has it: packed BCD, an odd end filled with F. Raises FormatError."""
    if not (4 <= len(digits) <= 12 and digits.isascii() and digits.isdigit()):
        raise FormatError("a PIN has 4 to 12 digits")
    return bytes.fromhex(digits + "F" * (len(digits) % 2))


def verify_pin(card: Transport, pin: bytes, kid: int = 0) -> None:
    """Present the holder's PIN; :func:`tries_left` reads the StatusError of a wrong one."""
    exchange(card, Command(0x00, 0x20, 0x00, kid, pin))


def tries_left(error: StatusError) -> int | None:
    """Tries that 63Cx leaves, 0 for a locked key (6983), None when the status says nothing about tries."""
    if error.sw == 0x6983:
        return 0
    return error.sw & 15 if error.sw & 0xFFF0 == 0x63C0 else None


def change_pin(card: Transport, old: bytes, new: bytes, kid: int = 0) -> None:
    """Replace the PIN, knowing the old one."""
    exchange(card, Command(0x80, 0x5E, 0x01, kid, old + b"\xff" + new))


def reload_pin(card: Transport, new: bytes, mac: Callable[[bytes], bytes], kid: int = 0) -> None:
    """Set the PIN under key 38: ``mac`` gives the MAC over the new PIN (§1.3). Can be replayed: not for OC-1 cards."""
    exchange(card, Command(0x80, 0x5E, 0x00, kid, new + mac(new)))


def unblock_pin(card: Transport, new: bytes, protect: Protect, kid: int = 0) -> None:
    """Set the PIN and its counter under key 37; ``protect`` must encrypt."""
    protected(card, Command(0x80, 0x24, kid, 0x00, new), protect)


# Blocking (§3.2)


def block_application(card: Transport, protect: Protect, permanent: bool = False) -> None:
    """Block the current application; only a temporary block can be taken back."""
    protected(card, Command(0x80, 0x1E, 0x00, int(permanent)), protect)


def unblock_application(card: Transport, protect: Protect) -> None:
    """Take a temporary block back. Three failures in a row block for good (9303)."""
    protected(card, Command(0x80, 0x18, 0x00, 0x00), protect)


def block_card(card: Transport, protect: Protect) -> None:
    """Block the whole card for good; the MF must be current."""
    protected(card, Command(0x80, 0x16, 0x00, 0x00), protect)


# Files and keys (§6, §3.2)


def create_file(card: Transport, fid: int, data: bytes) -> None:
    """Create a file with the creation data of §6.3."""
    exchange(card, Command(0x80, 0xE0, fid >> 8, fid & 0xFF, data))


def erase_df(card: Transport) -> None:
    """Erase everything inside the current DF; in the MF the whole card but the MF."""
    exchange(card, Command(0x80, 0x0E, 0x00, 0x00, le=0))


def delete_df(card: Transport, fid: int, protect: Protect) -> None:
    """Delete a DF and its DIR record; the MF must be current."""
    protected(card, Command(0x80, 0xE4, 0x00, 0x00, fid.to_bytes(2, "big")), protect)


def write_key(card: Transport, p1: int, kid: int, record: bytes) -> None:
    """Add (``p1`` 01) or update a key in clear: unwashed cards only."""
    exchange(card, Command(0x80, 0xD4, p1, kid, record))


def write_key_sealed(card: Transport, p1: int, kid: int, payload: Callable[[bytes, bytes], bytes]) -> None:
    """Add or update a key encrypted: ``payload(header, challenge)`` gives E || MAC4 over header 84 D4 P1 kid (§6.4)."""
    challenge = get_challenge(card, CHALLENGE)
    command = Command(0x84, 0xD4, p1, kid)
    exchange(card, command._replace(data=payload(command.header, challenge)))
