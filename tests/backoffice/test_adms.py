"""Third-party attendance terminals: what they push is kept once and whole, or refused whole."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backoffice import adms, attendance, members
from backoffice.attendance import Reported
from backoffice.database import Database
from backoffice.members import Member
from backoffice.operators import Operator, Role
from backoffice.web import listen
from cardlib.errors import ConfigError, DatabaseError, FormatError, NotFound, Refused
from tests.backoffice.adms_rig import Pusher, serving
from tests.backoffice.conftest import ENTERPRISE
from tests.backoffice.kit import ADMIN

LINE = b"1\t2026-11-02 08:59:00\t0\t1\t0"
SECRETS = [b"hunter2secret", b"TEMPLATEbytes", b"PHOTObytes"]


@pytest.fixture
def office(db: Database) -> Database:
    """One approved device and a member with its PIN."""
    with db.write() as tx:
        adms.approve(tx, ADMIN, ENTERPRISE, "A1B2", "gate")
        members.add(tx, ADMIN, ENTERPRISE, Member("1", "王伟"))
    return db


@pytest.fixture
def pusher(office: Database) -> Iterator[Pusher]:
    """The device, calling the server."""
    with serving(office, ENTERPRISE) as (port, _):
        one = Pusher(port)
        yield one
        one.close()


def kept(db: Database) -> list[attendance.Line]:
    with db.read() as tx:
        return list(attendance.punches(tx, ENTERPRISE, date(2026, 1, 1), date(2026, 12, 31)))


def everything(db: Database) -> list[tuple[object, ...]]:
    with db.read() as tx:
        tables = ("punch", "adms_bad_line", "adms_device")
        return [tuple(row) for table in tables for row in tx.all(f"SELECT * FROM {table}")]


def test_registration(pusher: Pusher) -> None:
    """A device that calls is told the time zone, its cursor, and to send punches alone."""
    code, text = pusher.call("GET", "/iclock/cdata?SN=&options=all&pushver=2.4.1")
    lines = text.splitlines()
    assert (code, lines[0]) == (200, "GET OPTION FROM: A1B2")
    assert {"ATTLOGStamp=0", "TimeZone=8", "Realtime=1", "TransFlag=TransData AttLog"} <= set(lines)
    pusher.push(LINE, "9876")
    assert "ATTLOGStamp=9876" in pusher.call("GET", "/iclock/cdata?SN=&options=all")[1]


@pytest.mark.parametrize("minutes", [330, -210])
def test_half_hours_are_told_in_minutes(minutes: int) -> None:
    """A time zone that is no whole number of hours is told in minutes."""
    assert f"TimeZone={minutes}\n" in adms.options(adms.Device("A", "a", "approved", "", ""), minutes)


@pytest.mark.parametrize("more", [b"", b"\t0\t0", b"\t0\t0\t0\t36.5\t0", b"\r"])
def test_punches_of_each_length(pusher: Pusher, office: Database, more: bytes) -> None:
    """Lines of 5, 7 and 10 fields are punches of the member with that number, of an unverified source."""
    assert pusher.push(LINE + more + b"\n") == (200, "OK: 1")
    (one,) = kept(office)
    assert one == ("2026-11-02 08:59:00", "1", "pin:1", "in", "adms:A1B2", False)


def test_repeats_are_answered_and_kept_once(pusher: Pusher, office: Database) -> None:
    """The same punch again is OK and adds nothing; another status or verify mode is another punch."""
    post = LINE + b"\n" + LINE + b"\n1\t2026-11-02 08:59:00\t1\t1\t0\n1\t2026-11-02 08:59:00\t0\t15\t0"
    assert [pusher.push(post) for _ in range(3)] == [(200, "OK: 4")] * 3
    assert len(kept(office)) == 3


def test_bad_lines_are_kept_aside(pusher: Pusher, office: Database) -> None:
    """A line that is no punch is kept aside once, with its cause and without secrets, and answered OK."""
    bad = b"\t".join([b"USER PIN=1", b"Passwd=" + SECRETS[0], b"TMP=" + SECRETS[1] * 9]) + b"\n" + SECRETS[1] * 9
    post = b"1\tyesterday\t0\t1\t0\n" + LINE + b"\n1\t2026-02-30 08:00:00\t0\t1\t0\n" + bad
    assert [pusher.push(post) for _ in range(2)] == [(200, "OK: 5")] * 2
    assert len(kept(office)) == 1
    with office.read() as tx:
        found = adms.bad_lines(tx, ENTERPRISE)
    assert sorted(one["cause"] for one in found) == [
        "1 fields where 5, 7 or 10 belong", "3 fields where 5, 7 or 10 belong", "the time is wrong",
        "there is no such time",
    ]  # fmt: skip
    assert not any(secret in repr(found).encode() for secret in SECRETS)


def test_people_passwords_templates_and_photos_are_dropped(
    pusher: Pusher, office: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Other uploads are answered OK and leave nothing, neither in the database nor in the log."""
    caplog.set_level(logging.DEBUG)
    before = everything(office)
    posts = {
        "OPERLOG": b"USER PIN=1\tName=x\tPri=0\tPasswd=" + SECRETS[0] + b"\nFP PIN=1\tFID=1\tTMP=" + SECRETS[1],
        "USERINFO": b"PIN=1\tPasswd=" + SECRETS[0],
        "BIODATA": b"BIODATA Pin=1\tTmp=" + SECRETS[1],
        "ATTPHOTO": b"PIN=1.jpg\nSN=A1B2\nsize=9\nCMD=uploadphoto\0" + SECRETS[2] * 300_000,
        "options": b"~DeviceName=x",
    }
    for table, body in posts.items():
        assert pusher.push(body, table=table) == (200, "OK")
    assert everything(office) == before
    office.close()
    files = b"".join(path.read_bytes() for path in office.path.parent.iterdir())
    assert not any(secret in files + caplog.text.encode() for secret in SECRETS)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/iclock/getrequest?SN="), ("GET", "/iclock/getrequest.aspx?SN="), ("GET", "/iclock/ping?SN="),
        ("GET", "/iclock/getrequest/?SN=&INFO=Ver"), ("POST", "/iclock/devicecmd?SN="),
        ("POST", "/iclock/devicecmd.aspx/?SN="),
    ],
)  # fmt: skip
def test_other_calls(pusher: Pusher, method: str, path: str) -> None:
    """A device that asks for orders gets none, and whatever it reports is answered OK."""
    assert pusher.call(method, path, b"ID=1&Return=0&CMD=INFO" if method == "POST" else None) == (200, "OK")


def test_other_spellings_of_upload(pusher: Pusher, office: Database) -> None:
    """``.aspx`` and a slash at the end change nothing."""
    for n, path in enumerate(("cdata/", "cdata.aspx", "cdata.aspx/")):
        line = b"1\t2026-11-02 08:59:0%d\t0\t1\t0" % n
        assert pusher.call("POST", f"/iclock/{path}?SN=&table=ATTLOG&Stamp=1", line) == (200, "OK: 1")
    assert len(kept(office)) == 3


@pytest.mark.parametrize("path", ["/", "/iclock/", "/iclock/shell?SN=", "/iclock/fdata?SN=", "/iclock/cdata/x?SN="])
def test_nothing_else_is_there(pusher: Pusher, path: str) -> None:
    """Other paths do not exist."""
    assert pusher.call("GET", path)[0] == 404


@pytest.mark.parametrize("number", ["A1B3", "", "a1b2", "A1B2%00", "%27%20OR%201=1"])
def test_unknown_device_is_refused(pusher: Pusher, office: Database, number: str) -> None:
    """A serial number that nobody approved gets 403 everywhere, and nothing is stored."""
    pusher.number, before = number, everything(office)
    assert pusher.push(LINE)[0] == pusher.push(b"x", table="OPERLOG")[0] == 403
    for path in ("cdata?SN=&options=all", "getrequest?SN=", "ping?SN="):
        assert pusher.call("GET", f"/iclock/{path}")[0] == 403
    assert everything(office) == before


def test_retired_and_moved_devices_are_refused(pusher: Pusher, office: Database) -> None:
    """A device that was retired, or calls from another address than its own, is refused from then on."""
    assert pusher.push(LINE)[0] == 200
    with office.write() as tx:
        adms.retire(tx, ADMIN, ENTERPRISE, "A1B2")
    assert pusher.push(LINE + b"1")[0] == 403
    for network, code in (("192.0.2.0/24", 403), ("127.0.0.0/8", 200), ("2001:db8::/32", 403), ("", 200)):
        with office.write() as tx:
            adms.approve(tx, ADMIN, ENTERPRISE, "A1B2", "gate", network)
        assert pusher.push(LINE)[0] == code
    assert len(kept(office)) == 1


def test_behind_a_proxy(office: Database) -> None:
    """Behind a proxy the address is what it says last, and who goes around it is refused."""
    with office.write() as tx:
        adms.approve(tx, ADMIN, ENTERPRISE, "A1B2", "gate", "192.0.2.7")
    for proxy, said, code in (
        ("127.0.0.1", "192.0.2.7", 200), ("127.0.0.1", "192.0.2.7, 192.0.2.8", 403), ("127.0.0.1", "", 403),
        ("192.0.2.1", "192.0.2.7", 403), ("", "192.0.2.7", 403),
    ):  # fmt: skip
        with serving(office, ENTERPRISE, proxy) as (port, _):
            one = Pusher(port)
            assert one.call("GET", "/iclock/ping?SN=", headers={"X-Forwarded-For": said})[0] == code
            one.close()


def test_too_large(pusher: Pusher, office: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A post above the limit is refused whole."""
    monkeypatch.setattr(adms, "MAX_UPLOAD", 100)
    assert pusher.push(b"\n".join([LINE] * 9))[0] == 413
    assert kept(office) == []


def test_not_answered_before_it_is_committed(pusher: Pusher, office: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the commit fails the device is told to come again, and then it is kept."""
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise DatabaseError("the disk is full")

        patch.setattr(attendance, "keep", full)
        assert pusher.push(LINE)[0] == 503
    assert kept(office) == []
    assert pusher.push(LINE) == (200, "OK: 1")
    assert len(kept(office)) == 1


def test_cut_upload_keeps_nothing(office: Database) -> None:
    """A connection that ends in the middle of a post, at any byte of it, leaves nothing; sent again, all is there."""
    post = LINE + b"\n" + LINE.replace(b"08", b"09")
    head = b"POST /iclock/cdata?SN=A1B2&table=ATTLOG HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(post)
    with serving(office, ENTERPRISE) as (port, _):
        for at in range(1, len(head + post), 7):
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall((head + post)[:at])
        one = Pusher(port)
        assert one.call("GET", "/iclock/ping?SN=") == (200, "OK")
        assert kept(office) == []
        assert one.push(post) == (200, "OK: 2")
        one.close()
    assert len(kept(office)) == 2


def test_no_delay(office: Database) -> None:
    """Answers are sent at once: the server's sockets have TCP_NODELAY."""
    with serving(office, ENTERPRISE) as (port, server):
        one = Pusher(port)
        one.call("GET", "/iclock/ping?SN=")
        (connection,) = server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        one.close()


def test_only_so_many_bad_lines(office: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that sends nothing but rubbish fills no disk."""
    monkeypatch.setattr(adms, "MAX_BAD", 5)
    for n in range(3):
        body = b"\n".join(b"x%d" % (9 * n + i) for i in range(9))
        adms.take(office, ENTERPRISE, "A1B2", "", "", adms.parse("A1B2", body))
    with office.read() as tx:
        assert len(adms.bad_lines(tx, ENTERPRISE)) == 5


def test_where_it_may_be_seen_from() -> None:
    """Beyond this machine there must be a proxy for TLS."""
    for host, proxy in (("127.0.0.1", ""), ("::1", ""), ("0.0.0.0", "192.0.2.1")):
        listen(host, 0, proxy).close()
    for host, proxy in (("0.0.0.0", ""), ("192.0.2.9", ""), ("localhost", ""), ("0.0.0.0", "proxy")):
        with pytest.raises(ConfigError):
            listen(host, 0, proxy)


def test_approval(office: Database) -> None:
    """Who may not approve, does not; names, numbers and addresses that can't be are refused."""
    auditor = Operator(ENTERPRISE, "au", Role.AUDITOR)
    with office.write() as tx:
        with pytest.raises(Refused):
            adms.approve(tx, auditor, ENTERPRISE, "X", "x")
        with pytest.raises(Refused):
            adms.retire(tx, auditor, ENTERPRISE, "A1B2")
        for number, name in (("", "x"), ("a b", "x"), ("x" * 33, "x"), ("X", ""), ("X", "x" * 65), ("X", "a\nb")):
            with pytest.raises(FormatError):
                adms.approve(tx, ADMIN, ENTERPRISE, number, name)
        with pytest.raises(ConfigError):
            adms.approve(tx, ADMIN, ENTERPRISE, "X", "x", "gate")
        with pytest.raises(NotFound):
            adms.retire(tx, ADMIN, ENTERPRISE, "X")
        assert [one.device for one in adms.devices(tx, ENTERPRISE)] == ["A1B2"]


times = st.datetimes().map(lambda at: at.isoformat(" ", "seconds").encode())
fields = st.one_of(st.binary(max_size=40), times, st.integers(-1, 70_000).map(lambda n: b"%d" % n), st.just(b"1"))
lines = st.lists(fields, max_size=11).map(b"\t".join)


@given(st.one_of(st.binary(max_size=300), st.lists(lines, max_size=9).map(b"\n".join)))
def test_any_upload_is_read(body: bytes) -> None:
    """Whatever comes: every line is a punch that the database takes, or a bad one; none is lost."""
    upload = adms.parse("A1B2", body)
    assert upload.lines == len(upload.punches) + len(upload.bad)
    for one in upload.punches:
        assert str(attendance.local_time(one.local_time)) == one.local_time
        assert 5 <= len(one.person) <= 32
        assert one.status <= 255
        assert len(one.workcode) <= 32
        assert not one.verified
    assert all(one.cause and one.line.replace("\t", "").isprintable() for one in upload.bad)


@given(
    st.from_regex(r"[A-Za-z0-9._-]{1,24}", fullmatch=True), st.integers(0, 255), st.integers(0, 65535),
    st.dates(date(2000, 1, 1), date(2099, 12, 31)), st.sampled_from([0, 2, 5]),
)  # fmt: skip
def test_what_is_written_is_read(pin: str, status: int, verify: int, day: date, more: int) -> None:
    """A line with any legal values gives exactly these back."""
    line = "\t".join([pin, f"{day} 23:59:59", str(status), str(verify), "7", *["0"] * more])
    assert adms.parse("X", line.encode()).punches == [
        Reported(f"pin:{pin}", f"{day} 23:59:59", "adms:X", status, verify, 0, "7")
    ]
