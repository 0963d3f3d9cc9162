"""The trail of who did what: one line an event, in the logger `mqttd.audit`.

Owns: which events are part of it (who came, from where and as whom, who was refused, what was
denied, what the operator did), and a limit on the lines that one client can cause by asking for
what it may not have.

Must not know: how a line is written (`mqttd.log` escapes and cuts what comes from the network),
payloads, passwords. It is told no secret, so it can't tell one.

Invariants: lines of one tick keep their order; a client that is denied again and again gets
`DENIALS` lines a minute, then one that counts the rest; the memory for that is bounded.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from time import monotonic
from typing import Final

from mqttd import log
from mqttd.core import watch
from mqttd.core.router import Event
from mqttd.core.watch import Trace, Watcher

logger: Final = logging.getLogger("mqttd")
audit: Final = logging.getLogger("mqttd.audit")

DENIALS: Final = 5
WINDOW_S: Final = 60.0
MAX_CLIENTS: Final = 10_000

_TRAIL: Final = frozenset({"connect", "disconnect", "refused", "will_denied"})
_LEVELS: Final = {"pingpong": logging.WARNING, "bug": logging.ERROR}
_SECRETS: Final = ("pass", "pw", "secret", "token", "key", "cred", "auth", "hash", "salt", "pin")
_DENIED: Final = {watch.DENIED: "publish_denied", watch.SUBSCRIBE_DENIED: "subscribe_denied"}


class Audit:
    """Writes the trail of one broker."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._denied: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def events(self, events: Iterable[Event]) -> None:
        """What the core has noted; what isn't part of the trail goes to the plain log."""
        for trail, some in groupby(events, lambda event: event.kind in _TRAIL):
            log.events(
                audit if trail else logger,
                [
                    (
                        event.kind,
                        _LEVELS.get(event.kind, logging.INFO),
                        {
                            "client": event.client_id,
                            "user": event.username,
                            "peer": event.peer or None,
                            "reason": event.reason or None,
                        },
                    )
                    for event in some
                ],
            )

    def watch(self, watcher: Watcher) -> None:
        """Have the core tell of denials."""
        for kind in _DENIED:
            watcher.wants |= 1 << kind

    def denials(self, watcher: Watcher) -> None:
        """Write down the denials among what observers have not been told yet."""
        for trace in watcher.pending:
            if trace.kind in _DENIED:
                self._deny(trace)

    def _deny(self, trace: Trace) -> None:
        now = self._clock()
        until, lines = self._denied.pop(trace.client_id, (0.0, 0))
        if now >= until:
            if lines > DENIALS:
                more = lines - DENIALS
                log.event(audit, "more_denied", client=trace.client_id, count=more)
            until, lines = now + WINDOW_S, 0
        self._denied[trace.client_id] = (until, lines + 1)
        if len(self._denied) > MAX_CLIENTS:
            self._denied.popitem(last=False)
        if lines < DENIALS:
            log.event(
                audit,
                _DENIED[trace.kind],
                client=trace.client_id,
                user=trace.username,
                topic=trace.topic,
                reason=trace.reason or None,
            )


def act(kind: str, uid: int | None, **fields: object) -> None:
    """The operator did something. `uid`: which user that was; None where nobody could tell."""
    log.events(audit, [(kind, logging.INFO, {"uid": uid, **fields})])


def shown(arguments: Mapping[str, object]) -> str | None:
    """The arguments of an action of a plugin, without what may be a secret; None for none.

    The plugin knows what they mean, here is nothing but their names. So of an argument that is
    called like a secret only the name is told, and so is it of whatever stands inside another.
    """
    if not arguments:
        return None
    return ", ".join(f"{name}={_plain(name, value)}" for name, value in arguments.items())


def _plain(name: str, value: object) -> str:
    if any(word in name.lower() for word in _SECRETS):
        return "***"
    if value is None or isinstance(value, str | int | float):
        return str(value)
    return "…"
