"""The result of a run: one versioned document that every view is drawn from.

An engine fills a `Result`; text, HTML, CSV, JUnit XML, `compare` and the thresholds read it and
nothing else, so nothing is shown that a machine couldn't read. `to_json` and `from_json` are exact
inverses. The layout is published as a JSON Schema (docs/reference/result.schema.json): `schema`
holds its name and a number, which grows when a key changes its meaning or goes. New keys may come
at any time, therefore readers skip those they don't know.

Results of several processes that drove parts of one run are merged exactly: every number here is a
sum, an extreme, or a histogram of which the sum can be made. Percentiles, rates and the verdict are
derived, by `summarise` and `judge`, and are never merged.

Knows no socket, no clock and no engine. Times are seconds since the run began (`at_s`), durations
in histograms are microseconds.
"""

import os
import platform
from collections.abc import Iterable
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


def merge(parts: Iterable[Result]) -> Result:
    """One result of several that were parts of the same run; `judge` it afterwards.

    Counts and histograms are summed, times are those of the part that took longest, and the seconds
    of the series are joined by their whole number. What describes the run is taken from the first.
    """
    results = list(parts)
    merged = results[0].model_copy(deep=True)
    for other in results[1:]:
        for name, counts in other.totals.items():
            _add(merged.totals.setdefault(name, dict.fromkeys(CLASSES, 0)), counts)
        merged.tracks += other.tracks
        _add(merged.strays, other.strays)
        _add(merged.violations, other.violations)
        for name, distribution in other.histograms.items():
            merged.histograms[name] = _sum(merged.histograms.get(name), distribution)
        _add_throughput(merged.throughput, other.throughput)
        merged.connect.seconds = max(merged.connect.seconds, other.connect.seconds)
        merged.connect.failed += other.connect.failed
        merged.troubled_count += other.troubled_count
        merged.verdict.broken_off = merged.verdict.broken_off or other.verdict.broken_off
    merged.scenario.workers = sum(each.scenario.workers for each in results)
    merged.troubled = sorted(
        (stream for each in results for stream in each.troubled),
        key=lambda stream: (-trouble(stream.counts()), stream.publisher, stream.stream),
    )[:TROUBLED]
    merged.warnings = list(dict.fromkeys(text for each in results for text in each.warnings))
    merged.faults = _joined_faults(results)
    merged.series = _joined_series(results)
    merged.summarise()
    return merged


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


def _add(into: Counts, counts: Counts) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count


def _sum(one: Distribution | None, other: Distribution) -> Distribution:
    if one is None:
        return other.model_copy(deep=True)
    histogram = one.histogram()
    histogram.merge(other.histogram())
    return Distribution.of(histogram)


def _add_throughput(into: Throughput, other: Throughput) -> None:
    if other.asked_per_s is not None:
        into.asked_per_s = (into.asked_per_s or 0.0) + other.asked_per_s
    into.sent += other.sent
    into.received += other.received
    into.publish_s = max(into.publish_s, other.publish_s)
    into.settle_s = max(into.settle_s, other.settle_s)
    into.held_back += other.held_back
    into.written_off += other.written_off
    into.generator_cpu = max(into.generator_cpu, other.generator_cpu)


def _joined_faults(results: list[Result]) -> list[Fault]:
    """The time line of all: what several parts did at one moment is one entry."""
    joined: list[Fault] = []
    for result in results:
        before = len(joined)
        for fault in result.faults:
            known = next((each for each in joined[:before] if _is_same(each, fault)), None)
            if known is None:
                joined.append(fault.model_copy())
                continue
            known.at_s = min(known.at_s, fault.at_s)
            known.devices += fault.devices
            if fault.until_s is not None:
                known.until_s = max(known.until_s or 0.0, fault.until_s)
    return sorted(joined, key=lambda fault: fault.at_s)


def _is_same(one: Fault, other: Fault) -> bool:
    alike = (one.kind, one.detail) == (other.kind, other.detail)
    return alike and abs(one.at_s - other.at_s) < 0.5


def _joined_series(results: list[Result]) -> list[Point]:
    """The seconds of all parts; one that had ended by then counts with its last totals."""
    seconds = sorted({round(point.at_s) for result in results for point in result.series})
    by_second = [{round(point.at_s): point for point in result.series} for result in results]
    joined = []
    last: list[Point | None] = [None] * len(results)
    for second in seconds:
        whole = Point(phase="", at_s=second, connected=0, sent=0, received=0)
        latency = Histogram()
        for at, points in enumerate(by_second):
            point = points.get(second)
            if point is not None:
                last[at] = point
                whole.phase = whole.phase or point.phase
                whole.at_s = max(whole.at_s, point.at_s)
                whole.connected += point.connected
                whole.outstanding += point.outstanding
                whole.sent_per_s += point.sent_per_s
                whole.received_per_s += point.received_per_s
                latency.merge(point.latency.histogram())
            latest = last[at]
            if latest is not None:
                whole.sent += latest.sent
                whole.received += latest.received
        whole.latency = Distribution.of(latency)
        whole.p50_us = latency.percentile(50)
        whole.p99_us = latency.percentile(99)
        joined.append(whole)
    return joined
