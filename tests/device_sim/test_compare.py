"""Two results side by side: what is worse, what is better, what can't be said."""

import json
from pathlib import Path

import pytest

from device_sim.cli import main
from device_sim.results.compare import compare, tolerance_of
from device_sim.results.result import BROKEN_OFF, Result
from tests.device_sim.results import histogram, result


def worse(before: Result, after: Result, tolerance: float = 0.1) -> list[str]:
    return [row.name for row in compare(before, after, tolerance) if row.worse]


def better(before: Result, after: Result) -> list[str]:
    return [row.name for row in compare(before, after, 0.1) if row.better]


def slower(factor: float) -> Result:
    """The same run with other latencies and rates."""
    made = result()
    made.measure("from_sent", histogram(*(int(v * factor) for v in range(100, 60_000, 50))))
    made.throughput.publish_s *= factor
    made.judge([])
    return made


def test_a_result_is_not_worse_than_itself() -> None:
    made = result(lost=3, unknown=2)
    assert worse(made, made, 0.0) == []
    assert better(made, made) == []


def test_slower_within_the_tolerance_is_not_worse() -> None:
    assert worse(slower(1.0), slower(1.09)) == []
    assert worse(slower(1.0), slower(1.2), tolerance=0.25) == []


def test_slower_beyond_it_is_in_every_figure() -> None:
    latencies = [f"latency from actual send, p{percent}" for percent in ("50", "90", "99", "99.9")]
    assert worse(slower(1.0), slower(1.2)) == ["sent", "received", *latencies]
    assert better(slower(1.2), slower(1.0)) == ["sent", "received", *latencies]


@pytest.mark.parametrize("name", ["lost", "stale", "missing_will", "corrupt"])
def test_one_broken_promise_more_is_worse_whatever_the_tolerance(name: str) -> None:
    before, after = result(**{name: 3}), result(**{name: 4})
    assert worse(before, after, 9.9) == [f"{name.replace('_', ' ')}, QoS 1"]
    assert worse(after, before, 0.0) == []
    assert "verdict" in worse(result(), after, 9.9)


def test_classes_are_compared_as_shares() -> None:
    before, after = result(lost=2), result(lost=3)
    after.totals["qos1"]["sent"] *= 2
    assert worse(before, after) == []


def test_allowed_duplicates_and_unknown_ones_are_shown_and_not_judged() -> None:
    before, after = result(), result(duplicated=5, unknown=5)
    assert worse(before, after) == []
    names = [row.name for row in compare(before, after, 0.1)]
    assert "duplicated, QoS 1" in names
    assert "unknown, QoS 1" in names


def test_protocol_errors_and_a_run_that_was_broken_off() -> None:
    after = result()
    after.violations = {"x": 1}
    after.verdict.broken_off = "interrupted"
    after.verdict.exit = BROKEN_OFF
    assert worse(result(), after) == ["verdict", "protocol errors"]


def test_a_percentile_needs_values_in_both_runs() -> None:
    few = result()
    few.measure("from_sent", histogram(*range(99)))
    names = [row.name for row in compare(result(), few, 0.1)]
    assert "latency from actual send, p90" in names
    assert "latency from actual send, p99" not in names


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), (" 0 ", 0.0)])
def test_a_tolerance(text: str, share: float) -> None:
    assert tolerance_of(text) == share


@pytest.mark.parametrize("text", ["", "ten", "-1", "10 %%", "1e3"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(ValueError, match="is not like 10%"):
        tolerance_of(text)


def store(place: Path, made: Result) -> str:
    place.write_text(made.to_json())
    return str(place)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = store(tmp_path / "good.json", result())
    bad = store(tmp_path / "bad.json", result(lost=1))
    assert main(["compare", good, good]) == 0
    assert capsys.readouterr().out.endswith("NOT WORSE, within 10%\n")
    assert main(["compare", good, bad]) == 1
    assert capsys.readouterr().out.endswith("WORSE: verdict; lost, QoS 1\n")
    assert main(["compare", bad, good, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["worse"] is False
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["lost, QoS 1"] == {
        "name": "lost, QoS 1",
        "unit": "per million",
        "before": 5000.0,
        "after": 0.0,
        "ratio": 0.0,
        "worse": False,
        "better": True,
    }


def test_a_generator_that_was_the_limit_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = result()
    made.throughput.generator_cpu = 0.99
    made.judge([])
    path = store(tmp_path / "busy.json", made)
    assert main(["compare", path, path]) == 0
    assert "before was generator-bound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.json", "missing.json"], "missing.json: No such file"),
        (["good.json", "rubbish.json"], "rubbish.json: Invalid JSON"),
        (["good.json", "good.json", "--tolerance", "much"], "--tolerance: 'much' is not like 10%"),
    ],
)
def test_usage(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "good.json", result())
    (tmp_path / "rubbish.json").write_text("{")
    assert main(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err
