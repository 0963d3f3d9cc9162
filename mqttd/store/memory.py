"""The store that keeps nothing: state lives as long as the process.

Owns: nothing, which is the point. It says that it isn't durable, so the core raises no barrier and
every acknowledgement leaves in the tick of its request.

Must not know: anything.
"""

from __future__ import annotations

from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.session import PageRequest
from mqttd.store.base import Store, Tidied


class MemoryStore(Store):
    """Keeps nothing and commits at once."""

    durable = False

    async def load(self, broker: Broker) -> None:
        """There is nothing to load."""

    async def commit(self, batch: Batch) -> None:
        """There is nothing to write."""

    async def retry(self) -> None:
        """There is nothing that could have failed."""

    async def pages(self, requests: list[PageRequest]) -> list[list[Delivery]]:
        """There is nothing to read; nobody asks, since no queue leaves anything here."""
        return [[] for _ in requests]

    async def tidy(self) -> Tidied:
        """There is nothing to tidy."""
        return Tidied([], False)

    async def close(self) -> None:
        """There is nothing to let go of."""
