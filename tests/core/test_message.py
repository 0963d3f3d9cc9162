"""Messages: one frame a layout, made once; what differs per receiver is made for that receiver."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.encode import encode_packet
from mqttd.core.message import Holder, Message, layout_of
from mqttd.core.packets import Publish
from mqttd.core.wire import packet_id_bytes
from tests.core.rig import make_message, packets
from tests.core.vectors import untimed

PROPERTIES = b"\x01\x01\x03\x00\x04text"  # payload format 1, content type
LAYOUTS = list(product((spec.MQTT31, spec.MQTT311, spec.MQTT5), (False, True), (0, 1, 2)))


def frame(message: Message, version: int, retain: bool, qos: int, packet_id: int = 0x1234) -> bytes:
    """What an `Outbound` would write."""
    message.use(layout_of(version, retain, qos))
    if qos:
        return message.head + packet_id_bytes(packet_id) + message.tail
    return message.head


def expected(message: Message, version: int, retain: bool, qos: int) -> bytes:
    """The same packet by the encoder, which knows nothing of layouts."""
    properties = message.properties if version >= 5 else b""
    return encode_packet(
        Publish(
            message.topic,
            message.payload,
            qos,
            retain,
            False,
            0x1234 if qos else 0,
            properties,
        ),
        version,
    )


def test_a_holder_has_to_say_what_release_means() -> None:
    with pytest.raises(AssertionError, match="release"):
        Holder().release()


def test_a_message_begins_without_frames_and_without_waiting() -> None:
    message = Message("a/b", b"a/b", b"p", 2, True, PROPERTIES, 7.5, "pub")
    assert (message.topic, message.key, message.payload) == ("a/b", b"a/b", b"p")
    assert (message.qos, message.retain, message.properties) == (2, True, PROPERTIES)
    assert (message.expires_at, message.origin) == (7.5, "pub")
    assert (message.barrier, message.undurable, message.holder) == (0, 0, None)
    assert (message.layout, message.head, message.tail) == (-1, b"", b"")


def test_layouts_differ_by_properties_retain_and_qos_only() -> None:
    found = {layout_of(*layout) for layout in LAYOUTS}
    assert len(found) == 12  # 3.1 and 3.1.1 share theirs
    assert layout_of(spec.MQTT31, True, 1) == layout_of(spec.MQTT311, True, 1)
    for version, retain, qos in LAYOUTS:
        layout = layout_of(version, retain, qos)
        assert layout & 3 == qos
        assert bool(layout & 4) is retain
        assert bool(layout & 8) is (version == spec.MQTT5)


@pytest.mark.parametrize("properties", [b"", PROPERTIES])
@pytest.mark.parametrize(("version", "retain", "qos"), LAYOUTS)
def test_a_frame_is_what_the_encoder_makes(
    version: int, retain: bool, qos: int, properties: bytes
) -> None:
    """[MQTT-3.3.1-1] DUP is 0 [MQTT-3.3.2-4] [MQTT-3.3.2-17] properties go unchanged."""
    message = make_message(b"payload", topic="a/ü", properties=properties)
    assert frame(message, version, retain, qos) == expected(message, version, retain, qos)


@pytest.mark.parametrize("size", [0, 1, 110, 118, 127, 128, 16_370, 16_384, 70_000])
def test_lengths_of_every_width(size: int) -> None:
    message = make_message(bytes(size), properties=PROPERTIES)
    for version, retain, qos in LAYOUTS:
        assert frame(message, version, retain, qos) == expected(message, version, retain, qos)


def test_every_layout_is_made_once() -> None:
    """A fan-out that changes between layouts finds the very same bytes again."""
    message = make_message(b"payload")
    made: dict[int, tuple[bytes, bytes]] = {}
    for _ in range(3):
        for version, retain, qos in LAYOUTS:
            layout = layout_of(version, retain, qos)
            message.use(layout)
            assert message.layout == layout
            if layout in made:
                head, tail = made[layout]
                assert message.head is head
                assert message.tail is tail
            made[layout] = (message.head, message.tail)


def test_a_frame_that_needs_no_change_is_passed_on_as_it_came() -> None:
    received = expected(make_message(b"p"), spec.MQTT5, False, 0)
    message = make_message(b"p", 0)
    message.forward_as_received(received, layout_of(spec.MQTT5, False, 0))
    assert message.head is received
    other = frame(message, spec.MQTT311, False, 0)
    assert other == expected(message, spec.MQTT311, False, 0)
    message.use(layout_of(spec.MQTT5, False, 0))
    assert message.head is received


@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_frame_split_around_its_identifier_serves_receivers_of_its_layout(
    version: int, qos: int
) -> None:
    original = make_message(b"payload", qos, properties=PROPERTIES)
    received = expected(original, version, False, qos)
    at = received.index(b"\x12\x34")
    message = make_message(b"payload", qos, properties=PROPERTIES)
    layout = layout_of(version, False, qos)
    message.split_as_received(received[:at], received[at + 2 :], layout)
    assert (message.layout, message.head) == (layout, received[:at])
    assert frame(message, version, True, 1) == expected(original, version, True, 1)
    assert frame(message, version, False, qos) == received


def once(message: Message, version: int = 5, **values: object) -> Publish:
    """A frame for one receiver, decoded."""
    arguments: dict[str, object] = {
        "first": 0x30,
        "key": message.key,
        "packet_id": b"",
        "alias": 0,
        "identifiers": b"",
        "now": 100.0,
    }
    arguments.update(values)
    data = message.encode_once(version, **arguments)  # type: ignore[arg-type]
    (packet,) = packets(data, version)
    assert isinstance(packet, Publish)
    return packet


@pytest.mark.parametrize(
    ("expires_at", "left"),
    [(0.0, -1), (100.0 + 3600, 3600), (130.9, 30), (101.0, 1), (100.2, 1), (99.0, 1), (100.0, 1)],
)
def test_what_is_left_of_the_expiry_interval_is_sent(expires_at: float, left: int) -> None:
    """[MQTT-3.3.2-6] A delivery that has begun is not given up, so it says 1 rather than 0."""
    message = make_message(expires_at=expires_at)
    assert once(message).message_expiry == left


def test_an_alias_stands_beside_or_in_place_of_the_topic() -> None:
    """[MQTT-3.3.2-8]"""
    message = make_message(topic="long/topic", properties=PROPERTIES)
    fresh = once(message, alias=3)
    assert (fresh.topic, fresh.topic_alias, fresh.properties) == ("long/topic", 3, PROPERTIES)
    known = once(message, alias=3, key=b"")
    assert (known.topic, known.topic_alias, known.properties) == ("", 3, PROPERTIES)


def test_identifiers_and_a_packet_identifier_come_with_it() -> None:
    """[MQTT-3.3.4-3] [MQTT-3.3.4-4]"""
    message = make_message(expires_at=160.0, properties=PROPERTIES)
    packet = once(
        message, first=0x3D, packet_id=b"\x00\x09", alias=1, identifiers=b"\x0b\x05\x0b\x07"
    )
    assert (packet.dup, packet.qos, packet.retain, packet.packet_id) == (True, 2, True, 9)
    assert (packet.message_expiry, packet.subscription_ids) == (60, [5, 7])
    assert packet.properties == PROPERTIES


@pytest.mark.parametrize("version", [spec.MQTT31, spec.MQTT311])
def test_older_receivers_get_no_properties(version: int) -> None:
    message = make_message(b"p", expires_at=160.0, properties=PROPERTIES)
    packet = once(message, version, first=0x3A, packet_id=b"\x00\x09")
    assert (packet.payload, packet.properties, packet.message_expiry) == (b"p", b"", -1)
    assert packet.packet_id == 9


@untimed
@given(
    st.text(st.characters(exclude_characters="\0+#", exclude_categories=["Cs"]), min_size=1),
    st.binary(max_size=300),
    st.sampled_from(LAYOUTS),
)
def test_any_topic_and_payload_survive(
    topic: str, payload: bytes, layout: tuple[int, bool, int]
) -> None:
    version, retain, qos = layout
    data = frame(make_message(payload, topic=topic), version, retain, qos)
    body = next(at for at in range(1, 5) if data[at] < 0x80) + 1
    packet = decode_packet(data[0], data, body, len(data), version)
    assert isinstance(packet, Publish)
    assert (packet.topic, packet.payload) == (topic, payload)
