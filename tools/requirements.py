"""Prints what pyproject.toml asks for, one requirement a line, without the project itself.

`python tools/requirements.py build run test dev` feeds `pip install -r`, so that the Makefile can
fill a virtual environment before (and without) building mqttd, and no list is kept twice.

Words: `build` is build-system.requires, `run` is project.dependencies, any other is an extra. An
extra that names another extra of this project is followed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(document: dict[str, Any], word: str) -> Iterator[str]:
    project = document["project"]
    if word == "build":
        yield from document["build-system"]["requires"]
    elif word == "run":
        yield from project["dependencies"]
    else:
        for requirement in project["optional-dependencies"][word]:
            inner = re.fullmatch(rf"{project['name']}\[(\w+)\]", requirement)
            if inner:
                yield from requirements(document, inner[1])
            else:
                yield requirement


def main(words: list[str]) -> int:
    document = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    for word in words:
        for requirement in requirements(document, word):
            print(requirement)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
