"""The beat of the shell: what happens once per tick, for all connections of a loop.

Owns: the flush (every connection with output, one write each), the deferred work and the timers of
the broker, the timer wheel, and the containment of bugs: an exception out of the core ends the
connection it came through, with a traceback and what was known of its state, and nothing else.

Must not know: how a transport is made, what the journal holds. It calls `commit` before each flush,
so that a store that commits at once releases its acknowledgements in the same tick.

Invariants: at most one flush is scheduled; `broker.dirty` is emptied in place, since connections
hold on to the list; nothing here is awaited while traffic flows; the clock is read here and in
`mqttd.net.protocol`, nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.counters import REFUSED_HANDSHAKE
from mqttd.core.outbound import Outbound
from mqttd.core.router import Event, ListenerInfo
from mqttd.net.timers import GRANULARITY, Timed, Wheel

logger: Final = logging.getLogger("mqttd.net")

# A new connection is looked at this soon, and again until it is established: its first deadline is
# that of the CONNECT, and the keep alive that comes after it may be a good deal shorter.
_FIRST_LOOK: Final = 1.0


class Shell(Timed, Protocol):
    """One connection as the flow sees it."""

    conn: Connection
    transport: asyncio.Transport

    def flush(self) -> None:
        """Write what the connection has to send; close if it wants to be closed."""

    def abort(self) -> None:
        """Drop the transport at once."""


class Flow:
    """Ties one broker to one loop."""

    def __init__(
        self,
        broker: Broker,
        loop: asyncio.AbstractEventLoop,
        on_events: Callable[[list[Event]], None],
        commit: Callable[[], None] | None = None,
    ) -> None:
        self.broker = broker
        self.loop = loop
        self.wheel = Wheel(monotonic())
        self.shells: dict[Outbound, Shell] = {}
        self.scheduled = False
        self._first_look = min(_FIRST_LOOK, broker.settings.connect_timeout)
        self._crowded = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 15 // 16
        self._on_events = on_events
        self._commit = commit
        self.after: Callable[[], None] | None = None  # called once a flush, when all is done
        self._flush = self.flush
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to turn the wheel."""
        self._timer = self.loop.call_later(GRANULARITY, self._tick)

    def stop(self) -> None:
        """Nothing happens after this but what the last transports still report."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Connections come and go.

    def open(
        self, shell: Shell, listener: ListenerInfo, peer: str, identity: str | None
    ) -> Connection:
        """The core's half of a connection that was just made."""
        now = monotonic()
        conn = self.broker.open(listener, peer, identity, now)
        self.shells[conn] = shell
        conn.shell = shell
        if len(self.shells) >= self._crowded:
            self._crowded = 1 << 62  # once is enough
            logger.warning("%d connections: file descriptors run out", len(self.shells))
        self.wheel.put(shell, now + self._first_look)
        return conn

    def refused(self) -> None:
        """Somebody was sent away before there was a connection that the core could count."""
        self.broker.counters.refuse(REFUSED_HANDSHAKE)

    def lost(self, shell: Shell) -> None:
        """The transport of a connection is gone."""
        self.wheel.remove(shell)
        self.shells.pop(shell.conn, None)
        shell.conn.shell = None  # the two halves point at each other: leave no cycle
        try:
            shell.conn.connection_lost(monotonic())
        except Exception:
            self._bug("connection_lost", shell.conn)
        self.schedule()
        if not self.shells and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def deadline(self, shell: Shell, now: float) -> float:
        """Let a connection act on its deadline if that has come; returns when to ask it again."""
        conn = shell.conn
        at = conn.next_deadline()
        if at <= now:
            try:
                conn.handle_timeout(now)
            except Exception:
                self.fault(shell, "handle_timeout")
            self.schedule()
            at = conn.next_deadline()
        if not conn.established and not conn.closing:
            return min(at, now + _FIRST_LOOK)
        return at

    # The tick.

    def schedule(self) -> None:
        """Something was told to the core: flush on the next turn of the loop."""
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self._flush)

    def flush(self) -> None:
        """Do what the core left to be done."""
        self.scheduled = False
        broker = self.broker
        dirty = broker.dirty
        again = broker.ready and self._deferred()
        if self._commit is not None:
            self._commit()
        if dirty:
            for writer, data in broker.collect():
                try:
                    writer.transport.write(data)
                except Exception:
                    self.fault(writer, "flush")
                    writer.abort()
        if broker.slow:
            shells = self.shells
            batch = broker.slow.copy()
            broker.slow.clear()
            for conn in batch:
                shell = shells.get(conn)
                if shell is None:
                    continue
                try:
                    shell.flush()
                except Exception:
                    self.fault(shell, "flush")
                    shell.abort()
        if broker.events:
            self._report()
        if self.after is not None:
            self.after()
        if dirty or again:
            self.schedule()

    def _deferred(self) -> bool:
        """One slice of the broker's deferred work; True if it wants another."""
        try:
            self.broker.run(monotonic())
        except Exception:
            # Without a pause a bug that stays would be a busy loop of tracebacks.
            self._bug("run", None)
            return False
        return self.broker.ready

    def _tick(self) -> None:
        now = monotonic()
        self._timer = self.loop.call_later(GRANULARITY, self._tick)
        self.wheel.advance(now)
        broker = self.broker
        if broker.next_deadline() <= now:
            try:
                broker.handle_timeout(now)
            except Exception:
                self._bug("handle_timeout", None)
        if self._commit is not None:
            self._commit()  # a will or an expiry may have nothing to write but to the store
        if broker.dirty or broker.events or broker.ready or self.after is not None:
            self.schedule()

    def _report(self) -> None:
        events = self.broker.events
        batch = events.copy()
        events.clear()
        self._on_events(batch)

    # The end.

    async def drain(self, grace: float) -> None:
        """Tell every client that the server is shutting down, and wait until they are gone."""
        try:
            self.broker.drain(monotonic())
        except Exception:
            self._bug("drain", None)  # who wasn't told is cut off below
        self.schedule()
        if not await self._emptied(grace):
            for shell in list(self.shells.values()):
                shell.abort()
            await self._emptied(1.0)  # an aborted transport reports back on the next turn
        self.flush()

    async def _emptied(self, timeout: float) -> bool:
        if self.shells:
            self._empty = self.loop.create_future()
            await asyncio.wait((self._empty,), timeout=timeout)
            self._empty = None
        return not self.shells

    # Bugs.

    def fault(self, shell: Shell, where: str) -> None:
        """An exception came out of the core: log it and end this one connection."""
        conn = shell.conn
        self._bug(where, conn)
        try:
            conn.abort(monotonic())
        except Exception:
            self._bug("abort", conn)
        if not conn.closing:
            shell.abort()
        self.schedule()

    def _bug(self, where: str, conn: Connection | None) -> None:
        if conn is None:
            logger.error("bug: exception out of the core in %s", where, exc_info=True)
            return
        logger.error(
            "bug: exception out of the core in %s; client %s at %s is dropped; connection: %s;"
            " session: %s",
            where,
            conn.client_id,
            conn.peer,
            dump(conn),
            dump(conn.session),
            exc_info=True,
        )


def dump(thing: object) -> str:
    """An object's state for a bug report: numbers and sizes, but no payload and no password."""
    if thing is None:
        return "none"
    parts = []
    for name in dir(thing):
        if name.startswith("__"):
            continue
        try:
            value = getattr(thing, name)
        except AttributeError:
            continue
        if value is None or isinstance(value, bool | int | float):
            parts.append(f"{name}={value}")
        elif not callable(value) and hasattr(value, "__len__"):
            parts.append(f"{name}:{type(value).__name__}[{len(value)}]")
    return " ".join(parts)
