"""`$SYS` and HTTP on a broker that runs: its timer, its readiness, its process, its file."""

import asyncio
import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

import mqttd
from mqttd import monitor as monitor_module
from mqttd.app import App
from mqttd.census import Census
from mqttd.config import parse_config
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.packets import Connack, Connect, Filter, Puback, Publish, Suback, Subscribe
from mqttd.core.properties import Properties
from mqttd.metrics import CONTENT_TYPE
from mqttd.monitor import Monitor
from mqttd.net.listener import ListenError
from mqttd.store.base import StoreError
from mqttd.store.memory import MemoryStore
from tests.net.kit import PATIENCE, Wire, loopback, reserved_port, running, until
from tests.test_sysinfo import EVERYTHING

METRICS = {"bind": "127.0.0.1:0"}
ALWAYS = {"version", "durability"}


class Answer(NamedTuple):
    status: int
    content_type: str
    body: str


async def get(port: int, path: str) -> Answer:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await reader.read(-1)).decode().partition("\r\n\r\n")
        writer.close()
    kind = head.partition("Content-Type: ")[2].partition("\r\n")[0]
    return Answer(int(head.split()[1]), kind, body)


def http_port(app: App) -> int:
    assert app.monitor is not None
    assert app.monitor.http is not None
    return app.monitor.http.port


async def subscribed(app: App, client_id: str = "watcher") -> Wire:
    wire = await Wire.open(app.listeners[0].port)
    await wire.connect(client_id)
    await wire.subscribe("$SYS/#")
    return wire


async def told(wire: Wire, wanted: set[str]) -> dict[str, str]:
    """Listen until all of these have come."""
    found: dict[str, str] = {}
    while not wanted <= set(found):
        message = await wire.receive(object)
        if isinstance(message, Suback):  # where it waits for the disk, retained messages don't
            continue
        assert isinstance(message, Publish)
        assert message.qos == 0
        found[message.topic.removeprefix("$SYS/broker/")] = message.payload.decode()
    return found


# $SYS.


async def test_everything_is_there_before_anybody_can_ask() -> None:
    async with running({"listeners": [loopback()]}) as app, await subscribed(app) as wire:
        found = await told(wire, EVERYTHING | ALWAYS)
        assert found["version"] == f"mqttd {mqttd.__version__}"
        assert found["clients/total"] == "0"
        assert int(found["heap/current"]) > 1_000_000


async def test_what_changes_comes_with_the_next_tick() -> None:
    config: dict[str, object] = {"listeners": [loopback()], "sys_interval": "100ms"}
    async with running(config) as app, await subscribed(app) as wire:
        await told(wire, EVERYTHING)
        async with await Wire.open(app.listeners[0].port) as other:
            await other.connect("other")
            other.publish("a", b"12345")
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = await told(wire, {"publish/bytes/received"})
                    if found["publish/bytes/received"] == "5":
                        break
        assert "version" not in found


async def test_an_interval_of_nothing_leaves_only_what_the_broker_is() -> None:
    config: dict[str, object] = {"listeners": [loopback()], "sys_interval": 0}
    async with running(config) as app:
        found = app.broker.retained.cursor("$SYS/#").take(1000)
        assert {message.topic.removeprefix("$SYS/broker/") for message in found} == ALWAYS
        assert app.monitor is not None
        assert not app.monitor._timers


async def test_a_bug_in_it_costs_nothing_but_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config: dict[str, object] = {"listeners": [loopback()], "sys_interval": "100ms"}

    def broken(*_: object) -> int:
        raise RuntimeError("a bug")

    async with running(config) as app, await subscribed(app) as wire:
        await told(wire, EVERYTHING)
        with monkeypatch.context() as patch:
            patch.setattr(monitor_module, "announce", broken)
            await until(lambda: "bug: $SYS can't be told" in caplog.text)
        await told(wire, EVERYTHING)  # what was lost by it comes again


async def test_many_receivers_are_told_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "_PORTION", 3)
    config: dict[str, object] = {"listeners": [loopback()], "sys_interval": "100ms"}
    async with running(config) as app, await subscribed(app) as wire:
        await told(wire, EVERYTHING)
        for _ in range(2):
            assert (await told(wire, {"uptime"})).keys() <= EVERYTHING


async def test_a_census_yields_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand sessions, two hundred turns of the loop: nobody waits for all of them."""
    async with running({"listeners": [loopback()], "metrics": METRICS}) as app:
        broker = app.broker
        wires = [await Wire.open(app.listeners[0].port) for _ in range(20)]
        for number, wire in enumerate(wires):
            await wire.connect(f"c{number}")
        session = broker.sessions["c0"]
        broker.sessions |= {f"more{number}": session for number in range(2000)}
        turns = 0

        async def turning() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.get_running_loop().create_task(turning())
        steps = 0
        whole = Census.step

        def step(census: Census, budget: int = 10) -> bool:
            nonlocal steps
            steps += 1
            return whole(census, 10)

        monkeypatch.setattr(Census, "step", step)
        turns_before = turns
        assert (await get(http_port(app), "/metrics")).status == 200
        assert steps >= 200
        assert turns - turns_before >= 200
        counting.cancel()
        for number in range(2000):
            del broker.sessions[f"more{number}"]
        for wire in wires:
            await wire.close()


# Never in the store.


def lasting(client_id: str) -> Connect:
    properties = Properties()
    properties.session_expiry_interval = 3600
    return Connect("MQTT", 5, False, 0, client_id, None, None, None, properties)


@pytest.mark.parametrize("queue_qos0", [False, True])
async def test_none_of_it_is_in_the_file(tmp_path: Path, queue_qos0: bool) -> None:
    """A session that lasts, subscribed with QoS 2, there and away; and a restart knows nothing."""
    path = tmp_path / "m.db"
    config: dict[str, object] = {
        "listeners": [loopback()],
        "storage": {"path": str(path)},
        "limits": {"queue_qos0": queue_qos0},
        "sys_interval": "100ms",
    }
    async with running(config) as app, await Wire.open(app.listeners[0].port) as wire:
        wire.send(lasting("lasts"))
        await wire.receive(Connack)
        wire.send(Subscribe(1, [Filter("$SYS/#", 2, False, False, 0)]))
        for _ in range(2):
            await told(wire, {"uptime"})
        await wire.close()
        counters = app.broker.counters
        before = counters.dropped.get("offline_qos0", 0)
        await until(lambda: counters.dropped.get("offline_qos0", 0) > before + 5)
        async with await Wire.open(app.listeners[0].port) as other:
            await other.connect("other")
            other.send(Publish("kept", b"x", 1, True, False, 1))
            await other.receive(Puback)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT topic FROM retained").fetchall() == [("kept",)]
        for table in ("messages", "deliveries"):
            assert db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)
        assert db.execute("SELECT COUNT(*) FROM subscriptions").fetchone() == (1,)
    async with running({**config, "sys_interval": 0}) as app:
        found = app.broker.retained.cursor("$SYS/#").take(1000)
        assert {message.topic.removeprefix("$SYS/broker/") for message in found} == ALWAYS
        assert app.broker.sessions["lasts"].queue is None


# HTTP.


async def test_the_page_for_prometheus() -> None:
    async with running({"listeners": [loopback()], "metrics": METRICS}) as app:
        async with await subscribed(app):
            answer = await get(http_port(app), "/metrics?x=1")
            assert (answer.status, answer.content_type) == (200, CONTENT_TYPE)
            samples = {
                (sample.name, *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(answer.body)
                for sample in family.samples
            }
            assert samples["mqttd_connections", "tcp", "5"] == 1
            assert samples["mqttd_storage_info", "none"] == 1
            assert samples["process_resident_memory_bytes",] > 1_000_000
            assert samples["mqttd_start_time_seconds",] > 1_700_000_000
        for path in ("/", "/metrics/", "/Metrics", "/healthz/x"):
            assert (await get(http_port(app), path)).status == 404


async def test_many_who_ask_share_a_census(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running({"listeners": [loopback()], "metrics": METRICS}) as app:
        made = []

        def counted(broker: Broker) -> Census:
            made.append(broker)
            return Census(broker)

        monkeypatch.setattr(monitor_module, "Census", counted)
        monkeypatch.setattr(monitor_module, "_FRESH", 3600.0)
        answers = await asyncio.gather(*(get(http_port(app), "/metrics") for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert len(made) == 1


async def test_health_and_readiness() -> None:
    async with running({"listeners": [loopback()], "metrics": METRICS}) as app:
        port = http_port(app)
        assert (await get(port, "/healthz"))[::2] == (200, "ok\n")
        assert (await get(port, "/readyz"))[::2] == (200, "ready\n")
        journal = app.broker.journal
        journal.refusing = spec.QUOTA_EXCEEDED
        answer = await get(port, "/readyz")
        assert answer.status == 503
        assert "disk is full" in answer.body
        journal.refusing = spec.UNSPECIFIED_ERROR
        answer = await get(port, "/readyz")
        assert answer.status == 503
        assert "store is broken" in answer.body
        assert (await get(port, "/healthz")).status == 200
        journal.refusing = 0
        assert (await get(port, "/readyz")).status == 200


class Slow(MemoryStore):
    """Loads, and closes, when the test says so."""

    def __init__(self) -> None:
        self.may_load = asyncio.Event()
        self.may_close = asyncio.Event()

    async def load(self, broker: Broker) -> None:
        await self.may_load.wait()

    async def close(self) -> None:
        await self.may_close.wait()


async def test_it_answers_from_the_first_moment_to_the_last() -> None:
    store = Slow()
    app = App(parse_config({"listeners": [loopback()], "metrics": METRICS}), store)
    loop = asyncio.get_running_loop()
    starting = loop.create_task(app.start())
    await until(lambda: app.monitor and app.monitor.http and app.monitor.http.port)
    port = http_port(app)
    assert (await get(port, "/healthz")).status == 200
    for path in ("/readyz", "/metrics"):
        assert (await get(port, path))[::2] == (503, "starting\n")
    store.may_load.set()
    await starting
    assert (await get(port, "/readyz")).status == 200
    stopping = loop.create_task(app.stop(0.0))
    await asyncio.sleep(0)
    for path in ("/readyz", "/metrics"):
        assert (await get(port, path))[::2] == (503, "stopping\n")
    assert (await get(port, "/healthz")).status == 200
    store.may_close.set()
    await stopping
    with pytest.raises(OSError):  # noqa: PT011
        await get(port, "/healthz")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_address_that_is_taken_leaves_nothing_behind() -> None:
    with reserved_port() as mqtt, reserved_port() as port:
        config = parse_config(
            {
                "listeners": [loopback(bind=f"127.0.0.1:{mqtt}")],
                "storage": {"path": ":memory:"},
                "metrics": {"bind": f"127.0.0.1:{port}"},
            }
        )
        async with running({"listeners": [loopback()], "metrics": {"bind": f"127.0.0.1:{port}"}}):
            app = App(config)
            with pytest.raises(ListenError, match=f"metrics: can't listen on 127.0.0.1:{port}"):
                await app.start()
            with pytest.raises(ConnectionRefusedError):
                await Wire.open(mqtt)
        await app.start()
        assert (await get(port, "/readyz")).status == 200
        await app.stop(0.0)


async def test_a_stop_while_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    may_open = asyncio.Event()
    whole = Monitor.open

    async def slow(monitor: Monitor) -> None:
        await may_open.wait()
        await whole(monitor)

    monkeypatch.setattr(Monitor, "open", slow)
    with reserved_port() as port:
        app = App(
            parse_config(
                {
                    "listeners": [loopback()],
                    "storage": {"path": ":memory:"},
                    "metrics": {"bind": f"127.0.0.1:{port}"},
                }
            )
        )
        starting = asyncio.get_running_loop().create_task(app.start())
        await asyncio.sleep(0)
        await app.stop(0.0)
        may_open.set()
        with pytest.raises(StoreError, match="stopped"):
            await starting
        with pytest.raises(ConnectionRefusedError):
            await get(port, "/healthz")


# The configuration.


def test_a_public_address_gets_a_warning() -> None:
    for bind, warned in (
        *(("127.0.0.1:9883", False), ("[::1]:9883", False), ("unix:/x", False)),
        *(("0.0.0.0:9883", True), ("10.0.0.1:0", True), ("[::]:1", True)),
    ):
        tree = parse_config({"listeners": [loopback()], "metrics": {"bind": bind}})
        assert [text.startswith(f"metrics: {bind}") for text in tree.warnings()] == [True] * warned


@pytest.mark.parametrize(
    ("tree", "told_"),
    [
        ({"sys_interval": "50ms"}, "sys_interval: found '50ms', expected 100ms or more, or 0"),
        ({"sys_interval": -1}, "sys_interval: found -1, expected a duration"),
        ({"sys_interval": "2d"}, "sys_interval: found '2d', expected 86400 or less"),
        ({"metrics": {"bind": "9883"}}, "metrics.bind: found '9883', expected host:port"),
        ({"metrics": {"port": 9883}}, "metrics.port: unknown key 'port', expected one of bind"),
        ({"metrics": {"bind": "127.0.0.1:1883"}}, "metrics.bind: found '127.0.0.1:1883' twice"),
    ],
)
def test_what_is_told(tree: dict[str, object], told_: str) -> None:
    with pytest.raises(ValueError, match=told_.replace("(", r"\(")):
        parse_config(tree)


def test_metrics_without_an_address() -> None:
    tree = parse_config({"metrics": {}})
    assert tree.metrics is not None
    assert (tree.metrics.host, tree.metrics.port) == ("127.0.0.1", 9883)


# The process, and the tools that people have.


@contextlib.asynccontextmanager
async def process(directory: Path, **more: object) -> AsyncIterator[tuple[Process, dict[str, int]]]:
    """`mqttd run`, and the ports that it says it listens on."""
    file = directory / "mqttd.yaml"
    tree = {"listeners": [loopback()], "storage": {"path": "m.db"}, "metrics": METRICS, **more}
    file.write_text(json.dumps(tree))
    command = (sys.executable, "-m", "mqttd", "run", "-c", str(file))
    with (directory / "log").open("wb") as log:
        started = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=log)
    ports: dict[str, int] = {}
    assert started.stdout is not None
    try:
        async with asyncio.timeout(2 * PATIENCE):
            async for line in started.stdout:
                words = line.decode().split()
                if words == ["ready"]:
                    break
                ports[words[1]] = urlsplit(words[2]).port or 0
        yield started, ports
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def test_mosquitto_sub_and_a_get(tmp_path: Path) -> None:
    program = shutil.which("mosquitto_sub")
    assert program, "apt-get install mosquitto-clients"
    async with process(tmp_path, sys_interval="200ms") as (started, ports):
        wanted = {f"$SYS/broker/{name}" for name in EVERYTHING | ALWAYS}
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *(program, "-p", str(ports["tcp"]), "-t", "$SYS/#", "-F", "%t\t%p", "-W", "25"),
                *("-C", str(len(wanted) + 3)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        assert {topic for topic, _ in lines} == wanted
        assert len(lines) > len(wanted)  # some came again, changed
        answer = await get(ports["metrics"], "/metrics")
        (family,) = (
            family
            for family in text_string_to_metric_families(answer.body)
            if family.name == "mqttd_connects"
        )
        accepted = [s.value for s in family.samples if s.labels["result"] == "accepted"]
        assert accepted == [1]
        assert (await get(ports["metrics"], "/readyz")).status == 200
        started.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await started.wait() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_what_plugins_and_commits_cost_is_on_the_page(tmp_path: Path) -> None:
    config: dict[str, object] = {
        "listeners": [loopback(allow_anonymous=True)],
        "metrics": METRICS,
        "storage": {"path": str(tmp_path / "m.db")},
        "plugins": [{"use": "tests.gate:Gate", "name": "gate"}, {"use": "ban"}],
    }
    async with running(config) as app:
        async with await Wire.open(app.listeners[0].port) as wire:
            properties = Properties()
            properties.session_expiry_interval = 60
            wire.send(Connect("MQTT", 5, True, 0, "a", None, None, None, properties))
            await wire.receive(Connack)
            wire.publish("forbidden/x", b"", 1, 1)
            assert (await wire.receive(Puback)).reason == 0x87
        await app.reload()
        body = (await get(http_port(app), "/metrics")).body
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    gate = ("plugin", "gate")
    assert values["mqttd_hook_calls_total", ("hook", "authorize_publish"), gate] == 1
    assert values["mqttd_hook_calls_total", ("hook", "authenticate"), gate] == 1
    assert values["mqttd_hook_errors_total", ("hook", "authenticate"), gate] == 0
    assert values["mqttd_breaker_open", gate] == 0
    assert values["mqttd_events_lost_total", ("plugin", "ban")] == 0
    assert values["mqttd_plugin_reloads_total", gate] == 1
    assert values["mqttd_plugin_bans", ("plugin", "ban")] == 0
    assert values["mqttd_storage_commit_seconds_count",] >= 1
