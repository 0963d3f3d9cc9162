"""Regular expressions that can't be made to backtrack: matched in time that grows with the text.

A schema's author writes the pattern, any client the text. With a backtracking matcher, as that of
Python, a short text can keep a harmless-looking pattern busy for hours (`(a+)+$`), with every other
thread waiting. This one follows all ways at the same time, as sets of places in the pattern, and
remembers which set leads to which.

Owns: the syntax, which is the part of ECMA-262 that JSON Schema recommends to keep to: characters,
classes, groups, alternatives, quantifiers (lazy ones are the same here), `^`, `$`, `\\b`, `\\B`.
`\\d` and `\\w` are ASCII, `$` is the very end, as there. What only a backtracking matcher can do
(references to groups, looking ahead or behind) is refused when the pattern is read; so are flags,
`\\p{…}`, and patterns that are too large once `{n,m}` is written out.

Must not know: schemas, limits of time. Whoever searches brings `spend`, which is told of the work.

Invariants: a text costs at most its length times the size of the pattern; what is remembered is
bounded; it may be searched from several threads at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final

MOST_PLACES: Final = 2000
_DEEPEST: Final = 50
_MOST_SETS: Final = 500
_CHARACTERS_A_STEP: Final = 16  # as quick as one step of other work

Ranges = tuple[tuple[int, int], ...]
Spend = Callable[[int], None]

_LAST: Final = 0x10FFFF
_DIGITS: Final[Ranges] = ((48, 57),)
_WORD: Final[Ranges] = ((48, 57), (65, 90), (95, 95), (97, 122))
_BLANKS: Final[Ranges] = (
    (9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_LINE_ENDS: Final[Ranges] = ((10, 10), (13, 13), (0x2028, 0x2029))
_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _BLANKS}
_CONTROLS: Final = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_SYNTAX: Final = frozenset("^$\\.*+?()[]{}|/-")

# What the text has just before a place.
_NOTHING: Final = 0
_A_WORD: Final = 1
_ANOTHER: Final = 2


class PatternProblem(ValueError):
    """It is no pattern, or one that can't be matched here; the text says why."""


class _Place:
    """Somewhere in a pattern: a set to get past, an assertion to pass, or a fork; or the end."""

    __slots__ = ("assertion", "outs", "ranges", "symbols")

    def __init__(self, outs: list[_Place], ranges: Ranges | None = None, assertion: str = ""):
        self.outs = outs
        self.ranges = ranges
        self.assertion = assertion
        self.symbols: frozenset[int] = frozenset()


class _Set:
    """Places that one has come to, and where each symbol leads from there."""

    __slots__ = ("before", "next", "places")

    def __init__(self, places: frozenset[_Place], before: int) -> None:
        self.places = places
        self.before = before
        self.next: dict[int, _Set | None] = {}  # None: the pattern is found


class Pattern:
    """A pattern, ready to be searched for. PatternProblem says what is wrong with `text`."""

    def __init__(self, text: str) -> None:
        self._places: list[_Place] = []
        self._end = _Place([])
        self._first = self._built(_Reader(text).whole(), self._end)
        self._number_symbols()
        self._forget()

    def search(self, text: str, spend: Spend) -> bool:
        """Whether it is anywhere in `text`. `spend` is told of each step, and may raise."""
        spend(1 + len(text) // _CHARACTERS_A_STEP)
        bounds = self._bounds
        here = self._start
        for character in text:
            symbol = bisect_right(bounds, ord(character))
            found: _Set | None
            try:
                found = here.next[symbol]
            except KeyError:
                found = here.next[symbol] = self._step(here, symbol, spend)
            if found is None:
                return True
            here = found
        return self._end in self._reached(here, None, spend)

    # From a pattern to places.

    def _built(self, node: _Node, then: _Place) -> _Place:
        if isinstance(node, _Chars):
            return self._place([then], node.ranges)
        if isinstance(node, _Assertion):
            return self._place([then], assertion=node.kind)
        if isinstance(node, _Row):
            for part in reversed(node.parts):
                then = self._built(part, then)
            return then
        if isinstance(node, _Either):
            return self._place([self._built(part, then) for part in node.parts])
        return self._repeated(node, then)

    def _repeated(self, node: _Repeat, then: _Place) -> _Place:
        if node.most is None:
            entry = self._place([])
            entry.outs = [self._built(node.part, entry), then]
        else:
            entry = then
            for _ in range(node.most - node.least):
                entry = self._place([self._built(node.part, entry), then])
        for _ in range(node.least):
            before, entry = entry, self._built(node.part, entry)
            if entry is before:  # nothing, however often
                break
        return entry

    def _place(
        self, outs: list[_Place], ranges: Ranges | None = None, assertion: str = ""
    ) -> _Place:
        if len(self._places) >= MOST_PLACES:
            raise PatternProblem(f"too large: more than {MOST_PLACES} places, {{n,m}} written out")
        self._places.append(_Place(outs, ranges, assertion))
        return self._places[-1]

    def _number_symbols(self) -> None:
        """Characters that no set of the pattern tells apart are one symbol."""
        sets = [place.ranges for place in self._places if place.ranges is not None]
        edges = {
            edge for ranges in (*sets, _WORD) for low, high in ranges for edge in (low, high + 1)
        }
        self._bounds = sorted(edges - {0})
        starts = [0, *self._bounds]
        self._words = _within(_WORD, starts)
        known: dict[Ranges, frozenset[int]] = {}
        for place in self._places:
            if place.ranges is not None:
                if place.ranges not in known:
                    known[place.ranges] = _within(place.ranges, starts)
                place.symbols = known[place.ranges]

    # From a set of places to the next.

    def _forget(self) -> None:
        self._start = _Set(frozenset({self._first}), _NOTHING)
        self._sets = {(self._start.places, _NOTHING): self._start}

    def _step(self, here: _Set, symbol: int, spend: Spend) -> _Set | None:
        reached = self._reached(here, symbol, spend)
        if self._end in reached:
            return None
        # It may begin anywhere, so also behind this character.
        places = {self._first}
        for place in reached:
            if symbol in place.symbols:
                places.add(place.outs[0])
        key = (frozenset(places), _A_WORD if symbol in self._words else _ANOTHER)
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= _MOST_SETS:
                self._forget()
            found = self._sets[key] = _Set(*key)
        return found

    def _reached(self, here: _Set, symbol: int | None, spend: Spend) -> set[_Place]:
        """All places that `symbol` (None: the end of the text) finds one at."""
        reached: set[_Place] = set()
        waiting = list(here.places)
        while waiting:
            place = waiting.pop()
            if place in reached:
                continue
            reached.add(place)
            if place.ranges is None and self._passes(place.assertion, here.before, symbol):
                waiting += place.outs
        spend(len(reached))
        return reached

    def _passes(self, assertion: str, before: int, symbol: int | None) -> bool:
        if not assertion:
            return True
        if assertion == "^":
            return before == _NOTHING
        if assertion == "$":
            return symbol is None
        at_edge = (before == _A_WORD) != (symbol in self._words)
        return at_edge == (assertion == "b")


def _within(ranges: Ranges, starts: list[int]) -> frozenset[int]:
    return frozenset(
        number
        for number, start in enumerate(starts)
        if any(low <= start <= high for low, high in ranges)
    )


# What a pattern is made of.


class _Chars:
    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges


class _Assertion:
    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Row:
    def __init__(self, parts: list[_Node]) -> None:
        self.parts = parts


class _Either:
    def __init__(self, parts: list[_Node]) -> None:
        self.parts = parts


class _Repeat:
    def __init__(self, part: _Node, least: int, most: int | None) -> None:
        self.part = part
        self.least = least
        self.most = most


_Node = _Chars | _Assertion | _Row | _Either | _Repeat


class _Reader:
    """Reads a pattern from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> _Node:
        node = self._alternatives(0)
        if self._at < len(self._text):
            raise self._problem("a parenthesis that none opens")
        return node

    def _problem(self, what: str) -> PatternProblem:
        return PatternProblem(f"at character {self._at}: {what}")

    def _ahead(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        if self._ahead(text):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise self._problem("it ends too soon")
        self._at += 1
        return self._text[self._at - 1]

    def _alternatives(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise self._problem("groups nested too deeply")
        rows = [self._row(depth)]
        while self._take("|"):
            rows.append(self._row(depth))
        return rows[0] if len(rows) == 1 else _Either(rows)

    def _row(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and not self._ahead("|") and not self._ahead(")"):
            part = self._atom(depth)
            parts.append(part if isinstance(part, _Assertion) else self._quantified(part))
        return _Row(parts)

    def _atom(self, depth: int) -> _Node:
        character = self._next()
        if character in "^$":
            return _Assertion(character)
        if character == "(":
            return self._group(depth)
        if character == ".":
            return _Chars(_without(_LINE_ENDS))
        if character == "[":
            return _Chars(self._class())
        if character == "\\":
            if self._ahead("b") or self._ahead("B"):
                return _Assertion(self._next())
            return _Chars(self._escape())
        if character in "*+?":
            raise self._problem("nothing to repeat")
        return _Chars(_only(ord(character)))

    def _group(self, depth: int) -> _Node:
        if self._take("?"):
            for ahead in ("=", "!", "<=", "<!"):
                if self._ahead(ahead):
                    raise self._problem("looking ahead or behind can't be matched in linear time")
            if self._take("<"):
                while self._next() != ">":
                    pass
            elif not self._take(":"):
                raise self._problem("expected (?: or (?<NAME>; there are no flags")
        node = self._alternatives(depth + 1)
        if not self._take(")"):
            raise self._problem("a parenthesis that isn't closed")
        return node

    def _quantified(self, part: _Node) -> _Node:
        bounds: tuple[int, int | None] | None = None
        for sign, meant in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if bounds is None and self._take(sign):
                bounds = meant
        if bounds is None:
            bounds = self._braces()
        if bounds is None:
            return part
        self._take("?")  # lazy: found or not is the same
        if any(self._ahead(sign) for sign in "*+?") or self._braces() is not None:
            raise self._problem("nothing to repeat")
        return _Repeat(part, *bounds)

    def _braces(self) -> tuple[int, int | None] | None:
        """What stands in {n}, {n,} or {n,m}; None where a brace is a character."""
        if not self._ahead("{"):
            return None
        inner, closed, _ = self._text[self._at + 1 :].partition("}")
        least, comma, most = inner.partition(",")
        if not closed or not _is_count(least) or not (_is_count(most) or not most):
            return None
        self._at += len(inner) + 2
        last = int(most) if most else None if comma else int(least)
        if last is not None and last < int(least):
            raise self._problem("{n,m} with m below n")
        return int(least), last

    def _class(self) -> Ranges:
        negated = self._take("^")
        found: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            if len(low) == 1 and low[0][0] == low[0][1] and self._is_range():
                self._take("-")
                high = self._member()
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise self._problem("a range of characters that is none")
                found.append((low[0][0], high[0][0]))
            else:
                found += low
        if not found:
            raise self._problem("a class without characters")
        ranges = tuple(found)
        return _without(ranges) if negated else ranges

    def _is_range(self) -> bool:
        return self._ahead("-") and not self._ahead("-]")

    def _member(self) -> Ranges:
        character = self._next()
        if character != "\\":
            return _only(ord(character))
        return _only(8) if self._take("b") else self._escape()

    def _escape(self) -> Ranges:
        name = self._next()
        if name.lower() in _CLASSES:
            ranges = _CLASSES[name.lower()]
            return ranges if name.islower() else _without(ranges)
        if name in _CONTROLS:
            return _only(_CONTROLS[name])
        if name == "x":
            return _only(self._hexadecimal(2))
        if name == "u":
            return _only(self._code_point())
        if name == "0" and not self._text[self._at : self._at + 1].isdecimal():
            return _only(0)
        if name.isdecimal() or name == "k":
            raise self._problem("a reference to a group can't be matched in linear time")
        if name in _SYNTAX or not name.isalnum():
            return _only(ord(name))
        raise self._problem(f"\\{name} means nothing here")

    def _code_point(self) -> int:
        if not self._take("{"):
            return self._hexadecimal(4)
        digits, closed, _ = self._text[self._at :].partition("}")
        value = self._hexadecimal(len(digits)) if 0 < len(digits) <= 6 else _LAST + 1
        if not closed or value > _LAST:
            raise self._problem("\\u{…} that is no character")
        self._at += 1
        return value

    def _hexadecimal(self, count: int) -> int:
        digits = self._text[self._at : self._at + count]
        if len(digits) < count or set(digits.lower()) - set("0123456789abcdef"):
            raise self._problem(f"expected {count} hexadecimal digits")
        self._at += count
        return int(digits, 16)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6


def _only(code: int) -> Ranges:
    return ((code, code),)


def _without(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All characters that aren't in `ranges`."""
    out: list[tuple[int, int]] = []
    low = 0
    for start, end in sorted(ranges):
        if start > low:
            out.append((low, start - 1))
        low = max(low, end + 1)
    if low <= _LAST:
        out.append((low, _LAST))
    return tuple(out)
