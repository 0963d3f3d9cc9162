"""What is new in MQTT 5, seen by paho-mqtt."""

from collections import Counter

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.kit import Message, Properties
from tests.interop.paho import Paho, packet_properties
from tests.interop.server import Server


def test_connack_tells_the_limits(server: Server) -> None:
    """[MQTT-3.1.3-6] [MQTT-3.1.3-7]"""
    with Paho(server, client_id="") as client:
        present, reason, properties = client.connect()
        assert not present
        assert reason.value == 0
        assert properties.AssignedClientIdentifier
        assert properties.ReceiveMaximum == 1024
        assert properties.MaximumPacketSize == 1 << 20
        assert properties.TopicAliasMaximum == 64


def test_publisher_uses_topic_aliases(server: Server, topic: str) -> None:
    """[MQTT-3.3.2-12]"""
    with Paho(server) as client:
        client.connect()
        client.subscribe(f"{topic}/#", 1)
        for alias in (1, 64):
            known = packet_properties(PacketTypes.PUBLISH, TopicAlias=alias)
            client.publish(f"{topic}/{alias}", b"named", 1, properties=known)
            for qos in range(3):
                client.publish("", b"by alias", qos, properties=known)
        seen = [client.get() for _ in range(8)]
        assert [(message.topic, message.payload) for message in seen] == [
            (f"{topic}/{alias}", payload)
            for alias in (1, 64)
            for payload in (b"named", b"by alias", b"by alias", b"by alias")
        ]
        # The alias is between one client and the broker.
        assert not any(hasattr(message.properties, "TopicAlias") for message in seen)


def test_alias_out_of_range_ends_the_connection(server: Server, topic: str) -> None:
    """[MQTT-3.3.2-9]"""
    with Paho(server) as client:
        client.connect()
        bad = packet_properties(PacketTypes.PUBLISH, TopicAlias=65)
        client.client.publish(topic, b"", 0, properties=bad)
        from_server, reason, _ = client.disconnected()
        assert (from_server, reason.value) == (True, 0x94)


def test_broker_uses_topic_aliases(server: Server, topic: str) -> None:
    """[MQTT-3.1.2-26] [MQTT-3.3.2-11]"""
    rounds, maximum = 4, 2
    with Paho(server) as client:
        client.connect(TopicAliasMaximum=maximum)
        client.subscribe(f"{topic}/#", 1)
        sent = [f"{topic}/{number}" for _ in range(rounds) for number in range(3)]
        for name in sent:
            client.publish(name, name.encode(), 1)
        topics: dict[int, str] = {}
        for name in sent:
            message = client.get()
            alias: int = getattr(message.properties, "TopicAlias", 0)
            assert 0 <= alias <= maximum
            if alias and message.topic:
                topics[alias] = message.topic
            # paho leaves it to us to look the alias up.
            assert (message.topic or topics[alias]) == name
            assert message.payload == name.encode()
        assert len(topics) == maximum


def test_overlapping_subscriptions(server: Server, topic: str) -> None:
    """One copy, the highest QoS, all identifiers. [MQTT-3.3.4-2] [MQTT-3.3.4-4]"""
    with Paho(server) as client:
        client.connect()
        client.subscribe(f"{topic}/#", 0, SubscriptionIdentifier=7)
        client.subscribe(f"{topic}/+", 2, SubscriptionIdentifier=268435455)
        client.subscribe(f"{topic}/a", 1)
        for payload in (b"1", b"2"):
            client.publish(f"{topic}/a", payload, 2)
        for payload in (b"1", b"2"):
            message = client.get()
            assert (message.payload, message.qos) == (payload, 2)
            identifiers = getattr(message.properties, "SubscriptionIdentifier")  # noqa: B009
            assert sorted(identifiers) == [7, 268435455]


def test_subscription_options(server: Server, topic: str) -> None:
    """[MQTT-3.8.3-3] [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.3.1-12] [MQTT-3.3.1-13]"""
    with Paho(server) as client, Paho(server) as other:
        client.connect()
        other.connect()
        other.publish(f"{topic}/kept", b"old", 1, retain=True)

        always_silent = SubscribeOptions(1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe(f"{topic}/kept", options=always_silent)
        other.publish(f"{topic}/kept", b"new", 1, retain=True)
        assert client.get_message() == Message(f"{topic}/kept", b"new", 1)

        faithful = SubscribeOptions(1, noLocal=True, retainAsPublished=True)
        client.subscribe(f"{topic}/+", options=faithful)
        assert client.get_message() == Message(f"{topic}/kept", b"new", 1, True)
        client.unsubscribe(f"{topic}/kept")
        client.publish(f"{topic}/mine", b"not for me", 1)
        other.publish(f"{topic}/other", b"for you", 1, retain=True)
        assert client.get_message() == Message(f"{topic}/other", b"for you", 1, True)

        only_new = SubscribeOptions(1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        client.subscribe(f"{topic}/+", options=only_new)
        other.publish(f"{topic}/last", b"", 1)
        assert client.get().topic == f"{topic}/last"


def test_shared_subscription(server: Server, topic: str) -> None:
    """[MQTT-4.8.2-1] [MQTT-4.8.2-3]"""
    count = 12
    with Paho(server) as one, Paho(server) as two, Paho(server) as publisher:
        for member in (one, two):
            member.connect()
            member.subscribe(f"$share/workers/{topic}/#", 1)
        publisher.connect()
        for number in range(count):
            publisher.publish(f"{topic}/job", b"%d" % number, 1)
        seen = Counter(
            int(member.get().payload) for member in (one, two) for _ in range(count // 2)
        )
        assert seen == Counter(range(count))


def test_take_over(server: Server) -> None:
    """[MQTT-3.1.4-3]"""
    with Paho(server) as first, Paho(server, client_id=first.client_id) as second:
        first.connect(clean=False, SessionExpiryInterval=60)
        assert second.connect(clean=False)[0]
        from_server, reason, _ = first.disconnected()
        assert (from_server, reason.value) == (True, 0x8E)


def test_wills_of_version_5(server: Server, topic: str) -> None:
    """[MQTT-3.1.3-9] [MQTT-3.1.2-8]"""
    properties = Properties(content_type="text/plain", user=(("why", "cut"), ("why", "power")))
    with Paho(server) as watcher, Paho(server) as mortal:
        watcher.connect()
        watcher.subscribe(f"{topic}/#", 1)

        # One that waits, and that the client outruns by coming back.
        delay = packet_properties(PacketTypes.WILLMESSAGE, WillDelayInterval=60)
        mortal.client.will_set(f"{topic}/late", b"", 1, properties=delay)
        mortal.connect(SessionExpiryInterval=60)
        mortal.drop()
        # One with properties, on a farewell that asks for it.
        spoken = packet_properties(
            PacketTypes.WILLMESSAGE,
            ContentType=properties.content_type,
            UserProperty=list(properties.user),
        )
        mortal.client.will_set(f"{topic}/will", b"bye", 1, properties=spoken)
        mortal.connect(clean=False, SessionExpiryInterval=60)
        mortal.disconnect(reason=0x04)
        assert watcher.get_message() == Message(f"{topic}/will", b"bye", 1, False, properties)
        # One whose delay ends with the session.
        mortal.client.will_set(f"{topic}/late", b"session over", 1, properties=delay)
        mortal.connect(clean=False, SessionExpiryInterval=0)
        mortal.drop()
        assert watcher.get().payload == b"session over"


def test_limits_of_the_receiver(server: Server, topic: str) -> None:
    """[MQTT-3.3.4-9] [MQTT-3.1.2-24] [MQTT-3.1.2-25]"""
    with Paho(server) as slow, Paho(server) as publisher:
        publisher.connect()
        slow.connect(ReceiveMaximum=2, MaximumPacketSize=200)
        slow.subscribe(topic, 1)
        slow.client.manual_ack_set(True)
        publisher.publish(topic, b"x" * 300, 1)
        for number in range(5):
            publisher.publish(topic, b"%d" % number, 1)
        window = [slow.get(), slow.get()]
        assert [message.payload for message in window] == [b"0", b"1"]
        # Each answer lets one more through, so the window was really full.
        for number in (2, 3, 4):
            oldest = window.pop(0)
            assert slow.messages.empty()
            slow.client.ack(oldest.mid, 1)
            window.append(slow.get())
            assert window[-1].payload == b"%d" % number


def test_too_large_for_the_broker(server: Server, topic: str) -> None:
    """[MQTT-3.2.2-15]"""
    with Paho(server) as client:
        client.connect()
        client.client.publish(topic, bytes((1 << 20) + 1), 1)
        from_server, reason, _ = client.disconnected()
        # The kernel may throw the DISCONNECT away with what the client still writes.
        assert not from_server or reason.value == 0x95


def test_reason_codes(server: Server, topic: str) -> None:
    """[MQTT-3.10.4-4] [MQTT-3.10.4-5]"""
    with Paho(server) as client:
        client.connect()
        assert client.publish(topic, b"", 1) == 0x10
        assert client.unsubscribe(topic) == [0x11]
        assert client.subscribe(topic, 1) == [1]
        assert client.publish(topic, b"", 1) == 0
        assert client.unsubscribe(topic) == [0]


def test_request_and_response(server: Server, topic: str) -> None:
    """[MQTT-3.3.2-15] [MQTT-3.3.2-16]"""
    with Paho(server) as asking, Paho(server) as answering:
        _, _, properties = asking.connect(RequestResponseInformation=1)
        answering.connect()
        answering.subscribe(f"{topic}/service", 1)
        # The broker says where answers may go; below it, the client chooses.
        answers = f"{properties.ResponseInformation}/{asking.client_id}"
        asking.subscribe(answers, 1)
        extras = Properties(response_topic=answers, correlation=bytes(range(256)))
        asking.send(Message(f"{topic}/service", b"6 * 7", 1, properties=extras))

        request = answering.get_message()
        back = request.properties
        assert back == extras
        assert back.response_topic is not None
        correlation = Properties(correlation=back.correlation)
        answering.send(Message(back.response_topic, b"42", 1, properties=correlation))
        assert asking.get_message() == Message(answers, b"42", 1, False, correlation)
