"""Topics and filters as plugins find them, in configurations and in messages.

Owns: `check_filter` and `check_target`, which refuse in a configuration what can't be meant, by a
ValueError; and `split_delayed`: what is written in front of a topic to have it published later. Who
judges or changes messages by their topic looks behind that, or a delay would be a way around.

Must not know: what a filter is for (`_filters` compares them).
"""

from __future__ import annotations

import re
from typing import Final

from mqttd.api import ProtocolError, validate_topic_filter, validate_topic_name

DELAYED: Final = "$delayed"
_IN_FRONT: Final = re.compile(r"\$delayed/[0-9]{1,10}/(?=.)", re.DOTALL)


def split_delayed(topic: str) -> tuple[str, str]:
    """`$delayed/SECONDS/` and the topic behind it; "" and the topic where there is none."""
    match = _IN_FRONT.match(topic) if topic.startswith(DELAYED) else None
    return ("", topic) if match is None else (match[0], topic[match.end() :])


def check_filter(text: str) -> None:
    """What is no filter, or one of a shared subscription: nobody publishes to `$share/GROUP/…`."""
    try:
        validate_topic_filter(text)
    except ProtocolError as error:
        raise ValueError(f"{text!a} is no topic filter: {error.detail}") from None
    if text.startswith("$share/"):
        raise ValueError("leave $share/GROUP/ away: the filter behind it is what counts")


def check_target(text: str) -> None:
    """What is no topic, or one that plugins leave to the broker."""
    try:
        validate_topic_name(text)
    except ProtocolError as error:
        raise ValueError(f"{text!a} is no topic: {error.detail}") from None
    if text == "$SYS" or text.startswith("$SYS/"):
        raise ValueError("nobody but the broker publishes below $SYS")
