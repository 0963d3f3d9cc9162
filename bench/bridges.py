"""`python -m bench.bridges --bridge kafka`: how many messages a second a bridge takes out.

A broker process with everything durable, the other system on the same machine, one client that
publishes messages of 64 bytes at QoS 1 to sixteen topics, as many on their way as the broker
allows. Measured from the first PUBLISH until the last message has arrived in the other system and
was read there. One run is one figure; the machine is shared by all four.

`--waiting` publishes everything while the other system is down, and measures from its start: what a
bridge does that has to catch up. `rss_mib` is the broker's memory with everything waiting.

The source tree runs pure; put a build in front with PYTHONPATH to measure that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mqttd.core.packets import Puback
from tests.bridges.__main__ import FACES, ready

ready()
from tests.bridges.trial import KEYS, Far, Node, connected  # noqa: E402

SIZE = 64
WINDOW = 500
PATIENCE_S = 600.0


def payload(number: int) -> bytes:
    return f"out k{number % KEYS} {number} ".ljust(SIZE, ".").encode()


async def publish(node: Any, messages: int) -> None:
    """Publish everything at QoS 1, and wait for the last acknowledgement."""
    wire = await connected(node, "bench")
    try:
        acknowledged = 0
        for number in range(messages):
            if number - acknowledged >= WINDOW:
                await wire.receive(Puback)
                acknowledged += 1
            wire.publish(f"out/k{number % KEYS}", payload(number), 1, number % 60000 + 1)
        while acknowledged < messages:
            await wire.receive(Puback)
            acknowledged += 1
    finally:
        await wire.close()


def rss_mib(node: Any) -> float:
    pid = node._process.pid
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


async def measure(far: Far, messages: int, waiting: bool) -> dict[str, Any]:
    await far.start()
    node = Node(far.directory / "broker", 0, far.plugin())
    await node.start()
    seen: set[str] = set()
    everything = asyncio.Event()

    def got(text: str, _: str) -> None:
        seen.add(text)
        if len(seen) >= messages:
            everything.set()

    reading = asyncio.ensure_future(far.receive(got))
    result: dict[str, Any] = {"bridge": far.NAME, "messages": messages, "waiting": waiting}
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.sleep(3.0)  # both ends are connected
            if waiting:
                await far.kill()
                await publish(node, messages)
                result["rss_mib"] = rss_mib(node)
                await far.start()
            began = time.monotonic()
            if not waiting:
                await publish(node, messages)
                result["published_per_s"] = round(messages / (time.monotonic() - began))
            await everything.wait()
            result["per_s"] = round(messages / (time.monotonic() - began))
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await node.kill()
        await far.kill()
    return result


def main() -> int:
    os.environ["PYTHONSAFEPATH"] = "1"  # or the directory would come before the build
    parser = argparse.ArgumentParser(prog="python -m bench.bridges")
    parser.add_argument("--bridge", choices=sorted(FACES), required=True)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--waiting", action="store_true", help="publish while the far end is down")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mqttd-bench-") as place:
        far = FACES[args.bridge](Path(place))
        print(json.dumps(asyncio.run(measure(far, args.messages, args.waiting))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
