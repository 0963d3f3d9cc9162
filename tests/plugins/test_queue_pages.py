"""The pages of queues and dead_letters: keys, defaults, reasons and metrics are the real ones."""

import re
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins import dead_letters, queues

from mqttd.api import UNDELIVERED, PluginConfig
from mqttd.config import parse_yaml
from mqttd.core.letters import MAX_LETTERS
from mqttd.hooks.loader import prepare
from tests.plugins.test_traffic_pages import page, section, value_of

TABLES: list[tuple[str, str, type[PluginConfig], dict[str, Any]]] = [
    ("queues", "", queues.Config, {}),
    ("queues", "`queues[]`", queues.QueueConfig, {"name": "a"}),
    ("queues", "`on_demand`", queues.OnDemand, {}),
    ("dead_letters", "", dead_letters.Config, {}),
]
USES = {
    "queues": "mqttd_plugins.queues:Queues",
    "dead_letters": f"{dead_letters.__name__}:DeadLetters",
}


@pytest.mark.parametrize(("name", "title", "model", "needed"), TABLES)
def test_every_key_is_there_with_its_default(
    root: Path, name: str, title: str, model: type[PluginConfig], needed: dict[str, Any]
) -> None:
    text = section(page(root, name), title)
    table = text.partition("| key | default | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    told: dict[str, str] = {}
    for line in table.splitlines():
        keys, default = (cell.strip() for cell in line.split("|")[1:3])
        told |= dict.fromkeys(re.findall(r"`(\w+)`", keys), default)
    assert set(told) == set(model.model_fields)
    for key, default in told.items():
        field = model.model_fields[key]
        if default == "required":
            assert field.is_required(), key
        elif default == "absent":
            assert field.default is None, key
        elif default != "as above":
            value = value_of(default.strip("`"))
            made = model.model_validate({**needed, key: value})
            assert getattr(made, key) == field.default, key


@pytest.mark.parametrize("path", ["reference/plugins/queues.md", "how-to/queues.md"])
def test_examples_are_good(root: Path, path: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (root / "docs" / path).read_text(), re.DOTALL)
    for name, use in USES.items():
        block = block.replace(f"use: {name}\n", f"use: {use}\n    name: {name}\n")
    first = prepare(parse_yaml(block))[0].config
    assert isinstance(first, queues.Config)
    assert first.queues[0].name == "orders"


@pytest.mark.parametrize("name", sorted(USES))
def test_every_metric_is_listed(root: Path, name: str) -> None:
    source = (root / "plugins/mqttd_plugins" / f"{name}.py").read_text()
    counted = set(re.findall(r'\.(?:count|gauge)\("(\w+)"', source))
    metrics = section(page(root, name), "Metrics").partition("Audit")[0]
    told = {each for each in re.findall(r"`(\w+)`", metrics) if not each.startswith("mqttd_")}
    assert told == counted


def test_every_reason_is_explained(root: Path) -> None:
    rows = set(
        re.findall(r"^\| `(\w+)` \|", section(page(root, "queues"), "What a queue gives up"), re.M)
    )
    assert rows == queues.Queues.undelivered
    assert set(re.findall(r"\w+", page(root, "dead_letters"))) >= UNDELIVERED


def test_the_numbers_are_those_of_the_code(root: Path) -> None:
    assert f"seen to every {queues.LOOK_S:g} s" in page(root, "queues")
    assert f"{MAX_LETTERS:,} dead letters" in page(root, "dead_letters")


def test_the_properties_of_a_dead_letter_are_listed(root: Path) -> None:
    text = section(page(root, "dead_letters"), "What a dead letter has")
    source = (root / "mqttd/hooks/convert.py").read_text()
    source += (root / "mqttd/core/letters.py").read_text()
    for name in re.findall(r"^\| `(mqttd-[\w-]+)` \|", text, re.MULTILINE):
        assert f'"{name}"' in source
    assert len(re.findall(r"^\| `mqttd-", text, re.MULTILINE)) == 6
