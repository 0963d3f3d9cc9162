"""Topic aliases (3.3.2.3.4): the client's towards us, ours towards the client."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Puback, Publish
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    MALFORMED,
    alive,
    by_hand,
    each_qos,
    manual,
    messages,
    payloads,
    persistent,
    props,
    publish,
    refused,
    send_publish,
    settings,
    size_of,
)

REFUSED = (*MALFORMED, spec.TOPIC_ALIAS_INVALID)


def resolved(c: FakeClient, table: dict[int, str]) -> list[tuple[str, Publish]]:
    got = []
    for m in messages(c):
        if m.topic and m.topic_alias:
            table[m.topic_alias] = m.topic
        got.append((m.topic or table[m.topic_alias], m))
    return got


def listener(h: Harness) -> FakeClient:
    sub = h.client("sub")
    sub.subscribe("#", qos=2)
    return sub


def test_broker_announces_its_topic_alias_maximum() -> None:
    # [MQTT-3.3.2-12]
    h = Harness(settings(topic_alias_maximum=7))
    assert h.client("c").connack.properties.topic_alias_maximum == 7


@each_qos
def test_alias_stands_for_the_topic_it_was_set_with(qos: int) -> None:
    # [MQTT-3.3.2-12]
    h = Harness()
    sub = listener(h)
    pub = h.client("pub")
    publish(pub, "a/b", b"1", qos=qos, alias=1)
    publish(pub, "", b"2", qos=qos, alias=1)
    publish(pub, "", b"3", qos=qos, alias=1)
    got = messages(sub)
    assert [m.topic for m in got] == ["a/b"] * 3
    assert [m.payload for m in got] == [b"1", b"2", b"3"]


def test_alias_can_be_set_anew() -> None:
    # [MQTT-3.3.2-12]
    h = Harness()
    sub = listener(h)
    pub = h.client("pub")
    for topic in ("a", "", "b", "", "a"):
        publish(pub, topic, alias=1)
    assert [m.topic for m in messages(sub)] == ["a", "a", "b", "b", "a"]


def test_every_alias_up_to_the_maximum_is_accepted() -> None:
    # [MQTT-3.3.2-12]
    h = Harness(settings(topic_alias_maximum=10))
    sub = listener(h)
    pub = h.client("pub")
    for n in range(1, 11):
        publish(pub, f"t/{n}", alias=n)
    sub.recv()
    for n in reversed(range(1, 11)):
        publish(pub, "", alias=n)
    assert [m.topic for m in messages(sub)] == [f"t/{n}" for n in reversed(range(1, 11))]


def test_two_aliases_may_stand_for_one_topic() -> None:
    # [MQTT-3.3.2-12]
    h = Harness()
    sub = listener(h)
    pub = h.client("pub")
    for topic, alias in (("t", 1), ("t", 2), ("", 1), ("", 2)):
        publish(pub, topic, alias=alias)
    assert [m.topic for m in messages(sub)] == ["t"] * 4


@pytest.mark.parametrize("alias", [11, 65535])
def test_alias_above_the_maximum_is_refused(alias: int) -> None:
    # [MQTT-3.3.2-9] [MQTT-3.2.2-17]
    h = Harness(settings(topic_alias_maximum=10))
    sub = listener(h)
    pub = h.client("pub")
    send_publish(pub, "t", alias=alias)
    refused(pub, (spec.TOPIC_ALIAS_INVALID,))
    assert messages(sub) == []


def test_any_alias_is_refused_when_none_were_offered() -> None:
    # [MQTT-3.3.2-9] [MQTT-3.2.2-18]
    h = Harness(settings(topic_alias_maximum=0))
    pub = h.client("pub")
    assert not pub.connack.properties.topic_alias_maximum
    send_publish(pub, "t", alias=1)
    refused(pub, (spec.TOPIC_ALIAS_INVALID,))


def test_alias_0_is_refused() -> None:
    # [MQTT-3.3.2-8]
    h = Harness()
    pub = h.client("pub")
    pub.send_raw(b"\x30\x07\x00\x01t\x03\x23\x00\x00")
    refused(pub, REFUSED)


def test_unknown_alias_is_a_protocol_error() -> None:
    # [MQTT-3.3.2-12] [MQTT-4.13.1-1]
    h = Harness()
    sub = listener(h)
    pub = h.client("pub")
    publish(pub, "t", alias=1)
    send_publish(pub, "", alias=2)
    refused(pub, REFUSED)
    assert len(messages(sub)) == 1


def test_neither_topic_nor_alias_is_a_protocol_error() -> None:
    # [MQTT-4.7.3-1]
    h = Harness()
    pub = h.client("pub")
    publish(pub, "t", alias=1)
    send_publish(pub, "")
    refused(pub, (*MALFORMED, spec.TOPIC_NAME_INVALID))


def test_aliases_end_with_the_connection() -> None:
    # [MQTT-3.3.2-7]
    h = Harness()
    sub = listener(h)
    pub = persistent(h, "pub")
    publish(pub, "t", alias=1)
    pub.drop()
    pub = persistent(h, "pub")
    send_publish(pub, "", alias=1)
    refused(pub, REFUSED)
    assert len(messages(sub)) == 1


def test_aliases_of_two_clients_are_apart() -> None:
    # [MQTT-3.3.2-7]
    h = Harness()
    sub = listener(h)
    one, two = h.client("1"), h.client("2")
    publish(one, "one", alias=1)
    publish(two, "two", alias=1)
    publish(one, "", alias=1)
    publish(two, "", alias=1)
    assert [m.topic for m in messages(sub)] == ["one", "two", "one", "two"]


def test_wildcard_is_refused_with_an_alias_too() -> None:
    # [MQTT-3.3.2-2]
    h = Harness()
    pub = h.client("pub")
    send_publish(pub, "a/#", alias=1)
    refused(pub, (*MALFORMED, spec.TOPIC_NAME_INVALID))


def test_alias_of_the_publisher_is_not_forwarded() -> None:
    # [MQTT-3.3.2-11] [MQTT-3.1.2-27]
    h = Harness()
    sub = listener(h)
    pub = h.client("pub")
    publish(pub, "t", properties=b"\x26\x00\x01k\x00\x01v", alias=5)
    publish(pub, "", alias=5)
    assert [(m.topic, m.topic_alias) for m in messages(sub)] == [("t", 0), ("t", 0)]


def test_repeated_qos_2_publish_may_use_the_alias() -> None:
    # [MQTT-4.3.3-10]
    h = Harness()
    sub = listener(h)
    pub = manual(h.client("pub"))
    send_publish(pub, "t", b"m", qos=2, packet_id=1, alias=1)
    send_publish(pub, "", b"m", qos=2, packet_id=1, alias=1, dup=True)
    assert [(m.topic, m.payload) for m in messages(sub)] == [("t", b"m")]


def test_retained_and_queued_messages_know_their_topic() -> None:
    # [MQTT-3.3.2-7]
    h = Harness()
    away = persistent(h, "away")
    away.subscribe("#", qos=1)
    away.drop()
    pub = h.client("pub")
    publish(pub, "t", b"1", qos=1, alias=1)
    publish(pub, "", b"2", qos=1, alias=1, retain=True)
    pub.drop()
    assert [(m.topic, m.payload) for m in messages(persistent(h, "away"))] == [
        ("t", b"1"),
        ("t", b"2"),
    ]
    late = h.client("late")
    late.subscribe("t")
    assert [(m.topic, m.payload) for m in messages(late)] == [("t", b"2")]


@pytest.mark.parametrize("version", [3, 4, 5])
def test_no_alias_goes_to_a_client_that_takes_none(version: int) -> None:
    # [MQTT-3.1.2-27] [MQTT-3.3.2-11]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#", qos=1)
    pub = h.client("pub")
    for _ in range(30):
        publish(pub, "hot/topic", qos=1)
    got = messages(sub)
    assert len(got) == 30
    assert all(m.topic == "hot/topic" and m.topic_alias == 0 for m in got)


@each_qos
def test_hot_topic_is_named_once_and_then_aliased(qos: int) -> None:
    # [MQTT-3.1.2-26] [MQTT-3.3.2-11]
    h = Harness()
    sub = h.client("sub", properties=props(topic_alias_maximum=5))
    sub.subscribe("#", qos=2)
    pub = h.client("pub")
    for _ in range(30):
        publish(pub, "hot/topic", qos=qos)
    got = resolved(sub, {})
    assert [topic for topic, _ in got] == ["hot/topic"] * 30
    aliased = [m for _, m in got if not m.topic]
    assert aliased
    assert {m.topic_alias for m in aliased} <= set(range(1, 6))


@pytest.mark.parametrize("maximum", [1, 2, 5])
def test_outgoing_aliases_stay_within_the_clients_maximum(maximum: int) -> None:
    # [MQTT-3.1.2-26] [MQTT-3.3.2-11]
    h = Harness()
    sub = h.client("sub", properties=props(topic_alias_maximum=maximum))
    sub.subscribe("#", qos=1)
    pub = h.client("pub")
    sent = [f"topic/{n % 10}" for n in range(60)] + ["topic/0", "topic/9"] * 10
    for topic in sent:
        publish(pub, topic, qos=1)
    got = resolved(sub, {})
    assert [topic for topic, _ in got] == sent
    assert all(m.topic_alias <= maximum for _, m in got)


def test_outgoing_aliases_stay_within_our_own_maximum() -> None:
    # [MQTT-3.3.2-11]
    h = Harness(settings(topic_alias_maximum=3))
    sub = h.client("sub", properties=props(topic_alias_maximum=65535))
    sub.subscribe("#")
    pub = h.client("pub")
    for _ in range(5):
        for n in range(20):
            publish(pub, f"topic/{n}")
    got = resolved(sub, {})
    assert [topic for topic, _ in got] == [f"topic/{n}" for n in range(20)] * 5
    assert all(m.topic_alias <= 3 for _, m in got)


def test_outgoing_aliases_begin_anew_on_each_connection() -> None:
    # [MQTT-3.3.2-7]
    h = Harness()
    sub = persistent(h, "sub", topic_alias_maximum=5)
    sub.subscribe("#", qos=1)
    pub = h.client("pub")
    for _ in range(10):
        publish(pub, "hot/topic", qos=1)
    sub.recv()
    sub.drop()
    publish(pub, "hot/topic", b"queued", qos=1)
    sub = persistent(h, "sub", topic_alias_maximum=5)
    publish(pub, "hot/topic", b"live", qos=1)
    got = resolved(sub, {})
    assert [(topic, m.payload) for topic, m in got] == [
        ("hot/topic", b"queued"),
        ("hot/topic", b"live"),
    ]
    assert got[0][1].topic == "hot/topic"


def test_resent_message_does_not_rely_on_an_old_alias() -> None:
    # [MQTT-3.3.2-7] [MQTT-4.4.0-1]
    h = Harness()
    sub = by_hand(h, "sub", topic_alias_maximum=5)
    sub.subscribe("#", qos=1)
    pub = h.client("pub")
    for n in range(10):
        publish(pub, "hot/topic", bytes([n]), qos=1)
    table: dict[int, str] = {}
    first = [m for _, m in resolved(sub, table)]
    for m in first[:8]:
        sub.send(Puback(m.packet_id))
    sub.drop()
    again = by_hand(h, "sub")
    assert [(m.topic, m.payload) for m in messages(again)] == [
        ("hot/topic", b"\x08"),
        ("hot/topic", b"\x09"),
    ]


def test_dropped_message_sets_no_alias() -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-26]
    h = Harness()
    limits = props(topic_alias_maximum=5, maximum_packet_size=100)
    sub = h.client("sub", properties=limits)
    sub.subscribe("#")
    pub = h.client("pub")
    for n in range(20):
        publish(pub, "hot/topic", b"x" * (200 if n % 2 == 0 else 10))
    got = resolved(sub, {})
    assert [topic for topic, _ in got] == ["hot/topic"] * 10
    assert all(size_of(m) <= 100 for _, m in got)


def test_message_lost_to_a_full_write_buffer_sets_no_alias() -> None:
    # [MQTT-3.1.2-26]
    h = Harness(settings(write_buffer=3000))
    sub = h.client("sub", properties=props(topic_alias_maximum=5))
    sub.subscribe("#")
    pub = h.client("pub")
    sub.pause()
    for n in range(40):
        publish(pub, f"hot/{n % 4}", b"x" * 500)
    sub.resume()
    table: dict[int, str] = {}
    before = resolved(sub, table)
    for n in range(40):
        publish(pub, f"hot/{n % 4}", bytes([n % 4]))
    after = resolved(sub, table)
    assert len(before) < 40
    assert all(topic == f"hot/{m.payload[0]}" for topic, m in after)
    assert len(after) == 40


def test_aliased_packet_counts_its_real_size() -> None:
    # [MQTT-3.1.2-24]
    h = Harness()
    limit = 60
    sub = h.client("sub", properties=props(topic_alias_maximum=5, maximum_packet_size=limit))
    sub.subscribe("#")
    pub = h.client("pub")
    for size in range(30, 60):
        publish(pub, "hot/topic", b"x" * size)
    table: dict[int, str] = {}
    assert all(size_of(m) <= limit for _, m in resolved(sub, table))
    assert alive(sub)
    assert payloads(sub) == []


def test_alias_is_learned_from_a_message_that_is_refused() -> None:
    # [MQTT-3.3.2-12]
    h = Harness()
    pub = manual(h.client("pub"))
    send_publish(pub, "$SYS/mine", alias=1)
    assert alive(pub)
    send_publish(pub, "", alias=1)
    assert alive(pub)


def test_alias_is_learned_from_a_repeated_qos_2_publish() -> None:
    # [MQTT-3.3.2-12] [MQTT-4.3.3-10]
    h = Harness()
    sub = listener(h)
    pub = by_hand(h, "pub")
    send_publish(pub, "t", b"1", qos=2, packet_id=1, alias=1)
    pub.drop()
    pub = by_hand(h, "pub")
    send_publish(pub, "t", b"1", qos=2, packet_id=1, alias=1, dup=True)
    send_publish(pub, "", b"2", qos=2, packet_id=2, alias=1)
    assert [(m.topic, m.payload) for m in messages(sub)] == [("t", b"1"), ("t", b"2")]


@each_qos
def test_message_that_fits_without_an_alias_is_not_lost_to_one(qos: int) -> None:
    # [MQTT-3.1.2-24] [MQTT-3.1.2-26]
    h = Harness()
    limit = size_of(Publish("hot/topic", b"x" * 40, qos, False, False, 1 if qos else 0, b""))
    limits = props(topic_alias_maximum=5, maximum_packet_size=limit)
    sub = h.client("sub", properties=limits)
    sub.subscribe("#", qos=qos)
    pub = h.client("pub")
    for _ in range(20):
        publish(pub, "hot/topic", b"x" * 40, qos=qos)
    got = resolved(sub, {})
    assert [topic for topic, _ in got] == ["hot/topic"] * 20
    assert all(size_of(m) <= limit for _, m in got)
