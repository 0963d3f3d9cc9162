"""Arithmetic in a scenario: `20 + 5 * sin(t / 60)`, read once, evaluated for each message.

An expression is parsed by Python's own parser and then walked: numbers, names, the arithmetic
operators, comparisons, and/or/not, `a if test else b`, and calls of the functions below. Anything
else is refused when the scenario is read, with the character it stands at. Nothing is ever handed
to `eval`, and there is nothing in here that an expression could reach beyond its numbers.

Results are bounded: a power whose result would be astronomical, a division by zero or a root of a
negative number is no exception but 0, since a device with a bad formula still sends something.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Final

from device_sim.language.chance import Chance

Number = int | float
Evaluate = Callable[[Mapping[str, Number], Chance], Number]

LONGEST: Final = 1000
DEEPEST: Final = 30
LARGEST: Final = 1e300

_BINARY: Final[dict[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: Final[dict[type[ast.cmpop], Callable[[Number, Number], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_CALLS: Final[dict[str, tuple[int, int, Callable[..., Number]]]] = {
    "abs": (1, 1, abs),
    "ceil": (1, 1, math.ceil),
    "cos": (1, 1, math.cos),
    "exp": (1, 1, math.exp),
    "floor": (1, 1, math.floor),
    "log": (1, 1, math.log),
    "max": (1, 20, max),
    "min": (1, 20, min),
    "round": (1, 2, lambda value, digits=0: round(value, int(digits)) if digits else round(value)),
    "sin": (1, 1, math.sin),
    "sqrt": (1, 1, math.sqrt),
    "tan": (1, 1, math.tan),
}
_CHANCES: Final[dict[str, tuple[int, Callable[..., float]]]] = {
    "normal": (2, lambda chance, mean, sd: chance.normal(mean, sd)),
    "random": (0, lambda chance: chance.random()),
    "uniform": (2, lambda chance, low, high: chance.uniform(low, high)),
}
_CONSTANTS: Final = {"pi": math.pi, "e": math.e}


class Expression:
    """One formula. ValueError when it can't be read; `names` are the variables it needs."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: set[str] = set()
        if len(text) > LONGEST:
            raise ValueError(f"more than {LONGEST} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else "too complicated"
            raise ValueError(f"not an expression: {reason}") from None
        self._evaluate = self._compile(tree.body, 0)

    def value(self, variables: Mapping[str, Number], chance: Chance) -> Number:
        """The result, finite; 0 where there is none."""
        try:
            result = self._evaluate(variables, chance)
        except (ArithmeticError, ValueError):
            return 0
        if isinstance(result, bool):
            return int(result)
        return result if -LARGEST < result < LARGEST else 0

    def _compile(self, node: ast.expr, depth: int) -> Evaluate:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels deep")
        inner = depth + 1
        match node:
            case ast.Constant(value=bool()):
                raise _refused(node, "a truth value")
            case ast.Constant(value=int() | float() as number):
                if not -LARGEST < number < LARGEST:
                    raise _refused(node, "a number that is too large")
                return lambda variables, chance: number
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                of = self._compile(operand, inner)
                return lambda variables, chance: -of(variables, chance)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._compile(operand, inner)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                of = self._compile(operand, inner)
                return lambda variables, chance: not of(variables, chance)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return _both(_power, self._compile(left, inner), self._compile(right, inner))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                do = _BINARY[type(op)]
                return _both(do, self._compile(left, inner), self._compile(right, inner))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                do = _COMPARE[type(op)]
                return _both(do, self._compile(left, inner), self._compile(right, inner))
            case ast.BoolOp(op=op, values=values):
                parts = [self._compile(each, inner) for each in values]
                decide = any if isinstance(op, ast.Or) else all
                return lambda variables, chance: decide(p(variables, chance) for p in parts)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                asked, yes, no = (self._compile(each, inner) for each in (test, body, orelse))
                return lambda v, c: yes(v, c) if asked(v, c) else no(v, c)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(node, name, [self._compile(each, inner) for each in arguments])
        raise _refused(node, "something that isn't arithmetic")

    def _name(self, name: str) -> Evaluate:
        if name in _CONSTANTS:
            constant = _CONSTANTS[name]
            return lambda variables, chance: constant
        self.names.add(name)
        return lambda variables, chance: variables[name]

    def _call(self, node: ast.expr, name: str, arguments: list[Evaluate]) -> Evaluate:
        if name in _CHANCES:
            count, draw = _CHANCES[name]
            low = high = count
            if len(arguments) == count:
                return lambda v, c: draw(c, *(each(v, c) for each in arguments))
        elif name in _CALLS:
            low, high, function = _CALLS[name]
            if low <= len(arguments) <= high:
                return lambda v, c: function(*(each(v, c) for each in arguments))
        else:
            known = ", ".join(sorted([*_CALLS, *_CHANCES]))
            raise _refused(node, f"{name}(), which is none of {known}")
        takes = str(low) if low == high else f"{low} to {high}"
        raise _refused(node, f"{name}() with {len(arguments)} arguments instead of {takes}")


def _both(do: Callable[[Number, Number], Number], left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda variables, chance: _small(do(left(variables, chance), right(variables, chance)))


def _small(number: Number) -> Number:
    """Whole numbers grow without end and cost more and more; a float overflows in time."""
    if isinstance(number, int) and number.bit_length() > 64:
        return float(number)
    return number


def _power(base: Number, exponent: Number) -> Number:
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise ValueError("no real number")
    return int(result) if isinstance(base, int) and result.is_integer() else result


def _refused(node: ast.expr, what: str) -> ValueError:
    return ValueError(f"found {what} at character {node.col_offset + 1}")
