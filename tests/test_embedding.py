"""A broker inside a process: it comes, it serves, and it goes without a trace."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import mqttd
from mqttd.core import spec
from mqttd.core.packets import Disconnect, Publish
from mqttd.net.listener import ListenError
from tests.net.kit import Wire, reserved_port, until

TWO = {
    "listeners": [
        {"name": "t", "bind": "127.0.0.1:0"},
        {"name": "w", "bind": "127.0.0.1:0", "transport": "websocket"},
    ]
}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_example_of_the_documentation() -> None:
    async with mqttd.Broker({"listeners": [{"name": "t", "bind": "127.0.0.1:0"}]}) as broker:  # noqa: SIM117
        async with await Wire.open(broker.port("t")) as wire:
            await wire.connect("a")
            await wire.subscribe("a")
            wire.publish("a", b"hello")
            assert (await wire.receive(Publish)).payload == b"hello"


async def test_without_a_configuration_it_takes_a_free_port() -> None:
    async with mqttd.Broker() as one, mqttd.Broker() as two:
        assert one.port("tcp") != two.port("tcp")
        with pytest.raises(KeyError):
            one.port("nobody")


async def test_a_configuration_that_is_wrong_says_what() -> None:
    from mqttd.config import ConfigError

    with pytest.raises(ConfigError, match="listners"):
        mqttd.Broker({"listners": []})


async def test_a_configuration_tree() -> None:
    from mqttd.config import parse_config

    async with mqttd.Broker(parse_config({**TWO, "storage": {"path": ":memory:"}})) as broker:
        assert broker.port("w") not in (0, broker.port("t"))


async def test_a_unix_socket_has_no_port(tmp_path: Path) -> None:
    bind = f"unix:{tmp_path}/m.sock"
    async with mqttd.Broker({"listeners": [{"name": "u", "bind": bind}]}) as broker:
        assert broker.port("u") == 0


async def test_nothing_is_left_behind() -> None:
    async with mqttd.Broker(TWO):
        pass  # what is loaded once, for good, is loaded now
    await asyncio.sleep(0.01)
    files, threads = open_files(), threading.active_count()
    for _ in range(3):
        async with mqttd.Broker(TWO) as broker:
            wires = [await Wire.open(broker.port("t")) for _ in range(3)]
            for number, wire in enumerate(wires):
                await wire.connect(f"c{number}")
            half = [await Wire.open(broker.port("w")), await Wire.open(broker.port("t"))]
        for wire in wires + half:
            await wire.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert threading.active_count() == threads
    await until(lambda: open_files() <= files)


async def test_clients_are_told_and_gone() -> None:
    async with mqttd.Broker() as broker:
        wire = await Wire.open(broker.port("tcp"))
        await wire.connect("a")
    assert (await wire.receive(Disconnect)).reason == spec.SERVER_SHUTTING_DOWN
    assert await wire.closed() == b""
    await wire.close()


async def test_one_after_the_other_on_the_same_port() -> None:
    with reserved_port() as port:
        for _ in range(3):
            config = {"listeners": [{"name": "t", "bind": f"127.0.0.1:{port}"}]}
            async with mqttd.Broker(config), await Wire.open(port) as wire:
                assert not (await wire.connect("a")).session_present


async def test_a_start_that_fails_leaves_nothing() -> None:
    async with mqttd.Broker() as broker:
        files = open_files()
        taken = f"127.0.0.1:{broker.port('tcp')}"
        config = {
            "listeners": [
                {"name": "free", "bind": "127.0.0.1:0"},
                {"name": "taken", "bind": taken},
            ]
        }
        other = mqttd.Broker(config)
        with pytest.raises(ListenError, match="listener taken: can't listen on"):
            await other.start()
        await other.stop()
        await until(lambda: open_files() <= files)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_stop_may_be_called_twice() -> None:
    broker = mqttd.Broker()
    await broker.stop()
    await broker.start()
    await broker.stop()
    await broker.stop()


async def test_several_loops_in_several_threads() -> None:
    def serve() -> int:
        async def main() -> int:
            async with mqttd.Broker() as broker, await Wire.open(broker.port("tcp")) as wire:
                await wire.connect("a")
                return broker.port("tcp")

        return asyncio.run(main())

    ports = await asyncio.gather(*(asyncio.to_thread(serve) for _ in range(3)))
    assert all(ports)


async def test_a_connection_that_ended_leaves_no_cycle() -> None:
    """The collector's oldest generation is never collected in `mqttd run`: see App."""
    async with mqttd.Broker(TWO) as broker:

        async def visit(number: int) -> None:
            async with await Wire.open(broker.port("t")) as wire:
                await wire.connect(f"c{number}")
                await wire.subscribe("a/#", 1)
                wire.publish("a/b", b"x", 1, 1)
                await wire.receive(Publish)
                wire.send(Disconnect() if number % 2 else b"\x00\x00")
                await wire.closed()

        await visit(0)
        core = broker._app.broker
        await until(lambda: not core.connections)
        gc.collect()
        gc.disable()
        try:
            for number in range(20):
                await visit(number)
            await until(lambda: not core.connections)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [
                type(thing).__name__
                for thing in gc.garbage
                if type(thing).__module__.startswith("mqttd")
            ]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert left == []


def test_importing_costs_next_to_nothing() -> None:
    code = (
        "import sys; import mqttd; mqttd.__version__\n"
        "print([m for m in ('asyncio', 'pydantic', 'yaml', 'picows', 'uvloop', 'mqttd.core')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_without_a_websocket_listener_picows_is_not_loaded() -> None:
    code = (
        "import asyncio, sys, mqttd\n"
        "async def main():\n"
        "    async with mqttd.Broker(): pass\n"
        "asyncio.run(main()); print('picows' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_what_it_says_about_itself(build: str) -> None:
    assert (build == "compiled") == mqttd.COMPILED
    assert mqttd.__version__
    assert mqttd.Config().listeners[0].port == 1883
    with pytest.raises(AttributeError, match="nonsense"):
        mqttd.nonsense  # noqa: B018
