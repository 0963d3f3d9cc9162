"""The data types of MQTT: every boundary from both sides."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec, wire
from mqttd.core.errors import ProtocolError
from tests.core.vectors import untimed

Reader = Callable[[bytes, int, int], tuple[object, int]]

READERS: list[tuple[Reader, bytes, object]] = [
    (wire.read_u8, b"\xfe", 0xFE),
    (wire.read_u16, b"\x12\xff", 0x12FF),
    (wire.read_u32, b"\x81\x02\x03\xff", 0x810203FF),
    (wire.read_varint, b"\x7f", 127),
    (wire.read_varint, b"\xff\x7f", 16_383),
    (wire.read_varint, b"\x80\x80\x80\x01", 2_097_152),
    (wire.read_binary, b"\x00\x02\x00\xff", b"\x00\xff"),
    (wire.read_binary, b"\x00\x00", b""),
    (wire.read_string, b"\x00\x03a\xc3\xa9", "aé"),
    (wire.read_string, b"\x00\x00", ""),
]


def code_of(reader: Reader, data: bytes) -> tuple[int, str]:
    with pytest.raises(ProtocolError) as caught:
        reader(data, 0, len(data))
    return caught.value.code, caught.value.clause


@pytest.mark.parametrize(("reader", "data", "value"), READERS)
def test_reads_at_any_place(reader: Reader, data: bytes, value: object) -> None:
    assert reader(data, 0, len(data)) == (value, len(data))
    padded = b"\x80" + data + b"\x80\x80"
    assert reader(padded, 1, 1 + len(data)) == (value, 1 + len(data))


@pytest.mark.parametrize(("reader", "data", "value"), READERS)
def test_never_reads_past_the_end(reader: Reader, data: bytes, value: object) -> None:
    for cut in range(len(data)):
        assert code_of(reader, data[:cut]) == (spec.MALFORMED_PACKET, "")
        with pytest.raises(ProtocolError):
            reader(data + b"\x00\x00\x00\x00", 0, cut)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
        (268_435_455, b"\xff\xff\xff\x7f"),
    ],
)
def test_varint_boundaries(value: int, data: bytes) -> None:
    """The table of 1.5.5. [MQTT-1.5.5-1]"""
    assert wire.varint(value) == data
    assert wire.read_varint(data, 0, len(data)) == (value, len(data))


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff\x80\x00", b"\x81\x80\x80\x00"])
def test_padded_varint(data: bytes) -> None:
    # [MQTT-1.5.5-1]
    assert code_of(wire.read_varint, data) == (spec.MALFORMED_PACKET, "MQTT-1.5.5-1")


@pytest.mark.parametrize("data", [b"\x80\x80\x80\x80", b"\xff\xff\xff\xff\x01"])
def test_varint_of_five_bytes(data: bytes) -> None:
    assert code_of(wire.read_varint, data) == (spec.MALFORMED_PACKET, "")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        b"\xc3",  # cut
        b"\xc0\x80",  # overlong U+0000
        b"\xe0\x80\xaf",  # overlong slash
        b"\xed\xa0\x80",  # U+D800
        b"\xed\xbf\xbf",  # U+DFFF
        b"\xf4\x90\x80\x80",  # above U+10FFFF
    ],
)
def test_invalid_utf8(raw: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-4.7.3-3]
    data = wire.binary(raw)
    assert code_of(wire.read_string, data) == (spec.MALFORMED_PACKET, "MQTT-1.5.4-1")
    with pytest.raises(ProtocolError):
        wire.skip_string(data, 0, len(data))


def test_nul_character() -> None:
    # [MQTT-1.5.4-2] [MQTT-4.7.3-2]
    for text in ("\0", "a\0", "\0a", "é\0é"):
        data = wire.string(text)
        assert code_of(wire.read_string, data) == (spec.MALFORMED_PACKET, "MQTT-1.5.4-2")
        with pytest.raises(ProtocolError):
            wire.skip_string(data, 0, len(data))


def test_byte_order_mark_is_a_character() -> None:
    # [MQTT-1.5.4-3]
    assert wire.read_string(b"\x00\x04\xef\xbb\xbfa", 0, 6) == ("\ufeffa", 6)


def test_unusual_characters_are_allowed() -> None:
    """1.5.4 only advises against control characters and non-characters."""
    for text in ("\x01", "\x7f", "\x9f", "\ufffe", "\U0010ffff", "\U0001f600"):
        data = wire.string(text)
        assert wire.read_string(data, 0, len(data)) == (text, len(data))


@untimed
@given(st.integers(0, spec.MAX_VARINT))
def test_varint_round_trip(value: int) -> None:
    data = wire.varint(value)
    assert wire.read_varint(data, 0, len(data)) == (value, len(data))


@untimed
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300))
def test_string_round_trip(text: str) -> None:
    data = wire.string(text)
    assert wire.read_string(data, 0, len(data)) == (text, len(data))
    assert wire.skip_string(data, 0, len(data)) == len(data)


@untimed
@given(st.binary(max_size=300))
def test_binary_round_trip(raw: bytes) -> None:
    data = wire.binary(raw)
    assert wire.read_binary(data, 0, len(data)) == (raw, len(data))
    assert wire.skip_binary(data, 0, len(data)) == len(data)


@untimed
@given(st.integers(0, spec.MAX_U32))
def test_integers_round_trip(value: int) -> None:
    assert wire.read_u32(wire.u32(value), 0, 4) == (value, 4)
    assert wire.read_u16(wire.u16(value & 0xFFFF), 0, 2) == (value & 0xFFFF, 2)
    assert wire.read_u8(wire.u8(value & 0xFF), 0, 1) == (value & 0xFF, 1)
    assert wire.packet_id_bytes(value & 0xFFFF) == wire.u16(value & 0xFFFF)


@pytest.mark.parametrize(
    ("writer", "limit"),
    [
        (wire.u8, 0xFF),
        (wire.u16, 0xFFFF),
        (wire.u32, 0xFFFF_FFFF),
        (wire.varint, 268_435_455),
    ],
)
def test_numbers_that_do_not_fit(writer: Callable[[int], bytes], limit: int) -> None:
    assert writer(limit)
    assert writer(0)
    for value in (-1, limit + 1):
        with pytest.raises(ValueError, match="does not fit"):
            writer(value)


def test_bytes_that_do_not_fit() -> None:
    assert len(wire.binary(bytes(65_535))) == 65_537
    with pytest.raises(ValueError, match="65535"):
        wire.binary(bytes(65_536))
    with pytest.raises(ValueError, match="65535"):
        wire.string("é" * 32_768)
    with pytest.raises(ValueError, match="surrogates"):
        wire.string("\ud800")


def test_errors_say_what_is_wrong() -> None:
    assert str(ProtocolError(0x81)) == "Malformed Packet"
    assert str(ProtocolError(0x81, "", "too short")) == "Malformed Packet: too short"
    assert str(ProtocolError(0x82, "MQTT-3.1.0-2")) == "Protocol Error [MQTT-3.1.0-2]"
    error = ProtocolError(0x94, "MQTT-3.3.2-8", "topic alias 0")
    assert str(error) == "Topic Alias invalid: topic alias 0 [MQTT-3.3.2-8]"
    assert (error.code, error.clause, error.detail) == (0x94, "MQTT-3.3.2-8", "topic alias 0")
