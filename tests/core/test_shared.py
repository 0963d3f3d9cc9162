"""Shared groups: whose turn it is, what waits for whom, and where unfinished messages go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import counters as count
from mqttd.core import journal as j
from mqttd.core.message import Message
from mqttd.core.packets import Puback, Publish
from mqttd.core.session import Session
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from mqttd.core.shared import dissolve, distribute, give_back, is_durable, pull, queue_of
from mqttd.core.trie import SharedGroup
from tests.core.rig import FRAME, Rig, make_message, packets, payloads, publishes, sent, waiting
from tests.core.vectors import untimed


def make_group(rig: Rig, *sessions: Session, qos: int = 2) -> SharedGroup:
    """The sessions as members of one group, in this order."""
    group: SharedGroup | None = None
    for session in sessions:
        group = rig.join(session, "t", qos, "g").group
    assert group is not None
    return group


def spread(rig: Rig, group: SharedGroup, *names: bytes, qos: int = 1, now: float = 0.0) -> None:
    for name in names:
        distribute(group, make_message(name, qos), now, rig.context)


def kept(group: SharedGroup) -> list[bytes]:
    """The payloads in the group's queue."""
    return waiting(queue_of(group))


def leave(session: Session, rig: Rig) -> None:
    """The connection of a member is lost."""
    give_back(session.detach(), rig.context)


def settle_all(session: Session) -> None:
    for packet_id in list(session.window.deliveries):
        session.on_puback(packet_id, 0, 0.0)


def balanced(rig: Rig, group: SharedGroup, *sessions: Session) -> bool:
    queue = queue_of(group)
    left = 0 if queue is None else len(queue)
    left += sum(len(session.window.deliveries) for session in sessions)
    counters = rig.counters
    return counters.matched == counters.delivered + left + sum(counters.dropped.values())


# Whose turn it is.


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_members_take_turns(qos: int) -> None:
    """[MQTT-4.8.2-1] [MQTT-4.8.2-2]"""
    rig = Rig()
    a, b, c = rig.session("a"), rig.session("b"), rig.session("c")
    group = make_group(rig, a, b, c)
    spread(rig, group, b"1", b"2", b"3", b"4", qos=qos)
    assert [payloads(session) for session in (a, b, c)] == [[b"1", b"4"], [b"2"], [b"3"]]
    assert balanced(rig, group, a, b, c)


@pytest.mark.parametrize("qos", [0, 1])
def test_members_that_cannot_are_passed_over(qos: int) -> None:
    """Absent, blocked, or (for what is acknowledged) with a full window."""
    rig = Rig()
    absent = rig.session("absent", online=False)
    blocked, full, free = rig.session("blocked"), rig.session("full", 1), rig.session("free")
    assert blocked.link is not None
    blocked.link.writable = False
    full.deliver(make_message(b"own"), 1, False, b"", 0.0)
    group = make_group(rig, absent, blocked, full, free)
    spread(rig, group, b"1", b"2", qos=qos)
    if qos:
        assert payloads(full) == [b"own"]
        assert payloads(free) == [b"1", b"2"]
    else:
        assert payloads(full) == [b"own", b"1"]
        assert payloads(free) == [b"2"]
    assert sent(blocked) == []


def test_a_member_with_granted_qos_0_needs_no_room() -> None:
    """[MQTT-4.8.2-3]"""
    rig = Rig()
    session = rig.session(receive_maximum=1)
    session.deliver(make_message(b"own"), 1, False, b"", 0.0)
    group = make_group(rig, session, qos=0)
    spread(rig, group, b"1", b"2", qos=2)
    assert [(packet.payload, packet.qos) for packet in publishes(session)] == [
        (b"own", 1),
        (b"1", 0),
        (b"2", 0),
    ]


@pytest.mark.parametrize(("granted", "published", "expected"), [(1, 2, 1), (2, 1, 1), (2, 2, 2)])
def test_each_member_gets_its_own_qos(granted: int, published: int, expected: int) -> None:
    """[MQTT-4.8.2-3]"""
    rig = Rig()
    session = rig.session()
    group = make_group(rig, session, qos=granted)
    spread(rig, group, b"x", qos=published)
    assert [packet.qos for packet in publishes(session)] == [expected]


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("qos", [0, 1])
def test_retain_and_identifier_are_the_members_own(as_published: bool, qos: int) -> None:
    """[MQTT-3.3.1-12] [MQTT-3.3.1-13] [MQTT-3.3.4-3]"""
    rig = Rig()
    session = rig.session()
    group = make_group(rig, session)
    member = group.members[0]
    member.retain_as_published = as_published
    member.identifier_block = b"\x0b\x09"
    distribute(group, make_message(b"x", qos, retain=True), 0.0, rig.context)
    (packet,) = publishes(session)
    assert (packet.retain, packet.subscription_ids) == (as_published, [9])


def test_the_circle_goes_on_where_members_have_left() -> None:
    rig = Rig()
    sessions = [rig.session(name) for name in "abcd"]
    group = make_group(rig, *sessions)
    spread(rig, group, b"1", b"2", b"3")
    rig.trie.remove(sessions[3], "g", "t")
    rig.trie.remove(sessions[2], "g", "t")
    spread(rig, group, b"4", b"5")
    assert [payloads(session) for session in sessions] == [[b"1", b"4"], [b"2", b"5"], [b"3"], []]


# The queue of the group.


def test_qos_0_that_nobody_can_take_is_dropped_and_counted() -> None:
    rig = Rig()
    group = make_group(rig, rig.session(online=False))
    spread(rig, group, b"x", qos=0)
    assert rig.counters.dropped == {count.DROP_NO_MEMBER: 1}
    assert group.queue is None
    assert balanced(rig, group)


def test_what_is_acknowledged_waits_for_whoever_comes_first() -> None:
    rig = Rig()
    a, b = rig.session("a", online=False), rig.session("b", online=False)
    group = make_group(rig, a, b)
    spread(rig, group, b"1", b"2", b"3")
    assert kept(group) == [b"1", b"2", b"3"]
    assert a.queue is None
    pull(group, 0.0, rig.context)
    assert kept(group) == [b"1", b"2", b"3"]
    b.attach(rig.link(), 2)
    pull(group, 0.0, rig.context)
    assert payloads(b) == [b"1", b"2"]
    spread(rig, group, b"4")  # in order: behind the third
    assert kept(group) == [b"3", b"4"]
    settle_all(b)
    pull(group, 0.0, rig.context)
    assert payloads(b) == [b"3", b"4"]
    assert balanced(rig, group, a, b)


def test_pulling_at_an_empty_queue_is_harmless() -> None:
    rig = Rig()
    session = rig.session()
    group = make_group(rig, session)
    pull(group, 0.0, rig.context)
    assert sent(session) == []


@pytest.mark.parametrize(
    ("overflow", "left"), [(DROP_NEWEST, [b"1", b"2"]), (DROP_OLDEST, [b"2", b"3"])]
)
@pytest.mark.parametrize("durable", [False, True])
def test_the_queue_of_a_group_has_a_bound(overflow: str, left: list[bytes], durable: bool) -> None:
    rig = Rig(durable, max_queued_messages=2, queue_overflow=overflow)
    session = rig.session(online=False, durable=True)
    group = make_group(rig, session)
    spread(rig, group, b"1", b"2", b"3")
    assert kept(group) == left
    assert rig.counters.dropped == {count.DROP_QUEUE_FULL: 1}
    assert balanced(rig, group)
    if durable:
        batch = rig.journal.take()
        assert batch is not None
        written = [op.delivery.message.payload for op in batch.ops if op.delivery is not None]
        assert written == left


def test_a_group_without_a_bound_drops_nothing() -> None:
    rig = Rig(max_queued_messages=0)
    group = make_group(rig, rig.session(online=False))
    spread(rig, group, *[b"x"] * 300)
    assert len(kept(group)) == 300


def test_what_expired_in_the_queue_is_dropped() -> None:
    """[MQTT-3.3.2-5]"""
    rig = Rig()
    session = rig.session(online=False)
    group = make_group(rig, session)
    for payload, expires_at in ((b"old", 5.0), (b"new", 6.0), (b"ever", 0.0)):
        distribute(group, make_message(payload, expires_at=expires_at), 0.0, rig.context)
    session.attach(rig.link(), 10)
    pull(group, 5.0, rig.context)
    assert payloads(session) == [b"new", b"ever"]
    assert rig.counters.dropped == {count.DROP_EXPIRED: 1}
    assert balanced(rig, group, session)


@pytest.mark.parametrize("overflow", [DROP_NEWEST, DROP_OLDEST])
def test_what_expired_at_the_head_makes_room_in_a_full_queue(overflow: str) -> None:
    """[MQTT-3.3.2-5]"""
    rig = Rig(max_queued_messages=2, queue_overflow=overflow)
    group = make_group(rig, rig.session(online=False))
    for payload in (b"1", b"2"):
        distribute(group, make_message(payload, expires_at=5.0), 0.0, rig.context)
    spread(rig, group, b"3", b"4", now=5.0)
    assert kept(group) == [b"3", b"4"]
    assert rig.counters.dropped == {count.DROP_EXPIRED: 2}
    assert balanced(rig, group)


def test_what_expired_behind_the_head_makes_no_room() -> None:
    """It goes when its turn comes."""
    rig = Rig(max_queued_messages=2)
    group = make_group(rig, rig.session(online=False))
    spread(rig, group, b"1")
    distribute(group, make_message(b"2", expires_at=5.0), 0.0, rig.context)
    spread(rig, group, b"3", now=6.0)
    assert kept(group) == [b"1", b"2"]
    assert rig.counters.dropped == {count.DROP_QUEUE_FULL: 1}
    assert balanced(rig, group)


def test_groups_that_wait_are_known_while_they_wait() -> None:
    """So that a session with many groups need not look at each."""
    rig = Rig()
    session = rig.session(online=False)
    group = make_group(rig, session)
    spread(rig, group, b"1")
    assert list(rig.context.queued_groups) == [group]
    session.attach(rig.link(), 10)
    pull(group, 0.0, rig.context)
    assert not rig.context.queued_groups
    leave(session, rig)
    assert list(rig.context.queued_groups) == [group]
    dissolve(group, rig.context)
    assert not rig.context.queued_groups


def test_a_group_ends_with_its_queue() -> None:
    rig = Rig()
    group = make_group(rig, rig.session(online=False))
    spread(rig, group, b"1", b"2")
    dissolve(group, rig.context)
    assert group.queue is None
    assert rig.counters.dropped == {count.DROP_SESSION_ENDED: 2}
    dissolve(group, rig.context)
    assert rig.counters.dropped == {count.DROP_SESSION_ENDED: 2}
    assert balanced(rig, group)


# What a member leaves unfinished.


def test_unfinished_qos_1_messages_go_to_the_front_in_their_order() -> None:
    """[MQTT-4.8.2-5] and to the next member without DUP: it never saw them."""
    rig = Rig()
    a, b = rig.session("a"), rig.session("b", online=False)
    group = make_group(rig, a, b)
    spread(rig, group, b"1", b"2")
    assert a.link is not None
    a.link.writable = False
    spread(rig, group, b"3")
    leave(a, rig)
    assert kept(group) == [b"1", b"2", b"3"]
    assert list(rig.context.groups) == [group]
    assert balanced(rig, group, a, b)
    b.attach(rig.link(), 10)
    pull(group, 0.0, rig.context)
    assert [(packet.payload, packet.dup) for packet in publishes(b)] == [
        (b"1", False),
        (b"2", False),
        (b"3", False),
    ]


def test_unfinished_messages_make_a_queue_where_there_was_none() -> None:
    rig = Rig()
    a = rig.session("a")
    group = make_group(rig, a)
    spread(rig, group, b"1")
    assert group.queue is None
    leave(a, rig)
    assert kept(group) == [b"1"]
    a.attach(rig.link(), 10)
    pull(group, 0.0, rig.context)
    assert payloads(a) == [b"1"]


def test_a_qos_2_exchange_stays_with_its_member() -> None:
    """[MQTT-4.8.2-4]"""
    rig = Rig()
    a, b = rig.session("a"), rig.session("b")
    group = make_group(rig, a, b)
    spread(rig, group, b"1", qos=2)
    leave(a, rig)
    assert kept(group) == []
    assert not rig.context.groups
    a.attach(rig.link(), 10)
    a.pump(0.0)
    assert [(packet.payload, packet.dup) for packet in publishes(a)] == [(b"1", True)]
    assert sent(b) == []


def test_unfinished_messages_of_a_group_that_is_gone_are_counted() -> None:
    rig = Rig()
    session = rig.session()
    group = make_group(rig, session)
    spread(rig, group, b"1")
    rig.trie.remove(session, "g", "t")
    leave(session, rig)
    assert rig.counters.dropped == {count.DROP_SESSION_ENDED: 1}
    assert balanced(rig, group, session)


# Waiting for the disk.


def barrier_message(rig: Rig, payload: bytes = b"x") -> Message:
    """A QoS 2 message whose identifier the store does not have yet."""
    message = make_message(payload, 2)
    message.barrier = rig.journal.record(j.INBOUND_ADD, "publisher", "", 1)
    return message


def commit(rig: Rig, group: SharedGroup) -> None:
    """What the broker does, for the groups as well."""
    rig.commit()
    if rig.context.waiting_groups.pop(group, 0) is None:
        pull(group, 0.0, rig.context)


def test_a_message_behind_a_barrier_waits_in_the_group_and_holds_the_order() -> None:
    rig = Rig(durable=True)
    session = rig.session()
    group = make_group(rig, session)
    distribute(group, barrier_message(rig, b"1"), 0.0, rig.context)
    spread(rig, group, b"2")
    assert kept(group) == [b"1", b"2"]
    pull(group, 0.0, rig.context)
    assert sent(session) == []
    assert list(rig.context.waiting_groups) == [group]
    commit(rig, group)
    assert payloads(session) == [b"1", b"2"]
    assert not rig.context.waiting_groups


def test_a_group_is_as_durable_as_its_most_durable_member() -> None:
    rig = Rig(durable=True)
    fleeting, lasting = rig.session("a", online=False), rig.session("b", online=False)
    group = make_group(rig, fleeting, lasting)
    spread(rig, group, b"1")
    assert rig.journal.empty()
    lasting.set_durable(True)
    spread(rig, group, b"2")
    batch = rig.journal.take()
    assert batch is not None
    assert [(op.kind, op.owner, op.name, op.number) for op in batch.ops] == [
        (j.GROUP_SAVE, "g", "t", group.number),
        (j.DELIVERY_ADD, "", "", group.number),
    ]
    assert group.number not in (0, fleeting.number, lasting.number)


def test_a_group_knows_whether_one_of_its_members_lasts() -> None:
    rig = Rig(durable=True)
    first, second = rig.session("a", durable=True), rig.session("b")
    group = make_group(rig, first, second)
    rig.join(second, "t", 1, "g")  # again: it counts once
    assert group.lasting == 1
    second.set_durable(True)
    second.set_durable(True)
    assert group.lasting == 2
    group.leave(first)
    assert group.lasting == 1
    second.set_durable(False)
    assert not is_durable(group)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_a_transient_member_has_is_still_the_groups_at_qos_1(qos: int) -> None:
    # [MQTT-4.8.2-5] at QoS 2 nobody else may get it
    rig = Rig(durable=True)
    fleeting, lasting = rig.session("a"), rig.session("b", durable=True, online=False)
    group = make_group(rig, fleeting, lasting)
    spread(rig, group, b"1", qos=qos)
    batch = rig.journal.take()
    added = [] if batch is None else [op.number for op in batch.ops if op.kind == j.DELIVERY_ADD]
    assert added == ([group.number] if qos == 1 else [])
    assert payloads(fleeting) == [b"1"]


def test_a_message_changes_its_owner_when_it_is_handed_out() -> None:
    rig = Rig(durable=True)
    session = rig.session("a", online=False, durable=True)
    group = make_group(rig, session)
    spread(rig, group, b"1")
    rig.commit()
    session.attach(rig.link(), 10)
    pull(group, 0.0, rig.context)
    batch = rig.journal.take()
    assert batch is not None
    assert [(op.kind, op.number) for op in batch.ops] == [
        (j.DELIVERY_SETTLE, group.number),
        (j.DELIVERY_ADD, session.number),
    ]


@pytest.mark.parametrize("durable", [False, True])
def test_what_was_handed_out_frees_the_publisher_when_it_is_done(durable: bool) -> None:
    """Or when it is durable as its member's own; to one that doesn't last it is only lent."""
    rig = Rig(durable=True)
    lasting = rig.session("lasting", online=False, durable=True)
    taker = rig.session("taker", online=False, durable=durable)
    group = make_group(rig, lasting, taker)
    publisher = rig.link()
    message = make_message(b"x")
    distribute(group, message, 0.0, rig.context)
    assert message.undurable == 1
    publisher.promise(FRAME, rig.journal.seq, message, False)
    taker.attach(rig.link(), 10)
    pull(group, 0.0, rig.context)
    assert payloads(taker) == [b"x"]
    assert packets(publisher.data_to_send()) == []
    if durable:
        rig.commit()
    else:
        taker.on_puback(1, 0, 0.0)
        assert rig.journal.elided == 1
    assert packets(publisher.data_to_send()) == [Puback(7)]


def test_handing_out_at_qos_0_frees_the_publisher() -> None:
    """Nothing durable is at stake any more, so the acknowledgement need not wait."""
    rig = Rig(durable=True)
    lasting = rig.session("lasting", online=False, durable=True)
    taker = rig.session("taker", online=False)
    group = make_group(rig, lasting, taker, qos=0)
    publisher = rig.link()
    message = make_message(b"x")
    distribute(group, message, 0.0, rig.context)
    publisher.promise(FRAME, rig.journal.seq, message, False)
    taker.attach(rig.link(), 10)
    pull(group, 0.0, rig.context)
    assert payloads(taker) == [b"x"]
    assert packets(publisher.data_to_send()) == [Puback(7)]


@pytest.mark.parametrize("holds", [False, True])
def test_a_group_that_ends_frees_the_publisher(holds: bool) -> None:
    rig = Rig(durable=True)
    group = make_group(rig, rig.session(online=False, durable=True))
    publisher = rig.link()
    message = make_message(b"x")
    distribute(group, message, 0.0, rig.context)
    if holds:
        publisher.promise(FRAME, rig.journal.seq, message, False)
    dissolve(group, rig.context)
    assert packets(publisher.data_to_send()) == ([Puback(7)] if holds else [])
    assert message.holder is None


def test_what_is_given_back_is_kept_as_the_groups_again() -> None:
    rig = Rig(durable=True)
    session = rig.session("a", durable=True)
    group = make_group(rig, session)
    spread(rig, group, b"1")
    assert payloads(session) == [b"1"]
    rig.commit()
    leave(session, rig)
    batch = rig.journal.take()
    assert batch is not None
    assert [(op.kind, op.number, op.serial) for op in batch.ops] == [
        (j.DELIVERY_SETTLE, session.number, 1),
        (j.DELIVERY_ADD, group.number, -1),
    ]


@untimed
@given(st.lists(st.tuples(st.sampled_from("012aglbr"), st.integers(0, 2)), max_size=60))
def test_every_message_has_one_place_whatever_happens(moves: list[tuple[str, int]]) -> None:
    """Digits publish, a acknowledges, g pulls, l loses a connection, b blocks, r reads again."""
    rig = Rig(max_queued_messages=4)
    sessions = [rig.session(name, 2) for name in "abc"]
    group = make_group(rig, *sessions)
    begun: set[bytes] = set()
    number = 0
    for move, which in moves:
        session = sessions[which]
        if move.isdigit():
            number += 1
            spread(rig, group, b"%d" % number, qos=int(move))
        elif move == "a":
            for packet_id in list(session.window.deliveries):
                session.on_puback(packet_id, 0, 0.0)
                session.on_pubrec(packet_id, 0, 0.0)
                session.on_pubcomp(packet_id, 0.0)
        elif move == "l":
            leave(session, rig)
            session.attach(rig.link(), 2)
            session.pump(0.0)
        elif session.link is not None and move in "br":
            session.link.writable = move == "r"
        pull(group, 0.0, rig.context)
        for other in sessions:
            for packet in sent(other):
                if isinstance(packet, Publish) and packet.qos != 1 and not packet.dup:
                    assert packet.payload not in begun  # [MQTT-4.8.2-4] QoS 2 is begun once
                    begun.add(packet.payload)
        assert balanced(rig, group, *sessions)
