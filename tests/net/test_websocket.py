"""MQTT over WebSocket, frame by frame (MQTT 5, chapter 6)."""

import asyncio
import base64
import hashlib
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from mqttd.core import encode, spec
from mqttd.core.broker import Broker
from mqttd.core.packets import Filter, Publish, Subscribe
from mqttd.core.router import ListenerInfo
from mqttd.core.settings import Settings
from mqttd.net import protocol as protocol_module
from mqttd.net.protocol import Gate
from mqttd.net.tls import Tls
from mqttd.net.websocket import _Frames, _Transport
from tests.net.kit import (
    PATIENCE,
    Served,
    Wire,
    connect_packet,
    endpoint,
    publish_packet,
    serving,
    until,
)
from tests.tls import Authority, subject

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = base64.b64encode(b"sixteen bytes ok").decode()
HEADERS = {
    "Host": "broker",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "mqtt",
}


def frame(kind: int, payload: bytes, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    first = (0x80 if fin else 0) | (rsv << 4) | kind
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head = struct.pack(">BB", first, bit | len(payload))
    elif len(payload) < 65536:
        head = struct.pack(">BBH", first, bit | 126, len(payload))
    else:
        head = struct.pack(">BBQ", first, bit | 127, len(payload))
    if not mask:
        return head + payload
    key = b"\x0f\xf0\x55\xaa"
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


class Socket(Wire):
    """A WebSocket client that sends what it is told, however wrong."""

    answer = b""

    async def upgrade(self, path: str = "/mqtt", /, **changes: str | None) -> int:
        """Returns the HTTP status."""
        headers: dict[str, str | None] = {**HEADERS}
        headers.update({name.replace("_", "-"): value for name, value in changes.items()})
        lines = [f"GET {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(PATIENCE):
            self.answer = await self.reader.readuntil(b"\r\n\r\n")
        return int(self.answer.split(b" ")[1])

    async def frame(self) -> tuple[int, bytes]:
        """Kind and payload of the next frame."""
        async with asyncio.timeout(PATIENCE):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
            assert first & 0x70 == 0
            return first & 0x8F, await self.reader.readexactly(length)

    async def binary(self) -> bytes:
        kind, payload = await self.frame()
        assert kind == 0x80 | BINARY
        return payload

    async def mqtt(self, client_id: str, path: str = "/mqtt") -> None:
        """Upgrade and CONNECT."""
        assert await self.upgrade(path) == 101
        self.send(frame(BINARY, connect_packet(client_id)))
        assert (await self.binary())[0] == 0x20

    async def shut(self) -> int:
        """The code of the CLOSE frame that has to come next, then the end."""
        kind, payload = await self.frame()
        assert kind == 0x80 | CLOSE
        return int.from_bytes(payload[:2], "big")


async def dial(served: Served, tls: ssl.SSLContext | None = None) -> Socket:
    return Socket(*await asyncio.open_connection("127.0.0.1", served.port, ssl=tls))


def websocket(**more: object):  # type: ignore[no-untyped-def]
    return endpoint(name="ws", transport="websocket", **more)


# The upgrade.


async def test_the_subprotocol_is_chosen_and_the_key_answered() -> None:
    """[MQTT-6.0.0-4]"""
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade() == 101
        expected = hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        lines = ws.answer.decode().lower().split("\r\n")
        assert f"sec-websocket-accept: {base64.b64encode(expected).decode().lower()}" in lines
        assert "sec-websocket-protocol: mqtt" in lines
        assert served.listeners[0].urls == [f"ws://127.0.0.1:{served.port}/mqtt"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("chat, mqtt", "mqtt"), ("mqttv3.1,mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1")],
)
async def test_one_of_several_subprotocols(offered: str, chosen: str) -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade(Sec_WebSocket_Protocol=offered) == 101
        assert f"sec-websocket-protocol: {chosen}\r\n" in ws.answer.decode().lower()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec_WebSocket_Protocol": None}, 400),  # [MQTT-6.0.0-3]
        ({"Sec_WebSocket_Protocol": "MQTT"}, 400),
        ({"Sec_WebSocket_Protocol": "amqp"}, 400),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Upgrade": None}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "keep-alive"}, 400),
        ({"Content_Length": "5"}, 400),
    ],
)
async def test_what_is_no_upgrade_gets_an_http_error(
    changes: dict[str, str | None], status: int
) -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade(**changes) == status
        await ws.closed()
        assert served.broker.counters.connections_total == 0
        assert not served.flow.shells


@pytest.mark.parametrize("path", ["/", "/mqtt/", "/MQTT", "/mqttx", "/%6dqtt", "*"])
async def test_another_path_is_not_found(path: str) -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade(path) == 404


async def test_a_query_and_a_path_of_ones_own() -> None:
    async with serving(websocket(path="/devices")) as served, await dial(served) as ws:
        await ws.mqtt("a", "/devices?token=7")


async def test_what_firefox_sends() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade(Connection="keep-alive, Upgrade") == 101


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://panel.example", 101), ("https://evil.example", 403), ("null", 403), (None, 101)],
)
async def test_an_allow_list_of_origins(origin: str | None, status: int) -> None:
    """CVE-2026-67405: any web page could talk to the broker of its reader's network."""
    allowed = ("https://panel.example",)
    async with serving(websocket(allow_origins=allowed)) as served, await dial(served) as ws:
        assert await ws.upgrade(Origin=origin) == status


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /mqtt HTTP/1.1\r\n\r\n",
        b"GET /mqtt HTTP/1.0\r\n\r\n",
        b"\x10\x10\x00\x04MQTT\r\n\r\n",
        b"GET /mqtt HTTP/1.1\r\nHost broker\r\n\r\n",
        b"A" * 40000,
        b"GET /mqtt HTTP/1.1\r\n" + b"X: y\r\n" * 4000,
    ],
)
async def test_what_is_no_http_is_closed(request_: bytes) -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        ws.send(request_)
        answer = await ws.closed()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
        assert served.broker.counters.connections_total == 0


async def test_an_upgrade_that_takes_too_long_is_closed() -> None:
    settings = Settings()
    settings.connect_timeout = 0.1
    async with (
        serving(websocket(), broker=Broker(settings)) as served,
        await dial(served) as ws,
    ):
        ws.send(b"GET /mqtt HTTP/1.1\r\n")
        assert await ws.closed() == b""


async def test_no_connect_after_the_upgrade() -> None:
    settings = Settings()
    async with (
        serving(websocket(), broker=Broker(settings)) as served,
        await dial(served) as ws,
    ):
        assert await ws.upgrade() == 101  # it has all the time it needs
        settings.connect_timeout = 0.1
        await ws.closed()
        assert served.events == [("refused", "", "no CONNECT in time")]


async def test_an_upgrade_under_way_ends_with_the_listener() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        ws.send(b"GET /mqtt HTTP/1.1\r\n")
        await asyncio.sleep(0.05)
        await served.listeners[0].stop()
        assert await ws.closed() == b""


# Frames.


async def test_a_message_between_websocket_and_tcp() -> None:
    async with (
        serving(websocket(), endpoint()) as served,
        await dial(served) as ws,
        await Wire.open(served.listeners[1].port) as tcp,
    ):
        await ws.mqtt("ws")
        await tcp.connect("tcp")
        ws.send(
            frame(
                BINARY,
                encode.encode_packet(Subscribe(1, [Filter("a", 0, False, False, 0)]), spec.MQTT5),
            )
        )
        assert (await ws.binary())[0] == 0x90
        tcp.publish("a", b"to the browser")
        assert await ws.binary() == encode.encode_packet(
            publish_packet("a", b"to the browser"), spec.MQTT5
        )
        await tcp.subscribe("b")
        ws.send(frame(BINARY, encode.encode_packet(publish_packet("b", b"back"), spec.MQTT5)))
        assert (await tcp.receive(Publish)).payload == b"back"
        kinds = sorted(shell.conn.listener.transport for shell in served.flow.shells.values())
        assert kinds == ["tcp", "websocket"]


async def test_packets_span_frames_and_share_them() -> None:
    """[MQTT-6.0.0-2]"""
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade() == 101
        packets = connect_packet("a") + b"\xc0\x00" * 3
        for byte in packets[:9]:
            ws.send(frame(BINARY, bytes((byte,))))
        ws.send(frame(BINARY, packets[9:]))
        answer = await ws.binary()
        while len(answer) < 2 or not answer.endswith(b"\xd0\x00" * 3):
            answer += await ws.binary()
        assert answer[0] == 0x20


async def test_a_remaining_length_that_promises_more_than_the_frame_holds() -> None:
    """CVE-2026-25627: NanoMQ read beyond the frame."""
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        packet = b"\x30\x80\x20\x00\x01b" + bytes(4093)
        for cut in (1, 2, 3, 4, 5, 6):
            ws.send(frame(BINARY, packet[:cut]))
            ws.send(frame(PING, b"still waiting"))
            assert await ws.frame() == (0x80 | PONG, b"still waiting")
            ws.send(frame(BINARY, packet[cut:]) + frame(BINARY, b"\xc0\x00"))
            assert await ws.binary() == b"\xd0\x00"
        assert served.broker.counters.publish_received == 6


async def test_a_fragmented_message_with_a_ping_in_between() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        assert await ws.upgrade() == 101
        packet = connect_packet("a")
        ws.send(frame(BINARY, packet[:5], fin=False))
        ws.send(frame(PING, b"hello"))
        assert await ws.frame() == (0x80 | PONG, b"hello")
        ws.send(frame(CONTINUATION, b"", fin=False))
        ws.send(frame(CONTINUATION, packet[5:]))
        assert (await ws.binary())[0] == 0x20


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frame(TEXT, b"hello"), 1003),  # [MQTT-6.0.0-1]
        (frame(TEXT, b"", fin=False), 1003),
        (frame(CONTINUATION, b"\xc0\x00"), 1002),
        (frame(BINARY, b"\xc0", fin=False) + frame(BINARY, b"\x00"), 1002),
        (frame(BINARY, b"\xc0\x00", rsv=4), 1002),
        (frame(BINARY, b"\xc0\x00", mask=False), 1002),
        (frame(3, b""), 1002),
        (frame(PING, bytes(126)), 1002),
        (frame(PING, b"", fin=False), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (b"\x82\xff" + struct.pack(">Q", 1 << 40) + b"\x00" * 4, 1009),
        (b"\x82\xff" + struct.pack(">Q", 1 << 63) + b"\x00" * 4, 1002),
    ],
)
async def test_anything_but_binary_frames_closes(bad: bytes, code: int) -> None:
    async with serving(websocket()) as served, await dial(served) as ws, await dial(served) as two:
        await ws.mqtt("bad")
        await two.mqtt("good")
        ws.send(bad + frame(BINARY, b"\xc0\x00"))
        assert await ws.shut() == code
        assert await ws.closed() == b""
        await until(lambda: ("disconnect", "bad", "connection lost") in served.events)
        assert len(served.flow.shells) == 1
        two.send(frame(BINARY, b"\xc0\x00"))
        assert await two.binary() == b"\xd0\x00"


async def test_a_frame_may_be_as_large_as_two_packets() -> None:
    settings = Settings()
    settings.max_packet_size = 100_000
    async with (
        serving(websocket(), broker=Broker(settings)) as served,
        await dial(served) as ws,
    ):
        await ws.mqtt("a")
        packet = encode.encode_packet(publish_packet("t", bytes(99_000)), spec.MQTT5)
        ws.send(frame(BINARY, packet * 2) + frame(BINARY, b"\xc0\x00"))
        assert await ws.binary() == b"\xd0\x00"
        ws.send(frame(BINARY, packet * 3))
        assert await ws.shut() == 1009


# Endings.


async def test_a_client_that_closes() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        ws.send(frame(CLOSE, struct.pack(">H", 1000)))
        assert await ws.shut() == 1000
        assert await ws.closed() == b""
        await until(lambda: not served.flow.shells)


async def test_a_broker_that_closes_says_why_and_shakes_hands() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        ws.send(frame(BINARY, b"\x00\x00"))
        assert (await ws.binary())[2] == spec.MALFORMED_PACKET
        assert await ws.shut() == 1000
        ws.send(frame(CLOSE, struct.pack(">H", 1000)))
        assert await ws.closed() == b""


async def test_a_client_that_does_not_shake_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.1)
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        ws.send(frame(BINARY, b"\x00\x00"))
        await ws.binary()
        assert await ws.shut() == 1000
        await until(lambda: not served.flow.shells)


async def test_a_client_that_vanishes() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        ws.writer.transport.abort()
        await until(lambda: not served.flow.shells)


async def test_drain_says_goodbye_over_websocket() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        await served.flow.drain(0.1)
        assert (await ws.binary())[2] == spec.SERVER_SHUTTING_DOWN
        assert await ws.shut() == 1000


async def test_a_slow_reader_behind_a_websocket_is_bounded() -> None:
    settings = Settings()
    settings.write_buffer = 65536
    broker = Broker(settings)
    async with (
        serving(websocket(), endpoint(), broker=broker) as served,
        await dial(served) as slow,
        await Wire.open(served.listeners[1].port) as source,
    ):
        await slow.mqtt("slow")
        packet = Subscribe(1, [Filter("a", 0, False, False, 0)])
        slow.send(frame(BINARY, encode.encode_packet(packet, spec.MQTT5)))
        await slow.binary()
        await source.connect("source")
        shells = served.flow.shells.values()
        (shell,) = (one for one in shells if one.conn.client_id == "slow")
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(3000):
            source.publish("a", bytes(10_000))
            await source.writer.drain()
            await asyncio.sleep(0)
            if "slow_reader" in broker.counters.dropped:
                break
        assert broker.counters.dropped["slow_reader"] > 0
        assert shell.paused  # type: ignore[attr-defined]
        slow.reader._transport.resume_reading()  # type: ignore[attr-defined]
        while shell.paused:  # type: ignore[attr-defined]
            await slow.binary()


class FakeSocket:
    """Stands for picows' transport: remembers frames, and is full when the test says so."""

    is_close_frame_sent = False

    def __init__(self) -> None:
        self.sent: list[tuple[object, bytes]] = []
        self.full: Callable[[], None] | None = None

    @property
    def underlying_transport(self) -> "FakeSocket":
        return self

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def send(self, kind: object, data: bytes) -> None:
        self.sent.append((kind, data))
        if self.full is not None:
            self.full()

    def send_pong(self, data: bytes) -> None:
        self.send(WSMsgType.PONG, data)


class FakePing:
    rsv1 = rsv2 = rsv3 = False
    fin = True
    msg_type = WSMsgType.PING

    def __init__(self, payload: bytes) -> None:
        self.get_payload_as_bytes = lambda: payload


async def test_who_does_not_read_has_one_pong_waiting() -> None:
    async with serving() as served:
        ws: Any = FakeSocket()
        gate = Gate(served.flow, ListenerInfo("ws", "websocket", True), None, "")
        frames = _Frames(gate, "")
        frames.on_ws_connected(ws)

        def ping(payload: bytes) -> None:
            frames.on_ws_frame(ws, FakePing(payload))  # type: ignore[arg-type]

        ping(b"1")
        frames.pause_writing()
        ping(b"2")
        ping(b"3")
        assert ws.sent == [(WSMsgType.PONG, b"1")]
        frames.resume_writing()
        frames.resume_writing()
        assert ws.sent[1:] == [(WSMsgType.PONG, b"3")]
        assert not frames._stream.paused
        # The pong itself fills the buffer again: nothing else may be written.
        frames.pause_writing()
        ping(b"4")
        ws.full = frames.pause_writing
        frames.resume_writing()
        assert ws.sent[2:] == [(WSMsgType.PONG, b"4")]
        assert frames._stream.paused
        # No pong after a CLOSE.
        ping(b"5")
        ws.is_close_frame_sent = True
        frames.resume_writing()
        assert len(ws.sent) == 3
        frames.on_ws_disconnected(ws)


async def test_pings_without_reading_are_bounded() -> None:
    async with serving(websocket()) as served, await dial(served) as ws:
        await ws.mqtt("a")
        (shell,) = served.flow.shells.values()
        below = shell.transport._ws.underlying_transport  # type: ignore[attr-defined]
        ws.reader._transport.pause_reading()  # type: ignore[attr-defined]
        pings = frame(PING, bytes(125)) * 500
        async with asyncio.timeout(PATIENCE):
            for _ in range(200):  # all of it is read, though nothing of the answers is
                ws.send(pings)
                await ws.writer.drain()
            await until(lambda: shell.paused)  # type: ignore[attr-defined]
        assert below.get_write_buffer_size() < 65536
        ws.reader._transport.resume_reading()  # type: ignore[attr-defined]
        ws.send(frame(PING, b"the last"))
        tail = b""
        async with asyncio.timeout(PATIENCE):
            while not tail.endswith(frame(PONG, b"the last", mask=False)):
                tail = (tail + await ws.reader.read(1 << 20))[-100:]


def test_nothing_to_write_is_no_frame() -> None:
    ws: Any = FakeSocket()
    _Transport(ws).write(b"")
    assert ws.sent == []


# TLS.


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("wss"))


async def test_wss_asks_for_the_client_certificate_too(ca: Authority, tmp_path: Path) -> None:
    """mosquitto 1.5.4 didn't check it on WebSocket listeners."""
    tls = Tls(*ca.issue("server", "localhost"), ca.file, "required", "cn")
    async with serving(websocket(tls=tls)) as served:
        assert served.listeners[0].urls[0].startswith("wss://")
        async with await dial(served, ca.client(ca.issue("pump", "pump-7"))) as ws:
            await ws.mqtt("a")
            (shell,) = served.flow.shells.values()
            assert shell.conn.identity == "pump-7"
        stranger = Authority(tmp_path, "stranger")
        for pair in (None, stranger.issue("pump", "pump-7"), ca.issue("old", "pump-7", days=-1)):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                async with await dial(served, ca.client(pair)) as ws:
                    await ws.upgrade()
        assert served.broker.counters.connections_total == 1


async def test_a_certificate_that_names_nobody_over_wss(
    ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = Tls(*ca.issue("server", "localhost"), ca.file, "required", "cn")
    context = ca.client(ca.issue("nobody", name=subject("", "Plant 5")))
    async with serving(websocket(tls=tls)) as served, await dial(served, context) as ws:
        # The CONNECT comes in the same breath as the upgrade.
        lines = ["GET /mqtt HTTP/1.1", *(f"{name}: {value}" for name, value in HEADERS.items())]
        ws.send("\r\n".join(lines).encode() + b"\r\n\r\n" + frame(BINARY, connect_packet("a")))
        await ws.closed()
        assert served.broker.counters.connections_total == 0
    assert "bug" not in caplog.text
    assert "exception" not in caplog.text.lower()


# A client that isn't ours.


async def test_a_well_kept_client_library() -> None:
    class Client(WSListener):
        def __init__(self) -> None:
            self.got: asyncio.Queue[bytes] = asyncio.Queue()

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type == WSMsgType.BINARY:
                self.got.put_nowait(frame.get_payload_as_bytes())

    async with serving(websocket()) as served:
        transport, client = await ws_connect(
            Client,
            f"ws://127.0.0.1:{served.port}/mqtt",
            extra_headers={"Sec-WebSocket-Protocol": "mqtt"},
        )
        assert isinstance(client, Client)
        transport.send(WSMsgType.BINARY, connect_packet("a") + b"\xc0\x00")
        async with asyncio.timeout(PATIENCE):
            answer = await client.got.get()
            while not answer.endswith(b"\xd0\x00"):
                answer += await client.got.get()
            transport.send_close()
            await transport.wait_disconnected()
