"""The broker as a process on a file: how it starts, how it refuses to, how it gives up."""

import asyncio
import json
import os
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqttd.app import App
from mqttd.config import parse_config
from mqttd.core.packets import Connack, Connect, Puback, Publish
from mqttd.core.properties import Properties
from mqttd.store.memory import MemoryStore
from mqttd.store.sqlite import SqliteStore
from tests.net.kit import PATIENCE, Wire

START = 60.0  # an interpreter that starts on a machine with other things to do


async def start(
    tmp_path: Path, durability: str = "full", limit: Callable[[], None] | None = None
) -> Process:
    file = tmp_path / "mqttd.yaml"
    tree = {
        "listeners": [{"name": "tcp", "bind": "127.0.0.1:0"}],
        "storage": {"path": "kept/mqttd.db", "durability": durability},
        "logging": {"level": "info", "format": "json"},
    }
    file.write_text(json.dumps(tree))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mqttd", "run", "-c", str(file)),
        stdout=PIPE,
        stderr=PIPE,
        env=dict(os.environ),
        preexec_fn=limit,
    )


async def ready(process: Process) -> int:
    """Wait until it listens; the port."""
    assert process.stdout is not None
    port = 0
    async with asyncio.timeout(START):
        async for line in process.stdout:
            words = line.decode().split()
            if words[0] == "listening":
                port = urlsplit(words[2]).port or 0
            elif words == ["ready"]:
                return port
    raise AssertionError((await process.communicate())[1].decode())


async def end(process: Process) -> tuple[int, str]:
    async with asyncio.timeout(START):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def connect(wire: Wire, client_id: str) -> bool:
    properties = Properties()
    properties.session_expiry_interval = 3600
    wire.send(Connect("MQTT", 5, False, 0, client_id, None, None, None, properties))
    return (await wire.receive(Connack)).session_present


@pytest.mark.parametrize("durability", ["full", "os", "none"])
async def test_a_broker_that_ends_well_keeps_everything(durability: str, tmp_path: Path) -> None:
    for again in (False, True):
        process = await start(tmp_path, durability)
        async with await Wire.open(await ready(process)) as wire:
            assert await connect(wire, "c") is again
            await wire.subscribe("a", 1)
            wire.send(Publish("r", b"kept", 1, True, False, 7))
            await wire.receive(Puback)
        process.send_signal(signal.SIGTERM)
        status, errors = await end(process)
        assert status == 0
        lines = [json.loads(line) for line in errors.splitlines()]
        (line,) = [line for line in lines if line["event"] == "storage"]
        assert line["durability"] == durability
        assert (line["sessions"], line["retained"]) == (int(again), int(again))


async def test_two_brokers_on_one_file(tmp_path: Path) -> None:
    first = await start(tmp_path)
    await ready(first)
    status, errors = await end(await start(tmp_path))
    assert status == 1
    assert f"another broker uses this file (process {first.pid})" in errors
    first.send_signal(signal.SIGTERM)
    assert (await end(first))[0] == 0


async def test_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "mqttd.db"
    file.parent.mkdir()
    file.write_bytes(b"SQLite format 3\0" + b"\xa5" * 8000)
    status, errors = await end(await start(tmp_path))
    assert status == 1
    assert errors.startswith(f"mqttd: {file}: ")
    assert "nothing was overwritten" in errors
    assert file.read_bytes() == b"SQLite format 3\0" + b"\xa5" * 8000


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


async def test_a_write_that_fails_ends_the_broker(tmp_path: Path) -> None:
    """Nothing is acknowledged that isn't stored, and nobody thinks that it runs."""
    process = await start(tmp_path, limit=no_large_files)
    async with await Wire.open(await ready(process)) as wire:
        await connect(wire, "c")
        wire.send(Publish("r", b"small", 1, True, False, 7))
        await wire.receive(Puback)
        wire.send(Publish("r", b"x" * 500_000, 1, True, False, 8))
        async with asyncio.timeout(PATIENCE):
            rest = await wire.reader.read()
        assert b"\x40\x02\x00\x08" not in rest
    status, errors = await end(process)
    assert status == 1
    (line,) = [e for e in map(json.loads, errors.splitlines()) if e["level"] == "critical"]
    assert "can't commit" in line["event"]
    assert "input/output error" in line["event"]
    assert "Traceback" not in errors
    process = await start(tmp_path)
    async with await Wire.open(await ready(process)) as wire:
        assert await connect(wire, "c")
    process.send_signal(signal.SIGTERM)
    assert (await end(process))[0] == 0


def test_the_configuration_says_which_store() -> None:
    memory = App(parse_config({"storage": {"path": ":memory:"}})).store
    assert isinstance(memory, MemoryStore)
    kept = App(parse_config({"storage": {"path": "x/y.db", "durability": "os"}})).store
    assert isinstance(kept, SqliteStore)
    assert (kept.path, kept.durability) == (Path("x/y.db"), "os")
