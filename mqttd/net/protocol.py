"""One connection of the shell: the asyncio protocol of TCP, TLS, Unix sockets and WebSocket.

Owns: the way between a transport and its `Connection`: bytes in, one write a tick out, both
directions of back pressure, and how a connection ends.

Must not know: packets. Nor which kind of transport it has: TLS is the loop's, WebSocket is an
adapter that looks like a transport (`mqttd.net.websocket`).

Back pressure: the transport's own buffer is not used. With a high-water mark of nothing, `write`
sends at once and `pause_writing` says exactly when the kernel takes no more; from then on output
stays in the core, which bounds it. A client that goes on asking while it doesn't read is itself no
longer read.

Ending: after its last bytes a connection is half closed and what still comes in is thrown away,
until the peer has closed too. Closing at once, with unread input, would reset the connection, and
the reset may overtake the DISCONNECT that says why. Who doesn't close in time is cut off.

Invariants: no exception leaves a callback; the hot path, `data_received`, is one call into the
core; a connection costs this object and its transport, no dictionary, closure or timer.
"""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic
from typing import Final, cast

from mqttd.core.connection import Connection
from mqttd.core.router import ListenerInfo
from mqttd.net.flow import Flow, logger
from mqttd.net.proxy import format_peer
from mqttd.net.timers import NEVER
from mqttd.net.tls import IdentityError, Tls, identity_of

# How long a peer may take to read the last bytes and to close.
CLOSE_TIMEOUT: Final = 5.0

# With TLS "nothing buffered" would count as full on both loops, and session tickets wait there.
_TLS_BUFFER: Final = 16384

_OPEN: Final = 0
_CLOSING: Final = 1  # the deadline runs; there may be bytes left
_CLOSED: Final = 2  # the transport was told


class Gate:
    """What all connections of one listener share."""

    __slots__ = ("flow", "info", "tls", "where")

    def __init__(self, flow: Flow, info: ListenerInfo, tls: Tls | None, where: str) -> None:
        self.flow = flow
        self.info = info
        self.tls = tls
        self.where = where  # stands for the peer where that has no address


class StreamProtocol(asyncio.Protocol):
    """Implements `mqttd.net.flow.Shell`."""

    __slots__ = ("conn", "flow", "gate", "held", "paused", "peer", "stage", "tick", "transport")

    conn: Connection
    transport: asyncio.Transport

    def __init__(self, gate: Gate, peer: str = "") -> None:
        self.gate = gate
        self.flow = gate.flow
        self.peer = peer  # who a proxy says is behind it
        self.paused = False  # the kernel takes no more
        self.held = False  # we don't read
        self.stage = _OPEN
        self.tick = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        gate = self.gate
        peer = self.peer or peer_of(self.transport, gate.where)
        identity: str | None = None
        high = 0
        if gate.tls is not None:
            high = _TLS_BUFFER
            tls_object: ssl.SSLObject = transport.get_extra_info("ssl_object")
            try:
                identity = identity_of(tls_object, gate.tls.username_from)
            except IdentityError as error:
                logger.info("refused %s: client certificate with %s", peer, error)
                self.transport.abort()
                return
        self.conn = self.flow.open(self, gate.info, peer, identity)
        self.transport.set_write_buffer_limits(high=high, low=0)

    def data_received(self, data: bytes) -> None:
        flow = self.flow
        try:
            if self.conn.receive_data(data, monotonic()):
                self._hold()
        except Exception:
            flow.fault(self, "receive_data")
        if not flow.scheduled:
            flow.schedule()

    def flush(self) -> None:
        conn = self.conn
        wrote = False
        if self.paused or self.stage == _CLOSED:
            conn.dirty = False  # what it holds stays there; but we want to hear of its end
        else:
            data = conn.data_to_send()
            if data:
                self.transport.write(data)
                wrote = True
        if conn.closing:
            self._finish(wrote)
        elif self.held and not self.paused and not conn.suspended:
            self.held = False
            conn.attention = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.paused = True
        self.conn.pause_writing()

    def resume_writing(self) -> None:
        self.paused = False
        try:
            self.conn.resume_writing(monotonic())
            self.flush()
        except Exception:
            self.flow.fault(self, "resume_writing")
        self.flow.schedule()

    def eof_received(self) -> None:
        """The peer sends no more: what it asked for so far is answered, then the transport goes."""
        if self.stage == _OPEN and hasattr(self, "conn"):
            try:
                self.flush()
            except Exception:
                self.flow.fault(self, "flush")

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "conn"):
            self.flow.lost(self)

    def on_timer(self, now: float) -> float:
        if self.stage != _OPEN:
            self.transport.abort()
            return NEVER
        return self.flow.deadline(self, now)

    def abort(self) -> None:
        self.transport.abort()

    def _hold(self) -> None:
        """Don't read from a client whom a decision is pending for, or who takes no answers."""
        conn = self.conn
        if self.held or self.transport.is_closing():
            return
        if conn.suspended or conn.pressure() > self.flow.broker.settings.write_buffer:
            self.held = True
            conn.attention = True
            self.transport.pause_reading()

    def _finish(self, wrote: bool) -> None:
        transport = self.transport
        if self.stage == _OPEN:
            self.stage = _CLOSING
            self.flow.wheel.put(self, monotonic() + CLOSE_TIMEOUT)
        if self.stage == _CLOSED or (self.paused and not wrote):
            return  # what is left is written when the peer reads again, or never
        self.stage = _CLOSED
        if self.held and not transport.is_closing():
            transport.resume_reading()  # into the void, see data_received of a closed Connection
        if wrote and transport.can_write_eof():
            try:
                transport.write_eof()
                return
            except OSError:
                pass  # the peer has reset the connection; asyncio tells so here
        transport.close()


def peer_of(transport: asyncio.BaseTransport, where: str) -> str:
    """The peer's address for the log; `where` if it has none."""
    address = transport.get_extra_info("peername")
    if isinstance(address, tuple) and len(address) >= 2:
        return format_peer(str(address[0]), int(address[1]))
    return where
