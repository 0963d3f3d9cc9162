"""The result of a run: one versioned document that every view is drawn from.

An engine fills a `Result`; text, HTML, CSV, JUnit XML, `compare` and the thresholds read it and
nothing else, so nothing is shown that a machine couldn't read. `to_json` and `from_json` are exact
inverses. The layout is published as a JSON Schema (docs/reference/result.schema.json): `schema`
holds its name and a number, which grows when a key changes its meaning or goes. New keys may come
at any time, therefore readers skip those they don't know.

Every number here is a sum, an extreme, or a histogram of which the sum can be made, so that results
of several processes that drove parts of one run can be merged exactly, see `merging`. Percentiles,
rates and the verdict are derived, by `summarise` and `judge`, and are never merged.

Knows no socket, no clock and no engine. Times are seconds since the run began (`at_s`), durations
in histograms are microseconds.
"""

import os
import platform
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from device_sim.judge import ledger as ledger_module
from device_sim.judge.histogram import RESOLUTION, Histogram, bucket_of
from device_sim.judge.thresholds import Figures, Threshold
from device_sim.judge.verdict import CLASSES, Outcome, Tally, Verdict

SCHEMA: Final = "device_sim.result/1"
GOOD: Final = 0
BROKEN: Final = 1
USAGE: Final = 2
BROKEN_OFF: Final = 3
BUSY: Final = 0.9
"""A generator that used this share of a core was, or nearly was, the limit itself."""
LATE_US: Final = 20_000
"""So was one whose pacing came this late, once in a hundred ticks or more often."""
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
TROUBLED: Final = 20
"""So many streams with trouble are told one by one."""

Summary = dict[str, float]
Counts = dict[str, int]


class ResultError(Exception):
    """A file is no result that this version can read; the text says why."""


class Part(BaseModel):
    """What all parts of a result have in common."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)


class Distribution(Part):
    """A histogram: exact count, sum and extremes, and the counts of its buckets."""

    count: int = 0
    total: int = Field(default=0, description="the sum of all values")
    minimum: int = 0
    maximum: int = 0
    buckets: list[tuple[int, int]] = Field(
        default_factory=list, description="lowest value of a bucket, and how many values it counts"
    )

    @classmethod
    def of(cls, histogram: Histogram) -> "Distribution":
        """What a histogram counted."""
        if not histogram.count:
            return cls()
        return cls(
            count=histogram.count,
            total=histogram.total,
            minimum=histogram.minimum,
            maximum=histogram.maximum,
            buckets=[(low, count) for low, _, count in histogram.buckets()],
        )

    def histogram(self) -> Histogram:
        """The histogram that it was made of."""
        histogram = Histogram()
        if self.count:
            for low, count in self.buckets:
                histogram.counts[bucket_of(low)] = count
            histogram.count = self.count
            histogram.total = self.total
            histogram.minimum = self.minimum
            histogram.maximum = self.maximum
        return histogram


class Scenario(Part):
    """What was run."""

    command: str = Field(default="run", description="`flood` or `run`")
    name: str = ""
    headline: str = Field(default="", description="the run in one line")
    file: str = ""
    seed: int | None = None
    scale: float = 1.0
    workers: int = Field(default=1, description="processes that drove the run")
    thresholds: list[str] = Field(default_factory=list)


class Judgement(Part):
    """The verdict: the exit code and everything that led to it, in words."""

    exit: int = Field(default=GOOD, ge=0, le=3)
    broken: list[str] = Field(default_factory=list, description="promises that were broken")
    thresholds: list[str] = Field(default_factory=list, description="limits that didn't hold")
    broken_off: str = Field(default="", description="why the run ended before its time, or empty")
    strict: bool = Field(default=False, description="loss at QoS 0 is bad, too")


class Stream(Part):
    """One stream with trouble: a publisher, its stream, a subscriber, and the classes."""

    model_config = ConfigDict(extra="allow")

    topic: str
    publisher: int
    stream: int
    qos: int
    subscriber: int

    def counts(self) -> Counts:
        """Its numbers by class."""
        extra = self.__pydantic_extra__ or {}
        return {name: int(extra.get(name, 0)) for name in CLASSES}


class Point(Part):
    """One second: totals since the start, and what this second brought."""

    phase: str
    at_s: float
    connected: int
    sent: int
    received: int
    sent_per_s: float = 0.0
    received_per_s: float = 0.0
    outstanding: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    latency: Distribution = Field(
        default_factory=Distribution, description="of the deliveries of this second"
    )


class Fault(Part):
    """Something that the scenario did to the run, or that befell it."""

    at_s: float
    kind: str = Field(description="disconnect, slow_reader, pause, kill_broker, network …")
    detail: str = ""
    until_s: float | None = Field(
        default=None, description="when it was over; null: it has no duration"
    )
    devices: int = Field(default=0, description="how many it hit; 0: all, or none in particular")


class Stage(Part):
    """One stage of the scenario."""

    name: str
    at_s: float
    until_s: float


class Throughput(Part):
    """Messages and the time that they took."""

    asked_per_s: float | None = None
    sent: int = 0
    received: int = Field(default=0, description="while publishing")
    sent_per_s: float = 0.0
    received_per_s: float = 0.0
    publish_s: float = 0.0
    settle_s: float = 0.0
    held_back: int = Field(default=0, description="due but never sent")
    written_off: int = Field(default=0, description="deliveries that were no longer waited for")
    generator_cpu: float = Field(default=0.0, description="share of a core; of the busiest process")
    generator_memory: int = Field(
        default=0, description="bytes: the peak of resident memory, of all processes together"
    )
    generator_bound: bool = False
    pacing_lag_us: Summary | None = None


class Latencies(Part):
    """Percentiles and extremes, in microseconds."""

    resolution: float = Field(
        default=RESOLUTION, description="largest relative error of a percentile"
    )
    from_sent: Summary = Field(default_factory=dict)
    from_intended: Summary | None = None


class Connects(Part):
    """The connects."""

    seconds: float = 0.0
    failed: int = 0
    latency_us: Summary = Field(default_factory=dict)


class Requests(Part):
    """Commands and their responses."""

    answered: int = 0
    unanswered: int = Field(default=0, description="no response in time, or until the end")
    round_trip_us: Summary = Field(default_factory=dict)


class Incidents(Part):
    """What befell the run besides its deliveries."""

    lost_connections: int = Field(default=0, description="without the scenario's doing")
    first_lost: str = Field(default="", description="the first of them, in words")
    skipped_offline: int = Field(
        default=0, description="messages that came due while their device was offline"
    )
    damaged_pieces: int = Field(default=0, description="of connections, by the scenario's network")
    forgiven: int = Field(
        default=0, description="odd arrivals and packets that this damage accounts for"
    )


def environment(loop: str) -> dict[str, Any]:
    """Where this process runs."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "loop": loop,
        "compiled": not str(ledger_module.__file__).endswith(".py"),
    }


class Result(Part):
    """Everything that was seen of a run.

    An engine creates one, books the ledger's verdict with `book`, puts its histograms in with
    `measure` (`from_sent`, `from_intended`, `connect`, `pacing_lag`, or names of its own), sets the
    rest by assignment, and calls `judge` last.
    """

    schema_: str = Field(default=SCHEMA, alias="schema")
    run: str = ""
    started: str = Field(default="", description="ISO 8601, with the offset from UTC")
    scenario: Scenario = Field(default_factory=Scenario)
    verdict: Judgement = Field(default_factory=Judgement)
    environment: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    totals: dict[str, Counts] = Field(
        default_factory=lambda: {"all": dict.fromkeys(CLASSES, 0)},
        description="the classes under `all`, and under `qos0`, `qos1`, `qos2` as they occur",
    )
    tracks: int = Field(default=0, description="paths from a publisher's stream to a subscriber")
    strays: Counts = Field(default_factory=dict, description="unexpected messages by reason")
    violations: Counts = Field(default_factory=dict, description="protocol errors by kind")
    throughput: Throughput = Field(default_factory=Throughput)
    latency_us: Latencies = Field(default_factory=Latencies)
    connect: Connects = Field(default_factory=Connects)
    requests: Requests | None = Field(default=None, description="null: nobody asks anything")
    incidents: Incidents = Field(default_factory=Incidents)
    histograms: dict[str, Distribution] = Field(default_factory=dict)
    stages: list[Stage] = Field(default_factory=list)
    faults: list[Fault] = Field(default_factory=list)
    series: list[Point] = Field(default_factory=list)
    troubled: list[Stream] = Field(default_factory=list, description="the worst, worst first")
    troubled_count: int = 0
    warnings: list[str] = Field(default_factory=list)

    # Filling

    def book(self, verdict: Verdict) -> None:
        """Take over the closed books."""
        self.totals = {
            "all": {name: verdict.sum(name) for name in CLASSES},
            **{f"qos{qos}": verdict.totals[qos].numbers() for qos in sorted(verdict.totals)},
        }
        self.tracks = sum(total.tracks for total in verdict.totals.values())
        self.strays = dict(verdict.strays)
        self.troubled = [_stream(outcome) for outcome in verdict.troubled]
        self.troubled_count = verdict.troubled_count

    def measure(self, name: str, histogram: Histogram) -> None:
        """Keep a histogram under a name."""
        self.histograms[name] = Distribution.of(histogram)

    def summarise(self) -> None:
        """Derive rates and percentiles from what was counted."""
        throughput = self.throughput
        seconds = max(throughput.publish_s, 1e-9)
        throughput.sent_per_s = throughput.sent / seconds
        throughput.received_per_s = throughput.received / seconds
        lag = self.histogram("pacing_lag")
        throughput.generator_bound = (
            throughput.generator_cpu >= BUSY or lag.percentile(99) >= LATE_US
        )
        throughput.pacing_lag_us = summary(lag) if "pacing_lag" in self.histograms else None
        self.latency_us.from_sent = summary(self.histogram("from_sent"))
        self.latency_us.from_intended = (
            summary(self.histogram("from_intended")) if "from_intended" in self.histograms else None
        )
        self.connect.latency_us = summary(self.histogram("connect"))
        if self.requests is not None:
            self.requests.round_trip_us = summary(self.histogram("round_trip"))

    def judge(self, thresholds: list[Threshold]) -> int:
        """Derive everything that is derived, the verdict last; the exit code."""
        self.summarise()
        broken = self.books().broken(self.verdict.strict)
        broken.extend(f"protocol: {what}" for what in self.violations)
        latency = "from_intended" if "from_intended" in self.histograms else "from_sent"
        figures = Figures(
            self.books(),
            self.histogram(latency),
            self.histogram("from_sent"),
            self.histogram("connect"),
            self.throughput.sent_per_s,
            self.histogram("round_trip"),
            self.requests.unanswered if self.requests is not None else None,
        )
        failed = [text for text in (each.broken(figures) for each in thresholds) if text]
        verdict = self.verdict
        verdict.broken = broken
        verdict.thresholds = failed
        verdict.exit = GOOD
        if verdict.broken_off:
            verdict.exit = BROKEN_OFF
        if broken or failed:
            verdict.exit = BROKEN
        self.scenario.thresholds = [each.text for each in thresholds]
        return verdict.exit

    # Reading

    def histogram(self, name: str) -> Histogram:
        """A histogram by name; an empty one when there is none."""
        found = self.histograms.get(name)
        return found.histogram() if found is not None else Histogram()

    def books(self) -> Verdict:
        """The sums by QoS as a Verdict; the troubled streams are not among it."""
        verdict = Verdict()
        for name, counts in self.totals.items():
            if name != "all":
                verdict.totals[int(name[3:])] = Tally.of(int(name[3:]), counts)
        verdict.ownerless = self.totals["all"]["unexpected"] - verdict.sum("unexpected")
        verdict.strays = dict(self.strays)
        return verdict

    def document(self) -> dict[str, Any]:
        """The document as plain dictionaries, lists, strings and numbers."""
        return self.model_dump(by_alias=True)

    def to_json(self) -> str:
        """The document as text."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "result") -> "Result":
        """Read a document; ResultError says what is wrong with it."""
        try:
            result = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"])
            raise ResultError(
                f"{source}: {place + ': ' if place else ''}{first['msg']}; "
                f"expected a {SCHEMA} document, as --json writes it"
            ) from None
        if result.schema_ != SCHEMA:
            raise ResultError(f"{source}: schema is {result.schema_!r}, expected {SCHEMA!r}")
        return result


def json_schema() -> dict[str, Any]:
    """The layout of the document, for validators and editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Result.model_json_schema(),
        "title": SCHEMA,
        "required": ["schema", "verdict", "totals"],
    }


def summary(histogram: Histogram) -> Summary:
    """Percentiles, mean and extremes of a histogram."""
    found: Summary = {"count": histogram.count, "mean": histogram.mean()}
    for percent in PERCENTILES:
        found[f"p{percent:g}"] = histogram.percentile(percent)
    found["min"] = histogram.minimum if histogram.count else 0
    found["max"] = histogram.maximum
    return found


def trouble(counts: Counts) -> int:
    """How many messages were anything but received once, in order and intact."""
    return Tally.of(0, counts).trouble()


def _stream(outcome: Outcome) -> Stream:
    return Stream.model_validate(
        {
            "topic": outcome.topic,
            "publisher": outcome.publisher,
            "stream": outcome.stream,
            "qos": outcome.qos,
            "subscriber": outcome.subscriber,
            **outcome.numbers(),
        }
    )
