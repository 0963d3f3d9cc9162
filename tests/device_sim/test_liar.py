"""Scenarios against a broker that lies on command: wills, retained messages, delays, exactly.

test_flood does the same for what a flood can show: drops, copies, swaps, damage, strays, refusals.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from device_sim.cli import main
from tests.device_sim.liar import Lies, lying

DEVICES = 4
SCENARIO = f"""
scenario: liar
seed: 1
drain: 500ms
groups:
  - name: device
    count: {DEVICES}
    offline: skip
    will: {{topic: "gone/{{id}}", payload: "x", qos: 1}}
    reconnect: {{first: 50ms, most: 50ms}}
    publish:
      - {{name: state, topic: "state/{{id}}", qos: 1, every: 50ms, retain: true}}
  - name: reader
    count: 1
    subscribe:
      - filters: ["state/+", "gone/+"]
        qos: 1
  - name: late
    count: 2
    subscribe:
      - filters: ["state/+"]
        qos: 1
stages:
  - name: connect
    actions:
      - connect: {{groups: [reader]}}
      - connect: {{groups: [device]}}
  - name: publish
    actions:
      - publish: {{count: 6}}
  - name: settle
    actions:
      - wait: {{until: settled}}
  - name: latecomers
    actions:
      - connect: {{groups: [late]}}
  - name: they see what is retained
    actions:
      - wait: {{until: settled}}
  - name: the end of the devices
    duration: 300ms
    actions:
      - disconnect: {{groups: [device], mode: MODE}}
"""


def run(
    lies: Lies, place: Path, capsys: pytest.CaptureFixture[str], mode: str = "reset"
) -> dict[str, Any]:
    """The result of the scenario against a liar."""
    file = place / "liar.yaml"
    file.write_text(SCENARIO.replace("MODE", mode))
    with lying(lies) as port:
        code = main(["run", str(file), "-p", str(port), "--quiet", "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["verdict"]["exit"] == code
    return result


def troubles(result: dict[str, Any]) -> dict[str, int]:
    large = ("sent", "received", "acked", "unknown")
    counts: dict[str, int] = result["totals"]["all"]
    return {name: count for name, count in counts.items() if count and name not in large}


def honest() -> Lies:
    lies = Lies()
    lies.retains = True
    return lies


def test_an_honest_broker_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(honest(), tmp_path, capsys)
    assert result["verdict"]["broken"] == []
    assert result["verdict"]["exit"] == 0
    assert troubles(result) == {}


@pytest.mark.parametrize(
    ("lie", "value", "counted", "broken"),
    [
        ("drop_will", {1, 2}, {"missing_will": 2}, "QoS 1: missing will"),
        (
            "double_will",
            {0, 3},
            {"duplicated": 2, "unflagged": 2},
            "QoS 1: duplicated without DUP",
        ),
        ("replays_the_first", True, {"stale": 2 * DEVICES}, "QoS 1: stale retained"),
        ("replays_nothing", True, {"missing_retained": 2 * DEVICES}, "QoS 1: missing retained"),
    ],
)
def test_a_lie_is_counted_exactly(
    lie: str,
    value: object,
    counted: dict[str, int],
    broken: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lies = honest()
    setattr(lies, lie, value)
    result = run(lies, tmp_path, capsys)
    assert troubles(result) == counted
    assert result["verdict"]["broken"] == [broken]


def test_a_will_after_a_disconnect_is_unexpected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert troubles(run(honest(), tmp_path, capsys, mode="clean")) == {}
    lies = honest()
    lies.will_for_everybody = True
    result = run(lies, tmp_path, capsys, mode="clean")
    assert troubles(result) == {"unexpected": DEVICES}
    assert result["strays"] == {"will after a DISCONNECT": DEVICES}


def test_a_delay_is_no_trouble_and_shows_in_the_latency(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lies = Lies()
    lies.delay = {3, 4, 5}
    with lying(lies) as port:
        arguments = ["-n", "2", "-c", "10", "-r", "20", "-q", "1", "--settle", "0.3"]
        arguments += ["--report", str(tmp_path / "page.html"), "--junit", str(tmp_path / "x.xml")]
        code = main(["flood", "-p", str(port), "--quiet", "--json", *arguments])
    assert "GOOD: every promise was kept" in (tmp_path / "page.html").read_text()
    assert 'failures="0" errors="0"' in (tmp_path / "x.xml").read_text()
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert troubles(result) == {}
    # Message 3 comes with message 6, which is due three intervals later.
    assert result["latency_us"]["from_intended"]["max"] >= 150_000


def test_faults_and_stages_stand_on_the_time_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(honest(), tmp_path, capsys)
    (fault,) = [each for each in result["faults"] if each["kind"] == "disconnect"]
    assert fault["devices"] == DEVICES
    stages = {stage["name"]: stage for stage in result["stages"]}
    assert list(stages)[:2] == ["connect", "publish"]
    last = stages["the end of the devices"]
    assert last["at_s"] <= fault["at_s"] <= last["until_s"] + 0.1
