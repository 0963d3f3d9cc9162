"""Publishes on a channel in confirm mode: many messages in one write, each answered once.

Owns: the delivery tags, which both sides count by themselves, and what was published and isn't
answered. A confirm may stand for all messages up to its tag. A message that no queue takes comes
back first and is confirmed afterwards, so the return is kept until then; it says no tag, only
exchange, routing key and message id. Two of the same are therefore never under way at once: the
second waits for the answer of the first.

A server that lets nobody write to an exchange ends the channel for it. That is nothing a message
could help: those for the exchange are answered with `Refused`, so that they wait and count no try.

Must not know: how a message becomes properties, when a connection is made again.

Invariants: messages leave in the order of `publish`; nothing is answered twice; without an answer
from the server there is none from here.
"""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Final

from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp_connection import Channel, Connection, Ended
from mqttd_plugins._amqp_wire import Properties
from mqttd_plugins._bridge.remote import Done, Failure, Item, Poison, Refused, Retry

# From its beginning: where a topic is refused, the text quotes what a publisher chose.
_NO_ACCESS: Final = re.compile(r"ACCESS_REFUSED - (?:write )?access to exchange '(.*?)' in vhost")

_Place = tuple[str, str, str]  # exchange, routing key, message id


class Publisher:
    """What publishes on one channel."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._written: list[bytes] = []  # until `flush`
        self._tag = 0  # the last one
        self._first = 1  # none before it is under way
        self._flying: dict[int, tuple[Item, Done, _Place]] = {}  # by tag
        self._tags: dict[_Place, int] = {}
        self._returned: set[int] = set()
        self._refused: dict[str, Refused] = {}  # by exchange
        self._news = asyncio.Event()
        channel.on_confirm = self._confirmed
        channel.on_return = self._came_back
        channel.on_end = self._ended

    @classmethod
    async def on(cls, connection: Connection) -> Publisher:
        """On a channel of its own. Ended."""
        channel = await connection.channel()
        publisher = cls(connection, channel)
        await channel.call(wire.CONFIRM_SELECT_OK, wire.CONFIRM_SELECT, False)
        return publisher

    @property
    def channel(self) -> Channel:
        return self._channel

    @property
    def refusal(self) -> Refused | None:
        """Why the channel ended, if an exchange may not be written to."""
        return next(iter(self._refused.values()), None)

    def is_flying(self, item: Item, exchange: str, key: str) -> bool:
        """Whether one of the same place and id has no answer yet."""
        return (exchange, key, item.id) in self._tags

    def publish(
        self,
        item: Item,
        exchange: str,
        key: str,
        block: bytes,
        done: Done,
        *,
        mandatory: bool,
    ) -> None:
        """Publish with the next `flush`. Poison for properties that don't fit into a frame.

        `block` has the properties, as they stand in a header frame.
        """
        channel, body = self._channel, item.payload
        header = wire.content_header(channel.number, len(body), block)
        if len(header) > self._connection.frame_max:
            raise Poison(
                f"its headers take {len(header)} bytes, "
                f"and RabbitMQ takes {self._connection.frame_max} at most"
            )
        if channel.ended.done():
            refused = self._refused.get(exchange)
            if refused is not None:
                done(item, refused)
            return
        place = (exchange, key, item.id)
        self._tag += 1
        self._flying[self._tag] = (item, done, place)
        self._tags[place] = self._tag
        self._written.append(_publish_frame(channel.number, exchange, key, mandatory))
        self._written.append(header)
        if body:
            self._written += wire.body_frames(channel.number, body, self._connection.frame_max)

    def flush(self) -> None:
        """Write what was published, in one go."""
        if self._written:
            self._connection.write(b"".join(self._written))
            self._written.clear()

    async def until_answered(self, item: Item, exchange: str, key: str) -> None:
        """Wait until none of the same place and id is under way, or the channel is over."""
        while self.is_flying(item, exchange, key) and not self._channel.ended.done():
            self._news.clear()
            await self._news.wait()

    def _confirmed(self, tag: int, multiple: bool, accepted: bool) -> None:
        tags = range(tag, tag + 1)
        if multiple:
            last = min(tag, self._tag) if tag else self._tag  # 0 is all of them
            tags = range(self._first, last + 1)
        for each in tags:
            if each not in self._flying:
                continue
            item, done, place = self._flying.pop(each)
            del self._tags[place]
            done(item, self._failure(each, place, accepted))
        while self._first <= self._tag and self._first not in self._flying:
            self._first += 1
        self._news.set()

    def _failure(self, tag: int, place: _Place, accepted: bool) -> Failure | None:
        if tag in self._returned:
            self._returned.discard(tag)
            exchange, key, _ = place
            return Retry(
                f"unroutable: no queue takes it (exchange {exchange!r}, routing key {key!r})"
            )
        if not accepted:
            return Retry("RabbitMQ refuses it (basic.nack): the queue is full, or it failed")
        return None

    def _came_back(self, exchange: str, key: str, properties: Properties) -> None:
        tag = self._tags.get((exchange, key, properties.message_id or ""))
        if tag is not None:
            self._returned.add(tag)

    def _ended(self, reason: Ended) -> None:
        found = _NO_ACCESS.match(reason.text) if reason.code == 403 else None
        if found is not None:
            exchange = "" if found[1] == "amq.default" else found[1]
            for tag, (item, done, place) in list(self._flying.items()):
                if place[0] == exchange:
                    refused = self._refused[exchange] = Refused(reason.text, item.place)
                    del self._flying[tag]
                    done(item, refused)
        self._news.set()


@functools.lru_cache(maxsize=4096)
def _publish_frame(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    return wire.PUBLISH.frame(channel, 0, exchange, key, mandatory, False)
