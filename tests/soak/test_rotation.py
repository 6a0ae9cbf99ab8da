"""An enterprise of 200 cards changes its keys while it works; ``script/soak --rotation`` does it by the hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.rotation import Rotation


@pytest.mark.parametrize(("seed", "people", "acts"), [(1, 200, 50)])
def test_a_rotation_while_payments_go_on(tmp_path: Path, seed: int, people: int, acts: int) -> None:
    """Torn renewals, payments and SAMs, settlement in between, a rollback, forward again, the old keys destroyed.

    Money conserved, every record settled, and at each moment the counts are what the chips hold.
    """
    rotation = Rotation(tmp_path, seed, people)
    try:
        proof = rotation.run(acts)
    finally:
        rotation.company.close()
    assert proof.faults == (), "\n".join(rotation.log)
    assert proof.records > people
    assert rotation.met["torn"], "no renewal was torn"
