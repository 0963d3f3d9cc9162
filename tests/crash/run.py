"""One crash run: the workload, the kills, and the verdict over everything that was promised."""

import asyncio
import contextlib
import json
import random
import sqlite3
from pathlib import Path

from mqttd.core.packets import Filter, Publish, Suback, Subscribe
from tests.crash.actors import Actor, Keeper, Publisher, Subscriber, Toggler
from tests.crash.wire import PATIENCE, Process, Wire

PUBLISHERS = 3
SUBSCRIBERS = 3
MEMBERS = 2


class Run:
    """A seeded workload; `wrong` is empty if the broker kept its word."""

    def __init__(self, directory: Path, seed: int, kills: int, durability: str = "full") -> None:
        self.chance = random.Random(seed)
        self.kills = kills
        self.wrong: list[str] = []
        self.broker = Process(directory, durability)
        self.publishers = [Publisher(f"p{n}", *self._parts()) for n in range(PUBLISHERS)]
        self.keeper = Keeper("keeper", *self._parts())
        self.toggler = Toggler("toggler", *self._parts())
        self.subscribers = [
            Subscriber(f"s{n}", *self._parts(), "t/#", {}) for n in range(SUBSCRIBERS)
        ]
        group: dict[str, list[int]] = {}
        self.members = [
            Subscriber(f"m{n}", *self._parts(), "$share/g/t/#", group) for n in range(MEMBERS)
        ]

    def _parts(self) -> tuple[Process, random.Random, list[str]]:
        return self.broker, random.Random(self.chance.random()), self.wrong

    @property
    def receivers(self) -> list[Subscriber]:
        return [*self.subscribers, *self.members]

    async def run(self) -> dict[str, object]:
        try:
            await self.broker.start()
            await self._run()
        finally:
            await self.broker.discard()
        self._check_file()
        acknowledged = [sum(len(p.acknowledged[q]) for p in self.publishers) for q in (0, 1)]
        return {
            "kills": self.kills,
            "acknowledged_qos1": acknowledged[0],
            "acknowledged_qos2": acknowledged[1],
            "delivered": sum(len(n) for s in self.receivers for n in s.handed.values()),
            "retained_writes": sum(self.keeper.acknowledged),
            "subscription_changes": self.toggler.changes,
            "wrong": self.wrong,
        }

    async def _run(self) -> None:
        tasks = await self._begin(self.receivers)  # nobody publishes before all are there
        tasks += await self._begin([*self.publishers, self.keeper, self.toggler])
        try:
            for _ in range(self.kills):
                await self._some_time(tasks)
                await self.broker.kill()
                await self.broker.start()
                await self._probe()
            await self._settle(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._check_deliveries()
        status = await self.broker.stop()
        if status != 0:
            self.wrong.append(f"SIGTERM: exit status {status}")
        for line in self.broker.log.read_text().splitlines():
            if json.loads(line)["level"] in ("error", "critical"):
                self.wrong.append(f"log: {line}")

    async def _begin(self, actors: list[Actor] | list[Subscriber]) -> list["asyncio.Task[None]"]:
        tasks = [asyncio.create_task(actor.run()) for actor in actors]
        async with asyncio.timeout(PATIENCE):
            for actor in actors:
                await actor.ready.wait()
        return tasks

    async def _some_time(self, tasks: list["asyncio.Task[None]"]) -> None:
        done, _ = await asyncio.wait(
            tasks, timeout=self.chance.random() * 0.4, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
            raise AssertionError("a client ended before its time")

    async def _probe(self) -> None:
        """A stranger looks at the retained messages."""
        least = list(self.keeper.acknowledged)
        wire, _ = await Wire.connect(self.broker.port, "probe", clean=True, expiry=0)
        found: dict[int, bytes] = {}
        wire.send(Subscribe(1, [Filter("r/+", 0)]))
        # A second filter, whose answer comes when the first replay is over.
        while not isinstance(packet := await wire.receive(), Suback):
            pass
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                while isinstance(packet := await wire.receive(), Publish):
                    if packet.retain:
                        found[int(packet.topic[2:])] = packet.payload
        wire.close()
        for which in range(Keeper.TOPICS):
            self.keeper.judge(which, found.get(which), least[which])

    async def _settle(self, tasks: list["asyncio.Task[None]"]) -> None:
        """Everybody stays, until everything that was sent has been acknowledged and handed over."""
        for receiver in self.receivers:
            receiver.stays = True
        for publisher in self.publishers:
            publisher.quiet = True
        self.keeper.ending = self.toggler.ending = True
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while not all(publisher.finished for publisher in self.publishers):
            if loop.time() > until:
                self.wrong.append("publishers still wait for acknowledgements")
                return
            await asyncio.sleep(0.05)
        quiet_since, before = loop.time(), -1
        while self._missing() and loop.time() - quiet_since < 5.0:
            now = sum(len(n) for s in self.receivers for n in s.handed.values())
            if now != before:
                quiet_since, before = loop.time(), now
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # for what would come twice
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _missing(self) -> list[str]:
        missing: list[str] = []
        for receiver in [*self.subscribers, self.members[0]]:
            for publisher in self.publishers:
                for qos in (1, 2):
                    topic = publisher.topic(qos)
                    lost = publisher.acknowledged[qos - 1].difference(
                        receiver.handed.get(topic, ())
                    )
                    missing += [f"{receiver.name}: {topic} {number} is lost" for number in lost]
        return missing

    def _check_deliveries(self) -> None:
        self.wrong += self._missing()
        for receiver in self.subscribers:
            for topic, numbers in receiver.handed.items():
                first = list(dict.fromkeys(numbers))
                if first != sorted(first):
                    self.wrong.append(f"{receiver.name}: {topic} out of order: {first}")
        for receiver in [*self.subscribers, self.members[0]]:
            for topic, numbers in receiver.handed.items():
                if topic.endswith("/2") and len(set(numbers)) != len(numbers):
                    twice = sorted({n for n in numbers if numbers.count(n) > 1})
                    self.wrong.append(f"{receiver.name}: {topic} twice: {twice}")

    def _check_file(self) -> None:
        with contextlib.closing(sqlite3.connect(self.broker.database)) as db:
            if (found := db.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                self.wrong.append(f"file: {found}")
            orphans = db.execute(
                "SELECT count(*) FROM messages WHERE id NOT IN (SELECT message FROM deliveries)"
            ).fetchone()[0]
            if orphans:
                self.wrong.append(f"file: {orphans} payloads without a recipient")
