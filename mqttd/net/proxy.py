"""The PROXY protocol: what a load balancer says about the client before the first byte of it.

Owns: the grammar of versions 1 (a line of text) and 2 (binary), after the specification by HAProxy.
`parse` is a pure function over the bytes so far; it can be called again with more of them, and says
exactly how many belong to the header, so that not one byte of TLS or MQTT behind it is touched.

Must not know: sockets, timeouts, which listeners expect a header. A listener that does, expects it
of everybody: whoever may connect to it may claim any address.

Invariants: anything that is not a header of the expected version raises `ProxyError`; "need more"
is returned only while every byte given belongs to the header; never more than `MAX_HEADER` is
needed.
"""

from __future__ import annotations

import ipaddress
from typing import Final

V1: Final = "v1"
V2: Final = "v2"

_V1_LONGEST: Final = 107
_V1_START: Final = b"PROXY "
_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16
# The specification leaves room for 64 KiB of extensions; balancers send some hundred bytes.
_V2_LONGEST: Final = 4096
MAX_HEADER: Final = _V2_FIXED + _V2_LONGEST


class ProxyError(Exception):
    """Not a header of the expected version."""


class Header:
    """How long the header was, and who is behind the proxy ("" when it doesn't say)."""

    __slots__ = ("length", "peer")

    def __init__(self, length: int, peer: str) -> None:
        self.length = length
        self.peer = peer


def parse(data: bytes, version: str) -> Header | None:
    """The header at the start of `data`; None while it needs more bytes."""
    return _parse_v1(data) if version == V1 else _parse_v2(data)


def format_peer(host: str, port: int) -> str:
    """An address as logs show it; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        start = data[: len(_V1_START)]
        if not _V1_START.startswith(start) or len(data) >= _V1_LONGEST:
            raise ProxyError("not a PROXY v1 line")
        return None
    try:
        words = data[:end].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxyError("a PROXY v1 line that isn't ASCII") from None
    if words[0] != "PROXY" or len(words) < 2:
        raise ProxyError("not a PROXY v1 line")
    if words[1] == "UNKNOWN":
        return Header(end + 2, "")  # whatever follows the word has no meaning
    if words[1] not in ("TCP4", "TCP6") or len(words) != 6:
        raise ProxyError("a PROXY v1 line with another protocol than TCP4, TCP6 or UNKNOWN")
    source = _address(words[2], words[1])
    _address(words[3], words[1])
    port = _port(words[4])
    _port(words[5])
    return Header(end + 2, format_peer(source, port))


def _address(text: str, protocol: str) -> str:
    try:
        if protocol == "TCP4":
            return str(ipaddress.IPv4Address(text))
        if "%" in text:
            raise ValueError("a scope has no meaning here")
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ProxyError("an address that is none in a PROXY v1 line") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or (text[0] == "0" and text != "0"):
        raise ProxyError("a port that is none in a PROXY v1 line")
    port = int(text)
    if port > 65535:
        raise ProxyError("a port that is none in a PROXY v1 line")
    return port


def _parse_v2(data: bytes) -> Header | None:
    signature = data[: len(_V2_SIGNATURE)]
    if not _V2_SIGNATURE.startswith(signature):
        raise ProxyError("not a PROXY v2 header")
    if len(data) > 12 and data[12] not in (0x20, 0x21):
        raise ProxyError("a PROXY v2 header with an unknown version or command")
    if len(data) < _V2_FIXED:
        return None
    family = data[13]
    length = (data[14] << 8) | data[15]
    if length > _V2_LONGEST:
        raise ProxyError("a PROXY v2 header that is too long")
    end = _V2_FIXED + length
    if data[12] == 0x20:  # LOCAL: the proxy itself, a health check for instance
        return Header(end, "") if len(data) >= end else None
    if family == 0x11:
        needed = 12
    elif family == 0x21:
        needed = 36
    elif family == 0x31:
        needed = 216
    elif family == 0x00:  # UNSPEC: the address has no meaning
        needed = 0
    else:
        raise ProxyError("a PROXY v2 header for something that isn't a stream")
    if length < needed:
        raise ProxyError("a PROXY v2 header that is too short for its address")
    if len(data) < end:
        return None
    if needed == 12:
        host = str(ipaddress.IPv4Address(data[16:20]))
        return Header(end, format_peer(host, (data[24] << 8) | data[25]))
    if needed == 36:
        host = str(ipaddress.IPv6Address(data[16:32]))
        return Header(end, format_peer(host, (data[48] << 8) | data[49]))
    return Header(end, "unix" if needed else "")
