"""Addresses: what is bound, what is told about it, what is left when it is over."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from mqttd.core import encode
from mqttd.core.packets import Publish
from mqttd.net.listener import Endpoint, ListenError
from tests.net.kit import Wire, endpoint, publish_packet, reserved_port, serving, until


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_free_port_is_told() -> None:
    async with serving(endpoint()) as served:
        assert served.port > 0
        assert served.listeners[0].urls == [f"mqtt://127.0.0.1:{served.port}"]
        async with await Wire.open(served.port) as wire:
            await wire.connect("a")
        async with await Wire.open(served.port) as wire:
            await wire.connect("b")


async def test_the_peer_is_its_address() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("a")
        host, port = wire.writer.get_extra_info("sockname")
        (conn,) = served.flow.shells
        assert served.flow.shells[conn].conn.peer == f"{host}:{port}"


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6() -> None:
    async with serving(Endpoint("v6", "::1", 0, allow_anonymous=True)) as served:
        assert served.listeners[0].urls == [f"mqtt://[::1]:{served.port}"]
        async with await Wire.open(served.port, "::1") as wire:
            await wire.connect("a")
            (shell,) = served.flow.shells.values()
            assert shell.conn.peer.startswith("[::1]:")


async def test_a_name_is_bound_on_every_address_with_one_port() -> None:
    async with serving(Endpoint("name", "localhost", 0, allow_anonymous=True)) as served:
        assert len({url.rpartition(":")[2] for url in served.listeners[0].urls}) == 1
        async with await Wire.open(served.port, "localhost") as wire:
            await wire.connect("a")


async def test_several_at_once_serve_one_broker(tmp_path: Path) -> None:
    path = str(tmp_path / "m.sock")
    unix = Endpoint("unix", unix_path=path, allow_anonymous=True)
    async with serving(endpoint(), endpoint(name="second"), unix) as served:
        second = served.listeners[1].port
        async with (
            await Wire.open(served.port) as one,
            await Wire.open(second) as two,
            Wire(*await asyncio.open_unix_connection(path)) as three,
        ):
            for number, wire in enumerate((one, two, three)):
                await wire.connect(f"c{number}")
            assert len(served.broker.sessions) == 3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_bytes_arrive_both_ways_in_order_and_all_of_them(kind: str, tmp_path: Path) -> None:
    # [MQTT-4.2-1]
    path = str(tmp_path / "m.sock")
    unix = Endpoint("unix", unix_path=path, allow_anonymous=True)
    async with serving(endpoint() if kind == "tcp" else unix) as served:
        if kind == "tcp":
            wire = await Wire.open(served.port)
        else:
            wire = Wire(*await asyncio.open_unix_connection(path))
        async with wire:
            await wire.connect("a")
            await wire.subscribe("t")
            sent = [b"%d:" % number + b"x" * (number * 37 % 3000) for number in range(100)]
            stream = b"".join(encode.encode_packet(publish_packet("t", data), 5) for data in sent)
            for at in range(0, len(stream), 997):  # in pieces that are no packets
                wire.send(stream[at : at + 997])
            assert [(await wire.receive(Publish)).payload for _ in sent] == sent


async def test_an_address_in_use() -> None:
    async with serving(endpoint()) as served:
        with pytest.raises(ListenError, match=r"listener twice: can't listen on 127\.0\.0\.1:\d+"):
            async with serving(endpoint(name="twice", port=served.port)):
                pass


async def test_an_address_this_machine_does_not_have() -> None:
    with pytest.raises(ListenError, match="192"):
        async with serving(endpoint(host="192.0.2.1")):
            pass


async def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ListenError, match="nowhere"):
        async with serving(endpoint(host="nowhere.invalid")):
            pass


async def test_stopped_means_nobody_gets_in_and_clients_stay() -> None:
    with reserved_port() as port:
        async with serving(endpoint(port=port)) as served, await Wire.open(port) as wire:
            await wire.connect("a")
            await served.listeners[0].stop()
            await asyncio.sleep(0.01)
            with pytest.raises(OSError, match=r"Connect call failed|refused|reset"):
                await Wire.open(port)
            await wire.subscribe("a")


async def test_small_packets_leave_at_once() -> None:
    async with serving(endpoint()) as served, await Wire.open(served.port) as wire:
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        sock = shell.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_when_file_descriptors_run_out_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    async with serving(endpoint()) as served:
        wires = [await Wire.open(served.port) for _ in range(6)]
        await until(lambda: len(served.flow.shells) == 6)
        for wire in wires:
            await wire.close()
    assert [record.getMessage() for record in caplog.records if "mqttd" in record.name] == [
        "3 connections: file descriptors run out"
    ]


# Unix sockets.


def unix(path: Path) -> Endpoint:
    return Endpoint("unix", unix_path=str(path), allow_anonymous=True)


async def test_a_unix_socket_is_for_owner_and_group_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    async with serving(unix(path)) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert served.listeners[0].urls == [f"mqtt+unix://{path}"]
        async with Wire(*await asyncio.open_unix_connection(str(path))) as wire:
            await wire.connect("a")
            (shell,) = served.flow.shells.values()
            assert shell.conn.peer == f"unix:{path}"
    assert not path.exists()


async def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(unix(path)), Wire(*await asyncio.open_unix_connection(str(path))) as wire:
        await wire.connect("a")


async def test_the_socket_of_a_live_process_is_not(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    async with serving(unix(path)):
        with pytest.raises(ListenError, match="another process listens there"):
            async with serving(unix(path)):
                pass
        async with Wire(*await asyncio.open_unix_connection(str(path))) as wire:
            await wire.connect("a")


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_whatever_else_stands_there_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.sock"
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ListenError, match="not a socket"):
        async with serving(unix(path)):
            pass
    assert os.path.lexists(path)


async def test_a_socket_that_somebody_else_put_there_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with serving(unix(path)):
            path.unlink()
            other.bind(str(path))
        assert path.exists()


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file"):
        async with serving(unix(tmp_path / "no" / "m.sock")):
            pass


async def test_websocket_needs_tcp(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with pytest.raises(ListenError, match="WebSocket needs a TCP address"):
        async with serving(Endpoint("ws", unix_path=str(path), transport="websocket")):
            pass
    assert not path.exists()


# What is left.


async def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        async with serving(endpoint(), endpoint(name="ws", transport="websocket")) as served:
            wires = [await Wire.open(served.port) for _ in range(5)]
            for number, wire in enumerate(wires):
                await wire.connect(f"c{number}")
            for wire in wires:
                await wire.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)
