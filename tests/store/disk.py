"""The in-memory clients of `tests.harness` around a broker whose journal goes to a real file.

`Disk` is such a harness: what `commit` reports is in the file. `crash` is what kill -9 leaves, at
that very instant: the files as they are, and a broker that starts on them. `state_of` is all of a
broker that has to survive, as plain values.
"""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.settings import Settings
from mqttd.store.sqlite import SqliteStore
from tests.harness import Harness


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
        self.store = SqliteStore(path, durability, wall=lambda: self.wall, clock=lambda: self.now)
        try:
            self._runner.run(self.store.load(self.broker))
        except BaseException:
            self._runner.close()
            raise

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

    def commit(self) -> None:
        """Until nothing is left to write: what is released may do something durable again."""
        while (batch := self.broker.take_batch()) is not None:
            if batch.ops:
                self.write(batch)
            self.broker.committed(batch.seq, self.now)
            self.flush()

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
        delivery.packet_id,
        delivery.state,
        delivery.qos,
        delivery.retain,
        delivery.identifiers,
    )


def state_of(harness: Harness) -> dict[str, Any]:
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
            "queue": [delivery_state(each) for each in session.queue or ()],
            "inbound": sorted(session.inbound),
            "will": session.will,
        }
    retained = {
        message.topic: (message.payload, message.qos, message.properties, message.origin)
        for message in broker.retained.cursor("#").take(1 << 30)
    }
    return {"sessions": sessions, "retained": retained}
