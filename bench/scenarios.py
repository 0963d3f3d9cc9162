"""What one generator process does: read a specification, drive one broker, print one line of JSON.

Five scenarios over `bench.loadgen`: `throughput` (the table), `connections` (rate and memory),
`retained` (one client takes everything while a canary is timed), `subscriptions` (does matching
cost more with a million filters?) and `probe` (is it up, does it speak this version?).

A specification is a flat dictionary; its keys are the ones of `bench.cases.Case` plus where the
broker is. A scenario that can't finish raises `BenchError`; the line then holds `error` alone.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from mypy_extensions import i64

from bench.loadgen import (
    CONNECTED,
    SUBSCRIBED,
    BenchError,
    Conn,
    Engine,
    Flow,
    Plan,
    Publisher,
    Span,
    percentiles,
)

Spec = dict[str, Any]
Figures = dict[str, float]


def engine_for(spec: Spec, plan: Plan) -> Engine:
    engine = Engine(spec["port"], spec["host"], spec["pid"], plan)
    engine.broker.counter = spec.get("counter", "")
    return engine


def wire_up(engine: Engine, mode: str, publishers: int, subscribers: int) -> None:
    """Connect both sides, subscribe, and tell each subscriber what it must receive."""
    pubs = engine.open_many("p", publishers)
    subs = engine.open_many("s", subscribers)
    if mode == "fanout":
        topics = ["bench/all/data"] * publishers
    else:
        topics = [f"bench/dev{i:05d}/data" for i in range(publishers)]
    for i in range(publishers):
        engine.add_publisher(pubs[i], [topics[i]])
    for i, conn in enumerate(subs):
        if mode == "pairs":
            topic_filter = topics[i]
            conn.first_publisher = i
            conn.flows = [Flow(engine.publishers[i])]
        else:
            topic_filter = "bench/+/data" if mode == "fanin" else topics[0]
            conn.flows = [Flow(publisher) for publisher in engine.publishers]
        engine.subscribe(conn, [topic_filter], engine.plan.qos)
    engine.wait(subs, SUBSCRIBED)


def throughput(spec: Spec) -> Figures:
    plan = Plan(spec["version"], spec["qos"], spec["window"], spec["size"])
    plan.user = spec.get("user", "")
    plan.spin = spec["spin"]
    if spec["user_properties"]:
        plan.set_user_properties(spec["user_properties"])
    if spec["mode"] == "fanout":
        plan.copies = spec["subscribers"]
    engine = engine_for(spec, plan)
    wire_up(engine, spec["mode"], spec["publishers"], spec["subscribers"])
    figures = engine.measure(spec["seconds"], spec["seconds"] * 0.2)
    engine.close()
    return figures


def connections(spec: Spec) -> Figures:
    """Connect `count` clients as fast as the broker accepts them, then let them idle."""
    plan = Plan(spec["version"], 0, 1, 64)
    engine = engine_for(spec, plan)
    # The first hundred pay for arenas and caches that later ones share.
    engine.open_many("warm", 100)
    time.sleep(0.5)
    rss = engine.broker.rss()
    span = Span(engine.broker, engine.me)
    engine.open_many("idle", spec["count"])
    figures = span.figures()
    time.sleep(1.5)
    grown = engine.broker.rss() - rss
    idle_cpu = engine.broker.cpu_ns()
    time.sleep(1.0)
    idle_cpu = engine.broker.cpu_ns() - idle_cpu
    count = spec["count"]
    engine.close()
    figures["connects_s"] = count / span.elapsed * 1e9
    figures["connect_us"] = span.elapsed / count / 1e3
    figures["connect_cpu_us"] = span.broker_cpu / count / 1e3
    figures["rss_per_conn"] = grown / count
    figures["idle_busy"] = idle_cpu / 1e9
    return figures


def fill(engine: Engine, publishers: list[Publisher], timeout: float) -> float:
    """Let the publishers send up to their limits and be acknowledged; seconds it took."""
    begin = time.monotonic()
    engine.pumping = True
    engine.pump()
    for publisher in publishers:
        while publisher.acked < publisher.limit:
            engine.poll(0.05)
            if time.monotonic() - begin > timeout:
                stored = sum([p.acked for p in publishers])
                raise BenchError(f"only {stored} messages taken in {timeout:.0f} s")
    engine.pumping = False
    return time.monotonic() - begin


class Canary:
    """A pair that sends one message every `gap` and times it from the instant it was due."""

    def __init__(self, spec: Spec, gap_ms: float) -> None:
        plan = Plan(4, 0, 2000, 64)
        plan.every = 1
        self.engine = engine_for(spec, plan)
        wire_up(self.engine, "pairs", 1, 1)
        self.publisher = self.engine.publishers[0]
        self.gap = int(gap_ms * 1e6)
        self.due = time.monotonic_ns()

    def restart(self) -> None:
        self.engine.latencies.clear()
        self.due = time.monotonic_ns()

    def step(self) -> None:
        self.engine.poll(0)
        now = time.monotonic_ns()
        while self.due <= now and self.publisher.sent - self.publisher.done < 2000:
            # A late send counts from when it should have left: a stall hides nothing.
            self.engine.publish(self.publisher, 1, self.due)
            self.due += self.gap

    def figures(self, prefix: str) -> Figures:
        ordered = sorted(self.engine.latencies)
        return {prefix + name: value for name, value in percentiles(ordered).items()}


def retained(spec: Spec) -> Figures:
    """Retain `count` topics; time a canary while one client subscribes to `#`."""
    count = spec["count"]
    publishers = 10
    each = count // publishers
    plan = Plan(4, 1, 16, spec["size"])
    plan.retain = 1
    plan.copies = 0
    engine = engine_for(spec, plan)
    rss = engine.broker.rss()
    conns = engine.open_many("r", publishers)
    seconds = 0.0
    stored = 0
    while stored < each:
        # A position has 16 bits: rings of at most 50,000 topics, one after another.
        part = min(50000, each - stored)
        engine.publishers.clear()
        for i, conn in enumerate(conns):
            topics = [
                f"keep/{i}/{n // 1000:04d}/{n % 1000:03d}" for n in range(stored, stored + part)
            ]
            engine.add_publisher(conn, topics).limit = part
        seconds += fill(engine, engine.publishers, spec["timeout"])
        stored += part
    grown = engine.broker.rss() - rss
    canary = Canary(spec, 2.0)
    run_canary(canary, 1.0)
    canary.restart()
    run_canary(canary, 2.0)
    figures = canary.figures("calm_")
    reader = engine.open_many("reader", 1)[0]
    canary.restart()
    begin = time.monotonic_ns()
    span = Span(engine.broker, engine.me)
    engine.subscribe(reader, ["#"], 0)
    # Done when all is there, or when nothing came for two seconds (a broker that cuts it short).
    seen: i64 = 0
    last = begin
    while reader.retained < each * publishers:
        engine.poll(0.0005)
        canary.step()
        now = time.monotonic_ns()
        if reader.retained != seen:
            seen = reader.retained
            last = now
        elif now - last > 2_000_000_000:
            break
    figures.update(span.figures())
    run_canary(canary, 0.2)
    figures.update(canary.figures("replay_"))
    canary.engine.settle()
    figures.update(canary.engine.verdict())
    figures.update(
        {
            "retained": float(each * publishers),
            "replayed": float(reader.retained),
            "store_s": each * publishers / seconds,
            "replay_seconds": (last - begin) / 1e9,
            "replay_cpu_us": span.broker_cpu / reader.retained / 1e3 if reader.retained else 0.0,
            "rss_per_retained": grown / (each * publishers),
        }
    )
    canary.engine.close()
    engine.close()
    return figures


def run_canary(canary: Canary, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        canary.step()
        time.sleep(0.0001)


def cold_filter(client: int, n: int) -> str:
    """Filters that share levels with the measured topics, wildcards among them, and match none."""
    kind = n % 10
    if kind == 0:
        return f"match/+/s{client}/{n}"
    if kind == 1:
        return f"match/dev{client:05d}/x{n}/#"
    if kind == 2:
        return f"+/dev{client:05d}/+/c{n}"
    return f"match/dev{n % 16:05d}/{client}x{n}/data"


def add_filters(engine: Engine, conns: list[Conn], start: int, stop: int, timeout: float) -> None:
    """Each client subscribes to its filters [start, stop), a hundred a packet."""
    deadline = time.monotonic() + timeout
    for first in range(start, stop, 100):
        for client, conn in enumerate(conns):
            filters = [cold_filter(client, n) for n in range(first, min(stop, first + 100))]
            engine.subscribe(conn, filters, 0)
        engine.wait(conns, SUBSCRIBED, timeout)
        if time.monotonic() > deadline:
            raise BenchError(f"only {first * len(conns)} filters taken in {timeout:.0f} s")


def subscriptions(spec: Spec) -> Figures:
    """The cost of a message with 1,000 and with `count` filters that don't match it.

    Twice: `hot` publishes on 10 topics (what a memo of results is for), `cold` on 40,960 topics in
    turn, so that matches have to be computed.
    """
    clients = 100
    each = spec["count"] // clients
    few = 1000 // clients
    figures: Figures = {}
    rss = 0
    seconds = 0.0
    holder = engine_for(spec, Plan(4, 0, 1, 64))
    conns = holder.open_many("holder", clients)
    for label, start, stop in (("few", 0, few), ("many", few, max(few, each))):
        begin = time.monotonic()
        rss = holder.broker.rss()
        add_filters(holder, conns, start, stop, spec["timeout"])
        seconds = time.monotonic() - begin
        rss = holder.broker.rss() - rss
        for kind, topics in (("hot", 1), ("cold", 4096)):
            result = match_cost(spec, topics)
            figures[f"{label}_{kind}_cpu_us"] = result["cpu_us"]
            for name in ("gaps", "dups", "lost", "foreign", "corrupt"):
                figures[name] = figures.get(name, 0.0) + result[name]
    figures["refused"] = float(sum([conn.refused for conn in conns]))
    added = (max(few, each) - few) * clients
    figures["subscriptions"] = float(max(few, each) * clients)
    figures["subscribe_s"] = added / seconds if added else 0.0
    figures["rss_per_subscription"] = rss / added if added else 0.0
    holder.close()
    return figures


def match_cost(spec: Spec, topics: int) -> Figures:
    plan = Plan(4, 0, 10, spec["size"])
    plan.spin = spec["spin"]
    engine = engine_for(spec, plan)
    pubs = engine.open_many("p", 10)
    subs = engine.open_many("s", 10)
    for i, conn in enumerate(pubs):
        engine.add_publisher(conn, [f"match/dev{i:05d}/{n:05d}/data" for n in range(topics)])
        subs[i].first_publisher = i
        subs[i].flows = [Flow(engine.publishers[i])]
        engine.subscribe(subs[i], [f"match/dev{i:05d}/+/data"], 0)
    engine.wait(subs, SUBSCRIBED)
    figures = engine.measure(spec["seconds"], spec["seconds"] * 0.2)
    engine.close()
    return figures


def probe(spec: Spec) -> Figures:
    plan = Plan(spec["version"], 0, 1, 64)
    plan.user = spec.get("user", "")
    engine = engine_for(spec, plan)
    engine.wait([engine.open("probe")], CONNECTED, 2.0)
    engine.close()
    return {}


def run(spec: Spec) -> Figures:
    scenario = spec["scenario"]
    if scenario == "throughput":
        return throughput(spec)
    if scenario == "connections":
        return connections(spec)
    if scenario == "retained":
        return retained(spec)
    if scenario == "subscriptions":
        return subscriptions(spec)
    if scenario == "probe":
        return probe(spec)
    raise BenchError(f"no scenario is called {scenario!r}")


def main() -> None:
    serve(run)


def serve(answer: Callable[[Spec], Figures]) -> None:
    # Thousands of connections, no cycles: a collection would only stall the clock.
    gc.disable()
    spec = json.loads(sys.argv[1])
    result: dict[str, Any] = {}
    try:
        result.update(answer(spec))
    except (BenchError, OSError) as error:
        result["error"] = str(error)
    print(json.dumps(result))
