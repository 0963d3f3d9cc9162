"""A byte stream in, whole packets out.

The framer reads nothing but the fixed header: a packet is cut out completely before anybody looks
inside, so bad content can never put the stream out of step. A packet is described by four numbers
into one `bytes` (`first`, `start`, `pos`, `end` into `data`) that stay valid until the next call;
nothing is copied when the bytes arrive in whole packets.

Invariants:
- Every byte is copied a bounded number of times, however the stream is cut (no quadratic
  behaviour).
- Memory follows what has arrived, never what a length field announces.
- A length above `max_packet_size` is refused as soon as it is known, before its packet is
  collected.
- An error is final: the position stays put, and asking again raises again.
"""

from mqttd.core import spec
from mqttd.core.errors import ProtocolError


class Framer:
    """`feed` bytes, then call `next` until it answers False."""

    def __init__(self, max_packet_size: int) -> None:
        # Counts the whole packet, fixed header included, as Maximum Packet Size does.
        self.max_packet_size = max_packet_size
        self.first = 0
        self.data = b""
        self.start = 0
        self.pos = 0
        self.end = 0
        self._at = 0  # where the next packet begins in data
        self._need = 0  # bytes from _at below which another look is useless
        self._tail = bytearray()  # an incomplete packet that is being collected

    @property
    def pending(self) -> int:
        """Bytes that were fed and not yet given out as part of a packet."""
        return len(self._tail) + len(self.data) - self._at

    def feed(self, data: bytes) -> None:
        rest = len(self.data) - self._at
        if self._tail:
            self._tail += data
        elif rest == 0:
            self.data = data
            self._at = 0
            self._need = 0
        elif 0 < self._need <= rest + len(data):
            self.data = self.data[self._at :] + data
            self._at = 0
            self._need = 0
        else:
            # More is missing than this brings, or nobody has asked for packets since the last feed.
            # A bytearray grows in linear time, and unlike a list of chunks it costs no more memory
            # than the bytes in it when they come in drops.
            self._tail += self.data[self._at :]
            self._tail += data
            self.data = b""
            self._at = 0

    def next(self) -> bool:
        """Step to the next whole packet; False when more bytes are needed."""
        if self._tail:
            if len(self._tail) < self._need:
                return False
            self.data = bytes(self._tail)
            self._at = 0
            self._need = 0
            self._tail = bytearray()
        data = self.data
        start = self._at
        size = len(data)
        if start >= size:
            # An idle connection holds on to nothing.
            self.data = b""
            self._at = 0
            return False
        first = data[start]
        if first < 0x10:
            raise ProtocolError(spec.MALFORMED_PACKET, "", "packet type 0 is reserved")
        pos = start + 1
        if pos >= size:
            self._need = 2
            return False
        length = data[pos]
        pos += 1
        if length >= 0x80:
            length &= 0x7F
            shift = 7
            while True:
                if pos >= size:
                    self._need = size - start + 1
                    return False
                byte = data[pos]
                pos += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    if byte == 0:  # [MQTT-1.5.5-1]
                        raise ProtocolError(
                            spec.MALFORMED_PACKET, "MQTT-1.5.5-1", "a padded remaining length"
                        )
                    break
                if shift == 21:
                    raise ProtocolError(
                        spec.MALFORMED_PACKET, "", "a remaining length of more than 4 bytes"
                    )
                shift += 7
        end = pos + length
        if end - start > self.max_packet_size:
            raise ProtocolError(spec.PACKET_TOO_LARGE, "", "larger than the limit on packets")
        if end > size:
            self._need = end - start
            return False
        self.first = first
        self.start = start
        self.pos = pos
        self.end = end
        self._at = end
        return True
