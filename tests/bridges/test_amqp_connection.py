"""A connection to a server of few lines: the handshake, calls, messages, and every sort of end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp_connection import Connection, Ended, Login
from mqttd_plugins._amqp_wire import Frames, Method, Properties

from tests.net.kit import until

LOGIN = Login("user", "secret-1", "/plant")


class FakeServer:
    """Greets, and answers what it is told to answer; keeps what it gets."""

    def __init__(self) -> None:
        self.answers: dict[Method, tuple[Method, tuple[Any, ...]]] = {
            wire.START_OK: (wire.TUNE, (2047, 8192, 60)),
            wire.OPEN: (wire.OPEN_OK, ("",)),
            wire.CHANNEL_OPEN: (wire.CHANNEL_OPEN_OK, (b"",)),
            wire.CLOSE: (wire.CLOSE_OK, ()),
        }
        self.mechanisms = b"PLAIN AMQPLAIN"
        self.got: list[tuple[Method, list[Any]]] = []
        self.beats = 0
        self.gone = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[str, int]]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield ("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            server.close()
            if self._writer is not None:
                self._writer.close()

    def send(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)

    def cut(self) -> None:
        assert self._writer is not None
        self._writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        assert await reader.readexactly(8) == wire.PROTOCOL
        self.send(wire.START.frame(0, 0, 9, {}, self.mechanisms, b"en_US"))
        frames = Frames()
        while data := await reader.read(65536):
            for kind, channel, payload in frames.feed(data):
                self.beats += kind == wire.HEARTBEAT
                if kind != wire.METHOD:
                    continue
                method, fields = wire.method_from(payload)
                self.got.append((method, fields))
                if method in self.answers:
                    answer, with_fields = self.answers[method]
                    self.send(answer.frame(channel, *with_fields))
        self.gone.set()

    def fields(self, method: Method) -> list[Any]:
        return next(fields for got, fields in self.got if got is method)


@contextlib.asynccontextmanager
async def connected(server: FakeServer, heartbeat_s: int = 30) -> AsyncIterator[Connection]:
    async with server.listening() as address:
        connection = await Connection.open(
            address, LOGIN, heartbeat_s=heartbeat_s, name="mqttd up out"
        )
        try:
            yield connection
        finally:
            await connection.close()


async def test_the_handshake_agrees_on_the_smaller_numbers() -> None:
    server = FakeServer()
    async with connected(server) as connection:
        about, mechanism, answer, _ = server.fields(wire.START_OK)
        assert (mechanism, answer) == ("PLAIN", b"\0user\0secret-1")
        assert about["connection_name"] == "mqttd up out"
        assert about["capabilities"]["publisher_confirms"] is True
        assert server.fields(wire.TUNE_OK) == [2047, 8192, 30]
        assert server.fields(wire.OPEN)[0] == "/plant"
        assert connection.frame_max == 8192
        await until(lambda: server.beats == 1)
    assert server.fields(wire.CLOSE)[0] == 200
    await server.gone.wait()


@pytest.mark.parametrize(
    ("tune", "wanted_s", "agreed"),
    [
        ((0, 0, 0), 20, [0, wire.LONGEST, 20]),
        ((9, 10**6, 10), 20, [9, wire.LONGEST, 10]),
        ((9, 4096, 10), 0, [9, 4096, 0]),
    ],
)
async def test_zero_is_no_limit(
    tune: tuple[int, int, int], wanted_s: int, agreed: list[int]
) -> None:
    server = FakeServer()
    server.answers[wire.START_OK] = (wire.TUNE, tune)
    async with connected(server, wanted_s):
        assert server.fields(wire.TUNE_OK) == agreed


async def test_frames_that_hold_next_to_nothing_are_told() -> None:
    server = FakeServer()
    server.answers[wire.START_OK] = (wire.TUNE, (9, 8, 10))
    async with server.listening() as address:
        with pytest.raises(Ended, match="it takes frames of 8 bytes: AMQP has at least 4096"):
            await Connection.open(address, LOGIN)


async def test_a_login_that_is_not_offered_is_told() -> None:
    server = FakeServer()
    async with server.listening() as address:
        with pytest.raises(Ended, match="no login by EXTERNAL here, only by PLAIN, A") as caught:
            await Connection.open(address, Login(None, "", "/"))
        assert caught.value.code == 403


@pytest.mark.parametrize("after", [wire.START_OK, wire.OPEN])
async def test_a_server_that_closes_says_why(after: Method) -> None:
    server = FakeServer()
    server.answers[after] = (wire.CLOSE, (403, "ACCESS_REFUSED - no", 0, 0))
    async with server.listening() as address:
        with pytest.raises(Ended, match="ACCESS_REFUSED - no") as caught:
            await Connection.open(address, LOGIN)
        assert caught.value.code == 403
        await server.gone.wait()
        assert server.got[-1][0] is wire.CLOSE_OK


async def test_what_is_no_amqp_is_told() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Ended, match="expected a frame of AMQP 0-9-1: is this its port"):
            await Connection.open(server.sockets[0].getsockname(), LOGIN)


async def test_an_end_during_a_call_is_its_answer_and_that_of_all_channels() -> None:
    server = FakeServer()
    async with connected(server) as connection:
        one, other = await connection.channel(), await connection.channel()
        reasons: list[Ended] = []
        other.on_end = reasons.append
        call = asyncio.ensure_future(one.call(wire.CONFIRM_SELECT_OK, wire.CONFIRM_SELECT, False))
        await until(lambda: server.got[-1][0] is wire.CONFIRM_SELECT)
        server.cut()
        with pytest.raises(Ended):
            await call
        assert reasons == [other.ended.result()]
        await connection.writable()
        with pytest.raises(Ended):
            await connection.channel()


async def test_a_channel_that_the_server_closes_leaves_the_others() -> None:
    server = FakeServer()
    async with connected(server) as connection:
        one, other = await connection.channel(), await connection.channel()
        closed = (404, "NOT_FOUND - no queue 'q'", 50, 10)
        server.answers[wire.QUEUE_BIND] = (wire.CHANNEL_CLOSE, closed)
        with pytest.raises(Ended, match="NOT_FOUND - no queue 'q'") as caught:
            await one.call(wire.QUEUE_BIND_OK, wire.QUEUE_BIND, 0, "q", "e", "#", False, {})
        assert caught.value.code == 404
        await until(lambda: server.got[-1][0] is wire.CHANNEL_CLOSE_OK)
        server.send(wire.ACK.frame(one.number, 1, False))  # under way meanwhile
        server.answers[wire.QOS] = (wire.QOS_OK, ())
        assert await other.call(wire.QOS_OK, wire.QOS, 0, 1, False) == []


async def test_messages_come_in_parts() -> None:
    server = FakeServer()
    async with connected(server) as connection:
        channel = await connection.channel()
        got: list[tuple[str, int, str, str | None, bytes]] = []

        def came(tag: str, number: int, key: str, properties: Properties, body: bytes) -> None:
            got.append((tag, number, key, properties.message_id, body))

        channel.on_deliver = came
        bodies = [b"", b"a", b"x" * 20_000]
        for number, body in enumerate(bodies):
            parts = wire.body_frames(channel.number, body, 8192)
            server.send(wire.DELIVER.frame(channel.number, "t", number, False, "e", "k"))
            block = wire.block_of({"message_id": "i"})
            server.send(wire.content_header(channel.number, len(body), block))
            server.send(b"".join(parts))
        await until(lambda: len(got) == 3)
        assert got == [("t", number, "k", "i", body) for number, body in enumerate(bodies)]


DELIVER = wire.DELIVER.frame(1, "t", 1, False, "e", "k")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (wire.TUNE.frame(1, 0, 0, 0), "unexpected connection.tune"),
        (wire.ACK.frame(2, 1, False), "a frame for channel 2, which isn't open"),
        (wire.frame_of(wire.BODY, 0, b"x"), "a message on channel 0"),
        (wire.frame_of(wire.BODY, 1, b"x"), "a message that never began"),
        (DELIVER + DELIVER, "basic.deliver where a message was to go on"),
        (DELIVER + wire.frame_of(wire.BODY, 1, b"x"), "doesn't belong to it"),
        (
            DELIVER + wire.content_header(1, 1, b"\0\0") + wire.frame_of(wire.BODY, 1, b"xy"),
            "doesn't belong to it",
        ),
        (wire.frame_of(wire.BODY, 1, bytes(8185)), "agreed were 8192 at most"),
    ],
)
async def test_a_server_that_makes_no_sense_ends_the_connection(data: bytes, text: str) -> None:
    server = FakeServer()
    async with connected(server) as connection:
        channel = await connection.channel()
        server.send(data)
        assert text in (await channel.ended).text
        await server.gone.wait()


async def test_a_server_that_takes_no_messages_is_waited_for() -> None:
    server = FakeServer()
    told: list[str] = []
    async with connected(server) as connection:
        connection.on_blocked = told.append
        await connection.writable()
        server.send(wire.BLOCKED.frame(0, "low on memory"))
        await until(lambda: told == ["low on memory"])
        waiting = asyncio.ensure_future(connection.writable())
        await asyncio.sleep(0)
        assert not waiting.done()
        server.send(wire.UNBLOCKED.frame(0))
        await waiting
        assert told == ["low on memory", ""]
        server.send(wire.BLOCKED.frame(0, ""))
        await until(lambda: told[2:] == ["no reason given"])
    assert wire.CLOSE not in [method for method, _ in server.got]  # nobody would read it


async def test_a_full_buffer_is_waited_for() -> None:
    server = FakeServer()
    async with connected(server) as connection:
        connection.pause_writing()
        waiting = asyncio.ensure_future(connection.writable())
        await asyncio.sleep(0)
        assert not waiting.done()
        connection.resume_writing()
        await waiting


async def test_a_server_without_a_sign_of_life_is_given_up() -> None:
    server = FakeServer()
    async with connected(server, 0) as connection:
        channel = await connection.channel()
        connection._keep_alive(20)
        await until(lambda: server.beats == 1)
        connection._heard_at -= 41
        connection._keep_alive(20)
        assert (await channel.ended).text == "no sign of life for 40 s"
        await server.gone.wait()


async def test_a_connection_that_is_given_up_half_way_is_closed() -> None:
    server = FakeServer()
    del server.answers[wire.OPEN]
    async with server.listening() as address:
        opening = asyncio.ensure_future(Connection.open(address, LOGIN))
        await until(lambda: bool(server.got) and server.got[-1][0] is wire.OPEN)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await server.gone.wait()
