"""What a fault leaves behind when it is over: a broker that answers at once, and nothing else."""

import asyncio
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mqttd.app import App
from mqttd.config import parse_config
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Will,
)
from mqttd.core.properties import Properties
from tests.crash.test_full_disk import Broker, absent, client, fill, publish, room_again
from tests.net.kit import Wire
from tests.power import shim

SOON = 2.0
SLOW = 0.5
"""Seconds of a CONNECT on a machine that has other things to do."""
DEEP = 150


async def join(port: int, name: str, expiry: int, will: Will | None = None) -> Wire:
    wire = await Wire.open(port)
    properties = Properties()
    properties.session_expiry_interval = expiry
    wire.send(Connect("MQTT", 5, not expiry, 0, name, will, None, None, properties))
    assert (await wire.receive(Connack)).reason == 0
    return wire


async def leave(wire: Wire) -> None:
    wire.send(Disconnect())
    await wire.closed()
    await wire.close()


async def drain(wire: Wire, count: int) -> None:
    """Take so many messages, and finish every exchange."""
    open_ = 0
    while count or open_:
        packet = await wire.receive(object)
        if isinstance(packet, Publish):
            count -= 1
            open_ += packet.qos == 2
            if packet.qos == 1:
                wire.send(Puback(packet.packet_id))
            elif packet.qos == 2:
                wire.send(Pubrec(packet.packet_id))
        elif isinstance(packet, Pubrel):
            open_ -= 1
            wire.send(Pubcomp(packet.packet_id))


async def a_busy_day(port: int) -> None:
    """Deep queues, a group, wills, retained messages, connections that break; all of it ends."""
    for name, topic_filter in (("deep", "t/#"), ("member", "$share/g/t/#")):
        wire = await join(port, name, 3600)
        wire.send(Subscribe(1, [Filter(topic_filter, 2)]))
        await wire.receive(Suback)
        await leave(wire)
    publisher = await join(port, "publisher", 0)
    for number in range(1, DEEP + 1):
        qos = 1 + number % 2
        publisher.send(Publish(f"t/{number % 7}", b"%d" % number, qos, False, False, number))
        if qos == 1:
            await publisher.receive(Puback)
        else:
            await publisher.receive(Pubrec)
            publisher.send(Pubrel(number))
            await publisher.receive(Pubcomp)
    for payload in (b"1", b""):
        publisher.send(Publish("r/1", payload, 1, True, False, 1))
        await publisher.receive(Puback)
    for number in range(10):
        wire = await join(port, f"mourner{number}", 0, Will("w", b"", 1, False))
        wire.send(Subscribe(1, [Filter(f"a/{number}/+/b", 1)]))
        await wire.receive(Suback)
        wire.writer.transport.abort()
    for name in ("deep", "member"):
        wire = await join(port, name, 3600)
        await drain(wire, DEEP)
        await leave(wire)
        await leave(await join(port, name, 0))  # the session ends
    await leave(publisher)


def objects() -> Counter[str]:
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    names = [f"{kind.__module__}.{kind.__name__}" for kind in kinds]
    return Counter(name for name in names if name.startswith("mqttd."))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_everything_that_ended_is_gone(tmp_path: Path) -> None:
    """Sessions, queues, trie nodes, timers, tasks, descriptors: as before the clients came."""
    config = parse_config(
        {
            "listeners": [{"name": "tcp", "bind": "127.0.0.1:0"}],
            "storage": {"path": str(tmp_path / "mqttd.db")},
        }
    )
    app = App(config)
    await app.start()
    try:
        port = int(app.listeners[0].urls[0].rpartition(":")[2])
        await a_busy_day(port)  # what is made once and stays

        async def at_rest() -> tuple[Counter[str], int, int]:
            before = (Counter[str](), 0, 0)
            for _ in range(300):
                now = objects(), descriptors(), len(asyncio.all_tasks())
                if now == before and not app.broker.connections:
                    break
                before = now
                await asyncio.sleep(0.1)
            return before

        base = await at_rest()
        for _ in range(3):
            await a_busy_day(port)
        kinds, files, tasks = await at_rest()
        kinds -= base[0]
        # Entries of sessions that ended stay in the heap, empty, until there are more than these.
        assert kinds.pop("mqttd.core.registry.Deadline", 0) <= 64
        assert kinds == Counter()
        assert files <= base[1]
        assert tasks <= base[2]
        assert not app.broker.sessions
        assert app.broker.balance() == (0, 0)
    finally:
        await app.stop()


async def seconds(job: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    await job()
    return time.monotonic() - began


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "it can be built")
async def test_connect_is_answered_soon_after_a_fault_ends(tmp_path: Path) -> None:
    """A kill, a disk that is full, a disk that is slow, a process that stood still."""
    broker = Broker(tmp_path)
    try:
        await broker.start()

        async def connect() -> None:
            await (await client(broker, "new", expiry=3600)).close()

        usual = [await seconds(connect) for _ in range(5)]
        took: dict[str, float] = {}
        await absent(broker, "away")
        publisher = await client(broker, "publisher")
        for number in range(1, DEEP + 1):
            assert await publish(publisher, number, number) == 0

        await fill(broker, publisher)
        await room_again(broker, publisher, 1)
        took["full disk"] = await seconds(connect)

        broker.faults.set("fsync_delay", 200)
        publisher.send(Publish("kept", b"", 1, False, False, 1))
        await asyncio.sleep(0.1)
        broker.faults.clear()
        took["slow disk"] = await seconds(connect)

        os.kill(broker.process_id, signal.SIGSTOP)
        await asyncio.sleep(0.2)
        os.kill(broker.process_id, signal.SIGCONT)
        took["standstill"] = await seconds(connect)

        await broker.kill()
        await broker.start()
        took["kill"] = await seconds(connect)
        usual += [await seconds(connect) for _ in range(5)]
        if max(usual) < SLOW:  # or this machine has no time to speak of
            assert max(took.values()) < SOON, took
        assert await broker.stop() == 0
    finally:
        await broker.discard()
