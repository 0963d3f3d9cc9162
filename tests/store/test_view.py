"""`mqttd db` for people: texts, tables, units, and progress on large files."""

import contextlib
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mqttd.store import admin, schema, view
from tests.store.database import (
    NOW,
    ROWS,
    create,
    live,
    set_version,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "mqttd.db", *ROWS)


def test_the_text_of_a_check(tmp_path: Path) -> None:
    path = create(tmp_path / "mqttd.db", *ROWS)
    size = view.size(path.stat().st_size)
    assert view.check_lines(admin.check(path)) == [
        f"{path}: good, 17 checks (schema {schema.VERSION}, {size}, not in use)"
    ]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM messages WHERE id = 2")
        db.execute("UPDATE wills SET client = 'x' || char(27) || '[2J'")
        lines = view.check_lines(admin.check(path))
    assert lines == [
        "delivery-without-message: a delivery has lost its message",
        "    2 times, for example message 2",
        "will-without-session: a will belongs to nobody",
        r"    once: client x\x1b[2J",
        f"{path}: bad, 2 kinds of finding (schema {schema.VERSION}, {size}, not in use)",
    ]
    set_version(path, 7)
    with live(path):
        *_, note, verdict = view.check_lines(admin.check(path))
    assert "note: it was written by a newer mqttd" in note
    assert verdict == f"{path}: of a newer mqttd (schema 7, {size}, in use by process 4711)"


def test_the_text_of_the_figures(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE sessions SET client = 'b' || char(10) WHERE client = 'b'")
    document = admin.stats(path, now=NOW)
    document["file_bytes"] = 3 << 20
    lines = view.stats_lines(document)
    assert lines[0] == str(path)
    assert lines[2].startswith("file                      3.0 MiB  ")
    assert lines[4:6] == [
        "sessions                        3  1 connected when last written, 1 expire within a day",
        "subscriptions                   2",
    ]
    assert lines[10] == "rows of plugins                 3  4 B in 2 tables"
    assert lines[11].startswith("queued messages                 3  70 B")
    assert lines[12].startswith("oldest of them         1 min 40 s  20")
    assert lines[14:] == [
        "",
        "deepest queues  messages  payload      oldest",
        "a                      2     30 B  1 min 40 s",
        r"b\n                    1     20 B        50 s",
        "$share/g/t/#           1     40 B        10 s",
    ]
    assert len(view.stats_lines(admin.stats(path, 0))) == 14
    document["plugin_rows"]["tables"] = 1
    assert view.stats_lines(document)[10].endswith("  4 B in 1 table")


@pytest.mark.parametrize("rich", [True, False])
def test_the_tables_of_a_terminal(
    rich: bool,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    if not rich:
        monkeypatch.setitem(sys.modules, "rich.table", None)
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "200")
    view.stats(path, top=2, as_json=False)
    text = out.getvalue()
    assert ("│" in text) is rich
    assert "1 connected when last written" in text
    assert "deepest queues" in text
    assert "$share" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (59.9, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (90061, "1 d 1 h"),
    ],
)
def test_ages(seconds: float | None, text: str) -> None:
    assert view.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert view.size(count) == text


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with view.Lines(lambda: now) as far:
        far("pages", 0, 0)
        for now in (0.5, 1.9, 2.1, 2.2):
            far("copying", int(now * 10), 40)
        for now in (2.6, 2.7):
            far("copying", int(now * 10), 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["mqttd: pages ...", "mqttd: copying  12 %", "mqttd: copying  65 %"]


def test_progress_by_rich(capsys: pytest.CaptureFixture[str]) -> None:
    with view.Bar() as far:
        far("pages", 0, 0)
        far("copying", 1, 2)
    assert capsys.readouterr().out == ""


def test_progress_suits_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert type(view.progress(path, quiet=False)) is view.Progress
    assert type(view.progress(path.with_name("none"), quiet=False)) is view.Progress
    monkeypatch.setattr(view, "LARGE", 1)
    assert type(view.progress(path, quiet=True)) is view.Progress
    assert type(view.progress(path, quiet=False)) is view.Lines
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(view.progress(path, quiet=False)) is view.Bar
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert type(view.progress(path, quiet=False)) is view.Lines


def test_progress_of_each_call(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view, "LARGE", 1)
    assert view.check(path, as_json=True, quiet=False) == "good"
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "good"
    assert [line.split()[1] for line in err.splitlines()] == ["pages", "rows"]
    view.backup(path, tmp_path / "copy.db", force=False, as_json=False, quiet=False)
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'copy.db'}: ")
    assert [line.split()[1] for line in err.splitlines()] == ["copying", "checking", "writing"]


def test_no_broker_is_imported() -> None:
    program = (
        "import sys, mqttd.store.view;"
        " print([name for name in sys.modules if name.startswith('mqttd.core')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
