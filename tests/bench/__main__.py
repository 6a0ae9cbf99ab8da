"""``script/bench [NAME...]``: print figures, each measured here in this run. ``--json`` for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from tests.bench import adms, air, cards, keys, link, osdp, ota, program, readers, stations, terminals
from tests.bench.figures import Figure

BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "commands": cards.commands,
    "purchases": cards.purchases,
    "own-time": cards.own_time,
    "taps": terminals.own_time,
    "worn-till": terminals.worn,
    "pcsc": readers.echo_ratio,
    "keys": keys.derivation,
    "issue": stations.batch_issue,
    "osdp": osdp.figures,
    "start": program.start,
    "link": link.link,
    "adms": adms.figures,
    "air": air.recharges,
    "ota": ota.packets,
}


def main() -> int:
    """Run all benches, or those named."""
    names = [name for name in sys.argv[1:] if not name.startswith("-")] or list(BENCHES)
    unknown = set(names) - set(BENCHES)
    if unknown:
        sys.stderr.write(f"no bench {sorted(unknown)}: there are {list(BENCHES)}\n")
        return 2
    missed = 0
    for name in names:
        for figure in BENCHES[name]():
            missed += not figure.reached
            sys.stdout.write((json.dumps(figure._asdict()) if "--json" in sys.argv else figure.line()) + "\n")
            sys.stdout.flush()
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
