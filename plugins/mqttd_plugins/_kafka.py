"""A message as a record of Kafka, and back; which names Kafka takes.

Owns: what of a message stands in which header. Kafka's headers are an ordered list of pairs in
which names may repeat, of text and bytes, so nothing is lost: they are those of
`_bridge/properties`, with correlation data as the bytes that they are.

Must not know: connections, the library. `wall` is seconds since 1970.

Invariants: a topic of Kafka never holds what Kafka refuses; slashes become dots, as in every bridge
to a system without slashes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from mqttd.api import Message
from mqttd_plugins._bridge.properties import (
    CONTENT_TYPE,
    CORRELATION,
    CORRELATION_BASE64,
    headers_of,
    message_from,
    text_of,
)
from mqttd_plugins._bridge.remote import Item, Poison

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_LONGEST: Final = 65535  # bytes of a string in MQTT
_AROUND: Final = 82  # bytes of a batch with one record, around what the record holds
_LENGTH: Final = 5  # bytes of a length at most

RecordHeaders = list[tuple[str, bytes]]


@lru_cache(maxsize=4096)
def topic_of(target: str) -> str:
    """The topic of Kafka that a target names. ValueError for one that Kafka can't have."""
    topic = target.replace("/", ".")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(
            f"{topic!r} is no topic of Kafka: expected 1 to 249 of the characters A-Z a-z 0-9 . _ -"
        )
    return topic


def record_topic(item: Item) -> str:
    """The topic of an item's record. `Poison` for one that Kafka can't have."""
    try:
        return topic_of(item.target)
    except ValueError as error:
        raise Poison(f"to: {error}") from None


def record_headers(item: Item, wall: float) -> RecordHeaders:
    """The headers of an item's record, in order."""
    envelope = item.rule.payload == "envelope"
    if not envelope and item.message.properties.correlation_data is None:
        return [(name, value.encode()) for name, value in headers_of(item, wall)]
    out: RecordHeaders = []
    for name, value in headers_of(item, wall):
        if name in (CORRELATION, CORRELATION_BASE64):
            out.append((CORRELATION, item.message.properties.correlation_data or b""))
        elif not (envelope and name == CONTENT_TYPE):
            out.append((name, value.encode()))
    if envelope:
        out.append((CONTENT_TYPE, b"application/json"))
    return out


def record_size(key: bytes, value: bytes, headers: RecordHeaders) -> int:
    """Bytes of a record that is alone in its batch, closely enough: Kafka has the last word."""
    size = _AROUND + len(key) + len(value)
    for name, data in headers:
        size += len(name) + len(data) + 2 * _LENGTH
    return size


def message_of(
    topic: str, value: bytes | None, headers: Iterable[tuple[str, bytes | None]], wall: float
) -> tuple[Message, dict[str, str]]:
    """The message of a record, and its headers as text, of each name the first.

    A record without a value, which deletes a key of a compacted topic, is an empty payload: what
    deletes a retained message. Bytes that are no text are replaced, where it matters to nobody.
    """
    found: list[tuple[str, str]] = []
    for name, data in headers:
        data = data or b""
        if name == CORRELATION and text_of(data) is None:
            found.append((CORRELATION_BASE64, base64.b64encode(data).decode()))
        else:
            found.append((name, data.decode(errors="replace")))
    fitting = [(name, text) for name, text in found if _fits(name) and _fits(text)]
    first: dict[str, str] = {}
    for name, text in fitting:
        first.setdefault(name, text)
    return message_from(topic, value or b"", fitting, 1, wall), first


def _fits(text: str) -> bool:
    return "\0" not in text and len(text.encode()) <= _LONGEST
