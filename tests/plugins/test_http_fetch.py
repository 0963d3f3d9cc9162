"""One GET with one limit: servers that drip, that lie, that aren't there."""

import asyncio
import ssl
from pathlib import Path

import pytest
from mqttd_plugins._http_fetch import Unfetched, fetch

from tests.plugins.http_kit import Talk, dripping, talking
from tests.tls import Authority

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def saying(answer: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await reader.read()

    return talk


async def fetched(port: int, path: str = "/keys", timeout_s: float = 5.0) -> bytes:
    url = f"http://127.0.0.1:{port}{path}"
    return await asyncio.to_thread(fetch, url, None, timeout_s, 1000)


async def test_what_is_asked_and_what_comes_back() -> None:
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(GOOD)
        await writer.drain()

    async with talking(talk) as port:
        assert await fetched(port, "/keys?a=b") == b"{}"
    lines = asked[0].decode().splitlines()
    assert lines[0] == "GET /keys?a=b HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in lines


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    ],
    ids=["status", "header", "body", "chunk"],
)
async def test_a_server_that_drips_is_given_up(start: bytes, drop: bytes) -> None:
    async with talking(dripping(start, drop)) as port:
        with pytest.raises(Unfetched, match=r"/keys: not all of it within 0\.1 s"):
            await fetched(port, timeout_s=0.1)


async def test_a_handshake_that_drips_is_given_up() -> None:
    async with talking(dripping(b"\x16\x03\x03\x40\x00", b"\0")) as port:
        url = f"https://127.0.0.1:{port}/keys"
        with pytest.raises(Unfetched, match="/keys: not all of it within"):
            await asyncio.to_thread(fetch, url, None, 0.1, 1000)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n", "answered 302, expected 200"),
        (b"HTTP/1.1 500 secret\r\n\r\n", "answered 500, expected 200"),
        (b"secret\r\n\r\n", r"no answer in HTTP \(BadStatusLine\)"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000, "more than 1000 bytes"),
    ],
)
async def test_answers_that_are_none(answer: bytes, told: str) -> None:
    async with talking(saying(answer)) as port:
        with pytest.raises(Unfetched, match=f"/keys: {told}") as caught:
            await fetched(port, "/keys?token=secret")
    assert "secret" not in str(caught.value)


async def test_nobody_there() -> None:
    async with talking(saying(GOOD)) as port:
        pass
    with pytest.raises(Unfetched, match="refused"):
        await fetched(port)


async def test_over_tls_with_authorities_of_its_own(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    async with talking(saying(GOOD), context) as port:
        url = f"https://localhost:{port}/keys"
        assert await asyncio.to_thread(fetch, url, authority.file, 5.0, 1000) == b"{}"
        with pytest.raises(Unfetched, match="certificate verify failed"):
            await asyncio.to_thread(fetch, url, other.file, 5.0, 1000)
