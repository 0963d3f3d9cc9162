"""Plots as inline SVG: lines over time, a percentile curve, a time line of faults.

Owns the drawing and nothing else: numbers and labels in, one `<svg>` element out, as text. Colours
and fonts are classes (`line-0`, `axis`, `grid` …) that the page's style sheet defines, so that
one drawing suits a light and a dark page. No script: what a reader points at tells its numbers
through `<title>` elements, which browsers show by themselves.

Every plot of a page has the same width and margins, so that what happened at one moment stands on
one vertical line in all of them.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

WIDTH: Final = 960
LEFT: Final = 72
RIGHT: Final = 16
TOP: Final = 34
BOTTOM: Final = 34
LANE: Final = 26
DOTS_BELOW: Final = 60
"""A line of fewer points than this gets a dot on each, a line of one is nothing but a dot."""
LABELS_BELOW: Final = 25
"""So many faults have a number above their line; more would overlap."""


class Scale:
    """From a value to a coordinate, linear or logarithmic."""

    def __init__(
        self, low: float, high: float, start: float, end: float, logarithmic: bool = False
    ) -> None:
        self.low = low
        self.high = high if high > low else low + 1
        self.start = start
        self.end = end
        self.logarithmic = logarithmic

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log10(each) for each in (max(value, low), low, high))
        share = (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with 2 and 5 between them when there are few."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [10.0**power * factor for power in range(first, last + 1) for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


class Line:
    """One line of a plot: its name and its points, from left to right."""

    def __init__(self, name: str, points: Sequence[tuple[float, float]]) -> None:
        self.name = name
        self.points = list(points)


class Mark:
    """A moment or a stretch of time that all plots show."""

    def __init__(self, at_s: float, until_s: float | None, kind: str, text: str) -> None:
        self.at_s = at_s
        self.until_s = until_s
        self.kind = kind
        self.text = text


class Moments:
    """The time axis of a page: its end, and the faults on it."""

    def __init__(self, end_s: float, marks: Sequence[Mark]) -> None:
        self.end_s = max(end_s, 1.0)
        self.marks = list(marks)
        self.x = Scale(0.0, self.end_s, LEFT, WIDTH - RIGHT)

    def axis(self, bottom: float) -> list[str]:
        """Ticks and labels of the time axis, its line at `bottom`."""
        parts = [_segment("axis", LEFT, bottom, WIDTH - RIGHT, bottom)]
        for tick in linear_ticks(0.0, self.end_s, 10):
            x = self.x(tick)
            parts.append(_segment("axis", x, bottom, x, bottom + 4))
            parts.append(_text("tick", x, bottom + 17, f"{tick:g} s", "middle"))
        return parts

    def faults(self, top: float, bottom: float) -> list[str]:
        """A line or a band for each fault, behind what is plotted."""
        parts = []
        numbered = len(self.marks) <= LABELS_BELOW
        for number, mark in enumerate(self.marks, 1):
            x = self.x(mark.at_s)
            title = f"<title>{escape(mark.text)}</title>"
            if mark.until_s is not None:
                width = max(1.0, self.x(mark.until_s) - x)
                parts.append(
                    f'<rect class="fault-band" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{bottom - top:.1f}">{title}</rect>'
                )
            parts.append(
                f'<line class="fault-line" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" '
                f'y2="{bottom:.1f}">{title}</line>'
            )
            if numbered:
                parts.append(_text("fault-number", x, top - 4, str(number), "middle"))
        return parts


def over_time(
    title: str,
    lines: Sequence[Line],
    moments: Moments,
    show: Callable[[float], str],
    logarithmic: bool = False,
    height: int = 250,
) -> str:
    """Lines over the time of the run; `show` writes a value with its unit."""
    y = _values(lines, height - BOTTOM, TOP, logarithmic)
    parts = [*moments.faults(TOP, height - BOTTOM), *_value_axis(y, show)]
    parts += moments.axis(height - BOTTOM)
    parts += _drawn(lines, moments.x, y)
    parts += _pointers(lines, moments.x, height, lambda x: f"{x:.1f} s", show)
    return _svg(title, height, [*parts, *_legend(lines)])


def percentile_curve(
    title: str, lines: Sequence[Line], show: Callable[[float], str], height: int = 280
) -> str:
    """Latency by percentile; the axis gives each further nine the same room.

    Points are (percent, value); 100 % stands one step right of the last one below it.
    """
    y = _values(lines, height - BOTTOM, TOP, True)
    highest = max((x for line in lines for x, _ in line.points if x < 100), default=90.0)
    nines = max(2, math.ceil(-math.log10(1 - highest / 100) - 1e-9))
    end = 10.0 ** (nines + 0.5)
    x_scale = Scale(1.0, end, LEFT, WIDTH - RIGHT, logarithmic=True)
    placed = [
        Line(line.name, [(_odds(percent, end), value) for percent, value in line.points])
        for line in lines
    ]
    bottom = height - BOTTOM
    parts = [*_value_axis(y, show), _segment("axis", LEFT, bottom, WIDTH - RIGHT, bottom)]
    ticks = [0.0, 50.0, *(100 - 100.0 / 10**nine for nine in range(1, nines + 1)), 100.0]
    for percent in ticks:
        x = x_scale(_odds(percent, end))
        name = "max" if percent == 100 else f"{percent:.6g} %"
        parts.append(_segment("grid", x, TOP, x, bottom))
        parts.append(_text("tick", x, bottom + 17, name, "middle"))
    parts += _drawn(placed, x_scale, y)
    parts += _pointers(
        placed,
        x_scale,
        height,
        lambda odds: "max" if odds >= end else f"{100 - 100 / odds:.6g} %",
        show,
    )
    return _svg(title, height, [*parts, *_legend(lines)])


def time_line(title: str, moments: Moments, stages: Sequence[Mark]) -> str:
    """Stages in the first lane, below it a lane for each kind of fault."""
    kinds = list(dict.fromkeys(mark.kind for mark in moments.marks))
    lanes = (1 if stages else 0) + len(kinds)
    height = TOP + lanes * LANE + BOTTOM
    parts = []
    top = float(TOP)
    if stages:
        for number, stage in enumerate(stages):
            parts.append(_bar(f"stage stage-{number % 2}", moments.x, stage, top, stage.kind))
        top += LANE
    for kind in kinds:
        parts.append(_segment("grid", LEFT, top + LANE, WIDTH - RIGHT, top + LANE))
        for mark in moments.marks:
            if mark.kind == kind:
                parts.append(_bar("fault-bar", moments.x, mark, top, ""))
        parts.append(_text("lane", LEFT + 4, top + LANE - 8, kind, "start"))
        top += LANE
    return _svg(title, height, [*moments.faults(TOP, top), *parts, *moments.axis(top)])


def _bar(name: str, x: Scale, mark: Mark, top: float, label: str) -> str:
    start = x(mark.at_s)
    end = x(mark.until_s) if mark.until_s is not None else start
    width = max(6.0, end - start)
    start = min(start, x.end - width)
    text = ""
    if label and width > 7 * len(label):
        text = _text("lane", start + 5, top + LANE - 8, label, "start")
    return (
        f'<rect class="{name}" x="{start:.1f}" y="{top + 3:.1f}" width="{width:.1f}" '
        f'height="{LANE - 6}" rx="3"><title>{escape(mark.text)}</title></rect>{text}'
    )


def _odds(percent: float, end: float) -> float:
    """1 in how many is above this percentile; `end` stands for never."""
    return end if percent >= 100 else min(end, 1 / (1 - percent / 100))


def _values(lines: Sequence[Line], start: float, end: float, logarithmic: bool) -> Scale:
    """A scale that has room for every value."""
    values = [value for line in lines for _, value in line.points]
    if not logarithmic:
        return Scale(0.0, max([*values, 1e-9]) * 1.05, start, end)
    positive = [value for value in values if value > 0] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(positive)))
    high = max(positive) * 1.3
    return Scale(low, max(high, low * 10), start, end, logarithmic=True)


def _value_axis(y: Scale, show: Callable[[float], str]) -> list[str]:
    parts = []
    ticks = log_ticks(y.low, y.high) if y.logarithmic else linear_ticks(y.low, y.high, 5)
    for tick in ticks:
        at = y(tick)
        parts.append(_segment("grid", LEFT, at, WIDTH - RIGHT, at))
        parts.append(_text("tick", LEFT - 8, at + 4, show(tick), "end"))
    return parts


def _drawn(lines: Sequence[Line], x: Scale, y: Scale) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        if not line.points:
            continue
        steps = [f"{x(at):.1f},{y(value):.1f}" for at, value in line.points]
        parts.append(f'<path class="line-{number}" d="M{" L".join(steps)}"/>')
        if len(line.points) < DOTS_BELOW:
            for at, value in line.points:
                parts.append(
                    f'<circle class="dot-{number}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="2.5"/>'
                )
    return parts


def _pointers(
    lines: Sequence[Line],
    x: Scale,
    height: int,
    show_x: Callable[[float], str],
    show: Callable[[float], str],
) -> list[str]:
    """Invisible columns, one for each place on the x axis, that tell what is there."""
    told: dict[float, list[str]] = {}
    for line in lines:
        for at, value in line.points:
            told.setdefault(at, []).append(f"{line.name}: {show(value)}")
    places = sorted(told)
    parts = []
    for number, at in enumerate(places):
        left = x(places[number - 1]) if number else x.start
        right = x(places[number + 1]) if number + 1 < len(places) else x.end
        start, end = (left + x(at)) / 2, (x(at) + right) / 2
        words = escape("\n".join([show_x(at), *told[at]]))
        parts.append(
            f'<rect class="pointer" x="{start:.1f}" y="{TOP}" width="{max(0.5, end - start):.1f}" '
            f'height="{height - TOP - BOTTOM}"><title>{words}</title></rect>'
        )
    return parts


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    right = float(WIDTH - RIGHT)
    for number in range(len(lines) - 1, -1, -1):
        name = lines[number].name
        right -= 7.2 * len(name) + 8
        parts.append(_text("legend", right, 13, name, "start"))
        parts.append(
            f'<rect class="key-{number}" x="{right - 16:.1f}" y="5" width="11" height="9" rx="2"/>'
        )
        right -= 30
    return parts


def _segment(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(name: str, x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(title: str, height: int, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{_text('title', LEFT, 13, title, 'start')}{''.join(parts)}</svg>"
    )
