"""Small scenarios for the tests: a text with what a test changes filled in."""

from typing import Any

import yaml

from device_sim.language.load import ScenarioError, parse
from device_sim.language.scenario import Scenario


def tree(**changes: Any) -> dict[str, Any]:
    """One group with one entry, one stage with one action; keys at the top can be replaced."""
    return {
        "scenario": "small",
        "groups": [group()],
        "stages": [{"name": "only", "duration": 10, "actions": [{"publish": {}}]}],
        **changes,
    }


def group(**changes: Any) -> dict[str, Any]:
    return {"name": "sensor", "count": 10, "publish": [entry()], **changes}


def entry(**changes: Any) -> dict[str, Any]:
    return {"topic": "t/{id}", "every": 2, **changes}


def read(tree: dict[str, Any], **options: Any) -> Scenario:
    return parse(yaml.safe_dump(tree, sort_keys=False), "s.yaml", **options)


def problems(text: str | dict[str, Any]) -> list[str]:
    """The lines of the error, without the file's name; none when the scenario is good."""
    if not isinstance(text, str):
        text = yaml.safe_dump(text, sort_keys=False)
    try:
        parse(text, "s.yaml")
    except ScenarioError as error:
        return [str(each).removeprefix("s.yaml:") for each in error.problems]
    return []
