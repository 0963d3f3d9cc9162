"""A disk without room, under a real broker: what is refused, what goes on, what comes back."""

import asyncio
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

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
    Suback,
    Subscribe,
)
from mqttd.core.properties import Properties
from tests.crash import wire as crash
from tests.net.kit import Wire
from tests.power import shim

PATIENCE = 30.0
NO_ROOM = 0x97
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE = 1
DEEP = 200
"""Messages that wait for somebody; the head of the queue has 64, the rest is in the file."""

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "it can be built")


class Broker(crash.Process):
    """`mqttd run` whose database has a directory for itself, under the shim."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "full")
        self.disk = directory / "disk"
        self.disk.mkdir()
        self.database = self.disk / "mqttd.db"
        tree = json.loads(self._config.read_text())
        tree["storage"]["path"] = str(self.database)
        tree["control"] = {"path": "off"}  # of the directory every file is read
        self._config.write_text(json.dumps(tree))
        self.shim = shim.Shim(directory, self.disk)

    @property
    def faults(self) -> shim.Faults:
        return self.shim.faults

    async def start(self) -> None:
        if not await self.begin(self.shim.environment):
            raise AssertionError(f"mqttd didn't start: {self.log.read_text()}")

    def said(self, level: str, words: str) -> bool:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return any(
            entry["level"] == level and words in entry["event"] for entry in map(json.loads, lines)
        )

    def run(self) -> tuple[int, str]:
        """Start a broker that can't; its exit status and what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "mqttd", "run", "-c", str(self._config)],
            env={**os.environ, **self.shim.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stderr

    def files(self) -> dict[str, bytes]:
        """Of the database; the lock file only says which process was the last."""
        return {
            file.name: file.read_bytes()
            for file in self.disk.iterdir()
            if not file.name.endswith((".lock", "-shm"))
        }


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Broker]:
    broker = Broker(directory)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.discard()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def client(
    broker: Broker,
    name: str,
    version: int = 5,
    expiry: int = 0,
    receive_maximum: int = 100,
    reason: int = 0,
) -> Wire:
    """Connected, or refused with `reason`; MQTT 3 knows of `expiry` only whether there is one."""
    wire = await Wire.open(broker.port)
    wire.version = version
    properties = Properties()
    if version == 5:
        properties.session_expiry_interval = expiry
        properties.receive_maximum = receive_maximum
    clean = not expiry
    wire.send(Connect("MQTT", version, clean, 0, name, None, None, None, properties))
    assert (await wire.receive(Connack)).reason == reason
    return wire


async def subscribe(wire: Wire, *filters: Filter) -> None:
    wire.send(Subscribe(1, list(filters)))
    await wire.receive(Suback)


async def publish(wire: Wire, number: int, packet_id: int, qos: int = 1) -> int:
    """Publish for those that are owed it; the reason that the broker answers with."""
    wire.send(Publish("kept", b"%d" % number, qos, False, False, packet_id))
    return (await wire.receive(Puback)).reason if qos == 1 else (await wire.receive(Pubrec)).reason


async def take(wire: Wire, into: set[int], wanted: set[int]) -> None:
    """Receive and acknowledge until everything wanted has come."""
    while not wanted <= into:
        packet = await wire.receive(object)
        if isinstance(packet, Publish):
            into.add(int(packet.payload))
            if packet.qos:
                answer = Puback if packet.qos == 1 else Pubrec
                wire.send(answer(packet.packet_id))
        elif isinstance(packet, Pubrel):
            wire.send(Pubcomp(packet.packet_id))


async def absent(broker: Broker, name: str) -> None:
    """A session that is owed what is published, and away."""
    wire = await client(broker, name, expiry=3600)
    await subscribe(wire, Filter("kept", 2))
    wire.send(Disconnect())
    await wire.closed()
    await wire.close()


async def fill(broker: Broker, publisher: Wire) -> None:
    """Take the room away, and have the broker notice."""
    broker.faults.set("enospc")
    publisher.send(Publish("kept", b"0", 1, False, False, 999))
    assert (await publisher.receive(Puback)).reason == NO_ROOM
    await until(lambda: broker.said("error", "no room left on the disk"))


async def room_again(broker: Broker, publisher: Wire, number: int) -> None:
    """Publishing works by itself once there is room; `number` is acknowledged."""
    broker.faults.clear()
    until = time.monotonic() + PATIENCE
    while await publish(publisher, number, 998):
        assert time.monotonic() < until
        await asyncio.sleep(0.05)
    assert broker.said("warning", "there is room again")


async def test_publishers_hear_that_there_is_no_room(tmp_path: Path) -> None:
    """MQTT 5 by 0x97, MQTT 3.1.1 by nothing at all, so that both keep their message."""
    async with running(tmp_path) as broker:
        await absent(broker, "away")
        publisher = await client(broker, "five")
        older = await client(broker, "four", version=4)
        second = await client(broker, "second")
        assert await publish(publisher, 1, 1) == 0
        broker.faults.set("enospc")
        # Part of the batch that finds no room: held until there is some, since QoS 2 may not be
        # taken back.
        second.send(Publish("kept", b"2", 2, False, False, 7))
        await until(lambda: broker.said("error", "no room left on the disk"))
        assert await publish(publisher, 3, 2) == NO_ROOM
        assert await publish(publisher, 4, 3, qos=2) == NO_ROOM
        for number, qos in ((5, 1), (6, 2)):
            older.send(Publish("kept", b"%d" % number, qos, False, False, number))
        older.send(Pingreq())
        await older.receive(Pingresp)  # and nothing before it
        await room_again(broker, publisher, 8)
        assert (await second.receive(Pubrec)).reason == 0
        older.send(Publish("kept", b"5", 1, False, True, 5))
        assert (await older.receive(Puback)).packet_id == 5
        await broker.kill()
        await broker.start()
        got: set[int] = set()
        await take(await client(broker, "away", expiry=3600), got, {1, 2, 5, 8})
        assert not got & {3, 4, 6}
        assert await broker.stop() == 0


async def test_who_needs_no_room_goes_on(tmp_path: Path) -> None:
    """Deliveries to those that are there, QoS 0, a deep queue that drains, sessions that last no
    longer than their connection; no new session that would have to be stored."""
    async with running(tmp_path) as broker:
        await absent(broker, "deep")
        here = await client(broker, "here", expiry=3600, receive_maximum=5)
        await subscribe(here, Filter("kept", 1))
        publisher = await client(broker, "five")
        for number in range(1, DEEP + 1):
            assert await publish(publisher, number, number) == 0
        await fill(broker, publisher)

        plain = await client(broker, "plain")
        await subscribe(plain, Filter("plain", 1))
        for qos in (0, 1):
            publisher.send(Publish("plain", b"%d" % qos, qos, False, False, 5 * qos))
            got = await plain.receive(Publish)
            assert (got.payload, got.qos) == (b"%d" % qos, qos)
        assert (await publisher.receive(Puback)).reason == 0

        publisher.send(Publish("kept", b"7777", 0))
        wanted = set(range(1, DEEP + 1))
        got_here: set[int] = set()
        await take(here, got_here, wanted | {7777})
        got_deep: set[int] = set()
        deep = await client(broker, "deep", expiry=3600)
        await take(deep, got_deep, wanted)

        for name, version in (("new", 5), ("newer", 4)):
            refused = await Wire.open(broker.port)
            refused.version = version
            properties = Properties()
            if version == 5:
                properties.session_expiry_interval = 3600
            refused.send(Connect("MQTT", version, False, 0, name, None, None, None, properties))
            assert (await refused.receive(Connack)).reason == (NO_ROOM if version == 5 else 3)

        await room_again(broker, publisher, 8888)
        await take(here, got_here, {8888})
        await take(deep, got_deep, {8888})
        new = await client(broker, "new", expiry=3600)
        await subscribe(new, Filter("kept", 1))
        assert await publish(publisher, 9999, 1) == 0
        await broker.kill()
        await broker.start()
        back = await Wire.open(broker.port)
        properties = Properties()
        properties.session_expiry_interval = 3600
        back.send(Connect("MQTT", 5, False, 0, "new", None, None, None, properties))
        assert (await back.receive(Connack)).session_present
        await take(back, set(), {9999})
        assert await broker.stop() == 0


async def test_the_broker_ends_while_the_disk_is_full(tmp_path: Path) -> None:
    """With exit code 1 and a line that says why: something couldn't be stored."""
    async with running(tmp_path) as broker:
        await absent(broker, "away")
        publisher = await client(broker, "five")
        assert await publish(publisher, 1, 1) == 0
        await fill(broker, publisher)
        began = time.monotonic()
        assert await broker.stop() == 1
        assert time.monotonic() - began < PATIENCE
        assert broker.said("critical", "no room left on the disk")
        broker.faults.clear()
        await broker.start()
        await take(await client(broker, "away", expiry=3600), set(), {1})
        assert await broker.stop() == 0


def test_no_room_for_a_new_database(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    broker.faults.set("enospc")
    status, said = broker.run()
    assert status == 1
    assert said.startswith(f"mqttd: {broker.database}: ")
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert broker.files() == {}


async def test_no_room_at_a_start(tmp_path: Path) -> None:
    """On a database that is there: nothing of it is changed."""
    async with running(tmp_path) as broker:
        await absent(broker, "away")
        assert await publish(await client(broker, "five"), 1, 1) == 0
        await broker.kill()
        before = broker.files()
        broker.faults.set("enospc")
        status, said = await asyncio.to_thread(broker.run)
        assert status == 1
        assert said.startswith(f"mqttd: {broker.database}: ")
        assert "Traceback" not in said
        assert broker.files() == before
        broker.faults.clear()
        await broker.start()
        await take(await client(broker, "away", expiry=3600), set(), {1})


def without_privilege() -> None:
    """To root no directory is read-only, unless it gives that up for what it executes."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError("this root may not give up its right to write everywhere")


def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    directory.mkdir()
    file = directory / "mqttd.db"
    listener = {"name": "tcp", "bind": "127.0.0.1:0"}
    config = tmp_path / "mqttd.yaml"
    config.write_text(json.dumps({"listeners": [listener], "storage": {"path": str(file)}}))
    directory.chmod(0o555)
    try:
        places = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(crash.ROOT))))
        done = subprocess.run(
            [sys.executable, "-m", "mqttd", "run", "-c", str(config)],
            env={**os.environ, "PYTHONPATH": places},
            preexec_fn=without_privilege,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        directory.chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"mqttd: {file}: can't be used: Permission denied")
    assert done.stderr.count("\n") == 1
    assert list(directory.iterdir()) == []
