"""The real committer and the real core on a real file, without threads, timers or sockets.

`Lane` is a `Disk` whose commits go through a `Committer`: `commit` lets that run until it comes to
rest. Its store does everything at once and in the caller's thread, and fails where it is told to:
at the n-th commit, in a `Fault`'s way. The clock of the committer moves a little whenever somebody
looks at it, so that what waits for it comes to an end, always after as many steps.

`World` is a fixed workload of clients, and what each of them knows: a publisher what was
acknowledged, subscribers what they got. `World.check` is what has to be so after a restart.
"""

import asyncio
import copy
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.packets import (
    Connect,
    Filter,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqttd.core.properties import Properties
from mqttd.core.session import PageRequest
from mqttd.core.settings import Settings
from mqttd.store import committer
from mqttd.store.base import StoreError, StoreFull, Tidied
from mqttd.store.committer import Committer
from mqttd.store.rows import Changes
from mqttd.store.sqlite import SqliteStore
from tests.harness import FakeClient
from tests.store.disk import EMPTY, Disk, Receiver, assert_sound, rows_in

T = TypeVar("T")

TICK = 1e-6  # seconds between two looks at the clock
TURNS = 60  # of the loop: more than anything takes that doesn't wait for the test

LOST = "lost"  # the commit fails, and nothing of it is in the file
KEPT = "kept"  # the commit fails, and yet it is in the file
FULL = "full"  # there is no room until `room` is set
HELD = "held"  # the commit takes until `release`


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Let the committer wait a few ticks for what it waits for otherwise."""
    patch.setattr(committer, "_RETRY_S", 6 * TICK)
    patch.setattr(committer, "_PAUSE_S", 0.0)
    patch.setattr(committer, "_PATIENCE_S", 0.0)
    patch.setattr(committer, "_TIDY_S", 3600.0)  # but for the slice at the start


class FaultyStore(SqliteStore):
    """A store that does everything at once, and fails as told."""

    def __init__(self, path: Path, durability: str, wall: Callable[[], float], disk: "Lane"):
        super().__init__(path, durability, wall, lambda: disk.now)
        self.faults: dict[int, str] = {}  # by the number of the commit
        self.page_error: Exception | None = None
        self.tidy_error: Exception | None = None
        self.commits = 0
        self.tries = 0  # while there was no room
        self.pages_read = 0
        self.slices = 0
        self.room = True
        self.around: Callable[[int, bool], None] | None = None  # before and after each commit
        self._gate: asyncio.Future[None] | None = None
        self._late: Changes | None = None  # what the commit that is held writes in the end

    def _call(self, job: Callable[[], T]) -> asyncio.Future[T]:
        future = asyncio.get_running_loop().create_future()
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)
        return future

    @property
    def held(self) -> bool:
        return self._gate is not None

    def release(self) -> None:
        """Let the commit that is held come to its end."""
        assert self._gate is not None
        assert self._late is not None
        self._write(self._late)
        self._gate.set_result(None)
        self._gate = None

    def commit(self, batch: Batch) -> Awaitable[None]:
        number = self.commits
        self.commits += 1
        fault = self.faults.get(number, "")
        if self.around is not None:
            self.around(number, False)
        if fault == FULL:
            self.room = False
        if fault in (LOST, HELD) or not self.room:
            assert self._encoder is not None
            changes = self._encoder.encode(batch)
            if fault == HELD:
                self._late = changes
                self._gate = asyncio.get_running_loop().create_future()
                return self._gate
            self._refused = changes
            return self._call(self._fail if self.room else self._full)
        done = super().commit(batch)
        if self.around is not None:
            self.around(number, True)
        return self._call(self._fail) if fault == KEPT else done

    def retry(self) -> Awaitable[None]:
        self.tries += 1
        return super().retry() if self.room else self._call(self._full)

    async def pages(self, requests: list[PageRequest]) -> list[list[Delivery]]:
        if self.page_error is not None:
            raise self.page_error
        self.pages_read += len(requests)
        return await super().pages(requests)

    async def tidy(self) -> Tidied:
        self.slices += 1
        if self.tidy_error is not None:
            raise self.tidy_error
        return await super().tidy()

    def _fail(self) -> None:
        raise StoreError("the disk is broken")

    def _full(self) -> None:
        raise StoreFull("no room left on the disk")


class Lane(Disk):
    """A harness whose commits go through the committer. `failures` counts what it was told."""

    store: FaultyStore

    def __init__(
        self,
        path: Path,
        wall: float = 1_700_000_000.0,
        settings: Settings | None = None,
        durability: str = "os",
    ) -> None:
        self.failures = 0
        super().__init__(path, wall, settings, durability)
        self.committer = Committer(self.store, self.broker, self.flush, self._on_failure)
        self._runner.run(self._start())

    def make_store(self, durability: str) -> SqliteStore:
        return FaultyStore(self.path, durability, lambda: self.wall, self)

    def be_patient(self) -> None:
        """Keep the latest operations back for a while, as under a load that settles them soon."""
        self.broker.journal.patient = True
        self.broker.journal._watched = -(1 << 40)  # it isn't thought over

    def tick(self) -> float:
        """What the committer takes for `time.monotonic`."""
        self.now += TICK
        return self.now

    async def _start(self) -> None:
        self.committer.start()

    def _on_failure(self) -> None:
        self.failures += 1

    def __exit__(self, *_: object) -> None:
        self.stop()
        super().__exit__()

    def stop(self) -> None:
        """As the broker's end does: what is left is committed, if it can be."""
        if self.store.held:
            self.store.release()
        self._runner.run(self.committer.stop())

    def commit(self) -> None:
        """Until the committer has nothing to do, or waits for the test."""
        self._runner.run(self._rest())

    async def _rest(self) -> None:
        quiet = 0
        for _ in range(TURNS):
            self.committer.kick()
            await asyncio.sleep(0)
            self.flush()
            busy = (
                self.store.held or not self.broker.journal.empty() or self.broker.context.requests
            )
            quiet = 0 if busy else quiet + 1
            if quiet == 8:
                return

    def turn(self, count: int = 1) -> None:
        """So many turns of the loop."""

        async def turn() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self._runner.run(turn())


class Source:
    """A publisher that keeps what isn't acknowledged, and sends it again."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.client: FakeClient | None = None
        self.pending: dict[int, tuple[int, int, str, bool]] = {}  # number, QoS, topic, released
        self.qos: dict[int, int] = {}  # of every number that was ever sent
        self.acked: list[int] = []
        self.refused: list[int] = []
        self._last_id = 0

    def publish(self, number: int, qos: int, topic: str = "a/x", retain: bool = False) -> None:
        """Send a message that says its number; 0 is said by no payload."""
        self._last_id += 1
        self.pending[self._last_id] = (number, qos, topic, retain)
        self.qos[number] = qos
        self._send(self._last_id, False)

    def _send(self, packet_id: int, dup: bool) -> None:
        number, qos, topic, retain = self.pending[packet_id]
        client = self.client
        assert client is not None
        payload = b"%d" % number if number else b""
        client.publish(topic, payload, qos, retain, packet_id, dup)

    def send_again(self) -> None:
        """What isn't acknowledged, on the next connection."""
        for packet_id, (_, _, topic, _) in list(self.pending.items()):
            if topic:
                self._send(packet_id, True)
            else:
                assert self.client is not None
                self.client.send(Pubrel(packet_id))

    def take(self) -> None:
        """Look at what came."""
        client = self.client
        if client is None:
            return
        for packet in client.recv():
            self.learn(packet)
            if isinstance(packet, Pubrec) and packet.reason < 0x80:
                client.send(Pubrel(packet.packet_id))

    def learn(self, packet: Record) -> None:
        """What a packet says of what was sent."""
        if isinstance(packet, Pubrec) and packet.reason < 0x80:
            if packet.packet_id in self.pending:
                number, qos, _, _ = self.pending[packet.packet_id]
                self.pending[packet.packet_id] = (number, qos, "", False)
        elif isinstance(packet, Puback | Pubrec | Pubcomp):
            known = self.pending.pop(packet.packet_id, None)
            if known is not None:
                done = packet.reason < 0x80 or isinstance(packet, Pubcomp)
                (self.acked if done else self.refused).append(known[0])

    def promised(self) -> list[int]:
        """What has to be there: acknowledged, or at least received (QoS 2)."""
        return self.acked + [number for number, _, topic, _ in self.pending.values() if not topic]


class World:
    """The clients of the workload. `steps` are what they do, each in one tick of the broker."""

    def __init__(self) -> None:
        self.source = Source("source")
        self.old = Source("old")  # MQTT 3.1.1
        self.off = Receiver("off")  # has a/#, and is away most of the time
        self.on = Receiver("on")  # has a/#, and is there
        self.member = Receiver("member")  # of $share/g/s
        self.granted: dict[tuple[str, str], bool] = {}  # client, filter: there, as was acknowledged
        self._asked: dict[tuple[str, int], str] = {}  # client, packet id: the filter
        self.retained: list[int] = [0]  # r/1 is one of these
        self.brief: FakeClient | None = None  # somebody whose end is part of the workload

    def steps(self, lane: Disk) -> list[Callable[[], None]]:
        source, old, off, on = self.source, self.old, self.off, self.on
        return [
            lambda: self._receiver(lane, off, "a/#", "$share/h/h"),
            lambda: self._leave(off),
            lambda: self._receiver(lane, on, "a/#"),
            lambda: self._sources(lane),
            lambda: self._publish(source, (1, 1), (2, 2), (3, 1)),
            lambda: self._publish(old, (4, 1), (5, 2)),
            lambda: self._subscribe(on, "b"),
            lambda: self._retain(6, 1),
            lambda: self._retain(7, 2),
            lambda: self._unsubscribe(on, "b"),
            lambda: self._publish(source, (8, 2), (9, 1)),
            lambda: self._heir(lane),
            lambda: self._break(),
            lambda: self._receiver(lane, off),
            lambda: self._answer(off, 3),
            lambda: self._publish(source, (10, 1), (11, 2)),
            lambda: self._answer(off, 4),
            lambda: self._leave(off),
            lambda: self._receiver(lane, self.member, "$share/g/s"),
            lambda: self._leave(self.member),
            lambda: self._publish(source, (12, 1), (13, 2), topic="s"),
            lambda: self._brief(lane, 3600, "a/#"),
            lambda: self._publish(source, (14, 1), (15, 2)),
            lambda: self._brief(lane, 0),
            lambda: self._break(),
            lambda: self._retain(0, 1),
            lambda: self._publish(old, (16, 2), (17, 1)),
            lambda: self._publish(source, (18, 1), (19, 2), (20, 1), (21, 2)),
        ]

    def run(self, lane: Disk, after: Callable[[int], None] | None = None) -> None:
        """All steps; the broker rests after each."""
        for number, step in enumerate(self.steps(lane)):
            step()
            self.settle(lane)
            if after is not None:
                after(number)

    def settle(self, lane: Disk) -> None:
        """Everybody answers what came, until nothing comes any more; `off` only when told to."""
        for _ in range(10):
            lane.commit()
            before = len(self.on.got), len(self.source.pending), len(self.old.pending)
            self.look()
            if before == (len(self.on.got), len(self.source.pending), len(self.old.pending)):
                break
        lane.commit()
        self.look()

    def look(self) -> None:
        """Take notice of what came."""
        self.source.take()
        self.old.take()
        for receiver in (self.on, self.off, self.member):
            if receiver.client is not None:
                self._notice(receiver)
        if self.on.client is not None:
            self.on.work()

    def _notice(self, receiver: Receiver) -> None:
        client = receiver.client
        assert client is not None
        rest = []
        for packet in client.received:
            if isinstance(packet, Suback | Unsuback):
                key = (receiver.client_id, self._asked[receiver.client_id, packet.packet_id])
                if packet.reasons[0] <= 2:  # not where there was no such subscription
                    self.granted[key] = isinstance(packet, Suback)
            else:
                rest.append(packet)
        client.received = rest

    def _open(
        self, lane: Disk, client_id: str, expiry: int, will: Will | None = None
    ) -> FakeClient:
        client = lane.open()
        client.auto_ack = False
        client.client_id = client_id
        properties = Properties()
        properties.session_expiry_interval = expiry
        client.send(Connect("MQTT", 5, False, 0, client_id, will, None, None, properties))
        return client

    def _receiver(self, lane: Disk, receiver: Receiver, *filters: str) -> None:
        receiver.client = self._open(lane, receiver.client_id, 3600)
        for topic_filter in filters:
            self._subscribe(receiver, topic_filter)

    def _subscribe(self, receiver: Receiver, topic_filter: str) -> None:
        client = receiver.client
        if client is not None and not client.closed:
            packet_id = client.next_id()
            self._asked[receiver.client_id, packet_id] = topic_filter
            client.send(Subscribe(packet_id, [Filter(topic_filter, 2)], 0))

    def _unsubscribe(self, receiver: Receiver, topic_filter: str) -> None:
        client = receiver.client
        if client is not None and not client.closed:
            packet_id = client.next_id()
            self._asked[receiver.client_id, packet_id] = topic_filter
            self.granted.pop((receiver.client_id, topic_filter), None)  # it may be there or not
            client.send(Unsubscribe(packet_id, [topic_filter]))

    def _leave(self, receiver: Receiver) -> None:
        if receiver.client is not None:
            receiver.drop()

    def _sources(self, lane: Disk) -> None:
        self.source.client = self._open(lane, "source", 3600)
        client = self.old.client = lane.open(4)
        client.auto_ack = False
        client.send(Connect("MQTT", 4, False, 0, "old", None, None, None, Properties()))

    def _publish(self, source: Source, *what: tuple[int, int], topic: str = "a/x") -> None:
        if source.client is not None and not source.client.closed:
            for number, qos in what:
                source.publish(number, qos, topic)

    def _retain(self, number: int, qos: int) -> None:
        source = self.source
        if source.client is not None and not source.client.closed:
            self.retained.append(number)
            source.publish(number, qos, "r/1", retain=True)

    def _answer(self, receiver: Receiver, limit: int) -> None:
        if receiver.client is not None and not receiver.client.closed:
            receiver.work(limit)

    def _heir(self, lane: Disk) -> None:
        self.brief = self._open(lane, "heir", 3600, Will("a/will", b"100", 1, False))

    def _brief(self, lane: Disk, expiry: int, *filters: str) -> None:
        if self.brief is not None:
            self.brief.drop()
        self.brief = self._open(lane, "brief", expiry)
        for topic_filter in filters:
            self.brief.send(Subscribe(1, [Filter(topic_filter, 2)], 0))

    def _break(self) -> None:
        if self.brief is not None:
            self.brief.drop()
            self.brief = None

    # What has to be so.

    def copy(self) -> "World":
        """What everybody knows now, and no connection."""
        clients = []
        holders: list[Source | Receiver] = [self.source, self.old, self.on, self.off, self.member]
        for holder in holders:
            clients.append(holder.client)
            holder.client = None
        brief, self.brief = self.brief, None
        other = copy.deepcopy(self)
        for holder, client in zip(holders, clients, strict=True):
            holder.client = client
        self.brief = brief
        for mine, its in ((self.source, other.source), (self.old, other.old)):
            for packet in mine.client.received if mine.client is not None else ():
                its.learn(packet)
        return other

    def check(self, disk: Disk) -> None:
        """On a broker that has just started on what was left."""
        source, old = self.source, self.old
        sessions = disk.broker.sessions
        for (client_id, topic_filter), there in self.granted.items():
            found = client_id in sessions and topic_filter in sessions[client_id].subscriptions
            assert found == there, f"{client_id} {topic_filter}"
        retained = [int(each.payload) for each in disk.broker.retained.cursor("r/1").take(100)]
        assert (retained or [0])[0] in self.possible()
        assert_sound(disk)
        before = source.promised() + old.promised()
        self.send_again(disk)
        assert not source.pending
        assert not old.pending
        promised = set(source.acked + old.acked)
        assert promised >= set(before)
        of_all = promised - {0, 6, 7, 12, 13}
        for receiver, topic_filter, numbers in (
            (self.on, "a/#", of_all),
            (self.off, "a/#", of_all),
            (self.member, "$share/g/s", promised & {12, 13}),
        ):
            session = sessions.get(receiver.client_id)
            if session is not None:
                there = topic_filter in session.subscriptions
                receiver.connect(disk).drain(disk)
                self._check_got(receiver, numbers if there else set())
        for name in ("brief", "heir", "source", "old"):
            if name in sessions:
                disk.client(name, expiry=0).disconnect()  # a clean start
        disk.commit()
        while disk.tidy():
            pass
        assert rows_in(disk) == EMPTY
        assert disk.broker.balance() == (0, 0)
        assert disk.broker.counters.bugs == 0
        assert_sound(disk)

    def possible(self) -> list[int]:
        """What may be retained: the last that was acknowledged, or anything sent after it."""
        known = [place for place, number in enumerate(self.retained) if number in self.source.acked]
        return self.retained[max(known, default=0) :]

    def send_again(self, disk: Disk) -> None:
        """The publishers come back and finish."""
        if not self.source.pending and not self.old.pending:
            return
        self._sources(disk)
        disk.commit()
        self.look()
        self.source.send_again()
        self.old.send_again()
        for _ in range(5):
            disk.commit()
            self.source.take()
            self.old.take()

    def _check_got(self, receiver: Receiver, promised: set[int]) -> None:
        got = [number for number in receiver.got if number != 100]
        qos = self.source.qos | self.old.qos
        assert promised <= set(got), f"{receiver.client_id} lost {promised - set(got)}"
        twice = [number for number in set(got) if qos[number] == 2 and got.count(number) > 1]
        assert not twice, f"{receiver.client_id} got twice {twice}"
        # [MQTT-4.6.0-5] [MQTT-4.6.0-6] of one publisher, one topic and one QoS, first sendings
        for sent in (self.source.qos, self.old.qos):
            for level in (1, 2):
                of_one = [n for n in dict.fromkeys(got) if sent.get(n) == level]
                assert of_one == [n for n in sent if n in of_one]


def left_behind(path: Path, name: str) -> Path:
    """What kill -9 leaves, under another name."""
    place = path.parent / name
    place.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", place)
    return place / path.name
