"""Two results side by side, and whether the second is worse than the first.

Every line is a figure with a direction in which it gets worse. Delivery classes are compared as
shares of what was to be delivered, since two runs rarely send the same number; one that breaks a
promise is worse as soon as its share grows at all, for no tolerance makes a lost message right.
Rates and latencies are worse beyond the tolerance. A percentile is compared when both runs have
enough values to tell it.

Exit codes: 0 not worse, 1 worse, 2 a file is no result.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any, Final

from device_sim.engine.plan import UsageError
from device_sim.judge.histogram import Histogram
from device_sim.judge.verdict import CLASSES, promises
from device_sim.results.result import (
    BROKEN,
    BROKEN_OFF,
    GOOD,
    PERCENTILES,
    USAGE,
    Result,
    ResultError,
)

SCHEMA: Final = "device_sim.compare/1"
HIGHER_IS_WORSE: Final = 1
LOWER_IS_WORSE: Final = -1
NEITHER: Final = 0
SEVERITY: Final = {GOOD: 0.0, BROKEN_OFF: 1.0, USAGE: 1.0, BROKEN: 2.0}


class Row:
    """One figure of both runs."""

    def __init__(
        self, name: str, before: float, after: float, unit: str, worse_when: int, tolerance: float
    ) -> None:
        self.name = name
        self.before = before
        self.after = after
        self.unit = unit
        change = (after - before) * worse_when
        self.worse = change > abs(before) * tolerance and change > 0
        self.better = -change > abs(before) * tolerance and change < 0

    def ratio(self) -> float | None:
        """After as a multiple of before."""
        return self.after / self.before if self.before else None

    def document(self) -> dict[str, Any]:
        """The row for machines."""
        return {
            "name": self.name,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio(),
            "worse": self.worse,
            "better": self.better,
        }


def tolerance_of(text: str) -> float:
    """`10%` or `0.1` as a share; ValueError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", text)
    if found is None:
        raise ValueError(f"{text!r} is not like 10% or 0.1")
    return float(found[1]) / (100 if found[2] else 1)


def compare(before: Result, after: Result, tolerance: float) -> list[Row]:
    """Every figure that both runs have."""
    rows = [
        _count(
            "verdict",
            "0 good, 1 broken off, 2 bad",
            SEVERITY[before.verdict.exit],
            SEVERITY[after.verdict.exit],
        ),
        *_classes(before, after),
        _count("topics of nobody", "messages", before.books().ownerless, after.books().ownerless),
        _count(
            "protocol errors",
            "packets",
            sum(before.violations.values()),
            sum(after.violations.values()),
        ),
    ]
    one, other = before.throughput, after.throughput
    for name in ("sent_per_s", "received_per_s"):
        figures = (getattr(one, name), getattr(other, name))
        rows.append(
            Row(name.replace("_per_s", ""), *figures, "per second", LOWER_IS_WORSE, tolerance)
        )
    for name, words in (
        ("from_intended", "latency from intended send"),
        ("from_sent", "latency from actual send"),
        ("connect", "connect to CONNACK"),
        ("round_trip", "request to response"),
    ):
        rows += _latencies(words, before.histogram(name), after.histogram(name), tolerance)
    return rows


def _count(name: str, unit: str, before: float, after: float) -> Row:
    """A figure that should be 0, and of which each one more is worse."""
    return Row(name, before, after, unit, HIGHER_IS_WORSE, 0.0)


def _classes(before: Result, after: Result) -> list[Row]:
    """The classes that occurred, as shares of what was to be delivered, by QoS."""
    one, other = before.books().totals, after.books().totals
    rows = []
    for qos in sorted(set(one) | set(other)):
        kept = {name for _, name in promises(qos, after.verdict.strict)}
        for name in CLASSES:
            counts = [getattr(each[qos], name) if qos in each else 0 for each in (one, other)]
            sent = [each[qos].sent if qos in each else 0 for each in (one, other)]
            if name in ("sent", "received", "acked") or not any(counts):
                continue
            shares = [
                1e6 * count / max(1, total) for count, total in zip(counts, sent, strict=True)
            ]
            direction = HIGHER_IS_WORSE if name in kept else NEITHER
            title = f"{name.replace('_', ' ')}, QoS {qos}"
            rows.append(Row(title, shares[0], shares[1], "per million", direction, 0.0))
    return rows


def _latencies(words: str, before: Histogram, after: Histogram, tolerance: float) -> list[Row]:
    count = min(before.count, after.count)
    rows = []
    for percent in PERCENTILES:
        if count * (1 - percent / 100) >= 1:
            figures = (before.percentile(percent), after.percentile(percent))
            title = f"{words}, p{percent:g}"
            rows.append(Row(title, *figures, "µs", HIGHER_IS_WORSE, tolerance))
    return rows


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of text."""
    cells = [["", "before", "after", "ratio", ""]]
    for row in rows:
        ratio = row.ratio()
        cells.append(
            [
                f"{row.name} ({row.unit})",
                _number(row.before),
                _number(row.after),
                "" if ratio is None else f"{ratio:.2f}",
                "worse" if row.worse else "better" if row.better else "",
            ]
        )
    widths = [max(len(line[at]) for line in cells) for at in range(5)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:4], widths[1:4], strict=True)]
            + [line[4]]
        ).rstrip()
        for line in cells
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def run(options: argparse.Namespace) -> int:
    """The command; the exit code."""
    try:
        tolerance = tolerance_of(options.tolerance)
        before, after = _read(options.before), _read(options.after)
    except ValueError as error:
        raise UsageError(f"--tolerance: {error}") from None
    except ResultError as error:
        raise UsageError(str(error)) from None
    rows = compare(before, after, tolerance)
    worse = [row.name for row in rows if row.worse]
    if options.json:
        document = {
            "schema": SCHEMA,
            "worse": bool(worse),
            "tolerance": tolerance,
            "rows": [row.document() for row in rows],
        }
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return 1 if worse else 0
    print("\n".join(table(rows)))
    for what, result in (("before", before), ("after", after)):
        if result.throughput.generator_bound:
            print(f"{what} was generator-bound: its rates and latencies are the generator's")
    print(f"WORSE: {'; '.join(worse)}" if worse else f"NOT WORSE, within {tolerance:.0%}")
    return 1 if worse else 0


def _read(path: str) -> Result:
    try:
        return Result.from_json(Path(path).read_bytes(), path)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from None
