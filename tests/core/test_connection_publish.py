"""What a connection does with a PUBLISH, and when it may acknowledge one."""

import pytest

from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import (
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
)
from tests.core.rig import make_settings
from tests.harness import FakeClient, Harness

V3 = (spec.MQTT31, spec.MQTT311)
ALL = (*V3, spec.MQTT5)


def goodbye(client: FakeClient) -> int:
    """The reason code of the DISCONNECT that ended this MQTT 5 connection."""
    last = client.recv()[-1]
    assert isinstance(last, Disconnect), last
    assert client.closed
    return last.reason


def manual(h: Harness, client_id: str = "c", version: int = 5, **options: int) -> FakeClient:
    return h.client(client_id, version=version, auto_ack=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("where", ["alone", "glued", "in drops"])
def test_a_message_goes_through_however_its_bytes_come(version: int, qos: int, where: str) -> None:
    """[MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2]"""
    h = Harness()
    receivers = [h.client(f"r{each}", version=each) for each in ALL]
    for receiver in receivers:
        receiver.subscribe("t", qos=qos)
    publisher = manual(h, "p", version)
    frame = encode_packet(Publish("t", b"payload", qos, packet_id=qos and 3), version)
    if where == "glued":
        publisher.send_raw(b"\xc0\x00" + frame + b"\xc0\x00")
        publisher.take_first(Pingresp)
    elif where == "in drops":
        for byte in frame:
            publisher.send_raw(bytes([byte]))
    else:
        publisher.send_raw(frame)
    for receiver in receivers:
        (packet,) = receiver.messages()
        assert (packet.payload, packet.qos) == (b"payload", qos)
    if qos:
        answer: Record = Puback(3) if qos == 1 else Pubrec(3)
        assert answer in publisher.recv()


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", ALL)
def test_a_publisher_hears_that_nobody_listened_if_it_can(version: int, qos: int) -> None:
    publisher = manual(Harness(), version=version)
    publisher.publish("t", b"x", qos, packet_id=1)
    answer = publisher.recv()[0]
    assert isinstance(answer, Puback | Pubrec)
    assert answer.reason == (spec.NO_MATCHING_SUBSCRIBERS if version == 5 else 0)


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", ALL)
def test_reserved_topics_are_not_for_clients(version: int, qos: int, retain: bool) -> None:
    """3.3.5 of MQTT 3.1.1: an error for MQTT 5, silence before."""
    h = Harness()
    watcher = h.client("watcher")
    watcher.subscribe("$SYS/#")
    publisher = manual(h, "p", version)
    publisher.publish("$SYS/x", b"x", qos, retain, packet_id=qos and 4)
    watcher.expect_nothing()
    assert h.broker.retained.count == 0
    assert h.broker.counters.publish_refused == 1
    code = spec.NOT_AUTHORIZED if version == 5 else 0
    expected: list[list[Record]] = [[], [Puback(4, code)], [Pubrec(4, code)]]
    assert publisher.recv() == expected[qos]
    if qos == 2 and version < 5:
        publisher.send(Pubrel(4))
        assert publisher.expect(Pubcomp) == Pubcomp(4)
    publisher.publish("$other/x", b"x", qos, packet_id=qos and 5)
    assert h.broker.counters.publish_refused == 1


def test_message_expiry_and_retain_take_the_long_way() -> None:
    """[MQTT-3.3.2-6] [MQTT-3.3.1-5]"""
    h = Harness()
    receiver = h.client("r")
    receiver.subscribe("t")
    publisher = h.client("p")
    publisher.publish("t", b"1", message_expiry=30)
    publisher.publish("t", b"2", retain=True)
    publisher.publish("t", b"3", message_expiry=0)
    found = receiver.messages()
    assert [packet.message_expiry for packet in found] == [30, -1, 1]
    retained = h.broker.retained.get("t")
    assert retained is not None
    assert retained.payload == b"2"


def test_aliases_stand_for_the_topic_they_were_set_with() -> None:
    """[MQTT-3.3.2-7] [MQTT-3.3.2-9] [MQTT-3.3.2-12]"""
    h = Harness(make_settings(topic_alias_maximum=2))
    receiver = h.client("r")
    receiver.subscribe("#")
    publisher = h.client("p")
    for topic, alias in (("a", 1), ("b", 2), ("", 1), ("c", 1), ("", 1), ("", 2)):
        publisher.publish(topic, b"x", topic_alias=alias)
    assert [packet.topic for packet in receiver.messages()] == ["a", "b", "a", "c", "c", "b"]
    publisher.publish("d", b"x", topic_alias=3)
    assert goodbye(publisher) == spec.TOPIC_ALIAS_INVALID
    other = h.client("q")
    other.publish("", b"x", topic_alias=1)  # aliases are the connection's own
    assert goodbye(other) == spec.PROTOCOL_ERROR


@pytest.mark.parametrize("qos", [1, 2])
def test_more_in_flight_than_allowed_ends_the_connection(qos: int) -> None:
    """[MQTT-3.3.4-7]"""
    h = Harness(make_settings(receive_maximum=2), durable=True)
    receiver = h.client("r", expiry=60)
    receiver.send(Subscribe(1, [Filter("t", 2)]))
    receiver.drop()
    h.commit()
    publisher = manual(h, "p")
    for packet_id in (1, 2):
        publisher.publish("t", b"x", qos, packet_id=packet_id)
    publisher.expect_nothing()
    publisher.publish("t", b"x", qos, packet_id=3)
    assert goodbye(publisher) == spec.RECEIVE_MAXIMUM_EXCEEDED


def test_finished_exchanges_make_room_for_others() -> None:
    """[MQTT-4.9.0-1]"""
    h = Harness(make_settings(receive_maximum=1))
    publisher = manual(h, "p")
    for packet_id in range(1, 6):
        publisher.publish("t", b"x", 2, packet_id=packet_id)
        publisher.expect(Pubrec)
        publisher.send(Pubrel(packet_id))
        publisher.expect(Pubcomp)
        publisher.publish("t", b"x", 1, packet_id=packet_id)
        publisher.expect(Puback)
    assert publisher.connection.inbound_open == 0


# QoS 2, inbound.


def test_a_repeated_publish_is_acknowledged_and_delivered_once() -> None:
    """[MQTT-4.3.3-10]"""
    h = Harness()
    receiver = h.client("r")
    receiver.subscribe("t")
    publisher = manual(h, "p", expiry=60)
    for dup in (False, True, True):
        publisher.publish("t", b"x", 2, packet_id=7, dup=dup)
        assert publisher.expect(Pubrec).packet_id == 7
    publisher.drop()
    publisher = h.client("p", clean=False, expiry=60, auto_ack=False)
    publisher.publish("t", b"x", 2, packet_id=7, dup=True)
    publisher.expect(Pubrec)
    assert publisher.connection.inbound_open == 1
    publisher.send(Pubrel(7))
    publisher.expect(Pubcomp)
    assert publisher.connection.inbound_open == 0
    assert len(receiver.messages()) == 1
    publisher.publish("t", b"y", 2, packet_id=7)
    assert [packet.payload for packet in receiver.messages()] == [b"y"]


def test_an_exchange_of_an_earlier_connection_costs_no_place_of_this_one() -> None:
    h = Harness(make_settings(receive_maximum=1))
    publisher = manual(h, "p", expiry=60)
    publisher.publish("t", b"x", 2, packet_id=7)
    publisher.drop()
    publisher = h.client("p", clean=False, expiry=60, auto_ack=False)
    publisher.publish("t", b"y", 2, packet_id=8)
    publisher.expect(Pubrec)
    publisher.send(Pubrel(7))
    publisher.expect(Pubcomp)
    assert publisher.connection.inbound_open == 1


# Promises.


def durable_pair() -> tuple[Harness, FakeClient, FakeClient]:
    """A publisher and a lasting subscriber, everything so far on disk."""
    h = Harness(durable=True)
    receiver = manual(h, "r", expiry=60)
    receiver.send(Subscribe(1, [Filter("t", 2)]))
    h.commit()
    receiver.expect(Suback)
    publisher = manual(h, "p")
    return h, publisher, receiver


@pytest.mark.parametrize("qos", [1, 2])
def test_an_acknowledgement_waits_for_the_commit(qos: int) -> None:
    """[MQTT-4.3.2-4] [MQTT-4.3.3-8]"""
    h, publisher, _ = durable_pair()
    publisher.publish("t", b"x", qos, packet_id=1)
    publisher.expect_nothing()
    assert publisher.connection.inbound_open == 1
    h.commit()
    assert publisher.recv() == [Puback(1) if qos == 1 else Pubrec(1)]


def test_an_acknowledgement_leaves_early_when_the_last_delivery_settles() -> None:
    h, publisher, receiver = durable_pair()
    publisher.publish("t", b"x", 1, packet_id=1)
    receiver.send(Puback(receiver.expect(Publish).packet_id))
    assert publisher.expect(Puback) == Puback(1)
    assert publisher.connection.inbound_open == 0
    batch = h.broker.take_batch()
    assert batch is not None
    assert batch.ops == []


def test_the_shell_is_asked_to_look_while_answers_are_held() -> None:
    h, publisher, _ = durable_pair()
    frame = encode_packet(Publish("t", b"x", 1, packet_id=1), 5)
    assert publisher.connection.receive_data(frame, h.now)
    h.commit()
    assert not publisher.connection.receive_data(b"\xc0\x00", h.now)


def test_a_retained_message_has_to_be_durable_itself() -> None:
    h, publisher, receiver = durable_pair()
    publisher.publish("t", b"x", 1, retain=True, packet_id=1)
    receiver.send(Puback(receiver.expect(Publish).packet_id))
    publisher.expect_nothing()
    h.commit()
    publisher.expect(Puback)
    publisher.publish("u", b"x", 2, retain=True, packet_id=2)
    publisher.expect_nothing()
    h.commit()
    assert publisher.expect(Pubrec).packet_id == 2


def test_acknowledgements_keep_the_order_of_their_requests() -> None:
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3]"""
    h, publisher, _ = durable_pair()
    publisher.publish("t", b"1", 1, packet_id=1)
    publisher.publish("nobody", b"2", 1, packet_id=2)
    publisher.publish("nobody", b"3", 2, packet_id=3)
    publisher.publish("$SYS/x", b"4", 1, packet_id=4)
    publisher.send(Subscribe(5, [Filter("u")]))
    publisher.send(Pubrel(3))
    publisher.send(Pingreq())
    publisher.expect(Pingresp)  # a ping promises nothing
    publisher.expect_nothing()
    h.commit()
    found = publisher.recv()
    assert [type(packet) for packet in found] == [Puback, Puback, Pubrec, Puback, Suback, Pubcomp]
    assert [getattr(packet, "packet_id") for packet in found] == [1, 2, 3, 4, 5, 3]  # noqa: B009


def test_qos_2_of_a_lasting_publisher_is_sent_on_after_its_identifier_is_durable() -> None:
    """[MQTT-4.3.3-10] A crash in between can so not double it."""
    h = Harness(durable=True)
    receiver = h.client("r")
    receiver.subscribe("t", qos=2)
    publisher = manual(h, "p", expiry=60)
    h.commit()
    publisher.publish("t", b"x", 2, packet_id=1)
    receiver.expect_nothing()
    publisher.publish("t", b"x", 2, packet_id=1, dup=True)
    publisher.expect_nothing()
    h.commit()
    assert publisher.recv() == [Pubrec(1), Pubrec(1)]
    assert [packet.payload for packet in receiver.messages()] == [b"x"]
    publisher.send(Pubrel(1))
    publisher.send(Pubrel(1))
    publisher.expect_nothing()
    h.commit()
    assert [packet for packet in publisher.recv() if isinstance(packet, Pubcomp)] == [
        Pubcomp(1),
        Pubcomp(1, spec.PACKET_IDENTIFIER_NOT_FOUND),
    ]


def test_what_was_promised_to_a_connection_that_is_gone_is_not_sent_to_its_successor() -> None:
    h, publisher, _ = durable_pair()
    publisher.publish("t", b"x", 1, packet_id=1)
    again = manual(h, "p")
    h.commit()
    assert publisher.closed
    again.expect_nothing()
    assert not h.broker.context.holding
