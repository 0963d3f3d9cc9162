"""A Unix socket for the operator: one JSON object a line in, lines of JSON out.

Owns: who may speak (the user that the broker runs as, and root: the socket has mode 0600, and the
kernel is asked who is at the other end), the bounds, and how an answer travels: any number of
`{"item": …}`, then one `{"end": …}` or one `{"error": "why"}`. Then the next request may come.

Must not know: what can be asked; it gets a callable.

Invariants: a request is at most 64 KiB; an answer is made in portions, between which clients of the
broker get their turn, and no faster than its reader takes it; there are at most 16 connections; a
bad request is answered with an error, one that is too long ends its sender's connection besides,
and neither costs anybody else anything. A broker that lives keeps its socket. After `stop` there is
neither a socket nor a task left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mqttd.net.sockets import ListenError, Place

__all__ = ["LineServer", "ListenError", "Refused"]

logger: Final = logging.getLogger("mqttd.net")

MAX_REQUEST: Final = 65536
MAX_CONNECTIONS: Final = 16
IDLE_S: Final = 300.0
TAKEN_S: Final = 30.0  # for a portion of an answer to be taken
_MODE: Final = 0o600
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

ASKED_BY: Final = "asked_by"
"""The key under which a request says which user asks; nobody can claim to be another."""
Answer = Callable[[Mapping[str, Any]], AsyncIterator[list[dict[str, object]]]]
"""A request to its answer, some lines at a time."""


class Refused(Exception):
    """A request that can't be answered; the text says why."""


class LineServer:
    """Serves one socket."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self._answer = answer
        self._place = Place("", 0, str(path), _MODE)
        self._server: asyncio.AbstractServer | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and accept; ListenError where that isn't possible."""
        sock: socket.socket | None = None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (sock,) = await self._place.bind(asyncio.get_running_loop())
            # At once: who looks whether the socket is a dead one's must find somebody there.
            sock.listen()
            sock.setblocking(False)
            self._server = await asyncio.start_unix_server(
                self._accept, sock=sock, limit=MAX_REQUEST
            )
        except (OSError, ValueError) as error:
            self._place.release()
            if sock is not None:
                sock.close()
            raise self._place.error("control", error) from error

    async def stop(self) -> None:
        """Accept nothing more, and end what is under way."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._place.release()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._serving) >= MAX_CONNECTIONS or self._server is None:
            writer.transport.abort()
            return
        uid = peer_uid(writer.get_extra_info("socket"))
        if uid not in (os.geteuid(), 0):
            logger.warning("control: refused user %s", uid)
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, uid))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int
    ) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    line = await _line(reader)
                if not line:
                    break
                await self._reply(writer, line, uid)
        except Refused as error:
            with contextlib.suppress(OSError, TimeoutError):
                await _send(writer, [{"error": str(error)}])
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # who asked has gone, or is as good as gone
        finally:
            writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, line: bytes, uid: int) -> None:
        try:
            async for portion in self._answer({**_request(line), ASKED_BY: uid}):
                await _send(writer, portion)
                await asyncio.sleep(0)
        except Refused as error:
            await _send(writer, [{"error": str(error)}])
        except (OSError, TimeoutError):
            raise
        except Exception:
            logger.exception("bug: a request of the operator can't be answered")
            await _send(writer, [{"error": "internal error, see the log"}])


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line; nothing at the end. Refused for one that is too long."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""
    except asyncio.LimitOverrunError:
        raise Refused(f"a request has at most {MAX_REQUEST} bytes") from None


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("not a line of JSON") from None
    if not isinstance(request, dict):
        raise Refused("not a JSON object")
    return request


async def _send(writer: asyncio.StreamWriter, lines: list[dict[str, object]]) -> None:
    writer.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    async with asyncio.timeout(TAKEN_S):
        await writer.drain()


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket; -1 for nobody that could be told."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # not Linux: the permissions of the file have to do
        return os.geteuid()
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    except OSError:
        return -1
    return int(_CREDENTIALS.unpack(found)[1])
