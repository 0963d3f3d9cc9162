"""The way out to Kafka: items to a producer, its answers to the core.

Owns: one producer; which topics are there; what is known of topics that refuse batches; which
record goes to which partition, and into which batch.

The items of a call become one batch for each partition, or several where they don't fit. That
costs a small part of what the library takes for one record at a time, with a future for each. The
partition of a key is the one that Kafka's own clients choose. One batch of a partition may wait
for its turn; the next one waits in `send`, so what comes meanwhile makes the next batches large.

Kafka refuses a batch as a whole, for what one record in it is or for the size of all of it. Whose
fault it is shows only when a record goes alone. So the topic of a refused batch is remembered, and
later connections send to it one record at a time: what is refused then is answered for itself.

After any refusal the producer is at its end: Kafka waits for the number of the batch that it didn't
take, and would take no later one.

A topic that the configuration names and that has gone, or may not be written to any more, is no
fault of a message: the messages wait, and the connection is refused. A topic that is made of what a
publisher chose is the message's own.

Must not know: rules, how a connection is made.

Invariants: no item is answered by a producer that was given up, except by the refusal that ended
it; of one topic that isn't there all items of one call are refused, so none overtakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from mqttd_plugins._bridge.remote import Done, Failure, Item, Poison, Refused, Retry
from mqttd_plugins._kafka import RecordHeaders, record_headers, record_size, record_topic

_LOOK_S: Final = 1.0  # for a topic that may be in the making
_ABSENT_S: Final = 5.0  # how long a topic that wasn't there isn't looked for again
_STOPPING_S: Final = 2.0
_PLACES: Final = 10_000  # keys whose partition is remembered
_REMEMBERED: Final = 512  # bytes of such a key: publishers choose them
# Not the records' fault: the producer's, or the cluster's.
_SESSION: Final = frozenset(
    {
        "DuplicateSequenceNumber",
        "InvalidProducerEpoch",
        "InvalidProducerIdMapping",
        "KafkaConnectionError",
        "KafkaTimeoutError",
        "NodeNotReadyError",
        "OutOfOrderSequenceNumber",
        "ProducerClosed",
        "ProducerFenced",
        "RequestTimedOutError",
        "UnknownProducerId",
    }
)


class Learnt:
    """What outlives a connection."""

    def __init__(self) -> None:
        self.alone: set[str] = set()  # topics that take one record at a time


class _Record:
    """An item as Kafka gets it."""

    __slots__ = ("headers", "item", "key")

    def __init__(self, item: Item, key: bytes, headers: RecordHeaders) -> None:
        self.item = item
        self.key = key
        self.headers = headers


class Writer:
    """One producer."""

    def __init__(
        self,
        producer: Any,
        learnt: Learnt,
        timeout_s: float,
        largest: int,
        end: Callable[[Failure], None],
        named: frozenset[str] = frozenset(),
    ) -> None:
        """`largest`: bytes of a record; `named`: topics that stand in the configuration."""
        from aiokafka.partitioner import DefaultPartitioner

        self._producer = producer
        self._learnt = learnt
        self._timeout_s = timeout_s
        self._largest = largest
        self._end = end
        self._named = named
        self._partitioner = DefaultPartitioner()
        self._places: dict[tuple[int, bytes], int] = {}  # by the number of partitions and the key
        self._absent: dict[str, float] = {}  # topic: until when it isn't looked for
        self._given_up = False

    async def answers(self) -> bool:
        """Whether the cluster is there."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return bool(await self._producer.client.force_metadata_update())
        except Exception:
            return False

    async def knows(self, topic: str, again: bool = False) -> bool:
        """Whether the topic is there; Kafka may be about to make it.

        TopicAuthorizationFailedError where we may not know.
        """
        from aiokafka.errors import TopicAuthorizationFailedError

        client = self._producer.client
        if client.cluster.partitions_for_topic(topic) is not None:
            return True
        now = time.monotonic()
        if not again and self._absent.get(topic, 0.0) > now:
            return False
        await client.add_topic(topic)
        while client.cluster.partitions_for_topic(topic) is None:
            if topic in client.cluster.unauthorized_topics:
                raise TopicAuthorizationFailedError(topic)
            if time.monotonic() > now + _LOOK_S:
                self._absent[topic] = time.monotonic() + _ABSENT_S
                return False
            await asyncio.sleep(0.1)
            await client.force_metadata_update()
        self._absent.pop(topic, None)
        return True

    async def send(self, items: Sequence[Item], done: Done) -> None:
        """Hand the items to the producer; returns when it may take more."""
        missing: dict[str, Failure | None] = {}
        batches: dict[tuple[str, int], list[_Record]] = {}
        wall = time.time()
        for item in items:
            try:
                topic = record_topic(item)
                record = self._record(item, wall)
            except Poison as poison:
                done(item, poison)
                continue
            if topic not in missing:
                missing[topic] = await self._missing(topic)
            failure = missing[topic]
            if failure is not None:
                if topic in self._named:
                    failure = Refused(failure.reason, item.place)
                    self._stop(failure)
                done(item, failure)
                continue
            partition = self._partition(topic, record.key)
            batches.setdefault((topic, partition), []).append(record)
        for (topic, partition), records in batches.items():
            if topic in self._learnt.alone:
                for record in records:
                    if not await self._send_alone(topic, partition, record, done):
                        return
            elif not await self._send(topic, partition, records, done):
                return

    def _record(self, item: Item, wall: float) -> _Record:
        key = item.key.encode()
        headers = record_headers(item, wall)
        size = record_size(key, item.payload, headers)
        if size > self._largest:
            raise Poison(f"too large: {size} bytes, and max_message_size is {self._largest}")
        return _Record(item, key, headers)

    def _partition(self, topic: str, key: bytes) -> int:
        there = self._producer.client.cluster.partitions_for_topic(topic)
        place = self._places.get((len(there), key))
        if place is None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            place = self._partitioner(key, sorted(there), [])
            if len(key) <= _REMEMBERED:
                self._places[len(there), key] = place
        return place

    async def _missing(self, topic: str) -> Failure | None:
        from aiokafka.errors import TopicAuthorizationFailedError

        try:
            there = await self.knows(topic)
        except TopicAuthorizationFailedError:
            return Retry(_no_right(topic))
        return None if there else Retry(f"there is no topic {topic!r} at Kafka")

    async def _send(
        self, topic: str, partition: int, records: Sequence[_Record], done: Done
    ) -> bool:
        """Whether the producer is of use for more."""
        batch = self._producer.create_batch()
        begun = 0
        for at, record in enumerate(records):
            if not _add(batch, record):  # it is full
                part = records[begun:at]
                if await self._submit(topic, partition, batch, part, done, False) is None:
                    return False
                batch = self._producer.create_batch()
                begun = at
                _add(batch, record)
        part = records[begun:]
        return await self._submit(topic, partition, batch, part, done, False) is not None

    async def _send_alone(self, topic: str, partition: int, record: _Record, done: Done) -> bool:
        batch = self._producer.create_batch()
        _add(batch, record)
        future = await self._submit(topic, partition, batch, [record], done, True)
        if future is not None:
            await asyncio.wait([future])
        return not self._given_up

    async def _submit(
        self,
        topic: str,
        partition: int,
        batch: Any,
        records: Sequence[_Record],
        done: Done,
        alone: bool,
    ) -> asyncio.Future[Any] | None:
        """The answer to a batch that is on its way; None if the producer is at its end."""
        try:
            future: asyncio.Future[Any] = await self._producer.send_batch(
                batch, topic, partition=partition
            )
        except Exception as error:
            self._give_up(error)
            return None

        def answered(future: asyncio.Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            if error is None:
                if not future.cancelled():
                    for record in records:
                        done(record.item, None)
            elif not self._given_up or alone:
                self._refused(topic, records, error, done, alone)

        future.add_done_callback(answered)
        return None if self._given_up else future

    def _refused(
        self, topic: str, records: Sequence[_Record], error: BaseException, done: Done, alone: bool
    ) -> None:
        name, item = type(error).__name__, records[0].item
        if name == "TopicAuthorizationFailedError" and topic in self._named:
            self._stop(Refused(_no_right(topic), item.place))
            for record in records:
                done(record.item, Refused(_no_right(topic), record.item.place))
            return
        if name not in _SESSION:
            if not alone:
                self._learnt.alone.add(topic)
            elif name == "MessageSizeTooLargeError":
                done(item, Poison(f"too large for topic {topic!r}"))
            else:
                done(item, Retry(f"topic {topic!r} refuses it: {_words(error)}"))
        self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._stop(Retry(f"the producer is at its end: {_words(error)}"))

    def _stop(self, failure: Failure) -> None:
        if not self._given_up:
            self._given_up = True
            self._end(failure)

    async def close(self) -> None:
        """Stop at once: what isn't confirmed is sent again by the next producer.

        The library's own `stop` waits until all is delivered, which may be never. It has no other
        way to stop, so the parts that wait are stopped first.
        """
        from aiokafka.errors import ProducerClosed

        self._given_up = True
        producer = self._producer
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_STOPPING_S):
                await producer._sender.close()
        producer._message_accumulator.fail_all(ProducerClosed())
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_STOPPING_S):
                await producer.stop()


def _add(batch: Any, record: _Record) -> bool:
    """Put a record into a batch. The first always fits."""
    added = batch.append(
        timestamp=None, key=record.key, value=record.item.payload, headers=record.headers
    )
    return added is not None


def _no_right(topic: str) -> str:
    return f"Kafka doesn't let us write to topic {topic!r}"


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
