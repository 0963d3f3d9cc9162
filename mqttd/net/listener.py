"""Listeners: one configured address, with its sockets, its TLS and its kind of transport.

Owns: binding (TCP by address or name, Unix sockets), the options of listening sockets, which way
connections are accepted, and what the operator reads about it: the real port.

Must not know: the configuration tree (it gets an `Endpoint`), what is spoken over a connection.

Invariants: TLS means the same on every kind of listener; a Unix socket is reachable for nobody
before its permissions are set, another process' live socket is never removed, and only our own on
stop; `start` either serves every address of the endpoint or raises `ListenError` and holds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mqttd.core.router import ListenerInfo
from mqttd.net.accept import Acceptor, ProtocolFactory
from mqttd.net.flow import Flow
from mqttd.net.loops import is_uvloop
from mqttd.net.protocol import Gate, StreamProtocol
from mqttd.net.tls import Tls, server_context

if TYPE_CHECKING:
    from mqttd.net.websocket import Upgrade

TCP: Final = "tcp"
WEBSOCKET: Final = "websocket"
OFF: Final = "off"

_BACKLOG: Final = 4096
# uvloop accepts one connection per handle and turn of the loop. With some handles on one socket,
# devices that all come back at once get in soon even where traffic makes the turns long.
_ACCEPTS_PER_TURN: Final = 8
_UNIX_MODE: Final = 0o660
_PORT_ATTEMPTS: Final = 5
# A peer that vanished without an MQTT keep alive is found by TCP's own, after a quarter of an hour.
_KEEP_ALIVE: Final = (("TCP_KEEPIDLE", 600), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_Address = tuple[int, tuple[str, int]]  # family, what `bind` takes


class ListenError(Exception):
    """A listener that can't be had; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One listener as the operator wants it."""

    name: str
    host: str = ""
    port: int = 0
    unix_path: str = ""  # instead of host and port
    transport: str = TCP  # tcp, websocket
    path: str = "/mqtt"
    allow_anonymous: bool = False
    proxy_protocol: str = OFF  # off, v1, v2
    tls: Tls | None = None
    allow_origins: tuple[str, ...] = ()  # of web pages; empty allows all
    proxy_from: tuple[str, ...] = ()  # networks; empty believes whoever connects


class Listener:
    """Serves one endpoint."""

    def __init__(self, flow: Flow, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.port = 0
        self.urls: list[str] = []  # where clients connect to, with the real port
        self._flow = flow
        self._acceptors: list[Acceptor] = []
        self._servers: list[asyncio.AbstractServer] = []
        self._upgrade: Upgrade | None = None
        self._inode: tuple[int, int] | None = None

    async def start(self) -> None:
        """Bind and accept."""
        endpoint = self.endpoint
        try:
            context = self._context()
            if endpoint.unix_path:
                if endpoint.transport == WEBSOCKET:
                    raise ValueError("WebSocket needs a TCP address")
                sockets = [self._bind_unix(endpoint.unix_path)]
            else:
                sockets = await self._bind_tcp()
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        factory = self._factory()
        try:
            for sock in sockets:
                await self._serve(sock, factory, context)
        except OSError as error:
            await self.stop()
            for sock in sockets:
                sock.close()
            raise self._error(error) from error

    async def stop(self) -> None:
        """Accept nothing more. Connections that were accepted stay."""
        for acceptor in self._acceptors:
            acceptor.close()
        for server in self._servers:
            server.close()
        for acceptor in self._acceptors:
            await acceptor.closed()
        if self._upgrade is not None:
            self._upgrade.close()
        self._acceptors.clear()
        self._servers.clear()
        self._unlink()

    def reload(self) -> None:
        """Read certificates and keys anew; they count for new connections. May ListenError."""
        try:
            context = self._context()
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        for acceptor in self._acceptors:
            acceptor.context = context

    def _error(self, error: Exception) -> ListenError:
        endpoint = self.endpoint
        where = endpoint.unix_path or f"{endpoint.host}:{endpoint.port}"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ListenError(f"listener {endpoint.name}: can't listen on {where}: {reason}")

    def _context(self) -> ssl.SSLContext | None:
        if self.endpoint.tls is None:
            return None
        protocol = "http/1.1" if self.endpoint.transport == WEBSOCKET else "mqtt"
        return server_context(self.endpoint.tls, protocol)

    def _factory(self) -> ProtocolFactory:
        """Makes the protocol of each connection."""
        endpoint = self.endpoint
        kind = "unix" if endpoint.unix_path else endpoint.transport
        if endpoint.tls is not None:
            kind += "+tls"
        info = ListenerInfo(endpoint.name, kind, endpoint.allow_anonymous)
        gate = Gate(self._flow, info, endpoint.tls, f"unix:{endpoint.unix_path}")
        if endpoint.transport != WEBSOCKET:
            return lambda peer: StreamProtocol(gate, peer)
        from mqttd.net.websocket import Upgrade

        settings = self._flow.broker.settings
        self._upgrade = Upgrade(
            gate,
            endpoint.path,
            endpoint.allow_origins,
            # Some clients put several packets into one frame.
            2 * settings.max_packet_size,
            settings.connect_timeout,
        )
        return self._upgrade.protocol

    async def _serve(
        self, sock: socket.socket, factory: ProtocolFactory, context: ssl.SSLContext | None
    ) -> None:
        endpoint = self.endpoint
        loop = self._flow.loop
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        self._describe(sock)
        if is_uvloop(loop) and context is None and endpoint.proxy_protocol == OFF:
            make = loop.create_unix_server if endpoint.unix_path else loop.create_server
            with sock:
                for _ in range(_ACCEPTS_PER_TURN):
                    server = await make(lambda: factory(""), sock=sock.dup(), backlog=_BACKLOG)
                    self._servers.append(server)
            return
        acceptor = Acceptor(
            loop,
            sock,
            factory,
            endpoint.name,
            self._flow.broker.settings.connect_timeout,
            endpoint.proxy_protocol,
            endpoint.proxy_from,
            context,
            self._flow.refused,
        )
        self._acceptors.append(acceptor)
        acceptor.start()

    def _describe(self, sock: socket.socket) -> None:
        endpoint = self.endpoint
        secure = endpoint.tls is not None
        if endpoint.unix_path:
            self.urls.append(f"{'mqtts' if secure else 'mqtt'}+unix://{endpoint.unix_path}")
            return
        host, port = sock.getsockname()[:2]
        self.port = self.port or port
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if endpoint.transport == WEBSOCKET:
            self.urls.append(f"{'wss' if secure else 'ws'}://{shown}{endpoint.path}")
        else:
            self.urls.append(f"{'mqtts' if secure else 'mqtt'}://{shown}")

    # Binding.

    async def _bind_tcp(self) -> list[socket.socket]:
        addresses = await self._resolve()
        for attempt in range(_PORT_ATTEMPTS):
            try:
                return _bind_all(addresses, self.endpoint.port)
            except OSError as error:
                # A free port of the first address may be taken on the second one: choose anew.
                last = attempt == _PORT_ATTEMPTS - 1 or self.endpoint.port or len(addresses) == 1
                if last or error.errno != errno.EADDRINUSE:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _resolve(self) -> list[_Address]:
        host, port = self.endpoint.host, self.endpoint.port
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            found = await self._flow.loop.getaddrinfo(
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
            os.chmod(path, _UNIX_MODE)
        except OSError:
            sock.close()
            raise
        status = os.stat(path)
        self._inode = (status.st_dev, status.st_ino)
        return sock

    def _unlink(self) -> None:
        """Remove our socket file, unless another process has put its own there."""
        if self._inode is None:
            return
        path = self.endpoint.unix_path
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) == self._inode:
                os.unlink(path)
        self._inode = None


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
