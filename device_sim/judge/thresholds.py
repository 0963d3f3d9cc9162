"""Limits that a user sets on a run: `--fail-on 'lost>0,p99>50ms'`.

A term is `name operator number unit` and describes what must not be. Names are

    lost, reordered, …    a class of the verdict, of all or with `.qos0` `.qos1` `.qos2` of some;
                          with `%` it is a share of `sent`
    p50, p99.9, mean, max latency, in `us`, `ms` or `s`: from the intended send in a paced run, from
                          the actual one in a closed loop. `sent.p99` is always from the actual
                          one, `connect.p99` is the time to CONNACK, `round_trip.p99` that from a
                          request to its response
    unanswered            requests that had no response in time
    rate                  messages sent per second

A latency of which nothing was measured breaks its term, and so does `lost` where nobody was owed
anything, and `unanswered` where nobody asked: silence is no proof.

Pure: reads the finished numbers through `Figures`, which the report fills.
"""

import re
from collections.abc import Callable
from typing import Final

from device_sim.judge.histogram import Histogram
from device_sim.judge.verdict import CLASSES, Verdict

_TERM: Final = re.compile(
    r"\s*([a-z0-9_.]+)\s*(>=|<=|==|!=|>|<)\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|%)?\s*"
)
_COUNT: Final = re.compile(rf"({'|'.join(CLASSES)})(?:\.qos([012]))?")
_TIME: Final = re.compile(
    r"(?:(sent|connect|round_trip)\.)?(?:p([0-9]{1,2}(?:\.[0-9]+)?)|(mean|max))"
)
_UNITS_US: Final = {"us": 1.0, "ms": 1e3, "s": 1e6}
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
}


class Figures:
    """What thresholds can be set on."""

    def __init__(
        self,
        verdict: Verdict,
        latency: Histogram,
        sent: Histogram,
        connect: Histogram,
        rate: float,
        round_trip: Histogram,
        unanswered: int | None,
    ) -> None:
        """`unanswered` is None in a run without requests."""
        self.verdict = verdict
        self.latency = latency
        self.sent = sent
        self.connect = connect
        self.rate = rate
        self.round_trip = round_trip
        self.unanswered = unanswered


class Threshold:
    """One term."""

    def __init__(self, text: str) -> None:
        found = _TERM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text.strip()!r} is not like 'lost>0' or 'p99>50ms'")
        self.text = text.strip()
        self.name, self.operator, number, self.unit = found.groups()
        self.bound = float(number)
        timed = _TIME.fullmatch(self.name)
        counted = _COUNT.fullmatch(self.name)
        if timed is not None:
            if self.unit not in _UNITS_US:
                raise ValueError(f"{self.text!r} needs a unit: us, ms or s")
        elif counted is not None:
            if self.unit not in (None, "%"):
                raise ValueError(f"{self.text!r} counts messages: no unit, or %")
        elif self.name not in ("rate", "unanswered") or self.unit is not None:
            raise ValueError(f"{self.text!r}: nothing is called {self.name!r}")

    def value(self, figures: Figures) -> float:
        """The measured value, in the unit of the term."""
        timed = _TIME.fullmatch(self.name)
        if timed is not None:
            _, percent, other = timed.groups()
            histogram = self._histogram(figures)
            if percent is not None:
                value = histogram.percentile(float(percent))
            else:
                value = histogram.mean() if other == "mean" else float(histogram.maximum)
            return value / _UNITS_US[self.unit]
        counted = _COUNT.fullmatch(self.name)
        if counted is not None:
            qos = -1 if counted[2] is None else int(counted[2])
            count = float(figures.verdict.sum(counted[1], qos))
            if self.unit == "%":
                return 100.0 * count / max(1, figures.verdict.sum("sent", qos))
            return count
        return figures.rate if self.name == "rate" else float(figures.unanswered or 0)

    def _histogram(self, figures: Figures) -> Histogram:
        source = self.name.partition(".")[0]
        named = {
            "sent": figures.sent,
            "connect": figures.connect,
            "round_trip": figures.round_trip,
        }
        return named.get(source, figures.latency)

    def broken(self, figures: Figures) -> str:
        """What is wrong, in words, or nothing."""
        if _TIME.fullmatch(self.name) is not None and not self._histogram(figures).count:
            return f"{self.text}: nothing was measured"
        counted = _COUNT.fullmatch(self.name)
        if counted is not None and counted[1] == "lost" and not figures.verdict.sum("sent"):
            return f"{self.text}: nobody was owed anything"
        if self.name == "unanswered" and not (figures.unanswered or figures.round_trip.count):
            return f"{self.text}: nobody asked anything"
        value = self.value(figures)
        if not _COMPARE[self.operator](value, self.bound):
            return ""
        return f"{self.text}: it is {value:.4g}{self.unit or ''}"


def parse(texts: list[str]) -> list[Threshold]:
    """Every term of every option; ValueError says what is wrong with one."""
    return [Threshold(term) for text in texts for term in text.split(",") if term.strip()]
