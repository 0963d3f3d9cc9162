"""The small HTTP server: what it answers, what it refuses, and what nobody can make it do."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mqttd.net import http
from mqttd.net.http import HttpServer, ListenError, Response
from mqttd.net.sockets import Place
from tests.net.kit import PATIENCE, reserved_port, until

GOOD = b"GET /good HTTP/1.1\r\nHost: x\r\n\r\n"


async def respond(path: str) -> Response | None:
    if path == "/bug":
        raise RuntimeError("a bug")
    if path == "/never":
        await asyncio.sleep(1000)
    if path == "/large":
        return Response(200, b"x" * 50_000_000)
    return Response(200, b"it is good\n", "text/x") if path == "/good" else None


@contextlib.asynccontextmanager
async def serving(place: Place | None = None) -> AsyncIterator[HttpServer]:
    server = HttpServer("metrics", place or Place("127.0.0.1", 0, ""), respond)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        self.fields = dict(line.split(": ", 1) for line in lines)


async def ask(server: HttpServer, *parts: bytes, pause: bool = False) -> Answer:
    """Send, in as many pieces as there are, and read to the end."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for part in parts:
                writer.write(part)
                if pause:
                    await asyncio.sleep(0.002)
            return Answer(await reader.read(-1))
        finally:
            writer.close()


async def test_get() -> None:
    async with serving() as server:
        assert server.urls == [f"http://127.0.0.1:{server.port}"]
        answer = await ask(server, GOOD)
        assert (answer.status, answer.body) == (200, b"it is good\n")
        assert answer.fields["Content-Type"] == "text/x"
        assert answer.fields["Content-Length"] == "11"
        assert answer.fields["Connection"] == "close"
        assert answer.fields["Cache-Control"] == "no-store"


async def test_head_is_get_without_its_body() -> None:
    async with serving() as server:
        whole, head = await ask(server, GOOD), await ask(server, GOOD.replace(b"GET", b"HEAD"))
        assert head.body == b""
        assert (head.status, head.fields) == (whole.status, whole.fields)
        assert (await ask(server, b"HEAD /no HTTP/1.0\r\n\r\n")).body == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /good?x=1&y HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /good HTTP/1.0\r\n\r\n", 200),
        (b"GET /good HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\nX: \xff\xfe\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /good/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /%67ood HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /../good HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /good HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"get /good HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"OPTIONS /good HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /good HTTP/1.1\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /good HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"GET /good HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
        (b"GET  /good HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /good\r\nHost: x\r\n\r\n", 400),
        (b"GET good HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://x/good HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /g\xc3\xb6d HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /go\0d HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\nHost: x\n\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\nA: b\nEvil: c\r\n\r\n", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /good HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
async def test_requests(request_: bytes, status: int) -> None:
    async with serving() as server:
        answer = await ask(server, request_)
        assert answer.status == status
        assert answer.fields.get("Allow") == ("GET, HEAD" if status == 405 else None)
        bytewise = await ask(server, *(bytes([byte]) for byte in request_))
        assert (bytewise.status, bytewise.body) == (answer.status, answer.body)


async def test_a_request_in_pieces() -> None:
    async with serving() as server:
        answer = await ask(server, *(bytes([byte]) for byte in GOOD), pause=True)
        assert answer.status == 200


async def test_one_request_a_connection() -> None:
    async with serving() as server:
        answer = await ask(server, GOOD + GOOD)
        assert answer.body == b"it is good\n"


def of_size(size: int) -> bytes:
    start = b"GET /good HTTP/1.1\r\nHost: x\r\nX: "
    return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"


async def test_a_request_of_the_largest_size() -> None:
    async with serving() as server:
        assert (await ask(server, of_size(http.MAX_REQUEST))).status == 200
        assert (await ask(server, of_size(http.MAX_REQUEST + 1))).status == 431


@pytest.mark.parametrize("data", [b"x" * 20_000, b"GET /" + b"a" * 9000, b"\r\n" * 5000])
async def test_endless_requests(data: bytes) -> None:
    async with serving() as server:
        assert (await ask(server, data)).status in (400, 431)


async def test_what_is_read_is_bounded() -> None:
    """Whoever sends and sends is cut off, and costs no memory."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sent = 0
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                while sent < 200_000_000:
                    writer.write(b"x" * 100_000)
                    sent += 100_000
                    await writer.drain()
        assert sent < 200_000_000
        writer.transport.abort()
        assert (await ask(server, GOOD)).status == 200
        del reader


async def test_the_slow_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE", 0.2)
    async with serving() as server:
        assert (await ask(server, GOOD[:-1])).status == 408
        assert (await ask(server, b"")).status == 408


async def test_who_leaves_early_is_forgotten() -> None:
    async with serving() as server:
        for data in (b"", b"GET /go"):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            await until(lambda: server._serving)
            writer.close()
            await until(lambda: not server._serving)


async def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE", 0.5)
    async with serving() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(GOOD.replace(b"good", b"large"))
            await until(lambda: server._serving)
            await until(lambda: not server._serving)


async def test_who_does_not_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE", 0.5)
    async with serving() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(GOOD)
            await until(lambda: server._serving)
            await until(lambda: not server._serving)


async def test_there_are_so_many_at_once_and_no_more() -> None:
    async with serving() as server:
        streams = []
        for _ in range(http.MAX_CONNECTIONS):
            streams.append(await asyncio.open_connection("127.0.0.1", server.port))
        await until(lambda: len(server._serving) == http.MAX_CONNECTIONS)
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(OSError):
                    assert await reader.read() == b""
            writer.close()
        assert len(server._serving) == http.MAX_CONNECTIONS
        # Who is in is served all the same.
        reader, writer = streams[0]
        writer.write(GOOD)
        async with asyncio.timeout(PATIENCE):
            assert Answer(await reader.read()).status == 200
        for _, writer in streams:
            writer.close()
        await until(lambda: not server._serving)
        assert (await ask(server, GOOD)).status == 200


async def test_a_bug_is_an_answer_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        assert (await ask(server, GOOD.replace(b"good", b"bug"))).status == 500
        assert "bug: metrics can't be answered" in caplog.text
        assert (await ask(server, GOOD)).status == 200


async def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        monkeypatch.setattr(http, "DEADLINE", 0.5)
        assert (await ask(server, GOOD.replace(b"good", b"never"))).status == 503


async def test_stop_ends_what_is_under_way() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: server._serving)
        await server.stop()
        assert not server._serving
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.open_connection("127.0.0.1", server.port)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_address_in_use() -> None:
    with reserved_port() as port, socket.create_server(("127.0.0.1", port)):
        server = HttpServer("metrics", Place("127.0.0.1", port, ""), respond)
        told = f"metrics: can't listen on 127.0.0.1:{port}: Address already in use"
        with pytest.raises(ListenError, match=told):
            await server.start()


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "m.sock")
    async with serving(Place("", 0, path)) as server:
        assert server.urls == [f"http+unix://{path}"]
        assert (tmp_path / "m.sock").stat().st_mode & 0o777 == 0o660
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GOOD)
        async with asyncio.timeout(PATIENCE):
            assert Answer(await reader.read()).status == 200
        writer.close()
    assert not (tmp_path / "m.sock").exists()


async def test_a_name_with_two_addresses() -> None:
    async with serving(Place("localhost", 0, "")) as server:
        assert len(server.urls) in (1, 2)
        assert len({url.rpartition(":")[2] for url in server.urls}) == 1
        assert (await ask(server, GOOD)).status == 200
