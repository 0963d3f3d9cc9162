"""The pages of rate_limit, ban, topic_rewrite, delayed, webhook and schema.

Their keys, defaults, examples and metrics are the real ones.
"""

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from mqttd_plugins import ban, delayed, rate_limit, schema, topic_rewrite, webhook
from mqttd_plugins._event_queue import _fields
from mqttd_plugins._json_schema import load
from mqttd_plugins.webhook import sign

from mqttd.api import Event, PluginConfig
from mqttd.config import Config, ConfigError, parse_yaml
from mqttd.hooks.loader import prepare
from mqttd.yamltree import Document

RULE = {"filter": "a", "file": "s.json"}
# The page, the section ("" is its top), the model, and what an instance needs at least.
TABLES: list[tuple[str, str, type[PluginConfig], dict[str, Any]]] = [
    ("rate_limit", "", rate_limit.Config, {"client": {"messages": 1.0}}),
    ("rate_limit", "`client` and `listener`", rate_limit.Limit, {}),
    ("ban", "", ban.Config, {}),
    ("ban", "`brute_force`", ban.BruteForce, {}),
    ("ban", "`flapping`", ban.Flapping, {}),
    ("topic_rewrite", "", topic_rewrite.Config, {}),
    ("topic_rewrite", "`rules[]`", topic_rewrite.RuleConfig, {}),
    ("delayed", "", delayed.Config, {}),
    ("webhook", "", webhook.Config, {"url": "https://x.example/"}),
    ("schema", "", schema.Config, {"rules": [RULE]}),
    ("schema", "`rules[]`", schema.RuleConfig, RULE),
]
NAMES = sorted({name for name, *_ in TABLES})


def page(root: Path, name: str) -> str:
    return (root / "docs/reference/plugins" / f"{name}.md").read_text()


def value_of(text: str) -> Any:
    document = Document(f"key: {text}", "page")
    assert not document.problems, document.problems
    return cast(dict[str, Any], document.value)["key"]


def section(text: str, title: str) -> str:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return parts[0] if not title else dict(zip(parts[1::2], parts[2::2], strict=True))[title]


@pytest.mark.parametrize(("name", "title", "model", "needed"), TABLES)
def test_every_key_is_there_with_its_default(
    root: Path, name: str, title: str, model: type[PluginConfig], needed: dict[str, Any]
) -> None:
    text = section(page(root, name), title)
    table = text.partition("| key | default | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()]
    told = {key.strip("`"): default for key, default in rows}
    assert set(told) == set(model.model_fields)
    for key, default in told.items():
        field = model.model_fields[key]
        if default == "required":
            assert field.is_required(), key
        elif default == "absent":
            assert field.default is None, key
        elif key not in needed:
            value = value_of(default.strip("`"))
            made = model.model_validate({**needed, key: value})
            assert getattr(made, key) == field.default, key


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_listed(root: Path, name: str) -> None:
    source = (root / "plugins/mqttd_plugins" / f"{name}.py").read_text()
    counted = set(re.findall(r'\.(?:count|gauge)\(\s*f?"(\w+?)(?:_\{\w+\})?"', source))
    metrics = section(page(root, name), "Metrics").partition("Audit")[0]
    told = set(re.findall(r"`(\w+)`", metrics)) - {"max_clients"}
    if name == "topic_rewrite":
        told = {re.sub(r"_\w+", "", one) for one in told}
        counted = {re.sub(r"_\w+", "", one) for one in counted}
    if "Followed(" in source:
        counted.add("reload_failures")
    if name == "ban":
        counted |= {"brute_force", "flapping"}  # counted by the name of their rule
    assert counted == told


def test_the_mistakes_that_are_said_to_be_told_have_a_place() -> None:
    text = """\
plugins:
  - use: topic_rewrite
    config:
      rules:
        - on: [publish]
          filter: a/+
          to: b/{topic[2]}
"""
    config: Config = parse_yaml(text, "bad.yaml")
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == ("bad.yaml", 7)
    assert problem.path == "plugins[0].config.rules[0].to"
    assert "promises 2 levels" in str(problem)


def test_the_request_of_the_webhook_is_as_shown(root: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", page(root, "webhook"), re.DOTALL)
    (shown,) = json.loads(block)["events"]
    event = Event(
        *("published", 1_700_000_000.25, "pump", "ann"), topic="alarms/1", qos=1, payload=b"hot"
    )
    assert _fields(shown["id"], event, 100) == shown


def test_the_check_of_the_signature_is_right(root: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page(root, "webhook"), re.DOTALL)
    names: dict[str, Any] = {"hmac": hmac, "hashlib": hashlib}
    exec(block, names)
    header = "sha256=" + sign(b"key", b"body")
    assert names["is_genuine"](b"key", b"body", header)
    assert not names["is_genuine"](b"key", b"bodY", header)


def test_the_schema_is_one(root: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", page(root, "schema"), re.DOTALL)
    (tmp_path / "temperature.json").write_text(block)
    checker = load(tmp_path / "temperature.json")
    assert checker.reason_at_once(b'{"celsius": 21}') == ""
    assert checker.reason_at_once(b'{"celsius": 151}') == "schema: properties/celsius/maximum"
