"""Runs of scenarios against an mqttd in the same process: what is promised is kept, and counted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from device_sim.engine.plan import UsageError
from device_sim.engine.run import Run
from device_sim.engine.run_result import remarks, run_result
from device_sim.judge.thresholds import parse as terms
from device_sim.language.load import elsewhere, load, parse
from device_sim.language.scenario import Scenario
from device_sim.results.result import Result
from mqttd.app import App
from tests.device_sim.test_run_brokers import MIXED
from tests.net.kit import loopback, running, until
from tests.tls import Authority

DRAIN = "drain: 10s\n"


def scenario(text: str) -> Scenario:
    return parse(DRAIN + text)


@contextlib.asynccontextmanager
async def broker(**more: Any) -> AsyncIterator[App]:
    async with running({"listeners": [loopback()], **more}) as app:
        yield app


def port_of(app: App) -> int:
    return app.listeners[0].port


async def run_on(
    app: App, wanted: Scenario, meanwhile: Callable[[Run], Any] | None = None, **more: Any
) -> tuple[Run, Result]:
    """A run against a broker, and its judged result."""
    run = Run(elsewhere(wanted, "127.0.0.1", port_of(app)), lambda sample: None, **more)
    if meanwhile is not None:
        task = asyncio.ensure_future(meanwhile(run))
        await run.run()
        await task
    else:
        await run.run()
    result = run_result(run, "test", 1.0, False, [])
    result.warnings = remarks(result)
    result.judge(terms(wanted.thresholds))
    return run, result


def troubles(result: Result) -> dict[str, int]:
    return {
        name: count
        for name, count in result.totals["all"].items()
        if count and name not in ("sent", "received", "acked")
    }


def assert_good(result: Result) -> None:
    assert result.verdict.exit == 0, result.verdict
    assert result.totals["all"]["lost"] == 0
    assert result.violations == {}


SIMPLE = """
scenario: simple
groups:
  - name: device
    count: 6
    version: "{version}"
    publish:
      - {{topic: "a/{{id}}/0", qos: [0, 1, 2], rate: 50, count: 20}}
      - topic: "b/{{id}}/{{stream}}"
        qos: 2
        streams: 3
        rate: 50
        count: 20
        fields: {{n: {{counter: {{}}}}}}
  - name: reader
    count: 2
    version: "{version}"
    subscribe: [{{filters: ["a/#", "b/+/+"], qos: 2}}]
stages:
  - {{name: connect, actions: [connect: {{}}]}}
  - {{name: go, actions: [publish: {{count: 20}}]}}
"""


@pytest.mark.parametrize("version", ["3.1", "3.1.1", "5"])
async def test_everything_is_delivered(version: str) -> None:
    async with broker() as app:
        run, result = await run_on(app, scenario(SIMPLE.format(version=version)))
    assert_good(result)
    assert result.totals["all"]["sent"] == 6 * 20 * 2 * 2
    assert result.totals["all"]["received"] == 6 * 20 * 2 * 2
    assert result.totals["qos0"]["sent"] == 2 * 20 * 2
    assert result.tracks == 6 * (1 + 3) * 2
    assert troubles(result) == {}
    assert result.throughput.sent == 6 * 20 * 2
    assert [stage.name for stage in result.stages] == ["connect", "go"]
    assert result.histograms["from_intended"].count == 6 * 20 * 2 * 2
    assert result.faults == []
    assert not any(device.ghosts or device.up for device in run.everybody)


async def test_a_closed_loop_and_what_it_may_have_in_flight() -> None:
    text = """
scenario: closed loop
groups:
  - name: device
    count: 3
    window: 4
    publish:
      - {topic: "x/{id}/1", qos: 1, size: 100}
      - {topic: "x/{id}/0", qos: 0, fields: {n: {counter: {}}}}
  - {name: reader, subscribe: [{filters: ["x/#"], qos: 2}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, actions: [publish: {count: 200}]}
"""
    async with broker() as app:
        _, result = await run_on(app, scenario(text))
    assert_good(result)
    assert result.totals["qos0"]["received"] == 3 * 200
    assert result.totals["qos1"]["received"] == 3 * 200
    assert "from_intended" not in result.histograms
    assert result.throughput.asked_per_s is None


async def test_devices_that_drop_sleep_and_hang_lose_nothing_they_were_promised() -> None:
    text = """
scenario: bad links
profiles:
  kept: {session_expiry: 1h, offline: keep, reconnect: {first: 20ms, most: 100ms}}
groups:
  - name: flaky
    profile: kept
    count: 4
    flaky: {up: 150ms, down: 30ms, mode: reset}
    publish: [{topic: "x/{id}", qos: 1, rate: 40}, {topic: "y/{id}", qos: 2, rate: 40}]
  - name: sleepy
    profile: kept
    count: 3
    sleep: {awake: 150ms, asleep: 80ms}
    subscribe: [{filters: ["x/#", "y/#"], qos: 2}]
  - {name: steady, profile: kept, count: 3, subscribe: [{filters: ["x/#"], qos: 1}]}
  - name: vanishing
    profile: kept
    count: 3
    flaky: {up: 200ms, down: 30ms, mode: half_open}
    subscribe: [{filters: ["x/#", "y/#"], qos: 2}]
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    duration: 1s
    actions:
      - publish: {duration: 800ms}
      - disconnect: {at: 300ms, groups: [flaky], mode: half_open, fraction: 0.5}
      - pause: {at: 200ms, groups: [steady], duration: 200ms, fraction: 0.4}
      - slow_reader: {at: 500ms, groups: [vanishing], duration: 200ms, rate: 2KiB}
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    assert result.totals["qos1"]["received"] == result.totals["qos1"]["sent"] > 4 * 30 * 6
    assert result.totals["qos2"]["received"] == result.totals["qos2"]["sent"] > 4 * 30 * 6
    assert result.totals["qos2"]["duplicated"] == 0
    kinds = [fault.kind for fault in result.faults]
    assert {"disconnect", "pause", "slow_reader"} <= set(kinds)
    pause = result.faults[kinds.index("pause")]
    assert pause.devices == 1
    assert pause.until_s is not None
    assert pause.until_s - pause.at_s >= 0.19
    assert len(run.around.connect_times.buckets()) > 0
    assert run.around.connect_times.count > 10  # they did come back


async def test_who_has_no_session_is_owed_nothing_while_it_is_away() -> None:
    text = """
scenario: no session
groups:
  - {name: device, count: 2, publish: [{topic: "x/{id}", qos: 1, rate: 100}]}
  - name: reader
    reconnect: {first: 200ms}
    subscribe: [{filters: ["x/#"], qos: 1}]
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    duration: 700ms
    actions: [publish: {}, disconnect: {at: 150ms, groups: [reader], mode: reset}]
"""
    async with broker() as app:
        _, result = await run_on(app, scenario(text))
    assert_good(result)
    numbers = result.totals["qos1"]
    assert numbers["unknown"] > 0
    assert numbers["received"] + numbers["unknown"] == numbers["sent"]


async def test_skip_and_keep_of_what_becomes_due_offline() -> None:
    text = """
scenario: offline
groups:
  - name: skip
    reconnect: {first: 300ms}
    publish: [{topic: "skip", qos: 1, rate: 100}]
  - name: keep
    offline: keep
    reconnect: {first: 300ms}
    publish: [{topic: "keep", qos: 1, rate: 100}]
  - {name: reader, subscribe: [{filters: ["skip", "keep"], qos: 1}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    actions: [publish: {count: 60}, disconnect: {at: 100ms, groups: [skip, keep], mode: reset}]
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    feeds = {device.group.name: device.feeds[0] for device in run.everybody if device.feeds}
    assert feeds["keep"].sender.sent == 60
    assert feeds["keep"].skipped == 0
    skipped = feeds["skip"].skipped
    assert skipped > 5
    assert feeds["skip"].sender.sent == 60 - skipped
    assert f"{skipped} messages came due while their device was offline" in result.warnings[0]


async def test_wills_come_when_they_are_due_and_only_then() -> None:
    text = """
scenario: wills
groups:
  - name: crash
    count: 3
    keep_alive: 1
    will: {topic: "gone/{id}", payload: "was {id}", qos: 1, retain: true}
  - name: leave
    count: 2
    will: {topic: "gone/{id}", qos: 1}
  - {name: watcher, subscribe: [{filters: ["gone/+"], qos: 1}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    actions:
      - disconnect: {groups: [crash], mode: reset}
      - disconnect: {groups: [leave], mode: clean}
      - wait: {groups: [crash], at: 100ms, until: connected}
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    numbers = result.totals["qos1"]
    assert (numbers["sent"], numbers["received"], numbers["missing_will"]) == (3, 3, 0)
    assert [device.wills.ended for device in run.everybody] == [2, 2, 2, 1, 1, 1]


async def test_a_device_that_vanished_is_missed_by_its_will_when_it_comes_back() -> None:
    text = """
scenario: take-over
groups:
  - name: device
    count: 2
    reconnect: {first: 50ms}
    will: {topic: "gone/{id}", qos: 2}
  - {name: watcher, subscribe: [{filters: ["gone/+"], qos: 2}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    actions:
      - disconnect: {groups: [device], mode: half_open}
      - wait: {groups: [device], at: 10ms, until: connected}
"""
    async with broker() as app:
        _, result = await run_on(app, scenario(text))
    assert_good(result)
    assert result.totals["qos2"]["received"] == 2


RETAINED = """
scenario: retained
groups:
  - {name: device, count: 3, publish: [{topic: "s/{id}", qos: 1, retain: true, rate: 100}]}
  - name: late
    count: 2
    subscribe: [{filters: ["s/#"], qos: 1}]
  - name: never
    subscribe: [{filters: ["s/#"], qos: 1, retain_handling: never}]
  - name: marked
    subscribe: [{filters: ["s/#"], qos: 1, retain_as_published: true}]
stages:
  - {name: first, actions: [connect: {groups: [device]}, publish: {at: 100ms, count: 5}]}
  - name: then
    actions: [connect: {groups: [late, never, marked]}, publish: {at: 100ms, count: 5}]
"""


async def test_retained_messages_wait_for_who_comes_later() -> None:
    async with broker() as app:
        run, result = await run_on(app, scenario(RETAINED))
    assert_good(result)
    assert (result.totals["qos1"]["stale"], result.totals["qos1"]["missing_retained"]) == (0, 0)
    late = [device for device in run.everybody if device.group.name == "late"]
    replays = [owed.replay for device in late for owed in device.subscriptions[0].replays]
    assert [replay.received for replay in replays] == [1] * 6
    # The first five were before their time, but for a copy that doesn't look like a retained one;
    # of the second five none is missing.
    assert result.totals["qos1"]["received"] == 4 * 3 * 5 + 3
    assert result.totals["qos1"]["unknown"] == 4 * 3 * 5 - 3


async def test_shared_subscriptions_together_receive_each_message_once() -> None:
    text = """
scenario: shared
groups:
  - {name: device, count: 3, publish: [{topic: "t/{id}", qos: 1, rate: 200}]}
  - name: worker
    count: 3
    session_expiry: 1h
    reconnect: {first: 50ms}
    subscribe: [{filters: ["t/#"], qos: 1, share: crew}]
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    actions:
      - publish: {count: 80}
      - disconnect: {at: 150ms, groups: [worker], mode: reset, fraction: 0.3}
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    assert result.totals["qos1"]["sent"] == 3 * 80
    assert result.totals["qos1"]["received"] == 3 * 80
    assert result.tracks == 3
    members = [device.watcher for device in run.everybody if device.group.name == "worker"]
    expected = [track.expected for each in members if each for track in each.tracks.values()]
    assert len(expected) == 9


async def test_commands_are_answered_with_their_correlation_data() -> None:
    text = """
scenario: commands
groups:
  - name: lamp
    count: 4
    tags: {room: [hall, bath]}
    respond: [{filter: "lamp/{id}/set", qos: 1, delay: 5ms, fields: {ok: true}}]
  - {name: deaf, respond: [{filter: "nobody/asks", fields: {ok: true}}]}
  - name: controller
    count: 2
    request:
      - name: set
        topic: "lamp/{target}/set"
        targets: lamp
        response: "answers/{id}"
        qos: 1
        every: 10ms
        fields: {level: {counter: {}}}
      - name: void
        topic: "void/{target}"
        targets: deaf
        response: "void/{id}"
        every: 20ms
        timeout: 100ms
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    actions:
      - publish: {entries: [set], count: 30}
      - publish: {entries: [void], count: 1}
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    asked = [device.feeds[0].sender.sent for device in run.everybody if device.group.request]
    assert run.round_trips.count == sum(asked) == 60
    assert result.histograms["round_trip"].minimum >= 4000  # timers may be early by a little
    assert result.requests is not None
    assert (result.requests.answered, result.requests.unanswered) == (60, 2)
    assert "2 requests were not answered in time" in result.warnings
    answers = result.totals["qos1"]
    assert answers["received"] == answers["sent"] == 2 * sum(asked)


async def test_several_publishers_share_a_topic() -> None:
    text = """
scenario: one topic
groups:
  - {name: device, count: 5, publish: [{topic: "all", qos: [1, 2], rate: 100}]}
  - {name: reader, count: 2, subscribe: [{filters: ["all"], qos: 2}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, actions: [publish: {count: 20}]}
"""
    async with broker() as app:
        _, result = await run_on(app, scenario(text))
    assert_good(result)
    assert result.tracks == 10
    assert result.totals["all"]["received"] == 5 * 20 * 2


async def test_a_transfer_and_what_is_sent_on_change() -> None:
    text = """
scenario: files and changes
groups:
  - name: server
    window: 3
    publish:
      - {topic: image, qos: 1, every: 1h, transfer: {size: 100kB, chunk: 8KiB}}
      - topic: state
        qos: 1
        rate: 100
        on_change: {fields: {on: 0}}
        fields: {on: {expression: "floor(seq / 1) * 0"}}
  - {name: reader, subscribe: [{filters: [image, state], qos: 1}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, duration: 400ms, actions: [publish: {}]}
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    image, state = next(device.feeds for device in run.everybody if device.feeds)
    assert image.sender.sent == -(-100_000 // 8192)
    assert (state.sender.sent, state.unchanged > 10) == (1, True)
    assert result.totals["all"]["received"] == image.sender.sent + 1


async def test_a_bad_network_delays_and_a_cut_one_loses_nothing() -> None:
    text = """
scenario: network
groups:
  - {name: device, count: 3, publish: [{topic: "x/{id}", qos: 1, rate: 50}]}
  - {name: reader, subscribe: [{filters: ["x/#"], qos: 1}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - name: bad
    duration: 500ms
    actions: [publish: {}, network: {groups: [device], direction: up, delay: 50ms, jitter: 20ms}]
  - name: cut
    duration: 600ms
    actions: [publish: {}, network: {groups: [device], at: 100ms, duration: 300ms, cut: true}]
"""
    async with broker() as app:
        run, result = await run_on(app, scenario(text))
    assert_good(result)
    assert result.totals["qos1"]["received"] == result.totals["qos1"]["sent"] > 3 * 40
    assert list(run.proxies) == ["device"]
    assert [fault.detail for fault in result.faults] == [
        "delay 50 ms +20 ms, up device",
        "cut device",
    ]
    assert result.histogram("from_sent").percentile(90) >= 50_000
    assert result.histogram("from_sent").maximum >= 200_000


@pytest.mark.parametrize("name", ["smart-home", "factory-telemetry", "vehicle-fleet"])
async def test_catalogue_of_telemetry(name: str) -> None:
    async with broker() as app:
        _, result = await run_on(app, load(name, scale=0.02, speed=40))
    assert_good(result)
    assert result.totals["all"]["received"] > 100


@pytest.mark.parametrize(
    "name", ["firmware-rollout", "alarm-storm", "command-response", "reconnect-storm"]
)
async def test_catalogue_of_events(name: str) -> None:
    async with broker() as app:
        _, result = await run_on(app, load(name, scale=0.02, speed=40))
    assert_good(result)
    assert result.totals["all"]["received"] > 30


async def test_a_mixed_fleet_with_faults() -> None:
    async with broker() as app:
        _, result = await run_on(app, parse(MIXED.format(port=0)))
    assert_good(result)
    assert result.totals["qos1"]["received"] > 100
    assert result.totals["qos2"]["received"] > 100
    assert result.histograms["round_trip"].count > 10
    assert [fault.kind for fault in result.faults].count("disconnect") == 2


async def test_interrupted() -> None:
    text = """
scenario: long
groups:
  - {name: device, publish: [{topic: x, qos: 1, rate: 100}], subscribe: [{filters: [x], qos: 1}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, duration: 1h, actions: [publish: {}]}
  - {name: never, duration: 1h}
"""

    async def stop(run: Run) -> None:
        await until(lambda: run.ledger.received > 10)
        run.interrupt()

    async with broker() as app:
        _, result = await run_on(app, scenario(text), stop)
    assert result.verdict.exit == 3
    assert result.verdict.broken_off == "interrupted"
    assert result.totals["qos1"]["received"] == result.totals["qos1"]["sent"] > 10
    assert [stage.name for stage in result.stages] == ["connect", "go"]


DAMAGE = """
scenario: damage
seed: 3
groups:
  - name: bad
    count: 3
    session_expiry: 1h
    offline: keep
    reconnect: {first: 20ms, most: 100ms}
    will: {topic: "gone/{id}", qos: 1}
    publish:
      - {topic: "x/{id}", qos: [0, 1, 2], rate: 100}
      - {topic: "y/{id}", qos: 1, rate: 50, retain: true}
    subscribe: [{filters: ["ok/#", "y/#"], qos: 2}]
  - {name: good, count: 2, publish: [{topic: "ok/{id}", qos: [1, 2], rate: 100}]}
  - {name: reader, subscribe: [{filters: ["x/#", "y/#", "ok/#", "gone/#"], qos: 2}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - name: go
    duration: 900ms
    actions: [publish: {}, network: {groups: [bad], at: 100ms, duration: 500ms, corrupt: 0.1}]
"""


async def test_what_the_scenario_damages_is_not_the_brokers_fault() -> None:
    async with broker() as app:
        run, result = await run_on(app, scenario(DAMAGE))
    assert_good(result)
    pieces = result.incidents.damaged_pieces
    assert pieces > 3
    assert result.incidents.forgiven + result.totals["all"]["unknown"] > 0
    assert set(run.harmed) <= {"bad-00000", "bad-00001", "bad-00002"}
    fault = next(each for each in result.faults if each.kind == "network")
    assert fault.detail == f"corrupt 10.00% bad: {pieces} pieces damaged"
    assert fault.devices == len(run.harmed) > 0
    assert f"{pieces} pieces were damaged on purpose" in result.warnings[0]
    # Between those whose connections were left alone everything is as always.
    (reader,) = [device.watcher for device in run.everybody if device.group.name == "reader"]
    assert reader is not None
    for topic in (b"ok/good-00000", b"ok/good-00001"):
        track = reader.tracks[topic]
        assert (track.expected, track.doubt) == (track.sender.sent, None)
        assert track.sender.sent > 80


CERTIFICATES = """
scenario: certificates
broker: {tls: {ca: ca.pem}}
groups:
  - name: device
    count: 2
    id: "device-{index}"
    tls: {ca: ca.pem, cert: "ca-{id}.crt", key: "ca-{group}-{index}.key"}
    publish: [{topic: "x/{id}", qos: 1, size: 64}]
  - name: back-end
    id: back-end
    tls: {ca: ca.pem, cert: ca-back-end.crt, key: ca-back-end.key}
    subscribe: [{filters: ["x/#"], qos: 1}]
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, actions: [publish: {count: 5}]}
  - {name: while somebody looks, duration: 200ms}
"""


async def test_each_device_has_a_certificate_of_its_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost")
    tls = {"cert": str(certificate), "key": str(key), "client_cert": "required"}
    listener = loopback(tls={**tls, "client_ca": str(authority.file)})
    for name in ("device-0", "device-1", "back-end"):
        authority.issue(name, name)
    file = tmp_path / "certificates.yaml"
    file.write_text(CERTIFICATES)
    owners: dict[str, str | None] = {}

    async with running({"listeners": [listener]}) as app:

        async def look(run: Run) -> None:
            await until(lambda: len(app.broker.sessions) == 3 or bool(run.broken_off))
            owners.update({name: each.owner for name, each in app.broker.sessions.items()})

        _, result = await run_on(app, load(file), look)
    assert_good(result)
    assert owners == {name: name for name in ("device-0", "device-1", "back-end")}
    assert result.totals["qos1"]["received"] == 2 * 5

    Path(tmp_path, "ca-device-1.key").write_bytes(Path(tmp_path, "ca-device-0.key").read_bytes())
    with pytest.raises(UsageError, match=r"certificates of device: .*ca-device-1\.crt: .*MISMATCH"):
        Run(load(file), lambda sample: None)


async def test_nothing_becomes_due_after_its_stage() -> None:
    text = """
scenario: a stage that ends late
groups:
  - {name: device, count: 2, publish: [{topic: "x/{id}", qos: 1, rate: 100}]}
  - {name: reader, subscribe: [{filters: ["x/#"], qos: 1}]}
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, duration: 200ms, actions: [publish: {}]}
"""

    async def busy(run: Run) -> None:
        await until(lambda: run.ledger.received > 5)
        time.sleep(0.4)

    async with broker() as app:
        _, result = await run_on(app, scenario(text), busy)
    assert_good(result)
    assert 2 * 19 <= result.throughput.sent + result.throughput.held_back <= 2 * 20
