"""Latencies as HdrHistogram writes them: the percentile text that its plotters read (`.hgrm`).

A line has a value in milliseconds, the share of values that don't exceed it, how many these are and
1/(1 - share), by which plotters scale their axis. Lines come closer together towards 100 %, five
for each half of what is left. As HdrHistogram does, a line tells the highest value that its bucket
counts, and never more than the largest that was recorded.

Owns the layout, and which latency of a run goes to which file. Knows no more of a run than its
histograms.
"""

import math
from pathlib import Path
from typing import Final

from device_sim.judge.histogram import BUCKETS, SUB_BUCKETS, Histogram
from device_sim.results.result import Result

TICKS: Final = 5
"""Lines for each half of what is left to 100 %."""
_US_A_MS: Final = 1000.0
_BESIDE: Final = (("from_sent", "sent"), ("connect", "connect"), ("round_trip", "round_trip"))


def files(target: str, result: Result) -> dict[str, str]:
    """Names and texts: `target` has the latency that limits are set on, others stand beside it.

    Of `out.hgrm` that are `out.sent.hgrm` (at a rate: from the actual send), `out.connect.hgrm` and
    `out.round_trip.hgrm`, each if it was measured.
    """
    path = Path(target)
    main = "from_intended" if "from_intended" in result.histograms else "from_sent"
    found = {target: text_of(result.histogram(main))}
    for name, part in _BESIDE:
        histogram = result.histogram(name)
        if name != main and histogram.count:
            beside = path.with_name(f"{path.stem}.{part}{path.suffix}")
            found[str(beside)] = text_of(histogram)
    return found


def text_of(histogram: Histogram) -> str:
    """The percentile text of microseconds, told in milliseconds."""
    titles = ("Value", "Percentile", "TotalCount", "1/(1-Percentile)")
    lines = ["{:>12} {:>14} {:>10} {:>14}".format(*titles), ""]
    lines += _lines(histogram)
    mean_ms = histogram.mean() / _US_A_MS
    deviation_ms = _deviation(histogram) / _US_A_MS
    maximum_ms = histogram.maximum / _US_A_MS
    lines.append(f"#[Mean    = {mean_ms:12.3f}, StdDeviation   = {deviation_ms:12.3f}]")
    lines.append(f"#[Max     = {maximum_ms:12.3f}, Total count    = {histogram.count:12d}]")
    lines.append(f"#[Buckets = {BUCKETS // SUB_BUCKETS:12d}, SubBuckets     = {SUB_BUCKETS:12d}]")
    return "\n".join(lines) + "\n"


def _lines(histogram: Histogram) -> list[str]:
    total = histogram.count
    found: list[str] = []
    seen = 0
    percent = 0.0  # in steps of 10 / 2^n, which floats add up exactly
    for _, high, count in histogram.buckets():
        seen += count
        value_ms = min(high - 1, histogram.maximum) / _US_A_MS
        while seen < total and 100.0 * seen / total >= percent:
            rest = 100.0 / (100.0 - percent)
            found.append(f"{value_ms:12.3f} {percent / 100:.12f} {seen:10d} {rest:14.2f}")
            percent += 100.0 / (TICKS * 2.0 ** (math.floor(math.log2(rest)) + 1))
    if total:
        found.append(f"{histogram.maximum / _US_A_MS:12.3f} {1.0:.12f} {total:10d}")
    return found


def _deviation(histogram: Histogram) -> float:
    """The standard deviation, as exact as the middle of a bucket."""
    if not histogram.count:
        return 0.0
    mean = histogram.mean()
    squares = sum(
        count * ((low + high - 1) / 2 - mean) ** 2 for low, high, count in histogram.buckets()
    )
    return math.sqrt(squares / histogram.count)
