"""The store that keeps nothing: state lives as long as the process.

Owns: nothing, which is the point. It says that it isn't durable, so the core raises no barrier and
every acknowledgement leaves in the tick of its request.

Must not know: anything.
"""

from __future__ import annotations

from mqttd.core.broker import Broker
from mqttd.core.journal import Batch
from mqttd.store.base import Store


class MemoryStore(Store):
    """Keeps nothing and commits at once."""

    durable = False

    async def load(self, broker: Broker) -> None:
        """There is nothing to load."""

    async def commit(self, batch: Batch) -> None:
        """There is nothing to write."""

    async def close(self) -> None:
        """There is nothing to let go of."""
