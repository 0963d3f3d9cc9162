"""What the books of device_sim cost: floods with the ledger and without, in turn.

    python -m bench.ledger -p PORT [--qos 0] [--runs 7] [--seconds 3] [--devices 50] [--size 64]

Both kinds of run drive the same closed loop against a broker that is already there; without the
ledger an arrival frees its place in the window and nothing else is looked at. Two figures of each
run, and the medians: messages received a second of this process's own CPU time, and
messages received a second. The first is what a process could do that has a core to itself, and says
little about who else uses the machine; the second is what happened. Runs alternate, so that a
machine that gets busier doesn't favour one kind; on a busy one the best runs, which were disturbed
least, tell more than the medians.
"""

import argparse
import asyncio
import statistics
import sys

from device_sim.engine.course import Sample
from device_sim.engine.flood import Flood
from device_sim.engine.plan import Settings


def ignore(sample: Sample) -> None:
    """No progress is shown."""


async def rates(settings: Settings, verify: bool) -> tuple[float, float]:
    """Messages received by CPU second and by second of one run."""
    flood = Flood(settings, ignore)
    flood.ledger.verify = verify
    await flood.run()
    if flood.broken_off:
        raise SystemExit(f"broken off: {flood.broken_off}")
    return flood.received_in_time / flood.cpu_s, flood.received_in_time / flood.publish_s


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
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
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
                found[verify].append(runner.run(rates(settings, verify)))
    for column, name in ((0, "a CPU second"), (1, "a second")):
        medians: dict[bool, float] = {}
        best: dict[bool, float] = {}
        for verify, kind in ((True, "with the books"), (False, "without")):
            values = [each[column] for each in found[verify]]
            medians[verify] = statistics.median(values)
            best[verify] = max(values)
            listed = " ".join(f"{value:,.0f}" for value in values)
            print(f"received {name}, {kind}: median {medians[verify]:,.0f}   ({listed})")
        print(
            f"received {name}: the books took {1 - medians[True] / medians[False]:.1%} by medians, "
            f"{1 - best[True] / best[False]:.1%} by the best runs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
