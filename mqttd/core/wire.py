"""The seven data types of MQTT, from bytes and back.

Readers take `(data, pos, end)` and return the value and the position behind it. `end` is the end
of what they may look at (a packet, or a property block), not of `data`: a field that would cross
it is malformed, however many bytes happen to follow. Readers raise
`ProtocolError(MALFORMED_PACKET)` and nothing else.

Writers take a value and return bytes. A value that doesn't fit its type is a mistake of the
caller, hence a `ValueError` and not a `ProtocolError`.

`data` is always `bytes`: indexing it is one machine load once compiled, where a memoryview or
bytearray costs twenty times as much. Nothing here knows what the fields mean.
"""

from typing import Final

from mqttd.core import spec
from mqttd.core.errors import ProtocolError

_SHORT_TEXT: Final = 32
_SHORT: Final = "a field runs past the end of the packet"

# One-byte values and lengths below 128 are by far the most common: a lookup instead of an
# allocation.
_BYTE: Final[list[bytes]] = [bytes((n,)) for n in range(256)]

# The two bytes of each packet identifier, made when it is first used: identifiers come again and
# again, and every QoS 1 and 2 packet carries one.
_IDENTIFIERS: Final[list[bytes]] = [b""] * 65536


def read_u8(data: bytes, pos: int, end: int) -> tuple[int, int]:
    if pos >= end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
    return data[pos], pos + 1


def read_u16(data: bytes, pos: int, end: int) -> tuple[int, int]:
    after = pos + 2
    if after > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
    return data[pos] << 8 | data[pos + 1], after


def read_u32(data: bytes, pos: int, end: int) -> tuple[int, int]:
    after = pos + 4
    if after > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
    high = data[pos] << 24 | data[pos + 1] << 16
    return high | data[pos + 2] << 8 | data[pos + 3], after


def read_varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """A Variable Byte Integer in its shortest form, one to four bytes."""
    if pos >= end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
    byte = data[pos]
    pos += 1
    if byte < 0x80:
        return byte, pos
    value = byte & 0x7F
    shift = 7
    while shift <= 21:
        if pos >= end:
            raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0:  # [MQTT-1.5.5-1]
                raise ProtocolError(
                    spec.MALFORMED_PACKET, "MQTT-1.5.5-1", "a padded variable byte integer"
                )
            return value, pos
        shift += 7
    raise ProtocolError(spec.MALFORMED_PACKET, "", "a variable byte integer of more than 4 bytes")


def read_binary(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    after = skip_binary(data, pos, end)
    return data[pos + 2 : after], after


def skip_binary(data: bytes, pos: int, end: int) -> int:
    start = pos + 2
    if start > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
    after = start + (data[pos] << 8 | data[pos + 1])
    if after > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", _SHORT)
    return after


def read_string(data: bytes, pos: int, end: int) -> tuple[str, int]:
    """A UTF-8 string, checked. A leading U+FEFF is a character like any other."""
    raw, after = read_binary(data, pos, end)
    return decode_utf8(raw), after


def skip_string(data: bytes, pos: int, end: int) -> int:
    """Check a UTF-8 string as strictly as `read_string` does and return the position behind it."""
    length, at = read_u16(data, pos, end)
    after = at + length
    if length <= _SHORT_TEXT and after <= end:
        # Names and values of properties are mostly short and plain ASCII: no object for those.
        while at < after and 0 < data[at] < 0x80:
            at += 1
        if at == after:
            return after
    raw, after = read_binary(data, pos, end)
    decode_utf8(raw)
    return after


def decode_utf8(raw: bytes) -> str:
    """Text that MQTT allows: strict UTF-8 without surrogates and without U+0000."""
    try:
        # Python's strict decoder refuses encoded surrogates and keeps a byte-order mark.
        text = raw.decode("utf-8")  # [MQTT-1.5.4-1] [MQTT-1.5.4-3] [MQTT-4.7.3-3]
    except UnicodeDecodeError:
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-1.5.4-1", "not valid UTF-8") from None
    if "\0" in text:  # [MQTT-1.5.4-2] [MQTT-4.7.3-2]
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-1.5.4-2", "U+0000 in a string")
    return text


def u8(value: int) -> bytes:
    if value < 0 or value > 255:
        raise ValueError("does not fit one byte")
    return _BYTE[value]


def u16(value: int) -> bytes:
    if value < 0 or value > spec.MAX_U16:
        raise ValueError("does not fit two bytes")
    return _BYTE[value >> 8] + _BYTE[value & 0xFF]


def u32(value: int) -> bytes:
    if value < 0 or value > spec.MAX_U32:
        raise ValueError("does not fit four bytes")
    return value.to_bytes(4, "big")


def varint(value: int) -> bytes:
    """The shortest Variable Byte Integer."""  # [MQTT-1.5.5-1]
    if value < 0 or value > spec.MAX_VARINT:
        raise ValueError("does not fit a variable byte integer")
    if value < 0x80:
        return _BYTE[value]
    out = _BYTE[value & 0x7F | 0x80]
    value >>= 7
    while value >= 0x80:
        out += _BYTE[value & 0x7F | 0x80]
        value >>= 7
    return out + _BYTE[value]


def binary(value: bytes) -> bytes:
    if len(value) > spec.MAX_U16:
        raise ValueError("longer than 65535 bytes")
    return u16(len(value)) + value


def string(value: str) -> bytes:
    return binary(value.encode("utf-8"))


def packet_id_bytes(packet_id: int) -> bytes:
    """The two bytes of a packet identifier, which is known to lie in 1..65535."""
    known = _IDENTIFIERS[packet_id]
    if not known:
        known = _IDENTIFIERS[packet_id] = _BYTE[packet_id >> 8] + _BYTE[packet_id & 0xFF]
    return known
