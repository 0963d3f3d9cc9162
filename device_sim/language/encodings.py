"""Fields to bytes: JSON, CBOR, plain text, and Protocol Buffers' wire format.

    json    RFC 8259, UTF-8, nothing that isn't needed between the tokens
    cbor    RFC 8949, a map of text keys; each number in the shortest form that keeps its value
    raw     the values as text, with commas between them; one value is just its text
    packed  the fields numbered from 1 as they stand: sint64, bool, double, string, message; a field
            without a value is left out

Fields are names with values: text, whole numbers, floats, truth values, None, or fields again.
Whole numbers beyond 64 bits travel as floats where the encoding has no room for them. Pure.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Final

Scalar = str | int | float | bool | None
Tree = Mapping[str, "Scalar | Tree"]

_MAX64: Final = 1 << 64
_MAX63: Final = 1 << 63


def to_json(fields: Tree) -> bytes:
    """A JSON object."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def to_raw(fields: Tree) -> bytes:
    """The values alone."""
    return ",".join(_texts(fields)).encode("utf-8", "replace")


def _texts(fields: Tree) -> list[str]:
    texts: list[str] = []
    for value in fields.values():
        if isinstance(value, Mapping):
            texts += _texts(value)
        elif isinstance(value, bool):
            texts.append("true" if value else "false")
        else:
            texts.append("" if value is None else str(value))
    return texts


def to_cbor(fields: Tree) -> bytes:
    """A CBOR map."""
    out = bytearray()
    _cbor(out, fields)
    return bytes(out)


def _cbor(out: bytearray, value: Scalar | Tree) -> None:
    if isinstance(value, Mapping):
        _cbor_head(out, 5, len(value))
        for name, inner in value.items():
            _cbor(out, name)
            _cbor(out, inner)
    elif isinstance(value, str):
        text = value.encode("utf-8", "replace")
        _cbor_head(out, 3, len(text))
        out += text
    elif value is None:
        out.append(0xF6)
    elif isinstance(value, bool):
        out.append(0xF5 if value else 0xF4)
    elif isinstance(value, int) and -_MAX64 <= value < _MAX64:
        if value >= 0:
            _cbor_head(out, 0, value)
        else:
            _cbor_head(out, 1, -1 - value)
    else:
        _cbor_float(out, float(value))


def _cbor_head(out: bytearray, major: int, argument: int) -> None:
    kind = major << 5
    if argument < 24:
        out.append(kind | argument)
        return
    for at, (end, form) in enumerate(((8, ">B"), (16, ">H"), (32, ">I"), (64, ">Q"))):
        if argument < 1 << end:
            out.append(kind | 24 + at)
            out += struct.pack(form, argument)
            return


def _cbor_float(out: bytearray, value: float) -> None:
    for head, form in ((0xF9, ">e"), (0xFA, ">f")):
        try:
            short = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, short)[0] == value:
            out.append(head)
            out += short
            return
    out.append(0xFB)
    out += struct.pack(">d", value)


def to_packed(fields: Tree) -> bytes:
    """A message in the wire format of Protocol Buffers."""
    out = bytearray()
    for number, value in enumerate(fields.values(), 1):
        if isinstance(value, bool):
            _varint(out, number << 3)
            out.append(1 if value else 0)
        elif isinstance(value, int) and -_MAX63 <= value < _MAX63:
            _varint(out, number << 3)
            _varint(out, value << 1 if value >= 0 else (-value << 1) - 1)
        elif isinstance(value, int | float):
            _varint(out, number << 3 | 1)
            out += struct.pack("<d", value)
        elif value is not None:
            inner = value.encode("utf-8", "replace") if isinstance(value, str) else to_packed(value)
            _varint(out, number << 3 | 2)
            _varint(out, len(inner))
            out += inner
    return bytes(out)


def _varint(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


ENCODERS: Final[dict[str, Callable[[Tree], bytes]]] = {
    "json": to_json,
    "cbor": to_cbor,
    "raw": to_raw,
    "packed": to_packed,
}
