"""Attacks on keys, each by its name, on personalised cards and SAMs with real keys.

What is attacked elsewhere already (tests/):
- clear WRITE KEY, before and after the wash version is set: simulator.test_decisions.test_clear_keys_until_washed
- another key than 39/00 as the first of a slot: there, test_first_key_of_a_slot_is_under_the_parents
- any use of a SAM's key outside its usage: keymgmt.test_samload.test_no_use_outside_its_usage
- a SAM without its terminal: there, test_without_its_pin_it_does_nothing
- keys for a SAM without the host's proof: there, test_no_key_without_the_hosts_proof
- keys for a SAM of another enterprise, root, kind or terminal: there, test_whose_sam_it_is and the next one
- refund at the SAM, order of checks, both legs, after a reset: simulator.test_sam, keymgmt.test_softsam
- the platform in a personalised application, erasing, creating: keymgmt.test_issue.test_platform_is_locked_out
- a vendor's counted key run down by our retries: there, test_wrong_transport_key_costs_one_try and the next two
- cards that lie: terminals.test_hostile, backoffice.test_hostile; records of a lost SAM: commands.test_sams
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cardlib.apdu import Command
from cardlib.crypto import Algorithm, Key
from cardlib.errors import CryptoError, MacMismatch, OneCardError, Refused, StatusError
from cardlib.iso7816 import (
    block_application,
    change_pin,
    external_authenticate,
    get_challenge,
    select,
    unblock_application,
    unblock_pin,
    update_binary,
    verify_pin,
)
from cardlib.profile import AccessRights, Purpose, Purse, TransactionType, aid, load_profile
from cardlib.purse import (
    CardSession,
    MoneyRequest,
    balance,
    debit,
    initialize_load,
    load,
    open_application,
    undo_offline,
)
from cardlib.sam import CardSam, LoadInit, load_mac1_input, load_seed
from cardlib.transport import send
from keymgmt.delivery import protected
from keymgmt.handle import KeyHandle
from keymgmt.personalise import application_keys, personalise, protector
from keymgmt.samload import HOLDS, SamKind, SamPlan, load_sam, make_sam
from keymgmt.slot import SlotPlan, open_slot
from keymgmt.softsam import SoftSam
from keymgmt.steps import MemorySteps
from keymgmt.wash import wash
from simulator.card import Card
from simulator.sam import SamCard
from tests.keymgmt.rig import (
    ENTERPRISE,
    EXPIRY,
    PIN,
    SAM_SERIAL,
    SERIAL,
    START,
    TERMINAL,
    TRANSPORT_KEY,
    Moves,
    Rig,
    held,
)

OTHER_TERMINAL = bytes.fromhex("310000000102")
SAM_PIN = bytes.fromhex("246810")
WHEN = bytes.fromhex("20250301093045")
EP = TransactionType.LOAD_EP
RAND = bytes(range(16))
STATES: dict[str, Purpose | None] = {
    "stranger": None, "terminal": Purpose.TERMINAL, "holder": Purpose.PIN, "enterprise": Purpose.CONTROL,
}  # fmt: skip
BOTH = pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)


def complete(rig: Rig) -> Card:
    """A personalised card."""
    card = rig.card()
    wash(card, rig.wash_plan, rig.store, rig.steps)
    open_slot(card, rig.slot_plan, rig.store, rig.steps)
    personalise(card, rig.personal_plan, rig.station)
    card.reset()
    return card


def sam_of(rig: Rig, kind: SamKind = SamKind.POS, terminal: bytes = TERMINAL) -> tuple[CardSam, SamCard]:
    """A SAM of a kind, opened by its terminal."""
    card = SamCard.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes)
    plan = SamPlan("sam", SAM_SERIAL, terminal, ENTERPRISE, kind, (1,), START, EXPIRY, pin=SAM_PIN)
    make_sam(card, plan, rig.initial, rig.store, MemorySteps())
    card.reset()
    return CardSam(card, lambda: SAM_PIN), card


def reach(rig: Rig, card: Card, purpose: Purpose | None) -> None:
    """Select the application and reach the security state of a key of it."""
    send(card, Command(0, 0xA4, 4, 0, aid(ENTERPRISE), 0))
    if purpose is Purpose.PIN:
        verify_pin(card, PIN)
    elif purpose is not None:
        kid = load_profile().key(purpose).kid(1)
        external_authenticate(card, kid, rig.expected(purpose).cryptogram(get_challenge(card)))


def sw(card: Card, command: str, data: bytes = b"", le: int | None = None) -> int:
    """Status word of CLA INS P1 P2 with these data."""
    cla, ins, p1, p2 = bytes.fromhex(command)
    return send(card, Command(cla, ins, p1, p2, data, le)).sw


def sealed(card: Card, command: str, data: bytes, key: Key, *, encrypt: bool = False) -> int:
    """The same under secure messaging with a key over a fresh challenge."""
    challenge, head = get_challenge(card, 4), bytes.fromhex(command)
    return sw(card, command, protected(KeyHandle(key, "attacker's"), head, data, challenge, encrypt=encrypt))


def unchanged(card: Card, attack: Callable[[], None]) -> None:
    """Nothing that outlives power is changed by an attack."""
    card.reset()
    before = card.snapshot()
    attack()
    card.reset()
    assert card.snapshot() == before


# Keys written by those who may not


@BOTH
@pytest.mark.parametrize("who", STATES)
def test_clear_write_key_on_a_washed_card(tmp_path: Path, who: str, algorithm: Algorithm) -> None:
    """No key of application or MF is added or replaced in clear (6982), whoever is authenticated."""
    rig = Rig(tmp_path, algorithm)
    card = complete(rig)

    def attack() -> None:
        for level in ("adf", "mf"):
            if level == "adf":
                reach(rig, card, STATES[who])
            else:
                select(card)
            for spec in load_profile().keys:
                for p1 in (1, spec.key_type, spec.key_type | 0xC0):
                    for kid in range(4):
                        record = spec.header(1, algorithm) + RAND
                        assert sw(card, f"80D4{p1:02X}{kid:02X}", record) == 0x6982

    unchanged(card, attack)


@BOTH
def test_load_key_added_by_a_holder(tmp_path: Path, algorithm: Algorithm) -> None:
    """After his PIN (state 3) a holder adds no load key: not in clear, not under a key that he might know."""
    rig = Rig(tmp_path, algorithm)
    card = complete(rig)
    record = load_profile().key(Purpose.LOAD).header(2, algorithm) + RAND

    def attack() -> None:
        reach(rig, card, Purpose.PIN)
        for p1, kid in ((1, 2), (1, 4), (0x3F, 1), (0x3F, 2), (0x3F, 3)):
            assert sw(card, f"80D4{p1:02X}{kid:02X}", record) == 0x6982
            assert sealed(card, f"84D4{p1:02X}{kid:02X}", record, rig.expected(Purpose.LOAD), encrypt=True) != 0x9000
        get_challenge(card, 4)
        assert sw(card, "84D40102", bytes(36)) == 0x9302

    unchanged(card, attack)


# SAMs as oracles


@BOTH
@pytest.mark.parametrize("kind", [SamKind.POS, SamKind.ISSUING])
def test_80fa_over_a_diversification_factor(tmp_path: Path, kind: SamKind, algorithm: Algorithm) -> None:
    """No usage byte and no number of factors makes the SAM encipher a card's factor under a master key."""
    rig = Rig(tmp_path, algorithm)
    _, sam = sam_of(rig, kind)
    block = 16 if algorithm is Algorithm.SM4 else 8
    inverted = bytes(byte ^ 0xFF for byte in SERIAL)
    inputs = [SERIAL + inverted] if block == 16 else [SERIAL, inverted]
    halves = {
        half for purpose in HOLDS[kind] for key in [rig.expected(purpose)._value] for half in (key[:8], key[8:], key)
    }
    usages = {key[0] for key in sam.sam_keys.value}
    for usage in range(256):
        for factors in (b"", SERIAL, SERIAL * 2, SERIAL * 3):
            derived = send(sam, Command(0x80, 0x1A, usage, 1, factors)).sw
            allowed = usage in usages and usage & 0x1F not in (2, 0xC) and factors == SERIAL
            assert (derived == 0x9000) == allowed, f"{usage:02X} with {len(factors)} bytes: {derived:04X}"
            for data in inputs:
                for p1 in (0, 2):
                    answer = send(sam, Command(0x80, 0xFA, p1, 0, data, len(data)))
                    assert (answer.sw == 0x9000) == allowed or derived == 0x9000
                    assert answer.data not in halves
                    if not allowed:
                        assert answer.sw == 0x6901
    assert sw(sam, "00880000", SERIAL, 0) == 0x9000  # its own key answers, which opens nothing
    assert held(sam, 0x30, 0, algorithm=rig.algorithm).kcv != held(sam, 0x39, 0).kcv


def test_card_block_from_an_application(tmp_path: Path) -> None:
    """Neither the enterprise's maintenance key nor the platform's own line key blocks the card from an application."""
    rig = Rig(tmp_path)
    card = complete(rig)

    def attack() -> None:
        for who in STATES.values():
            for key in (rig.expected(Purpose.MAINTENANCE), rig.expected(Purpose.CARD_MAINTENANCE)):
                reach(rig, card, who)
                assert sealed(card, "84160000", b"", key) == 0x6985
                assert sealed(card, "84E40000", b"\x3f\x01", key) == 0x6985
        select(card)
        assert sealed(card, "84160000", b"", rig.expected(Purpose.MAINTENANCE)) == 0x6988

    unchanged(card, attack)
    open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)


# Refunds


class Shop:
    """A card with money, and two tills: the card's payments are undone at the first, if at all."""

    def __init__(self, folder: Path, algorithm: Algorithm) -> None:
        self.rig = Rig(folder, algorithm)
        self.card = complete(self.rig)
        self.moves = Moves()
        self.till, _ = sam_of(self.rig)
        self.other, _ = sam_of(self.rig, terminal=OTHER_TERMINAL)
        session = open_application(self.card, self.rig.host, ENTERPRISE, self.rig.random.randbytes, Purpose.RECHARGE)
        load(self.card, self.rig.host, self.moves, session, self.request(100_00))

    def request(self, amount_fen: int) -> MoneyRequest:
        return MoneyRequest(Purse.MAIN, amount_fen, WHEN, 1_740_792_645_000)

    def tap(self, till: CardSam) -> CardSession:
        return open_application(self.card, till, ENTERPRISE, self.rig.random.randbytes)

    def said(self, amount_fen: int, seq: int, terminal: bytes = TERMINAL) -> LoadInit:
        """What a card that says whatever it likes answers: right MAC1 under the refund key, any counter."""
        init = LoadInit(50_00, seq, 1, self.rig.algorithm, b"rand", bytes(4))
        session = self.rig.expected(Purpose.REFUND).session(load_seed(init))
        return replace(init, mac1=session.mac(load_mac1_input(init, amount_fen, EP, terminal)))


@BOTH
def test_refund_without_a_purchase(tmp_path: Path, algorithm: Algorithm) -> None:
    """Nothing was paid: the card does not begin, and the SAM makes no MAC2 even for a card that does."""
    shop = Shop(tmp_path, algorithm)
    shop.tap(shop.till)
    with pytest.raises(StatusError, match="6985"):
        initialize_load(shop.card, EP, 3, 5_00, TERMINAL)
    with pytest.raises(StatusError, match="6985"):
        shop.till.refund_mac2(shop.said(5_00, 1), 5_00, EP, WHEN, SERIAL)
    assert balance(shop.card, Purse.MAIN) == 100_00


@BOTH
def test_refund_twice(tmp_path: Path, algorithm: Algorithm) -> None:
    """A payment is undone once: then neither card nor SAM do it again, also for a card that shows another counter."""
    shop = Shop(tmp_path, algorithm)
    paid = debit(shop.card, shop.till, shop.moves, shop.tap(shop.till), shop.request(5_00)).move
    undo_offline(shop.card, shop.till, shop.moves, shop.tap(shop.till), paid, shop.request(0))
    assert balance(shop.card, Purse.MAIN) == 100_00
    with pytest.raises(StatusError, match="6985"):
        undo_offline(shop.card, shop.till, shop.moves, shop.tap(shop.till), paid, shop.request(0))
    for seq in (0, 2, 3, 0xFFFE):
        with pytest.raises(StatusError, match="6985"):
            shop.till.refund_mac2(shop.said(5_00, seq), 5_00, EP, WHEN, SERIAL)
    assert balance(shop.card, Purse.MAIN) == 100_00


@BOTH
def test_refund_of_another_amount(tmp_path: Path, algorithm: Algorithm) -> None:
    """More or less than was paid, or into the other purse: neither card nor SAM."""
    shop = Shop(tmp_path, algorithm)
    debit(shop.card, shop.till, shop.moves, shop.tap(shop.till), shop.request(5_00))
    for amount_fen in (5_01, 4_99, 0, 100_00):
        shop.tap(shop.till)
        with pytest.raises(StatusError, match="6985"):
            initialize_load(shop.card, EP, 3, amount_fen, TERMINAL)
        with pytest.raises(StatusError, match="6985"):
            shop.till.refund_mac2(shop.said(amount_fen, 1), amount_fen, EP, WHEN, SERIAL)
    shop.tap(shop.till)
    with pytest.raises(StatusError, match="6985"):
        initialize_load(shop.card, TransactionType.LOAD_ED, 3, 5_00, TERMINAL)
    assert balance(shop.card, Purse.MAIN) == 95_00


@BOTH
def test_refund_from_another_terminal(tmp_path: Path, algorithm: Algorithm) -> None:
    """The other till undoes nothing: not under its number, not under the first one's, not for a card that helps it."""
    shop = Shop(tmp_path, algorithm)
    paid = debit(shop.card, shop.till, shop.moves, shop.tap(shop.till), shop.request(5_00)).move
    shop.tap(shop.other)
    with pytest.raises(StatusError, match="6985"):
        initialize_load(shop.card, EP, 3, 5_00, OTHER_TERMINAL)
    with pytest.raises(MacMismatch):  # its SAM puts its own number into MAC1
        undo_offline(shop.card, shop.other, shop.moves, shop.tap(shop.other), paid, shop.request(0))
    with pytest.raises(StatusError, match="6985"):
        shop.other.refund_mac2(shop.said(5_00, 1, OTHER_TERMINAL), 5_00, EP, WHEN, SERIAL)
    assert balance(shop.card, Purse.MAIN) == 95_00
    undo_offline(shop.card, shop.till, shop.moves, shop.tap(shop.till), paid, shop.request(0))
    assert balance(shop.card, Purse.MAIN) == 100_00


# Replays and strangers


class Eavesdropper:
    """Hears every command to a card."""

    def __init__(self, card: Card) -> None:
        self.card, self.atr = card, card.atr
        self.heard: list[bytes] = []

    def transceive(self, command: bytes) -> bytes:
        self.heard.append(command)
        return self.card.transceive(command)

    def close(self) -> None:
        self.card.close()


@BOTH
def test_replayed_pin_unblock(tmp_path: Path, algorithm: Algorithm) -> None:
    """What unblocked a PIN once does not set it back: without challenge 6984, over any other challenge 6988."""
    rig = Rig(tmp_path, algorithm)
    card = complete(rig)
    air, forgotten, chosen = Eavesdropper(card), b"\x11\x22", b"\x33\x44\x55"
    reach(rig, card, None)
    unblock_pin(air, forgotten, protector(rig.host, SERIAL, 1, Purpose.PIN_UNBLOCK, encrypt=True))
    change_pin(card, forgotten, chosen)
    reach(rig, card, None)
    assert card.transceive(air.heard[-1]).hex() == "6984"
    for size in (4, 8):
        get_challenge(card, size)
        assert card.transceive(air.heard[-1]).hex() == "6988"
    for command in air.heard:
        assert card.transceive(command)[-2:].hex() != "9000" or command[1] == 0x84
    with pytest.raises(StatusError, match="63C2"):
        verify_pin(card, forgotten)
    verify_pin(card, chosen)


def guesses(card: Card) -> Iterator[tuple[str, Callable[[], int]]]:
    """Each way in which a stranger can use a key of card or application wrongly."""
    wrong = RAND[8:]

    def authenticate(kid: int) -> int:
        get_challenge(card)
        return sw(card, f"008200{kid:02X}", wrong)

    def messaging(command: str, size: int = 0) -> int:
        get_challenge(card, 4)
        return sw(card, command, bytes(size) + wrong[:4])

    for kid in range(3):
        yield f"39/{kid:02X}", lambda kid=kid: authenticate(kid)  # type: ignore[misc]  # a default binds it
    for name, command, size in (
        ("write 0015", "04D69500", 30), ("write 0016", "04D69600", 39), ("write 0019", "04D69900", 24),
        ("block", "841E0000", 0), ("block for good", "841E0001", 0), ("unblock", "84180000", 0),
        ("card block", "84160000", 0), ("delete", "84E40000", 2), ("write DIR", "04DC010C", 24),
        ("write 0005", "04D68500", 16), ("PIN unblock", "84240000", 16), ("write key", "84D43F01", 24),
        ("add key", "84D40104", 24), ("control key", "84D43900", 24),
    ):  # fmt: skip
        yield name, lambda command=command, size=size: messaging(command, size)  # type: ignore[misc]  # as above


@BOTH
@pytest.mark.parametrize("where", ["card", "application", "blocked application"])
def test_three_wrong_cryptograms_by_a_stranger(tmp_path: Path, where: str, algorithm: Algorithm) -> None:
    """Five wrong uses of any key of card or application destroy nothing: the right key still works afterwards."""
    rig = Rig(tmp_path, algorithm)
    card = complete(rig)
    maintenance = protector(rig.host, SERIAL, 1, Purpose.MAINTENANCE)
    if where == "blocked application":
        reach(rig, card, None)
        block_application(card, maintenance)
    for name, guess in guesses(card):
        for _ in range(5):
            if where == "card":
                select(card)
            else:
                send(card, Command(0, 0xA4, 4, 0, aid(ENTERPRISE), 0))
            assert guess() not in (0x9000, 0x6983, 0x9303), name
    if where == "blocked application":
        reach(rig, card, None)
        unblock_application(card, maintenance)
    card.reset()
    for purpose in (Purpose.CONTROL, Purpose.TERMINAL, Purpose.RECHARGE, Purpose.PIN):
        reach(rig, card, purpose)
    personalise(card, rig.personal_plan, rig.station)  # uses every key of the application once
    select(card)
    external_authenticate(card, 0, rig.expected(Purpose.CARD_CONTROL).cryptogram(get_challenge(card)))
    line = rig.expected(Purpose.CARD_MAINTENANCE)
    assert sealed(card, "84E40000", b"\x3f\x07", line) == 0x6A82  # its MAC was right, there is no such slot


def test_wrong_pins_lock_the_pin_alone(tmp_path: Path) -> None:
    """Whoever finds a card locks its PIN after three guesses; terminals still serve it, the enterprise unlocks it."""
    rig = Rig(tmp_path)
    card = complete(rig)
    reach(rig, card, None)
    for expected in (0x63C2, 0x63C1, 0x63C0, 0x6983):
        assert sw(card, "00200000", b"\x99\x99") == expected
    open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)
    unblock_pin(card, PIN, protector(rig.host, SERIAL, 1, Purpose.PIN_UNBLOCK, encrypt=True))
    verify_pin(card, PIN)


@pytest.mark.parametrize("kind", SamKind)
def test_three_wrong_cryptograms_at_a_sam(tmp_path: Path, kind: SamKind) -> None:
    """Wrong proofs, key loads, MAC2s and PINs destroy no SAM: the host sets its PIN anew, and it works."""
    rig = Rig(tmp_path)
    opened, sam = sam_of(rig, kind)
    for _ in range(5):
        get_challenge(sam)
        assert sw(sam, "00820000", RAND[:8]) not in (0x9000, 0x6983)
        get_challenge(sam, 4)
        assert sw(sam, "84D40000", bytes(28)) == 0x6982
        assert sw(sam, "80720000", bytes(4)) in (0x6901, 0x9302)
        select(sam)
        assert sealed(sam, "84160000", b"", rig.expected(Purpose.MAINTENANCE)) == 0x6988
        select(sam, 0x1001)
    for _ in range(4):
        sw(sam, "00200000", b"\x99\x99")
    sam.reset()
    with pytest.raises(StatusError, match="6983"):
        CardSam(sam, lambda: SAM_PIN)
    plan = SamPlan("again", SAM_SERIAL, TERMINAL, ENTERPRISE, kind, (1,), START, EXPIRY, pin=SAM_PIN)
    sam.reset()
    load_sam(sam, plan, rig.source, MemorySteps())
    sam.reset()
    again = CardSam(sam, lambda: SAM_PIN)
    assert again.card_answer(SERIAL, 1, bytes(8)) == rig.host.card_answer(SERIAL, 1, bytes(8))
    assert again.keys() == opened.keys()


def test_stranger_reads_protected_files(tmp_path: Path) -> None:
    """A stranger selects the application and reads 0015 and the balance; of holder, log, rights and punches nothing."""
    rig = Rig(tmp_path)
    card = complete(rig)
    reach(rig, card, None)
    assert sw(card, "00B09500", le=0) == 0x9000
    for command in ("00B09600", "00B09900", "00B201BC", "00B201B8", "00B201C4", "00B201D4"):
        assert sw(card, command, le=0) == 0x6982
    for kid in (1, 3):
        assert sw(card, "80500002", bytes([kid]) + bytes(4) + TERMINAL, 16) == 0x6982
    for fid in (0x0015, 0x0016, 0x0017, 0x0018, 0x0019, 0x001A):
        reach(rig, card, None)
        select(card, fid)
        read = max(sw(card, "00B00000", le=0), sw(card, "00B20104", le=0))
        assert fid == 0x0015 or read in (0x6982, 0x6981), f"{fid:04X}: {read:04X}"


def test_enterprise_as_keys_on_bs_application(tmp_path: Path) -> None:
    """A's SAM and host, with A's keys, prove nothing to B's application of the same card, and write nothing there."""
    rig = Rig(tmp_path)
    card = complete(rig)
    other = ENTERPRISE + 1
    open_slot(card, SlotPlan("slot b", SERIAL, other, "B", rig.algorithm), rig.store, rig.steps)
    b = SoftSam(rig.store, other, TERMINAL, SAM_SERIAL)
    source = type(rig.source)(rig.store, other)
    station = replace(rig.station, host=b, keys=source)
    personalise(card, replace(rig.personal_plan, job="b", enterprise_id=other), station)
    pos, _ = sam_of(rig)
    issuing, _ = sam_of(rig, SamKind.ISSUING)

    def attack() -> None:
        for host in (pos, issuing, rig.host):
            with pytest.raises(OneCardError):  # the card's proof is not the one that A's key gives
                open_application(card, host, other, rig.random.randbytes)
        for spec in application_keys():
            card.transceive(Command(0, 0xA4, 4, 0, aid(other), 0).encode())
            if spec.key_type == 0x39:
                cryptogram = rig.expected(spec.purpose).cryptogram(get_challenge(card))
                assert sw(card, f"008200{spec.kid(1):02X}", cryptogram) & 0xFFF0 == 0x63C0
        send(card, Command(0, 0xA4, 4, 0, aid(other), 0))
        for purpose in (Purpose.CONTROL, Purpose.SLOT):
            assert sw(card, "00820000", rig.expected(purpose).cryptogram(get_challenge(card))) & 0xFFF0 == 0x63C0
            record = load_profile().key(Purpose.LOAD).header(1, rig.algorithm) + RAND
            assert sealed(card, "84D43F01", record, rig.expected(purpose), encrypt=True) in (0x6982, 0x9302)
        assert sealed(card, "04D69500", bytes(30), rig.expected(Purpose.MAINTENANCE)) == 0x6988
        assert sealed(card, "841E0001", b"", rig.expected(Purpose.MAINTENANCE)) == 0x6988
        assert sealed(card, "84240000", PIN, rig.expected(Purpose.PIN_UNBLOCK), encrypt=True) == 0x6988

    unchanged(card, attack)
    # B's terminal is authenticated, A's SAM tries to be paid: B's card refuses MAC1.
    session = open_application(card, b, other, rig.random.randbytes)
    with pytest.raises((StatusError, Refused, CryptoError), match=r"9302|MAC"):
        debit(card, pos, Moves(), session, MoneyRequest(Purse.MAIN, 0, WHEN, 1_740_792_645_000))


@pytest.mark.parametrize("who", ["stranger", "terminal", "holder"])
def test_rewriting_rights_log_and_public_information(tmp_path: Path, who: str) -> None:
    """Nobody but the enterprise writes rights, holder or 0015, nobody the log; a holder not his counters or punches."""
    rig = Rig(tmp_path)
    card = complete(rig)
    rights = AccessRights(START, EXPIRY, b"\xff" * 8).encode()

    def attack() -> None:
        reach(rig, card, STATES[who])
        for sfi, content in ((0x15, bytes(30)), (0x16, bytes(39)), (0x19, rights)):
            allowed = (0x6900, 0x6982)
            assert sw(card, f"00D6{0x80 | sfi:02X}00", content) in allowed
            assert sw(card, f"04D6{0x80 | sfi:02X}00", content) != 0x9000
            own = rig.expected(Purpose.TERMINAL)
            assert sealed(card, f"04D6{0x80 | sfi:02X}00", content, own) == 0x6988
        for command in ("00E200C0", "00E200C4", "00DC01C4", "00DC00C3"):
            assert sw(card, command, bytes(23)) in (0x6982, 0x6A86)
        if who != "terminal":
            for command, size in (("00DC01BC", 17), ("00DC01B8", 17), ("00E200D0", 16), ("00DC01D4", 16)):
                assert sw(card, command, bytes(size)) == 0x6982

    unchanged(card, attack)
    reach(rig, card, None)
    update_binary(card, 0x0019, rights, protect=protector(rig.host, SERIAL, 1, Purpose.MAINTENANCE))
