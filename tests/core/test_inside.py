"""Clients inside: a session like any other, whose messages end in an inbox."""

import pytest

from mqttd.core import journal, spec
from mqttd.core.broker import Broker
from mqttd.core.errors import ProtocolError
from mqttd.core.inside import Arrival, Inside
from mqttd.core.message import Message
from mqttd.core.packets import Connack, Filter
from tests.core.handshake_kit import connect, refused, say
from tests.core.rig import make_message, make_settings
from tests.harness import Harness

OWNER = "\0bridge"


def enter(
    h: Harness, client_id: str = "in", expiry: int = 3600, receive_maximum: int = 10
) -> Inside:
    return h.broker.connect_inside(client_id, OWNER, expiry, receive_maximum, h.now)


def subscribe(h: Harness, inside: Inside, topic_filter: str, qos: int = 1) -> int:
    assert inside.session is not None
    code = h.broker.subscribe(inside.session, Filter(topic_filter, qos, False, True, 0), 0)
    h.flush()
    return code


def payloads(arrivals: list[Arrival]) -> list[bytes]:
    return [arrival.message.payload for arrival in arrivals]


def balanced(h: Harness) -> bool:
    queued, inflight = h.broker.balance()
    counters = h.broker.counters
    ended = counters.delivered + sum(counters.dropped.values())
    return counters.matched == ended + queued + inflight


@pytest.mark.parametrize("longest", [0, 10])
def test_the_longest_session_of_a_client_bounds_none_inside(longest: int) -> None:
    h = Harness(make_settings(session_expiry_max=longest), durable=True)
    inside = enter(h, expiry=3600)
    subscribe(h, inside, "t")
    batch = h.broker.take_batch()
    assert batch is not None
    assert {op.kind for op in batch.ops} == {journal.SESSION_SAVE, journal.SUBSCRIPTION_SAVE}
    h.broker.committed(batch.seq, h.now)
    h.broker.leave_inside(inside, h.now)
    h.advance(3599)
    publisher = h.client("p", auto_ack=False)
    publisher.publish("t", b"x", 1)
    publisher.expect_nothing()  # until it is durable
    assert h.broker.balance() == (1, 0)
    h.advance(1)
    assert "in" not in h.broker.sessions


def test_messages_end_in_the_inbox_and_are_settled_there() -> None:
    h = Harness()
    inside = enter(h)
    assert subscribe(h, inside, "t/#") == 1
    sender = h.client("s")
    for qos in (0, 1, 2):
        sender.publish("t/x", b"%d" % qos, qos)
    got = inside.take()
    assert payloads(got) == [b"0", b"1", b"2"]
    assert [arrival.qos for arrival in got] == [0, 1, 1]  # granted QoS 1
    assert [bool(arrival.packet_id) for arrival in got] == [False, True, True]
    assert h.broker.balance() == (0, 2)
    for arrival in got[1:]:
        inside.settle(arrival.packet_id, spec.SUCCESS, h.now)
    assert h.broker.balance() == (0, 0)
    assert h.broker.counters.delivered == 3
    assert balanced(h)


def test_it_stands_among_the_woken_once_until_it_is_read() -> None:
    h = Harness()
    inside = enter(h)
    subscribe(h, inside, "t")
    sender = h.client("s")
    sender.publish("t", b"1")
    sender.publish("t", b"2", 1)
    assert h.broker.woken == [inside]
    h.broker.woken.clear()
    inside.take()
    sender.publish("t", b"3")
    assert h.broker.woken == [inside]


def test_no_more_than_the_receive_maximum_is_out_at_once() -> None:
    """[MQTT-3.3.4-9] for a client inside too; the rest waits in its session."""
    h = Harness()
    inside = enter(h, receive_maximum=2)
    subscribe(h, inside, "t")
    sender = h.client("s")
    for number in range(5):
        sender.publish("t", b"%d" % number, 1)
    first = inside.take()
    assert payloads(first) == [b"0", b"1"]
    assert h.broker.balance() == (3, 2)
    inside.settle(first[0].packet_id, spec.SUCCESS, h.now)
    assert payloads(inside.take()) == [b"2"]
    assert balanced(h)


def test_it_sees_how_often_others_of_its_group_left_a_message_unfinished() -> None:
    h = Harness()
    first, second = enter(h, "first"), enter(h, "second")
    for inside in (first, second):
        subscribe(h, inside, "$share/g/t")
    h.client("s").publish("t", b"x", 1)
    (got,) = first.take()
    assert got.redeliveries == 0
    h.broker.leave_inside(first, h.now)
    h.flush()
    (again,) = second.take()
    assert (again.message.payload, again.redeliveries, again.dup) == (b"x", 1, False)
    second.settle(again.packet_id, spec.SUCCESS, h.now)
    assert balanced(h)


def test_a_refusal_is_counted_as_one() -> None:
    h = Harness()
    inside = enter(h)
    subscribe(h, inside, "t")
    h.client("s").publish("t", b"x", 1)
    (got,) = inside.take()
    inside.settle(got.packet_id, spec.UNSPECIFIED_ERROR, h.now)
    assert h.dropped == {"refused_by_receiver": 1}
    inside.settle(got.packet_id, spec.SUCCESS, h.now)  # a second time does nothing
    assert balanced(h)


def test_what_was_not_acknowledged_comes_again_in_order() -> None:
    """[MQTT-4.4.0-1]"""
    h = Harness()
    inside = enter(h)
    subscribe(h, inside, "t")
    sender = h.client("s")
    for number in range(3):
        sender.publish("t", b"%d" % number, 1)
    got = inside.take()
    inside.settle(got[1].packet_id, spec.SUCCESS, h.now)
    h.broker.leave_inside(inside, h.now)
    sender.publish("t", b"3", 1)
    again = enter(h)
    arrivals = again.take()
    assert payloads(arrivals) == [b"0", b"2", b"3"]
    assert [arrival.dup for arrival in arrivals] == [True, True, False]
    assert balanced(h)


def test_the_old_client_is_dead_after_it_left() -> None:
    h = Harness()
    inside = enter(h)
    subscribe(h, inside, "t")
    h.client("s").publish("t", b"x", 1)
    (got,) = inside.take()
    h.broker.leave_inside(inside, h.now)
    h.broker.leave_inside(inside, h.now)
    inside.settle(got.packet_id, spec.SUCCESS, h.now)
    assert h.broker.balance() == (0, 1)
    assert inside.session is None


def test_without_an_expiry_the_session_ends_with_the_client() -> None:
    h = Harness()
    inside = enter(h, expiry=0)
    subscribe(h, inside, "t")
    h.client("s").publish("t", b"x", 1)
    h.broker.leave_inside(inside, h.now)
    assert "in" not in h.broker.sessions
    assert h.broker.trie.node_count == 0
    assert h.dropped == {"session_ended": 1}
    assert balanced(h)


def test_a_session_that_lasts_expires_like_any_other() -> None:
    h = Harness()
    h.broker.leave_inside(enter(h, expiry=60), h.now)
    h.advance(61.0)
    assert "in" not in h.broker.sessions


@pytest.mark.parametrize("username", [None, "", "in", "bridge"])
def test_nobody_outside_gets_the_session(username: str | None) -> None:
    """Neither while it is in use nor while it waits; clean start is no way in either."""
    h = Harness()
    inside = enter(h)
    for clean in (True, False):
        packet = connect(client_id="in", username=username, clean_start=clean)
        assert refused(say(h, packet)).reason == spec.NOT_AUTHORIZED
        assert h.broker.sessions["in"].link is inside
    h.broker.leave_inside(inside, h.now)
    for clean in (True, False):
        packet = connect(client_id="in", username=username, clean_start=clean)
        assert refused(say(h, packet)).reason == spec.NOT_AUTHORIZED
    assert "in" in h.broker.sessions


def test_no_user_name_from_the_network_is_that_of_a_plugin() -> None:
    """[MQTT-1.5.4-2] U+0000 never gets in, in no version."""
    h = Harness()
    h.broker.leave_inside(enter(h), h.now)
    for version in (4, 5):
        client = say(h, connect(version, "in", username=OWNER))
        assert client.closed
        answers = [packet for packet in client.received if isinstance(packet, Connack)]
        assert all(answer.reason for answer in answers)


def test_an_id_that_is_somebody_elses_is_refused() -> None:
    h = Harness()
    h.client("theirs")
    inside = enter(h)
    for client_id, owner in (("theirs", OWNER), ("in", OWNER), ("in", "\0other")):
        with pytest.raises(ProtocolError, match="in use"):
            h.broker.connect_inside(client_id, owner, 0, 10, h.now)
    h.broker.leave_inside(inside, h.now)
    with pytest.raises(ProtocolError, match="in use"):
        h.broker.connect_inside("in", "\0other", 0, 10, h.now)


def test_it_cannot_be_kicked() -> None:
    h = Harness()
    inside = enter(h)
    assert not h.broker.kick("in", spec.ADMINISTRATIVE_ACTION, "", h.now)
    assert h.broker.sessions["in"].link is inside


def test_draining_leaves_it_alone() -> None:
    """It is the plugin's to close: what clients said last still gets to it."""
    h = Harness()
    inside = enter(h)
    subscribe(h, inside, "w")
    h.broker.drain(h.now)
    h.broker.submit(make_message(topic="w", payload=b"last"), h.now)
    assert payloads(inside.take()) == [b"last"]


def test_qos_0_is_dropped_while_nobody_reads() -> None:
    h = Harness()
    inside = enter(h, receive_maximum=1)
    subscribe(h, inside, "t")
    inside.writable = False
    sender = h.client("s")
    for number in range(4):
        sender.publish("t", b"%d" % number, number % 2)
    assert payloads(inside.take()) == []
    assert h.dropped == {"slow_reader": 2}
    assert h.broker.balance() == (2, 0)
    inside.writable = True
    assert inside.session is not None
    inside.session.pump(h.now)
    assert payloads(inside.take()) == [b"1"]
    assert balanced(h)


def test_retained_messages_come_with_their_flag() -> None:
    """[MQTT-3.3.1-8] [MQTT-3.3.1-12]"""
    h = Harness()
    h.client("s").publish("t/1", b"x", 1, retain=True)
    inside = enter(h)
    subscribe(h, inside, "t/#")
    (got,) = inside.take()
    assert (got.message.payload, got.retain, got.qos) == (b"x", True, 1)


def test_it_takes_part_in_a_shared_subscription() -> None:
    h = Harness()
    inside = enter(h)
    subscribe(h, inside, "$share/g/t")
    other = h.client("other")
    other.subscribe("$share/g/t", qos=1)
    sender = h.client("s")
    for number in range(4):
        sender.publish("t", b"%d" % number, 1)
    got = payloads(inside.take()) + [packet.payload for packet in other.messages()]
    assert sorted(got) == [b"0", b"1", b"2", b"3"]
    assert balanced(h)


# Durability.


def test_its_session_is_durable_when_its_barrier_is() -> None:
    h = Harness(durable=True)
    inside = enter(h)
    session = inside.session
    assert session is not None
    assert session.durable
    code = h.broker.subscribe(session, Filter("t", 1), 0)
    assert code == 1
    assert session.barrier > h.broker.journal.committed
    h.commit()
    assert session.barrier <= h.broker.journal.committed


def test_a_full_disk_takes_no_new_session_that_lasts() -> None:
    h = Harness(durable=True)
    h.broker.refuse(spec.QUOTA_EXCEEDED, h.now)
    with pytest.raises(ProtocolError):
        enter(h)
    assert "in" not in h.broker.sessions
    enter(h, expiry=0)


# Publishing on behalf of the broker.


def submit(broker: Broker, message: Message, h: Harness) -> tuple[int, int]:
    done = broker.submit(message, h.now)
    h.flush()
    return done.matched, done.barrier


def test_what_is_submitted_says_who_matched_and_what_to_wait_for() -> None:
    h = Harness(durable=True)
    assert submit(h.broker, make_message(topic="t"), h) == (0, 0)
    h.client("online")
    assert h.broker.subscribe(h.broker.sessions["online"], Filter("t", 1), 0) == 1
    assert submit(h.broker, make_message(topic="t"), h) == (1, 0)
    inside = enter(h)
    subscribe(h, inside, "t")
    h.commit()
    matched, barrier = submit(h.broker, make_message(topic="t"), h)
    assert matched == 2
    assert barrier > h.broker.journal.committed
    matched, barrier = submit(h.broker, make_message(topic="r", retain=True), h)
    assert matched == 0
    assert barrier > h.broker.journal.committed
    h.commit()
    assert barrier <= h.broker.journal.committed


def test_with_a_full_disk_what_would_be_stored_is_refused() -> None:
    h = Harness(durable=True)
    inside = enter(h)
    subscribe(h, inside, "t")
    h.commit()
    h.broker.refuse(spec.QUOTA_EXCEEDED, h.now)
    with pytest.raises(ProtocolError) as refusal:
        h.broker.submit(make_message(topic="t"), h.now)
    assert refusal.value.code == spec.QUOTA_EXCEEDED
    assert inside.take() == []
    assert submit(h.broker, make_message(topic="nobody"), h) == (0, 0)
    h.broker.accept()
    assert submit(h.broker, make_message(topic="t"), h)[0] == 1


def test_a_number_stays_with_a_message_and_what_a_group_gets_has_none() -> None:
    h = Harness(durable=True)
    inside = enter(h)
    subscribe(h, inside, "t")
    subscribe(h, inside, "$share/g/u")
    sender = h.client("s")
    for topic, qos in (("t", 1), ("t", 1), ("u", 1), ("t", 0)):
        sender.publish(topic, b"", qos)
    numbers = [arrival.number for arrival in inside.take()]
    assert 0 < numbers[0] < numbers[1]
    assert numbers[2:] == [0, 0]
    h.broker.leave_inside(inside, h.now)
    again = [(each.dup, each.number) for each in enter(h).take() if each.message.topic == "t"]
    assert again == [(True, numbers[0]), (True, numbers[1])]
