"""A TCP proxy that makes a network bad on command, without root and without a kernel module.

It listens on a free loopback port and carries each connection on to the broker. What it does to the
bytes of a direction is said by `Conditions` and may change while connections are up:

    delay      each chunk arrives that much later
    jitter     and up to that much more, drawn for each chunk; bytes never overtake one another
    bandwidth  bytes a second, of each connection
    corrupt    the probability that one bit of a chunk is turned over; not in the first chunk of a
               direction, which says who connects: the device would be another one
    cut        nothing arrives, not even the end of a connection, until the cut is over; TCP would
               repeat what was sent meanwhile, so it arrives then

Owns its sockets and the bytes on their way; it knows nothing of MQTT. A chunk is what one read
brought. Invariants: without conditions a chunk is written in the call that brought it; a direction
never holds more than HIGH bytes plus one read, after that the source isn't read any more, so a slow
link pushes back as a real one does.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

HIGH: Final = 262_144
"""Bytes on their way in one direction above which its source is no longer read."""
LOW: Final = 65_536
CHUNK: Final = 1_400
"""Under a bandwidth, bytes go in pieces of about a packet, so that time passes between them."""
_LINGER: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Conditions:
    """How bad the network is; the defaults are a good one. Seconds and bytes a second."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth: float = 0.0
    corrupt: float = 0.0
    cut: bool = False

    @property
    def clear(self) -> bool:
        """Nothing is done to the bytes."""
        return self == GOOD


GOOD: Final = Conditions()


def reset(transport: asyncio.Transport) -> None:
    """Close with RST instead of FIN, so that the other end sees a connection reset."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        with contextlib.suppress(OSError):  # it may have gone by itself
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    transport.abort()


class Direction(asyncio.Protocol):
    """One end of a carried connection: what it reads is written to the other end, `peer`."""

    def __init__(self, pair: "Pair", up: bool) -> None:
        self.pair = pair
        self.up = up
        self.peer: Direction | None = None
        self.transport: asyncio.Transport | None = None
        self.held: deque[tuple[float, bytes]] = deque()
        self.held_bytes = 0
        self._free_at = 0.0
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._full = False
        self._ended = False
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pair.came_up(self)

    def data_received(self, data: bytes) -> None:
        peer = self.peer
        conditions = self._conditions()
        if peer is None or peer.transport is None or self.held or not conditions.clear:
            self._hold(data, conditions)
        elif not peer.transport.is_closing():
            peer.transport.write(data)
        self._begun = True

    def pause_writing(self) -> None:
        """This end takes no more: its peer is the source to stop."""
        if self.peer is not None:
            self.peer.full(True)

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.full(False)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self.pair.ended()
        if not self.held and not self._conditions().cut:
            self._pass_the_end_on()

    def flush(self) -> None:
        """Write what is due; the rest when it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        peer = self.peer
        if peer is None or peer.transport is None or self._conditions().cut:
            return
        loop = self.pair.proxy.loop
        now = loop.time()
        # A timer may fire a little early; what it was set for is due all the same.
        while self.held and self.held[0][0] <= now + 1e-4:
            data = self.held.popleft()[1]
            self.held_bytes -= len(data)
            if not peer.transport.is_closing():
                peer.transport.write(data)
        if self.held:
            self._timer = loop.call_at(self.held[0][0], self.flush)
        elif self._ended:
            self._pass_the_end_on()
        self._regulate()

    def full(self, yes: bool) -> None:
        """Whether the far end takes no more bytes for now."""
        self._full = yes
        self._regulate()

    def drop(self) -> None:
        """Forget what is on its way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.held.clear()
        self.held_bytes = 0

    def _conditions(self) -> Conditions:
        proxy = self.pair.proxy
        return proxy.up if self.up else proxy.down

    def _hold(self, data: bytes, conditions: Conditions) -> None:
        proxy = self.pair.proxy
        if conditions.corrupt and self._begun and proxy.chance.random() < conditions.corrupt:
            damaged = bytearray(data)
            damaged[proxy.chance.randrange(len(damaged))] ^= 1 << proxy.chance.randrange(8)
            data = bytes(damaged)
            proxy.corrupted += 1
            proxy.on_damage(self.pair.near_port)
        now = proxy.loop.time()
        step = CHUNK if conditions.bandwidth else len(data)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            sent_at = now
            if conditions.bandwidth:
                sent_at = max(self._free_at, now) + len(piece) / conditions.bandwidth
                self._free_at = sent_at
            late = conditions.delay_s + conditions.jitter_s * proxy.chance.random()
            # Later bytes wait for earlier ones: jitter delays, it never reorders.
            self._due_at = max(self._due_at, sent_at + late)
            self.held.append((self._due_at, piece))
        self.held_bytes += len(data)
        if self._timer is None:
            self._timer = proxy.loop.call_at(self.held[0][0], self.flush)
        self._regulate()

    def _regulate(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not self._stopped and (self._full or self.held_bytes > HIGH):
            self._stopped = True
            transport.pause_reading()
        elif self._stopped and not self._full and self.held_bytes <= LOW:
            self._stopped = False
            transport.resume_reading()

    def _pass_the_end_on(self) -> None:
        peer = self.peer
        if peer is not None and peer.transport is not None:
            peer.transport.close()


class Pair:
    """One carried connection: `near` is the device's end, `far` the broker's."""

    def __init__(self, proxy: "Proxy") -> None:
        self.proxy = proxy
        self.near = Direction(self, up=True)
        self.far = Direction(self, up=False)
        self.near.peer = self.far
        self.far.peer = self.near
        self._open = 0
        self.near_port = 0
        self._task: asyncio.Task[None] | None = None

    def came_up(self, end: Direction) -> None:
        """One of the two sockets is connected."""
        self._open += 1
        if end is self.near and end.transport is not None:
            self.near_port = int(end.transport.get_extra_info("peername")[1])
            self.proxy.pairs[self] = None
            self._task = self.proxy.loop.create_task(self._carry_on())
        else:
            # First what came before there was anywhere to write it to.
            self.near.flush()
            self.near.full(False)

    def ended(self) -> None:
        """One of the two sockets has closed."""
        self._open -= 1
        if self._open == 0:
            self.near.drop()
            self.far.drop()
            self.proxy.pairs.pop(self, None)

    def reset(self) -> None:
        """Reset both ends, whatever is on its way."""
        if self._task is not None:
            self._task.cancel()
        for end in (self.near, self.far):
            end.drop()
            if end.transport is not None:
                reset(end.transport)

    async def _carry_on(self) -> None:
        proxy = self.proxy
        assert self.near.transport is not None
        self.near.full(True)
        try:
            await proxy.loop.create_connection(lambda: self.far, proxy.host, proxy.port_to)
        except OSError:
            reset(self.near.transport)
        else:
            if self.near.transport.is_closing() and self.far.transport is not None:
                self.far.transport.close()


def _ignore(port: int) -> None:
    """Nobody wants to know."""


class Proxy:
    """`await open()`, connect to `port`, change the conditions at will, `await close()`.

    `host` and `port_to` say where the broker is; they may change while the proxy runs (a broker
    that comes back on another port) and hold for connections made from then on. `on_damage` is
    called with the device's port when bytes of its connection were corrupted, before they go on.
    """

    def __init__(self, host: str, port_to: int, seed: int = 0) -> None:
        self.host = host
        self.port_to = port_to
        self.port = 0
        self.up = GOOD
        self.down = GOOD
        self.corrupted = 0
        self.on_damage: Callable[[int], None] = _ignore
        self.chance = random.Random(seed)
        self.pairs: dict[Pair, None] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on a free port of the loopback."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(
            lambda: Pair(self).near, "127.0.0.1", 0, backlog=1024
        )
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Reset whatever is still connected and stop listening."""
        if self._server is not None:
            self._server.close()
        for pair in list(self.pairs):
            pair.reset()
        for _ in range(100):
            if not self.pairs:
                break
            await asyncio.sleep(0.01)

    def change(self, up: Conditions, down: Conditions) -> None:
        """Other conditions, from the devices (`up`) and to them; they hold for what comes now."""
        self.up = up
        self.down = down
        for pair in list(self.pairs):
            for end in (pair.near, pair.far):
                end.flush()
