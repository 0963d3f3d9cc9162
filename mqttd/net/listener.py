"""Listeners: one configured address, with its sockets, its TLS and its kind of transport.

Owns: which way connections are accepted, and what the operator reads about it: the real port.
Sockets come from `mqttd.net.sockets`.

Must not know: the configuration tree (it gets an `Endpoint`), what is spoken over a connection.

Invariants: TLS means the same on every kind of listener; `start` either serves every address of the
endpoint or raises `ListenError` and holds none.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mqttd.core.router import ListenerInfo
from mqttd.net.accept import Acceptor, ProtocolFactory
from mqttd.net.flow import Flow
from mqttd.net.loops import is_uvloop
from mqttd.net.protocol import Gate, StreamProtocol
from mqttd.net.sockets import ListenError, Place, address_of
from mqttd.net.tls import Tls, server_context

if TYPE_CHECKING:
    from mqttd.net.websocket import Upgrade

__all__ = ["Endpoint", "ListenError", "Listener"]

TCP: Final = "tcp"
WEBSOCKET: Final = "websocket"
OFF: Final = "off"

_BACKLOG: Final = 4096
# uvloop accepts one connection per handle and turn of the loop. With some handles on one socket,
# devices that all come back at once get in soon even where traffic makes the turns long.
_ACCEPTS_PER_TURN: Final = 8
_FRAMES: Final = 2  # some WebSocket clients put several packets into one frame


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
        self._place = Place(endpoint.host, endpoint.port, endpoint.unix_path)

    async def start(self) -> None:
        """Bind and accept."""
        endpoint = self.endpoint
        try:
            context = self._context()
            if endpoint.unix_path and endpoint.transport == WEBSOCKET:
                raise ValueError("WebSocket needs a TCP address")
            sockets = await self._place.bind(self._flow.loop)
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
        self._place.release()

    def reload(self) -> None:
        """Read certificates and keys anew; they count for new connections. May ListenError."""
        self.renew(self.fresh_context())

    def fresh_context(self) -> ssl.SSLContext | None:
        """The files of TLS, read now; nothing has changed yet. ListenError."""
        try:
            return self._context()
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Use other certificates, and the limits as they are now, for new connections."""
        settings = self._flow.broker.settings
        for acceptor in self._acceptors:
            acceptor.context = context
            acceptor.timeout = settings.connect_timeout
        if self._upgrade is not None:
            self._upgrade.max_frame = _FRAMES * settings.max_packet_size
            self._upgrade.timeout = settings.connect_timeout

    def _error(self, error: Exception) -> ListenError:
        return self._place.error(f"listener {self.endpoint.name}", error)

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
            _FRAMES * settings.max_packet_size,
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
        shown, port = address_of(sock)
        self.port = self.port or port
        if endpoint.transport == WEBSOCKET:
            self.urls.append(f"{'wss' if secure else 'ws'}://{shown}{endpoint.path}")
        else:
            self.urls.append(f"{'mqtts' if secure else 'mqtt'}://{shown}")
