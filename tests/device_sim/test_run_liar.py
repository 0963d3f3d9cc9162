"""A scenario against a broker that lies on command: each class exactly, and early ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from device_sim.cli import main
from tests.device_sim.liar import Lies, lying
from tests.net.kit import reserved_port

DEVICES = 3
COUNT = 40
TEXT = """
scenario: lies
drain: 300ms
broker: {{port: {port}}}
groups:
  - name: device
    version: "3.1.1"
    count: 3
    reconnect: {reconnect}
    publish: [{{topic: "x/{{id}}", qos: {qos}, rate: 400, fields: {{n: {{counter: {{}}}}}}}}]
  - {{name: reader, version: "3.1.1", subscribe: [{{filters: ["x/#"], qos: 2}}]}}
stages:
  - {{name: connect, actions: [connect: {{timeout: 30s}}]}}
  - {{name: go, actions: [publish: {{count: 40}}]}}
"""


def run(
    lies: Lies,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
    qos: int = 1,
    reconnect: str = "null",
) -> dict[str, Any]:
    """Run the command against a liar; its result, the exit code checked against it."""
    file = tmp_path / "lies.yaml"
    with lying(lies) as port:
        file.write_text(TEXT.format(port=port, qos=qos, reconnect=reconnect))
        code = main(["run", str(file), "--quiet", "--json", *arguments])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["verdict"]["exit"] == code
    return result


def troubles(result: dict[str, Any]) -> dict[str, int]:
    return {
        name: count
        for name, count in result["totals"]["all"].items()
        if count and name not in ("sent", "received", "acked")
    }


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_honest_broker_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], qos: int
) -> None:
    result = run(Lies(), tmp_path, capsys, qos=qos)
    assert result["verdict"]["exit"] == 0
    assert troubles(result) == {}
    assert result["totals"]["all"]["received"] == DEVICES * COUNT


@pytest.mark.parametrize(
    ("lie", "qos", "expected", "code"),
    [
        ("drop", 0, {"lost": 2}, 0),
        ("drop", 1, {"lost": 2}, 1),
        ("drop", 2, {"lost": 2}, 1),
        ("double", 1, {"duplicated": 2, "unflagged": 2}, 1),
        ("double_with_dup", 1, {"duplicated": 2}, 0),
        ("double_with_dup", 2, {"duplicated": 2}, 1),
        ("swap_with_next", 1, {"reordered": 2}, 1),
        ("corrupt", 1, {"corrupt": 2}, 1),
        ("retain", 1, {"unexpected": 2}, 1),
        ("ignore", 1, {"unacknowledged": 2}, 1),
    ],
)
def test_each_lie_is_counted_exactly(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lie: str,
    qos: int,
    expected: dict[str, int],
    code: int,
) -> None:
    lies = Lies()
    setattr(lies, lie, {3, 20})
    result = run(lies, tmp_path, capsys, qos=qos)
    assert troubles(result) == {name: count * DEVICES for name, count in expected.items()}
    assert result["verdict"]["exit"] == code


def test_loss_at_qos_0_is_bad_when_strict_or_a_threshold_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lies = Lies()
    lies.drop = {3}
    assert run(lies, tmp_path, capsys, "--strict", qos=0)["verdict"]["exit"] == 1
    result = run(lies, tmp_path, capsys, "--fail-on", "lost>2", qos=0)
    assert result["verdict"]["thresholds"] == ["lost>2: it is 3"]
    assert result["verdict"]["exit"] == 1


def test_a_connection_that_is_lost_ends_the_run_of_who_does_not_reconnect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lies = Lies()
    lies.hang_up = {10}
    result = run(lies, tmp_path, capsys)
    assert result["verdict"]["exit"] == 3
    assert result["verdict"]["broken_off"].startswith("device-0000")
    assert result["totals"]["all"]["lost"] == 0


def test_a_connection_that_is_lost_is_told_when_the_device_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lies = Lies()
    lies.hang_up = {10}
    result = run(lies, tmp_path, capsys, reconnect="{first: 20ms}")
    assert result["verdict"]["exit"] == 0, result["verdict"]
    # What was in flight when the connection ended is nobody's fault, and nothing else is missing.
    assert set(troubles(result)) <= {"unknown"}
    assert [fault["kind"] for fault in result["faults"]] == ["connection lost"]
    assert result["faults"][0]["devices"] == DEVICES
    assert "3 connections were lost without the scenario's doing" in result["warnings"][-2]


@pytest.mark.parametrize("lie", ["hang_up", "hang_up_on_reader"])
def test_who_cannot_come_back_breaks_the_run_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lie: str
) -> None:
    lies = Lies()
    setattr(lies, lie, {10})
    lies.knows_nobody_twice = True
    result = run(lies, tmp_path, capsys, reconnect="{first: 20ms}")
    assert result["verdict"]["exit"] == 3, result["totals"]
    assert "couldn't come back at the end: " in result["verdict"]["broken_off"]
    assert result["verdict"]["broken_off"].endswith("refused the connection: not authorized")
    assert result["totals"]["all"]["lost"] == 0


def test_a_session_that_was_never_asked_for_is_a_protocol_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lies = Lies()
    lies.acknowledge_twice = {5}
    result = run(lies, tmp_path, capsys)
    assert result["verdict"]["exit"] == 1
    assert result["violations"] == {"PUBACK for an identifier that is not in flight": DEVICES}


TALK = """
scenario: commands
drain: 300ms
groups:
  - {name: lamp, respond: [{filter: "lamp/{id}", qos: 1}]}
  - name: controller
    request:
      - {topic: "lamp/{target}", targets: lamp, response: "r/{id}", qos: 1, every: 10ms}
stages:
  - {name: connect, actions: [connect: {timeout: 30s}]}
  - {name: go, actions: [publish: {count: 1}]}
"""


@pytest.mark.parametrize(
    ("forgotten", "violations"),
    [
        (set(), {}),
        ({"response_topic"}, {"request without its Response Topic or Correlation Data": 1}),
        (
            {"correlation_data"},
            {
                "request without its Response Topic or Correlation Data": 1,
                "response without Correlation Data": 1,
            },
        ),
    ],
)
def test_what_a_request_is_answered_by_has_to_be_handed_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forgotten: set[str],
    violations: dict[str, int],
) -> None:
    lies = Lies()
    lies.forgets = forgotten
    file = tmp_path / "talk.yaml"
    file.write_text(TALK)
    with lying(lies) as port:
        code = main(["run", str(file), "-p", str(port), "--quiet", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["violations"] == violations
    assert code == (1 if forgotten else 0), result["verdict"]


@pytest.mark.parametrize(
    ("lie", "value", "words"),
    [
        ("connack", 5, "refused the connection: not authorized"),
        ("suback", 0x80, "refused the subscription to x/#"),
    ],
)
def test_who_is_refused_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lie: str, value: int, words: str
) -> None:
    lies = Lies()
    setattr(lies, lie, value)
    result = run(lies, tmp_path, capsys)
    assert result["verdict"]["exit"] == 3
    assert result["verdict"]["broken_off"].endswith(words)


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nobody.yaml"
    with reserved_port() as port:
        file.write_text(TEXT.format(port=port, qos=1, reconnect="{}"))
        assert main(["run", str(file), "--quiet"]) == 3
    assert "BROKEN OFF: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        (["smart-home", "--fail-on", "nonsense"], "--fail-on"),
        (["broker-kill", "-p", "1"], "starts a broker of its own"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "65", "many", "-1"])
def test_how_many_workers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "smart-home", "--workers", text])
    assert ended.value.code == 2
    assert "is not auto, and no number up to 64" in capsys.readouterr().err


ELSEWHERE = """  - {name: bystander, version: "3.1.1"}
stages:
  - {name: connect, actions: [connect: {timeout: 30s}]}
  - {name: fault, actions: [FAULT]}
  - {name: go, actions: [publish: {count: 40}]}
"""


@pytest.mark.parametrize(
    "fault",
    [
        "pause: {groups: [bystander], duration: 10ms}",
        "network: {groups: [bystander], duration: 10ms, delay: 1ms}",
    ],
)
def test_a_fault_excuses_nobody_who_did_not_stand_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    lies = Lies()
    lies.hang_up = {10}
    groups = TEXT.partition("stages:")[0].format(port=0, qos=1, reconnect="null")
    file = tmp_path / "elsewhere.yaml"
    file.write_text(groups + ELSEWHERE.replace("FAULT", fault))
    with lying(lies) as port:
        code = main(["run", str(file), "-p", str(port), "--quiet", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 3, result["verdict"]
    assert result["verdict"]["broken_off"].startswith("device-0000")
    assert "connection lost" in [each["kind"] for each in result["faults"]]
