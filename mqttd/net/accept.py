"""Accepting connections where the loop's own server won't do.

Owns: the loop over `accept`, the header of a proxy, and the wait for a TLS handshake; so also what
a stranger can cost before there is a `Connection`: time (`timeout`), and a number of handshakes at
once.

Used for TLS and PROXY listeners, and for all of them on asyncio. uvloop's server accepts plain
connections at half the cost, but neither server tells why a handshake failed, nor bounds how many
are under way; and asyncio's, out of file descriptors, complains as often as its backlog is long.

Must not know: MQTT. It gets a factory of protocols and hands each the peer that a proxy named.

Invariants: every accepted socket ends up with a transport or closed; without file descriptors or
with too many handshakes under way accepting pauses, says so once, and clients wait in the kernel's
backlog; after `close` nothing is accepted and nothing half made is left. Whoever doesn't get
through, in time or at all, is reported once.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from mqttd.net import proxy
from mqttd.net.protocol import CLOSE_TIMEOUT

logger: Final = logging.getLogger("mqttd.net")

ProtocolFactory = Callable[[str], asyncio.BaseProtocol]


def _nobody_counts() -> None:
    """For an acceptor that nobody asks how many it has refused."""


_PER_TURN: Final = 64  # then the loop sees to its other clients
_HANDSHAKES: Final = 2048
_RETRY: Final = 1.0
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts on one listening socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        factory: ProtocolFactory,
        name: str,
        timeout: float,
        proxy_protocol: str = "off",
        proxy_from: tuple[str, ...] = (),
        context: ssl.SSLContext | None = None,
        on_refused: Callable[[], None] = _nobody_counts,
    ) -> None:
        self.context = context  # may be replaced at any time: it counts for the next connection
        self._loop = loop
        self._sock = sock
        self._factory = factory
        self._name = name
        self.timeout = timeout
        self._proxy_protocol = proxy_protocol
        self._proxies = tuple(ipaddress.ip_network(network) for network in proxy_from)
        self._on_refused = on_refused
        self._under_way: set[asyncio.Task[None]] = set()
        self._unopened: set[socket.socket] = set()  # their tasks have not taken one step
        self._reading = False
        self._starved = False
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept nothing more; half-made connections end."""
        self._pause()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for task in self._under_way:
            task.cancel()
        self._sock.close()

    async def closed(self) -> None:
        """Wait until the half-made connections are gone."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._starve(error)
                    return
                continue  # this client is gone already
            sock.setblocking(False)
            task = self._loop.create_task(self._open(sock, address))
            self._under_way.add(task)
            self._unopened.add(sock)
            task.add_done_callback(partial(self._opened, sock))
            if len(self._under_way) >= _HANDSHAKES:
                self._pause()
                return
        self._starved = False

    def _starve(self, error: OSError) -> None:
        self._pause()
        self._retry = self._loop.call_later(_RETRY, self._resume)
        if not self._starved:
            self._starved = True
            logger.error(
                "listener %s: can't accept connections: %s; they wait", self._name, error.strerror
            )

    def _resume(self) -> None:
        self._retry = None
        self.start()

    def _opened(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if sock in self._unopened:  # cancelled so early that `_open` never saw it
            self._unopened.discard(sock)
            sock.close()
        if not self._reading and self._retry is None and self._sock.fileno() >= 0:
            self.start()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("bug: a connection to %s could not be made", self._name, exc_info=error)

    async def _open(self, sock: socket.socket, address: object) -> None:
        self._unopened.discard(sock)
        peer = ""
        if self._proxy_protocol != "off":
            try:
                self._check_proxy(address)
                async with asyncio.timeout(self.timeout):
                    peer = await self._preface(sock)
            except (proxy.ProxyError, OSError, TimeoutError) as error:
                sock.close()
                reason = str(error) or "no PROXY header in time"
                logger.info("listener %s: refused %s: %s", self._name, address, reason)
                self._on_refused()
                return
            except asyncio.CancelledError:
                sock.close()
                raise
        factory = partial(self._factory, peer)
        if self.context is None:
            await self._loop.connect_accepted_socket(factory, sock)
            return
        try:
            await self._loop.connect_accepted_socket(
                factory,
                sock,
                ssl=self.context,
                ssl_handshake_timeout=self.timeout,
                ssl_shutdown_timeout=CLOSE_TIMEOUT,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are such
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            logger.info(
                "listener %s: TLS handshake with %s failed: %s", self._name, peer or address, reason
            )
            self._on_refused()

    def _check_proxy(self, address: object) -> None:
        """Only a proxy may say who is behind it. On a Unix socket its permissions decide that."""
        if not self._proxies or not isinstance(address, tuple):
            return
        host = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if not any(host in network for network in self._proxies):
            raise proxy.ProxyError("it is none of the proxies in proxy_from")

    async def _preface(self, sock: socket.socket) -> str:
        """Read the proxy's header, and not one byte more; returns whom it names."""
        taken = b""
        while True:
            await _readable(self._loop, sock)
            try:
                seen = sock.recv(proxy.MAX_HEADER, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                continue
            if not seen:
                raise proxy.ProxyError("closed before its PROXY header")
            header = proxy.parse(taken + seen, self._proxy_protocol)
            if header is not None:
                sock.recv(header.length - len(taken))
                return header.peer
            taken += sock.recv(len(seen))


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    done = loop.create_future()

    def ready() -> None:
        loop.remove_reader(sock.fileno())
        if not done.done():
            done.set_result(None)

    loop.add_reader(sock.fileno(), ready)
    try:
        await done
    finally:
        loop.remove_reader(sock.fileno())
