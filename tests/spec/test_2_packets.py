"""The parts that all packets share (chapter 2): fixed header, packet identifiers, properties.

The table of properties below is typed from the standard (2.2.2.2), independently
of the broker's own: each property is tried in each packet that a client may send.
"""

from collections.abc import Callable

import pytest

from mqttd.core import spec
from mqttd.core.encode import encode_packet
from mqttd.core.packets import (
    Connack,
    Connect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Unsuback,
)
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import (
    MALFORMED,
    alive,
    each_version,
    manual,
    messages,
    publish,
    refused,
    send_publish,
)

# --- fixed header ---

WRONG_FLAGS = {
    "PUBACK": b"\x41\x02\x00\x01",
    "PUBREC": b"\x52\x02\x00\x01",
    "PUBREL 0000": b"\x60\x02\x00\x01",
    "PUBREL 0011": b"\x63\x02\x00\x01",
    "PUBCOMP": b"\x72\x02\x00\x01",
    "SUBSCRIBE 0000": b"\x80" + raw.subscribe(5, b"t")[1:],
    "SUBSCRIBE 1010": b"\x8a" + raw.subscribe(5, b"t")[1:],
    "UNSUBSCRIBE 0000": b"\xa0" + raw.unsubscribe(5, b"t")[1:],
    "UNSUBSCRIBE 0110": b"\xa6" + raw.unsubscribe(5, b"t")[1:],
    "PINGREQ": b"\xc2\x00",
    "DISCONNECT": b"\xe1\x00",
    "AUTH": b"\xf8\x00",
    "PUBLISH with QoS 3": b"\x36\x06\x00\x01t\x00\x01\x00",
}


@pytest.mark.parametrize("packet", list(WRONG_FLAGS.values()), ids=list(WRONG_FLAGS))
@each_version
def test_reserved_flags_are_checked(version: int, packet: bytes) -> None:
    # [MQTT-2.1.3-1] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] [MQTT-3.15.1-1]
    c = Harness().client("c", version=version)
    c.send_raw(packet)
    refused(c, (spec.MALFORMED_PACKET,))


@pytest.mark.parametrize("flags", [0x1, 0x2, 0x8, 0xF])
@each_version
def test_reserved_flags_of_connect_are_checked(version: int, flags: int) -> None:
    # [MQTT-2.1.3-1] [MQTT-3.1.4-1]
    c = Harness().open(version=version)
    packet = raw.connect(b"c", version)
    answer = raw.talk(c, bytes([packet[0] | flags]) + packet[1:])
    assert raw.only_connack(answer, version, spec.MALFORMED_PACKET)
    assert c.connection.closing


@each_version
def test_packet_type_0_is_malformed(version: int) -> None:
    # [MQTT-4.13.1-1]; 2.1.2: reserved
    c = Harness().client("c", version=version)
    c.send_raw(b"\x00\x00")
    refused(c, (spec.MALFORMED_PACKET,))


FROM_SERVERS_ONLY = {
    "CONNACK": (b"\x20\x03\x00\x00\x00", b"\x20\x02\x00\x00"),
    "SUBACK": (b"\x90\x04\x00\x01\x00\x00", b"\x90\x03\x00\x01\x00"),
    "UNSUBACK": (b"\xb0\x04\x00\x01\x00\x00", b"\xb0\x02\x00\x01"),
    "PINGRESP": (b"\xd0\x00", b"\xd0\x00"),
}


@pytest.mark.parametrize("name", list(FROM_SERVERS_ONLY))
@each_version
def test_packet_that_only_servers_send_is_a_protocol_error(version: int, name: str) -> None:
    # [MQTT-4.13.1-1]; 2.1.2: direction of flow
    c = Harness().client("c", version=version)
    c.send_raw(FROM_SERVERS_ONLY[name][version != spec.MQTT5])
    refused(c, (spec.PROTOCOL_ERROR,))


@pytest.mark.parametrize("version", [spec.MQTT31, spec.MQTT311])
def test_auth_does_not_exist_before_mqtt_5(version: int) -> None:
    # MQTT 3.1.1, 2.2.1: type 15 is forbidden
    c = Harness().client("c", version=version)
    c.send_raw(b"\xf0\x00")
    refused(c, ())


# --- packet identifiers ---

ID_0 = {
    "PUBLISH QoS 1": raw.frame(0x32, b"\x00\x01t\x00\x00\x00"),
    "PUBLISH QoS 2": raw.frame(0x34, b"\x00\x01t\x00\x00\x00"),
    "SUBSCRIBE": raw.subscribe(5, b"t", packet_id=0),
    "UNSUBSCRIBE": raw.unsubscribe(5, b"t", packet_id=0),
}


@pytest.mark.parametrize("packet", list(ID_0.values()), ids=list(ID_0))
def test_packet_identifier_0_is_refused(packet: bytes) -> None:
    # [MQTT-2.2.1-3]
    c = Harness().client("c")
    c.send_raw(packet)
    refused(c, MALFORMED)


@pytest.mark.parametrize("version", [spec.MQTT31, spec.MQTT311])
def test_packet_identifier_0_is_refused_in_mqtt_3(version: int) -> None:
    # MQTT 3.1.1, 2.3.1-1
    for packet in (
        raw.frame(0x32, b"\x00\x01t\x00\x00"),
        raw.subscribe(version, b"t", packet_id=0),
        raw.unsubscribe(version, b"t", packet_id=0),
    ):
        c = Harness().client("c", version=version)
        c.send_raw(packet)
        refused(c, ())


@each_version
def test_qos_0_publish_has_no_packet_identifier(version: int) -> None:
    # [MQTT-2.2.1-2]: what follows the topic is payload (after the properties)
    h = Harness()
    sub = h.client("sub", version=version)
    sub.subscribe("t", qos=2)
    h.client("pub", version=version).send_raw(raw.publish(version, b"t", b"\x00\x01"))
    (got,) = messages(sub)
    assert got.packet_id == 0
    assert got.payload == b"\x00\x01"


@each_version
def test_identifiers_of_the_server_are_nonzero_and_unused(version: int) -> None:
    # [MQTT-2.2.1-4]
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=2)
    pub = h.client("pub", version=version)
    for i in range(1, 51):
        publish(pub, "t", qos=1 + i % 2, packet_id=i)
    got = messages(sub)
    ids = [p.packet_id for p in got]
    assert len(set(ids)) == len(ids) == 50
    assert 0 not in ids
    for p in got[::2]:
        sub.send(Puback(p.packet_id) if p.qos == 1 else Pubrec(p.packet_id))
    sub.recv()
    held = {p.packet_id for p in got[1::2]}
    for i in range(1, 26):
        publish(pub, "t", qos=1, packet_id=i)
    later = [p.packet_id for p in messages(sub)]
    assert len(set(later)) == 25
    assert held.isdisjoint(later)


@each_version
def test_both_directions_have_their_own_identifiers(version: int) -> None:
    # 2.2.1: client and server assign packet identifiers independently
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=1)
    publish(h.client("pub", version=version), "t", qos=1)
    (theirs,) = messages(sub)
    send_publish(sub, "u", qos=1, packet_id=theirs.packet_id)
    assert sub.expect(Puback).packet_id == theirs.packet_id
    sub.send(Puback(theirs.packet_id))
    assert alive(sub)


@pytest.mark.parametrize("packet_id", [1, 255, 256, 65_535])
@each_version
def test_answers_repeat_the_identifier(version: int, packet_id: int) -> None:
    # [MQTT-2.2.1-5] [MQTT-2.2.1-6]
    c = manual(Harness().client("c", version=version))
    send_publish(c, "t", qos=1, packet_id=packet_id)
    assert c.expect(Puback).packet_id == packet_id
    send_publish(c, "t", qos=2, packet_id=packet_id)
    assert c.expect(Pubrec).packet_id == packet_id
    c.send(Pubrel(packet_id))
    assert c.expect(Pubcomp).packet_id == packet_id
    c.send_raw(raw.subscribe(version, b"t", packet_id))
    assert c.expect(Suback).packet_id == packet_id
    c.send_raw(raw.unsubscribe(version, b"t", packet_id))
    assert c.expect(Unsuback).packet_id == packet_id


@each_version
def test_pubrel_of_the_server_repeats_the_identifier(version: int) -> None:
    # [MQTT-2.2.1-5]
    h = Harness()
    sub = manual(h.client("sub", version=version))
    sub.subscribe("t", qos=2)
    publish(h.client("pub", version=version), "t", qos=2)
    (got,) = messages(sub)
    sub.send(Pubrec(got.packet_id))
    assert sub.expect(Pubrel).packet_id == got.packet_id


# --- which packet may carry which property ---

PROPERTIES: dict[str, tuple[bytes, set[str]]] = {
    "payload format indicator": (b"\x01\x01", {"PUBLISH", "will"}),
    "message expiry interval": (b"\x02\x00\x00\x00\x09", {"PUBLISH", "will"}),
    "content type": (b"\x03\x00\x01c", {"PUBLISH", "will"}),
    "response topic": (b"\x08\x00\x01r", {"PUBLISH", "will"}),
    "correlation data": (b"\x09\x00\x01d", {"PUBLISH", "will"}),
    "subscription identifier": (b"\x0b\x01", {"SUBSCRIBE"}),
    "session expiry interval": (b"\x11\x00\x00\x00\x09", {"CONNECT", "DISCONNECT"}),
    "assigned client identifier": (b"\x12\x00\x01i", set()),
    "server keep alive": (b"\x13\x00\x09", set()),
    "authentication data": (b"\x16\x00\x01d", set()),
    "request problem information": (b"\x17\x01", {"CONNECT"}),
    "will delay interval": (b"\x18\x00\x00\x00\x09", {"will"}),
    "request response information": (b"\x19\x01", {"CONNECT"}),
    "response information": (b"\x1a\x00\x01r", set()),
    "reason string": (
        b"\x1f\x00\x01r",
        {"PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "DISCONNECT"},
    ),
    "receive maximum": (b"\x21\x00\x09", {"CONNECT"}),
    "topic alias maximum": (b"\x22\x00\x09", {"CONNECT"}),
    "topic alias": (b"\x23\x00\x01", {"PUBLISH"}),
    "maximum QoS": (b"\x24\x01", set()),
    "retain available": (b"\x25\x01", set()),
    "maximum packet size": (b"\x27\x00\x00\x10\x00", {"CONNECT"}),
    "wildcard subscription available": (b"\x28\x01", set()),
    "subscription identifiers available": (b"\x29\x01", set()),
    "shared subscription available": (b"\x2a\x01", set()),
}
USER_PROPERTY = b"\x26\x00\x01k\x00\x01v"


def in_connect(h: Harness, block: bytes) -> FakeClient:
    c = h.open()
    c.send_raw(raw.connect(b"c", properties=block))
    return c


def in_will(h: Harness, block: bytes) -> FakeClient:
    c = h.open()
    c.send_raw(raw.connect(b"c", flags=raw.CLEAN | raw.WILL, tail=raw.will(5, props=block)))
    return c


def connected(h: Harness) -> FakeClient:
    """Accepted with a Session Expiry Interval, so that a DISCONNECT may change it."""
    c = manual(h.open())
    c.send_raw(raw.connect(b"c", properties=b"\x11\x00\x00\x00\x09"))
    assert c.expect(Connack).reason == 0
    return c


def in_publish(h: Harness, block: bytes) -> FakeClient:
    c = connected(h)
    c.send_raw(raw.publish(5, b"t", props=block))
    return c


def in_subscribe(h: Harness, block: bytes) -> FakeClient:
    c = connected(h)
    c.send_raw(raw.frame(0x82, b"\x00\x01" + raw.block(5, block) + b"\x00\x01t\x00"))
    return c


def in_unsubscribe(h: Harness, block: bytes) -> FakeClient:
    c = connected(h)
    c.send_raw(raw.frame(0xA2, b"\x00\x01" + raw.block(5, block) + b"\x00\x01t"))
    return c


def in_disconnect(h: Harness, block: bytes) -> FakeClient:
    c = connected(h)
    c.send_raw(raw.frame(0xE0, b"\x00" + raw.block(5, block)))
    return c


def receiver(h: Harness, qos: int) -> tuple[FakeClient, bytes]:
    """A client that owes an answer to a PUBLISH, and the identifier to answer with."""
    c = connected(h)
    c.subscribe("t", qos=qos)
    publish(h.client("pub"), "t", qos=qos)
    (got,) = messages(c)
    return c, raw.u16(got.packet_id)


def in_puback(h: Harness, block: bytes) -> FakeClient:
    c, packet_id = receiver(h, 1)
    c.send_raw(raw.frame(0x40, packet_id + b"\x00" + raw.block(5, block)))
    return c


def in_pubrec(h: Harness, block: bytes) -> FakeClient:
    c, packet_id = receiver(h, 2)
    c.send_raw(raw.frame(0x50, packet_id + b"\x00" + raw.block(5, block)))
    return c


def in_pubcomp(h: Harness, block: bytes) -> FakeClient:
    c, packet_id = receiver(h, 2)
    c.send_raw(raw.frame(0x50, packet_id))
    c.expect(Pubrel)
    c.send_raw(raw.frame(0x70, packet_id + b"\x00" + raw.block(5, block)))
    return c


def in_pubrel(h: Harness, block: bytes) -> FakeClient:
    c = connected(h)
    send_publish(c, "t", qos=2, packet_id=1)
    c.expect(Pubrec)
    c.send_raw(raw.frame(0x62, b"\x00\x01\x00" + raw.block(5, block)))
    return c


CARRIERS: dict[str, Callable[[Harness, bytes], FakeClient]] = {
    "CONNECT": in_connect,
    "will": in_will,
    "PUBLISH": in_publish,
    "PUBACK": in_puback,
    "PUBREC": in_pubrec,
    "PUBREL": in_pubrel,
    "PUBCOMP": in_pubcomp,
    "SUBSCRIBE": in_subscribe,
    "UNSUBSCRIBE": in_unsubscribe,
    "DISCONNECT": in_disconnect,
}
# Server Reference is left out: the table allows it in DISCONNECT without naming a direction.
ALLOWED = [(c, p) for p, (_, places) in PROPERTIES.items() for c in CARRIERS if c in places]
FORBIDDEN = [(c, p) for p, (_, places) in PROPERTIES.items() for c in CARRIERS if c not in places]
FORBIDDEN += [(c, "authentication method") for c in CARRIERS if c != "CONNECT"]
VALUE = {name: value for name, (value, _) in PROPERTIES.items()} | {
    "authentication method": b"\x15\x00\x01m"
}


def accepted(c: FakeClient, carrier: str) -> bool:
    if carrier == "DISCONNECT":
        return c.closed and c.recv() == []
    return alive(c)


def rejected(c: FakeClient, carrier: str, reasons: tuple[int, ...]) -> None:
    if carrier in ("CONNECT", "will"):
        raw.connect_refused(c, reasons)
    else:
        refused(c, reasons)


@pytest.mark.parametrize(("carrier", "name"), ALLOWED)
def test_property_is_accepted_where_the_standard_puts_it(carrier: str, name: str) -> None:
    # 2.2.2.2
    assert accepted(CARRIERS[carrier](Harness(), VALUE[name]), carrier)


@pytest.mark.parametrize(("carrier", "name"), FORBIDDEN)
def test_property_is_refused_anywhere_else(carrier: str, name: str) -> None:
    # [MQTT-4.13.1-1]; 2.2.2.2: an identifier that is not valid for its packet is malformed
    h = Harness()
    bystander = h.client("bystander")
    bystander.subscribe("#")
    rejected(CARRIERS[carrier](h, VALUE[name]), carrier, MALFORMED)
    assert alive(bystander)


@pytest.mark.parametrize(("carrier", "name"), ALLOWED)
def test_property_given_twice_is_a_protocol_error(carrier: str, name: str) -> None:
    # [MQTT-4.13.1-1]; 2.2.2.2 and the paragraph of each property
    c = CARRIERS[carrier](Harness(), VALUE[name] * 2)
    rejected(c, carrier, (spec.PROTOCOL_ERROR,))


@pytest.mark.parametrize("carrier", list(CARRIERS))
def test_user_property_may_be_repeated_in_every_packet(carrier: str) -> None:
    # 2.2.2.2: the same name may appear more than once
    assert accepted(CARRIERS[carrier](Harness(), USER_PROPERTY * 3), carrier)


@pytest.mark.parametrize(
    "identifier", [b"\x00", b"\x04", b"\x2b", b"\x7f", b"\x80\x01", b"\x81\x00"]
)
@pytest.mark.parametrize("carrier", list(CARRIERS))
def test_unknown_property_is_malformed(carrier: str, identifier: bytes) -> None:
    # [MQTT-4.13.1-1]; 2.2.2.2
    c = CARRIERS[carrier](Harness(), identifier + b"\x00\x00\x00\x00")
    rejected(c, carrier, (spec.MALFORMED_PACKET,))


@pytest.mark.parametrize("carrier", list(CARRIERS))
def test_property_cut_short_by_its_block_is_malformed(carrier: str) -> None:
    # [MQTT-4.13.1-1]
    for size in range(1, len(USER_PROPERTY)):
        c = CARRIERS[carrier](Harness(), USER_PROPERTY[:size])
        rejected(c, carrier, (spec.MALFORMED_PACKET,))


def test_property_block_longer_than_its_packet_is_malformed() -> None:
    # [MQTT-4.13.1-1]
    for packet in (
        raw.frame(0x30, b"\x00\x01t\x08" + USER_PROPERTY),
        raw.frame(0x82, b"\x00\x01\x7f\x00\x01t\x00"),
        raw.frame(0xE0, b"\x00\x01"),
    ):
        c = Harness().client("c")
        c.send_raw(packet)
        refused(c, (spec.MALFORMED_PACKET,))


VALUES = {
    "request problem information 2": ("CONNECT", b"\x17\x02"),
    "request response information 2": ("CONNECT", b"\x19\x02"),
    "receive maximum 0": ("CONNECT", b"\x21\x00\x00"),
    "maximum packet size 0": ("CONNECT", b"\x27\x00\x00\x00\x00"),
    "subscription identifier 0": ("SUBSCRIBE", b"\x0b\x00"),
}


@pytest.mark.parametrize(("carrier", "block"), list(VALUES.values()), ids=list(VALUES))
def test_property_value_out_of_range_is_a_protocol_error(carrier: str, block: bytes) -> None:
    # [MQTT-4.13.1-1]; 3.1.2.11.3, .4, .6, .7 and 3.8.2.1.2
    rejected(CARRIERS[carrier](Harness(), block), carrier, (spec.PROTOCOL_ERROR,))


@pytest.mark.parametrize("carrier", ["PUBLISH", "will"])
def test_payload_format_indicator_is_0_or_1(carrier: str) -> None:
    # 3.3.2.3.2
    assert accepted(CARRIERS[carrier](Harness(), b"\x01\x00"), carrier)
    rejected(CARRIERS[carrier](Harness(), b"\x01\x02"), carrier, MALFORMED)


# --- no properties, and the short forms ---

NO_PROPERTY_LENGTH = {
    "PUBLISH": raw.frame(0x30, b"\x00\x01t"),
    "PUBLISH QoS 1": raw.frame(0x32, b"\x00\x01t\x00\x01"),
    "SUBSCRIBE": raw.frame(0x82, b"\x00\x01"),
    "UNSUBSCRIBE": raw.frame(0xA2, b"\x00\x01"),
}


@pytest.mark.parametrize("packet", list(NO_PROPERTY_LENGTH.values()), ids=list(NO_PROPERTY_LENGTH))
def test_absent_property_length_is_malformed(packet: bytes) -> None:
    # [MQTT-2.2.2-1]
    c = Harness().client("c")
    c.send_raw(packet)
    refused(c, MALFORMED)


def test_connect_without_property_length_is_malformed() -> None:
    # [MQTT-2.2.2-1]
    c = Harness().open()
    c.send_raw(raw.frame(0x10, b"\x00\x04MQTT\x05\x02\x00\x00"))
    raw.connect_refused(c, MALFORMED)


@pytest.mark.parametrize("rest", [b"", b"\x00", b"\x00\x00"])
def test_short_forms_of_acknowledgements_are_understood(rest: bytes) -> None:
    # 3.4.2.1, 3.5.2.1, 3.6.2.1, 3.7.2.1: reason code and property length may be left out
    h = Harness()
    c, packet_id = receiver(h, 2)
    c.send_raw(raw.frame(0x50, packet_id + rest))
    c.expect(Pubrel)
    c.send_raw(raw.frame(0x70, packet_id + rest))
    send_publish(c, "u", qos=2, packet_id=1)
    c.expect(Pubrec)
    c.send_raw(raw.frame(0x62, b"\x00\x01" + rest))
    c.expect(Pubcomp)
    d, packet_id = receiver(Harness(), 1)
    d.send_raw(raw.frame(0x40, packet_id + rest))
    assert alive(d)


# --- truncated and overlong ---

WHOLE: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "SUBSCRIBE": (0x82, lambda v: raw.subscribe(v, b"t")[2:]),
    "UNSUBSCRIBE": (0xA2, lambda v: raw.unsubscribe(v, b"t")[2:]),
}


@pytest.mark.parametrize("name", list(WHOLE))
@each_version
def test_every_truncation_is_malformed(version: int, name: str) -> None:
    # [MQTT-4.13.1-1]
    first, body = WHOLE[name]
    whole = body(version)
    for size in range(len(whole)):
        c = Harness().client("c", version=version)
        c.send_raw(raw.frame(first, whole[:size]))
        refused(c, MALFORMED)


@each_version
def test_every_truncation_of_connect_is_refused(version: int) -> None:
    # [MQTT-3.1.4-1] [MQTT-3.1.2-9] [MQTT-3.1.2-17] [MQTT-3.1.2-19]
    flags = raw.CLEAN | raw.WILL | raw.USERNAME | raw.PASSWORD
    tail = raw.will(version) + raw.text(b"user") + raw.text(b"secret")
    whole = raw.connect(b"c", version, flags, tail=tail)[2:]
    for size in range(len(whole)):
        if version == spec.MQTT31 and whole[size:] in (
            raw.text(b"user") + raw.text(b"secret"),
            raw.text(b"secret"),
        ):
            continue  # MQTT 3.1 lets the remaining length win over the flags, see test_v311
        c = Harness().open(version=version)
        answer = raw.talk(c, raw.frame(0x10, whole[:size]))
        assert raw.only_connack(answer, version, spec.MALFORMED_PACKET), (size, answer)
        assert c.connection.closing, size


TRAILING = {
    "PINGREQ": b"\xc0\x01\x00",
    "DISCONNECT": b"\xe0\x03\x00\x00\x00",
    "PUBREL": b"\x62\x05\x00\x01\x00\x00\x00",
    "SUBSCRIBE": raw.frame(0x82, raw.subscribe(5, b"t")[2:] + b"\x00"),
    "UNSUBSCRIBE": raw.frame(0xA2, raw.unsubscribe(5, b"t")[2:] + b"\x00"),
}


@pytest.mark.parametrize("packet", list(TRAILING.values()), ids=list(TRAILING))
@each_version
def test_bytes_after_the_end_are_malformed(version: int, packet: bytes) -> None:
    # [MQTT-4.13.1-1]
    c = Harness().client("c", version=version)
    c.send_raw(packet)
    refused(c, MALFORMED)


@each_version
def test_bytes_after_the_end_of_connect_are_malformed(version: int) -> None:
    # [MQTT-3.1.4-1] [MQTT-3.1.2-16] [MQTT-3.1.2-18]
    for tail in (b"\x00", raw.text(b"user")):
        c = Harness().open(version=version)
        c.send_raw(raw.connect(b"c", version, tail=tail))
        raw.connect_malformed(c)


def test_empty_properties_are_written_as_length_0() -> None:
    # [MQTT-2.2.2-1]
    assert encode_packet(Publish("t", b"x"), 5) == bytes.fromhex("30 05 00 01 74 00 78")
    assert encode_packet(Suback(1, [0]), 5) == bytes.fromhex("90 04 00 01 00 00")
    assert encode_packet(Unsuback(1, [0]), 5) == bytes.fromhex("b0 04 00 01 00 00")
    assert encode_packet(Connack(), 5) == bytes.fromhex("20 03 00 00 00")
    assert encode_packet(Connect(client_id="c"), 5) == raw.connect(b"c")
