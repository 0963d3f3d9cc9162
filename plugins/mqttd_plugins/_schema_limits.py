"""Keywords of JSON Schema that no payload can make work for long.

Owns: `bounded`, which makes a validator of the library's one in which every keyword counts as work,
`uniqueItems` takes time that grows with the array and not with its square, and patterns are those
of `_pattern`; and `Limit`, how much work there may be.

Must not know: payloads as bytes, files, topics.

Invariants: whatever a keyword does, it is counted before it does it, so that a schema which looks
at the same value twice on each level (2^100 times for a deep one) is given up as well. A limit is
one thread's: the same validator may be at work in several.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from mqttd_plugins._pattern import Pattern

_STEPS_BETWEEN_LOOKS: Final = 1000  # at the clock

Keyword = Callable[[Any, Any, Any, Any], Iterator[Any] | None]


class TooMuch(Exception):
    """The limit is reached."""


class Limit(threading.local):
    """What is left for the payload that this thread is at."""

    def __init__(self) -> None:
        self._left = 0
        self._until = 0.0

    def steps(self, most: int) -> None:
        """From now on so many steps."""
        self._left, self._until = most, 0.0

    def seconds(self, most_s: float) -> None:
        """From now on so much of the processor's time, looked at now and then."""
        self._left, self._until = 0, time.thread_time() + most_s

    def spend(self, steps: int) -> None:
        """That many more. TooMuch where they are too many."""
        self._left -= steps
        if self._left < 0:
            if time.thread_time() >= self._until:
                raise TooMuch
            self._left = _STEPS_BETWEEN_LOOKS


def bounded(jsonschema: Any, kind: Any, patterns: Mapping[str, Pattern], limit: Limit) -> Any:
    """A validator class as `kind`, under a limit. `patterns` has all that its schema holds."""

    def found(text: str, value: str) -> bool:
        return patterns[text].search(value, limit.spend)

    def pattern(validator: Any, text: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string") and not found(text, instance):
            yield jsonschema.ValidationError("the pattern isn't there")

    def pattern_properties(
        validator: Any, schemas: Any, instance: Any, schema: Any
    ) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            for text, below in schemas.items():
                for name, value in instance.items():
                    if found(text, name):
                        yield from validator.descend(value, below, path=name, schema_path=text)

    def additional_properties(
        validator: Any, below: Any, instance: Any, schema: Any
    ) -> Iterator[Any]:
        if not validator.is_type(instance, "object"):
            return
        named, texts = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, value in instance.items():
            if name not in named and not any(found(text, name) for text in texts):
                if below is False:
                    yield jsonschema.ValidationError("a property too many")
                else:
                    yield from validator.descend(value, below, path=name)

    def unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if wanted and validator.is_type(instance, "array"):
            seen = {_token(item, limit.spend) for item in instance}
            if len(seen) < len(instance):
                yield jsonschema.ValidationError("an item that is there twice")

    own: dict[str, Keyword] = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": unique_items,
    }
    keywords = {name: own.get(name, keyword) for name, keyword in kind.VALIDATORS.items()}
    counted = {name: _counted(keyword, limit) for name, keyword in keywords.items()}
    return jsonschema.validators.extend(kind, counted)


def _counted(keyword: Keyword, limit: Limit) -> Keyword:
    def counting(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any] | None:
        limit.spend(1)
        return keyword(validator, value, instance, schema)

    return counting


def _token(value: Any, spend: Callable[[int], None]) -> tuple[str, Any]:
    """Something to compare: equal for values that are equal in JSON, where true is not 1."""
    spend(1)
    if isinstance(value, list):
        return "list", tuple(_token(item, spend) for item in value)
    if isinstance(value, dict):
        return "dict", frozenset((name, _token(item, spend)) for name, item in value.items())
    if isinstance(value, bool):
        return "bool", value
    return "plain", value
