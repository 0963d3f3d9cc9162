"""From `use` in the configuration to a plugin class and its validated configuration.

Owns: the three ways to name a plugin (an entry point of the group `mqttd.plugins`, a
`dotted.path:Class`, a loose file `x.py`), and that a mistake in a plugin's configuration is told
like any other: with file, line, column and path.

Must not know: what a plugin does. Nothing is instantiated here; but the module of a plugin is
imported, which runs its code.

A source tree that isn't installed has no entry points: there, and only where no entry point has the
name, `use: NAME` is looked for as the module `mqttd_plugins.NAME`, which holds one plugin.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import typing
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pydantic import ValidationError

from mqttd.config import Config, ConfigError, PluginEntry, Problem, explain, load_config
from mqttd.hooks.plugin import ConfigT, Plugin, PluginConfig

GROUP: Final = "mqttd.plugins"
_OWN: Final = "mqttd_plugins"
_HOLDS_A_PLUGIN: Final = re.compile(r"^class [A-Z]\w*\(\w*Plugin\[", re.MULTILINE)


class NoPlugin(Exception):
    """There is no such plugin, or it can't be imported; the text says why."""


class Prepared:
    """A plugin that was found, with its configuration."""

    def __init__(
        self, name: str, made_by: type[Plugin[Any]], config: PluginConfig, entry: PluginEntry
    ) -> None:
        self.name = name
        self.made_by = made_by
        self.config = config
        self.entry = entry

    @property
    def authenticates(self) -> bool:
        """The plugin has a say in who may connect."""
        made_by = self.made_by
        return (
            made_by.authenticate is not Plugin.authenticate
            or made_by.authenticate_enhanced is not Plugin.authenticate_enhanced
        )


def names() -> list[str]:
    """The plugins that `use` can name without a path."""
    found = {point.name for point in entry_points(group=GROUP)}
    return sorted(found | set(_own_names()))


def find(use: str) -> type[Plugin[Any]]:
    """The class that `use` names. NoPlugin."""
    if use.endswith(".py"):
        return _one_of(_load_file(Path(use)), use)
    if ":" in use:
        path, _, name = use.partition(":")
        found = getattr(_import(path, use), name, None)
        if not (isinstance(found, type) and issubclass(found, Plugin)):
            raise NoPlugin(f"{path} has no plugin class {name}")
        return found
    for point in entry_points(group=GROUP):
        if point.name == use:
            path, _, name = point.value.partition(":")
            return find(f"{path}:{name}") if name else _one_of(_import(path, use), use)
    if use in _own_names():
        return _one_of(_import(f"{_OWN}.{use}", use), use)
    close = difflib.get_close_matches(use, names(), n=1)
    raise NoPlugin(
        "no such plugin is installed" + (f" (did you mean {close[0]!r}?)" if close else "")
    )


def prepare(config: Config) -> list[Prepared]:
    """Every plugin of a configuration, in its order. ConfigError with all that is wrong."""
    problems: list[Problem] = []
    found: list[Prepared] = []
    for index, entry in enumerate(config.plugins):
        at = ("plugins", index)
        name = entry.name or default_name(entry.use)
        if name in [other.name for other in found]:
            problems.append(
                config.problem((*at, "use"), f"{name!r} is there twice", "a `name` of its own")
            )
        try:
            made_by = find(entry.use)
        except NoPlugin as error:
            problems.append(config.problem((*at, "use"), f"can't use {entry.use!r}: {error}"))
            continue
        model = made_by.config_class
        # For validators: where relative names begin, and how long the hooks may take.
        context = {"base": str(config.base), "timeout": entry.timeout}
        try:
            inner = model.model_validate(entry.config, context=context)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                said, expected, hint = explain(details, model)
                loc = (*at, "config", *details["loc"])
                at_key = details["type"] == "extra_forbidden"
                problems.append(config.problem(loc, said, expected, hint, at_key))
            continue
        except Exception as error:  # out of a validator of the plugin's
            said = f"{type(error).__name__}: {error}"
            problems.append(config.problem((*at, "config"), said))
            continue
        found.append(Prepared(name, made_by, inner, entry))
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return found


def configured(path: str | os.PathLike[str], plugin_class: type[Plugin[ConfigT]]) -> list[ConfigT]:
    """The configurations of one plugin in a file of the broker, in their order. ConfigError."""
    found = prepare(load_config(path))
    return [
        typing.cast(ConfigT, one.config) for one in found if issubclass(one.made_by, plugin_class)
    ]


def default_name(use: str) -> str:
    """What a plugin is called that was given no name."""
    if use.endswith(".py"):
        return Path(use).stem
    return use.rpartition(":")[2]


def _own_names() -> Iterator[str]:
    """The modules of our own package that hold a plugin; none of them is imported for that."""
    try:
        package = importlib.import_module(_OWN)
    except ImportError:
        return
    for place in package.__path__:
        for file in Path(place).glob("[!_]*.py"):
            if _HOLDS_A_PLUGIN.search(file.read_text(encoding="utf-8")):
                yield file.stem


def _import(path: str, use: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except (Exception, SystemExit) as error:  # whatever its code does
        raise NoPlugin(f"{type(error).__name__} in {use}: {error}") from error


def _load_file(path: Path) -> ModuleType:
    """Run a loose file as a module of its own, anew each time."""
    # By its whole path: another file of the same name is another module.
    number = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]
    name = f"mqttd_loose_{path.stem}_{number}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise NoPlugin("there is no such file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if before is not None:  # a plugin that runs
            sys.modules[name] = before
        raise NoPlugin(f"{type(error).__name__}: {error}") from error
    return module


def _one_of(module: ModuleType, use: str) -> type[Plugin[Any]]:
    """The one plugin class that a module defines itself."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        names = ", ".join(sorted(value.__name__ for value in found)) or "none"
        raise NoPlugin(f"one plugin class is expected in {Path(use).name}, found: {names}")
    return found[0]
