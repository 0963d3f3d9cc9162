"""The header survives the trip, every damaged bit is seen, a patched template is a fresh frame."""

import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from device_sim.judge.payload import HEADER_SIZE, Header, Template, decode, encode, padding

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
headers = st.builds(Header, u32, u32, u16, st.integers(0, 2), u32, st.integers(0, 2**64 - 1), u32)
HEADER = Header(0x01020304, 5, 6, 2, 7, 8, 9)


@given(headers, st.integers(HEADER_SIZE, 900))
def test_round_trip(header: Header, size: int) -> None:
    payload = encode(header, size)
    assert len(payload) == size
    got = decode(payload)
    assert got is not None
    for name in ("run", "publisher", "stream", "qos", "sequence", "intended_ns", "lag_us"):
        assert getattr(got, name) == getattr(header, name)


def test_the_layout_is_what_the_module_says() -> None:
    payload = encode(HEADER, 40)
    assert payload[4:32] == bytes.fromhex(
        "d5"  # magic
        "12"  # layout 1, QoS 2
        "0006"  # stream
        "01020304"  # run
        "00000005"  # publisher
        "00000007"  # sequence
        "0000000000000008"  # intended
        "00000009"  # lag
    )
    assert payload[32:] == padding(0x01020304, 40)
    assert payload[:4] == zlib.crc32(payload[4:]).to_bytes(4, "big")


@given(headers, st.integers(HEADER_SIZE, 80), st.data())
def test_any_damaged_bit_is_noticed(header: Header, size: int, data: st.DataObject) -> None:
    payload = bytearray(encode(header, size))
    bit = data.draw(st.integers(0, size * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    assert decode(bytes(payload)) is None


@given(st.integers(0, 300))
def test_a_truncated_payload_is_noticed(keep: int) -> None:
    assert decode(encode(HEADER, 301)[:keep]) is None


def test_a_foreign_payload_with_a_right_check_sum_is_not_ours() -> None:
    for kind in (b"\xd4\x12", b"\xd5\x22"):
        covered = kind + encode(HEADER, 40)[6:]
        assert decode(struct.pack(">I", zlib.crc32(covered)) + covered) is None


def test_padding_has_no_short_period() -> None:
    filler = padding(99, HEADER_SIZE + 600)
    assert len(filler) == 600
    assert len(set(filler[:251])) == 251
    assert padding(99, 10) == b""


@given(u32, st.integers(0, 2**63), u32, st.integers(1, 0xFFFF))
def test_a_template_writes_what_encoding_afresh_would(
    sequence: int, intended_ns: int, lag_us: int, packet_id: int
) -> None:
    start = b"\x32\x45\x00\x03a/b"
    template = Template(start + b"\x00\x01" + encode(HEADER, 60), 9, 7)
    out = bytearray(b"before")
    template.write(out, 77, 1, 2, 3)
    out = bytearray(b"before")
    template.write(out, packet_id, sequence, intended_ns, lag_us)
    header = Header(0x01020304, 5, 6, 2, sequence, intended_ns, lag_us)
    assert out == b"before" + start + packet_id.to_bytes(2, "big") + encode(header, 60)


def test_a_template_without_a_packet_identifier() -> None:
    template = Template(b"\x30\x29\x00\x01a" + encode(HEADER, 32), 5, 0)
    out = bytearray()
    template.write(out, 0xFFFF, 7, 8, 9)
    assert out == b"\x30\x29\x00\x01a" + encode(HEADER, 32)
