"""``script/soak [--seeds N] [--start S] [--rotation | --provisioning | --air]``: random days, rotations, cut lines.

The first that does not add up is told with its seed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import pytest

from cardlib.errors import OneCardError
from tests.backoffice.air import AirWorld, air_faults
from tests.backoffice.crash import Guillotine
from tests.soak.day import Day
from tests.soak.rotation import Rotation
from tests.terminals.provisioned import cut_at


def _provisioning() -> int:
    """Cut the line at each byte until one is too late to matter."""
    with tempfile.TemporaryDirectory() as folder:
        byte, was_cut = 0, True
        while was_cut:
            byte += 1
            was_cut, faults = cut_at(Path(folder) / f"{byte}", byte)
            if faults:
                sys.stdout.write(f"cut at byte {byte} FAILED: {'; '.join(faults)}\n")
                return 8
            shutil.rmtree(Path(folder) / f"{byte}")
    sys.stdout.write(f"{byte} cuts, each provisioned to its end\n")
    return 0


def _air(seeds: int, start: int) -> int:
    """Recharge a SIM over the air once a seed, whatever goes wrong; a new world each 100 seeds."""
    with pytest.MonkeyPatch.context() as patch:
        guillotine = Guillotine(patch)
        for first in range(start, start + seeds, 100):
            with tempfile.TemporaryDirectory() as folder:
                world = AirWorld(Path(folder))
                faults = air_faults(world, guillotine, range(first, min(first + 100, start + seeds)))
                world.close()
            if faults:
                sys.stdout.write(f"seeds from {first} FAILED: {faults}\n")
                return 8
    sys.stdout.write(f"{seeds} recharges over the air, each exactly once\n")
    return 0


def main() -> int:
    """Run days until one fails or the seeds are used up."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=1)
    parser.add_argument("--acts", type=int, default=60)
    parser.add_argument("--rotation", action="store_true", help="rotate the keys of 20 people instead of a day")
    parser.add_argument("--provisioning", action="store_true", help="cut a terminal's provisioning at every byte")
    parser.add_argument("--air", action="store_true", help="recharge a SIM over the air with everything going wrong")
    options = parser.parse_args()
    if options.air:
        return _air(options.seeds, options.start)
    if options.provisioning:
        return _provisioning()
    began = time.monotonic()
    for seed in range(options.start, options.start + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            day = Rotation(Path(folder), seed, 20) if options.rotation else Day(Path(folder), seed)
            faults: tuple[str, ...]
            try:
                faults = day.run(options.acts).faults
            except OneCardError as e:
                faults = (f"{type(e).__name__}: {e}",)
            finally:
                day.company.close()
        if faults:
            sys.stdout.write("\n".join([*day.log, f"seed {seed} FAILED: {'; '.join(faults)}", ""]))
            return 8
        sys.stdout.write(f"seed {seed} adds up ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
