"""`delayed`: a message to `$delayed/SECONDS/TOPIC` is published to TOPIC so many seconds later.

Owns: what is accepted, the order in which it becomes due, and that it survives a restart: each
message is a row of the plugin's table, and its publisher's acknowledgement waits until the row is
durable. When it is due it is published, and when that is durable the row is deleted: once, as long
as the broker lives, and after a crash between the two a second time, rather than never.

The broker has authorised the topic as it was sent. The inner topic is authorised here, when the
message comes: when it is due its publisher may be gone.

Must not know: subscribers, how the table is stored.

Invariants: what is due at the same instant goes out in the order in which it came; what waits is
bounded in number and in bytes, in all and for each publisher; the expiry interval of a message runs
while it waits; a topic below "$" can't be the inner one, so nothing is delayed twice and nothing
reaches what is the broker's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from mqttd.api import (
    BrokerServices,
    Client,
    Deny,
    Drop,
    Duration,
    Message,
    Plugin,
    PluginConfig,
    ProtocolError,
    Size,
    Timer,
    matches,
    reason_codes,
    validate_topic_filter,
    validate_topic_name,
)
from mqttd_plugins._delayed_rows import Waiting, from_row, message_of, to_row
from mqttd_plugins._topics import DELAYED, split_delayed

AT_ONCE: Final = 256
"""Messages that are published before the outcome of the first is awaited."""
RETRY_S: Final = 1.0
STOP_S: Final = 10.0
"""How long a stop waits for what is being published."""
LISTED: Final = 100

Count = Annotated[int, Field(ge=1)]


class Config(PluginConfig):
    max_delay: Duration = 7 * 86400.0
    """The longest delay."""
    max_messages: Count = 100_000
    """Messages that wait at once."""
    max_messages_per_client: Count = 10_000
    """Of one publisher."""
    max_bytes: Size = 64 * 1024 * 1024
    """Bytes of all that waits, properties and topics included."""
    max_bytes_per_client: Size = 16 * 1024 * 1024
    """The same of one publisher."""
    publisher: Literal["client", "user"] = "client"
    """Whose messages count as those of one publisher: a client identifier's, or a user name's."""


class Delayed(Plugin[Config]):
    """Messages for later."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._waiting: dict[int, Waiting] = {}
        self._order: list[Waiting] = []  # a heap; what was deleted stays until it is due
        self._messages_of: Counter[str] = Counter()  # by publisher
        self._octets_of: Counter[str] = Counter()
        self._octets = 0
        self._serial = 0
        self._timer: Timer | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._not_before = 0.0

    async def start(self) -> None:
        self._table = self.broker.table()
        now, epoch = self.broker.now(), time.time()
        for key, row in self._table.items():
            try:
                self._keep(from_row(key, row, now, epoch))
            except ValueError as error:
                self.broker.log.error("a row of the table can't be read: %s", error)
        self._serial = max(self._waiting, default=0)
        self._arm()

    async def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        # Otherwise what is published already would still have its row at the next start.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), STOP_S)

    async def reload(self, config: Config) -> None:
        """What waits stays, also where it is more than may wait now."""
        self.config = config
        self._messages_of.clear()
        self._octets_of.clear()
        self._octets = 0
        for waiting in self._waiting.values():
            self._add(waiting, 1)

    # What comes in.

    def on_publish(self, client: Client, message: Message) -> Deny | Awaitable[Deny | Drop] | None:
        if not message.topic.startswith(DELAYED):
            return None
        front, topic = split_delayed(message.topic)
        if not front:
            if message.topic != DELAYED and not message.topic.startswith(DELAYED + "/"):
                return None
            return self._refuse("expected $delayed/SECONDS/TOPIC", reason_codes.TOPIC_NAME_INVALID)
        delay_s = float(front.split("/")[1])
        try:
            validate_topic_name(topic)
        except ProtocolError as error:
            return self._refuse(error.detail, error.code)
        if topic.startswith("$"):
            why = "a topic that begins with $ can't be delayed"
            return self._refuse(why, reason_codes.TOPIC_NAME_INVALID)
        if delay_s > self.config.max_delay:
            return self._refuse("longer than max_delay", reason_codes.QUOTA_EXCEEDED)
        return self._accept(client, message.replace(topic=topic), delay_s)

    async def _accept(self, client: Client, message: Message, delay_s: float) -> Deny | Drop:
        verdict = await self.broker.may_publish(client, message.topic, message.qos, message.retain)
        if isinstance(verdict, Deny):
            return self._refuse(verdict.reason, verdict.code, verdict.rule)
        row = to_row(message, client.username, delay_s, time.time())
        publisher = self._publisher(message.client_id, client.username)
        if self._is_full(publisher, len(row)):
            return self._refuse("too much is waiting already", reason_codes.QUOTA_EXCEEDED)
        now = self.broker.now()
        expires_at = None if message.expires_in_s is None else now + message.expires_in_s
        self._serial += 1
        due_at = now + delay_s
        waiting = Waiting(self._serial, message, client.username, len(row), due_at, expires_at)
        self._table.set(waiting.key, row)
        self._keep(waiting)
        self._arm()
        self.broker.count("accepted")
        return Drop(f"delayed for {delay_s:g} s")

    def _refuse(self, why: str, code: int, rule: str = "") -> Deny:
        self.broker.count("refused")
        return Deny(why, code, rule, cache=False)

    def _publisher(self, client_id: str, username: str | None) -> str:
        """By whose name it is counted: a client without a user name stands for itself."""
        if self.config.publisher == "user" and username is not None:
            return f"user {username}"
        return f"client {client_id}"

    def _is_full(self, publisher: str, octets: int) -> bool:
        config = self.config
        return (
            len(self._waiting) >= config.max_messages
            or self._octets + octets > config.max_bytes
            or self._messages_of[publisher] >= config.max_messages_per_client
            or self._octets_of[publisher] + octets > config.max_bytes_per_client
        )

    def _keep(self, waiting: Waiting) -> None:
        self._waiting[waiting.serial] = waiting
        heapq.heappush(self._order, waiting)
        self._add(waiting, 1)

    def _drop(self, waiting: Waiting) -> None:
        del self._waiting[waiting.serial]
        self._add(waiting, -1)

    def _add(self, waiting: Waiting, by: int) -> None:
        self._octets += by * waiting.octets
        publisher = self._publisher(waiting.client_id, waiting.username)
        self._messages_of[publisher] += by
        self._octets_of[publisher] += by * waiting.octets
        if not self._messages_of[publisher]:
            del self._messages_of[publisher], self._octets_of[publisher]
        self.broker.gauge("waiting", len(self._waiting))
        self.broker.gauge("waiting_bytes", self._octets)

    # What goes out.

    def _arm(self) -> None:
        """Have the timer run out when the next message is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._order and self._idle.is_set() and not self._stopped:
            due_at = max(self._order[0].due_at, self._not_before)
            self._timer = self.broker.call_later(
                max(due_at - self.broker.now(), 0.0), self._publish_due
            )

    async def _publish_due(self) -> None:
        self._idle.clear()
        try:
            while due := self._take_due():
                await asyncio.gather(*(self._publish(waiting) for waiting in due))
        finally:
            self._idle.set()
            self._arm()

    def _take_due(self) -> list[Waiting]:
        """The next messages that are due, in order; none while a failure is waited out."""
        now = self.broker.now()
        due: list[Waiting] = []
        if self._stopped or now < self._not_before:
            return due
        while self._order and self._order[0].due_at <= now and len(due) < AT_ONCE:
            waiting = heapq.heappop(self._order)
            if waiting.serial in self._waiting:
                self._drop(waiting)
                due.append(waiting)
        return due

    async def _publish(self, waiting: Waiting) -> None:
        row = self._table.get(waiting.key)
        assert row is not None, "a message that waits has a row"
        now = self.broker.now()
        if waiting.expires_at is not None and waiting.expires_at <= now:
            self.broker.count("expired")
        else:
            message = message_of(row)
            if waiting.expires_at is not None:
                message = message.replace(expires_in_s=waiting.expires_at - now)
            try:
                await self.broker.publish(message)
            except Exception as error:
                self.broker.log.error("can't publish to %r now: %s", message.topic, error)
                self.broker.count("failed")
                self._keep(waiting)
                self._not_before = self.broker.now() + RETRY_S
                return
            self.broker.count("published")
        await self._table.delete(waiting.key)

    # The operator.

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        if action == "list":
            return self._list(arguments)
        if action == "delete":
            return await self._delete(arguments)
        return await super().control(action, arguments)

    def _list(self, arguments: Mapping[str, object]) -> object:
        limit = arguments.get("limit", LISTED)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError("limit: expected a number of messages")
        found = self._found(arguments)
        now = self.broker.now()
        shown = [_shown(waiting, now) for waiting in heapq.nsmallest(limit, found)]
        return {"waiting": len(self._waiting), "matched": len(found), "messages": shown}

    def _found(self, arguments: Mapping[str, object]) -> list[Waiting]:
        """What the operator means: by `id`, `client_id` and `topic`, or everything."""
        serial, client_id = arguments.get("id"), arguments.get("client_id")
        topic_filter = arguments.get("topic", "#")
        if isinstance(serial, bool) or not isinstance(serial, int | None):
            raise ValueError("id: expected the id of a message, as list shows it")
        if not isinstance(client_id, str | None):
            raise ValueError("client_id: expected a client identifier")
        if not isinstance(topic_filter, str):
            raise ValueError("topic: expected a topic filter")
        try:
            validate_topic_filter(topic_filter)
        except ProtocolError as error:
            raise ValueError(f"topic: {error.detail}") from None
        return [
            waiting
            for waiting in self._waiting.values()
            if serial in (None, waiting.serial)
            and client_id in (None, waiting.client_id)
            and matches(topic_filter, waiting.topic)
        ]

    async def _delete(self, arguments: Mapping[str, object]) -> object:
        if not {"id", "client_id", "topic"} & set(arguments):
            raise ValueError("expected id, client_id or topic: what is to be deleted")
        found = self._found(arguments)
        written: Awaitable[None] | None = None
        for waiting in found:
            self._drop(waiting)
            written = self._table.delete(waiting.key)
            self.broker.audit("delayed_delete", topic=waiting.topic, client_id=waiting.client_id)
        self.broker.count("deleted", len(found))
        if written is not None:
            await written
        return {"deleted": len(found)}


def _shown(waiting: Waiting, now: float) -> dict[str, object]:
    """A message as JSON, without its payload."""
    return {
        "id": waiting.serial,
        "topic": waiting.topic,
        "client_id": waiting.client_id,
        "qos": waiting.qos,
        "retain": waiting.retain,
        "bytes": waiting.octets,
        "due_in_s": round(waiting.due_at - now, 3),
    }
