"""The properties of MQTT 5: one table, and three ways to read a property block by it.

`TABLE` says of each identifier what it is called, what type it has, which packets may carry it
and where it may repeat. `decode_properties` and `encode_properties` turn a block into a
`Properties` object and back; they serve every packet but PUBLISH.

PUBLISH is different, because most of its properties travel unchanged to the subscribers. Those
(payload format, content type, response topic, correlation data, user properties) are the
*forwardable* ones and stay together as one `bytes` in the order received, without a length in
front; `scan_publish_properties` checks every one of them, but only cuts out those that the broker
itself has to act on. `scan_will_properties` does the same for wills. `decode_forwardable` and
`encode_forwardable` open and close such bytes for plugins.

Invariants:
- What leaves a scanner is as valid as what leaves `decode_properties`; both are linear in the
  block.
- A forwarded property keeps its bytes and user properties keep their order.

Nothing here knows the packet around the block, save for its type (0 stands for the properties of
a will).
"""

from typing import Final

from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.wire import (
    binary,
    read_binary,
    read_string,
    read_u8,
    read_u16,
    read_u32,
    read_varint,
    skip_binary,
    skip_string,
    string,
    u8,
    u16,
    u32,
    varint,
)

WILL: Final = 0

FLAG: Final = 0  # one byte, 0 or 1
U16: Final = 1
U32: Final = 2
VARINT: Final = 3
TEXT: Final = 4
BYTES: Final = 5
PAIR: Final = 6

_NOWHERE: Final = 0


class PropertySpec:
    """A row of the table; `packets` and `repeats` are bit sets of packet types (bit 0: will)."""

    def __init__(
        self, name: str, kind: int, packets: int, repeats: int = _NOWHERE, minimum: int = 0
    ) -> None:
        self.name = name
        self.kind = kind
        self.packets = packets
        self.repeats = repeats
        self.minimum = minimum


_WILL: Final = 1 << WILL
_CONNECT: Final = 1 << spec.CONNECT
_CONNACK: Final = 1 << spec.CONNACK
_PUBLISH: Final = 1 << spec.PUBLISH
_SUBSCRIBE: Final = 1 << spec.SUBSCRIBE
_DISCONNECT: Final = 1 << spec.DISCONNECT
_AUTH: Final = 1 << spec.AUTH
_ACKS: Final = (
    1 << spec.PUBACK
    | 1 << spec.PUBREC
    | 1 << spec.PUBREL
    | 1 << spec.PUBCOMP
    | 1 << spec.SUBACK
    | 1 << spec.UNSUBACK
)
_MESSAGE: Final = _PUBLISH | _WILL
_CONNECTING: Final = _CONNECT | _CONNACK
_EVERYWHERE: Final = (
    _MESSAGE | _CONNECTING | _ACKS | _SUBSCRIBE | 1 << spec.UNSUBSCRIBE | _DISCONNECT | _AUTH
)

TABLE: Final[dict[int, PropertySpec]] = {
    spec.PAYLOAD_FORMAT_INDICATOR: PropertySpec("payload_format_indicator", FLAG, _MESSAGE),
    spec.MESSAGE_EXPIRY_INTERVAL: PropertySpec("message_expiry_interval", U32, _MESSAGE),
    spec.CONTENT_TYPE: PropertySpec("content_type", TEXT, _MESSAGE),
    spec.RESPONSE_TOPIC: PropertySpec("response_topic", TEXT, _MESSAGE),
    spec.CORRELATION_DATA: PropertySpec("correlation_data", BYTES, _MESSAGE),
    spec.SUBSCRIPTION_IDENTIFIER: PropertySpec(
        "subscription_ids", VARINT, _PUBLISH | _SUBSCRIBE, _PUBLISH, 1
    ),
    spec.SESSION_EXPIRY_INTERVAL: PropertySpec(
        "session_expiry_interval", U32, _CONNECTING | _DISCONNECT
    ),
    spec.ASSIGNED_CLIENT_IDENTIFIER: PropertySpec("assigned_client_identifier", TEXT, _CONNACK),
    spec.SERVER_KEEP_ALIVE: PropertySpec("server_keep_alive", U16, _CONNACK),
    spec.AUTHENTICATION_METHOD: PropertySpec("authentication_method", TEXT, _CONNECTING | _AUTH),
    spec.AUTHENTICATION_DATA: PropertySpec("authentication_data", BYTES, _CONNECTING | _AUTH),
    spec.REQUEST_PROBLEM_INFORMATION: PropertySpec("request_problem_information", FLAG, _CONNECT),
    spec.WILL_DELAY_INTERVAL: PropertySpec("will_delay_interval", U32, _WILL),
    spec.REQUEST_RESPONSE_INFORMATION: PropertySpec("request_response_information", FLAG, _CONNECT),
    spec.RESPONSE_INFORMATION: PropertySpec("response_information", TEXT, _CONNACK),
    spec.SERVER_REFERENCE: PropertySpec("server_reference", TEXT, _CONNACK | _DISCONNECT),
    spec.REASON_STRING: PropertySpec("reason_string", TEXT, _CONNACK | _ACKS | _DISCONNECT | _AUTH),
    spec.RECEIVE_MAXIMUM: PropertySpec("receive_maximum", U16, _CONNECTING, _NOWHERE, 1),
    spec.TOPIC_ALIAS_MAXIMUM: PropertySpec("topic_alias_maximum", U16, _CONNECTING),
    spec.TOPIC_ALIAS: PropertySpec("topic_alias", U16, _PUBLISH, _NOWHERE, 1),
    spec.MAXIMUM_QOS: PropertySpec("maximum_qos", FLAG, _CONNACK),
    spec.RETAIN_AVAILABLE: PropertySpec("retain_available", FLAG, _CONNACK),
    spec.USER_PROPERTY: PropertySpec("user_properties", PAIR, _EVERYWHERE, _EVERYWHERE),
    spec.MAXIMUM_PACKET_SIZE: PropertySpec("maximum_packet_size", U32, _CONNECTING, _NOWHERE, 1),
    spec.WILDCARD_SUBSCRIPTION_AVAILABLE: PropertySpec(
        "wildcard_subscription_available", FLAG, _CONNACK
    ),
    spec.SUBSCRIPTION_IDENTIFIER_AVAILABLE: PropertySpec(
        "subscription_identifier_available", FLAG, _CONNACK
    ),
    spec.SHARED_SUBSCRIPTION_AVAILABLE: PropertySpec(
        "shared_subscription_available", FLAG, _CONNACK
    ),
}

# Identifiers are variable byte integers, but all that exist fit one byte. What is above is
# unknown, and the bit sets of the identifiers already seen stay small.
_LAST: Final = spec.SHARED_SUBSCRIPTION_AVAILABLE


class Properties:
    """Each property of the specification by its name: None (or an empty list) where absent."""

    def __init__(self) -> None:
        self.payload_format_indicator: int | None = None
        self.message_expiry_interval: int | None = None
        self.content_type: str | None = None
        self.response_topic: str | None = None
        self.correlation_data: bytes | None = None
        self.subscription_ids: list[int] = []
        self.session_expiry_interval: int | None = None
        self.assigned_client_identifier: str | None = None
        self.server_keep_alive: int | None = None
        self.authentication_method: str | None = None
        self.authentication_data: bytes | None = None
        self.request_problem_information: int | None = None
        self.will_delay_interval: int | None = None
        self.request_response_information: int | None = None
        self.response_information: str | None = None
        self.server_reference: str | None = None
        self.reason_string: str | None = None
        self.receive_maximum: int | None = None
        self.topic_alias_maximum: int | None = None
        self.topic_alias: int | None = None
        self.maximum_qos: int | None = None
        self.retain_available: int | None = None
        self.user_properties: list[tuple[str, str]] = []
        self.maximum_packet_size: int | None = None
        self.wildcard_subscription_available: int | None = None
        self.subscription_identifier_available: int | None = None
        self.shared_subscription_available: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Properties):
            return False
        for row in TABLE.values():  # noqa: SIM110 - a generator expression is slow once compiled
            if getattr(self, row.name) != getattr(other, row.name):
                return False
        return True

    def __hash__(self) -> int:
        raise TypeError("properties are mutable and have no hash")

    def __repr__(self) -> str:
        parts: list[str] = []
        for row in TABLE.values():
            value = getattr(self, row.name)
            if value is None or value == []:
                continue
            # Credentials are never printed.
            secret = row.name == "authentication_data"
            parts.append(f"{row.name}=***" if secret else f"{row.name}={value!r}")
        return f"Properties({', '.join(parts)})"


def _unknown() -> ProtocolError:
    return ProtocolError(spec.MALFORMED_PACKET, "", "an unknown property")


def _misplaced(identifier: int) -> ProtocolError:
    name = TABLE[identifier].name
    return ProtocolError(spec.MALFORMED_PACKET, "", f"{name} does not belong in this packet")


def _twice(identifier: int) -> ProtocolError:
    return ProtocolError(spec.PROTOCOL_ERROR, "", f"{TABLE[identifier].name} stands there twice")


def _block(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """The first byte and the end of a property block, whose length stands at `pos`."""
    length, pos = read_varint(data, pos, end)
    stop = pos + length
    if stop > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", "properties run past the end of the packet")
    return pos, stop


def decode_properties(data: bytes, pos: int, end: int, packet_type: int) -> tuple[Properties, int]:
    """Read a block with its length in front. `packet_type` 0 means the properties of a will."""
    pos, stop = _block(data, pos, end)
    return _decode(data, pos, stop, packet_type), stop


def _decode(data: bytes, pos: int, stop: int, packet_type: int) -> Properties:
    found = Properties()
    packet = 1 << packet_type
    seen = 0
    while pos < stop:
        identifier = data[pos]
        row = TABLE.get(identifier)
        if row is None:
            raise _unknown()
        if not row.packets & packet:
            raise _misplaced(identifier)
        pos = _decode_value(found, row, data, pos + 1, stop)
        if seen >> identifier & 1 and not row.repeats & packet:
            raise _twice(identifier)
        seen |= 1 << identifier
    if found.authentication_data is not None and found.authentication_method is None:
        raise ProtocolError(
            spec.PROTOCOL_ERROR, "", "authentication data without an authentication method"
        )
    return found


def _decode_value(found: Properties, row: PropertySpec, data: bytes, pos: int, stop: int) -> int:
    kind = row.kind
    if kind == PAIR:  # [MQTT-1.5.7-1]
        key, pos = read_string(data, pos, stop)
        text, pos = read_string(data, pos, stop)
        found.user_properties.append((key, text))
        return pos
    if kind == TEXT:
        text, pos = read_string(data, pos, stop)
        if row.name == "response_topic":
            _check_response_topic(text)
        setattr(found, row.name, text)
        return pos
    if kind == BYTES:
        raw, pos = read_binary(data, pos, stop)
        setattr(found, row.name, raw)
        return pos
    if kind == FLAG:
        number, pos = read_u8(data, pos, stop)
        if number > 1:
            raise ProtocolError(spec.PROTOCOL_ERROR, "", f"{row.name} is neither 0 nor 1")
    elif kind == U16:
        number, pos = read_u16(data, pos, stop)
    elif kind == U32:
        number, pos = read_u32(data, pos, stop)
    else:
        number, pos = read_varint(data, pos, stop)
    if number < row.minimum:
        if row.name == "topic_alias":
            raise _alias_zero()
        raise ProtocolError(spec.PROTOCOL_ERROR, "", f"{row.name} is 0")
    if kind == VARINT:
        found.subscription_ids.append(number)
    else:
        setattr(found, row.name, number)
    return pos


def _alias_zero() -> ProtocolError:
    return ProtocolError(  # [MQTT-3.3.2-8]
        spec.TOPIC_ALIAS_INVALID, "MQTT-3.3.2-8", "topic alias 0"
    )


def _check_response_topic(topic: str) -> None:
    if "+" in topic or "#" in topic:  # [MQTT-3.3.2-14]
        raise ProtocolError(
            spec.PROTOCOL_ERROR, "MQTT-3.3.2-14", "a wildcard in the response topic"
        )
    if not topic:  # [MQTT-4.7.3-1]
        raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-4.7.3-1", "an empty response topic")


def scan_publish_properties(
    data: bytes, pos: int, end: int, from_client: bool
) -> tuple[bytes, int, int, int, list[int] | None]:
    """Read the block of a PUBLISH: (forwardable, position behind, alias, expiry, subscription ids).

    Alias 0, expiry -1 and ids None say that there is none.
    """
    if pos < end and data[pos] == 0:
        return b"", pos + 1, 0, -1, None
    pos, stop = _block(data, pos, end)
    alias = 0
    expiry = -1
    identifiers: list[int] | None = None
    kept: list[bytes] | None = None
    kept_from = pos
    seen = 0
    while pos < stop:
        at = pos
        identifier = data[pos]
        if identifier > _LAST:
            raise _unknown()
        mark = 1 << identifier
        after = _skip_forwardable(identifier, data, pos + 1, stop)
        if after:
            # [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18]
            # [MQTT-3.3.2-20]: what is not cut out is forwarded as it came.
            pos = after
            if identifier != spec.USER_PROPERTY:
                if seen & mark:
                    raise _twice(identifier)
                seen |= mark
            continue
        if identifier == spec.TOPIC_ALIAS:
            alias, pos = read_u16(data, pos + 1, stop)
            if alias == 0:  # [MQTT-3.3.2-8]
                raise _alias_zero()
        elif identifier == spec.MESSAGE_EXPIRY_INTERVAL:
            expiry, pos = read_u32(data, pos + 1, stop)
        elif identifier == spec.SUBSCRIPTION_IDENTIFIER:
            if from_client:  # [MQTT-3.3.4-6]
                raise ProtocolError(
                    spec.PROTOCOL_ERROR,
                    "MQTT-3.3.4-6",
                    "a subscription identifier in a client's PUBLISH",
                )
            number, pos = read_varint(data, pos + 1, stop)
            if number == 0:
                raise ProtocolError(spec.PROTOCOL_ERROR, "", "subscription_ids is 0")
            if identifiers is None:
                identifiers = []
            identifiers.append(number)
            mark = 0
        elif identifier in TABLE:
            raise _misplaced(identifier)
        else:
            raise _unknown()
        if seen & mark:
            raise _twice(identifier)
        seen |= mark
        if kept is None:
            kept = []
        if at > kept_from:
            kept.append(data[kept_from:at])
        kept_from = pos
    raw = data[kept_from:stop]
    if kept:
        kept.append(raw)
        raw = b"".join(kept)
    return raw, stop, alias, expiry, identifiers


def scan_will_properties(data: bytes, pos: int, end: int) -> tuple[bytes, int, int, int]:
    """Read the properties of a will: (forwardable, position behind, will delay, expiry)."""
    pos, stop = _block(data, pos, end)
    delay = 0
    expiry = -1
    kept: list[bytes] = []
    kept_from = pos
    seen = 0
    while pos < stop:
        at = pos
        identifier = data[pos]
        if identifier > _LAST:
            raise _unknown()
        pos = _skip_forwardable(identifier, data, pos + 1, stop)
        if pos == 0:
            if identifier == spec.WILL_DELAY_INTERVAL:
                delay, pos = read_u32(data, at + 1, stop)
            elif identifier == spec.MESSAGE_EXPIRY_INTERVAL:
                expiry, pos = read_u32(data, at + 1, stop)
            elif identifier in TABLE:
                raise _misplaced(identifier)
            else:
                raise _unknown()
            kept.append(data[kept_from:at])
            kept_from = pos
        if seen >> identifier & 1 and identifier != spec.USER_PROPERTY:
            raise _twice(identifier)
        seen |= 1 << identifier
    kept.append(data[kept_from:stop])
    return b"".join(kept), stop, delay, expiry  # [MQTT-3.1.3-10]


def _skip_forwardable(identifier: int, data: bytes, pos: int, stop: int) -> int:
    """Check the value of a forwardable property: the position behind it, 0 for any other."""
    if identifier == spec.USER_PROPERTY:  # [MQTT-1.5.7-1]
        return skip_string(data, skip_string(data, pos, stop), stop)
    if identifier == spec.PAYLOAD_FORMAT_INDICATOR:
        number, pos = read_u8(data, pos, stop)
        if number > 1:
            raise ProtocolError(
                spec.PROTOCOL_ERROR, "", "payload_format_indicator is neither 0 nor 1"
            )
        return pos
    if identifier == spec.CONTENT_TYPE:  # [MQTT-3.3.2-19]
        return skip_string(data, pos, stop)
    if identifier == spec.CORRELATION_DATA:
        return skip_binary(data, pos, stop)
    if identifier == spec.RESPONSE_TOPIC:  # [MQTT-3.3.2-13]
        topic, pos = read_string(data, pos, stop)
        _check_response_topic(topic)
        return pos
    return 0


def decode_forwardable(raw: bytes) -> Properties:
    """Open forwardable bytes that a scanner, or `encode_forwardable`, has made."""
    return _decode(raw, 0, len(raw), spec.PUBLISH)


def encode_forwardable(properties: Properties) -> bytes:
    """The forwardable properties among `properties`, without a length in front."""
    out: list[bytes] = []
    for identifier in (
        spec.PAYLOAD_FORMAT_INDICATOR,
        spec.CONTENT_TYPE,
        spec.RESPONSE_TOPIC,
        spec.CORRELATION_DATA,
        spec.USER_PROPERTY,
    ):
        _encode_one(identifier, TABLE[identifier], properties, out)
    return b"".join(out)


def encode_properties(properties: Properties | None) -> bytes:
    """A whole block with its length in front, in the order of the identifiers."""
    if properties is None:
        return b"\0"  # [MQTT-2.2.2-1]
    out: list[bytes] = []
    for identifier, row in TABLE.items():
        _encode_one(identifier, row, properties, out)
    body = b"".join(out)
    return varint(len(body)) + body


def _encode_one(
    identifier: int, row: PropertySpec, properties: Properties, out: list[bytes]
) -> None:
    kind = row.kind
    if kind == PAIR:
        for key, text in properties.user_properties:
            out.append(u8(identifier) + string(key) + string(text))
        return
    if kind == VARINT:
        for number in properties.subscription_ids:
            out.append(u8(identifier) + varint(number))
        return
    value = getattr(properties, row.name)
    if value is None:
        return
    if kind == TEXT:
        out.append(u8(identifier) + string(value))
    elif kind == BYTES:
        out.append(u8(identifier) + binary(value))
    elif kind == FLAG:
        out.append(u8(identifier) + u8(value))
    elif kind == U16:
        out.append(u8(identifier) + u16(value))
    else:
        out.append(u8(identifier) + u32(value))


def encode_publish_properties(
    raw: bytes, topic_alias: int, message_expiry: int, subscription_ids: list[int]
) -> bytes:
    """A whole block of a PUBLISH: forwardable bytes plus what the sender adds, length in front."""
    if topic_alias == 0 and message_expiry < 0 and not subscription_ids:
        return varint(len(raw)) + raw
    out: list[bytes] = []
    if message_expiry >= 0:
        out.append(u8(spec.MESSAGE_EXPIRY_INTERVAL) + u32(message_expiry))
    if topic_alias:
        out.append(u8(spec.TOPIC_ALIAS) + u16(topic_alias))
    for number in subscription_ids:
        out.append(u8(spec.SUBSCRIPTION_IDENTIFIER) + varint(number))
    out.append(raw)
    body = b"".join(out)
    return varint(len(body)) + body


def encode_will_properties(raw: bytes, delay_interval: int, message_expiry: int) -> bytes:
    """A whole block of will properties, length in front."""
    out: list[bytes] = []
    if message_expiry >= 0:
        out.append(u8(spec.MESSAGE_EXPIRY_INTERVAL) + u32(message_expiry))
    if delay_interval:
        out.append(u8(spec.WILL_DELAY_INTERVAL) + u32(delay_interval))
    out.append(raw)
    body = b"".join(out)
    return varint(len(body)) + body
