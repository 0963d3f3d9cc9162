"""The command line: sub-commands, exit codes, and what is told where."""

import asyncio
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mqttd
from mqttd import cli
from mqttd.config import Config


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Replaces the composition root; holds the configurations that it was given."""
    configs: list[Config] = []

    class App:
        def __init__(self, config: Config) -> None:
            configs.append(config)

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
    [["nonesuch"], ["run", "--loop", "trio"], ["check"], ["check", "--schema", "-c", "f"], ["-x"]],
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
