"""Texts that are filled in for each message: `devices/{topic[1]}/{property[site]}`.

Owns: the placeholders, what of a text can be found wrong before any message comes, and that a
publisher can't make a target other than the template shows.

    {topic}           the topic published to; inward, the name at the remote system
    {topic[N]}        one level of it, counted from 0
    {topic[N:]}       the levels from N on; there may be none
    {client_id}       of the publisher
    {property[NAME]}  the first user property of that name
    {key}             inward: the record's key, the group, the routing key
    {header[NAME]}    inward: a header of the remote message
    {id}              the id of the message

Must not know: rules, directions, what the text is for.

Invariants: where the filter is known, a level that it doesn't promise can't be named; in a target,
what a publisher chooses freely (client id, user property) is one level or part of one, never a
wildcard and never empty; no target begins with "$" unless its template does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from mqttd.api import Message

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_LEVEL: Final = re.compile(r"topic\[(\d{1,3})\]")
_REST: Final = re.compile(r"topic\[(\d{1,3}):\]")
_NAMED: Final = re.compile(r"(property|header)\[([^\[\]]+)\]")
_UNSAFE: Final = re.compile(r"[/+#\0]")
OUTWARD: Final = frozenset({"topic", "client_id", "property", "id"})
INWARD: Final = frozenset({"topic", "key", "property", "header", "id"})


class Unfit(Exception):
    """The message lacks what the text needs. Says what, never a value."""


class Values:
    """What a text may be filled in from."""

    __slots__ = ("_levels", "headers", "id", "key", "message")

    def __init__(
        self,
        message: Message,
        id: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message
        self.id = id
        self.key = key
        self.headers = headers or {}
        self._levels: list[str] | None = None

    @property
    def levels(self) -> list[str]:
        """Those of the topic."""
        if self._levels is None:
            self._levels = self.message.topic.split("/")
        return self._levels


class _Part:
    """One placeholder: `what` it is, and the level or the name in its brackets."""

    __slots__ = ("name", "start", "text", "what")

    def __init__(self, text: str, what: str, start: int = 0, name: str = "") -> None:
        self.text = text
        self.what = what  # topic, level, rest, client_id, key, id, property or header
        self.start = start
        self.name = name


class Template:
    """A text that was found to be sound."""

    __slots__ = ("_constant", "_parts", "_whole", "text")

    def __init__(self, text: str, known: frozenset[str], promised: int | None = None) -> None:
        """`promised`: how many levels every topic has; None where nothing is known of them.

        ValueError says what of `text` is wrong.
        """
        self.text = text
        self._parts: list[str | _Part] = []
        for number, piece in enumerate(_PLACEHOLDER.split(text)):
            if number % 2:
                self._parts.append(_placeholder(piece, known, promised))
            elif "{" in piece or "}" in piece:
                raise ValueError(f"{text!r}: a brace without its partner")
            elif piece:
                self._parts.append(piece)
        self._constant = all(isinstance(part, str) for part in self._parts)
        self._whole = text == "{topic}"

    def fill(self, values: Values) -> str:
        """The text for a message. `Unfit` where something is missing."""
        if self._whole:
            return values.message.topic
        if self._constant:
            return self.text
        out = [part if isinstance(part, str) else _value(part, values) for part in self._parts]
        return "".join(out)

    def target(self, values: Values) -> str:
        """The same for a target, where nobody may choose more than the template leaves open."""
        if self._whole:
            return values.message.topic
        if self._constant:
            return self.text
        out: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                out.append(part)
                continue
            value = _value(part, values)
            if part.what in ("client_id", "property"):
                if not value:
                    raise Unfit(f"{{{part.text}}} is empty")
                if _UNSAFE.search(value):
                    raise Unfit(f"{{{part.text}}} holds a wildcard or a level separator")
            out.append(value)
        text = "".join(out)
        if text.startswith("$") and not self.text.startswith("$"):
            raise Unfit("the target would begin with $")
        if not text:
            raise Unfit("the target is empty")
        return text

    def cover(self, levels: Sequence[str]) -> str:
        """A filter that matches every target this makes of topics that match `levels`."""
        out: list[str] = []
        for level in _split(self._parts):
            if all(isinstance(part, str) for part in level):
                out.append("".join(str(part) for part in level))
                continue
            part = level[0]
            if len(level) == 1 and isinstance(part, _Part):
                if part.what == "topic":
                    out += levels
                elif part.what == "rest":
                    out += levels[part.start :]
                elif part.what == "level" and part.start < len(levels):
                    out.append(levels[part.start])
                elif part.what in ("key", "header"):
                    out.append("#")
                else:
                    out.append("+")
            elif any(isinstance(part, _Part) and _may_hold_levels(part) for part in level):
                out.append("#")
            else:
                out.append("+")
            if "#" in out:
                out = out[: out.index("#") + 1]
                break
        return "/".join(out)


def _may_hold_levels(part: _Part) -> bool:
    return part.what in ("topic", "rest", "key", "header")


def _split(parts: Sequence[str | _Part]) -> list[list[str | _Part]]:
    """The parts, level by level."""
    levels: list[list[str | _Part]] = [[]]
    for part in parts:
        if isinstance(part, _Part):
            levels[-1].append(part)
            continue
        first, *others = part.split("/")
        if first:
            levels[-1].append(first)
        levels += [[other] if other else [] for other in others]
    return levels


def _placeholder(inner: str, known: frozenset[str], promised: int | None) -> _Part:
    if inner in known and inner not in ("property", "header"):
        return _Part(inner, inner)
    one, rest, named = _LEVEL.fullmatch(inner), _REST.fullmatch(inner), _NAMED.fullmatch(inner)
    if named is not None and named[1] in known:
        return _Part(inner, named[1], name=named[2])
    if one is not None:
        if promised is None or int(one[1]) < promised:
            return _Part(inner, "level", int(one[1]))
        raise ValueError(f"{{{inner}}}: the filter promises {promised} levels, counted from 0")
    if rest is not None:
        if promised is None or int(rest[1]) <= promised:
            return _Part(inner, "rest", int(rest[1]))
        raise ValueError(f"{{{inner}}}: the filter promises {promised} levels, counted from 0")
    there = {"topic": "{topic}, {topic[N]}, {topic[N:]}"}
    there |= {name: f"{{{name}[NAME]}}" for name in ("property", "header")}
    names = ", ".join(there.get(name, f"{{{name}}}") for name in sorted(known))
    raise ValueError(f"{{{inner}}} is unknown here: there are {names}")


def _value(part: _Part, values: Values) -> str:
    what = part.what
    if what == "topic":
        return values.message.topic
    if what == "level":
        if part.start >= len(values.levels):
            raise Unfit(f"the topic has no level {part.start}")
        return values.levels[part.start]
    if what == "rest":
        return "/".join(values.levels[part.start :])
    if what == "client_id":
        return values.message.client_id
    if what == "id":
        return values.id
    if what == "key":
        return values.key
    if what == "property":
        for name, value in values.message.properties.user_properties:
            if name == part.name:
                return value
        raise Unfit(f"there is no user property {part.name!r}")
    found = values.headers.get(part.name)
    if found is None:
        raise Unfit(f"there is no header {part.name!r}")
    return found
