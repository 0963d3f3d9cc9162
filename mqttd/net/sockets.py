"""Listening sockets: an address becomes one or more of them, bound and not yet listening.

Owns: binding (TCP by address or name, Unix sockets), the options of listening sockets, the file of
a Unix socket, and how a failure is told to the operator.

Must not know: what is served on them, the configuration tree.

Invariants: a Unix socket is reachable for nobody before its permissions are set, another process'
live socket is never removed, and only our own on release; `bind` gives a socket for every address
that this machine has of a name, all on one port, or raises and holds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import stat
from typing import Final

_UNIX_MODE: Final = 0o660
_PORT_ATTEMPTS: Final = 5
# A peer that vanished without an MQTT keep alive is found by TCP's own, after a quarter of an hour.
_KEEP_ALIVE: Final = (("TCP_KEEPIDLE", 600), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_Address = tuple[int, tuple[str, int]]  # family, what `bind` takes


class ListenError(Exception):
    """A listener that can't be had; the text says which and why."""


class Place:
    """Where to listen: host and port, or the path of a Unix socket."""

    def __init__(self, host: str, port: int, unix_path: str, mode: int = _UNIX_MODE) -> None:
        self.host = host
        self.port = port
        self.unix_path = unix_path
        self._mode = mode  # of a Unix socket
        self._inode: tuple[int, int] | None = None

    async def bind(self, loop: asyncio.AbstractEventLoop) -> list[socket.socket]:
        """The sockets; OSError or ValueError where they can't be had."""
        if self.unix_path:
            return [self._bind_unix(self.unix_path)]
        return await self._bind_tcp(loop)

    def release(self) -> None:
        """Remove our socket file, unless another process has put its own there."""
        if self._inode is None:
            return
        with contextlib.suppress(OSError):
            status = os.stat(self.unix_path)
            if (status.st_dev, status.st_ino) == self._inode:
                os.unlink(self.unix_path)
        self._inode = None

    def error(self, who: str, error: Exception) -> ListenError:
        """What the operator reads."""
        where = self.unix_path or f"{self.host}:{self.port}"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ListenError(f"{who}: can't listen on {where}: {reason}")

    async def _bind_tcp(self, loop: asyncio.AbstractEventLoop) -> list[socket.socket]:
        addresses = await self._resolve(loop)
        for attempt in range(_PORT_ATTEMPTS):
            try:
                return _bind_all(addresses, self.port)
            except OSError as error:
                # A free port of the first address may be taken on the second one: choose anew.
                last = attempt == _PORT_ATTEMPTS - 1 or self.port or len(addresses) == 1
                if last or error.errno != errno.EADDRINUSE:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> list[_Address]:
        host, port = self.host, self.port
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            found = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            addresses = [(family, (str(info[0]), port)) for family, _, _, _, info in found]
            return list(dict.fromkeys(addresses))
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]

    def _bind_unix(self, path: str) -> socket.socket:
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # [MQTT-4.2-1]
        try:
            sock.bind(path)
            # Nobody can connect before `listen`, so there is no moment with other permissions.
            os.chmod(path, self._mode)
        except OSError:
            sock.close()
            raise
        status = os.stat(path)
        self._inode = (status.st_dev, status.st_ino)
        return sock


def address_of(sock: socket.socket) -> tuple[str, int]:
    """host:port of a TCP socket as a URL has it, and the port alone."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", port


def _bind_all(addresses: list[_Address], port: int) -> list[socket.socket]:
    """Sockets bound to one port on every address that this machine has."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, _) in addresses:
            try:
                # The protocol has to be named: asyncio sets TCP_NODELAY only where it is.
                # [MQTT-4.2-1] TCP, and TLS and WebSocket on it: in order, nothing lost.
                sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            except OSError as error:
                missing = error
                continue
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # [::]:1883 and 0.0.0.0:1883 are two listeners.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _keep_alive(sock)
            try:
                sock.bind((host, port))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                # A name like localhost may have an address of a family that is switched off.
                sockets.pop().close()
                missing = error
                continue
            port = sock.getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise missing or OSError(errno.EADDRNOTAVAIL, "the name has no address")
    return sockets


def _keep_alive(sock: socket.socket) -> None:
    """Accepted sockets inherit this."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that is gone; leave everything else alone."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise OSError(errno.EADDRINUSE, f"the socket is in use ({error.strerror})") from error
    raise OSError(errno.EADDRINUSE, "another process listens there")
