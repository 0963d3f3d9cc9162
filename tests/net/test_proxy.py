"""The PROXY protocol's grammar: what counts, what doesn't, and not one byte too many."""

import ipaddress
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mqttd.net.proxy import MAX_HEADER, V1, V2, ProxyError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
TLV = b"\x02\x00\x07balance"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes((0x20 | command, family)) + struct.pack(">H", len(body)) + body


def inet(source: str, port: int) -> bytes:
    address = ipaddress.ip_address(source)
    other = address.packed[:-1] + b"\x01"
    return address.packed + other + struct.pack(">HH", port, 1883)


GOOD = [
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 50412 1883\r\n", "192.0.2.7:50412"),
    (V1, b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
    (V1, b"PROXY TCP6 2001:db8::7 2001:db8::1 50412 1883\r\n", "[2001:db8::7]:50412"),
    (V1, b"PROXY UNKNOWN\r\n", ""),
    (V1, b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", ""),  # 107 bytes, the longest there is
    (V2, v2(1, 0x11, inet("192.0.2.7", 50412)), "192.0.2.7:50412"),
    (V2, v2(1, 0x21, inet("2001:db8::7", 50412)), "[2001:db8::7]:50412"),
    (V2, v2(1, 0x11, inet("192.0.2.7", 50412) + TLV), "192.0.2.7:50412"),
    (V2, v2(1, 0x11, inet("192.0.2.7", 50412) + bytes(4084)), "192.0.2.7:50412"),
    (V2, v2(1, 0x31, b"/run/client".ljust(216, b"\0")), "unix"),
    (V2, v2(1, 0x00, b""), ""),
    (V2, v2(1, 0x00, TLV), ""),
    (V2, v2(0, 0x00, b""), ""),
    (V2, v2(0, 0x11, inet("192.0.2.7", 50412)), ""),  # LOCAL: the address has no meaning
]

BAD = [
    (V1, b"\x10\x10\x00\x04MQTT"),
    (V1, b"PROXY\r\n"),
    (V1, b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n"),
    (V1, b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n"),
    (V1, b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n"),
    (V1, b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n"),
    (V1, b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 1 +2\r\n"),
    (V1, b"PROXY TCP4 192.0.2.7 198.51.100.1 1 \xb2\r\n"),
    (V1, b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n"),
    (V1, b"proxy UNKNOWN\r\n"),
    (V1, b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n"),
    (V1, b"PROXY UNKNOWN\n" + b" " * 100),
    (V1, v2(1, 0x11, inet("192.0.2.7", 50412))),
    (V2, b"PROXY UNKNOWN\r\n"),
    (V2, b"\r\n\r\n\x00\r\nQUIT\r"),
    (V2, v2(2, 0x11, inet("192.0.2.7", 50412))),
    (V2, SIGNATURE + b"\x11\x11\x00\x0c" + inet("192.0.2.7", 50412)),
    (V2, v2(1, 0x12, inet("192.0.2.7", 50412))),  # a datagram
    (V2, v2(1, 0x41, b"")),
    (V2, v2(1, 0x11, inet("192.0.2.7", 50412)[:-1])),
    (V2, v2(1, 0x21, inet("192.0.2.7", 50412))),
    (V2, v2(1, 0x31, bytes(215))),
    (V2, v2(1, 0x11, inet("192.0.2.7", 50412) + bytes(5000))),
    (V2, v2(0, 0x00, bytes(65535))),
]


@pytest.mark.parametrize(("version", "data", "peer"), GOOD)
def test_whole_and_with_the_stream_behind_it(version: str, data: bytes, peer: str) -> None:
    for rest in (b"", b"\x10\x10\x00\x04MQTT", b"\r\n", SIGNATURE):
        header = parse(data + rest, version)
        assert header is not None
        assert (header.length, header.peer) == (len(data), peer)


@pytest.mark.parametrize(("version", "data", "peer"), GOOD)
def test_byte_by_byte_it_asks_for_more_until_it_is_whole(
    version: str, data: bytes, peer: str
) -> None:
    assert len(data) <= MAX_HEADER
    for length in range(len(data)):
        assert parse(data[:length], version) is None


@pytest.mark.parametrize(("version", "data"), BAD)
def test_anything_else_is_refused(version: str, data: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(data, version)


@pytest.mark.parametrize(("version", "data"), BAD)
def test_and_no_prefix_of_it_is_taken_for_a_header(version: str, data: bytes) -> None:
    for length in range(len(data)):
        try:
            assert parse(data[:length], version) is None
        except ProxyError:
            return


@settings(deadline=None)
@given(st.sampled_from((V1, V2)), st.binary(max_size=300))
@example(V1, b"PROXY ")
@example(V2, SIGNATURE)
def test_no_bytes_do_more_than_that(version: str, data: bytes) -> None:
    starts = (b"", b"PROXY ", b"PROXY TCP4 ") if version == V1 else (b"", SIGNATURE + b"!\x11")
    for start in starts:
        whole = start + data
        try:
            header = parse(whole, version)
        except ProxyError:
            continue
        if header is None:
            assert len(whole) < MAX_HEADER
        else:
            assert 0 < header.length <= len(whole)
            assert parse(whole[: header.length], version) is not None
