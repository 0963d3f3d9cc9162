"""From `use` to a class and its configuration, and what is told when that doesn't work out."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqttd.api import Plugin, PluginConfig
from mqttd.config import ConfigError, load_config, parse_config
from mqttd.hooks import loader
from mqttd.hooks.loader import NoPlugin, Prepared, default_name, find, names, prepare

GOOD = '''"""A loose plugin."""

from mqttd.api import Duration, Plugin, PluginConfig


class Config(PluginConfig):
    prefix: str
    pause: Duration = 1.0


class Mine(Plugin[Config]):
    pass
'''


class Named(Plugin[PluginConfig]):
    """Found by its dotted path."""


NOT_ONE = 7


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that is on the path, and whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(place: Path, name: str, value: str) -> None:
    """What pip leaves behind of a package with an entry point."""
    info = place / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mqttd.plugins]\n{name} = {value}\n")


def write(place: Path, plugins: str) -> Path:
    file = place / "mqttd.yaml"
    file.write_text(f"listeners:\n  - {{name: t, bind: '127.0.0.1:0'}}\nplugins:\n{plugins}")
    return file


def load(place: Path, plugins: str) -> list[Prepared]:
    return prepare(load_config(write(place, plugins)))


def told(place: Path, plugins: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(place, plugins)
    return [line.replace(f"{place}/", "") for line in str(error.value).splitlines()]


def test_a_dotted_path() -> None:
    assert find(f"{__name__}:Named") is Named
    assert default_name(f"{__name__}:Named") == "Named"


@pytest.mark.parametrize("value", ["loosely:Mine", "loosely"])
def test_an_entry_point(place: Path, value: str) -> None:
    (place / "loosely.py").write_text(GOOD)
    install(place, "my-plugin", value)
    assert find("my-plugin").__name__ == "Mine"
    assert "my-plugin" in names()


def test_a_loose_file_beside_the_configuration(place: Path) -> None:
    (place / "loose.py").write_text(GOOD)
    (one,) = load(place, "  - {use: ./loose.py, config: {prefix: a/, pause: 5s}}\n")
    assert one.name == "loose"
    assert one.made_by.__name__ == "Mine"
    config = one.config
    assert config.model_dump() == {"prefix": "a/", "pause": 5.0}
    assert not one.authenticates


def test_a_loose_file_is_read_anew_each_time(place: Path) -> None:
    (place / "loose.py").write_text(GOOD)
    first = find(str(place / "loose.py"))
    (place / "loose.py").write_text(GOOD.replace("Mine", "Other"))
    assert find(str(place / "loose.py")).__name__ == "Other"
    assert first.__name__ == "Mine"


def test_two_loose_files_of_one_name_are_two_modules(place: Path) -> None:
    found = []
    for folder in ("a", "b"):
        (place / folder).mkdir()
        (place / folder / "loose.py").write_text(GOOD)
        found.append(find(str(place / folder / "loose.py")))
    assert found[0].__module__ != found[1].__module__
    assert all(vars(sys.modules[one.__module__])["Mine"] is one for one in found)


def test_a_loose_file_that_fails_leaves_the_one_that_runs(place: Path) -> None:
    (place / "loose.py").write_text(GOOD)
    found = find(str(place / "loose.py"))
    for text in ("import sys; sys.exit(3)", "raise ValueError"):
        (place / "loose.py").write_text(text)
        with pytest.raises(NoPlugin):
            find(str(place / "loose.py"))
        assert vars(sys.modules[found.__module__])["Mine"] is found


def test_our_own_plugins_need_no_installation() -> None:
    assert find("acl_file").__module__ == "mqttd_plugins.acl_file"
    assert {"acl_file", "password_file", "ban"} <= set(names())
    assert not [name for name in names() if name.startswith("_")]


def test_the_order_and_the_names_of_a_configuration() -> None:
    use = f"{__name__}:Named"
    config = parse_config(
        {
            "listeners": [{"name": "t", "bind": "127.0.0.1:0"}],
            "plugins": [{"use": use, "name": "one"}, {"use": use, "timeout": "1s"}],
        }
    )
    found = prepare(config)
    assert [one.name for one in found] == ["one", "Named"]
    assert [one.entry.timeout for one in found] == [5.0, 1.0]


SOURCES = {
    "raises": ("raise RuntimeError('at import')\n", "RuntimeError: at import"),
    "syntax": ("class X(\n", "SyntaxError: "),
    "imports": ("import no_such_module_anywhere\n", "ModuleNotFoundError: "),
    "empty": ("", "one plugin class is expected in x.py, found: none"),
    "two": (GOOD + "\n\nclass Second(Plugin[Config]):\n    pass\n", "found: Mine, Second"),
    "imported": ("from mqttd.api import Plugin\n", "found: none"),
}


@pytest.mark.parametrize("what", SOURCES)
def test_a_file_that_holds_no_plugin(place: Path, what: str) -> None:
    source, text = SOURCES[what]
    (place / "x.py").write_text(source)
    (line,) = told(place, "  - use: ./x.py\n")
    assert line.startswith("mqttd.yaml:4:10 plugins[0].use: can't use ")
    assert text in line
    assert "mqttd_loose_x" not in sys.modules or what not in ("raises", "syntax", "imports")


@pytest.mark.parametrize(
    ("use", "text"),
    [
        ("./nowhere.py", "there is no such file"),
        ("acl_fil", "no such plugin is installed (did you mean 'acl_file'?)"),
        ("quite_something_else", "no such plugin is installed"),
        ("no_such_package:X", "ModuleNotFoundError"),
        (f"{__name__}:Nobody", f"{__name__} has no plugin class Nobody"),
        (f"{__name__}:NOT_ONE", f"{__name__} has no plugin class NOT_ONE"),
        ("pathlib:Path", "pathlib has no plugin class Path"),
    ],
)
def test_a_plugin_that_is_not_there(place: Path, use: str, text: str) -> None:
    (line,) = told(place, f"  - use: {use!r}\n")
    assert line.startswith("mqttd.yaml:4:10 plugins[0].use: can't use ")
    assert text in line


def test_mistakes_in_its_configuration_have_their_places(place: Path) -> None:
    (place / "loose.py").write_text(GOOD)
    text = """\
  - use: ./loose.py
    config:
      prefx: a
      pause: never
  - use: ./loose.py
    name: second
"""
    lines = told(place, text)
    assert [line.split(" ")[0] for line in lines] == [
        "mqttd.yaml:6:7",
        "mqttd.yaml:6:7",
        "mqttd.yaml:7:14",
        "mqttd.yaml:8:5",
    ]
    joined = "\n".join(lines)
    assert "plugins[0].config.prefx" in joined
    assert "did you mean" in joined
    assert "plugins[0].config.prefix: missing" in joined
    assert "plugins[0].config.pause" in joined
    assert "plugins[1].config.prefix: missing" in joined


def test_a_validator_that_fails_is_told_like_a_mistake(place: Path) -> None:
    source = GOOD.replace(
        "    pause", "    limit: Annotated[int, BeforeValidator(int.bit_length)] = 1\n    pause"
    )
    imports = (
        "from typing import Annotated\n\nfrom pydantic import BeforeValidator\n\nfrom mqttd.api"
    )
    (place / "loose.py").write_text(source.replace("from mqttd.api", imports))
    (line,) = told(place, "  - use: ./loose.py\n    config: {prefix: a, limit: many}\n")
    assert line.startswith("mqttd.yaml:5:13 plugins[0].config: TypeError: ")


def test_two_of_one_name(place: Path) -> None:
    (place / "loose.py").write_text(GOOD)
    entry = "  - {use: ./loose.py, config: {prefix: a}}\n"
    (line,) = told(place, entry + entry)
    assert line.startswith("mqttd.yaml:5:11 plugins[1].use: 'loose' is there twice")


def test_all_that_is_wrong_is_told_at_once(place: Path) -> None:
    lines = told(place, "  - use: ./nowhere.py\n  - use: acl_fil\n  - use: acl_file\n")
    assert len(lines) == 3
    assert [line.split(":")[1] for line in lines] == ["4", "5", "6"]


def test_who_authenticates() -> None:
    config = PluginConfig()
    entry = parse_config({"plugins": [{"use": f"{__name__}:Named"}]}).plugins[0]
    assert not Prepared("n", Named, config, entry).authenticates
    for hook in ("authenticate", "authenticate_enhanced"):
        kind = type("Auth", (Named,), {hook: lambda *_: None})
        assert Prepared("n", kind, config, entry).authenticates


def test_without_our_own_package_only_what_is_installed_has_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "_OWN", "no_such_package")
    with pytest.raises(NoPlugin, match="no such plugin is installed"):
        find("acl_file_")
