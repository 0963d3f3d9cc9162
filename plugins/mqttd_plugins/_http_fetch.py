"""One GET, in a thread, with one limit for all of it.

Owns: `fetch`. A time limit of a socket is for one operation: a server that sends a byte now and
then keeps to it for ever, in its header or in its body. Here each operation gets what is left.

Must not know: what is fetched, the event loop.

Invariants: the answer comes from the address that was asked: redirects aren't followed, proxies of
the environment aren't used. No error holds anything of the answer, or the query of the address.
What the limit can't reach is the system's resolver, which has limits of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

_CHUNK: Final = 65536


class Unfetched(ValueError):
    """It can't be had; the text says why, and from where."""


def fetch(url: str, authorities: Path | None, timeout_s: float, largest: int) -> bytes:
    """The body of an answer with status 200, within `timeout_s`. Unfetched; it blocks.

    `authorities` is a PEM file for https; None: those of the system.
    """
    where = url.partition("?")[0]  # what stands behind it may be secret
    until = time.monotonic() + timeout_s
    try:
        with contextlib.closing(_opened(url, authorities, until)) as connection:
            return _body(connection, url, largest)
    except _Odd as error:
        raise Unfetched(f"{where}: {error}") from None
    except TimeoutError:
        raise Unfetched(f"{where}: not all of it within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unfetched(f"{where}: {_said(error)}") from None


class _Odd(Exception):
    """An answer that isn't the one expected."""


def _said(error: Exception) -> str:
    if isinstance(error, http.client.HTTPException):
        return f"no answer in HTTP ({type(error).__name__})"
    return str(error) or type(error).__name__


def _opened(url: str, authorities: Path | None, until: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    connected = _connected(host, parts.port or (443 if secure else 80), until)
    connection = http.client.HTTPConnection(host, parts.port)
    try:
        if secure:
            context = ssl.create_default_context(cafile=authorities)
            connected.settimeout(_left(until))  # of the whole handshake
            connected = context.wrap_socket(connected, server_hostname=host)
            connection = http.client.HTTPSConnection(host, parts.port, context=context)
    except BaseException:
        connected.close()
        raise
    # Three methods of a socket are all that is used of it.
    connection.sock = _Timed(connected, until)
    return connection


def _connected(host: str, port: int, until: float) -> socket.socket:
    found: Exception = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(_left(until))
            made.connect(address)
        except OSError as error:
            made.close()
            found = error
        else:
            return made
    raise found


def _body(connection: http.client.HTTPConnection, url: str, largest: int) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", target, headers={"Accept": "application/json", "Connection": "close"})
    with connection.getresponse() as response:
        if response.status != 200:
            raise _Odd(f"answered {response.status}, expected 200")
        raw = b""
        while chunk := response.read1(_CHUNK):
            raw += chunk
            if len(raw) > largest:
                raise _Odd(f"more than {largest} bytes")
        return raw


def _left(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


class _Timed:
    """A socket of which all operations together have until an instant."""

    def __init__(self, connected: socket.socket, until: float) -> None:
        self._socket = connected
        self._until = until

    def sendall(self, data: Any) -> None:
        self._socket.settimeout(_left(self._until))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._until))

    def close(self) -> None:
        self._socket.close()


class _Reader(io.RawIOBase):
    def __init__(self, connected: socket.socket, until: float) -> None:
        super().__init__()
        self._socket = connected
        self._raw = connected.makefile("rb", buffering=0)  # keeps it open until this is closed
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._until))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
