"""The long form: as many cuts as wanted, 25 to a recording. Exit 1 if a promise was broken."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.power import shim
from tests.power.run import Campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.power")
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=["full", "os", "none"], default="full")
    parser.add_argument("--jobs", type=int, default=2, help="brokers that work at the same time")
    parser.add_argument("--json", action="store_true", help="nothing but the figures, as JSON")
    parser.add_argument("--keep", type=Path, help="where files of broken cuts are kept")
    args = parser.parse_args()
    if reason := shim.missing():
        print(f"tests.power: {reason}", file=sys.stderr)
        return 2

    def progress(line: str) -> None:
        if not args.json:
            print(line, file=sys.stderr, flush=True)

    async def run() -> dict[str, object]:
        campaign = Campaign(args.durability, progress, args.jobs, keep=args.keep)
        return await campaign.run(args.cuts, args.seed)

    figures = asyncio.run(run())
    print(json.dumps(figures, indent=None if args.json else 2))
    return 1 if figures["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
