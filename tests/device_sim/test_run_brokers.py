"""Scenarios on brokers in processes of their own: Debian's mosquitto, and both of them killed.

test_run has what is promised by an mqttd in this process.
"""

import json
from pathlib import Path

import pytest

from device_sim.cli import main
from tests.device_sim.test_brokers import mosquitto, mosquitto_program
from tests.tls import Authority

MIXED = """
scenario: mixed
drain: 10s
broker: {{port: {port}}}
groups:
  - name: old
    version: "3.1.1"
    count: 3
    session_expiry: 1h
    offline: keep
    reconnect: {{first: 20ms}}
    flaky: {{up: 300ms, down: 50ms}}
    will: {{topic: "gone/{{id}}", qos: 1}}
    publish:
      - topic: "x/{{id}}/{{stream}}"
        qos: [1, 2]
        streams: 2
        rate: 40
        fields: {{n: {{counter: {{}}}}}}
  - name: new
    count: 3
    reconnect: {{first: 50ms}}
    publish:
      - {{topic: "y/{{id}}", qos: 2, rate: 40, retain: true, user_properties: {{a: b}}, expiry: 1m}}
  - name: reader
    count: 2
    session_expiry: 1h
    reconnect: {{first: 20ms}}
    subscribe:
      - {{filters: ["x/#", "gone/+"], qos: 2}}
      - {{filters: ["y/+"], qos: 1, retain_handling: new}}
  - name: worker
    count: 2
    subscribe: [{{filters: ["y/+"], qos: 2, share: crew}}]
  - name: asking
    request:
      - topic: "do/{{target}}"
        targets: answering
        response: "did/{{id}}"
        qos: 1
        every: 20ms
  - {{name: answering, count: 2, respond: [{{filter: "do/{{id}}", qos: 1, delay: 5ms}}]}}
stages:
  - {{name: connect, actions: [connect: {{over: 100ms, arrival: poisson}}]}}
  - name: go
    duration: 1200ms
    actions:
      - publish: {{duration: 1s}}
      - disconnect: {{at: 200ms, groups: [reader], mode: reset}}
      - disconnect: {{at: 500ms, groups: [new], mode: half_open, fraction: 0.3}}
"""


def test_a_mixed_fleet_with_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mosquitto(tmp_path, None) as port:
        file = tmp_path / "mixed.yaml"
        file.write_text(MIXED.format(port=port))
        code = main(["run", str(file), "--quiet", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0, (result["verdict"], result["violations"], result["troubled"])
    assert result["totals"]["qos1"]["received"] > 100
    assert result["totals"]["qos2"]["received"] > 100
    assert result["totals"]["all"]["lost"] == 0
    assert result["histograms"]["round_trip"]["count"] > 10
    assert [fault["kind"] for fault in result["faults"]].count("disconnect") == 2


def test_over_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    text = f"""
scenario: tls
broker: {{tls: {{ca: {authority.file}}}, host: localhost}}
groups:
  - {{name: device, count: 2, publish: [{{topic: "x/{{id}}", qos: 1, size: 64}}]}}
  - {{name: insecure, tls: {{insecure: true}}, subscribe: [{{filters: ["x/#"], qos: 1}}]}}
stages:
  - {{name: connect, actions: [connect: {{}}]}}
  - {{name: go, actions: [publish: {{count: 50}}]}}
"""
    file = tmp_path / "tls.yaml"
    file.write_text(text)
    with mosquitto(tmp_path, authority) as port:
        assert main(["run", str(file), "-p", str(port), "--quiet"]) == 0
        file.write_text(text.replace(f"{{ca: {authority.file}}}", "{}"))
        assert main(["run", str(file), "-p", str(port), "--quiet"]) == 3
    assert "BROKEN OFF" in capsys.readouterr().out


def test_a_broker_that_is_killed_under_two_workers_keeps_what_it_acknowledged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--scale", "0.06", "--speed", "20", "--quiet", "--json", "--workers", "2"]
    code = main(["run", "broker-kill", *arguments])
    result = json.loads(capsys.readouterr().out)
    assert code == 0, (result["verdict"], result["violations"], result["troubled"])
    assert result["scenario"]["workers"] == 2
    totals = result["totals"]["all"]
    assert totals["received"] == totals["sent"] > 100
    assert result["histograms"]["from_sent"]["count"] == totals["received"]
    assert [stage["name"] for stage in result["stages"]][:2] == ["connect", "killed"]
    # What both of them saw is on the time line once.
    assert [fault["kind"] for fault in result["faults"]].count("kill_broker") == 2


STOPPED = """
scenario: a mosquitto that comes back
drain: 2s
broker:
  start:
    command: [PROGRAM, -c, "{dir}/mosquitto.conf"]
    timeout: 30s
    files:
      mosquitto.conf: |
        listener {port} 127.0.0.1
        allow_anonymous true
        persistence true
        persistence_location {dir}/
        max_queued_messages 0
profiles:
  # Mosquitto 2.0.11 keeps no session over a restart that began with Clean Start.
  kept: {clean_start: false, session_expiry: 1h, reconnect: {first: 50ms, most: 200ms}}
groups:
  - name: device
    profile: kept
    count: 2
    publish: [{topic: "x/{id}", qos: [1, 2], rate: 100}]
  - {name: away, profile: kept, subscribe: [{filters: ["x/#"], qos: 2}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: away, actions: [disconnect: {groups: [away]}]}
  - {name: queue, actions: [publish: {count: 20}]}
  - {name: settle, actions: [wait: {groups: [device], until: settled}]}
  - {name: stop, actions: [kill_broker: {signal: SIGNAL}, restart_broker: {at: 100ms}]}
  - {name: back, actions: [connect: {groups: [away]}]}
"""


@pytest.mark.parametrize(
    ("signal", "code", "received", "lost", "sessions"),
    [("term", 0, 40, 0, 0), ("kill", 1, 0, 40, 3)],
)
def test_mosquitto_keeps_what_is_queued_when_it_is_stopped_and_not_when_it_is_killed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    signal: str,
    code: int,
    received: int,
    lost: int,
    sessions: int,
) -> None:
    program = mosquitto_program()
    file = tmp_path / "stopped.yaml"
    file.write_text(STOPPED.replace("PROGRAM", program).replace("SIGNAL", signal))
    assert main(["run", str(file), "--quiet", "--json"]) == code
    result = json.loads(capsys.readouterr().out)
    totals = result["totals"]["all"]
    assert (totals["sent"], totals["received"], totals["lost"]) == (40, received, lost)
    assert sum(result["violations"].values()) == sessions
    assert all(what.startswith("session lost") for what in result["violations"])
    assert [fault["kind"] for fault in result["faults"]][1:] == ["kill_broker", "restart_broker"]
