"""The catalogue: every scenario is good at any size, has a plan, and its values can be drawn."""

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from device_sim.language.forecast import forecast
from device_sim.language.load import catalogue, json_schema, load
from device_sim.language.naming import Names, Template
from device_sim.language.values import DeviceClock, Recipe, Source
from mqttd.yamltree import Document

NAMES = [
    "alarm-storm",
    "broker-kill",
    "command-response",
    "factory-telemetry",
    "firmware-rollout",
    "reconnect-storm",
    "smart-home",
    "vehicle-fleet",
]
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "scenario.md"


def test_the_catalogue_is_the_one_that_is_promised() -> None:
    assert list(catalogue()) == NAMES
    rows = re.findall(r"^\| `([a-z]+-[a-z-]+)` \| [0-9,]+ \|", REFERENCE.read_text(), re.MULTILINE)
    assert rows == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_good_at_any_size(name: str) -> None:
    whole, small = load(name), load(name, scale=0.01, speed=20)
    assert sum(group.count for group in small.groups) < sum(group.count for group in whole.groups)
    assert forecast(small).seconds < forecast(whole).seconds / 10
    assert whole.thresholds
    assert whole.description


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_to_the_schema(name: str) -> None:
    text = catalogue()[name].read_text(encoding="utf-8")
    found = Draft202012Validator(json_schema()).iter_errors(Document(text, name).value)
    assert [error.message for error in found] == []


@pytest.mark.parametrize("name", NAMES)
def test_somebody_receives_what_it_sends(name: str) -> None:
    plan = forecast(load(name, scale=0.1))
    assert plan.messages > 0
    assert plan.deliveries > 0
    assert all(stream.fan > 0 for stream in plan.streams)


@pytest.mark.parametrize("name", NAMES)
def test_its_values_can_be_drawn(name: str) -> None:
    scenario = load(name, scale=0.01)
    for group in scenario.chosen([]):
        names = Names("00000001", group.name, 0, Template(group.id), group.tags)
        for entry in [*group.publish, *group.request, *group.respond]:
            clock = DeviceClock(group.clock, scenario.seed, group.name, 0)
            source = Source(Recipe(entry), scenario.seed, 1, names, "entry", clock)
            bodies = [source.next(float(t), 1.8e9 + t) for t in range(20)]
            assert bodies[0] is not None
            if entry.fields:
                assert len(set(bodies)) > 1 or all(
                    value.kind == "constant" for value in entry.fields.values()
                )
