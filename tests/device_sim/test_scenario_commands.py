"""`device_sim schema`, `check` and `plan`: what they print, and their exit codes."""

import json
from pathlib import Path

import pytest

from device_sim.cli import main
from device_sim.engine import limits
from device_sim.language.load import json_schema


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "smart-home", "--scale", "0.1"]) == 0
    assert "good, 111 devices in 3 stages" in capsys.readouterr().out
    bad = tmp_path / "bad.yaml"
    bad.write_text("scenario: x\ngroups: []\nstages: 3\n")
    assert main(["check", str(bad)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{bad}:2:9 groups: found a list, expected at least 1 of them",
        f"{bad}:3:9 stages: found 3, expected a list",
    ]
    assert main(["plan", str(bad)]) == 2


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "broker-kill", "--scale", "0.1", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "broker kill, seed 3"
    assert "  device once   20/s  QoS 2  kill/device-00000/once   to 1" in lines
    assert lines[-1].startswith("in all 11 connections, 3,500 messages, 3,500 deliveries")


def test_plan_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "broker-kill", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plan["stages"]] == [
        "connect",
        "killed",
        "stopped",
        "all back",
    ]
    assert plan["streams"][1]["rate"] == 500


def test_plan_warns_of_what_will_run_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "file_limit", lambda need: 100)
    assert main(["plan", "broker-kill"]) == 0
    assert "warning: 104 connections need 168 open files" in capsys.readouterr().err
    # Each of 500 vehicles is carried by a proxy, which has two sockets of its own for it.
    assert main(["plan", "vehicle-fleet"]) == 0
    assert "warning: 506 connections need 1570 open files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["--scale", "0"], ["--scale", "x"], ["--speed", "-1"], ["--seed", "-1"], ["--seed", "9" * 30]],
)
def test_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "smart-home", *wrong])
    assert ended.value.code == 2
    assert wrong[1] in capsys.readouterr().err
