"""Bytes to packets: one function a packet, in the order of the specification.

Every function takes `(data, pos, end, flags, version)`: `pos` is the first byte behind the fixed
header, `end` one past the packet's last byte, `flags` the low half of its first byte. It returns
a packet object or raises `ProtocolError`; no other exception escapes, whatever the bytes are, and
no byte outside `pos..end` is looked at. A packet has to end exactly at `end`.

What is checked here is all that needs no state: field formats, flags, reserved bits, the values
that a property may have, reason codes against the list of their packet. The grammar of topic
names and filters is `topics`' business; who may send what, and when, is the connection's.

The same functions read what clients and what servers send, for MQTT 3.1 (`version` 3), 3.1.1 (4)
and 5. Clause numbers are those of MQTT 5; where an older version is laxer or stricter a comment
says so.
"""

from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqttd.core.properties import (
    Properties,
    decode_properties,
    scan_publish_properties,
    scan_will_properties,
)
from mqttd.core.wire import (
    decode_utf8,
    read_binary,
    read_string,
    read_u8,
    read_u16,
)


def decode_packet(
    first_byte: int, data: bytes, pos: int, end: int, version: int, from_client: bool = False
) -> Record:
    """Decode any packet. `version` is that of the connection; a CONNECT brings its own.

    `from_client` adds the rules that bind only clients.
    """
    kind = first_byte >> 4
    flags = first_byte & 0x0F
    if kind == spec.PUBLISH:
        return decode_publish(data, pos, end, flags, version, from_client)
    if kind == spec.PUBACK:
        return decode_puback(data, pos, end, flags, version)
    if kind == spec.PUBREC:
        return decode_pubrec(data, pos, end, flags, version)
    if kind == spec.PUBREL:
        return decode_pubrel(data, pos, end, flags, version)
    if kind == spec.PUBCOMP:
        return decode_pubcomp(data, pos, end, flags, version)
    if kind == spec.PINGREQ:
        return decode_pingreq(data, pos, end, flags, version)
    if kind == spec.PINGRESP:
        return decode_pingresp(data, pos, end, flags, version)
    if kind == spec.CONNECT:
        return decode_connect(data, pos, end, flags)
    if kind == spec.CONNACK:
        return decode_connack(data, pos, end, flags, version)
    if kind == spec.SUBSCRIBE:
        return decode_subscribe(data, pos, end, flags, version)
    if kind == spec.SUBACK:
        return decode_suback(data, pos, end, flags, version)
    if kind == spec.UNSUBSCRIBE:
        return decode_unsubscribe(data, pos, end, flags, version)
    if kind == spec.UNSUBACK:
        return decode_unsuback(data, pos, end, flags, version)
    if kind == spec.DISCONNECT:
        return decode_disconnect(data, pos, end, flags, version)
    if kind == spec.AUTH:
        return decode_auth(data, pos, end, flags, version)
    raise ProtocolError(spec.MALFORMED_PACKET, "", "packet type 0 is reserved")


def _check_no_flags(flags: int) -> None:
    if flags:  # [MQTT-2.1.3-1]
        raise ProtocolError(
            spec.MALFORMED_PACKET, "MQTT-2.1.3-1", "fixed header flags other than 0000"
        )


def _check_flags_0010(flags: int, version: int, clause: str) -> None:
    """PUBREL, SUBSCRIBE and UNSUBSCRIBE carry QoS 1, for reasons of history."""
    # MQTT 3.1 marked the repetition of these with DUP; later versions reserve the bit.
    if version == spec.MQTT31:
        flags &= 0x07
    if flags != 0x02:  # [MQTT-2.1.3-1]
        raise ProtocolError(spec.MALFORMED_PACKET, clause, "fixed header flags other than 0010")


def _check_end(pos: int, end: int) -> None:
    if pos != end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", "bytes after the end of the packet")


def _read_packet_id(data: bytes, pos: int, end: int) -> tuple[int, int]:
    packet_id, pos = read_u16(data, pos, end)
    if packet_id == 0:  # [MQTT-2.2.1-3] [MQTT-2.2.1-4]
        raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-2.2.1-3", "packet identifier 0")
    return packet_id, pos


def _check_reason(reason: int, kind: int, clause: str) -> None:
    if reason not in spec.REASONS[kind]:
        raise ProtocolError(
            spec.PROTOCOL_ERROR,
            clause,
            f"{spec.PACKET_NAMES[kind]} can't carry reason code 0x{reason:02X}",
        )


# 3.1 CONNECT


def decode_connect(data: bytes, pos: int, end: int, flags: int = 0) -> Connect:
    _check_no_flags(flags)
    protocol_name, pos = read_string(data, pos, end)
    if protocol_name != "MQTT" and protocol_name != "MQIsdp":  # [MQTT-3.1.2-1]
        raise ProtocolError(
            spec.UNSUPPORTED_PROTOCOL_VERSION, "MQTT-3.1.2-1", "unknown protocol name"
        )
    level, pos = read_u8(data, pos, end)
    bridge = False
    version = level
    if level == 0x83 or level == 0x84:
        bridge = True
        version = level & 0x7F
    # [MQTT-3.1.2-2]
    if protocol_name == "MQIsdp":
        supported = version == spec.MQTT31
    else:
        supported = version == spec.MQTT311 or version == spec.MQTT5
    if not supported:
        raise ProtocolError(
            spec.UNSUPPORTED_PROTOCOL_VERSION, "MQTT-3.1.2-2", "unknown protocol version"
        )

    connect_flags, pos = read_u8(data, pos, end)
    # MQTT 3.1 does not use the bit and asks nobody to check it.
    if connect_flags & 0x01 and version != spec.MQTT31:  # [MQTT-3.1.2-3]
        raise ProtocolError(
            spec.MALFORMED_PACKET, "MQTT-3.1.2-3", "the reserved connect flag is set"
        )
    has_will = connect_flags & 0x04 != 0
    will_qos = connect_flags >> 3 & 0x03
    will_retain = connect_flags & 0x20 != 0
    if not has_will:
        if will_qos:  # [MQTT-3.1.2-11]
            raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-3.1.2-11", "a will QoS without a will")
        if will_retain:  # [MQTT-3.1.2-13]
            raise ProtocolError(
                spec.MALFORMED_PACKET, "MQTT-3.1.2-13", "will retain without a will"
            )
    elif will_qos == 3:  # [MQTT-3.1.2-12]
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-3.1.2-12", "will QoS 3")
    has_username = connect_flags & 0x80 != 0
    has_password = connect_flags & 0x40 != 0
    if has_password and not has_username and version != spec.MQTT5:  # [MQTT-3.1.2-19]
        raise ProtocolError(spec.MALFORMED_PACKET, "", "a password without a user name")

    keep_alive, pos = read_u16(data, pos, end)
    properties: Properties | None = None
    if version == spec.MQTT5:
        properties, pos = decode_properties(data, pos, end, spec.CONNECT)

    # [MQTT-3.1.3-1] [MQTT-3.1.3-3] [MQTT-3.1.3-4] [MQTT-3.1.3-5] any string is a good one.
    client_id, pos = read_string(data, pos, end)
    will: Will | None = None
    if has_will:  # [MQTT-3.1.2-9]
        forwardable = b""
        delay = 0
        expiry = -1
        if version == spec.MQTT5:
            forwardable, pos, delay, expiry = scan_will_properties(data, pos, end)
        topic, pos = read_string(data, pos, end)  # [MQTT-3.1.3-11]
        payload, pos = read_binary(data, pos, end)
        will = Will(topic, payload, will_qos, will_retain, delay, expiry, forwardable)
    username: str | None = None
    password: bytes | None = None
    # MQTT 3.1 lets the length of the packet overrule the flags: the names may simply be missing.
    lax = version == spec.MQTT31
    # [MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT-3.1.3-12]
    if has_username and not (lax and pos == end):
        username, pos = read_string(data, pos, end)
    if has_password and not (lax and pos == end):  # [MQTT-3.1.2-18] [MQTT-3.1.2-19]
        password, pos = read_binary(data, pos, end)
    _check_end(pos, end)  # [MQTT-3.1.4-1]
    return Connect(
        protocol_name,
        version,
        connect_flags & 0x02 != 0,
        keep_alive,
        client_id,
        will,
        username,
        password,
        properties,
        bridge,
    )


# 3.2 CONNACK


def decode_connack(data: bytes, pos: int, end: int, flags: int, version: int) -> Connack:
    _check_no_flags(flags)
    present, pos = read_u8(data, pos, end)
    if present > 1:  # [MQTT-3.2.2-1]
        raise ProtocolError(
            spec.MALFORMED_PACKET, "MQTT-3.2.2-1", "reserved bits of the CONNACK flags are set"
        )
    reason, pos = read_u8(data, pos, end)
    properties: Properties | None = None
    if version == spec.MQTT5:
        _check_reason(reason, spec.CONNACK, "MQTT-3.2.2-8")  # [MQTT-3.2.2-8]
        properties, pos = decode_properties(data, pos, end, spec.CONNACK)
    elif reason > spec.V3_NOT_AUTHORIZED:
        raise ProtocolError(spec.PROTOCOL_ERROR, "", "a reserved return code in CONNACK")
    _check_end(pos, end)
    if present and reason:  # [MQTT-3.2.2-6]
        raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-3.2.2-6", "a refusal that claims a session")
    return Connack(present == 1, reason, properties)


# 3.3 PUBLISH


class PublishFields:
    """What a PUBLISH says, unpacked into an object that the caller uses again and again.

    The broker reads a PUBLISH without making an object for it: `scan_publish` overwrites these, and
    whoever needs a value later takes it out before the next call. `key` is the topic as it stood on
    the wire, not yet checked; the payload is `data[payload_at:end]` of what was scanned.
    """

    def __init__(self) -> None:
        self.key = b""
        self.packet_id = 0
        self.properties = b""
        self.topic_alias = 0
        self.message_expiry = -1
        self.subscription_ids: list[int] | None = None
        self.rest_at = 0  # what follows the topic and the packet identifier
        self.payload_at = 0


def scan_publish(
    fields: PublishFields,
    data: bytes,
    pos: int,
    end: int,
    flags: int,
    version: int,
    from_client: bool,
) -> None:
    """Read everything of a PUBLISH but the characters of its topic, which a matcher may know."""
    qos = flags >> 1 & 0x03
    if qos == 3:  # [MQTT-3.3.1-4]
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-3.3.1-4", "QoS 3")
    if flags & 0x08 and qos == 0:  # [MQTT-3.3.1-2]
        raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-3.3.1-2", "DUP with QoS 0")

    start = pos + 2
    if start > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", "PUBLISH ends inside its topic")
    pos = start + (data[pos] << 8 | data[pos + 1])
    if pos > end:
        raise ProtocolError(spec.MALFORMED_PACKET, "", "PUBLISH ends inside its topic")
    fields.key = data[start:pos]
    empty = pos == start

    fields.packet_id = 0
    if qos:  # [MQTT-2.2.1-2]
        fields.packet_id, pos = _read_packet_id(data, pos, end)
    fields.rest_at = pos

    if version == spec.MQTT5:
        (
            fields.properties,
            pos,
            fields.topic_alias,
            fields.message_expiry,
            fields.subscription_ids,
        ) = scan_publish_properties(data, pos, end, from_client)
        if empty and fields.topic_alias == 0:
            raise ProtocolError(spec.PROTOCOL_ERROR, "", "neither a topic nor a topic alias")
    else:
        fields.properties = b""
        fields.topic_alias = 0
        fields.message_expiry = -1
        fields.subscription_ids = None
        if empty:  # [MQTT-4.7.3-1]
            raise ProtocolError(spec.MALFORMED_PACKET, "MQTT-4.7.3-1", "an empty topic")
    fields.payload_at = pos


def decode_publish(
    data: bytes, pos: int, end: int, flags: int, version: int, from_client: bool = True
) -> Publish:
    fields = PublishFields()
    scan_publish(fields, data, pos, end, flags, version, from_client)
    return Publish(
        decode_utf8(fields.key),  # [MQTT-3.3.2-1]
        data[fields.payload_at : end],
        flags >> 1 & 0x03,
        flags & 0x01 != 0,
        flags & 0x08 != 0,
        fields.packet_id,
        fields.properties,
        fields.topic_alias,
        fields.message_expiry,
        fields.subscription_ids,
        fields.key,
    )


# 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP


def decode_puback(data: bytes, pos: int, end: int, flags: int, version: int) -> Puback:
    _check_no_flags(flags)
    packet_id, reason, properties = _decode_ack(
        data, pos, end, version, spec.PUBACK, "MQTT-3.4.2-1"
    )
    return Puback(packet_id, reason, properties)  # [MQTT-3.4.2-1]


def decode_pubrec(data: bytes, pos: int, end: int, flags: int, version: int) -> Pubrec:
    _check_no_flags(flags)
    packet_id, reason, properties = _decode_ack(
        data, pos, end, version, spec.PUBREC, "MQTT-3.5.2-1"
    )
    return Pubrec(packet_id, reason, properties)  # [MQTT-3.5.2-1]


def decode_pubrel(data: bytes, pos: int, end: int, flags: int, version: int) -> Pubrel:
    _check_flags_0010(flags, version, "MQTT-3.6.1-1")  # [MQTT-3.6.1-1]
    packet_id, reason, properties = _decode_ack(
        data, pos, end, version, spec.PUBREL, "MQTT-3.6.2-1"
    )
    return Pubrel(packet_id, reason, properties)  # [MQTT-3.6.2-1]


def decode_pubcomp(data: bytes, pos: int, end: int, flags: int, version: int) -> Pubcomp:
    _check_no_flags(flags)
    packet_id, reason, properties = _decode_ack(
        data, pos, end, version, spec.PUBCOMP, "MQTT-3.7.2-1"
    )
    return Pubcomp(packet_id, reason, properties)  # [MQTT-3.7.2-1]


def _decode_ack(
    data: bytes, pos: int, end: int, version: int, kind: int, clause: str
) -> tuple[int, int, Properties | None]:
    packet_id, pos = _read_packet_id(data, pos, end)
    if pos == end:  # all that MQTT 3 has; in MQTT 5 the short form of success
        return packet_id, spec.SUCCESS, None
    if version != spec.MQTT5:
        _check_end(pos, end)
    reason = data[pos]
    if reason:
        _check_reason(reason, kind, clause)
    pos += 1
    if pos == end:
        return packet_id, reason, None
    properties, pos = _read_properties(data, pos, end, kind)
    _check_end(pos, end)
    return packet_id, reason, properties


def _read_properties(data: bytes, pos: int, end: int, kind: int) -> tuple[Properties | None, int]:
    """A property block of a packet in which it is seldom more than an empty one."""
    if pos < end and data[pos] == 0:
        return None, pos + 1
    return decode_properties(data, pos, end, kind)


# 3.8 SUBSCRIBE


def decode_subscribe(data: bytes, pos: int, end: int, flags: int, version: int) -> Subscribe:
    _check_flags_0010(flags, version, "MQTT-3.8.1-1")  # [MQTT-3.8.1-1]
    packet_id, pos = _read_packet_id(data, pos, end)
    properties: Properties | None = None
    subscription_id = 0
    if version == spec.MQTT5:
        properties, pos = _read_properties(data, pos, end, spec.SUBSCRIBE)
        if properties is not None and properties.subscription_ids:
            subscription_id = properties.subscription_ids[0]
            properties.subscription_ids = []
            if not properties.user_properties:
                properties = None
    if pos == end:  # [MQTT-3.8.3-2]
        raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-3.8.3-2", "SUBSCRIBE without a filter")
    filters: list[Filter] = []
    while pos < end:
        topic_filter, pos = read_string(data, pos, end)  # [MQTT-3.8.3-1]
        options, pos = read_u8(data, pos, end)
        if version == spec.MQTT5:
            filters.append(_subscription(topic_filter, options))
        else:
            if options > 2:
                raise ProtocolError(
                    spec.MALFORMED_PACKET, "", "a requested QoS other than 0, 1 or 2"
                )
            filters.append(Filter(topic_filter, options))
    return Subscribe(packet_id, filters, subscription_id, properties)


def _subscription(topic_filter: str, options: int) -> Filter:
    if options & 0xC0:  # [MQTT-3.8.3-5]
        raise ProtocolError(
            spec.MALFORMED_PACKET, "MQTT-3.8.3-5", "reserved subscription options are set"
        )
    qos = options & 0x03
    if qos == 3:
        raise ProtocolError(spec.PROTOCOL_ERROR, "", "a maximum QoS of 3")
    retain_handling = options >> 4
    if retain_handling == 3:
        raise ProtocolError(spec.PROTOCOL_ERROR, "", "retain handling 3")
    no_local = options & 0x04 != 0
    if no_local and topic_filter.startswith("$share/"):  # [MQTT-3.8.3-4]
        raise ProtocolError(
            spec.PROTOCOL_ERROR, "MQTT-3.8.3-4", "no local on a shared subscription"
        )
    return Filter(topic_filter, qos, no_local, options & 0x08 != 0, retain_handling)


# 3.9 SUBACK


def decode_suback(data: bytes, pos: int, end: int, flags: int, version: int) -> Suback:
    _check_no_flags(flags)
    packet_id, pos = _read_packet_id(data, pos, end)
    properties: Properties | None = None
    if version == spec.MQTT5:
        properties, pos = _read_properties(data, pos, end, spec.SUBACK)
    reasons = list(data[pos:end])
    for reason in reasons:
        if version == spec.MQTT5:
            _check_reason(reason, spec.SUBACK, "MQTT-3.9.3-2")  # [MQTT-3.9.3-2]
        elif reason > 2 and reason != 0x80:
            raise ProtocolError(spec.PROTOCOL_ERROR, "", "a reserved return code in SUBACK")
    if not reasons:
        raise ProtocolError(spec.MALFORMED_PACKET, "", "SUBACK without a reason code")
    return Suback(packet_id, reasons, properties)


# 3.10 UNSUBSCRIBE


def decode_unsubscribe(data: bytes, pos: int, end: int, flags: int, version: int) -> Unsubscribe:
    _check_flags_0010(flags, version, "MQTT-3.10.1-1")  # [MQTT-3.10.1-1]
    packet_id, pos = _read_packet_id(data, pos, end)
    properties: Properties | None = None
    if version == spec.MQTT5:
        properties, pos = _read_properties(data, pos, end, spec.UNSUBSCRIBE)
    if pos == end:  # [MQTT-3.10.3-2]
        raise ProtocolError(spec.PROTOCOL_ERROR, "MQTT-3.10.3-2", "UNSUBSCRIBE without a filter")
    filters: list[str] = []
    while pos < end:
        topic_filter, pos = read_string(data, pos, end)  # [MQTT-3.10.3-1]
        filters.append(topic_filter)
    return Unsubscribe(packet_id, filters, properties)


# 3.11 UNSUBACK


def decode_unsuback(data: bytes, pos: int, end: int, flags: int, version: int) -> Unsuback:
    _check_no_flags(flags)
    packet_id, pos = _read_packet_id(data, pos, end)
    if version != spec.MQTT5:
        _check_end(pos, end)
        return Unsuback(packet_id)
    properties, pos = _read_properties(data, pos, end, spec.UNSUBACK)
    reasons = list(data[pos:end])
    for reason in reasons:
        _check_reason(reason, spec.UNSUBACK, "MQTT-3.11.3-2")  # [MQTT-3.11.3-2]
    if not reasons:
        raise ProtocolError(spec.MALFORMED_PACKET, "", "UNSUBACK without a reason code")
    return Unsuback(packet_id, reasons, properties)


# 3.12, 3.13: PINGREQ, PINGRESP


def decode_pingreq(data: bytes, pos: int, end: int, flags: int, version: int) -> Pingreq:
    _check_no_flags(flags)
    _check_end(pos, end)
    return Pingreq()


def decode_pingresp(data: bytes, pos: int, end: int, flags: int, version: int) -> Pingresp:
    _check_no_flags(flags)
    _check_end(pos, end)
    return Pingresp()


# 3.14 DISCONNECT


def decode_disconnect(data: bytes, pos: int, end: int, flags: int, version: int) -> Disconnect:
    _check_no_flags(flags)  # [MQTT-3.14.1-1]
    if pos == end:
        return Disconnect()
    if version != spec.MQTT5:
        _check_end(pos, end)
    reason = data[pos]
    _check_reason(reason, spec.DISCONNECT, "MQTT-3.14.2-1")  # [MQTT-3.14.2-1]
    pos += 1
    if pos == end:
        return Disconnect(reason)
    properties, pos = _read_properties(data, pos, end, spec.DISCONNECT)
    _check_end(pos, end)
    return Disconnect(reason, properties)


# 3.15 AUTH


def decode_auth(data: bytes, pos: int, end: int, flags: int, version: int) -> Auth:
    if version != spec.MQTT5:
        raise ProtocolError(spec.PROTOCOL_ERROR, "", "AUTH before MQTT 5")
    _check_no_flags(flags)  # [MQTT-3.15.1-1]
    if pos == end:  # success may be that short
        return Auth()
    reason = data[pos]
    _check_reason(reason, spec.AUTH, "MQTT-3.15.2-1")  # [MQTT-3.15.2-1]
    properties, pos = decode_properties(data, pos + 1, end, spec.AUTH)
    _check_end(pos, end)
    if properties.authentication_method is None:
        raise ProtocolError(spec.PROTOCOL_ERROR, "", "AUTH without an authentication method")
    return Auth(reason, properties)
