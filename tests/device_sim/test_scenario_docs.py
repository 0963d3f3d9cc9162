"""The reference of scenarios says what is there: keys, defaults of the example, words of errors."""

import re
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from device_sim.language.forecast import forecast
from device_sim.language.load import catalogue, load, parse
from device_sim.language.scenario import Scenario
from device_sim.language.scenario_commands import lines_of
from tests.device_sim.scenarios import problems

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "scenario.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
[EXAMPLE] = [block for language, block in BLOCKS if language == "yaml"]


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in inside(field.annotation):
            yield from models(inner, seen)


def inside(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from inside(argument)


def test_every_key_is_in_the_reference() -> None:
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
    missing = {
        f"{model.__name__}.{key}"
        for model in models(Scenario, set())
        for key in model.model_fields
        if key not in words
    }
    assert not missing


def test_the_example_is_good_and_its_plan_is_the_one_that_is_shown() -> None:
    [shown] = [block for _, block in BLOCKS if block.startswith("$ device_sim plan")]
    plan = lines_of(forecast(parse(EXAMPLE)))
    assert shown.rstrip("\n").split("\n")[1:] == plan


def test_the_errors_are_those_that_are_shown() -> None:
    [shown] = [block for _, block in BLOCKS if block.startswith("s.yaml:")]
    found = problems(EXAMPLE.replace("every: 10s", "every: 2 weeks"))
    found += problems(EXAMPLE.replace("{room}/{id}", "{room}/{di}"))
    assert shown.splitlines() == [f"s.yaml:{line}" for line in found]


def test_the_sizes_that_are_shown_are_sizes() -> None:
    sizes = re.findall(r"^\| `(size: .*?)` \|", TEXT, re.MULTILINE)
    assert len(sizes) == 5
    for size in sizes:
        changed = EXAMPLE.replace("every: 10s", f"every: 10s\n        {size}")
        assert changed != EXAMPLE
        assert problems(changed) == []


def test_the_catalogue_has_so_many_devices() -> None:
    for name in catalogue():
        count = sum(group.count for group in load(name).groups)
        assert f"\n| `{name}` | {count:,} |" in TEXT
