"""One connection on a real socket: back pressure, endings, and what a bug may cost."""

import asyncio
import logging
import socket
import struct

import pytest

from mqttd.core import spec
from mqttd.core.auth import Verdict
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.packets import Connack, Disconnect, Pingreq, Pingresp, Publish
from mqttd.core.settings import Settings
from mqttd.net import flow as flow_module
from mqttd.net import protocol as protocol_module
from mqttd.net.protocol import StreamProtocol
from tests.net.kit import Served, Wire, connect_packet, endpoint, serving, until


def shell_of(served: Served, client_id: str) -> StreamProtocol:
    for shell in served.flow.shells.values():
        if shell.conn.client_id == client_id:
            assert isinstance(shell, StreamProtocol)
            return shell
    raise AssertionError(f"no connection of {client_id}")


async def test_a_message_from_one_client_to_another() -> None:
    async with (
        serving(endpoint()) as served,
        await Wire.open(served.port) as one,
        await Wire.open(served.port) as two,
    ):
        await one.connect("one")
        await two.connect("two")
        await two.subscribe("a/#", 1)
        one.publish("a/b", b"hello")
        message = await two.receive(Publish)
        assert (message.topic, message.payload) == ("a/b", b"hello")


async def test_a_packet_byte_by_byte() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        for byte in connect_packet("slow"):
            wire.send(bytes((byte,)))
            await wire.writer.drain()
            await asyncio.sleep(0)
        await wire.receive(Connack)


async def test_the_answers_of_one_tick_are_one_write() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("a")
        shell = shell_of(served, "a")
        writes: list[bytes] = []

        class Transport:
            def write(self, data: bytes) -> None:
                writes.append(data)

        real, shell.transport = shell.transport, Transport()  # type: ignore[assignment]
        shell.data_received(b"\xc0\x00" * 3)
        shell.data_received(b"\xc0\x00")
        served.flow.flush()
        shell.transport = real
        assert writes == [b"\xd0\x00" * 4]


async def test_a_connection_lost_in_the_tick_it_has_output_in_costs_nobody_else() -> None:
    async with (
        serving(endpoint()) as served,
        await Wire.open(served.port) as lost,
        await Wire.open(served.port) as other,
    ):
        await lost.connect("lost")
        await other.connect("other")
        gone, stays = shell_of(served, "lost"), shell_of(served, "other")
        gone.data_received(b"\xc0\x00")
        stays.data_received(b"\xc0\x00")
        gone.connection_lost(None)
        served.flow.flush()
        await other.receive(Pingresp)
        gone.transport.abort()


# Readers that lag.


def small_buffers(served: Served) -> None:
    """Let the kernel keep little, on the broker's side of every connection."""
    for shell in served.flow.shells.values():
        assert isinstance(shell, StreamProtocol)
        sock = shell.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def lazy(port: int, kept: int = 4096) -> Wire:
    """A client whose own kernel keeps little as well, and that stops reading when told to."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kept)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return Wire(*await asyncio.open_connection(sock=sock, limit=1024))


async def test_a_slow_reader_is_bounded_and_slows_nobody_down() -> None:
    settings = Settings()
    settings.write_buffer = 65536
    broker = Broker(settings)
    async with (
        serving(endpoint(), broker=broker) as served,
        await lazy(served.port) as slow,
        await Wire.open(served.port) as quick,
        await Wire.open(served.port) as source,
    ):
        for wire, name in ((slow, "slow"), (quick, "quick"), (source, "source")):
            await wire.connect(name)
        small_buffers(served)
        await slow.subscribe("a")
        await quick.subscribe("a")
        shell = shell_of(served, "slow")
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        payload = bytes(1000)
        for number in range(600):
            source.publish("a", struct.pack(">I", number) + payload)
            if number % 20 == 19:
                await source.writer.drain()
                for _ in range(20):
                    await quick.receive(Publish)
                assert shell.conn.backlog() <= settings.write_buffer + 2000
                assert shell.transport.get_write_buffer_size() <= settings.write_buffer + 2000
        assert shell.paused
        dropped = broker.counters.dropped["slow_reader"]
        assert dropped > 300
        # What it does get is in order, and it goes on once it reads again.
        slow.reader._transport.resume_reading()  # type: ignore[attr-defined]
        got = [
            struct.unpack(">I", (await slow.receive(Publish)).payload[:4])[0]
            for _ in range(600 - dropped)
        ]
        assert got == sorted(got)
        await until(lambda: not shell.paused)
        source.publish("a", b"again")
        assert (await slow.receive(Publish)).payload == b"again"


async def test_qos_1_for_a_slow_reader_waits_in_its_window_and_queue() -> None:
    settings = Settings()
    settings.write_buffer = 4096
    broker = Broker(settings)
    async with (
        serving(endpoint(), broker=broker) as served,
        await lazy(served.port) as slow,
        await Wire.open(served.port) as source,
    ):
        await slow.connect("slow")
        await source.connect("source")
        small_buffers(served)
        await slow.subscribe("a", 1)
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(300):
            source.publish("a", struct.pack(">I", number) + bytes(1000), 1, number + 1)
        await source.writer.drain()
        await until(lambda: broker.counters.publish_received == 300)
        slow.reader._transport.resume_reading()  # type: ignore[attr-defined]
        got = []
        for _ in range(300):
            message = await slow.receive(Publish)
            got.append(struct.unpack(">I", message.payload[:4])[0])
            slow.send(b"\x40\x02" + struct.pack(">H", message.packet_id))
        assert got == list(range(300))
        assert broker.counters.dropped == {}


async def test_a_client_that_asks_and_never_reads_is_no_longer_read() -> None:
    settings = Settings()
    settings.write_buffer = 4096
    broker = Broker(settings)
    async with serving(endpoint(), broker=broker) as served, await lazy(served.port, 65536) as wire:
        await wire.connect("greedy")
        small_buffers(served)
        shell = shell_of(served, "greedy")
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        asked = 0
        while not shell.held:
            wire.send(b"\xc0\x00" * 5000)
            asked += 5000
            await asyncio.sleep(0)
        # One read of the loop at most comes on top of the bound.
        assert shell.conn.backlog() < settings.write_buffer + 1_000_000
        wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
        answered = b""
        while len(answered) < 2 * asked:
            answered += await wire.reader.read(65536)
        assert answered == b"\xd0\x00" * asked
        await until(lambda: not shell.held)


async def test_while_a_decision_is_awaited_nothing_is_read() -> None:
    broker = Broker()
    broker.hooks.authenticate = lambda connection, connect: None
    async with serving(endpoint(), broker=broker) as served, await Wire.open(served.port) as wire:
        wire.send(connect_packet("waits") + b"\xc0\x00")
        await until(lambda: any(shell.held for shell in served.flow.shells.values()))  # type: ignore[attr-defined]
        shell = shell_of(served, "waits")
        shell.conn.authenticated(Verdict(True), 0.0)
        served.flow.schedule()
        await wire.receive(Connack)
        await wire.receive(Pingresp)
        assert not shell.held
        wire.send(Pingreq())
        await wire.receive(Pingresp)


# Endings.


async def test_the_reason_reaches_a_client_that_is_still_sending() -> None:
    """Closing with unread input would reset the connection and lose the DISCONNECT."""
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("bad")
        # A reserved packet type, and more behind it than one read takes.
        wire.send(b"\x00\x00" + bytes(4_000_000))
        disconnect = await wire.receive(Disconnect)
        assert disconnect.reason == spec.MALFORMED_PACKET
        assert await wire.closed() == b""
    assert served.events[-1][:2] == ("disconnect", "bad")


async def test_a_peer_that_does_not_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.1)
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("stays")
        wire.send(b"\x00\x00")
        await wire.receive(Disconnect)
        await until(lambda: not served.flow.shells)


async def test_a_peer_that_takes_no_last_bytes_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.1)
    async with (
        serving(endpoint()) as served,
        await lazy(served.port) as slow,
        await Wire.open(served.port) as source,
    ):
        await slow.connect("slow")
        await source.connect("source")
        small_buffers(served)
        await slow.subscribe("a")
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        shell = shell_of(served, "slow")
        while not shell.paused:
            source.publish("a", bytes(10_000))
            await source.writer.drain()
            await asyncio.sleep(0)
        slow.send(b"\x00\x00")
        await until(lambda: len(served.flow.shells) == 1)
        source.send(Pingreq())
        await source.receive(Pingresp)


async def test_a_client_that_said_goodbye_is_closed_at_once() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("polite")
        wire.send(Disconnect())
        assert await wire.closed() == b""  # [MQTT-3.14.4-1]
        await until(lambda: not served.flow.shells)
        assert served.events[-1] == ("disconnect", "polite", "by the client")


async def test_a_client_that_only_stops_sending_still_gets_its_answers() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        wire.send(connect_packet("pipe") + b"\xc0\x00")
        wire.writer.write_eof()
        await wire.receive(Connack)
        await wire.receive(Pingresp)
        assert await wire.closed() == b""
        await until(lambda: not served.flow.shells)


async def test_a_cut_connection_is_noticed_and_leaves_nothing() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("gone")
        assert len(served.flow.wheel) == 1
        wire.writer.transport.abort()
        await until(lambda: not served.flow.shells)
        assert len(served.flow.wheel) == 0
        assert served.broker.counters.connections == 0
        assert served.broker.sessions == {}


async def test_no_connect_in_time() -> None:
    settings = Settings()
    settings.connect_timeout = 0.1
    broker = Broker(settings)
    async with serving(endpoint(), broker=broker) as served, await Wire.open(served.port) as wire:
        wire.send(b"\x10")
        assert await wire.closed() == b""
        assert served.events == [("refused", "", "no CONNECT in time")]


async def test_keep_alive_counts_from_the_first_packet() -> None:
    """[MQTT-3.1.2-22] The first look is early enough for the shortest keep alive."""
    settings = Settings()
    settings.connect_timeout = 3600.0
    broker = Broker(settings)
    async with serving(endpoint(), broker=broker) as served, await Wire.open(served.port) as wire:
        await wire.connect("mute", keep_alive=1)
        disconnect = await wire.receive(Disconnect)
        assert disconnect.reason == spec.KEEP_ALIVE_TIMEOUT
        assert await wire.closed() == b""


# Bugs.


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The client ids for which the core fails when it is told of bytes."""
    victims: list[str] = []
    real = StreamProtocol.data_received

    class Broken:
        def __init__(self, conn: Connection) -> None:
            self._conn = conn

        def receive_data(self, data: bytes, now: float) -> None:
            raise ZeroDivisionError("a bug")

        def __getattr__(self, name: str) -> object:
            return getattr(self._conn, name)

        def __dir__(self) -> list[str]:
            return dir(self._conn)

    def data_received(self: StreamProtocol, data: bytes) -> None:
        conn = self.conn
        if conn.client_id not in victims:
            real(self, data)
            return
        self.conn = Broken(conn)  # type: ignore[assignment]
        try:
            real(self, data)
        finally:
            self.conn = conn

    monkeypatch.setattr(StreamProtocol, "data_received", data_received)
    return victims


async def test_a_bug_costs_its_own_connection_only(
    bug: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(endpoint()) as served,
        await Wire.open(served.port) as victim,
        await Wire.open(served.port) as other,
    ):
        await victim.connect("victim")
        await other.connect("other")
        await other.subscribe("a")
        bug.append("victim")
        with caplog.at_level(logging.ERROR, "mqttd.net"):
            victim.publish("a", b"secret payload")
            disconnect = await victim.receive(Disconnect)
        assert disconnect.reason == spec.UNSPECIFIED_ERROR
        assert await victim.closed() == b""
        assert served.broker.counters.bugs == 1
        (record,) = caplog.records
        assert record.exc_info is not None
        assert "victim" in record.getMessage()
        assert "secret" not in record.getMessage()
        assert "keep_alive=0" in record.getMessage()
        other.publish("a", b"still here")
        assert (await other.receive(Publish)).payload == b"still here"


class BrokenTransport:
    """A transport that can do everything but write."""

    def __init__(self, real: asyncio.Transport) -> None:
        self.real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def write(self, data: bytes) -> None:
        raise ZeroDivisionError("a bug")


async def test_a_bug_while_writing_costs_its_own_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(endpoint()) as served,
        await Wire.open(served.port) as victim,
        await Wire.open(served.port) as other,
    ):
        await victim.connect("victim")
        await other.connect("other")
        shell = shell_of(served, "victim")
        monkeypatch.setattr(shell, "transport", BrokenTransport(shell.transport))
        with caplog.at_level(logging.ERROR, "mqttd.net"):
            victim.send(Pingreq())
            assert await victim.closed() == b""
        assert "in flush" in caplog.text
        other.send(Pingreq())
        await other.receive(Pingresp)


async def test_deferred_work_that_fails_is_no_busy_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("a")

        class Broken:
            ready = True
            dirty = served.broker.dirty
            slow = served.broker.slow
            events = served.broker.events
            settings = served.broker.settings

            def run(self, now: float) -> None:
                raise ZeroDivisionError("a bug")

            def next_deadline(self) -> float:
                return 0.0

            def handle_timeout(self, now: float) -> None:
                raise ZeroDivisionError("another bug")

        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "mqttd.net"):
            patch.setattr(served.flow, "broker", Broken())
            served.flow.flush()
            served.flow.flush()
            assert not served.flow.scheduled
            served.flow._tick()
        assert len(caplog.records) == 3
        wire.send(Pingreq())
        await wire.receive(Pingresp)


def test_a_dump_shows_sizes_and_no_contents() -> None:
    class Thing:
        __slots__ = ("absent", "count", "password", "queue")

        def __init__(self) -> None:
            self.count = 3
            self.queue = [1, 2]
            self.password = b"secret"

    assert flow_module.dump(Thing()) == "count=3 password:bytes[6] queue:list[2]"
    assert flow_module.dump(None) == "none"
