"""A broker as a child: it comes up, goes down, comes back to its files, and is never left."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from device_sim.engine.process import BrokerProcess, ProcessError
from tests.net.kit import PATIENCE, Wire, until

SERVER = """\
import os, signal, socket, subprocess, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", {port}))
sock.listen()
with open("starts", "a") as file:
    file.write("x")
child = subprocess.Popen(["sleep", "600"])
print("x" * 100_000)
print("pid", os.getpid(), child.pid, "is up", flush=True)
while True:
    peer = sock.accept()[0]
    peer.sendall(open("starts").read().encode())
    peer.close()
"""
MQTTD = {
    "mqttd.yaml": 'listeners: [{name: t, bind: "127.0.0.1:{port}"}]\n'
    "storage: {path: '{dir}/mqttd.db'}\n"
}


def small(ready: str | None = "is up", **more: str) -> BrokerProcess:
    return BrokerProcess(["{python}", "{dir}/server.py"], {"server.py": SERVER, **more}, ready)


async def said(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_it_comes_back_to_its_port_and_its_files() -> None:
    broker = small(**{"below/more.txt": "{port} {python} {other}"})
    await broker.start(PATIENCE)
    port = broker.port
    text = Path(broker.directory, "below/more.txt").read_text()
    assert text == f"{port} {sys.executable} {{other}}"
    assert await said(port) == b"x"
    await broker.kill()
    assert not broker.running
    with pytest.raises(ConnectionRefusedError):
        await said(port)
    await broker.start(PATIENCE)
    assert broker.port == port
    assert await said(port) == b"xx"
    place = broker.directory
    await broker.close()
    assert not Path(place).exists()
    await broker.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_what_it_started_ends_with_it(number: signal.Signals) -> None:
    broker = small()
    await broker.start(PATIENCE)
    words = broker._lines[-1].split()
    pids = [int(words[1]), int(words[2])]
    assert all(alive(pid) for pid in pids)
    await (broker.kill() if number == signal.SIGKILL else broker.terminate())
    await until(lambda: not any(alive(pid) for pid in pids))
    await broker.close()


async def test_the_end_of_a_broker_that_died_by_itself_is_noticed() -> None:
    broker = small(ready=None)
    await broker.start(PATIENCE)
    assert broker._process is not None
    os.kill(broker._process.pid, signal.SIGKILL)
    await until(lambda: not broker.running)
    await broker.start(PATIENCE)
    assert await said(broker.port) == b"xx"
    await broker.close()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('no such option')\nraise SystemExit(3)", "ended at once with code 3.*no such opt"),
        (
            "import time\nprint('is', flush=True)\ntime.sleep(600)",
            "not ready within 0.2 s.*said: is",
        ),
    ],
)
async def test_a_start_that_fails_says_why(script: str, why: str) -> None:
    broker = BrokerProcess(["{python}", "-c", script], {}, "is up")
    try:
        with pytest.raises(ProcessError, match=why):
            await broker.start(PATIENCE if "code" in why else 0.2)
        assert not broker.running
    finally:
        await broker.close()


async def test_a_command_that_does_not_exist_is_named() -> None:
    broker = BrokerProcess(["/nonexistent/broker"], {})
    with pytest.raises(ProcessError, match=r"'/nonexistent/broker' could not .* No such"):
        await broker.start(PATIENCE)
    await broker.close()


async def test_sigterm_that_is_ignored_is_followed_by_sigkill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("device_sim.engine.process.GRACE_S", 0.1)
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    broker = BrokerProcess(["{python}", "{dir}/server.py"], {"server.py": deaf}, "is up")
    await broker.start(PATIENCE)
    await broker.terminate()
    assert not broker.running
    await broker.close()


async def test_mqttd() -> None:
    broker = BrokerProcess(
        ["{python}", "-m", "mqttd", "run", "-c", "{dir}/mqttd.yaml"], MQTTD, "ready"
    )
    await broker.start(PATIENCE)
    async with await Wire.open(broker.port) as wire:
        assert (await wire.connect("one")).reason == 0
    assert Path(broker.directory, "mqttd.db").exists()
    await broker.close()
