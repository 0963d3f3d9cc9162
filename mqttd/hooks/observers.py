"""Events for the plugins that observe: after the fact, some at a time, off the path of messages.

Owns: the translation of the core's traces into events, and for each observing plugin a bounded
buffer and at most one call under way.

Must not know: what is done with an event.

Invariants: a plugin gets its events in order; one that is slow loses events, counted, and slows
nobody down; what fails is counted and skipped, whatever the plugin's `on_failure` says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final

from mqttd.core import watch
from mqttd.core.broker import Broker
from mqttd.core.watch import Trace, Watcher
from mqttd.hooks import values
from mqttd.hooks.guard import Failed, Guard, begin
from mqttd.hooks.values import Event

MAX_WAITING: Final = 10_000
BATCH: Final = 500
GRACE_S: Final = 5.0  # for who is still being told when the broker stops

KINDS: Final = {
    watch.PUBLISHED: values.PUBLISHED,
    watch.DENIED: values.DENIED,
    watch.SUBSCRIBE_DENIED: values.DENIED,
    watch.DROPPED: values.DROPPED,
    watch.DELIVERED: values.DELIVERED,
    watch.CONNECTED: values.CONNECTED,
    watch.DISCONNECTED: values.DISCONNECTED,
    watch.REFUSED: values.REFUSED,
    watch.SUBSCRIBED: values.SUBSCRIBED,
    watch.UNSUBSCRIBED: values.UNSUBSCRIBED,
    watch.CREATED: values.SESSION_CREATED,
    watch.EXPIRED: values.SESSION_EXPIRED,
    watch.TAKEN_OVER: values.SESSION_TAKEN_OVER,
}


# Traces whose `origin` is the publisher of a message; for all others it is where a client is from.
_OF_MESSAGES: Final = frozenset({watch.PUBLISHED, watch.DENIED, watch.DROPPED, watch.DELIVERED})


class Observer:
    """One plugin that observes."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.wants = frozenset(guard.plugin.watches)
        self.waiting: list[Event] = []
        self.busy = False
        self.told: asyncio.Future[Any] | None = None  # the call under way, if it has to wait
        self.lost = 0  # never told: it was too slow
        self.failed = 0  # told in a call that failed, or would have been while it rests


class Observers:
    """All of them."""

    def __init__(
        self, broker: Broker, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Future[Any]]
    ) -> None:
        self.observers: list[Observer] = []
        self._broker = broker
        self._spawn = spawn
        self._wall = 0.0

    def start(self, guards: Sequence[Guard]) -> None:
        """Have the core tell what these plugins want to hear of."""
        self.observers = [Observer(guard) for guard in guards if guard.has("observe")]
        wanted = frozenset().union(*(observer.wants for observer in self.observers))
        unknown = wanted - values.EVENT_KINDS
        if unknown:
            raise ValueError(f"there is no kind of event {', '.join(sorted(unknown))}")
        if not wanted:
            return
        if self._broker.context.watcher is None:
            self._broker.context.watcher = Watcher(0)
        watcher = self._broker.context.watcher
        for kind, name in KINDS.items():
            if name in wanted:
                watcher.wants |= 1 << kind

    async def stop(self) -> None:
        """Tell what has happened so far, as far as that doesn't take long, and nothing more."""
        self.tick()
        if self._broker.context.watcher is not None:
            self._broker.context.watcher.wants = 0
        under_way = [one.told for one in self.observers if one.told is not None and one.busy]
        if under_way:
            await asyncio.wait(under_way, timeout=GRACE_S)
        self.observers = []

    def tick(self) -> None:
        """Hand out what has happened since the last time."""
        watcher = self._broker.context.watcher
        if watcher is None or not watcher.pending:
            return
        self._wall = time.time() - monotonic()
        events = [self._event(trace) for trace in watcher.take()]
        for observer in self.observers:
            wanted = [event for event in events if event.kind in observer.wants]
            room = MAX_WAITING - len(observer.waiting)
            if len(wanted) > room:
                observer.lost += len(wanted) - room
                wanted = wanted[:room]
            observer.waiting += wanted
            if observer.waiting and not observer.busy:
                self._turn(observer)

    def _event(self, trace: Trace) -> Event:
        return Event(
            KINDS[trace.kind],
            trace.at + self._wall,
            trace.client_id,
            trace.username,
            "" if trace.kind in _OF_MESSAGES else trace.origin,
            trace.topic,
            trace.qos,
            trace.retain,
            trace.payload,
            trace.reason,
        )

    def _turn(self, observer: Observer) -> None:
        observer.busy = True
        _, rest = begin(self._tell(observer))
        if rest is not None:

            async def finish() -> None:
                await rest

            observer.told = self._spawn(finish(), "observe")

    async def _tell(self, observer: Observer) -> None:
        try:
            while observer.waiting:
                batch = observer.waiting[:BATCH]
                del observer.waiting[:BATCH]
                answer = await observer.guard.ask("observe", (type(None),), batch)
                if isinstance(answer, Failed):
                    observer.failed += len(batch)
        finally:
            observer.busy = False
