"""`queues`: durable queues, by name: messages wait for a consumer, and each goes to one.

A queue is a shared subscription with a member that never comes: a session of this plugin, without a
connection, that keeps the group and what waits in it alive. A client that subscribes to
`$queue/NAME` becomes a member of `$share/$queue.NAME/FILTER`, and is authorised for that. All else
is what the broker does for any shared subscription, under the policy that is given to it here.

Owns: which queues there are, declared in the configuration or made by whoever comes first, and
their names in the table; where the messages go that a queue gives up.

Must not know: messages that go well, consumers, how a policy is carried out.

Invariants: a queue that was declared once stays, with what waits in it, until an operator deletes
it; the filter of a queue in which messages wait is never changed; a name that is no queue can't be
subscribed to.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from mqttd.api import (
    SUBSCRIBED,
    BrokerServices,
    Client,
    Deny,
    Duration,
    Event,
    Message,
    Plugin,
    PluginConfig,
    ProtocolError,
    SharePolicy,
    SubscriptionRequest,
    Timer,
    Undelivered,
    reason_codes,
    validate_topic_filter,
)
from mqttd_plugins import _letter_topics

PREFIX: Final = "$queue/"
LOOK_S: Final = 5.0
"""Between two looks at what waits: for the gauges, and for what has expired in front."""

_SHARE: Final = re.compile(r"\$share/\$queue\.([^/]+)/(.+)", re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]


class Options(PluginConfig):
    max_length: Annotated[int, Field(ge=0)] = 0
    """Messages that wait; 0: as `limits.max_queued_messages` says."""
    overflow: Literal["drop_newest", "drop_oldest"] = "drop_newest"
    """What goes when the queue is full."""
    ttl: Duration = 0.0
    """No message waits longer; 0: as long as its publisher says."""
    order: Literal["fifo", "strict"] = "fifo"
    """`strict`: the next message leaves when the one before is acknowledged."""
    redelivery_limit: Annotated[int, Field(ge=0)] = 0
    """So often a message is handed out again, then the queue gives it up; 0: no limit."""
    dead_letter_topic: str | None = None
    """Where messages go that the queue gives up; `{queue}`, `{reason}`, `{topic}` are filled in."""
    exclusive: bool = False
    """One consumer gets everything, until it leaves."""
    last_value: bool = False
    """Of each topic only the newest message waits."""
    keep_qos0: bool = True
    """QoS 0 waits as well."""

    @model_validator(mode="after")
    def _topic(self) -> Self:
        if self.dead_letter_topic is not None:
            try:
                _letter_topics.check(self.dead_letter_topic, ("queue", "reason", "topic"))
            except ValueError as error:
                raise ValueError(f"dead_letter_topic: {error}") from None
        return self

    @property
    def policy(self) -> SharePolicy:
        """As the broker wants it."""
        return SharePolicy(
            max_length=self.max_length,
            drop_oldest=self.overflow == "drop_oldest",
            ttl_s=self.ttl,
            redelivery_limit=self.redelivery_limit,
            exclusive=self.exclusive,
            one_at_a_time=self.order == "strict",
            last_value=self.last_value,
            keep_qos0=self.keep_qos0,
        )


class QueueConfig(Options):
    name: Name
    """Consumers subscribe to `$queue/NAME`."""
    filter: str | None = None
    """Which messages wait in it; left out: those that are published to `$queue/NAME`."""

    @model_validator(mode="after")
    def _filter(self) -> Self:
        if self.filter is not None:
            if self.filter.startswith("$share/"):
                raise ValueError("filter: expected a filter without $share")
            try:
                validate_topic_filter(self.filter)
            except ProtocolError as error:
                raise ValueError(f"filter: expected a topic filter: {error.detail}") from None
        return self


class OnDemand(Options):
    prefix: str = ""
    """What the names of such queues begin with."""
    made_by: Literal["consumers", "anybody"] = "consumers"
    """Who makes them: whoever subscribes to one, or whoever publishes to one as well."""
    max_queues: Count = 100
    """How many of them there may be."""


class Config(PluginConfig):
    queues: list[QueueConfig] = Field(default=[])
    """The queues that there are from the start."""
    on_demand: OnDemand | None = None
    """Whoever comes first makes a queue that isn't there; left out: nobody does."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [queue.name for queue in self.queues]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"queues: two of them are called {twice[0]}")
        return self


def _made_by_publishers(config: Config) -> bool:
    return config.on_demand is not None and config.on_demand.made_by == "anybody"


class Queue:
    """One queue as it is known here."""

    def __init__(self, name: str, topic_filter: str, options: Options) -> None:
        self.name = name
        self.topic_filter = topic_filter
        self.options = options

    @property
    def share(self) -> str:
        return share_of(self.name, self.topic_filter)


def share_of(name: str, topic_filter: str) -> str:
    """The shared subscription of a queue."""
    return f"$share/$queue.{name}/{topic_filter}"


class Queues(Plugin[Config]):
    """Durable queues."""

    undelivered = frozenset(
        {
            *("expired", "queue_full", "redelivery_limit", "packet_too_large"),
            *("refused_by_receiver", "not_authorized", "session_ended"),
        }
    )

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self.queues: dict[str, Queue] = {}
        self._deleted: dict[str, Queue] = {}  # for the dead letters of what waited in them
        self.watches = frozenset({SUBSCRIBED}) if config.on_demand is not None else frozenset()
        if not _made_by_publishers(config):
            self.unused = frozenset({"on_publish"})
        self._making = asyncio.Lock()
        self._timer: Timer | None = None

    async def start(self) -> None:
        self._table = self.broker.table()
        await self._declare_all(self.config)
        self._look()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def reload(self, config: Config) -> None:
        if (config.on_demand is None) != (self.config.on_demand is None):
            raise ValueError("on_demand can't be switched on or off while the broker runs")
        if _made_by_publishers(config) and "on_publish" in self.unused:
            raise ValueError("on_demand.made_by can't become anybody while the broker runs")
        await self._declare_all(config)
        self.config = config

    # Queues come and go.

    async def _declare_all(self, config: Config) -> None:
        declared = {queue.name: queue for queue in config.queues}
        wanted = [
            Queue(queue.name, queue.filter or PREFIX + queue.name, queue) for queue in config.queues
        ]
        for name, row in self._table.items():
            if name not in declared:
                if config.on_demand is None:
                    self.broker.log.warning(
                        "queue %s isn't declared any more: it stays, with the defaults, until it"
                        " is deleted",
                        name,
                    )
                wanted.append(Queue(name, row.decode("utf-8"), config.on_demand or Options()))
        for queue in wanted:
            self._refuse_to_lose(queue)
        for queue in wanted:
            await self._declare(queue)

    def _refuse_to_lose(self, queue: Queue) -> None:
        """ValueError where messages wait that another filter has brought."""
        row = self._table.get(queue.name)
        if row is None or row.decode("utf-8") == queue.topic_filter:
            return
        info = self.broker.share(share_of(queue.name, row.decode("utf-8")))
        if info is not None and info.queued:
            raise ValueError(
                f"queue {queue.name}: {info.queued} messages of its filter {row.decode('utf-8')}"
                f" wait, so the filter can't become {queue.topic_filter}: let them be consumed, or"
                " delete the queue"
            )

    async def _declare(self, queue: Queue) -> None:
        # Without a Receive Maximum nothing is handed to it in the moment in which it is there.
        client = await self.broker.client(PREFIX + queue.name, receive_maximum=0)
        try:
            for topic_filter in client.subscriptions:
                if topic_filter != queue.share:
                    await client.unsubscribe(topic_filter)
            if queue.share not in client.subscriptions:
                await client.subscribe(queue.share)
        finally:
            client.close()
        self.broker.govern(queue.share, queue.options.policy)
        if self._table.get(queue.name) != queue.topic_filter.encode("utf-8"):
            await self._table.set(queue.name, queue.topic_filter.encode("utf-8"))
        self.queues[queue.name] = queue

    async def _delete(self, name: str, force: bool) -> object:
        queue = self._known(name)
        if any(declared.name == name for declared in self.config.queues):
            raise ValueError(f"queue {name} is declared in the configuration: take it out first")
        info = self.broker.share(queue.share)
        waiting = 0 if info is None else info.queued
        if waiting and not force:
            raise ValueError(f"{waiting} messages wait in {name}: force=true deletes them, too")
        self._deleted[name] = self.queues.pop(name)
        self.broker.govern(queue.share, None)
        client = await self.broker.client(PREFIX + name, session_expiry_s=0)
        client.close()
        await self._table.delete(name)
        self.broker.audit("queue_delete", queue=name, messages=waiting)
        return {"deleted": name, "messages": waiting}

    def _known(self, name: object) -> Queue:
        queue = self.queues.get(name) if isinstance(name, str) else None
        if queue is None:
            raise ValueError(f"name: expected one of {', '.join(sorted(self.queues)) or 'none'}")
        return queue

    # Consumers.

    def on_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> SubscriptionRequest | Deny | None:
        topic_filter = subscription.topic_filter
        if topic_filter.startswith(PREFIX):
            share = self._share_for(topic_filter.removeprefix(PREFIX))
            if share is None:
                self.broker.count("unknown_queue")
                return Deny("no such queue", reason_codes.TOPIC_FILTER_INVALID)
        elif _SHARE.fullmatch(topic_filter):
            share = topic_filter
        else:
            return None
        # At QoS 2 what a consumer has begun goes to no other when it leaves for good.
        return replace(
            subscription, topic_filter=share, qos=min(subscription.qos, 1), no_local=False
        )

    def on_unsubscribe(self, client: Client, topic_filter: str) -> str | None:
        if not topic_filter.startswith(PREFIX):
            return None
        name = topic_filter.removeprefix(PREFIX)
        queue = self.queues.get(name)
        return share_of(name, topic_filter) if queue is None else queue.share

    def _share_for(self, name: str) -> str | None:
        queue = self.queues.get(name)
        if queue is not None:
            return queue.share
        return share_of(name, PREFIX + name) if self._may_be_made(name) else None

    def _may_be_made(self, name: str) -> bool:
        wanted = self.config.on_demand
        if wanted is None or not _NAME.fullmatch(name) or not name.startswith(wanted.prefix):
            return False
        declared = {queue.name for queue in self.config.queues}
        made = sum(each not in declared for each in self.queues)
        return made < wanted.max_queues

    async def observe(self, events: Sequence[Event]) -> None:
        """Somebody was allowed to subscribe: a queue that isn't there is made."""
        for event in events:
            found = _SHARE.fullmatch(event.topic)
            if found is None or found[1] in self.queues or found[2] != PREFIX + found[1]:
                continue
            await self._make(found[1], event.client_id)

    # Publishers.

    def on_publish(self, client: Client, message: Message) -> Awaitable[None] | None:
        """It was allowed: the queue is there before the message is routed."""
        if not message.topic.startswith(PREFIX) or not _made_by_publishers(self.config):
            return None
        name = message.topic.removeprefix(PREFIX)
        if name in self.queues or not self._may_be_made(name):
            return None
        return self._make(name, client.client_id)

    async def _make(self, name: str, client_id: str) -> None:
        async with self._making:
            options = self.config.on_demand
            if name in self.queues or options is None or not self._may_be_made(name):
                return
            await self._declare(Queue(name, PREFIX + name, options))
            self.broker.audit("queue_made", queue=name, client=client_id)

    # What a queue gives up.

    def on_undelivered(self, undelivered: Undelivered) -> Message | None:
        found = _SHARE.fullmatch(undelivered.share)
        if found is None:
            return None
        queue = self.queues.get(found[1]) or self._deleted.get(found[1])
        if queue is None or queue.options.dead_letter_topic is None:
            return None
        message = undelivered.message
        topic = _letter_topics.fill(
            queue.options.dead_letter_topic,
            queue=queue.name,
            reason=undelivered.reason,
            topic=message.topic,
        )
        if topic is None:
            self.broker.count("unpublishable")
            return None
        self.broker.count("dead_letters")
        return message.replace(
            topic=topic, qos=max(message.qos, 1), retain=False, expires_in_s=None
        )

    # The operator.

    def _look(self) -> None:
        queued = connected = 0
        for queue in self.queues.values():
            info = self.broker.share(queue.share)
            if info is None:
                continue
            queued += info.queued
            connected += info.connected
            if info.queued and not info.connected:
                # Nobody takes anything: said again, the policy is applied to what has expired.
                self.broker.govern(queue.share, queue.options.policy)
        self.broker.gauge("queues", len(self.queues))
        self.broker.gauge("queued", queued)
        self.broker.gauge("consumers", connected)
        self._timer = self.broker.call_later(LOOK_S, self._look)

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        if action == "list":
            return {"queues": [self._shown(queue) for _, queue in sorted(self.queues.items())]}
        if action == "delete":
            name = self._known(arguments.get("name")).name
            async with self._making:
                return await self._delete(name, arguments.get("force") is True)
        return await super().control(action, arguments)

    def _shown(self, queue: Queue) -> dict[str, object]:
        info = self.broker.share(queue.share)
        return {
            "name": queue.name,
            "filter": queue.topic_filter,
            "queued": 0 if info is None else info.queued,
            "consumers": 0 if info is None else info.connected,
            "declared": isinstance(queue.options, QueueConfig),
        }
