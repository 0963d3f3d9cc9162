"""Patterns of JSON Schema that can't be made to backtrack: matched by RE2.

A schema's author writes the pattern, any client the text. With a backtracking matcher, as that of
Python, a short text can keep a harmless-looking pattern busy for hours (`(a+)+$`), with every other
thread waiting. RE2 takes time that grows with the text.

Owns: what RE2 doesn't read of ECMA-262 (`\\uXXXX`, `\\u{…}`, `\\cX`, `\\/`), written so that it
does, and the words for what it can't match: references to groups, looking ahead or behind.

Must not know: schemas, limits of time. Whoever searches brings `spend`, which is told of the work
before it is done.

Invariants: what is remembered of a pattern is bounded; it may be searched from several threads.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, Final

MOST_MEMORY: Final = 1 << 20
"""Bytes that RE2 may use for one pattern: what it is compiled to, and what it remembers."""
_CHARACTERS_A_STEP: Final = 64
_ESCAPE: Final = re.compile(r"\\(u\{[^}]*\}?|u.{0,4}|c.?|.)", re.DOTALL)
_HEXADECIMAL: Final = re.compile(r"u(?:([0-9a-fA-F]{4})|\{([0-9a-fA-F]{1,6})\})")
_CONTROL: Final = re.compile(r"c([A-Za-z])")
_LIMITED: Final = re.compile(r"\\[1-9k]|\(\?<?[=!]")


class PatternProblem(ValueError):
    """It is no pattern, or one that can't be matched in linear time; the text says why."""


class Pattern:
    """A pattern, ready for use. RuntimeError where the package google-re2 isn't installed."""

    __slots__ = ("_found",)

    def __init__(self, text: str) -> None:
        try:
            re2: Any = importlib.import_module("re2")  # looked up by name: it brings no types
        except ImportError as error:
            raise RuntimeError('schema needs google-re2: pip install "mqttd[schema]"') from error
        options = re2.Options()
        options.log_errors = False
        options.max_mem = MOST_MEMORY
        try:
            self._found = re2.compile(_ESCAPE.sub(_translated, text), options).search
        except re2.error as error:
            raise PatternProblem(_reason(text, error)) from None
        except UnicodeEncodeError:
            raise PatternProblem("half of a surrogate pair is no character") from None

    def search(self, text: str, spend: Callable[[int], None]) -> bool:
        """Whether it is found anywhere in the text."""
        spend(1 + len(text) // _CHARACTERS_A_STEP)
        return self._found(text) is not None


def _translated(escape: re.Match[str]) -> str:
    name = escape[1]
    if name == "/":
        return "/"
    if name[0] == "u":
        digits = _HEXADECIMAL.fullmatch(name)
        if digits is None or int(digits[1] or digits[2], 16) > 0x10FFFF:
            raise PatternProblem(f"{escape[0]} is no character: expected \\uXXXX")
        return rf"\x{{{digits[1] or digits[2]}}}"
    if name[0] == "c":
        letter = _CONTROL.fullmatch(name)
        if letter is None:
            raise PatternProblem(f"{escape[0]} is no character: expected a letter after \\c")
        return rf"\x{{{ord(letter[1]) % 32:x}}}"
    return escape[0]


def _reason(text: str, error: Exception) -> str:
    if _LIMITED.search(text):
        return (
            "a reference to a group, and looking ahead or behind, can't be matched in linear time"
        )
    what = error.args[0] if error.args else ""
    return what.decode(errors="replace") if isinstance(what, bytes) else str(what)
