"""What is said about a run: one document for machines, and its rendering for people.

`document` turns a finished run into plain dictionaries, lists, strings and numbers; its layout is
versioned by `schema` (a number that grows when a key changes its meaning or goes; new keys may come
at any time). Everything people see, the table and the verdict line, is rendered from that document,
so nothing is shown that a machine couldn't read.
"""

import os
import platform
import sys
from typing import Any, Final

from device_sim import histogram as histogram_module
from device_sim import ledger as ledger_module
from device_sim.flood import Flood, Sample
from device_sim.histogram import Histogram
from device_sim.plan import VERSIONS
from device_sim.thresholds import Figures, Threshold
from device_sim.verdict import CLASSES, Outcome

SCHEMA: Final = "device_sim.flood/1"
GOOD: Final = 0
BROKEN: Final = 1
USAGE: Final = 2
BROKEN_OFF: Final = 3
BUSY: Final = 0.9
"""A generator that used this share of a core was, or nearly was, the limit itself."""
LATE_US: Final = 20_000
"""So was one whose pacing came this late, once in a hundred ticks or more often."""

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)

Document = dict[str, Any]


def document(
    flood: Flood, strict: bool, thresholds: list[Threshold], warnings: list[str]
) -> Document:
    """Everything about a finished run."""
    settings = flood.settings
    verdict = flood.verdict
    ledger = flood.ledger
    seconds = max(flood.publish_s, 1e-9)
    cpu = flood.cpu_s / seconds if flood.publish_s else 0.0
    rate = flood.sent_in_time / seconds
    broken = verdict.broken(strict)
    broken.extend(f"protocol: {what}" for what in flood.violations)
    latency = ledger.from_intended if settings.paced else ledger.from_sent
    figures = Figures(verdict, latency, ledger.from_sent, flood.connect_times, rate)
    failed = [text for text in (each.broken(figures) for each in thresholds) if text]
    code = GOOD
    if flood.broken_off:
        code = BROKEN_OFF
    if broken or failed:
        code = BROKEN
    return {
        "schema": SCHEMA,
        "run": f"{flood.run_id:08x}",
        "verdict": {
            "exit": code,
            "broken": broken,
            "thresholds": failed,
            "broken_off": flood.broken_off,
            "strict": strict,
        },
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "loop": flood.loop_name,
            "compiled": not str(ledger_module.__file__).endswith(".py"),
        },
        "settings": _settings(flood),
        "totals": {
            "all": {name: verdict.sum(name) for name in CLASSES},
            **{f"qos{qos}": verdict.totals[qos].numbers() for qos in sorted(verdict.totals)},
        },
        "tracks": sum(total.tracks for total in verdict.totals.values()),
        "strays": verdict.strays,
        "violations": flood.violations,
        "throughput": {
            "asked_per_s": settings.rate * settings.devices if settings.paced else None,
            "sent": flood.sent_in_time,
            "sent_per_s": rate,
            "received_per_s": flood.received_in_time / seconds,
            "publish_s": flood.publish_s,
            "settle_s": flood.settle_s,
            "held_back": flood.held_back,
            "written_off": flood.written_off,
            "generator_cpu": cpu,
            "generator_bound": cpu >= BUSY or flood.pacing_lag.percentile(99) >= LATE_US,
            "pacing_lag_us": _latency(flood.pacing_lag) if settings.paced else None,
        },
        "latency_us": {
            "resolution": histogram_module.RESOLUTION,
            "from_sent": _latency(ledger.from_sent),
            "from_intended": _latency(ledger.from_intended) if settings.paced else None,
        },
        "connect": {"seconds": flood.connect_s, "latency_us": _latency(flood.connect_times)},
        "series": [_sample(sample) for sample in flood.series],
        "troubled": [_outcome(outcome) for outcome in verdict.troubled],
        "troubled_count": verdict.troubled_count,
        "warnings": warnings,
    }


def _settings(flood: Flood) -> Document:
    settings = flood.settings
    names = {number: name for name, number in VERSIONS.items()}
    return {
        "host": settings.host,
        "port": settings.port,
        "version": names[settings.version],
        "tls": settings.tls,
        "devices": settings.devices,
        "rate": settings.rate,
        "qos": list(settings.qos),
        "seconds": settings.seconds,
        "count": settings.count,
        "size": settings.size,
        "window": settings.window,
        "streams": settings.streams,
        "subscribers": settings.subscribers,
        "subscriber_qos": settings.subscriber_qos,
        "watch": settings.watch,
        "pattern": settings.pattern,
        "user_properties": len(settings.user_properties),
        "keep_alive": settings.keep_alive,
        "settle": settings.settle,
    }


def _latency(histogram: Histogram) -> Document:
    found: Document = {"count": histogram.count, "mean": histogram.mean()}
    for percent in PERCENTILES:
        found[f"p{percent:g}"] = histogram.percentile(percent)
    found["min"] = histogram.minimum if histogram.count else 0
    found["max"] = histogram.maximum
    return found


def _sample(sample: Sample) -> Document:
    return {
        "phase": sample.phase,
        "at_s": round(sample.elapsed_s, 3),
        "connected": sample.connected,
        "sent": sample.sent,
        "received": sample.received,
        "sent_per_s": round(sample.sent_per_s, 1),
        "received_per_s": round(sample.received_per_s, 1),
        "outstanding": sample.outstanding,
        "p50_us": sample.p50_us,
        "p99_us": sample.p99_us,
    }


def _outcome(outcome: Outcome) -> Document:
    return {
        "topic": outcome.topic,
        "publisher": outcome.publisher,
        "stream": outcome.stream,
        "qos": outcome.qos,
        "subscriber": outcome.subscriber,
        **outcome.numbers(),
    }


def duration(microseconds: float) -> str:
    """A duration with a unit that suits it."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def headline(report: Document) -> str:
    """What was run."""
    settings = report["settings"]
    pace = f"{settings['rate']:g}/s each" if settings["rate"] else f"window {settings['window']}"
    qos = "/".join(str(level) for level in settings["qos"])
    return (
        f"{settings['host']}:{settings['port']}  MQTT {settings['version']}"
        f"{' over TLS' if settings['tls'] else ''}  {settings['devices']} devices, {pace}, "
        f"QoS {qos}, {settings['size']} bytes  →  {settings['subscribers']} subscribers"
    )


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
RARE: Final = ("late", "unknown", "refused", "unacknowledged")


def ledger_rows(report: Document) -> list[list[str]]:
    """The table of classes by QoS, first row the titles."""
    totals = report["totals"]
    rare = [name for name in RARE if totals["all"][name]]
    rows = [["QoS", *(title for title, _ in COLUMNS), *rare]]
    for qos in ("qos0", "qos1", "qos2"):
        if qos in totals:
            numbers = totals[qos]
            row = [qos[3:], *(f"{numbers[name]:,}" for _, name in COLUMNS)]
            rows.append(row + [f"{numbers[name]:,}" for name in rare])
    return rows


def latency_rows(report: Document) -> list[list[str]]:
    """The table of latencies, first row the titles."""
    rows = [["latency", "p50", "p90", "p99", "p99.9", "p99.99", "max"]]
    sources = (
        ("from intended send", report["latency_us"]["from_intended"]),
        ("from actual send", report["latency_us"]["from_sent"]),
        ("connect to CONNACK", report["connect"]["latency_us"]),
    )
    for title, numbers in sources:
        if numbers is not None and numbers["count"]:
            rows.append([title, *(duration(numbers[name]) for name in rows[0][1:])])
    return rows


def trouble_rows(report: Document) -> list[list[str]]:
    """The tracks in most trouble, first row the titles; empty when there are none."""
    if not report["troubled"]:
        return []
    names = [name for name in CLASSES if any(track[name] for track in report["troubled"])]
    rows = [["topic", "QoS", "subscriber", *names]]
    for track in report["troubled"][:10]:
        numbers = [f"{track[name]:,}" for name in names]
        rows.append([track["topic"], str(track["qos"]), str(track["subscriber"]), *numbers])
    return rows


def remarks(report: Document) -> list[str]:
    """What else a reader should know, a sentence each."""
    throughput = report["throughput"]
    found = [
        f"sent {throughput['sent']:,} in {throughput['publish_s']:.2f} s: "
        f"{throughput['sent_per_s']:,.0f}/s, received {throughput['received_per_s']:,.0f}/s; "
        f"this process used {throughput['generator_cpu']:.0%} of a core"
    ]
    asked = throughput["asked_per_s"]
    if asked is not None:
        late = duration(throughput["pacing_lag_us"]["p99"])
        found.append(f"asked for {asked:,.0f}/s; pacing was at most {late} late 99 % of the time")
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


def plain(report: Document) -> str:
    """The report as text."""
    parts = [headline(report), ""]
    for rows in (ledger_rows(report), latency_rows(report), trouble_rows(report)):
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
    for rows in (ledger_rows(report), latency_rows(report), trouble_rows(report)):
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
    style = {GOOD: "bold green", BROKEN: "bold red"}.get(report["verdict"]["exit"], "bold yellow")
    console.print(conclusion(report), style=style, markup=False)
