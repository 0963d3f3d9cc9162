"""PUBLISH (3.3): header flags, topic, properties, identifiers, the answer it gets.

Retained messages, topic aliases and expiry have files of their own
(test_retained, test_aliases, test_expiry); the QoS exchanges are chapter 4.3.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Puback, Publish, Pubrec
from mqttd.core.properties import decode_forwardable
from tests.harness import Harness
from tests.spec.kit import (
    MALFORMED,
    alive,
    each_qos,
    each_version,
    manual,
    messages,
    one,
    payloads,
    persistent,
    publish,
    raw_props,
    refused,
    send_publish,
)

FORWARDED = (
    bytes.fromhex("01 01")  # payload format indicator: text
    + b"\x26\x00\x01b\x00\x011"  # user property b=1
    + b"\x03\x00\x0atext/plain"  # content type
    + b"\x26\x00\x01a\x00\x012"  # user property a=2
    + b"\x08\x00\x05reply"  # response topic
    + b"\x26\x00\x01b\x00\x011"  # user property b=1, again
    + b"\x09\x00\x03\x00\xff\x00"  # correlation data
)


def raw_publish(variable: bytes, flags: int = 0) -> bytes:
    return bytes([0x30 | flags, len(variable)]) + variable


@each_version
def test_dup_of_the_incoming_packet_is_not_copied(version: int) -> None:
    # [MQTT-3.3.1-3] [MQTT-4.3.2-2]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    publish(h.client("pub", version=version), "t", qos=1, dup=True)
    assert one(sub).dup is False


@each_version
def test_qos_0_goes_out_with_dup_0_and_no_identifier(version: int) -> None:
    # [MQTT-3.3.1-2] [MQTT-2.2.1-2] [MQTT-4.3.1-1]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=0)
    publish(h.client("pub", version=version), "t", qos=2, dup=True)
    got = one(sub)
    assert (got.qos, got.dup, got.packet_id) == (0, False, 0)


@each_version
def test_dup_on_qos_0_is_refused(version: int) -> None:
    # [MQTT-3.3.1-2]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_publish(b"\x00\x01t" + (b"\x00" if version == 5 else b""), flags=0x08))
    refused(c, MALFORMED)


@each_version
def test_qos_3_is_malformed(version: int) -> None:
    # [MQTT-3.3.1-4]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_publish(b"\x00\x01t\x00\x01" + (b"\x00" if version == 5 else b""), flags=0x06))
    refused(c, (spec.MALFORMED_PACKET,))


@each_version
@pytest.mark.parametrize("flags", [0x02, 0x04])
def test_packet_identifier_0_is_refused(version: int, flags: int) -> None:
    # [MQTT-2.2.1-3]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw_publish(b"\x00\x01t\x00\x00" + (b"\x00" if version == 5 else b""), flags))
    refused(c, MALFORMED)


@each_version
@pytest.mark.parametrize("topic", ["#", "a/#", "+", "a/+/b", "a+", "a#b"])
def test_wildcard_in_a_topic_name_is_refused(version: int, topic: str) -> None:
    # [MQTT-3.3.2-2] [MQTT-4.7.0-1]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    c = h.client("c", version=version)
    send_publish(c, topic)
    refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))
    assert payloads(sub) == []


@each_version
@pytest.mark.parametrize("topic", [b"\xff", b"a\xed\xa0\x80", b"\xc0\x80", b"a\x00b"])
def test_topic_name_that_is_no_utf8_string_is_refused(version: int, topic: bytes) -> None:
    # [MQTT-3.3.2-1] [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-4.7.3-2]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    c = h.client("c", version=version)
    c.send_raw(
        raw_publish(len(topic).to_bytes(2, "big") + topic + (b"\x00" if version == 5 else b""))
    )
    refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))
    assert payloads(sub) == []


@each_version
def test_empty_topic_name_is_refused(version: int) -> None:
    # [MQTT-4.7.3-1]
    h = Harness()
    c = h.client("c", version=version)
    send_publish(c, "")
    refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))


@each_version
def test_delivered_topic_is_the_published_one(version: int) -> None:
    # [MQTT-3.3.2-3]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("a/+/#")
    publish(h.client("pub", version=version), "a/b/c/d")
    assert one(sub).topic == "a/b/c/d"


@each_version
def test_message_for_another_topic_does_not_arrive(version: int) -> None:
    # [MQTT-3.3.2-3]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("a/b")
    publish(h.client("pub", version=version), "a/c")
    assert payloads(sub) == []


@each_version
@pytest.mark.parametrize("payload", [b"", b"\x00", bytes(range(256)), b"\xff" * 200_000])
def test_payload_arrives_byte_for_byte(version: int, payload: bytes) -> None:
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    publish(h.client("pub", version=version), "t", payload, qos=1)
    assert one(sub).payload == payload


@each_qos
def test_properties_are_forwarded_unchanged_and_in_order(qos: int) -> None:
    # [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18]
    # [MQTT-3.3.2-20]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2)
    publish(h.client("pub"), "t", qos=qos, properties=FORWARDED)
    got = decode_forwardable(one(sub).properties)
    assert got.payload_format_indicator == 1
    assert got.content_type == "text/plain"
    assert got.response_topic == "reply"
    assert got.correlation_data == b"\x00\xff\x00"
    assert got.user_properties == [("b", "1"), ("a", "2"), ("b", "1")]


@pytest.mark.parametrize("indicator", [0, 1])
def test_payload_format_indicator_keeps_its_value(indicator: int) -> None:
    # [MQTT-3.3.2-4]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t")
    raw = raw_props(payload_format_indicator=indicator)
    publish(h.client("pub"), "t", properties=raw)
    assert decode_forwardable(one(sub).properties).payload_format_indicator == indicator


def test_empty_property_values_are_forwarded_as_present() -> None:
    # [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-20]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t")
    raw = raw_props(content_type="", correlation_data=b"", user_properties=[("", "")])
    publish(h.client("pub"), "t", properties=raw)
    got = decode_forwardable(one(sub).properties)
    assert got.content_type == ""
    assert got.correlation_data == b""
    assert got.user_properties == [("", "")]


def test_no_properties_means_none_are_added() -> None:
    # [MQTT-2.2.2-1]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t")
    publish(h.client("pub"), "t")
    got = one(sub)
    assert got.properties == b""
    assert (got.message_expiry, got.topic_alias, got.subscription_ids) == (-1, 0, [])


@pytest.mark.parametrize("version", [3, 4])
def test_older_subscriber_gets_the_message_without_properties(version: int) -> None:
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=1)
    publish(h.client("pub"), "t", b"payload", qos=1, properties=FORWARDED, expiry=100)
    assert one(sub).payload == b"payload"


@pytest.mark.parametrize("version", [3, 4])
def test_older_publisher_reaches_an_mqtt_5_subscriber(version: int) -> None:
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t", qos=2, identifier=9)
    publish(h.client("pub", version=version), "t", b"payload", qos=2)
    got = one(sub)
    assert (got.payload, got.qos, got.properties) == (b"payload", 2, b"")
    assert got.subscription_ids == [9]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x01\x02", id="payload format 2"),
        pytest.param(b"\x01\x00\x01\x00", id="payload format twice"),
        pytest.param(b"\x02\x00\x00\x00\x01" * 2, id="expiry twice"),
        pytest.param(b"\x03\x00\x01a" * 2, id="content type twice"),
        pytest.param(b"\x08\x00\x01a" * 2, id="response topic twice"),
        pytest.param(b"\x09\x00\x01a" * 2, id="correlation data twice"),
        pytest.param(b"\x23\x00\x01" * 2, id="topic alias twice"),
        pytest.param(b"\x03\x00\x01\xff", id="content type is not UTF-8"),  # [MQTT-3.3.2-19]
        pytest.param(b"\x08\x00\x01\xff", id="response topic is not UTF-8"),  # [MQTT-3.3.2-13]
        pytest.param(b"\x26\x00\x01\xff\x00\x01a", id="user property name"),  # [MQTT-1.5.7-1]
        pytest.param(b"\x26\x00\x01a\x00\x01\x00", id="user property value"),  # [MQTT-1.5.7-1]
        pytest.param(b"\x11\x00\x00\x00\x01", id="session expiry"),
        pytest.param(b"\x18\x00\x00\x00\x01", id="will delay"),
        pytest.param(b"\x1f\x00\x01a", id="reason string"),
        pytest.param(b"\x7f\x00", id="unknown property"),
        pytest.param(b"\x09\x00\x05a", id="correlation data cut short"),
    ],
)
def test_bad_property_is_refused_at_the_publisher(raw: bytes) -> None:
    # [MQTT-3.3.2-13] [MQTT-3.3.2-19] [MQTT-1.5.7-1]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("#")
    c = h.client("c")
    c.send_raw(raw_publish(b"\x00\x01t" + bytes([len(raw)]) + raw + b"x"))
    refused(c, (*MALFORMED, spec.PAYLOAD_FORMAT_INVALID))
    assert payloads(sub) == []
    assert alive(sub)


@pytest.mark.parametrize("topic", [b"#", b"a/+", b"+/b"])
def test_response_topic_with_a_wildcard_is_refused(topic: bytes) -> None:
    # [MQTT-3.3.2-14]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("#")
    c = h.client("c")
    raw = b"\x08" + len(topic).to_bytes(2, "big") + topic
    c.send_raw(raw_publish(b"\x00\x01t" + bytes([len(raw)]) + raw))
    refused(c, (*MALFORMED, spec.TOPIC_NAME_INVALID))
    assert payloads(sub) == []


def test_subscription_identifier_from_a_client_is_a_protocol_error() -> None:
    # [MQTT-3.3.4-6]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("#")
    c = h.client("c")
    c.send_raw(raw_publish(b"\x00\x01t\x02\x0b\x01"))
    refused(c, MALFORMED)
    assert payloads(sub) == []


@each_version
def test_the_answer_follows_the_qos(version: int) -> None:
    # [MQTT-3.3.4-1] [MQTT-2.2.1-5]
    h = Harness()
    c = manual(h.client("c", version=version))
    send_publish(c, "t", qos=0)
    c.expect_nothing()
    send_publish(c, "t", qos=1, packet_id=77)
    assert c.expect(Puback).packet_id == 77
    send_publish(c, "t", qos=2, packet_id=78)
    assert c.expect(Pubrec).packet_id == 78


@pytest.mark.parametrize("qos", [1, 2])
def test_accepted_message_without_subscribers_is_no_failure(qos: int) -> None:
    # [MQTT-3.4.2-1] [MQTT-3.5.2-1]
    h = Harness()
    reason = publish(h.client("c"), "nobody", qos=qos)
    assert reason in (spec.SUCCESS, spec.NO_MATCHING_SUBSCRIBERS)


@pytest.mark.parametrize("qos", [1, 2])
def test_message_with_a_subscriber_is_answered_with_success(qos: int) -> None:
    # [MQTT-3.4.2-1] [MQTT-3.5.2-1]
    h = Harness()
    h.client("sub").subscribe("t")
    assert publish(h.client("c"), "t", qos=qos) == spec.SUCCESS


@each_version
def test_overlapping_subscriptions_get_one_copy_at_the_highest_qos(version: int) -> None:
    # [MQTT-3.3.4-2]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("a/#", qos=0)
    sub.subscribe("a/+", qos=2)
    sub.subscribe("a/b", qos=1)
    publish(h.client("pub", version=version), "a/b", qos=2)
    assert one(sub).qos == 2


def test_the_copy_carries_the_identifiers_of_all_matches() -> None:
    # [MQTT-3.3.4-3] [MQTT-3.3.4-4]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("a/#", identifier=1)
    sub.subscribe("a/+", identifier=268_435_455)
    sub.subscribe("a/c", identifier=3)
    sub.subscribe("a/b")
    publish(h.client("pub"), "a/b")
    assert sorted(one(sub).subscription_ids) == [1, 268_435_455]


def test_an_identifier_used_twice_is_carried_twice() -> None:
    # [MQTT-3.3.4-4]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("a/#", identifier=7)
    sub.subscribe("a/b", identifier=7)
    publish(h.client("pub"), "a/b")
    assert one(sub).subscription_ids == [7, 7]


def test_identifiers_are_each_subscribers_own() -> None:
    # [MQTT-3.3.4-3]
    h = Harness()
    first, second, third = h.client("1"), h.client("2"), h.client("3")
    first.subscribe("t", qos=1, identifier=1)
    second.subscribe("t", qos=1, identifier=2)
    third.subscribe("t", qos=1)
    publish(h.client("pub"), "t", qos=1)
    assert [one(c).subscription_ids for c in (first, second, third)] == [[1], [2], []]


def test_identifier_survives_the_queue_of_an_absent_client() -> None:
    # [MQTT-3.3.4-3]
    h = Harness()
    sub = persistent(h, "sub")
    sub.subscribe("t", qos=1, identifier=5)
    sub.drop()
    publish(h.client("pub"), "t", qos=1)
    assert one(persistent(h, "sub")).subscription_ids == [5]


@each_version
def test_publishes_glued_together_arrive_one_by_one(version: int) -> None:
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    body = b"\x00\x01t" + (b"\x00" if version == 5 else b"")
    h.client("pub", version=version).send_raw(
        b"".join(raw_publish(body + bytes([n])) for n in range(5))
    )
    assert payloads(sub) == [bytes([n]) for n in range(5)]


@each_version
def test_publish_split_at_every_byte_arrives_once(version: int) -> None:
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    pub = h.client("pub", version=version)
    for byte in raw_publish(b"\x00\x01t" + (b"\x00" if version == 5 else b"") + b"payload"):
        pub.send_raw(bytes([byte]))
    assert payloads(sub) == [b"payload"]


def test_remaining_length_may_not_be_padded() -> None:
    # [MQTT-1.5.5-1]
    h = Harness()
    c = h.client("c")
    c.send_raw(b"\x30\x84\x00\x00\x01t\x00")
    refused(c, MALFORMED)


@each_version
def test_fan_out_gives_each_subscriber_its_own_options(version: int) -> None:
    # [MQTT-3.8.4-8]
    h = Harness()
    subs = [h.client(f"s{n}", version=version) for n in range(3)]
    for qos, sub in enumerate(subs):
        sub.subscribe("t", qos=qos)
    publish(h.client("pub", version=version), "t", b"p", qos=2)
    got: list[Publish] = [m for sub in subs for m in messages(sub)]
    assert [(m.qos, m.payload) for m in got] == [(0, b"p"), (1, b"p"), (2, b"p")]
