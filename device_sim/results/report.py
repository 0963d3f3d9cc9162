"""What is said about a run to people who read a terminal.

Everything here is rendered from the document of a result (result.py), so nothing is shown that a
machine couldn't read: a headline, the classes by QoS, latencies, the streams in most trouble, what
was done to the run, remarks, and the verdict as the last line.
"""

import sys
from typing import Any, Final

from device_sim.judge.verdict import CLASSES

Document = dict[str, Any]


def duration(microseconds: float) -> str:
    """A duration with a unit that suits it."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def headline(report: Document) -> str:
    """What was run."""
    return str(report["scenario"]["headline"])


COLUMNS: Final = (
    ("to deliver", "sent"),
    ("received", "received"),
    ("lost", "lost"),
    ("duplicated", "duplicated"),
    ("no DUP", "unflagged"),
    ("reordered", "reordered"),
    ("corrupt", "corrupt"),
    ("unexpected", "unexpected"),
)
RARE: Final = (
    ("late", "late"),
    ("unknown", "unknown"),
    ("refused", "refused"),
    ("unacknowledged", "unacknowledged"),
    ("stale retained", "stale"),
    ("missing retained", "missing_retained"),
    ("missing will", "missing_will"),
)
"""Columns that are shown when they are needed."""
CLASS_OF: Final = dict((*COLUMNS, *RARE))
"""The class that a column of the table shows."""


def ledger_rows(report: Document) -> list[list[str]]:
    """The table of classes by QoS, first row the titles."""
    totals = report["totals"]
    columns = [*COLUMNS, *(column for column in RARE if totals["all"][column[1]])]
    rows = [["QoS", *(title for title, _ in columns)]]
    for qos in ("qos0", "qos1", "qos2"):
        if qos in totals:
            numbers = totals[qos]
            rows.append([qos[3:], *(f"{numbers[name]:,}" for _, name in columns)])
    return rows


def latency_rows(report: Document) -> list[list[str]]:
    """The table of latencies, first row the titles."""
    rows = [["latency", "p50", "p90", "p99", "p99.9", "p99.99", "max"]]
    sources = (
        ("from intended send", report["latency_us"]["from_intended"]),
        ("from actual send", report["latency_us"]["from_sent"]),
        ("connect to CONNACK", report["connect"]["latency_us"]),
        ("request to response", (report["requests"] or {}).get("round_trip_us")),
    )
    for title, numbers in sources:
        if numbers is not None and numbers["count"]:
            rows.append([title, *(duration(numbers[name]) for name in rows[0][1:])])
    return rows


def trouble_rows(report: Document) -> list[list[str]]:
    """The tracks in most trouble, first row the titles; empty when there are none."""
    if not report["troubled"]:
        return []
    shown = [name for name in CLASSES if name != "acked"]
    names = [name for name in shown if any(track[name] for track in report["troubled"])]
    rows = [["topic", "QoS", "subscriber", *(name.replace("_", " ") for name in names)]]
    for track in report["troubled"][:10]:
        numbers = [f"{track[name]:,}" for name in names]
        rows.append([track["topic"], str(track["qos"]), str(track["subscriber"]), *numbers])
    return rows


def fault_rows(report: Document) -> list[list[str]]:
    """What was done to the run, first row the titles; empty when nothing was."""
    if not report["faults"]:
        return []
    rows = [["fault", "from", "to", "devices", ""]]
    for fault in report["faults"]:
        until = "" if fault["until_s"] is None else f"{fault['until_s']:.1f} s"
        devices = f"{fault['devices']:,}" if fault["devices"] else ""
        rows.append([fault["kind"], f"{fault['at_s']:.1f} s", until, devices, fault["detail"]])
    return rows


def remarks(report: Document) -> list[str]:
    """What else a reader should know, a sentence each."""
    throughput = report["throughput"]
    workers = report["scenario"]["workers"]
    who = f"the busiest of {workers} processes" if workers > 1 else "this process"
    found = [
        f"sent {throughput['sent']:,} in {throughput['publish_s']:.2f} s: "
        f"{throughput['sent_per_s']:,.0f}/s, received {throughput['received_per_s']:,.0f}/s; "
        f"{who} used {throughput['generator_cpu']:.0%} of a core"
        + (", they had " if workers > 1 else " and ")
        + f"{throughput['generator_memory'] / 1e6:,.0f} MB of memory"
    ]
    asked = throughput["asked_per_s"]
    if asked is not None:
        lag = throughput["pacing_lag_us"]
        late = f"; pacing was at most {duration(lag['p99'])} late 99 % of the time" if lag else ""
        found.append(f"asked for {asked:,.0f}/s{late}")
    if throughput["generator_bound"]:
        found.append(
            "generator-bound: this process was too busy, or the machine too full, to keep up"
        )
    if throughput["held_back"]:
        found.append(
            f"{throughput['held_back']:,} messages were due but not sent: window or socket was full"
        )
    if throughput["written_off"]:
        found.append(f"{throughput['written_off']:,} deliveries were no longer waited for")
    found.extend(f"unexpected, {why}: {count:,}" for why, count in report["strays"].items())
    found.extend(f"protocol, {what}: {count:,}" for what, count in report["violations"].items())
    if report["troubled_count"] > 10:
        found.append(f"{report['troubled_count']:,} tracks had trouble; the worst are listed")
    return found


def conclusion(report: Document) -> str:
    """The last line: the verdict."""
    verdict = report["verdict"]
    wrong = [*verdict["broken"], *verdict["thresholds"]]
    off = verdict["broken_off"]
    if wrong:
        return f"BAD: {'; '.join(wrong)}" + (f" (and broken off: {off})" if off else "")
    if off:
        return f"BROKEN OFF: {off}"
    if not report["tracks"]:
        return "NOTHING VERIFIED: there were no subscribers"
    return "GOOD: every promise was kept"


def _tables(report: Document) -> list[list[list[str]]]:
    return [ledger_rows(report), latency_rows(report), trouble_rows(report), fault_rows(report)]


def plain(report: Document) -> str:
    """The report as text."""
    parts = [headline(report), ""]
    for rows in _tables(report):
        if len(rows) > 1:
            parts.extend([*_aligned(rows), ""])
    parts.extend(remarks(report))
    parts.extend(f"warning: {text}" for text in report["warnings"])
    parts.append(conclusion(report))
    return "\n".join(parts)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells.extend(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines


def show(report: Document) -> None:
    """Print the report: coloured tables on a terminal when rich is installed, plain text else."""
    if not sys.stdout.isatty():
        print(plain(report))
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain(report))
        return
    console = Console(highlight=False)
    console.print(headline(report), style="bold")
    for rows in _tables(report):
        if len(rows) < 2:
            continue
        table = Table()
        for at, title in enumerate(rows[0]):
            table.add_column(title, justify="left" if at == 0 else "right")
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    for text in remarks(report):
        console.print(text, markup=False)
    for text in report["warnings"]:
        console.print(f"warning: {text}", style="yellow", markup=False)
    style = {0: "bold green", 1: "bold red"}.get(report["verdict"]["exit"], "bold yellow")
    console.print(conclusion(report), style=style, markup=False)
