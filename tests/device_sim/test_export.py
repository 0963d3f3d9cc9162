"""The CSV of a run's seconds, its promises as JUnit test cases, and where files are written."""

import argparse
import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import pytest

from device_sim.engine.plan import UsageError
from device_sim.judge.thresholds import parse
from device_sim.results.export import CSV_COLUMNS, csv_series, junit
from device_sim.results.outputs import add_outputs, write
from device_sim.results.result import BROKEN_OFF, Result
from tests.device_sim.results import result


def cases(made: Result) -> dict[str, str]:
    """Test cases by name, with what they failed of."""
    suite = ElementTree.fromstring(junit(made)).find("testsuite")
    assert suite is not None
    found = {}
    for case in suite.iter("testcase"):
        problem = case.find("failure")
        if problem is None:
            problem = case.find("error")
        group = (case.get("classname") or "").rpartition(".")[2]
        found[f"{group}: {case.get('name')}"] = (
            "" if problem is None else problem.get("message", "")
        )
    assert suite.get("tests") == str(len(found))
    failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    assert failed == sum(1 for problem in found.values() if problem)
    return found


def test_a_line_for_each_second_with_the_faults_that_began_in_it() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_series(result()))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["at_s"] for row in rows] == [f"{second}.000" for second in range(1, 13)]
    assert [row["faults"] for row in rows if row["faults"]] == ["network", "disconnect"]
    assert rows[3]["faults"] == "network"
    assert (rows[2]["sent"], rows[2]["sent_per_s"], rows[2]["received"]) == ("300", "100.0", "299")
    assert (rows[2]["p50_us"], rows[2]["max_us"]) == ("1001.5", "120000")


def test_every_promise_is_a_case_and_a_kept_one_passes() -> None:
    found = cases(result())
    assert set(found.values()) == {""}
    assert "QoS 1: not lost" in found
    assert "QoS 1: not duplicated without DUP" in found
    assert "QoS 2: not duplicated" in found
    assert "QoS 2: not missing will" in found
    assert "run: ran to its end" in found
    assert not any(name.startswith("QoS 0") for name in found)


def test_broken_promises_and_limits_fail_with_their_numbers() -> None:
    made = result(lost=3, stale=1)
    made.judge(parse(["p99>50ms,lost>5"]))
    failed = {name: problem for name, problem in cases(made).items() if problem}
    assert failed == {
        "QoS 1: not lost": "lost: 3 of 200",
        "QoS 1: not stale retained": "stale retained: 1 of 200",
        "limits: not p99>50ms": made.verdict.thresholds[0],
    }
    assert "fleet/0/gps → subscriber 0: 3" in junit(made)


def test_a_run_that_was_broken_off_and_protocol_errors() -> None:
    made = result()
    made.verdict.broken_off = "p1: connection reset"
    assert made.judge([]) == BROKEN_OFF
    assert cases(made)["run: ran to its end"] == "p1: connection reset"
    made.violations = {"PUBREL for an identifier that is not in flight": 1}
    made.judge([])
    assert "PUBREL" in cases(made)["run: no protocol error"]


def test_a_name_that_xml_cannot_hold() -> None:
    made = result(lost=1)
    made.troubled[0].topic = "<a>\x00\x1b&\ud800"
    made.scenario.name = "x\x0b"
    assert "QoS 1: not lost" in cases(made)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_outputs(parser)
    return parser.parse_args(arguments)


def test_all_files_at_once_and_the_tables_besides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: str(tmp_path / name) for name in ("json", "report", "csv", "junit", "save-hgrm")}
    arguments = [word for name, path in names.items() for word in (f"--{name}", path)]
    made = result()
    write(made, options(*arguments))
    shown = capsys.readouterr().out
    assert shown.startswith("3 vehicles → 1 back end")
    assert "disconnect  8.0 s" in shown
    assert shown.endswith("GOOD: every promise was kept\n")
    assert Result.from_json(Path(names["json"]).read_bytes()) == made
    assert Path(names["report"]).read_text().startswith("<!doctype html>")
    assert Path(names["csv"]).read_text().count("\n") == 13
    ElementTree.fromstring(Path(names["junit"]).read_bytes())
    assert "Percentile" in Path(names["save-hgrm"]).read_text()
    assert (tmp_path / "save-hgrm.connect").exists()


def test_json_instead_of_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    made = result()
    write(made, options("--json"))
    assert Result.from_json(capsys.readouterr().out) == made


@pytest.mark.parametrize("option", ["--json", "--report", "--csv", "--junit", "--save-hgrm"])
def test_a_file_that_cannot_be_written_is_named(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "missing" / "file")
    with pytest.raises(UsageError, match=rf"{option} .*missing/file: "):
        write(result(), options(option, target))
