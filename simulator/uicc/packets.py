"""The card's end of secured packets: from a short message to a script and back (ota.md §1 to §3).

The order of checks is the standard's. What is refused is answered without checksum and leaves no trace in memory; what
is accepted has its counter stored before the first command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from cardlib.crypto.packets import PacketAlgorithm, packet_key
from cardlib.errors import FormatError, MacMismatch, OneCardError
from cardlib.wire import scp80, sms
from cardlib.wire.scp80 import CounterMode, Head, Integrity, Keys, PorStatus, Proof, SealedCommand, Spi
from simulator.nvm import Cell, Nvm, Power
from simulator.uicc.memory import OtaKeySet

OK, REFUSED = 0x9000, 0x6200
"""Status words of ENVELOPE; a packet that is refused without PoR gets a warning."""
MAX_REPORT = 128
"""User data that fit a delivery report for sure (ota.md §3)."""
MAX_SEGMENTS, MAX_MESSAGES, SEGMENT = 8, 4, 132
"""Segments of one message either way, incomplete messages kept, octets that every segment has room for."""
ONE_CARD_TAR = b"\xbf\xff\x4f"
REQUEST_SPI = Spi(0x16, 0x00)
"""Of what the menu sends: checksum, ciphering, counter higher; no answer (ota.md, From the SIM menu)."""
GOES_ON = frozenset((0x61, 0x62, 0x63, 0x90, 0x91, 0x92, 0x9E, 0x9F))
"""SW1 after which a script goes on; of the 9x only those that report success (ota.md §5)."""
BAD_LENGTH = 0x6700
GSM = 0xA0
"""Class whose GET RESPONSE has its own."""


class Executor(Protocol):
    """Runs the commands of one script."""

    def has_data(self, header: bytes) -> bool:
        """Whether data follow a command's five header bytes (its ISO case, by class and instruction)."""

    def execute(self, command: bytes) -> bytes:
        """Run one command as T=0 carries it; returns data and status word."""

    def finish(self) -> None:
        """The script is over."""


class Target(NamedTuple):
    """What answers under a TAR: the lowest SPI1 it accepts, who may speak to it, in which format of scripts."""

    msl: int
    key_sets: range
    begin: Callable[[int], Executor]
    expanded: bool = False


class Denied(OneCardError):
    """The packet is answered with a status other than 00. Never leaves the card."""

    def __init__(self, status: PorStatus) -> None:
        self.status = status


class Accepted(NamedTuple):
    """A packet that passed all checks."""

    target: Target
    key_set: int
    keys: Keys
    counter: int
    script: bytes


class Packets:
    """``submit`` sends an SMS-SUBMIT by a service centre (coded as the ENVELOPE had it, or empty)."""

    def __init__(
        self,
        nvm: Nvm,
        power: Power,
        key_sets: Cell[dict[int, OtaKeySet]],
        upward: Cell[dict[int, int]],
        targets: Mapping[bytes, Target],
        submit: Callable[[bytes, bytes], None],
        service_number: str,
        on_reset: Callable[[], None],
    ) -> None:
        self.nvm, self.power = nvm, power
        self.key_sets, self.upward = key_sets, upward
        self.targets = targets
        self.submit = submit
        self.service_number = service_number
        self.on_reset = on_reset
        self._made: dict[int, tuple[OtaKeySet, Keys]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget incomplete messages, and what targets keep (``on_reset``)."""
        self.on_reset()
        self._segments = sms.Segments(MAX_SEGMENTS, MAX_MESSAGES)
        self._reference = 0

    # Receiving ------------------------------------------------------------------------------------------------------

    def download(self, tpdu: bytes, centre: bytes = b"") -> tuple[bytes, int]:
        """Take an SMS-DELIVER from a service centre (may be empty); answer data and a status word."""
        try:
            deliver = sms.Deliver.decode(tpdu)
            if not deliver.first & sms.UDHI:
                return b"", OK  # a text, not for us
            joined = self._segments.add(deliver.sender, deliver.user_data)
            if joined is None:
                return b"", OK
            if sms.Element(sms.IEI_COMMAND, b"") not in joined.elements:
                return b"", REFUSED
            sealed = SealedCommand.decode(joined.payload)
        except FormatError:
            return b"", REFUSED
        try:
            accepted = self._accept(sealed)
        except Denied as denied:
            # Never by a short message: else any packet from anywhere would make the card send one at its holder's cost.
            if sealed.head.spi.por is Proof.NEVER:
                return b"", REFUSED
            return scp80.RESPONSE_UDH + scp80.encode_refusal(sealed.head.tar, denied.status), OK
        return self._answer(sealed, accepted, run(accepted), deliver, centre), OK

    def _accept(self, sealed: SealedCommand) -> Accepted:
        """Checks 1 to 6 of ota.md §1 in their order, and the counter stored."""
        head = sealed.head
        target = self.targets.get(head.tar)
        if target is None:
            raise Denied(PorStatus.TAR_UNKNOWN)
        if not sufficient(head.spi, target.msl):
            raise Denied(PorStatus.LEVEL)
        try:
            number = head.keyset
            keys = self._keys(number, target, head) if head.needs_keys else Keys()
            counter, script = sealed.open(keys)
        except FormatError:
            raise Denied(PorStatus.SECURITY) from None
        except MacMismatch:
            raise Denied(PorStatus.CHECKSUM) from None
        if head.spi.counter in (CounterMode.HIGHER, CounterMode.NEXT):
            self._count(number, counter, head.spi.counter)
        return Accepted(target, number, keys, counter, script)

    def _keys(self, number: int, target: Target, head: Head) -> Keys:
        stored = self.key_sets.value.get(number)
        if stored is None or number not in target.key_sets:
            raise Denied(PorStatus.SECURITY)
        made = self._made.get(number)
        if made is None or made[0][:3] != stored[:3]:
            keys = Keys(packet_key(algorithm_of(stored), stored.kic), packet_key(algorithm_of(stored), stored.kid))
            made = self._made[number] = stored, keys
        keys = made[1]
        named = [head.kic] if head.spi.ciphered else []
        if head.spi.integrity is Integrity.CC:
            named.append(head.kid)
        if any(code & 15 != algorithm_of(stored) for code in named):
            raise Denied(PorStatus.SECURITY)
        return keys

    def _count(self, number: int, counter: int, mode: CounterMode) -> None:
        """Only a packet whose checksum was right comes here; a counter at its end stays there (ota.md §1)."""
        key_sets = self.key_sets.value
        last = key_sets[number].counter
        if last == scp80.COUNTER_MAX:
            raise Denied(PorStatus.COUNTER_BLOCKED)
        if counter <= last:
            raise Denied(PorStatus.COUNTER_LOW)
        if mode is CounterMode.NEXT and counter > last + 1:
            raise Denied(PorStatus.COUNTER_HIGH)
        self.nvm.write(self.key_sets, {**key_sets, number: key_sets[number]._replace(counter=counter)})
        self.nvm.commit(self.power)

    # Answering ------------------------------------------------------------------------------------------------------

    def _answer(
        self, sealed: SealedCommand, accepted: Accepted, data: bytes, deliver: sms.Deliver, centre: bytes
    ) -> bytes:
        """User data for the delivery report; what is asked for, or too long, goes by short messages of its own."""
        head = sealed.head
        if head.spi.por is not Proof.ALWAYS:
            return b""
        size = sealed.checksum_bytes if head.spi.por_integrity is head.spi.integrity else None

        def por(status: int, content: bytes) -> bytes:
            return scp80.encode_response(head, accepted.counter, status, content, accepted.keys, size)

        whole = por(PorStatus.OK, data)
        if len(whole) > MAX_SEGMENTS * SEGMENT:
            return scp80.RESPONSE_UDH + por(PorStatus.MEMORY, b"")
        report = scp80.RESPONSE_UDH + whole
        if not head.spi.por_by_submit and len(report) <= MAX_REPORT:
            return report
        self._reference = (self._reference + 1) & 0xFF
        dcs = deliver.dcs if sms.alphabet(deliver.dcs) is sms.Alphabet.DATA else sms.DCS_CLASS_2
        for user_data in sms.split(whole, sms.IEI_RESPONSE, self._reference):
            self.submit(sms.Submit(deliver.sender, user_data, pid=deliver.pid, dcs=dcs).encode(), centre)
        status = PorStatus.BY_SUBMIT if head.spi.por_by_submit else PorStatus.MORE_TIME
        return scp80.RESPONSE_UDH + por(status, b"")

    # Sending --------------------------------------------------------------------------------------------------------

    def request(self, slot: int, body: bytes) -> list[bytes]:
        """SMS-SUBMITs to the service number that carry ``body`` under the key set of a slot; none without that key set.

        The counter is stored before anything is sent.
        """
        number = slot + 1
        stored, last = self.key_sets.value.get(number), self.upward.value.get(number, 0)
        if stored is None or last == scp80.COUNTER_MAX:
            return []
        self.nvm.write(self.upward, {**self.upward.value, number: last + 1})
        self.nvm.commit(self.power)
        code = number << 4 | algorithm_of(stored)
        keys = Keys(packet_key(algorithm_of(stored), stored.kic), packet_key(algorithm_of(stored), stored.kid))
        packet = scp80.encode_command(Head(REQUEST_SPI, code, code, ONE_CARD_TAR), last + 1, body, keys)
        self._reference = (self._reference + 1) & 0xFF
        receiver = sms.Address.of(self.service_number)
        return [
            sms.Submit(receiver, user_data, pid=0, dcs=sms.DCS_CLASS_2).encode()
            for user_data in sms.split(packet, sms.IEI_COMMAND, self._reference)
        ]


def algorithm_of(stored: OtaKeySet) -> PacketAlgorithm:
    """The nibble that names a stored key's algorithm; single DES has no way in."""
    if stored.algorithm == "aes":
        return PacketAlgorithm.AES
    return PacketAlgorithm.TDES2 if len(stored.kic) == 16 else PacketAlgorithm.TDES3


def sufficient(spi: Spi, msl: int) -> bool:
    """Whether a packet's protection reaches the application's minimum security level, field by field.

    Without a checksum nothing may depend on a counter, which anyone could run down, nor may the answer need a key.
    """
    least = Spi(msl, 0)
    if spi.integrity < least.integrity or spi.ciphered < least.ciphered or spi.counter < least.counter:
        return False
    proven = spi.integrity >= Integrity.CC
    asks = spi.counter >= CounterMode.HIGHER or spi.por_integrity >= Integrity.CC or spi.por_ciphered
    return proven or not asks


# Scripts --------------------------------------------------------------------------------------------------------------


def run(accepted: Accepted) -> bytes:
    """Run a script and code its answer (ota.md §5)."""
    target = accepted.target
    executor = target.begin(accepted.key_set)
    answer = (_run_expanded if target.expanded else _run_compact)(executor, accepted.script)
    executor.finish()
    return answer


def _run_compact(executor: Executor, script: bytes) -> bytes:
    executed, sw, data = 0, OK, b""
    try:
        for command in scp80.cut_compact(script, executor.has_data):
            answer = executor.execute(command)
            executed, sw, data = executed + 1, int.from_bytes(answer[-2:], "big"), answer[:-2]
            if sw >> 8 not in GOES_ON:
                break
    except scp80.ScriptError:
        executed, sw, data = executed + 1, BAD_LENGTH, b""
    return scp80.compact_answer(executed, sw, data)


def _run_expanded(executor: Executor, script: bytes) -> bytes:
    """R-APDUs of all executed commands; 61xx is followed up here, since a C-APDU says by its Le what it wants."""
    indefinite = script[:1] == bytes((scp80.TAG_SCRIPT_OPEN,))
    try:
        commands = scp80.cut_expanded(script)
    except scp80.ScriptError as error:
        return scp80.bad_script_answer(error.fault, indefinite=indefinite)
    answers: list[bytes] = []
    for command in commands:
        answers.append(_whole(executor, command))
        if answers[-1][-2] not in GOES_ON:
            break
    return scp80.expanded_answer(answers, indefinite=indefinite)


def _whole(executor: Executor, command: bytes) -> bytes:
    """One C-APDU with the GET RESPONSE that its Le asks for. What is no command answers 6700."""
    if len(command) < 4:
        return BAD_LENGTH.to_bytes(2, "big")
    end = 5 + command[4] if len(command) > 5 else 5
    wants = len(command) == end + 1
    if len(command) not in (4, end, end + 1) or (len(command) > 5 and not executor.has_data(command[:5])):
        return BAD_LENGTH.to_bytes(2, "big")
    answer = executor.execute(command[:end].ljust(5, b"\0"))
    data = answer[:-2]
    while wants and answer[-2] in (0x61, 0x9F):
        answer = executor.execute(bytes((command[0] if command[0] == GSM else 0, 0xC0, 0, 0, answer[-1])))
        data += answer[:-2]
    return data + answer[-2:]
