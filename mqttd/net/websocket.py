"""MQTT over WebSocket (MQTT 5, chapter 6), on picows.

Owns: the upgrade (path, subprotocol, origin), and an adapter that makes a WebSocket look like any
other transport, so that a connection is the same `StreamProtocol` as over TCP. Packets are a stream
here too: frames may hold parts of packets, or several.

Must not know: MQTT packets. picows does the framing, masking and the size limit of a frame.

Invariants: nothing but binary data reaches the core; a client that didn't offer the subprotocol
gets an HTTP error and no WebSocket; an upgrade that takes too long, or that the server's end
interrupts, is closed; a client that pings and doesn't read costs one pong of memory. There is one
timeout for the upgrade and, after it, the core's for the CONNECT.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)

# Not in picows' list of names, but what its `ws_create_server` gives to the loop; a server made
# that way could neither learn the peer from a proxy's header nor close half-made connections.
from picows.picows import WSAutoPingStrategy, WSProtocol  # type: ignore[attr-defined]

from mqttd.net.protocol import Gate, StreamProtocol

# What a client may offer, the one we prefer first. MQTT.js and old Paho offer the second for 3.1.
_SUBPROTOCOLS: Final = ("mqtt", "mqttv3.1")
_HEADER: Final = "Sec-WebSocket-Protocol"


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """picows' own log: what a client does wrong is no error of ours."""

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    warning = error = info


_log: Final = _Quiet(logging.getLogger("mqttd.net.websocket"), {})


class Upgrade:
    """What all WebSocket connections of one listener share."""

    def __init__(
        self,
        gate: Gate,
        path: str,
        origins: tuple[str, ...],
        max_frame: int,
        timeout: float,
    ) -> None:
        self.gate = gate
        self.max_frame = max_frame
        self.timeout = timeout
        self.pending: set[asyncio.BaseTransport] = set()
        self._path = path
        self._origins = frozenset(origin.lower() for origin in origins)

    def protocol(self, peer: str) -> asyncio.BaseProtocol:
        """For a new connection; `peer` is whom a proxy named."""
        return cast(asyncio.BaseProtocol, _Upgrading(self, peer))

    def close(self) -> None:
        """Drop the connections that are no WebSockets yet."""
        for transport in list(self.pending):
            cast(asyncio.Transport, transport).abort()

    def answer(
        self, request: WSUpgradeRequest, peer: str
    ) -> WSUpgradeResponseWithListener | WSListener | None:
        """The listener for a request that may become a WebSocket, or an HTTP error."""
        headers = request.headers
        if request.path.partition(b"?")[0] != self._path.encode("ascii"):
            return None  # 404
        if "websocket" not in _tokens(request, "Upgrade", lower=True):
            return _refuse(426, b"this is MQTT over WebSocket\n", {"Upgrade": "websocket"})
        if headers.get("Sec-WebSocket-Version") != "13":
            return _refuse(426, b"WebSocket version 13 only\n", {"Sec-WebSocket-Version": "13"})
        origin = headers.get("Origin")
        if self._origins and origin is not None and origin.lower() not in self._origins:
            return _refuse(403, b"this origin is not allowed\n", {})
        offered = _tokens(request, _HEADER)
        chosen = next((name for name in _SUBPROTOCOLS if name in offered), None)
        if chosen is None:  # [MQTT-6.0.0-3]
            return _refuse(400, b"the subprotocol mqtt has to be offered\n", {})
        if "upgrade" in _tokens(request, "Connection", lower=True):
            # Firefox sends "keep-alive, Upgrade"; picows wants the one word.
            headers["Connection"] = "Upgrade"
        response = WSUpgradeResponse.create_101_response({_HEADER: chosen})  # [MQTT-6.0.0-4]
        return WSUpgradeResponseWithListener(response, _Frames(self.gate, peer))


def _tokens(request: WSUpgradeRequest, header: str, lower: bool = False) -> list[str]:
    values = ",".join(request.headers.getall(header, []))
    return [word.strip().lower() if lower else word.strip() for word in values.split(",")]


def _refuse(status: int, body: bytes, headers: dict[str, str]) -> WSUpgradeResponseWithListener:
    response = WSUpgradeResponse.create_error_response(status, body, headers)
    return WSUpgradeResponseWithListener(response, None)


class _Upgrading(WSProtocol):  # type: ignore[misc]
    """picows' protocol, known to the listener while it is no WebSocket yet."""

    __slots__ = ("_peer", "_upgrade")

    def __init__(self, upgrade: Upgrade, peer: str) -> None:
        self._upgrade = upgrade
        self._peer = peer
        super().__init__(
            host_port=None,
            ws_path=None,
            is_client_side=False,
            ws_listener_factory=self._answer,
            logger=_log,
            disconnect_on_exception=True,
            websocket_handshake_timeout=upgrade.timeout,
            enable_auto_ping=False,
            auto_ping_idle_timeout=0,
            auto_ping_reply_timeout=0,
            auto_ping_strategy=WSAutoPingStrategy.PING_WHEN_IDLE,
            enable_auto_pong=False,  # it would answer without end whoever doesn't read
            max_frame_size=upgrade.max_frame,
            extra_headers=None,
            read_buffer_init_size=2048,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._upgrade.pending.add(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upgrade.pending.discard(self.transport.underlying_transport)
        super().connection_lost(exc)

    def _answer(
        self, request: WSUpgradeRequest
    ) -> WSUpgradeResponseWithListener | WSListener | None:
        self._upgrade.pending.discard(self.transport.underlying_transport)
        return self._upgrade.answer(request, self._peer)


class _Frames(WSListener):
    """Frames in, stream out: what picows calls once the upgrade is done."""

    __slots__ = ("_partial", "_paused", "_pong", "_stream", "_ws")

    _ws: WSTransport

    def __init__(self, gate: Gate, peer: str) -> None:
        self._stream = StreamProtocol(gate, peer)
        self._partial = False  # inside a fragmented message
        self._paused = False  # the kernel takes no more
        self._pong: bytes | None = None  # the one that waits until it does

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._ws = transport
        self._stream.connection_made(_Transport(transport))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if transport.is_close_frame_sent and frame.msg_type != WSMsgType.CLOSE:
            return
        if transport.underlying_transport.is_closing():
            return
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._fail(transport, WSCloseCode.PROTOCOL_ERROR)
        elif kind == WSMsgType.BINARY or kind == WSMsgType.CONTINUATION:
            if self._partial == (kind == WSMsgType.BINARY):
                self._fail(transport, WSCloseCode.PROTOCOL_ERROR)
                return
            self._partial = not frame.fin
            if frame.payload_size:
                self._stream.data_received(frame.get_payload_as_bytes())  # [MQTT-6.0.0-2]
        elif kind == WSMsgType.PING:
            self._pong = frame.get_payload_as_bytes()  # only the last one needs an answer
            if not self._paused:
                self._answer_ping()
        elif kind == WSMsgType.CLOSE:
            if not transport.is_close_frame_sent:
                transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind == WSMsgType.TEXT:
            self._fail(transport, WSCloseCode.UNSUPPORTED_DATA)  # [MQTT-6.0.0-1]

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._stream.connection_lost(None)

    def pause_writing(self) -> None:
        self._paused = True
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        self._answer_ping()
        if not self._paused:  # else the pong was too much already, and we are called again
            self._stream.resume_writing()

    def _answer_ping(self) -> None:
        pong, self._pong = self._pong, None
        if pong is not None and not self._ws.is_close_frame_sent:
            self._ws.send_pong(pong)

    def _fail(self, transport: WSTransport, code: WSCloseCode) -> None:
        transport.send_close(code)
        transport.disconnect()


class _Transport(asyncio.Transport):
    """A WebSocket as a byte stream. Half closing it is the WebSocket's own closing handshake."""

    __slots__ = ("_ws",)

    def __init__(self, ws: WSTransport) -> None:
        self._ws = ws

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:  # an empty frame is not nothing
            self._ws.send(WSMsgType.BINARY, data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._ws.send_close(WSCloseCode.OK)

    def close(self) -> None:
        if not self._ws.is_close_frame_sent:
            self._ws.send_close(WSCloseCode.OK)
        self._ws.disconnect()

    def abort(self) -> None:
        self._ws.disconnect(graceful=False)

    def is_closing(self) -> bool:
        return self._ws.underlying_transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._ws.underlying_transport.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._ws.underlying_transport.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        self._ws.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        self._ws.underlying_transport.resume_reading()
