"""What the command line says about plugins, and the commands that they bring along.

Owns: `mqttd plugins`, and the way to commands such as `mqttd passwd`: functions `main(argv)` in the
entry point group `mqttd.commands`, which give an exit code. A source tree that isn't installed has
no entry points; there the commands of our own plugins are found by the name of their module.

Must not know: any plugin, the broker. It imports the modules of plugins, which runs their code, and
makes none.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from mqttd.hooks import checking, loader
from mqttd.hooks.plugin import Plugin
from mqttd.operate.show import table

GROUP: Final = "mqttd.commands"
_WORDS: Final = {"object": "mapping", "string": "text", "integer": "number"}
OWN: Final = {"acl": "mqttd_plugins.acl_check", "passwd": "mqttd_plugins.passwd"}


def find(name: str) -> Callable[[Sequence[str]], int] | None:
    """The command of a plugin; None where no plugin brings one of this name."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
    if name not in OWN:
        return None
    try:
        return importlib.import_module(OWN[name]).main  # type: ignore[no-any-return]
    except ImportError:
        return None


def list_plugins(as_json: bool) -> None:
    """One line for each plugin that is installed."""
    found = [_summary(name) for name in loader.names()]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = [
        [str(one["name"]), ", ".join(one["hooks"]), str(one["description"] or one["error"])]
        for one in found
    ]
    table(["name", "hooks", "what it does"], rows)


def _summary(name: str) -> dict[str, Any]:
    try:
        made_by = loader.find(name)
    except loader.NoPlugin as error:  # such as a package that it needs and that isn't there
        return {"name": name, "class": "", "description": "", "hooks": [], "error": str(error)}
    return {
        "name": name,
        "class": f"{made_by.__module__}:{made_by.__qualname__}",
        "description": checking.describe(made_by),
        "hooks": checking.hooks_of(made_by),
        "error": "",
    }


def show_plugin(use: str, as_json: bool) -> None:
    """The configuration of one plugin: its keys, or its JSON Schema. NoPlugin."""
    made_by = loader.find(use)
    if as_json:
        print(json.dumps(schema_of(made_by), indent=2))
        return
    print(f"{use}: {checking.describe(made_by)}")
    print(f"hooks: {', '.join(checking.hooks_of(made_by)) or 'none'}")
    rows = keys_of(schema_of(made_by))
    if rows:
        print()
        table(["key", "type", "default", "meaning"], rows)
    else:
        print("it has no configuration")


def schema_of(made_by: type[Plugin[Any]]) -> dict[str, Any]:
    """JSON Schema of what stands under `config`."""
    schema = made_by.config_class.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def keys_of(schema: dict[str, Any]) -> list[list[str]]:
    """Key, type, default and meaning of all keys, those of mappings inside included."""
    return _keys(schema, schema.get("$defs", {}), "")


def _keys(node: dict[str, Any], known: dict[str, Any], prefix: str) -> list[list[str]]:
    rows: list[list[str]] = []
    required = node.get("required", ())
    for key, field in node.get("properties", {}).items():
        path = f"{prefix}{key}"
        default = "required" if key in required else _shown(field.get("default"))
        meaning = " ".join(str(field.get("description", "")).split())
        rows.append([path, _type(field, known), default, meaning])
        inner, many = _inner(field, known)
        if inner is not None:
            rows += _keys(inner, known, f"{path}[]." if many else f"{path}.")
    return rows


def _resolved(field: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    name = str(field.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = known.get(name, field)
    return found


def _choices(field: dict[str, Any], known: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field may be, each resolved; `null` is left out: the default says it."""
    options = field.get("anyOf") or field.get("oneOf") or field.get("allOf") or [field]
    found = [_resolved(option, known) for option in options]
    return [one for one in found if one.get("type") != "null"]


def _type(field: dict[str, Any], known: dict[str, Any]) -> str:
    names = []
    for one in _choices(field, known):
        if "enum" in one:
            names.append(" | ".join(_shown(value) for value in one["enum"]))
        elif "const" in one:
            names.append(_shown(one["const"]))
        elif one.get("type") == "array":
            names.append(f"list of {_type(one.get('items', {}), known)}")
        else:
            kind = one.get("type", "anything")
            kinds = kind if isinstance(kind, list) else [kind]
            names += [_WORDS.get(str(word), str(word)) for word in kinds]
    return " | ".join(dict.fromkeys(names)) or "anything"


def _inner(field: dict[str, Any], known: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The mapping inside a field, and whether there is a list of them."""
    for one in _choices(field, known):
        if one.get("properties"):
            return one, False
        if one.get("type") == "array":
            inner, _ = _inner(one.get("items", {}), known)
            if inner is not None:
                return inner, True
    return None, False


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    return value if isinstance(value, str) and value else json.dumps(value)
