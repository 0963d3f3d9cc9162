"""The framer gives out the same packets however the stream is cut."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from tests.core.vectors import BAD, GOOD, Vector, untimed

WIRES = [vector.wire for vector in GOOD + BAD if vector.wire[0] >= 0x10]
# A remaining length of two bytes, of three, and nothing but a header.
LARGE = b"\x30\x80\x08" + bytes(1024)
HUGE = b"\x30\x80\x80\x01" + bytes(16_384)
LIMIT = 20_000


def drain(framer: Framer) -> Iterator[bytes]:
    while framer.next():
        packet = framer.data[framer.start : framer.end]
        assert framer.first == packet[0]
        assert framer.start < framer.pos <= framer.end <= len(framer.data)
        yield packet


def fed(*chunks: bytes) -> list[bytes]:
    framer = Framer(LIMIT)
    out: list[bytes] = []
    for chunk in chunks:
        framer.feed(chunk)
        out += drain(framer)
    assert framer.pending == 0
    return out


def refusal(data: bytes, limit: int = LIMIT) -> int:
    framer = Framer(limit)
    framer.feed(data)
    with pytest.raises(ProtocolError) as caught:
        framer.next()
    return caught.value.code


@pytest.mark.parametrize("vector", GOOD, ids=[vector.name for vector in GOOD])
def test_vectors_whole_in_bytes_and_glued(vector: Vector) -> None:
    wire = vector.wire
    assert fed(wire) == [wire]
    assert fed(*(bytes([byte]) for byte in wire)) == [wire]
    assert fed(wire + wire) == [wire, wire]
    for cut in range(1, len(wire)):
        assert fed(b"\xc0\x00" + wire[:cut], wire[cut:] + b"\xd0\x00") == [
            b"\xc0\x00",
            wire,
            b"\xd0\x00",
        ]


def test_the_body_begins_behind_the_length() -> None:
    for wire, header in ((b"\xc0\x00", 2), (LARGE, 3), (HUGE, 4)):
        framer = Framer(LIMIT)
        framer.feed(b"\xd0\x00" + wire)
        assert framer.next()
        assert framer.next()
        assert (framer.start, framer.pos, framer.end) == (2, 2 + header, 2 + len(wire))


def test_all_vectors_in_one_stream() -> None:
    stream = b"".join(WIRES)
    assert fed(stream) == WIRES
    assert fed(*(stream[at : at + 7] for at in range(0, len(stream), 7))) == WIRES
    assert fed(*(stream[at : at + 1] for at in range(len(stream)))) == WIRES


@untimed
@given(
    st.lists(st.sampled_from([*WIRES, LARGE, HUGE]), min_size=1, max_size=12),
    st.lists(st.integers(1, 3000), max_size=20),
)
def test_any_chunks(packets: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(packets)
    chunks: list[bytes] = []
    for size in sizes:
        chunks.append(stream[:size])
        stream = stream[size:]
    assert fed(*chunks, stream) == packets


@untimed
@given(st.lists(st.sampled_from([*WIRES, LARGE]), max_size=8), st.data())
def test_feeding_without_asking(packets: list[bytes], data: st.DataObject) -> None:
    """Nobody has to drain the framer between two feeds, nor altogether."""
    stream = b"".join(packets)
    framer = Framer(LIMIT)
    out: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        framer.feed(stream[:size])
        stream = stream[size:]
        for _ in range(data.draw(st.integers(0, 2))):
            if framer.next():
                out.append(framer.data[framer.start : framer.end])
    out += drain(framer)
    assert out == packets
    assert framer.pending == 0


def test_whole_packets_are_not_copied() -> None:
    chunk = b"\xc0\x00" + LARGE
    framer = Framer(LIMIT)
    framer.feed(chunk)
    assert framer.next()
    assert framer.data is chunk
    assert framer.next()
    assert framer.data is chunk


def test_an_idle_framer_holds_nothing() -> None:
    framer = Framer(LIMIT)
    framer.feed(LARGE)
    assert framer.next()
    assert not framer.next()
    assert framer.data == b""
    assert not framer.next()


def test_pending() -> None:
    framer = Framer(LIMIT)
    assert framer.pending == 0
    assert not framer.next()
    framer.feed(b"\xc0\x00" + LARGE[:10])
    assert framer.pending == 12
    assert framer.next()
    assert framer.pending == 10
    assert not framer.next()
    assert framer.pending == 10
    framer.feed(LARGE[10:20])
    assert not framer.next()
    framer.feed(b"")
    assert not framer.next()
    assert framer.pending == 20
    framer.feed(LARGE[20:] + b"\xd0")
    assert framer.pending == len(LARGE) + 1
    assert framer.next()
    assert framer.pending == 1


def test_type_0() -> None:
    assert refusal(b"\x00") == spec.MALFORMED_PACKET
    assert refusal(b"\x0f\x00") == spec.MALFORMED_PACKET


@pytest.mark.parametrize("data", [b"\x30\x80\x00", b"\x30\xff\x80\x00", b"\x30\x80\x80\x80\x00"])
def test_padded_lengths(data: bytes) -> None:
    # [MQTT-1.5.5-1]
    framer = Framer(LIMIT)
    for byte in data[:-1]:
        framer.feed(bytes([byte]))
        assert not framer.next()
    framer.feed(data[-1:])
    with pytest.raises(ProtocolError) as caught:
        framer.next()
    assert (caught.value.code, caught.value.clause) == (spec.MALFORMED_PACKET, "MQTT-1.5.5-1")


def test_lengths_of_five_bytes() -> None:
    assert refusal(b"\x30\x80\x80\x80\x80") == spec.MALFORMED_PACKET
    assert refusal(b"\x30\xff\xff\xff\xff\x7f") == spec.MALFORMED_PACKET


def test_the_limit_counts_the_whole_packet() -> None:
    """The limit is what Maximum Packet Size means: fixed header and all (3.1.2.11.4)."""
    framer = Framer(len(LARGE))
    framer.feed(LARGE)
    assert framer.next()
    assert refusal(LARGE, len(LARGE) - 1) == spec.PACKET_TOO_LARGE
    assert refusal(b"\xc0\x00", 1) == spec.PACKET_TOO_LARGE


def test_too_large_as_soon_as_the_length_is_known() -> None:
    assert refusal(b"\x30\xff\xff\xff\x7f") == spec.PACKET_TOO_LARGE
    assert refusal(LARGE[:3], 1000) == spec.PACKET_TOO_LARGE


def test_the_largest_packet_there_is() -> None:
    framer = Framer(spec.MAX_VARINT + 5)
    framer.feed(b"\x30\xff\xff\xff\x7f")
    assert not framer.next()
    assert framer.pending == 5


def test_the_limit_may_change() -> None:
    framer = Framer(64)
    framer.feed(b"\xc0\x00" + LARGE)
    assert framer.next()
    framer.max_packet_size = LIMIT
    assert framer.next()
    assert framer.data[framer.start : framer.end] == LARGE
    framer.feed(LARGE[:100])
    assert not framer.next()
    framer.max_packet_size = 64
    framer.feed(LARGE[100:])
    with pytest.raises(ProtocolError):
        framer.next()


def test_an_error_is_final() -> None:
    framer = Framer(LIMIT)
    framer.feed(b"\xc0\x00\x00\x00\xc0\x00")
    assert framer.next()
    for _ in range(3):
        with pytest.raises(ProtocolError):
            framer.next()
        framer.feed(b"\xc0\x00")


def test_drops_cost_no_more_than_their_bytes() -> None:
    """A packet that comes byte by byte is kept in one buffer, and looked at once it is there."""
    framer = Framer(LIMIT)
    for at in range(len(HUGE) - 1):
        framer.feed(HUGE[at : at + 1])
        assert not framer.next()
        assert framer.pending == at + 1
    framer.feed(HUGE[-1:])
    assert framer.next()
    assert framer.data == HUGE
