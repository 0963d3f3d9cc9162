"""`bench.durable` in small: every command comes to its end, and counts what it should.

No assertion here is about speed. The generator runs uncompiled and mqttd from where the suite has
it, so that nothing is built.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import mqttd
from bench import durable

HERE = str(Path(mqttd.__file__).resolve().parents[1])
SMALL = ["--rounds", "1", "--publishers", "4", "--pure", "--package", HERE, "--cores", "both"]


def run(tmp_path: Path, command: str, *more: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.json"
    place = ["--dir", str(tmp_path), "--json", str(out)]
    assert durable.main([command, *SMALL, *place, *more]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    result: list[dict[str, Any]] = json.loads(out.read_text())["summary"]
    return result


def test_offline_stores_what_it_acknowledges(tmp_path: Path) -> None:
    peers = ["--peers", "mqttd-full,mqttd-none", "--in-flight", "1,5", "--seconds", "0.4"]
    rows = run(tmp_path, "offline", *peers)
    assert [(row["peer"], row["in_flight"]) for row in rows] == [
        ("mqttd-full", 1),
        ("mqttd-none", 1),
        ("mqttd-full", 5),
        ("mqttd-none", 5),
    ]
    for row in rows:
        assert row["figures"]["msgs_s"] > 0
        assert row["figures"]["p99_us"] >= row["figures"]["p50_us"] > 0
        assert row["figures"]["stored"] == row["figures"]["acknowledged"] > 0
        assert row["ratio"] == 1.0 or row["peer"] == "mqttd-none"
        assert row["faults"] == {}


def test_online_leaves_nothing_behind(tmp_path: Path) -> None:
    peers = ["--peers", "mqttd-memory,mqttd-full", "--in-flight", "3", "--seconds", "0.4"]
    memory, full = run(tmp_path, "online", *peers)
    assert memory["ratio"] == 1.0
    assert full["ratio"] > 0
    assert full["figures"]["left"] == 0
    assert memory["faults"] == full["faults"] == {}


@pytest.mark.parametrize(("command", "sessions"), [("drain", 1), ("restart", 8)])
def test_queues_survive_a_restart_and_are_emptied(
    tmp_path: Path, command: str, sessions: int
) -> None:
    sizes = ["--messages", "400", "--sessions", str(sessions), "--in-flight", "7"]
    (row,) = run(tmp_path, command, "--peers", "mqttd-full", *sizes)
    assert row["figures"]["acknowledged"] == row["figures"]["received"] == 400
    assert row["figures"]["left"] == 0
    assert row["figures"]["ready_s"] > 0
    assert row["faults"] == {}


def test_ratios_are_taken_inside_rounds() -> None:
    def one(peer: str, number: int, rate: float, cost: float) -> durable.Run:
        return durable.Run(peer, "one", 10, number, {"msgs_s": rate, "cpu_us": cost})

    runs = [
        one("mqttd-memory", 0, 100.0, 1.0),
        one("mqttd-full", 0, 50.0, 4.0),
        one("mqttd-memory", 1, 10.0, 2.0),
        one("mqttd-full", 1, 9.0, 4.0),
        one("mqttd-memory", 2, 100.0, 1.0),
        durable.Run("mqttd-full", "one", 10, 2, error="did not start"),
    ]
    runs[3].figures["lost"] = 2.0
    memory, full = durable.summarise(runs, "msgs_s", "cpu_us")
    assert (memory.ratio, memory.cpu_ratio, memory.notes()) == (1.0, 1.0, "")
    assert full.ratio == pytest.approx(0.7)
    assert full.cpu_ratio == pytest.approx(0.375)
    assert full.notes() == "1 runs failed: did not start; BAD: 2 lost"
    assert "did not start" in durable.table("online", [memory, full])


@pytest.mark.parametrize(
    "arguments", [["offline", "--in-flight", "0"], ["offline", "--cores", "all"], []]
)
def test_wrong_commands_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        durable.main(arguments)
    assert error.value.code == 2


def test_numbers_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert durable.main(["drain", "--messages", "101"]) == 2
    assert durable.main(["restart", "--messages", "1000", "--sessions", "120"]) == 2
    assert durable.main(["offline", "--peers", "nobody"]) == 2
    assert "no variant is called 'nobody'" in capsys.readouterr().err
