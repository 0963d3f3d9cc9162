"""The commit barrier: what is acknowledged was durable before."""

import asyncio
import logging
from typing import Any, NoReturn

import pytest

from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch, Op
from mqttd.core.packets import Connack, Connect, Filter, Puback, Pubrec, Pubrel, Subscribe
from mqttd.core.properties import Properties
from mqttd.core.session import PageRequest
from mqttd.store.base import Store, Tidied
from mqttd.store.committer import Committer
from mqttd.store.memory import MemoryStore
from tests.net.kit import PATIENCE, Wire, loopback, running, until


class SlowStore(Store):
    """Durable, in that it says so; commits when the test lets it."""

    durable = True

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.started = 0
        self.closed = False
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, broker: Broker) -> None:
        pass

    async def commit(self, batch: Batch) -> None:
        assert not self.closed
        self.started += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.batches.append(batch)

    async def retry(self) -> None:
        raise AssertionError("nothing was refused")

    async def pages(self, requests: list[PageRequest]) -> list[list[Delivery]]:
        return [[] for _ in requests]

    async def tidy(self) -> Tidied:
        return Tidied([], False)

    async def close(self) -> None:
        self.closed = True


async def durable_client(wire: Wire, client_id: str) -> None:
    properties = Properties()
    properties.session_expiry_interval = 3600
    wire.send(Connect("MQTT", 5, False, 0, client_id, None, None, None, properties))
    await wire.receive(Connack)


CONFIG: dict[str, object] = {"listeners": [loopback()]}


def port(app: object) -> int:
    return app.listeners[0].port  # type: ignore[attr-defined,no-any-return]


async def test_no_puback_before_the_commit() -> None:
    store = SlowStore()
    async with running(CONFIG, store) as app:
        async with await Wire.open(port(app)) as away:
            await durable_client(away, "away")
            await away.subscribe("a", 1)
        await until(lambda: not app.broker.connections)
        async with await Wire.open(port(app)) as source:
            await source.connect("source")
            store.gate.clear()
            source.publish("a", b"precious", 1, 7)
            source.send(b"\xc0\x00")
            await until(lambda: store.started > len(store.batches))
            # The ping overtakes: it promises nothing.
            async with asyncio.timeout(PATIENCE):
                assert await source.reader.readexactly(2) == b"\xd0\x00"
            store.gate.set()
            assert (await source.receive(Puback)).packet_id == 7
            assert store.batches


async def test_qos_2_with_commits_in_between() -> None:
    store = SlowStore()
    async with running(CONFIG, store) as app, await Wire.open(port(app)) as wire:
        await durable_client(wire, "a")
        await wire.subscribe("a", 2)
        wire.publish("a", b"once", 2, 7)
        await wire.receive(Pubrec)
        wire.send(Pubrel(7))
        seen = {type(await wire.receive(object)).__name__ for _ in range(2)}
        assert seen == {"Pubcomp", "Publish"}


async def test_what_gathers_during_a_commit_is_one_batch() -> None:
    store = SlowStore()
    async with running(CONFIG, store) as app:
        async with await Wire.open(port(app)) as away:
            await durable_client(away, "away")
            await away.subscribe("a", 1)
        await until(lambda: not app.broker.connections)
        async with await Wire.open(port(app)) as source:
            await source.connect("source")
            before = len(store.batches)
            store.gate.clear()
            source.publish("a", b"first", 1, 1)
            await until(lambda: store.started > before)
            for number in range(2, 102):
                source.publish("a", b"more", 1, number)
            await until(lambda: app.broker.counters.publish_received == 101)
            store.gate.set()
            for number in range(1, 102):
                assert (await source.receive(Puback)).packet_id == number
            assert len(store.batches) == before + 2


async def test_a_stop_commits_what_is_left() -> None:
    store = SlowStore()
    async with running(CONFIG, store) as app, await Wire.open(port(app)) as wire:
        await durable_client(wire, "a")
        await app.stop(0.1)
        assert store.closed
        assert store.batches
        assert not store.started > len(store.batches)


async def test_after_a_failed_commit_nothing_is_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = SlowStore()
    with caplog.at_level(logging.CRITICAL, "mqttd.store"):
        async with running(CONFIG, store) as app, await Wire.open(port(app)) as wire:
            await durable_client(wire, "a")
            await wire.subscribe("a", 1)
            store.error = OSError("disk full")
            wire.send(Subscribe(2, [Filter("b", 1, False, False, 0)]))
            wire.send(b"\xc0\x00")
            async with asyncio.timeout(PATIENCE):
                assert await wire.reader.readexactly(2) == b"\xd0\x00"
            await until(lambda: caplog.records)
            store.error = None
            wire.send(b"\xc0\x00")
            async with asyncio.timeout(PATIENCE):
                assert await wire.reader.readexactly(2) == b"\xd0\x00"
    assert "can't commit" in caplog.text


class ConfusedBroker:
    """A broker with endless batches, whose core fails on the news of some of them."""

    def __init__(self, *fails: int) -> None:
        self.fails = fails
        self.heard: list[int] = []
        self.last = 0
        self.journal = self
        self.context = self
        self.requests: list[PageRequest] = []
        self.refusing = False
        self.patient = False

    def empty(self) -> bool:
        return self.last == 5

    def bury(self, now: float) -> int:
        return 0

    def take_batch(self, may_wait: bool = False) -> Batch | None:
        if self.empty():
            return None
        self.last += 1
        return Batch(self.last, [], [], 0)

    def take_requests(self) -> list[PageRequest]:
        return []

    def refuse(self, code: int, now: float) -> None:
        self.refusing = True

    def committed(self, seq: int, now: float) -> None:
        self.heard.append(seq)
        if seq in self.fails:
            raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("fails", "heard", "failures"),
    [((2,), [1, 2, 3, 4, 5], 0), ((1, 3, 5), [1, 2, 3, 4, 5], 0), ((2, 3), [1, 2, 3], 1)],
)
@pytest.mark.parametrize("behind", [False, True])
async def test_a_bug_behind_the_barrier_does_not_stop_the_lane(
    fails: tuple[int, ...],
    heard: list[int],
    failures: int,
    behind: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = SlowStore()
    store.behind = behind
    broker: Any = ConfusedBroker(*fails)
    flushed: list[None] = []
    failed: list[None] = []
    committer = Committer(store, broker, lambda: flushed.append(None), lambda: failed.append(None))
    with caplog.at_level(logging.ERROR, "mqttd.store"):
        committer.start()
        await committer.stop()
    assert broker.heard == heard
    # Who was released before the bug isn't kept waiting, nor who was refused in the end.
    assert len(flushed) == len(heard) + failures
    assert len(failed) == failures
    assert committer.failed == broker.refusing == bool(failures)
    assert caplog.text.count("bug: exception out of the core") == len(set(fails) & set(heard))


async def test_a_store_that_cannot_even_begin_is_a_failure() -> None:
    class Unready(SlowStore):
        def commit(self, batch: Batch) -> NoReturn:
            raise RuntimeError("can't be encoded")

    broker: Any = ConfusedBroker()
    broker.take_batch = lambda _: Batch(1, [Op(0, "", "", 0)], [], 0)
    failed: list[None] = []
    committer = Committer(Unready(), broker, lambda: None, lambda: failed.append(None))
    committer.start()
    await committer.stop()
    assert failed
    assert not broker.heard


async def test_a_store_that_writes_behind_promises_nothing() -> None:
    store = SlowStore()
    store.behind = True
    async with running(CONFIG, store) as app, await Wire.open(port(app)) as wire:
        await durable_client(wire, "a")
        await until(lambda: store.batches)
        store.gate.clear()
        await wire.subscribe("a", 1)  # its SUBACK came, the commit is under way
        assert store.started > len(store.batches)
        store.gate.set()
    assert store.started == len(store.batches)


async def test_the_store_that_keeps_nothing() -> None:
    store = MemoryStore()
    broker = Broker()
    await store.load(broker)
    await store.commit(Batch(1, [], [], 0))
    await store.retry()
    assert await store.pages([]) == []
    tidied = await store.tidy()
    assert not tidied.more
    assert not tidied.expired
    await store.close()
    assert not store.durable
    assert not broker.sessions
