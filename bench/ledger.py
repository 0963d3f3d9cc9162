"""What the books of device_sim cost: floods with the ledger and without, in turn.

    python -m bench.ledger -p PORT [--qos 0] [--runs 7] [--seconds 3] [--devices 50]

Both kinds of run drive the same closed loop against a broker that is already there; without the
ledger an arrival frees its place in the window and nothing else is looked at. The figures are the
received messages a second of each, their medians, and the share of throughput that the books took.
Runs alternate, so that a machine that gets busier doesn't favour one kind.
"""

import argparse
import asyncio
import statistics
import sys

from device_sim.flood import Flood, Sample
from device_sim.plan import Settings


def ignore(sample: Sample) -> None:
    """No progress is shown."""


async def rate(settings: Settings, verify: bool) -> float:
    """Received messages a second of one run."""
    flood = Flood(settings, ignore)
    flood.ledger.verify = verify
    await flood.run()
    if flood.broken_off:
        raise SystemExit(f"broken off: {flood.broken_off}")
    return flood.received_in_time / flood.publish_s


def main() -> int:
    """Run them and print the table."""
    parser = argparse.ArgumentParser(prog="bench.ledger")
    parser.add_argument("-p", "--port", type=int, required=True)
    parser.add_argument("--qos", type=int, choices=(0, 1, 2), default=0)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    rates: dict[bool, list[float]] = {True: [], False: []}
    try:
        import uvloop
    except ImportError:
        factory = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    for _ in range(options.runs):
        for verify in (True, False):
            settings = Settings(
                port=options.port,
                devices=options.devices,
                qos=(options.qos,),
                seconds=options.seconds,
                size=options.size,
                settle=0.5,
            )
            settings.check()
            with asyncio.Runner(loop_factory=factory) as runner:
                rates[verify].append(runner.run(rate(settings, verify)))
    for verify, name in ((True, "with the ledger"), (False, "without")):
        listed = " ".join(f"{each:,.0f}" for each in rates[verify])
        print(f"{name:>16}: median {statistics.median(rates[verify]):,.0f}/s   ({listed})")
    share = 1 - statistics.median(rates[True]) / statistics.median(rates[False])
    print(f"the books took {share:.1%} of throughput")
    return 0


if __name__ == "__main__":
    sys.exit(main())
