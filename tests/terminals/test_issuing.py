"""Issuing terminals: the office's flows over real HTTP, on simulated cards in the terminal's readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backoffice.desk import World, serial_of
from tests.terminals.issuing_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An office with its issuing terminal; nothing is served yet."""
    world = World(tmp_path)
    made = Site(world, tmp_path)
    yield made
    made.close()
    world.close()


def test_issue(site: Site) -> None:
    """A blank card becomes the member's, proven by the office, with a label line; its keys never left."""
    member, card = site.world.member(1), site.world.blank()
    with site.served():
        post = site.post()
        assert post.order(["issue", member])
        outcome = post.serve(card)
    serial = serial_of(card)
    assert (outcome["event"], outcome["member"], outcome["card"]) == ("issue", member, serial.hex().upper())
    assert site.world.state(serial) == ("active", "in use")
    label = f"{member}\t成员 1\t{serial.hex().upper()}"
    assert label in site.said
    assert (site.folder / "labels.txt").read_text() == label + "\n"
    site.world.agrees()
