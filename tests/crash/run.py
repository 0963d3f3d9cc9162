"""One crash run: the workload, the kills, and the verdict over everything that was promised."""

import asyncio
import contextlib
import io
import json
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mqttd import cli
from mqttd.core.packets import Filter, Publish, Suback, Subscribe, Unsuback, Unsubscribe
from tests.crash import points
from tests.crash.actors import Actor, Keeper, Subscriber, Toggler
from tests.crash.people import Deserter, Mourner, Pacer, Receiver, Sleeper
from tests.crash.wire import PATIENCE, Process, Wire

PUBLISHERS = 3
SUBSCRIBERS = 2
MEMBERS = 2
MOURNERS = 2
DEPTH = 120
"""What waits for a sleeper until it comes back; the head of its queue has 64."""

LIKELY = {
    "commit-before": 40,
    "commit-after": 40,
    "released": 40,
    "between": 20,
    "torn": 60,
    "create-statement": 12,
    "page-before": 3,
    "page-after": 3,
    "page-served": 3,
    "tidy-garbage": 3,
}
"""How often a point is passed before the kill, at most."""


class Run:
    """A seeded workload; `wrong` is empty if the broker kept its word.

    Without `at` the broker is killed `kills` times at some instant; with it, once at each of these
    points (`tests.crash.points`).
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        kills: int = 0,
        durability: str = "full",
        at: Sequence[str] = (),
    ) -> None:
        self.chance = random.Random(seed)
        self.wrong: list[str] = []
        self.hits: Counter[str] = Counter()
        self.kills = 0
        # For each life of the broker but the last: the point at which it ends; "" at any instant.
        self.lives = [*at, *[""] * kills]
        self.broker = Process(directory, durability, "tests.crash.points")
        self.publishers = [Pacer(f"p{n}", *self._parts()) for n in range(PUBLISHERS)]
        self.keeper = Keeper("keeper", *self._parts())
        self.toggler = Toggler("toggler", *self._parts())
        self.watcher = Receiver("watcher", *self._parts(), ["w/#"], [])
        self.watcher.stays = True
        self.mourners = [Mourner(f"w{n}", *self._parts(), self.watcher) for n in range(MOURNERS)]
        both = ["t/#", "x/#"]
        self.sleeper = Sleeper("sleeper", *self._parts(), both, self.publishers, DEPTH)
        self.deserter = Deserter("deserter", *self._parts(), both, self.publishers, DEPTH)
        self.subscribers = [
            self.sleeper,
            *(Receiver(f"s{n}", *self._parts(), both, self.publishers) for n in range(SUBSCRIBERS)),
        ]
        group: dict[str, list[int]] = {}
        self.members = [
            Subscriber(f"m{n}", *self._parts(), "$share/g/t/#", group) for n in range(MEMBERS)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def _parts(self) -> tuple[Process, random.Random, list[str]]:
        return self.broker, random.Random(self.chance.random()), self.wrong

    @property
    def receivers(self) -> list[Subscriber]:
        return [*self.subscribers, *self.members, self.deserter, self.watcher]

    async def run(self) -> dict[str, object]:
        try:
            await self._run()
        finally:
            await self.broker.discard()
        self._check_file()
        acknowledged = [sum(len(p.acknowledged[q]) for p in self.publishers) for q in (0, 1)]
        wills = [least for mourner in self.mourners for _, least, most in mourner.expected]
        return {
            "kills": self.kills,
            "points": dict(self.hits),
            "acknowledged_qos1": acknowledged[0],
            "acknowledged_qos2": acknowledged[1],
            "acknowledged_expiring": sum(len(p.fleeting) for p in self.publishers),
            "delivered": sum(len(n) for s in self.receivers for n in s.handed.values()),
            "deep_queues": self.sleeper.sleeps + self.deserter.sleeps,
            "wills_due": sum(wills),
            "lives_with_a_will": len(wills),
            "retained_writes": sum(self.keeper.acknowledged),
            "subscription_changes": self.toggler.changes,
            "lost": len(self._missing()),
            "doubled": len(self._doubled()),
            "wrong": self.wrong,
        }

    async def _run(self) -> None:
        populated = asyncio.create_task(self._populate())
        try:
            for life in self.lives:
                await self._live_and_die(life, populated)
            if not await self.broker.begin():
                raise AssertionError(f"mqttd didn't start: {self.broker.log.read_text()}")
            await populated
            await self._probe()
            await self._settle()
        finally:
            for task in (populated, *self._tasks):
                task.cancel()
            await asyncio.gather(populated, *self._tasks, return_exceptions=True)
        self._check_deliveries()
        status = await self.broker.stop()
        if status != 0:
            self.wrong.append(f"SIGTERM: exit status {status}")
        for line in self.broker.log.read_text().splitlines():
            if not line.startswith("{") or json.loads(line)["level"] in ("error", "critical"):
                self.wrong.append(f"log: {line}")

    async def _live_and_die(self, point: str, populated: "asyncio.Task[None]") -> None:
        if point:
            times = self.chance.randint(1, LIKELY.get(point, 1))
            if point == "create-statement" and self.broker.starts:
                raise AssertionError("there is a database already")
            begun = await self.broker.begin({points.VARIABLE: f"{point}:{times}"})
            assert begun is (point not in points.STARTING), self.broker.log.read_text()
            try:
                status = await self.broker.ended()
            except TimeoutError:
                raise AssertionError(f"{point}:{times} was never reached") from None
            assert status == -signal.SIGKILL, self.broker.log.read_text()
            self.hits[point] += 1
        else:
            await self.broker.start()
            await populated
            if self.kills:
                await self._probe()
            await self._some_time()
            await self.broker.kill()
        self.kills += 1

    async def _populate(self) -> None:
        # Nobody publishes before all receivers are there.
        await self._begin(self.receivers)
        await self._begin([*self.publishers, self.keeper, self.toggler])
        self._tasks += [asyncio.create_task(mourner.run()) for mourner in self.mourners]

    async def _begin(self, actors: Sequence[Actor]) -> None:
        self._tasks += [asyncio.create_task(actor.run()) for actor in actors]
        async with asyncio.timeout(2 * PATIENCE):
            for actor in actors:
                await actor.ready.wait()

    async def _some_time(self) -> None:
        done, _ = await asyncio.wait(
            self._tasks, timeout=self.chance.random() * 0.4, return_when=asyncio.FIRST_COMPLETED
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
        while not isinstance(await wire.receive(), Suback):
            pass
        # Whatever is retained at QoS 0 has been sent when the answer to a later packet comes.
        wire.send(Unsubscribe(2, ["none"]))
        while not isinstance(packet := await wire.receive(), Unsuback):
            if isinstance(packet, Publish) and packet.retain:
                found[int(packet.topic[2:])] = packet.payload
        wire.close()
        for which in range(Keeper.TOPICS):
            self.keeper.judge(which, found.get(which), least[which])

    async def _settle(self) -> None:
        """Everybody stays, until everything that was sent has been acknowledged and handed over."""
        for receiver in self.receivers:
            receiver.stays = True
        for publisher in self.publishers:
            publisher.quiet = True
        for mourner in self.mourners:
            mourner.ending = True
        self.keeper.ending = self.toggler.ending = True
        mourning = self._tasks[-len(self.mourners) :]
        if not await self._until(lambda: all(p.finished for p in self.publishers)):
            self.wrong.append("publishers still wait for acknowledgements")
        if not await self._until(lambda: all(task.done() for task in mourning)):
            self.wrong.append("mourners still wait")
        loop = asyncio.get_running_loop()
        quiet_since, before = loop.time(), -1
        while self._missing() and loop.time() - quiet_since < PATIENCE:
            self._raise_bugs()
            now = sum(len(n) for s in self.receivers for n in s.handed.values())
            if now != before:
                quiet_since, before = loop.time(), now
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)  # for what would come twice
        self._raise_bugs()

    async def _until(self, condition: Callable[[], bool]) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + 2 * PATIENCE
        while not condition():
            self._raise_bugs()
            if loop.time() > until:
                return False
            await asyncio.sleep(0.02)
        return True

    def _raise_bugs(self) -> None:
        for task in self._tasks:
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

    def _doubled(self) -> list[str]:
        return [
            f"{receiver.name}: {topic} {number} came {count} times"
            for receiver in [*self.subscribers, self.members[0], self.deserter, self.watcher]
            for topic, numbers in receiver.handed.items()
            if topic.endswith("/2")
            for number, count in Counter(numbers).items()
            if count > 1
        ]

    def _check_deliveries(self) -> None:
        self.wrong += self._missing()
        for receiver in self.subscribers:
            for topic, numbers in receiver.handed.items():
                first = list(dict.fromkeys(numbers))
                if first != sorted(first):
                    self.wrong.append(f"{receiver.name}: {topic} out of order: {first}")
        self.wrong += self._doubled()
        for mourner in self.mourners:
            mourner.judge()

    def _check_file(self) -> None:
        with contextlib.closing(sqlite3.connect(self.broker.database)) as db:
            if (found := db.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                self.wrong.append(f"file: {found}")
            left = db.execute("SELECT count(*) FROM deliveries").fetchone()[0]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = cli.main(["db", "check", "-q", str(self.broker.database)])
        if status:
            self.wrong.append(f"mqttd db check: exit {status}: {said.getvalue()} ({left} wait)")
