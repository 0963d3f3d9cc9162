"""The port to whatever keeps state beyond the process.

Owns: the calls a store has to answer. They are the whole contract; the core never sees a store, it
gathers operations in its journal and hears which batches are durable.

Must not know: connections, the loop's transports, configuration files.

Invariants a store has to hold: batches are committed one at a time, in the order given, each as a
whole or not at all; when `commit` returns, the batch survives what the store promises to survive;
when it raises, nothing later is committed either, since the order would be lost, until a `retry`
of that batch has succeeded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable

from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.session import PageRequest


class StoreError(Exception):
    """The store can't be used, or not any longer; the text says why, to the operator."""


class StoreFull(StoreError):
    """There is no room for a batch: none of it was kept, and `Store.retry` tries it again."""


class Tidied:
    """What a slice of housekeeping found."""

    def __init__(self, expired: list[tuple[int, int]], more: bool) -> None:
        self.expired = expired  # owner and serial of deliveries of messages that expired
        self.more = more  # there is enough to do for another slice at once


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
        StoreFull where the batch has to be tried again; any other exception is the end.
        """

    @abstractmethod
    def retry(self) -> Awaitable[None]:
        """Try the batch again that found no room. Raises like `commit`."""

    @abstractmethod
    async def pages(self, requests: list[PageRequest]) -> list[list[Delivery]]:
        """A page for each request, of what is durable now; short or empty where there is less."""

    @abstractmethod
    async def tidy(self) -> Tidied:
        """One slice of housekeeping, short enough for a commit to wait for it."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of files and threads; everything committed stays."""
