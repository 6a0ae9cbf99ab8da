"""Recharge over the air: the purse's protocols over scripts, with messages lost, doubled, late and out of order."""

from __future__ import annotations

from random import Random

import pytest

from cardlib import ota
from cardlib.crypto.packets import PacketAlgorithm
from cardlib.errors import LineTimeout, OutcomeUnknown, StatusError, TransportError
from cardlib.profile import Purpose, Purse
from cardlib.purse import balance, load, open_application, recover
from cardlib.records import Outcome
from cardlib.wire import sms
from cardlib.wire.scp80 import Spi
from simulator.nvm import Cell
from simulator.uicc.memory import OtaKeySet
from simulator.uicc.packets import ONE_CARD_TAR, Packets, Target
from simulator.uicc.remote import KEY_SETS, Applet
from tests.cardlib.world import ENTERPRISE, World, request

KIC, KID = bytes(range(0x11, 0x21)), bytes(range(0x31, 0x41))
NETWORK = sms.Address.of("+86106599")
LOADS, AMOUNT = 3, 700
STEPS = 400


class Network:
    """Carries user data to the card and back. What goes wrong is decided by the seed; ``rate`` 0: nothing does."""

    def __init__(self, world: World, seed: int, rate: float) -> None:
        self.world, self.random, self.rate = world, Random(seed), rate
        card = world.card
        self.key_sets = Cell({2: OtaKeySet("aes", KIC, KID)})
        self.applet = Applet(card.nvm, card.power, world.random.randbytes)
        targets = {ONE_CARD_TAR: Target(0x16, KEY_SETS, self.applet.begin)}
        self.sent: list[bytes] = []
        self.packets = Packets(
            card.nvm, card.power, self.key_sets, Cell({}), targets, lambda tpdu, _: self.sent.append(tpdu), "106599",
            self.applet.reset,
        )  # fmt: skip
        self.late_down: list[bytes] = []
        self.late_up: list[bytes] = []
        self.counter = 0

    def next_counter(self) -> int:
        self.counter += 1
        return self.counter

    def card(self, spi: Spi = ota.ONE_CARD_SPI) -> ota.AirCard:
        keys = ota.KeySet.of(2, PacketAlgorithm.AES, KIC, KID)
        return ota.AirCard(keys, self.next_counter, self.carry, spi=spi, tries=8)

    def _bad(self) -> bool:
        return self.random.random() < self.rate

    def _through(self, messages: list[bytes], late: list[bytes]) -> list[bytes]:
        """What arrives of these and of those that were late."""
        arriving = list[bytes]()
        for message in messages:
            if self._bad():
                continue
            (late if self._bad() else arriving).append(message)
            if self._bad():
                (late if self._bad() else arriving).append(message)
        while late and self._bad():
            arriving.append(late.pop(self.random.randrange(len(late))))
        if self._bad():
            self.random.shuffle(arriving)
        return arriving

    def carry(self, user_data: list[bytes]) -> list[bytes]:
        answers = []
        for one in self._through(user_data, self.late_down):
            if self._bad() and self._bad():
                self.packets.reset()
            data, _ = self.packets.download(sms.Deliver(NETWORK, one).encode())
            if data:
                answers.append(data)
            answers += [sms.Submit.decode(tpdu).user_data for tpdu in self.sent]
            self.sent.clear()
        return self._through(answers, self.late_up)


def step(world: World, card: ota.AirCard) -> None:
    """What a server does when it finds a card with work: finish what is open, else recharge."""
    session = open_application(card, world.host, ENTERPRISE, world.random.randbytes, Purpose.RECHARGE)
    if world.journal.pending:
        [(ref, move)] = world.journal.pending
        assert recover(card, world.host, world.journal, session, ref, move).outcome is not Outcome.UNKNOWN
    else:
        load(card, world.host, world.journal, session, request(Purse.MAIN, AMOUNT, len(world.journal.entries)))


@pytest.mark.parametrize("spi", [ota.ONE_CARD_SPI, ota.ONE_CARD_SPI_SUBMIT])
def test_recharge_over_the_air(spi: Spi) -> None:
    """The purse protocol runs over scripts as it does through a reader, with proofs of either kind."""
    world = World()
    network = Network(world, 1, 0)
    for _ in range(LOADS):
        step(world, network.card(spi))
    assert len(world.journal.moves) == LOADS
    assert all(move.tac for move in world.journal.moves)
    assert network.key_sets.value[2].counter == network.counter
    world.tap()
    assert balance(world.card, Purse.MAIN) == LOADS * AMOUNT


def faults(seed: int) -> list[str]:
    """Recharge a card over a bad network to the end; what does not add up. Also for ``script/soak --air``."""
    world = World()
    network = Network(world, seed, Random(seed).choice([0.05, 0.15, 0.25]))
    for _ in range(STEPS):
        if len(world.journal.moves) == LOADS:
            break
        try:
            step(world, network.card())  # a new one each time: the server keeps nothing but journal and counter
        except (TransportError, StatusError, OutcomeUnknown):
            continue
    for late in network.late_down:  # the network delivers the rest long after
        network.packets.download(sms.Deliver(NETWORK, late).encode())
    world.tap()
    there = balance(world.card, Purse.MAIN)
    found = [f"{len(world.journal.moves)} of {LOADS} recharges done"] if len(world.journal.moves) != LOADS else []
    found += [f"{len(world.journal.pending)} left open"] if world.journal.pending else []
    return found + ([f"{there} fen on the card"] if there != LOADS * AMOUNT else [])


@pytest.mark.parametrize("block", range(6))
def test_exactly_once(block: int) -> None:
    """Whatever is lost, repeated, late or reordered, and when the SIM is reset: each recharge happens exactly once."""
    for seed in range(40 * block, 40 * block + 40):
        assert not faults(seed), seed


def test_a_dead_line_is_told() -> None:
    """Without any answer, and with answers of anyone, the sender says that the outcome is not known."""
    network = Network(World(), 1, 0)
    for answers in (
        [],
        [b"", b"text"],
        [b"\x02\x71\x00" + bytes(30)],
        [bytes.fromhex("027100000B0ABFFF4F00000000000006")],
    ):
        card = ota.AirCard(network.card().key_set, network.next_counter, lambda _, answers=answers: answers)  # type: ignore[misc]  # a default of a lambda
        with pytest.raises(LineTimeout) as caught:
            card.transceive(bytes.fromhex("0084000004"))
        assert ("SECURITY" in str(caught.value)) == (len(answers) == 1 and len(answers[0]) == 16)
    assert network.counter == 4
    assert network.key_sets.value[2].counter == 0
