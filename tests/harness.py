"""In-memory clients around the real core: a fake wire, a fake clock, no sleep.

`Harness` owns a `Broker`, the clock and the flush that the shell does once a tick. `FakeClient`
speaks packets: what it sends is encoded and fed to its connection; what the broker writes is
framed, decoded and kept until the test asks. Spec tests use nothing else.
"""

from typing import TypeVar

from mqttd.core import encode, spec
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.decode import decode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqttd.core.properties import Properties
from mqttd.core.router import ListenerInfo
from mqttd.core.settings import Settings

P = TypeVar("P")


class Harness:
    """A broker with a clock that stands still. `durable=True`: promises wait for `commit`."""

    def __init__(
        self,
        settings: Settings | None = None,
        durable: bool = False,
        allow_anonymous: bool = True,
    ) -> None:
        self.now = 1000.0
        self.durable = durable
        self.broker = Broker(settings, durable)
        self.listener = ListenerInfo("test", "tcp", allow_anonymous)
        self.clients: dict[Connection, FakeClient] = {}
        self.peers = 0

    def open(
        self,
        version: int = 5,
        *,
        allow_anonymous: bool | None = None,
        identity: str | None = None,
        peer: str = "",
    ) -> "FakeClient":
        """A connection on which nothing was sent yet."""
        listener = self.listener
        if allow_anonymous is not None:
            listener = ListenerInfo("test", "tcp", allow_anonymous)
        self.peers += 1
        connection = self.broker.open(
            listener, peer or f"10.0.0.{self.peers}:40000", identity, self.now
        )
        client = FakeClient(self, connection, version)
        self.clients[connection] = client
        return client

    def client(
        self,
        client_id: str = "",
        version: int = 5,
        clean: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        username: str | None = None,
        password: bytes | None = None,
        properties: Properties | None = None,
        *,
        expiry: int | None = None,
        receive_maximum: int | None = None,
        auto_ack: bool = True,
        peer: str = "",
    ) -> "FakeClient":
        """A client whose CONNECT was accepted; `expiry` and `receive_maximum` are shorthands."""
        client = self.open(version, peer=peer)
        client.auto_ack = auto_ack
        if properties is None:
            properties = Properties()
        if expiry is not None:
            properties.session_expiry_interval = expiry
        if receive_maximum is not None:
            properties.receive_maximum = receive_maximum
        name = "MQIsdp" if version == spec.MQTT31 else "MQTT"
        client.client_id = client_id
        client.send(
            Connect(
                name, version, clean, keep_alive, client_id, will, username, password, properties
            )
        )
        if self.durable and not client.received:
            self.commit()  # a session that is resumed or replaced is a promise
        client.connack = client.expect(Connack)
        assert client.connack.reason == 0, f"refused: {client.connack!r}"
        return client

    def flush(self) -> None:
        """What the shell does at the end of each tick, until nothing is left to do."""
        for _ in range(100000):
            dirty = self.broker.dirty
            if not dirty and not self.broker.ready:
                return
            pending = list(dirty)
            dirty.clear()
            for connection in pending:
                assert isinstance(connection, Connection)
                client = self.clients.get(connection)
                if client is not None:  # None: its transport has gone meanwhile
                    client.take()
            if self.broker.ready:
                self.broker.run(self.now)
        raise AssertionError("the broker never comes to rest")

    def commit(self) -> None:
        """Make everything journalled so far durable."""
        while True:
            batch = self.broker.take_batch()
            if batch is None:
                break
            self.broker.committed(batch.seq, self.now)
        self.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at each deadline on the way."""
        end = self.now + seconds
        for _ in range(100000):
            at = self.broker.next_deadline()
            for connection in self.clients:
                at = min(at, connection.next_deadline())
            if at > end:
                self.now = end
                return
            self.now = max(self.now, at)
            self.broker.handle_timeout(self.now)
            for connection in list(self.clients):
                connection.handle_timeout(self.now)
            self.flush()
        raise AssertionError("a deadline that never goes away")

    @property
    def dropped(self) -> dict[str, int]:
        return self.broker.counters.dropped

    def events(self, kind: str) -> list[str]:
        """The reasons of all log events of one kind so far."""
        return [event.reason for event in self.broker.events if event.kind == kind]


class FakeClient:
    """One end of the fake wire."""

    def __init__(self, harness: Harness, connection: Connection, version: int) -> None:
        self.harness = harness
        self.connection = connection
        self.version = version
        self.client_id = ""
        self.connack: Connack = Connack()
        self.auto_ack = True
        self.closed = False
        self.received: list[Record] = []
        self.raw = bytearray()  # every byte the broker wrote
        self._framer = Framer(268435460)
        self._paused = False
        self._dropped = False
        self._next_id = 0

    # To the broker.

    def send(self, packet: Record) -> None:
        self.send_raw(encode.encode_packet(packet, self.version))

    def send_raw(self, data: bytes) -> None:
        self.connection.receive_data(data, self.harness.now)
        self.harness.flush()

    def next_id(self) -> int:
        self._next_id = self._next_id % 65535 + 1
        return self._next_id

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        packet_id: int | None = None,
        dup: bool = False,
        properties: bytes = b"",
        topic_alias: int = 0,
        message_expiry: int = -1,
    ) -> int:
        """Send a PUBLISH; returns its packet id. Acknowledgements are left to be received."""
        if packet_id is None:
            packet_id = self.next_id() if qos else 0
        self.send(
            Publish(
                topic, payload, qos, retain, dup, packet_id, properties, topic_alias, message_expiry
            )
        )
        return packet_id

    def subscribe(
        self,
        topic_filter: str,
        qos: int = 0,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        identifier: int = 0,
    ) -> Suback:
        """Send a SUBSCRIBE of one filter and take its SUBACK out of what was received."""
        entry = Filter(topic_filter, qos, no_local, retain_as_published, retain_handling)
        self.send(Subscribe(self.next_id(), [entry], identifier))
        return self.take_first(Suback)

    def unsubscribe(self, topic_filter: str) -> Unsuback:
        self.send(Unsubscribe(self.next_id(), [topic_filter]))
        return self.take_first(Unsuback)

    def disconnect(self, reason: int = 0, properties: Properties | None = None) -> None:
        self.send(Disconnect(reason, properties))
        self.drop()

    def drop(self) -> None:
        """The network breaks."""
        self._dropped = True
        self.connection.connection_lost(self.harness.now)
        self.harness.clients.pop(self.connection, None)
        self.harness.flush()

    def pause(self) -> None:
        """The client stops reading: the kernel's buffer is full at once."""
        self._paused = True
        self.connection.pause_writing()

    def resume(self) -> None:
        self._paused = False
        self.take()
        self.connection.resume_writing(self.harness.now)
        self.harness.flush()

    # From the broker.

    def take(self) -> None:
        """Read what the broker wrote, as the shell's flush would have sent it."""
        if self._paused or self._dropped:
            return
        data = self.connection.data_to_send()
        self.raw += data
        self._framer.feed(data)
        while self._framer.next():
            framer = self._framer
            packet = decode_packet(framer.first, framer.data, framer.pos, framer.end, self.version)
            self.received.append(packet)
            if self.auto_ack and not self.connection.closing:
                self._acknowledge(packet)
        if self.connection.closing and not self.closed:
            self.closed = True
            self.connection.connection_lost(self.harness.now)
            self.harness.clients.pop(self.connection, None)

    def _acknowledge(self, packet: Record) -> None:
        answer: Record | None = None
        if isinstance(packet, Publish) and packet.qos == 1:
            answer = Puback(packet.packet_id)
        elif isinstance(packet, Publish) and packet.qos == 2:
            answer = Pubrec(packet.packet_id)
        elif isinstance(packet, Pubrel):
            answer = Pubcomp(packet.packet_id)
        elif isinstance(packet, Pubrec) and packet.reason < 0x80:
            answer = Pubrel(packet.packet_id)
        if answer is not None:
            frame = encode.encode_packet(answer, self.version)
            self.connection.receive_data(frame, self.harness.now)

    def recv(self) -> list[Record]:
        """Everything received since the last call."""
        packets = self.received
        self.received = []
        return packets

    def expect(self, kind: type[P]) -> P:
        """The next packet, which has to be of this kind."""
        assert self.received, f"expected {kind.__name__}, got nothing (closed={self.closed})"
        packet = self.received.pop(0)
        assert isinstance(packet, kind), f"expected {kind.__name__}, got {packet!r}"
        return packet

    def take_first(self, kind: type[P]) -> P:
        """The first packet of this kind, wherever it stands."""
        for place, packet in enumerate(self.received):
            if isinstance(packet, kind):
                del self.received[place]
                return packet
        raise AssertionError(f"expected {kind.__name__}, got {self.received!r}")

    def messages(self) -> list[Publish]:
        """The PUBLISH packets received since the last call; everything else is forgotten."""
        return [packet for packet in self.recv() if isinstance(packet, Publish)]

    def expect_nothing(self) -> None:
        assert not self.received, f"expected nothing, got {self.received!r}"
