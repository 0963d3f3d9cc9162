"""Formulas are arithmetic and nothing else, and always give a finite number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.language.chance import Chance
from device_sim.language.expression import LARGEST, Expression

VARIABLES = {"t": 60.0, "seq": 3, "index": 7, "last": 1.5}


def value(text: str) -> int | float:
    return Expression(text).value(VARIABLES, Chance(1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20 + 5 * 2", 30),
        ("  -seq ** 2", -9),
        ("+(7 // 2) + 7 % 4", 6),
        ("sin(pi / 2) + cos(0)", 2.0),
        ("t / 60", 1.0),
        ("max(1, seq, 2) - min(4, index)", -1),
        ("round(3.14159, 2)", 3.14),
        ("round(2.6)", 3),
        ("floor(2.7) + ceil(2.1)", 5),
        ("1 if seq > 2 and not index == 6 else 0", 1),
        ("seq < 1 or index != 7", 0),
        ("sqrt(16) + abs(-2) + exp(0) + log(e)", 8.0),
        ("last * 2", 3.0),
        ("2 ** 0.5", math.sqrt(2)),
        ("1 / 0", 0),
        ("sqrt(-1)", 0),
        ("(-8) ** 0.5", 0),
        ("9 ** 9 ** 9 ** 9", 0),
        ("floor(exp(700) * exp(700))", 0),
    ],
)
def test_results(text: str, expected: float) -> None:
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an expression"),
        ("1 +", "not an expression"),
        ("__import__('os')", "isn't arithmetic at character 12"),
        ("t.real", "isn't arithmetic at character 1"),
        ("(lambda: 1)()", "isn't arithmetic"),
        ("[1][0]", "isn't arithmetic"),
        ("'a' * 3", "isn't arithmetic"),
        ("sin(1, 2)", r"sin\(\) with 2 arguments instead of 1"),
        ("max()", "instead of 1 to 20"),
        ("uniform(1)", "instead of 2"),
        ("sin(x=1)", "isn't arithmetic"),
        ("open(1)", r"open\(\), which is none of abs"),
        ("1 < 2 < 3", "isn't arithmetic"),
        ("True", "a truth value"),
        ("1e999", "too large"),
        ("1" * 400, "too large"),
        ("x := 1", "not an expression"),
        ("(x := 1)", "isn't arithmetic"),
        ("1+" * 600 + "1", "more than 1000 characters"),
        ("-" * 40 + "1", "levels deep"),
        ("\0", "not an expression"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Expression(text)


def test_whole_numbers_dont_grow_without_end() -> None:
    expression = Expression("last * last")
    last: int | float = 10
    for _ in range(50):
        last = expression.value({"last": last}, Chance(1))
    assert last == 0 or isinstance(last, float)


def test_names_are_told() -> None:
    assert Expression("temperature * 1.8 + offset + pi").names == {"temperature", "offset"}


def test_chance_comes_from_outside() -> None:
    expression = Expression("uniform(1, 2) + normal(0, 1) + random()")
    one, other = Chance(5), Chance(5)
    assert expression.value({}, one) == expression.value({}, other)
    assert expression.value({}, one) != expression.value({}, Chance(6))


terms = st.recursive(
    st.sampled_from(["t", "seq", "last", "0", "1", "-2.5", "1e200", "random()"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "<"]), inner).map(
            lambda parts: "(" + " ".join(parts) + ")"
        ),
        st.tuples(st.sampled_from(["exp", "log", "sqrt", "floor", "round", "tan"]), inner).map(
            lambda parts: f"{parts[0]}({parts[1]})"
        ),
    ),
    max_leaves=8,
)


@given(terms)
def test_always_a_finite_number(text: str) -> None:
    result = Expression(text).value(VARIABLES, Chance(2))
    assert not isinstance(result, bool)
    assert -LARGEST < result < LARGEST


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expression = Expression(text)
    except ValueError:
        return
    assert math.isfinite(expression.value(dict.fromkeys(expression.names, 2), Chance(1)))
