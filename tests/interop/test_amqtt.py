"""amqtt's client: another codec in Python, MQTT 3.1.1 only, over TCP, TLS and WebSocket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from amqtt.client import MQTTClient  # type: ignore[import-untyped]

from tests.interop.kit import PATIENCE, Message
from tests.interop.peers import AmqttInbox, client_id
from tests.interop.server import Server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextlib.asynccontextmanager
async def connected(
    server: Server,
    listener: str = "tcp",
    identifier: str | None = None,
    clean: bool = True,
    **config: Any,
) -> AsyncIterator[Any]:
    name = identifier or client_id("amqtt")
    client = MQTTClient(name, {"auto_reconnect": False} | config)
    async with asyncio.timeout(PATIENCE):
        url = server.urls[listener]
        await client.connect(url, cleansession=clean, cafile=str(server.pki.ca.file))
    yield client
    await client.disconnect()


@pytest.mark.parametrize("listener", ["tcp", "tls", "ws", "wss"])
async def test_every_listener(server: Server, topic: str, listener: str) -> None:
    async with connected(server, listener) as client:
        assert await client.subscribe([(f"{topic}/+", 2)]) == [2]
        inbox = AmqttInbox(client)
        for qos in range(3):
            for payload in (b"", b"small", bytes(500_000)):
                await client.publish(f"{topic}/{qos}", payload, qos)
                assert await inbox.get() == Message(f"{topic}/{qos}", payload, qos)


async def test_retained_and_unsubscribe(server: Server, topic: str) -> None:
    async with connected(server) as client:
        await client.publish(f"{topic}/kept", b"state", 1, retain=True)
        filters = [(f"{topic}/+", 0), (f"{topic}/#", 1), ("a#", 1)]
        assert await client.subscribe(filters) == [0, 1, 0x80]
        inbox = AmqttInbox(client)
        # Each subscription of its own brings what was retained.
        assert {(await inbox.get()).qos for _ in range(2)} == {0, 1}
        await client.unsubscribe([f"{topic}/#"])
        await client.publish(f"{topic}/more", b"", 1)
        assert await inbox.get() == Message(f"{topic}/more", b"", 0)


async def test_will(server: Server, topic: str) -> None:
    will = {"topic": f"{topic}/will", "message": "died", "qos": 1, "retain": False}
    identifier = client_id("amqtt")
    async with connected(server) as watcher:
        await watcher.subscribe([(f"{topic}/#", 2)])
        async with (
            connected(server, identifier=identifier, will=will),
            connected(server, identifier=identifier),
        ):
            assert await AmqttInbox(watcher).get() == Message(f"{topic}/will", b"died", 1)


async def test_session_resume(server: Server, topic: str) -> None:
    identifier = client_id("amqtt")
    async with connected(server, identifier=identifier, clean=False) as sleeper:
        await sleeper.subscribe([(topic, 2)])
    async with connected(server) as publisher:
        for number in range(5):
            await publisher.publish(topic, b"%d" % number, 2)
    async with connected(server, identifier=identifier, clean=False) as sleeper:
        inbox = AmqttInbox(sleeper)
        assert [(await inbox.get()).payload for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
