"""`bridge_rabbitmq`: messages to the exchanges of RabbitMQ, and from its queues.

Owns: the configuration; how an item is published with a confirm, and what each answer means; how a
queue is consumed. `_amqp` says which property stands where.

Outward, everything is published on one channel in publisher-confirm mode, many messages at once; a
message is done when RabbitMQ has confirmed it, which for a durable queue and a persistent message
is when it is on disk. `mandatory` is set, so a message that no queue takes comes back and isn't
lost. Inward, a queue is consumed with a prefetch, and a message is acknowledged when it is durable
here.

Exchanges and queues that a rule doesn't declare have to be there: they are looked for at each
connection, and the bridge is `refused`, with the rule's place, until they are.

It stands on aiormq, which is the part of aio-pika that speaks AMQP; what aio-pika adds (declaring
all again by itself, its own reconnects) the core of the bridges does in its own way.

Must not know: what the core does with an answer.

Invariants: publishes of one connection leave in the order of `send`; two of the same message id are
never under way at once, since a returned message is recognised by that id; acknowledgements are
cumulative and never pass a message that isn't settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, model_validator

from mqttd.api import BrokerServices, PluginConfig, Size
from mqttd_plugins._amqp import check_size, message_of, properties_of, routing_key
from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.remote import (
    Done,
    Failure,
    Incoming,
    Intake,
    Item,
    Poison,
    Refused,
    Remote,
    Retry,
)
from mqttd_plugins._bridge.rules import Rule
from mqttd_plugins._bridge_access import Access, AccessConfig

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

T = TypeVar("T")

_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
_NAME: Final = 255  # bytes of the name of a queue, an exchange, a routing key


class BindingConfig(PluginConfig):
    exchange: str = "amq.topic"
    """Where its messages come from."""
    key: str = "#"
    """Of which routing keys; `*` is one word, `#` any number."""


class QueueConfig(PluginConfig):
    type: Literal["quorum", "classic"] = "quorum"
    """`quorum` is replicated; both are durable."""
    single_active_consumer: bool = True
    """Only one consumer gets messages, the next one after what that had is back: for order."""
    arguments: dict[str, str | int | bool] = {}
    """Further arguments: `x-delivery-limit`, `x-max-length`, `x-dead-letter-exchange` …"""
    bindings: list[BindingConfig] = []
    """What is bound to it."""


class RabbitRule(Rule):
    """A rule. Outward `to` is the routing key; inward `from` is a queue."""

    exchange: str = "amq.topic"
    """Outward: the exchange; `""` leads to the queue that `to` names."""
    declare_exchange: Literal["topic", "direct", "fanout", "headers"] | None = None
    """Outward: make the exchange, of this type and durable, if it isn't there."""
    declare_queue: QueueConfig | None = None
    """Make the queue if it isn't there; outward only with `exchange: ""`."""
    slashes: bool = False
    """Outward: leave `/` in routing keys as they are, rather than to make them `.`."""
    mandatory: bool = True
    """Outward: a message that no queue takes is a failure; false: RabbitMQ drops it."""

    @model_validator(mode="after")
    def _fits_rabbitmq(self) -> RabbitRule:
        if self.direction == "in":
            for name in ("exchange", "declare_exchange", "slashes", "mandatory"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name}: only rules with `direction: out` have it")
            _check_name("from", self.source)
            return self
        _check_name("exchange", self.exchange)
        if self.declare_exchange is not None and self.exchange.startswith("amq."):
            raise ValueError(f"declare_exchange: {self.exchange!r} is RabbitMQ's own")
        if self.exchange == "":
            if self.declare_exchange is not None:
                raise ValueError("declare_exchange: the exchange without a name is RabbitMQ's own")
            if "{" not in self.to:
                _check_name("to", self.to)
        if self.declare_queue is not None and (self.exchange or "{" in self.to):
            raise ValueError(
                'declare_queue: outward it needs `exchange: ""` and the name of one queue in `to`'
            )
        return self

    @property
    def queue(self) -> str | None:
        """The queue that the rule names; None where it names none, or many."""
        if self.direction == "in":
            return self.source
        return None if self.exchange or "{" in self.to else self.to


class Config(AccessConfig):
    rules: list[RabbitRule]
    """What goes which way."""
    window: Annotated[int, Field(ge=1, le=65535)] = 1000
    """Messages on their way at once, each way: RabbitMQ confirms what it wrote in one go."""
    vhost: str = "/"
    """The virtual host."""
    heartbeat: Annotated[int, Field(ge=0, le=3600)] = 60
    """Seconds between signs of life; 0: none."""
    max_message_size: Size = 128 * 1024 * 1024
    """Larger messages are dead-lettered unsent; RabbitMQ's own limit is learnt when it says so."""

    @model_validator(mode="after")
    def _fits_amqp(self) -> Config:
        if not self.vhost:
            raise ValueError("vhost: empty: expected a name; the first one of RabbitMQ is `/`")
        if self.username not in (None, "guest") and self.password_file is None:
            raise ValueError("username: needs a password_file")
        queues: dict[str, str] = {}
        for rule in self.all_rules():
            if rule.direction == "in" and queues.setdefault(rule.source, rule.place) != rule.place:
                raise ValueError(f"{rule.place}: {queues[rule.source]} consumes this queue already")
        return self


class BridgeRabbitMQ(BridgePlugin[Config]):
    """A bridge to RabbitMQ."""

    KIND = "rabbitmq"

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._access: Access | None = None
        self._largest = [config.max_message_size]  # as far as is known by now

    async def check(self) -> None:
        await super().check()
        await self.broker.run_blocking(_prepare, self.config)

    async def start(self) -> None:
        self._access = await self.broker.run_blocking(_prepare, self.config)
        self._largest = [self.config.max_message_size]
        await super().start()

    def remote(self) -> Remote:
        assert self._access is not None
        return RabbitRemote(self.config, self._access, self.broker.name, self._largest)


def _prepare(config: Config) -> Access:
    """Find what is missing; read the files. ValueError."""
    try:
        import aiormq  # noqa: F401
    except ImportError:
        raise ValueError('aiormq isn\'t installed: pip install "mqttd[rabbitmq]"') from None
    # The bridge tells of connections and their ends itself, once each, and by its state.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    return Access(config, 5672 if config.tls is None else 5671)


class RabbitRemote(Remote):
    """One connection to RabbitMQ."""

    batch = 64

    def __init__(self, config: Config, access: Access, name: str, largest: list[int]) -> None:
        self._config = config
        self._access = access
        self._name = name
        self._largest = largest  # one number, shared with the connections to come
        self._connection: AbstractConnection | None = None
        self._out: AbstractChannel | None = None
        self._in: AbstractChannel | None = None
        self._acks: _Acks | None = None
        self._intake: Intake | None = None
        self._publishing: dict[str, asyncio.Task[None]] = {}
        self._acking: asyncio.Task[None] | None = None
        self._cancelled: asyncio.Future[str] | None = None

    async def connect(self) -> None:
        import aiormq
        from yarl import URL

        config, access = self._config, self._access
        host, port = access.address
        where = f"{host}:{port}"
        url = URL.build(
            scheme="amqp" if access.tls is None else "amqps",
            user=config.username or "guest",
            password=access.password or "guest",
            host=host,
            port=port,
            path="/" if config.vhost == "/" else f"/{config.vhost}",
            query={"heartbeat": str(config.heartbeat), "name": f"mqttd {self._name}"},
        )
        self._cancelled = asyncio.get_running_loop().create_future()
        self._connection = connection = aiormq.Connection(url, context=access.tls)
        try:
            await _ours(connection.connect())
            self._out = await _ours(connection.channel(publisher_confirms=True))
        except Exception as error:
            access.failed()
            if isinstance(error, aiormq.exceptions.InvalidFrameError) and "OpenOk" in str(error):
                # The library expects that opening a virtual host works, and loses the answer.
                raise Refused(
                    f"{where}: no way into the virtual host {config.vhost!r}: it isn't there, or "
                    "this user has no right to it"
                ) from None
            raise _told(error, where) from None
        for rule in config.rules:
            if rule.direction == "out":
                await self._declare(self._out, rule)

    async def _declare(self, channel: AbstractChannel, rule: RabbitRule) -> None:
        """Make what the rule says, and find out whether the rest is there."""
        try:
            if rule.direction == "out" and rule.exchange:
                kind = rule.declare_exchange
                await _ours(
                    channel.exchange_declare(
                        rule.exchange,
                        exchange_type=kind or "topic",
                        passive=kind is None,
                        durable=kind is not None,
                    )
                )
            queue, made = rule.queue, rule.declare_queue
            if queue is None:
                return
            if made is None:
                await _ours(channel.queue_declare(queue, passive=True))
                return
            arguments: dict[str, Any] = {"x-queue-type": made.type, **made.arguments}
            if made.single_active_consumer:
                arguments["x-single-active-consumer"] = True
            await _ours(channel.queue_declare(queue, durable=True, arguments=arguments))
            for binding in made.bindings:
                await _ours(channel.queue_bind(queue, binding.exchange, binding.key))
        except Exception as error:
            raise _told(error, "RabbitMQ", rule.place) from None

    # Outward.

    async def send(self, items: Sequence[Item], done: Done) -> None:
        channel = self._out
        assert channel is not None
        for item in items:
            earlier = self._publishing.get(item.id)
            if earlier is not None:
                await asyncio.wait([earlier])
            try:
                publish = self._publish_of(item)
            except Poison as poison:
                done(item, poison)
                continue
            task = asyncio.ensure_future(self._publish(channel, item, publish, done))
            self._publishing[item.id] = task

    def _publish_of(self, item: Item) -> dict[str, Any]:
        """The arguments of `basic_publish`. Poison for what RabbitMQ could never take."""
        from aiormq import spec

        assert self._connection is not None
        assert isinstance(item.rule, RabbitRule)
        size = len(item.payload)
        if size > self._largest[0]:
            raise Poison(f"too large: {size} bytes, and RabbitMQ takes {self._largest[0]}")
        rule = item.rule
        properties = properties_of(item, time.time())
        check_size(properties, self._connection.connection_tune.frame_max)
        return {
            "body": item.payload,
            "exchange": rule.exchange,
            "routing_key": routing_key(item, slashes=rule.slashes or not rule.exchange),
            "properties": spec.Basic.Properties(**properties),
            "mandatory": rule.mandatory,
            "wait": False,  # for the confirm it waits all the same
        }

    async def _publish(
        self, channel: AbstractChannel, item: Item, publish: dict[str, Any], done: Done
    ) -> None:
        """Publish and wait for the confirm. Without an answer the connection is over."""
        from aiormq import exceptions

        try:
            await channel.basic_publish(**publish)
        except exceptions.PublishError:
            target = f"exchange {publish['exchange']!r}, routing key {publish['routing_key']!r}"
            failure: Failure | None = Retry(f"unroutable: no queue takes it ({target})")
        except exceptions.DeliveryError:
            failure = Retry("RabbitMQ refuses it (basic.nack): the queue is full, or it failed")
        except (exceptions.AMQPError, RuntimeError, OSError):
            return
        else:
            failure = None
        finally:
            self._publishing.pop(item.id, None)
        done(item, failure)

    # Inward.

    async def consume(self, intake: Intake) -> None:
        assert self._connection is not None
        self._intake = intake
        try:
            channel = await _ours(self._connection.channel(publisher_confirms=False))
            share = max(1, intake.window // len(intake.rules))
            await _ours(channel.basic_qos(prefetch_count=share))
        except Exception as error:
            raise _told(error, "RabbitMQ") from None
        self._in = channel
        self._acks = acks = _Acks()
        self._acking = asyncio.ensure_future(acks.write(channel))
        channel.on_consumer_cancel_callbacks.add(self._consumer_cancelled)
        for number, rule in enumerate(intake.rules):
            assert isinstance(rule, RabbitRule)
            await self._declare(channel, rule)
            try:
                tag = f"mqttd-{number}"
                await _ours(
                    channel.basic_consume(rule.source, self._consumer(rule), consumer_tag=tag)
                )
            except Exception as error:
                raise _told(error, "RabbitMQ", rule.place) from None

    def _consumer(self, rule: RabbitRule) -> Any:
        async def arrived(delivered: DeliveredMessage) -> None:
            # No await in here: the tasks of one channel run in the order of its deliveries.
            # Nor need `room` be awaited, for the prefetches together are the window.
            self._put(rule, delivered)

        return arrived

    def _put(self, rule: RabbitRule, delivered: DeliveredMessage) -> None:
        assert self._intake is not None
        assert self._acks is not None
        acks, tag = self._acks, delivered.delivery_tag
        assert tag is not None
        acks.came(tag)
        key = delivered.routing_key or ""
        properties = delivered.header.properties
        message, headers = message_of(key, delivered.body, properties, time.time())

        def settle(failure: Failure | None) -> None:
            if failure is None:
                acks.settle(tag)

        self._intake.put(
            Incoming(
                rule, message, settle, key=key, id=properties.message_id or "", headers=headers
            )
        )

    def _consumer_cancelled(self, frame: Any) -> None:
        assert self._cancelled is not None
        assert self._intake is not None
        number = int(str(frame.consumer_tag).rpartition("-")[2])
        queue = self._intake.rules[number].source
        if not self._cancelled.done():
            self._cancelled.set_result(f"queue {queue!r} is gone")

    # The end.

    async def wait(self) -> Failure:
        assert self._connection is not None
        assert self._cancelled is not None
        ends = [each.closing for each in (self._out, self._in, self._connection) if each]
        await asyncio.wait([self._cancelled, *ends], return_when=asyncio.FIRST_COMPLETED)
        if self._cancelled.done():
            return Retry(self._cancelled.result())
        for end in ends:
            if end.done() and not end.cancelled() and (error := end.exception()) is not None:
                limit = _TOO_LARGE.search(str(error))
                if limit is not None:
                    self._largest[0] = min(self._largest[0], int(limit[1]))
                return Retry(_words(error))
        return Retry("the connection ended")

    async def close(self) -> None:
        tasks = list(self._publishing.values())
        if self._acking is not None:
            tasks.append(self._acking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close()


class _Acks:
    """Which deliveries of a channel may be acknowledged: all up to the first unsettled one."""

    def __init__(self) -> None:
        self._settled: dict[int, bool] = {}  # by delivery tag, in the order in which they came
        self._up_to = 0
        self._news = asyncio.Event()

    def came(self, tag: int) -> None:
        self._settled[tag] = False

    def settle(self, tag: int) -> None:
        self._settled[tag] = True
        while self._settled:
            first = next(iter(self._settled))
            if not self._settled[first]:
                break
            del self._settled[first]
            self._up_to = first
            self._news.set()

    async def write(self, channel: AbstractChannel) -> None:
        """Acknowledge what may be acknowledged, until it is cancelled or the channel ends."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await channel.basic_ack(self._up_to, multiple=True, wait=False)
            except Exception:  # the channel is closed: everything comes again
                return


async def _ours(call: Coroutine[Any, Any, T]) -> T:
    """Await a call of the library.

    When a connection ends the library may cancel what it has under way, which is not to be taken
    for the cancellation of whoever waits for it.
    """
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the connection ended") from None


def _told(error: Exception, where: str, place: str = "") -> Failure:
    """What an error of a connection, or of a declaration by the rule at `place`, means."""
    from aiormq import exceptions as known

    words = f"{where}: {_words(error)}"
    code = error.args[0] if type(error) is known.ConnectionClosed and error.args else None
    if isinstance(error, known.AuthenticationError | known.ProbableAuthenticationError):
        return Refused(f"{where}: wrong username or password: {_words(error)}")
    if isinstance(error, known.ConnectionNotAllowed) or code in (403, 530):
        return Refused(words)
    if isinstance(error, known.ChannelClosed):
        return Refused(words, place)
    if type(error).__name__ == "SSLCertVerificationError":
        return Refused(words)
    return Retry(words)


def _words(error: BaseException) -> str:
    """An error of the library in words; its own texts are made for programmers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    texts = [str(part) for part in error.args if isinstance(part, str) and part]
    return " ".join(texts) or type(error).__name__


def _check_name(what: str, name: str) -> None:
    if len(name.encode()) > _NAME or "\0" in name:
        raise ValueError(f"{what}: {name!r}: AMQP names have at most {_NAME} bytes and no NUL")
