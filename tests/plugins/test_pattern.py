"""Patterns in linear time: they find what Python's do, and nothing makes them work for long."""

import re
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mqttd_plugins import _pattern
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
    ["a", "b", "1", "_", "-", ".", "[ab]", "[^a]", "[a-c1]", r"\d", r"\w", r"\W", r"\s", r"\.", " "]
)
SIGNS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?"])


def _groups(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeated = st.builds(lambda part, sign: f"(?:{part}){sign}", inner, SIGNS)
    either = st.builds(lambda one, other: f"({one}|{other})", inner, inner)
    row = st.lists(inner, min_size=2, max_size=3).map("".join)
    edges = st.builds(
        lambda part, before, after: before + part + after,
        inner,
        st.sampled_from(["^", r"\b", r"\B"]),
        st.sampled_from(["$", r"\b", r"\B", ""]),
    )
    return repeated | either | row | edges


PATTERNS = st.recursive(
    st.builds(lambda atom, sign: atom + sign, ATOMS, SIGNS), _groups, max_leaves=6
)


@given(PATTERNS, st.text("ab1_- .c", min_size=1, max_size=8))
@example("(a*)*b", "aab")
@example("(|a)+$", "ba")
@example(r"^$|a", "ba")
def test_they_find_what_python_finds(pattern: str, text: str) -> None:
    assert finds(pattern, text) == (re.search(pattern, text, re.ASCII) is not None)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\d+$", "12", "12\n"),  # the very end, unlike Python's
        (r"^\d$", "7", "\u0667"),  # ASCII alone
        (r"^\w+$", "a_1", "\u00e9"),
        (r"^.$", "\u00e9", "\u2028"),
        (r"^[^\d]$", "x", "1"),
        (r"^[\w-]+$", "a-b", "a.b"),
        (r"^[\x41-\u0043\u{1F600}]+$", "ABC\U0001f600", "D"),
        (r"^\t\0[\b]$", "\t\0\x08", "t0b"),
        (r"^(?<year>\d{4})-\d\d$", "2026-11", "226-11"),
        (r"^a{x}$", "a{x}", "ax"),
        (r"^\B$", "", "a"),  # for Python there is no \B in an empty text
        (r"^(?:[a-z]+\.)*[a-z]+$", "a.bc.d", "a..b"),
    ],
)
def test_what_they_mean(pattern: str, good: str, bad: str) -> None:
    assert finds(pattern, good)
    assert not finds(pattern, bad)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"(a)\1", "at character 5: a reference to a group"),
        (r"\k<x>", "a reference to a group"),
        ("(?=a)", "looking ahead or behind"),
        ("(?<!a)b", "looking ahead or behind"),
        ("(?i)a", "there are no flags"),
        ("(?P<x>a)", "there are no flags"),
        (r"\p{L}", r"\\p means nothing here"),
        (r"a\Z", r"\\Z means nothing here"),
        ("a{1000}{3}", "nothing to repeat"),
        ("(a{50}){50}", "too large"),
        ("(" * 60 + ")" * 60, "nested too deeply"),
        ("a**", "nothing to repeat"),
        ("*", "nothing to repeat"),
        ("^*", "nothing to repeat"),
        ("(a", "isn't closed"),
        ("a)", "none opens"),
        ("[a", "ends too soon"),
        ("[]", "without characters"),
        ("[b-a]", "a range of characters"),
        ("a{3,2}", "m below n"),
        ("a\\", "ends too soon"),
        (r"\xg1", "hexadecimal"),
        (r"\u{110000}", "no character"),
    ],
)
def test_what_is_refused(pattern: str, told: str) -> None:
    with pytest.raises(PatternProblem, match=told):
        Pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 5000 + "b"),
        ("^(a|a)*$", "a" * 5000 + "b"),
        ("(a?){50}a{50}$", "a" * 5000 + "b"),
        (r"^(\w+\s?)*$", "word " * 1000 + "!"),
        ("a*a*a*a*b", "a" * 5000),
        ("(.*,){20}P", "," * 5000),
    ],
)
def test_no_text_makes_them_backtrack(pattern: str, text: str) -> None:
    work, made = Work(), Pattern(pattern)
    assert not made.search(text, work.spend)
    assert work.steps < 20_000
    before = work.steps
    assert not made.search(text, work.spend)
    assert work.steps - before < 1_000  # what was found out is remembered


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pattern, "_MOST_SETS", 20)
    pattern, work = Pattern("(a|b)*a(a|b){8}c"), Work()
    text = "".join("ab"[number * number % 7 % 2] for number in range(3000))
    assert not pattern.search(text, work.spend)
    assert len(pattern._sets) <= 20
    assert work.steps < 3000 * 60  # its size for each character, at worst
    assert pattern.search(text + "a" * 9 + "c", work.spend)


def test_a_search_can_be_given_up() -> None:
    def spend(steps: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        Pattern("a").search("b", spend)


def test_several_threads_may_search_at_once() -> None:
    pattern = Pattern("(a|b)*a(a|b){6}$")
    texts = ["".join("ab"[(n >> k) & 1] for k in range(12)) for n in range(300)]
    expected = [text[-7] == "a" for text in texts]
    answers: list[list[bool]] = []

    def run() -> None:
        answers.append([pattern.search(text, Work().spend) for text in texts])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4
