"""A connection to an AMQP 0-9-1 server, and its channels.

Owns: the socket; the handshake, with a password (PLAIN) or a certificate (EXTERNAL); signs of life
in both directions; the end, whoever wants it. A `Channel` makes calls, one after the other, and
hands what comes by itself (confirms, returned and delivered messages) to whoever set its `on_…`.
What is called there runs in the turn in which the bytes came, must not wait, and must not raise.

Nothing here tries again, and no call has a time limit: the core of the bridges does both.

Must not know: messages of MQTT, rules, what an end means for a message.

Invariants: the end of a connection is the end of its channels, and is told once; after the end
nothing is called and nothing is written; a password is in no text.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp_wire import Method, Properties

_CLOSING_S: Final = 2.0  # for the server to say that it has read everything
_SMALLEST: Final = 4096  # bytes of a frame that every side has to take
_SILENT: Final = 2  # heartbeats that may be missed
_CAPABILITIES: Final = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


class Ended(Exception):
    """A channel or a connection is over. `code` is AMQP's reason, 0 where the server gave none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class Login:
    """How to get in. Without a user the certificate is the login."""

    def __init__(self, user: str | None, password: str, vhost: str) -> None:
        self.user = user
        self.vhost = vhost
        self._password = password

    @property
    def mechanism(self) -> str:
        return "EXTERNAL" if self.user is None else "PLAIN"

    def answer(self) -> bytes:
        return b"" if self.user is None else f"\0{self.user}\0{self._password}".encode()


class Channel:
    """One channel; number 0 is the connection itself."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.on_end: Callable[[Ended], None] | None = None
        self.on_confirm: Callable[[int, bool, bool], None] | None = None
        """Delivery tag, whether all up to it are meant, whether they were accepted."""
        self.on_return: Callable[[str, str, Properties], None] | None = None
        """Exchange, routing key, properties of a message that no queue took."""
        self.on_deliver: Callable[[str, int, str, Properties, bytes], None] | None = None
        """Consumer tag, delivery tag, routing key, properties, body."""
        self.on_cancel: Callable[[str], None] | None = None
        """Consumer tag: the server ended it, for its queue is gone."""
        self._connection = connection
        self._expected: Method | None = None
        self._answer: asyncio.Future[list[Any]] | None = None
        self._method: Method | None = None  # whose message is coming in
        self._fields: list[Any] = []
        self._properties = Properties()
        self._missing = -1  # bytes of its body; -1: its header
        self._parts: list[bytes] = []

    async def call(self, answer: Method, method: Method, *fields: Any) -> list[Any]:
        """Send a method and wait for its answer; the fields of that. Ended, ValueError."""
        frame = method.frame(self.number, *fields)
        waiting = self.expect(answer)
        self._connection.write(frame)
        return await waiting

    def expect(self, answer: Method) -> asyncio.Future[list[Any]]:
        """The fields of a method that is to come. Ended."""
        if self.ended.done():
            raise self.ended.result()
        self._expected = answer
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def send(self, method: Method, *fields: Any) -> None:
        """Send a method that has no answer; after the end it is nobody's."""
        if not self.ended.done():
            self._connection.write(method.frame(self.number, *fields))

    def end(self, reason: Ended) -> None:
        """It is over. Only the first reason counts."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(reason)
        if self.on_end is not None:
            self.on_end(reason)

    def took(self, kind: int, payload: bytes) -> None:
        """A frame for this channel. WireError."""
        if self.ended.done():
            return
        if kind == wire.METHOD:
            method, fields = wire.method_from(payload)
            if self._method is not None:
                raise wire.WireError(f"{method} where a message was to go on")
            self._took_method(method, fields)
            return
        if self._method is None:
            raise wire.WireError("a part of a message that never began")
        if kind == wire.HEADER and self._missing < 0:
            self._missing, self._properties = wire.content_from(payload)
        elif kind == wire.BODY and 0 < len(payload) <= self._missing:
            self._parts.append(payload)
            self._missing -= len(payload)
        else:
            raise wire.WireError("a part of a message that doesn't belong to it")
        if self._missing == 0:
            self._took_message()

    def _took_method(self, method: Method, fields: list[Any]) -> None:
        if method is wire.ACK or method is wire.NACK:
            if self.on_confirm is not None:
                self.on_confirm(fields[0], fields[1], method is wire.ACK)
        elif method is wire.DELIVER or method is wire.RETURN:
            self._method, self._fields, self._missing = method, fields, -1
        elif method is wire.CANCEL:
            if self.on_cancel is not None:
                self.on_cancel(fields[0])
        elif method is wire.CHANNEL_CLOSE:
            self.send(wire.CHANNEL_CLOSE_OK)
            self.end(Ended(fields[1], fields[0]))
        elif method is self._expected:
            answer, self._expected = self._answer, None
            if answer is not None and not answer.done():
                answer.set_result(fields)
        else:
            raise wire.WireError(f"unexpected {method}")

    def _took_message(self) -> None:
        method, fields, properties = self._method, self._fields, self._properties
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._method, self._parts = None, []
        if method is wire.DELIVER and self.on_deliver is not None:
            self.on_deliver(fields[0], fields[1], fields[4], properties, body)
        elif method is wire.RETURN and self.on_return is not None:
            self.on_return(fields[2], fields[3], properties)


class Connection(asyncio.Protocol):
    """One connection. `open` makes it."""

    def __init__(self) -> None:
        self.frame_max = wire.LONGEST
        self.blocked = ""  # why the server takes no messages; "" while it does
        self.on_blocked: Callable[[str], None] | None = None
        """Called with the reason, and with "" when it is over."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = wire.Frames()
        self._zero = Channel(self, 0)
        self._channels: dict[int, Channel] = {}
        self._paused = False
        self._open = asyncio.Event()  # what is written leaves, or nothing ever will
        self._open.set()
        self._heard_at = self._loop.time()
        self._beat: asyncio.TimerHandle | None = None
        self._gone = self._loop.create_future()

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        login: Login,
        *,
        tls: ssl.SSLContext | None = None,
        heartbeat_s: int = 60,
        name: str = "",
    ) -> Connection:
        """Connect and log in. `heartbeat_s` 0: no heartbeats. Ended, OSError, ssl.SSLError."""
        loop = asyncio.get_running_loop()
        host, port = address
        _, connection = await loop.create_connection(cls, host, port, ssl=tls)
        try:
            await connection._handshake(login, heartbeat_s, name)
        except BaseException:
            connection.abort("given up")
            raise
        return connection

    async def channel(self) -> Channel:
        """Open a channel. Ended."""
        number = len(self._channels) + 1
        channel = self._channels[number] = Channel(self, number)
        if self._zero.ended.done():
            channel.end(self._zero.ended.result())
        await channel.call(wire.CHANNEL_OPEN_OK, wire.CHANNEL_OPEN, "")
        return channel

    def write(self, data: bytes) -> None:
        """Send frames; after the end they are nobody's."""
        if self._transport is not None and not self._zero.ended.done():
            self._transport.write(data)

    async def writable(self) -> None:
        """Wait until what is written leaves, or the connection is over."""
        await self._open.wait()

    async def close(self) -> None:
        """End it when the server has read everything. Raises nothing; may be called twice."""
        if not self._zero.ended.done() and not self.blocked:
            with contextlib.suppress(TimeoutError, Ended):
                async with asyncio.timeout(_CLOSING_S):
                    await self._zero.call(wire.CLOSE_OK, wire.CLOSE, 200, "", 0, 0)
        self.abort("closed")
        if self._transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING_S):
                    await asyncio.shield(self._gone)

    def abort(self, text: str) -> None:
        """End it at once."""
        self._end(Ended(text))
        if self._transport is not None:
            self._transport.abort()

    # The handshake.

    async def _handshake(self, login: Login, heartbeat_s: int, name: str) -> None:
        start = self._zero.expect(wire.START)
        self.write(wire.PROTOCOL)
        _, _, _, offered, _ = await start
        mechanisms = offered.decode(errors="replace").split()
        if login.mechanism not in mechanisms:
            raise Ended(f"no login by {login.mechanism} here, only by {', '.join(mechanisms)}", 403)
        tune = await self._zero.call(
            wire.TUNE,
            wire.START_OK,
            {"product": "mqttd", "connection_name": name, "capabilities": _CAPABILITIES},
            login.mechanism,
            login.answer(),
            "en_US",
        )
        channels, frame_max, beat_s = tune
        if frame_max and frame_max < _SMALLEST:
            raise Ended(f"it takes frames of {frame_max} bytes: AMQP has at least {_SMALLEST}")
        self.frame_max = min(frame_max or wire.LONGEST, wire.LONGEST)
        if heartbeat_s and beat_s:
            heartbeat_s = min(heartbeat_s, beat_s)
        self._zero.send(wire.TUNE_OK, channels, self.frame_max, heartbeat_s)
        await self._zero.call(wire.OPEN_OK, wire.OPEN, login.vhost, "", False)
        self._frames.longest = self.frame_max
        if heartbeat_s:
            self._keep_alive(heartbeat_s)

    def _keep_alive(self, heartbeat_s: int) -> None:
        """Send a sign of life, and look for one."""
        if self._loop.time() - self._heard_at > _SILENT * heartbeat_s:
            self.abort(f"no sign of life for {_SILENT * heartbeat_s} s")
            return
        self.write(wire.BEAT)
        self._beat = self._loop.call_later(heartbeat_s / 2, self._keep_alive, heartbeat_s)

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            for kind, number, payload in self._frames.feed(data):
                if kind == wire.HEARTBEAT:
                    continue
                if number == 0:
                    self._took(kind, payload)
                elif number in self._channels:
                    self._channels[number].took(kind, payload)
                else:
                    raise wire.WireError(f"a frame for channel {number}, which isn't open")
        except wire.WireError as error:
            self.abort(str(error))

    def pause_writing(self) -> None:
        self._paused = True
        self._look()

    def resume_writing(self) -> None:
        self._paused = False
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = Ended("the connection ended" if exc is None else words_of(exc))
        reason.__cause__ = exc
        self._end(reason)
        self._gone.set_result(None)

    def _took(self, kind: int, payload: bytes) -> None:
        """A frame for the connection itself."""
        if kind != wire.METHOD:
            raise wire.WireError("a message on channel 0")
        method, fields = wire.method_from(payload)
        if method is wire.CLOSE:
            self._zero.send(wire.CLOSE_OK)
            self._end(Ended(fields[1], fields[0]))
            assert self._transport is not None
            self._transport.close()
        elif method is wire.BLOCKED or method is wire.UNBLOCKED:
            self.blocked = (fields[0] or "no reason given") if fields else ""
            self._look()
            if self.on_blocked is not None:
                self.on_blocked(self.blocked)
        else:
            self._zero.took(kind, payload)

    def _look(self) -> None:
        if (self._paused or self.blocked) and not self._zero.ended.done():
            self._open.clear()
        else:
            self._open.set()

    def _end(self, reason: Ended) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._zero.end(reason)
        for channel in self._channels.values():
            channel.end(reason)
        self._look()


def words_of(error: BaseException) -> str:
    """An error of the system in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is no good: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
