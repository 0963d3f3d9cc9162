"""STOMP 1.2: frames to bytes and back, and one connection that speaks them.

Owns: the escapes, the framing, heartbeats, receipts. A frame with a receipt is a future here: it
has a result when the server has done what the frame asks, and an exception when the server refuses
it or the connection ends. Frames of one turn of the loop leave in one write.

After an ERROR frame the server closes the connection; which frame was at fault it says by
`receipt-id`, if that frame asked for a receipt.

Must not know: bridges, messages of MQTT, what any one server makes of a header.

Invariants: headers of a frame keep their order, and of a name that repeats the first one counts;
a body always comes with `content-length`, so it may hold anything; nothing that comes from the
server is taken beyond `largest` bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

Headers = Sequence[tuple[str, str]]

_ESCAPES: Final = {"\\": "\\\\", "\r": "\\r", "\n": "\\n", ":": "\\c"}
_TABLE: Final = str.maketrans(_ESCAPES)
_UNESCAPES: Final = {"\\": "\\", "r": "\r", "n": "\n", "c": ":"}
_PLAIN: Final = frozenset({"CONNECT", "CONNECTED"})
"""Frames without escapes, since STOMP 1.0 reads them."""
_LARGEST_HEAD: Final = 1 << 20
_WRITE: Final = 1 << 16  # bytes that don't wait for the end of the turn


class StompError(Exception):
    """The server refuses something, or the connection is over."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused  # the server said so, in an ERROR frame


class Frame:
    """One frame. `headers` has the first of each name."""

    __slots__ = ("body", "command", "headers")

    def __init__(self, command: str, headers: Mapping[str, str], body: bytes) -> None:
        self.command = command
        self.headers = headers
        self.body = body


def encoded(command: str, headers: Headers, body: bytes = b"") -> bytes:
    """A frame as bytes. ValueError for a header that no STOMP frame can hold."""
    lines = [f"{name}:{value}\n" for name, value in headers]
    head = "".join(lines)
    if not _is_plain(head, len(lines)):
        head = _escaped(headers, command in _PLAIN)
    if body:
        head += f"content-length:{len(body)}\n"
    return b"".join((command.encode(), b"\n", head.encode(), b"\n", body, b"\0"))


def _is_plain(head: str, count: int) -> bool:
    """Whether so many headers hold nothing but what separates them, so that all are sound."""
    return (
        head.count(":") == head.count("\n") == count
        and not head.startswith(":")
        and "\n:" not in head
        and "\\" not in head
        and "\r" not in head
        and "\0" not in head
    )


def _escaped(headers: Headers, plain: bool) -> str:
    lines: list[str] = []
    for name, value in headers:
        if "\0" in name or "\0" in value or not name:
            raise ValueError(f"header {name!r}: STOMP holds neither NUL nor an empty name")
        lines.append(
            f"{name}:{value}\n"
            if plain
            else f"{name.translate(_TABLE)}:{value.translate(_TABLE)}\n"
        )
    return "".join(lines)


class Frames:
    """Cuts a stream into frames."""

    def __init__(self, largest: int) -> None:
        self.largest = largest  # bytes of a body
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. StompError for what is no STOMP."""
        self._data += data
        out: list[Frame] = []
        while (frame := self._next()) is not None:
            out.append(frame)
        return out

    def _next(self) -> Frame | None:
        data = self._data
        start = 0
        while start < len(data) and data[start] in b"\r\n":  # heartbeats
            start += 1
        if start:
            del data[:start]
        end, after = self._end_of_head()
        if end < 0:
            if len(data) > _LARGEST_HEAD:
                raise StompError("the server sends a frame whose headers have no end")
            return None
        command, headers = _head(bytes(data[:end]))
        length = headers.get("content-length")
        if length is not None:
            if not (length.isascii() and length.isdecimal() and int(length) <= self.largest):
                raise StompError(f"the server sends a body of {length!r} bytes")
            stop = after + int(length)
            if len(data) <= stop:
                return None
            if data[stop]:
                raise StompError("the server sends a frame without its end")
        else:
            stop = data.find(b"\0", after)
            if stop < 0:
                if len(data) - after > self.largest:
                    raise StompError("the server sends a body without an end")
                return None
        frame = Frame(command, headers, bytes(data[after:stop]))
        del data[: stop + 1]
        return frame

    def _end_of_head(self) -> tuple[int, int]:
        """Where the headers end and the body begins; -1 if that hasn't come yet."""
        lf = self._data.find(b"\n\n")
        # Not beyond: a large body comes in many parts, and each would look through all of it.
        crlf = self._data.find(b"\n\r\n", 0, len(self._data) if lf < 0 else lf + 2)
        return (lf, lf + 2) if crlf < 0 else (crlf, crlf + 3)


def _head(data: bytes) -> tuple[str, dict[str, str]]:
    try:
        command, *lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise StompError("the server sends headers that are no UTF-8") from None
    command = command.removesuffix("\r")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.removesuffix("\r").partition(":")
        if not colon:
            raise StompError("the server sends a header without a colon")
        if command not in _PLAIN:
            name, value = _unescaped(name), _unescaped(value)
        headers.setdefault(name, value)
    return command, headers


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    first, *others = text.split("\\")
    out = [first]
    pending = iter(others)
    for part in pending:
        if not part:  # two backslashes: what follows the second is plain
            out.append("\\" + next(pending, ""))
        elif part[0] in _UNESCAPES:
            out.append(_UNESCAPES[part[0]] + part[1:])
        else:
            raise StompError("the server sends a header with an unknown escape")
    return "".join(out)


class StompConnection(asyncio.Protocol):
    """One connection. `arrived` gets MESSAGE frames, in their order."""

    def __init__(self, arrived: Callable[[Frame], None], largest: int) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[StompError] = loop.create_future()
        self.server = ""  # what it says it is
        self._arrived = arrived
        self._frames = Frames(largest)
        self._transport: asyncio.Transport | None = None
        self._connected: asyncio.Future[Frame] = loop.create_future()
        self._connected.add_done_callback(_seen)
        self._receipts: dict[str, asyncio.Future[None]] = {}
        self._last = 0
        self._frames_out: list[bytes] = []
        self._bytes_out = 0
        self._heard_at = 0.0
        self._beats: list[asyncio.TimerHandle] = []
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        arrived: Callable[[Frame], None],
        *,
        largest: int,
        tls: ssl.SSLContext | None = None,
    ) -> StompConnection:
        """OSError if nobody is there."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: cls(arrived, largest),
            host,
            port,
            ssl=tls,
            server_hostname=host if tls else None,
        )
        return made

    async def connect(self, headers: Headers, heartbeat_s: float) -> Frame:
        """Log in; the CONNECTED frame. StompError."""
        beat_ms = int(heartbeat_s * 1000)
        said = [("accept-version", "1.2"), ("heart-beat", f"{beat_ms},{beat_ms}"), *headers]
        self._write(encoded("CONNECT", said))
        connected = await self._connected
        if connected.headers.get("version") != "1.2":
            version = connected.headers.get("version", "1.0")
            raise StompError(f"the server speaks STOMP {version}, and 1.2 is needed", refused=True)
        self.server = connected.headers.get("server", "")
        sends, wants = _beats(connected.headers.get("heart-beat", "0,0"))
        if beat_ms and wants:
            self._beat(max(beat_ms, wants) / 1000)
        if beat_ms and sends:
            self._listen(max(beat_ms, sends) / 1000)
        return connected

    def send(self, command: str, headers: Headers, body: bytes = b"") -> None:
        """Write a frame that nobody waits for. ValueError."""
        self._write(encoded(command, headers, body))

    def write(self, frame: bytes) -> None:
        """Write a frame of `encoded`."""
        self._write(frame)

    def ask(self, command: str, headers: Headers, body: bytes = b"") -> asyncio.Future[None]:
        """Write a frame with a receipt. The future has a StompError if it comes to nothing."""
        self._last += 1
        receipt = str(self._last)
        data = encoded(command, [*headers, ("receipt", receipt)], body)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_seen)
        if self.lost.done():
            future.set_exception(self.lost.result())
            return future
        self._receipts[receipt] = future
        self._write(data)
        return future

    async def room(self) -> None:
        """Wait until what was written has left for the most part."""
        await self._writable.wait()

    def close(self) -> None:
        """End it at once. What the server hasn't confirmed it may have done or not."""
        self._flush()
        self._over(StompError("closed"))
        if self._transport is not None:
            self._transport.abort()

    async def disconnect(self) -> None:
        """End it when the server has done all that was sent. Never raises."""
        if not self.lost.done():
            await asyncio.wait([self.ask("DISCONNECT", [])])
        self.close()

    # From the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not derived from it

    def data_received(self, data: bytes) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if self.lost.done():
            return
        try:
            for frame in self._frames.feed(data):
                self._on_frame(frame)
        except StompError as error:
            self._over(error)
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._over(StompError(str(error) if error else "the server closed the connection"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _on_frame(self, frame: Frame) -> None:
        headers = frame.headers
        if frame.command == "MESSAGE":
            self._arrived(frame)
        elif frame.command == "RECEIPT":
            future = self._receipts.pop(headers.get("receipt-id", ""), None)
            if future is not None and not future.done():
                future.set_result(None)
        elif frame.command == "CONNECTED":
            if not self._connected.done():
                self._connected.set_result(frame)
        elif frame.command == "ERROR":
            error = StompError(headers.get("message") or "the server says ERROR", refused=True)
            future = self._receipts.pop(headers.get("receipt-id", ""), None)
            if future is not None and not future.done():
                future.set_exception(error)
            self._over(error)
            assert self._transport is not None
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self.lost.done():
            return
        if not self._frames_out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._frames_out.append(data)
        self._bytes_out += len(data)
        if self._bytes_out >= _WRITE:
            self._flush()

    def _flush(self) -> None:
        frames, self._frames_out = self._frames_out, []
        self._bytes_out = 0
        if frames and not self.lost.done() and self._transport is not None:
            self._transport.write(b"".join(frames))

    def _over(self, error: StompError) -> None:
        """The connection is over: everybody who waits hears why."""
        if self.lost.done():
            return
        self.lost.set_result(error)
        # A refusal belongs to the one frame that it named; of all others nothing is known.
        others = StompError(str(error))
        if not self._connected.done():
            self._connected.set_exception(error)
        for future in self._receipts.values():
            if not future.done():
                future.set_exception(others)
        self._receipts.clear()
        self._writable.set()
        for timer in self._beats:
            timer.cancel()

    # Heartbeats.

    def _beat(self, every_s: float) -> None:
        loop = asyncio.get_running_loop()

        def beat() -> None:
            self._write(b"\n")
            self._beats[0] = loop.call_later(every_s / 2, beat)

        self._beats.append(loop.call_later(every_s / 2, beat))

    def _listen(self, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        place = len(self._beats)
        silent_s = every_s * 3

        def listen() -> None:
            if loop.time() - self._heard_at > silent_s:
                self._over(StompError(f"no sign of life for {silent_s:g} s"))
                assert self._transport is not None
                self._transport.abort()
            else:
                self._beats[place] = loop.call_later(every_s, listen)

        self._beats.append(loop.call_later(every_s, listen))


def _beats(text: str) -> tuple[int, int]:
    """What the server offers to send and what it wants, in milliseconds."""
    sends, _, wants = text.partition(",")
    if not (sends.isdecimal() and wants.isdecimal()):
        return 0, 0
    return int(sends), int(wants)


def _seen(future: asyncio.Future[Any]) -> None:
    """Nobody has to fetch the exception: all of them say that the connection is over."""
    if not future.cancelled():
        future.exception()
