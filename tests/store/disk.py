"""The in-memory clients of `tests.harness` around a broker whose journal goes to a real file.

`Disk` is such a harness: what `commit` reports is in the file. `crash` is what kill -9 leaves, at
that very instant: the files as they are, and a broker that starts on them. `state_of` is all of a
broker that has to survive, as plain values. `Receiver` is a client that survives the broker.
"""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.packets import (
    Connack,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
)
from mqttd.core.session import PageRequest, Session
from mqttd.core.settings import Settings
from mqttd.store import admin
from mqttd.store.sqlite import SqliteStore
from tests.harness import FakeClient, Harness


class Disk(Harness):
    """A harness on a file; `wall` is the time of day, which goes on while no broker runs."""

    def __init__(
        self,
        path: Path,
        wall: float = 1_700_000_000.0,
        settings: Settings | None = None,
        durability: str = "full",
    ) -> None:
        super().__init__(settings, durable=True)
        self.path = path
        self.settings = settings
        self._ahead = wall - self.now
        self._runner = asyncio.Runner()
        self.store = self.make_store(durability)
        try:
            self._runner.run(self.store.load(self.broker))
        except BaseException:
            self._runner.close()
            raise

    def make_store(self, durability: str) -> SqliteStore:
        return SqliteStore(self.path, durability, wall=lambda: self.wall, clock=lambda: self.now)

    @property
    def wall(self) -> float:
        return self.now + self._ahead

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.store.close())
        self._runner.close()

    def write(self, batch: Batch) -> None:
        async def commit() -> None:
            await self.store.commit(batch)

        self._runner.run(commit())

    def retry(self) -> None:
        async def retry() -> None:
            await self.store.retry()

        self._runner.run(retry())

    def commit(self) -> None:
        """Until nothing is left to write: what is released may do something durable again."""
        while True:
            batch = self.broker.take_batch()
            if batch is not None:
                if batch.ops:
                    self.write(batch)
                self.broker.committed(batch.seq, self.now)
            requests = self.broker.take_requests()
            if batch is None and not requests:
                return
            self.serve(requests)

    def serve(self, requests: list[PageRequest]) -> None:
        """Bring the pages that were requested."""
        if requests:
            for request, page in zip(requests, self.read(requests), strict=True):
                self.broker.paged(request, page, self.now)
        self.flush()

    def read(self, requests: list[PageRequest]) -> list[list[Delivery]]:
        return self._runner.run(self.store.pages(requests))

    def tidy(self) -> bool:
        """A slice of housekeeping; whether it wants another one."""
        tidied = self._runner.run(self.store.tidy())
        self.broker.expired(tidied.expired)
        self.commit()
        return tidied.more

    def queued(self, session: Session) -> list[Delivery]:
        """All that waits for a session, the part of it included that only the store has."""
        queue = session.queue
        if queue is None:
            return []
        request = PageRequest(queue, session, None)
        request.serials = [serial for chunk in queue.chunks for serial in chunk]
        tail = self.read([request])[0] if queue.tail else []
        assert len(tail) == queue.tail
        return [*queue.head, *tail]

    @contextlib.contextmanager
    def crash(self, away: float = 0.0) -> Iterator["Disk"]:
        """A second broker on what this one would leave if it died now, `away` seconds later."""
        place = self.path.parent / "crashed"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", place)
        with Disk(place / self.path.name, self.wall + away, self.settings) as other:
            yield other

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            return db.execute(query).fetchall()


def delivery_state(delivery: Delivery) -> tuple[object, ...]:
    message = delivery.message
    return (
        message.topic,
        message.payload,
        message.properties,
        message.origin,
        delivery.packet_id,
        delivery.state,
        delivery.qos,
        delivery.retain,
        delivery.identifiers,
    )


def state_of(harness: Disk) -> dict[str, Any]:
    """Everything that a restart may not change; instants relative to now."""
    broker = harness.broker
    sessions: dict[str, Any] = {}
    for client_id, session in broker.sessions.items():
        if not session.durable:
            continue
        sessions[client_id] = {
            "owner": session.owner,
            "expiry": session.expiry_interval,
            "subscriptions": [
                (
                    each.topic_filter,
                    each.qos,
                    each.no_local,
                    each.retain_as_published,
                    each.retain_handling,
                    each.identifier,
                )
                for each in session.subscriptions.values()
            ],
            "window": [delivery_state(each) for each in session.window.deliveries.values()],
            "queue": [delivery_state(each) for each in harness.queued(session)],
            "inbound": sorted(session.inbound),
            "will": session.will,
        }
    retained = {
        message.topic: (message.payload, message.qos, message.properties, message.origin)
        for message in broker.retained.cursor("#").take(1 << 30)
    }
    tables = {name: dict(broker.tables.items(name)) for name in broker.tables.rows}
    return {"sessions": sessions, "retained": retained, "tables": tables}


def away(disk: Disk, client_id: str, *filters: str, qos: int = 1, expiry: int = 3600) -> None:
    """A persistent session that subscribed and left."""
    client = disk.client(client_id, expiry=expiry)
    for topic_filter in filters:
        subscribe(disk, client, topic_filter, qos)
    client.disconnect()
    disk.commit()


def subscribe(disk: Disk, client: FakeClient, topic_filter: str, qos: int = 1) -> None:
    """Subscribe for good: the SUBACK came after the commit."""
    client.send(Subscribe(client.next_id(), [Filter(topic_filter, qos)], 0))
    disk.commit()
    assert client.take_first(Suback).reasons == [qos]


def payloads(client: FakeClient) -> list[bytes]:
    """Those of the messages received since the last call."""
    return [message.payload for message in client.messages()]


def fill(
    disk: Disk, topic: str, numbers: Iterable[int], qos: int = 1, size: int = 0, expiry: int = -1
) -> None:
    """Publish a message for each number, all acknowledged; its payload begins with the number."""
    source = disk.client()
    for count, number in enumerate(numbers, 1):
        payload = b"%d" % number
        source.publish(topic, payload.ljust(size, b"."), qos, message_expiry=expiry)
        if not count % 500:
            disk.commit()
    disk.commit()
    if qos:
        last = Puback if qos == 1 else Pubcomp
        assert sum(isinstance(packet, last) for packet in source.recv()) == len(list(numbers))
    source.disconnect()


def number_of(payload: bytes) -> int:
    """What `fill` put into a payload."""
    return int(payload.rstrip(b"."))


def rows_in(disk: Disk, *tables: str) -> dict[str, int]:
    """How many rows the tables of queues have."""
    names = tables or ("deliveries", "messages", "refs")
    return {name: disk.rows(f"SELECT count(*) FROM {name}")[0][0] for name in names}


EMPTY = {"deliveries": 0, "messages": 0, "refs": 0}


def assert_sound(disk: Disk) -> None:
    """The file says nothing that can't be."""
    assert admin.check(disk.path)["findings"] == []


def limited(disk: Disk, pages: int) -> None:
    """The disk is full: the database may not grow by more than this."""
    db = disk.store._db
    assert db is not None
    now = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {now + pages}")


class Receiver:
    """A client that keeps its side of a session: over connections, and over the broker's crashes.

    `got` is what its application saw: a QoS 2 message once for each exchange, QoS 1 as often as it
    came. It answers only when told to.
    """

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.client: FakeClient | None = None
        self.got: list[int] = []
        self.exchanges: set[int] = set()  # QoS 2, PUBREC sent and no PUBREL yet

    def connect(self, disk: Disk, receive_maximum: int = 65535, clean: bool = False) -> Self:
        """Take the session, or make one that lasts an hour."""
        self.client = disk.client(
            self.client_id,
            clean=clean,
            expiry=3600,
            receive_maximum=receive_maximum,
            auto_ack=False,
        )
        if not self.client.connack.session_present:
            self.exchanges.clear()
        disk.commit()
        return self

    def drop(self) -> None:
        """The network breaks; what had come and wasn't looked at is lost."""
        assert self.client is not None
        self.client.drop()
        self.client = None

    def work(self, limit: int = 1 << 30) -> int:
        """Take in and answer what has come, at most `limit` packets; returns how many."""
        client = self.client
        assert client is not None
        packets = client.received[:limit]
        del client.received[:limit]
        for packet in packets:
            if isinstance(packet, Connack) and not packet.session_present:
                self.exchanges.clear()
            elif isinstance(packet, Publish):
                if packet.qos < 2 or packet.packet_id not in self.exchanges:
                    self.got.append(number_of(packet.payload))
                if packet.qos == 1:
                    client.send(Puback(packet.packet_id))
                elif packet.qos == 2:
                    self.exchanges.add(packet.packet_id)
                    client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                self.exchanges.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))
        return len(packets)

    def drain(self, disk: Disk) -> list[int]:
        """Take in and answer until nothing comes any more."""
        disk.commit()
        while self.work():
            disk.commit()
        return self.got
