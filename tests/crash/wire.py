"""A client connection on the core's codec, and the broker process that it ends with."""

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mqttd.core import encode
from mqttd.core.decode import decode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import Connack, Connect, Record, Will
from mqttd.core.properties import Properties

P = TypeVar("P")
PATIENCE = 60.0
"""Seconds after which a run gives up on the broker; a loaded machine takes a good part of it."""

RECEIVE_MAXIMUM = 20
"""Of every client here."""
ROOT = Path(__file__).parents[2]


class Gone(Exception):
    """The connection ended, on whichever side."""


class Wire:
    """Packets out and in on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._framer = Framer(1 << 28)

    @classmethod
    async def connect(
        cls,
        port: int,
        client_id: str,
        clean: bool = False,
        expiry: int = 3600,
        will: Will | None = None,
    ) -> tuple["Wire", bool]:
        """A connection whose CONNECT was accepted, and Session Present."""
        try:
            wire = cls(*await asyncio.open_connection("127.0.0.1", port))
        except OSError as error:
            raise Gone from error
        properties = Properties()
        properties.session_expiry_interval = expiry
        properties.receive_maximum = RECEIVE_MAXIMUM
        wire.send(Connect("MQTT", 5, clean, 0, client_id, will, None, None, properties))
        try:
            answer = await wire.receive()
        except Gone:
            wire.close()
            raise
        assert isinstance(answer, Connack), answer
        assert answer.reason == 0, answer
        return wire, answer.session_present

    def send(self, packet: Record) -> None:
        if self._writer.is_closing():
            return  # whoever reads will hear of it
        self._writer.write(encode.encode_packet(packet, 5))

    async def receive(self) -> Record:
        framer = self._framer
        while not framer.next():
            try:
                data = await self._reader.read(65536)
            except OSError as error:
                raise Gone from error
            if not data:
                raise Gone
            framer.feed(data)
        return decode_packet(framer.first, framer.data, framer.pos, framer.end, 5)

    def close(self) -> None:
        self._writer.transport.abort()


class Process:
    """`mqttd run` on one database, as often as it takes; or the same as `tests.crash.points`."""

    def __init__(self, directory: Path, durability: str, module: str = "mqttd") -> None:
        self.module = module
        self.database = directory / "mqttd.db"
        self.log = directory / "mqttd.log"
        self.port = 0
        self.starts = 0
        self.up = asyncio.Event()
        self._config = directory / "mqttd.yaml"
        self._process: asyncio.subprocess.Process | None = None
        self._config.write_text(
            json.dumps(
                {
                    "listeners": [{"name": "tcp", "bind": "127.0.0.1:0"}],
                    "storage": {"path": str(self.database), "durability": durability},
                    "limits": {"max_queued_messages": 0},
                    "logging": {"level": "warning", "format": "json"},
                }
            )
        )

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        if not await self.begin():
            raise AssertionError(f"mqttd didn't start: {self.log.read_text()}")

    async def begin(self, more: dict[str, str] | None = None) -> bool:
        """Start it with `more` in its environment; False if it ended before it was ready."""
        environment = {**os.environ, **(more or {})}
        # Behind whatever build of mqttd the suite runs on: what is in `tests`.
        places = [environment.get("PYTHONPATH", ""), str(ROOT)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self.module, "run", "-c", str(self._config)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            async for line in self._process.stdout:
                words = line.decode().split()
                if words[:1] == ["listening"]:
                    self.port = urlsplit(words[2]).port or 0
                elif words == ["ready"]:
                    self.starts += 1
                    self.up.set()
                    return True
            await self._process.wait()
        return False

    async def ended(self) -> int:
        """Wait for its end, whatever that comes from; the exit status."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            status = await self._process.wait()
        self.up.clear()
        return status

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """SIGKILL; the broker must have been alive until now."""
        process = self._process
        assert process is not None
        self.up.clear()
        assert process.returncode is None, f"mqttd ended by itself: {self.log.read_text()}"
        process.kill()
        await process.wait()

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        process = self._process
        assert process is not None
        self.up.clear()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            return await process.wait()

    async def discard(self) -> None:
        """Whatever happened: no process stays behind."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def pause(chance: random.Random, longest: float) -> None:
    await asyncio.sleep(chance.random() * longest)
