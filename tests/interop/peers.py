"""Every client behind the one interface of `kit.Peer`, for the cross tests.

paho, mosquitto and MQTT.js wait in threads and processes of their own; a waiting call goes to a
thread, so that it doesn't hold up a client on the test's event loop.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
from amqtt.client import MQTTClient  # type: ignore[import-untyped]
from gmqtt import Client as GmqttClient  # type: ignore[import-untyped]
from gmqtt.mqtt.constants import MQTTv50, MQTTv311  # type: ignore[import-untyped]
from gmqtt.storage import PersistentStorage  # type: ignore[import-untyped]

from tests.interop import mosquitto
from tests.interop.kit import PATIENCE, V5, V311, Inbox, Message, Peer, Properties
from tests.interop.mqttjs import MqttJs, Node
from tests.interop.paho import Paho, from_paho, to_paho
from tests.interop.server import Server


def client_id(library: str) -> str:
    return f"{library}-{uuid.uuid4().hex[:12]}"


class _Threaded:
    """An inbox whose `get` waits."""

    def __init__(self, get: Callable[[], Message]) -> None:
        self._get = get

    async def get(self) -> Message:
        return await asyncio.to_thread(self._get)


class _Queued:
    """An inbox that callbacks on the loop fill."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Message] = asyncio.Queue()

    async def get(self) -> Message:
        async with asyncio.timeout(PATIENCE):
            return await self.queue.get()


class PahoPeer:
    keeps_user_order = True

    def __init__(self, version: str) -> None:
        self.version = version

    @asynccontextmanager
    async def receiving(self, server: Server, topic_filter: str) -> AsyncIterator[Inbox]:
        with Paho(server, self.version) as client:
            await asyncio.to_thread(client.connect)
            assert await asyncio.to_thread(client.subscribe, topic_filter, 2) == [2]
            yield _Threaded(client.get_message)

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        with Paho(server, self.version) as client:
            await asyncio.to_thread(client.connect)
            for message in messages:
                assert await asyncio.to_thread(client.send, message) == 0


class AiomqttPeer:
    keeps_user_order = True

    def __init__(self, version: str) -> None:
        self.version = version

    def _client(self, server: Server) -> aiomqtt.Client:
        five = self.version == V5
        return aiomqtt.Client(
            "127.0.0.1",
            server.port("tcp"),
            identifier=client_id("aiomqtt"),
            protocol=aiomqtt.ProtocolVersion.V5 if five else aiomqtt.ProtocolVersion.V311,
            timeout=PATIENCE,
        )

    @asynccontextmanager
    async def receiving(self, server: Server, topic_filter: str) -> AsyncIterator[Inbox]:
        async with self._client(server) as client:
            await client.subscribe(topic_filter, qos=2)
            yield AiomqttInbox(client)

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        async with self._client(server) as client:
            for message in messages:
                await client.publish(
                    message.topic,
                    message.payload,
                    message.qos,
                    message.retain,
                    to_paho(message.properties),
                )


class AiomqttInbox:
    def __init__(self, client: aiomqtt.Client) -> None:
        self._messages = client.messages

    async def get(self) -> Message:
        async with asyncio.timeout(PATIENCE):
            message = await anext(self._messages)
        assert isinstance(message.payload, bytes)
        properties = from_paho(message.properties)
        topic = str(message.topic)
        return Message(topic, message.payload, message.qos, message.retain, properties)


_GMQTT_NAMES = (
    ("payload_format", "payload_format_id"),
    ("expiry", "message_expiry_interval"),
    ("content_type", "content_type"),
    ("response_topic", "response_topic"),
    ("correlation", "correlation_data"),
)


def to_gmqtt(properties: Properties) -> dict[str, Any]:
    values = {theirs: getattr(properties, ours) for ours, theirs in _GMQTT_NAMES}
    values["user_property"] = list(properties.user) or None
    return {name: value for name, value in values.items() if value is not None}


def from_gmqtt(values: dict[str, list[Any]]) -> Properties:
    """gmqtt hands a list for each property, however often it may occur."""
    ours = {ours: values[theirs][0] for ours, theirs in _GMQTT_NAMES if theirs in values}
    return Properties(**ours, user=tuple(values.get("user_property", ())))


class GmqttPeer:
    keeps_user_order = True

    def __init__(self, version: str) -> None:
        self.version = version

    def _client(self, storage: PersistentStorage) -> Any:
        return GmqttClient(client_id("gmqtt"), persistent_storage=storage)

    async def _connect(self, client: Any, server: Server) -> None:
        version = MQTTv50 if self.version == V5 else MQTTv311
        async with asyncio.timeout(PATIENCE):
            await client.connect("127.0.0.1", server.port("tcp"), version=version)

    @asynccontextmanager
    async def receiving(self, server: Server, topic_filter: str) -> AsyncIterator[Inbox]:
        inbox = _Queued()
        subscribed: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

        def on_message(
            client: object, topic: str, payload: bytes, qos: int, properties: dict[str, Any]
        ) -> int:
            retain = bool(properties["retain"])
            message = Message(topic, payload, qos, retain, from_gmqtt(properties))
            inbox.queue.put_nowait(message)
            return 0

        client = self._client(PersistentStorage())
        client.on_message = on_message
        client.on_subscribe = lambda client, mid, qos, properties: subscribed.set_result(list(qos))
        await self._connect(client, server)
        client.subscribe(topic_filter, qos=2)
        async with asyncio.timeout(PATIENCE):
            assert await subscribed == [2]
        yield inbox
        await client.disconnect()

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        storage = PersistentStorage()
        client = self._client(storage)
        await self._connect(client, server)
        for message in messages:
            client.publish(
                message.topic,
                message.payload,
                qos=message.qos,
                retain=message.retain,
                **to_gmqtt(message.properties),
            )
        async with asyncio.timeout(PATIENCE):
            await storage.wait_empty()
        await client.disconnect()


class AmqttPeer:
    """amqtt speaks MQTT 3.1.1 only."""

    version = V311
    keeps_user_order = True

    async def _client(self, server: Server) -> Any:
        client = MQTTClient(client_id("amqtt"), {"auto_reconnect": False})
        async with asyncio.timeout(PATIENCE):
            await client.connect(server.urls["tcp"])
        return client

    @asynccontextmanager
    async def receiving(self, server: Server, topic_filter: str) -> AsyncIterator[Inbox]:
        client = await self._client(server)
        assert await client.subscribe([(topic_filter, 2)]) == [2]
        yield AmqttInbox(client)
        await client.disconnect()

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        client = await self._client(server)
        for message in messages:
            await client.publish(message.topic, message.payload, message.qos, message.retain)
        await client.disconnect()


class AmqttInbox:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def get(self) -> Message:
        message = await self._client.deliver_message(PATIENCE)
        return Message(message.topic, bytes(message.data), message.qos, bool(message.retain))


class MosquittoPeer:
    keeps_user_order = True

    def __init__(self, version: str) -> None:
        self.version = version

    @asynccontextmanager
    async def receiving(self, server: Server, topic_filter: str) -> AsyncIterator[Inbox]:
        arguments = ["-t", topic_filter, "-q", "2"]
        with mosquitto.Subscriber(server, *arguments, version=self.version) as subscriber:
            yield _Threaded(subscriber.get)

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        for message in messages:
            if self.version != V5:
                message = message.without_properties()
            await asyncio.to_thread(mosquitto.publish, server, message, version=self.version)


_MQTTJS_NAMES = (
    ("expiry", "messageExpiryInterval"),
    ("content_type", "contentType"),
    ("response_topic", "responseTopic"),
    ("correlation", "correlationData"),
)


def to_mqttjs(properties: Properties) -> dict[str, Any]:
    """MQTT.js keeps user properties by name, so the order between names is lost."""
    values = {theirs: getattr(properties, ours) for ours, theirs in _MQTTJS_NAMES}
    values = {name: value for name, value in values.items() if value is not None}
    if properties.payload_format is not None:
        values["payloadFormatIndicator"] = bool(properties.payload_format)
    user: dict[str, list[str]] = {}
    for name, value in properties.user:
        user.setdefault(name, []).append(value)
    return values | ({"userProperties": user} if user else {})


def from_mqttjs(values: dict[str, Any]) -> Properties:
    ours = {ours: values.get(theirs) for ours, theirs in _MQTTJS_NAMES}
    indicator = values.get("payloadFormatIndicator")
    user = [
        (name, text)
        for name, texts in values.get("userProperties", {}).items()
        for text in (texts if isinstance(texts, list) else [texts])
    ]
    payload_format = None if indicator is None else int(indicator)
    return Properties(**ours, payload_format=payload_format, user=tuple(user))


def mqttjs_message(packet: dict[str, Any]) -> Message:
    properties = from_mqttjs(packet.get("properties", {}))
    return Message(packet["topic"], packet["payload"], packet["qos"], packet["retain"], properties)


class MqttJsPeer:
    keeps_user_order = False

    def __init__(self, version: str, node: Node, listener: str) -> None:
        self.version = version
        self._node = node
        self._listener = listener

    @asynccontextmanager
    async def receiving(self, server: Server, topic_filter: str) -> AsyncIterator[Inbox]:
        with MqttJs(self._node, self.version) as client:
            await asyncio.to_thread(client.connect, server, self._listener)
            await asyncio.to_thread(client.subscribe, topic_filter, qos=2)
            yield _Threaded(lambda: mqttjs_message(client.event()))

    async def publish(self, server: Server, messages: Sequence[Message]) -> None:
        client = MqttJs(self._node, self.version)
        await asyncio.to_thread(client.connect, server, self._listener)
        for message in messages:
            options: dict[str, Any] = {"qos": message.qos, "retain": message.retain}
            if self.version == V5:
                options["properties"] = to_mqttjs(message.properties)
            await asyncio.to_thread(client.publish, message.topic, message.payload, **options)
        await asyncio.to_thread(client.end)


KINDS: dict[str, Callable[[Callable[[], Node]], Peer]] = {
    "paho-3.1.1": lambda node: PahoPeer(V311),
    "paho-5": lambda node: PahoPeer(V5),
    "aiomqtt-5": lambda node: AiomqttPeer(V5),
    "gmqtt-5": lambda node: GmqttPeer(V5),
    "amqtt-3.1.1": lambda node: AmqttPeer(),
    "mosquitto-3.1.1": lambda node: MosquittoPeer(V311),
    "mosquitto-5": lambda node: MosquittoPeer(V5),
    "mqttjs-3.1.1": lambda node: MqttJsPeer(V311, node(), "tcp"),
    "mqttjs-5-ws": lambda node: MqttJsPeer(V5, node(), "ws"),
}
"""How to make each of them; `node` starts Node where it is needed."""
