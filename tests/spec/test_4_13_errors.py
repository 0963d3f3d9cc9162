"""Handling errors (4.13): every fault has its code, costs its own connection and no other.

Filters that break the rules of chapter 4.7 are not here: SUBACK may refuse them one
by one. One table of faults, tried on every version: MQTT 5 is told the code in a
DISCONNECT, the older versions are cut off without a word.
"""

from collections.abc import Callable

import pytest

from mqttd.core import spec
from mqttd.core.packets import Disconnect, Puback, Publish
from tests.harness import Harness
from tests.spec import raw
from tests.spec.kit import (
    alive,
    each_version,
    manual,
    messages,
    one,
    persistent,
    props,
    refused,
    send_publish,
    settings,
)

M = spec.MALFORMED_PACKET
P = spec.PROTOCOL_ERROR


def sub(version: int, topic_filter: bytes, options: int = 0, props: bytes = b"") -> bytes:
    block = raw.block(version, props)
    return raw.frame(0x82, b"\x00\x01" + block + raw.text(topic_filter) + bytes([options]))


# name: (packet for a version, codes that the standard allows)
EVERYWHERE: dict[str, tuple[Callable[[int], bytes], tuple[int, ...]]] = {
    "reserved type": (lambda v: b"\x00\x00", (M,)),
    "topic with +": (lambda v: raw.publish(v, b"a/+"), (spec.TOPIC_NAME_INVALID,)),
    "topic with #": (lambda v: raw.publish(v, b"#"), (spec.TOPIC_NAME_INVALID,)),
    "empty topic": (lambda v: raw.publish(v, b""), (M, P, spec.TOPIC_NAME_INVALID)),
    "publish without topic": (lambda v: raw.frame(0x30), (M,)),
    "publish QoS 1 without id": (lambda v: raw.frame(0x32, b"\x00\x01t"), (M,)),
    "subscribe to nothing": (lambda v: raw.frame(0x82, b"\x00\x01" + raw.block(v)), (M, P)),
    "unsubscribe from nothing": (lambda v: raw.frame(0xA2, b"\x00\x01" + raw.block(v)), (M, P)),
    "subscribe QoS 3": (lambda v: sub(v, b"t", 3), (M, P)),
    "reserved option bits": (lambda v: sub(v, b"t", 0xC0), (M,)),
    "second connect": (lambda v: raw.connect(b"c", v), (P,)),
    "answer of a server": (lambda v: raw.PINGRESP, (P,)),
    "ping with a body": (lambda v: b"\xc0\x01\x00", (M,)),
    "remaining length of 5 bytes": (lambda v: b"\xc0\x80\x80\x80\x80\x00", (M,)),
    "too large": (lambda v: b"\x30" + raw.varint(9_000), (spec.PACKET_TOO_LARGE,)),
}
MQTT_5_ONLY = {
    "alias 0": (raw.publish(5, b"t", props=b"\x23\x00\x00"), (spec.TOPIC_ALIAS_INVALID,)),
    "alias above the maximum": (
        raw.publish(5, b"t", props=b"\x23\x00\x41"),
        (spec.TOPIC_ALIAS_INVALID,),
    ),
    "alias never defined": (
        raw.publish(5, b"", props=b"\x23\x00\x01"),
        (P, spec.TOPIC_ALIAS_INVALID),
    ),
    "response topic with a wildcard": (
        raw.publish(5, b"t", props=b"\x08\x00\x01#"),
        (M, P, spec.TOPIC_NAME_INVALID),
    ),
    "subscription identifier in publish": (raw.publish(5, b"t", props=b"\x0b\x01"), (P,)),
    "retain handling 3": (sub(5, b"t", 0x30), (M, P)),
    "no local on a shared subscription": (sub(5, b"$share/g/t", 0x04), (P,)),
    "unsolicited auth": (b"\xf0\x00", (P,)),
    "puback with a code of its own": (b"\x40\x03\x00\x01\x05", (M, P)),
}
everywhere = pytest.mark.parametrize("name", list(EVERYWHERE))


@everywhere
@each_version
def test_fault_closes_with_its_code(version: int, name: str) -> None:
    # [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT-3.14.4-2]
    packet, codes = EVERYWHERE[name]
    c = Harness(settings(max_packet_size=8_000)).client("c", version=version)
    c.send_raw(packet(version))
    refused(c, codes)


@pytest.mark.parametrize("name", list(MQTT_5_ONLY))
def test_fault_of_mqtt_5_closes_with_its_code(name: str) -> None:
    # [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT-3.3.2-8] [MQTT-3.3.2-14] [MQTT-3.8.3-4]
    packet, codes = MQTT_5_ONLY[name]
    c = Harness().client("c")
    c.send_raw(packet)
    refused(c, codes)


@everywhere
@each_version
def test_fault_costs_no_other_connection(version: int, name: str) -> None:
    # [MQTT-4.13.1-1]
    h = Harness(settings(max_packet_size=8_000))
    other = h.client("other", version=version)
    other.subscribe("#")
    c = h.client("bad", version=version)
    c.send_raw(EVERYWHERE[name][0](version))
    h.client("pub").publish("t", b"still")
    assert one(other).payload == b"still"
    assert alive(other)


@everywhere
@each_version
def test_nothing_after_a_fault_is_acted_on(version: int, name: str) -> None:
    # [MQTT-4.13.1-1] [MQTT-3.14.4-1]
    h = Harness(settings(max_packet_size=8_000))
    other = h.client("other")
    other.subscribe("#")
    c = h.client("bad", version=version)
    c.send_raw(EVERYWHERE[name][0](version) + raw.publish(version, b"t") + raw.PINGREQ)
    c.send_raw(raw.publish(version, b"t"))
    assert all(isinstance(p, Disconnect) for p in c.recv())
    assert messages(other) == []


@everywhere
@each_version
def test_everything_before_a_fault_is_acted_on(version: int, name: str) -> None:
    # [MQTT-4.13.1-1]: one packet is at fault, not its predecessor
    h = Harness(settings(max_packet_size=8_000))
    other = h.client("other")
    other.subscribe("t")
    c = h.client("bad", version=version)
    c.send_raw(raw.publish(version, b"t", b"good") + EVERYWHERE[name][0](version))
    assert one(other).payload == b"good"
    assert c.closed


@each_version
def test_session_survives_a_fault(version: int) -> None:
    # [MQTT-4.13.1-1] [MQTT-3.1.2-23]: the connection ends, not the session
    h = Harness()
    c = persistent(h, "c", version)
    c.subscribe("t", qos=1)
    c.send_raw(b"\x00\x00")
    assert c.closed
    h.client("pub").publish("t", b"kept", qos=1)
    assert one(persistent(h, "c", version)).payload == b"kept"


@each_version
def test_answers_owed_are_sent_before_the_goodbye(version: int) -> None:
    # [MQTT-3.14.4-1]: in the order of the stream
    c = manual(Harness().client("c", version=version))
    c.send_raw(raw.frame(0x32, b"\x00\x01t\x00\x07" + raw.block(version)) + b"\x00\x00")
    got = c.recv()
    assert [type(p).__name__ for p in got] == ["Puback"] + ["Disconnect"] * (version == 5)


def test_client_that_overruns_the_receive_maximum_is_told() -> None:
    # [MQTT-4.13.1-1] [MQTT-3.3.4-7]: 0x93
    h = Harness(settings(receive_maximum=2))
    c = manual(h.client("c"))
    for packet_id in (1, 2):
        send_publish(c, "t", qos=2, packet_id=packet_id)
    c.recv()
    send_publish(c, "t", qos=2, packet_id=3)
    refused(c, (spec.RECEIVE_MAXIMUM_EXCEEDED,))


def test_client_within_the_receive_maximum_is_not_told() -> None:
    # [MQTT-3.3.4-8] [MQTT-4.9.0-3]: QoS 0 is free, and an acknowledged QoS 1 is done
    h = Harness(settings(receive_maximum=1))
    c = manual(h.client("c"))
    for packet_id in range(1, 20):
        c.send(Publish("t", b"x", 1, packet_id=packet_id))
        c.expect(Puback)
        c.send(Publish("t", b"x"))
    send_publish(c, "t", qos=2, packet_id=1)
    c.recv()
    c.send(Publish("t", b"x"))
    assert alive(c)


def test_error_that_only_concerns_one_packet_keeps_the_connection() -> None:
    # 4.13.2: a code in an acknowledgement does not close
    h = Harness(settings(max_subscriptions=1))
    c = h.client("c")
    c.subscribe("a")
    assert c.subscribe("b").reasons == [spec.QUOTA_EXCEEDED]
    assert alive(c)


def test_problem_information_is_left_out_when_not_wanted() -> None:
    # [MQTT-3.1.2-29]: DISCONNECT may carry it, a client that asked for none gets none
    c = Harness().client("c", properties=props(request_problem_information=0))
    c.send_raw(raw.PINGRESP)
    properties = c.expect(Disconnect).properties
    assert properties is None or not properties.reason_string
