"""Patterns in linear time: they mean what ECMA-262 says, and nothing makes them work for long."""

import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mqttd_plugins._pattern import Pattern, PatternProblem


class Work:
    """What a search has cost."""

    def __init__(self) -> None:
        self.steps = 0

    def spend(self, steps: int) -> None:
        self.steps += steps


def finds(pattern: str, text: str) -> bool:
    return Pattern(pattern).search(text, Work().spend)


ATOMS = st.sampled_from(
    ["a", "b", "1", "_", "-", ".", "[ab]", "[^a]", "[a-c1]", r"\d", r"\w", r"\W", r"\s", r"\u0061"]
)
SIGNS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?"])


@given(
    st.lists(st.builds(lambda atom, sign: atom + sign, ATOMS, SIGNS), min_size=1, max_size=5).map(
        "".join
    ),
    st.sampled_from([("", ""), ("^", ""), ("", "$"), ("^(?:", ")$"), ("(", ")+$"), (r"\b", "")]),
    st.text("ab1_- c", min_size=1, max_size=8),
)
@example("a*", ("(", ")*b"), "aab")
def test_they_find_what_python_finds(pattern: str, edges: tuple[str, str], text: str) -> None:
    whole = edges[0] + pattern + edges[1]
    assert finds(whole, text) == (re.search(whole, text, re.ASCII) is not None)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\d+$", "12", "12\n"),  # the very end, unlike Python's
        (r"^\d$", "7", "\u0667"),  # ASCII alone
        (r"^\w+$", "a_1", "\u00e9"),
        (r"^[\x41-\u0043\u{1F600}]+$", "ABC\U0001f600", "D"),
        (r"^\t\cJ\/$", "\t\n/", "tJ/"),
        (r"^\\u0041$", r"\u0041", "A"),  # a backslash that is escaped escapes nothing
        (r"^(?<year>\d{4})-\d\d$", "2026-11", "226-11"),
        (r"^(?:[a-z]+\.)*[a-z]+$", "a.bc.d", "a..b"),
        (r"^\p{L}+$", "d\u00e9j\u00e0", "1"),
    ],
)
def test_what_they_mean(pattern: str, good: str, bad: str) -> None:
    assert finds(pattern, good)
    assert not finds(pattern, bad)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"(a)\1", "can't be matched in linear time"),
        (r"\k<x>", "can't be matched in linear time"),
        ("(?=a)", "can't be matched in linear time"),
        ("(?<!a)b", "can't be matched in linear time"),
        ("a{1000}{1000}", "repetition"),
        ("((a{100}){100}){100}", "repetition|too large"),
        ("*", "no argument for repetition"),
        ("(a", "missing"),
        ("a)", "unexpected"),
        ("[a", "missing"),
        ("[b-a]", "character class range"),
        ("a\\", "trailing"),
        (r"\u12", r"\\u12 is no character"),
        (r"\u{110000}", "is no character"),
        (r"\c1", "is no character"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_is_refused(pattern: str, told: str) -> None:
    with pytest.raises(PatternProblem, match=told):
        Pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 50_000 + "b"),
        ("^(a|a)*$", "a" * 50_000 + "b"),
        ("(a?){50}a{50}$", "a" * 50_000 + "b"),
        ("(.*,){20}P", "," * 50_000),
    ],
)
def test_no_text_makes_them_backtrack(pattern: str, text: str) -> None:
    """A matcher that backtracks would be at the first of them for longer than there are years."""
    work = Work()
    assert not Pattern(pattern).search(text, work.spend)
    assert work.steps < 1000


def test_a_search_can_be_given_up() -> None:
    def spend(steps: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        Pattern("a").search("b", spend)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(RuntimeError, match=r"pip install \"mqttd\[schema\]\""):
        Pattern("a")
