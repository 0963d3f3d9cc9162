"""The pages of acl_file, cert_identity, jwt, http_auth: keys, defaults and examples are real."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from mqttd_plugins import acl_check, acl_file, cert_identity, http_auth, jwt
from mqttd_plugins._acl_rules import parse_rules

from mqttd.api import PluginConfig

URL = "https://auth.example.com/x"
PAGES: dict[str, type[PluginConfig]] = {
    "acl_file": acl_file.Config,
    "cert_identity": cert_identity.Config,
    "jwt": jwt.Config,
    "http_auth": http_auth.Config,
}
# Page, heading of the table, what it describes, what an instance needs at least.
TABLES: list[tuple[str, str, type[PluginConfig], dict[str, Any]]] = [
    ("acl_file", "", acl_file.Config, {"file": "acl"}),
    ("cert_identity", "", cert_identity.Config, {}),
    ("jwt", "", jwt.Config, {"algorithms": ["HS256"], "secret_file": "s"}),
    ("http_auth", "", http_auth.Config, {"authenticate": {"url": URL}}),
    ("http_auth", "`authenticate`, `authorize`", http_auth.AuthenticateConfig, {"url": URL}),
    ("http_auth", "`tls`", http_auth.TlsConfig, {}),
    ("http_auth", "`cache`", http_auth.CacheConfig, {}),
]
ROW = re.compile(r"^\| `(\w+)` \| ?(.*?) ?\| .* \|$", re.MULTILINE)


def page(root: Path, name: str) -> str:
    return (root / "docs/reference/plugins" / f"{name}.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("name", "heading", "model", "needed"), TABLES)
def test_every_key_is_there_with_its_default(
    root: Path, name: str, heading: str, model: type[PluginConfig], needed: dict[str, Any]
) -> None:
    sections = re.split(r"^## (.*)$", page(root, name), flags=re.MULTILINE)
    text = dict(zip(["", *sections[1::2]], sections[0::2], strict=True))[heading]
    table = text.partition("| key | default | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = ROW.findall(table)
    usual = model.model_validate(needed)
    assert [key for key, _ in rows] == list(model.model_fields)
    for key, default in rows:
        if default == "required":
            assert model.model_fields[key].is_required(), key
        elif default == "absent":
            assert model.model_fields[key].default is None, key
        elif default:
            value = yaml.safe_load(default.strip("`"))
            assert model.model_validate({**needed, key: value}) == usual, key


def test_what_the_page_says_that_mqttd_acl_prints(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    (text,) = blocks(page(root, "acl_file"), "console")
    told = re.split(r"^\$ mqttd acl (.*)\n", text, flags=re.MULTILINE)[1:]
    assert len(told) == 8
    for command, output in zip(told[::2], told[1::2], strict=True):
        acl_check.main(shlex.split(command))
        assert capsys.readouterr().out == output, command


def test_rules_on_the_pages_are_rules(root: Path) -> None:
    found = [json.loads(text) for name in PAGES for text in blocks(page(root, name), "json")]
    assert len(found) == 3
    for value in found:
        assert parse_rules(value["acl"])


def test_counters_on_the_pages_are_those_in_the_code(root: Path) -> None:
    for name in PAGES:
        sources = [root / f"plugins/mqttd_plugins/{name}.py"]
        if name == "jwt":
            sources.append(root / "plugins/mqttd_plugins/_jwt_keys.py")
        code = "".join(source.read_text() for source in sources)
        counted = set(re.findall(r'\.count\(f?"(\w+)(?:\{action\})?"', code))
        if "denied_" in counted:
            counted.remove("denied_")
            counted |= {f"denied_{action}" for action in ("publish", "subscribe", "receive")}
        if "Followed(" in code:
            counted.add("reload_failures")
        counters = page(root, name).partition("Counters:")[2].partition(". ")[0]
        told = set(re.findall(r"`(\w+)`", counters.partition("\n\n")[0]))
        assert told == counted, name
