"""A session's turns: what shared groups hand to it and take back, and retained replays."""

import pytest

from mqttd.core import counters as count
from mqttd.core.inflight import RELEASED, SENT, Delivery
from mqttd.core.packets import Pubrel
from mqttd.core.queue import Queue
from mqttd.core.retained import Retained
from mqttd.core.session import Replay, Session
from tests.core.rig import (
    Rig,
    balanced,
    make_message,
    payloads,
    publish_as,
    publishes,
    sent,
)

# Deliveries that a shared group hands over.


def handed(rig: Rig, qos: int, payload: bytes = b"x") -> Delivery:
    rig.counters.matched += 1
    return Delivery(make_message(payload, qos), qos, False, b"", None)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_adopted_delivery_begins_anew(qos: int) -> None:
    """[MQTT-3.3.1-1] what another member had seen of it is no repetition for this one."""
    rig = Rig()
    session = rig.session()
    delivery = handed(rig, qos)
    delivery.sent = True
    delivery.state = SENT
    delivery.packet_id = 77
    session.adopt(delivery, 0.0)
    (packet,) = publishes(session)
    assert (packet.dup, packet.packet_id) == (False, 1 if qos else 0)
    assert balanced(rig, session)


@pytest.mark.parametrize("qos", [0, 1])
def test_an_adopted_delivery_may_be_too_large(qos: int) -> None:
    """[MQTT-3.1.2-25]"""
    rig = Rig()
    session = rig.session()
    link = rig.link()
    link.max_send = 20
    session.attach(link, 10)
    session.adopt(handed(rig, qos, bytes(100)), 0.0)
    assert sent(session) == []
    assert rig.counters.dropped == {count.DROP_TOO_LARGE: 1}
    assert balanced(rig, session)


def test_an_adopted_delivery_is_as_durable_as_its_new_session() -> None:
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    one, two = handed(rig, 1, b"one"), handed(rig, 2, b"two")
    session.adopt(one, 0.0)
    session.adopt(two, 0.0)
    assert one.journalled
    assert two.journalled
    assert payloads(session) == [b"one"]
    rig.commit()
    assert payloads(session) == [b"two"]
    session.on_pubrec(2, 0, 0.0)
    assert two.state == RELEASED


@pytest.mark.parametrize("qos", [1, 2])
def test_a_member_that_leaves_gives_back_qos_1_and_keeps_qos_2(qos: int) -> None:
    """[MQTT-4.8.2-4] [MQTT-4.8.2-5]"""
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    subscription = rig.join(session, "t", 2, "g")
    begun = handed(rig, qos)
    begun.group = subscription.group
    session.adopt(begun, 0.0)
    publish_as(session, make_message(b"own"))
    orphans = session.detach()
    assert session.link is None
    if qos == 1:
        assert orphans == [begun]
        assert not begun.journalled
        assert [each.message.payload for each in session.window.deliveries.values()] == [b"own"]
    else:
        assert orphans == []
        assert len(session.window.deliveries) == 2


def test_a_member_that_left_its_group_keeps_what_it_began() -> None:
    """[MQTT-3.10.4-3] whatever other groups it is still a member of."""
    rig = Rig()
    session = rig.session(durable=True)
    gone = rig.join(session, "t", 1, "g")
    rig.join(session, "u", 1, "g")
    begun, own = handed(rig, 1, b"begun"), handed(rig, 1, b"own")
    begun.group = gone.group
    session.adopt(begun, 0.0)
    session.adopt(own, 0.0)
    assert session.grouped is not None
    assert gone.group is not None
    del session.grouped[gone.group]
    assert session.detach() == []
    session.attach(rig.link(), 10)
    session.pump(0.0)
    again = [packet for packet in publishes(session) if packet.dup]
    assert [packet.payload for packet in again] == [b"begun", b"own"]


@pytest.mark.parametrize("others", [0, 5])
def test_only_groups_that_wait_are_asked(others: int) -> None:
    """Of few groups or of many, whichever list is the shorter one."""
    rig = Rig()
    session, stranger = rig.session(), rig.session("stranger", online=False)
    mine = [rig.join(session, topic, 1, "g").group for topic in "abc"]
    waiting = [mine[1], *(rig.join(stranger, f"x{n}", 1, "g").group for n in range(others))]
    if not others:
        waiting += [rig.join(stranger, "x", 1, "g").group]
    for group in waiting:
        assert group is not None
        rig.context.queued_groups[group] = None
    session.pump(0.0)
    assert list(rig.context.groups) == [mine[1]]


def test_a_member_with_room_asks_for_what_its_group_keeps() -> None:
    rig = Rig()
    session = rig.session(receive_maximum=1)
    kept = rig.join(session, "t", 1, "g").group
    empty = rig.join(session, "u", 1, "g").group
    assert kept is not None
    assert empty is not None
    kept.queue = None
    publish_as(session, make_message(b"a"))
    queue = Queue(0, False)
    queue.append(handed(rig, 1))
    kept.queue = queue
    rig.context.queued_groups[kept] = None
    session.pump(0.0)
    assert not rig.context.groups  # no room
    session.on_puback(1, 0, 0.0)
    assert list(rig.context.groups) == [kept]


# Retained replays.


def replay(rig: Rig, session: Session, topics: int, qos: int = 0, **options: object) -> Replay:
    """Retain messages on "r/0", "r/1" … and begin their replay."""
    retained = Retained()
    for number in range(topics):
        message = make_message(b"%d" % number, 2, topic=f"r/{number}", origin="publisher")
        retained.set(message.topic, message)
    subscription = rig.join(session, "r/+", qos)
    made = Replay(retained.cursor("r/+"), subscription, b"")
    session.add_replay(made)
    return made


def turn(rig: Rig, session: Session, now: float = 0.0) -> bool:
    """What the broker does with a session that can go on."""
    rig.context.runnable.remove(session)
    session.runnable = False
    more = session.run_replay(now)
    if more:
        session.runnable = True
        rig.context.runnable.append(session)
    return more


def numbers(count_: int) -> list[bytes]:
    return [b"%d" % number for number in range(count_)]


def test_a_replay_is_sent_retained_and_counted() -> None:
    """[MQTT-3.3.1-8] [MQTT-3.3.1-9]"""
    rig = Rig()
    session = rig.session()
    replay(rig, session, 5)
    assert list(rig.context.runnable) == [session]
    assert not turn(rig, session)
    found = publishes(session)
    assert [packet.payload for packet in found] == numbers(5)
    assert all(packet.retain and packet.qos == 0 for packet in found)
    assert session.replays is None
    assert (rig.counters.matched, rig.counters.delivered) == (5, 5)


def test_a_long_replay_takes_turns() -> None:
    rig = Rig()
    session = rig.session()
    replay(rig, session, 1000)
    turns = 1
    while turn(rig, session):
        turns += 1
    assert turns > 1
    assert payloads(session) == numbers(1000)


def test_replays_of_one_session_go_one_after_the_other() -> None:
    rig = Rig()
    session = rig.session()
    replay(rig, session, 3)
    replay(rig, session, 2)
    assert list(rig.context.runnable) == [session]
    assert turn(rig, session)
    assert payloads(session) == numbers(3)
    assert not turn(rig, session)
    assert payloads(session) == numbers(2)


def test_a_replay_waits_for_the_receive_maximum() -> None:
    """[MQTT-3.3.4-9] It is never cut short: the queue's bound does not concern it."""
    rig = Rig(max_queued_messages=1)
    session = rig.session(receive_maximum=2)
    replay(rig, session, 5, qos=1)
    assert not turn(rig, session)
    assert session.queue is None
    seen: list[bytes] = []
    for packet_id in range(1, 6):
        seen += payloads(session)
        session.on_puback(packet_id, 0, 0.0)
        if rig.context.runnable:
            turn(rig, session)
    assert seen == numbers(5)
    assert session.replays is None
    assert rig.counters.dropped == {}
    assert balanced(rig, session)


def test_a_wide_window_takes_a_replay_in_one_turn() -> None:
    rig = Rig()
    session = rig.session(receive_maximum=500)
    replay(rig, session, 200, qos=1)
    assert not turn(rig, session)
    assert payloads(session) == numbers(200)


def test_a_replay_waits_for_a_reader_that_lags() -> None:
    rig = Rig()
    session = rig.session()
    replay(rig, session, 3)
    assert session.link is not None
    session.link.writable = False
    assert not turn(rig, session)
    assert sent(session) == []
    session.link.writable = True
    session.pump(0.0)
    assert not turn(rig, session)
    assert payloads(session) == numbers(3)


def test_a_replay_pauses_while_much_waits_to_be_written() -> None:
    rig = Rig()
    session = rig.session()
    made = replay(rig, session, 200)
    for _ in range(3):
        publish_as(session, make_message(bytes(100_000), 0))
    assert turn(rig, session)
    assert rig.counters.matched == 3
    sent(session)
    assert not turn(rig, session)
    assert payloads(session) == numbers(200)
    assert made.cursor.done


def test_a_replay_waits_behind_what_came_before() -> None:
    """[MQTT-4.6.0-5] what was published later must not be overtaken by what it replaced."""
    rig = Rig(durable=True)
    session = rig.session(receive_maximum=2, durable=True)
    publish_as(session, make_message(b"two", 2))  # stands in `due` until the commit
    replay(rig, session, 1, qos=1)
    assert not turn(rig, session)
    publish_as(session, make_message(b"a"))
    publish_as(session, make_message(b"b"))  # stands in `queue`
    rig.commit()
    assert payloads(session) == [b"two", b"a"]
    assert list(rig.context.runnable) == []
    session.on_puback(2, 0, 0.0)
    assert payloads(session) == [b"b"]
    assert list(rig.context.runnable) == [session]
    assert not turn(rig, session)
    session.on_puback(3, 0, 0.0)
    assert not turn(rig, session)
    assert payloads(session) == [b"0"]


def test_a_replay_ends_while_its_client_is_away_or_gone() -> None:
    rig = Rig()
    session = rig.session(durable=True)
    replay(rig, session, 3)
    session.detach()
    assert not turn(rig, session)
    session.end()
    assert session.replays is None
    session.attach(rig.link(), 10)
    assert not session.run_replay(0.0)
    assert sent(session) == []


def test_a_replay_stops_with_its_subscription() -> None:
    """[MQTT-3.10.4-2]"""
    rig = Rig()
    session = rig.session()
    first = replay(rig, session, 3)
    second = replay(rig, session, 2)
    session.stop_replays(first.subscription)
    assert session.replays == [second]
    session.stop_replays(second.subscription)
    assert session.replays is None
    session.stop_replays(second.subscription)
    assert not turn(rig, session)
    assert sent(session) == []


def test_a_replay_goes_on_for_the_subscription_that_took_the_place_of_its_own() -> None:
    """[MQTT-3.8.4-3]"""
    rig = Rig()
    session = rig.session(receive_maximum=1)
    first = replay(rig, session, 2, qos=1)
    other = replay(rig, session, 1, qos=1)
    turn(rig, session)
    new = rig.join(session, "r/+", 1)
    new.identifier_block = b"\x0b\x09"
    session.move_replays(first.subscription, new)
    assert (first.subscription, first.identifiers) == (new, b"\x0b\x09")
    assert other.subscription is not new
    session.on_puback(1, 0, 0.0)
    turn(rig, session)
    assert [packet.subscription_ids for packet in publishes(session)] == [[], [9]]
    session.end()
    session.move_replays(new, first.subscription)  # nothing runs any more


@pytest.mark.parametrize(
    ("granted", "published", "expected"), [(0, 2, 0), (1, 2, 1), (2, 1, 1), (2, 2, 2), (2, 0, 0)]
)
def test_a_replay_takes_the_lower_qos(granted: int, published: int, expected: int) -> None:
    """[MQTT-3.8.4-8]"""
    rig = Rig()
    session = rig.session()
    retained = Retained()
    retained.set("r", make_message(b"x", published, topic="r"))
    subscription = rig.join(session, "r", granted)
    session.add_replay(Replay(retained.cursor("r"), subscription, b"\x0b\x07"))
    turn(rig, session)
    (packet,) = publishes(session)
    assert (packet.qos, packet.subscription_ids) == (expected, [7])


def test_a_replay_leaves_out_what_expired_and_what_is_the_clients_own() -> None:
    """[MQTT-3.3.2-5] [MQTT-3.8.3-3]"""
    rig = Rig()
    session = rig.session("me")
    retained = Retained()
    for payload, expires_at, origin in (
        (b"old", 5.0, "you"),
        (b"mine", 0.0, "me"),
        (b"good", 5.5, "you"),
    ):
        topic = "r/" + payload.decode()
        retained.set(
            topic, make_message(payload, 0, topic=topic, expires_at=expires_at, origin=origin)
        )
    subscription = rig.join(session, "r/+", 0)
    subscription.no_local = True
    session.add_replay(Replay(retained.cursor("r/+"), subscription, b""))
    turn(rig, session, now=5.0)
    assert payloads(session) == [b"good"]
    assert rig.counters.matched == rig.counters.delivered == 1


def test_a_retained_message_too_large_is_counted_and_the_replay_goes_on() -> None:
    """[MQTT-3.1.2-25]"""
    rig = Rig()
    session = rig.session()
    link = rig.link()
    link.max_send = 15
    session.attach(link, 10)
    retained = Retained()
    retained.set("r/0", make_message(bytes(100), topic="r/0"))
    retained.set("r/1", make_message(b"x", topic="r/1"))
    session.add_replay(Replay(retained.cursor("r/+"), rig.join(session, "r/+", 0), b""))
    turn(rig, session)
    assert payloads(session) == [b"x"]
    assert rig.counters.dropped == {count.DROP_TOO_LARGE: 1}
    assert balanced(rig, session)


def test_a_pubrel_is_no_obstacle_to_a_replay() -> None:
    rig = Rig()
    session = rig.session(receive_maximum=2)
    publish_as(session, make_message(b"x", 2))
    sent(session)
    session.on_pubrec(1, 0, 0.0)
    replay(rig, session, 1, qos=1)
    turn(rig, session)
    assert isinstance(sent(session)[0], Pubrel)
    assert session.quota == 0


def test_what_was_lined_up_but_never_sent_may_expire() -> None:
    """[MQTT-3.3.2-5] A packet identifier alone is no beginning."""
    rig = Rig(durable=True)
    session = rig.session(durable=True)
    publish_as(session, make_message(b"two", qos=2), qos=2)
    publish_as(session, make_message(b"one", expires_at=5.0), qos=1)
    session.detach()
    rig.commit()
    session.attach(rig.link(), 10)
    session.pump(5.0)
    assert payloads(session) == [b"two"]
    assert rig.context.counters.dropped == {"expired": 1}
