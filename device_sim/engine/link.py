"""Sockets under the pure clients: one asyncio Protocol a device, one write a device and tick.

`Switchboard` gathers what one turn of the event loop brought (clients with something to write,
senders that may publish again) and handles it all at once when the turn is over: every ready
publisher writes what it may, then every client with output gets a single `transport.write`. That is
why no message ever costs a task, a timer or a write of its own.

Knows sockets and the clock; knows nothing of runs, verdicts or schedules.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from device_sim.engine.client import CLOSED, Client
from device_sim.engine.publisher import Publisher
from device_sim.judge.ledger import Ledger
from mqttd.core.packets import Record


class ConnectionEnded(Exception):
    """The connection is gone or of no use; the text says why."""


class Switchboard:
    """The tick: pumps ready publishers and flushes dirty links."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ledger: Ledger) -> None:
        self.loop = loop
        self.ledger = ledger
        self.publishers: dict[int, Publisher] = {}
        self.links: dict[int, Link] = {}
        self.dirty: list[Link] = []
        self.scheduled = False

    def attach(self, publisher: Publisher, link: "Link") -> None:
        """What this publisher writes goes out on this link."""
        index = publisher.sender.index
        self.publishers[index] = publisher
        self.links[index] = link
        link.publishers.append(publisher)

    def touch(self) -> None:
        """Something happened: have a flush before the loop sleeps again."""
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Let ready publishers write, then write out everything there is."""
        self.scheduled = False
        now_ns = time.monotonic_ns()
        ready = self.ledger.ready
        if ready:
            batch = ready[:]
            ready.clear()
            for sender in batch:
                sender.ready = False
                publisher = self.publishers.get(sender.index)
                if publisher is not None and publisher.pump(now_ns):
                    self.links[sender.index].flush(now_ns)
        if self.dirty:
            links = self.dirty
            self.dirty = []
            for link in links:
                link.dirty = False
                link.flush(now_ns)

    def mark_dirty(self, link: "Link") -> None:
        """The link's client has output."""
        if not link.dirty:
            link.dirty = True
            self.dirty.append(link)
            self.touch()

    def mark_ready(self, publisher: Publisher) -> None:
        """The publisher may have become able to publish."""
        sender = publisher.sender
        if not sender.ready:
            sender.ready = True
            self.ledger.ready.append(sender)
        self.touch()


class Link(asyncio.Protocol):
    """The socket of one client."""

    def __init__(
        self, switchboard: Switchboard, client: Client, on_lost: Callable[["Link"], None]
    ) -> None:
        self.switchboard = switchboard
        self.client = client
        self.publishers: list[Publisher] = []
        self.transport: asyncio.Transport | None = None
        self.dirty = False
        self.lost = False
        self.leaving = False
        self.frozen = False
        """Its device hangs: nothing is read from it, and nobody pings."""
        self.last_write_ns = 0
        self._on_lost = on_lost
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        client = self.client
        client.receive_data(data, time.monotonic_ns())
        switchboard = self.switchboard
        if client.out and not self.dirty:
            self.dirty = True
            switchboard.dirty.append(self)
        if not switchboard.scheduled and (self.dirty or switchboard.ledger.ready):
            switchboard.scheduled = True
            switchboard.loop.call_soon(switchboard.flush)
        if client.events or client.state == CLOSED:
            self._wake()
            if client.state == CLOSED and self.transport is not None:
                self.transport.close()

    def pause_writing(self) -> None:
        for publisher in self.publishers:
            publisher.blocked = True

    def resume_writing(self) -> None:
        for publisher in self.publishers:
            publisher.blocked = False
            self.switchboard.mark_ready(publisher)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        client = self.client
        if not client.error:
            client.error = str(exc) if exc else "closed the connection"
        client.state = CLOSED
        self._wake()
        if not self.leaving:
            self._on_lost(self)

    def flush(self, now_ns: int) -> None:
        """One write with everything the client has to say."""
        client = self.client
        transport = self.transport
        if client.out and transport is not None and not transport.is_closing():
            self.last_write_ns = now_ns
            transport.write(client.data_to_send())
            for publisher in self.publishers:
                if publisher.more and not publisher.blocked:
                    self.switchboard.mark_ready(publisher)

    async def event(self) -> Record:
        """The next packet that the client doesn't handle itself; ConnectionEnded instead of one."""
        client = self.client
        while not client.events:
            if client.state == CLOSED:
                raise ConnectionEnded(f"{client.client_id}: {client.error}")
            self._waiter = self.switchboard.loop.create_future()
            await self._waiter
        return client.events.pop(0)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
