"""Topic templates: `devices/{topic[1]}/{client_id}`, filled in from a topic and from its client.

Owns: the placeholders (`{topic}`, `{topic[N]}`, `{topic[N:]}`, `{client_id}`, `{username}`), what
of a template can be found wrong before any client comes, and that nothing a client chooses makes a
topic other than the template shows: a name of a client is one level or a part of one, never a
wildcard, never empty, and no topic begins with "$" unless its template does.

Must not know: rules, directions, hooks.

Invariants: levels are counted from 0; a level that the filter doesn't promise can't be named; what
`fill` returns has still to be validated as a topic or as a filter, since a level of what came may
be a wildcard where filters are rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_LEVEL: Final = re.compile(r"topic\[(\d{1,3})\]")
_REST: Final = re.compile(r"topic\[(\d{1,3}):\]")
_UNSAFE: Final = re.compile(r"[/+#\0]")
_KNOWN: Final = "{topic}, {topic[N]}, {topic[N:]}, {client_id} and {username}"


class Unfit(Exception):
    """A client's name can't stand in a topic. The text says which, never the name itself."""


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of the topic."""

    place: int


@dataclass(frozen=True, slots=True)
class _Rest:
    """The topic from a level on: any number of levels, also none."""

    start: int


@dataclass(frozen=True, slots=True)
class _Name:
    """What the client is called."""

    what: str


_Part = str | _Level | _Rest | _Name


class Template:
    """A template that was found to be sound for the topics of one filter."""

    __slots__ = ("_levels", "text")

    def __init__(self, text: str, levels: Sequence[str]) -> None:
        """`levels` are those of the filter. ValueError says what of `text` is wrong."""
        self.text = text
        promised = len(levels) - (levels[-1] == "#")  # "a/#" holds "a" as well
        self._levels: list[list[_Part]] = []
        for level in text.split("/"):
            parts = _parts_of(level, promised)
            if len(parts) > 1 and any(isinstance(part, _Rest) for part in parts):
                raise ValueError(f"{level!r}: {{topic}} and {{topic[N:]}} fill a whole level")
            self._levels.append(parts)
        if self._levels == [[_Rest(promised)]]:
            raise ValueError(f"{text!r} is empty for some topics of the filter")

    def fill(self, topic: Sequence[str], client_id: str, username: str | None) -> str:
        """The text for a topic, split into its levels. `Unfit` for names that could widen it."""
        names = {"client_id": client_id, "username": username}
        out: list[str] = []
        for parts in self._levels:
            if parts and isinstance(parts[0], _Rest):
                out += topic[parts[0].start :]
            else:
                out.append("".join(_filled(part, topic, names) for part in parts))
        text = "/".join(out)
        if text.startswith("$") and not self.text.startswith("$"):
            raise Unfit("the topic would begin with $")
        return text

    def sample(self) -> str:
        """The text with a plain "x" for everything that is filled in."""
        return "/".join(
            "".join(part if isinstance(part, str) else "x" for part in parts)
            for parts in self._levels
        )


def _parts_of(level: str, promised: int) -> list[_Part]:
    parts: list[_Part] = []
    for number, piece in enumerate(_PLACEHOLDER.split(level)):
        if number % 2:
            parts.append(_placeholder(piece, promised))
        elif "{" in piece or "}" in piece:
            raise ValueError(f"{level!r}: a brace without its partner")
        elif piece:
            parts.append(piece)
    return parts


def _placeholder(inner: str, promised: int) -> _Part:
    if inner in ("client_id", "username"):
        return _Name(inner)
    if inner == "topic":
        return _Rest(0)
    one, rest = _LEVEL.fullmatch(inner), _REST.fullmatch(inner)
    if one is not None and int(one[1]) < promised:
        return _Level(int(one[1]))
    if rest is not None and int(rest[1]) <= promised:
        return _Rest(int(rest[1]))
    if one is not None or rest is not None:
        raise ValueError(f"{{{inner}}}: the filter promises {promised} levels, counted from 0")
    raise ValueError(f"{{{inner}}} is unknown: there are {_KNOWN}")


def _filled(part: _Part, topic: Sequence[str], names: dict[str, str | None]) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, _Level):
        return topic[part.place]
    assert isinstance(part, _Name)
    name = names[part.what]
    what = part.what.replace("_", " ")
    if not name:
        raise Unfit(f"there is no {what}")
    if _UNSAFE.search(name):
        raise Unfit(f"the {what} holds a wildcard or a level separator")
    return name
