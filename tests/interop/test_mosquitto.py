"""mosquitto_pub, mosquitto_sub and mosquitto_rr: libmosquitto, in MQTT 3.1, 3.1.1 and 5."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.interop import mosquitto
from tests.interop.kit import V5, V31, V311, Message, Properties
from tests.interop.mosquitto import Subscriber, publish, run
from tests.interop.peers import client_id
from tests.interop.server import Server

VERSIONS = (V31, V311, V5)
PROPERTIES = Properties(
    payload_format=1,
    expiry=500,
    content_type="text/plain",
    response_topic="a/b",
    correlation="ünique".encode(),
    user=(("b", "1"), ("a", "2"), ("b", "3")),
)


@pytest.mark.parametrize("listener", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_listener(server: Server, topic: str, version: str, listener: str) -> None:
    arguments = ["-t", f"{topic}/+", "-q", "2"]
    with Subscriber(server, *arguments, version=version, listener=listener) as subscriber:
        for qos in range(3):
            message = Message(f"{topic}/{qos}", bytes(range(256)), qos)
            publish(server, message, version=version, listener=listener)
            assert subscriber.get() == message


@pytest.mark.parametrize("version", [V311, V5])
def test_large_payload(server: Server, topic: str, version: str, tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(bytes(range(250)) * 2000)
    with Subscriber(server, "-t", topic, "-q", "2", version=version) as subscriber:
        arguments = [*mosquitto.place(server), *mosquitto.version_arguments(version)]
        assert run("mosquitto_pub", *arguments, "-t", topic, "-q", "2", "-f", str(file)).status == 0
        assert subscriber.get() == Message(topic, file.read_bytes(), 2)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_line_a_message(server: Server, topic: str, version: str) -> None:
    """mosquitto_pub -l: a pipe's worth of messages on one connection, in order."""
    count = 100
    with Subscriber(server, "-t", topic, "-q", "1", "-C", str(count), version=version) as lines:
        arguments = [*mosquitto.place(server), *mosquitto.version_arguments(version)]
        payload = b"".join(b"line %d\n" % number for number in range(count))
        done = run("mosquitto_pub", *arguments, "-t", topic, "-q", "1", "-l", payload=payload)
        assert done.status == 0
        expected = [b"line %d" % number for number in range(count)]
        assert [lines.get().payload for _ in range(count)] == expected
        assert lines.finish() == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_retained(server: Server, topic: str, version: str) -> None:
    messages = [Message(f"{topic}/{n}", b"%d" % n, n % 3, retain=True) for n in range(3)]
    for message in messages:
        publish(server, message, version=version)
    arguments = ["-t", f"{topic}/#", "-q", "2", "-C", "3", "--retained-only"]
    with Subscriber(server, *arguments, version=version) as subscriber:
        seen = [subscriber.get() for _ in messages]
        assert sorted(seen, key=lambda message: message.topic) == messages
        assert subscriber.finish() == 0
    # It clears what it sees, with an empty retained message for each.
    removing = ["-t", f"{topic}/#", "--remove-retained"]
    with Subscriber(server, *removing, version=version) as subscriber:
        for _ in messages:
            subscriber.wait_for("received PUBACK")
    with Subscriber(server, "-t", f"{topic}/#", "-q", "1", version=version) as subscriber:
        last = Message(f"{topic}/last", b"x", 1)
        publish(server, last, version=version)
        assert subscriber.get() == last


@pytest.mark.parametrize("version", VERSIONS)
def test_will(server: Server, topic: str, version: str) -> None:
    will = ["--will-topic", f"{topic}/will", "--will-payload", "killed", "--will-qos", "1"]
    with Subscriber(server, "-t", f"{topic}/will", "-q", "2", version=version) as watcher:
        with Subscriber(server, *will, "-t", topic, "-E", version=version) as peaceful:
            assert peaceful.finish() == 0
        with Subscriber(server, *will, "--will-retain", "-t", topic, version=version) as mortal:
            mortal.kill()
        assert watcher.get() == Message(f"{topic}/will", b"killed", 1)
    with Subscriber(server, "-t", f"{topic}/will", "-q", "1", version=version) as late:
        # Once only: the first client ended with DISCONNECT.
        assert late.get() == Message(f"{topic}/will", b"killed", 1, True)


@pytest.mark.parametrize("version", [V311, V5])
def test_session(server: Server, topic: str, version: str) -> None:
    """Subscribe and go (-E), come back for what arrived meanwhile."""
    persistent = ["-c", "-i", client_id("mosquitto"), "-t", topic, "-q", "2"]
    with Subscriber(server, *persistent, "-E", version=version) as subscriber:
        assert subscriber.finish() == 0
    properties = PROPERTIES if version == V5 else Properties()
    # One QoS: mosquitto_sub shows a message of QoS 2 only when it is settled.
    sent = [Message(topic, b"%d" % number, 1, False, properties) for number in range(4)]
    for message in sent:
        publish(server, message, version=version)
    with Subscriber(server, *persistent, "-C", "4", version=version, ready=False) as subscriber:
        seen = [subscriber.get() for _ in sent]
        assert [m.expiring(wanted) for m, wanted in zip(seen, sent, strict=True)] == sent
        assert subscriber.finish() == 0


def test_properties(server: Server, topic: str) -> None:
    """[MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.4-3]"""
    identifier = ["-D", "subscribe", "subscription-identifier", "42"]
    with Subscriber(server, "-t", topic, "-q", "2", *identifier) as subscriber:
        for qos in range(3):
            message = Message(topic, "größer".encode(), qos, False, PROPERTIES)
            publish(server, message)
            received, raw = subscriber.get_with_json()
            assert received.expiring(message) == message
            assert raw["subscription-identifier"] == 42


def test_will_with_properties(server: Server, topic: str) -> None:
    will = ["--will-topic", f"{topic}/will", "--will-payload", "x"]
    will += mosquitto.property_arguments("will", PROPERTIES)
    with Subscriber(server, "-t", f"{topic}/will") as watcher:
        with Subscriber(server, *will, "-t", topic) as mortal:
            mortal.kill()
        message = watcher.get()
        expected = Message(f"{topic}/will", b"x", properties=PROPERTIES)
        assert message.expiring(expected) == expected


def test_topic_alias(server: Server, topic: str) -> None:
    """mosquitto_pub sends the topic once and the alias from then on, with --repeat."""
    with Subscriber(server, "-t", topic, "-q", "1") as subscriber:
        alias = ["-D", "publish", "topic-alias", "5", "--repeat", "3"]
        publish(server, Message(topic, b"x", 1), *alias)
        for _ in range(3):
            message, raw = subscriber.get_with_json()
            assert message == Message(topic, b"x", 1)
            assert "topic-alias" not in raw


@pytest.mark.parametrize("version", [V311, V5])
def test_shared_subscription(server: Server, topic: str, version: str) -> None:
    """Also a client of MQTT 3.1.1 may share."""
    shared = ["-t", f"$share/group/{topic}", "-q", "1", "-C", "3"]
    with (
        Subscriber(server, *shared, version=version) as one,
        Subscriber(server, *shared, version=version) as two,
    ):
        for number in range(6):
            publish(server, Message(topic, b"%d" % number, 1), version=version)
        seen = [member.get() for member in (one, two) for _ in range(3)]
        assert sorted(message.payload for message in seen) == [b"%d" % n for n in range(6)]
        assert {message.topic for message in seen} == {topic}
        assert (one.finish(), two.finish()) == (0, 0)


def test_request_and_response(server: Server, topic: str) -> None:
    """mosquitto_rr asks and waits; the answer goes where the request says."""
    asks = ["-t", f"{topic}/ask", "-e", f"{topic}/answers", "-m", "21", "-q", "1"]
    correlation = ["-D", "publish", "correlation-data", "question 1"]
    with Subscriber(server, "-t", f"{topic}/ask", "-q", "1") as service:
        program = "mosquitto_rr"
        with Subscriber(server, *asks, *correlation, program=program, ready=False) as asking:
            request = service.get()
            assert request.payload == b"21"
            assert request.properties.response_topic == f"{topic}/answers"
            assert request.properties.correlation == b"question 1"
            answer = Message(
                request.properties.response_topic,
                b"42",
                1,
                properties=Properties(correlation=request.properties.correlation),
            )
            publish(server, answer)
            assert asking.get() == answer
            assert asking.finish() == 0


def test_unsubscribe(server: Server, topic: str) -> None:
    with Subscriber(server, "-t", f"{topic}/#", "-U", f"{topic}/no", "-q", "1") as subscriber:
        message = Message(f"{topic}/yes", b"x", 1)
        publish(server, message)
        assert subscriber.get() == message


def test_certificate_is_the_user(server: Server, topic: str) -> None:
    """A session belongs to the common name of the certificate that made it."""
    alice, bob = (
        ["--cert", str(certificate), "--key", str(key)]
        for certificate, key in (server.pki.alice, server.pki.bob)
    )
    session = ["-c", "-i", client_id("mosquitto"), "-t", topic, "-q", "1"]
    with Subscriber(server, *alice, *session, "-E", listener="mtls") as subscriber:
        assert subscriber.finish() == 0
    message = Message(topic, b"for alice", 1)
    publish(server, message, *bob, listener="mtls")

    place = [*mosquitto.place(server, "mtls"), *mosquitto.version_arguments(V5)]
    thief = run("mosquitto_sub", *place, *bob, *session, "-C", "1", "-W", "30")
    assert thief.status != 0
    assert "Not authorized" in thief.output
    with Subscriber(server, *alice, *session, listener="mtls", ready=False) as subscriber:
        assert subscriber.get() == message

    nobody = run("mosquitto_pub", *place, "-t", topic, "-m", "x")
    assert nobody.status != 0


def test_versions_meet(server: Server, topic: str) -> None:
    """What a client of an old version can't be told is left out, the rest is the same."""
    message = Message(topic, b"x", 2, False, PROPERTIES)
    old = Subscriber(server, "-t", topic, "-q", "2", version=V31)
    new = Subscriber(server, "-t", topic, "-q", "2", version=V5)
    with old, new:
        publish(server, message)
        assert old.get() == replace(message, properties=Properties())
        assert new.get().expiring(message) == message
        publish(server, replace(message, properties=Properties()), version=V31)
        assert old.get() == new.get() == replace(message, properties=Properties())
