"""Shared subscriptions (4.8.2): the filter, who gets what, what happens when a member leaves."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    MALFORMED,
    alive,
    by_hand,
    dropped,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    refused,
    settings,
)

SHARED = "$share/g/t"


def member(
    h: Harness, name: str, qos: int = 1, topic_filter: str = SHARED, version: int = 5
) -> FakeClient:
    """A connected member that acknowledges nothing by itself; its session outlives it."""
    c = by_hand(h, name, version)
    assert c.subscribe(topic_filter, qos=qos).reasons == [qos]
    return c


def fill(h: Harness, count: int, qos: int = 1, topic: str = "t", first: int = 0) -> None:
    pub = h.client("pub")
    for n in range(first, first + count):
        publish(pub, topic, bytes([n]), qos=qos)


def share(*members: FakeClient) -> list[list[int]]:
    """The numbers of the messages that each member got."""
    return [[m.payload[0] for m in messages(c)] for c in members]


@each_version
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_go_round_among_the_members(version: int, qos: int) -> None:
    h = Harness()
    members = [member(h, f"m{n}", qos=qos, version=version) for n in range(3)]
    for c in members:
        c.auto_ack = True
    fill(h, 9, qos=qos)
    got = share(*members)
    assert [len(part) for part in got] == [3, 3, 3]
    assert sorted(n for part in got for n in part) == list(range(9))


def test_groups_and_plain_subscribers_each_get_a_copy() -> None:
    h = Harness()
    a1, a2 = member(h, "a1"), member(h, "a2")
    b1 = member(h, "b1", topic_filter="$share/other/t")
    plain = h.client("plain")
    plain.subscribe("t", qos=1)
    fill(h, 4)
    got = share(a1, a2, b1, plain)
    assert sorted(got[0] + got[1]) == [0, 1, 2, 3]
    assert got[2] == got[3] == [0, 1, 2, 3]


def test_one_name_with_two_filters_makes_two_groups() -> None:
    h = Harness()
    a = member(h, "a", topic_filter="$share/g/t")
    b = member(h, "b", topic_filter="$share/g/#")
    fill(h, 2)
    assert share(a, b) == [[0, 1], [0, 1]]


def test_client_in_a_group_and_with_a_plain_subscription_gets_both_copies() -> None:
    h = Harness()
    c = member(h, "c")
    c.subscribe("t", qos=1)
    fill(h, 1)
    assert share(c) == [[0, 0]]


@each_version
def test_wildcards_work_in_a_shared_filter(version: int) -> None:
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("$share/g/a/+/#", qos=1)
    pub = h.client("pub")
    for topic in ("a/b", "a/b/c", "a", "b/a"):
        publish(pub, topic, topic.encode(), qos=1)
    assert payloads(c) == [b"a/b", b"a/b/c"]


def test_dollar_topics_stay_hidden_from_shared_wildcards() -> None:
    # [MQTT-4.7.2-1]
    h = Harness()
    c = h.client("c")
    c.subscribe("$share/g/#", qos=1)
    publish(h.client("pub"), "$other/a", qos=1)
    assert messages(c) == []


def test_share_name_takes_no_part_in_matching() -> None:
    # [MQTT-4.8.2-1]
    h = Harness()
    c = h.client("c")
    c.subscribe("$share/g/t")
    pub = h.client("pub")
    publish(pub, "$share/g/t", b"literal")
    publish(pub, "g/t", b"inner")
    publish(pub, "t", b"topic")
    assert payloads(c) == [b"topic"]


@each_version
@pytest.mark.parametrize(
    "topic_filter",
    [
        "$share",
        "$share/",
        "$share/g",
        "$share//t",
        "$share/g/",
        "$share/a+/t",
        "$share/+/t",
        "$share/#/t",
        "$share/g#/t",
        "$share/#",
        "$share/g/a#",
        "$share/g/#/a",
    ],
)
def test_malformed_shared_filter_is_refused(version: int, topic_filter: str) -> None:
    # [MQTT-4.8.2-1] [MQTT-4.8.2-2]
    h = Harness()
    other = h.client("other")
    other.subscribe("t")
    c = h.client("c", version=version)
    c.send(Subscribe(1, [Filter(topic_filter, 0, False, False, 0)]))
    got = c.recv()
    for p in got:
        if isinstance(p, Suback):
            assert all(r >= 0x80 for r in p.reasons)
        elif isinstance(p, Disconnect):
            assert p.reason in (*MALFORMED, spec.TOPIC_FILTER_INVALID)
    assert c.closed or got
    publish(h.client("pub"), "t", b"m")
    assert messages(c) == []
    assert payloads(other) == [b"m"]


def test_no_local_on_a_shared_filter_is_a_protocol_error() -> None:
    # [MQTT-3.8.3-4]
    h = Harness()
    c = h.client("c")
    c.send(Subscribe(1, [Filter(SHARED, 1, True, False, 0)]))
    refused(c, MALFORMED)


@pytest.mark.parametrize(("granted", "qos"), [(g, q) for g in (0, 1, 2) for q in (0, 1, 2)])
def test_each_member_is_served_at_its_granted_qos(granted: int, qos: int) -> None:
    # [MQTT-4.8.2-3] [MQTT-3.8.4-8]
    h = Harness()
    c = member(h, "c", qos=granted)
    fill(h, 1, qos=qos)
    assert one(c).qos == min(granted, qos)


def test_members_of_one_group_may_have_different_qos() -> None:
    # [MQTT-4.8.2-3]
    h = Harness()
    low, high = member(h, "low", qos=0), member(h, "high", qos=2)
    low.auto_ack = high.auto_ack = True
    fill(h, 6, qos=2)
    assert {m.qos for m in messages(low)} == {0}
    assert {m.qos for m in messages(high)} == {2}


def test_the_copy_carries_the_members_identifier() -> None:
    # [MQTT-3.3.4-3]
    h = Harness()
    members = []
    for n in (1, 2):
        c = manual(h.client(f"m{n}"))
        c.subscribe(SHARED, qos=1, identifier=n)
        members.append(c)
    fill(h, 2)
    assert [one(c).subscription_ids for c in members] == [[1], [2]]


def test_the_member_keeps_its_place_when_it_subscribes_again() -> None:
    h = Harness()
    a, b = member(h, "a"), member(h, "b")
    a.subscribe(SHARED, qos=0)
    fill(h, 4, qos=1)
    got = [messages(a), messages(b)]
    assert [len(part) for part in got] == [2, 2]
    assert {m.qos for m in got[0]} == {0}


@each_version
def test_unsubscribed_member_gets_nothing_more(version: int) -> None:
    # [MQTT-3.10.4-2]
    h = Harness()
    a, b = member(h, "a", version=version), member(h, "b", version=version)
    a.send(Unsubscribe(5, [SHARED]))
    a.expect(Unsuback)
    fill(h, 3)
    assert share(a, b) == [[], [0, 1, 2]]


def test_unsubscribing_the_plain_filter_leaves_the_group() -> None:
    # [MQTT-3.10.4-1]
    h = Harness()
    c = member(h, "c")
    c.send(Unsubscribe(5, ["t", "$share/other/t"]))
    assert c.expect(Unsuback).reasons == [spec.NO_SUBSCRIPTION_EXISTED] * 2
    fill(h, 1)
    assert share(c) == [[0]]


def test_connected_member_serves_while_another_is_away() -> None:
    h = Harness()
    a, b = member(h, "a"), member(h, "b")
    a.drop()
    fill(h, 3)
    assert share(b) == [[0, 1, 2]]
    persistent(h, "a").expect_nothing()


def test_member_with_a_full_window_is_passed_over() -> None:
    # [MQTT-4.9.0-2]
    h = Harness()
    a = manual(h.client("a", properties=props(receive_maximum=1)))
    a.subscribe(SHARED, qos=1)
    b = manual(h.client("b", properties=props(receive_maximum=100)))
    b.subscribe(SHARED, qos=1)
    fill(h, 10)
    got = share(a, b)
    assert len(got[0]) == 1
    assert len(got[1]) == 9


def test_group_with_full_windows_keeps_its_messages_for_the_first_free_member() -> None:
    # [MQTT-4.9.0-2]
    h = Harness()
    a = manual(h.client("a", properties=props(receive_maximum=1)))
    b = manual(h.client("b", properties=props(receive_maximum=1)))
    for c in (a, b):
        c.subscribe(SHARED, qos=1)
    fill(h, 5)
    first_a, first_b = one(a), one(b)
    b.send(Puback(first_b.packet_id))
    taken = one(b)
    assert taken.payload == b"\x02"
    a.send(Puback(first_a.packet_id))
    assert one(a).payload == b"\x03"
    b.send(Puback(taken.packet_id))
    assert one(b).payload == b"\x04"
    assert dropped(h) == 0


def test_unfinished_qos_1_message_of_a_lost_transient_member_goes_to_another() -> None:
    h = Harness()
    a = manual(h.client("a"))
    a.subscribe(SHARED, qos=1)
    b = manual(h.client("b"))
    b.subscribe(SHARED, qos=1)
    fill(h, 2)
    assert share(a, b) == [[0], [1]]
    a.drop()
    again = one(b)
    assert again.payload == b"\x00"
    assert dropped(h) == 0


def test_begun_qos_2_message_goes_to_no_other_when_the_session_ends() -> None:
    # [MQTT-4.8.2-5]
    h = Harness()
    a = manual(h.client("a"))
    a.subscribe(SHARED, qos=2)
    b = manual(h.client("b"))
    b.subscribe(SHARED, qos=2)
    fill(h, 1, qos=2)
    assert len(messages(a)) == 1
    a.drop()
    assert messages(b) == []
    assert h.broker.counters.dropped == {"session_ended": 1}


def test_received_qos_2_message_goes_to_no_other_when_the_session_ends() -> None:
    # [MQTT-4.8.2-5]
    h = Harness()
    a = manual(h.client("a"))
    a.subscribe(SHARED, qos=2)
    b = manual(h.client("b"))
    b.subscribe(SHARED, qos=2)
    fill(h, 1, qos=2)
    a.send(Pubrec(one(a).packet_id))
    a.drop()
    assert messages(b) == []


def test_begun_qos_2_message_is_completed_with_the_same_member_on_reconnect() -> None:
    # [MQTT-4.8.2-4]
    h = Harness()
    a, b = member(h, "a", qos=2), member(h, "b", qos=2)
    fill(h, 1, qos=2)
    packet_id = one(a).packet_id
    a.send(Pubrec(packet_id))
    a.expect(Pubrel)
    a.drop()
    assert messages(b) == []
    a = by_hand(h, "a")
    assert a.expect(Pubrel).packet_id == packet_id
    a.send(Pubcomp(packet_id))
    a.expect_nothing()
    assert messages(b) == []


def test_sent_qos_2_message_is_resent_to_the_same_member_on_reconnect() -> None:
    # [MQTT-4.8.2-4]
    h = Harness()
    a, b = member(h, "a", qos=2), member(h, "b", qos=2)
    fill(h, 1, qos=2)
    packet_id = one(a).packet_id
    a.drop()
    assert messages(b) == []
    again = one(persistent(h, "a"))
    assert (again.packet_id, again.dup) == (packet_id, True)


def test_unsent_qos_2_message_of_a_lost_member_goes_to_another() -> None:
    # [MQTT-4.8.2-5]
    h = Harness()
    a = manual(h.client("a", properties=props(receive_maximum=1)))
    a.subscribe(SHARED, qos=2)
    fill(h, 2, qos=2)
    assert len(messages(a)) == 1
    b = manual(h.client("b"))
    b.subscribe(SHARED, qos=2)
    a.drop()
    assert [m.payload for m in messages(b)] == [b"\x01"]


@pytest.mark.parametrize("qos", [1, 2])
def test_error_from_a_member_ends_the_message(qos: int) -> None:
    # [MQTT-4.8.2-6] [MQTT-4.4.0-2]
    h = Harness()
    a, b = member(h, "a", qos=qos), member(h, "b", qos=qos)
    fill(h, 1, qos=qos)
    ack = Puback if qos == 1 else Pubrec
    a.send(ack(one(a).packet_id, spec.UNSPECIFIED_ERROR))
    a.drop()
    assert messages(b) == []
    assert messages(persistent(h, "a")) == []
    assert h.broker.counters.dropped == {"refused_by_receiver": 1}


def test_group_whose_members_are_all_away_keeps_its_messages() -> None:
    # [MQTT-4.5.0-1]
    h = Harness()
    a, b = member(h, "a"), member(h, "b")
    a.drop()
    b.drop()
    fill(h, 4)
    back = persistent(h, "b")
    assert share(back) == [[0, 1, 2, 3]]
    assert messages(persistent(h, "a")) == []
    assert dropped(h) == 0


def test_the_queue_of_a_group_is_bounded_and_counted() -> None:
    h = Harness(settings(max_queued_messages=3))
    member(h, "a").drop()
    fill(h, 5)
    assert share(persistent(h, "a")) == [[0, 1, 2]]
    assert h.broker.counters.dropped == {"queue_full": 2}


def test_group_of_transient_members_ends_with_the_last_of_them() -> None:
    h = Harness()
    c = h.client("c")
    c.subscribe(SHARED, qos=1)
    c.drop()
    fill(h, 2)
    again = h.client("c")
    again.subscribe(SHARED, qos=1)
    assert messages(again) == []


def test_qos_0_for_a_group_that_is_away_is_dropped_and_counted() -> None:
    h = Harness()
    member(h, "a").drop()
    fill(h, 2, qos=0)
    assert messages(persistent(h, "a")) == []
    assert dropped(h) == 2


def test_expired_message_in_the_queue_of_a_group_is_not_delivered() -> None:
    # [MQTT-3.3.2-5]
    h = Harness()
    member(h, "a").drop()
    pub = h.client("pub")
    publish(pub, "t", b"short", qos=1, expiry=5)
    publish(pub, "t", b"long", qos=1, expiry=500)
    h.advance(10)
    got = one(persistent(h, "a"))
    assert (got.payload, got.message_expiry) == (b"long", 490)
    assert h.broker.counters.dropped == {"expired": 1}


@pytest.mark.parametrize("handling", [0, 1, 2])
def test_retained_messages_are_not_replayed_to_a_shared_subscription(handling: int) -> None:
    # [MQTT-3.3.1-9]
    h = Harness()
    publish(h.client("pub"), "t", b"kept", qos=1, retain=True)
    c = h.client("c")
    c.subscribe(SHARED, qos=1, retain_handling=handling)
    assert messages(c) == []


@pytest.mark.parametrize("as_published", [False, True])
def test_retain_as_published_is_each_members_own(as_published: bool) -> None:
    # [MQTT-3.3.1-12] [MQTT-3.3.1-13]
    h = Harness()
    c = h.client("c")
    c.subscribe(SHARED, qos=1, retain_as_published=as_published)
    publish(h.client("pub"), "t", b"m", qos=1, retain=True)
    assert one(c).retain is as_published


def test_publisher_may_serve_its_own_group() -> None:
    h = Harness()
    c = manual(h.client("c"))
    c.subscribe(SHARED, qos=1)
    c.send(Publish("t", b"m", 1, False, False, 1, b""))
    assert payloads(c) == [b"m"]


def test_message_too_large_for_a_member_is_never_sent_to_it() -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-25]
    h = Harness()
    small = h.client("small", properties=props(maximum_packet_size=100))
    large = h.client("large")
    for c in (small, large):
        c.subscribe(SHARED, qos=1)
    pub = h.client("pub")
    for n in range(4):
        publish(pub, "t", bytes([n]) * 200, qos=1)
    assert messages(small) == []
    assert len(messages(large)) + dropped(h) == 4
    assert alive(small)


def test_clean_start_of_a_member_leaves_the_group_to_the_others() -> None:
    # [MQTT-3.1.2-4]
    h = Harness()
    a, b = member(h, "a"), member(h, "b")
    fill(h, 2)
    assert share(a, b) == [[0], [1]]
    h.client("a", clean=True).expect_nothing()
    assert one(b).payload == b"\x00"
    fill(h, 2, first=2)
    assert share(b) == [[2, 3]]


def test_expiry_of_a_members_session_gives_its_messages_to_the_others() -> None:
    # [MQTT-4.1.0-2]
    h = Harness()
    a = by_hand(h, "a", session_expiry_interval=10)
    a.subscribe(SHARED, qos=1)
    b = member(h, "b")
    fill(h, 2)
    assert share(a, b) == [[0], [1]]
    a.drop()
    h.advance(20)
    assert [m.payload for m in messages(b)] == [b"\x00"]


def test_slow_member_does_not_hold_up_the_group() -> None:
    h = Harness()
    slow = manual(h.client("slow", properties=props(receive_maximum=2)))
    slow.subscribe(SHARED, qos=1)
    fast = h.client("fast")
    fast.subscribe(SHARED, qos=1)
    fill(h, 20)
    got = share(slow, fast)
    assert len(got[0]) == 2
    assert sorted(got[0] + got[1]) == list(range(20))
