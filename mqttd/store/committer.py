"""The lane beside the loop's tick: the journal's operations into the store, the barrier back.

Owns: the one task that commits. It takes everything gathered while the last commit ran as the next
batch, so that a busy broker commits large groups and a quiet one commits at once, without a timer.

Must not know: what the operations are, who waits for them.

Invariants: at most one commit is under way; batches are committed in order; the core hears of a
batch only after the store said that it is durable; after a commit failed nothing is ever reported
durable again, and whoever owns the broker is told, since it can keep no promise any more. A bug in
what the core does with the news costs nobody else their acknowledgements; twice in a row, it is a
failure like that of the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from mqttd.core.broker import Broker
from mqttd.core.journal import Batch
from mqttd.store.base import Store, StoreError

logger: Final = logging.getLogger("mqttd.store")


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
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def kick(self) -> None:
        """Called every tick: commit, if there is something to commit."""
        if not self._broker.journal.empty():
            self._wanted.set()

    async def stop(self) -> None:
        """Commit what is left, and end."""
        self._ended = True
        self._wanted.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        broker = self._broker
        while not self.failed:
            batch = broker.take_batch()
            if batch is None:
                if self._ended:
                    return
                self._wanted.clear()
                await self._wanted.wait()
                continue
            try:
                commit = self._store.commit(batch) if batch.ops else None
                if self._store.behind:
                    self._report(batch)
                if commit is not None:
                    await commit
            except Exception as error:
                # What the store itself says is for the operator; a traceback is for a bug.
                trace = not isinstance(error, StoreError)
                logger.critical(
                    "the store can't commit, acknowledgements stop here: %s", error, exc_info=trace
                )
                self._fail()
                return
            if not self._store.behind:
                self._report(batch)

    def _report(self, batch: Batch) -> None:
        try:
            self._broker.committed(batch.seq, monotonic())
            self._confused = False
        except Exception:
            # The next batch's news releases what this one's should have, if anything can.
            logger.exception("bug: exception out of the core after batch %d", batch.seq)
            if self._confused:
                logger.critical("acknowledgements stop here: the core fails again and again")
                self._fail()
            self._confused = True
        self._on_committed()

    def _fail(self) -> None:
        self.failed = True
        self._on_failure()
