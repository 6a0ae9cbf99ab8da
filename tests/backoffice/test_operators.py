"""Operators: secrets, locks, roles; every permission of every role, and two pairs of eyes."""

from __future__ import annotations

import random

import pytest

from backoffice import operators
from backoffice.database import PLATFORM, Database
from backoffice.operators import LOCK_MS, PERMISSIONS, Credential, Operator, Permission, Role
from cardlib.crypto.sealing import Argon2Params
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from tests.backoffice.conftest import ENTERPRISE, Clock

CHEAP = Argon2Params(memory_kib=64, iterations=1, lanes=1)
SECRET = "correct horse"
BOSS = Operator(ENTERPRISE, "boss", Role.ADMINISTRATOR)


def credential(secret: str = SECRET) -> Credential:
    return Credential.make(secret, random.Random(3).randbytes, CHEAP)


@pytest.fixture
def staff(db: Database) -> Database:
    """An enterprise with its first administrator."""
    with db.write() as tx:
        operators.add_first(tx, ENTERPRISE, "boss", Role.ADMINISTRATOR, credential())
    return db


def test_secret(staff: Database) -> None:
    """The right secret gives the operator with his role; a wrong one and an unknown name sound alike."""
    assert operators.authenticate(staff, ENTERPRISE, "boss", SECRET) == BOSS
    with pytest.raises(Refused) as wrong:
        operators.authenticate(staff, ENTERPRISE, "boss", "wrong horse")
    with pytest.raises(Refused) as unknown:
        operators.authenticate(staff, ENTERPRISE, "nobody", SECRET)
    assert str(wrong.value) == str(unknown.value)
    assert wrong.value.reason == unknown.value.reason == "operator"


def test_secret_is_not_kept(staff: Database) -> None:
    """Neither the database nor a repr shows the secret."""
    assert SECRET not in repr(credential())
    staff.close()
    assert SECRET.encode() not in staff.path.read_bytes()


def test_lock_after_five_wrong_secrets(staff: Database, clock: Clock) -> None:
    """Five wrong tries lock even for the right secret, for a quarter of an hour; one more wrong one locks again."""
    for _ in range(5):
        with pytest.raises(Refused, match="wrong"):
            operators.authenticate(staff, ENTERPRISE, "boss", "wrong horse")
    with pytest.raises(Refused) as locked:
        operators.authenticate(staff, ENTERPRISE, "boss", SECRET)
    assert locked.value.reason == "operator_locked"
    clock.forward(LOCK_MS)
    with pytest.raises(Refused, match="wrong"):
        operators.authenticate(staff, ENTERPRISE, "boss", "wrong horse")
    with pytest.raises(Refused, match="locked"):
        operators.authenticate(staff, ENTERPRISE, "boss", SECRET)
    clock.forward(LOCK_MS)
    assert operators.authenticate(staff, ENTERPRISE, "boss", SECRET) == BOSS


def test_success_forgets_failures(staff: Database) -> None:
    """Four wrong tries, a right one, four wrong ones: not locked."""
    for _ in range(2):
        for _ in range(4):
            with pytest.raises(Refused, match="wrong"):
                operators.authenticate(staff, ENTERPRISE, "boss", "wrong horse")
        assert operators.authenticate(staff, ENTERPRISE, "boss", SECRET) == BOSS


def test_disabled(staff: Database) -> None:
    """A disabled operator is refused, with that reason only to who knows the secret."""
    with staff.write() as tx:
        operators.add(tx, BOSS, ENTERPRISE, "li", Role.ISSUER, credential("another secret"))
        operators.set_active(tx, BOSS, ENTERPRISE, "li", active=False)
    with pytest.raises(Refused) as disabled:
        operators.authenticate(staff, ENTERPRISE, "li", "another secret")
    assert disabled.value.reason == "operator_disabled"
    with pytest.raises(Refused, match="wrong"):
        operators.authenticate(staff, ENTERPRISE, "li", SECRET)


def test_somebody_stays_to_manage_operators(staff: Database) -> None:
    """The last administrator can neither be disabled nor demoted."""
    with pytest.raises(Refused) as refused, staff.write() as tx:
        operators.set_active(tx, BOSS, ENTERPRISE, "boss", active=False)
    assert refused.value.reason == "last_administrator"
    with pytest.raises(Refused), staff.write() as tx:
        operators.change_role(tx, BOSS, ENTERPRISE, "boss", Role.AUDITOR)
    assert operators.authenticate(staff, ENTERPRISE, "boss", SECRET) == BOSS


def test_new_secret(staff: Database) -> None:
    """Anybody changes his own secret, only who manages operators another's; it lifts a lock."""
    with staff.write() as tx:
        li = operators.add(tx, BOSS, ENTERPRISE, "li", Role.FINANCE, credential("first secret"))
        operators.change_secret(tx, li, ENTERPRISE, "li", credential("second secret"))
    assert operators.authenticate(staff, ENTERPRISE, "li", "second secret") == li
    for _ in range(5):
        with pytest.raises(Refused):
            operators.authenticate(staff, ENTERPRISE, "li", "first secret")
    with pytest.raises(Refused, match="may not"), staff.write() as tx:
        operators.change_secret(tx, li, ENTERPRISE, "boss", credential("second secret"))
    with staff.write() as tx:
        operators.change_secret(tx, BOSS, ENTERPRISE, "li", credential("third secret"))
    assert operators.authenticate(staff, ENTERPRISE, "li", "third secret") == li


def test_first_operator_only_once(staff: Database) -> None:
    """Nobody makes himself an account once there is one."""
    with pytest.raises(Conflict), staff.write() as tx:
        operators.add_first(tx, ENTERPRISE, "thief", Role.ADMINISTRATOR, credential())


def test_platform_opens_administrator_accounts_only(staff: Database) -> None:
    """The platform's operator may add an enterprise's administrator, nobody else, and no platform role spreads."""
    platform = Operator(PLATFORM, "root", Role.PLATFORM)
    with staff.write() as tx:
        operators.add(tx, platform, 2002, "chief", Role.ADMINISTRATOR, credential())
    with pytest.raises(Refused), staff.write() as tx:
        operators.add(tx, platform, 2002, "cashier", Role.FINANCE, credential())
    with pytest.raises(FormatError), staff.write() as tx:
        operators.add(tx, BOSS, ENTERPRISE, "root", Role.PLATFORM, credential())
    with pytest.raises(FormatError), staff.write() as tx:
        operators.change_role(tx, BOSS, ENTERPRISE, "boss", Role.PLATFORM)


@pytest.mark.parametrize("name", ["", "Li", "a b", "x" * 33, "李", "-a"])
def test_malformed_name(staff: Database, name: str) -> None:
    """Names are short and plain."""
    with pytest.raises(FormatError), staff.write() as tx:
        operators.add(tx, BOSS, ENTERPRISE, name, Role.ISSUER, credential())


def test_duplicate_and_unknown(staff: Database) -> None:
    """A taken name is a conflict, a missing one is not found."""
    with pytest.raises(Conflict), staff.write() as tx:
        operators.add(tx, BOSS, ENTERPRISE, "boss", Role.ISSUER, credential())
    with pytest.raises(NotFound), staff.write() as tx:
        operators.set_active(tx, BOSS, ENTERPRISE, "nobody", active=True)


@pytest.mark.parametrize("secret", ["short", "", "x" * 1025])
def test_secret_sizes(secret: str) -> None:
    """Too short a secret, or too long a one, is refused, unseen in the message."""
    with pytest.raises(FormatError, match="8 to 1024"):
        credential(secret)


def test_listing(staff: Database) -> None:
    """The list names everybody of this enterprise, without secrets."""
    with staff.write() as tx:
        operators.add(tx, BOSS, ENTERPRISE, "anna", Role.AUDITOR, credential())
        operators.add_first(tx, 2002, "stranger", Role.ADMINISTRATOR, credential())
    with staff.read() as tx:
        listed = operators.accounts(tx, ENTERPRISE)
    assert [(one.name, one.role, one.state) for one in listed] == [
        ("anna", "auditor", "active"),
        ("boss", "administrator", "active"),
    ]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("permission", list(Permission))
def test_every_permission_of_every_role(role: Role, permission: Permission) -> None:
    """What a role has is granted in its own enterprise, all else is refused; nothing in another's."""
    home = PLATFORM if role is Role.PLATFORM else ENTERPRISE
    operator = Operator(home, "li", role)
    if permission in PERMISSIONS[role]:
        operators.require(operator, permission, ENTERPRISE)
    else:
        with pytest.raises(Refused) as refused:
            operators.require(operator, permission, ENTERPRISE)
        assert refused.value.reason == "permission"
    if home:
        with pytest.raises(Refused, match="belongs to enterprise"):
            operators.require(operator, permission, 2002)


def test_roles_that_must_not_meet() -> None:
    """Who issues moves no money, who audits changes nothing, the platform touches no enterprise's money."""
    money = {p for p in Permission if p.name in ("WALLET_RECHARGE", "WALLET_REFUND", "LEDGER_CORRECT", "SETTLE_CLOSE")}
    assert not money & PERMISSIONS[Role.ISSUER]
    assert not money & PERMISSIONS[Role.PLATFORM]
    assert all(p.name.endswith("_SHOW") for p in PERMISSIONS[Role.AUDITOR])
    assert Permission.ENTERPRISE_MANAGE not in PERMISSIONS[Role.ADMINISTRATOR]


def test_two_operators() -> None:
    """A correction needs two different operators, each with the permission."""
    li, wang = Operator(ENTERPRISE, "li", Role.FINANCE), Operator(ENTERPRISE, "wang", Role.FINANCE)
    operators.require_two(li, wang, Permission.LEDGER_CORRECT, ENTERPRISE)
    with pytest.raises(Refused) as alone:
        operators.require_two(li, li, Permission.LEDGER_CORRECT, ENTERPRISE)
    assert alone.value.reason == "two_operators"
    with pytest.raises(Refused, match="may not"):
        operators.require_two(li, wang._replace(role=Role.AUDITOR), Permission.LEDGER_CORRECT, ENTERPRISE)
