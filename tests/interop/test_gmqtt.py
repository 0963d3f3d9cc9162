"""gmqtt: a codec of its own, with topic aliases and negative acknowledgements of MQTT 5."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gmqtt import Client, Subscription  # type: ignore[import-untyped]
from gmqtt import Message as GmqttMessage
from gmqtt.mqtt.constants import MQTTv50, MQTTv311  # type: ignore[import-untyped]
from gmqtt.storage import PersistentStorage  # type: ignore[import-untyped]

from tests.interop.kit import PATIENCE, Message, Properties
from tests.interop.peers import client_id, from_gmqtt, to_gmqtt
from tests.interop.server import Server

VERSIONS = {"3.1.1": MQTTv311, "5": MQTTv50}


class Gmqtt:
    """One client whose callbacks fill queues."""

    def __init__(self, server: Server, version: str = "5", **options: Any) -> None:
        self.server = server
        self.version = VERSIONS[version]
        self.messages: asyncio.Queue[tuple[Message, dict[str, Any]]] = asyncio.Queue()
        self.granted: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        self.disconnected: asyncio.Queue[bytes] = asyncio.Queue()
        self.answer = 0
        """The reason code for each message, where acknowledgements aren't optimistic."""
        self.present: bool | None = None
        self.connack: dict[str, Any] = {}
        self._storage = PersistentStorage()
        options = {"client_id": client_id("gmqtt"), "persistent_storage": self._storage} | options
        self.client = Client(**options)
        self.client.set_config({"reconnect_retries": 0})
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda client, mid, qos, properties: self.granted.put_nowait(qos)
        self.client.on_unsubscribe = lambda client, mid, codes: self.granted.put_nowait(codes)
        self.client.on_disconnect = lambda client, packet, exc=None: self.disconnected.put_nowait(
            packet
        )

    def _on_connect(self, client: object, flags: int, reason: int, values: dict[str, Any]) -> None:
        self.present, self.connack = bool(flags), values

    async def _on_message(
        self, client: object, topic: str, payload: bytes, qos: int, values: dict[str, Any]
    ) -> int:
        retain = bool(values["retain"])
        message = Message(topic, payload, qos, retain, from_gmqtt(values))
        self.messages.put_nowait((message, values))
        return self.answer

    async def connect(self, listener: str = "tcp") -> None:
        tls = self.server.pki.ca.client() if listener == "tls" else False
        port = self.server.port(listener)
        async with asyncio.timeout(PATIENCE):
            await self.client.connect("127.0.0.1", port, ssl=tls, version=self.version)

    async def subscribe(self, topic_filter: str, qos: int = 1, **options: Any) -> int:
        self.client.subscribe(Subscription(topic_filter, qos, **options))
        granted: tuple[int, ...] = await self.next(self.granted)
        return granted[0]

    async def publish(self, message: Message, **more: Any) -> None:
        """Until it is acknowledged."""
        self.client.publish(
            message.topic,
            message.payload,
            qos=message.qos,
            retain=message.retain,
            **to_gmqtt(message.properties),
            **more,
        )
        async with asyncio.timeout(PATIENCE):
            await self._storage.wait_empty()

    async def get(self) -> Message:
        received: tuple[Message, dict[str, Any]] = await self.next(self.messages)
        return received[0]

    async def next(self, queue: "asyncio.Queue[Any]") -> Any:
        async with asyncio.timeout(PATIENCE):
            return await queue.get()


@contextlib.asynccontextmanager
async def connected(
    server: Server, version: str = "5", listener: str = "tcp", **options: Any
) -> AsyncIterator[Gmqtt]:
    gmqtt = Gmqtt(server, version, **options)
    await gmqtt.connect(listener)
    yield gmqtt
    await gmqtt.client.disconnect()


@pytest.mark.parametrize("listener", ["tcp", "tls"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_both_ways(server: Server, topic: str, version: str, listener: str) -> None:
    large = bytes(500_000)
    async with connected(server, version, listener) as client:
        assert await client.subscribe(f"{topic}/#", 2) == 2
        for qos in range(3):
            for payload in (b"", b"small", large):
                message = Message(f"{topic}/{qos}", payload, qos)
                await client.publish(message)
                assert await client.get() == message


@pytest.mark.parametrize("version", VERSIONS)
async def test_retained_and_will(server: Server, topic: str, version: str) -> None:
    will = GmqttMessage(f"{topic}/will", "died", qos=1, will_delay_interval=0)
    identifier = client_id("gmqtt")
    mortal = Gmqtt(server, version, client_id=identifier, will_message=will)
    async with connected(server, version) as watcher:
        await watcher.subscribe(f"{topic}/+")
        await mortal.connect()
        await mortal.publish(Message(f"{topic}/kept", b"state", 1, True))
        assert await watcher.get() == Message(f"{topic}/kept", b"state", 1)
        async with connected(server, version, client_id=identifier) as usurper:
            assert await watcher.get() == Message(f"{topic}/will", b"died", 1)
            await usurper.subscribe(f"{topic}/#")
            assert await usurper.get() == Message(f"{topic}/kept", b"state", 1, True)
        await mortal.next(mortal.disconnected)
        await mortal.client.disconnect()


async def test_session_resume(server: Server, topic: str) -> None:
    options: dict[str, Any] = {
        "client_id": client_id("gmqtt"),
        "clean_session": False,
        "session_expiry_interval": 60,
    }
    extras = Properties(1, None, "text/plain", "to/me", b"\0\xff", (("k", "1"), ("k", "2")))
    sent = [Message(f"{topic}/{n}", b"%d" % n, 1, properties=extras) for n in range(5)]
    async with connected(server, **options) as sleeper:
        assert sleeper.present is False
        await sleeper.subscribe(f"{topic}/#", 2)
    async with connected(server) as publisher:
        for message in sent:
            await publisher.publish(message)
    async with connected(server, **options) as sleeper:
        assert [await sleeper.get() for _ in sent] == sent
        assert sleeper.present is True


async def test_topic_aliases(server: Server, topic: str) -> None:
    """Both directions at once. [MQTT-3.1.2-26] [MQTT-3.3.2-12]"""
    async with connected(server, topic_alias_maximum=3) as client:
        await client.subscribe(f"{topic}/#")
        assert client.connack["topic_alias_maximum"] == 3  # its own word covers the broker's
        sent = [Message(f"{topic}/{n % 4}", b"%d" % n, 1) for n in range(16)]
        used = set()
        for message in sent:
            await client.publish(message, topic_alias=1 + int(message.topic[-1]))
        for message in sent:
            received, values = await client.next(client.messages)
            assert received == message
            used.update(values.get("topic_alias", ()))
        assert used == {1, 2, 3}


async def test_subscription_options(server: Server, topic: str) -> None:
    """[MQTT-3.3.4-3] [MQTT-3.3.1-13] [MQTT-3.8.3-3] [MQTT-3.3.1-11]"""
    async with connected(server) as client, connected(server) as other:
        await other.publish(Message(f"{topic}/a", b"old", 1, True))
        await client.subscribe(
            f"{topic}/#",
            2,
            no_local=True,
            retain_as_published=True,
            retain_handling_options=2,
            subscription_identifier=77,
        )
        await client.publish(Message(f"{topic}/a", b"mine", 1))
        await other.publish(Message(f"{topic}/a", b"new", 1, True))
        message, values = await client.next(client.messages)
        assert message == Message(f"{topic}/a", b"new", 1, True)
        assert values["subscription_identifier"] == [77]
        client.client.unsubscribe(f"{topic}/#")
        assert await client.next(client.granted) == (0,)


async def test_shared_subscription(server: Server, topic: str) -> None:
    async with connected(server) as one, connected(server) as two, connected(server) as publisher:
        for member in (one, two):
            await member.subscribe(f"$share/g/{topic}")
        for number in range(8):
            await publisher.publish(Message(topic, b"%d" % number, 1))
        seen = [int((await member.get()).payload) for member in (one, two) for _ in range(4)]
        assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("qos", [1, 2])
async def test_refused_messages_do_not_come_again(server: Server, topic: str, qos: int) -> None:
    """An error in PUBACK or PUBREC ends the message. [MQTT-4.4.0-2]"""
    options: dict[str, Any] = {
        "client_id": client_id("gmqtt"),
        "clean_session": False,
        "session_expiry_interval": 60,
        "optimistic_acknowledgement": False,
    }
    async with connected(server) as publisher:
        async with connected(server, **options) as client:
            client.answer = 0x80
            await client.subscribe(topic, qos)
            await publisher.publish(Message(topic, b"refused", qos))
            assert (await client.get()).payload == b"refused"
            # gmqtt answers once the test has the message: let that happen before DISCONNECT.
            await client.subscribe(f"{topic}/other", qos)
        async with connected(server, **options) as client:
            await publisher.publish(Message(topic, b"next", qos))
            assert (await client.get()).payload == b"next"


async def test_take_over_is_told(server: Server) -> None:
    """[MQTT-3.1.4-3]"""
    identifier = client_id("gmqtt")
    first = Gmqtt(server, client_id=identifier)
    await first.connect()
    async with connected(server, client_id=identifier):
        assert (await first.next(first.disconnected))[0] == 0x8E
    await first.client.disconnect()
