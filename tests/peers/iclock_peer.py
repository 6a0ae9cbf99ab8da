"""Runs in the peer's own environment: ``iclockhelper`` reads a device's post, as a server of its own would."""

import json
import sys
from types import ModuleType
from urllib.request import Request

stub = ModuleType("pkg_resources")  # it asks for its own version there, and newer setuptools have it no more
stub.DistributionNotFound = LookupError  # type: ignore[attr-defined]  # a stub


def unknown(_: str) -> None:
    raise LookupError


stub.get_distribution = unknown  # type: ignore[attr-defined]  # a stub
sys.modules["pkg_resources"] = stub

from iclockhelper import CdataRequest  # type: ignore[import-not-found]  # noqa: E402  # in its own environment

url = "http://office/iclock/cdata?SN=A1B2&table=ATTLOG&Stamp=77"
read = CdataRequest.from_req(Request(url, data=sys.stdin.buffer.read(), method="POST"))
rows = [
    [one.pin, str(one.server_datetime), int(one.check_type), int(one.verify_code), one.work_code]
    for one in read.attendance_log.transactions
]
sys.stdout.write(json.dumps({"sn": read.sn, "stamp": read.stamp, "rows": rows}))
