"""`bridge_activemq`: messages to queues and topics of ActiveMQ, and from them, by STOMP 1.2.

Owns: the configuration; which property of MQTT 5 is which header; how items are sent and what an
answer means; how a destination is consumed. It works with ActiveMQ Classic and, since it needs
nothing but STOMP, with Artemis.

Outward, what waits is sent in transactions: ActiveMQ writes each persistent message to its journal
before it goes on to the next, but a transaction as a whole. A transaction is filled while the one
before it is being committed, and is committed after that: a server that refuses one frame may still
do the next, and order would be lost. The messages are done when the commit has its receipt. After a
refusal ActiveMQ ends the connection and doesn't say which message it was about; so the messages of
what was unanswered are sent again with a receipt for each, and each waits for the one before it.

Inward, a destination is consumed with a prefetch and individual acknowledgements; a subscription to
a topic lasts if it has a name.

ActiveMQ puts meaning into headers: `transformation`, `AMQ_SCHEDULED_DELAY`, `JMSXGroupID`, and into
names of destinations: `a,b` is two of them, `*` and `>` are many. What a publisher of MQTT chooses
must not do any of that: such user properties get "mqtt-user-" in front of their name, and such
targets are dead-lettered.

Must not know: what the core does with an answer.

Invariants: no more than one commit is unanswered, and no more than one transaction is open; an item
is answered only by the receipt of its transaction or by the ERROR that names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from pydantic import Field, model_validator

from mqttd.api import BrokerServices, Size
from mqttd_plugins._bridge.identity import ID, VIA
from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.properties import (
    CORRELATION,
    EXPIRES_AT,
    OURS,
    all_of,
    headers_of,
    message_from,
    once_each,
)
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
from mqttd_plugins._stomp import Frame, StompConnection, StompError, encoded

ALL_HEADERS: Final = "mqtt-user-properties"
KEY: Final = "mqttd-key"
_USER: Final = "mqtt-user-"
_KINDS: Final = ("/queue/", "/topic/")
_MANY: Final = frozenset(",?*>")
"""What makes more than one destination of a name, or gives it options."""
_TARGETS: Final = 10_000  # whose destination is remembered
_REMEMBERED: Final = 512  # letters of such a target: publishers choose them
_LONGEST: Final = 65535  # bytes of a string in MQTT
_MEANT: Final = frozenset(
    {
        *("destination", "transaction", "receipt", "content-length", "content-type", "id", "ack"),
        *("subscription", "message-id", "message", "correlation-id", "reply-to", "expires"),
        *("priority", "type", "persistent", "timestamp", "redelivered", "transformation"),
        *(
            "transformation-error",
            "selector",
            "browser",
            "login",
            "passcode",
            "original-destination",
        ),
        *("client-id", "receipt-id", "durable", "destination-type", "ttl", ALL_HEADERS, KEY),
    }
)
_MEANT_BEGINNINGS: Final = ("JMS", "AMQ_", "_AMQ", "_HQ", "activemq.", "amq-", "transformation")
_ARTEMIS_ID: Final = re.compile(r"\d+,(\d+)")
_ALSO: Final = {"reply-to": "stomp-reply-to", "type": "stomp-type"}


class ActiveMQRule(Rule):
    """A rule. `to` (outward) and `from` (inward) are `/queue/NAME` or `/topic/NAME`."""

    slashes: bool = False
    """Outward: leave `/` in names as they are, rather than to make them `.`."""
    group: bool = False
    """Outward: send the key as `JMSXGroupID`, so that one consumer gets all of a key."""
    durable: str | None = None
    """Inward from a topic: the name of a subscription that outlasts the connection."""
    selector: str | None = None
    """Inward: only messages for which this is true, in the SQL of JMS."""

    @model_validator(mode="after")
    def _fits_activemq(self) -> ActiveMQRule:
        out = self.direction == "out"
        for name in ("durable", "selector") if out else ("slashes", "group"):
            if name in self.model_fields_set:
                way = "in" if out else "out"
                raise ValueError(f"{name}: only rules with `direction: {way}` have it")
        what, text = ("to", self.to) if out else ("from", self.source)
        if not text.startswith(_KINDS) or text in _KINDS:
            raise ValueError(f"{what}: {text!r}: expected /queue/NAME or /topic/NAME")
        if out and (found := _several(text)):
            raise ValueError(f"to: {text!r}: {found!r} would make several destinations of it")
        if not out and self.durable is not None and not text.startswith("/topic/"):
            raise ValueError("durable: a queue lasts without it; it is for topics")
        return self


class Config(AccessConfig):
    rules: list[ActiveMQRule]
    """What goes which way."""
    window: Annotated[int, Field(ge=1, le=65535)] = 1000
    """Messages on their way at once, each way: what fills the next transaction while one is out."""
    vhost: str | None = None
    """The `host` header at the login; without one the host of the address."""
    heartbeat: Annotated[int, Field(ge=0, le=3600)] = 10
    """Seconds between signs of life; 0: none."""
    stomp_client_id: str | None = None
    """The client id at ActiveMQ, which durable subscriptions need; without one `mqttd-NAME`."""
    transaction: Annotated[int, Field(ge=1, le=10000)] = 500
    """Messages in one transaction at most; `window` bounds it, too."""
    max_message_size: Size = 100 * 1024 * 1024
    """Larger messages are dead-lettered unsent: ActiveMQ would end the connection."""

    @model_validator(mode="after")
    def _fits_stomp(self) -> Config:
        if self.username is not None and self.password_file is None:
            raise ValueError("username: needs a password_file")
        names: dict[str, str] = {}
        for rule in self.rules:
            if (
                rule.durable is not None
                and names.setdefault(rule.durable, rule.place) != rule.place
            ):
                raise ValueError(f"{rule.place}: {names[rule.durable]} has that durable name")
        return self


class BridgeActiveMQ(BridgePlugin[Config]):
    """A bridge to ActiveMQ."""

    KIND = "activemq"

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self._access: Access | None = None
        self._suspects: dict[str, None] = {}

    async def check(self) -> None:
        await super().check()
        await self.broker.run_blocking(_prepare, self.config)

    async def start(self) -> None:
        self._access = await self.broker.run_blocking(_prepare, self.config)
        await super().start()

    def remote(self) -> Remote:
        assert self._access is not None
        name = self.config.stomp_client_id or f"mqttd-{self.broker.name}"
        return ActiveMQRemote(self.config, self._access, name, self._suspects)


def _prepare(config: Config) -> Access:
    return Access(config, 61613 if config.tls is None else 61612)


class ActiveMQRemote(Remote):
    """One connection to ActiveMQ."""

    def __init__(
        self, config: Config, access: Access, client_id: str, suspects: dict[str, None]
    ) -> None:
        """`suspects`: ids of refused transactions, for the connections to come."""
        self.batch = config.transaction
        self._config = config
        self._access = access
        self._client_id = client_id
        self._suspects = suspects
        self._connection: StompConnection | None = None
        self._intake: Intake | None = None
        self._rules: dict[str, ActiveMQRule] = {}  # by the id of the subscription
        self._transactions = 0
        self._open: dict[str, set[str]] = {}  # ids of each transaction that isn't confirmed
        self._commit: asyncio.Future[None] | None = None  # the last one that was asked for
        self._destinations: dict[tuple[str, str], str] = {}  # by the rule's place and the target

    async def connect(self) -> None:
        config, access = self._config, self._access
        host, port = access.address
        where = f"{host}:{port}"
        said = [("host", config.vhost or host)]
        if any(rule.durable is not None for rule in config.rules):
            said.append(("client-id", self._client_id))
        if config.username is not None:
            said += [("login", config.username), ("passcode", access.password or "")]
        try:
            self._connection = await StompConnection.open(
                host, port, self._arrived, largest=config.max_message_size, tls=access.tls
            )
            self._connection.lost.add_done_callback(self._lost)
            await self._connection.connect(said, float(config.heartbeat))
        except ssl.SSLCertVerificationError as error:
            access.failed()
            raise Refused(f"{where}: its certificate: {error.verify_message}") from None
        except OSError as error:
            access.failed()
            raise Retry(f"{where}: {error.strerror or error}") from None
        except StompError as error:
            access.failed()
            # A client id that is in use is our own last connection, which ActiveMQ still has.
            if error.refused and "already connected" not in str(error):
                raise Refused(f"{where} refuses the connection: {error}") from None
            raise Retry(f"{where}: {error}") from None

    # Outward.

    async def send(self, items: Sequence[Item], done: Done) -> None:
        connection = self._connection
        assert connection is not None
        if connection.lost.done():
            return  # the items go on the next one
        self._transactions += 1
        transaction = str(self._transactions)
        try:
            sent = await self._fill(connection, transaction, items, done)
        except StompError:
            return
        if not sent:
            return
        if self._commit is not None:
            await asyncio.wait([self._commit])  # which leaves it alone when this is cancelled
        if connection.lost.done():
            return

        def committed(commit: asyncio.Future[None]) -> None:
            if commit.exception() is None:
                for id in self._open.pop(transaction):
                    self._suspects.pop(id, None)
                for item in sent:
                    done(item, None)

        self._commit = connection.ask("COMMIT", [("transaction", transaction)])
        self._commit.add_done_callback(committed)

    async def _fill(
        self, connection: StompConnection, transaction: str, items: Sequence[Item], done: Done
    ) -> list[Item]:
        """Send items in a transaction; those that are in it. StompError ends it."""
        sent: list[Item] = []
        ids: set[str] = set()
        for item in items:
            try:
                headers = self._headers(item, transaction)
                frame = encoded("SEND", headers, item.payload)
            except Poison as poison:
                done(item, poison)
                continue
            except ValueError as error:
                done(item, Poison(str(error)))
                continue
            if not sent:
                connection.send("BEGIN", [("transaction", transaction)])
                self._open[transaction] = ids
            sent.append(item)
            ids.add(item.id)
            if item.id in self._suspects:
                await self._send_alone(connection, item, headers, done)
            else:
                connection.write(frame)
                await connection.room()
        return sent

    def _lost(self, lost: asyncio.Future[StompError]) -> None:
        """After a refusal, one of what was unanswered is at fault."""
        if not lost.cancelled() and lost.result().refused:
            for ids in self._open.values():
                self._suspects.update(dict.fromkeys(ids))
        # What is dead-lettered is never confirmed, so old ones go.
        while len(self._suspects) > 2 * self.batch:
            del self._suspects[next(iter(self._suspects))]

    async def _send_alone(
        self,
        connection: StompConnection,
        item: Item,
        headers: list[tuple[str, str]],
        done: Done,
    ) -> None:
        """Send one item of a transaction and wait for its receipt. StompError ends both."""
        try:
            await connection.ask("SEND", headers, item.payload)
        except StompError as error:
            if error.refused:
                done(item, Retry(f"ActiveMQ refuses {item.target!r}: {error}"))
            raise

    def _headers(self, item: Item, transaction: str) -> list[tuple[str, str]]:
        """The headers of the SEND. Poison for what ActiveMQ could never take."""
        assert isinstance(item.rule, ActiveMQRule)
        largest = self._config.max_message_size
        if len(item.payload) > largest:
            raise Poison(f"too large: {len(item.payload)} bytes, and max_message_size is {largest}")
        headers = [
            ("destination", self._destination(item)),
            ("transaction", transaction),
            *sent_headers(item, time.time()),
        ]
        if item.rule.group:
            headers.append(("JMSXGroupID", item.key))
        return headers

    def _destination(self, item: Item) -> str:
        known = self._destinations.get((item.place, item.target))
        if known is None:
            if len(self._destinations) >= _TARGETS:
                self._destinations.clear()
            known = destination_of(item)
            if len(item.target) <= _REMEMBERED:
                self._destinations[item.place, item.target] = known
        return known

    # Inward.

    async def consume(self, intake: Intake) -> None:
        connection = self._connection
        assert connection is not None
        self._intake = intake
        share = max(1, intake.window // len(intake.rules))
        for number, rule in enumerate(intake.rules):
            assert isinstance(rule, ActiveMQRule)
            subscription = str(number)
            self._rules[subscription] = rule
            headers = [
                ("id", subscription),
                ("destination", rule.source),
                ("ack", "client-individual"),
                ("activemq.prefetchSize", str(share)),
            ]
            if rule.selector is not None:
                headers.append(("selector", rule.selector))
            if rule.durable is not None:
                headers.append(("activemq.subscriptionName", rule.durable))
                headers.append(("durable-subscription-name", rule.durable))
            try:
                await connection.ask("SUBSCRIBE", headers)
            except StompError as error:
                words = f"can't subscribe to {rule.source!r}: {error}"
                raise (Refused(words, rule.place) if error.refused else Retry(words)) from None

    def _arrived(self, frame: Frame) -> None:
        connection, intake = self._connection, self._intake
        rule = self._rules.get(frame.headers.get("subscription", ""))
        if connection is None or intake is None or rule is None:
            return
        headers = received_headers(frame.headers)
        name = frame.headers.get("destination", rule.source)
        for kind in _KINDS:
            name = name.removeprefix(kind)
        message = message_from(name.replace(".", "/"), frame.body, headers, 1, time.time())
        ack = frame.headers.get("ack", "")

        def settle(failure: Failure | None) -> None:
            if failure is None:
                connection.send("ACK", [("id", ack)])

        first, _ = once_each(headers)
        key = frame.headers.get(KEY, "")
        intake.put(Incoming(rule, message, settle, key=key, id=id_of(frame), headers=first))

    # The end.

    async def wait(self) -> Failure:
        assert self._connection is not None
        return Retry(str(await asyncio.shield(self._connection.lost)))

    async def close(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await connection.disconnect()
            connection.close()


def destination_of(item: Item) -> str:
    """The destination of an item. `Poison` for one that means more than its template shows."""
    assert isinstance(item.rule, ActiveMQRule)
    kind = next(kind for kind in _KINDS if item.target.startswith(kind))
    name = item.target.removeprefix(kind)
    if found := _several(name):
        raise Poison(f"to: {found!r} would make several destinations of its name")
    if not item.rule.slashes:
        name = name.replace("/", ".")
    if name.startswith("ActiveMQ.") and not item.rule.to.startswith(f"{kind}ActiveMQ."):
        raise Poison("to: destinations that begin with 'ActiveMQ.' are the server's own")
    return kind + name


def _several(name: str) -> str:
    """What of a name means several destinations, or options; "" for nothing."""
    found = sorted(_MANY & set(name))
    if found:
        return found[0]
    return next((text for text in ("::", "://") if text in name), "")


def sent_headers(item: Item, wall: float) -> list[tuple[str, str]]:
    """Everything about an item but its destination, as headers of a SEND."""
    headers = headers_of(item, wall)
    out: list[tuple[str, str]] = [("persistent", "true" if item.qos else "false"), (KEY, item.key)]
    user: list[tuple[str, str]] = []
    of_the_rule = len(headers) - sum(name not in (ID, VIA) for name, _ in item.headers)
    for number, (name, value) in enumerate(headers):
        if name == CORRELATION:
            out.append(("correlation-id", value))
        elif name in OURS or name in (ID, VIA):
            out.append((name, value))
            if name == EXPIRES_AT:
                out.append(("expires", value))
        elif number < of_the_rule and means_something(name):
            user.append((_USER + name, value))
        else:
            user.append((name, value))
    first, listed = once_each(user)
    out += first.items()
    if listed is not None:
        out.append((ALL_HEADERS, listed))
    return out


def received_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a MESSAGE says, by the names of `_bridge/properties`; the server's own left out."""
    out: list[tuple[str, str]] = []
    user = all_of({}, headers.get(ALL_HEADERS))
    known = {name for name, _ in user}
    for name, value in headers.items():
        if name == "correlation-id":
            out.append((CORRELATION, value))
        elif name in _ALSO:
            out.append((_ALSO[name], value))
        elif name == "expires" and EXPIRES_AT not in headers and value != "0":
            out.append((EXPIRES_AT, value))
        elif name in OURS or (name not in known and not means_something(name)):
            out.append((name, value))
    out += [pair for pair in user if pair[0] not in OURS and pair[0] not in (ID, VIA)]
    return [pair for pair in out if _fits(pair[0]) and _fits(pair[1])]


def id_of(frame: Frame) -> str:
    """The server's id of a message, the same however often that is delivered.

    Artemis writes the number of the subscription, which a new connection makes another, in front of
    the message's own; that is given once by a server.
    """
    text = frame.headers.get("message-id", "")
    of_artemis = _ARTEMIS_ID.fullmatch(text)
    if of_artemis is None:
        return text
    return f"{frame.headers.get('destination', '')}:{of_artemis[1]}"


def means_something(name: str) -> bool:
    """Whether STOMP, JMS or ActiveMQ may act on a header of this name."""
    return name in _MEANT or name.startswith(_MEANT_BEGINNINGS)


def _fits(text: str) -> bool:
    return "\0" not in text and len(text.encode()) <= _LONGEST
