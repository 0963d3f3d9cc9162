"""From a scenario's file, or its name in the catalogue, to a checked `Scenario`.

Three passes, each of which collects every problem it finds before it gives up:

1. `mqttd.yamltree` turns the text into plain values and remembers where each of them stands. It is
   the one thing of the broker's package besides the codec that the simulator uses: it knows YAML
   and nothing of MQTT.
2. pydantic checks the shape, with the models of `device_sim.language.scenario`. This module turns
   its errors into problems: where a value may be one of several things, the branch that got
   furthest speaks.
3. `device_sim.language.check` looks again, at names, topics, versions and files.

A problem reads `file:line:col path: what was found, what was expected (a hint)`.

`scale` and `speed` shrink a scenario while it is read: fewer devices, faster time, see
`device_sim.language.shapes`.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from device_sim.language import check
from device_sim.language.scenario import Broker, Scenario
from mqttd.yamltree import ConfigError, Document, Loc, Problem, decode, dotted, shown

CATALOGUE: Final = Path(__file__).parents[1] / "scenarios"

_EXPECTED: Final = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of keys",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} character",
    "too_short": "at least {min_length} of them",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "refused": "{expected}",
}


class ScenarioError(ConfigError):
    """The scenario can't be used; `problems` is never empty, and the text is one line for each."""


def catalogue() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    return {path.stem: path for path in sorted(CATALOGUE.glob("*.yaml"))}


def find(name: str) -> Path:
    """A file, or, where there is none, the scenario of this name in the catalogue."""
    path = Path(name)
    known = catalogue()
    if path.exists() or (name not in known and (path.suffix or os.sep in name)):
        return path
    if name in known:
        return known[name]
    hint = f"the catalogue has {', '.join(known)}"
    raise ScenarioError(
        [Problem(name, 0, 0, "", "is no file and no name in the catalogue", "", hint)]
    )


def load(
    name: str | os.PathLike[str],
    scale: float = 1.0,
    speed: float = 1.0,
    seed: int | None = None,
) -> Scenario:
    """The scenario in a file or of the catalogue; ScenarioError has all that is wrong with it.

    `scale` multiplies the number of devices, `speed` makes time pass faster, `seed` replaces the
    scenario's own.
    """
    path = find(os.fspath(name))
    file = os.fspath(path)
    try:
        text = decode(path.read_bytes(), file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScenarioError([Problem(file, 0, 0, "", "can't be read", "", reason)]) from None
    except ConfigError as error:
        raise ScenarioError(error.problems) from None
    return parse(text, file, path.parent, scale, speed, seed)


def parse(
    text: str,
    file: str = "<scenario>",
    base: Path | None = None,
    scale: float = 1.0,
    speed: float = 1.0,
    seed: int | None = None,
) -> Scenario:
    """A scenario from YAML text; `file` is only a name for the problems."""
    document = Document(text, file)
    if document.problems:
        raise ScenarioError(document.problems)
    context = {"scale": scale, "speed": speed, "base": os.fspath(base or Path())}
    try:
        scenario = Scenario.model_validate(document.value, context=context)
    except ValidationError as error:
        raise ScenarioError(_in_order(_explained(error, document))) from None
    problems = [
        _problem(document, loc, found, expected, hint)
        for loc, found, expected, hint in check.second_look(scenario)
    ]
    if problems:
        raise ScenarioError(_in_order(problems))
    return scenario if seed is None else scenario.model_copy(update={"seed": seed})


def elsewhere(scenario: Scenario, host: str | None, port: int | None) -> Scenario:
    """The scenario against another broker than it names; ScenarioError when it starts its own."""
    if host is None and port is None:
        return scenario
    broker = scenario.broker
    if broker.start is not None:
        raise ScenarioError(
            [Problem("", 0, 0, "broker.start", "starts a broker of its own", "no host and port")]
        )
    changes: dict[str, Any] = {}
    if host is not None:
        changes["host"] = host
    if port is not None:
        changes["port"] = port
    moved: Broker = broker.model_copy(update=changes)
    return scenario.model_copy(update={"broker": moved})


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    schema = Scenario.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "device_sim scenario"
    return schema


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda each: (each.line, each.column))


def _problem(
    document: Document, loc: Loc, found: str, expected: str, hint: str, at_key: bool = False
) -> Problem:
    mark = _mark_of(document, loc, at_key)
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    return Problem(document.file, line, column, dotted(loc), found, expected, hint)


def _mark_of(document: Document, loc: Loc, at_key: bool) -> yaml.Mark | None:
    """The mark of a key or value; for one that is missing, of the nearest thing around it."""
    if at_key and loc in document.keys:
        return document.keys[loc]
    while loc not in document.values and loc:
        loc = loc[:-1]
    return document.values.get(loc)


def _explained(error: ValidationError, document: Document) -> Iterator[Problem]:
    """One problem for each place, the branches of a choice put together."""
    places: dict[Loc, list[ErrorDetails]] = {}
    chosen: set[Loc] = set()
    for details in error.errors(include_url=False):
        loc = _plain(details, document)
        places.setdefault(loc, []).append(details)
        if len(loc) < len(details["loc"]):
            chosen.add(loc)
    for loc, several in places.items():
        deeper = any(len(other) > len(loc) and other[: len(loc)] == loc for other in places)
        if loc in chosen and deeper:
            continue
        found, expected, hint = _words(several[0], loc)
        for other in several[1:]:
            more = _words(other, loc)[1]
            if more and more not in expected:
                expected = f"{expected} or {more}" if expected else more
        at_key = several[0]["type"] == "extra_forbidden"
        yield _problem(document, loc, found, expected, hint, at_key)


def _plain(details: ErrorDetails, document: Document) -> Loc:
    """The place in the file: without the names pydantic gives to the branches of a choice."""
    loc: Loc = ()
    raw = details["loc"]
    for at, part in enumerate(raw):
        here = (*loc, part)
        last = at == len(raw) - 1
        if here in document.values or (last and details["type"] == "missing"):
            loc = here
    return loc


def _words(details: ErrorDetails, loc: Loc) -> tuple[str, str, str]:
    """found, expected, hint of one of pydantic's errors."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return f"unknown key {shown(str(loc[-1]))}", *_known_keys(details["loc"])
    if kind == "missing":
        return "missing", "", ""
    template = _EXPECTED.get(kind)
    expected = details["msg"] if template is None else template.format(**context)
    hint = str(context.get("hint", ""))
    if kind == "literal_error" and isinstance(value, str):
        hint = _close(value, re.findall(r"'([\w.]+)'", expected))
    # A password is not repeated, wherever the error goes to.
    found = "found a value" if loc and loc[-1] == "password" else f"found {shown(value)}"
    return found, expected, hint


def _known_keys(loc: Loc) -> tuple[str, str]:
    """What may stand in place of an unknown key, and the one that is probably meant."""
    model = _model_at(loc[:-1])
    names = sorted(model.model_fields) if model is not None else []
    return f"one of {', '.join(names)}" if names else "", _close(str(loc[-1]), names)


def _model_at(loc: Loc) -> type[BaseModel] | None:
    """The model that pydantic was at; in its loc the branch of a choice ends in a bracket."""
    model: type[BaseModel] = Scenario
    names_a_key = False
    for part in loc:
        if isinstance(part, int):
            continue
        if names_a_key:
            names_a_key = False
            continue
        if part.endswith("]"):
            continue
        field = model.model_fields.get(part)
        inner = None if field is None else _model_in(field.annotation)
        if field is None or inner is None:
            return None
        model = inner
        names_a_key = _has_mapping(field.annotation)
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        if (model := _model_in(argument)) is not None:
            return model
    return None


def _has_mapping(annotation: object) -> bool:
    return typing.get_origin(annotation) is dict or any(
        _has_mapping(argument) for argument in typing.get_args(annotation)
    )


def _close(word: str, words: list[str]) -> str:
    matches = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {matches[0]!r}?" if matches else ""
