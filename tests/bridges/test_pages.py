"""The pages of bridges: their keys, defaults and examples are the real ones, their tests exist."""

import importlib
import re
from pathlib import Path
from typing import Any, cast

import pytest
from mqttd_plugins._bridge import properties
from mqttd_plugins._bridge.rules import BridgeConfig, Rule
from mqttd_plugins._mqtt_config import Config

from mqttd.api import PluginConfig
from mqttd.config import parse_yaml
from mqttd.yamltree import Document

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference/bridges.md"
HOW_TO = ROOT / "docs/how-to/bridge-mqtt.md"
RULE = {"direction": "out", "from": "a"}
SECTIONS: list[tuple[str, type[PluginConfig], dict[str, Any], set[str]]] = [
    (
        "Keys of every bridge",
        BridgeConfig,
        {"rules": [Rule.model_validate(RULE)]},
        set(BridgeConfig.model_fields),
    ),
    ("Keys of a rule", Rule, RULE, {f.alias or name for name, f in Rule.model_fields.items()}),
    (
        "`bridge_mqtt`",
        Config,
        {"addresses": ["far"], "topics": ["#"]},
        set(Config.model_fields) - set(BridgeConfig.model_fields),
    ),
]


def section(title: str) -> str:
    parts = re.split(r"^##+ (.*)$", REFERENCE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


@pytest.mark.parametrize(("title", "model", "needed", "names"), SECTIONS)
def test_keys_and_defaults(
    title: str, model: type[PluginConfig], needed: dict[str, Any], names: set[str]
) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", section(title), re.MULTILINE)
    assert {key for key, _ in rows} == names
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    usual = model.model_validate(needed)
    for key, default in rows:
        field = fields[key]
        if default == "required":
            assert field.is_required(), key
        elif default == "absent":
            assert field.default is None, key
        elif key == "topics":
            assert field.default == []
        else:
            document = Document(f"key: {default.strip('`')}", "page")
            value = cast(dict[str, Any], document.value)["key"]
            assert model.model_validate({**needed, key: value}) == usual, key


@pytest.mark.parametrize("page", [REFERENCE, HOW_TO], ids=lambda path: path.name)
def test_examples_are_good_configurations(page: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        for entry in parse_yaml(block, "page").plugins:
            assert entry.use == "bridge_mqtt"
            assert Config.model_validate(entry.config).all_rules()
    assert bool(blocks) is (page == HOW_TO)


def test_every_promise_names_a_test_that_exists() -> None:
    text = section("What is promised")
    rows = re.findall(r"^\| (?!promise).*$", text, re.MULTILINE)
    assert rows
    assert all("`tests/bridges/test_" in row for row in rows)
    named = re.findall(r"`tests/bridges/(\w+)\.py::(\w+)`", text)
    for module, name in named:
        assert callable(getattr(importlib.import_module(f"tests.bridges.{module}"), name))


def test_every_header_is_named() -> None:
    text = section("Properties as headers")
    for header in properties.OURS:
        assert f"`{header}`" in text
