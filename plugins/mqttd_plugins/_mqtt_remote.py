"""One connection of `bridge_mqtt`: items become PUBLISHes, PUBLISHes become incoming messages.

Owns: what a reason code of the remote broker means for a message; what has to be remembered from
one connection of a session to the next. `Remembered` holds the packet identifiers that the remote
session has open, and the ids of what came in: MQTT has none, so a message gets one when it first
comes, kept by its packet identifier; a redelivery has the DUP flag and the same packet identifier
[MQTT-4.4.0-1], hence the same id, until the identifier is used for another message.

Must not know: what the core does with an answer.

Invariants: PUBACKs leave in the order of the PUBLISHes; what an earlier connection of the same
session left unacknowledged is sent with its packet identifier and DUP; the row with the id of what
came in is durable before the message is published, so nobody sees an id that could be forgotten.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Final

from mqttd.api import (
    Message,
    MessageProperties,
    NoRoom,
    PacketProperties,
    ProtocolError,
    Table,
    matches,
    packets,
    reason_codes,
    validate_topic_name,
)
from mqttd_plugins._bridge import identity
from mqttd_plugins._bridge.identity import digest_of, stamped, with_user_properties
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
from mqttd_plugins._bridge_access import Access
from mqttd_plugins._mqtt_client import (
    MQTT5,
    MQTT311,
    Lost,
    MqttConnection,
    open_connection,
    told,
)
from mqttd_plugins._mqtt_config import Config

_START: Final = "start"
_NO_ROOM_S: Final = 0.5  # until a full disk is asked again
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


class Remembered:
    """What outlasts a connection."""

    def __init__(self, filters: Table, arrivals: Table, origin: str) -> None:
        self.filters = filters  # of the subscriptions there
        self.packet_ids: dict[int, int] = {}  # of what is unacknowledged there, by the item's seq
        self.taken: set[int] = set()
        self._arrivals = arrivals
        self._origin = origin
        self._start = int(arrivals.get(_START) or b"0") + 1
        self._last = 0

    async def begin(self) -> None:
        """A new process: ids that it gives have never been given."""
        await self._arrivals.set(_START, str(self._start).encode())

    def open(self, seq: int, packet_id: int) -> None:
        self.packet_ids[seq] = packet_id
        self.taken.add(packet_id)

    def done(self, seq: int) -> None:
        packet_id = self.packet_ids.pop(seq, 0)
        self.taken.discard(packet_id)

    def forget(self) -> None:
        """The remote session is a new one."""
        self.packet_ids.clear()
        self.taken.clear()
        for key, _ in self._arrivals.items():
            if key != _START:
                self._arrivals.delete(key)

    def id_of(
        self, publish: packets.Publish, message: Message
    ) -> tuple[str, Awaitable[None] | None]:
        """The id of what came in, and what it waits for; "" where it has one, or needs none."""
        if publish.qos == 0 or identity.id_of(message.properties):
            return "", None
        key = str(publish.packet_id)
        digest = digest_of(message)
        row = self._arrivals.get(key)
        if not (publish.dup and row is not None and row.startswith(digest)):
            self._last += 1
            row = digest + f"{self._start:x}-{self._last:x}".encode()
        number = row[len(digest) :].decode()
        return f"{self._origin}-i{number}", self._arrivals.set(key, row)


class MqttRemote(Remote):
    """One connection to a remote broker."""

    batch = 64

    def __init__(
        self,
        config: Config,
        client_id: str,
        access: Access,
        remembered: Remembered,
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._access = access
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
        rules = config.all_rules()
        self._sources = {rule.source for rule in rules if rule.direction == "in"}

    async def connect(self) -> None:
        try:
            connack = await self._open()
        except Failure:
            self._access.failed()
            raise
        if not connack.session_present:
            self._remembered.forget()
        properties = connack.properties
        self._max_qos = 1 if properties.maximum_qos is None else min(properties.maximum_qos, 1)
        self._may_retain = properties.retain_available != 0
        if not self._sources:
            await self._forget_subscriptions()

    async def _open(self) -> packets.Connack:
        config, access = self._config, self._access
        host, port = access.address
        where = f"{host}:{port}"
        name = None if config.tls is None else config.tls.server_name
        try:
            self._connection = await open_connection(
                host, port, self._version, self._arrived, access.tls, name
            )
        except ssl.SSLCertVerificationError as error:
            raise Refused(f"{where}: its certificate: {error.verify_message}") from None
        except OSError as error:
            raise Retry(f"{where}: {error.strerror or error}") from None
        try:
            connack = await self._connection.connect(self._hello())
        except Lost as lost:
            raise Retry(f"{where}: {lost}") from None
        if connack.reason:
            words = _WORDS_OF_3.get(connack.reason) or told(connack.reason, connack.properties)
            failure = Retry if connack.reason in _WILL_WORK_LATER else Refused
            raise failure(f"{where} refuses the connection: {words}")
        return connack

    async def _forget_subscriptions(self) -> None:
        """Take back what no rule asks for any more; after the new ones are there, so that what an
        old filter matched and a new one does isn't missed."""
        filters, connection = self._remembered.filters, self._connection
        assert connection is not None
        for name, _ in filters.items():
            if name not in self._sources:
                try:
                    await connection.unsubscribe(name)
                except Lost as lost:
                    raise Retry(str(lost)) from None
                filters.delete(name)

    def _hello(self) -> packets.Connect:
        config, password = self._config, self._access.password
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
            password=None if password is None else password.encode(),
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
            await self._remembered.filters.set(rule.source, b"")
            entry = packets.Filter(rule.source, rule.qos, new, new, 1 if new else 0)
            try:
                reason = await connection.subscribe(entry, identifier if new else 0)
            except Lost as lost:
                raise Retry(str(lost)) from None
            if reason >= 0x80:
                words = told(reason, None)
                raise Refused(f"can't subscribe to {rule.source!r}: {words}", rule.place)
        await self._forget_subscriptions()

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
                try:
                    self._put(connection, intake, self._early[0])
                except NoRoom:  # for the row of its id: it waits, unacknowledged
                    await asyncio.sleep(_NO_ROOM_S)
                    continue
                self._early.popleft()
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
        its_id, ready = self._remembered.id_of(publish, message)
        for rule in found:
            intake.put(Incoming(rule, message, settle, id=its_id, ready=ready))

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
            await asyncio.wait([self._reader])
        if self._connection is not None:
            self._connection.disconnect()


def _meaning(puback: packets.Puback, item: Item) -> Failure | None:
    """What an acknowledgement says about a message."""
    if puback.reason < 0x80:
        return None
    words = f"the remote broker refuses {item.target!r}: {told(puback.reason, puback.properties)}"
    return Poison(words) if puback.reason in _NEVER_WORKS else Retry(words)
