"""What `mqttd db` shows: the documents of `mqttd.store.admin` for people, and how far it is.

Owns: the words, the units and the tables, by rich on a terminal where that is installed, else as
aligned text; progress on standard error, for large files only.

Must not know: SQL, how anything was found out; exit codes.

Invariants: everything shown stands in the document too; what clients named themselves can't steer
the terminal of whoever reads it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from mqttd.store import admin
from mqttd.store import backup as copying
from mqttd.store.admin import Document

LARGE: Final = 64 << 20  # from here on it takes long enough to want to know how far it is

_EVERY_S: Final = 2.0

Row = tuple[str, ...]


# How far it is.


class Progress:
    """Shows nothing."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to tidy up."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """`done` of `total` of `step`; a total of 0 says that nobody knows."""


class Lines(Progress):
    """A line a step, and one every two seconds within it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step = ""
        self._at = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = self._clock()
        if step == self._step and now - self._at < _EVERY_S:
            return
        self._step = step
        self._at = now
        share = f" {100 * done // total:3} %" if total else " ..."
        print(f"mqttd: {step}{share}", file=sys.stderr, flush=True)


class Bar(Progress):
    """A bar that is redrawn in place, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bars

        self._bars = Bars(console=Console(stderr=True), transient=True)
        self._task = self._bars.add_task("", total=None)

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        self._bars.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        self._bars.update(self._task, description=step, completed=done, total=total or None)


def progress(path: Path, quiet: bool) -> Progress:
    """What suits the size of the file and standard error."""
    try:
        small = path.stat().st_size < LARGE
    except OSError:
        small = True  # the call itself will say what is wrong
    if quiet or small:
        return Progress()
    if sys.stderr.isatty():
        try:
            return Bar()
        except ImportError:
            return Lines()
    return Lines()


# The calls: find out, show, and say whether it was good.


def check(path: Path, *, as_json: bool, quiet: bool) -> str:
    """Shows what is wrong with a database; the verdict: `good`, `bad` or `newer`."""
    with progress(path, quiet) as far:
        document = admin.check(path, far)
    if as_json:
        _print_json(document)
    else:
        for line in check_lines(document):
            print(line)
    verdict: str = document["verdict"]
    return verdict


def stats(path: Path, *, top: int, as_json: bool) -> None:
    """Shows what is in a database."""
    document = admin.stats(path, top)
    if as_json:
        _print_json(document)
    else:
        _show(document)


def backup(path: Path, target: Path, *, force: bool, as_json: bool, quiet: bool) -> None:
    """Makes a backup and says what it holds."""
    with progress(path, quiet) as far:
        document = copying.backup(path, target, force=force, progress=far)
    if as_json:
        _print_json(document)
    else:
        print(
            f"{document['target']}: {size(document['bytes'])}, whole, with everything that was"
            f" acknowledged until {instant(document['as_of'])}"
        )


def failed(action: str, path: Path, text: str) -> None:
    """The document of a call that found out nothing."""
    schema = {"check": admin.CHECK, "stats": admin.STATS, "backup": copying.BACKUP}[action]
    _print_json({"schema": schema, "file": str(path), "error": text})


def _print_json(document: Document) -> None:
    print(json.dumps(document, indent=2))


# Check.


def check_lines(document: Document) -> list[str]:
    """What was found, and the verdict last."""
    lines = []
    for finding in document["findings"]:
        count = finding["count"]
        times = f"{count:,} times, for example" if count > 1 else "once:"
        lines.append(f"{finding['check']}: {finding['meaning']}")
        lines.append(f"    {times} {safe(str(finding['example']))}")
    path = document["file"]
    lines += [f"{path}: note: {text}" for text in document["notes"]]
    version = document["schema_version"]
    about = [] if version is None else [f"schema {version}"]
    about += [size(document["file_bytes"]), used(document)]
    if document["findings"]:
        found = len(document["findings"])
        verdict = f"bad, {found} {'kinds' if found > 1 else 'kind'} of finding"
    elif document["verdict"] == "newer":
        verdict = "of a newer mqttd"
    else:
        verdict = f"good, {document['checks']} checks"
    return [*lines, f"{path}: {verdict} ({', '.join(about)})"]


def used(document: Document) -> str:
    """Whether a broker has it."""
    taken = document["in_use"]
    if taken is None:
        return "perhaps in use: its lock file can't be read"
    if not taken:
        return "not in use"
    return f"in use by process {document['in_use_by'] or 'unknown'}"


# Stats.


def stats_rows(document: Document) -> list[Row]:
    """The whole database, a line a figure."""
    sessions = document["sessions"]
    retained = document["retained"]
    plugins = document["plugin_rows"]
    tables = plugins["tables"]
    messages = document["messages"]
    deliveries = document["deliveries"]
    free = document["free_pages"]
    rows: list[Row] = [
        ("schema version", f"{document['schema_version']}", ""),
        ("file", size(document["file_bytes"]), f"{document['pages']:,} pages, {free:,} free"),
        ("log", size(document["log_bytes"]), used(document)),
        (
            "sessions",
            f"{sessions['total']:,}",
            f"{sessions['connected']:,} connected when last written, {sessions['expiring_soon']:,}"
            " expire within a day",
        ),
        ("subscriptions", f"{document['subscriptions']:,}", ""),
        ("shared groups", f"{document['shared_groups']:,}", ""),
        ("wills", f"{document['wills']:,}", ""),
        ("QoS 2 exchanges begun", f"{document['inbound']:,}", ""),
        ("retained messages", f"{retained['count']:,}", size(retained["bytes"])),
        (
            "rows of plugins",
            f"{plugins['count']:,}",
            f"{size(plugins['bytes'])} in {tables:,} {'table' if tables == 1 else 'tables'}",
        ),
        ("queued messages", f"{messages['count']:,}", size(messages["bytes"])),
        ("oldest of them", age(messages["oldest_age_s"]), instant(messages["oldest_stored_at"])),
        (
            "deliveries",
            f"{deliveries['total']:,}",
            f"{deliveries['queued']:,} queued, {deliveries['sent']:,} sent,"
            f" {deliveries['released']:,} released",
        ),
    ]
    if deliveries["ended"]:
        rows.append(("of ended sessions", f"{deliveries['ended']:,}", "being deleted"))
    return rows


QUEUE_TITLES: Final = ("deepest queues", "messages", "payload", "oldest")


def queue_rows(document: Document) -> list[Row]:
    """The deepest queues."""
    return [
        (
            safe(queue["share"] if queue["client"] is None else queue["client"]),
            f"{queue['messages']:,}",
            size(queue["bytes"]),
            age(queue["oldest_age_s"]),
        )
        for queue in document["queues"]
    ]


def stats_lines(document: Document) -> list[str]:
    """Both tables as aligned text."""
    lines = [safe(document["file"])]
    rows = stats_rows(document)
    left, right = (max(len(row[at]) for row in rows) for at in (0, 1))
    lines += [f"{a:<{left}}  {b:>{right}}  {c}".rstrip() for a, b, c in rows]
    queues = [QUEUE_TITLES, *queue_rows(document)]
    if len(queues) > 1:
        widths = [max(len(row[at]) for row in queues) for at in range(len(QUEUE_TITLES))]
        lines.append("")
        for name, *figures in queues:
            cells = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return lines


def _show(document: Document) -> None:
    if sys.stdout.isatty():
        try:
            tables = _tables(document)
        except ImportError:
            pass
        else:
            from rich.console import Console

            console = Console(highlight=False)
            for table in tables:
                console.print(table)
            return
    for line in stats_lines(document):
        print(line)


def _tables(document: Document) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    whole = Table(title=Text(safe(document["file"])), show_header=False)
    whole.add_column()
    whole.add_column(justify="right")
    whole.add_column()
    for row in stats_rows(document):
        whole.add_row(*map(Text, row))
    tables = [whole]
    queues = queue_rows(document)
    if queues:
        deepest = Table()
        for at, title in enumerate(QUEUE_TITLES):
            deepest.add_column(title, justify="right" if at else "left")
        for row in queues:
            deepest.add_row(*map(Text, row))
        tables.append(deepest)
    return tables


# Units.


def safe(text: str) -> str:
    """Text of a stranger, without what would steer a terminal."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def size(count: int) -> str:
    """Bytes."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def age(seconds: float | None) -> str:
    """How long ago, in its two largest units."""
    if seconds is None:
        return "-"
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def instant(wall: float | None) -> str:
    """A time of day, in the time zone of whoever asks."""
    return "" if wall is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(wall))
