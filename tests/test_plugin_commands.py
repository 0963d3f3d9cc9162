"""`mqttd plugins`, `mqttd check` with plugins, and the commands that plugins bring along."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from mqttd import api, cli
from mqttd.api import Duration, Plugin, PluginConfig
from mqttd.hooks import checking, loader
from mqttd.operate import plugins as plugin_commands
from mqttd.operate.plugins import keys_of
from tests.gate import Config, Gate

LOOSE = '''
"""`mine`: a plugin of somebody."""
from mqttd.api import Plugin, PluginConfig

class Config(PluginConfig):
    size: int = 3
    """How large."""

class Mine(Plugin[Config]):
    def __init__(self, config, broker):
        super().__init__(config, broker)
        {made}

    async def check(self):
        {check}

    def on_deliver(self, client, message):
        return None
'''


def loose(directory: Path, made: str = "pass", check: str = "pass") -> Path:
    file = directory / "mine.py"
    file.write_text(LOOSE.format(made=made, check=check))
    return file


def configuration(directory: Path, *entries: str) -> str:
    file = directory / "m.yaml"
    file.write_text("plugins:\n" + "".join(f"  - {entry}\n" for entry in entries))
    return str(file)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == loader.names()
    (line,) = [line for line in lines if line.startswith("acl_file ")]
    assert "authorize_publish, authorize_subscribe, authorize_receive" in line
    assert "Who may publish and receive what" in line


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["ban"]["class"] == "mqttd_plugins.ban:BanPlugin"
    assert found["ban"]["hooks"] == ["on_connect", "observe"]
    assert not [one for one in found.values() if one["error"]]
    assert all(one["description"] and one["hooks"] for one in found.values())


def test_a_plugin_that_cannot_be_imported_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(use: str) -> Any:
        raise loader.NoPlugin("ModuleNotFoundError in x: No module named 'y'")

    monkeypatch.setattr(loader, "find", find)
    assert cli.main(["plugins"]) == 0
    assert "No module named 'y'" in capsys.readouterr().out


def test_the_keys_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", str(loose(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "a plugin of somebody." in out
    assert "hooks: on_deliver" in out
    assert out.splitlines()[-1].split() == ["size", "number", "3", "How", "large."]
    assert cli.main(["plugins", "acl_file"]) == 0
    assert "file" in capsys.readouterr().out
    assert cli.main(["plugins", "acl_file", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["file"]
    assert cli.main(["plugins", "acl_fil"]) == 2
    assert "did you mean 'acl_file'?" in capsys.readouterr().err


class Inner(PluginConfig):
    window: Duration = 60.0
    """How long."""


class Sample(PluginConfig):
    needed: str
    """It is needed."""
    inner: Inner | None = None
    many: list[Inner] = Field(default_factory=list)
    level: Annotated[int, Field(ge=1)] = 1
    mode: str | None = None


def test_keys_inside_of_mappings_and_lists() -> None:
    class Made(Plugin[Sample]):
        """A plugin."""

    rows = {row[0]: row[1:] for row in keys_of(plugin_commands.schema_of(Made))}
    assert list(rows) == [
        "needed",
        "inner",
        "inner.window",
        "many",
        "many[].window",
        "level",
        "mode",
    ]
    assert rows["needed"] == ["text", "required", "It is needed."]
    assert rows["inner"][:2] == ["mapping", "absent"]
    assert rows["inner.window"] == ["number | text", "60.0", "How long."]
    assert rows["many"][0] == "list of mapping"


@pytest.mark.parametrize("name", loader.names())
def test_every_key_of_our_own_plugins_has_a_meaning(name: str) -> None:
    rows = keys_of(plugin_commands.schema_of(loader.find(name)))
    assert rows
    assert not [row for row in rows if not row[1]]


# Commands.


def test_a_command_of_a_plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    acl = str(root / "config" / "acl.example")
    words = ["acl", "check", "--file", acl, "--user", "alice", "publish", "site/alice/x"]
    assert cli.main(words) == 0
    assert "allowed" in capsys.readouterr().out
    words[-1] = "site/bob/x"
    assert cli.main(words) == 1
    words = ["passwd", "-b", "-c", str(tmp_path / "passwd"), "ann", "s3cr3t"]
    assert cli.main(words) == 0
    assert (tmp_path / "passwd").read_text().startswith("ann:")


def test_a_command_that_nobody_brings(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugin_commands.find("nonsense") is None
    with pytest.raises(SystemExit) as caught:
        cli.main(["nonsense"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_our_own_commands_win_over_those_of_plugins() -> None:
    names = cli._names(cli._parser())
    assert {"run", "check", "plugins", "explain", "clients"} <= names
    assert not names & set(plugin_commands.OWN)


# `mqttd check`.


def test_check_asks_the_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = configuration(tmp_path, "use: ./mine.py", "{use: 'tests.gate:Gate'}")
    loose(tmp_path)
    assert cli.main(["check", "-c", file]) == 0
    assert capsys.readouterr().out == f"{file}: good\n"


@pytest.mark.parametrize(
    ("made", "check", "told"),
    [
        ("pass", "raise ValueError('the list is empty')", "plugin mine: the list is empty"),
        ("raise TypeError", "pass", "plugin mine: TypeError"),
        ("pass", "open('/nonexistent/file')", "plugin mine: /nonexistent/file: No such file"),
        ("pass", "self.broker.table()", "asked for table, which only a broker that runs can do"),
        ("pass", "self.broker.session('c')", "asked for session"),
        ("pass", "await self.broker.publish(None)", "asked for publish"),
        ("pass", "self.broker.call_later(1, print)", "asked for call_later"),
    ],
)
def test_check_tells_where_a_plugin_stands(
    made: str, check: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loose(tmp_path, made, check)
    file = configuration(tmp_path, "use: ./mine.py\n    config: {size: 4}")
    assert cli.main(["check", "-c", file]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mqttd: {file}:3:13 plugins[0].config: ")
    assert told in err
    assert cli.main(["check", "--json", "-c", file]) == 2
    problem = json.loads(capsys.readouterr().out)["problems"][0]
    assert (problem["line"], problem["path"]) == (3, "plugins[0].config")


def test_what_a_check_may_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = (
        "self.broker.count('x'); self.broker.gauge('y', 1); self.broker.audit('z');"
        " assert await self.broker.run_blocking(len, 'abc') == 3; assert self.broker.now() > 0"
    )
    loose(tmp_path, "pass", check)
    assert cli.main(["check", "-c", configuration(tmp_path, "use: ./mine.py")]) == 0


def test_a_check_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "CHECK_S", 0.01)
    loose(tmp_path, "pass", "import asyncio; await asyncio.Event().wait()")
    assert cli.main(["check", "-c", configuration(tmp_path, "use: ./mine.py")]) == 2
    assert "its check took longer than" in capsys.readouterr().err


def test_a_configuration_that_nobody_authenticates_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yaml"
    text = "listeners: [{name: t, bind: '0.0.0.0:0'}]\n"
    file.write_text(text)
    assert cli.main(["check", "-c", str(file)]) == 0
    assert "nobody can connect" in capsys.readouterr().err
    file.write_text(text + "plugins: [{use: 'tests.gate:Gate'}]\n")
    assert cli.main(["check", "-c", str(file)]) == 0
    assert capsys.readouterr().err == ""


def test_the_configurations_of_one_plugin(tmp_path: Path) -> None:
    file = configuration(
        tmp_path,
        "{use: 'tests.gate:Gate', config: {forbidden: a}}",
        "{use: ban}",
        "{use: 'tests.gate:Gate', name: other}",
    )
    found = api.configured(file, Gate)
    assert found == [Config(forbidden="a"), Config()]
    with pytest.raises(api.ConfigError):
        api.configured(configuration(tmp_path, "{use: nobody}"), Gate)
