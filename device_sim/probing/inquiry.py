"""One connection to talk to a broker step by step: say something, wait for the answer.

For probing, not for load: a coroutine a question, everything decoded. Whatever keeps an answer from
coming (a refusal, a closed connection, silence) is an `Unanswered` that says which. Messages that
arrive while another answer is waited for are kept for `message`, and acknowledged unless the
inquiry was told to hold back.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from typing import Final, TypeVar

from device_sim.engine.client import reason_text
from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.encode import encode_packet
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
)

MAX_PACKET: Final = 256 * 1024 * 1024
Answer = TypeVar("Answer", bound=Record)


class Unanswered(Exception):
    """The broker didn't do what was asked for; the text says what it did instead."""


class Target:
    """Where a broker is and how to get in."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        username: str | None = None,
        password: str | None = None,
        timeout_s: float = 3.0,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.username = username
        self.password = None if password is None else password.encode()
        self.timeout_s = timeout_s


class Inquiry:
    """One connection, from `connect` to `leave` or `abort`."""

    def __init__(self, target: Target, version: int) -> None:
        self.version = version
        self.connack = Connack()
        self.holding_back = False
        self.messages: list[Publish] = []
        self._target = target
        self._framer = Framer(MAX_PACKET)
        self._packet_id = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, packet: Connect) -> Connack:
        """Open the connection; name, version and credentials are filled in."""
        target = self._target
        packet.protocol_name = "MQIsdp" if self.version == spec.MQTT31 else "MQTT"
        packet.version = self.version
        packet.username = target.username
        packet.password = target.password
        try:
            async with asyncio.timeout(target.timeout_s):
                self._reader, self._writer = await asyncio.open_connection(
                    target.host, target.port, ssl=target.tls
                )
        except TimeoutError:
            raise Unanswered(f"no connection within {target.timeout_s:g} s") from None
        except OSError as error:
            raise Unanswered(str(error)) from None
        self._send(packet)
        connack = await self._expect(Connack)
        if connack.reason:
            raise Unanswered(f"refused: {reason_text(connack.reason, self.version)}")
        self.connack = connack
        return connack

    async def subscribe(self, filters: Sequence[Filter], identifier: int = 0) -> None:
        """Subscribe; a refusal is Unanswered."""
        self._send(Subscribe(self._next_id(), list(filters), identifier))
        suback = await self._expect(Suback)
        for reason in suback.reasons:
            if reason >= 0x80:
                raise Unanswered(f"refused: {reason_text(reason, self.version)}")

    async def publish(self, message: Publish) -> None:
        """Publish, and wait for the acknowledgement that its QoS has."""
        if message.qos:
            message.packet_id = self._next_id()
        self._send(message)
        if message.qos == 1:
            self._accepted((await self._expect(Puback)).reason)
        elif message.qos == 2:
            self._accepted((await self._expect(Pubrec)).reason)
            self._send(Pubrel(message.packet_id))
            await self._expect(Pubcomp)
        elif self._writer is not None:
            await self._writer.drain()

    async def message(self) -> Publish:
        """The next message that comes."""
        while not self.messages:
            await self._take()
        return self.messages.pop(0)

    async def ping(self) -> None:
        """Ask for an answer: what the broker had to say before has been said then."""
        self._send(Pingreq())
        await self._expect(Pingresp)

    async def leave(self) -> None:
        """Disconnect in good manners."""
        self._send(Disconnect())
        if self._writer is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._target.timeout_s):
                    await self._writer.drain()
                    self._writer.close()
                    await self._writer.wait_closed()

    def abort(self) -> None:
        """Be gone without a word."""
        if self._writer is not None:
            self._writer.transport.abort()

    def _next_id(self) -> int:
        self._packet_id += 1
        return self._packet_id

    def _accepted(self, reason: int) -> None:
        if reason >= 0x80:
            raise Unanswered(f"refused: {reason_text(reason, self.version)}")

    def _send(self, packet: Record) -> None:
        if self._writer is not None:
            self._writer.write(encode_packet(packet, self.version))

    async def _expect(self, kind: type[Answer]) -> Answer:
        while True:
            packet = await self._take()
            if isinstance(packet, kind):
                return packet
            if not isinstance(packet, Publish):
                raise Unanswered(f"answered with {type(packet).__name__.upper()}")

    async def _take(self) -> Record:
        """The next packet; a message is kept and acknowledged."""
        try:
            async with asyncio.timeout(self._target.timeout_s):
                packet = await self._read()
        except TimeoutError:
            raise Unanswered(f"no answer within {self._target.timeout_s:g} s") from None
        except OSError as error:
            raise Unanswered(f"connection lost: {error}") from None
        except ProtocolError as error:
            raise Unanswered(f"sent a malformed packet: {error.detail}") from None
        if isinstance(packet, Disconnect):
            raise Unanswered(f"sent DISCONNECT: {reason_text(packet.reason, self.version)}")
        if isinstance(packet, Publish):
            self.messages.append(packet)
            if packet.qos == 1 and not self.holding_back:
                self._send(Puback(packet.packet_id))
            elif packet.qos == 2 and not self.holding_back:
                self._send(Pubrec(packet.packet_id))
        elif isinstance(packet, Pubrel):
            self._send(Pubcomp(packet.packet_id))
            return await self._take()
        return packet

    async def _read(self) -> Record:
        framer = self._framer
        assert self._reader is not None
        while not framer.next():
            data = await self._reader.read(65536)
            if not data:
                raise Unanswered("closed the connection")
            framer.feed(data)
        return decode_packet(framer.first, framer.data, framer.pos, framer.end, self.version)
