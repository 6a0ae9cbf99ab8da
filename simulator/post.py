"""Short messages straight into simulated phones, and what their SIMs send (ota.md §7, direct transport)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from cardlib.errors import ConfigError, StatusError, TransportError
from cardlib.wire import sms
from cardlib.wire.scp80 import COMMAND_UDH
from simulator import image
from simulator.phone import Phone
from simulator.sim import Sim

SENDER = sms.Address.of("+8610690000")


class Post:
    """Phones by number; under the number "" one phone that has them all."""

    def __init__(self, phones: Mapping[str, Phone]) -> None:
        self.phones = phones
        self.requests: deque[tuple[str, bytes]] = deque()
        """Number and user data of what a SIM sent by itself."""

    def carry(self, number: str, user_data: list[bytes]) -> list[bytes]:
        """Hand messages over; delivery reports and what the SIM sent. Raises TransportError."""
        phone = self.phones.get(number) or self.phones.get("")
        if phone is None:
            raise TransportError(f"no simulated phone has the number {number[:3]}****{number[-2:]}")
        answers = []
        for one in user_data:
            try:
                answers.append(phone.deliver(sms.Deliver(SENDER, one).encode()))
            except StatusError as e:
                raise TransportError(f"the SIM takes no message now: status {e.sw:04X}") from e
        for sent in (sms.Submit.decode(tpdu).user_data for tpdu in phone.outbox):
            if sent.startswith(COMMAND_UDH):
                self.requests.append((number, sent))
            else:
                answers.append(sent)
        phone.outbox.clear()
        return answers

    def text(self, number: str, text: str) -> None:
        """Bring a text for the holder."""
        phone = self.phones.get(number) or self.phones.get("")
        if phone is not None:
            phone.receive(text)

    def poll(self) -> None:
        """Take what the SIMs sent by themselves."""
        for number in self.phones:
            self.requests += [(number, one) for one in self.carry(number, [])]

    def close(self) -> None:
        """Nothing is held."""


def open_post(path: Path) -> Post:
    """The phone with the SIM of an image file, whatever number is written to; or a folder of NUMBER.img.

    What the SIMs write is kept in the files. Raises ConfigError for a card that is no SIM.
    """
    files = {file.stem: file for file in sorted(path.glob("*.img"))} if path.is_dir() else {"": path}
    return Post({number: _phone(file) for number, file in files.items()})


def _phone(path: Path) -> Phone:
    sim = image.load(path)
    if not isinstance(sim, Sim):
        raise ConfigError(f"{path} holds a {sim.KIND}, not a sim: make one with onecard sim make FILE --rfid-sim")
    image.keep(sim, path)
    phone = Phone(sim.phone)
    phone.power_on()
    return phone
