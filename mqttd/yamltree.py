"""YAML text to plain values with a place for every key and value, and the shape of a problem.

Owns: the scalars of YAML 1.2's core schema over PyYAML's safe loader (`off` and `yes` are text,
`0123` is one hundred and twenty-three, there are no dates and no sexagesimal numbers), the refusal
of duplicate keys, of tags that build objects, and of aliases that make a small file a huge tree.

PyYAML composes the node tree; nothing of its constructor runs. Every problem of a text is
collected, except that a syntax error ends it: what follows can't be trusted to mean what it says.

Must not know: which keys exist. That is `mqttd.config`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it stands and what should stand there instead."""

    file: str
    line: int
    column: int
    path: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column} " if self.line else ""
        if not place and self.file:
            place = f"{self.file}: "
        path = f"{self.path}: " if self.path else ""
        expected = f", expected {self.expected}" if self.expected else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{path}{self.found}{expected}{hint}"


class ConfigError(ValueError):
    """The configuration can't be used; `problems` is never empty."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def shown(value: object) -> str:
    """A value as an operator would point at it, cut and without control characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, int) and value.bit_length() > 10_000:
        return hex(value)[:60]  # Python refuses to write out thousands of decimal digits
    return ascii(value)[:60]


_MAX_NODES: Final = 100_000  # aliases can make a small file a huge tree
_CORE_SCHEMA: Final = (
    ("null", re.compile(r"~|null|Null|NULL|"), "~nN\0"),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789"),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), "-+.0123456789"),
)
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")
_TAG: Final = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2; used up to the node tree only."""


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _firsts in _CORE_SCHEMA:
    _anchored = re.compile(rf"(?:{_pattern.pattern})\Z")
    for _first in _firsts:
        _Loader.add_implicit_resolver(_TAG + _kind, _anchored, [_first if _first != "\0" else ""])


class Document:
    """One YAML text as plain values, the marks of its keys and values, and its problems."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.value: object = None
        self.keys: dict[Loc, yaml.Mark] = {}
        self.values: dict[Loc, yaml.Mark] = {}
        self.problems: list[Problem] = []
        self._nodes = 0
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            self.value = {} if root is None else self._plain(root, ())
        except yaml.MarkedYAMLError as error:
            self._report(error.problem_mark or error.context_mark, (), _syntax(error))
        except RecursionError:
            self._report(None, (), "nested too deeply, or an alias that contains itself")
        except _TooLarge:
            self._report(None, (), f"more than {_MAX_NODES} values")
        finally:
            loader.dispose()

    def _report(
        self, mark: yaml.Mark | None, loc: Loc, found: str, expected: str = "", hint: str = ""
    ) -> None:
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        self.problems.append(Problem(self.file, line, column, dotted(loc), found, expected, hint))

    def _plain(self, node: yaml.Node, loc: Loc) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _TooLarge
        self.values[loc] = node.start_mark
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (_TAG + "map", _TAG + "seq"):
            self._tagged(node, loc, "")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*loc, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, object]:
        out: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                self._report(key_node.start_mark, loc, "a key that isn't text", "the name of a key")
                continue
            key = str(key_node.value)
            here = (*loc, key)
            if key in out:
                first = self.keys[here]
                place = f"first on line {first.line + 1}"
                self._report(
                    key_node.start_mark, here, f"found {shown(key)} twice", "it once", place
                )
                continue
            self.keys[here] = key_node.start_mark
            out[key] = self._plain(value_node, here)
        return out

    def _scalar(self, node: yaml.Node, loc: Loc) -> object:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
            if kind == "float":
                return float(text)
        except (KeyError, ValueError):
            pass
        self._tagged(node, loc, f" on {shown(text)}")
        return None

    def _tagged(self, node: yaml.Node, loc: Loc, text: str) -> None:
        tag = shown(node.tag.replace(_TAG, "!!"))
        self._report(node.start_mark, loc, f"found the tag {tag}{text}", "a plain value")


class _TooLarge(Exception):
    pass


def _syntax(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return "not YAML: " + ", ".join(parts).replace("\n", " ")


def dotted(loc: Loc) -> str:
    """`listeners[0].tls.cert`; a key that isn't a plain word is quoted."""
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            word = part if _WORD.fullmatch(part) else shown(part)
            out += f".{word}" if out else word
    return out


def decode(raw: bytes, file: str) -> str:
    """The text of a file, or the place of the first byte that is no text."""
    try:
        text = raw.decode("utf-8")
        unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
        if unprintable is None:
            return text
        position, what = unprintable.start(), "a control character"
    except UnicodeDecodeError as error:
        text = raw[: error.start].decode("utf-8")
        position, what = len(text), "bytes that aren't UTF-8"
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    raise ConfigError([Problem(file, line, column, "", f"found {what}", "UTF-8 text")])
