"""Accepting: proxies' headers, too many clients, too few file descriptors."""

import asyncio
import logging
import select
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mqttd.core.broker import Broker
from mqttd.core.packets import Connack, Pingresp
from mqttd.core.router import ListenerInfo
from mqttd.core.settings import Settings
from mqttd.net import accept as accept_module
from mqttd.net.accept import Acceptor
from mqttd.net.protocol import Gate, StreamProtocol
from mqttd.net.tls import Tls
from tests.net.kit import PATIENCE, Wire, connect_packet, endpoint, serving, until
from tests.tls import Authority

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50412 1883\r\n"
V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x14"
    + socket.inet_aton("192.0.2.7")
    + socket.inet_aton("198.51.100.1")
    + struct.pack(">HH", 50412, 1883)
    + b"\x02\x00\x05proxy"
)
HEADERS = [("v1", V1), ("v2", V2)]


# PROXY protocol.


@pytest.mark.parametrize(("version", "header"), HEADERS)
async def test_the_peer_is_whom_the_proxy_names(version: str, header: bytes) -> None:
    """CVE-2026-67411: the peer looked like the proxy's own address, loopback."""
    async with (
        serving(endpoint(proxy_protocol=version)) as served,
        await Wire.open(served.port) as wire,
    ):
        wire.send(header + connect_packet("a") + b"\xc0\x00")
        await wire.receive(Connack)
        await wire.receive(Pingresp)
        (shell,) = served.flow.shells.values()
        assert shell.conn.peer == "192.0.2.7:50412"


@pytest.mark.parametrize(("version", "header"), HEADERS)
async def test_a_header_byte_by_byte(version: str, header: bytes) -> None:
    async with (
        serving(endpoint(proxy_protocol=version)) as served,
        await Wire.open(served.port) as wire,
    ):
        wire.writer.transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        for byte in header:
            wire.send(bytes((byte,)))
            await asyncio.sleep(0.001)
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.peer == "192.0.2.7:50412"


@pytest.mark.parametrize(("version", "header"), HEADERS)
async def test_tls_behind_a_proxy(version: str, header: bytes, tmp_path: Path) -> None:
    """The header and the ClientHello come in one segment; not one byte of the latter is lost."""
    ca = Authority(tmp_path)
    tls = Tls(*ca.issue("server", "localhost"), ca.file, "required", "cn")
    context = ca.client(ca.issue("pump", "pump-7"))
    async with serving(endpoint(proxy_protocol=version, tls=tls)) as served:
        loop = asyncio.get_running_loop()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        probe = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", served.port))
        with pytest.raises(ssl.SSLWantReadError):
            probe.do_handshake()
        await loop.sock_sendall(sock, header + outgoing.read())
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    probe.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        await loop.sock_sendall(sock, outgoing.read())
                    incoming.write(await loop.sock_recv(sock, 65536))
            probe.write(connect_packet("a"))
            await loop.sock_sendall(sock, outgoing.read())
            await until(lambda: served.events)
        (shell,) = served.flow.shells.values()
        assert (shell.conn.peer, shell.conn.identity) == ("192.0.2.7:50412", "pump-7")
        sock.close()


@pytest.mark.parametrize(("version", "header"), HEADERS)
async def test_websocket_behind_a_proxy(version: str, header: bytes) -> None:
    where = endpoint(proxy_protocol=version, transport="websocket")
    async with serving(where) as served, await Wire.open(served.port) as wire:
        wire.send(
            header
            + b"GET /mqtt HTTP/1.1\r\nHost: b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + b"Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n"
            + b"Sec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        assert b" 101 " in await wire.reader.readuntil(b"\r\n\r\n")
        (shell,) = served.flow.shells.values()
        assert shell.conn.peer == "192.0.2.7:50412"


async def test_unix_behind_a_proxy(tmp_path: Path) -> None:
    path = str(tmp_path / "m.sock")
    where = endpoint(host="", unix_path=path, proxy_protocol="v1", proxy_from=("10.0.0.0/8",))
    async with (
        serving(where) as served,
        Wire(*await asyncio.open_unix_connection(path)) as wire,
    ):
        wire.send(V1)
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.peer == "192.0.2.7:50412"


@pytest.mark.parametrize(
    ("networks", "admitted"),
    [(("127.0.0.0/8",), True), (("2001:db8::/32", "127.0.0.1/32"), True), (("10.0.0.0/8",), False)],
)
async def test_only_the_listed_proxies_are_believed(
    networks: tuple[str, ...], admitted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    where = endpoint(proxy_protocol="v1", proxy_from=networks)
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with serving(where) as served, await Wire.open(served.port) as wire:
            wire.send(V1)
            if admitted:
                await wire.connect("a")
            else:
                assert await wire.closed() == b""
    assert ("none of the proxies" in caplog.text) == (not admitted)


async def test_a_health_check_of_the_proxy_itself() -> None:
    async with (
        serving(endpoint(proxy_protocol="v1")) as served,
        await Wire.open(served.port) as wire,
    ):
        wire.send(b"PROXY UNKNOWN\r\n")
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.peer.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("version", "start"),
    [
        ("v1", connect_packet("no header")),
        ("v2", connect_packet("no header")),
        ("v1", V2),
        ("v2", V1),
        ("v1", b"PROXY TCP4 nonsense\r\n"),
        ("v2", V2[:12] + b"\x2f" + V2[13:]),
    ],
)
async def test_without_a_header_nobody_gets_in(
    version: str, start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with (
            serving(endpoint(proxy_protocol=version)) as served,
            await Wire.open(served.port) as wire,
        ):
            wire.send(start + connect_packet("a"))
            assert await wire.closed() == b""
            assert served.broker.counters.connections_total == 0
            assert served.broker.counters.connects_refused == 1
    assert "refused ('127.0.0.1'" in caplog.text


@pytest.mark.parametrize("start", [b"", b"PROXY "])
async def test_a_header_that_does_not_come_in_time(
    start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings()
    settings.connect_timeout = 0.1
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with (
            serving(endpoint(proxy_protocol="v1"), broker=Broker(settings)) as served,
            await Wire.open(served.port) as wire,
        ):
            wire.send(start)
            assert await wire.closed() == b""
            assert served.broker.counters.connects_refused == 1
    assert "no PROXY header in time" in caplog.text


async def test_closed_before_the_header(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with serving(endpoint(proxy_protocol="v1")) as served:
            async with await Wire.open(served.port) as wire:
                wire.send(b"PROXY")
            await until(lambda: caplog.records)
    assert "closed before its PROXY header" in caplog.text


async def test_a_header_under_way_ends_with_the_listener() -> None:
    async with (
        serving(endpoint(proxy_protocol="v1")) as served,
        await Wire.open(served.port) as wire,
    ):
        wire.send(b"PROXY")
        await asyncio.sleep(0.05)
        await served.listeners[0].stop()
        assert await wire.closed() == b""


@pytest.mark.parametrize("start", [b"", b"\x16\x03", b"no ClientHello"])
async def test_a_tls_handshake_that_fails_or_takes_too_long_is_counted(
    start: bytes, tmp_path: Path
) -> None:
    tls = Tls(*Authority(tmp_path).issue("server", "localhost"))
    settings = Settings()
    settings.connect_timeout = 0.1
    async with (
        serving(endpoint(tls=tls), broker=Broker(settings)) as served,
        await Wire.open(served.port) as wire,
    ):
        wire.send(start)
        await wire.closed()
        await until(lambda: served.broker.counters.connects_refused)
        assert served.broker.counters.connects_refused == 1
        assert served.broker.counters.connections_total == 0


# Resources.


class Keeping:
    """A listening socket that knows what it has accepted."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, object]:
        sock, address = self._sock.accept()
        self.accepted.append(sock)
        return sock, address

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


@pytest.mark.parametrize("proxy_protocol", ["off", "v1"])
async def test_a_stop_in_the_turn_of_the_accept_leaves_no_socket(proxy_protocol: str) -> None:
    async with serving() as served:
        gate = Gate(served.flow, ListenerInfo("tcp", "tcp", True), None, "")
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            keeping = Keeping(sock)
            acceptor = Acceptor(
                asyncio.get_running_loop(),
                keeping,  # type: ignore[arg-type]
                lambda peer: StreamProtocol(gate, peer),
                "tcp",
                1.0,
                proxy_protocol,
            )
            with socket.create_connection(sock.getsockname()):
                select.select([sock], [], [], PATIENCE)  # a busy kernel is late with it
                acceptor._accept()
                (accepted,) = keeping.accepted
                acceptor.close()
                await acceptor.closed()
                await asyncio.sleep(0)
                assert accepted.fileno() == -1
                assert not acceptor._unopened
        assert served.broker.counters.connects_refused == 0


async def test_handshakes_are_bounded_and_the_rest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept_module, "_HANDSHAKES", 3)
    async with serving(endpoint(proxy_protocol="v1")) as served:
        wires = [await Wire.open(served.port) for _ in range(8)]
        for wire in wires[5:]:
            wire.send(V1 + connect_packet("late"))
        await asyncio.sleep(0.05)
        assert served.broker.counters.connections_total == 0
        for wire in wires[:5]:
            wire.send(V1 + connect_packet("early"))
            await wire.receive(Connack)
        for wire in wires[5:]:
            await wire.receive(Connack)
        for wire in wires:
            await wire.close()


async def test_out_of_file_descriptors_clients_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accept_module, "_RETRY", 0.1)
    loop = asyncio.get_running_loop()
    attempts = files = 0

    class Starved:
        """A listening socket whose process may open two more files."""

        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def accept(self) -> tuple[socket.socket, object]:
            nonlocal attempts, files
            attempts += 1
            if files >= 2 + spare:
                raise OSError(24, "Too many open files")
            accepted = self._sock.accept()
            files += 1
            return accepted

        def __getattr__(self, name: str) -> object:
            return getattr(self._sock, name)

    spare = 0
    async with serving() as served:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        gate = Gate(served.flow, ListenerInfo("tcp", "tcp", True), None, "")
        acceptor = Acceptor(
            loop,
            Starved(sock),  # type: ignore[arg-type]
            lambda peer: StreamProtocol(gate, peer),
            "tcp",
            1.0,
        )
        acceptor.start()
        port = sock.getsockname()[1]
        begun = loop.time()
        with caplog.at_level(logging.ERROR, "mqttd.net"):
            wires = [await Wire.open(port) for _ in range(4)]
            for number, wire in enumerate(wires):
                wire.send(connect_packet(f"c{number}"))
            await wires[0].receive(Connack)
            await wires[1].receive(Connack)
            await asyncio.sleep(0.35)
            assert attempts < 10 + 20 * (loop.time() - begun)  # no busy loop
            (record,) = caplog.records
            assert "can't accept connections: Too many open files" in record.getMessage()
            spare = 2
            await wires[2].receive(Connack)
            await wires[3].receive(Connack)
        for wire in wires:
            await wire.close()
        acceptor.close()
        await acceptor.closed()


FEW_FILES = """
import asyncio, resource, sys
import mqttd
from mqttd.net import loops

async def main():
    async with mqttd.Broker() as broker:
        print(broker.port("tcp"), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, flush=True)

with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    runner.run(main())
"""


async def test_a_real_process_without_file_descriptors_goes_on_serving() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FEW_FILES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    wires = []
    try:
        port = int(process.stdout.readline())
        first = await Wire.open(port)
        await first.connect("first")
        for _ in range(100):
            wires.append(await Wire.open(port))
        await asyncio.sleep(0.3)
        first.send(b"\xc0\x00")
        await first.receive(Pingresp)
        for wire in wires:
            await wire.close()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with await Wire.open(port) as last:
                        await last.connect("last")
                    break
                except (OSError, AssertionError):
                    await asyncio.sleep(0.05)
        await first.close()
    finally:
        used, _ = process.communicate("\n", timeout=PATIENCE)
    assert float(used) < 5.0
    assert process.returncode == 0
