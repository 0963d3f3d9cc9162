"""UNSUBSCRIBE and UNSUBACK (3.10, 3.11): what is removed, what is still completed."""

import pytest

from mqttd.core import spec
from mqttd.core.packets import (
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Unsuback,
    Unsubscribe,
)
from tests.harness import FakeClient, Harness
from tests.spec.kit import (
    MALFORMED,
    by_hand,
    each_version,
    manual,
    messages,
    payloads,
    persistent,
    props,
    publish,
    refused,
    size_of,
)


def unsubscribe(c: FakeClient, *filters: str, packet_id: int = 100) -> list[int]:
    c.send(Unsubscribe(packet_id, list(filters)))
    ack = c.expect(Unsuback)
    assert ack.packet_id == packet_id
    return list(ack.reasons)


def raw_unsubscribe(version: int, payload: bytes, first: int = 0xA2, packet_id: int = 1) -> bytes:
    body = packet_id.to_bytes(2, "big") + (b"\x00" if version == 5 else b"") + payload
    return bytes([first, len(body)]) + body


@each_version
def test_each_unsubscribe_gets_an_unsuback_with_its_identifier(version: int) -> None:
    # [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-2.2.1-6]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("a")
    unsubscribe(c, "a", packet_id=65535)
    unsubscribe(c, "never subscribed", packet_id=1)


def test_unsuback_has_one_code_per_filter_in_their_order() -> None:
    # [MQTT-3.11.3-1] [MQTT-3.11.3-2] [MQTT-3.10.4-6]
    h = Harness()
    c = h.client("c")
    c.subscribe("a")
    c.subscribe("b/#")
    none = spec.NO_SUBSCRIPTION_EXISTED
    assert unsubscribe(c, "x", "b/#", "a", "a", "y") == [none, 0, 0, none, none]


@pytest.mark.parametrize("version", [3, 4])
def test_unsuback_of_older_versions_has_no_payload(version: int) -> None:
    # [MQTT-3.10.4-5]
    h = Harness()
    c = h.client("c", version=version)
    assert unsubscribe(c, "a", "b") == []


@each_version
def test_nothing_arrives_after_unsubscribe(version: int) -> None:
    # [MQTT-3.10.4-2] [MQTT-3.10.4-1]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("a/+", qos=2)
    pub = h.client("pub", version=version)
    publish(pub, "a/b", b"before", qos=1)
    assert payloads(c) == [b"before"]
    unsubscribe(c, "a/+")
    for qos in (0, 1, 2):
        publish(pub, "a/b", b"after", qos=qos)
    assert messages(c) == []


@each_version
@pytest.mark.parametrize(
    ("subscribed", "other"),
    [
        ("a/+", "a/b"),
        ("a/b", "a/+"),
        ("a/b", "#"),
        ("a/#", "a"),
        ("a", "A"),
        ("a", "a/"),
        ("a", "/a"),
        ("a", "a "),
        ("\u00e9", "e\u0301"),
        ("t", "$share/g/t"),
    ],
)
def test_only_the_identical_filter_is_removed(version: int, subscribed: str, other: str) -> None:
    # [MQTT-3.10.4-1] [MQTT-4.7.3-4]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe(subscribed)
    reasons = unsubscribe(c, other)
    assert reasons == ([spec.NO_SUBSCRIPTION_EXISTED] if version == 5 else [])
    publish(h.client("pub"), subscribed.replace("+", "b").replace("#", "b"), b"still")
    assert payloads(c) == [b"still"]


@each_version
def test_several_filters_act_like_separate_requests(version: int) -> None:
    # [MQTT-3.10.4-6]
    h = Harness()
    c = h.client("c", version=version)
    for topic in ("a", "b", "c"):
        c.subscribe(topic)
    unsubscribe(c, "a", "c")
    pub = h.client("pub")
    for topic in ("a", "b", "c"):
        publish(pub, topic, topic.encode())
    assert payloads(c) == [b"b"]


@each_version
def test_another_clients_subscription_stays(version: int) -> None:
    # [MQTT-3.10.4-1]
    h = Harness()
    c, other = h.client("c", version=version), h.client("other", version=version)
    c.subscribe("t")
    other.subscribe("t")
    unsubscribe(c, "t")
    publish(h.client("pub"), "t", b"m")
    assert payloads(c) == []
    assert payloads(other) == [b"m"]


@each_version
def test_an_overlapping_subscription_stays(version: int) -> None:
    # [MQTT-3.10.4-1] [MQTT-3.3.4-2]
    h = Harness()
    c = h.client("c", version=version)
    c.subscribe("a/#", qos=1)
    c.subscribe("a/b", qos=2)
    unsubscribe(c, "a/b")
    publish(h.client("pub"), "a/b", qos=2)
    got = messages(c)
    assert [m.qos for m in got] == [1]


@each_version
def test_a_begun_qos_1_delivery_is_completed(version: int) -> None:
    # [MQTT-3.10.4-3]
    h = Harness()
    c = by_hand(h, "c", version)
    c.subscribe("t", qos=1)
    publish(h.client("pub"), "t", b"begun", qos=1)
    first = c.expect(Publish)
    unsubscribe(c, "t")
    c.drop()
    c = by_hand(h, "c", version)
    again = c.expect(Publish)
    assert (again.packet_id, again.dup, again.payload) == (first.packet_id, True, b"begun")
    c.send(Puback(again.packet_id))
    c.drop()
    persistent(h, "c", version).expect_nothing()


@each_version
def test_a_begun_qos_2_delivery_is_completed(version: int) -> None:
    # [MQTT-3.10.4-3]
    h = Harness()
    c = manual(h.client("c", version=version))
    c.subscribe("t", qos=2)
    publish(h.client("pub"), "t", b"begun", qos=2)
    first = c.expect(Publish)
    unsubscribe(c, "t")
    c.send(Pubrec(first.packet_id))
    assert c.expect(Pubrel).packet_id == first.packet_id
    c.send(Pubcomp(first.packet_id))
    c.expect_nothing()


@each_version
def test_unsubscribed_for_good_across_a_reconnect(version: int) -> None:
    # [MQTT-3.10.4-2]
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    unsubscribe(c, "t")
    c.drop()
    publish(h.client("pub"), "t", qos=1)
    assert messages(persistent(h, "c", version)) == []


@each_version
@pytest.mark.parametrize("first", [0xA0, 0xA1, 0xA3, 0xAF])
def test_reserved_header_flags_are_checked(version: int, first: int) -> None:
    # [MQTT-3.10.1-1] [MQTT-2.1.3-1]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_unsubscribe(version, b"\x00\x01t", first))
    refused(c, (spec.MALFORMED_PACKET,))


@each_version
def test_unsubscribe_without_a_filter_is_refused(version: int) -> None:
    # [MQTT-3.10.3-2]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_unsubscribe(version, b""))
    refused(c, MALFORMED)


@each_version
def test_packet_identifier_0_is_refused(version: int) -> None:
    # [MQTT-2.2.1-3]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_unsubscribe(version, b"\x00\x01t", packet_id=0))
    refused(c, MALFORMED)


@each_version
@pytest.mark.parametrize("topic_filter", [b"\xff", b"\xed\xa0\x80", b"a\x00"])
def test_filter_that_is_no_utf8_string_is_refused(version: int, topic_filter: bytes) -> None:
    # [MQTT-3.10.3-1]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_unsubscribe(version, len(topic_filter).to_bytes(2, "big") + topic_filter))
    refused(c, (*MALFORMED, spec.TOPIC_FILTER_INVALID))


def test_unsuback_fits_the_clients_packet_limit() -> None:
    # [MQTT-3.11.2-1] [MQTT-3.11.2-2]
    h = Harness()
    c = h.client("c", properties=props(maximum_packet_size=48))
    c.send(Unsubscribe(1, ["a/" + "x" * 300]))
    ack = c.expect(Unsuback)
    assert ack.reasons == [spec.NO_SUBSCRIPTION_EXISTED]
    assert size_of(ack) <= 48
