"""The port to whatever keeps state beyond the process.

Owns: the three calls a store has to answer. They are the whole contract; the core never sees a
store, it gathers operations in its journal and hears which batches are durable.

Must not know: connections, the loop's transports, configuration files.

Invariants a store has to hold: batches are committed one at a time, in the order given, each as a
whole or not at all; when `commit` returns, the batch survives what the store promises to survive;
when it raises, nothing later is committed either, since the order would be lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable

from mqttd.core.broker import Broker
from mqttd.core.journal import Batch


class StoreError(Exception):
    """The store can't be used, or not any longer; the text says why, to the operator."""


class Store(ABC):
    """A place to keep sessions, queues and retained messages."""

    durable: bool
    """Whether anything outlives the process. If not, the core records nothing and holds nothing."""

    behind: bool = False
    """Whether acknowledgements may leave before their commit, at most one batch ahead of it."""

    @abstractmethod
    async def load(self, broker: Broker) -> None:
        """Put what was kept into a fresh broker; called once, before anybody may connect."""

    @abstractmethod
    def commit(self, batch: Batch) -> Awaitable[None]:
        """Make the operations of `batch` durable, all of them or none.

        The core goes on meanwhile: what is to be known of the batch and the broker is read before
        this call gives control back to the loop; where `behind` is set, before it returns.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of files and threads; everything committed stays."""
