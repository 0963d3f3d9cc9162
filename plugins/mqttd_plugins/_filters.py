"""The algebra of topic filters: what two of them have in common, and which holds the other.

A rule of an access list is a filter, and so is what a client subscribes to. Whether the one lets
the other through is a question about sets of topics. Two filters have at most one filter in common,
which makes the question exact: `intersection` computes it, level by level.

Owns: `levels_of` (a filter as a tuple of its levels, in a form where equal sets are equal tuples),
`intersection`, `covers`, `fits`; and `Chosen`, many filters searched for the first that fits a
topic.

Must not know: users, rules, what a match means.

Invariants: filters are valid and inner ones (no `$share/GROUP/`). A filter whose first level is a
wildcard holds no topic that begins with "$" [MQTT-4.7.2-1]. The only two spellings of one set are
"#" and "+/#"; the second is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Generic, TypeVar

Levels = tuple[str, ...]

_WILD: Final = ("+", "#")
_NO_LEVEL: Final = "/"  # can't be a level


def levels_of(topic_filter: str) -> Levels:
    """The levels of a valid filter, "#" as "+/#"."""
    return ("+", "#") if topic_filter == "#" else tuple(topic_filter.split("/"))


def text_of(levels: Levels) -> str:
    return "/".join(levels)


def intersection(one: Levels, other: Levels) -> Levels | None:
    """The filter of all topics that both hold; None where there is no such topic."""
    if _reaches_no_dollar(one, other) or _reaches_no_dollar(other, one):
        return None
    out: list[str] = []
    for place in range(max(len(one), len(other))):
        mine = one[place] if place < len(one) else _NO_LEVEL
        theirs = other[place] if place < len(other) else _NO_LEVEL
        if mine == "#":  # "a/#" holds "a" as well
            return (*out, *other[place:])
        if theirs == "#":
            return (*out, *one[place:])
        if mine == "+" and theirs != _NO_LEVEL:
            out.append(theirs)
        elif mine == theirs or (theirs == "+" and mine != _NO_LEVEL):
            out.append(mine)
        else:
            return None
    return tuple(out)


def _reaches_no_dollar(wild: Levels, other: Levels) -> bool:
    return wild[0] in _WILD and other[0].startswith("$")


def covers(whole: Levels, part: Levels) -> bool:
    """Whether `whole` holds every topic that `part` holds."""
    return intersection(whole, part) == part


def fits(levels: Levels, parts: Sequence[str], dollar: bool) -> bool:
    """Whether a topic, split into `parts`, is held; `dollar`: whether it begins with "$"."""
    if dollar and levels[0] in _WILD:
        return False
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(parts) or level not in ("+", parts[place]):
            return False
    return len(parts) == len(levels)


Item = TypeVar("Item")


class Chosen(Generic[Item]):
    """Filters in order, each with an item: which is the first that holds a topic?

    Filters without wildcards are looked up, however many there are; of the others those are gone
    through that begin as the topic does, or with a wildcard.
    """

    __slots__ = ("_below", "_open", "_plain", "pairs")

    def __init__(self, pairs: Iterable[tuple[Levels, Item]]) -> None:
        self.pairs = list(pairs)
        self._plain: dict[str, int] = {}
        self._below: dict[str, list[int]] = {}  # by their first level
        self._open: list[int] = []
        for place, (levels, _) in enumerate(self.pairs):
            if levels[0] in _WILD:
                self._open.append(place)
            elif "+" in levels or "#" in levels:
                self._below.setdefault(levels[0], []).append(place)
            else:
                self._plain.setdefault(text_of(levels), place)

    def first(self, topic: str) -> Item | None:
        found = self._plain.get(topic, len(self.pairs))
        if self._below or self._open:
            parts = topic.split("/")
            dollar = topic.startswith("$")
            for places in (self._below.get(parts[0], ()), self._open):
                for place in places:
                    if place > found:
                        break
                    if fits(self.pairs[place][0], parts, dollar):
                        found = place
                        break
        return self.pairs[found][1] if found < len(self.pairs) else None
