"""A SAM's life by commands: made, shown, given new keys, replaced, lost, locked; torn and repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backoffice.installation import KEY_FILE
from cardlib.crypto import make_key
from cardlib.profile import CardKind, make_serial
from keymgmt.handle import KeyHandle
from keymgmt.mothercard import AuthenticationPlan, MotherPlan, make_authentication, make_mother
from keymgmt.samload import HOLDS, SamKind, SamWash, wash_sam
from keymgmt.steps import MemorySteps
from keymgmt.store import FileStore
from keymgmt.wash import WashPlan
from simulator import image
from simulator.card import Card
from simulator.mothercard import MotherCard as Mother
from simulator.rig import TRANSPORT_KEY
from simulator.sam import SamCard
from tests.commands import test_life
from tests.commands.test_life import HOLDER, OTHER, SECRETS, TILL, Office
from tests.commands.test_permissions import ENTERPRISE
from tests.keymgmt.rig import START
from tests.secretwatch import WATCH

MOTHER_PIN, OTHER_PIN = bytes.fromhex("271828"), bytes.fromhex("314159")
DOOR = "310000000601"
_secrets, _founded, office = test_life._secrets, test_life._founded, test_life.office
"""The fixtures of an office at work."""


def sam_of(office: Office) -> str:
    """The till's SAM in service."""
    [found] = [row["sam"] for row in office("sam", "list") if (row["terminal"], row["state"]) == (TILL, "active")]
    serial: str = found
    return serial


def second_set(office: Office) -> None:
    """Root keys of version 2."""
    for purpose in ("card", "terminal", "purchase", "refund"):
        office("key", "make", purpose, "2", enterprise=None)


@pytest.mark.parametrize("kind", list(SamKind))
def test_each_kind_is_made_and_registered(kind: SamKind, office: Office) -> None:
    """From the vendor's chip to a registered SAM in one command; what it says of itself is what the books say."""
    office.vendor("new", SamCard)
    before = office.everything()
    plan = office.at("new", "sam", "personalize", DOOR, "--kind", kind.value, "--register", "north", "--dry-run")[
        "plan"
    ]
    assert any("once" in line for line in plan)
    assert any(DOOR in line for line in plan)
    assert office.everything() == before
    made = office.at("new", "sam", "personalize", DOOR, "--kind", kind.value, "--register", "north")
    assert (made["terminal"], made["kind"], made["registered"]) == (DOOR, kind, True)
    [terminal] = [row for row in office("terminal", "list") if row["terminal"] == DOOR]
    assert (terminal["sam"], terminal["name"], terminal["kind"]) == (made["sam"], "north", kind)
    books, said = office("sam", "show", made["sam"]), office.at("new", "sam", "show")
    assert (books["terminal"], books["kind"], books["state"]) == (DOOR, kind, "active")
    assert (said["sam"], said["terminal"], said["pin"], said["washed"]) == (made["sam"], DOOR, True, True)
    assert kind in said["kinds"]
    names = {purpose.name.lower() for purpose in HOLDS[kind]}
    assert {key["purpose"] for key in books["keys"]} == {key["purpose"] for key in said["keys"]} == names
    assert {key["kcv"] for key in books["keys"]} == {key["kcv"] for key in said["keys"]}
    assert all(key["ours"] for key in said["keys"])


def test_looking_at_a_fresh_sam(office: Office) -> None:
    """A vendor-fresh SAM has nothing to say, and says it; a card is no SAM; looking changes nothing."""
    office.vendor("new", SamCard)
    before = office.everything()
    said = office.at("new", "sam", "show")
    assert (said["sam"], said["washed"], said["terminal"], said["keys"]) == (None, False, None, [])
    assert "no SAM" in office.at(HOLDER, "sam", "show", code=4)["message"]
    assert office.at(HOLDER, "sam", "personalize", DOOR, "--kind", "pos", code=4)["error"] == "Conflict"
    code, out, _ = office.run("sam", "show", sam_of(office), json=False)
    assert code == 0
    assert "purchase" in out
    office("sam", "show", "0301000000000099", code=3)
    assert office.everything() == before


def test_a_washed_sam_needs_no_transport_key(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading what is washed already asks for no vendor's key: here for a SAM that is made again."""
    office.vendor("new", SamCard)
    made = office.at("new", "sam", "personalize", DOOR, "--kind", "access")
    assert made["registered"] is False
    with monkeypatch.context() as patch:
        patch.delenv("ONECARD_TRANSPORT_KEY_FILE")
        assert office.at("new", "sam", "personalize", DOOR, "--kind", "access") == made
        plan = office.at("new", "sam", "personalize", DOOR, "--kind", "access", "--dry-run")["plan"]
        assert not any("initial" in line for line in plan)
        office.vendor("fresh", SamCard)
        assert "transport key" in office.at("fresh", "sam", "personalize", DOOR, "--kind", "access", code=2)["message"]


def test_a_sam_serves_one_terminal_of_one_kind(office: Office) -> None:
    """Another kind, a terminal that has a SAM, another terminal's SAM, one without PIN: refused untouched."""
    office.vendor("new", SamCard)
    before = office.everything()
    for args in ([TILL, "--kind", "access"], [TILL, "--kind", "pos"], [TILL, "--kind", "pos", "--register", "other"]):
        assert office.at("new", "sam", "personalize", *args, code=4)["error"] == "Conflict"
    office.at("new", "sam", "personalize", DOOR, "--kind", "pos", "--key-set", "7", "--dry-run")
    assert office.everything() == before
    for args in ([DOOR, "--kind", "pos"], [TILL, "--kind", "access"], [TILL, "--kind", "pos", "--without-pin"]):
        assert office.at("sam", "sam", "personalize", *args, code=4)["error"] == "Conflict"
    assert office.everything() == before
    office.till("pay", "1")


def test_torn_making_is_finished(office: Office) -> None:
    """Cut anywhere, the same command with the same SAM finishes it, under the serial that it was given."""
    cuts = 0
    for step in range(3, 200, 9):
        office.vendor("new", SamCard)
        door = f"3100000007{step:02X}"
        args = ["sam", "personalize", door, "--kind", "pos", "--register", f"door {step}"]
        office.cut_at = step
        code, _, err = office.run(*args, reader=f"sim:{office.path('new')}.img")
        office.cut_at = 0
        assert code in (0, 5), err
        given = office.at("new", "sam", "show")["sam"]
        made = office.at("new", *args)
        assert made["registered"]
        assert given in (None, made["sam"])
        if code == 0:
            break
        cuts += 1
    else:
        pytest.fail("no run was long enough")
    assert cuts > 8


def test_load_keys(office: Office) -> None:
    """New versions are added beside the old ones, recorded, and cost nothing when they are there; no PIN is asked."""
    serial = sam_of(office)
    missing = office.at("sam", "sam", "load-keys", serial, "--key-set", "2", code=3)
    assert "version 2" in missing["message"]
    second_set(office)
    before = office.everything()
    assert office.at("sam", "sam", "load-keys", serial, "--key-set", "2", "--dry-run")["plan"]
    assert office.everything() == before
    office.cut_at = 24
    office.at("sam", "sam", "load-keys", serial, "--key-set", "2", code=5)
    office.cut_at = 0
    loaded = office.at("sam", "sam", "load-keys", serial, "--key-set", "1", "--key-set", "2", request_id="l1")
    assert {(key["purpose"], key["version"]) for key in loaded["keys"]} == {
        (purpose.name.lower(), version) for purpose in HOLDS[SamKind.POS] for version in (1, 2)
    }
    assert [key["kcv"] for key in office("sam", "show", serial)["keys"]] == [
        key["kcv"] for key in sorted(loaded["keys"], key=lambda key: (_code(key["purpose"]), key["version"]))
    ]
    assert office("sam", "load-keys", serial, "--key-set", "1", "--key-set", "2", request_id="l1") == loaded
    office.vendor("new", SamCard)
    office.at("new", "sam", "load-keys", serial, "--key-set", "2", code=4)
    office.till("pay", "1")
    office.at("new", "sam", "personalize", DOOR, "--kind", "pos")
    assert {key["version"] for key in office.at("new", "sam", "show")["keys"]} == {1, 2}


def _code(name: str) -> int:
    return next(int(purpose) for purpose in HOLDS[SamKind.POS] if purpose.name.lower() == name)


def settled(office: Office) -> list[Any]:
    """Findings after the till's journal was collected and settled."""
    office.collect(f"journal-{len(list(office.folder.glob('journal-*')))}")
    office("settle", "run")
    code, out, _ = office.run("settle", "findings")
    assert code in (0, 8)
    found: list[Any] = json.loads(out)
    return found


def test_a_lost_sams_later_payments_are_refused(office: Office) -> None:
    """What it reported before it was lost is settled, what it reports after is refused and named."""
    serial = sam_of(office)
    office.till("pay", "10")
    office("sam", "report-lost", serial)
    office.till("pay", "3")
    [finding] = settled(office)
    assert (finding["verdict"], finding["amount_fen"]) == ("sam_lost", 3_00)
    assert office("sam", "show", serial)["state"] == "lost"
    assert office("wallet", "balance", office.serials[HOLDER])["main_fen"] <= 58_00 - 10_00


@pytest.mark.parametrize("lost", [True, False])
def test_replace(lost: bool, office: Office) -> None:
    """A new SAM takes the place of a broken or lost one: same terminal, its keys; both journals' records count."""
    old = sam_of(office)
    office.till("pay", "10")
    office.vendor("new", SamCard)
    office("sam", "replace", "0301000000000099", code=3)
    args = ["sam", "replace", old, *(["--lost"] if lost else [])]
    assert office.at("sam", *args, code=4)["error"] == "Conflict"
    assert office("sam", "show", old)["state"] == ("lost" if lost else "active")
    for step in (30, 60, 90):
        office.cut_at = step
        office.at("new", *args, code=5)
    office.cut_at = 0
    made = office.at("new", *args, request_id="r1")
    assert (made["terminal"], made["replaces"], made["registered"]) == (TILL, old, True)
    assert office("sam", "show", old)["state"] == ("lost" if lost else "retired")
    assert sam_of(office) == made["sam"] != old
    after = office.everything()
    assert office(*args, request_id="r1") == made
    assert office.everything() == after
    assert office.at("new", *args) == made
    lost_till = office.path("sam.img")
    shutil.copy(lost_till, office.path("old.img"))
    shutil.copy(office.path("new.img"), lost_till)
    office.till("pay", "5")
    shutil.copy(office.path("old.img"), lost_till)
    office.till("pay", "2")
    found = settled(office)
    assert [row["verdict"] for row in found] == (["sam_lost"] if lost else [])
    office.vendor("third", SamCard)
    assert "replace" in office.at("third", *args, code=4)["message"]


def test_lock(office: Office) -> None:
    """A locked SAM answers nothing any more; its terminal has none, and no key version waits for it."""
    serial = sam_of(office)
    office.at("sam", "sam", "lock", serial, code=1)
    office.at("sam", "sam", "lock", serial, "--confirm", "lock", code=1)
    before = office.everything()
    assert office.at("sam", "sam", "lock", serial, "--dry-run")["dry_run"]
    assert office.everything() == before
    office.vendor("new", SamCard)
    office.at("new", "sam", "lock", serial, "--confirm", "LOCK", code=4)
    for step in (2, 4, 6):
        office.cut_at = step
        office.at("sam", "sam", "lock", serial, "--confirm", "LOCK", code=5)
    office.cut_at = 0
    assert office.at("sam", "sam", "lock", serial, "--confirm", "LOCK")["state"] == "retired"
    assert office.at("sam", "sam", "lock", serial, "--confirm", "LOCK")["state"] == "retired"
    shown = office("sam", "show", serial)
    assert (shown["state"], shown["keys"]) == ("retired", [])
    assert office.at("sam", "sam", "show", code=1)["reason"] == "sam_blocked"
    office.till("pay", "1", code=6)
    assert office.at("sam", "sam", "lock", made_elsewhere(office), "--confirm", "LOCK", code=1)["reason"]


def made_elsewhere(office: Office) -> str:
    """The serial of another SAM of ours."""
    office.vendor("elsewhere", SamCard)
    serial: str = office.at("elsewhere", "sam", "personalize", DOOR, "--kind", "access")["sam"]
    return serial


def test_a_found_sam_stays_lost_when_locked(office: Office) -> None:
    """Locking a lost SAM that was found does not make its records good."""
    serial = sam_of(office)
    office("sam", "report-lost", serial)
    office.at("sam", "sam", "lock", serial, "--confirm", "LOCK")
    assert office("sam", "show", serial)["state"] == "lost"
    office.at("sam", "sam", "load-keys", serial, "--key-set", "1", code=4)
    assert office(*["sam", "replace", serial, "--since", "2026-01-01"], code=2)["exit"] == 2


@pytest.fixture
def pair(office: Office, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A mother card and its authentication card of the office's keys, and a SAM that the platform washed."""
    for name, value in (("MOTHER_PIN", MOTHER_PIN), ("AUTHENTICATION_PIN", OTHER_PIN)):
        WATCH.register(value.hex(), name, passing=True)
        Path(office.path(name)).write_text(value.hex())
        monkeypatch.setenv(f"ONECARD_{name}_FILE", office.path(name))
    initial, steps = KeyHandle(make_key(TRANSPORT_KEY), "transport key"), MemorySteps()
    mother, other = Mother.vendor_fresh(TRANSPORT_KEY), Card.vendor_fresh(TRANSPORT_KEY)
    sam = SamCard.vendor_fresh(TRANSPORT_KEY)
    with FileStore(office.db / KEY_FILE, SECRETS["KEY_PASSPHRASE"].encode()) as store:
        serial = make_serial(CardKind.MOTHER, 1, 1)
        washing = WashPlan("mother", serial, 1, START, 1, initial)
        make_mother(mother, MotherPlan(washing, ENTERPRISE, MOTHER_PIN), store, steps)
        washing = WashPlan("other", make_serial(CardKind.AUTHENTICATION, 1, 1), 1, START, 1, initial)
        make_authentication(other, AuthenticationPlan(washing, serial, OTHER_PIN), store, steps)
        wash_sam(sam, SamWash("sam", make_serial(CardKind.SAM, 1, 70), ENTERPRISE, initial), store, steps)
    for name, card in (("mother", mother), ("other", other), ("new", sam)):
        image.save(card, Path(f"{office.path(name)}.img"))
    return ["--mother", f"sim:{office.path('mother')}.img", "--authentication", f"sim:{office.path('other')}.img"]


def test_keys_from_a_mother_card(office: Office, pair: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mother card a washed SAM is loaded, shown and loaded again without passphrase and transport key."""
    monkeypatch.delenv("ONECARD_KEY_PASSPHRASE_FILE")
    monkeypatch.delenv("ONECARD_TRANSPORT_KEY_FILE")
    args = ["sam", "personalize", DOOR, "--kind", "pos", "--register", "north"]
    assert "key passphrase" in office.at("new", *args, code=2)["message"]
    assert "--authentication" in office.at("new", *args, *pair[:2], code=2)["message"]
    office.cut_at = 60
    office.at("new", *args, *pair, code=5)
    office.cut_at = 0
    made = office.at("new", *args, *pair)
    assert {key["purpose"] for key in made["keys"]} == {purpose.name.lower() for purpose in HOLDS[SamKind.POS]}
    said = office.at("new", "sam", "show", *pair)
    assert (said["terminal"], all(key["ours"] for key in said["keys"])) == (DOOR, True)
    again = office.at("new", "sam", "load-keys", made["sam"], "--key-set", "1", *pair)
    assert again["keys"] == made["keys"]
    assert office.at("new", "sam", "load-keys", made["sam"], "--key-set", "2", *pair, code=3)["error"] == "NotFound"


def test_bad_pins(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PIN of another form is refused before the SAM is touched, and not shown."""
    office.vendor(OTHER, SamCard)
    for number, wrong in enumerate(("12345", "11223344556677", "no pin here")):
        WATCH.register(wrong, f"wrong PIN {number}", passing=True)
        file = tmp_path / f"pin-{number}"
        file.write_text(wrong)
        with monkeypatch.context() as patch:
            patch.setenv("ONECARD_SAM_PIN_FILE", str(file))
            office.at(OTHER, "sam", "personalize", DOOR, "--kind", "pos", code=2)
    assert office.at(OTHER, "sam", "show")["sam"] is None
