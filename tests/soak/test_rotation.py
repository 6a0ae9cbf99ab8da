"""An enterprise of 200 cards changes its keys while it works; ``script/soak --rotation`` does it by the hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.rotation import Rotation


@pytest.mark.parametrize(("seed", "people", "acts"), [(1, 200, 50)])
def test_a_rotation_while_payments_go_on(tmp_path: Path, seed: int, people: int, acts: int) -> None:
    """Torn cards and SAMs, a rollback, the old keys destroyed: money conserved, all settled, counts as on the chips."""
    rotation = Rotation(tmp_path, seed, people)
    try:
        proof = rotation.run(acts)
    finally:
        rotation.company.close()
    assert proof.faults == (), "\n".join(rotation.log)
    assert proof.records > people
    assert rotation.met["torn"], "no renewal was torn"
