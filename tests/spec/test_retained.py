"""Retained messages (3.3.1.3, 3.8.3.1): storing, replacing, clearing, replaying.

Expiry of retained messages is in test_expiry; shared subscriptions never get a replay
(test_4_08_shared).
"""

import pytest

from mqttd.core.packets import Filter, Puback, Publish, Suback, Subscribe, Unsubscribe
from mqttd.core.properties import decode_forwardable
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    by_hand,
    dropped,
    each_qos,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    props,
    publish,
    raw_props,
    send_publish,
    settings,
)


def keep(h: Harness, *topics: str, qos: int = 1) -> None:
    """Retain one message on each topic; its payload is the topic."""
    pub = h.client("keeper")
    for topic in topics:
        publish(pub, topic, topic.encode(), qos=qos, retain=True)


def read_all(c: FakeClient) -> list[bytes]:
    got: list[bytes] = []
    while fresh := messages(c):
        for m in fresh:
            got.append(m.payload)
            if m.qos == 1:
                c.send(Puback(m.packet_id))
    return got


@each_version
@each_qos
def test_retained_message_is_sent_to_a_new_subscriber(version: int, qos: int) -> None:
    # [MQTT-3.3.1-5] [MQTT-3.3.1-9]
    h = Harness()
    publish(h.client("pub", version=version), "t", b"kept", qos=qos, retain=True)
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    got = one(sub)
    assert (got.payload, got.retain, got.qos, got.dup) == (b"kept", True, qos, False)


@each_version
def test_retained_message_outlives_its_publisher(version: int) -> None:
    # [MQTT-3.3.1-5]
    h = Harness()
    pub = h.client("pub", version=version)
    publish(pub, "t", b"kept", retain=True)
    pub.disconnect()
    h.advance(1000)
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    assert payloads(sub) == [b"kept"]


@each_version
def test_newer_retained_message_replaces_the_older(version: int) -> None:
    # [MQTT-3.3.1-5]
    h = Harness()
    pub = h.client("pub", version=version)
    publish(pub, "t", b"old", qos=2, retain=True)
    publish(pub, "t", b"new", qos=0, retain=True)
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    got = one(sub)
    assert (got.payload, got.qos) == (b"new", 0)


@each_version
def test_empty_payload_clears_the_retained_message(version: int) -> None:
    # [MQTT-3.3.1-6] [MQTT-3.3.1-7]
    h = Harness()
    pub = h.client("pub", version=version)
    publish(pub, "t", b"kept", qos=1, retain=True)
    publish(pub, "t", b"", qos=1, retain=True)
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    assert messages(sub) == []


@each_version
def test_empty_retained_payload_is_delivered_like_any_message(version: int) -> None:
    # [MQTT-3.3.1-6]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    publish(h.client("pub", version=version), "t", b"", qos=1, retain=True)
    got = one(sub)
    assert (got.payload, got.qos, got.retain) == (b"", 1, False)


@each_version
def test_clearing_what_was_never_kept_is_harmless(version: int) -> None:
    # [MQTT-3.3.1-7]
    h = Harness()
    assert publish(h.client("pub", version=version), "t", b"", qos=1, retain=True) < 0x80
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    assert messages(sub) == []


@each_version
@pytest.mark.parametrize("payload", [b"plain", b""])
def test_plain_publish_leaves_the_retained_message(version: int, payload: bytes) -> None:
    # [MQTT-3.3.1-8]
    h = Harness()
    pub = h.client("pub", version=version)
    publish(pub, "t", b"kept", retain=True)
    publish(pub, "t", payload)
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    assert payloads(sub) == [b"kept"]


@each_version
def test_plain_publish_is_not_kept(version: int) -> None:
    # [MQTT-3.3.1-8]
    h = Harness()
    publish(h.client("pub", version=version), "t", b"plain")
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    assert messages(sub) == []


@each_version
def test_present_subscriber_sees_no_retain_flag(version: int) -> None:
    # [MQTT-3.3.1-12]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    publish(h.client("pub", version=version), "t", b"m", qos=1, retain=True)
    assert one(sub).retain is False


@pytest.mark.parametrize("retain", [False, True])
@each_qos
def test_retain_as_published_keeps_the_flag(qos: int, retain: bool) -> None:
    # [MQTT-3.3.1-13]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2, retain_as_published=True)
    publish(h.client("pub"), "t", b"m", qos=qos, retain=retain)
    assert one(sub).retain is retain


def test_retain_as_published_holds_through_the_queue() -> None:
    # [MQTT-3.3.1-12] [MQTT-3.3.1-13]
    h = Harness()
    for name, kept in (("with", True), ("without", False)):
        c = persistent(h, name)
        c.subscribe("t", qos=1, retain_as_published=kept)
        c.drop()
    publish(h.client("pub"), "t", b"m", qos=1, retain=True)
    assert one(persistent(h, "with")).retain is True
    assert one(persistent(h, "without")).retain is False


@pytest.mark.parametrize("as_published", [False, True])
def test_replayed_message_always_has_the_retain_flag(as_published: bool) -> None:
    # [MQTT-3.3.1-9]
    h = Harness()
    keep(h, "t")
    sub = h.client("sub")
    sub.subscribe("t", qos=1, retain_as_published=as_published)
    assert one(sub).retain is True


def test_retain_handling_0_replays_at_each_subscribe() -> None:
    # [MQTT-3.3.1-9] [MQTT-3.8.4-4]
    h = Harness()
    keep(h, "t")
    sub = h.client("sub")
    for _ in range(3):
        sub.subscribe("t", retain_handling=0)
        assert payloads(sub) == [b"t"]


def test_retain_handling_1_replays_only_to_a_new_subscription() -> None:
    # [MQTT-3.3.1-10]
    h = Harness()
    keep(h, "t")
    sub = h.client("sub")
    sub.subscribe("t", retain_handling=1)
    assert payloads(sub) == [b"t"]
    sub.subscribe("t", qos=1, retain_handling=1)
    assert messages(sub) == []
    sub.send(Unsubscribe(9, ["t"]))
    sub.recv()
    sub.subscribe("t", retain_handling=1)
    assert payloads(sub) == [b"t"]


def test_retain_handling_1_knows_the_subscriptions_of_a_resumed_session() -> None:
    # [MQTT-3.3.1-10]
    h = Harness()
    keep(h, "t")
    sub = persistent(h, "sub")
    sub.subscribe("t", retain_handling=1)
    sub.drop()
    sub = persistent(h, "sub")
    sub.subscribe("t", retain_handling=1)
    assert messages(sub) == []


def test_retain_handling_2_replays_nothing() -> None:
    # [MQTT-3.3.1-11]
    h = Harness()
    keep(h, "t")
    sub = h.client("sub")
    sub.subscribe("t", retain_handling=2)
    assert messages(sub) == []
    publish(h.client("pub"), "t", b"live")
    assert payloads(sub) == [b"live"]


@pytest.mark.parametrize("version", [3, 4])
def test_older_clients_get_the_replay_at_each_subscribe(version: int) -> None:
    # [MQTT-3.3.1-9]
    h = Harness()
    keep(h, "t")
    sub = h.client("sub", version=version)
    for _ in range(2):
        sub.subscribe("t")
        assert payloads(sub) == [b"t"]


def test_resuming_a_session_replays_nothing() -> None:
    # [MQTT-3.3.1-9]
    h = Harness()
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1)
    keep(h, "t")
    sub.recv()
    sub.drop()
    persistent(h, "sub").expect_nothing()


@each_version
@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [
        ("#", ["/", "/a", "a", "a/", "a/b", "a/b/c", "x"]),
        ("a/#", ["a", "a/", "a/b", "a/b/c"]),
        ("a/+", ["a/", "a/b"]),
        ("+", ["a", "x"]),
        ("+/+", ["/", "/a", "a/", "a/b"]),
        ("/+", ["/", "/a"]),
        ("+/b/#", ["a/b", "a/b/c"]),
        ("a/b", ["a/b"]),
        ("$x/#", ["$x/a"]),
        ("$x/+", ["$x/a"]),
        ("none/#", []),
    ],
)
def test_replay_follows_the_filter(version: int, topic_filter: str, expected: list[str]) -> None:
    # [MQTT-3.3.2-3] [MQTT-4.7.2-1] [MQTT-3.3.1-9]
    h = Harness()
    keep(h, "a", "a/", "a/b", "a/b/c", "x", "/", "/a", "$x/a")
    sub = h.client("sub", version=version)
    sub.subscribe(topic_filter, qos=1)
    got = messages(sub)
    assert sorted(m.topic for m in got) == expected
    assert all(m.payload == m.topic.encode() for m in got)


@each_version
@pytest.mark.parametrize("granted", [0, 1, 2])
@each_qos
def test_replay_takes_the_lower_qos(version: int, granted: int, qos: int) -> None:
    # [MQTT-3.8.4-8]
    h = Harness()
    keep(h, "t", qos=qos)
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=granted)
    assert one(sub).qos == min(granted, qos)


def test_replay_carries_the_identifier_of_the_subscription() -> None:
    # [MQTT-3.3.4-3]
    h = Harness()
    keep(h, "t")
    sub = h.client("sub")
    sub.subscribe("#", identifier=1, retain_handling=2)
    sub.subscribe("t", identifier=2)
    assert one(sub).subscription_ids == [2]


def test_replay_carries_the_properties() -> None:
    # [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18]
    # [MQTT-3.3.2-20]
    h = Harness()
    raw = raw_props(
        payload_format_indicator=1,
        content_type="c",
        response_topic="r",
        correlation_data=b"\x00",
        user_properties=[("b", "1"), ("a", "2"), ("b", "0")],
    )
    publish(h.client("pub"), "t", b"m", retain=True, properties=raw)
    sub = h.client("sub")
    sub.subscribe("t")
    got = decode_forwardable(one(sub).properties)
    assert (got.payload_format_indicator, got.content_type) == (1, "c")
    assert (got.response_topic, got.correlation_data) == ("r", b"\x00")
    assert got.user_properties == [("b", "1"), ("a", "2"), ("b", "0")]


def test_each_filter_of_a_subscribe_gets_its_replay() -> None:
    # [MQTT-3.8.4-5] [MQTT-3.3.1-9]
    h = Harness()
    keep(h, "a", "b")
    sub = h.client("sub")
    handling = (0, 2, 1)
    filters = [Filter(t, 0, False, False, handling[n]) for n, t in enumerate(("a", "b", "#"))]
    sub.send(Subscribe(1, filters))
    assert sorted(payloads(sub)) == [b"a", b"a", b"b"]


@pytest.mark.parametrize("window", [1, 3, 10])
def test_replay_larger_than_the_window_waits_and_completes(window: int) -> None:
    # [MQTT-3.3.4-9] [MQTT-3.3.1-9]
    h = Harness()
    topics = [f"t/{n}" for n in range(50)]
    keep(h, *topics)
    sub = manual(h.client("sub", properties=props(receive_maximum=window)))
    sub.send(Subscribe(1, [Filter("t/#", 1, False, False, 0)]))
    first = sub.recv()
    assert any(isinstance(p, Suback) for p in first)
    begun = [p for p in first if isinstance(p, Publish)]
    assert len(begun) == window
    for m in begun:
        sub.send(Puback(m.packet_id))
    got = [m.payload for m in begun] + read_all(sub)
    assert sorted(got) == sorted(t.encode() for t in topics)
    assert dropped(h) == 0


def test_replay_is_not_cut_short_by_the_queue_limit() -> None:
    # [MQTT-3.3.1-9]
    h = Harness(settings(max_queued_messages=5, max_inflight=2))
    keep(h, *(f"t/{n}" for n in range(50)))
    sub = manual(h.client("sub"))
    sub.subscribe("t/#", qos=1)
    assert len(read_all(sub)) == 50
    assert dropped(h) == 0


@each_version
@pytest.mark.parametrize("qos", [0, 1])
def test_replay_to_a_slow_reader_is_paced_and_completes(version: int, qos: int) -> None:
    # [MQTT-3.3.1-9]
    h = Harness(settings(write_buffer=5000))
    pub = h.client("pub")
    for n in range(100):
        publish(pub, f"t/{n}", b"x" * 500, retain=True, qos=1)
    sub = h.client("sub", version=version)
    sub.pause()
    sub.send(Subscribe(1, [Filter("#", qos, False, False, 0)]))
    sub.resume()
    assert len({m.topic for m in messages(sub)}) == 100
    assert dropped(h) == 0


def test_live_messages_get_through_during_a_long_replay() -> None:
    # [MQTT-3.3.1-9] [MQTT-4.5.0-1]
    h = Harness()
    keep(h, *(f"t/{n}" for n in range(20)))
    sub = manual(h.client("sub", properties=props(receive_maximum=2)))
    sub.subscribe("t/#", qos=1)
    publish(h.client("pub"), "t/live", b"live", qos=1)
    got = read_all(sub)
    assert sorted(got) == sorted([b"live", *(f"t/{n}".encode() for n in range(20))])


def test_replay_never_shows_a_value_older_than_one_already_seen() -> None:
    # [MQTT-4.6.0-5]
    h = Harness()
    keep(h, *(f"t/{n}" for n in range(10)))
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t/#", qos=1)
    pub = h.client("pub")
    for n in range(10):
        publish(pub, f"t/{n}", b"new", qos=1, retain=True)
    last: dict[str, bytes] = {}
    while fresh := messages(sub):
        for m in fresh:
            last[m.topic] = m.payload
            sub.send(Puback(m.packet_id))
    assert last == {f"t/{n}": b"new" for n in range(10)}


def test_replay_leaves_out_what_was_cleared_meanwhile() -> None:
    # [MQTT-3.3.1-6]
    h = Harness()
    topics = [f"t/{n}" for n in range(10)]
    keep(h, *topics)
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.subscribe("t/#", qos=1)
    pub = h.client("pub")
    for topic in topics:
        publish(pub, topic, b"", qos=1, retain=True)
    last: dict[str, bytes] = {}
    while fresh := messages(sub):
        for m in fresh:
            last[m.topic] = m.payload
            sub.send(Puback(m.packet_id))
    assert set(last.values()) == {b""}


@each_version
def test_replay_ends_with_the_connection(version: int) -> None:
    h = Harness()
    keep(h, *(f"t/{n}" for n in range(30)))
    sub = by_hand(h, "sub", version)
    sub.subscribe("t/#", qos=1)
    sub.drop()
    sub = persistent(h, "sub", version)
    assert len(messages(sub)) <= 30
    publish(h.client("pub"), "t/live", b"live", qos=1)
    assert payloads(sub) == [b"live"]


def test_retained_message_of_an_unacknowledged_qos_2_publish_is_kept_once() -> None:
    # [MQTT-3.3.1-5] [MQTT-4.3.3-10]
    h = Harness()
    pub = manual(h.client("pub"))
    send_publish(pub, "t", b"first", qos=2, packet_id=1, retain=True)
    publish(h.client("other"), "t", b"second", qos=1, retain=True)
    send_publish(pub, "t", b"first", qos=2, packet_id=1, retain=True, dup=True)
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    assert one(sub).payload == b"second"


@each_version
def test_retained_topic_goes_to_every_new_subscriber(version: int) -> None:
    # [MQTT-3.3.1-9]
    h = Harness()
    keep(h, "t")
    for n in range(3):
        c = h.client(f"c{n}", version=version)
        c.subscribe("t")
        assert payloads(c) == [b"t"]


def test_subscribing_again_during_a_replay_loses_nothing() -> None:
    # [MQTT-3.8.4-4] [MQTT-3.3.1-9]
    h = Harness()
    topics = [f"t/{n}" for n in range(30)]
    keep(h, *topics)
    sub = manual(h.client("sub", properties=props(receive_maximum=2)))
    sub.send(Subscribe(1, [Filter("t/#", 1, False, False, 0)]))
    sub.send(Subscribe(2, [Filter("t/#", 1, False, False, 0)]))
    got = read_all(sub)
    assert set(got) == {t.encode() for t in topics}
    assert len(got) <= 60


def test_unsubscribing_ends_a_replay() -> None:
    # [MQTT-3.10.4-2] [MQTT-3.10.4-3]
    h = Harness()
    keep(h, *(f"t/{n}" for n in range(30)))
    sub = manual(h.client("sub", properties=props(receive_maximum=2)))
    sub.subscribe("t/#", qos=1)
    begun = messages(sub)
    sub.send(Unsubscribe(2, ["t/#"]))
    for m in begun:
        sub.send(Puback(m.packet_id))
    assert len(begun) + len(read_all(sub)) < 30


def test_each_of_two_replays_follows_its_own_subscription() -> None:
    # [MQTT-3.3.1-9] [MQTT-3.3.4-3]
    h = Harness()
    keep(h, *(f"a/{n}" for n in range(10)), *(f"b/{n}" for n in range(10)))
    sub = manual(h.client("sub", properties=props(receive_maximum=1)))
    sub.send(Subscribe(1, [Filter("a/#", 1, False, False, 0)], 7))
    sub.send(Subscribe(2, [Filter("b/#", 1, False, False, 0)], 8))
    seen: dict[int, int] = {}
    while fresh := messages(sub):
        for m in fresh:
            (identifier,) = m.subscription_ids
            assert identifier == (7 if m.topic.startswith("a") else 8)
            seen[identifier] = seen.get(identifier, 0) + 1
            sub.send(Puback(m.packet_id))
    assert seen == {7: 10, 8: 10}
