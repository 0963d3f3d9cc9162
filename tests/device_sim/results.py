"""Results to draw, store and compare: of a small run with trouble, and of one without."""

from device_sim.judge.histogram import Histogram
from device_sim.judge.verdict import Outcome, Verdict
from device_sim.results.result import (
    Connects,
    Distribution,
    Fault,
    Point,
    Result,
    Scenario,
    Stage,
    Throughput,
    environment,
)


def histogram(*values: int) -> Histogram:
    found = Histogram()
    for value in values:
        found.record(value)
    return found


def point(second: int, *latencies: int, sent: int = 100) -> Point:
    of_second = histogram(*latencies)
    return Point(
        phase="cruise",
        at_s=float(second),
        connected=4,
        sent=sent * second,
        received=sent * second - 1,
        sent_per_s=float(sent),
        received_per_s=sent - 1.0,
        outstanding=1,
        p50_us=of_second.percentile(50),
        p99_us=of_second.percentile(99),
        latency=Distribution.of(of_second),
    )


def verdict(**classes: int) -> Verdict:
    """Two streams of QoS 1 and one of QoS 2; the first has the trouble."""
    found = Verdict()
    for number, qos in enumerate((1, 1, 2)):
        outcome = Outcome(qos, number, 0, 0, f"fleet/{number}/gps")
        outcome.sent = outcome.acked = 100
        outcome.received = 100
        if number == 0:
            for name, count in classes.items():
                setattr(outcome, name, count)
        found.add(outcome)
    found.rank()
    return found


def result(**classes: int) -> Result:
    """Twelve seconds of a scenario with two faults; judged."""
    made = Result(
        run="c0ffee00",
        started="2026-11-27T09:00:00+00:00",
        scenario=Scenario(name="fleet", headline="3 vehicles → 1 back end", seed=7),
        environment=environment("asyncio"),
        settings={"host": "127.0.0.1", "qos": [1, 2]},
        throughput=Throughput(
            asked_per_s=100, sent=1200, received=1188, publish_s=12.0, settle_s=1.0
        ),
        connect=Connects(seconds=0.5),
        stages=[Stage(name="connect", at_s=0, until_s=2), Stage(name="cruise", at_s=2, until_s=12)],
        faults=[
            Fault(at_s=4.0, until_s=6.5, kind="network", detail="delay 50 ms"),
            Fault(at_s=8.0, kind="disconnect", detail="reset", devices=2),
        ],
        series=[point(second, 900, 1000, 40_000 * second) for second in range(1, 13)],
    )
    made.book(verdict(**classes))
    made.measure("from_sent", histogram(*range(100, 60_000, 50)))
    made.measure("from_intended", histogram(*range(200, 90_000, 50)))
    made.measure("pacing_lag", histogram(10, 20, 30))
    made.measure("connect", histogram(400, 500, 600))
    made.judge([])
    return made
