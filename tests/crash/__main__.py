"""The long form: as many kills as wanted, thirty to a run; or each crash point again and again.

    python -m tests.crash --kills 300 --seed 1
    python -m tests.crash --points --repeat 20

Exit 1 if a promise was broken. A line that says so has the seed that plays the same run again
(as far as the machine does).
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.crash.points import POINTS, STARTING
from tests.crash.run import Run

KILLS_A_RUN = 30
POINTS_A_RUN = 5


def plan(args: argparse.Namespace) -> Iterator[tuple[int, list[str]]]:
    """For each run: kills at any instant, and points."""
    if not args.points:
        for begun in range(0, args.kills, KILLS_A_RUN):
            yield min(KILLS_A_RUN, args.kills - begun), []
        return
    for name in args.point or POINTS:
        each = 1 if name in STARTING and name.startswith("create") else POINTS_A_RUN
        for begun in range(0, args.repeat, each):
            yield 0, [name] * min(each, args.repeat - begun)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--points", action="store_true", help="kill at points, not at any instant")
    parser.add_argument(
        "--point", action="append", choices=POINTS, help="only this one; repeatable"
    )
    parser.add_argument("--repeat", type=int, default=1, help="kills at each point")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=["full", "os", "none"], default="full")
    args = parser.parse_args()
    broken = 0
    sums: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for seed, (kills, at) in enumerate(plan(args), args.seed):
        what = {"seed": seed, "kills": kills, "at": sorted(set(at))}
        with tempfile.TemporaryDirectory(prefix="mqttd-crash-") as directory:
            try:
                run = Run(Path(directory), seed, kills, args.durability, at)
                verdict = asyncio.run(run.run())
            except BaseException:
                print(json.dumps(what), flush=True)
                raise
        print(json.dumps({**what, **verdict}), flush=True)
        broken += bool(verdict["wrong"])
        sums.update({key: value for key, value in verdict.items() if isinstance(value, int)})
        hits.update(run.hits)
    print(json.dumps({"broken_runs": broken, **sums, "points": dict(hits)}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
