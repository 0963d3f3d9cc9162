"""Encoding: the golden vectors backwards, what old versions leave out, and round trips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.encode import ack, encode_auth, encode_connect, encode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.core.vectors import GOOD, Vector, props, unhex, untimed

CANONICAL = [
    pytest.param(vector, version, id=f"{vector.name}-v{version}")
    for vector in GOOD
    for version in vector.versions
    if vector.canonical
]


def read_back(wire: bytes, version: int) -> Record:
    framer = Framer(spec.MAX_VARINT)
    framer.feed(wire)
    assert framer.next()
    assert framer.end == len(wire)
    return decode_packet(framer.first, wire, framer.pos, framer.end, version)


@pytest.mark.parametrize(("vector", "version"), CANONICAL)
def test_golden_vectors(vector: Vector, version: int) -> None:
    """[MQTT-2.1.3-1] [MQTT-2.2.1-2] [MQTT-2.2.2-1] [MQTT-3.1.3-1] [MQTT-3.6.1-1]"""
    assert vector.packet is not None
    assert encode_packet(vector.packet, version) == vector.wire


def test_old_versions_know_no_properties() -> None:
    noise = props(user_properties=[("a", "b")])
    for version in (spec.MQTT31, spec.MQTT311):
        for packet, wire in (
            (Connack(False, 0, noise), "20 02 00 00"),
            (Publish("a", b"", 0, False, False, 0, b"\x01\x01", 3, 60, [1]), "30 03 0001 61"),
            (Puback(1, 0x97, noise), "40 02 0001"),
            (Pubrec(1, 0x97, noise), "50 02 0001"),
            (Pubrel(1, 0x92, noise), "62 02 0001"),
            (Pubcomp(1, 0x92, noise), "70 02 0001"),
            (Subscribe(1, [Filter("a", 1, True, True, 2)], 7, noise), "82 06 0001 0001 61 01"),
            (Suback(1, [1, 0x87], noise), "90 04 0001 01 80"),
            (Unsubscribe(1, ["a"], noise), "a2 05 0001 0001 61"),
            (Unsuback(1, [0, 0x11], noise), "b0 02 0001"),
            (Disconnect(0x8B, noise), "e0 00"),
        ):
            assert encode_packet(packet, version) == unhex(wire)
    connect = Connect("MQTT", 4, True, 0, "", Will("t", b"", 0, False, 9, 9, b"\x01\x01"))
    connect.properties = noise
    assert encode_packet(connect, spec.MQTT5) == unhex(
        "10 11 0004 4d515454 04 06 0000 0000 0001 74 0000"
    )


@pytest.mark.parametrize(
    ("reason", "code"), [(0, 0), (3, 3), (0x84, 1), (0x85, 2), (0x88, 3), (0x86, 4), (0x87, 5)]
)
def test_refusals_in_the_words_of_mqtt_3(reason: int, code: int) -> None:
    for version in (spec.MQTT31, spec.MQTT311):
        assert encode_packet(Connack(False, reason), version) == bytes([0x20, 2, 0, code])


def test_session_present() -> None:
    # [MQTT-3.2.2-6]
    assert encode_packet(Connack(True, 0x87), spec.MQTT5) == unhex("20 03 00 87 00")
    assert encode_packet(Connack(True, 0x87), spec.MQTT311) == unhex("20 02 00 05")
    # MQTT 3.1 keeps the whole byte reserved.
    assert encode_packet(Connack(True, 0), spec.MQTT31) == unhex("20 02 00 00")


def test_no_dup_without_qos() -> None:
    # [MQTT-3.3.1-2] [MQTT-4.3.1-1]
    assert encode_packet(Publish("a", dup=True), spec.MQTT311)[0] == 0x30
    assert encode_packet(Publish("a", qos=1, dup=True, packet_id=1), spec.MQTT311)[0] == 0x3A


def test_connect_in_a_given_version() -> None:
    connect = Connect(version=5, client_id="x")
    assert encode_connect(connect, spec.MQTT311)[8] == spec.MQTT311
    assert encode_packet(connect, spec.MQTT311)[8] == spec.MQTT5


def test_subscription_identifier_beside_other_properties() -> None:
    values = props(user_properties=[("a", "b")])
    packet = Subscribe(1, [Filter("a")], 3, values)
    assert encode_packet(packet, spec.MQTT5) == unhex(
        "82 10 0001 09 0b03 26 0001 61 0001 62 0001 61 00"
    )
    assert values.subscription_ids == []


def test_acknowledgements_of_four_bytes() -> None:
    assert ack(0x40, 0x1234) == b"\x40\x02\x12\x34"
    assert ack(0x62, 0xFFFF) == b"\x62\x02\xff\xff"
    assert encode_packet(Pubrel(7), spec.MQTT5) == ack(0x62, 7)


def test_no_auth_before_mqtt_5() -> None:
    with pytest.raises(ValueError, match="AUTH"):
        encode_auth(Auth(), spec.MQTT311)


def test_not_a_packet() -> None:
    for thing in (Filter("a"), Will()):
        with pytest.raises(TypeError, match="not a control packet"):
            encode_packet(thing, spec.MQTT5)


def test_values_that_do_not_fit() -> None:
    for packet in (
        Publish("t" * 65_536),
        Subscribe(65_536, [Filter("a")]),
        Suback(1, [256]),
        Connect(keep_alive=65_536),
        Connect(password=bytes(65_536)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - each says it in its own words
            encode_packet(packet, spec.MQTT5)


def test_lengths_of_every_size() -> None:
    """The remaining length grows from one to four bytes."""
    for size in (0, 123, 124, 16_379, 16_380, 2_097_147, 2_097_148):
        packet = Publish("a", bytes(size))
        wire = encode_packet(packet, spec.MQTT5)
        assert read_back(wire, spec.MQTT5) == packet


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
topic = st.text(st.characters(exclude_characters="\0+#", exclude_categories=["Cs"]), min_size=1)
identifier = st.integers(1, 65_535)
qos = st.integers(0, 2)
users = st.builds(
    lambda pairs: props(user_properties=pairs),
    st.lists(st.tuples(text, text), min_size=1, max_size=3),
)
some = st.one_of(st.none(), users)
wills = st.builds(
    Will,
    topic,
    st.binary(max_size=20),
    qos,
    st.booleans(),
    st.integers(0, spec.MAX_U32),
    st.integers(-1, spec.MAX_U32),
    st.sampled_from([b"", b"\x01\x01", unhex("03000174 0100")]),
)
connects = st.builds(
    Connect,
    st.just("MQTT"),
    st.just(5),
    st.booleans(),
    st.integers(0, 65_535),
    text,
    st.one_of(st.none(), wills),
    st.one_of(st.none(), text),
    st.one_of(st.none(), st.binary(max_size=20)),
    users,
)


@st.composite
def publishes(draw: st.DrawFn) -> Publish:
    level = draw(qos)
    alias = draw(st.sampled_from([0, 1, 65_535]))
    return Publish(
        draw(topic) if not alias else draw(st.one_of(topic, st.just(""))),
        draw(st.binary(max_size=40)),
        level,
        draw(st.booleans()),
        level > 0 and draw(st.booleans()),
        draw(identifier) if level else 0,
        draw(st.sampled_from([b"", b"\x01\x00", unhex("26 0001 61 0001 62 0300 0174")])),
        alias,
        draw(st.integers(-1, spec.MAX_U32)),
        draw(st.lists(st.integers(1, spec.MAX_VARINT), max_size=3)),
    )


filters = st.builds(
    Filter,
    topic.filter(lambda t: not t.startswith("$share/")),
    qos,
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
)


def reasons(packet_type: int) -> st.SearchStrategy[int]:
    return st.sampled_from(sorted(spec.REASONS[packet_type]))


packets_5 = st.one_of(
    connects,
    publishes(),
    st.builds(
        lambda reason, values: Connack(reason == 0, reason, values), reasons(spec.CONNACK), users
    ),
    st.builds(Puback, identifier, reasons(spec.PUBACK), some),
    st.builds(Pubrec, identifier, reasons(spec.PUBREC), some),
    st.builds(Pubrel, identifier, reasons(spec.PUBREL), some),
    st.builds(Pubcomp, identifier, reasons(spec.PUBCOMP), some),
    st.builds(
        Subscribe,
        identifier,
        st.lists(filters, min_size=1, max_size=3),
        st.integers(1, spec.MAX_VARINT),
        users,
    ),
    st.builds(Suback, identifier, st.lists(reasons(spec.SUBACK), min_size=1, max_size=3), some),
    st.builds(Unsubscribe, identifier, st.lists(text, min_size=1, max_size=3), some),
    st.builds(Unsuback, identifier, st.lists(reasons(spec.UNSUBACK), min_size=1, max_size=3), some),
    st.builds(Disconnect, reasons(spec.DISCONNECT), some),
    st.builds(
        lambda reason, data: Auth(
            reason, props(authentication_method="m", authentication_data=data)
        ),
        reasons(spec.AUTH),
        st.binary(max_size=20),
    ),
)


@untimed
@given(packets_5)
def test_round_trip_in_mqtt_5(packet: Record) -> None:
    assert read_back(encode_packet(packet, spec.MQTT5), spec.MQTT5) == packet


packets_3 = st.one_of(
    st.builds(
        Publish,
        topic,
        st.binary(max_size=40),
        st.integers(1, 2),
        st.booleans(),
        st.booleans(),
        identifier,
    ),
    st.builds(Publish, topic, st.binary(max_size=40), st.just(0), st.booleans()),
    st.builds(
        Connect,
        st.just("MQTT"),
        st.just(4),
        st.booleans(),
        st.integers(0, 65_535),
        text,
        st.one_of(st.none(), st.builds(Will, topic, st.binary(max_size=20), qos, st.booleans())),
        text,
        st.one_of(st.none(), st.binary(max_size=20)),
        st.none(),
        st.booleans(),
    ),
    st.builds(Puback, identifier),
    st.builds(Pubrec, identifier),
    st.builds(Pubrel, identifier),
    st.builds(Pubcomp, identifier),
    st.builds(Subscribe, identifier, st.lists(st.builds(Filter, text, qos), min_size=1)),
    st.builds(Suback, identifier, st.lists(st.sampled_from([0, 1, 2, 0x80]), min_size=1)),
    st.builds(Unsubscribe, identifier, st.lists(text, min_size=1)),
    st.builds(Unsuback, identifier),
    st.builds(Disconnect),
)


@untimed
@given(packets_3)
def test_round_trip_in_mqtt_3(packet: Record) -> None:
    assert read_back(encode_packet(packet, spec.MQTT311), spec.MQTT311) == packet
