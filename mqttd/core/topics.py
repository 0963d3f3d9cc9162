"""Topic names and topic filters: what is well formed, and which matches which.

Owns the grammar of section 4.7 and of the `$share/GROUP/FILTER` form of section 4.8. Nothing
here knows of subscriptions, sessions or packets; everything is a function of the strings.

A topic is split at "/" into levels, and a level may be empty: "/a", "a/", "//" and "/" are all
proper topics with two or three levels. Strings are compared character by character; nothing is
normalised, folded or trimmed.                                              # [MQTT-4.7.3-4]

`matches` is the definition of matching in its plainest form, one filter against one topic. The
trie and the retained tree do the same for many at once, and their tests hold them to it.

Invariants: every check costs time linear in the text, and the number of levels is counted before
anything is split, so that a packet full of slashes costs no more than its own length.
"""

from typing import Final

from mqttd.core import spec
from mqttd.core.errors import ProtocolError

MAX_LEVELS: Final = 200
MAX_BYTES: Final = 65535

_SHARE: Final = "$share"
_SHARE_PREFIX: Final = "$share/"


def _utf8_length(text: str) -> int:
    """Bytes the text takes on the wire; -1 when it cannot be written as UTF-8 at all."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return -1


def _check_text(text: str, code: int, max_levels: int) -> None:
    """What holds for names and filters alike."""
    if not text:
        raise ProtocolError(code, "MQTT-4.7.3-1", "empty topic")  # [MQTT-4.7.3-1]
    if "\0" in text:
        raise ProtocolError(code, "MQTT-4.7.3-2", "topic holds U+0000")  # [MQTT-4.7.3-2]
    length = _utf8_length(text)
    if length < 0 or length > MAX_BYTES:  # [MQTT-4.7.3-3]
        raise ProtocolError(code, "MQTT-4.7.3-3", "topic is not UTF-8 of at most 65535 bytes")
    if text.count("/") >= max_levels:
        raise ProtocolError(code, "", "topic has too many levels")


def validate_topic_name(topic: str, max_levels: int = MAX_LEVELS) -> None:
    """Raise TOPIC_NAME_INVALID unless `topic` may be published to."""
    _check_text(topic, spec.TOPIC_NAME_INVALID, max_levels)
    if "+" in topic or "#" in topic:  # [MQTT-4.7.0-1] [MQTT-3.3.2-2]
        raise ProtocolError(spec.TOPIC_NAME_INVALID, "MQTT-4.7.0-1", "wildcard in a topic name")


def validate_topic_filter(topic_filter: str, max_levels: int = MAX_LEVELS) -> None:
    """Raise TOPIC_FILTER_INVALID unless the filter, as the client sent it, may be subscribed to.

    The levels of a shared subscription are those of the filter behind its group.
    """
    code = spec.TOPIC_FILTER_INVALID
    _, inner = split_shared(topic_filter)
    _check_text(inner, code, max_levels)
    if not is_wildcard(inner):
        return
    levels = inner.split("/")
    last = len(levels) - 1
    for place, level in enumerate(levels):
        if "#" in level and (level != "#" or place != last):  # [MQTT-4.7.1-1]
            raise ProtocolError(code, "MQTT-4.7.1-1", "# has to stand alone in the last level")
        if "+" in level and level != "+":  # [MQTT-4.7.1-2]
            raise ProtocolError(code, "MQTT-4.7.1-2", "+ has to fill a whole level")


def split_shared(topic_filter: str) -> tuple[str, str]:
    """Group and inner filter of `$share/GROUP/FILTER`; ("", filter) for any other.

    A bare "$share" is refused with the malformed ones: it is a slip, never a topic of anyone.
    The inner filter is not validated beyond being there.
    """
    if not topic_filter.startswith(_SHARE_PREFIX):
        if topic_filter == _SHARE:
            raise ProtocolError(
                spec.TOPIC_FILTER_INVALID, "MQTT-4.8.2-1", "$share without a share name"
            )
        return "", topic_filter
    start = len(_SHARE_PREFIX)
    slash = topic_filter.find("/", start)
    group = topic_filter[start:] if slash < 0 else topic_filter[start:slash]
    if not group:  # [MQTT-4.8.2-1]
        raise ProtocolError(spec.TOPIC_FILTER_INVALID, "MQTT-4.8.2-1", "empty share name")
    if "+" in group or "#" in group:  # [MQTT-4.8.2-2]
        raise ProtocolError(spec.TOPIC_FILTER_INVALID, "MQTT-4.8.2-2", "wildcard in a share name")
    if slash < 0 or slash == len(topic_filter) - 1:  # [MQTT-4.8.2-2]
        raise ProtocolError(
            spec.TOPIC_FILTER_INVALID, "MQTT-4.8.2-2", "no filter behind the share name"
        )
    return group, topic_filter[slash + 1 :]


def is_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a valid filter (the inner one, if shared) matches a valid topic name."""
    if topic.startswith("$") and topic_filter.startswith(("+", "#")):  # [MQTT-4.7.2-1]
        return False
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    for place, level in enumerate(wanted):
        if level == "#":
            # Either levels are left, or the topic ended just before: "a/#" matches "a".
            return True
        if place == len(levels):
            return False
        if level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)
