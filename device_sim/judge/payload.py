"""The 32 bytes at the front of every payload that make a message traceable.

    offset size
         0    4   CRC-32 of everything that follows, padding included
         4    1   magic 0xD5
         5    1   layout version in the high nibble, QoS it was published with in the low one
         6    2   topic stream of the publisher
         8    4   run id: tells apart messages of another run, or retained by an earlier one
        12    4   publisher
        16    4   sequence within (publisher, stream), from 0
        20    8   intended send time, nanoseconds of the system's monotonic clock
        28    4   how much later it was really sent, microseconds (stops at 71 minutes)

All integers are big-endian. After the header comes padding up to the wanted payload size, a pattern
that depends on the run and has no repeats shorter than 251 bytes, so that a shifted or truncated
copy fails the check.

Owns this layout, in both directions, and the template that turns a finished PUBLISH frame into the
next one by patching it. Knows nothing of MQTT (a frame is bytes and two offsets), of clocks, or of
what the numbers mean to a verdict.

The check sum comes first because one slice then covers all it protects: the reader's cost is a
slice, a CRC and one struct call a message.
"""

import struct
import zlib
from typing import Final

HEADER_SIZE: Final = 32
MAGIC: Final = 0xD5
LAYOUT: Final = 1
MAX_SEQUENCE: Final = 0xFFFFFFFF
MAX_STREAM: Final = 0xFFFF
MAX_LAG_US: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct(">IBBHIIIQI")
_COVERED: Final = struct.Struct(">BBHIIIQI")
_MOVING: Final = struct.Struct(">IQI")
_CRC: Final = struct.Struct(">I")
_MOVING_AT: Final = 16


class Header:
    """What a payload says about itself."""

    def __init__(
        self,
        run: int,
        publisher: int,
        stream: int,
        qos: int,
        sequence: int,
        intended_ns: int,
        lag_us: int,
    ) -> None:
        self.run = run
        self.publisher = publisher
        self.stream = stream
        self.qos = qos
        self.sequence = sequence
        self.intended_ns = intended_ns
        self.lag_us = lag_us


def padding(run: int, size: int) -> bytes:
    """The filler of a payload of `size` bytes."""
    need = size - HEADER_SIZE
    if need <= 0:
        return b""
    start = run % 251
    wheel = bytes([(start + 7 * i) % 251 for i in range(251)])
    return (wheel * (need // 251 + 1))[:need]


def encode(header: Header, size: int) -> bytes:
    """A whole payload of `size` bytes. The plain way; publishers patch a Template instead."""
    return seal(header, padding(header.run, size))


def seal(header: Header, body: bytes) -> bytes:
    """A whole payload with `body` behind its header."""
    covered = (
        _COVERED.pack(
            MAGIC,
            LAYOUT << 4 | header.qos,
            header.stream,
            header.run,
            header.publisher,
            header.sequence,
            header.intended_ns,
            header.lag_us,
        )
        + body
    )
    return _CRC.pack(zlib.crc32(covered)) + covered


def decode(payload: bytes) -> Header | None:
    """The header of a payload, or None when the check sum or the layout is wrong."""
    if len(payload) < HEADER_SIZE:
        return None
    crc, magic, kind, stream, run, publisher, sequence, intended_ns, lag_us = _HEADER.unpack_from(
        payload, 0
    )
    if magic != MAGIC or kind >> 4 != LAYOUT or zlib.crc32(payload[4:]) != crc:
        return None
    return Header(run, publisher, stream, kind & 15, sequence, intended_ns, lag_us)


class Template:
    """One stream's PUBLISH frame, encoded once; each message is the frame with a few bytes patched.

    `payload_at` is where the payload starts in the frame, `id_at` where its packet identifier does
    (0 at QoS 0, which has none). `shared` is the end of the payload when it isn't part of `frame`:
    long padding is the same for all templates and is kept once.
    """

    def __init__(self, frame: bytes, payload_at: int, id_at: int, shared: bytes = b"") -> None:
        self.frame: bytearray = bytearray(frame)
        self.payload_at: int = payload_at
        self.id_at: int = id_at
        self.shared: bytes = shared
        self.size: int = len(frame) + len(shared)
        self._covered: memoryview = memoryview(self.frame)[payload_at + 4 :]

    def write(
        self, out: bytearray, packet_id: int, sequence: int, intended_ns: int, lag_us: int
    ) -> None:
        """Append the frame of the next message to `out`."""
        frame = self.frame
        at = self.payload_at
        if self.id_at:
            frame[self.id_at] = packet_id >> 8
            frame[self.id_at + 1] = packet_id & 0xFF
        _MOVING.pack_into(frame, at + _MOVING_AT, sequence, intended_ns, lag_us)
        crc = zlib.crc32(self._covered)
        if self.shared:
            crc = zlib.crc32(self.shared, crc)
        _CRC.pack_into(frame, at, crc)
        out += frame
        if self.shared:
            out += self.shared
