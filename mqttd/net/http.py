"""A small HTTP server, for machines that ask how the broker is.

Owns: reading one request a connection, strictly, and answering it. GET and HEAD, nothing else; no
bodies, no keep-alive, no chunks. What it doesn't understand it refuses (400, 405, 408, 431) and
never guesses at.

Must not know: which paths there are and what they say; it gets a callable. Credentials: there are
none, so the address is all that protects it.

Invariants: a request is at most 8 KiB and five seconds long, and so is the wait until its answer is
taken; there are at most 64 connections, and who comes on top of them is cut off; no request costs
anybody else more than that. After `stop` there is neither a socket nor a task left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from mqttd.net.sockets import ListenError, Place, address_of

__all__ = ["HttpServer", "ListenError", "Response"]

logger: Final = logging.getLogger("mqttd.net")

MAX_REQUEST: Final = 8192
MAX_CONNECTIONS: Final = 64
DEADLINE: Final = 5.0

_BACKLOG: Final = 128
_END: Final = b"\r\n\r\n"
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"/[!-~]*")
_VERSION: Final = re.compile(rb"HTTP/1\.[01]")
_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered."""

    status: int
    body: bytes
    content_type: str = _TEXT


Respond = Callable[[str], Awaitable[Response | None]]
"""A path, without its query, to what is there; None for nothing."""


class _Refused(Exception):
    """A request that isn't answered as it was meant."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class HttpServer:
    """Serves one address."""

    def __init__(self, name: str, place: Place, respond: Respond) -> None:
        self.name = name
        self.port = 0
        self.urls: list[str] = []
        self._place = place
        self._respond = respond
        self._servers: list[asyncio.AbstractServer] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and accept; ListenError where that isn't possible."""
        sockets: list[socket.socket] = []
        try:
            sockets = await self._place.bind(asyncio.get_running_loop())
            for sock in sockets:
                sock.setblocking(False)
                self._describe(sock)
                self._servers.append(
                    await asyncio.start_server(
                        self._accept, sock=sock, limit=MAX_REQUEST, backlog=_BACKLOG
                    )
                )
        except (OSError, ValueError) as error:
            await self.stop()
            for sock in sockets:
                sock.close()
            raise self._place.error(self.name, error) from error

    async def stop(self) -> None:
        """Accept nothing more, and end what is under way."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._place.release()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    def _describe(self, sock: socket.socket) -> None:
        if self._place.unix_path:
            self.urls.append(f"http+unix://{self._place.unix_path}")
            return
        shown, port = address_of(sock)
        self.port = self.port or port
        self.urls.append(f"http://{shown}")

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._serving) >= MAX_CONNECTIONS or not self._servers:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader)
            if answer:
                async with asyncio.timeout(DEADLINE):
                    await _finish(reader, writer, answer)
        except (OSError, TimeoutError):
            pass  # the client has gone, or is as good as gone
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request; the bytes of its answer, none where nobody asked anything."""
        head = False
        try:
            method, path = await _read(reader)
            head = method == b"HEAD"
            if method not in (b"GET", b"HEAD"):
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only")
            async with asyncio.timeout(DEADLINE):
                response = await self._respond(path)
        except asyncio.IncompleteReadError:
            return b""
        except _Refused as error:
            response = Response(error.status, f"{error}\n".encode())
        except TimeoutError:
            response = Response(HTTPStatus.SERVICE_UNAVAILABLE, b"it takes too long\n")
        except Exception:
            logger.exception("bug: %s can't be answered", self.name)
            response = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n")
        if response is None:
            response = Response(HTTPStatus.NOT_FOUND, b"there is nothing here\n")
        return _encode(response, head)


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """Method and path of the one request. _Refused, or IncompleteReadError for an early end."""
    try:
        async with asyncio.timeout(DEADLINE):
            data = await reader.readuntil(_END)
    except asyncio.LimitOverrunError:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise _Refused(status, f"at most {MAX_REQUEST} bytes") from None
    except TimeoutError:
        raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "too slow") from None
    if len(data) > MAX_REQUEST:
        raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {MAX_REQUEST} bytes")
    first, *lines = data[: -len(_END)].split(b"\r\n")
    parts = first.split(b" ")
    if (
        len(parts) != 3
        or not _TOKEN.fullmatch(parts[0])
        or not _TARGET.fullmatch(parts[1])
        or not _VERSION.fullmatch(parts[2])
    ):
        raise _Refused(HTTPStatus.BAD_REQUEST, "not a request")
    hosts = 0
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\0" in line or b"\n" in line:
            raise _Refused(HTTPStatus.BAD_REQUEST, "not a header field")
        name = name.lower()
        hosts += name == b"host"
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            raise _Refused(HTTPStatus.BAD_REQUEST, "no bodies here")
    if hosts > 1 or (hosts == 0 and parts[2] == b"HTTP/1.1"):
        raise _Refused(HTTPStatus.BAD_REQUEST, "one Host field")
    return parts[0], parts[1].partition(b"?")[0].decode("ascii")


def _encode(response: Response, head: bool) -> bytes:
    status = HTTPStatus(response.status)
    fields = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        fields.append("Allow: GET, HEAD")
    return "\r\n".join(fields).encode() + _END + (b"" if head else response.body)


async def _finish(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes
) -> None:
    """Write, and let the client close first: a reset would overtake the answer."""
    writer.write(answer)
    await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
    discarded = 0
    while discarded < 2 * MAX_REQUEST and (data := await reader.read(MAX_REQUEST)):
        discarded += len(data)
