"""Where messages are kept when nobody said so: `mqttd run` has a place, an embedded broker none."""

import asyncio
import ctypes
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import pytest

import mqttd
from mqttd.config import parse_config
from mqttd.core.broker import Broker
from mqttd.core.journal import Batch
from mqttd.core.packets import Connack, Connect, Disconnect, Puback, Publish
from mqttd.core.properties import Properties
from mqttd.store.memory import MemoryStore
from tests.net.kit import Wire, loopback, running, until
from tests.store.test_process import end, ready

LISTENERS = "listeners: [{name: tcp, bind: '127.0.0.1:0'}]\n"

# `mqttd run` without a file, but for the port, which others on this machine may have.
BARE = (
    "import sys; from mqttd import cli, config;"
    f" config.load_config = lambda _: config.parse_yaml({LISTENERS!r});"
    " sys.exit(cli.main(['run']))"
)


async def start(
    directory: Path, *arguments: str, limit: Callable[[], None] | None = None
) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments), stdout=PIPE, stderr=PIPE, cwd=directory, preexec_fn=limit
    )


def lasting() -> Connect:
    properties = Properties()
    properties.session_expiry_interval = 3600
    return Connect("MQTT", 5, False, 0, "lasting", None, None, None, properties)


async def connect(wire: Wire) -> bool:
    """Whether its session was there."""
    wire.send(lasting())
    return (await wire.receive(Connack)).session_present


async def retained(port: int, topic_filter: str, *topics: str) -> dict[str, str]:
    async with await Wire.open(port) as wire:
        await wire.connect("reader")
        await wire.subscribe(topic_filter, 1)
        found = [await wire.receive(Publish) for _ in topics]
        assert {message.topic for message in found} == set(topics)
        return {message.topic: message.payload.decode() for message in found}


@pytest.mark.parametrize("storage", [None, "", "storage: {durability: os}\n"])
async def test_a_broker_without_a_path_keeps_everything_below_its_working_directory(
    tmp_path: Path, storage: str | None
) -> None:
    """With no file at all, and with a file, in another place, that doesn't name one."""
    directory, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    directory.mkdir()
    elsewhere.mkdir()
    arguments = ["-c", BARE]
    if storage is not None:
        file = elsewhere / "mqttd.yaml"
        file.write_text(LISTENERS + storage)
        arguments = ["-m", "mqttd", "run", "-c", str(file)]
    for again in (False, True):
        process = await start(directory, *arguments)
        port = await ready(process)
        async with await Wire.open(port) as wire:
            assert await connect(wire) is again
            if not again:
                await wire.subscribe("news", 1)
                wire.send(Publish("light", b"on", 1, True, False, 1))
                await wire.receive(Puback)
                wire.send(Disconnect())
                await wire.closed()
                async with await Wire.open(port) as other:
                    await other.connect("publisher")
                    other.publish("news", b"hello", 1, 1)
                    await other.receive(Puback)
            else:
                assert (await wire.receive(Publish)).payload == b"hello"
                assert await retained(port, "light", "light") == {"light": "on"}
        process.send_signal(signal.SIGTERM if again else signal.SIGKILL)
        status, _ = await end(process)
        assert status == (0 if again else -signal.SIGKILL)
    assert [entry.name for entry in directory.iterdir()] == ["data"]
    assert (directory / "data" / "mqttd.db").stat().st_size
    assert {entry.name for entry in elsewhere.iterdir()} <= {"mqttd.yaml"}


def without_privileges() -> None:
    """Root may write anywhere, unless it gives CAP_DAC_OVERRIDE out of its hand."""
    pr_capbset_drop, cap_dac_override = 24, 1
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0)


async def test_a_working_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        process = await start(tmp_path, "-c", BARE, limit=without_privileges)
        status, errors = await end(process)
    finally:
        tmp_path.chmod(0o700)
    assert status == 1
    assert list(tmp_path.iterdir()) == []
    (line,) = errors.splitlines()
    assert line.startswith("mqttd: ")
    assert "data/mqttd.db: can't be used: Permission denied" in line


@pytest.mark.parametrize(
    "config", [None, {"listeners": [loopback()]}, {"listeners": [loopback()], "limits": {}}]
)
async def test_an_embedded_broker_makes_no_file(
    config: dict[str, object] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        async with mqttd.Broker(config) as broker, await Wire.open(broker.port("tcp")) as wire:
            assert not await connect(wire)
            await wire.subscribe("news", 1)
            wire.send(Publish("light", b"on", 1, True, False, 1))
            await wire.receive(Puback)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", [{}, {"storage": {"durability": "os"}}])
async def test_a_configuration_that_was_read_counts_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: dict[str, object]
) -> None:
    """Without `storage` it keeps nothing, like a bare tree; with it, where `run` keeps it."""
    monkeypatch.chdir(tmp_path)
    async with mqttd.Broker(parse_config({"listeners": [loopback()], **storage})):
        assert (tmp_path / "data" / "mqttd.db").exists() is bool(storage)


async def test_an_embedded_broker_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    config = {"listeners": [loopback()], "storage": {"path": str(tmp_path / "mine.db")}}
    for again in (False, True):
        async with mqttd.Broker(config) as broker, await Wire.open(broker.port("tcp")) as wire:
            assert await connect(wire) is again
            assert not broker.failed


async def test_an_embedder_can_see_that_the_store_broke() -> None:
    class Broken(MemoryStore):
        durable = True

        async def load(self, broker: Broker) -> None:
            await asyncio.sleep(0)

        async def commit(self, batch: Batch) -> None:
            raise OSError("input/output error")

    broker = mqttd.Broker()
    broker._app.store = Broken()
    async with broker:
        assert not broker.failed
        async with await Wire.open(broker.port("tcp")) as wire:
            wire.send(lasting())
            await until(lambda: broker.failed)


SYS = ("$SYS/broker/durability", "$SYS/broker/version")


async def test_a_broker_says_how_durable_it_is(tmp_path: Path) -> None:
    """One file, opened at every level: what one life of the broker says isn't kept for the next."""
    path = str(tmp_path / "mqttd.db")
    for level in ("full", "os", "none"):
        config: dict[str, object] = {
            "listeners": [loopback()],
            "storage": {"path": path, "durability": level},
            "sys_interval": 0,
        }
        async with running(config) as app:
            found = await retained(app.listeners[0].port, "$SYS/broker/#", *SYS)
        assert found == dict(zip(SYS, (level, f"mqttd {mqttd.__version__}"), strict=True))


async def test_a_broker_that_keeps_nothing_says_so() -> None:
    async with mqttd.Broker() as broker:
        found = await retained(broker.port("tcp"), "$SYS/#", *SYS)
    assert found["$SYS/broker/durability"] == "none"


async def test_the_default_is_full(tmp_path: Path) -> None:
    process = await start(tmp_path, "-c", BARE)
    port = await ready(process)
    assert (await retained(port, "$SYS/broker/durability", SYS[0]))[SYS[0]] == "full"
    process.send_signal(signal.SIGTERM)
    assert (await end(process))[0] == 0
