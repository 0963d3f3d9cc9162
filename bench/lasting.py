"""What the generator does for `bench.durable`: messages for sessions that outlive a connection.

Owns: four scenarios over `bench.loadgen`, all at QoS 1 and MQTT 3.1.1 with persistent sessions.
`offline`: subscribers that have left, publishers in a closed loop on acknowledgements. `online`:
the subscribers stay and acknowledge. `fill`: so many messages into the queues of absent sessions.
`drain`: those sessions come back, in another process after the broker's restart, and take them.

A specification is that of `bench.scenarios`, with `sessions` and `messages` where queues are
filled. One session alone is served by all publishers, each of whose messages is checked for its
place; with several, each publisher serves its share of them in turn, and they are counted.
"""

import time
from typing import Any

from mypy_extensions import i64

from bench.loadgen import ETERNITY, SUBSCRIBED, BenchError, Conn, Engine, Flow, Plan, Span
from bench.scenarios import Figures, Spec, engine_for, fill, probe, serve

TOGETHER = 250  # sessions that are connected at a time while queues are filled or drained


def plan_of(spec: Spec) -> Plan:
    plan = Plan(4, 1, spec["window"], spec["size"])
    plan.spin = spec["spin"]
    return plan


def topic(session: int) -> str:
    return f"keep/dev{session:05d}/data"


def make_sessions(engine: Engine, count: int, stay: bool) -> list[Conn]:
    """Persistent sessions, each subscribed to its topic; the ones that stay stay connected."""
    made: list[Conn] = []
    for first in range(0, count, TOGETHER):
        conns = engine.open_many("s", min(TOGETHER, count - first), clean=False, first=first)
        for number, conn in enumerate(conns):
            engine.subscribe(conn, [topic(first + number)], 1)
        engine.wait(conns, SUBSCRIBED)
        refused = sum([conn.refused for conn in conns])
        if refused:
            raise BenchError(f"{refused} subscriptions were refused")
        if stay:
            made += conns
        else:
            for conn in conns:
                engine.leave(conn)
    return made


def offline(spec: Spec) -> Figures:
    plan = plan_of(spec)
    plan.copies = 0
    engine = engine_for(spec, plan)
    engine.time_acks = True
    make_sessions(engine, spec["publishers"], False)
    for number, conn in enumerate(engine.open_many("p", spec["publishers"])):
        engine.add_publisher(conn, [topic(number)])
    return finish(engine, spec)


def online(spec: Spec) -> Figures:
    engine = engine_for(spec, plan_of(spec))
    engine.time_acks = True
    subs = make_sessions(engine, spec["publishers"], True)
    for number, conn in enumerate(engine.open_many("p", spec["publishers"])):
        publisher = engine.add_publisher(conn, [topic(number)])
        subs[number].first_publisher = number
        subs[number].flows = [Flow(publisher)]
    return finish(engine, spec)


def finish(engine: Engine, spec: Spec) -> Figures:
    figures = engine.measure(spec["seconds"], spec["seconds"] * 0.2, spec["timeout"])
    figures["acknowledged"] = float(sum([p.acked for p in engine.publishers]))
    figures["unanswered"] = float(sum([p.sent - p.acked for p in engine.publishers]))
    engine.close()
    return figures


def topics_of(publisher: int, spec: Spec) -> list[str]:
    count = spec["sessions"]
    if count == 1:
        return [topic(0)]
    return [topic(n) for n in range(publisher, count, spec["publishers"])]


def fill_queues(spec: Spec) -> Figures:
    plan = plan_of(spec)
    plan.copies = 0
    engine = engine_for(spec, plan)
    make_sessions(engine, spec["sessions"], False)
    for number, conn in enumerate(engine.open_many("p", spec["publishers"])):
        publisher = engine.add_publisher(conn, topics_of(number, spec))
        publisher.limit = spec["messages"] // spec["publishers"]
    span = Span(engine.broker, engine.me)
    seconds = fill(engine, engine.publishers, spec["timeout"])
    others = span.figures()["others_busy"]
    acknowledged = float(sum([p.acked for p in engine.publishers]))
    engine.close()
    return {
        "acknowledged": acknowledged,
        "fill_s": acknowledged / seconds,
        "fill_us": span.broker_cpu / acknowledged / 1e3,
        "fill_others": others,
    }


def drain_queues(spec: Spec) -> Figures:
    """Sessions come back, some at a time, until each has what waits for it, or nothing comes."""
    engine = engine_for(spec, plan_of(spec))
    sessions = spec["sessions"]
    each = spec["messages"] // sessions
    first = 0.0
    missing = 0
    extra = 0
    begin = time.monotonic()
    span = Span(engine.broker, engine.me)
    for number in range(0, sessions, TOGETHER):
        count = min(TOGETHER, sessions - number)
        conns: list[Conn] = []
        for n in range(count):
            conn = engine.open(f"s{number + n:05d}", False)
            if sessions == 1:
                expect(engine, conn, spec)
            conns.append(conn)
        last = time.monotonic()
        seen: i64 = 0
        while seen < each * count:
            engine.poll(0.05)
            now: i64 = engine.delivered + sum([conn.others for conn in conns])
            if now != seen:
                seen = now
                last = time.monotonic()
                if first == 0.0:
                    first = last - begin
            elif time.monotonic() - last > spec["patience"]:
                break
        got = [each if sessions == 1 else int(conn.others) for conn in conns]
        missing += sum([max(0, each - n) for n in got])
        extra += sum([max(0, n - each) for n in got])
        for conn in conns:
            if sessions > 1:
                engine.leave(conn)
    seconds = time.monotonic() - begin
    figures = span.figures()
    figures.update(engine.verdict())
    figures["lost"] += missing
    figures["dups"] += extra
    received = spec["messages"] - figures["lost"]
    figures["received"] = received
    figures["drain_s"] = received / seconds
    figures["drain_us"] = span.broker_cpu / received / 1e3 if received else 0.0
    figures["first_ms"] = first * 1e3
    time.sleep(0.2)  # for the acknowledgements that are on their way
    engine.close()
    return figures


def expect(engine: Engine, conn: Conn, spec: Spec) -> None:
    """What every publisher of `fill` sent has to come, each in its order."""
    for number in range(spec["publishers"]):
        publisher = engine.add_publisher(conn, topics_of(number, spec))
        publisher.sent = spec["messages"] // spec["publishers"]
        flow = Flow(publisher)
        flow.next_sample = ETERNITY
        conn.flows.append(flow)
    conn.publisher = None


def run(spec: dict[str, Any]) -> Figures:
    scenario = spec["scenario"]
    if scenario == "offline":
        return offline(spec)
    if scenario == "online":
        return online(spec)
    if scenario == "fill":
        return fill_queues(spec)
    if scenario == "drain":
        return drain_queues(spec)
    return probe(spec)


def main() -> None:
    serve(run)
