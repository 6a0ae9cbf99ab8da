"""The installer's end above the line: sessions with a terminal, and what is done in them.

Every function can be called again after a cut and goes on where it stopped: an upload at the terminal's offset, a
collection at the last entry on this computer's disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cardlib.crypto.noise import Handshake, Pattern, Session, StaticKey, fingerprint
from cardlib.crypto.signing import SigningKey, verify
from cardlib.errors import CheckFailed, CryptoError, DatabaseError, FormatError, Refused, TransportError
from cardlib.records import JournalEntry, JournalFile, genesis
from cardlib.wire import cbor, smp
from cardlib.wire.authority import second_message
from cardlib.wire.link import prologue
from cardlib.wire.smp import Command, Message
from terminals.guard import KK_FIRST, SESSION_S, XX_FIRST, XX_LAST, pairing_key
from terminals.link import Master
from terminals.services import CHUNK, MIN_CHUNK, head_message

ACK_EVERY = 256
GOOD_BEFORE_LARGER = 16


class SessionEnded(TransportError):
    """The session is over (cut, error, another master): open a new one and go on."""


@dataclass(frozen=True, slots=True)
class Installer:
    """Who installs: an X25519 key and the token that the site's authority signed for it."""

    static: StaticKey
    token: bytes


class Client:
    """One terminal at the other end of a line: requests, in clear until a session is open."""

    def __init__(
        self,
        master: Master,
        address: int,
        serial: str,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.master, self.address, self.serial = master, address, serial
        self.chunk = CHUNK
        self._clock, self._random = clock, random_bytes
        self._session: Session | None = None
        self._known: tuple[Installer, bytes] | None = None
        self._since_s = 0.0
        self._seq = 0
        self._good = 0

    def request(self, command: Command, payload: dict[Any, Any] | None = None) -> dict[Any, Any]:
        """Ask and return the answer's map.

        Raises Refused with the terminal's reason, SessionEnded, LineTimeout, FormatError for an answer that is none.
        """
        if self._known and self._session and self._clock() - self._since_s > SESSION_S:
            self.open(*self._known)  # link.md: re-key each hour
        if self._known and not self._session:
            raise SessionEnded(f"terminal {self.serial}: the session is over, open it again")
        return self._ask(command, payload)

    def _ask(self, command: Command, payload: dict[Any, Any] | None) -> dict[Any, Any]:
        self._seq = (self._seq + 1) % 256
        request = Message.request(command, self._seq, payload)
        session, self._session = self._session, None  # whatever breaks on the way breaks the session
        before = self.master.retries
        message = session.encrypt(request.encode()) if session else request.encode()
        reply = self.master.exchange(self.address, message, encrypted=session is not None)
        raw = reply.message
        if session:
            try:
                raw = session.decrypt(raw) if reply.encrypted else b""
            except CryptoError:
                raw = b""
            if not raw:
                raise SessionEnded(f"terminal {self.serial}: the session is over, open it again")
        answer = Message.decode(raw)
        if (answer.op, *answer.key[:2], answer.seq) != (request.op.answer, *request.key[:2], request.seq):
            raise FormatError(f"terminal {self.serial} answers another question")
        self._session = session
        self._adapt(self.master.retries > before)
        _raise_refusal(answer)
        return answer.payload

    def _adapt(self, troubled: bool) -> None:
        """Smaller chunks on errors, larger ones after a while without."""
        self._good = 0 if troubled else self._good + 1
        if troubled:
            self.chunk = max(self.chunk // 2, MIN_CHUNK)
        elif self._good % GOOD_BEFORE_LARGER == 0:
            self.chunk = min(self.chunk * 2, CHUNK)

    # --- sessions --------------------------------------------------------------------------------------------

    def pair(self, installer: Installer, code: str, label: bytes) -> bytes:
        """First contact: returns the terminal's X25519 public key, to be pinned; the session is open.

        ``label`` is the fingerprint on the label, without which there is no pairing. Raises Refused("fingerprint")
        before anything that could betray code or token is sent; MacMismatch, Refused from the terminal.
        """
        if len(label) != 16:
            raise FormatError("there is no pairing without the label's fingerprint")
        shake = self._handshake(Pattern.XX_PSK3, installer, psk=pairing_key(code, self.serial))
        shake.read(self._shake(XX_FIRST, shake.write()))
        if fingerprint(shake.remote) != label:
            raise Refused(
                "fingerprint", f"terminal {self.serial} is not the one of this label: stop and look who it is"
            )
        self._shake(XX_LAST, shake.write(installer.token))
        self._begin(installer, shake)
        return shake.remote

    def open(self, installer: Installer, terminal: bytes) -> None:
        """Open a session with a terminal that was paired; ``terminal`` is its pinned public key.

        Raises Refused from the terminal, MacMismatch when another terminal answers.
        """
        shake = self._handshake(Pattern.KK, installer, remote=terminal)
        shake.read(self._shake(KK_FIRST, shake.write(installer.token), installer.static.public))
        self._begin(installer, shake)

    def _handshake(self, pattern: Pattern, installer: Installer, remote: bytes = b"", psk: bytes = b"") -> Handshake:
        text = prologue(self.address, self.serial)
        return Handshake(pattern, installer.static, self._random, initiator=True, prologue=text, remote=remote, psk=psk)

    def _shake(self, step: int, message: bytes, public: bytes = b"") -> bytes:
        self._session = None
        answer = self._ask(smp.HANDSHAKE, {0: step, 1: message} | ({2: public} if public else {}))
        if step == XX_LAST:
            return b""
        (reply,) = cbor.fields(answer, "handshake", {0: bytes})
        return bytes(reply)

    def _begin(self, installer: Installer, shake: Handshake) -> None:
        self._session, self._known, self._since_s = shake.split(), (installer, shake.remote), self._clock()

    # --- what is done in a session ---------------------------------------------------------------------------

    def set_speed(self, baud: int) -> int:
        """Change the line's speed; returns the one in force: the former one when the new one does not work."""
        self.request(smp.SPEED, {0: baud})
        return self.master.confirm_baud(self.address, baud)

    def allow(self, token: bytes, signing: SigningKey, verb: str) -> None:
        """A second operator allows one act of a verb in this session. Raises Refused, SessionEnded."""
        if self._session is None:
            raise SessionEnded(f"terminal {self.serial}: there is no session yet")
        signature = signing.sign(second_message(self._session.hash, verb))
        self.request(smp.SECOND, {0: token, 1: verb, 2: signature})

    def set_clock(self, utc_ms: int) -> None:
        """Set the terminal's clock. Raises Refused("clock_back")."""
        when = datetime.fromtimestamp(utc_ms / 1000, UTC).replace(tzinfo=None)
        self.request(smp.DATETIME_SET, {"datetime": when.isoformat(timespec="milliseconds")})

    def upload(self, name: str, data: bytes, progress: Callable[[int, int], None] | None = None) -> bytes:
        """Send a file and return its SHA-256; what the terminal has of it already is not sent again."""
        digest = hashlib.sha256(data).digest()
        first = {"off": 0, "data": b"", "len": len(data), "name": name, "sha": digest}
        offset = self._offset(self.request(smp.UPLOAD, first), len(data))
        while offset < len(data):
            chunk = data[offset : offset + self.chunk]
            answer = self.request(smp.UPLOAD, {"off": offset, "data": chunk, "name": name})
            offset = self._offset(answer, len(data))
            if progress:
                progress(offset, len(data))
        return digest

    def _offset(self, answer: dict[Any, Any], size: int) -> int:
        offset = answer.get("off")
        if type(offset) is not int or not 0 <= offset <= size:
            raise FormatError(f"terminal {self.serial} gives no offset")
        return offset

    def download(self, name: str) -> bytes:
        """Fetch a file. Raises Refused("not_found")."""
        data, size = b"", 1
        while len(data) < size:
            answer = self.request(smp.DOWNLOAD, {"off": len(data), "name": name, "size": self.chunk})
            size = answer.get("len", size)
            chunk = answer.get("data")
            if type(chunk) is not bytes or (not chunk and size) or answer.get("off") != len(data):
                raise FormatError(f"terminal {self.serial} gives no part of {name}")
            data += chunk
        return data

    def collect(self, dump: Path) -> JournalFile:
        """Bring the journal here and acknowledge it; ``dump`` keeps entries (4 bytes length each) across cuts.

        Returns all entries in the dump as one verified stretch. Raises CheckFailed when the chain is broken or its
        signed head is wrong, DatabaseError when the disk here fails.
        """
        who = self.request(smp.INFO)
        enterprise_id, terminal, sam, signer = who[6], who[7], who[8], who[4]
        last, head, signature, acked, _ = cbor.fields(
            self.request(smp.JOURNAL_HEAD), "journal", {0: int, 1: bytes, 2: bytes, 3: int, 4: int}
        )
        verify(signer, head_message(self.serial, last, head), signature)
        first, before, bodies, chain = _read_dump(dump, acked + 1, genesis(enterprise_id, terminal))
        since = 0
        while first + len(bodies) <= last:
            have = first + len(bodies)
            ask = {0: have, 1: min(last + 1 - have, 64), 2: self.chunk}  # not beyond the head that was signed
            previous, new, after, _ = cbor.fields(
                self.request(smp.JOURNAL_READ, ask), "journal", {0: bytes, 1: list, 2: bytes, 3: int}
            )
            if not bodies:
                before = chain = previous
            chain = _follow(previous, chain, new, after)
            _append_dump(dump, first, before, new, anew=not bodies)
            bodies += new
            since += len(new)
            if since >= ACK_EVERY:
                self.request(smp.JOURNAL_ACK, {0: first + len(bodies) - 1})
                since = 0
        if first + len(bodies) - 1 != last or chain != head:
            raise CheckFailed(
                f"{dump} and the head that terminal {self.serial} signed differ: keep both, and report it"
            )
        if first + len(bodies) - 1 > acked:
            self.request(smp.JOURNAL_ACK, {0: first + len(bodies) - 1})
        return _journal_file(enterprise_id, terminal, sam, first, before, bodies)


def _raise_refusal(answer: Message) -> None:
    payload = answer.payload
    if smp.REASON in payload:
        raise Refused(str(payload[smp.REASON]), str(payload.get(smp.WORDS, "")))
    if answer.group < smp.Group.IDENTITY and payload.get("rc", 0) != 0:
        reason, _, words = str(payload.get("rsn", f"rc_{payload['rc']}")).partition(": ")
        raise Refused(reason, words or f"the terminal says no with code {payload['rc']}")


def _follow(previous: bytes, chain: bytes, bodies: list[Any], after: bytes) -> bytes:
    """The chain's hash behind a batch. Raises CheckFailed."""
    if previous != chain:
        raise CheckFailed("the journal's next entries do not follow those collected before: keep both, and report it")
    if not bodies or any(type(body) is not bytes for body in bodies):
        raise FormatError("a batch of journal entries is empty or holds something else")
    for body in bodies:
        chain = hashlib.sha256(chain + body).digest()
    if chain != after:
        raise CheckFailed("a batch of journal entries does not give the hash that it ends with")
    return chain


def _journal_file(
    enterprise_id: int, terminal: bytes, sam: bytes, first: int, before: bytes, bodies: list[bytes]
) -> JournalFile:
    entries, previous = [], before
    for body in bodies:
        entries.append(JournalEntry.decode(body, previous))
        previous = hashlib.sha256(previous + body).digest()
    return JournalFile(enterprise_id, terminal, sam, first, before, tuple(entries))


def _read_dump(path: Path, first: int, before: bytes) -> tuple[int, bytes, list[bytes], bytes]:
    """First sequence, hash before it, entries and hash after them; a torn last entry is cut off."""
    try:
        raw = path.read_bytes() if path.exists() else b""
        if len(raw) < 40:
            return first, before, [], before
        first, before, at, bodies = int.from_bytes(raw[:8], "big"), raw[8:40], 40, []
        while at + 4 <= len(raw):
            end = at + 4 + int.from_bytes(raw[at : at + 4], "big")
            if end > len(raw):
                break
            bodies.append(raw[at + 4 : end])
            at = end
        if at < len(raw):
            os.truncate(path, at)
    except OSError as e:
        raise DatabaseError(f"{path} can't be read: {e.strerror}") from e
    chain = before
    for body in bodies:
        chain = hashlib.sha256(chain + body).digest()
    return first, before, bodies, chain


def _append_dump(path: Path, first: int, before: bytes, bodies: list[bytes], *, anew: bool) -> None:
    """Add entries, on disk when this returns. Raises DatabaseError."""
    head = first.to_bytes(8, "big") + before if anew else b""
    try:
        with path.open("wb" if anew else "ab") as file:
            file.write(head + b"".join(len(body).to_bytes(4, "big") + body for body in bodies))
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise DatabaseError(f"{path} can't be written: {e.strerror}") from e
