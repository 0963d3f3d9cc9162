"""Names: templates of ids and topics, the tags dealt out to devices, and which filter fits a topic.

A template is text with parts in braces, `line/{line}/{id}`, each with an optional width:
`{index:05d}` or `{index:x}`. Nothing else of Python's format language exists: no attributes, no
indexes, no conversions. `{{` and `}}` are braces.

Tags are values that a group deals out to its devices. The first one changes from device to device,
the second one when the first has been through, and so on: with `{room: [hall, bath], home: 100}`
devices 0 and 1 are the hall and the bath of home 0. Every combination comes up before one repeats.

The simulator matches topics by rules of its own, [MQTT-4.7.1-2], [MQTT-4.7.1-3], [MQTT-4.7.2-1]:
had it the broker's matcher, it would be blind to the broker's mistakes.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

T = TypeVar("T")

DEVICE_PARTS: Final = frozenset({"run", "group", "index"})
"""What an id may name, besides the tags."""
TOPIC_PARTS: Final = DEVICE_PARTS | {"id"}
"""What the topics of a device may name, besides the tags."""
LONGEST_NAME: Final = 65_535

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_-]*)(?::(0?[0-9]{0,2}[dx]?))?\}|[{}]")

Tags = Mapping[str, int | list[str]]


class Template:
    """A text with parts to be filled in; ValueError says what is wrong with it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces: list[tuple[str, str, str]] = []
        literal = ""
        at = 0
        for found in _PIECE.finditer(text):
            literal += text[at : found.start()]
            at = found.end()
            if found[0] in ("{{", "}}"):
                literal += found[0][0]
            elif found[1] is None:
                raise ValueError(f"a lone {found[0]!r} at character {found.start() + 1}")
            else:
                self._pieces.append((literal, found[1], found[2] or ""))
                literal = ""
        self._end = literal + text[at:]

    @property
    def parts(self) -> frozenset[str]:
        """The names of the parts."""
        return frozenset(name for _, name, _ in self._pieces)

    def render(self, values: Mapping[str, str | int]) -> str:
        """The text with its parts filled in; ValueError for a number's format of a text."""
        return "".join(
            literal + format(values[name], form) for literal, name, form in self._pieces
        ) + (self._end)


def deal(tags: Tags, index: int) -> dict[str, str | int]:
    """The tags of one device."""
    dealt: dict[str, str | int] = {}
    for name, values in tags.items():
        size = values if isinstance(values, int) else len(values)
        at = index % size
        index //= size
        dealt[name] = at if isinstance(values, int) else values[at]
    return dealt


class Names:
    """What one device is called: the values of the parts of its templates."""

    __slots__ = ("client_id", "parts")

    def __init__(self, run: str, group: str, index: int, id_pattern: Template, tags: Tags) -> None:
        self.parts: dict[str, str | int] = deal(tags, index)
        self.parts |= {"run": run, "group": group, "index": index}
        self.client_id = id_pattern.render(self.parts)
        self.parts["id"] = self.client_id

    def render(self, template: Template, extra: Mapping[str, str | int] | None = None) -> str:
        """A topic, a filter or a text of this device."""
        return template.render(self.parts if extra is None else {**self.parts, **extra})

    def as_target(self, tags: Tags) -> dict[str, str | int]:
        """The parts that a request to this device may name: `target`, and `target_` each tag."""
        parts = {f"target_{name}": self.parts[name] for name in (*tags, "index")}
        return {**parts, "target": self.client_id}


def topic_fault(topic: str) -> str:
    """What is wrong with a topic name, or nothing."""
    if "+" in topic or "#" in topic:
        return "has a wildcard"  # [MQTT-3.3.2-2]
    if topic.startswith("$"):
        return "begins with '$', which is the broker's"
    return _name_fault(topic)


def filter_fault(pattern: str) -> str:
    """What is wrong with a topic filter, or nothing."""
    levels = pattern.split("/")
    for at, level in enumerate(levels):
        if "#" in level and (level != "#" or at != len(levels) - 1):
            return "has a '#' that isn't the whole last level"  # [MQTT-4.7.1-1]
        if "+" in level and level != "+":
            return "has a '+' that isn't a whole level"  # [MQTT-4.7.1-2]
    if levels[0] == "$share":
        return "is a shared one, which `share` is for"
    return _name_fault(pattern)


def _name_fault(name: str) -> str:
    if not name:
        return "is empty"  # [MQTT-4.7.3-1]
    if "\0" in name:
        return "has a NUL"  # [MQTT-4.7.3-2]
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is no valid text"
    return f"has {size} bytes, more than {LONGEST_NAME}" if size > LONGEST_NAME else ""


class _Level(Generic[T]):
    def __init__(self) -> None:
        self.below: dict[str, _Level[T]] = {}
        self.here: list[T] = []
        self.rest: list[T] = []


class Filters(Generic[T]):
    """Topic filters with something attached; which of them fit a topic."""

    def __init__(self) -> None:
        self._root: _Level[T] = _Level()

    def add(self, pattern: str, what: T) -> None:
        """A filter, and what is found under it."""
        level = self._root
        names = pattern.split("/")
        for name in names:
            if name == "#":
                level.rest.append(what)
                return
            level = level.below.setdefault(name, _Level())
        level.here.append(what)

    def match(self, topic: str) -> list[T]:
        """Everything whose filter fits; once for each filter that does."""
        found: list[T] = []
        reached = [self._root]
        for at, name in enumerate(topic.split("/")):
            wild = at > 0 or not name.startswith("$")  # [MQTT-4.7.2-1]
            following = []
            for level in reached:
                if wild:
                    found += level.rest
                for key in (name, "+") if wild else (name,):
                    if (below := level.below.get(key)) is not None:
                        following.append(below)
            reached = following
        for level in reached:
            found += level.here
            found += level.rest
        return found
