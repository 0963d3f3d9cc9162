"""docs/conformance.md from the tags in code and tests, and the verdict on what is missing.

    python tools/conformance.py           write the page; exit 1 if a statement is uncovered
    python tools/conformance.py --check   write nothing; exit 1 if one is, or if the page is stale

Sources of truth, all in the repository:

- docs/conformance/statements.csv: every normative statement of MQTT 5.0 under its number, in our
  words, and whom it binds: server, client or both.
- `[MQTT-3.3.1-4]` in a comment or docstring of mqttd/, or "MQTT-3.3.1-4" as the clause of an error
  raised there: this line honours the statement.
- `[MQTT-3.3.1-4]` in tests/: this test proves it.
- docs/conformance/exceptions.yaml: number → the reason why code or test can't exist.

Each statement that binds a server needs code and a test, or an exception. Those that bind clients
alone are out of scope, and listed all the same where the broker enforces them. A tag with a number
that doesn't exist is a typing error, and an exception for what is proved is out of date: both fail.

Places are functions, not lines, so that the page changes when the coverage does and not sooner.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
ID = r"MQTT-\d+(?:\.\d+)+-\d+"
TAG = re.compile(rf"\[({ID})\]")
TAG_OR_CLAUSE = re.compile(rf"[\[\"]({ID})[\]\"]")
CHAPTERS = {
    "1": "Data representation",
    "2": "Packet format",
    "3": "Packets",
    "4": "Operational behaviour",
    "6": "WebSocket",
}


@dataclass
class Statement:
    id: str
    section: str
    concern: str
    text: str
    code: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    exception: str = ""

    @property
    def binds_us(self) -> bool:
        return self.concern != "client"

    @property
    def proved(self) -> bool:
        return bool(self.code and self.tests)

    @property
    def status(self) -> str:
        if self.proved:
            return "proved"
        if self.exception:
            return "exception"
        if not self.binds_us:
            return "the client's"
        return "**no code**" if self.tests else "**no test**" if self.code else "**missing**"


class Conformance:
    """All statements of one tree with where they are honoured, and what is wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        with (root / "docs/conformance/statements.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.statements = {
            row["id"]: Statement(row["id"], row["section"], row["concern"], row["statement"])
            for row in rows
        }
        if len(self.statements) != len(rows):
            self.problems.append("statements.csv: an id stands there twice")
        for number, places in self._collect("mqttd", TAG_OR_CLAUSE).items():
            self.statements[number].code = places
        for number, places in self._collect("tests", TAG).items():
            self.statements[number].tests = places
        self._except()
        for statement in self.statements.values():
            if statement.binds_us and not statement.proved and not statement.exception:
                self.problems.append(f"{statement.id}: {statement.status.strip('*')}")

    def _collect(self, tree: str, pattern: re.Pattern[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for path in sorted((self.root / tree).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "MQTT-" not in text:
                continue
            name = path.relative_to(self.root).as_posix()
            scopes = Scopes(text)
            for number, line in enumerate(text.splitlines(), 1):
                for match in pattern.finditer(line):
                    if match[1] not in self.statements:
                        self.problems.append(f"{name}:{number}: {match[1]} doesn't exist")
                        continue
                    place = f"{name}::{scopes.at(number)}".removesuffix("::")
                    if place not in found[match[1]]:
                        found[match[1]].append(place)
        return found

    def _except(self) -> None:
        path = self.root / "docs/conformance/exceptions.yaml"
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for number, reason in loaded.items():
            statement = self.statements.get(number)
            if statement is None:
                self.problems.append(f"{path.name}: {number} doesn't exist")
            elif not isinstance(reason, str) or not reason.strip():
                self.problems.append(f"{path.name}: {number} has no reason")
            elif statement.proved:
                self.problems.append(f"{path.name}: {number} is proved, it needs no exception")
            else:
                statement.exception = " ".join(reason.split())

    def page(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        ours = [statement for statement in self.statements.values() if statement.binds_us]
        theirs = [statement for statement in self.statements.values() if not statement.binds_us]
        proved = sum(statement.proved for statement in ours)
        excepted = sum(bool(statement.exception) for statement in ours)
        yield "# Conformance with MQTT 5.0"
        yield ""
        yield "Written by `make conformance` from the tags in code and tests; don't edit it."
        yield ""
        yield "| statements | count |"
        yield "|---|---|"
        yield f"| that bind a server | {len(ours)} |"
        yield f"| of these, honoured in code and proved by a test | {proved} |"
        yield f"| of these, with a reason why code or test can't exist | {excepted} |"
        yield f"| of these, uncovered | {len(ours) - proved - excepted} |"
        yield f"| that bind clients alone | {len(theirs)} |"
        yield ""
        yield "The numbers are those of the OASIS standard. The sentences are ours, no substitute."
        for chapter, title in CHAPTERS.items():
            rows = [s for s in ours if s.section.split(".")[0] == chapter]
            yield ""
            yield f"## {chapter}. {title}"
            yield ""
            yield "| statement | code | tests | status |"
            yield "|---|---|---|---|"
            yield from map(_row, rows)
        yield ""
        yield "## Statements that bind clients alone"
        yield ""
        yield "Out of a broker's scope. Where it enforces one, the places are named."
        yield ""
        yield "| statement | code | tests | status |"
        yield "|---|---|---|---|"
        yield from map(_row, theirs)


def _row(statement: Statement) -> str:
    code = "<br>".join(f"`{place.removeprefix('mqttd/')}`" for place in statement.code)
    tests = "<br>".join(f"`{place.removeprefix('tests/')}`" for place in statement.tests)
    status = statement.status
    if statement.exception:
        status += f": {statement.exception}"
    text = f"**{statement.id}** {statement.text}".replace("|", "\\|")
    return f"| {text} | {code} | {tests} | {status} |"


class Scopes:
    """Which function or class of a file a line belongs to; a comment above one belongs to it."""

    def __init__(self, text: str) -> None:
        self.spans: list[tuple[int, int, str]] = []
        self.lines = text.splitlines()
        self._walk(ast.parse(text), "")

    def _walk(self, node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                while first > 1 and self.lines[first - 2].lstrip().startswith("#"):
                    first -= 1
                self.spans.append((first, child.end_lineno or first, name))
                self._walk(child, name)
            else:
                self._walk(child, prefix)

    def at(self, line: int) -> str:
        inside = [(last - first, name) for first, last, name in self.spans if first <= line <= last]
        return min(inside)[1] if inside else ""


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Keep docs/conformance.md in step with the tags.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a stale page")
    args = parser.parse_args(argv)
    conformance = Conformance(root)
    page, path = conformance.page(), root / "docs/conformance.md"
    problems = conformance.problems
    if not args.check:
        path.write_text(page, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != page:
        problems.append("docs/conformance.md is stale; `make conformance` writes it")
    for problem in problems:
        print(f"conformance: {problem}", file=sys.stderr)
    total = sum(statement.binds_us for statement in conformance.statements.values())
    proved = sum(s.binds_us and s.proved for s in conformance.statements.values())
    print(f"conformance: {proved} of {total} statements proved, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
