"""The broker as a process: what it prints, how it ends, and what a signal does."""

import asyncio
import gc
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mqttd
from mqttd import app as app_module
from mqttd.app import App
from mqttd.config import parse_config
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.journal import Batch
from mqttd.core.packets import Connect, Disconnect, Publish
from mqttd.core.properties import Properties
from mqttd.net import loops
from mqttd.net.flow import Flow
from mqttd.store.base import StoreError
from mqttd.store.memory import MemoryStore
from mqttd.wiring import endpoint_of
from tests.net.kit import PATIENCE, Wire, loopback, reserved_port, until
from tests.tls import Authority


class Process:
    """`mqttd run` with a configuration; its lines, its log, its end."""

    def __init__(self, directory: Path, config: str) -> None:
        file = directory / "mqttd.yaml"
        file.write_text(config)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "mqttd", "run", "-c", str(file)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=directory,
            )
        self.lines: list[str] = []

    def ready(self) -> "Process":
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip("\n"))
            if self.lines[-1] == "ready":
                return self
        raise AssertionError(self.log.read_text())

    def port(self, name: str) -> int:
        for line in self.lines:
            if match := re.fullmatch(rf"listening {name} \S+?:(\d+)(/mqtt)?", line):
                return int(match[1])
        raise AssertionError(self.lines)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(PATIENCE)


Start = Callable[[str], Process]
TCP = "listeners: [{name: tcp, bind: '127.0.0.1:0'}]\n"
MEMORY = {"path": ":memory:"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def make(config: str) -> Process:
        started.append(Process(tmp_path, config))
        return started[-1]

    yield make
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()
        assert process.popen.stdout is not None
        process.popen.stdout.close()


def test_a_line_per_listener_then_ready(start: Start, tmp_path: Path) -> None:
    process = start(
        "listeners:\n"
        "  - {name: tcp, bind: '127.0.0.1:0'}\n"
        "  - {name: ws, bind: '127.0.0.1:0', transport: websocket}\n"
        "  - {name: unix, bind: 'unix:m.sock'}\n"
    ).ready()
    assert process.lines == [
        f"listening tcp mqtt://127.0.0.1:{process.port('tcp')}",
        f"listening ws ws://127.0.0.1:{process.port('ws')}/mqtt",
        f"listening unix mqtt+unix://{tmp_path}/m.sock",
        "ready",
    ]
    assert process.end() == 0
    assert not (tmp_path / "m.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(start: Start, number: int) -> None:
    process = start(TCP).ready()
    async with (
        await Wire.open(process.port("tcp")) as one,
        await Wire.open(process.port("tcp")) as two,
    ):
        await one.connect("one")
        two.version = 4
        await two.connect("two")
        process.popen.send_signal(number)
        assert (await one.receive(Disconnect)).reason == spec.SERVER_SHUTTING_DOWN
        assert await one.closed() == b""
        assert await two.closed() == b""
    assert await asyncio.to_thread(process.popen.wait, PATIENCE) == 0
    log = process.log.read_text()
    assert "disconnect client=one" in log
    assert 'reason="server shutting down"' in log
    assert log.rstrip().endswith("stopped")


def test_an_address_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(f"listeners: [{{name: tcp, bind: '127.0.0.1:{port}'}}]\n")
        assert process.popen.wait(PATIENCE) == 1
    log = process.log.read_text()
    assert f"mqttd: listener tcp: can't listen on 127.0.0.1:{port}: Address already in use" in log
    assert "Traceback" not in log


async def test_a_hangup_reads_the_certificates_again(start: Start, tmp_path: Path) -> None:
    ca, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"

    def install(authority: Authority) -> None:
        for target, source in zip((cert, key), authority.issue("server", "x"), strict=True):
            target.write_bytes(source.read_bytes())

    install(ca)
    process = start(
        "listeners: [{name: tls, bind: '127.0.0.1:0', tls: {cert: server.crt, key: server.key}}]\n"
    ).ready()
    port = process.port("tls")
    async with await Wire.open(port, tls=ca.client()) as wire:
        await wire.connect("before")
        install(stranger)
        process.popen.send_signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while "reload" not in process.log.read_text():
                await asyncio.sleep(0.01)
        async with await Wire.open(port, tls=stranger.client()) as other:
            await other.connect("after")
        await wire.subscribe("a")
        key.write_text("nonsense")
        process.popen.send_signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while "ERROR reload_refused" not in process.log.read_text():
                await asyncio.sleep(0.01)
        async with await Wire.open(port, tls=stranger.client()) as other:
            await other.connect("still")
    assert await asyncio.to_thread(process.end) == 0


async def test_the_log_has_a_line_for_each_coming_and_going(start: Start) -> None:
    process = start(TCP).ready()
    async with await Wire.open(process.port("tcp")) as wire:
        await wire.connect("a\u2028b")
        wire.publish("secret/topic", b"secret payload")
        wire.send(Disconnect())
        await wire.closed()
    assert await asyncio.to_thread(process.end) == 0
    log = process.log.read_text()
    assert "INFO connect client=a\\u2028b peer=127.0.0.1:" in log
    assert "INFO disconnect client=a\\u2028b" in log
    assert "secret" not in log


def test_the_loop_that_was_asked_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTTD_LOOP", "nonsense")
    process = start(TCP)
    assert process.popen.wait(PATIENCE) == 2
    assert "unknown event loop 'nonsense'" in process.log.read_text()


# In this process.


async def test_a_broken_store_ends_the_process_with_a_failure() -> None:
    class Broken(MemoryStore):
        durable = True

        async def commit(self, batch: Batch) -> None:
            raise OSError("disk full")

    control = {"path": "off"}
    app = App(parse_config({"listeners": [loopback()], "control": control}), Broken())
    with pytest.raises(RuntimeError):
        _ = app.broker
    ended = asyncio.get_running_loop().create_task(app.run())
    await until(lambda: app.listeners and app.listeners[0].port)
    async with await Wire.open(app.listeners[0].port) as wire:
        properties = Properties()
        properties.session_expiry_interval = 60
        wire.send(Connect("MQTT", 5, True, 0, "a", None, None, None, properties))
        await wire.closed()
    async with asyncio.timeout(PATIENCE):
        assert await ended == 1
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)


class Remembering(MemoryStore):
    """Knows whether it is open; fails when the test says so."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.error: Exception | None = None

    async def load(self, broker: Broker) -> None:
        self.opened += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.closed += 1


async def test_a_store_that_cannot_be_loaded_is_closed() -> None:
    store = Remembering()
    store.error = StoreError("it is broken")
    app = App(parse_config({"listeners": [loopback()]}), store)
    with pytest.raises(StoreError, match="broken"):
        await app.start()
    assert (store.opened, store.closed) == (1, 1)
    await app.stop(0.0)
    assert store.closed == 1
    store.error = None
    await app.start()
    await app.stop(0.0)
    assert (store.opened, store.closed) == (2, 2)


async def test_a_stop_while_it_starts() -> None:
    store = Remembering()
    app = App(parse_config({"listeners": [loopback()]}), store)
    starting = asyncio.get_running_loop().create_task(app.start())
    await asyncio.sleep(0)
    assert store.opened
    await app.stop(0.0)
    with pytest.raises(StoreError, match="stopped"):
        await starting
    assert not app.listeners
    assert store.closed == 1


async def test_a_second_start_listens_once() -> None:
    app = App(parse_config({"listeners": [loopback()], "storage": MEMORY}))
    for _ in range(2):
        await app.start()
        assert len(app.listeners) == 1
        async with await Wire.open(app.listeners[0].port) as wire:
            await wire.connect("a")
            await app.stop(0.0)
            await wire.closed()
        assert not app.listeners


async def test_a_step_of_the_shutdown_that_fails_leaves_out_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with reserved_port() as port:
        store = Remembering()
        app = App(parse_config({"listeners": [loopback(bind=f"127.0.0.1:{port}")]}), store)
        await app.start()
        with monkeypatch.context() as patch:
            patch.setattr(Flow, "drain", broken)
            with pytest.raises(RuntimeError, match="a bug"):
                await app.stop(0.0)
        assert store.closed == 1
        with pytest.raises(ConnectionRefusedError):
            await Wire.open(port)


async def test_a_core_that_cannot_say_goodbye_is_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Mute:
        """A broker whose `drain` is broken."""

        def __init__(self, broker: Broker) -> None:
            self._broker = broker

        def drain(self, now: float) -> None:
            raise RuntimeError("a bug")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._broker, name)

    store = Remembering()
    app = App(parse_config({"listeners": [loopback()]}), store)
    await app.start()
    async with await Wire.open(app.listeners[0].port) as wire:
        await wire.connect("a")
        assert app._flow is not None
        app._flow.broker = Mute(app.broker)  # type: ignore[assignment]
        await app.stop(0.0)
        await wire.closed()
    assert store.closed == 1
    assert "bug: exception out of the core in drain" in caplog.text


def test_what_a_listener_is_told_of_its_configuration() -> None:
    entry = {
        "name": "w",
        "bind": "127.0.0.1:0",
        "transport": "websocket",
        "path": "/x",
        "allow_anonymous": False,
        "allow_origins": ["https://panel.example"],
        "proxy_protocol": "v2",
        "proxy_from": ["10.0.0.0/8"],
    }
    (listener,) = parse_config({"listeners": [entry]}).listeners
    found = endpoint_of(listener)
    assert (found.name, found.host, found.port, found.unix_path) == ("w", "127.0.0.1", 0, "")
    assert (found.transport, found.path, found.allow_anonymous) == ("websocket", "/x", False)
    assert (found.proxy_protocol, found.proxy_from) == ("v2", ("10.0.0.0/8",))
    assert (found.tls, found.allow_origins) == (None, ("https://panel.example",))


def test_client_ids_that_the_broker_assigns_cannot_be_guessed() -> None:
    names = {app_module._random_client_id() for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch("auto-[0-9a-f]{20}", name) for name in names)


# Loops.


def test_which_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQTTD_LOOP", raising=False)
    assert loops.choose("asyncio") == "asyncio"
    assert loops.choose() == loops.choose("auto")
    monkeypatch.setenv("MQTTD_LOOP", "asyncio")
    assert loops.choose() == "asyncio"
    with pytest.raises(ValueError, match="nonsense"):
        loops.choose("nonsense")
    loop = loops.new_event_loop()
    assert not loops.is_uvloop(loop)
    loop.close()


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQTTD_LOOP", raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loops.choose() == "asyncio"
    with pytest.raises(ImportError):
        loops.choose("uvloop")


# The operator's side of a process.


async def test_a_process_answers_its_operator(start: Start, tmp_path: Path) -> None:
    """Without a word about it in the configuration: beside the database, for its user alone."""
    process = start(TCP).ready()
    socket_file = tmp_path / "data" / "mqttd.ctl"
    assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600
    async with await Wire.open(process.port("tcp")) as wire:
        await wire.connect("sensor")
        await wire.subscribe("a")
        wire.publish("a", b"x")
        await wire.receive(Publish)
        found = await asyncio.to_thread(ask, tmp_path, "clients", "--json")
        assert json.loads(found)["client"] == "sensor"
        found = await asyncio.to_thread(ask, tmp_path, "explain", "--client", "sensor")
        assert "sensor: 1 delivered" in found
    # A second broker in the same directory doesn't take the socket away.
    (tmp_path / "second").mkdir()
    other = Process(tmp_path / "second", TCP + f"storage: {{path: {tmp_path}/data/x.db}}\n").ready()
    assert (tmp_path / "data" / "x.ctl").exists()
    assert other.end() == 0
    assert other.popen.stdout is not None
    other.popen.stdout.close()
    assert await asyncio.to_thread(process.end) == 0
    assert not socket_file.exists()


def ask(directory: Path, *words: str) -> str:
    """A command on a broker whose working directory this is."""
    command = [sys.executable, "-m", "mqttd", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=directory, timeout=PATIENCE, check=True
    )
    return done.stdout


async def test_a_hangup_applies_what_can_change_live(start: Start, tmp_path: Path) -> None:
    process = start(TCP).ready()
    file = tmp_path / "mqttd.yaml"
    file.write_text(TCP + "logging: {format: json}\nlimits: {max_inflight: 7}\n")
    process.popen.send_signal(signal.SIGHUP)
    await until(lambda: '"event": "reload"' in process.log.read_text())
    assert "limits.max_inflight: 7" in process.log.read_text()
    file.write_text(TCP + "limits: {max_inflight: 0}\n")
    process.popen.send_signal(signal.SIGHUP)
    await until(lambda: "reload_refused" in process.log.read_text())
    assert f"{file}:2:24 limits.max_inflight" in process.log.read_text()
    async with await Wire.open(process.port("tcp")) as wire:
        await wire.connect("still there")
    assert await asyncio.to_thread(process.end) == 0


async def test_top_on_a_terminal(tmp_path: Path) -> None:
    """Drawn on a terminal of its own until `q`, after which the terminal is as it was."""
    app = App(
        parse_config(
            {
                "listeners": [loopback()],
                "storage": MEMORY,
                "control": {"path": str(tmp_path / "m.ctl")},
            }
        )
    )
    await app.start()
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "mqttd", "top", "--socket", str(tmp_path / "m.ctl")]
    process = subprocess.Popen(
        [*command, "--interval", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    screen = b""

    def read() -> None:
        nonlocal screen
        while b"q ends it" not in screen:
            screen += os.read(ours, 65536)

    await asyncio.to_thread(read)
    assert f"mqttd {mqttd.__version__}, process {os.getpid()}".encode() in screen
    os.write(ours, b"q")

    def drain() -> int:
        while process.poll() is None:
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 65536)
        return process.wait()

    assert await asyncio.to_thread(drain) == 0
    assert termios.tcgetattr(theirs) == before
    for number in (ours, theirs):
        os.close(number)
    await app.stop(0.0)
