"""Every page of a plugin: an example that a broker takes, how it fails, what its limits are."""

import re
from pathlib import Path

import pytest

from mqttd.config import load_config
from mqttd.hooks.loader import prepare
from tests.tls import Authority

NAMES = (
    "acl_file",
    "ban",
    "cert_identity",
    "delayed",
    "http_auth",
    "jwt",
    "password_file",
    "rate_limit",
    "schema",
    "scram",
    "sql_users",
    "topic_rewrite",
    "webhook",
)


def page(root: Path, name: str) -> str:
    return (root / "docs/reference/plugins" / f"{name}.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_broker_takes_the_examples(root: Path, tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    authority.file.rename(tmp_path / "ca.crt")
    for made, wanted in zip(authority.issue("made"), ("server.crt", "server.key"), strict=True):
        made.rename(tmp_path / wanted)
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page(root, name), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        file = tmp_path / "mqttd.yaml"
        file.write_text(block)
        assert name in [prepared.name for prepared in prepare(load_config(file))]


@pytest.mark.parametrize("name", NAMES)
def test_what_every_page_tells(root: Path, name: str) -> None:
    text = page(root, name)
    assert text.startswith(f"# {name}\n")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    for heading in ("When it fails", "Limits", "Metrics"):
        assert headings.count(heading) == 1, heading
    assert headings[-1] == "Metrics"


def test_no_page_is_missing(root: Path) -> None:
    there = {file.stem for file in (root / "docs/reference/plugins").glob("*.md")}
    assert there == {*NAMES, "dead_letters", "queues"}
