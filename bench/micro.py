"""`python -m bench.micro`: what single steps of the core cost, in nanoseconds.

Each case builds its data, then repeats one operation in bursts and reports the median burst,
divided by the operations in it. Time is CPU time of this thread: other programs cost it nothing
but cache. The loop itself is interpreted and has some 50 ns in every figure. Pairs of cases say
more than single ones: a match against a million subscriptions visits as many nodes as one against
a thousand, and is dearer only by the memory that no cache holds.

The source tree runs pure; `--compiled` measures an install of it instead (built under `build/`).
A whole run takes well under a minute on either.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

from bench import build
from mqttd.core import trie as trie_module
from mqttd.core.decode import decode_publish
from mqttd.core.encode import encode_publish
from mqttd.core.framer import Framer
from mqttd.core.message import Message
from mqttd.core.packets import Publish
from mqttd.core.retained import Retained
from mqttd.core.spec import MQTT5, MQTT311
from mqttd.core.trie import Subscriber, Subscription, Trie

BURSTS = 7
BURST_NS = 20_000_000
SLICE = 1000


@dataclass
class Figure:
    case: str
    value: float
    unit: str
    note: str = ""


def per_call(operation: Callable[[], object]) -> float:
    """Nanoseconds a call: the median of bursts long enough for the clock."""
    calls = 1
    while burst(operation, calls) < BURST_NS // 4:
        calls *= 2
    return median(burst(operation, calls * 4) / (calls * 4) for _ in range(BURSTS))


def burst(operation: Callable[[], object], calls: int) -> int:
    start = time.thread_time_ns()
    for _ in range(calls):
        operation()
    return time.thread_time_ns() - start


def subscribe(trie: Trie, subscriber: Subscriber, topic_filter: str) -> None:
    trie.insert(Subscription(subscriber, topic_filter, 1), "", topic_filter)


def fleet(devices: int) -> Trie:
    """One filter a device, every other one with a wildcard, and two that take all devices."""
    trie = Trie()
    for number in range(devices - 2):
        ending = "#" if number % 2 else "set"
        subscribe(trie, Subscriber(str(number)), f"site/{number}/cmd/{ending}")
    subscribe(trie, Subscriber("dashboard"), "site/+/cmd/set")
    subscribe(trie, Subscriber("audit"), "#")
    return trie


def lookup() -> list[Figure]:
    trie = fleet(2000)
    known = b"site/7/cmd/set"
    unknown = b"site/7/" + b"x" * trie_module.MEMO_KEY_BYTES
    return [
        Figure("lookup, remembered", per_call(lambda: trie.lookup(known)), "ns"),
        Figure("lookup, not remembered", per_call(lambda: trie.lookup(unknown)), "ns", "519 bytes"),
        Figure("walk", per_call(lambda: trie.match("site/7/cmd/set")), "ns", "3 matches"),
    ]


def match() -> list[Figure]:
    return [match_among(devices) for devices in (1000, 100_000, 1_000_000)]


def match_among(devices: int) -> Figure:
    before = resident()
    trie = fleet(devices)
    size = (resident() - before) / devices
    topics = [f"site/{number}/cmd/set" for number in range(1, devices - 2, devices // 500)]
    assert all(len(trie.match(topic).targets) == 3 for topic in topics)
    cost = per_call(lambda: [trie.match(topic) for topic in topics]) / len(topics)
    note = f"{trie.visited} nodes visited"
    if devices > 1000:
        note += f"; {size:.0f} bytes a subscription"
    return Figure(f"match, {devices} subscriptions", cost, "ns", note)


def churn() -> list[Figure]:
    trie = fleet(100_000)
    device = Subscriber("device")

    def once() -> None:
        subscribe(trie, device, "site/new/cmd/#")
        trie.remove(device, "", "site/new/cmd/#")

    return [Figure("subscribe + unsubscribe", per_call(once), "ns", "among 100000")]


def overlap() -> list[Figure]:
    trie = Trie()
    readers = [Subscriber(str(number)) for number in range(10_000)]
    for reader in readers:
        subscribe(trie, reader, "a/#")
    shared = per_call(lambda: trie.match("a/b")) / len(readers)
    for reader in readers:
        subscribe(trie, reader, "a/+")
    merged = per_call(lambda: trie.match("a/b")) / len(readers)
    return [
        Figure("match, a reader of 10000", shared, "ns"),
        Figure("match, a reader of 10000, overlapping", merged, "ns", "2 filters each"),
    ]


def retained() -> list[Figure]:
    million = range(1_000_000)
    return [
        *replay("1000 by 1000", [f"t{number // 1000}/{number % 1000}" for number in million]),
        *replay("all in one level", [f"t/{number}" for number in million]),
    ]


def replay(shape: str, topics: list[str]) -> list[Figure]:
    """A cursor over everything; the longest slice is what the other clients have to wait for."""
    tree = Retained()
    before = resident()
    for topic in topics:
        tree.set(topic, Message(topic, b"", b"x", 0, True, b"", 0.0, ""))
    size = (resident() - before) / tree.count
    cursor = tree.cursor("#")
    slices = []
    found = 0
    while not cursor.done:
        start = time.thread_time_ns()
        found += len(cursor.take(SLICE))
        slices.append(time.thread_time_ns() - start)
    assert found == tree.count
    return [
        Figure(f"cursor, {shape}, a topic", sum(slices) / found, "ns", f"{size:.0f} bytes each"),
        Figure(f"cursor, {shape}, slice", median(slices) / 1000, "µs", f"{SLICE} nodes"),
        Figure(f"cursor, {shape}, longest slice", max(slices) / 1000, "µs"),
    ]


def publish() -> list[Figure]:
    figures = []
    properties = b"\x01\x01\x26\x00\x04unit\x00\x01C"
    for name, version, block in (
        ("v3.1.1", MQTT311, b""),
        ("v5", MQTT5, b""),
        ("v5, 2 properties", MQTT5, properties),
    ):
        packet = Publish("site/7/oven/temperature", b"21.5" * 16, 1, packet_id=7, properties=block)
        frame = encode_publish(packet, version)
        figures += [
            Figure(f"decode PUBLISH {name}", decoding(frame, version), "ns", f"{len(frame)} bytes"),
            Figure(f"encode PUBLISH {name}", encoding(packet, version), "ns"),
        ]
    return figures


def decoding(frame: bytes, version: int) -> float:
    framer = Framer(1 << 20)
    framer.feed(frame)
    assert framer.next()
    pos, end, flags = framer.pos, framer.end, framer.first & 15
    return per_call(lambda: decode_publish(frame, pos, end, flags, version))


def encoding(packet: Publish, version: int) -> float:
    return per_call(lambda: encode_publish(packet, version))


def frames() -> list[Figure]:
    frame = encode_publish(Publish("site/7/oven/temperature", b"21.5" * 16), MQTT311)
    chunk = frame * 100
    framer = Framer(1 << 20)

    def split() -> None:
        framer.feed(chunk)
        while framer.next():
            pass

    return [Figure("framer, a packet of 100", per_call(split) / 100, "ns")]


CASES: dict[str, Callable[[], list[Figure]]] = {
    "lookup": lookup,
    "match": match,
    "churn": churn,
    "overlap": overlap,
    "retained": retained,
    "publish": publish,
    "frames": frames,
}


def resident() -> int:
    """Bytes in memory, where the system tells (0 elsewhere)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def is_compiled() -> bool:
    return not str(trie_module.__file__).endswith(".py")


def run_compiled(arguments: list[str]) -> None:
    """Start again with an install of this tree in front of the source."""
    try:
        target = build.mqttd(lambda text: print(text, file=sys.stderr))
    except build.BuildError as error:
        raise SystemExit(str(error)) from None
    # -P keeps the current directory, and with it the pure source, out of the way.
    command = [sys.executable, "-P", "-m", "bench.micro", *arguments]
    path = os.pathsep.join((str(target), str(build.ROOT)))
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def table(figures: list[Figure]) -> str:
    width = max(len(figure.case) for figure in figures)
    return "\n".join(
        f"{figure.case:<{width}}  {figure.value:>10.1f} {figure.unit}  {figure.note}".rstrip()
        for figure in figures
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.micro", description="Time the steps of the core.")
    parser.add_argument(
        "--only", action="append", choices=CASES, metavar="NAME", help=", ".join(CASES)
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--compiled", action="store_true", help="measure a compiled install")
    options = parser.parse_args(arguments)
    if options.compiled and not is_compiled():
        rest = [argument for argument in arguments if argument != "--compiled"]
        run_compiled(rest)
    # The collector would show up as noise, and its cost while building as minutes.
    gc.disable()
    figures = []
    for name in options.only or CASES:
        figures += CASES[name]()
        gc.collect()
    kind = "compiled" if is_compiled() else "pure"
    if options.json:
        print(
            json.dumps(
                {
                    "build": kind,
                    "python": platform.python_version(),
                    "figures": [asdict(figure) for figure in figures],
                },
                indent=1,
            )
        )
    else:
        print(f"core: {kind}, Python {platform.python_version()}\n\n{table(figures)}")


if __name__ == "__main__":
    main(sys.argv[1:])
