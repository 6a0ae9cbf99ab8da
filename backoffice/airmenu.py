"""What holders ask from the SIM's menu: delete the application, report a loss (ota.md, From the SIM menu)."""

from __future__ import annotations

from collections.abc import Callable

from backoffice import airkeys, airqueue, cards, chips, members
from backoffice.database import Tx
from backoffice.operators import Credential, Operator, Permission, Role, require
from backoffice.station import Office
from cardlib import ota
from cardlib.crypto.sealing import Argon2Params
from cardlib.errors import Conflict, FormatError, MacMismatch, NotFound, OneCardError, Refused
from cardlib.profile import aid
from cardlib.wire.scp80 import COMMAND_UDH, SealedCommand

TRIES, WINDOW_MS = 5, 86_400_000
"""Wrong passwords of a number within 24 h that close the way for it."""
COST = Argon2Params()
REFUSED = "请求未受理：密码错误或服务未开通 / Not accepted: wrong password, or no service"
"""The one answer to a wrong password, one that was never set, and a way that is closed."""
LOST = "已挂失 / Your card is reported lost"
DELETING = "应用即将删除 / The application is being deleted"
NOT_YET = "暂不能删除 / It can't be deleted yet: "


def set_password(tx: Tx, operator: Operator, enterprise_id: int, member_number: str, credential: Credential) -> None:
    """Give a member the service password behind ``credential`` (:func:`credential_of`). Raises Refused, NotFound."""
    require(operator, Permission.MEMBER_CHANGE, enterprise_id)
    members.get(tx, enterprise_id, member_number)
    tx.execute(
        "INSERT INTO service_password (enterprise_id, member_number, salt, verifier, changed_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (enterprise_id, member_number)"
        " DO UPDATE SET salt = excluded.salt, verifier = excluded.verifier, changed_ms = excluded.changed_ms",
        (enterprise_id, member_number, credential.salt, credential.verifier, tx.now_ms),
    )


def credential_of(digits: str, random_bytes: Callable[[int], bytes], cost: Argon2Params = COST) -> Credential:
    """Argon2id of a service password of 4 to 12 digits, as the menu takes it. Raises FormatError."""
    if not (4 <= len(digits) <= 12 and digits.isascii() and digits.isdigit()):
        raise FormatError("a service password has 4 to 12 digits")
    return Credential.make(_text(digits), random_bytes, cost)


def _text(digits: str) -> str:
    return f"service password {digits}"


def take(office: Office, number: str, user_data: bytes) -> str | None:
    """Do what a subscriber's SIM asks; the text for him, None for what is no request of a card here, or a repeat.

    The counter is stored before anything is done, so that a recorded request does nothing.
    """
    enterprise_id = office.enterprise_id
    with office.platform.read() as tx:
        bound = chips.binding(tx, number=number)
        slots = chips.slots(tx, bound.card_serial) if bound else []
    mine = next((one for one in slots if one.enterprise_id == enterprise_id), None)
    if bound is None or mine is None or not user_data.startswith(COMMAND_UDH):
        return None
    keys = airkeys.of_slot(office.db, office.store, bound.card_serial, enterprise_id, mine.number)
    try:
        packet = user_data[len(COMMAND_UDH) :]
        SealedCommand.decode(packet)
        request = ota.read_request(packet, keys.key_set)
    except (FormatError, MacMismatch):
        return None
    if request.aid[: len(aid(enterprise_id))] != aid(enterprise_id) or not keys.accept(request.counter):
        return None
    if not _is_holder(office, number, bound.card_serial, request.password):
        return REFUSED
    holder = Operator(enterprise_id, "holder", Role.ISSUER)
    wish = _lose if request.wish is ota.Wish.REPORT_LOSS else _delete
    return wish(office, holder, bound.card_serial)


def _is_holder(office: Office, number: str, serial: bytes, password: str) -> bool:
    """Check the service password; unknown, wrong and closed take the same time and leave the same trace."""
    enterprise_id = office.enterprise_id
    with office.db.write() as tx:  # counted before it is checked: a crash must not give another try
        tries = tx.value(
            "SELECT COUNT(*) FROM air_password WHERE enterprise_id = ? AND number = ? AND at_ms > ?",
            (enterprise_id, number, tx.now_ms - WINDOW_MS),
        )
        attempt = tx.new_id()
        if tries < TRIES:
            tx.execute(
                "INSERT INTO air_password (enterprise_id, number, attempt_id, at_ms) VALUES (?, ?, ?, ?)",
                (enterprise_id, number, attempt, tx.now_ms),
            )
        row = tx.one(
            "SELECT salt, verifier FROM service_password AS p JOIN card_application AS c"
            " ON c.enterprise_id = p.enterprise_id AND c.member_number = p.member_number"
            " WHERE p.enterprise_id = ? AND c.card_serial = ?",
            (enterprise_id, serial),
        )
    known = Credential(*row) if row is not None else credential_of("0000", office.random_bytes)
    fits = known.fits(_text(password))
    if not fits or row is None or tries >= TRIES:
        return False
    with office.db.write() as tx:
        tx.execute("DELETE FROM air_password WHERE enterprise_id = ? AND attempt_id = ?", (enterprise_id, attempt))
    return True


def _lose(office: Office, holder: Operator, serial: bytes) -> str:
    try:
        cards.lose(office, holder, serial, "SIM menu")
    except (Refused, Conflict, NotFound) as error:
        return str(error)
    return LOST


def _delete(office: Office, holder: Operator, serial: bytes) -> str:
    with office.db.write() as tx:
        left = cards.unsettled(tx, office.enterprise_id, serial)
        if left:
            return NOT_YET + "; ".join(left)
        try:
            airqueue.queue(tx, holder, office.enterprise_id, "delete", serial, {})
        except OneCardError as error:
            return str(error)
    return DELETING
