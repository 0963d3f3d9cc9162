"""Brokers, bridges between them, and clients that keep what they get."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins.bridge_mqtt import BridgeMqtt

import mqttd
from mqttd.core.decode import decode_packet
from mqttd.core.packets import Connack, Filter, Puback, Publish, Record, Suback, Subscribe
from mqttd.core.properties import Properties, decode_forwardable, encode_forwardable
from tests.net.kit import PATIENCE, Wire, reserved_port

BRIDGE = "mqttd_plugins.bridge_mqtt:BridgeMqtt"


class Stream(Wire):
    """A connection on which any packet may be next."""

    @classmethod
    async def at(cls, port: int) -> Stream:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def next_packet(self) -> Record | None:
        """Any packet; None at the end of the stream."""
        framer = self._framer
        while not framer.next():
            data = await self.reader.read(65536)
            if not data:
                return None
            framer.feed(data)
        return decode_packet(framer.first, framer.data, framer.pos, framer.end, self.version)


class Peer:
    """A client that acknowledges, and keeps, whatever it gets."""

    def __init__(self, wire: Stream) -> None:
        self.wire = wire
        self.got: list[Publish] = []
        self._pubacks: dict[int, asyncio.Future[Puback]] = {}
        self._last = 0
        self._news = asyncio.Event()
        self._reading: asyncio.Future[None] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def at(
        cls, port: int, *filters: str, name: str = "peer", version: int = 5
    ) -> AsyncIterator[Peer]:
        async with await Stream.at(port) as wire:
            wire.version = version
            connack: Connack = await wire.connect(name)
            assert connack.reason == 0
            for topic_filter in filters:
                wire.send(Subscribe(1, [Filter(topic_filter, 1, True, True, 0)]))
                assert (await wire.receive(Suback)).reasons[0] < 0x80
            peer = cls(wire)
            peer._reading = asyncio.ensure_future(peer._read())
            try:
                yield peer
            finally:
                peer._reading.cancel()
                await asyncio.gather(peer._reading, return_exceptions=True)

    async def _read(self) -> None:
        while (packet := await self.wire.next_packet()) is not None:
            if isinstance(packet, Publish):
                if packet.qos:
                    self.wire.send(Puback(packet.packet_id))
                self.got.append(packet)
                self._news.set()
            elif isinstance(packet, Puback):
                self._pubacks.pop(packet.packet_id).set_result(packet)

    async def publish(self, topic: str, payload: bytes, qos: int = 1, **more: Any) -> int:
        """Publish, and wait for the PUBACK; its reason code."""
        self._last = self._last % 60000 + 1
        expiry = more.pop("expiry", -1)
        retain = more.pop("retain", False)
        properties = Properties()
        for name, value in more.items():
            setattr(properties, name, value)
        block = encode_forwardable(properties)
        packet = Publish(topic, payload, qos, retain, False, self._last if qos else 0, block)
        packet.message_expiry = expiry
        self.wire.send(packet)
        if not qos:
            return 0
        future: asyncio.Future[Puback] = asyncio.get_running_loop().create_future()
        self._pubacks[self._last] = future
        async with asyncio.timeout(PATIENCE):
            return (await future).reason

    async def get(self, number: int = 1) -> list[Publish]:
        """The next messages, in the order in which they came."""
        async with asyncio.timeout(PATIENCE):
            while len(self.got) < number:
                self._news.clear()
                await self._news.wait()
        found, self.got = self.got[:number], self.got[number:]
        return found


def properties_of(publish: Publish) -> Properties:
    return decode_forwardable(publish.properties)


def user_of(publish: Publish) -> dict[str, str]:
    return dict(properties_of(publish).user_properties)


def tree(*bridges: dict[str, Any], port: int = 0, **more: Any) -> dict[str, Any]:
    listener = {"name": "t", "bind": f"127.0.0.1:{port}", "allow_anonymous": True}
    plugins = [
        {"use": BRIDGE, "name": bridge.pop("name", "up"), "config": bridge} for bridge in bridges
    ]
    return {"listeners": [listener], "plugins": plugins, **more}


def bridge_to(port: int, **config: Any) -> dict[str, Any]:
    return {"addresses": [f"127.0.0.1:{port}"], "retry_first": "50ms", "retry_most": "200ms"} | (
        config
    )


def bridge_of(broker: mqttd.Broker, name: str = "up") -> BridgeMqtt:
    hooks = broker._app.hooks
    assert hooks is not None
    plugin = hooks.plugin(name)
    assert isinstance(plugin, BridgeMqtt)
    return plugin


def state_of(broker: mqttd.Broker, name: str = "up") -> str:
    link = bridge_of(broker, name).link
    assert link is not None
    return link.state


class Mosquitto:
    """Debian's mosquitto, on a port of its own, with what it keeps in a directory."""

    def __init__(self, directory: Path, *lines: str) -> None:
        self.program = shutil.which("mosquitto") or shutil.which(
            "mosquitto", path="/usr/sbin:/usr/local/sbin"
        )
        if self.program is None:
            pytest.skip("mosquitto isn't installed: apt-get install mosquitto")
        self._reserved = reserved_port()
        self.port = self._reserved.__enter__()
        self._process: asyncio.subprocess.Process | None = None
        self.config = directory / "mosquitto.conf"
        self.config.write_text(
            "\n".join(
                [
                    f"listener {self.port} 127.0.0.1",
                    "allow_anonymous true",
                    f"user {getpass.getuser()}",  # as root it would be one that can't write here
                    "persistence true",
                    f"persistence_location {directory}/",
                    "autosave_interval 1",
                    "autosave_on_changes true",
                    "max_queued_messages 0",
                    "max_inflight_messages 0",
                    *lines,
                ]
            )
            + "\n"
        )

    async def start(self) -> None:
        assert self.program is not None
        self._process = await asyncio.create_subprocess_exec(
            self.program,
            "-c",
            str(self.config),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """As by SIGTERM: it writes down what it has."""
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()
            self._process = None

    async def __aenter__(self) -> Mosquitto:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self._reserved.__exit__(None, None, None)
