"""The long form: as many kills as wanted, thirty to a run. Exit 1 if a promise was broken."""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from tests.crash.run import Run

KILLS_A_RUN = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=["full", "os", "none"], default="full")
    args = parser.parse_args()
    broken = 0
    seed = args.seed
    for begun in range(0, args.kills, KILLS_A_RUN):
        kills = min(KILLS_A_RUN, args.kills - begun)
        with tempfile.TemporaryDirectory(prefix="mqttd-crash-") as directory:
            verdict = asyncio.run(Run(Path(directory), seed, kills, args.durability).run())
        print(json.dumps({"seed": seed, **verdict}), flush=True)
        broken += bool(verdict["wrong"])
        seed += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
