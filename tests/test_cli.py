"""The command line: sub-commands, exit codes, and what is told where."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mqttd
from mqttd import cli
from mqttd.config import Config
from mqttd.store import schema
from tests.store.database import ROWS, create, damage, set_version


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Replaces the composition root; holds the configurations that it was given."""
    configs: list[Config] = []

    class App:
        def __init__(self, config: Config) -> None:
            configs.append(config)

        def warnings(self) -> list[str]:
            return configs[-1].warnings()

        async def run(self) -> int:
            await asyncio.sleep(0)
            return 0

    module = types.ModuleType("mqttd.app")
    module.App = App  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mqttd.app", module)
    monkeypatch.setattr("mqttd.log.setup", lambda *_: None)
    return configs


@pytest.fixture
def bad(tmp_path: Path) -> str:
    file = tmp_path / "bad.yaml"
    file.write_text("limits:\n  max_inflght: 3\n")
    return str(file)


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "good.yaml"
    file.write_text("limits:\n  max_inflight: 3\n")
    return str(file)


def test_run_without_a_file_uses_the_defaults(seen: list[Config]) -> None:
    assert cli.main(["run"]) == 0
    assert seen == [Config()]


def test_run_with_a_file(seen: list[Config], good: str) -> None:
    assert cli.main(["run", "-c", good, "--loop", "asyncio"]) == 0
    assert seen[0].limits.max_inflight == 3


def test_run_refuses_a_bad_file(
    seen: list[Config], bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "-c", bad]) == 2
    assert seen == []
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mqttd: {bad}:2:3 limits.max_inflght: unknown key")
    assert "did you mean 'max_inflight'?" in err


def test_run_refuses_an_unknown_loop(
    seen: list[Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MQTTD_LOOP", "nonesuch")
    assert cli.main(["run"]) == 2
    assert "unknown event loop 'nonesuch'" in capsys.readouterr().err


def test_run_warns(seen: list[Config], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("listeners: [{name: t, bind: '0.0.0.0:0'}]\n")
    assert cli.main(["run", "-c", str(file)]) == 0
    assert "nobody can connect" in str(caplog.records[0].__dict__)


def test_check(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-c", good]) == 0
    assert capsys.readouterr() == (f"{good}: good\n", "")
    assert cli.main(["check", "-c", bad]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert cli.main(["check", "-c", good + ".none"]) == 2
    assert "can't be read (No such file or directory)" in capsys.readouterr().err


def test_check_as_json(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--json", "-c", good]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict == {"file": good, "good": True, "problems": [], "warnings": []}
    assert cli.main(["check", "--json", "-c", bad]) == 2
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["good"] is False
    problem = verdict["problems"][0]
    assert (problem["file"], problem["line"], problem["column"]) == (bad, 2, 3)
    assert problem["path"] == "limits.max_inflght"


def test_check_shows_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("listeners: [{name: t, bind: '0.0.0.0:1883'}]\n")
    assert cli.main(["check", "-c", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{file}: good\n"
    assert err.startswith(f"mqttd: {file}: warning: listener t: nobody can connect")


def test_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "mqttd configuration"


@pytest.mark.parametrize(
    "argv",
    [
        *(["nonesuch"], ["run", "--loop", "trio"], ["check"], ["check", "--schema", "-c", "f"]),
        *(["-x"], ["db"], ["db", "check"], ["db", "backup", "f"], ["db", "stats", "f", "--force"]),
        *(["db", "stats", "f", "--top", "-1"], ["db", "stats", "f", "--top", "many"]),
    ],
)
def test_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "examples:" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "mqttd run -c config/dev.yaml" in out
    assert "exit code: 0 good, 1 the verdict is bad, 2 usage or configuration" in out


def test_version(build: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    python = ".".join(map(str, sys.version_info[:3]))
    expected = f"mqttd {mqttd.__version__} (CPython {python}, {build}, "
    assert capsys.readouterr().out.startswith(expected)


def test_version_without_a_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MQTTD_LOOP", "nonesuch")
    assert cli.main(["--version"]) == 0
    assert "no event loop: unknown event loop 'nonesuch'" in capsys.readouterr().out


def test_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mqttd", "check", "-c", "none.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mqttd: none.yaml: can't be read (No such file or directory)\n"


def test_a_reader_that_stops_reading() -> None:
    program = (
        "import os, sys; from mqttd import cli; r, w = os.pipe(); os.close(r); os.dup2(w, 1);"
        " sys.exit(cli.main(['check', '--schema']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return create(tmp_path / "mqttd.db", *ROWS)


def test_db_check(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["db", "check", str(database)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{database}: good, ")
    assert err == ""
    assert cli.main(["db", "check", "--json", "-q", str(database)]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "mqttd.db.check/1"
    set_version(database, schema.VERSION + 1)
    assert cli.main(["db", "check", str(database)]) == 2
    assert f"{database}: of a newer mqttd" in capsys.readouterr().out
    damage(database)
    assert cli.main(["db", "check", str(database)]) == 1
    assert f"{database}: bad, 1 kind of finding" in capsys.readouterr().out


def test_db_stats(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["db", "stats", str(database)]) == 0
    out, err = capsys.readouterr()
    assert "$share/g/t/#" in out
    assert err == ""
    assert cli.main(["db", "stats", "--json", "--top", "1", str(database)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "mqttd.db.stats/1"
    assert len(document["queues"]) == 1


def test_db_backup(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = database.with_name("copy.db")
    words = ["db", "backup", str(database), str(target)]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{target}: ")
    assert err == ""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"mqttd: {target}: is there already; choose another name, or say --force\n"
    assert cli.main([*words, "--force", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "mqttd.db.backup/1"
    damage(database)
    assert cli.main([*words, "--force"]) == 1
    assert "no backup was made" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["check", "stats", "backup"])
def test_db_without_a_database(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "none.db")
    words = ["db", action, file, *(["copy.db"] if action == "backup" else [])]
    text = f"{file}: can't be read (No such file or directory)"
    assert cli.main(words) == 2
    assert capsys.readouterr() == ("", f"mqttd: {text}\n")
    assert cli.main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": f"mqttd.db.{action}/1", "file": file, "error": text}
    assert err == f"mqttd: {text}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_db_that_is_stopped(
    number: signal.Signals,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By hand or by a service manager: what was begun is taken away."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("mqttd.store.backup._sync", lambda _: os.kill(os.getpid(), number))
    # A shell starts what it runs in the background with SIGINT ignored, this suite as well.
    by_hand = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = cli.main(["db", "backup", str(database), str(database.with_name("copy.db"))])
    finally:
        signal.signal(signal.SIGINT, by_hand)
    assert code == 1
    assert capsys.readouterr() == ("", "mqttd: stopped\n")
    assert [each.name for each in database.parent.iterdir()] == ["mqttd.db"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("action", ["check", "stats", "backup"])
def test_db_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["db", action, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"mqttd db {action} /var/lib/mqttd/mqttd.db" in out
    assert "exit code: 0 good, 1 the database is damaged or wrong, 2" in out
