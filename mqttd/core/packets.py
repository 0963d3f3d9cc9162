"""The fifteen control packets as plain objects, one class each, the same for every MQTT version.

Owns what a packet *says*; `decode` and `encode` know how that looks on the wire of each version.
Fields that an older version lacks keep their defaults. The classes check nothing: what came off
the wire was checked by `decode`, and what we build ourselves is our own affair.

A PUBLISH (and a will) keeps the properties that a broker must pass on unchanged as one `bytes` in
the order they were received, see `properties`. What the broker has to act on (alias, expiry,
subscription identifiers, delay) stands in fields of its own. `Publish.key` is the topic exactly
as it stood on the wire, filled in by `decode`, so that the matcher can look it up without
encoding it again; it takes no part in comparisons.

Packets compare by value and print readably, save for passwords, which are never printed.
"""

from typing import ClassVar, Final

from mqttd.core import spec
from mqttd.core.properties import Properties

NO_EXPIRY: Final = -1


class Record:
    """Equality and `repr` over the attributes named in `FIELDS`."""

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        for name in self.FIELDS:  # noqa: SIM110 - a generator expression is slow once compiled
            if getattr(self, name) != getattr(other, name):
                return False
        return True

    def __hash__(self) -> int:
        raise TypeError("packets are mutable and have no hash")

    def __repr__(self) -> str:
        parts: list[str] = []
        for name in self.FIELDS:
            value = getattr(self, name)
            secret = name == "password" and value is not None
            parts.append(f"{name}=***" if secret else f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Will(Record):
    """`properties` are forwardable; `message_expiry` -1 and `delay_interval` 0 say "none"."""

    FIELDS = (
        "topic",
        "payload",
        "qos",
        "retain",
        "delay_interval",
        "message_expiry",
        "properties",
    )

    def __init__(
        self,
        topic: str = "",
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        delay_interval: int = 0,
        message_expiry: int = NO_EXPIRY,
        properties: bytes = b"",
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.delay_interval = delay_interval
        self.message_expiry = message_expiry
        self.properties = properties


class Connect(Record):
    """`bridge`: the client set the top bit of the protocol level, as bridges of MQTT 3 do."""

    FIELDS = (
        "protocol_name",
        "version",
        "clean_start",
        "keep_alive",
        "client_id",
        "will",
        "username",
        "password",
        "properties",
        "bridge",
    )

    def __init__(
        self,
        protocol_name: str = "MQTT",
        version: int = spec.MQTT5,
        clean_start: bool = True,
        keep_alive: int = 0,
        client_id: str = "",
        will: Will | None = None,
        username: str | None = None,
        password: bytes | None = None,
        properties: Properties | None = None,
        bridge: bool = False,
    ) -> None:
        self.protocol_name = protocol_name
        self.version = version
        self.clean_start = clean_start
        self.keep_alive = keep_alive
        self.client_id = client_id
        self.will = will
        self.username = username
        self.password = password
        self.properties: Properties = Properties() if properties is None else properties
        self.bridge = bridge


class Connack(Record):
    """`reason` is an MQTT 5 reason code, or an MQTT 3 return code (0..5) when one was received."""

    FIELDS = ("session_present", "reason", "properties")

    def __init__(
        self,
        session_present: bool = False,
        reason: int = spec.SUCCESS,
        properties: Properties | None = None,
    ) -> None:
        self.session_present = session_present
        self.reason = reason
        self.properties: Properties = Properties() if properties is None else properties


class Publish(Record):
    """`topic_alias` 0, `message_expiry` -1 and an empty `subscription_ids` say "not there"."""

    FIELDS = (
        "topic",
        "payload",
        "qos",
        "retain",
        "dup",
        "packet_id",
        "properties",
        "topic_alias",
        "message_expiry",
        "subscription_ids",
    )

    def __init__(
        self,
        topic: str = "",
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: bytes = b"",
        topic_alias: int = 0,
        message_expiry: int = NO_EXPIRY,
        subscription_ids: list[int] | None = None,
        key: bytes = b"",
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties = properties
        self.topic_alias = topic_alias
        self.message_expiry = message_expiry
        self.subscription_ids: list[int] = [] if subscription_ids is None else subscription_ids
        self.key = key


class Puback(Record):
    FIELDS = ("packet_id", "reason", "properties")

    def __init__(
        self,
        packet_id: int,
        reason: int = spec.SUCCESS,
        properties: Properties | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason = reason
        self.properties = properties


class Pubrec(Record):
    FIELDS = ("packet_id", "reason", "properties")

    def __init__(
        self,
        packet_id: int,
        reason: int = spec.SUCCESS,
        properties: Properties | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason = reason
        self.properties = properties


class Pubrel(Record):
    FIELDS = ("packet_id", "reason", "properties")

    def __init__(
        self,
        packet_id: int,
        reason: int = spec.SUCCESS,
        properties: Properties | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason = reason
        self.properties = properties


class Pubcomp(Record):
    FIELDS = ("packet_id", "reason", "properties")

    def __init__(
        self,
        packet_id: int,
        reason: int = spec.SUCCESS,
        properties: Properties | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason = reason
        self.properties = properties


class Filter(Record):
    """One entry of a SUBSCRIBE."""

    FIELDS = ("topic_filter", "qos", "no_local", "retain_as_published", "retain_handling")

    def __init__(
        self,
        topic_filter: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> None:
        self.topic_filter = topic_filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.retain_handling = retain_handling


class Subscribe(Record):
    """`subscription_id` 0 says "none"; it is not repeated in `properties`."""

    FIELDS = ("packet_id", "filters", "subscription_id", "properties")

    def __init__(
        self,
        packet_id: int,
        filters: list[Filter],
        subscription_id: int = 0,
        properties: Properties | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.filters = filters
        self.subscription_id = subscription_id
        self.properties = properties


class Suback(Record):
    FIELDS = ("packet_id", "reasons", "properties")

    def __init__(
        self, packet_id: int, reasons: list[int], properties: Properties | None = None
    ) -> None:
        self.packet_id = packet_id
        self.reasons = reasons
        self.properties = properties


class Unsubscribe(Record):
    FIELDS = ("packet_id", "filters", "properties")

    def __init__(
        self, packet_id: int, filters: list[str], properties: Properties | None = None
    ) -> None:
        self.packet_id = packet_id
        self.filters = filters
        self.properties = properties


class Unsuback(Record):
    """MQTT 3 sends no reasons: the list is empty then."""

    FIELDS = ("packet_id", "reasons", "properties")

    def __init__(
        self,
        packet_id: int,
        reasons: list[int] | None = None,
        properties: Properties | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reasons: list[int] = [] if reasons is None else reasons
        self.properties = properties


class Pingreq(Record):
    pass


class Pingresp(Record):
    pass


class Disconnect(Record):
    FIELDS = ("reason", "properties")

    def __init__(
        self,
        reason: int = spec.NORMAL_DISCONNECTION,
        properties: Properties | None = None,
    ) -> None:
        self.reason = reason
        self.properties = properties


class Auth(Record):
    FIELDS = ("reason", "properties")

    def __init__(self, reason: int = spec.SUCCESS, properties: Properties | None = None) -> None:
        self.reason = reason
        self.properties = properties
