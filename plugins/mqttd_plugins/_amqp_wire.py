"""AMQP 0-9-1 as bytes: frames, methods, property lists, tables.

Owns: every byte that goes to a server or comes from it. Only what the bridge uses is here: the
methods that it sends, and those that a server answers with or sends by itself.

A stream is frames of (kind, channel, payload). A method is a frame. A message is a method, a header
frame with the size and the properties, and body frames of at most `frame_max` bytes each.

Reading is of two sorts. A method comes from the server itself: one that makes no sense is a
`WireError`, and the connection is of no use any more. Properties come from whoever published, and a
server hands on what it hasn't looked at; one broken header must not end the connection each time
that it is delivered. So they are read as far as they go and never raise.

Must not know: sockets, what a message of MQTT is, the order of methods.

Invariants: `Frames` keeps at most one frame that isn't whole, and none longer than `longest`, or
than a MiB if it has a header: RabbitMQ cuts bodies to what was agreed upon, but sends a header as
it is, and makes it longer (`x-death`).
"""

from __future__ import annotations

import datetime
import decimal
import functools
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
PROTOCOL: Final = b"AMQP\0\0\x09\x01"
BEAT: Final = b"\x08\0\0\0\0\0\0\xce"
LONGEST: Final = 131072  # of a frame, until something else was agreed upon
OVERHEAD: Final = 8  # bytes of a frame around its payload
_LONGEST_HEADER: Final = 1 << 20
_END: Final = 0xCE
_NESTED: Final = 32  # tables in tables; deeper ones are nobody's

_FRAME: Final = struct.Struct(">BHI")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_CONTENT: Final = struct.Struct(">HHQ")  # class, weight, bytes of the body
_BASIC: Final = 60  # the class of messages


class WireError(Exception):
    """Bytes that are no AMQP 0-9-1. Says what is wrong with them."""


def frame_of(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, channel, len(payload)) + payload + b"\xce"


class Frames:
    """Cuts frames out of a stream."""

    def __init__(self) -> None:
        self.longest = LONGEST  # bytes of a frame, with everything
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that are whole by now: kind, channel, payload. WireError."""
        if self._rest:
            data = self._rest + data
        out: list[tuple[int, int, bytes]] = []
        pos, size = 0, len(data)
        while size - pos >= _FRAME.size:
            kind, channel, length = _FRAME.unpack_from(data, pos)
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                raise WireError("expected a frame of AMQP 0-9-1: is this its port?")
            if length + OVERHEAD > self.longest and (kind != HEADER or length > _LONGEST_HEADER):
                raise WireError(f"a frame of {length} bytes: agreed were {self.longest} at most")
            start = pos + _FRAME.size
            end = start + length
            if end >= size:
                break
            if data[end] != _END:
                raise WireError("a frame without its end")
            out.append((kind, channel, data[start:end]))
            pos = end + 1
        self._rest = data[pos:]
        return out


# Values: each reader takes (data, pos) and returns the value and the position behind it.


def _read_octet(data: bytes, pos: int) -> tuple[Any, int]:
    return data[pos], pos + 1


def _read_u16(data: bytes, pos: int) -> tuple[Any, int]:
    return _U16.unpack_from(data, pos)[0], pos + 2


def _read_u32(data: bytes, pos: int) -> tuple[Any, int]:
    return _U32.unpack_from(data, pos)[0], pos + 4


def _read_u64(data: bytes, pos: int) -> tuple[Any, int]:
    return _U64.unpack_from(data, pos)[0], pos + 8


def _read_short(data: bytes, pos: int) -> tuple[Any, int]:
    end = pos + 1 + data[pos]
    return _cut(data, pos + 1, end).decode(errors="replace"), end


def _read_long(data: bytes, pos: int) -> tuple[Any, int]:
    end = pos + 4 + _U32.unpack_from(data, pos)[0]
    return _cut(data, pos + 4, end), end


def _read_table(data: bytes, pos: int) -> tuple[Any, int]:
    inside, end = _read_long(data, pos)
    return _table_from(inside, 0), end


def _cut(data: bytes, pos: int, end: int) -> bytes:
    if end > len(data):
        raise IndexError("a value without its end")
    return data[pos:end]


def _write_short(value: str) -> bytes:
    data = value.encode()
    if len(data) > 255:
        raise ValueError(f"{value[:40]!r}…: {len(data)} bytes: a name has 255 at most")
    return bytes((len(data),)) + data


def _write_long(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


_write_name: Final = functools.lru_cache(maxsize=1024)(_write_short)  # the same ones, mostly


def pairs_of(table: Mapping[str, Any]) -> bytes:
    """What is in a table: text, byte strings, booleans, integers, tables. Pairs may be joined."""
    parts: list[bytes] = []
    for name, value in table.items():
        if type(value) is str:
            data = value.encode()
            parts += (_write_name(name), b"S", _U32.pack(len(data)), data)
        else:
            parts += (_write_name(name), _written(value))
    return b"".join(parts)


def _write_table(table: Mapping[str, Any]) -> bytes:
    return _write_long(pairs_of(table))


def _written(value: Any) -> bytes:
    """A value of a table that isn't text: a boolean, an integer, a byte string, a table."""
    if isinstance(value, bool):
        return b"t\1" if value else b"t\0"
    if isinstance(value, int):
        return b"l" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, bytes | bytearray):
        return b"x" + _write_long(bytes(value))
    return b"F" + _write_table(value)


_READERS: Final[Mapping[str, Callable[[bytes, int], tuple[Any, int]]]] = {
    "B": _read_octet,
    "H": _read_u16,
    "I": _read_u32,
    "Q": _read_u64,
    "s": _read_short,
    "S": _read_long,
    "T": _read_table,
}
_WRITERS: Final[Mapping[str, Callable[[Any], bytes]]] = {
    "B": lambda value: bytes((value,)),
    "H": _U16.pack,
    "I": _U32.pack,
    "Q": _U64.pack,
    "s": _write_short,
    "S": _write_long,
    "T": _write_table,
}


# Methods.


class Method:
    """One method. `layout` has a letter for each field: B H I Q are integers of 1, 2, 4 and 8
    bytes, s and S a short and a long string, T a table, and b a bit; bits share an octet."""

    def __init__(self, class_id: int, method_id: int, name: str, layout: str = "") -> None:
        self.code = class_id << 16 | method_id
        self.name = name
        self.layout = layout
        _METHODS[self.code] = self

    def __repr__(self) -> str:
        return self.name

    def frame(self, channel: int, *fields: Any) -> bytes:
        """The frame that says it. ValueError for a text that is too long."""
        out = [_U32.pack(self.code)]
        bits = place = 0
        for letter, field in zip(self.layout + " ", (*fields, None), strict=True):
            if letter == "b":
                bits |= bool(field) << place
                place += 1
                continue
            if place:
                out.append(bytes((bits,)))
                bits = place = 0
            if letter != " ":
                out.append(_WRITERS[letter](field))
        return frame_of(METHOD, channel, b"".join(out))

    def fields(self, payload: bytes) -> list[Any]:
        """What is in it, in the order of the layout."""
        out: list[Any] = []
        pos, place = 4, 0
        for letter in self.layout:
            if letter == "b":
                out.append(bool(payload[pos] >> place & 1))
                place += 1
                continue
            if place:
                pos, place = pos + 1, 0
            value, pos = _READERS[letter](payload, pos)
            out.append(value)
        return out


_METHODS: Final[dict[int, Method]] = {}

START: Final = Method(10, 10, "connection.start", "BBTSS")
START_OK: Final = Method(10, 11, "connection.start-ok", "TsSs")
TUNE: Final = Method(10, 30, "connection.tune", "HIH")
TUNE_OK: Final = Method(10, 31, "connection.tune-ok", "HIH")
OPEN: Final = Method(10, 40, "connection.open", "ssb")
OPEN_OK: Final = Method(10, 41, "connection.open-ok", "s")
CLOSE: Final = Method(10, 50, "connection.close", "HsHH")
CLOSE_OK: Final = Method(10, 51, "connection.close-ok")
BLOCKED: Final = Method(10, 60, "connection.blocked", "s")
UNBLOCKED: Final = Method(10, 61, "connection.unblocked")
CHANNEL_OPEN: Final = Method(20, 10, "channel.open", "s")
CHANNEL_OPEN_OK: Final = Method(20, 11, "channel.open-ok", "S")
CHANNEL_CLOSE: Final = Method(20, 40, "channel.close", "HsHH")
CHANNEL_CLOSE_OK: Final = Method(20, 41, "channel.close-ok")
EXCHANGE_DECLARE: Final = Method(40, 10, "exchange.declare", "HssbbbbbT")
EXCHANGE_DECLARE_OK: Final = Method(40, 11, "exchange.declare-ok")
QUEUE_DECLARE: Final = Method(50, 10, "queue.declare", "HsbbbbbT")
QUEUE_DECLARE_OK: Final = Method(50, 11, "queue.declare-ok", "sII")
QUEUE_BIND: Final = Method(50, 20, "queue.bind", "HsssbT")
QUEUE_BIND_OK: Final = Method(50, 21, "queue.bind-ok")
QOS: Final = Method(60, 10, "basic.qos", "IHb")
QOS_OK: Final = Method(60, 11, "basic.qos-ok")
CONSUME: Final = Method(60, 20, "basic.consume", "HssbbbbT")
CONSUME_OK: Final = Method(60, 21, "basic.consume-ok", "s")
CANCEL: Final = Method(60, 30, "basic.cancel", "sb")
PUBLISH: Final = Method(60, 40, "basic.publish", "Hssbb")
RETURN: Final = Method(60, 50, "basic.return", "Hsss")
DELIVER: Final = Method(60, 60, "basic.deliver", "sQbss")
ACK: Final = Method(60, 80, "basic.ack", "Qb")
NACK: Final = Method(60, 120, "basic.nack", "Qbb")
CONFIRM_SELECT: Final = Method(85, 10, "confirm.select", "b")
CONFIRM_SELECT_OK: Final = Method(85, 11, "confirm.select-ok")


def method_from(payload: bytes) -> tuple[Method, list[Any]]:
    """The method of a frame, and its fields. WireError."""
    try:
        method = _METHODS[_U32.unpack_from(payload)[0]]
        return method, method.fields(payload)
    except KeyError:
        ids = struct.unpack_from(">HH", payload)
        raise WireError("unexpected method {}.{}".format(*ids)) from None
    except (IndexError, struct.error):
        raise WireError("a method that breaks off") from None


# Messages.

_PROPERTIES: Final = (
    ("content_type", 1 << 15, "s"),
    ("content_encoding", 1 << 14, "s"),
    ("headers", 1 << 13, "T"),
    ("delivery_mode", 1 << 12, "B"),
    ("priority", 1 << 11, "B"),
    ("correlation_id", 1 << 10, "s"),
    ("reply_to", 1 << 9, "s"),
    ("expiration", 1 << 8, "s"),
    ("message_id", 1 << 7, "s"),
    ("timestamp", 1 << 6, "Q"),
    ("message_type", 1 << 5, "s"),
    ("user_id", 1 << 4, "s"),
    ("app_id", 1 << 3, "s"),
)

_WRITTEN: Final = tuple((name, flag, _WRITERS[letter]) for name, flag, letter in _PROPERTIES)
_USUAL: Final = _U16.pack(1 << 13 | 1 << 12 | 1 << 7)
_READ: Final = tuple((name, flag, _READERS[letter]) for name, flag, letter in _PROPERTIES)


class Properties:
    """The properties of a message; None where there is none."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    message_type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


def block_of(properties: Mapping[str, Any]) -> bytes:
    """Properties, by their names, as they stand in a header frame."""
    flags = 0
    parts = [b""]
    for name, flag, write in _WRITTEN:
        if name in properties:
            flags |= flag
            parts.append(write(properties[name]))
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def usual_block(pairs: bytes, delivery_mode: int, message_id: str) -> bytes:
    """The same for `headers`, by what `pairs_of` made, `delivery_mode` and `message_id` alone."""
    mode = bytes((delivery_mode,))
    return _USUAL + _U32.pack(len(pairs)) + pairs + mode + _write_short(message_id)


def content_header(channel: int, body_size: int, block: bytes) -> bytes:
    """The header frame of a message."""
    return frame_of(HEADER, channel, _CONTENT.pack(_BASIC, 0, body_size) + block)


def body_frames(channel: int, body: bytes, frame_max: int) -> list[bytes]:
    """The frames of a body; none for an empty one."""
    most = frame_max - OVERHEAD
    if len(body) <= most:
        return [frame_of(BODY, channel, body)] if body else []
    return [
        frame_of(BODY, channel, body[start : start + most]) for start in range(0, len(body), most)
    ]


def content_from(payload: bytes) -> tuple[int, Properties]:
    """Of a header frame: the size of the body, and the properties as far as they go. WireError."""
    try:
        _, _, size = _CONTENT.unpack_from(payload)
        (flags,) = _U16.unpack_from(payload, _CONTENT.size)
    except struct.error:
        raise WireError("a header that breaks off") from None
    properties = Properties()
    pos = _CONTENT.size + 2
    try:
        for name, flag, read in _READ:
            if flags & flag:
                value, pos = read(payload, pos)
                setattr(properties, name, value)
    except (IndexError, struct.error):
        pass
    return size, properties


# Tables.


def _table_from(data: bytes, depth: int) -> dict[str, Any]:
    """A table as far as it can be read: what follows something unknown can't be found."""
    out: dict[str, Any] = {}
    pos, size = 0, len(data)
    try:
        while pos < size:
            name, pos = _read_short(data, pos)
            value, pos = _value_from(data, pos, depth)
            out[name] = value
    except (IndexError, KeyError, struct.error):
        pass
    return out


def _list_from(data: bytes, depth: int) -> list[Any]:
    out: list[Any] = []
    pos, size = 0, len(data)
    try:
        while pos < size:
            value, pos = _value_from(data, pos, depth)
            out.append(value)
    except (IndexError, KeyError, struct.error):
        pass
    return out


_FIXED: Final[Mapping[int, struct.Struct]] = {
    ord(letter): struct.Struct(f">{code}")
    for letter, code in (
        *(("b", "b"), ("B", "B"), ("s", "h"), ("u", "H"), ("I", "i"), ("i", "I")),
        *(("l", "q"), ("L", "q"), ("f", "f"), ("d", "d"), ("t", "?"), ("D", "Bi"), ("T", "Q")),
    )
}


def _value_from(data: bytes, pos: int, depth: int) -> tuple[Any, int]:
    """One value of a table: its type, then itself. IndexError, KeyError, struct.error."""
    kind = data[pos]
    pos += 1
    if kind == 0x53:  # S
        raw, end = _read_long(data, pos)
        try:
            return raw.decode(), end
        except UnicodeDecodeError:
            return raw, end
    if kind in b"FAx":
        raw, end = _read_long(data, pos)
        if kind == 0x78 or depth == _NESTED:  # x
            return raw, end
        return (_table_from if kind == 0x46 else _list_from)(raw, depth + 1), end
    if kind == 0x56:  # V
        return None, pos
    fixed = _FIXED[kind]
    found = fixed.unpack_from(data, pos)
    value: Any = found[0]
    if kind == 0x44:  # D
        value = decimal.Decimal(found[1]).scaleb(-found[0])
    elif kind == 0x54:  # T
        value = _time_of(value)
    return value, pos + fixed.size


def _time_of(seconds: int) -> datetime.datetime | int:
    """A time; the number itself where no calendar has it."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return seconds
