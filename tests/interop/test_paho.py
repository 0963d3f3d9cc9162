"""What every protocol version promises, seen by paho-mqtt: 3.1, 3.1.1 and 5 alike."""

from typing import Any

import pytest

from tests.interop.kit import V5, V31, V311, Message
from tests.interop.paho import Paho
from tests.interop.server import Server

VERSIONS = (V31, V311, V5)
LISTENERS = ("tcp", "tls", "ws", "wss", "unix")
LARGE = bytes(range(250)) * 2000
"""500 kB: many reads, many WebSocket frames, many TLS records."""


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("version", [V311, V5])
def test_every_listener_carries_large_payloads(
    server: Server, topic: str, version: str, listener: str
) -> None:
    with Paho(server, version, listener) as client:
        client.connect()
        client.subscribe(topic, 2)
        # paho masks WebSocket frames byte by byte: once is enough.
        for qos in (2,) if listener.startswith("ws") else range(3):
            assert client.publish(topic, LARGE, qos) == 0
            assert client.get_message() == Message(topic, LARGE, qos)


@pytest.mark.parametrize("version", [V311, V5])
def test_a_burst_stays_in_order(server: Server, topic: str, version: str) -> None:
    """Hundreds of messages in flight at once. [MQTT-4.6.0-6]"""
    with Paho(server, version) as subscriber, Paho(server, version) as publisher:
        subscriber.connect()
        subscriber.subscribe(f"{topic}/+", 2)
        publisher.connect()
        count = 200
        for qos in (1, 2, 0):
            for number in range(count):
                publisher.client.publish(f"{topic}/{qos}", str(number), qos)
            seen = [subscriber.get() for _ in range(count)]
            assert [(m.qos, int(m.payload)) for m in seen] == [(qos, n) for n in range(count)]
            assert not any(message.dup for message in seen)


@pytest.mark.parametrize("version", VERSIONS)
def test_delivery_takes_the_lower_qos(server: Server, topic: str, version: str) -> None:
    """[MQTT-3.8.4-8]"""
    with Paho(server, version) as client:
        client.connect()
        for granted in range(3):
            # The same filter again replaces the subscription. [MQTT-3.8.4-3]
            assert client.subscribe(topic, granted) == [granted]
            for sent in range(3):
                client.publish(topic, b"x", sent)
                assert client.get().qos == min(sent, granted)


@pytest.mark.parametrize("version", VERSIONS)
def test_retained(server: Server, topic: str, version: str) -> None:
    """[MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-9] [MQTT-3.3.1-12]"""
    with Paho(server, version) as client:
        client.connect()
        client.subscribe(f"{topic}/#", 1)
        for payload in (b"first", b"second"):
            client.publish(f"{topic}/state", payload, 1, retain=True)
            assert client.get_message() == Message(f"{topic}/state", payload, 1)

        with Paho(server, version) as newcomer:
            newcomer.connect()
            newcomer.subscribe(f"{topic}/+", 2)
            assert newcomer.get_message() == Message(f"{topic}/state", b"second", 1, True)

        client.publish(f"{topic}/state", b"", 1, retain=True)
        assert client.get_message() == Message(f"{topic}/state", b"", 1)
        with Paho(server, version) as newcomer:
            newcomer.connect()
            newcomer.subscribe(f"{topic}/+", 2)
            client.publish(f"{topic}/next", b"nothing came before me")
            assert newcomer.get().topic == f"{topic}/next"


@pytest.mark.parametrize("version", VERSIONS)
def test_will(server: Server, topic: str, version: str) -> None:
    """[MQTT-3.1.2-8] [MQTT-3.1.2-15] [MQTT-3.14.4-3]"""
    with Paho(server, version) as watcher, Paho(server, version) as mortal:
        watcher.connect()
        watcher.subscribe(f"{topic}/#", 2)

        mortal.connect(will=Message(f"{topic}/will", b"said goodbye", 1))
        mortal.disconnect()
        mortal.connect(will=Message(f"{topic}/will", b"died", 2, True))
        mortal.drop()
        assert watcher.get_message() == Message(f"{topic}/will", b"died", 2)

        with Paho(server, version) as late:
            late.connect()
            late.subscribe(f"{topic}/will", 2)
            assert late.get_message() == Message(f"{topic}/will", b"died", 2, True)


def persistent(version: str) -> dict[str, Any]:
    """Arguments of `connect` for a session that outlives its connection."""
    return {"clean": False} | ({"SessionExpiryInterval": 300} if version == V5 else {})


@pytest.mark.parametrize("version", VERSIONS)
def test_session_resume(server: Server, topic: str, version: str) -> None:
    """[MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.1.2-23]"""
    with Paho(server, version) as sleeper, Paho(server, version) as publisher:
        publisher.connect()
        assert not sleeper.connect(**persistent(version))[0]
        sleeper.subscribe(f"{topic}/#", 2)
        sleeper.disconnect()

        for qos in (1, 2):
            sent = [Message(f"{topic}/{number}", b"%d" % number, qos) for number in range(5)]
            for message in sent:
                publisher.send(message)
            present = sleeper.connect(**persistent(version))[0]
            # MQTT 3.1 has no bit for it.
            assert present == (version != V31)
            assert [sleeper.get_message() for _ in sent] == sent
            # Only DISCONNECT after the last acknowledgement leaves nothing to send again.
            sleeper.subscribe(f"{topic}/#", 2)
            sleeper.disconnect()

        sleeper.connect(**persistent(version))
        publisher.publish(f"{topic}/last", b"", 1)
        assert sleeper.get().topic == f"{topic}/last"
        sleeper.disconnect()

    with Paho(server, version, client_id=sleeper.client_id) as reborn:
        assert not reborn.connect(clean=True)[0]
        no_subscription_left = reborn.publish(f"{topic}/unheard", b"", 1)
        assert no_subscription_left == (0x10 if version == V5 else 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_unacknowledged_comes_again(server: Server, topic: str, version: str) -> None:
    """Who dies with messages in hand gets them once more. [MQTT-4.4.0-1] [MQTT-3.3.1-1]"""
    sent = [Message(topic, b"%d" % number, 1) for number in range(3)]
    with Paho(server, version) as publisher:
        publisher.connect()
        with Paho(server, version) as client:
            client.connect(**persistent(version))
            client.subscribe(topic, 1)
            client.client.manual_ack_set(True)
            for message in sent:
                publisher.send(message)
            assert [client.get_message() for _ in sent] == sent
            client.drop()
        with Paho(server, version, client_id=client.client_id) as again:
            again.connect(**persistent(version))
            seen = [again.get() for _ in sent]
            assert [(message.payload, message.dup) for message in seen] == [
                (message.payload, True) for message in sent
            ]


@pytest.mark.parametrize("version", VERSIONS)
def test_qos_2_is_finished_after_a_cut_and_not_repeated(
    server: Server, topic: str, version: str
) -> None:
    """PUBREL comes again, PUBLISH doesn't. [MQTT-4.3.3-6] [MQTT-4.4.0-1]"""
    with Paho(server, version) as client, Paho(server, version) as publisher:
        publisher.connect()
        client.connect(**persistent(version))
        client.subscribe(topic, 2)
        client.client.manual_ack_set(True)  # no PUBCOMP
        publisher.publish(topic, b"once", 2)
        assert client.get().payload == b"once"
        client.drop()
        client.client.manual_ack_set(False)
        client.connect(**persistent(version))
        publisher.publish(topic, b"next", 2)
        assert client.get().payload == b"next"


@pytest.mark.parametrize("version", VERSIONS)
def test_wildcards(server: Server, topic: str, version: str) -> None:
    """[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1]"""
    topics = (topic, f"{topic}/", f"{topic}/a", f"{topic}/a/b", f"{topic}//b")
    filters = {
        f"{topic}/#": topics,
        f"{topic}/+": (f"{topic}/", f"{topic}/a"),
        f"{topic}/+/b": (f"{topic}/a/b", f"{topic}//b"),
        f"{topic}/+/#": (f"{topic}/", f"{topic}/a", f"{topic}/a/b", f"{topic}//b"),
    }
    with Paho(server, version) as client:
        client.connect()
        for topic_filter, matching in filters.items():
            client.subscribe(topic_filter, 1)
            for name in topics:
                client.publish(name, b"", 1)
            assert [client.get().topic for _ in matching] == list(matching)
            client.unsubscribe(topic_filter)


def test_the_end_of_the_broker(own_server: Server) -> None:
    """SIGTERM: a client of MQTT 5 is told why, any other sees the connection end; exit 0."""
    with Paho(own_server, V311) as old, Paho(own_server, V5) as new:
        old.connect()
        new.connect()
        own_server.terminate()
        from_server, reason, _ = new.disconnected()
        assert (from_server, reason.getName()) == (True, "Server shutting down")
        assert not old.disconnected()[0]
        assert own_server.wait() == 0
