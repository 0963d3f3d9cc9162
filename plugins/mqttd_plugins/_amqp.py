"""A message as RabbitMQ's properties and headers, and back.

Owns: which property of MQTT 5 stands where. What AMQP 0-9-1 has a place for goes there; the rest
goes into headers, by the names of `_bridge/properties`, except for two that RabbitMQ's own MQTT
plugin reads: `x-reply-to-topic` and `x-correlation-id`.

A header table holds every name once, and names of 255 bytes at most. Where a message has more, all
of its user properties stand once more, in order and as JSON, in `x-mqtt-user-properties`.

Some names mean something to RabbitMQ: `CC` and `BCC` send a copy to another queue, `x-death` counts
dead letters, `x-delay` holds a message back. What a publisher wrote into a user property must do
none of that, so such names get "mqtt-user-" in front of them, and lose it on the way back. Headers
that a rule adds are the operator's and stay as they are.

Must not know: connections, how anything is encoded. `wall` is seconds since 1970.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mqttd.api import Message
from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp_wire import Properties
from mqttd_plugins._bridge.identity import ID, VIA
from mqttd_plugins._bridge.properties import (
    CLIENT_ID,
    CONTENT_TYPE,
    CORRELATION,
    CORRELATION_BASE64,
    EXPIRES_AT,
    OURS,
    QOS,
    RESPONSE_TOPIC,
    RETAIN,
    TOPIC,
    all_of,
    headers_of,
    message_from,
    once_each,
)
from mqttd_plugins._bridge.remote import Item, Poison

REPLY_TO_TOPIC: Final = "x-reply-to-topic"
CORRELATION_ID: Final = "x-correlation-id"
ALL_HEADERS: Final = "x-mqtt-user-properties"
_USER: Final = "mqtt-user-"
_SHORT: Final = 255  # bytes of a short string
_LONGEST: Final = 65535  # bytes of a string in MQTT
_LONGEST_LIFE: Final = 0xFFFFFFFF  # ms: some versions of RabbitMQ end the channel for more
_REMEMBERED: Final = 512  # letters of topic and client id, together
_NOT_LISTED: Final = OURS | {ID, VIA}
_AS_THEY_ARE: Final = frozenset({ID, VIA, TOPIC, QOS, CLIENT_ID})  # what nearly all have, first
_ALSO: Final = {"reply_to": "amqp-reply-to", "message_type": "amqp-type", "app_id": "amqp-app-id"}


def block_of(item: Item, wall: float) -> bytes:
    """The properties of an item to be published, as they stand in a header frame.

    `Poison` for an id that AMQP can't hold: whoever publishes may have chosen it.
    """
    message = item.message
    plain = not message.block and not item.headers and message.expires_in_s is None
    topic, client_id = message.topic, message.client_id
    if not plain or item.rule.payload != "raw" or len(topic) + len(client_id) > _REMEMBERED:
        return wire.block_of(properties_of(item, wall))
    retain = message.retain and item.rule.retain
    pairs = _plain_pairs(topic, message.qos, retain, client_id, item.via)
    return wire.usual_block(pairs + wire.pairs_of({ID: item.id}), 2 if item.qos else 1, item.id)


@functools.lru_cache(maxsize=4096)
def _plain_pairs(topic: str, qos: int, retain: bool, client_id: str, via: str) -> bytes:
    """The headers of a message without properties, but for its id: mostly they repeat."""
    table = {TOPIC: topic, QOS: str(qos)}
    if retain:
        table[RETAIN] = "true"
    if client_id:
        table[CLIENT_ID] = client_id
    if via:
        table[VIA] = via
    return wire.pairs_of(table)


def properties_of(item: Item, wall: float) -> dict[str, Any]:
    """The properties by their AMQP names. `Poison` as `block_of`."""
    size = len(item.id.encode())
    if size > _SHORT:
        raise Poison(f"its {ID} has {size} bytes, and AMQP takes {_SHORT}")
    out: dict[str, Any] = {
        "delivery_mode": 2 if item.qos else 1,
        "message_id": item.id,
    }
    user: list[tuple[str, str]] = []
    table: dict[str, Any] = {}
    headers = headers_of(item, wall)
    of_the_rule = len(headers) - sum(name not in (ID, VIA) for name, _ in item.headers)
    for number, (name, value) in enumerate(headers):
        if name in _AS_THEY_ARE:
            table[name] = value
        elif name == CONTENT_TYPE and value and value.isascii() and len(value) <= _SHORT:
            out["content_type"] = value
        elif name == CORRELATION and value and len(value.encode()) <= _SHORT:
            out["correlation_id"] = value
        elif name == CORRELATION_BASE64:
            table[CORRELATION_ID] = bytearray(item.message.properties.correlation_data or b"")
        elif name == RESPONSE_TOPIC:
            table[REPLY_TO_TOPIC] = value
        elif name in OURS:
            table[name] = value
        elif number < of_the_rule and (name in ("CC", "BCC") or name.startswith("x-")):
            user.append((_USER + name, value))
        else:
            user.append((name, value))
    if item.rule.payload == "envelope":
        out["content_type"] = "application/json"
    expires_in_s = item.message.expires_in_s
    if expires_in_s is not None and expires_in_s * 1000 <= _LONGEST_LIFE:
        out["expiration"] = str(max(0, int(expires_in_s * 1000)))
    if user:
        first, listed = once_each(user)
        fitting = {name: value for name, value in first.items() if len(name.encode()) <= _SHORT}
        if len(fitting) < len(first) and listed is None:
            listed = json.dumps(user, ensure_ascii=False, separators=(",", ":"))
        table.update(fitting)
        if listed is not None:
            table[ALL_HEADERS] = listed
    out["headers"] = table
    return out


def routing_key(item: Item, *, slashes: bool) -> str:
    """The routing key of an item. `Poison` for one that AMQP can't hold."""
    key = item.target if slashes else item.target.replace("/", ".")
    size = len(key.encode())
    if size > _SHORT:
        raise Poison(f"to: its routing key has {size} bytes, and AMQP takes {_SHORT}")
    return key


def message_of(
    routing_key: str, body: bytes, properties: Properties, wall: float
) -> tuple[Message, dict[str, str]]:
    """The message that came, with all of its headers as text.

    The topic is the routing key with slashes for dots.
    """
    table: Mapping[str, Any] = properties.headers or {}
    found: list[tuple[str, str]] = []
    listed = table.get(ALL_HEADERS)
    user = all_of({}, listed if isinstance(listed, str) else None)
    known = {name for name, _ in user}
    for name, value in table.items():
        if name == REPLY_TO_TOPIC:
            found.append((RESPONSE_TOPIC, _text(value)))
        elif name not in known and name not in (CORRELATION_ID, ALL_HEADERS):
            found.append((name, _text(value)))
    found += [(name, value) for name, value in user if name not in _NOT_LISTED]
    correlation = _correlation_of(table.get(CORRELATION_ID))
    for attribute, name in (("content_type", CONTENT_TYPE), ("correlation_id", CORRELATION)):
        value = getattr(properties, attribute)
        if value:
            found.append((name, _text(value)))
    for attribute, name in _ALSO.items():
        value = getattr(properties, attribute)
        if value:
            found.append((name, _text(value)))
    expires = properties.expiration
    if EXPIRES_AT not in table and isinstance(expires, str) and expires.isdecimal():
        found.append((EXPIRES_AT, str(int(wall * 1000) + int(expires))))
    fitting = [(name, value) for name, value in found if _fits(name) and _fits(value)]
    message = message_from(routing_key.replace(".", "/"), body, fitting, 1, wall)
    if correlation is not None:
        message = message.replace(properties=_with_correlation(message, correlation))
    return message, _first(fitting)


def _correlation_of(value: object) -> bytes | None:
    """Correlation data that came as bytes, or as whatever somebody else made of it."""
    if value is None:
        return None
    data = bytes(value) if isinstance(value, bytes | bytearray) else _text(value).encode()
    return data if len(data) <= _LONGEST else None


def _with_correlation(message: Message, data: bytes) -> Any:
    properties = message.properties
    return type(properties)(
        properties.payload_format_indicator,
        properties.content_type,
        properties.response_topic,
        data,
        properties.user_properties,
    )


def _fits(text: str) -> bool:
    short = len(text) <= _LONGEST // 4  # whatever its letters are
    return "\0" not in text and (short or len(text.encode(errors="replace")) <= _LONGEST)


def _first(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in headers:
        out.setdefault(name, value)
    return out


def _text(value: object) -> str:
    """A value of a header table, which has many types, as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, list | dict):
        return json.dumps(value, default=_leaf, ensure_ascii=False, separators=(",", ":"))
    return _leaf(value)


def _leaf(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)
