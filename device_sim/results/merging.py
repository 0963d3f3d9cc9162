"""Several results that were parts of one run, as one result.

A process that drives a part of a run tells what it saw as a result of its own. Here they are put
together, exactly: counts and histograms are summed, extremes are those of all, the seconds of the
series are joined by their whole number. What is derived is derived again, and `judge` comes after.

Knows no process: it is handed finished results.
"""

from collections.abc import Iterable

from device_sim.judge.histogram import Histogram
from device_sim.judge.verdict import CLASSES
from device_sim.results.result import (
    TROUBLED,
    Counts,
    Distribution,
    Fault,
    Point,
    Result,
    Throughput,
    trouble,
)


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
        _add_requests(merged, other)
        _add_incidents(merged, other)
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
    into.generator_memory += other.generator_memory


def _add_requests(into: Result, other: Result) -> None:
    if other.requests is None:
        return
    if into.requests is None:
        into.requests = other.requests.model_copy()
        return
    into.requests.answered += other.requests.answered
    into.requests.unanswered += other.requests.unanswered


def _add_incidents(into: Result, other: Result) -> None:
    into.incidents.first_lost = into.incidents.first_lost or other.incidents.first_lost
    for name in ("lost_connections", "skipped_offline", "damaged_pieces", "forgiven"):
        total = getattr(into.incidents, name) + getattr(other.incidents, name)
        setattr(into.incidents, name, total)


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
