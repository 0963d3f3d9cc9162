"""A client of another MQTT broker, as much of one as a bridge needs.

Owns: one connection: its packets, packet identifiers, keep alive, and the pressure back when one
side lags. MQTT 5 and 3.1.1; QoS 0 and 1, both ways.

Must not know: rules, items, what a message is for. Whoever uses it gets `packets.Publish` and a
future for each question.

Invariants: an identifier is in use from its PUBLISH to its PUBACK, those that an earlier connection
of the same session left open included; no more PUBLISH are under way than the server's Receive
Maximum allows; every future ends when the connection does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, cast

from mqttd.api import (
    Framer,
    PacketProperties,
    ProtocolError,
    decode_packet,
    encode_packet,
    packets,
    reason_codes,
)

MQTT5: Final = 5
MQTT311: Final = 4
_MOST: Final = 268_435_460  # bytes of a packet
_IDS: Final = 65535

AnswerT = TypeVar("AnswerT")


class Lost(Exception):
    """The connection is over; the text says why."""


class MqttConnection(asyncio.Protocol):
    """One connection. Made by `open_connection`."""

    def __init__(self, version: int, received: Callable[[packets.Publish], None]) -> None:
        self.version = version
        self.lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        self.quota = _IDS  # PUBLISH that may still be sent
        self.largest = _MOST  # bytes that the server takes
        self._received = received
        self._framer = Framer(_MOST)
        self._transport: asyncio.Transport | None = None
        self._connack: asyncio.Future[packets.Connack] | None = None
        self._questions: dict[int, asyncio.Future[packets.Record]] = {}
        self._publishes: dict[int, Callable[[packets.Puback], None]] = {}
        self._last_id = 0
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._may_publish = asyncio.Event()
        self._may_publish.set()
        self._keep_alive_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._heard = False
        self._asked = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error else "the remote broker closed the connection")

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        framer = self._framer
        framer.feed(data)
        try:
            while framer.next():
                packet = decode_packet(
                    framer.first, framer.data, framer.pos, framer.end, self.version
                )
                self._take(packet)
        except ProtocolError as error:
            self.close(f"the remote broker broke the protocol: {error}")

    # What the owner calls.

    async def connect(self, connect: packets.Connect) -> packets.Connack:
        """Send CONNECT, and wait for the answer. Lost."""
        self._connack = asyncio.get_running_loop().create_future()
        self._write(connect)
        connack = await self._first(self._connack)
        properties = connack.properties
        if self.version == MQTT5:
            self.quota = properties.receive_maximum or _IDS
            self.largest = properties.maximum_packet_size or _MOST
        keep_alive = properties.server_keep_alive
        self._keep_alive_s = float(connect.keep_alive if keep_alive is None else keep_alive)
        self._watch_later()
        return connack

    async def subscribe(self, topic_filter: packets.Filter, identifier: int = 0) -> int:
        """Subscribe, and wait for the reason code. Lost."""
        packet_id = self._free_id(())
        answer = await self._ask(
            packet_id, packets.Subscribe(packet_id, [topic_filter], identifier)
        )
        return answer.reasons[0] if isinstance(answer, packets.Suback) else 0x80

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe, and wait until it is done. Lost."""
        packet_id = self._free_id(())
        await self._ask(packet_id, packets.Unsubscribe(packet_id, [topic_filter]))

    async def room(self) -> None:
        """Wait until another PUBLISH may be sent. Never returns when the connection is over."""
        await self._may_write.wait()
        await self._may_publish.wait()

    def publish(
        self,
        packet: packets.Publish,
        acknowledged: Callable[[packets.Puback], None] | None,
        taken: Iterable[int] = (),
    ) -> bool:
        """Send a PUBLISH; False, and nothing is sent, where it is larger than the server takes.

        At QoS 1 the identifier is `packet.packet_id`, or a free one that isn't in `taken`, and
        `acknowledged` is called with its PUBACK.
        """
        if acknowledged is not None and not packet.packet_id:
            packet.packet_id = self._free_id(taken)
        data = encode_packet(packet, self.version)
        if len(data) > self.largest:
            return False
        if acknowledged is not None:
            self._publishes[packet.packet_id] = acknowledged
            self.quota -= 1
            if self.quota <= 0:
                self._may_publish.clear()
        self._write_bytes(data)
        return True

    def acknowledge(self, packet_id: int) -> None:
        """Send a PUBACK."""
        self._write(packets.Puback(packet_id))

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def disconnect(self) -> None:
        """Say goodbye."""
        if self._transport is not None and not self._transport.is_closing():
            self._write(packets.Disconnect())
            self._transport.close()
        self._end("closed")

    def close(self, reason: str) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    # Packets.

    def _take(self, packet: packets.Record) -> None:
        if isinstance(packet, packets.Publish):
            self._received(packet)
        elif isinstance(packet, packets.Puback):
            acknowledged = self._publishes.pop(packet.packet_id, None)
            if acknowledged is not None:
                self.quota += 1
                self._may_publish.set()
                acknowledged(packet)
        elif isinstance(packet, packets.Connack):
            if self._connack is not None and not self._connack.done():
                self._connack.set_result(packet)
        elif isinstance(packet, packets.Suback | packets.Unsuback):
            future = self._questions.pop(packet.packet_id, None)
            if future is not None and not future.done():
                future.set_result(packet)
        elif isinstance(packet, packets.Disconnect):
            self.close(f"the remote broker disconnected: {told(packet.reason, packet.properties)}")

    def _write(self, packet: packets.Record) -> None:
        self._write_bytes(encode_packet(packet, self.version))

    def _write_bytes(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _ask(self, packet_id: int, packet: packets.Record) -> packets.Record:
        """Send a question with an identifier, and wait for its answer."""
        future: asyncio.Future[packets.Record] = asyncio.get_running_loop().create_future()
        self._questions[packet_id] = future
        self._write(packet)
        return await self._first(future)

    def _free_id(self, taken: Iterable[int]) -> int:
        while True:
            self._last_id = self._last_id % _IDS + 1
            used = self._last_id in self._publishes or self._last_id in self._questions
            if not used and self._last_id not in taken:
                return self._last_id

    async def _first(self, answer: asyncio.Future[AnswerT]) -> AnswerT:
        """The answer, or Lost."""
        either: set[asyncio.Future[Any]] = {answer, self.lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise self.lost.result()
        return answer.result()

    def _watch(self) -> None:
        """Ask for a sign of life when there was none, and end what gives none."""
        if self.lost.done():
            return
        if self._asked and not self._heard:
            self.close("no answer to PINGREQ")
            return
        self._asked, self._heard = True, False
        self._write(packets.Pingreq())
        self._watch_later()

    def _watch_later(self) -> None:
        if self._keep_alive_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keep_alive_s / 2, self._watch)

    def _end(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.lost.done():
            self.lost.set_result(Lost(reason))


def told(reason: int, properties: PacketProperties | None) -> str:
    """A reason code in words, with what the server says about it."""
    words = reason_codes.reason_name(reason)
    text = None if properties is None else properties.reason_string
    return f"{words} ({text})" if text else words


async def open_connection(
    host: str,
    port: int,
    version: int,
    received: Callable[[packets.Publish], None],
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> MqttConnection:
    """Connect to an address; MQTT begins with `connect`. OSError, ssl.SSLError (an OSError)."""
    loop = asyncio.get_running_loop()
    name = (server_name or host) if tls is not None else None
    _, connection = await loop.create_connection(
        lambda: MqttConnection(version, received), host, port, ssl=tls, server_hostname=name
    )
    return connection
