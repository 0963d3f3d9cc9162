"""The report as one HTML page: no script, no network, nothing beside it.

Owns the order of the page and its words; drawings come from plot.py, colours from style.py, and all
numbers from the result. Whatever a scenario, a broker or a network named is escaped.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

import yaml

from device_sim.judge.verdict import promises
from device_sim.results.plot import Line, Mark, Moments, over_time, percentile_curve, time_line
from device_sim.results.report import (
    CLASS_OF,
    conclusion,
    duration,
    latency_rows,
    ledger_rows,
    remarks,
    trouble_rows,
)
from device_sim.results.result import Result
from device_sim.results.style import STYLE

CURVE: Final = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99, 99.999, 100.0)
FAULTS_LISTED: Final = 100
SHORT: Final = 60
"""So many characters of a value stand in the open."""
WRONG: Final = ' class="wrong"'


def page(result: Result) -> str:
    """The whole page of a judged result."""
    report = result.document()
    title = result.scenario.name or result.scenario.command
    parts = [
        f"<header><h1>device_sim · {escape(title)}</h1>",
        f"<p>{escape(result.scenario.headline)}</p><p>{escape(_origin(result))}</p></header>",
        _verdict(report),
        _tiles(result),
        *_plots(result),
        _section(
            "Deliveries by QoS", _classes(ledger_rows(report), report) + _notes(remarks(report))
        ),
        _section("Latency", _table(latency_rows(report))),
        _faults(result),
        _section("Streams with trouble", _troubled(report)),
        _section("Settings", _values(result.settings)),
        _section("Environment", _values(result.environment)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>device_sim: {escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(part for part in parts if part)}\n</main></body></html>\n"
    )


def _origin(result: Result) -> str:
    scenario = result.scenario
    parts = [result.started.replace("T", " "), f"run {result.run}" if result.run else ""]
    if scenario.file:
        parts.append(scenario.file)
    if scenario.seed is not None:
        parts.append(f"seed {scenario.seed}")
    if scenario.scale != 1:
        parts.append(f"scale {scenario.scale:g}")
    if scenario.workers > 1:
        parts.append(f"{scenario.workers} processes")
    return " · ".join(part for part in parts if part)


def _verdict(report: dict[str, Any]) -> str:
    verdict = report["verdict"]
    kind = {0: "good", 1: "bad"}.get(verdict["exit"], "off")
    listed = [*report["warnings"]]
    items = "".join(f"<li>warning: {escape(text)}</li>" for text in listed)
    return (
        f'<section class="verdict {kind}">{escape(conclusion(report))}'
        f"{f'<ul>{items}</ul>' if items else ''}</section>"
    )


def _tiles(result: Result) -> str:
    everything = result.totals["all"]
    latency = result.histogram("from_intended" if result.latency_us.from_intended else "from_sent")
    tiles = [
        (f"{everything['sent']:,}", "to deliver", False),
        (f"{everything['received']:,}", "received", False),
        (f"{everything['lost']:,}", "lost", everything["lost"] > 0),
        (f"{everything['duplicated']:,}", "duplicated", False),
        (f"{everything['reordered']:,}", "reordered", everything["reordered"] > 0),
        (f"{result.throughput.received_per_s:,.0f}/s", "received, while publishing", False),
        (duration(latency.percentile(50)), "latency, median", False),
        (duration(latency.percentile(99)), "latency, 99 %", False),
    ]
    return '<div class="tiles">{}</div>'.format(
        "".join(
            f'<div class="tile{" bad" if bad else ""}"><b>{number}</b><span>{what}</span></div>'
            for number, what, bad in tiles
        )
    )


def _plots(result: Result) -> Iterable[str]:
    marks = [
        Mark(fault.at_s, fault.until_s, fault.kind, _fault_text(result, number))
        for number, fault in enumerate(result.faults, 1)
    ]
    stages = [
        Mark(stage.at_s, stage.until_s, stage.name, f"{stage.name}: {_span(stage)}")
        for stage in result.stages
    ]
    ends = [point.at_s for point in result.series]
    ends += [mark.until_s or mark.at_s for mark in [*marks, *stages]]
    moments = Moments(max(ends, default=1.0), marks)
    series = result.series
    if marks or stages:
        yield _section("What was done", time_line("Stages and faults", moments, stages))
    if series:
        yield _section(
            "Over time",
            over_time(
                "Messages a second",
                [
                    Line("sent", [(each.at_s, each.sent_per_s) for each in series]),
                    Line("received", [(each.at_s, each.received_per_s) for each in series]),
                ],
                moments,
                _count,
            )
            + over_time(
                "Latency of the deliveries of each second",
                [
                    Line("median", _latencies(result, 50)),
                    Line("99 %", _latencies(result, 99)),
                    Line("max", _latencies(result, 100)),
                ],
                moments,
                duration,
                logarithmic=True,
            )
            + over_time(
                "Connections, and deliveries that are waited for",
                [
                    Line("connected", [(each.at_s, each.connected) for each in series]),
                    Line("waited for", [(each.at_s, each.outstanding) for each in series]),
                ],
                moments,
                _count,
                height=200,
            ),
        )
    curves = [
        Line(words, _curve(result, name))
        for name, words in (
            ("from_intended", "from the intended send"),
            ("from_sent", "from the actual send"),
        )
        if name in result.histograms and result.histograms[name].count
    ]
    if curves:
        yield _section("Percentiles", percentile_curve("Latency by percentile", curves, duration))


def _latencies(result: Result, percent: float) -> list[tuple[float, float]]:
    """A percentile of each second in which anything was delivered."""
    return [
        (point.at_s, max(1.0, point.latency.histogram().percentile(percent)))
        for point in result.series
        if point.latency.count
    ]


def _curve(result: Result, name: str) -> list[tuple[float, float]]:
    """The percentiles that so many values can tell."""
    histogram = result.histogram(name)
    return [
        (percent, max(1.0, histogram.percentile(percent)))
        for percent in CURVE
        if percent in (0.0, 100.0) or histogram.count * (1 - percent / 100) >= 1
    ]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def _span(stage: Any) -> str:
    if stage.until_s is None:
        return f"at {stage.at_s:.1f} s"
    return f"{stage.at_s:.1f} s to {stage.until_s:.1f} s"


def _fault_text(result: Result, number: int) -> str:
    fault = result.faults[number - 1]
    devices = f", {fault.devices:,} devices" if fault.devices else ""
    detail = f": {fault.detail}" if fault.detail else ""
    return f"{number}. {fault.kind}{detail} ({_span(fault)}{devices})"


def _faults(result: Result) -> str:
    if not result.faults:
        return ""
    rows = [["", "fault", "from", "to", "devices", "detail"]]
    for number, fault in enumerate(result.faults[:FAULTS_LISTED], 1):
        until = "" if fault.until_s is None else f"{fault.until_s:.1f} s"
        devices = f"{fault.devices:,}" if fault.devices else ""
        rows.append([str(number), fault.kind, f"{fault.at_s:.1f} s", until, devices, fault.detail])
    more = len(result.faults) - FAULTS_LISTED
    note = [f"{more:,} more are in the JSON document"] if more > 0 else []
    return _section("Faults", _table(rows, words=("fault", "detail")) + _notes(note))


def _troubled(report: dict[str, Any]) -> str:
    rows = trouble_rows(report)
    if not rows:
        return '<p class="note">None: everything came once, in order and intact.</p>'
    more = report["troubled_count"] - (len(rows) - 1)
    return _classes(rows, report) + _notes(
        [f"{more:,} more streams had trouble"] if more > 0 else []
    )


def _classes(rows: list[list[str]], report: dict[str, Any]) -> str:
    """A table of classes; what breaks a promise stands out."""
    return _table(rows, words=("topic",), wrong=_broken(rows, report["verdict"]["strict"]))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _notes(lines: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def _table(
    rows: list[list[str]], words: Sequence[str] = (), wrong: Sequence[tuple[int, int]] = ()
) -> str:
    """A table, the first row its titles; columns of `words` read from the left, `wrong` cells
    (row and column) stand out.
    """
    if len(rows) < 2:
        return ""
    columns = [' class="words"' if title in words else "" for title in rows[0]]
    lines = []
    for at, row in enumerate(rows):
        tag = "td" if at else "th"
        cells = [
            f"<{tag}{WRONG if (at, column) in wrong else columns[column]}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"


def _broken(rows: list[list[str]], strict: bool) -> list[tuple[int, int]]:
    """The cells of a table of classes that tell of a broken promise of their row's QoS."""
    titles = rows[0] if rows else []
    found = []
    for at, row in enumerate(rows[1:], 1):
        broken = {name for _, name in promises(int(row[titles.index("QoS")]), strict)}
        for column, title in enumerate(titles):
            name = CLASS_OF.get(title, title.replace(" ", "_"))
            if name in broken and row[column] != "0":
                found.append((at, column))
    return found


def _values(values: dict[str, Any]) -> str:
    """Names and values: short ones as pairs, the others as YAML that unfolds."""
    pairs = []
    folded = []
    for key, value in values.items():
        name = escape(key.replace("_", " "))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict | list) and len(text) > SHORT:
            lines = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
            folded.append(f"<details><summary>{name}</summary><pre>{escape(lines)}</pre></details>")
        else:
            pairs.append(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>")
    listed = f'<dl class="pairs">{"".join(pairs)}</dl>' if pairs else ""
    return listed + "".join(folded)
