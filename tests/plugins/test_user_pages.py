"""The pages of password_file, scram, sql_users: keys, defaults and examples are the real ones."""

import re
import sqlite3
from pathlib import Path

import pytest
import yaml
from mqttd_plugins import password_file, scram, sql_users

from mqttd.api import PluginConfig

CONFIGS: dict[str, tuple[type[PluginConfig], dict[str, str]]] = {
    "password_file": (password_file.Config, {"file": "passwd"}),
    "scram": (scram.Config, {"file": "scram"}),
    "sql_users": (sql_users.Config, {"database": "users.db"}),
}


def page(root: Path, name: str) -> str:
    return (root / "docs/reference/plugins" / f"{name}.md").read_text()


def rows(text: str) -> dict[str, str]:
    """Key to what the page says is its default."""
    table = text.partition("| key | default | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines():
        keys, default = (cell.strip() for cell in line.split("|")[1:3])
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", keys), default))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_there_with_its_default(root: Path, name: str) -> None:
    model, needed = CONFIGS[name]
    usual = model.model_validate(needed)
    told = rows(page(root, name))
    assert set(told) == set(model.model_fields)
    for key, default in told.items():
        if default == "required":
            assert model.model_fields[key].is_required(), key
        elif default == "absent":
            assert getattr(usual, key) is None, key
        elif default:
            value = yaml.safe_load(default.strip("`"))
            assert model.model_validate({**needed, key: value}) == usual, key


def test_the_schema_goes_with_the_queries(root: Path) -> None:
    text = page(root, "sql_users")
    (schema,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    config = sql_users.Config.model_validate(yaml.safe_load(block)["plugins"][0]["config"])
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(schema)
        connection.execute("INSERT INTO users (username, password_hash) VALUES ('a', 'hash')")
        connection.execute("INSERT INTO rights (username, action, filter) VALUES ('a', 'all', '#')")
        about = {"username": "a"}
        assert connection.execute(config.users, about).fetchall() == [("hash", 0, "a")]
        assert config.rights is not None
        assert connection.execute(config.rights, about).fetchall() == [("all", "#", 1)]
    connection.close()
