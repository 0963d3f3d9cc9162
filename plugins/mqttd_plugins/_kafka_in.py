"""The way in from Kafka: records of a consumer to the core, offsets back when they are durable.

Owns: one consumer in its group; of each partition, how far everything is durable here. Offsets are
committed in the background, at most a few times a second, when partitions are taken away, and at
the end: a commit that is missed means records that come again, with the same id.

Must not know: how a connection is made, what becomes of a message.

Invariants: no offset is committed beyond a record that isn't settled; what was settled for an
assignment that is over is not committed for a later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from mqttd_plugins._bridge.remote import Failure, Incoming, Intake, Retry
from mqttd_plugins._bridge.rules import Rule
from mqttd_plugins._kafka import message_of

_COMMIT_S: Final = 0.2
_POLL_MS: Final = 500
_STOPPING_S: Final = 2.0


class Reader:
    """One consumer."""

    def __init__(
        self,
        consumer: Any,
        intake: Intake,
        end: Callable[[Failure], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._consumer = consumer
        self._intake = intake
        self._end = end
        self._failed = failed
        self._rules: dict[str, Rule] = {rule.source: rule for rule in intake.rules}
        self._in_hand = 0
        self._assignment = 0  # grows with each, so that an earlier one can be told
        self._settled: dict[Any, int] = {}  # partition: the offset to begin with next time
        self._works: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Join the group and read, in the background.

        When another member was killed Kafka waits for it for as long as its session lasts, and the
        way out needn't wait for that.
        """
        from aiokafka import ConsumerRebalanceListener

        reader = self

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
            async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
                await reader._commit()
                reader._assignment += 1
                reader._settled.clear()

            async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
                """They begin at their committed offsets by themselves."""

        self._consumer.subscribe(list(self._rules), listener=Listener())
        self._works = [
            asyncio.ensure_future(self._guarded(self._read)),
            asyncio.ensure_future(self._guarded(self._commit_all)),
        ]

    async def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            await work()
        except Exception as error:  # whatever the library comes up with
            self._failed(error)

    async def _read(self) -> None:
        intake = self._intake
        await self._consumer.start()
        while True:
            await intake.room()
            most = max(1, intake.window - self._in_hand)
            found = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=most)
            assignment = self._assignment
            for partition, records in found.items():
                for record in records:
                    self._put(assignment, partition, record)

    def _put(self, assignment: int, partition: Any, record: Any) -> None:
        message, headers = message_of(record.topic, record.value, record.headers, time.time())

        def settle(failure: Failure | None) -> None:
            self._in_hand -= 1
            if failure is not None:
                self._end(Retry(failure.reason))
                self._assignment += 1
            elif assignment == self._assignment:
                self._settled[partition] = record.offset + 1

        self._in_hand += 1
        self._intake.put(
            Incoming(
                self._rules[record.topic],
                message,
                settle,
                key=(record.key or b"").decode(errors="replace"),
                id=f"{record.topic}-{record.partition}-{record.offset}",
                headers=headers,
            )
        )

    async def _commit_all(self) -> None:
        while True:
            await asyncio.sleep(_COMMIT_S)
            await self._commit()

    async def _commit(self) -> None:
        """Commit what is settled; what fails is committed with the next."""
        from aiokafka.errors import IllegalStateError, KafkaError

        offsets, self._settled = self._settled, {}
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except IllegalStateError:  # the partition is another's by now, who reads it again
            return
        except KafkaError as error:
            if not error.retriable:
                return
            self._settled = offsets | self._settled

    async def close(self) -> None:
        """Commit what is settled, leave the group."""
        for work in self._works:
            work.cancel()
        await asyncio.gather(*self._works, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_STOPPING_S):
                await self._commit()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_STOPPING_S):
                await self._consumer.stop()
