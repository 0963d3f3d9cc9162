"""A session's own decisions: send, keep or drop; in which order; and what survives a connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import counters as count
from mqttd.core import journal as j
from mqttd.core.link import Link
from mqttd.core.packets import Puback, Publish
from mqttd.core.session import Session
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from tests.core.rig import (
    FRAME,
    Rig,
    balanced,
    make_message,
    packets,
    payloads,
    publish_as,
    publishes,
    pubrels,
    sent,
    waiting,
)
from tests.core.vectors import untimed


def give(session: Session, *names: bytes, qos: int = 1, now: float = 0.0) -> None:
    for name in names:
        publish_as(session, make_message(name, qos), now)


def reconnect(rig: Rig, session: Session, receive_maximum: int = 10) -> None:
    """The next connection of a session; `pump` is what the connection calls after CONNACK."""
    session.detach()
    session.attach(rig.link(), receive_maximum)
    session.pump(0.0)


def writable(session: Session, value: bool) -> None:
    assert session.link is not None
    session.link.writable = value


# Delivering at once, keeping, dropping.


def test_a_link_is_an_interface() -> None:
    link = Link()
    assert (link.version, link.established, link.writable, link.lane) == (4, False, False, 0)
    with pytest.raises(AssertionError, match="send_publish"):
        link.send_publish(make_message(), 0, False, 0, False, b"", 0.0)
    with pytest.raises(AssertionError, match="send_frame"):
        link.send_frame(b"")
    with pytest.raises(AssertionError, match="send_pubrel"):
        link.send_pubrel(1, 0, 0)
    with pytest.raises(AssertionError, match="backlog"):
        link.backlog()


def test_a_new_session_has_nothing_and_promises_nothing() -> None:
    rig = Rig()
    session = Session("c", "alice", rig.context)
    assert (session.client_id, session.owner, session.link) == ("c", "alice", None)
    assert not session.durable
    assert not session.stored
    assert not session.resumed
    assert (session.expires_at, session.will, session.will_at) == (0.0, None, 0.0)
    assert (session.queue, session.due, session.replays, session.inbound) == (None, None, None, {})
    assert session.room() == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_connected_client_with_room_gets_a_message_at_once(qos: int) -> None:
    """[MQTT-4.5.0-1]"""
    rig = Rig()
    session = rig.session()
    give(session, b"x", qos=qos)
    (packet,) = publishes(session)
    assert (packet.payload, packet.qos, packet.dup) == (b"x", qos, False)
    assert packet.packet_id == (1 if qos else 0)
    assert rig.counters.delivered == (0 if qos else 1)
    assert balanced(rig, session)


@pytest.mark.parametrize(
    ("online", "durable", "queue_qos0", "kept"),
    [(False, True, False, 0), (False, False, True, 0), (False, True, True, 1)],
)
def test_qos_0_for_an_absent_client_is_kept_only_where_the_settings_say_so(
    online: bool, durable: bool, queue_qos0: bool, kept: int
) -> None:
    rig = Rig(queue_qos0=queue_qos0)
    session = rig.session(online=online, durable=durable)
    give(session, b"x", qos=0)
    assert len(session.queue or ()) == kept
    assert rig.counters.dropped == ({} if kept else {count.DROP_OFFLINE_QOS0: 1})
    assert balanced(rig, session)
    session.attach(rig.link(), 10)
    session.pump(0.0)
    assert payloads(session) == [b"x"] * kept
    assert balanced(rig, session)


def test_qos_0_before_connack_counts_as_absent() -> None:
    """[MQTT-3.2.0-1] nothing may precede CONNACK."""
    rig = Rig()
    session = rig.session()
    assert session.link is not None
    session.link.established = False
    session.link.writable = False
    give(session, b"x", qos=0)
    give(session, b"y", qos=1)
    assert rig.counters.dropped == {count.DROP_OFFLINE_QOS0: 1}
    assert sent(session) == []
    session.link.established = True
    session.link.writable = True
    session.pump(0.0)
    assert payloads(session) == [b"y"]


def test_qos_0_for_a_reader_that_lags_is_buffered_up_to_the_bound() -> None:
    rig = Rig(write_buffer=20)
    session = rig.session()
    writable(session, False)
    give(session, *[b"0123456789"] * 5, qos=0)
    assert rig.counters.dropped == {count.DROP_SLOW_READER: 3}
    assert len(publishes(session)) == 2
    assert balanced(rig, session)


def test_kept_qos_0_may_be_too_large_for_the_client_that_comes() -> None:
    """[MQTT-3.1.2-25]"""
    rig = Rig(queue_qos0=True)
    session = rig.session(online=False, durable=True)
    give(session, bytes(100), b"small", qos=0)
    link = rig.link()
    link.max_send = 20
    session.attach(link, 10)
    session.pump(0.0)
    assert payloads(session) == [b"small"]
    assert rig.counters.dropped == {count.DROP_TOO_LARGE: 1}
    assert balanced(rig, session)


@pytest.mark.parametrize("can_write", [True, False])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_too_large_is_dropped_and_costs_nothing(can_write: bool, qos: int) -> None:
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]"""
    rig = Rig()
    session = rig.session(receive_maximum=1)
    link = rig.link()
    link.max_send = 20
    session.attach(link, 1)
    writable(session, can_write)
    give(session, bytes(100), b"small", qos=qos)
    writable(session, True)
    session.pump(0.0)
    assert payloads(session) == [b"small"]
    assert rig.counters.dropped == {count.DROP_TOO_LARGE: 1}
    assert balanced(rig, session)


# The client's Receive Maximum.


@pytest.mark.parametrize("qos", [1, 2])
def test_no_more_than_the_receive_maximum_is_under_way(qos: int) -> None:
    """[MQTT-3.3.4-9] [MQTT-4.9.0-2]"""
    rig = Rig()
    session = rig.session(receive_maximum=2)
    give(session, b"a", b"b", b"c", b"d", qos=qos)
    give(session, b"0", qos=0)
    assert payloads(session) == [b"a", b"b", b"0"]
    assert session.room() == 0
    assert waiting(session.queue) == [b"c", b"d"]
    assert balanced(rig, session)


def test_an_acknowledgement_lets_the_next_one_out() -> None:
    """[MQTT-4.9.0-1]"""
    rig = Rig()
    session = rig.session(receive_maximum=1)
    give(session, b"a", b"b", b"c")
    assert payloads(session) == [b"a"]
    session.on_puback(1, 0, 0.0)
    assert payloads(session) == [b"b"]
    session.on_puback(1, 0, 0.0)  # a repetition frees nothing
    assert payloads(session) == []
    session.on_puback(2, 0, 0.0)
    assert payloads(session) == [b"c"]
    assert rig.counters.delivered == 2
    assert balanced(rig, session)


def test_the_quota_never_exceeds_what_the_client_named() -> None:
    """[MQTT-4.9.0-1] not even by exchanges of an earlier connection."""
    rig = Rig()
    session = rig.session(receive_maximum=5, durable=True)
    give(session, b"a", b"b", qos=2)
    session.on_pubrec(1, 0, 0.0)
    session.on_pubrec(2, 0, 0.0)
    reconnect(rig, session, 2)
    session.on_pubcomp(1, 0.0)
    session.on_pubcomp(2, 0.0)
    assert session.quota == 2


def test_a_message_that_waits_does_not_take_the_place_of_one_that_came_before() -> None:
    """[MQTT-4.6.0-5] A free place belongs to the head of the queue."""
    session = Rig().session(receive_maximum=1)
    give(session, b"a", b"b")
    session.quota = 1  # as if the acknowledgement had just come, and nothing was pumped yet
    give(session, b"c")
    session.pump(0.0)
    session.on_puback(1, 0, 0.0)
    session.on_puback(2, 0, 0.0)
    assert payloads(session) == [b"a", b"b", b"c"]


def test_a_client_may_have_every_identifier_in_use() -> None:
    """[MQTT-2.2.1-4]"""
    rig = Rig()
    session = rig.session(receive_maximum=65535)
    message = make_message()
    for _ in range(65535):
        session.deliver(message, 1, False, b"", 0.0)
    assert session.window.full()
    session.quota = 5
    assert session.room() == 0
    session.deliver(message, 1, False, b"", 0.0)
    assert len(session.queue or ()) == 1
    session.on_puback(300, 0, 0.0)
    assert session.queue is None
    assert session.window.get(300) is not None


# The queue.


@pytest.mark.parametrize(
    ("overflow", "left"), [(DROP_NEWEST, [b"a", b"b"]), (DROP_OLDEST, [b"b", b"c"])]
)
def test_a_full_queue_drops_what_the_settings_say(overflow: str, left: list[bytes]) -> None:
    rig = Rig(max_queued_messages=2, queue_overflow=overflow)
    session = rig.session(online=False)
    give(session, b"a", b"b", b"c")
    assert rig.counters.dropped == {count.DROP_QUEUE_FULL: 1}
    assert balanced(rig, session)
    session.attach(rig.link(), 10)
    session.pump(0.0)
    assert payloads(session) == left


def test_a_queue_without_a_bound_drops_nothing() -> None:
    rig = Rig(max_queued_messages=0)
    session = rig.session(online=False)
    give(session, *[b"x"] * 500)
    assert len(session.queue or ()) == 500
    assert rig.counters.dropped == {}


def test_what_expired_in_the_queue_is_dropped_when_its_turn_comes() -> None:
    """[MQTT-3.3.2-5]"""
    rig = Rig()
    session = rig.session(online=False)
    publish_as(session, make_message(b"old", expires_at=5.0))
    publish_as(session, make_message(b"new", expires_at=5.5))
    give(session, b"forever")
    session.attach(rig.link(), 10)
    session.pump(5.0)
    assert payloads(session) == [b"new", b"forever"]
    assert rig.counters.dropped == {count.DROP_EXPIRED: 1}
    assert balanced(rig, session)


@pytest.mark.parametrize("overflow", [DROP_NEWEST, DROP_OLDEST])
def test_what_expired_makes_room_in_a_full_queue(overflow: str) -> None:
    """[MQTT-3.3.2-5] whatever stands beside it, and more than once."""
    rig = Rig(max_queued_messages=4, queue_overflow=overflow)
    session = rig.session(online=False)
    publish_as(session, make_message(b"at 9", expires_at=9.0))
    publish_as(session, make_message(b"at 5", expires_at=5.0))
    publish_as(session, make_message(b"at 7", expires_at=7.0))
    give(session, b"forever")
    give(session, b"A", now=5.0)
    assert rig.counters.dropped == {count.DROP_EXPIRED: 1}
    give(session, b"B", now=8.0)
    assert rig.counters.dropped == {count.DROP_EXPIRED: 2}
    give(session, b"C", now=8.5)  # nothing has expired: now the settings decide
    assert rig.counters.dropped == {count.DROP_EXPIRED: 2, count.DROP_QUEUE_FULL: 1}
    assert balanced(rig, session)
    session.attach(rig.link(), 10)
    session.pump(8.5)
    left = [b"at 9", b"forever", b"A", b"B", b"C"]
    left.remove(b"C" if overflow == DROP_NEWEST else b"at 9")
    assert payloads(session) == left


def test_a_full_queue_is_not_searched_for_each_message() -> None:
    """Expired messages may stay for a second: a search costs the length of the queue."""
    rig = Rig(max_queued_messages=3)
    session = rig.session(online=False)
    for expires_at in (5.0, 5.5, 9.0):
        publish_as(session, make_message(b"x", expires_at=expires_at))
    give(session, b"A", now=5.0)
    give(session, b"B", now=5.9)
    assert rig.counters.dropped == {count.DROP_EXPIRED: 1, count.DROP_QUEUE_FULL: 1}
    give(session, b"C", now=6.0)
    assert rig.counters.dropped == {count.DROP_EXPIRED: 2, count.DROP_QUEUE_FULL: 1}
    assert balanced(rig, session)


def test_queued_qos_0_keeps_its_place() -> None:
    """[MQTT-4.6.0-6] where QoS 0 is queued at all, what comes later does not overtake it."""
    rig = Rig(queue_qos0=True)
    session = rig.session(receive_maximum=1, durable=True)
    give(session, b"1", b"2", qos=1)
    give(session, b"3", qos=0)
    assert payloads(session) == [b"1"]
    session.on_puback(1, 0, 0.0)
    assert payloads(session) == [b"2", b"3"]


def test_a_queue_of_its_own_time_knows_nothing_of_the_last_one() -> None:
    rig = Rig(max_queued_messages=1)
    session = rig.session(online=False)
    publish_as(session, make_message(b"a", expires_at=5.0))
    session.attach(rig.link(), 10)
    session.pump(0.0)
    session.detach()
    give(session, b"b", b"c", now=9.0)
    assert rig.counters.dropped == {count.DROP_QUEUE_FULL: 1}


# Acknowledgements.


def test_qos_2_goes_through_its_four_steps() -> None:
    """[MQTT-4.3.3-1] [MQTT-4.3.3-2] [MQTT-4.3.3-4] [MQTT-4.3.3-5]"""
    rig = Rig()
    session = rig.session()
    give(session, b"x", qos=2)
    assert [packet.packet_id for packet in publishes(session)] == [1]
    assert session.on_pubrec(1, 0, 0.0)
    assert pubrels(session) == [1]
    assert rig.counters.delivered == 0
    session.on_pubcomp(1, 0.0)
    assert rig.counters.delivered == 1
    assert session.window.get(1) is None
    assert session.quota == 10


def test_a_repeated_pubrec_is_answered_again() -> None:
    """[MQTT-4.3.3-4]"""
    session = Rig().session()
    give(session, b"x", qos=2)
    sent(session)
    assert session.on_pubrec(1, 0, 0.0)
    assert session.on_pubrec(1, 0, 0.0)
    assert pubrels(session) == [1, 1]


def test_a_pubrec_that_arrives_as_the_connection_goes_is_remembered() -> None:
    """[MQTT-4.3.3-6]"""
    rig = Rig()
    session = rig.session(durable=True)
    give(session, b"x", qos=2)
    session.detach()
    assert session.on_pubrec(1, 0, 0.0)
    session.attach(rig.link(), 10)
    session.pump(0.0)
    assert pubrels(session) == [1]


@pytest.mark.parametrize("qos", [1, 2])
def test_an_error_from_the_receiver_ends_the_exchange(qos: int) -> None:
    """[MQTT-4.4.0-2]"""
    rig = Rig()
    session = rig.session(receive_maximum=1)
    give(session, b"a", b"b", qos=qos)
    sent(session)
    if qos == 1:
        session.on_puback(1, 0x97, 0.0)
    else:
        assert session.on_pubrec(1, 0x97, 0.0)
    assert payloads(session) == [b"b"]
    assert rig.counters.dropped == {count.DROP_REFUSED: 1}
    assert balanced(rig, session)


def test_acknowledgements_of_another_kind_or_number_change_nothing() -> None:
    rig = Rig()
    session = rig.session()
    give(session, b"one", qos=1)
    give(session, b"two", qos=2)
    sent(session)
    session.on_puback(2, 0, 0.0)
    session.on_puback(9, 0, 0.0)
    assert not session.on_pubrec(1, 0, 0.0)
    assert not session.on_pubrec(9, 0, 0.0)
    session.on_pubcomp(1, 0.0)
    session.on_pubcomp(9, 0.0)
    session.on_pubcomp(2, 0.0)  # [MQTT-4.3.3-5] before PUBREC there is nothing to complete
    assert list(session.window.deliveries) == [1, 2]
    assert sent(session) == []
    assert rig.counters.delivered == 0


# The next connection.


def test_what_is_unacknowledged_goes_out_again_in_its_order() -> None:
    """[MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-4.6.0-4] [MQTT-3.3.1-1]"""
    rig = Rig()
    session = rig.session(durable=True)
    give(session, b"a", qos=1)
    give(session, b"b", b"c", qos=2)
    give(session, b"d", qos=1)
    session.on_pubrec(2, 0, 0.0)
    session.on_puback(1, 0, 0.0)
    reconnect(rig, session)
    found = sent(session)
    assert [type(packet).__name__ for packet in found] == ["Pubrel", "Publish", "Publish"]
    again = [packet for packet in found if isinstance(packet, Publish)]
    assert [(packet.payload, packet.packet_id, packet.dup) for packet in again] == [
        (b"c", 3, True),
        (b"d", 4, True),
    ]
    assert rig.counters.redelivered == 2


def test_a_smaller_receive_maximum_spreads_the_repetitions() -> None:
    """[MQTT-3.3.4-9] and DUP only on what was really sent before [MQTT-3.3.1-1]."""
    rig = Rig()
    session = rig.session(receive_maximum=3, durable=True)
    give(session, b"a", b"b", b"c", b"d")
    reconnect(rig, session, 1)
    assert [(packet.payload, packet.dup) for packet in publishes(session)] == [(b"a", True)]
    assert session.room() < 0
    give(session, b"e")
    reconnect(rig, session, 2)
    order = [[(packet.payload, packet.dup) for packet in publishes(session)]]
    for packet_id in (1, 2, 3):
        session.on_puback(packet_id, 0, 0.0)
        order.append([(packet.payload, packet.dup) for packet in publishes(session)])
    assert order == [[(b"a", True), (b"b", True)], [(b"c", True)], [(b"d", False)], [(b"e", False)]]


def test_pubrels_go_out_whatever_the_receive_maximum() -> None:
    """[MQTT-3.3.4-10] though their exchanges count in it until PUBCOMP [MQTT-3.3.4-9]."""
    rig = Rig()
    session = rig.session(durable=True)
    give(session, b"a", b"b", b"c", qos=2)
    session.on_pubrec(1, 0, 0.0)
    session.on_pubrec(2, 0, 0.0)
    reconnect(rig, session, 1)
    assert pubrels(session) == [1, 2]
    session.on_pubcomp(1, 0.0)
    assert payloads(session) == []
    session.on_pubcomp(2, 0.0)
    assert payloads(session) == [b"c"]


def test_what_is_acknowledged_before_its_repetition_is_not_repeated() -> None:
    rig = Rig()
    session = rig.session(receive_maximum=3, durable=True)
    give(session, b"a", b"b", b"c")
    reconnect(rig, session, 1)
    session.on_puback(2, 0, 0.0)  # of the earlier connection, however it came
    session.on_puback(1, 0, 0.0)
    assert payloads(session) == [b"a", b"c"]


def test_a_message_that_was_only_lined_up_is_no_repetition() -> None:
    """[MQTT-3.3.1-1]"""
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    give(session, b"x", qos=2)
    assert sent(session) == []
    session.detach()
    rig.commit()
    session.attach(rig.link(), 10)
    session.pump(0.0)
    assert [(packet.payload, packet.dup) for packet in publishes(session)] == [(b"x", False)]


def test_a_reader_that_lags_gets_the_rest_when_it_reads() -> None:
    rig = Rig()
    session = rig.session()
    writable(session, False)
    give(session, b"a", b"b")
    session.pump(0.0)
    assert sent(session) == []
    writable(session, True)
    session.pump(0.0)
    assert payloads(session) == [b"a", b"b"]
    session.detach()
    session.pump(0.0)  # nobody there: nothing happens


def test_the_end_of_a_session_counts_what_it_still_held() -> None:
    rig = Rig()
    session = rig.session(receive_maximum=2)
    give(session, b"a", b"b", b"c", b"d")
    session.end()
    assert rig.counters.dropped == {count.DROP_SESSION_ENDED: 4}
    assert balanced(rig, session)
    session.end()
    assert rig.counters.dropped == {count.DROP_SESSION_ENDED: 4}


# Waiting for the disk.


def test_qos_1_does_not_wait_and_qos_2_waits_for_its_identifier() -> None:
    """[MQTT-4.3.3-2] A resend under another identifier would be a second copy."""
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    give(session, b"one", qos=1)
    give(session, b"two", qos=2)
    assert payloads(session) == [b"one"]
    assert session.room() == 8
    give(session, b"three", qos=1)  # in order: behind the one that waits
    assert sent(session) == []
    rig.commit()
    assert payloads(session) == [b"two", b"three"]


def test_a_later_batch_keeps_its_messages_back() -> None:
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    give(session, b"a", qos=2)
    first = rig.journal.take()
    assert first is not None
    give(session, b"b", qos=2)
    rig.journal.commit(first.seq)
    session.pump(0.0)
    assert payloads(session) == [b"a"]
    assert rig.context.waiting == [session]
    rig.commit()
    assert payloads(session) == [b"b"]
    assert rig.context.waiting == []


def test_a_pubrel_waits_for_the_pubrec_to_be_durable() -> None:
    """[MQTT-4.3.3-6]"""
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    give(session, b"x", qos=2)
    rig.commit()
    sent(session)
    session.on_pubrec(1, 0, 0.0)
    assert sent(session) == []
    rig.commit()
    assert pubrels(session) == [1]


def test_every_step_of_a_kept_delivery_is_journalled_once() -> None:
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    give(session, b"x", qos=2)
    seen: list[list[int]] = []
    for step in range(3):
        batch = rig.journal.take()
        assert batch is not None
        rig.journal.commit(batch.seq)
        seen.append([op.kind for op in batch.ops])
        session.pump(0.0)
        if step == 0:
            session.on_pubrec(1, 0, 0.0)
        else:
            session.on_pubcomp(1, 0.0)
    assert seen == [[j.DELIVERY_ADD], [j.DELIVERY_UPDATE], [j.DELIVERY_SETTLE]]


def test_the_store_learns_the_identifier_of_a_message_that_was_queued() -> None:
    rig = Rig(durable=True)
    session = rig.session(receive_maximum=1, durable=True)
    give(session, b"a", b"b", qos=2)
    rig.commit()
    session.on_pubrec(1, 0, 0.0)
    session.on_pubcomp(1, 0.0)
    assert b"b" not in [packet.payload for packet in sent(session) if isinstance(packet, Publish)]
    batch = rig.journal.take()
    assert batch is not None
    assert (j.DELIVERY_UPDATE, b"b", 2) in [
        (op.kind, op.delivery.message.payload, op.delivery.packet_id)
        for op in batch.ops
        if op.delivery is not None
    ]
    rig.journal.commit(batch.seq)
    session.pump(0.0)
    assert payloads(session) == [b"b"]


def test_a_message_behind_a_barrier_waits_in_whatever_queue_it_stands() -> None:
    """A QoS 2 message is sent on when the publisher's identifier is durable, and not before."""
    rig = Rig(durable=True)
    absent, busy, free = (
        rig.session("a", online=False),
        rig.session("b", receive_maximum=1),
        rig.session("c"),
    )
    give(busy, b"first")
    message = make_message(b"x", 2)
    message.barrier = rig.journal.record(j.INBOUND_ADD, "publisher", "", 1)
    for session in (absent, busy, free):
        publish_as(session, message, qos=1)
    assert payloads(busy) == [b"first"]
    busy.on_puback(1, 0, 0.0)
    absent.attach(rig.link(), 10)
    absent.pump(0.0)
    assert [sent(session) for session in (absent, busy, free)] == [[], [], []]
    rig.commit()
    assert [payloads(session) for session in (absent, busy, free)] == [[b"x"], [b"x"], [b"x"]]


def test_an_acknowledgement_leaves_when_the_last_delivery_settles() -> None:
    """Settled before it was written, the delivery is no reason any more to wait for the disk."""
    rig = Rig(durable=True)
    session, other = rig.session("a", durable=True), rig.session("b", durable=True)
    publisher = rig.link()
    message = make_message(b"x", 1)
    publish_as(session, message)
    publish_as(other, message)
    publisher.promise(FRAME, rig.journal.seq, message, False)
    session.on_puback(1, 0, 0.0)
    assert publisher.data_to_send() == b""
    other.on_puback(1, 0, 0.0)
    assert packets(publisher.data_to_send()) == [Puback(7)]
    assert message.holder is None
    batch = rig.journal.take()
    assert batch is not None
    assert batch.ops == []


def test_nobody_has_to_wait_for_a_delivery_that_settles() -> None:
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    give(session, b"x")
    session.on_puback(1, 0, 0.0)
    assert rig.journal.elided == 1
    assert balanced(rig, session)


@untimed
@given(
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.sampled_from("012aArRcCpgx"), max_size=60),
)
def test_messages_arrive_in_order_and_are_counted_once_whatever_happens(
    maximum: int, durable: bool, moves: list[str]
) -> None:
    """[MQTT-4.6.0-5] Digits publish, a/r/c acknowledge the oldest or (capitals) the newest;
    p and g pause and go on, x breaks the connection."""
    rig = Rig(durable=durable, max_queued_messages=5)
    session = rig.session(receive_maximum=maximum, durable=True)
    first: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    number = 0
    for move in moves:
        ids = list(session.window.deliveries)
        if move.isdigit():
            number += 1
            give(session, b"%d" % number, qos=int(move))
        elif move == "p":
            writable(session, False)
        elif move == "g":
            writable(session, True)
            rig.commit()
            session.pump(0.0)
        elif move == "x":
            reconnect(rig, session, maximum)
        elif ids:
            which = ids[-1 if move.isupper() else 0]
            if move in "aA":
                session.on_puback(which, 0, 0.0)
            elif move in "rR":
                session.on_pubrec(which, 0, 0.0)
            else:
                session.on_pubcomp(which, 0.0)
        for packet in sent(session):
            if isinstance(packet, Publish) and not packet.dup:
                first[packet.qos].append(packet.payload)
        assert session.quota >= 0
        assert balanced(rig, session)
    for seen in first.values():
        assert seen == sorted(set(seen), key=int)
