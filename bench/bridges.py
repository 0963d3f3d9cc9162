"""`python -m bench.bridges --bridge kafka`: how many messages a second a bridge takes out.

A broker process with everything durable, the other system on the same machine, publishers that
send messages of 64 bytes at QoS 1 to sixteen topics, as many on their way as the broker allows.
Before the clock starts both ends are connected, and a warm-up went the whole way. Measured from the
first PUBLISH until the other system has confirmed the last message, as the bridge counts it. Then
everything is read there, and a run in which a message is missing is none.

At full speed more is published than leaves, so most of it is read back from the disk. `--rate`
publishes that many a second: does the bridge keep up? `--window` is how many messages the bridge
may have on their way, hence how long it may wait for a confirmation without standing still.

`--waiting` publishes everything while the other system is down: `rss_mib` is the broker's memory
before, after each tenth, and after all has left. The clock runs from the moment when the other
system is back: what a bridge does that has to catch up.

CPU time a message is that of the broker and of the other system's processes, between the same two
instants. It tells more than messages a second do where others use the machine. `fsyncs` of the
machine's disk are in neither. Each repetition (`--count`) has a new broker and a new server; the
table shows medians.

The source tree runs pure; put a build in front with PYTHONPATH to measure that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from mqttd.operate.client import Control
from mqttd.operate.show import table
from tests.bridges.__main__ import FACES, ready

ready()
from tests.bridges.trial import KEYS, Far, Node, connected  # noqa: E402

SIZE = 64
PUBLISHERS = 4
WINDOW = 800  # of a publisher, below the Receive Maximum of the broker
PACE_S = 0.005  # between two looks at a rate
PATIENCE_S = 1800.0
TICKS = os.sysconf("SC_CLK_TCK")
Run = dict[str, Any]


# The publishers.


def payload(number: int) -> bytes:
    return f"out k{number % KEYS} {number} ".ljust(SIZE, ".").encode()


def frame(number: int) -> bytes:
    """The PUBLISH of a message, in MQTT 5, at QoS 1."""
    topic = b"out/k%d" % (number % KEYS)
    packet_id = number % 65535 + 1
    body = struct.pack(">H", len(topic)) + topic + struct.pack(">HB", packet_id, 0)
    body += payload(number)
    return b"\x32" + bytes([len(body)]) + body


def acknowledged(data: bytearray) -> int:
    """Take the PUBACKs that are whole off the front; how many they were."""
    at = count = 0
    while at + 2 <= len(data) and at + 2 + data[at + 1] <= len(data):
        length = data[at + 1]
        if data[at] != 0x40 or (length > 2 and data[at + 4] >= 0x80):
            raise RuntimeError(f"not acknowledged: {bytes(data[at : at + 2 + length]).hex()}")
        at += 2 + length
        count += 1
    del data[:at]
    return count


async def publish_part(node: Node, name: str, numbers: list[int], rate: float) -> None:
    """One connection publishes its part, and waits for the last acknowledgement.

    `rate`: messages a second at most; 0: as fast as they are acknowledged.
    """
    wire = await connected(node, name)
    began = time.monotonic()
    try:
        data = bytearray()
        sent = done = 0
        while done < len(numbers):
            end = done + WINDOW
            if rate:
                end = min(end, int((time.monotonic() - began) * rate))
            elif sent - done > WINDOW // 2:
                end = sent  # a few large writes rather than many small ones
            part = numbers[sent:end]
            if part:
                wire.writer.write(b"".join(map(frame, part)))
                sent += len(part)
            if sent == done:
                await asyncio.sleep(PACE_S)
                continue
            more = await wire.reader.read(1 << 16)
            if not more:
                raise RuntimeError("the broker closed the connection of a publisher")
            data += more
            done += acknowledged(data)
    finally:
        await wire.close()


async def publish(node: Node, first: int, end: int, rate: float = 0.0) -> None:
    """Publish messages `first` to `end`; all of a topic are published by one connection."""
    parts: list[list[int]] = [[] for _ in range(PUBLISHERS)]
    for number in range(first, end):
        parts[number % PUBLISHERS].append(number)
    each = rate / PUBLISHERS
    await asyncio.gather(
        *(publish_part(node, f"bench-{number}", part, each) for number, part in enumerate(parts))
    )


# What is looked at.


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def processes() -> dict[int, tuple[int, float]]:
    """All processes: parent, and CPU seconds used."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:13])) / TICKS
    return found


def cpu_s(broker: int) -> tuple[float, float]:
    """CPU seconds of the broker, and of all else that this process has started."""
    there = processes()
    family = {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in there.items() if parent in family} - family
        grown = bool(more)
        family |= more
    family -= {os.getpid(), broker}
    return there[broker][1], sum(there[pid][1] for pid in family)


class Watch:
    """The bridge, asked at the broker's control socket."""

    def __init__(self, node: Node) -> None:
        self._control = Control(node.database.with_suffix(".ctl"))
        self.pid = node.process_id

    def status(self) -> dict[str, Any]:
        _, end = self._control.ask(
            {"do": "plugin", "name": "up", "action": "status", "arguments": {}}
        )
        found: dict[str, Any] = end["answer"]
        return found

    async def up(self) -> None:
        while self.status()["state"] != "up":
            await asyncio.sleep(0.05)

    async def confirmed(self, messages: int) -> None:
        while (out := self.status()["out"])["confirmed"] < messages:
            if out["dead_lettered"] or out["dropped"]:
                raise RuntimeError(f"messages went astray: {out}")
            await asyncio.sleep(0.1)  # an answer costs the broker as much as several messages

    def close(self) -> None:
        self._control.close()


# One run.


async def read_all(far: Far, messages: int) -> None:
    """Read everything in the other system. TimeoutError if something isn't there."""
    missing = set(range(messages))
    everything = asyncio.Event()

    def got(text: str, _: str) -> None:
        missing.discard(int(text.split()[2]))
        if not missing:
            everything.set()

    reading = asyncio.ensure_future(far.receive(got))
    try:
        await everything.wait()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def be_known(far: Far) -> None:
    """Come and go as a reader: some systems keep messages only for readers that they know."""
    reading = asyncio.ensure_future(far.receive(lambda text, id: None))
    await asyncio.sleep(1.0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def online(run: Run, node: Node, watch: Watch, first: int, end: int, rate: float) -> None:
    """Publish and bridge at once."""
    cpu = cpu_s(watch.pid)
    began = time.monotonic()
    await publish(node, first, end, rate)
    run["published_per_s"] = round((end - first) / (time.monotonic() - began))
    await watch.confirmed(end)
    took(run, end - first, began, cpu, watch)


async def waiting(run: Run, far: Far, node: Node, watch: Watch, first: int, end: int) -> None:
    """Publish while the other system is down, then let it come back."""
    await far.kill()
    run["rss_mib"] = [rss_mib(watch.pid)]
    step = max(1, (end - first) // 10)
    began = time.monotonic()
    for at in range(first, end, step):
        await publish(node, at, min(at + step, end))
        run["rss_mib"].append(rss_mib(watch.pid))
    run["published_per_s"] = round((end - first) / (time.monotonic() - began))
    await far.start()
    cpu = cpu_s(watch.pid)
    began = time.monotonic()
    await watch.confirmed(end)
    took(run, end - first, began, cpu, watch)
    run["rss_mib"].append(rss_mib(watch.pid))


def took(run: Run, messages: int, began: float, cpu: tuple[float, float], watch: Watch) -> None:
    broker, others = cpu_s(watch.pid)
    run["per_s"] = round(messages / (time.monotonic() - began))
    run["broker_us"] = round((broker - cpu[0]) / messages * 1e6, 1)
    run["far_us"] = round((others - cpu[1]) / messages * 1e6, 1)


async def measure(
    far: Far, messages: int, warm_up: int, while_down: bool, rate: float, window: int
) -> Run:
    run: Run = {"bridge": far.NAME, "messages": messages, "waiting": while_down}
    await far.start()
    plugin = far.plugin()
    if window:
        plugin["config"]["window"] = window
    node = Node(far.directory / "broker", 0, plugin)
    await node.start()
    watch = Watch(node)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await watch.up()
            await be_known(far)
            await publish(node, 0, warm_up)
            await watch.confirmed(warm_up)
            end = warm_up + messages
            if while_down:
                await waiting(run, far, node, watch, warm_up, end)
            else:
                await online(run, node, watch, warm_up, end, rate)
            await read_all(far, end)
    finally:
        watch.close()
        await node.kill()
        await far.kill()
    return run


FIGURES = ("published_per_s", "per_s", "broker_us", "far_us")


def medians(runs: list[Run]) -> Run:
    """One line of the table."""
    return {name: median(run[name] for run in runs) for name in FIGURES}


def show(runs: list[Run]) -> None:
    rows = []
    for bridge in dict.fromkeys(run["bridge"] for run in runs):
        of_one = [run for run in runs if run["bridge"] == bridge]
        figures = medians(of_one)
        memory = [run["rss_mib"] for run in of_one if "rss_mib" in run]
        told = " ".join(f"{mib:.0f}" for mib in memory[-1]) if memory else "-"
        cells = [f"{figures[name]:,.0f}" for name in FIGURES]
        rows.append([bridge, f"{of_one[0]['messages']:,}", str(len(of_one)), *cells, told])
    titles = ["bridge", "messages", "runs", "published/s", "out/s", "broker µs", "far µs"]
    table([*titles, "broker MiB"], rows)


def main() -> int:
    os.environ["PYTHONSAFEPATH"] = "1"  # or the directory would come before the build
    parser = argparse.ArgumentParser(prog="python -m bench.bridges")
    parser.add_argument("--bridge", choices=sorted(FACES), required=True, action="append")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--warm-up", type=int, default=10_000, help="sent before the clock starts")
    parser.add_argument("--count", type=int, default=1, help="repetitions, of which the median")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="messages a second; 0: at full speed"
    )
    parser.add_argument(
        "--window", type=int, default=0, help="of the bridge; 0: what it has unless told"
    )
    parser.add_argument("--waiting", action="store_true", help="publish while the far end is down")
    parser.add_argument("--json", action="store_true", help="a line for each run, and no table")
    args = parser.parse_args()
    runs = []
    for _ in range(args.count):
        for name in args.bridge:
            with tempfile.TemporaryDirectory(prefix="mqttd-bench-") as place:
                far = FACES[name](Path(place))
                run = asyncio.run(
                    measure(far, args.messages, args.warm_up, args.waiting, args.rate, args.window)
                )
            runs.append(run)
            print(json.dumps(run), flush=True)
    if not args.json:
        show(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
