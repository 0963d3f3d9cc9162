"""A queue and its dead letters in a broker that is killed, again and again.

Nothing that was acknowledged is lost: a message is in the queue, with a consumer that has
acknowledged it, or a dead letter. The long form is `python -m tests.plugins.test_queues_killed N`.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from mqttd.core.packets import Filter, Puback, Publish, Suback, Subscribe
from tests.net.kit import Wire
from tests.store.test_process import ready

CONFIG = """\
listeners: [{name: tcp, bind: '127.0.0.1:0'}]
storage: {path: mqttd.db}
plugins:
  - use: mqttd_plugins.queues:Queues
    name: queues
    config:
      queues:
        - {name: work, dead_letter_topic: $queue/dead}
        - {name: dead}
"""
BATCH = 40


async def start(place: Path) -> tuple[Process, int]:
    arguments = ("-m", "mqttd", "run", "-c", "mqttd.yaml")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments), stdout=PIPE, stderr=PIPE, cwd=place
    )
    return process, await ready(process)


async def consumer(port: int, name: str, queue: str) -> Wire:
    wire = await Wire.open(port)
    await wire.connect(name)
    wire.send(Subscribe(1, [Filter(f"$queue/{queue}", 1)]))
    await wire.receive(Suback)
    return wire


async def publish(wire: Wire, first: int, enough: int, process: Process) -> set[bytes]:
    """Publish a batch, and kill the broker after some of its acknowledgements; which came."""
    acknowledged: set[bytes] = set()
    for number in range(first, first + BATCH):
        wire.publish("$queue/work", b"%d" % number, 1, number + 1)
    with contextlib.suppress(AssertionError, ConnectionError):
        for _ in range(BATCH):
            acknowledged.add(b"%d" % ((await wire.receive(Puback)).packet_id - 1))
            if len(acknowledged) == enough:
                process.kill()
    return acknowledged


async def work(wire: Wire, chance: random.Random, done: set[bytes]) -> None:
    """Acknowledge some messages, refuse others, leave the rest, until the broker dies."""
    try:
        while True:
            packet = await wire.receive(Publish)
            what = chance.choice(["done", "refused", "left"])
            if what == "done":
                done.add(bytes(packet.payload))  # if the broker never hears of it, it comes again
            if what != "left":
                wire.send(Puback(packet.packet_id, 0x83 if what == "refused" else 0))
    except (AssertionError, ConnectionError):
        return


async def drain(port: int, queue: str) -> set[bytes]:
    """All that is in a queue, acknowledged."""
    async with await Wire.open(port) as wire:
        await wire.connect("last")
        wire.publish(f"$queue/{queue}", b"end", 1, 1)  # stands behind all others
        await wire.receive(Puback)
    found: set[bytes] = set()
    async with await consumer(port, f"drain-{queue}", queue) as wire:
        while True:
            packet = await wire.receive(Publish)
            wire.send(Puback(packet.packet_id))
            if packet.payload == b"end":
                return found
            assert packet.payload not in found
            found.add(bytes(packet.payload))


async def run(place: Path, kills: int, seed: int) -> tuple[int, int, int]:
    """Kill so often; returns how many messages were in the queue, done and dead in the end."""
    (place / "mqttd.yaml").write_text(CONFIG)
    chance = random.Random(seed)
    acknowledged: set[bytes] = set()
    done: set[bytes] = set()
    for number in range(kills):
        process, port = await start(place)
        wire = await Wire.open(port)
        await wire.connect("p")
        workers = [await consumer(port, f"w{n}", "work") for n in range(2)]
        jobs = [asyncio.ensure_future(work(each, chance, done)) for each in workers]
        enough = chance.randrange(1, BATCH + 1)
        acknowledged |= await publish(wire, number * BATCH, enough, process)
        await asyncio.gather(*jobs)
        for each in (wire, *workers):
            await each.close()
        await process.communicate()
    process, port = await start(place)
    waiting = await drain(port, "work")
    dead = await drain(port, "dead")
    process.terminate()
    await process.communicate()
    assert acknowledged <= waiting | done | dead, acknowledged - waiting - done - dead
    assert not waiting & dead  # a message and its dead letter change places in one transaction
    return len(waiting), len(done), len(dead)


async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    assert sum(await run(tmp_path, 2, 1)) > 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run(Path(directory), int(sys.argv[1]), random.randrange(1 << 30)))
    print("waiting {} done {} dead {}".format(*found))
