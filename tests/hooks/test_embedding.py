"""Plugins in a whole broker: inside another process, started, stopped, started again."""

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

import mqttd
from mqttd.api import ALLOW, Client, Credentials, Decision, Message, Plugin, PluginConfig
from mqttd.config import ConfigError
from mqttd.core import encode
from mqttd.core.packets import Connack, Connect, Puback, Publish
from mqttd.core.properties import Properties
from mqttd.hooks.manager import HookManager, PluginError
from mqttd.net.protocol import StreamProtocol
from mqttd.testing import running
from tests.net import kit
from tests.net.kit import Wire, until

LISTENERS: dict[str, object] = {"listeners": [{"name": "t", "bind": "127.0.0.1:0"}]}


class Waits(Plugin[PluginConfig]):
    """Every hook that may wait does."""

    made: ClassVar[list["Waits"]] = []

    async def start(self) -> None:
        self.made.append(self)

    async def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        await asyncio.sleep(0)
        return ALLOW

    async def authorize_publish(
        self, client: Client, topic: str, qos: int, retain: bool
    ) -> Decision:
        await asyncio.sleep(0.001)
        return ALLOW

    async def on_publish(self, client: Client, message: Message) -> Message:
        await asyncio.sleep(0.001)
        return message.replace(payload=message.payload + b"!")


class Fails(Plugin[PluginConfig]):
    async def start(self) -> None:
        raise RuntimeError("no database")


def tree(plugin: type[Plugin[Any]], **more: object) -> dict[str, object]:
    return {**LISTENERS, "plugins": [{"use": f"{__name__}:{plugin.__name__}"}], **more}


async def test_a_client_that_says_everything_at_once_keeps_its_order() -> None:
    """CONNECT, PUBLISHes and DISCONNECT in one segment, with hooks that wait between them."""
    async with (
        running(Waits) as broker,
        await Wire.open(broker.port) as reader,
        await Wire.open(broker.port) as sender,
    ):
        await reader.connect("reader")
        await reader.subscribe("t")
        packets: list[Any] = [Connect(client_id="sender")]
        packets += [Publish("t", b"%d" % number) for number in range(20)]
        sender.send(b"".join(encode.encode_packet(packet, 5) for packet in packets) + b"\xe0\x00")
        sender.writer.write_eof()
        found = [(await reader.receive(Publish)).payload for _ in range(20)]
        assert found == [b"%d!" % number for number in range(20)]


async def test_a_broker_with_plugins_starts_and_stops_again() -> None:
    Waits.made.clear()
    tasks, threads = asyncio.all_tasks(), threading.active_count()
    broker = mqttd.Broker(tree(Waits))
    for _ in range(2):
        async with broker, await Wire.open(broker.port("t")) as wire:
            await wire.connect("c")
            wire.publish("t", b"x", 1, 1)
            await wire.receive(Puback)
    assert len({id(plugin) for plugin in Waits.made}) == 2
    assert asyncio.all_tasks() == tasks
    await until(lambda: threading.active_count() <= threads)


async def test_what_can_not_start_leaves_nothing(tmp_path: Path) -> None:
    tasks = asyncio.all_tasks()
    storage = {"storage": {"path": str(tmp_path / "mqttd.db")}}
    with pytest.raises(PluginError, match="plugin Fails: no database"):
        await mqttd.Broker(tree(Fails, **storage)).start()
    assert asyncio.all_tasks() == tasks
    async with mqttd.Broker({**LISTENERS, **storage}) as broker:  # the file is free again
        assert broker.port("t")
    with pytest.raises(ConfigError, match="Nobody"):
        mqttd.Broker({**LISTENERS, "plugins": [{"use": f"{__name__}:Nobody"}]})


def alive() -> int:
    return sum(isinstance(thing, StreamProtocol) for thing in gc.get_objects())


async def test_a_session_keeps_no_connection_alive() -> None:
    """What hooks know a client by outlives its connection, and must not hold on to it."""
    async with running(Waits) as broker:
        gc.collect()
        gc.disable()  # nothing here may need the collector
        try:
            for number in range(5):
                async with await Wire.open(broker.port) as wire:
                    lasting = Properties()
                    lasting.session_expiry_interval = 3600
                    packet = Connect(client_id=f"c{number}", properties=lasting)
                    wire.send(packet)
                    assert (await wire.receive(Connack)).reason == 0
                    wire.publish("t", b"x", 1, 1)
                    await wire.receive(Puback)
            await until(lambda: alive() == 0)
        finally:
            gc.enable()
        found = [session.client_id async for session in broker.plugin.broker.sessions()]
        assert len(found) == 5


@pytest.mark.parametrize("plugins", [0, 1])
async def test_no_will_is_decided_on_before_the_plugins_have_started(
    plugins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    start = HookManager.start

    async def watched(manager: HookManager) -> None:
        seen.append(manager.broker.hooks_to_come)
        await start(manager)

    monkeypatch.setattr(HookManager, "start", watched)
    tree = {**LISTENERS, "plugins": [{"use": "tests.gate:Gate"}] * plugins}
    async with kit.running(tree) as app:
        assert seen == [True] * plugins
        assert not app.broker.hooks_to_come
