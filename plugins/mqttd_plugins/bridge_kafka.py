"""`bridge_kafka`: messages to the topics of Kafka, and from them.

Owns: the configuration; what each answer of Kafka means for a message and for the connection.
`_kafka` says what stands in which header, `_kafka_out` and `_kafka_in` are the two ways.

Outward there is one idempotent producer with `acks=all`: a message is done when all replicas that
are in sync have it. What a producer sends to a partition is numbered, and Kafka takes nothing
behind a gap; so when one batch fails, the producer is given up, and the next one sends again all
that wasn't confirmed, in its order. Inward there is one consumer in a group; the offset of a record
is committed when the record, and all before it in its partition, are durable here.

Topics have to be there, unless a rule says how to make them: they are looked for at each
connection, and the bridge is `refused`, with the rule's place, until they are.

The library makes its connections again by itself and tells nobody, so the cluster is asked from
time to time whether it is there; when it isn't, the core hears of it and the state says so.

Must not know: what the core does with an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from mqttd.api import BrokerServices, Duration, PluginConfig, Size
from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.remote import Done, Failure, Intake, Item, Refused, Remote, Retry
from mqttd_plugins._bridge.rules import Rule, overlap
from mqttd_plugins._bridge_access import Access, AccessConfig
from mqttd_plugins._kafka import topic_of
from mqttd_plugins._kafka_in import Reader
from mqttd_plugins._kafka_out import Learnt, Writer

_PORT: Final = 9092
_BATCH: Final = 65536  # bytes of a batch of one partition, of which one is under way
_REFUSALS: Final = frozenset(
    {
        "AuthenticationFailedError",
        "AuthenticationMethodNotSupported",
        "ClusterAuthorizationFailedError",
        "GroupAuthorizationFailedError",
        "IllegalSaslStateError",
        "SaslAuthenticationFailed",
        "SSLCertVerificationError",
        "TopicAuthorizationFailedError",
        "UnsupportedSaslMechanismError",
    }
)


class TopicConfig(PluginConfig):
    partitions: Annotated[int, Field(ge=1)] = 1
    """How many partitions: more spread the work, and the order is kept within each."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """On how many brokers."""
    settings: dict[str, str] = {}
    """Further settings of the topic: `retention.ms`, `cleanup.policy` …"""


class KafkaRule(Rule):
    """A rule. Outward `to` is the topic and `key` the record's key; inward `from` is the topic."""

    create: TopicConfig | None = None
    """Make the topic if it isn't there; outward only where `to` names one topic."""

    @model_validator(mode="after")
    def _fits_kafka(self) -> KafkaRule:
        if self.direction == "in":
            if topic_of(self.source) != self.source:
                raise ValueError(f"from: {self.source!r} is no topic of Kafka")
        elif "{" not in self.to:
            topic_of(self.to)
        elif self.create is not None:
            raise ValueError("create: needs the name of one topic in `to`")
        return self

    @property
    def topic(self) -> str | None:
        """The topic of Kafka that the rule names; None where it may be any."""
        if self.direction == "in":
            return self.source
        return None if "{" in self.to else topic_of(self.to)


class Config(AccessConfig):
    rules: list[KafkaRule]
    """What goes which way."""
    window: Annotated[int, Field(ge=1, le=65535)] = 4096
    """Messages that may be on their way at once, each way."""
    group: str | None = None
    """The consumer group; without one `mqttd-NAME`."""
    offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where a group begins that has no offset yet."""
    session_timeout: Duration = 10.0
    """After how long without a sign of life Kafka gives the partitions to another consumer."""
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How the password is shown, if there is a username."""
    compression: Literal["none", "gzip"] = "none"
    """How batches are compressed."""
    linger: Duration = 0.005
    """How long a batch waits for more messages."""
    max_message_size: Size = 1_000_000
    """Larger records are dead-lettered unsent: the `message.max.bytes` of the cluster."""
    request_timeout: Duration = 10.0
    """How long Kafka may take to answer."""
    probe: Duration = 5.0
    """How often the cluster is asked whether it is there."""

    @model_validator(mode="after")
    def _fits_kafka(self) -> Config:
        if self.username is not None and self.password_file is None:
            raise ValueError("username: needs a password_file")
        for name in ("session_timeout", "request_timeout", "probe"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is above 0")
        if self.linger < 0:
            raise ValueError("linger is 0 or above")
        rules: list[KafkaRule] = [rule for rule in self.all_rules() if isinstance(rule, KafkaRule)]
        sources: dict[str, str] = {}
        for rule in rules:
            if rule.direction == "in":
                first = sources.setdefault(rule.source, rule.place)
                if first != rule.place:
                    raise ValueError(f"{rule.place}: {first} consumes this topic already")
                for out in rules:
                    _check_loop(out, rule)
        return self


def _check_loop(out: KafkaRule, back: KafkaRule) -> None:
    if out.direction == "out" and out.topic == back.source and overlap(back.cover(), out.source):
        raise ValueError(
            f"{out.place} and {back.place}: a loop: what {out.source!r} takes out to "
            f"{back.source!r} comes in as {back.cover()!r}, and goes out again: use other "
            f"topics for each direction"
        )


class BridgeKafka(BridgePlugin[Config]):
    """A bridge to Kafka."""

    KIND = "kafka"

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._access: Access | None = None
        self._learnt = Learnt()

    async def check(self) -> None:
        await super().check()
        await self.broker.run_blocking(_prepare, self.config)

    async def start(self) -> None:
        self._access = await self.broker.run_blocking(_prepare, self.config)
        await super().start()

    def remote(self) -> Remote:
        assert self._access is not None
        return KafkaRemote(self.config, self._access, self.broker.name, self._learnt)


def _prepare(config: Config) -> Access:
    """Find what is missing; read the files. ValueError."""
    try:
        import aiokafka  # noqa: F401
    except ImportError:
        raise ValueError('aiokafka isn\'t installed: pip install "mqttd[kafka]"') from None
    # The bridge tells of connections and their ends itself, once each, and by its state.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return Access(config, _PORT)


class KafkaRemote(Remote):
    """A producer and a consumer, from their beginning to the first failure."""

    batch = 512

    def __init__(self, config: Config, access: Access, name: str, learnt: Learnt) -> None:
        self._config = config
        self._access = access
        self._group = config.group or f"mqttd-{name}"
        self._client_id = f"mqttd-{name}"
        self._learnt = learnt
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._probing: asyncio.Task[None] | None = None
        self._over: asyncio.Future[Failure] | None = None

    def end(self, failure: Failure) -> None:
        """The connection is over; the first reason counts."""
        if self._over is not None and not self._over.done():
            self._over.set_result(failure)

    async def connect(self) -> None:
        from aiokafka import AIOKafkaProducer

        config, access = self._config, self._access
        self._over = asyncio.get_running_loop().create_future()
        host, port = access.address
        arguments = self._arguments()
        try:
            await self._knock(host, port, arguments)
        except Exception as error:
            access.failed()
            raise told(error, f"{host}:{port}") from None
        producer = AIOKafkaProducer(
            bootstrap_servers=f"{host}:{port}",
            acks="all",
            enable_idempotence=True,
            linger_ms=int(config.linger * 1000),
            max_batch_size=min(_BATCH, config.max_message_size),
            max_request_size=config.max_message_size,
            compression_type=None if config.compression == "none" else config.compression,
            **arguments,
        )
        named = [rule.topic for rule in config.rules if rule.direction == "out"]
        self._writer = Writer(
            producer,
            self._learnt,
            config.request_timeout,
            config.max_message_size,
            self.end,
            frozenset(topic for topic in named if topic is not None),
        )
        try:
            await producer.start()
            await self._look_for(config.rules)
        except Failure:
            raise
        except Exception as error:
            raise told(error, f"{host}:{port}") from None
        self._probing = asyncio.ensure_future(self._probe())

    def _arguments(self) -> dict[str, Any]:
        """What all clients of the library are told."""
        config, access = self._config, self._access
        protocol = "PLAINTEXT" if access.tls is None else "SSL"
        out: dict[str, Any] = {
            "client_id": self._client_id,
            "request_timeout_ms": int(config.request_timeout * 1000),
            "ssl_context": access.tls,
        }
        if config.username is not None:
            protocol = "SASL_SSL" if access.tls else "SASL_PLAINTEXT"
            out["sasl_plain_username"] = config.username
            out["sasl_plain_password"] = access.password
        out["sasl_mechanism"] = config.sasl
        out["security_protocol"] = protocol
        return out

    async def _knock(self, host: str, port: int, arguments: dict[str, Any]) -> None:
        """Log in once: the clients would keep to themselves why they can't."""
        from aiokafka.conn import create_conn

        connection = await create_conn(host, port, **arguments)
        connection.close()

    async def _look_for(self, rules: Sequence[KafkaRule]) -> None:
        """Make the topics that are to be made, find the others. Refused, with the rule's place."""
        assert self._writer is not None
        for rule in rules:
            topic = rule.topic
            if topic is None:
                continue
            try:
                there = await self._writer.knows(topic)
                if not there and rule.create is not None:
                    await self._make(topic, rule.create)
                    there = await self._writer.knows(topic, again=True)
            except Exception as error:
                raise told(error, "Kafka", rule.place) from None
            if not there:
                raise Refused(f"there is no topic {topic!r} at Kafka", rule.place)

    async def _make(self, topic: str, wanted: TopicConfig) -> None:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic
        from aiokafka.errors import TopicAlreadyExistsError, for_code

        host, port = self._access.address
        admin = AIOKafkaAdminClient(bootstrap_servers=f"{host}:{port}", **self._arguments())
        try:
            await admin.start()
            new = NewTopic(topic, wanted.partitions, wanted.replicas, topic_configs=wanted.settings)
            answer = await admin.create_topics([new])
        finally:
            with contextlib.suppress(Exception):
                await admin.close()
        for _, code, *text in answer.topic_errors:
            kind = for_code(code)
            if code and kind is not TopicAlreadyExistsError:
                raise kind(*[part for part in text if part])

    # Both ways.

    async def send(self, items: Sequence[Item], done: Done) -> None:
        assert self._writer is not None
        await self._writer.send(items, done)

    async def consume(self, intake: Intake) -> None:
        from aiokafka import AIOKafkaConsumer

        config = self._config
        host, port = self._access.address
        consumer = AIOKafkaConsumer(
            bootstrap_servers=f"{host}:{port}",
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset=config.offset_reset,
            session_timeout_ms=int(config.session_timeout * 1000),
            heartbeat_interval_ms=int(config.session_timeout * 300),
            **self._arguments(),
        )
        places = ", ".join(rule.place for rule in intake.rules)

        def failed(error: Exception) -> None:
            self.end(told(error, "Kafka", places))

        self._reader = Reader(consumer, intake, self.end, failed)
        self._reader.begin()

    async def _probe(self) -> None:
        """Ask the cluster from time to time; after two failures in a row it is gone."""
        assert self._writer is not None
        failed = 0
        while True:
            await asyncio.sleep(self._config.probe)
            failed = 0 if await self._writer.answers() else failed + 1
            if failed == 2:
                self.end(Retry("Kafka doesn't answer any more"))

    # The end.

    async def wait(self) -> Failure:
        assert self._over is not None
        return await self._over

    async def close(self) -> None:
        self.end(Retry("closed"))
        if self._probing is not None:
            self._probing.cancel()
        parts = [part.close() for part in (self._reader, self._writer) if part is not None]
        self._reader = self._writer = None
        await asyncio.gather(*parts, return_exceptions=True)


def told(error: Exception, where: str, place: str = "") -> Failure:
    """What an error of the library means for the connection."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    words = f"{where}: {text or type(error).__name__}"
    names = {kind.__name__ for kind in type(error).__mro__}
    return Refused(words, place) if names & _REFUSALS else Retry(words)
