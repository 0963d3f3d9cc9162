"""JSON Schemas out of files, and payloads held against them.

Owns: how a schema file is read and what makes it unusable, `Checker` (one compiled schema), and the
reasons that it gives. A reason names a place in the schema (`properties/temperature/maximum`),
never anything out of a payload, so it may stand in a log, a metric or a message.

Must not know: topics, clients, what happens to a message that isn't valid, how work is counted
(`_schema_limits`).

Invariants: nothing is ever fetched, a reference leads to a place in the same file or the schema is
refused; what can't be parsed, what makes the validator fail, and what makes it work for too long,
is not valid; JSON is read as RFC 8259 has it, in UTF-8, without NaN, and with no key twice in an
object, since two readers could see two different values in that. How deep it is nested is found out
before it is read, since a reader that goes down with it needs a stack as deep.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mqttd_plugins._pattern import Pattern, PatternProblem
from mqttd_plugins._schema_limits import Limit, TooMuch, bounded

DEEPEST: Final = 100
"""Arrays and objects in one another, in a payload."""
STEPS_AT_ONCE: Final = 300
"""Some milliseconds of work: as much as may be done where others wait for it."""
_DATA: Final = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data and no schemas."""
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_BRACKETS: Final = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
_LIMIT: Final = Limit()


class SchemaProblem(ValueError):
    """A file that holds no usable schema; the text says where and why."""


class Checker:
    """One schema, ready for use."""

    __slots__ = ("_validator",)

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def reason_at_once(self, payload: bytes) -> str | None:
        """As `reason_against`, or None where it would take too long for the event loop."""
        _LIMIT.steps(STEPS_AT_ONCE)
        try:
            return self._reason(payload)
        except TooMuch:
            return None

    def reason_against(self, payload: bytes, most_s: float) -> str:
        """Why the payload isn't valid; "" when it is. For a thread, `most_s` of its time."""
        _LIMIT.seconds(most_s)
        try:
            return self._reason(payload)
        except TooMuch:
            return "it takes too long to be checked"

    def _reason(self, payload: bytes) -> str:
        if _depth(payload) > DEEPEST:
            return "no JSON: nested too deeply"
        try:
            value = _parse(payload.decode())
        except UnicodeDecodeError:
            return "no JSON: not UTF-8"
        except _TwiceError:
            return "no JSON: a key twice in an object"
        except ValueError:
            return "no JSON"
        try:
            error = next(self._validator.iter_errors(value), None)
        except TooMuch:
            raise
        except RecursionError:
            return "nested too deeply"
        except Exception as error:
            # The library has met a value that it didn't expect: an infinite number, for one.
            return f"the validator failed: {type(error).__name__}"
        if error is None:
            return ""
        return "schema: " + "/".join(str(part) for part in error.absolute_schema_path)


def load(path: Path) -> Checker:
    """Read and compile a schema file. `SchemaProblem` says what is wrong with it, and where.

    RuntimeError where the package jsonschema isn't installed.
    """
    try:
        schema = _parse(path.read_bytes().decode())
    except OSError as error:
        raise SchemaProblem(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SchemaProblem(f"{path}: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise SchemaProblem(f"{path}:{error.lineno}:{error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise SchemaProblem(f"{path}: {error}") from None
    if not isinstance(schema, dict | bool):
        raise SchemaProblem(f"{path}: a schema is an object, or true or false")
    return Checker(_compiled(path, schema))


def _compiled(path: Path, schema: dict[str, Any] | bool) -> Any:
    try:
        # Looked up by name: the package brings no types along.
        jsonschema = importlib.import_module("jsonschema")
        referencing = importlib.import_module("referencing")
    except ImportError as error:
        raise RuntimeError('schema needs jsonschema: pip install "mqttd[schema]"') from error
    kind = jsonschema.Draft202012Validator
    if isinstance(schema, dict) and "$schema" in schema:
        named = schema["$schema"]
        kind = jsonschema.validators.validator_for(schema, None) if isinstance(named, str) else None
        if kind is None:
            raise SchemaProblem(f"{path}: $schema: no known version of JSON Schema")
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SchemaProblem(f"{path}: {error.json_path}: {error.message}") from None
    if isinstance(schema, dict):  # otherwise the library would take its own class for the root
        schema = {key: value for key, value in schema.items() if key != "$schema"}
    _check_keywords(path, schema)
    # An empty registry fetches nothing; without one the library would try.
    registry = referencing.Registry()
    validator = bounded(jsonschema, kind, _patterns(path, schema), _LIMIT)(
        schema, registry=registry
    )
    root = referencing.jsonschema.specification_with(kind.META_SCHEMA["$schema"])
    resolver = registry.resolver_with_root(root.create_resource(schema))
    for place, reference in _references(schema):
        if not reference.startswith("#"):
            raise SchemaProblem(
                f"{path}: {place}: {reference!r} leads out of the file: nothing is fetched"
            )
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise SchemaProblem(f"{path}: {place}: {reference!r} leads nowhere") from None
    return validator


def _objects(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a schema that isn't data, with its place."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from _objects(item, f"{place}[{number}]")
    elif isinstance(schema, dict):
        yield place, schema
        for key, value in schema.items():
            if key not in _DATA:
                yield from _objects(value, f"{place}.{key}")


def _references(schema: Any) -> Iterator[tuple[str, str]]:
    """Every reference in a schema, with its place."""
    for place, found in _objects(schema, "$"):
        for key in _REFERENCES:
            if isinstance(found.get(key), str):
                yield f"{place}.{key}", found[key]


def _patterns(path: Path, schema: Any) -> dict[str, Pattern]:
    """Every pattern in a schema, read. SchemaProblem for one that can't be matched."""
    made: dict[str, Pattern] = {}
    for place, found in _objects(schema, "$"):
        texts = list(found["patternProperties"]) if _has_patterns(found) else []
        if isinstance(found.get("pattern"), str):
            texts.append(found["pattern"])
        for text in texts:
            try:
                made[text] = Pattern(text)
            except PatternProblem as error:
                raise SchemaProblem(f"{path}: {place}: pattern {text!a}: {error}") from None
    return made


def _has_patterns(found: dict[str, Any]) -> bool:
    return isinstance(found.get("patternProperties"), dict)


def _check_keywords(path: Path, schema: Any) -> None:
    """SchemaProblem for what would lead around the limits."""
    objects = list(_objects(schema, "$"))
    for place, found in objects:
        if isinstance(found.get("$schema"), str):
            raise SchemaProblem(f"{path}: {place}.$schema: expected at the top of the file alone")
    unevaluated = any("unevaluatedProperties" in found for _, found in objects)
    for place, found in objects:
        if unevaluated and _has_patterns(found):
            raise SchemaProblem(
                f"{path}: {place}.patternProperties: can't be used in a file with "
                "unevaluatedProperties: write additionalProperties, or properties"
            )


def _depth(payload: bytes) -> int:
    """How many arrays and objects are open at once, for what is JSON."""
    if payload.count(b"[") + payload.count(b"{") <= DEEPEST:
        return 0  # it can't be too many
    depth = deepest = 0
    inside = False  # a string
    for match in _BRACKETS.finditer(payload):
        token = match[0]
        if token == b'"':
            inside = not inside
        elif not inside and token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif not inside and token in b"]}":
            depth -= 1
    return deepest


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _TwiceError("a key stands twice in one object")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
