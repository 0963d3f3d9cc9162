"""Packets to bytes: one function a packet, in the order of the specification.

Every function takes a packet object and the version to write it in, and returns the whole packet,
fixed header included. Versions before 5 know neither properties nor (but for CONNACK and SUBACK)
reason codes: they are left out, and an MQTT 5 refusal is put in the words of MQTT 3. MQTT 5
acknowledgements take their shortest form.

The caller answers for what it writes: a value that doesn't fit its field raises `ValueError`, but
nobody checks here that a reason code suits its packet. Sizes are bounded by the peer's Maximum
Packet Size, which the connection knows; dropping a Reason String to fit it is done there, before
a packet comes here.
"""

from mqttd.core import spec
from mqttd.core.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
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
)
from mqttd.core.properties import (
    Properties,
    encode_properties,
    encode_publish_properties,
    encode_will_properties,
)
from mqttd.core.wire import binary, packet_id_bytes, string, u8, u16, varint


def encode_packet(packet: Record, version: int) -> bytes:
    """Encode any packet; a CONNECT is written in its own version."""
    if isinstance(packet, Publish):
        return encode_publish(packet, version)
    if isinstance(packet, Puback):
        return encode_puback(packet, version)
    if isinstance(packet, Pubrec):
        return encode_pubrec(packet, version)
    if isinstance(packet, Pubrel):
        return encode_pubrel(packet, version)
    if isinstance(packet, Pubcomp):
        return encode_pubcomp(packet, version)
    if isinstance(packet, Connect):
        return encode_connect(packet, packet.version)
    if isinstance(packet, Connack):
        return encode_connack(packet, version)
    if isinstance(packet, Subscribe):
        return encode_subscribe(packet, version)
    if isinstance(packet, Suback):
        return encode_suback(packet, version)
    if isinstance(packet, Unsubscribe):
        return encode_unsubscribe(packet, version)
    if isinstance(packet, Unsuback):
        return encode_unsuback(packet, version)
    if isinstance(packet, Pingreq):
        return encode_pingreq(packet, version)
    if isinstance(packet, Pingresp):
        return encode_pingresp(packet, version)
    if isinstance(packet, Disconnect):
        return encode_disconnect(packet, version)
    if isinstance(packet, Auth):
        return encode_auth(packet, version)
    raise TypeError(f"{type(packet).__name__} is not a control packet")


def _packet(first: int, body: bytes) -> bytes:
    return u8(first) + varint(len(body)) + body


# 3.1 CONNECT


def encode_connect(packet: Connect, version: int) -> bytes:
    flags = 0
    if packet.clean_start:
        flags |= 0x02
    will = packet.will
    if will is not None:
        flags |= 0x04 | will.qos << 3
        if will.retain:
            flags |= 0x20
    if packet.password is not None:
        flags |= 0x40
    if packet.username is not None:
        flags |= 0x80
    level = version | 0x80 if packet.bridge else version
    out = [string(packet.protocol_name), u8(level), u8(flags), u16(packet.keep_alive)]
    if version == spec.MQTT5:
        out.append(encode_properties(packet.properties))
    out.append(string(packet.client_id))
    if will is not None:
        if version == spec.MQTT5:
            out.append(
                encode_will_properties(will.properties, will.delay_interval, will.message_expiry)
            )
        out.append(string(will.topic))
        out.append(binary(will.payload))
    if packet.username is not None:
        out.append(string(packet.username))
    if packet.password is not None:
        out.append(binary(packet.password))
    return _packet(0x10, b"".join(out))


# 3.2 CONNACK


def encode_connack(packet: Connack, version: int) -> bytes:
    reason = packet.reason
    # [MQTT-3.2.2-1] [MQTT-3.2.2-6]
    present = 1 if packet.session_present and reason == spec.SUCCESS else 0
    if version == spec.MQTT5:
        return _packet(0x20, u8(present) + u8(reason) + encode_properties(packet.properties))
    if version == spec.MQTT31:
        present = 0  # the byte is reserved there
    if reason >= 0x80:
        reason = spec.connack_code_v3(reason)
    return _packet(0x20, u8(present) + u8(reason))


# 3.3 PUBLISH


def encode_publish(packet: Publish, version: int) -> bytes:
    first = 0x30 | packet.qos << 1
    if packet.retain:
        first |= 0x01
    if packet.dup and packet.qos:  # [MQTT-3.3.1-2]
        first |= 0x08
    topic = packet.topic.encode("utf-8")
    head = u16(len(topic)) + topic
    if packet.qos:  # [MQTT-2.2.1-2]
        head += packet_id_bytes(packet.packet_id)
    if version == spec.MQTT5:
        head += encode_publish_properties(
            packet.properties, packet.topic_alias, packet.message_expiry, packet.subscription_ids
        )
    payload = packet.payload
    return u8(first) + varint(len(head) + len(payload)) + head + payload


# 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP


def encode_puback(packet: Puback, version: int) -> bytes:
    return _encode_ack(0x40, packet.packet_id, packet.reason, packet.properties, version)


def encode_pubrec(packet: Pubrec, version: int) -> bytes:
    return _encode_ack(0x50, packet.packet_id, packet.reason, packet.properties, version)


def encode_pubrel(packet: Pubrel, version: int) -> bytes:
    # [MQTT-3.6.1-1]
    return _encode_ack(0x62, packet.packet_id, packet.reason, packet.properties, version)


def encode_pubcomp(packet: Pubcomp, version: int) -> bytes:
    return _encode_ack(0x70, packet.packet_id, packet.reason, packet.properties, version)


def _encode_ack(
    first: int, packet_id: int, reason: int, properties: Properties | None, version: int
) -> bytes:
    if version != spec.MQTT5 or (reason == spec.SUCCESS and properties is None):
        return ack(first, packet_id)
    if properties is None:
        return u8(first) + b"\x03" + packet_id_bytes(packet_id) + u8(reason)
    return _packet(first, packet_id_bytes(packet_id) + u8(reason) + encode_properties(properties))


def ack(first: int, packet_id: int) -> bytes:
    """A successful acknowledgement in four bytes, the same in every version.

    `first` is the fixed header byte: 0x40 PUBACK, 0x50 PUBREC, 0x62 PUBREL, 0x70 PUBCOMP.
    """
    return u8(first) + b"\x02" + packet_id_bytes(packet_id)


# 3.8 SUBSCRIBE


def encode_subscribe(packet: Subscribe, version: int) -> bytes:
    out = [u16(packet.packet_id)]
    if version == spec.MQTT5:
        if packet.subscription_id:
            out.append(_with_identifier(packet.properties, packet.subscription_id))
        else:
            out.append(encode_properties(packet.properties))
    for entry in packet.filters:
        options = entry.qos
        if version == spec.MQTT5:
            if entry.no_local:
                options |= 0x04
            if entry.retain_as_published:
                options |= 0x08
            options |= entry.retain_handling << 4
        out.append(string(entry.topic_filter))
        out.append(u8(options))
    return _packet(0x82, b"".join(out))  # [MQTT-3.8.1-1]


def _with_identifier(properties: Properties | None, identifier: int) -> bytes:
    together = Properties()
    together.subscription_ids.append(identifier)
    if properties is not None:
        together.user_properties = properties.user_properties
    return encode_properties(together)


# 3.9 SUBACK


def encode_suback(packet: Suback, version: int) -> bytes:
    if version == spec.MQTT5:
        codes = bytes(packet.reasons)
        return _packet(0x90, u16(packet.packet_id) + encode_properties(packet.properties) + codes)
    # MQTT 3.1.1 knows one failure, and MQTT 3.1 none at all: its clients are told the same.
    codes = bytes([reason if reason < 0x80 else 0x80 for reason in packet.reasons])
    return _packet(0x90, u16(packet.packet_id) + codes)


# 3.10 UNSUBSCRIBE


def encode_unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    out = [u16(packet.packet_id)]
    if version == spec.MQTT5:
        out.append(encode_properties(packet.properties))
    for topic_filter in packet.filters:
        out.append(string(topic_filter))
    return _packet(0xA2, b"".join(out))  # [MQTT-3.10.1-1]


# 3.11 UNSUBACK


def encode_unsuback(packet: Unsuback, version: int) -> bytes:
    if version != spec.MQTT5:
        return ack(0xB0, packet.packet_id)
    body = u16(packet.packet_id) + encode_properties(packet.properties) + bytes(packet.reasons)
    return _packet(0xB0, body)


# 3.12, 3.13: PINGREQ, PINGRESP


def encode_pingreq(packet: Pingreq, version: int) -> bytes:
    return b"\xc0\x00"


def encode_pingresp(packet: Pingresp, version: int) -> bytes:
    return b"\xd0\x00"


# 3.14 DISCONNECT


def encode_disconnect(packet: Disconnect, version: int) -> bytes:
    if version != spec.MQTT5:
        return b"\xe0\x00"
    if packet.properties is None:
        if packet.reason == spec.NORMAL_DISCONNECTION:
            return b"\xe0\x00"
        return b"\xe0\x01" + u8(packet.reason)
    return _packet(0xE0, u8(packet.reason) + encode_properties(packet.properties))


# 3.15 AUTH


def encode_auth(packet: Auth, version: int) -> bytes:
    if version != spec.MQTT5:
        raise ValueError("AUTH does not exist before MQTT 5")
    if packet.reason == spec.SUCCESS and packet.properties is None:
        return b"\xf0\x00"
    return _packet(0xF0, u8(packet.reason) + encode_properties(packet.properties))
