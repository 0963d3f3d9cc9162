"""Where dead letters go: a topic with places such as `{reason}` that are filled in for each.

Owns: which templates are none, and that what a template makes of a message is one topic or nothing.

Must not know: why a message ended, who asks.

Invariants: what is filled in is never filled in again, so a topic with braces in it stays what it
is; a name in braces that is no place is text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mqttd.api import ProtocolError, validate_topic_name


def check(template: str, places: Sequence[str]) -> None:
    """ValueError where a template makes no topic. `places` are the names that are filled in."""
    sample = _filled(template, {place: place for place in places})
    if sample.startswith("$SYS"):
        raise ValueError("$SYS belongs to the broker")
    try:
        validate_topic_name(sample)
    except ProtocolError as error:
        names = ", ".join(f"{{{place}}}" for place in places)
        raise ValueError(
            f"expected a topic, in which only {names} are filled in: {error.detail}"
        ) from None


def fill(template: str, **values: str) -> str | None:
    """The topic of one dead letter; None where there is none, since it would be too long."""
    topic = _filled(template, values)
    try:
        validate_topic_name(topic)
    except ProtocolError:
        return None
    return topic


def _filled(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), template)
