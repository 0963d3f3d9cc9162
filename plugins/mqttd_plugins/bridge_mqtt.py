"""`bridge_mqtt`: messages to and from another MQTT broker, none lost, in order.

Owns: the configuration, with rules or with Mosquitto's lines; how an item becomes a PUBLISH and a
PUBLISH an incoming message; what a reason code of the remote broker means for a message.

Both sides have a session that lasts: the local one is the outbox, the remote one keeps what is
published there while the connection is down. On MQTT 5 the remote broker is asked not to send
back what the bridge itself published (No Local) and to leave the retain flag as it is; each rule in
has a subscription identifier, so it is the broker there that says which rule a message is for. On
3.1.1 there is none of that: rules that would send a message back and forth are refused.

Must not know: what the core does with an answer.

Invariants: PUBACKs leave in the order of the PUBLISHes; what an earlier connection of the same
session left unacknowledged is sent with its packet identifier and DUP [MQTT-4.4.0-1].
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mqttd.api import (
    BrokerServices,
    Duration,
    FilePath,
    Message,
    MessageProperties,
    PacketProperties,
    PluginConfig,
    ProtocolError,
    Table,
    matches,
    packets,
    reason_codes,
    validate_topic_name,
)
from mqttd_plugins._bridge.identity import stamped, with_user_properties
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
from mqttd_plugins._bridge.rules import BridgeConfig, Rule, loops, overlap, placed
from mqttd_plugins._mqtt_client import (
    MQTT5,
    MQTT311,
    Lost,
    MqttConnection,
    open_connection,
    told,
)
from mqttd_plugins._mqtt_lines import rules_of

_BACKLOG: Final = 1000  # PUBLISH that wait for room, until reading is paused
_WILL_WORK_LATER: Final = frozenset(
    {
        reason_codes.SERVER_UNAVAILABLE,
        reason_codes.SERVER_BUSY,
        reason_codes.QUOTA_EXCEEDED,
        reason_codes.CONNECTION_RATE_EXCEEDED,
        reason_codes.UNSPECIFIED_ERROR,
        reason_codes.USE_ANOTHER_SERVER,
        3,  # of MQTT 3: unavailable
    }
)
_NEVER_WORKS: Final = frozenset(
    {
        reason_codes.TOPIC_NAME_INVALID,
        reason_codes.PAYLOAD_FORMAT_INVALID,
        reason_codes.PACKET_TOO_LARGE,
    }
)
_WORDS_OF_3: Final = {
    1: "unacceptable protocol version",
    2: "client identifier rejected",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorized",
}


class MqttRule(Rule):
    """A rule. Inward, `from` is a filter at the remote broker."""

    SOURCE_IS_FILTER: ClassVar[bool] = True
    TARGET_IS_TOPIC: ClassVar[bool] = True


class TlsConfig(PluginConfig):
    ca: FilePath | None = None
    """Certificates (PEM) to trust instead of the system's."""
    cert: FilePath | None = None
    """Certificate (PEM) to show."""
    key: FilePath | None = None
    """Its key; absent: it is in `cert`."""
    server_name: str | None = None
    """The name that the certificate of the remote broker has to bear, instead of the host's."""


class Config(BridgeConfig):
    addresses: Annotated[list[str], Field(min_length=1)]
    """`HOST:PORT` or `HOST` of the remote broker; of several, the next is tried after a failure."""
    rules: list[MqttRule] = []
    """What goes which way."""
    topics: list[str] = []
    """The same as Mosquitto's lines: `PATTERN [[[out|in|both] QOS] LOCAL-PREFIX REMOTE-PREFIX]`."""
    version: Literal[5, "3.1.1"] = 5
    """The version to speak."""
    bridge_bit: bool = False
    """3.1.1: say that this is a bridge, as Mosquitto does; Mosquitto sends nothing back then."""
    remote_client_id: str | None = None
    """The client id at the remote broker; without one it is made from the bridge's origin."""
    username: str | None = None
    """User name at the remote broker."""
    password_file: FilePath | None = None
    """Holds the password."""
    tls: TlsConfig | None = None
    """Speak TLS."""
    keep_alive: Annotated[int, Field(ge=0, le=65535)] = 60
    """Seconds; 0: never ask for a sign of life."""
    session_expiry: Duration = 7 * 86400.0
    """How long the remote broker keeps the session while there is no connection."""

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            address_of(address, 1883)
        return value

    @model_validator(mode="after")
    def _fits_mqtt(self) -> Config:
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file: a password needs a username")
        if self.tls is not None and self.tls.key is not None and self.tls.cert is None:
            raise ValueError("tls: a key needs a cert")
        if self.bridge_bit and self.version == 5:
            raise ValueError("bridge_bit: MQTT 5 has No Local instead, which is used")
        if not 0 < self.session_expiry <= 0xFFFFFFFF:
            raise ValueError("session_expiry is above 0 and at most 4294967295 seconds")
        rules = self.all_rules()
        inward = [rule for rule in rules if rule.direction == "in"]
        for number, rule in enumerate(inward):
            for other in inward[:number]:
                if rule.source == other.source:
                    raise ValueError(f"{rule.place}: the same filter as {other.place}")
                if self.version != 5 and overlap(rule.source, other.source):
                    raise ValueError(
                        f"{rule.place}: its filter overlaps with {other.place}: before MQTT 5 "
                        "nothing says which of the two a message is for"
                    )
        if self.version != 5 and not self.bridge_bit:
            for text in loops(rules):
                raise ValueError(
                    f"{text}; or use version 5, or bridge_bit if the remote broker is Mosquitto"
                )
        return self

    def all_rules(self) -> list[Rule]:
        found: list[Rule] = list(super().all_rules())
        for number, line in enumerate(self.topics):
            for tree in rules_of(line):
                try:
                    rule = MqttRule.model_validate(tree)
                except ValidationError as error:
                    (first, *_) = error.errors()
                    raise ValueError(f"topics[{number}]: {line!r}: {first['msg']}") from None
                placed([rule], "topics", number)
                found.append(rule)
        return found


class _Remembered:
    """What outlasts a connection: what the remote session has of ours."""

    def __init__(self, filters: Table | None = None) -> None:
        self.filters = filters  # of the subscriptions there, by filter
        self.packet_ids: dict[int, int] = {}  # by the item's seq
        self.taken: set[int] = set()
        self.attempt = 0

    def open(self, seq: int, packet_id: int) -> None:
        self.packet_ids[seq] = packet_id
        self.taken.add(packet_id)

    def done(self, seq: int) -> None:
        packet_id = self.packet_ids.pop(seq, 0)
        self.taken.discard(packet_id)

    def forget(self) -> None:
        self.packet_ids.clear()
        self.taken.clear()


class BridgeMqtt(BridgePlugin[Config]):
    """A bridge to another MQTT broker."""

    KIND = "mqtt"

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._remembered = _Remembered()
        self._password: bytes | None = None
        self._tls: ssl.SSLContext | None = None

    async def check(self) -> None:
        await super().check()
        await self.broker.run_blocking(_read, self.config)

    async def start(self) -> None:
        self._password, self._tls = await self.broker.run_blocking(_read, self.config)
        self._remembered = _Remembered(self.broker.table("filters"))
        await super().start()

    def remote(self) -> Remote:
        config = self.config
        client_id = config.remote_client_id or f"{self.broker.name}-{self.origin}"
        return MqttRemote(config, client_id, self._password, self._tls, self._remembered)


class MqttRemote(Remote):
    """One connection to a remote broker."""

    batch = 64

    def __init__(
        self,
        config: Config,
        client_id: str,
        password: bytes | None,
        tls: ssl.SSLContext | None,
        remembered: _Remembered,
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._password = password
        self._tls = tls
        self._remembered = remembered
        self._version = MQTT5 if config.version == 5 else MQTT311
        self._connection: MqttConnection | None = None
        self._intake: Intake | None = None
        self._by_identifier: dict[int, Rule] = {}
        self._early: deque[packets.Publish] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._news = asyncio.Event()
        self._paused = False
        self._max_qos = 1
        self._may_retain = True

    async def connect(self) -> None:
        config = self._config
        address = config.addresses[self._remembered.attempt % len(config.addresses)]
        self._remembered.attempt += 1
        host, port = address_of(address, 1883 if config.tls is None else 8883)
        try:
            self._connection = await open_connection(
                host,
                port,
                self._version,
                self._arrived,
                self._tls,
                None if config.tls is None else config.tls.server_name,
            )
        except ssl.SSLCertVerificationError as error:
            raise Refused(f"{address}: its certificate: {error.verify_message}") from None
        except OSError as error:
            raise Retry(f"{address}: {error.strerror or error}") from None
        try:
            connack = await self._connection.connect(self._hello())
        except Lost as lost:
            raise Retry(f"{address}: {lost}") from None
        if connack.reason:
            words = _WORDS_OF_3.get(connack.reason) or told(connack.reason, connack.properties)
            failure = Retry if connack.reason in _WILL_WORK_LATER else Refused
            raise failure(f"{address} refuses the connection: {words}")
        self._remembered.attempt -= 1  # it serves: the same one next time
        if not connack.session_present:
            self._remembered.forget()
        properties = connack.properties
        self._max_qos = 1 if properties.maximum_qos is None else min(properties.maximum_qos, 1)
        self._may_retain = properties.retain_available != 0
        await self._forget_subscriptions()

    async def _forget_subscriptions(self) -> None:
        """Take back what no rule asks for any more."""
        filters, connection = self._remembered.filters, self._connection
        if filters is None or connection is None:
            return
        wanted = {rule.source for rule in self._config.all_rules() if rule.direction == "in"}
        for name, _ in filters.items():
            if name not in wanted:
                try:
                    await connection.unsubscribe(name)
                except Lost as lost:
                    raise Retry(str(lost)) from None
                filters.delete(name)

    def _hello(self) -> packets.Connect:
        config = self._config
        properties = PacketProperties()
        if self._version == MQTT5:
            properties.session_expiry_interval = int(config.session_expiry)
            properties.receive_maximum = config.window
        return packets.Connect(
            version=self._version,
            clean_start=False,
            keep_alive=config.keep_alive,
            client_id=self._client_id,
            username=config.username,
            password=self._password,
            properties=properties,
            bridge=config.bridge_bit,
        )

    # Outward.

    async def send(self, items: Sequence[Item], done: Done) -> None:
        connection = self._connection
        assert connection is not None
        for item in items:
            await connection.room()
            try:
                self._send(connection, item, done)
            except ProtocolError as error:
                done(item, Poison(f"{item.place}: to: makes no topic: {error.detail}"))
            except Failure as failure:
                done(item, failure)

    def _send(self, connection: MqttConnection, item: Item, done: Done) -> None:
        validate_topic_name(item.target)
        if item.qos > self._max_qos:
            raise Refused("the remote broker takes QoS 0 only: give the rule qos 0", item.place)
        message = item.message
        expiry = packets.NO_EXPIRY
        block = b""
        if self._version == MQTT5:
            properties = stamped(message.properties, item.id, item.via)
            if item.headers:
                properties = with_user_properties(properties, item.headers)
            if item.rule.payload == "envelope":
                properties = MessageProperties(1, "application/json")
                properties = stamped(properties, item.id, item.via)
            block = properties.encoded()
            if message.expires_in_s is not None:
                expiry = max(0, math.ceil(message.expires_in_s))
        remembered = self._remembered
        known = remembered.packet_ids.get(item.seq, 0)
        publish = packets.Publish(
            item.target,
            item.payload,
            item.qos,
            message.retain and item.rule.retain and self._may_retain,
            known > 0,
            known,
            block,
            0,
            expiry,
        )
        if item.qos == 0:
            sent = connection.publish(publish, None)
            done(item, None if sent else self._too_large())
            return

        def acknowledged(puback: packets.Puback) -> None:
            remembered.done(item.seq)
            done(item, _meaning(puback, item))

        if connection.publish(publish, acknowledged, remembered.taken):
            remembered.open(item.seq, publish.packet_id)
        else:
            raise self._too_large()

    def _too_large(self) -> Poison:
        assert self._connection is not None
        return Poison(f"too large: the remote broker takes {self._connection.largest} bytes")

    # Inward.

    async def consume(self, intake: Intake) -> None:
        connection = self._connection
        assert connection is not None
        self._intake = intake
        self._by_identifier = {number + 1: rule for number, rule in enumerate(intake.rules)}
        self._reader = asyncio.ensure_future(self._hand_over(connection, intake))
        for identifier, rule in self._by_identifier.items():
            new = self._version == MQTT5
            if self._remembered.filters is not None:
                await self._remembered.filters.set(rule.source, b"")
            entry = packets.Filter(rule.source, rule.qos, new, new, 1 if new else 0)
            try:
                reason = await connection.subscribe(entry, identifier if new else 0)
            except Lost as lost:
                raise Retry(str(lost)) from None
            if reason >= 0x80:
                words = told(reason, None)
                raise Refused(f"can't subscribe to {rule.source!r}: {words}", rule.place)

    def _arrived(self, publish: packets.Publish) -> None:
        self._early.append(publish)
        self._news.set()
        if len(self._early) > _BACKLOG and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()

    async def _hand_over(self, connection: MqttConnection, intake: Intake) -> None:
        """Give the core what came, when it has room."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._early:
                await intake.room()
                self._put(connection, intake, self._early.popleft())
                if self._paused and len(self._early) < _BACKLOG // 2:
                    self._paused = False
                    connection.resume_reading()

    def _put(self, connection: MqttConnection, intake: Intake, publish: packets.Publish) -> None:
        found = self._rules_for(publish, intake)
        left = len(found)

        def settle(failure: Failure | None) -> None:
            nonlocal left
            if failure is None:
                left -= 1
            if left <= 0 and publish.qos:
                connection.acknowledge(publish.packet_id)

        if not found:  # of a subscription that no rule asks for any more
            settle(None)
            return
        expiry = publish.message_expiry
        message = Message(
            publish.topic,
            publish.payload,
            publish.qos,
            publish.retain,
            None,
            float(expiry) if expiry >= 0 else None,
            block=publish.properties,
        )
        for rule in found:
            intake.put(Incoming(rule, message, settle))

    def _rules_for(self, publish: packets.Publish, intake: Intake) -> list[Rule]:
        if publish.subscription_ids:
            known = self._by_identifier
            named = [known[each] for each in publish.subscription_ids if each in known]
            found = [rule for rule in named if matches(rule.source, publish.topic)]
            if found:
                return found
        # Before MQTT 5, or the identifiers are those of rules as they were once.
        for rule in intake.rules:
            if matches(rule.source, publish.topic):
                return [rule]
        return []

    # The end.

    async def wait(self) -> Failure:
        assert self._connection is not None
        return Retry(str(await asyncio.shield(self._connection.lost)))

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._connection is not None:
            self._connection.disconnect()


def _meaning(puback: packets.Puback, item: Item) -> Failure | None:
    """What an acknowledgement says about a message."""
    if puback.reason < 0x80:
        return None
    words = f"the remote broker refuses {item.target!r}: {told(puback.reason, puback.properties)}"
    return Poison(words) if puback.reason in _NEVER_WORKS else Retry(words)


def address_of(address: str, port: int) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`. ValueError."""
    host, colon, number = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, number = address, str(port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not number.isascii() or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ValueError(f"{address!r} is no address: expected HOST or HOST:PORT")
    return host, int(number)


def _read(config: Config) -> tuple[bytes | None, ssl.SSLContext | None]:
    """The password and the certificates. ValueError names the file that is no good."""
    password = None
    if config.password_file is not None:
        password = _bytes_of(config.password_file).strip()
        if not password:
            raise ValueError(f"{config.password_file}: empty: expected a password")
    tls = config.tls
    if tls is None:
        return password, None
    context = _context(tls.ca)
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"{tls.cert}: no certificate with its key: {error}") from None
    return password, context


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{ca}: no certificates: {error}") from None


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
