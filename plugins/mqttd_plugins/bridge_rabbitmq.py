"""`bridge_rabbitmq`: messages to the exchanges of RabbitMQ, and from its queues.

Owns: the configuration; what is declared; what each answer, and each end of a connection, means;
how a queue is consumed. `_amqp` says which property stands where, `_amqp_publisher` how a message
is published, `_amqp_connection` speaks the protocol.

Outward, everything is published on one channel in publisher-confirm mode, many messages at once; a
message is done when RabbitMQ has confirmed it, which for a durable queue and a persistent message
is when it is on disk. `mandatory` is set, so a message that no queue takes comes back and isn't
lost. Inward, a queue is consumed with a prefetch, and a message is acknowledged when it is durable
here.

Each way has a connection of its own, if there are rules for it: a RabbitMQ without memory or disk
stops to read from connections that publish, and acknowledgements shall not wait behind that.

Exchanges and queues that a rule doesn't declare have to be there: they are looked for at each
connection, and the bridge is `refused`, with the rule's place, until they are.

Must not know: what the core does with an answer.

Invariants: publishes of one connection leave in the order of `send`; acknowledgements are
cumulative and never pass a message that isn't settled.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from mqttd.api import BrokerServices, PluginConfig, Size
from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp import block_of, message_of, routing_key
from mqttd_plugins._amqp_connection import Channel, Connection, Ended, Login, words_of
from mqttd_plugins._amqp_publisher import Publisher
from mqttd_plugins._amqp_wire import Properties
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

# From its beginning: where a topic is refused, the text quotes what a publisher chose.
_TOO_LARGE: Final = re.compile(
    r"PRECONDITION_FAILED - message size \d+ is larger than (?:configured )?max size (\d+)"
)
_MOST_AHEAD: Final = 1000  # messages that come in before one of them is acknowledged
_NAME: Final = 255  # bytes of the name of a queue, an exchange, a routing key
# What stays wrong until somebody changes something: no access, not there, locked, not as declared;
# a hard error that names the configuration (bad type, not allowed, not implemented).
_REFUSALS: Final = frozenset({402, 403, 404, 405, 406, 503, 530, 540})
# A server that won't have our certificate says so by an alert, after its own handshake is over.
_TLS_REFUSAL: Final = re.compile(
    r"ALERT.*(CERT|UNKNOWN_CA|ACCESS|HANDSHAKE|PROTOCOL)", re.IGNORECASE
)


class BindingConfig(PluginConfig):
    exchange: str = "amq.topic"
    """Where its messages come from."""
    key: str = "#"
    """Of which routing keys; `*` is one word, `#` any number."""

    @model_validator(mode="after")
    def _fits_amqp(self) -> BindingConfig:
        _check_name("exchange", self.exchange)
        _check_name("key", self.key)
        return self


class QueueConfig(PluginConfig):
    type: Literal["quorum", "classic"] = "quorum"
    """`quorum` is replicated; both are durable."""
    single_active_consumer: bool = True
    """Only one consumer gets messages, the next one after what that had is back: for order."""
    arguments: dict[str, str | int | bool] = {}
    """Further arguments: `x-delivery-limit`, `x-max-length`, `x-dead-letter-exchange` …"""
    bindings: list[BindingConfig] = []
    """What is bound to it."""

    @model_validator(mode="after")
    def _fits_amqp(self) -> QueueConfig:
        for name, value in self.arguments.items():
            _check_name("arguments", name)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"arguments: {name}: {value}: AMQP's integers have 64 bits")
        return self


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
        for name in ("CC", "BCC"):
            if name in self.headers:
                raise ValueError(f"headers: {name}: RabbitMQ takes no text there: use more rules")
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
    window: Annotated[int, Field(ge=1, le=65535)] = 4096
    """Messages on their way at once, each way: RabbitMQ confirms what it wrote in one go."""
    vhost: str = "/"
    """The virtual host."""
    heartbeat: Annotated[int, Field(ge=0, le=3600)] = 60
    """Seconds between signs of life; 0: none."""
    max_message_size: Size = 128 * 1024 * 1024
    """Larger messages are dead-lettered unsent; RabbitMQ's own limit is learnt when it says so."""

    @property
    def by_certificate(self) -> bool:
        """Whether the certificate is the login."""
        return self.username is None and self.tls is not None and self.tls.cert is not None

    @model_validator(mode="after")
    def _fits_amqp(self) -> Config:
        if not self.vhost:
            raise ValueError("vhost: empty: expected a name; the first one of RabbitMQ is `/`")
        _check_name("vhost", self.vhost)
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
        await self.broker.run_blocking(_access_of, self.config)

    async def start(self) -> None:
        self._access = await self.broker.run_blocking(_access_of, self.config)
        self._largest = [self.config.max_message_size]
        await super().start()

    def remote(self) -> Remote:
        assert self._access is not None
        broker = self.broker
        return RabbitRemote(self.config, self._access, broker.name, self._largest, broker.log)


def _access_of(config: Config) -> Access:
    """Reads files. ValueError."""
    return Access(config, 5672 if config.tls is None else 5671)


class RabbitRemote(Remote):
    """One connection each way to RabbitMQ."""

    batch = 128

    def __init__(
        self,
        config: Config,
        access: Access,
        name: str,
        largest: list[int],
        log: logging.Logger,
    ) -> None:
        self._config = config
        self._access = access
        self._name = name
        self._largest = largest  # one number, shared with the connections to come
        self._log = log
        self._connections: list[Connection] = []
        self._channels: list[Channel] = []
        self._publisher: Publisher | None = None
        self._acks: _Acks | None = None
        self._intake: Intake | None = None
        self._cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def connect(self) -> None:
        rules = [rule for rule in self._config.rules if rule.direction == "out"]
        if not rules:
            return
        connection = await self._open("out")
        connection.on_blocked = self._blocked
        try:
            self._publisher = publisher = await Publisher.on(connection)
        except Ended as ended:
            raise _told(ended) from None
        self._channels.append(publisher.channel)
        for rule in rules:
            await _declare(publisher.channel, rule)

    async def _open(self, way: str) -> Connection:
        config, access = self._config, self._access
        host, port = access.address
        user = config.username or (None if config.by_certificate else "guest")
        login = Login(user, access.password or "guest", config.vhost)
        try:
            connection = await Connection.open(
                (host, port),
                login,
                tls=access.tls,
                heartbeat_s=config.heartbeat,
                name=f"mqttd {self._name} {way}",
            )
        except (Ended, OSError) as error:
            access.failed()
            raise _no_way_in(error, f"{host}:{port}", login) from None
        except asyncio.CancelledError:
            access.failed()  # it took too long
            raise
        self._connections.append(connection)
        return connection

    def _blocked(self, why: str) -> None:
        if why:
            self._log.warning("RabbitMQ takes no messages: %s; they wait", why)
        else:
            self._log.info("RabbitMQ takes messages again")

    # Outward.

    async def send(self, items: Sequence[Item], done: Done) -> None:
        publisher = self._publisher
        assert publisher is not None
        for item in items:
            try:
                exchange, key, block = self._made(item)
                if publisher.is_flying(item, exchange, key):
                    publisher.flush()
                    await publisher.until_answered(item, exchange, key)
                assert isinstance(item.rule, RabbitRule)
                mandatory = item.rule.mandatory
                publisher.publish(item, exchange, key, block, done, mandatory=mandatory)
            except Poison as poison:
                done(item, poison)
        publisher.flush()
        await self._connections[0].writable()

    def _made(self, item: Item) -> tuple[str, str, bytes]:
        """Exchange, routing key and properties. Poison for what RabbitMQ could never take."""
        rule = item.rule
        assert isinstance(rule, RabbitRule)
        size = len(item.payload)
        if size > self._largest[0]:
            raise Poison(f"too large: {size} bytes, and RabbitMQ takes {self._largest[0]}")
        key = routing_key(item, slashes=rule.slashes or not rule.exchange)
        return rule.exchange, key, block_of(item, time.time())

    # Inward.

    async def consume(self, intake: Intake) -> None:
        self._intake = intake
        connection = await self._open("in")
        share = max(1, min(intake.window, _MOST_AHEAD) // len(intake.rules))
        try:
            channel = await connection.channel()
            await channel.call(wire.QOS_OK, wire.QOS, 0, share, False)
        except Ended as ended:
            raise _told(ended) from None
        self._channels.append(channel)
        self._acks = _Acks(channel)
        channel.on_deliver = self._put
        channel.on_cancel = self._consumer_cancelled
        for number, rule in enumerate(intake.rules):
            assert isinstance(rule, RabbitRule)
            await _declare(channel, rule)
            fields = (rule.source, str(number), *[False] * 4)
            try:
                await channel.call(wire.CONSUME_OK, wire.CONSUME, 0, *fields, {})
            except Ended as ended:
                raise _told(ended, rule.place) from None

    def _put(self, consumer: str, tag: int, key: str, properties: Properties, body: bytes) -> None:
        """A message came. `room` isn't awaited, for the prefetches together are the window."""
        assert self._intake is not None
        assert self._acks is not None
        acks = self._acks
        message, headers = message_of(key, body, properties, time.time())

        def settle(failure: Failure | None) -> None:
            if failure is None:
                acks.settle(tag)

        rule, its_id = self._intake.rules[int(consumer)], properties.message_id or ""
        self._intake.put(Incoming(rule, message, settle, key=key, id=its_id, headers=headers))

    def _consumer_cancelled(self, consumer: str) -> None:
        assert self._intake is not None
        queue = self._intake.rules[int(consumer)].source
        if not self._cancelled.done():
            self._cancelled.set_result(f"queue {queue!r} is gone")

    # The end.

    async def wait(self) -> Failure:
        ends = [channel.ended for channel in self._channels]
        news: list[asyncio.Future[Any]] = [self._cancelled, *ends]
        await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        if self._cancelled.done():
            return Retry(self._cancelled.result())
        reason = next(end.result() for end in ends if end.done())
        limit = _TOO_LARGE.match(reason.text)
        if limit is not None:
            self._largest[0] = min(self._largest[0], int(limit[1]))
        if self._publisher is not None and self._publisher.refusal is not None:
            return self._publisher.refusal
        return Retry(reason.text)

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))


class _Acks:
    """Which deliveries of a channel may be acknowledged: all up to the first unsettled one.

    Their tags count from 1, without gaps.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._settled: set[int] = set()  # beyond the first one that isn't
        self._up_to = 0
        self._due = False

    def settle(self, tag: int) -> None:
        """Settled here; what may be acknowledged by then is, once for all of this turn."""
        self._settled.add(tag)
        while self._up_to + 1 in self._settled:
            self._up_to += 1
            self._settled.discard(self._up_to)
            if not self._due:
                self._due = True
                asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._due = False
        self._channel.send(wire.ACK, self._up_to, True)


async def _declare(channel: Channel, rule: RabbitRule) -> None:
    """Make what the rule says, and find out whether the rest is there. Retry or Refused."""
    try:
        if rule.direction == "out" and rule.exchange:
            kind = rule.declare_exchange
            passive, durable = kind is None, kind is not None
            await channel.call(
                wire.EXCHANGE_DECLARE_OK,
                wire.EXCHANGE_DECLARE,
                *(0, rule.exchange, kind or "topic", passive, durable, False, False, False, {}),
            )
        queue, made = rule.queue, rule.declare_queue
        if queue is None:
            return
        arguments: dict[str, Any] = {}
        if made is not None:
            arguments = {"x-queue-type": made.type, **made.arguments}
            if made.single_active_consumer:
                arguments["x-single-active-consumer"] = True
        passive, durable = made is None, made is not None
        await channel.call(
            wire.QUEUE_DECLARE_OK,
            wire.QUEUE_DECLARE,
            *(0, queue, passive, durable, False, False, False, arguments),
        )
        for binding in made.bindings if made is not None else ():
            fields = (queue, binding.exchange, binding.key)
            await channel.call(wire.QUEUE_BIND_OK, wire.QUEUE_BIND, 0, *fields, False, {})
    except Ended as ended:
        raise _told(ended, rule.place) from None


def _told(ended: Ended, place: str = "") -> Failure:
    """What an end means that came in answer to a call, for the rule at `place`."""
    text = f"RabbitMQ: {ended.text}"
    return Refused(text, place) if ended.code in _REFUSALS else Retry(text)


def _no_way_in(error: Ended | OSError, where: str, login: Login) -> Failure:
    """What an error means that kept us from opening a connection."""
    text = f"{where}: {error.text if isinstance(error, Ended) else words_of(error)}"
    if isinstance(error, Ended) and error.code == 403:
        wrong = "wrong username or password" if login.user else "the certificate is no login"
        return Refused(f"{where}: {wrong}: {error.text}")
    if isinstance(error, Ended) and error.code in _REFUSALS:
        return Refused(text)
    cause = error.__cause__ if isinstance(error, Ended) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Refused(text)
    if isinstance(cause, ssl.SSLError) and _TLS_REFUSAL.search(str(cause)):
        return Refused(text)
    return Retry(text)


def _check_name(what: str, name: str) -> None:
    if len(name.encode()) > _NAME or "\0" in name:
        raise ValueError(f"{what}: {name!r}: AMQP names have at most {_NAME} bytes and no NUL")
