"""JSON Schemas out of files, and payloads held against them.

Owns: how a schema file is read and what makes it unusable, `Checker` (one compiled schema), and the
reasons that it gives. A reason names a place in the schema (`properties/temperature/maximum`),
never anything out of a payload, so it may stand in a log, a metric or a message.

Must not know: topics, clients, what happens to a message that isn't valid.

Invariants: nothing is ever fetched, a reference leads to a place in the same file or the schema is
refused; what can't be parsed, and what makes the validator fail, is not valid; JSON is read as
RFC 8259 has it, in UTF-8, without NaN, and with no key twice in an object, since two readers
could see two different values in that.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_DATA: Final = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data and no schemas."""
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")


class SchemaProblem(Exception):
    """A file that holds no usable schema; the text says where and why."""


class Checker:
    """One schema, ready for use."""

    __slots__ = ("_validator",)

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def reason_against(self, payload: bytes) -> str:
        """Why the payload isn't valid; "" when it is."""
        try:
            value = _parse(payload.decode())
        except UnicodeDecodeError:
            return "no JSON: not UTF-8"
        except _TwiceError:
            return "no JSON: a key twice in an object"
        except RecursionError:
            return "no JSON: nested too deeply"
        except ValueError:
            return "no JSON"
        try:
            error = next(self._validator.iter_errors(value), None)
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
    # An empty registry fetches nothing; without one the library would try.
    registry = referencing.Registry()
    validator = kind(schema, registry=registry)
    root = referencing.jsonschema.specification_with(kind.META_SCHEMA["$schema"])
    resolver = registry.resolver_with_root(root.create_resource(schema))
    for place, reference in _references(schema, "$"):
        if not reference.startswith("#"):
            raise SchemaProblem(
                f"{path}: {place}: {reference!r} leads out of the file: nothing is fetched"
            )
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise SchemaProblem(f"{path}: {place}: {reference!r} leads nowhere") from None
    return validator


def _references(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every reference in a schema, with its place."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from _references(item, f"{place}[{number}]")
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in _REFERENCES and isinstance(value, str):
                yield f"{place}.{key}", value
            elif key not in _DATA:
                yield from _references(value, f"{place}.{key}")


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
