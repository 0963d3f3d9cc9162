"""A message as a message of Amazon SQS, and back; names and limits of SQS.

Owns: what stands in which attribute, and what SQS can't hold. A message of SQS is text of some
characters and has ten attributes at most, so whatever is no such text travels as base64, and all
headers stand together in one attribute, as a JSON list of pairs:

    mqttd-id        the id            mqtt-topic      the topic
    mqtt-headers    all headers of `_bridge/properties`, in order
    mqtt-encoding   base64, where the body isn't the payload itself

Must not know: connections, the library. `wall` is seconds since 1970.

Invariants: nothing is handed to SQS that exceeds a limit which is known here; a group id and a
deduplication id are made of the same message in the same way at every attempt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from mqttd.api import Message
from mqttd_plugins._bridge.identity import ID
from mqttd_plugins._bridge.properties import TOPIC, all_of, headers_of, message_from
from mqttd_plugins._bridge.remote import Item, Poison

HEADERS: Final = "mqtt-headers"
ENCODING: Final = "mqtt-encoding"
LARGEST: Final = 1_048_576  # bytes of a message or a batch, unless a queue says less
_EMPTY: Final = "="  # a body may not be empty, and no base64 is this
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo")
_UNFIT: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ID: Final = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")
_LONGEST: Final = 65535  # bytes of a string in MQTT

Entry = dict[str, Any]


def queue_of(target: str) -> str:
    """The queue that a target names; slashes become dashes. ValueError for what can't be one."""
    name = target.replace("/", "-")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no queue of SQS: expected 1 to 80 of the characters A-Z a-z 0-9 _ -, "
            f"for a FIFO queue with .fifo at the end"
        )
    return name


def is_fifo(queue: str) -> bool:
    return queue.endswith(".fifo")


def entry_of(item: Item, queue: str, wall: float) -> Entry:
    """The entry of an item in a batch, without its `Id`."""
    body, encoding = _body(item.payload)
    headers = json.dumps(headers_of(item, wall), separators=(",", ":"))
    attributes = {ID: _string(item.id), HEADERS: _string(headers)}
    if not _UNFIT.search(item.message.topic):
        attributes[TOPIC] = _string(item.message.topic)
    if encoding:
        attributes[ENCODING] = _string(encoding)
    entry: Entry = {"MessageBody": body, "MessageAttributes": attributes}
    if is_fifo(queue):
        entry["MessageGroupId"] = short(item.key)
        entry["MessageDeduplicationId"] = short(f"{item.id}/{item.place}")
    return entry


def size_of(entry: Entry) -> int:
    """The bytes that count for the limit: the body, and names, types and values of attributes."""
    size = len(entry["MessageBody"].encode())
    for name, attribute in entry["MessageAttributes"].items():
        size += len(name) + len(attribute["DataType"]) + len(attribute["StringValue"].encode())
    return size


def check_size(entry: Entry, most: int) -> int:
    """The size; `Poison` above the limit."""
    size = size_of(entry)
    if size > most:
        raise Poison(f"too large: {size} bytes with its properties, and SQS takes {most}")
    return size


def short(text: str) -> str:
    """A text where SQS takes 128 characters of some: itself, or what stands for it."""
    if _ID.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def message_of(queue: str, got: Mapping[str, Any], wall: float) -> tuple[Message, dict[str, str]]:
    """The message that came, and its headers, of each name the first.

    Attributes that aren't ours are headers of their names; a binary one is base64.
    """
    attributes = got.get("MessageAttributes") or {}
    texts: dict[str, str] = {}
    for name, attribute in attributes.items():
        data = attribute.get("BinaryValue")
        texts[name] = (
            attribute.get("StringValue", "") if data is None else base64.b64encode(data).decode()
        )
    listed = texts.pop(HEADERS, None)
    payload = _payload(got.get("Body", ""), texts.pop(ENCODING, ""))
    fitting = [
        (name, value)
        for name, value in all_of(texts, listed)
        if "\0" not in name + value and max(len(name.encode()), len(value.encode())) <= _LONGEST
    ]
    first: dict[str, str] = {}
    for name, value in fitting:
        first.setdefault(name, value)
    return message_from(queue, payload, fitting, 1, wall), first


def _body(payload: bytes) -> tuple[str, str]:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = ""
    if text and not _UNFIT.search(text):
        return text, ""
    return base64.b64encode(payload).decode() or _EMPTY, "base64"


def _payload(body: str, encoding: str) -> bytes:
    if encoding != "base64":
        return body.encode()
    try:
        return b"" if body == _EMPTY else base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return body.encode()


def _string(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
