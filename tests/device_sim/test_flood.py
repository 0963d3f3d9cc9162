"""Whole runs of `device_sim flood` against a broker that lies on command: each class exactly."""

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from device_sim.cli import main
from device_sim.engine.client import reason_text
from device_sim.engine.course import Idle, Sample
from device_sim.engine.flood import Flood
from device_sim.engine.plan import Settings
from mqttd.core import spec
from mqttd.core.properties import Properties
from tests.device_sim.liar import Liar, Lies, lying
from tests.net.kit import PATIENCE, reserved_port, until

DEVICES = 3
COUNT = 40


def flood(lies: Lies, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run the command against a liar; its report, the exit code checked against it."""
    with lying(lies) as port:
        code = main(
            [
                *("flood", "-p", str(port), "-n", str(DEVICES), "-c", str(COUNT)),
                *("--settle", "0.3", "--connect-timeout", str(PATIENCE), "--quiet", "--json"),
                *arguments,
            ]
        )
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["schema"] == "device_sim.result/1"
    assert report["verdict"]["exit"] == code
    return report


def troubles(report: dict[str, Any]) -> dict[str, int]:
    return {
        name: count
        for name, count in report["totals"]["all"].items()
        if count and name not in ("sent", "received", "acked")
    }


@pytest.mark.parametrize("version", ["3.1", "3.1.1", "5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_an_honest_broker_is_good(
    capsys: pytest.CaptureFixture[str], qos: str, version: str
) -> None:
    report = flood(Lies(), capsys, "-q", qos, "-V", version)
    assert report["verdict"] == {
        "exit": 0,
        "broken": [],
        "thresholds": [],
        "broken_off": "",
        "strict": False,
    }
    assert report["totals"]["all"]["sent"] == DEVICES * COUNT
    assert report["totals"]["all"]["received"] == DEVICES * COUNT
    assert troubles(report) == {}
    assert report["violations"] == {}
    assert report["latency_us"]["from_sent"]["count"] == DEVICES * COUNT


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_both_loops_at_a_rate_with_all_the_trimmings(
    capsys: pytest.CaptureFixture[str], loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed: pip install uvloop")
    report = flood(
        *(Lies(), capsys, "-q", "0,1,2", "-r", "200", "--streams", "3", "--watch", "all"),
        *("--subscribers", "2", "-V", "5", "--user-property", "a=b", "--size", "5000"),
        *("--loop", loop, "-u", "me", "-P", "secret", "--topic-pattern", "x/{device}-{stream}"),
    )
    assert report["verdict"]["exit"] == 0
    assert report["environment"]["loop"] == loop
    assert report["tracks"] == DEVICES * 3 * 2
    assert report["totals"]["all"]["received"] == DEVICES * COUNT * 2
    assert report["latency_us"]["from_intended"]["count"] == DEVICES * COUNT * 2
    assert report["throughput"]["asked_per_s"] == 600
    assert "secret" not in json.dumps(report)


@pytest.mark.parametrize(
    ("qos", "strict", "code"), [("0", False, 0), ("0", True, 1), ("1", False, 1), ("2", False, 1)]
)
def test_drops(capsys: pytest.CaptureFixture[str], qos: str, strict: bool, code: int) -> None:
    lies = Lies()
    lies.drop = {0, 5, 6, COUNT - 1}
    report = flood(lies, capsys, "-q", qos, *(["--strict"] if strict else []))
    assert troubles(report) == {"lost": 4 * DEVICES}
    assert report["verdict"]["exit"] == code
    assert report["troubled_count"] == DEVICES


@pytest.mark.parametrize(
    ("qos", "dup", "code"), [("0", False, 1), ("1", False, 1), ("1", True, 0), ("2", True, 1)]
)
def test_doubles(capsys: pytest.CaptureFixture[str], qos: str, dup: bool, code: int) -> None:
    lies = Lies()
    numbers = {1, 2, COUNT - 1}
    if dup:
        lies.double_with_dup = numbers
    else:
        lies.double = numbers
    report = flood(lies, capsys, "-q", qos)
    expected = {"duplicated": 3 * DEVICES}
    if not dup:
        expected["unflagged"] = 3 * DEVICES
    assert troubles(report) == expected
    assert report["verdict"]["exit"] == code


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_swaps(capsys: pytest.CaptureFixture[str], qos: str) -> None:
    lies = Lies()
    lies.swap_with_next = {3, 10}
    report = flood(lies, capsys, "-q", qos)
    assert troubles(report) == {"reordered": 2 * DEVICES}
    assert report["verdict"]["broken"] == [f"QoS {qos}: reordered"]


def test_damage(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.corrupt = {4, 8}
    report = flood(lies, capsys, "-q", "1")
    assert troubles(report) == {"corrupt": 2 * DEVICES}
    assert report["verdict"]["exit"] == 1


def test_all_lies_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.drop = {1, 2}
    lies.double = {5}
    lies.double_with_dup = {7, 8, 9}
    lies.swap_with_next = {11}
    lies.corrupt = {20}
    lies.retain = {25}
    report = flood(lies, capsys, "-q", "1")
    assert {name: count // DEVICES for name, count in troubles(report).items()} == {
        "lost": 2,
        "duplicated": 4,
        "unflagged": 1,
        "reordered": 1,
        "corrupt": 1,
        "unexpected": 1,
    }
    assert report["strays"] == {"marked retained": DEVICES}


def test_messages_on_topics_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.stray = {3}
    report = flood(lies, capsys, "-q", "0")
    assert report["strays"] == {"unknown topic": DEVICES}
    assert report["verdict"]["broken"] == ["unexpected messages on topics of nobody"]


@pytest.mark.parametrize("qos", ["1", "2"])
def test_a_missing_acknowledgement(capsys: pytest.CaptureFixture[str], qos: str) -> None:
    lies = Lies()
    lies.ignore = {6}
    report = flood(lies, capsys, "-q", qos)
    assert troubles(report) == {"unacknowledged": DEVICES}
    assert report["verdict"]["exit"] == 1


@pytest.mark.parametrize("qos", ["1", "2"])
def test_a_refusal_is_not_a_loss(capsys: pytest.CaptureFixture[str], qos: str) -> None:
    lies = Lies()
    lies.refuse = {6, 7}
    report = flood(lies, capsys, "-q", qos, "-V", "5", "-w", str(COUNT))
    assert troubles(report) == {"refused": 2 * DEVICES}
    assert report["verdict"]["exit"] == 0


def test_an_acknowledgement_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.acknowledge_twice = {2}
    report = flood(lies, capsys, "-q", "1")
    assert report["violations"] == {"PUBACK for an identifier that is not in flight": DEVICES}
    assert report["verdict"]["exit"] == 1


def test_a_publisher_that_is_thrown_out_breaks_the_run_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lies = Lies()
    lies.hang_up = {20}
    report = flood(lies, capsys, "-q", "1")
    assert report["verdict"]["exit"] == 3
    assert report["verdict"]["broken_off"]
    assert set(troubles(report)) <= {"unknown"}


def test_the_reason_of_a_disconnect_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.disconnect = {20}
    report = flood(lies, capsys, "-q", "1", "-V", "5")
    assert report["verdict"]["exit"] == 3
    assert "Quota exceeded" in report["verdict"]["broken_off"]


def test_a_subscriber_that_is_thrown_out_breaks_the_run_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lies = Lies()
    lies.hang_up_on_reader = {20}
    report = flood(lies, capsys, "-q", "1", "--subscribers", "1")
    assert report["verdict"]["exit"] == 3
    assert "lost" not in troubles(report)


def test_a_refused_connection(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.connack = 5
    report = flood(lies, capsys)
    assert report["verdict"]["exit"] == 3
    assert "not authorized" in report["verdict"]["broken_off"]


def test_a_refused_subscription(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.suback = 0x80
    report = flood(lies, capsys)
    assert report["verdict"]["exit"] == 3
    assert "refused the subscription" in report["verdict"]["broken_off"]


def test_a_lower_granted_qos_makes_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.suback = 0
    lies.drop = {3}
    report = flood(lies, capsys, "-q", "1")
    assert report["totals"]["qos0"]["lost"] == DEVICES
    assert report["verdict"]["exit"] == 0


def test_a_broker_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.silent = True
    report = flood(lies, capsys, "--connect-timeout", "0.2")
    assert report["verdict"]["exit"] == 3
    assert "no CONNACK within 0.2 s" in report["verdict"]["broken_off"]


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with reserved_port() as port:
        assert main(["flood", "-p", str(port), "--quiet"]) == 3
    assert "BROKEN OFF" in capsys.readouterr().out


def test_a_closed_loop_does_not_wait_for_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_sim.engine.flood.STALL_S", 0.2)
    lies = Lies()
    lies.drop = set(range(10))
    report = flood(lies, capsys, "-w", "10", "-c", "12", "-n", "1")
    assert troubles(report) == {"lost": 10}
    assert report["throughput"]["written_off"] == 10


def test_patience_is_counted_in_polls() -> None:
    numbers = iter([5, 5, 5, 6, 6, 6])
    idle = Idle(lambda: next(numbers))
    assert [idle.poll() for _ in range(5)] == [1, 2, 0, 1, 2]


def test_thresholds(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.drop = {3}
    report = flood(lies, capsys, "--fail-on", "lost>2,p99>100s", "--fail-on", "lost.qos0>3")
    assert report["verdict"]["thresholds"] == ["lost>2: it is 3"]
    assert report["verdict"]["exit"] == 1


def test_without_subscribers_nothing_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    with lying(Lies()) as port:
        code = main(["flood", "-p", str(port), "-c", "5", "--subscribers", "0", "--quiet"])
    assert code == 0
    assert "NOTHING VERIFIED" in capsys.readouterr().out


def test_the_table_and_the_progress_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.drop = {3}
    with lying(lies) as port:
        code = main(
            ["flood", "-p", str(port), "-n", "2", "-r", "50", "-t", "1.2", "-q1", "--settle=0.3"]
        )
    said = capsys.readouterr()
    assert code == 1
    assert "BAD: QoS 1: lost" in said.out
    assert "from intended send" in said.out
    assert re.search(r"(publishing|settling) +4 up  sent +\d+", said.err)


def test_a_terminal_gets_tables_and_a_live_view() -> None:
    pytest.importorskip("rich", reason="rich is not installed: pip install mqttd[sim]")
    lies = Lies()
    lies.drop = {3}
    terminal, its_other_end = pty.openpty()
    with Liar(lies) as port:
        # A run of more than a second shows itself at least once.
        arguments = ["-p", str(port), "-n", "2", "-r", "20", "-t", "1.3", "-q1", "--settle=0.5"]
        with subprocess.Popen(
            [sys.executable, "-m", "device_sim", "flood", *arguments],
            stdout=its_other_end,
            stderr=its_other_end,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        ) as process:
            os.close(its_other_end)
            said = b""
            with contextlib.suppress(OSError):  # a terminal ends with an error
                while data := os.read(terminal, 65536):
                    said += data
            os.close(terminal)
    assert process.returncode == 1
    text = said.decode()
    assert "latency p50 / p99" in text
    assert "BAD: QoS 1: lost" in text
    assert "┃" in text


async def test_silent_connections_are_kept_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("device_sim.engine.course.SAMPLE_S", 0.1)
    liar = Liar(Lies())
    with liar as port:
        settings = Settings(port=port, devices=1, rate=0.01, seconds=600.0, keep_alive=1)
        settings.check()
        flood = Flood(settings, lambda _: None)
        running = asyncio.ensure_future(flood.run())
        await until(lambda: len(liar.pinged) == 2)  # the device and its subscriber
        flood.interrupt()
        await running
    assert flood.verdict.sum("received") == flood.verdict.sum("sent") == 1


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [("maximum_qos", 0, "Maximum QoS is 0"), ("maximum_packet_size", 50, "Packet Size is 50")],
)
def test_what_a_broker_does_not_take_is_not_sent(
    capsys: pytest.CaptureFixture[str], limit: str, value: int, words: str
) -> None:
    lies = Lies()
    lies.connack_properties = Properties()
    setattr(lies.connack_properties, limit, value)
    report = flood(lies, capsys, "-q", "1", "-V", "5")
    assert report["verdict"]["exit"] == 3
    assert words in report["verdict"]["broken_off"]
    assert report["throughput"]["sent"] == 0


def test_a_receive_maximum_bounds_the_window(capsys: pytest.CaptureFixture[str]) -> None:
    lies = Lies()
    lies.connack_properties = Properties()
    lies.connack_properties.receive_maximum = 2
    lies.ignore = set(range(100))
    report = flood(lies, capsys, "-q", "1", "-V", "5", "-r", "500")
    assert report["totals"]["all"]["unacknowledged"] == 2 * DEVICES
    assert report["throughput"]["held_back"] == (COUNT - 2) * DEVICES


async def test_who_interrupts_twice_does_not_wait() -> None:
    lies = Lies()
    lies.drop = set(range(100_000))
    settings = Settings(devices=1, rate=100.0, qos=(1,), seconds=60.0, settle=60.0)
    with Liar(lies) as port:
        settings.port = port
        settings.check()
        samples: list[Sample] = []
        flood = Flood(settings, samples.append)
        running = asyncio.ensure_future(flood.run())
        while not flood.ledger.senders or flood.ledger.senders[0].sent == 0:
            await asyncio.sleep(0.01)
        flood.interrupt()
        flood.interrupt()
        await running
    assert flood.broken_off == "interrupted"
    assert flood.verdict.sum("lost") == 0
    assert flood.verdict.sum("unknown") == flood.verdict.sum("sent") > 0


def test_the_reason_codes_of_both_generations_have_names() -> None:
    assert reason_text(5, spec.MQTT311) == "not authorized"
    assert "0x97" in reason_text(0x97, spec.MQTT5)
