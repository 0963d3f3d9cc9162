"""The way out: order, sizes, aliases, and acknowledgements that wait for the disk."""

import pytest

from mqttd.core import counters as count
from mqttd.core.encode import encode_packet
from mqttd.core.inflight import Delivery
from mqttd.core.message import Message
from mqttd.core.outbound import Held, Outbound
from mqttd.core.packets import Connect, Disconnect, Filter, Puback, Publish, Pubrel, Subscribe
from tests.core.rig import FRAME, Rig, make_message, packets
from tests.core.vectors import props
from tests.harness import Harness

OTHER = b"\x40\x02\x00\x08"


def send(
    link: Outbound,
    message: Message,
    qos: int = 0,
    packet_id: int = 0,
    *,
    retain: bool = False,
    dup: bool = False,
    identifiers: bytes = b"",
    now: float = 0.0,
) -> bool:
    return link.send_publish(message, qos, retain, packet_id, dup, identifiers, now)


def written(link: Outbound) -> list[Publish]:
    found = packets(link.data_to_send(), link.version)
    return [packet for packet in found if isinstance(packet, Publish)]


def owe(rig: Rig, message: Message) -> Delivery:
    """A delivery of this message that is to become durable."""
    delivery = Delivery(message, 1, False, b"", None)
    rig.journal.add(1, delivery)
    return delivery


def test_an_outbound_leaves_two_questions_to_the_connection() -> None:
    link = Rig().link()
    with pytest.raises(AssertionError, match="unsendable"):
        link.unsendable()
    with pytest.raises(AssertionError, match="opened"):
        link.opened()


# What the shell sees.


def test_the_usual_acknowledgement_is_an_answer_like_any_other() -> None:
    rig = Rig()
    link = rig.link()
    link.send_ack(b"\x40\x02", 7)
    link.send_ack(b"\x70\x02", 300)
    assert rig.dirty == [link]
    assert link.backlog() == 8
    assert rig.counters.packets_sent == 2
    assert link.data_to_send() == FRAME + b"\x70\x02\x01\x2c"
    link.finish()
    link.send_ack(b"\x40\x02", 7)
    assert link.data_to_send() == b""


def test_frames_leave_in_the_order_they_were_appended() -> None:
    rig = Rig()
    link = rig.link()
    assert link.data_to_send() == b""
    link.send(FRAME)
    assert link.data_to_send() == FRAME
    link.send(FRAME)
    link.send_frame(b"\x30\x03\x00\x01t")
    send(link, make_message(b"p"), 1, 5)
    link.send(OTHER)
    size = link.backlog()
    data = link.data_to_send()
    assert data.startswith(FRAME + b"\x30\x03\x00\x01t")
    assert data.endswith(OTHER)
    assert size == len(data)
    assert link.backlog() == 0
    assert link.data_to_send() == b""
    assert rig.counters.bytes_sent == len(FRAME) + len(data)
    assert rig.counters.packets_sent == 3
    assert rig.counters.publish_sent == 1  # who passes a frame on counts it


def test_a_connection_with_something_to_write_stands_in_the_list_once() -> None:
    rig = Rig()
    link, other = rig.link(), rig.link()
    message = make_message(expires_at=9.0)
    for _ in range(2):
        link.send(FRAME)
        other.send_frame(b"\x30\x03\x00\x01t")
        send(link, make_message(b"plain"))
        send(other, message)
    assert rig.dirty == [link, other]
    rig.dirty.clear()
    link.data_to_send()
    assert rig.dirty == []
    send(link, make_message(b"plain"))
    send(other, message)  # still dirty from before: nobody took its bytes
    assert rig.dirty == [link]
    rig.dirty.clear()
    other.data_to_send()
    send(other, message)
    assert rig.dirty == [other]
    other.send(FRAME)
    assert rig.dirty == [other]


def test_the_first_frame_of_any_kind_marks_a_connection() -> None:
    rig = Rig()
    link = rig.link()
    link.send_frame(b"\x30\x03\x00\x01t")
    assert rig.dirty == [link]
    other = rig.link()
    other.finish()
    assert rig.dirty == [link, other]


def test_what_was_sent_is_written_before_the_end_and_nothing_after_it() -> None:
    rig = Rig()
    link = rig.link()
    link.send(FRAME)
    link.finish()
    link.send(OTHER)
    assert link.closing
    assert not link.writable
    assert rig.dirty == [link]
    assert link.data_to_send() == FRAME
    assert rig.counters.packets_sent == 1


# Sizes. [MQTT-3.1.2-24]


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("over", [0, 1])
def test_a_publish_larger_than_the_client_accepts_is_dropped(qos: int, over: int) -> None:
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]"""
    rig = Rig()
    link = rig.link()
    message = make_message(b"payload", qos)
    send(link, message, qos, 1)
    size = len(link.data_to_send())
    link.max_send = size - over
    assert send(link, message, qos, 2) is (over == 0)
    assert len(link.data_to_send()) == (0 if over else size)
    assert rig.counters.dropped == ({count.DROP_TOO_LARGE: 1} if over else {})


@pytest.mark.parametrize("over", [0, 1])
def test_what_is_made_for_one_client_counts_with_all_that_is_added(over: int) -> None:
    """[MQTT-3.1.2-24]"""
    rig = Rig()
    link = rig.link()
    message = make_message(b"payload", expires_at=60.0)
    send(link, message, identifiers=b"\x0b\x01")
    size = len(link.data_to_send())
    link.max_send = size - over
    assert send(link, message, identifiers=b"\x0b\x01") is (over == 0)
    assert rig.counters.dropped == ({count.DROP_TOO_LARGE: 1} if over else {})


def test_an_answer_is_compared_with_the_limit_too() -> None:
    """[MQTT-3.1.2-24] The connection decides what becomes of it; here nobody does."""
    link = Rig().link()
    link.max_send = len(FRAME)
    link.send(FRAME)
    link.max_send = len(FRAME) - 1
    with pytest.raises(AssertionError, match="unsendable"):
        link.send(FRAME)
    assert link.data_to_send() == FRAME


def test_an_acknowledgement_of_four_bytes_is_compared_too() -> None:
    """[MQTT-3.1.2-24]"""
    link = Rig().link()
    link.max_send = 4
    link.send_ack(b"\x40\x02", 7)
    link.max_send = 3
    with pytest.raises(AssertionError, match="unsendable"):
        link.send_ack(b"\x40\x02", 7)
    assert link.data_to_send() == FRAME
    client = Harness().client("c", version=4)
    client.connection.max_send = 3
    client.publish("t", b"x", 1)
    client.expect_nothing()
    assert client.closed


def test_a_connection_ends_over_an_answer_that_its_client_cannot_take() -> None:
    """[MQTT-3.1.2-24] Leaving the answer out would break another rule."""
    h = Harness()
    client = h.client("c", properties=props(maximum_packet_size=40))
    client.send(Subscribe(1, [Filter(f"t/{number}") for number in range(50)]))
    assert client.closed
    assert [type(packet) for packet in client.recv()] == [Disconnect]
    assert h.broker.counters.answers_too_large == 1


# PUBLISH.


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_a_publish_has_the_version_qos_and_retain_of_its_delivery(
    version: int, qos: int, retain: bool
) -> None:
    """[MQTT-3.3.1-2] [MQTT-3.3.1-3]"""
    link = Rig().link(version)
    for _ in range(2):
        send(link, make_message(b"p"), qos, 7 if qos else 0, retain=retain)
    for packet in written(link):
        assert (packet.topic, packet.payload, packet.dup) == ("t", b"p", False)
        assert (packet.qos, packet.retain) == (qos, retain)
        assert packet.packet_id == (7 if qos else 0)


def test_a_fan_out_shares_its_bytes() -> None:
    rig = Rig()
    message = make_message(b"p", 0)
    links = [rig.link() for _ in range(3)]
    for link in links:
        send(link, message)
    first = links[0].data_to_send()
    assert all(link.data_to_send() is first for link in links[1:])


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_retransmission_says_so(version: int) -> None:
    """[MQTT-3.3.1-1]"""
    link = Rig().link(version)
    send(link, make_message(b"p"), 1, 9, dup=True, retain=True)
    (packet,) = written(link)
    assert (packet.dup, packet.qos, packet.retain, packet.packet_id) == (True, 1, True, 9)


def test_identifiers_and_expiry_go_to_mqtt_5_only() -> None:
    """[MQTT-3.3.4-3]"""
    rig = Rig()
    message = make_message(b"p", expires_at=70.0)
    new, old = rig.link(5), rig.link(4)
    send(new, message, 1, 1, identifiers=b"\x0b\x2a", now=10.0)
    send(old, message, 1, 1, identifiers=b"\x0b\x2a", now=10.0, dup=True)
    (packet,) = written(new)
    assert (packet.subscription_ids, packet.message_expiry) == ([42], 60)
    (packet,) = written(old)
    assert (packet.subscription_ids, packet.message_expiry) == ([], -1)


# Topic aliases.


def aliases(link: Outbound, *topics: str) -> list[tuple[str, int]]:
    for topic in topics:
        send(link, make_message(topic=topic))
    return [(packet.topic, packet.topic_alias) for packet in written(link)]


def test_a_topic_earns_its_alias_the_second_time() -> None:
    """[MQTT-3.1.2-26] [MQTT-3.3.2-8]"""
    link = Rig().link()
    link.allow_aliases(2)
    assert link.aliases_allowed
    assert aliases(link, "aaaa", "bbbb", "cccc") == [("aaaa", 0), ("bbbb", 0), ("cccc", 0)]
    assert aliases(link, "bbbb", "bbbb") == [("bbbb", 1), ("", 1)]
    assert aliases(link, "aaaa", "cccc", "cccc") == [("aaaa", 2), ("cccc", 0), ("cccc", 0)]
    assert aliases(link, "aaaa", "bbbb") == [("", 2), ("", 1)]


def test_a_topic_shorter_than_its_alias_gets_none() -> None:
    link = Rig().link()
    link.allow_aliases(2)
    assert aliases(link, "abc", "abc", "abc") == [("abc", 0)] * 3


def test_a_client_that_takes_no_alias_gets_none() -> None:
    """[MQTT-3.3.2-11]"""
    link = Rig().link()
    link.allow_aliases(0)
    assert not link.aliases_allowed
    assert aliases(link, "aaaa", "aaaa") == [("aaaa", 0)] * 2
    assert not link._is_hot(b"aaaa")  # nor is any topic watched for it


def test_older_clients_get_none_whatever_happens() -> None:
    link = Rig().link(4)
    send(link, make_message(topic="aaaa"), 1, 1, dup=True)
    send(link, make_message(topic="aaaa"), 1, 1, dup=True)
    assert [packet.topic for packet in written(link)] == ["aaaa", "aaaa"]


def test_the_search_for_hot_topics_is_bounded() -> None:
    """Many cold topics make the watch begin anew; a hot one still gets its alias."""
    link = Rig().link()
    link.allow_aliases(5)
    aliases(link, "first/topic", *(f"cold/{number}" for number in range(1024)))
    assert aliases(link, "first/topic") == [("first/topic", 0)]
    assert aliases(link, "first/topic", "first/topic") == [("first/topic", 1), ("", 1)]


def test_an_alias_that_does_not_fit_is_left_out() -> None:
    """[MQTT-3.1.2-24] It is there to make packets smaller, not to lose them."""
    rig = Rig()
    link = rig.link()
    link.allow_aliases(5)
    send(link, make_message(b"p", topic="topic"))
    size = len(link.data_to_send())
    link.max_send = size
    assert aliases(link, "topic", "topic") == [("topic", 0)] * 2
    link.max_send = size + 3
    assert aliases(link, "topic", "topic") == [("topic", 1), ("", 1)]
    assert rig.counters.dropped == {}


def test_an_alias_is_known_only_once_it_was_sent() -> None:
    rig = Rig()
    link = rig.link()
    link.allow_aliases(5)
    send(link, make_message(b"p", topic="topic"))
    link.data_to_send()
    link.max_send = 20
    assert not send(link, make_message(bytes(100), topic="topic"))
    link.max_send = 0
    assert aliases(link, "topic", "topic") == [("topic", 1), ("", 1)]


def test_a_very_long_topic_is_not_worth_watching() -> None:
    link = Rig().link()
    link.allow_aliases(5)
    assert aliases(link, "t" * 513, "t" * 513) == [("t" * 513, 0)] * 2
    assert aliases(link, "t" * 512, "t" * 512) == [("t" * 512, 0), ("t" * 512, 1)]


# Promises.


def test_a_promise_with_nothing_at_stake_leaves_at_once() -> None:
    link = Rig(durable=True).link()
    link.inbound_open = 2
    link.promise(FRAME, 0, None, False)
    assert link.inbound_open == 2
    link.promise(OTHER, 0, None, True)
    assert link.inbound_open == 1
    link.promise_ack(b"\x40\x02", 7, 0, None, False)
    assert link.inbound_open == 1
    link.promise_ack(b"\x40\x02", 8, 0, None, True)
    assert link.inbound_open == 0
    assert link.data_to_send() == (FRAME + OTHER) * 2


@pytest.mark.parametrize("short", [False, True])
def test_promises_leave_in_the_order_of_the_requests(short: bool) -> None:
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3] also the one that had nothing to wait for."""
    rig = Rig(durable=True)
    link = rig.link()
    link.inbound_open = 2
    barrier = rig.journal.record(1, "c")
    if short:
        link.promise_ack(b"\x40\x02", 7, barrier, None, True)
        link.promise_ack(b"\x40\x02", 8, 0, None, True)
    else:
        link.promise(FRAME, barrier, None, True)
        link.promise(OTHER, 0, None, True)
    assert link.data_to_send() == b""
    assert link.inbound_open == 2
    assert list(rig.context.holding) == [link]
    rig.commit()
    assert link.data_to_send() == FRAME + OTHER
    assert link.inbound_open == 0
    assert not rig.context.holding
    link.promise(FRAME, barrier, None, False)  # long durable
    assert link.data_to_send() == FRAME


def test_promises_of_later_batches_stay() -> None:
    rig = Rig(durable=True)
    link = rig.link()
    link.promise(FRAME, rig.journal.record(1, "c"), None, False)
    first = rig.journal.take()
    assert first is not None
    link.promise(OTHER, rig.journal.record(1, "d"), None, False)
    rig.journal.commit(first.seq)
    link.release()
    assert link.data_to_send() == FRAME
    assert list(rig.context.holding) == [link]
    rig.commit()
    assert link.data_to_send() == OTHER


def test_a_promise_about_deliveries_alone_leaves_when_the_last_is_settled() -> None:
    rig = Rig(durable=True)
    link = rig.link()
    message = make_message()
    first, second = owe(rig, message), owe(rig, message)
    link.promise(FRAME, rig.journal.seq, message, True)
    assert message.holder is link
    link.release()
    rig.journal.settle(1, first)
    link.release()
    assert link.data_to_send() == b""
    assert rig.journal.settle(1, second)
    link.release()
    assert link.data_to_send() == FRAME
    assert not rig.context.holding


def test_what_is_held_anew_while_releasing_stays_held() -> None:
    """CONNACK leaves, the requests behind it are read, and their answers have to wait again."""
    h = Harness(durable=True)
    h.client("c", expiry=60).drop()
    client = h.open()
    asked = props(session_expiry_interval=60)
    request = encode_packet(Connect(clean_start=False, client_id="c", properties=asked), 5)
    client.send_raw(request + encode_packet(Subscribe(1, [Filter("t", 1)]), 5))
    batch = h.broker.take_batch()
    assert batch is not None
    h.broker.committed(batch.seq, h.now)
    h.flush()
    assert [type(packet).__name__ for packet in client.recv()] == ["Connack"]
    assert list(h.broker.context.holding) == [client.connection]
    h.commit()
    assert [type(packet).__name__ for packet in client.recv()] == ["Suback"]


def test_a_connection_may_end_while_it_releases() -> None:
    """The client's goodbye stood behind its CONNECT."""
    h = Harness(durable=True)
    h.client("c", expiry=60).drop()
    client = h.open()
    asked = props(session_expiry_interval=60)
    request = encode_packet(Connect(clean_start=False, client_id="c", properties=asked), 5)
    client.send_raw(request + encode_packet(Disconnect(), 5))
    client.expect_nothing()
    h.commit()
    assert [type(packet).__name__ for packet in client.recv()] == ["Connack"]
    assert client.closed
    assert not h.broker.context.holding


def test_a_settled_promise_does_not_overtake_an_older_one() -> None:
    """[MQTT-4.6.0-2]"""
    rig = Rig(durable=True)
    link = rig.link()
    message = make_message()
    link.promise(FRAME, rig.journal.record(1, "c"), None, False)
    delivery = owe(rig, message)
    link.promise(OTHER, rig.journal.seq, message, True)
    rig.journal.settle(1, delivery)
    link.release()
    assert link.data_to_send() == b""
    rig.commit()
    assert link.data_to_send() == FRAME + OTHER


def test_a_pubrel_waits_behind_the_acknowledgements_already_held() -> None:
    rig = Rig(durable=True)
    link = rig.link()
    link.promise(FRAME, rig.journal.record(1, "c"), None, False)
    link.send_pubrel(5, 0, 0)
    assert link.data_to_send() == b""
    rig.commit()
    found = packets(link.data_to_send())
    assert found == [Puback(7), Pubrel(5)]
    link.send_pubrel(6, 0x92, 0)
    assert packets(link.data_to_send()) == [Pubrel(6, 0x92)]


def test_a_held_connack_opens_the_way_once_it_has_left() -> None:
    """[MQTT-3.2.0-1] What opening means is for the connection to say."""
    rig = Rig(durable=True)
    link = rig.link()
    link._hold(Held(FRAME, rig.journal.record(1, "c"), None, False, True))
    batch = rig.journal.take()
    assert batch is not None
    link.release()
    assert link.data_to_send() == b""
    rig.journal.commit(batch.seq)
    with pytest.raises(AssertionError, match="opened"):
        link.release()
    assert link.data_to_send() == FRAME


def test_what_is_held_counts_as_memory_before_it_can_be_written() -> None:
    """Else a client that pipelines requests would find no bound."""
    rig = Rig(durable=True)
    link = rig.link()
    link.send(FRAME)
    assert link.pressure() == link.backlog() == len(FRAME)
    for _ in range(10):
        link.promise(FRAME, rig.journal.record(1, "c"), None, False)
    assert link.backlog() == len(FRAME)
    assert link.pressure() > 10 * len(FRAME) + link.backlog()
    rig.commit()
    assert link.pressure() == link.backlog() == 11 * len(FRAME)


def test_releasing_with_nothing_held_is_harmless() -> None:
    rig = Rig(durable=True)
    link = rig.link()
    link.release()
    assert link.data_to_send() == b""
    link.promise(FRAME, rig.journal.record(1, "c"), None, False)
    link.finish()
    link.release()
    assert link.data_to_send() == b""
    assert not rig.context.holding
