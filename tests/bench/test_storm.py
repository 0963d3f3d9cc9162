"""`bench.storm` in small, and what it makes of its figures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import mqttd
from bench import storm

HERE = str(Path(mqttd.__file__).resolve().parents[1])
ANY_TIME = ["--limit", "60000"]


def test_figures() -> None:
    found = storm.figures_of([n / 1000 for n in range(100, 0, -1)])
    assert found == {"messages": 100, "p50_ms": 50.0, "p99_ms": 99.0, "max_ms": 100.0}
    assert storm.figures_of([0.002])["p99_ms"] == 2.0
    assert math.isnan(storm.figures_of([])["p99_ms"])


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ({}, False),
        ({"lost": 1}, True),
        ({"logins": {"clients": 3, "in": 2}}, True),
        ({"storm": {"p99_ms": 50.1}}, True),
        ({"storm": {"p99_ms": math.nan}}, True),
    ],
)
def test_verdict(change: dict[str, Any], bad: bool) -> None:
    good = {"lost": 0, "logins": {"clients": 3, "in": 3}, "storm": {"p99_ms": 50.0}}
    assert storm.is_bad({**good, **change}, 50.0) is bad


def test_a_short_storm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    few = ["--clients", "5", "--pairs", "2", "--seconds", "0.1"]
    words = [*few, *ANY_TIME, "--package", HERE, "--settings", "patient", "--json", str(out)]
    assert storm.main(words) == 0
    (run,) = json.loads(out.read_text())["runs"]
    assert run["setting"] == "patient"
    assert run["logins"]["in"] == run["logins"]["clients"] == 5
    assert run["lost"] == 0
    assert run["quiet"]["messages"] >= 10
    assert "5 of 5 in after" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--settings", "other"], ["--clients", "0"]])
def test_usage(words: list[str]) -> None:
    assert storm.main(words) == 2
