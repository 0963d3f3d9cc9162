"""The filters that one client was granted by somebody who can't be asked about each delivery.

Owns: which filters those are at the moment, and whether one of them holds a topic.

Must not know: who grants, and how.

Invariants: a filter that isn't remembered holds nothing, so what is forgotten, or doesn't fit any
more, is closed.
"""

from __future__ import annotations

from typing import Final

from mqttd.api import split_shared
from mqttd_plugins._filters import Levels, fits, levels_of

MOST: Final = 10_000
"""As many as a session may have subscriptions, unless the broker is told otherwise."""


class GrantedFilters:
    """Whole filters as they were asked for; topics are held against the ones behind `$share`."""

    __slots__ = ("_plain", "_rest")

    def __init__(self) -> None:
        self._plain: set[str] = set()  # those that are a topic
        self._rest: dict[str, Levels] = {}

    def __len__(self) -> int:
        return len(self._plain) + len(self._rest)

    def add(self, topic_filter: str) -> bool:
        """Remember it; False where it was known, or is one too many."""
        if topic_filter in self._plain or topic_filter in self._rest or len(self) >= MOST:
            return False
        _, inner = split_shared(topic_filter)
        if inner != topic_filter or "+" in inner or "#" in inner:
            self._rest[topic_filter] = levels_of(inner)
        else:
            self._plain.add(topic_filter)
        return True

    def discard(self, topic_filter: str) -> bool:
        """Forget it; whether it was known."""
        known = topic_filter in self._plain or topic_filter in self._rest
        self._plain.discard(topic_filter)
        self._rest.pop(topic_filter, None)
        return known

    def hold(self, topic: str) -> bool:
        """Whether one of them holds the topic."""
        if topic in self._plain:
            return True
        parts = topic.split("/")
        dollar = topic.startswith("$")
        return any(fits(levels, parts, dollar) for levels in self._rest.values())
