"""Messages and CONNECT packets of the core as plugins see them, and back.

Must not know: who asks. Nothing here keeps state.

Invariant: what comes back from a plugin is checked like what comes from the network.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from mqttd.core import spec
from mqttd.core.decode import decode_connect
from mqttd.core.encode import encode_connect
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from mqttd.core.letters import MARK
from mqttd.core.message import Message as CoreMessage
from mqttd.core.packets import Connect, Will
from mqttd.core.properties import decode_forwardable
from mqttd.core.settings import NEVER
from mqttd.core.topics import validate_topic_name
from mqttd.hooks.values import ConnectRequest, Message, Undelivered

_OF_LETTERS: Final = frozenset(
    {
        *(MARK, "mqttd-topic", "mqttd-time"),
        *("mqttd-client", "mqttd-share", "mqttd-publisher"),
    }
)
_LONGEST: Final = spec.MAX_VARINT + 5  # bytes of a packet


def message_of(message: CoreMessage, now: float) -> Message:
    """A message of the core as plugins see it."""
    return Message(
        message.topic,
        message.payload,
        message.qos,
        message.retain,
        None,
        message.expires_at - now if message.expires_at else None,
        message.origin,
        message.properties,
    )


def core_message_of(message: Message, now: float, origin: str) -> CoreMessage:
    """The other way round. ValueError for what is no message."""
    try:
        validate_topic_name(message.topic)
        block = message.block
        if block:
            decode_forwardable(block)
    except ProtocolError as error:
        raise ValueError(f"not a message: {error}") from error
    if message.qos not in (0, 1, 2) or not isinstance(message.payload, bytes):
        raise ValueError("not a message: QoS has to be 0, 1 or 2, the payload bytes")
    expires_in_s = message.expires_in_s
    if expires_in_s is not None and not -spec.MAX_U32 <= expires_in_s <= spec.MAX_U32:
        raise ValueError("not a message: its expiry has to be seconds that fit four bytes")
    return CoreMessage(
        message.topic,
        message.topic.encode("utf-8"),
        message.payload,
        message.qos,
        message.retain,
        block,
        0.0 if expires_in_s is None else now + expires_in_s,
        origin,
    )


def letter_of(made: Message, undelivered: Undelivered) -> Message:
    """The dead letter that a plugin made, with the properties that all dead letters have.

    What stood under their names before was somebody else's word, and goes.
    """
    found = [
        (MARK, undelivered.reason),
        ("mqttd-topic", undelivered.message.topic),
        ("mqttd-time", datetime.now(UTC).isoformat(timespec="milliseconds")),
    ]
    if undelivered.client_id:
        found.append(("mqttd-client", undelivered.client_id))
    if undelivered.share:
        found.append(("mqttd-share", undelivered.share))
    if undelivered.message.client_id:
        found.append(("mqttd-publisher", undelivered.message.client_id))
    before = made.properties
    kept = [each for each in before.user_properties if each[0] not in _OF_LETTERS]
    return made.replace(properties=replace(before, user_properties=(*kept, *found)))


def request_of(connect: Connect) -> ConnectRequest:
    will = connect.will
    message = None
    if will is not None:
        message = Message(
            will.topic,
            will.payload,
            will.qos,
            will.retain,
            None,
            will.message_expiry if will.message_expiry >= 0 else None,
            connect.client_id,
            will.properties,
        )
    if connect.version >= spec.MQTT5:
        expiry = connect.properties.session_expiry_interval or 0
    else:
        expiry = 0 if connect.clean_start else NEVER
    return ConnectRequest(
        connect.client_id,
        connect.clean_start,
        connect.keep_alive,
        connect.username,
        expiry,
        tuple(connect.properties.user_properties),
        message,
    )


def apply_request(wanted: ConnectRequest, asked: ConnectRequest, connect: Connect) -> None:
    """Make `connect` what a plugin wants it to be.

    ProtocolError, or what Python raises for values of the wrong kind, where no client could have
    sent that; `connect` is of no use then.
    """
    if not wanted.client_id:  # a client that brings none has got one by now
        raise ValueError("the client id is empty")
    connect.client_id = wanted.client_id
    connect.clean_start = wanted.clean_start
    connect.keep_alive = wanted.keep_alive_s
    connect.username = wanted.username
    if wanted.session_expiry_s != asked.session_expiry_s and connect.version >= spec.MQTT5:
        connect.properties.session_expiry_interval = wanted.session_expiry_s
    if wanted.will != asked.will:
        connect.will = _will_of(wanted.will, connect.will)
    framer = Framer(_LONGEST)
    framer.feed(encode_connect(connect, connect.version))
    if framer.next():
        decode_connect(framer.data, framer.pos, framer.end)


def _will_of(will: Message | None, before: Will | None) -> Will | None:
    if will is None:
        return None
    return Will(
        will.topic,
        will.payload,
        will.qos,
        will.retain,
        0 if before is None else before.delay_interval,
        -1 if will.expires_in_s is None else int(will.expires_in_s),
        will.block,
    )
