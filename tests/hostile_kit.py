"""What the hostile tests share: a witness that must notice nothing, and a way to see a leak.

A leak is measured in objects that the garbage collector knows, after the attack was repeated
often enough for caches to fill; nothing here looks at a clock or at the size of the process.
"""

import gc
from collections.abc import Callable

from tests.harness import FakeClient, Harness
from tests.spec.kit import alive, manual


class Witness:
    """A client that is subscribed to everything and was there before the attack."""

    def __init__(self, h: Harness) -> None:
        self.h = h
        self.client: FakeClient = h.client("witness")
        self.client.subscribe("#", qos=2)

    def unharmed(self) -> bool:
        """Nothing arrived, the connection works, and no exception escaped the core."""
        got = self.client.messages()
        assert got == [], got
        assert self.h.broker.counters.bugs == 0
        return alive(self.client)


def growth(h: Harness, attack: Callable[[], object], times: int = 200) -> int:
    """Objects that `times` attacks leave behind once caches are warm."""
    for _ in range(60):
        attack()
    before = settled(h)
    for _ in range(times):
        attack()
    return settled(h) - before


def settled(h: Harness) -> int:
    h.broker.events.clear()
    gc.collect()
    return len(gc.get_objects())


def attacker(h: Harness, version: int = 5) -> FakeClient:
    return manual(h.client("attacker", version=version))
