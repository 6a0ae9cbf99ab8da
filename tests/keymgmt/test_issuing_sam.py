"""The issuing station's SAM computes what the host's key store would, and has no key that mints money."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cardlib.crypto import Algorithm
from cardlib.errors import Refused, StatusError
from cardlib.profile import Purpose, TransactionType
from cardlib.sam import IssuingSam, LoadInit
from keymgmt.personalise import HOST_ONLY
from keymgmt.samload import HOLDS, SamKind
from tests.keymgmt.mothers import SAM_PIN, issuing_sam
from tests.keymgmt.rig import ENTERPRISE, SAM_SERIAL, SERIAL, TERMINAL, Rig

BOTH = pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
HEADER = bytes.fromhex("04D69500")
CHALLENGE = bytes.fromhex("0102030405060708")
WHEN = bytes(7)


def opened(folder: Path, algorithm: Algorithm = Algorithm.TDES) -> tuple[Rig, IssuingSam]:
    rig = Rig(folder, algorithm)
    return rig, IssuingSam(issuing_sam(rig, rig.source), lambda: SAM_PIN)


@BOTH
def test_computes_as_the_host_does(tmp_path: Path, algorithm: Algorithm) -> None:
    """Secure messaging, authentications and card answers are those of the software host, key by key."""
    rig, sam = opened(tmp_path, algorithm)
    assert sam.info() == (SAM_SERIAL, TERMINAL, ENTERPRISE)
    for purpose in (Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK):
        for size in (0, 1, 7, 8, 15, 16, 39):
            for encrypt in (False, True):
                for challenge in (CHALLENGE[:4], CHALLENGE):
                    given = (purpose, SERIAL, 1, HEADER, bytes(range(size)), challenge, encrypt)
                    assert sam.protect(*given) == rig.host.protect(*given)
    for purpose in (Purpose.TERMINAL, Purpose.CONTROL):
        for challenge in (CHALLENGE[:4], CHALLENGE):
            want = rig.expected(purpose).cryptogram(challenge)
            assert sam.authenticate(purpose, SERIAL, 1, challenge) == want
    assert sam.card_answer(SERIAL, 1, CHALLENGE) == rig.host.card_answer(SERIAL, 1, CHALLENGE)


def test_says_what_it_holds(tmp_path: Path) -> None:
    """It holds the issuing station's keys, none of the host's own."""
    _, sam = opened(tmp_path)
    assert {purpose for purpose in Purpose if sam.holds(purpose)} == set(HOLDS[SamKind.ISSUING])
    assert not any(sam.holds(purpose) for purpose in HOST_ONLY)


def test_refuses_what_only_the_host_may(tmp_path: Path) -> None:
    """Load, unload and TAC are refused with the reason; so are keys that protect or authenticate nothing here."""
    _, sam = opened(tmp_path)
    init = LoadInit(0, 1, 1, 0, bytes(4), bytes(4))
    acts: tuple[Callable[[], object], ...] = (
        lambda: sam.load_mac2(init, 1, TransactionType.LOAD_EP, TERMINAL, WHEN, SERIAL),
        lambda: sam.unload_mac2(init, 1, TERMINAL, WHEN, SERIAL),
        lambda: sam.verify_mac3(init, 1, TERMINAL, WHEN, SERIAL, bytes(4)),
        lambda: sam.verify_tac(SERIAL, 1, 0, b"", bytes(4)),
        lambda: sam.protect(Purpose.CARD, SERIAL, 1, HEADER, b"", CHALLENGE),
        lambda: sam.protect(Purpose.CONTROL, SERIAL, 1, HEADER, b"", CHALLENGE),
        lambda: sam.authenticate(Purpose.CARD, SERIAL, 1, CHALLENGE),
        lambda: sam.authenticate(Purpose.PURCHASE, SERIAL, 1, CHALLENGE),
    )
    for act in acts:
        with pytest.raises(Refused) as refused:
            act()
        assert refused.value.reason == "key_usage"
    assert not sam.failed
    with pytest.raises(StatusError):
        sam.authenticate(Purpose.RECHARGE, SERIAL, 1, CHALLENGE)
    with pytest.raises(StatusError):
        sam.protect(Purpose.MAINTENANCE, SERIAL, 2, HEADER, b"", CHALLENGE)
