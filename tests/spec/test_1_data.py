"""Data representation (1.5): integers, strings, variable byte integers, binary data, string pairs.

Each rule is tried in every place where a client may put such a value, on bytes
that this package builds itself.
"""

import pytest

from mqttd.core import spec
from mqttd.core.packets import Connack, Pingresp, Suback
from mqttd.core.properties import decode_forwardable
from tests.harness import Harness
from tests.spec import raw
from tests.spec.kit import (
    MALFORMED,
    alive,
    each_version,
    messages,
    one,
    refused,
    settings,
)

BAD_STRINGS = {
    "low surrogate": b"a\xed\xb0\x80",
    "high surrogate": b"a\xed\xa0\x80",
    "surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "overlong slash": b"a\xc0\xafb",
    "overlong nul": b"\xc0\x80",
    "lone continuation": b"\x80",
    "cut short": b"a\xe2\x82",
    "above 10FFFF": b"\xf4\x90\x80\x80",
    "never a start": b"\xff",
    "NUL": b"a\x00b",
}
GOOD_STRINGS = {
    "two bytes": "ü",
    "three bytes": "€",
    "four bytes": "😀",
    "example of the standard": "A\U0002a6d4",
    "last before the surrogates": "\ud7ff",
    "first after the surrogates": "\ue000",
    "highest": "\U0010ffff",
}
bad_strings = pytest.mark.parametrize(
    "value", list(BAD_STRINGS.values()), ids=list(BAD_STRINGS.keys())
)
good_strings = pytest.mark.parametrize(
    "value", list(GOOD_STRINGS.values()), ids=list(GOOD_STRINGS.keys())
)


# --- strings ---


@bad_strings
@each_version
def test_bad_string_as_client_id_is_refused(version: int, value: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.1.3-4]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(value, version))
    raw.connect_malformed(c)


@bad_strings
@each_version
def test_bad_string_as_user_name_is_refused(version: int, value: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.1.3-12]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.USERNAME, tail=raw.text(value)))
    raw.connect_malformed(c)


@bad_strings
@each_version
def test_bad_string_as_will_topic_is_refused(version: int, value: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.1.3-11]
    c = Harness().open(version=version)
    c.send_raw(raw.connect(b"c", version, raw.CLEAN | raw.WILL, tail=raw.will(version, value)))
    raw.connect_malformed(c)


@bad_strings
@each_version
def test_bad_string_as_topic_is_refused_at_the_publisher(version: int, value: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.3.2-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3]
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    c = h.client("c", version=version)
    c.send_raw(raw.publish(version, value))
    refused(c, MALFORMED)
    assert messages(sub) == []
    assert alive(sub)


@bad_strings
@each_version
def test_bad_string_as_filter_is_refused(version: int, value: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.8.3-1] [MQTT-3.10.3-1]
    h = Harness()
    c = h.client("c", version=version)
    c.send_raw(raw.subscribe(version, value))
    refused(c, MALFORMED)
    d = h.client("d", version=version)
    d.send_raw(raw.unsubscribe(version, value))
    refused(d, MALFORMED)


@bad_strings
@pytest.mark.parametrize("half", ["name", "value"])
def test_both_halves_of_a_user_property_obey_the_string_rules(half: str, value: bytes) -> None:
    # [MQTT-1.5.7-1] [MQTT-1.5.4-1] [MQTT-1.5.4-2]
    good = raw.text(b"k")
    pair = raw.text(value) + good if half == "name" else good + raw.text(value)
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("#")
    c = h.client("c")
    c.send_raw(raw.publish(5, b"t", props=b"\x26" + pair))
    refused(c, MALFORMED)
    assert messages(sub) == []


@bad_strings
@pytest.mark.parametrize("identifier", [0x03, 0x08], ids=["content type", "response topic"])
def test_bad_string_in_a_forwarded_property_is_refused(identifier: int, value: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.3.2-13] [MQTT-3.3.2-19]
    c = Harness().client("c")
    c.send_raw(raw.publish(5, b"t", props=bytes([identifier]) + raw.text(value)))
    refused(c, MALFORMED)


@good_strings
@each_version
def test_every_other_code_point_travels_unchanged(version: int, value: str) -> None:
    # [MQTT-1.5.4-1] [MQTT-4.7.3-4]
    h = Harness()
    sub = h.client(value, version=version)
    sub.subscribe(value)
    pub = h.client("pub", version=version)
    pub.send_raw(raw.publish(version, value.encode()))
    assert one(sub).topic == value


@each_version
def test_byte_order_mark_is_a_character_like_any_other(version: int) -> None:
    # [MQTT-1.5.4-3] [MQTT-4.7.3-4]
    h = Harness()
    marked = h.client("marked", version=version)
    marked.subscribe("\ufefft")
    plain = h.client("plain", version=version)
    plain.subscribe("t")
    pub = h.client("pub", version=version)
    pub.send_raw(raw.publish(version, b"\xef\xbb\xbft"))
    assert one(marked).topic == "\ufefft"
    assert messages(plain) == []


@each_version
def test_byte_order_mark_makes_another_client_id(version: int) -> None:
    # [MQTT-1.5.4-3] [MQTT-3.1.3-2]
    h = Harness()
    first = h.client("c", version=version)
    h.client("\ufeffc", version=version)
    assert alive(first)


@each_version
def test_topic_may_be_as_long_as_a_string_can_be(version: int) -> None:
    # [MQTT-4.7.3-3] and 1.5.4: at most 65,535 bytes
    h = Harness()
    topic = "t" * 65_535
    sub = h.client("sub", version=version)
    sub.subscribe("#")
    h.client("pub", version=version).send_raw(raw.publish(version, topic.encode()))
    assert one(sub).topic == topic


@each_version
def test_string_longer_than_its_packet_is_malformed(version: int) -> None:
    # [MQTT-4.13.1-1]
    c = Harness().client("c", version=version)
    c.send_raw(raw.frame(0x30, b"\x00\x05abcd"))
    refused(c, MALFORMED)


# --- variable byte integers ---


@pytest.mark.parametrize("remaining", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
@each_version
def test_remaining_length_at_the_edges_of_its_encoding(version: int, remaining: int) -> None:
    # 1.5.5, 2.1.4: the lengths where one more byte is needed
    h = Harness(settings(max_packet_size=4_000_000))
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    overhead = 3 + (version == spec.MQTT5)
    payload = b"p" * (remaining - overhead)
    h.client("pub", version=version).send_raw(raw.publish(version, b"t", payload))
    assert one(sub).payload == payload


PADDED = {
    "one byte too many": b"\x80\x00",
    "two": b"\x80\x80\x00",
    "three": b"\x80\x80\x80\x00",
}
TOO_LONG = {
    "five bytes": b"\x80\x80\x80\x80\x01",
    "five bytes, all set": b"\xff\xff\xff\xff\x7f",
    "endless": b"\xff" * 8,
}
bad_varints = pytest.mark.parametrize(
    "value", list((PADDED | TOO_LONG).values()), ids=list(PADDED | TOO_LONG)
)


@bad_varints
@each_version
def test_bad_remaining_length_closes(version: int, value: bytes) -> None:
    # [MQTT-1.5.5-1]
    c = Harness().client("c", version=version)
    c.send_raw(b"\xc0" + value)
    refused(c, (spec.MALFORMED_PACKET,))


@bad_varints
def test_bad_remaining_length_of_the_first_packet_closes(value: bytes) -> None:
    # [MQTT-1.5.5-1] [MQTT-3.14.0-1]
    c = Harness().open()
    assert raw.only_connack(raw.talk(c, b"\x10" + value), 5, spec.MALFORMED_PACKET)
    assert c.connection.closing


@bad_varints
def test_bad_property_length_of_connect_is_refused(value: bytes) -> None:
    # [MQTT-1.5.5-1]; a fifth length byte is never read
    c = Harness().open(version=5)
    c.send_raw(raw.frame(0x10, b"\x00\x04MQTT\x05\x02\x00\x00" + value + b"\x00\x01c" + bytes(8)))
    raw.connect_refused(c, (spec.MALFORMED_PACKET,))


@bad_varints
def test_bad_property_length_of_publish_is_refused(value: bytes) -> None:
    # [MQTT-1.5.5-1]
    c = Harness().client("c")
    c.send_raw(raw.frame(0x30, b"\x00\x01t" + value + bytes(8)))
    refused(c, (spec.MALFORMED_PACKET,))


@bad_varints
def test_bad_subscription_identifier_is_refused(value: bytes) -> None:
    # [MQTT-1.5.5-1]
    c = Harness().client("c")
    block = b"\x0b" + value
    c.send_raw(raw.frame(0x82, b"\x00\x01" + raw.varint(len(block)) + block + b"\x00\x01t\x00"))
    refused(c, (spec.MALFORMED_PACKET,))


@pytest.mark.parametrize("identifier", [1, 127, 128, 16_383, 16_384, 2_097_152, 268_435_455])
def test_subscription_identifier_at_the_edges_of_its_encoding(identifier: int) -> None:
    # 1.5.5: 268,435,455 is the largest variable byte integer
    h = Harness()
    c = h.client("c")
    block = b"\x0b" + raw.varint(identifier)
    c.send_raw(raw.frame(0x82, b"\x00\x01" + raw.varint(len(block)) + block + b"\x00\x01t\x00"))
    c.expect(Suback)
    h.client("pub").publish("t", b"x")
    assert one(c).subscription_ids == [identifier]


# --- binary data, two byte integers ---


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535])
def test_binary_data_of_any_length_and_content_travels(size: int) -> None:
    # 1.5.6; [MQTT-3.3.2-16]
    h = Harness()
    sub = h.client("sub")
    sub.subscribe("t")
    data = bytes(i & 0xFF for i in range(size))
    h.client("pub").send_raw(raw.publish(5, b"t", props=b"\x09" + raw.text(data)))
    assert decode_forwardable(one(sub).properties).correlation_data == data


@each_version
def test_two_byte_integers_are_big_endian(version: int) -> None:
    # 1.5.2
    c = Harness().client("c", version=version)
    c.send_raw(raw.subscribe(version, b"t", packet_id=0x0102))
    assert c.expect(Suback).packet_id == 258


# --- the stream ---


@each_version
def test_packets_may_arrive_byte_by_byte(version: int) -> None:
    # 4.2: a stream has no packet boundaries
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t")
    c = h.open(version=version)
    for byte in raw.connect(b"c", version) + raw.publish(version, b"t", b"hello") + raw.PINGREQ:
        c.send_raw(bytes([byte]))
    assert c.expect(Connack).reason == 0
    c.expect(Pingresp)
    assert one(sub).payload == b"hello"


@each_version
def test_packets_may_arrive_glued_together(version: int) -> None:
    # [MQTT-3.1.4-5]: a client need not wait for its CONNACK
    h = Harness()
    c = h.open(version=version)
    c.send_raw(
        raw.connect(b"c", version)
        + raw.subscribe(version, b"t")
        + raw.publish(version, b"t", b"hello")
        + raw.PINGREQ
    )
    got = c.recv()
    assert isinstance(got[0], Connack)  # [MQTT-3.2.0-1]
    assert sorted(type(p).__name__ for p in got) == ["Connack", "Pingresp", "Publish", "Suback"]
