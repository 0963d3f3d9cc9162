"""Real sockets for the tests of the shell: a client of few lines on the core's codec."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self, TypeVar

from mqttd.app import App
from mqttd.config import parse_config
from mqttd.core import encode
from mqttd.core.broker import Broker
from mqttd.core.decode import decode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import Connack, Connect, Filter, Publish, Record, Suback, Subscribe
from mqttd.core.properties import Properties
from mqttd.net.flow import Flow
from mqttd.net.listener import Endpoint, Listener
from mqttd.store.base import Store

P = TypeVar("P")
PATIENCE = 30.0
"""Seconds after which a test gives up; none is meant to come near."""


def connect_packet(client_id: str, version: int = 5, keep_alive: int = 0) -> bytes:
    return encode.encode_packet(
        Connect("MQTT", version, True, keep_alive, client_id, None, None, None, Properties()),
        version,
    )


class Wire:
    """One client: packets out, packets in, and what else a socket can do."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int = 5
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.version = version
        self._framer = Framer(1 << 28)

    @classmethod
    async def open(
        cls, port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, **more: Any
    ) -> "Wire":
        return cls(*await asyncio.open_connection(host, port, ssl=tls, **more))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def send(self, packet: Record | bytes) -> None:
        data = packet if isinstance(packet, bytes) else encode.encode_packet(packet, self.version)
        self.writer.write(data)

    async def receive(self, kind: type[P]) -> P:
        """The next packet, which has to be of this kind."""
        async with asyncio.timeout(PATIENCE):
            while not self._framer.next():
                data = await self.reader.read(65536)
                assert data, f"closed while waiting for {kind.__name__}"
                self._framer.feed(data)
        framer = self._framer
        packet = decode_packet(framer.first, framer.data, framer.pos, framer.end, self.version)
        assert isinstance(packet, kind), packet
        return packet

    async def connect(self, client_id: str = "", keep_alive: int = 0) -> Connack:
        self.send(connect_packet(client_id, self.version, keep_alive))
        return await self.receive(Connack)

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.send(Subscribe(1, [Filter(topic_filter, qos, False, False, 0)]))
        assert (await self.receive(Suback)).reasons == [qos]

    def publish(self, topic: str, payload: bytes, qos: int = 0, packet_id: int = 0) -> None:
        self.send(publish_packet(topic, payload, qos, packet_id))

    async def closed(self) -> bytes:
        """Wait until the broker closes; what it sent before that."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read(-1)
            except (ConnectionError, ssl.SSLError):
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.writer.wait_closed()


def publish_packet(topic: str, payload: bytes, qos: int = 0, packet_id: int = 0) -> Publish:
    return Publish(topic, payload, qos, False, False, packet_id)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port on which nobody listens and that the system hands to nobody else meanwhile.

    Who asks for it by its number, as servers do with SO_REUSEADDR, still gets it.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.asynccontextmanager
async def serving(*endpoints: Endpoint, broker: Broker | None = None) -> AsyncIterator["Served"]:
    """A flow with listeners, without the composition root around it."""
    served = Served(broker or Broker())
    served.flow.start()
    try:
        for endpoint in endpoints:
            listener = Listener(served.flow, endpoint)
            served.listeners.append(listener)
            await listener.start()
        yield served
    finally:
        for listener in served.listeners:
            await listener.stop()
        await served.flow.drain(0.2)
        served.flow.stop()


class Served:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.events: list[tuple[str, str, str]] = []
        self.flow = Flow(
            broker,
            asyncio.get_running_loop(),
            lambda events: self.events.extend(
                (event.kind, event.client_id, event.reason) for event in events
            ),
        )
        self.listeners: list[Listener] = []

    @property
    def port(self) -> int:
        return self.listeners[0].port


@contextlib.asynccontextmanager
async def running(config: dict[str, object], store: Store | None = None) -> AsyncIterator[App]:
    """The composition root, from start to stop; without `storage` or a store it keeps nothing."""
    app = App(parse_config({"storage": {"path": ":memory:"}, **config}), store)
    await app.start()
    try:
        yield app
    finally:
        await app.stop(0.2)


def loopback(**more: object) -> dict[str, object]:
    return {"name": "tcp", "bind": "127.0.0.1:0", **more}


def endpoint(**more: Any) -> Endpoint:
    """TCP on loopback, a free port, anonymous."""
    return Endpoint(**{"name": "tcp", "host": "127.0.0.1", "allow_anonymous": True, **more})
