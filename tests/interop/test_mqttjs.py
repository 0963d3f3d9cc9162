"""MQTT.js, what browsers and Node speak: 3.1.1 and 5, over every listener."""

from typing import Any

import pytest

from tests.interop.kit import V5, V311, Message, Properties
from tests.interop.mqttjs import MqttJs, Node
from tests.interop.peers import client_id, mqttjs_message, to_mqttjs
from tests.interop.server import Server

VERSIONS = (V311, V5)
LARGE = bytes(range(250)) * 2000
PROPERTIES = Properties(
    payload_format=1,
    expiry=500,
    content_type="text/plain",
    response_topic="a/b",
    correlation=bytes(range(256)),
    user=(("a", "1"), ("b", "2"), ("b", "3")),
)


def persistent(version: str) -> dict[str, Any]:
    """Options of a session that outlives its connection."""
    options: dict[str, Any] = {"clean": False, "clientId": client_id("mqttjs")}
    if version == V5:
        options["properties"] = {"sessionExpiryInterval": 60}
    return options


@pytest.mark.parametrize("listener", ["tcp", "tls", "ws", "wss", "unix"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_listener(
    server: Server, node: Node, topic: str, version: str, listener: str
) -> None:
    with MqttJs(node, version) as client:
        client.connect(server, listener)
        assert client.subscribe(f"{topic}/+", qos=2)[0]["qos"] == 2
        for qos in range(3):
            for payload in (b"", LARGE):
                client.publish(f"{topic}/{qos}", payload, qos=qos)
                assert mqttjs_message(client.event()) == Message(f"{topic}/{qos}", payload, qos)


@pytest.mark.parametrize("version", VERSIONS)
def test_retained(server: Server, node: Node, topic: str, version: str) -> None:
    with MqttJs(node, version) as publisher, MqttJs(node, version) as late:
        publisher.connect(server, "ws")
        publisher.publish(f"{topic}/a", b"first", qos=1, retain=True)
        publisher.publish(f"{topic}/a", b"second", qos=2, retain=True)
        late.connect(server, "ws")
        late.subscribe(f"{topic}/#", qos=1)
        assert mqttjs_message(late.event()) == Message(f"{topic}/a", b"second", 1, True)
        publisher.publish(f"{topic}/a", b"", qos=1, retain=True)
        assert mqttjs_message(late.event()) == Message(f"{topic}/a", b"", 1)
        late.request("unsubscribe", topics=[f"{topic}/#"])
        late.subscribe(f"{topic}/#", qos=1)
        publisher.publish(f"{topic}/b", b"only me", qos=1)
        assert late.event()["topic"] == f"{topic}/b"


@pytest.mark.parametrize("listener", ["tcp", "ws"])
@pytest.mark.parametrize("version", VERSIONS)
def test_will(server: Server, node: Node, topic: str, version: str, listener: str) -> None:
    will: dict[str, Any] = {"topic": f"{topic}/will", "payload": b"died", "qos": 1, "retain": True}
    properties = PROPERTIES if version == V5 else Properties()
    if version == V5:
        will["properties"] = to_mqttjs(properties)
    with MqttJs(node, version) as watcher:
        watcher.connect(server)
        watcher.subscribe(f"{topic}/#", qos=2)
        peaceful, mortal = MqttJs(node, version), MqttJs(node, version)
        peaceful.connect(server, listener, will=will | {"payload": b"never"})
        peaceful.end()
        mortal.connect(server, listener, will=will)
        mortal.request("drop")
        message = mqttjs_message(watcher.event())
        expected = Message(f"{topic}/will", b"died", 1, False, properties)
        assert message.expiring(expected) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_session(server: Server, node: Node, topic: str, version: str) -> None:
    options = persistent(version)
    sleeper = MqttJs(node, version)
    assert not sleeper.connect(server, **options)["sessionPresent"]
    sleeper.subscribe(topic, qos=2)
    sleeper.end()
    with MqttJs(node, version) as publisher:
        publisher.connect(server)
        for number in range(5):
            publisher.publish(topic, b"%d" % number, qos=2)
    with MqttJs(node, version) as sleeper:
        assert sleeper.connect(server, "ws", **options)["sessionPresent"]
        assert [sleeper.event()["payload"] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_properties(server: Server, node: Node, topic: str) -> None:
    """[MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-20]"""
    with MqttJs(node) as client:
        client.connect(server, "ws")
        client.subscribe(topic, qos=2, properties={"subscriptionIdentifier": 268435455})
        for qos in range(3):
            message = Message(topic, "größer".encode(), qos, False, PROPERTIES)
            client.publish(topic, message.payload, qos=qos, properties=to_mqttjs(PROPERTIES))
            packet = client.event()
            assert mqttjs_message(packet).expiring(message) == message
            assert packet["properties"]["subscriptionIdentifier"] == 268435455


def test_connack(server: Server, node: Node) -> None:
    with MqttJs(node) as client:
        connack = client.connect(server, clientId="")
        assert connack["reasonCode"] == 0
        assert connack["properties"]["assignedClientIdentifier"]
        assert connack["properties"]["topicAliasMaximum"] == 64
        assert connack["properties"]["receiveMaximum"] == 1024


def test_topic_aliases_both_ways(server: Server, node: Node, topic: str) -> None:
    """It assigns and uses aliases by itself, and resolves ours. [MQTT-3.1.2-26]"""
    with MqttJs(node) as client:
        options: dict[str, Any] = {"autoAssignTopicAlias": True}
        client.connect(server, properties={"topicAliasMaximum": 3}, **options)
        client.subscribe(f"{topic}/#", qos=1)
        aliases = set()
        for number in range(12):
            name = f"{topic}/{number % 4}"
            client.publish(name, b"%d" % number, qos=1)
            packet = client.event()
            assert (packet["topic"], packet["payload"]) == (name, b"%d" % number)
            aliases.add(packet["properties"].get("topicAlias") if "properties" in packet else None)
        assert aliases == {None, 1, 2, 3}


def test_subscription_options(server: Server, node: Node, topic: str) -> None:
    """[MQTT-3.8.3-3] [MQTT-3.3.1-11] [MQTT-3.3.1-13]"""
    with MqttJs(node) as client, MqttJs(node) as other:
        client.connect(server)
        other.connect(server)
        other.publish(topic, b"old", qos=1, retain=True)
        client.subscribe({topic: {"qos": 1, "nl": True, "rap": True, "rh": 2}})
        client.publish(topic, b"mine", qos=1)
        other.publish(topic, b"new", qos=1, retain=True)
        assert mqttjs_message(client.event()) == Message(topic, b"new", 1, True)


@pytest.mark.parametrize("version", VERSIONS)
def test_shared_subscription(server: Server, node: Node, topic: str, version: str) -> None:
    with (
        MqttJs(node, version) as one,
        MqttJs(node, version) as two,
        MqttJs(node, version) as publisher,
    ):
        for member in (one, two):
            member.connect(server, "ws")
            member.subscribe(f"$share/g/{topic}", qos=1)
        publisher.connect(server)
        for number in range(8):
            publisher.publish(topic, b"%d" % number, qos=1)
        seen = [int(member.event()["payload"]) for member in (one, two) for _ in range(4)]
        assert sorted(seen) == list(range(8))


def test_take_over_is_told(server: Server, node: Node) -> None:
    """[MQTT-3.1.4-3]"""
    name = client_id("mqttjs")
    first = MqttJs(node)
    first.connect(server, "ws", clientId=name)
    with MqttJs(node) as second:
        second.connect(server, "tcp", clientId=name)
        assert first.event("disconnect")["reasonCode"] == 0x8E
        first.event("close")


def test_refused_subscription(server: Server, node: Node) -> None:
    with MqttJs(node) as client:
        client.connect(server)
        with pytest.raises(RuntimeError, match="Topic Filter invalid"):
            client.subscribe("$share//topic")


def test_receive_maximum(server: Server, node: Node, topic: str) -> None:
    """A window of one: the next message waits for the answer to the last. [MQTT-3.3.4-9]"""
    with MqttJs(node) as client, MqttJs(node) as publisher:
        client.connect(server, properties={"receiveMaximum": 1})
        client.subscribe(topic, qos=2)
        publisher.connect(server)
        for number in range(10):
            publisher.publish(topic, b"%d" % number, qos=1 + number % 2)
        assert [int(client.event()["payload"]) for _ in range(10)] == list(range(10))
