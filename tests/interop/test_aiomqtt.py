"""aiomqtt: paho's codec in asyncio's hands, so another order of reads, writes and answers."""

import asyncio
from typing import Any

import aiomqtt
import pytest
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.kit import PATIENCE, Message, Properties
from tests.interop.paho import packet_properties, to_paho
from tests.interop.peers import AiomqttInbox, client_id
from tests.interop.server import Server

VERSIONS = (ProtocolVersion.V311, ProtocolVersion.V5)


def client(
    server: Server,
    version: ProtocolVersion = ProtocolVersion.V5,
    listener: str = "tcp",
    **more: Any,
) -> aiomqtt.Client:
    where: dict[str, Any] = {"hostname": "127.0.0.1"}
    if listener == "unix":
        where = {"hostname": server.unix_path, "transport": "unix"}
    else:
        where["port"] = server.port(listener)
    if listener in ("ws", "wss"):
        where |= {"transport": "websockets", "websocket_path": "/mqtt"}
    if listener in ("tls", "wss"):
        where["tls_context"] = server.pki.ca.client()
    more.setdefault("identifier", client_id("aiomqtt"))
    return aiomqtt.Client(**where, protocol=version, timeout=PATIENCE, **more)


@pytest.mark.parametrize("listener", ["tcp", "tls", "ws", "wss", "unix"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_every_listener(
    server: Server, topic: str, version: ProtocolVersion, listener: str
) -> None:
    payload = bytes(range(256)) * 256
    async with client(server, version, listener) as both:
        await both.subscribe(f"{topic}/+", 2)
        inbox = AiomqttInbox(both)
        for qos in range(3):
            await both.publish(f"{topic}/{qos}", payload, qos)
            assert await inbox.get() == Message(f"{topic}/{qos}", payload, qos)


@pytest.mark.parametrize("version", VERSIONS)
async def test_many_at_once(server: Server, topic: str, version: ProtocolVersion) -> None:
    """Forty clients and their two hundred messages; each publisher's arrive in order."""
    publishers, count = 40, 5

    async def publish(name: str) -> None:
        async with client(server, version) as publisher:
            for number in range(count):
                await publisher.publish(f"{topic}/{name}", str(number), qos=1)

    async with client(server, version) as subscriber:
        await subscriber.subscribe(f"{topic}/#", 1)
        await asyncio.gather(*(publish(str(number)) for number in range(publishers)))
        inbox = AiomqttInbox(subscriber)
        seen: dict[str, list[int]] = {}
        for _ in range(publishers * count):
            message = await inbox.get()
            seen.setdefault(message.topic, []).append(int(message.payload))
    assert len(seen) == publishers
    assert all(numbers == list(range(count)) for numbers in seen.values())


@pytest.mark.parametrize("version", VERSIONS)
async def test_retained_and_will(server: Server, topic: str, version: ProtocolVersion) -> None:
    identifier = client_id("aiomqtt")

    async def taken_over() -> None:
        """The second one takes the name: the first one's connection ends without DISCONNECT."""
        will = aiomqtt.Will(f"{topic}/will", b"died", qos=1, retain=True)
        async with (
            client(server, version, identifier=identifier, will=will) as mortal,
            client(server, version, identifier=identifier) as usurper,
        ):
            await usurper.publish(f"{topic}/kept", b"state", qos=1, retain=True)
            await anext(mortal.messages)

    async with client(server, version) as watcher:
        await watcher.subscribe(f"{topic}/#", 1)
        inbox = AiomqttInbox(watcher)
        with pytest.raises(aiomqtt.MqttError):
            await taken_over()
        seen = {(await inbox.get()).topic for _ in range(2)}
        assert seen == {f"{topic}/will", f"{topic}/kept"}
    async with client(server, version) as late:
        await late.subscribe(f"{topic}/+", 1)
        inbox = AiomqttInbox(late)
        messages = {message.topic: message for message in (await inbox.get(), await inbox.get())}
        assert messages[f"{topic}/will"] == Message(f"{topic}/will", b"died", 1, True)
        assert messages[f"{topic}/kept"] == Message(f"{topic}/kept", b"state", 1, True)


async def test_session_of_version_5(server: Server, topic: str) -> None:
    more: dict[str, Any] = {
        "identifier": client_id("aiomqtt"),
        "clean_start": False,
        "properties": packet_properties(PacketTypes.CONNECT, SessionExpiryInterval=60),
    }
    extras = Properties(content_type="application/cbor", user=(("a", "1"), ("b", "2"), ("a", "3")))
    sent = [Message(f"{topic}/{n}", b"%d" % n, 1, properties=extras) for n in range(5)]
    async with client(server, **more) as sleeper:
        await sleeper.subscribe(f"{topic}/#", options=SubscribeOptions(1))
    async with client(server) as publisher:
        for message in sent:
            properties = to_paho(message.properties)
            await publisher.publish(message.topic, message.payload, 1, properties=properties)
    async with client(server, **more) as sleeper:
        inbox = AiomqttInbox(sleeper)
        assert [await inbox.get() for _ in sent] == sent


async def test_session_of_version_3(server: Server, topic: str) -> None:
    more: dict[str, Any] = {"identifier": client_id("aiomqtt"), "clean_session": False}
    async with client(server, ProtocolVersion.V311, **more) as sleeper:
        await sleeper.subscribe(topic, 2)
    async with client(server, ProtocolVersion.V311) as publisher:
        for number in range(5):
            await publisher.publish(topic, str(number), 2)
    async with client(server, ProtocolVersion.V311, **more) as sleeper:
        inbox = AiomqttInbox(sleeper)
        assert [(await inbox.get()).payload for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
