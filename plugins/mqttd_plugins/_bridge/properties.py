"""The properties of MQTT 5 as headers, as JSON, and back: what all faces need, once.

Owns: the canonical list of headers, the JSON envelope, and the small questions that every system
asks (is this text, has this name been there, when does this expire).

    what                 header                 value
    topic                mqtt-topic             text
    QoS                  mqtt-qos               0, 1 or 2
    retain               mqtt-retain            true, absent otherwise
    payload format       mqtt-payload-format    0 or 1
    content type         content-type           text
    response topic       mqtt-response-topic    text
    correlation data     correlation-data       text, or base64 in correlation-data-base64
    message expiry       mqtt-expires-at        milliseconds since 1970
    publisher            mqtt-client-id         text, absent where it isn't known
    id, hops             mqttd-id, mqttd-via    text
    user properties      their own names        in order, repeated where they repeat

The names here are those of systems whose headers are free text. A face whose system has a place of
its own for something (AMQP's `correlation_id`, SQS's group) puts it there and takes it out of the
list. A user property that has the name of one of the headers above would be read back as that; its
name gets "mqtt-user-" in front of it, and loses it on the way back.

Must not know: any one system, connections. `wall` is seconds since 1970, given by the caller.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mqttd.api import Message, MessageProperties
from mqttd_plugins._bridge.figures import UNREADABLE
from mqttd_plugins._bridge.identity import ID, VIA
from mqttd_plugins._bridge.remote import Item, Poison

TOPIC: Final = "mqtt-topic"
QOS: Final = "mqtt-qos"
RETAIN: Final = "mqtt-retain"
PAYLOAD_FORMAT: Final = "mqtt-payload-format"
CONTENT_TYPE: Final = "content-type"
RESPONSE_TOPIC: Final = "mqtt-response-topic"
CORRELATION: Final = "correlation-data"
CORRELATION_BASE64: Final = "correlation-data-base64"
EXPIRES_AT: Final = "mqtt-expires-at"
CLIENT_ID: Final = "mqtt-client-id"
OURS: Final = frozenset(
    {
        *(TOPIC, QOS, RETAIN, PAYLOAD_FORMAT, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION),
        *(CORRELATION_BASE64, EXPIRES_AT, CLIENT_ID),
    }
)
_ESCAPE: Final = "mqtt-user-"

Headers = list[tuple[str, str]]


def headers_of(item: Item, wall: float) -> Headers:
    """Everything about an item that isn't its payload, in a fixed order."""
    message = item.message
    properties = message.properties
    out: Headers = [(TOPIC, message.topic), (QOS, str(message.qos))]
    if message.retain and item.rule.retain:
        out.append((RETAIN, "true"))
    if properties.payload_format_indicator is not None:
        out.append((PAYLOAD_FORMAT, str(properties.payload_format_indicator)))
    if properties.content_type is not None:
        out.append((CONTENT_TYPE, properties.content_type))
    if properties.response_topic is not None:
        out.append((RESPONSE_TOPIC, properties.response_topic))
    if properties.correlation_data is not None:
        text = text_of(properties.correlation_data)
        if text is None:
            out.append((CORRELATION_BASE64, _base64(properties.correlation_data)))
        else:
            out.append((CORRELATION, text))
    expires_at = expires_at_ms(message, wall)
    if expires_at is not None:
        out.append((EXPIRES_AT, str(expires_at)))
    if message.client_id:
        out.append((CLIENT_ID, message.client_id))
    out.append((ID, item.id))
    if item.via:
        out.append((VIA, item.via))
    for name, value in (*properties.user_properties, *item.headers):
        if name not in (ID, VIA):
            out.append((_escaped(name), value))
    return out


def message_from(
    source: str, payload: bytes, headers: Iterable[tuple[str, str]], qos: int, wall: float
) -> Message:
    """The other way round: what came from `source`, a topic or a queue.

    What isn't one of our headers becomes a user property; one of ours whose value makes no sense
    does so, too, for it wasn't ours. Topic, QoS and client id are left to templates.
    """
    found: dict[str, Any] = {}
    user: Headers = []
    retain = False
    expires_in_s: float | None = None
    for name, value in headers:
        if name == RETAIN and value == "true":
            retain = True
        elif name == PAYLOAD_FORMAT and value in ("0", "1"):
            found["payload_format_indicator"] = int(value)
        elif name == CONTENT_TYPE:
            found["content_type"] = value
        elif name == RESPONSE_TOPIC and value and not set("+#\0") & set(value):
            found["response_topic"] = value
        elif name == CORRELATION:
            found["correlation_data"] = value.encode()
        elif name == CORRELATION_BASE64 and (data := _unbase64(value)) is not None:
            found["correlation_data"] = data
        elif name == EXPIRES_AT and value.isascii() and value.isdecimal() and len(value) < 16:
            expires_in_s = max(0.0, int(value) / 1000 - wall)
        elif name not in (TOPIC, QOS, CLIENT_ID):
            user.append((name.removeprefix(_ESCAPE), value))
    properties = MessageProperties(user_properties=tuple(user), **found)
    return Message(source, payload, qos, retain, properties, expires_in_s)


def once_each(headers: Headers) -> tuple[dict[str, str], str | None]:
    """For systems whose names may not repeat: the first of each, and all of them as JSON.

    The JSON is a list of pairs, and None where no name repeats.
    """
    first: dict[str, str] = {}
    for name, value in headers:
        first.setdefault(name, value)
    if len(first) == len(headers):
        return first, None
    return first, json.dumps(headers, ensure_ascii=False, separators=(",", ":"))


def all_of(first: Mapping[str, str], listed: str | None) -> Headers:
    """The other way round; a list that is none is ignored."""
    if listed is not None:
        pairs = _pairs(_parsed(listed))
        if pairs is not None:
            return pairs
    return list(first.items())


def expires_at_ms(message: Message, wall: float) -> int | None:
    """When a message expires, in milliseconds since 1970; None for never."""
    if message.expires_in_s is None:
        return None
    return int((wall + max(0.0, message.expires_in_s)) * 1000)


def text_of(data: bytes) -> str | None:
    """The bytes as text, where they are valid UTF-8 without control characters."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


# The envelope.


def envelope_of(message: Message, id: str, via: str, wall: float) -> bytes:
    """The message as JSON: one object, UTF-8, with `payload` as text or as `payload_base64`."""
    properties = message.properties
    out: dict[str, Any] = {"topic": message.topic, "qos": message.qos, "retain": message.retain}
    if id:
        out["id"] = id
    if via:
        out["via"] = via
    if message.client_id:
        out["client_id"] = message.client_id
    expires_at = expires_at_ms(message, wall)
    if expires_at is not None:
        out["expires_at"] = expires_at
    if properties.payload_format_indicator is not None:
        out["payload_format_indicator"] = properties.payload_format_indicator
    if properties.content_type is not None:
        out["content_type"] = properties.content_type
    if properties.response_topic is not None:
        out["response_topic"] = properties.response_topic
    if properties.correlation_data is not None:
        out["correlation_data_base64"] = _base64(properties.correlation_data)
    if properties.user_properties:
        pairs = properties.user_properties
        out["user_properties"] = [list(pair) for pair in pairs if pair[0] not in (ID, VIA)]
    try:
        out["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        out["payload_base64"] = _base64(message.payload)
    return json.dumps(out, ensure_ascii=False, separators=(",", ":")).encode()


def opened(message: Message, wall: float) -> tuple[Message, dict[str, str]]:
    """The message that is in the envelope of another, and the headers for `{header[NAME]}`.

    `Poison` for a payload that is no envelope. The topic stays that of the outer message, since
    the rule decides where it goes; that of the envelope is the header `mqtt-topic`.
    """
    tree = _parsed(message.payload)
    if not isinstance(tree, dict):
        raise Poison("the payload is no JSON object, so no envelope", UNREADABLE)
    data = tree.get("payload")
    payload = data.encode() if isinstance(data, str) else _unbase64(tree.get("payload_base64"))
    if payload is None:
        raise Poison("the envelope holds neither payload nor payload_base64", UNREADABLE)
    headers: Headers = []
    for name, header in (
        ("topic", TOPIC),
        ("content_type", CONTENT_TYPE),
        ("response_topic", RESPONSE_TOPIC),
        ("correlation_data_base64", CORRELATION_BASE64),
        ("id", ID),
        ("via", VIA),
    ):
        if isinstance(tree.get(name), str):
            headers.append((header, tree[name]))
    for name, header in (
        ("payload_format_indicator", PAYLOAD_FORMAT),
        ("expires_at", EXPIRES_AT),
    ):
        if type(tree.get(name)) is int:
            headers.append((header, str(tree[name])))
    if tree.get("retain") is True:
        headers.append((RETAIN, "true"))
    user = _pairs(tree.get("user_properties", []))
    if user is None:
        raise Poison("user_properties of the envelope is no list of pairs of text", UNREADABLE)
    headers += [(_escaped(name), value) for name, value in user]
    made = message_from(message.topic, payload, headers, message.qos, wall)
    return made, once_each(headers)[0]


def _escaped(name: str) -> str:
    return _ESCAPE + name if name in OURS or name.startswith(_ESCAPE) else name


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: object) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _parsed(text: str | bytes) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def _pairs(tree: object) -> Headers | None:
    if not isinstance(tree, Sequence) or isinstance(tree, str):
        return None
    out: Headers = []
    for pair in tree:
        if not (isinstance(pair, list) and len(pair) == 2):
            return None
        name, value = pair
        if not (_is_text(name) and _is_text(value)):
            return None
        out.append((name, value))
    return out


def _is_text(value: object) -> bool:
    """Whether it is text that has bytes: JSON can say halves of letters, which have none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
