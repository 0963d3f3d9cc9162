"""Decoding: the golden vectors, each of them cut at every byte, and noise."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.decode import (
    PublishFields,
    decode_connect,
    decode_disconnect,
    decode_packet,
    decode_publish,
    scan_publish,
)
from mqttd.core.errors import ProtocolError
from mqttd.core.packets import Connect, Disconnect, Publish, Record
from tests.core.vectors import BAD, GOOD, Vector, unhex, untimed

VERSIONS = (spec.MQTT31, spec.MQTT311, spec.MQTT5)
GOOD_CASES = [
    pytest.param(vector, version, id=f"{vector.name}-v{version}")
    for vector in GOOD
    for version in vector.versions
]
BAD_CASES = [
    pytest.param(vector, version, id=f"{vector.name}-v{version}")
    for vector in BAD
    for version in vector.versions
]
MAY_GO_ON = (
    spec.PUBACK,
    spec.PUBREC,
    spec.PUBREL,
    spec.PUBCOMP,
    spec.SUBACK,
    spec.UNSUBACK,
    spec.DISCONNECT,
)


def decode(vector: Vector, version: int) -> Record:
    wire = vector.wire
    return decode_packet(wire[0], wire, vector.body, len(wire), version, vector.from_client)


@pytest.mark.parametrize(("vector", "version"), GOOD_CASES)
def test_good_vectors(vector: Vector, version: int) -> None:
    assert decode(vector, version) == vector.packet


@pytest.mark.parametrize(("vector", "version"), BAD_CASES)
def test_bad_vectors(vector: Vector, version: int) -> None:
    """The clauses stand in the vectors.

    [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.5-1] [MQTT-1.5.7-1] [MQTT-2.1.3-1] [MQTT-2.2.1-3]
    [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT-3.1.2-3] [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-12]
    [MQTT-3.1.2-13] [MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT-3.1.2-18] [MQTT-3.1.2-19]
    [MQTT-3.1.3-3] [MQTT-3.1.3-4] [MQTT-3.1.3-11] [MQTT-3.1.3-12] [MQTT-3.1.4-1]
    [MQTT-3.2.2-1] [MQTT-3.2.2-6] [MQTT-3.2.2-8] [MQTT-3.3.1-2] [MQTT-3.3.1-4] [MQTT-3.3.2-1]
    [MQTT-3.3.2-8] [MQTT-3.3.2-13] [MQTT-3.3.2-14] [MQTT-3.3.2-19] [MQTT-3.3.4-6]
    [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.1-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1] [MQTT-3.8.1-1]
    [MQTT-3.8.3-1] [MQTT-3.8.3-2] [MQTT-3.8.3-4] [MQTT-3.8.3-5] [MQTT-3.9.3-2]
    [MQTT-3.10.1-1] [MQTT-3.10.3-1] [MQTT-3.10.3-2] [MQTT-3.11.3-2] [MQTT-3.14.1-1]
    [MQTT-3.14.2-1] [MQTT-3.15.1-1] [MQTT-3.15.2-1] [MQTT-4.7.3-1]
    """
    with pytest.raises(ProtocolError) as caught:
        decode(vector, version)
    assert (caught.value.code, caught.value.clause) == (vector.error, vector.clause)
    assert caught.value.detail


@pytest.mark.parametrize(("vector", "version"), GOOD_CASES)
def test_only_the_packet_is_looked_at(vector: Vector, version: int) -> None:
    """A packet reads the same in the middle of other bytes, whatever they are."""
    for around in (b"", b"\x00\x00\x00\x00\x00", b"\xff\xff\xff\xff\xff"):
        data = around + vector.wire + around
        pos = len(around) + vector.body
        end = len(around) + len(vector.wire)
        assert decode_packet(vector.wire[0], data, pos, end, version) == vector.packet


@pytest.mark.parametrize(("vector", "version"), GOOD_CASES + BAD_CASES)
def test_cut_at_every_byte(vector: Vector, version: int) -> None:
    """A packet whose length says less than its fields is refused, or is a shorter good packet."""
    wire = vector.wire
    for end in range(vector.body, len(wire)):
        alone = read(wire[0], wire[:end], vector.body, end, version)
        inside = read(wire[0], wire + b"\xff\xff", vector.body, end, version)
        assert alone == inside
        if isinstance(alone, Record):
            assert alone != vector.packet or not vector.canonical


def read(first: int, data: bytes, pos: int, end: int, version: int) -> Record | int:
    """The packet or the reason code of the refusal; any other exception is a bug."""
    try:
        return decode_packet(first, data, pos, end, version)
    except ProtocolError as error:
        assert error.code >= 0x80  # noqa: PT017 - this is no test
        return error.code


@pytest.mark.parametrize(("vector", "version"), GOOD_CASES)
def test_every_byte_changed(vector: Vector, version: int) -> None:
    for at in range(vector.body, len(vector.wire)):
        for change in (0x01, 0x80, 0xFF):
            data = bytearray(vector.wire)
            data[at] ^= change
            read(data[0], bytes(data), vector.body, len(data), version)


@pytest.mark.parametrize(("vector", "version"), GOOD_CASES)
def test_trailing_bytes(vector: Vector, version: int) -> None:
    """Only a payload, a list, or the short form of a packet may go on."""
    wire = vector.wire + b"\x00"
    result = read(wire[0], wire, vector.body, len(wire), version)
    kind = wire[0] >> 4
    if kind == spec.PUBLISH:
        assert isinstance(result, Publish)
    elif kind not in MAY_GO_ON:
        assert isinstance(result, int)


@untimed
@given(st.integers(0, 255), st.binary(max_size=60), st.sampled_from(VERSIONS), st.booleans())
@example(0xF0, b"", spec.MQTT5, True)
@example(0x30, b"", spec.MQTT5, True)
def test_any_bytes(first: int, body: bytes, version: int, from_client: bool) -> None:
    try:
        packet = decode_packet(first, body, 0, len(body), version, from_client)
    except ProtocolError:
        return
    assert repr(packet)


@untimed
@given(st.sampled_from(GOOD), st.data())
def test_mutated_vectors(vector: Vector, data: st.DataObject) -> None:
    body = bytearray(vector.wire[vector.body :])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        gone = data.draw(st.integers(0, 2))
        body[at : at + gone] = data.draw(st.binary(max_size=3))
    for version in VERSIONS:
        read(vector.wire[0], bytes(body), 0, len(body), version)


def test_the_key_is_the_topic_as_it_came() -> None:
    packet = decode_publish(b"\x00\x03a/\x62", 0, 5, 0, spec.MQTT311)
    assert (packet.topic, packet.key, packet.payload) == ("a/b", b"a/b", b"")


def test_a_scan_overwrites_what_was_there() -> None:
    """The broker reads every PUBLISH into one object: nothing may stay from the one before."""
    fields = PublishFields()
    data = unhex("0001 74 0007 0c 0100 02 00000005 23 0001 0b 09 70")
    scan_publish(fields, data, 0, len(data), 0x02, spec.MQTT5, False)
    assert (fields.key, fields.packet_id, fields.payload_at) == (b"t", 7, len(data) - 1)
    assert (fields.properties, fields.topic_alias) == (b"\x01\x00", 1)
    assert (fields.message_expiry, fields.subscription_ids) == (5, [9])
    for data, version in ((b"\x00\x01u\x00", spec.MQTT5), (b"\x00\x01u", spec.MQTT311)):
        scan_publish(fields, data, 0, len(data), 0, version, True)
        assert (fields.key, fields.packet_id, fields.payload_at) == (b"u", 0, len(data))
        assert (fields.properties, fields.topic_alias) == (b"", 0)
        assert (fields.message_expiry, fields.subscription_ids) == (-1, None)
    # The characters of the topic are the matcher's business.
    scan_publish(fields, b"\x00\x01\xff", 0, 3, 0, spec.MQTT311, True)
    assert fields.key == b"\xff"


def test_alias_without_topic() -> None:
    packet = decode_publish(b"\x00\x00\x03\x23\x00\x01", 0, 6, 0, spec.MQTT5)
    assert (packet.topic, packet.key, packet.topic_alias) == ("", b"", 1)


def test_payload_is_not_judged() -> None:
    """Payload Format Indicator 1 is the receiver's affair (3.3.2.3.2)."""
    packet = decode_publish(b"\x00\x01t\x02\x01\x01\xff\xfe", 0, 8, 0, spec.MQTT5)
    assert (packet.payload, packet.properties) == (b"\xff\xfe", b"\x01\x01")


def test_subscription_identifiers_only_from_servers() -> None:
    # [MQTT-3.3.4-6]
    data = b"\x00\x01t\x02\x0b\x05"
    assert decode_publish(data, 0, 6, 0, spec.MQTT5, False).subscription_ids == [5]
    with pytest.raises(ProtocolError):
        decode_publish(data, 0, 6, 0, spec.MQTT5)


def test_a_connect_needs_no_flags() -> None:
    vector = next(vector for vector in GOOD if vector.name == "connect-5-minimal")
    packet = decode_connect(vector.wire, vector.body, len(vector.wire))
    assert packet == vector.packet


def test_properties_of_a_connect_are_always_there() -> None:
    packet = decode_connect(unhex("0004 4d515454 04 02 0000 0000"), 0, 12)
    assert packet.properties == Connect().properties


def test_short_forms_of_mqtt_5() -> None:
    assert decode_disconnect(b"", 0, 0, 0, spec.MQTT5) == Disconnect(0)
    assert decode_disconnect(b"\x04", 0, 1, 0, spec.MQTT5) == Disconnect(4)
    assert decode_disconnect(b"\x04\x00", 0, 2, 0, spec.MQTT5) == Disconnect(4)


def test_details_quote_nothing() -> None:
    """What the peer sent does not get into the log by way of an error."""
    with pytest.raises(ProtocolError) as caught:
        decode_connect(unhex("0006 736563726574 04 02 0000 0000"), 0, 14)
    assert "secret" not in str(caught.value)
