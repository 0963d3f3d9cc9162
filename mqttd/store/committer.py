"""The lane beside the loop's tick: the journal's operations into the store, the barrier back.

Owns: the one task that commits. It takes everything gathered while the last commit ran as the next
batch, so that a busy broker commits large groups and a quiet one commits at once. There is no timer
but one: while clients acknowledge so promptly that most deliveries are settled before they could be
written, it gives them two milliseconds to (docs/decisions/0005).
The pages that queues want are read between two batches. A second task has the store tidy up, a
slice at a time.

Must not know: what the operations are, who waits for them.

Invariants: at most one commit is under way; batches are committed in order; the core hears of a
batch only after the store said that it is durable; after a commit failed nothing is ever reported
durable again, and whoever owns the broker is told, since it can keep no promise any more. A bug in
what the core does with the news costs nobody else their acknowledgements; twice in a row, it is a
failure like that of the store. While the disk is full the core refuses what would have to be
stored, the batch that found no room is tried again and again, and pages that somebody waits for are
read as ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.counters import Durations
from mqttd.core.journal import Batch
from mqttd.core.session import PageRequest
from mqttd.store.base import Store, StoreError, StoreFull

logger: Final = logging.getLogger("mqttd.store")

_PATIENCE_S: Final = 0.002  # between two batches while the journal is patient
_RETRY_S: Final = 0.5  # until a full disk is tried again
_LAST_TRIES: Final = 4  # of these, when the broker is to end meanwhile
_TIDY_S: Final = 1.0  # between two slices of housekeeping when there is little to do
_PAUSE_S: Final = 0.02  # when there is much


class Committer:
    """Commits for one broker. `on_committed` is called when acknowledgements may leave."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        on_committed: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.failed = False
        self._confused = False  # the core failed on the last news
        self._store = store
        self._broker = broker
        self._on_committed = on_committed
        self._on_failure = on_failure
        self._wanted = asyncio.Event()
        self.durations = Durations()
        self.operations = 0  # committed
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._housekeeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run())
        self._housekeeper = loop.create_task(self._keep_house())

    def kick(self) -> None:
        """Called every tick: commit, if there is something to commit."""
        broker = self._broker
        if broker.context.requests or not broker.journal.empty():
            self._wanted.set()

    async def stop(self) -> None:
        """Commit what is left, and end."""
        self._ended = True
        self._wanted.set()
        if self._housekeeper is not None:
            # Between two slices: what is under way in the store's thread ends before the next job.
            self._housekeeper.cancel()
            await asyncio.wait((self._housekeeper,))
            self._housekeeper = None
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        broker = self._broker
        try:
            while True:
                broker.bury(monotonic())
                batch = broker.take_batch(not self._ended)
                if batch is not None:
                    await self._commit(batch)
                requests = broker.take_requests()
                if broker.journal.patient and not broker.journal.empty() and not self._ended:
                    await asyncio.sleep(_PATIENCE_S)
                elif batch is None and not requests and broker.journal.empty():
                    if self._ended:
                        return
                    self._wanted.clear()
                    await self._wanted.wait()
                if requests:
                    await self._serve(requests)
        except Exception as error:
            # What the store itself says is for the operator; a traceback is for a bug.
            trace = not isinstance(error, StoreError)
            logger.critical(
                "the store can't commit, acknowledgements stop here: %s", error, exc_info=trace
            )
            self._fail()

    async def _commit(self, batch: Batch) -> None:
        try:
            commit = self._store.commit(batch) if batch.ops else None
            if self._store.behind:
                self._report(batch)
            if commit is not None:
                began = monotonic()
                await commit
                self.durations.add(monotonic() - began)
                self.operations += len(batch.ops)
        except StoreFull as error:
            await self._wait_for_room(error)
        if not self._store.behind:
            self._report(batch)

    async def _wait_for_room(self, error: StoreFull) -> None:
        """Refuse what would have to be stored until the batch that didn't fit is."""
        logger.error("%s; QoS > 0 for sessions that last is refused until there is", error)
        self._broker.refuse(spec.QUOTA_EXCEEDED, monotonic())
        self._on_committed()
        tries = 0
        while True:
            await self._wait(_RETRY_S)
            try:
                await self._store.retry()
                break
            except StoreFull:
                tries += self._ended
                if tries == _LAST_TRIES:
                    raise
        self._broker.accept()
        logger.warning("there is room again: nothing that was acknowledged is lost")

    async def _wait(self, seconds: float) -> None:
        """Serve pages, and nothing else, for so long."""
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            # Where acknowledgements leave before the commit, what is called durable isn't yet.
            requests = [] if self._store.behind else self._broker.take_requests()
            if requests:
                await self._serve(requests)
            await asyncio.sleep(min(left, _PAUSE_S))

    async def _serve(self, requests: list[PageRequest]) -> None:
        pages = await self._store.pages(requests)
        for request, page in zip(requests, pages, strict=True):
            self._broker.paged(request, page, monotonic())
        self._on_committed()

    async def _keep_house(self) -> None:
        while True:
            try:
                tidied = await self._store.tidy()
                if tidied.expired:
                    self._broker.expired(tidied.expired)
                    self.kick()
            except StoreError as error:
                logger.critical("the store is broken, acknowledgements stop here: %s", error)
                self._fail()
                return
            except Exception:
                logger.exception("bug: housekeeping of the store ends here")
                return
            await asyncio.sleep(_PAUSE_S if tidied.more else _TIDY_S)

    def _report(self, batch: Batch) -> None:
        confused = self._confused
        self._confused = False
        try:
            self._broker.committed(batch.seq, monotonic())
        except Exception:
            # The next batch's news releases what this one's should have, if anything can.
            logger.exception("bug: exception out of the core after batch %d", batch.seq)
            self._confused = True
        self._on_committed()
        if confused and self._confused:
            raise StoreError("the core fails again and again")

    def _fail(self) -> None:
        if self.failed:
            return
        self.failed = True
        try:
            self._broker.refuse(spec.UNSPECIFIED_ERROR, monotonic())
        finally:
            self._on_committed()
        self._on_failure()
