"""Washing at the platform's reader: by batch file, torn anywhere, with wrong keys, with chips that lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from backoffice import batches, chips, operators
from backoffice.batches import WashSteps
from backoffice.installation import Installation
from backoffice.washing import Washing, Wish
from cardlib.crypto import make_key
from cardlib.errors import (
    BadKcv,
    CardRemoved,
    ConfigError,
    Conflict,
    CryptoError,
    MacMismatch,
    NotFound,
    OneCardError,
    TransportError,
)
from cardlib.profile import CardKind, Purpose, check_serial, make_serial
from keymgmt.batchfile import BatchHead, ChipRow, read_batch
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.samload import sam_serial
from keymgmt.steps import chip_number, read_identity
from simulator.card import Card
from simulator.sam import SamCard
from simulator.vendor import Vendor
from simulator.world import QUICK
from tests.keymgmt.rig import count_steps, cut
from tests.secretwatch import register

BATCH_KEY = bytes.fromhex("7AC3915E0D42F8B61937D5E82C60A4FB84EE21975BD30F6C48B29A1DC7F65382")
TYPED_KEY = bytes.fromhex("909192939495969798999A9B9C9D9E9F")
WRONG_KEY = bytes.fromhex("808182838485868788898A8B8C8D8E8F")
ENTERPRISE = 1001
register(BATCH_KEY, "the batch key")
register(TYPED_KEY, "the typed transport key")
register(WRONG_KEY, "a wrong transport key")

CARD, SAM = Wish(), Wish(CardKind.SAM, enterprise_id=ENTERPRISE)
KINDS = pytest.mark.parametrize("kind", [CardKind.CPU_CARD, CardKind.RFID_SIM, CardKind.SAM], ids=lambda k: k.name)


class Plant:
    """A platform at work, its secrets, and a vendor."""

    def __init__(self, folder: Path) -> None:
        self.secrets = {"operator secret": "a long secret", "key passphrase": "a long passphrase"}
        self.secrets |= {"batch key": BATCH_KEY.hex(), "transport key": TYPED_KEY.hex()}
        self.asked: list[str] = []
        self.random = Random(7)
        self.office = Installation(folder, self.secret, operator="admin", platform=True)
        if not folder.exists():
            self.office.create("a long secret", "a long passphrase", QUICK)
        self.batch_number = 0
        self.actor = self.office.operator

    def secret(self, name: str) -> str:
        self.asked.append(name)
        if name not in self.secrets:
            raise ConfigError(f"{name} needed")
        return self.secrets[name]

    def deliver(self, count: int = 1, kind: CardKind = CardKind.CPU_CARD, *, one_key: bool = False) -> list[Card]:
        """Chips of a new batch that the platform received."""
        self.batch_number += 1
        vendor = Vendor("Example Chips", f"B{self.batch_number}", BATCH_KEY, self.random.randbytes, kind)
        cards, data = vendor.deliver(count, one_key=one_key)
        with self.office.platform.write() as tx:
            batches.receive(tx, self.actor, read_batch(data, BATCH_KEY), data)
        return cards

    def nameless(self, kind: type[Card] = Card, key: bytes = TYPED_KEY) -> Card:
        """A chip that tells no number, under the key that is typed."""
        return kind.vendor_fresh(key, self.random.randbytes)

    def wash(self, card: Card, wish: Wish = CARD) -> dict[str, Any]:
        """As one invocation of the command would."""
        card.reset()
        return Washing(self.office, wish).wash(card)

    def plan(self, card: Card, wish: Wish = CARD) -> str:
        card.reset()
        return "\n".join(Washing(self.office, wish).plan(card))

    def washed(self, card: Card, wish: Wish = CARD) -> bytes:
        """Wash, and check that the card holds our key of the serial that the books have for it."""
        done = self.wash(card, wish)
        serial: bytes = done["sam" if wish.kind is CardKind.SAM else "card"]
        self.assert_ours(card, serial)
        return serial

    def assert_ours(self, card: Card, serial: bytes) -> None:
        sam = check_serial(serial) is CardKind.SAM
        purpose, enterprise = (Purpose.SAM_CONTROL, ENTERPRISE) if sam else (Purpose.CARD_CONTROL, None)
        ours = self.office.keys.handle(KeyRef(purpose, 1, enterprise), serial)
        record = card.mf.key(0x39, 0)
        assert record is not None
        assert make_key(record.value.value).kcv == ours.kcv
        assert record.header.value[4] == 0xFF, "a managed key is not counted"
        card.reset()
        identity = None if sam else read_identity(card)
        assert sam_serial(card) == serial if sam else (identity and identity.serial, identity and identity.wash_version)
        with self.office.platform.read() as tx:
            known = chips.get(tx, serial)
        assert (known.wash_version, known.chip) == (1, card.chip.hex().upper() or None)


@pytest.fixture(scope="module", autouse=True)
def _cheap() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators.Credential.make.__func__, "__defaults__", (QUICK,))  # type: ignore[attr-defined]
        yield


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """A platform at work."""
    made = Plant(tmp_path / "office")
    yield made
    made.office.close()


def tries(card: Card) -> int:
    record = card.mf.key(0x39, 0)
    assert record is not None
    return record.header.value[4] & 15


def wish_of(kind: CardKind) -> Wish:
    return SAM if kind is CardKind.SAM else CARD


def serials_given(plant: Plant, kind: CardKind) -> int:
    with plant.office.platform.read() as tx:
        next_number = tx.value("SELECT COALESCE(MAX(next), 1) FROM serial_counter WHERE kind = ?", (int(kind),))
    return int(next_number) - 1


# By batch file


@KINDS
@pytest.mark.parametrize("one_key", [False, True])
def test_wash_by_batch(plant: Plant, kind: CardKind, one_key: bool) -> None:
    """Each chip is washed with the key of its row, without anybody typing one; again, it is only proven."""
    cards = plant.deliver(3, kind, one_key=one_key)
    washing = Washing(plant.office, wish_of(kind))
    serials = []
    for card in cards:
        card.reset()
        done = washing.wash(card)
        assert (done["state"], done["batch"], done["chip"]) == ("washed", "B1", card.chip.hex().upper())
        serials.append(done["sam" if kind is CardKind.SAM else "card"])
        plant.assert_ours(card, serials[-1])
    assert {check_serial(serial) for serial in serials} == {kind}
    assert plant.asked.count("batch key") == 1
    assert "transport key" not in plant.asked
    again = plant.wash(cards[0], wish_of(kind))
    assert (again["state"], plant.asked.count("batch key")) == ("washed already", 1)
    with plant.office.platform.read() as tx:
        assert [(one.cards, one.washed) for one in batches.listing(tx)] == [(3, 3)]
        assert [row["wash_version"] for row in batches.chips_of(tx, "B1")] == [1, 1, 1]


def test_one_row_is_unwrapped_for_one_card(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Washing a card of a large batch opens one wrapped key, not the file."""
    card = plant.deliver(50)[20]
    opened: list[str] = []
    real = BatchHead.transport_key

    def counted(head: BatchHead, row: ChipRow, batch_key: bytes) -> KeyHandle:
        opened.append(row.chip)
        return real(head, row, batch_key)

    monkeypatch.setattr(BatchHead, "transport_key", counted)
    plant.washed(card)
    assert opened == [card.chip.hex().upper()]


def test_receive(plant: Plant) -> None:
    """The same file twice is once; another of the same name, or with a chip of another batch, is refused whole."""
    vendor = Vendor("Example Chips", "R1", BATCH_KEY, plant.random.randbytes)
    cards, data = vendor.deliver(2)

    def receive(content: bytes) -> batches.Batch:
        with plant.office.platform.write() as tx:
            return batches.receive(tx, plant.actor, read_batch(content, BATCH_KEY), content)

    assert receive(data) == receive(data)
    with pytest.raises(Conflict, match="other content"):
        receive(vendor.deliver(1)[1])
    twin = replace(vendor, batch="R2").file([(cards[1].chip, [cards[1].atr])], [TYPED_KEY])
    with pytest.raises(Conflict, match=f"chip {cards[1].chip.hex().upper()} is in batch R1"):
        receive(twin)
    with plant.office.platform.read() as tx:
        assert [one.head.batch for one in batches.listing(tx)] == ["R1"]
        with pytest.raises(NotFound, match="R2"):
            batches.get(tx, "R2")
        kept = tx.all("SELECT wrapped_key FROM vendor_chip")
    assert all(len(row[0]) == 44 for row in kept)


# Torn


@KINDS
def test_cut_at_every_step(plant: Plant, kind: CardKind) -> None:
    """Power lost at any step: the next presentation ends it, under the serial that the chip had from the start."""
    wish, kind_given = wish_of(kind), serials_given(plant, kind)
    total = count_steps(card := plant.deliver(1, kind)[0], lambda: plant.wash(card, wish))
    assert total > 30
    for at in range(1, total + 1, 1 if kind is CardKind.CPU_CARD else 3):
        card = plant.deliver(1, kind)[0]
        assert cut(card, at, lambda: Washing(plant.office, wish).wash(card))  # noqa: B023
        with plant.office.platform.read() as tx:
            begun = chips.of_chip(tx, card.chip.hex().upper())
        serial = plant.washed(card, wish)
        assert begun is None or begun.serial == serial
        assert tries(card) == 15
    with plant.office.platform.read() as tx:
        washed = tx.value("SELECT COUNT(*) FROM card WHERE kind = ? AND wash_version = 1", (int(kind),))
    assert serials_given(plant, kind) - kind_given == washed, "no serial was lost"


@pytest.mark.parametrize("made", [Card, SamCard], ids=["card", "sam"])
def test_cut_at_every_step_without_number(plant: Plant, made: type[Card]) -> None:
    """The same for chips that tell no number: no serial is ever on two of them."""
    wish = CARD if made is Card else SAM
    total = count_steps(card := plant.nameless(made), lambda: plant.wash(card, wish))
    serials = [read_identity(card).serial] if made is Card else [sam_serial(card)]  # type: ignore[union-attr]
    for at in range(1, total + 1, 2):
        card = plant.nameless(made)
        assert cut(card, at, lambda: Washing(plant.office, wish).wash(card))  # noqa: B023
        serials.append(plant.washed(card, wish))
    assert len(set(serials)) == len(serials)


class _KilledError(BaseException):
    """The process is gone."""


@KINDS
def test_killed_at_every_journal_entry(plant: Plant, kind: CardKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies before or after any entry of its journal: the next one ends the washing."""
    wish, real = wish_of(kind), WashSteps.done
    for after in (False, True):
        for last in range(1, 20):
            seen = []

            def dying(steps: WashSteps, job: str, step: str) -> None:
                seen.append(step)  # noqa: B023
                if len(seen) == last and not after:  # noqa: B023
                    raise _KilledError
                real(steps, job, step)
                if len(seen) == last:  # noqa: B023
                    raise _KilledError

            card = plant.deliver(1, kind)[0]
            with monkeypatch.context() as patch:
                patch.setattr(WashSteps, "done", dying)
                try:
                    plant.wash(card, wish)
                except _KilledError:
                    pass
                else:
                    break
            plant.washed(card, wish)
        else:
            pytest.fail("the journal never ended")
        assert last > 4


@pytest.mark.parametrize("seed", range(6))
def test_torn_again_and_again(plant: Plant, seed: int) -> None:
    """Torn at random, over and over: finished in the end, or refused with a try left and the way on."""
    dice = Random(seed)
    card = plant.deliver(1)[0]
    for _ in range(40):
        try:
            if not cut(card, dice.randrange(1, 60), lambda: Washing(plant.office, CARD).wash(card)):
                break
        except CryptoError:
            with pytest.raises(CryptoError, match="--try-again"):
                plant.wash(card)
            break
    assert tries(card) >= 1
    plant.washed(card, replace(CARD, try_again=True))


# One try


@pytest.mark.parametrize("made", [Card, SamCard], ids=["card", "sam"])
@pytest.mark.parametrize("numbered", [True, False])
def test_a_wrong_key_is_tried_once_over_all_invocations(plant: Plant, made: type[Card], numbered: bool) -> None:
    """However often the command is repeated with a wrong key, the chip keeps two of its three tries."""
    wish = CARD if made is Card else SAM
    card = plant.nameless(made)
    card.chip = b"numbered" if numbered else b""
    plant.secrets["transport key"] = WRONG_KEY.hex()
    for _ in range(5):
        with pytest.raises(CryptoError, match=r"once|not tried again"):
            plant.wash(card, wish)
        assert tries(card) == 2
    plant.secrets["transport key"] = TYPED_KEY.hex()
    plant.washed(card, wish)


def test_the_last_try_is_never_taken(plant: Plant) -> None:
    """Two wrong keys leave one try: a third key is not tried, but for one who says that it is right."""
    card = plant.nameless()
    card.chip = b"numbered"
    for key in (WRONG_KEY, WRONG_KEY[::-1]):
        plant.secrets["transport key"] = key.hex()
        with pytest.raises(CryptoError, match="tried once"):
            plant.wash(card)
    assert tries(card) == 1
    plant.secrets["transport key"] = TYPED_KEY.hex()
    for act in (plant.wash, plant.plan):
        with pytest.raises(CryptoError, match="--try-again"):
            act(card)
    assert tries(card) == 1
    plant.washed(card, replace(CARD, try_again=True))


def test_lost_answers_count_as_tries(plant: Plant) -> None:
    """A wrong key whose refusal never arrives twice is not tried a third time: the chip is never locked by us."""
    card = plant.nameless()
    card.chip = b"numbered"
    plant.secrets["transport key"] = WRONG_KEY.hex()
    inner = card.transceive

    def deaf(command: bytes) -> bytes:
        answer = inner(command)
        if command[1] == 0x82:
            card.power_off()
            raise CardRemoved("pulled away")
        return answer

    card.transceive = deaf  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(TransportError):
            plant.wash(card)
    for _ in range(3):
        with pytest.raises(CryptoError, match="--try-again"):
            plant.wash(card)
    assert tries(card) == 1


def test_another_chip_without_number(plant: Plant) -> None:
    """After one nameless chip refused a key, another is washed with it by giving it a name."""
    stray, good = plant.nameless(key=WRONG_KEY), plant.nameless()
    with pytest.raises(CryptoError, match="is not this card's"):
        plant.wash(stray)
    with pytest.raises(CryptoError, match="--chip"):
        plant.wash(good)
    assert plant.wash(good, replace(CARD, chip="00112233"))["chip"] == "00112233"


def test_locked_by_others(plant: Plant) -> None:
    """A transport key that others locked is told as that."""
    card = plant.deliver(1)[0]
    for _ in range(3):
        card.transceive(bytes.fromhex("0084000008"))
        card.transceive(bytes.fromhex("0082000008") + bytes(8))
    with pytest.raises(CryptoError, match=r"locked.*return it"):
        plant.wash(card)


# What it may be


def test_dry_run_only_reads(plant: Plant) -> None:
    """The plan names chip, batch, vendor, key by check value, what is there already; nothing is tried or written."""
    card = plant.deliver(1)[0]
    before = card.snapshot()
    plan = plant.plan(card)
    assert all(word in plan for word in (card.chip.hex().upper(), "batch B1", "Example Chips", "a new serial"))
    assert (card.snapshot(), serials_given(plant, CardKind.CPU_CARD)) == (before, 0)
    cut(card, 30, lambda: Washing(plant.office, CARD).wash(card))
    with plant.office.platform.read() as tx:
        begun = chips.of_chip(tx, card.chip.hex().upper())
    assert begun is not None
    assert begun.serial.hex().upper() in plant.plan(card)
    serial = plant.washed(card)
    assert f"card {serial.hex().upper()} is washed already" in plant.plan(card)
    sam = plant.deliver(1, CardKind.SAM)[0]
    assert "for enterprise 1001" in plant.plan(sam, SAM)


@pytest.mark.parametrize(
    ("wish", "kind", "words"),
    [
        (Wish(CardKind.RFID_SIM), CardKind.CPU_CARD, "this is a cpu-card.*not a rfid-sim"),
        (CARD, CardKind.SAM, "sam wash"),
        (SAM, CardKind.CPU_CARD, "this is no SAM"),
        (Wish(batch_id="B1"), CardKind.CPU_CARD, "of batch B2, not of B1"),
        (Wish(chip="00112233"), CardKind.CPU_CARD, "not 00112233"),
    ],
)
def test_another_than_asked(plant: Plant, wish: Wish, kind: CardKind, words: str) -> None:
    """A chip of another kind, batch or number than asked is refused before it is touched."""
    plant.deliver(1)
    card = plant.deliver(1, kind)[0]
    before = card.snapshot()
    with pytest.raises(Conflict, match=words):
        plant.wash(card, wish)
    assert card.snapshot() == before


def test_unknown_batch(plant: Plant) -> None:
    """A chip that no file names: by hand when its key is given, else told what to do; a wrong batch name too."""
    card = plant.nameless()
    card.chip = b"stranger"
    with pytest.raises(NotFound, match="no batch B9"):
        plant.wash(card, Wish(batch_id="B9"))
    plant.deliver(1)
    with pytest.raises(NotFound, match="of an unknown batch, not of B1"):
        plant.wash(card, Wish(batch_id="B1"))
    with pytest.raises(NotFound, match="tells no number"):
        plant.wash(plant.nameless(), Wish(batch_id="B1"))
    del plant.secrets["transport key"]
    with pytest.raises(NotFound, match=r"unknown batch.*card batch receive"):
        plant.wash(card)
    plant.secrets["transport key"] = TYPED_KEY.hex()
    plant.washed(card)


def test_wrong_batch_key_and_edited_row(plant: Plant) -> None:
    """Another batch key, or a row changed in the database, is told before the chip is touched."""
    first, second = plant.deliver(2)
    plant.secrets["batch key"] = BATCH_KEY[::-1].hex()
    with pytest.raises(BadKcv, match="wrong batch key for batch B1"):
        plant.wash(first)
    for bad in ("zz", "00" * 16):
        plant.secrets["batch key"] = bad
        with pytest.raises(ConfigError, match="hexadecimal"):
            plant.wash(first)
    plant.secrets["batch key"] = BATCH_KEY.hex()
    first.chip, second.chip = second.chip, first.chip  # each tells the other's number
    with pytest.raises(CryptoError, match="is not this card's"):
        plant.wash(first)
    assert tries(first) == 2
    with plant.office.platform.read() as tx:
        found = batches.of_chip(tx, second.chip.hex().upper())
    assert found is not None
    with pytest.raises(MacMismatch, match="transport key of chip"):
        found[0].transport_key(found[1]._replace(atr="3B00"), BATCH_KEY)


class _Other(Card):
    """A chip of another make."""

    @property
    def atr(self) -> bytes:
        return b"\x3b\x00"


def test_other_atr(plant: Plant) -> None:
    """A chip that tells a number of the batch and answers to reset otherwise is put aside."""
    card = plant.deliver(1)[0]
    card.__class__ = _Other
    with pytest.raises(Conflict, match="answers to reset"):
        plant.wash(card)


def test_foreign_cards(plant: Plant, tmp_path: Path) -> None:
    """Washed by another platform, or half washed by one: said in words, with no key tried twice."""
    other = Plant(tmp_path / "other")
    card = other.deliver(1)[0]
    other.washed(card)
    for _ in range(2):
        with pytest.raises(CryptoError, match="another root or version"):
            plant.wash(card)
    half = other.deliver(1)[0]
    total = count_steps(twin := other.deliver(1)[0], lambda: other.wash(twin))
    for at in range(total, 0, -1):
        half = other.deliver(1)[0]
        cut(half, at, lambda: Washing(other.office, CARD).wash(half))  # noqa: B023
        identity = read_identity(half)
        if identity is not None and any(identity.serial) and not identity.wash_version:
            break
    half.reset()
    before = half.snapshot()
    with pytest.raises(Conflict, match="another platform began"):
        plant.wash(half)
    assert half.snapshot() == before
    other.washed(half)
    other.office.close()


def test_copies_and_erased_chips(plant: Plant) -> None:
    """A chip that the books know under another serial, or as washed while it is fresh, is put aside."""
    one, two = plant.deliver(2)
    first = plant.washed(one)
    second = plant.washed(two)
    one.chip, two.chip = two.chip, one.chip
    with pytest.raises(Conflict, match=f"is card {second.hex().upper()} in the books and says"):
        plant.wash(one)
    one.chip = b"a new name"
    with pytest.raises(Conflict, match="one is a copy"):
        plant.wash(one)
    fresh = plant.nameless()
    fresh.chip = two.chip
    with pytest.raises(Conflict, match=f"is card {first.hex().upper()} in the books and does not know"):
        plant.wash(fresh)


def test_blank_and_blocked(plant: Plant) -> None:
    """A chip without MF is named as that."""
    with pytest.raises(Conflict, match="no MF, or it is blocked"):
        plant.wash(Card.blank())


def test_chip_number() -> None:
    """The card's own number first, else a contactless reader's UID, never one made anew each time; else none."""

    class Uid:
        def __init__(self, atr: str, uid: bytes) -> None:
            self.atr, self.uid = bytes.fromhex(atr), uid

        def transceive(self, command: bytes) -> bytes:
            return self.uid + b"\x90\x00" if command[:2] == b"\xff\xca" else b"\x6d\x00"

        def close(self) -> None:
            """Nothing is open."""

    contactless = "3B8780014F4E454341524453"
    assert chip_number(Uid(contactless, bytes.fromhex("04A1B2C3D4E5F6"))) == "04A1B2C3D4E5F6"
    assert chip_number(Uid(contactless, bytes.fromhex("08A1B2C3"))) is None
    assert chip_number(Uid("3B670000", bytes.fromhex("04A1B2C3D4E5F6"))) is None
    card = Card.vendor_fresh(TYPED_KEY)
    assert chip_number(card) is None
    card.chip = b"nine byte"
    assert chip_number(card) == b"nine byte".hex().upper()
    assert Card.restore(card.snapshot()).chip == card.chip == Card(card.nvm).chip
    assert card.transceive(bytes.fromhex("80CA000008"))[-2:] == b"\x6c\x09"


def test_only_known_errors(plant: Plant) -> None:
    """A serial on the chip that is none is refused as that."""
    card = plant.deliver(1)[0]
    plant.washed(card)
    identity = card.mf.files.value[0x0005]
    for serial in (make_serial(CardKind.MOTHER, 1, 1), b"\x02" * 8):
        data = bytearray(identity.data.value)  # type: ignore[union-attr]
        data[:8] = serial
        identity.data.value = bytes(data)  # type: ignore[union-attr]
        with pytest.raises(OneCardError):
            plant.wash(card)
