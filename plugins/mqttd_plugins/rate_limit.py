"""`rate_limit`: how many messages and bytes a second a client, and a whole listener, may publish.

Owns: token buckets, what a message costs in them, and what happens to one that is too early. It
waits: while it does, the broker reads nothing more from that client, so TCP slows the client down
by itself, nothing is lost and the order stays. A message is refused (0x97) when it would have to
wait longer than `max_delay`, and when its client has been pressing for longer than `patience`,
that is, when its buckets weren't once full again in all that time. With `then: disconnect` the
connection ends instead (0x96).

A bucket holds what is allowed in `burst` seconds, and at least one message. A message is paid for
before it goes on; the bucket may be in debt then, and the message waits until the debt is paid
back. What is refused pays nothing.

Must not know: topics, payloads, who is authenticated how.

Invariants: buckets belong to a client identifier, not to a connection, so that coming back brings
no fresh burst; a bucket that is full is as good as none, and is forgotten; there are never more
than `max_clients` of them; nothing is charged unless the message goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, model_validator

from mqttd.api import (
    BrokerServices,
    Client,
    Deny,
    Duration,
    Message,
    Plugin,
    PluginConfig,
    Size,
    reason_codes,
)
from mqttd_plugins._bans import brief
from mqttd_plugins._time_limits import check_waits

FORGET_AT_ONCE: Final = 4
"""Buckets looked at for each new one: more than one, so that the full ones can't pile up."""

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limit(PluginConfig):
    messages: Rate | None = None
    """Messages a second; absent: no limit."""
    bytes: Size | None = None
    """Bytes a second of topic, payload and properties; absent: no limit."""
    burst: Duration = 1.0
    """A bucket holds what is allowed in this time."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Limit:
        if self.bytes == 0:
            raise ValueError("bytes: 0 would let nothing through; leave it away for no limit")
        if self.burst <= 0:
            raise ValueError("burst has to be longer than nothing")
        return self


class ListenerLimits(PluginConfig):
    client: Limit = Limit()
    """For each client of this listener."""
    listener: Limit = Limit()
    """For all clients of this listener together."""


class Config(PluginConfig):
    client: Limit = Limit()
    """For each client."""
    listener: Limit = Limit()
    """For all clients of a listener together."""
    listeners: dict[str, ListenerLimits] = {}
    """Listeners, by name, with limits of their own instead of the two above."""
    max_delay: Duration = 2.0
    """A message that would have to wait longer is refused; shorter than the plugin's `timeout`."""
    patience: Duration = 30.0
    """How long a client may press against its limit before what is too early is refused; 0: for
    ever."""
    then: Literal["refuse", "disconnect"] = "refuse"
    """What happens to a message that isn't waited for."""
    max_clients: Annotated[int, Field(ge=1)] = 100_000
    """Clients remembered at once; above that the one that was quiet for longest is forgotten."""

    @model_validator(mode="after")
    def _limits_something(self, info: ValidationInfo) -> Config:
        limits = [self.client, self.listener]
        for own in self.listeners.values():
            limits += [own.client, own.listener]
        if all(limit.messages is None and limit.bytes is None for limit in limits):
            raise ValueError("no limit is set: give messages or bytes for client or listener")
        check_waits(info, max_delay=self.max_delay)
        return self


class Bucket:
    """Messages and bytes that may be sent now. Below zero: what was sent ahead of its time."""

    __slots__ = ("_at", "_limit", "_size", "octets", "pressing_since", "tokens")

    def __init__(self, limit: Limit, now: float) -> None:
        self._limit = limit
        self._at = now
        self._size = max((limit.messages or 0.0) * limit.burst, 1.0)
        self.tokens = self._size
        self.octets = (limit.bytes or 0) * limit.burst
        self.pressing_since: float | None = None

    def refill(self, now: float) -> bool:
        """Add what has become free; whether the bucket is full again."""
        limit = self._limit
        passed = max(now - self._at, 0.0)
        self._at = now
        full = True
        if limit.messages is not None:
            self.tokens = min(self.tokens + passed * limit.messages, self._size)
            full = self.tokens >= self._size
        if limit.bytes is not None:
            size = limit.bytes * limit.burst
            self.octets = min(self.octets + passed * limit.bytes, size)
            full = full and self.octets >= size
        if full:
            self.pressing_since = None
        return full

    def delay_of(self, octets: int) -> float:
        """Seconds that a message of so many bytes would have to wait, after `refill`."""
        limit = self._limit
        delay = 0.0
        if limit.messages is not None:
            delay = max(delay, (1.0 - self.tokens) / limit.messages)
        if limit.bytes is not None:
            delay = max(delay, (octets - self.octets) / limit.bytes)
        return delay

    def charge(self, octets: int) -> None:
        self.tokens -= 1.0
        self.octets -= octets


class RateLimit(Plugin[Config]):
    """Too early waits; too early for too long is refused."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._clients: OrderedDict[tuple[str, str], Bucket] = OrderedDict()
        self._listeners: dict[str, Bucket] = {}
        self._waiting = 0

    async def reload(self, config: Config) -> None:
        """New limits hold from the next message on; buckets begin full."""
        self.config = config
        self._clients.clear()
        self._listeners.clear()

    def on_publish(self, client: Client, message: Message) -> Deny | Awaitable[None] | None:
        own, shared = self._limits(client.listener)
        if own is None and shared is None:
            return None
        now = self.broker.now()
        octets = len(message.topic.encode()) + len(message.payload) + len(message.block)
        mine = None if own is None else self._bucket_of(client, own, now)
        ours = None if shared is None else self._listener_bucket(client.listener, shared, now)
        delay = 0.0
        if mine is not None:
            delay = mine.delay_of(octets)
            if delay > 0:
                if mine.pressing_since is None:
                    mine.pressing_since = now
                patience = self.config.patience or math.inf
                pressing = now - mine.pressing_since > patience
                if pressing or delay > self.config.max_delay:
                    return self._refuse("the client publishes faster than it may")
        if ours is not None:
            delay = max(delay, ours.delay_of(octets))
            if delay > self.config.max_delay:
                return self._refuse("the listener gets more than it may")
        for bucket in (mine, ours):
            if bucket is not None:
                bucket.charge(octets)
        return self._wait(delay) if delay > 0 else None

    def _limits(self, listener: str) -> tuple[Limit | None, Limit | None]:
        chosen = self.config.listeners.get(listener)
        own = self.config.client if chosen is None else chosen.client
        shared = self.config.listener if chosen is None else chosen.listener
        return _set(own), _set(shared)

    def _bucket_of(self, client: Client, limit: Limit, now: float) -> Bucket:
        # The listener is part of the key: another one may have another limit.
        # Long identifiers are for clients to make up: nobody makes this table large with them.
        key = (client.listener, brief(client.client_id))
        bucket = self._clients.get(key)
        if bucket is not None:
            self._clients.move_to_end(key)
            bucket.refill(now)
            return bucket
        self._forget(now)
        bucket = self._clients[key] = Bucket(limit, now)
        self.broker.gauge("clients", len(self._clients))
        return bucket

    def _forget(self, now: float) -> None:
        """Of those that were quiet for longest, the ones that are full again; one if there are
        too many."""
        for _ in range(FORGET_AT_ONCE):
            key = next(iter(self._clients), None)
            if key is None or not self._clients[key].refill(now):
                break
            del self._clients[key]
        if len(self._clients) >= self.config.max_clients:
            self._clients.popitem(last=False)
            self.broker.count("forgotten")

    def _listener_bucket(self, listener: str, limit: Limit, now: float) -> Bucket:
        bucket = self._listeners.get(listener)
        if bucket is None:
            bucket = self._listeners[listener] = Bucket(limit, now)
        else:
            bucket.refill(now)
        return bucket

    def _refuse(self, why: str) -> Deny:
        if self.config.then == "disconnect":
            self.broker.count("disconnected")
            return Deny(why, reason_codes.MESSAGE_RATE_TOO_HIGH, disconnect=True, cache=False)
        self.broker.count("refused")
        return Deny(why, reason_codes.QUOTA_EXCEEDED, cache=False)

    async def _wait(self, delay_s: float) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.broker.call_later(delay_s, lambda: _wake(over))
        self._count_waiting(1)
        self.broker.count("delayed")
        self.broker.count("delayed_milliseconds", round(delay_s * 1000))
        try:
            await over
        finally:
            timer.cancel()
            self._count_waiting(-1)

    def _count_waiting(self, by: int) -> None:
        self._waiting += by
        self.broker.gauge("waiting", self._waiting)


def _wake(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _set(limit: Limit) -> Limit | None:
    return None if limit.messages is None and limit.bytes is None else limit
