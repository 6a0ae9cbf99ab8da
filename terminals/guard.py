"""A terminal's door (link.md "Session"): pairing, sessions, tokens; who may ask for what.

Outside a session only echo, params, identity and handshakes are answered. A KK handshake counts as finished when
its first message opens, so that a recorded one can't end the session in force.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cardlib.crypto.noise import Handshake, Pattern, Session, fingerprint
from cardlib.crypto.sealing import hkdf
from cardlib.crypto.signing import verify
from cardlib.errors import Conflict, CryptoError, DatabaseError, FormatError, MacMismatch, OneCardError, Refused
from cardlib.wire import cbor, smp
from cardlib.wire.authority import Token, second_message
from cardlib.wire.link import BAUDS, MAX_BODY, HelloAnswer, prologue
from cardlib.wire.smp import Group, Message, Rc
from terminals.link import Busy
from terminals.services import BENCH, OUTSIDE, SERVICES, Base, Host

MAX_FAILURES = 5
PENALTY_MS = 3_600_000
MAX_PINNED = 8
SESSION_S = 3_600.0
SESSION_SLACK_S = 120.0
"""A master re-keys by a new handshake each hour; a little later the terminal insists."""
XX_FIRST, KK_FIRST, XX_LAST = 0, 1, 2
"""Key 0 of a handshake request: which message it carries."""
NO_SESSION = b"", False
"""Answers a message that no session here opens."""
_CODES = {
    "not_found": Rc.NOT_FOUND,
    "unsupported": Rc.NOT_SUPPORTED,
    "format": Rc.INVALID,
    "storage_full": Rc.NO_MEMORY,
    "too_large": Rc.TOO_LARGE,
    "corrupt": Rc.CORRUPT,
    "conflict": Rc.BAD_STATE,
}


def pairing_key(code: str, serial: str) -> bytes:
    """The pre-shared key of a label's 8-digit code. Raises FormatError."""
    if len(code) != 8 or not code.isascii() or not code.isdigit():
        raise FormatError("a pairing code has 8 digits: read the label again")
    return hkdf(code.encode("ascii"), b"onecard link 1", 32, salt=serial.encode("ascii"))


@dataclass(frozen=True, slots=True)
class Pairing:
    """What a terminal remembers of pairing. ``authority`` is "" until a site has taken the terminal; keys in hex."""

    code: str = ""
    failures: int = 0
    failed_ms: int = 0
    pinned: tuple[str, ...] = ()
    authority: str = ""

    def __repr__(self) -> str:
        return f"<Pairing, {len(self.pinned)} pinned, {self.failures} failures>"


class PairingFile:
    """Pairing on disk, replaced by one atomic rename. Raises DatabaseError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = Pairing()
        if path.exists():
            try:
                stored = json.loads(path.read_bytes())
                self.state = Pairing(**{**stored, "pinned": tuple(stored["pinned"])})
            except (OSError, ValueError, TypeError, KeyError) as e:
                raise DatabaseError(f"{path} is damaged: pair the terminal anew with its reset key") from e

    def save(self, **changes: Any) -> None:  # noqa: ANN401  # fields of Pairing
        """Change and write down. Raises DatabaseError, and nothing has changed."""
        state = replace(self.state, **changes)
        beside = self._path.with_name(self._path.name + ".new")
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(asdict(state), file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as e:
            raise DatabaseError(f"{self._path} can't be written: {e.strerror}") from e
        self.state = state


@dataclass(slots=True)
class _Open:
    """A session and who is at its other end."""

    session: Session
    token: Token
    since_s: float
    second: dict[str, Token | None] = field(default_factory=dict)


class Guard:
    """Answers messages for a terminal; ``clock`` is a steady one in seconds."""

    text = False

    def __init__(
        self,
        host: Host,
        pairing: PairingFile,
        address: int,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.host, self.pairing = host, pairing
        self.speed_wanted = 0
        self._clock, self._random = clock, random_bytes
        self._prologue = prologue(address, host.serial)
        self._handshake: Handshake | None = None
        self._current: _Open | None = None
        self._pending: _Open | None = None
        self._waiting: tuple[bytes, bytes] | None = None

    def hello(self, nonce: bytes) -> HelloAnswer:
        """What a HELLO is answered with."""
        host = self.host
        paired = bool(self.pairing.state.pinned)
        return HelloAnswer(nonce, host.serial, host.model, MAX_BODY, BAUDS, paired, fingerprint(host.static.public))

    def answer_line(self, line: bytes) -> bytes:  # noqa: ARG002  # the interface's; text framing is for the bench
        """Nothing."""
        return b""

    def answer(self, message: bytes, *, encrypted: bool) -> tuple[bytes, bool] | None:
        """The answer and whether it is encrypted. An empty one in clear says that there is no session."""
        if encrypted:
            return self._inside(message)
        try:
            request = Message.decode(message)
        except FormatError:
            return None
        return self._outside(request).encode(), False

    # --- sessions --------------------------------------------------------------------------------------------

    def _open(self, message: bytes) -> bytes | None:
        """Open a message of a session. The first error ends the session that it was for."""
        for opened in (self._pending, self._current):
            if opened is None:
                continue
            try:
                plain = opened.session.decrypt(message)
            except (MacMismatch, Conflict):
                continue
            self._current, self._pending = opened, None
            if self._clock() - opened.since_s > SESSION_S + SESSION_SLACK_S:
                break
            return plain
        self._current = self._pending = None
        return None

    def _inside(self, message: bytes) -> tuple[bytes, bool]:
        waiting, self._waiting = self._waiting, None
        plain = waiting[1] if waiting and waiting[0] == message else self._open(message)
        current = self._current
        if plain is None or current is None:
            return NO_SESSION
        try:
            reply = self._perform(Message.decode(plain), current.token)
        except Busy:
            self._waiting = message, plain  # its nonce is used up, the same message comes again
            raise
        except FormatError:
            self._current = None
            return NO_SESSION
        return current.session.encrypt(reply.encode()), True

    def _outside(self, request: Message) -> Message:
        if request.key == smp.HANDSHAKE:
            return guarded(request, lambda: self._shake(request.payload))
        if request.key not in OUTSIDE:
            return refusal(request, "no_session", "open a session first")
        return guarded(request, lambda: SERVICES[request.key].act(self.host, request.payload))

    def _perform(self, request: Message, token: Token) -> Message:
        def act() -> dict[Any, Any]:
            self._check(token)
            self.host.second = self._second
            own = {
                smp.SECOND: ("", self._allow),
                smp.PAIRING_CODE: ("pair", self._new_code),
                smp.AUTHORITY: ("provision", self._pin_authority),
                smp.SPEED: ("", self._speed),
            }
            if request.key in own:
                verb, do = own[request.key]
            elif request.key in SERVICES:
                service = SERVICES[request.key]
                verb, do = service.verb, lambda payload: service.act(self.host, payload)
            else:
                raise Refused("unsupported", f"group {request.group} has no command {request.command} here")
            if verb and verb not in token.verbs:
                raise Refused("verb", f"the token of {token.name} does not allow {verb}")
            return do(request.payload)

        return guarded(request, act)

    def _check(self, token: Token) -> None:
        """Whether a token holds now. Raises Refused."""
        latest_ms = self.host.latest_ms()
        if token.token_id in self.host.revoked():
            raise Refused("revoked", f"the token of {token.name} was revoked")
        if latest_ms > token.not_after_ms:
            raise Refused("expired", f"the token of {token.name} has expired: ask the authority for a new one")
        if self.host.clock_trusted() and latest_ms < token.not_before_ms:
            raise Refused("not_yet", f"the token of {token.name} is not valid yet")
        if self.host.site and self.host.site not in token.sites:
            raise Refused("site", f"the token of {token.name} is not for site {self.host.site}")

    # --- handshakes ------------------------------------------------------------------------------------------

    def _shake(self, payload: dict[Any, Any]) -> dict[Any, Any]:
        step, message, public = cbor.fields(payload, "handshake", {0: int, 1: bytes}, {2: bytes})
        if step == XX_FIRST:
            return self._pair_first(message)
        if step == XX_LAST:
            return self._pair_last(message)
        if step == KK_FIRST and public is not None:
            return self._resume(message, public)
        raise FormatError("handshake: there is no such message")

    def _new_handshake(self, pattern: Pattern, remote: bytes = b"", psk: bytes = b"") -> Handshake:
        return Handshake(
            pattern, self.host.static, self._random,
            initiator=False, prologue=self._prologue, remote=remote, psk=psk,
        )  # fmt: skip

    def _may_pair(self) -> Pairing:
        state = self.pairing.state
        if not state.code:
            raise Refused("no_code", "this terminal is paired: press its reset key, or give a new code with verb pair")
        if state.failures >= MAX_FAILURES and self.host.clock.now_ms() - state.failed_ms < PENALTY_MS:
            raise Refused("pairing_locked", "too many wrong codes: the next try is in an hour")
        return state

    def _pair_first(self, message: bytes) -> dict[Any, Any]:
        state = self._may_pair()
        self._handshake = self._new_handshake(Pattern.XX_PSK3, psk=pairing_key(state.code, self.host.serial))
        self._handshake.read(message)
        return {0: self._handshake.write()}

    def _pair_last(self, message: bytes) -> dict[Any, Any]:
        handshake, self._handshake = self._handshake, None
        if handshake is None:
            raise Refused("conflict", "this pairing has not begun: start again")
        state = self._may_pair()
        # Written before the code is tried, so that pulling the plug wins no try.
        self.pairing.save(failures=state.failures + 1, failed_ms=self.host.clock.now_ms())
        try:
            payload = handshake.read(message)
        except MacMismatch as e:
            raise Refused("wrong_code", "this is not the code of the terminal's label: read it again") from e
        token = self._token(payload, handshake.remote)
        pinned = tuple(dict.fromkeys([*state.pinned, handshake.remote.hex()]))[-MAX_PINNED:]
        self.pairing.save(code="", failures=0, failed_ms=0, pinned=pinned)
        self._current, self._pending = _Open(handshake.split(), token, self._clock()), None
        return {}

    def _resume(self, message: bytes, public: bytes) -> dict[Any, Any]:
        if public.hex() not in self.pairing.state.pinned:
            raise Refused("not_paired", "this terminal does not know the installer's key: pair with the label's code")
        handshake = self._new_handshake(Pattern.KK, remote=public)
        token = self._token(handshake.read(message), public)
        answer = handshake.write()
        self._pending = _Open(handshake.split(), token, self._clock())
        return {0: answer}

    def _token(self, raw: bytes, public: bytes | None) -> Token:
        authority = bytes.fromhex(self.pairing.state.authority) or None
        token = Token.decode(raw, authority)
        if public is not None and token.x25519 != public:
            raise Refused("token", "the token is another installer's")
        self._check(token)
        return token

    # --- the door's own commands -----------------------------------------------------------------------------

    def _allow(self, payload: dict[Any, Any]) -> dict[Any, Any]:
        """A second operator allows one act of a verb in this session: his token, and his signature over the session."""
        raw, verb, signature = cbor.fields(payload, "second operator", {0: bytes, 1: str, 2: bytes})
        if not self.pairing.state.authority:
            raise Refused("authority", "this terminal has no authority yet, which vouches for both operators")
        current = self._current
        assert current is not None  # only asked for inside a session
        second = self._token(raw, None)
        if second.x25519 == current.token.x25519 or second.ed25519 == current.token.ed25519:
            raise Refused("second_operator", "the second operator must be another one than the first")
        if verb not in second.verbs:
            raise Refused("verb", f"the token of {second.name} does not allow {verb}")
        verify(second.ed25519, second_message(current.session.hash, verb), signature)
        current.second.setdefault(verb, second)  # once: what was used up stays so
        return {}

    def _second(self, verb: str) -> Token:
        """The second operator who allowed an act of a verb, used up by this. Raises Refused."""
        second = self._current.second.get(verb) if self._current else None
        if second is None or self._current is None:
            raise Refused("second_operator", f"this takes a second operator's token with verb {verb}")
        self._check(second)
        self._current.second[verb] = None
        return second

    def _new_code(self, payload: dict[Any, Any]) -> dict[Any, Any]:
        (code,) = cbor.fields(payload, "pairing code", {0: str})
        pairing_key(code, self.host.serial)
        self.pairing.save(code=code, failures=0, failed_ms=0)
        return {}

    def _pin_authority(self, payload: dict[Any, Any]) -> dict[Any, Any]:
        (public,) = cbor.fields(payload, "authority", {0: bytes})
        if len(public) != 32:
            raise FormatError("an authority's key has 32 bytes")
        pinned = self.pairing.state.authority
        if pinned and pinned != public.hex():
            raise Refused("authority", "this terminal belongs to another authority: reset it first")
        self.pairing.save(authority=public.hex())
        return {}

    def _speed(self, payload: dict[Any, Any]) -> dict[Any, Any]:
        (baud,) = cbor.fields(payload, "speed", {0: int})
        if not 300 <= baud <= 4_000_000:
            raise FormatError(f"{baud} baud is out of range")
        self.speed_wanted = baud
        return {}


def refusal(request: Message, reason: str, words: str) -> Message:
    """The answer that says no: MCUmgr's way in its groups, reason and words in ours."""
    if request.group >= Group.IDENTITY:
        return request.answer({smp.REASON: reason, smp.WORDS: words[:200]})
    return request.answer({"rc": int(_CODES.get(reason, Rc.DENIED)), "rsn": f"{reason}: {words[:200]}"})


def guarded(request: Message, act: Callable[[], dict[Any, Any]]) -> Message:
    """Carry out a request; what it raises becomes the answer."""
    kinds: dict[type[OneCardError], str] = {
        FormatError: "format", CryptoError: "crypto", Conflict: "conflict", DatabaseError: "storage",
    }  # fmt: skip
    try:
        return request.answer(act())
    except Refused as e:
        return refusal(request, e.reason, str(e))
    except OneCardError as e:
        reason = next((name for kind, name in kinds.items() if isinstance(e, kind)), "failed")
        return refusal(request, reason, str(e))


@dataclass(slots=True)
class BenchDesk:
    """A terminal started with ``--bench``: no keys, no journal; uploads go to a folder of their own."""

    serve: Callable[[Message], dict[Any, Any]]
    serial: str = "BENCH"
    speed_wanted: int = 0
    text: bool = True
    _reader: smp.LineReader | None = None

    def hello(self, nonce: bytes) -> HelloAnswer:
        """Unpaired, and without a key."""
        return HelloAnswer(nonce, self.serial, "OC-BENCH", MAX_BODY, BAUDS, False, bytes(16))

    def answer(self, message: bytes, *, encrypted: bool) -> tuple[bytes, bool] | None:
        """Group 0 and 8 only; there is no session."""
        if encrypted:
            return b"", False
        try:
            request = Message.decode(message)
        except FormatError:
            return None
        return guarded(request, lambda: self.serve(request)).encode(), False

    def answer_line(self, line: bytes) -> bytes:
        """The answer to a packet, once its last line is here."""
        self._reader = self._reader or smp.LineReader()
        try:
            message = self._reader.take(line)
        except FormatError:
            return b""
        answer = message and self.answer(message, encrypted=False)
        return smp.encode_lines(answer[0]) if answer else b""


def bench_desk(host: Base) -> BenchDesk:
    """The desk of a bench terminal over its few services."""

    def serve(request: Message) -> dict[Any, Any]:
        if request.key not in BENCH:
            raise Refused("unsupported", f"group {request.group} has no command {request.command} on the bench")
        return BENCH[request.key](host, request.payload)

    return BenchDesk(serve)
