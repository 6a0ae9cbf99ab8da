"""SIMs in phones, and a network between them and the office that loses, doubles, delays and reorders by seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from random import Random

from backoffice import airkeys, airqueue, cards, chips
from backoffice.airkeys import AirKeys
from backoffice.airqueue import AirState
from backoffice.cards import NewCard
from backoffice.ota_server import LAST_RETRY_MS, Server
from cardlib.crypto import make_key
from cardlib.errors import StatusError
from cardlib.profile import CardKind, Purse
from cardlib.wire import sms
from keymgmt.handle import KeyHandle
from keymgmt.steps import MemorySteps
from keymgmt.wash import WashPlan, wash
from simulator.phone import Phone
from simulator.sim import Sim
from simulator.uicc.memory import OtaKeySet
from tests.backoffice.crash import Dead, Guillotine
from tests.backoffice.desk import OPERATOR, PIN, TRANSPORT_KEY, World
from tests.backoffice.kit import ADMIN, ENTERPRISE

NETWORK = sms.Address.of("+86106599")


class Network:
    """Phones by number. ``rate`` of messages that go wrong; ``kill_at``: the server dies at that message."""

    def __init__(self, seed: int = 0, rate: float = 0.0) -> None:
        self.random, self.rate = Random(seed), rate
        self.phones: dict[str, Phone] = {}
        self.requests: deque[tuple[str, bytes]] = deque()
        self.texts: list[str] = []
        self.late: list[tuple[str, bytes]] = []
        self.back: list[bytes] = []
        self.sent = 0
        self.guillotine: Guillotine | None = None

    def _bad(self) -> bool:
        return self.random.random() < self.rate

    def carry(self, number: str, user_data: list[bytes]) -> Iterable[bytes]:
        """See ``backoffice.ota_server.Carrier``."""
        self.sent += 1
        self._may_die()
        answers = [answer for one in self._through(user_data) for answer in self._hand_over(number, one)]
        self._may_die()
        while self.back and self._bad():
            answers.append(self.back.pop(self.random.randrange(len(self.back))))
        arriving = self._through(answers)
        self.back += [answer for answer in answers if answer not in arriving]
        if self._bad():
            self.random.shuffle(arriving)
        return arriving

    def poll(self) -> None:
        """See ``backoffice.ota_server.Carrier``."""
        for number, phone in self.phones.items():
            self.requests += [(number, sms.Submit.decode(tpdu).user_data) for tpdu in phone.outbox]
            phone.outbox.clear()

    def text(self, number: str, text: str) -> None:
        """See ``backoffice.ota_server.Carrier``."""
        assert number in self.phones
        self.texts.append(text)

    def _may_die(self) -> None:
        """The server is killed before a message left, or before its answer came."""
        if self.guillotine is not None and self._bad() and self._bad():
            self.guillotine.dead = True
            raise Dead

    def _through(self, messages: list[bytes]) -> list[bytes]:
        """What arrives: some are lost, some come twice."""
        arriving = []
        for message in messages:
            if self._bad():
                continue
            arriving.append(message)
            if self._bad():
                arriving.append(message)
        return arriving

    def _hand_over(self, number: str, user_data: bytes) -> list[bytes]:
        if self._bad():
            self.late.append((number, user_data))
            return []
        answers = self.deliver(number, user_data)
        if self.late and self._bad():
            answers += self.deliver(*self.late.pop(self.random.randrange(len(self.late))))
        return answers

    def deliver(self, number: str, user_data: bytes) -> list[bytes]:
        """A message reaches the phone; what comes back."""
        phone = self.phones[number]
        if self._bad() and self._bad():
            phone.power_on()
        report = b""
        with suppress(StatusError):
            report = phone.deliver(sms.Deliver(NETWORK, user_data).encode())
        answers = [report] if report else []
        answers += [sms.Submit.decode(tpdu).user_data for tpdu in phone.outbox]
        phone.outbox.clear()
        return answers

    def deliver_late(self) -> None:
        """The network brings what it had kept, long after."""
        self.rate = 0.0
        for number, user_data in self.late:
            self.deliver(number, user_data)


def _factory(keys: AirKeys) -> OtaKeySet:
    kic, kid, kik = (key._value for key in keys.all)
    return OtaKeySet("aes", kic, kid, 0, kik)


class AirWorld(World):
    """An office with a server, and SIMs in phones."""

    def __init__(self, folder: Path, seed: int = 0, rate: float = 0.0, *, fresh: bool = True) -> None:
        super().__init__(folder, fresh=fresh)
        self.network = Network(seed, rate)

    def server(self, **more: int) -> Server:
        """As a fresh process would have it."""
        return Server(self.new_office(), self.network, **more)  # type: ignore[arg-type]  # numbers only

    def sim(self, number: int) -> Sim:
        """A vendor-fresh SIM in the phone of a member."""
        sim = Sim.vendor_fresh(TRANSPORT_KEY, self.random_bytes)
        phone = Phone(sim.phone)
        phone.power_on()
        self.network.phones[f"138{number:08}"] = phone
        return sim

    def put_key_set(self, sim: Sim, keys: AirKeys) -> None:
        """What a factory does."""
        cell = sim.phone.memory.ota
        cell.value = {**cell.value, keys.key_set.number: _factory(keys)}

    def washed_sim(self, number: int = 1) -> tuple[Sim, bytes]:
        """A SIM in a member's phone that the factory washed and gave the platform's keyset."""
        sim, serial = self.sim(number), self.office.next_serial(CardKind.RFID_SIM)
        initial = KeyHandle(make_key(TRANSPORT_KEY), "vendor")
        plan = WashPlan("factory", serial, 1, date(2026, 9, 1), 1, initial)
        wash(sim, plan, self.store, MemorySteps())
        with self.platform.write() as tx:
            chips.register(tx, OPERATOR, serial, wash_version=1)
        self.put_key_set(sim, airkeys.of_platform(self.platform, self.store, serial))
        sim.reset()
        return sim, serial

    def issued_sim(self, number: int = 1) -> tuple[Sim, bytes]:
        """A member with an active card in his phone."""
        sim = self.sim(number)
        new = NewCard(sim, PIN, kind=CardKind.RFID_SIM)
        serial = bytes.fromhex(cards.issue(self.office, ADMIN, self.member(number), new)["card"])
        self.put_key_set(sim, airkeys.of_platform(self.platform, self.store, serial))
        self.put_key_set(sim, airkeys.of_slot(self.db, self.store, serial, ENTERPRISE, 1))
        sim.reset()
        return sim, serial


def ordeal(world: AirWorld, guillotine: Guillotine, serial: bytes, seed: int, fen: int) -> int:
    """One recharge with everything going wrong by seed: messages, SIM resets, the server killed. How often it died."""
    chance = Random(seed)
    network = world.network
    network.random, network.rate, network.guillotine = chance, chance.choice([0.05, 0.15, 0.25]), guillotine
    request_id, deaths = f"seed {seed}", 0
    for _ in range(200):
        guillotine.arm(chance.randrange(1, 40), after=chance.random() < 0.5)
        state = None
        with suppress(Dead):
            with world.db.write() as tx:
                arguments = {"amount_fen": fen, "account": "bank"}
                queued = airqueue.queue(tx, ADMIN, ENTERPRISE, "recharge", serial, arguments, request_id)
            for _job in world.server(attempts=1000).run():
                pass
            with world.db.read() as tx:
                state = airqueue.get(tx, ENTERPRISE, queued.air_id).state
        deaths += guillotine.disarm()
        if state is AirState.PROVEN:
            return deaths
        assert state is not AirState.FAILED, seed
        world.now += LAST_RETRY_MS
    raise AssertionError(f"seed {seed} never came to an end")


def air_faults(world: AirWorld, guillotine: Guillotine, seeds: Sequence[int]) -> str:
    """One ordeal per seed with one SIM; what does not add up at the end, empty for nothing."""
    sim, serial = world.issued_sim()
    deaths = sum(ordeal(world, guillotine, serial, seed, 1_00 + seed % 100) for seed in seeds)
    world.network.deliver_late()
    expected = sum(1_00 + seed % 100 for seed in seeds)
    held, booked = world.on_card(sim)[Purse.MAIN], world.purse(serial)
    if held != expected or booked != expected:
        return f"{expected} fen were sent, the card holds {held}, the books {booked}"
    world.agrees()
    return "" if deaths > len(seeds) // 4 else f"the server died only {deaths} times"
