"""`make soak`: python -m tests.soak, or SEED=… ROUNDS=… make soak.

The exit status is 0 when nothing was found, 1 when something was, 3 when this machine cannot run it.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from tests.soak.faults import WEIGHTS
from tests.soak.places import Unable, open_places
from tests.soak.rounds import Tally, Wish, inside_own_namespaces, soak


def wish_of(argv: list[str]) -> tuple[Wish, Path | None]:
    """What is asked for, and the file for the figures."""
    parser = argparse.ArgumentParser(prog="soak", description="Break a farm for a while, and look what it lost.")
    variables = {name: os.environ.get(name) or None for name in ("SEED", "ROUNDS", "SECONDS")}
    parser.add_argument("--seed", type=int, default=variables["SEED"], help="first farm's seed (or SEED=)")
    parser.add_argument("--rounds", type=int, default=variables["ROUNDS"], help="how many rounds (or ROUNDS=)")
    parser.add_argument("--seconds", type=float, default=variables["SECONDS"] or 600, help="how long, without --rounds")
    parser.add_argument("--plant", default="", help="a fault of biruda's own to plant: see plants/")
    parser.add_argument("--quick", action="store_true", help="neither containers nor virtual machines")
    parser.add_argument("--goes-on", action="store_true", help="with the next farm, when something was found")
    parser.add_argument("--only", action="append", default=[], choices=sorted(WEIGHTS), help="a fault to do")
    parser.add_argument("--most-faults", type=int, default=4, help="in a round")
    parser.add_argument("--settle-s", type=float, default=20.0, help="how long what an attempt leaves may take to go")
    parser.add_argument("--keep", type=Path, help="a directory for what is left of farms with findings")
    parser.add_argument("--keep-all", action="store_true", help="and of those without")
    parser.add_argument("--figures", type=Path, help="a file for the figures")
    given = parser.parse_args(argv)
    wish = Wish(
        seed=given.seed if given.seed is not None else random.SystemRandom().randrange(10**6),
        rounds=given.rounds,
        seconds=given.seconds,
        plant=given.plant,
        all_kinds=not given.quick,
        goes_on=given.goes_on,
        only=tuple(given.only),
        most_faults=given.most_faults,
        settle_s=given.settle_s,
        keep=given.keep,
        keep_all=given.keep_all,
    )
    return wish, given.figures


def main(argv: list[str]) -> int:
    """Run it, in namespaces of its own."""
    wish, figures = wish_of(argv)
    if "BIRUDA_SOAK_INSIDE" not in os.environ:
        return inside_own_namespaces([f"--seed={wish.seed}", *argv])
    tally = Tally()
    for number in (signal.SIGINT, signal.SIGTERM):  # however it was started: it cleans up after itself
        signal.signal(number, signal.default_int_handler)
    try:
        with open_places(all_kinds=wish.all_kinds) as places:
            for lack in places.missing:
                print(f"without {lack}", flush=True)
            asyncio.run(soak(places, wish, tally))
    except Unable as error:
        print(f"soak: {error}", file=sys.stderr)
        return 3
    finally:
        if figures is not None:
            figures.write_text(tally.shown())
    print(tally.shown())
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
