"""Topics and filters in configurations: what can't be meant is refused where it stands.

Owns: `check_filter`, `check_target`. Both raise ValueError, for validators.

Must not know: what a filter is for (`_filters` compares them).
"""

from __future__ import annotations

from mqttd.api import ProtocolError, validate_topic_filter, validate_topic_name


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
