"""What pip will see: metadata, entry points, the files that a wheel is made of."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mqttd
from mqttd.hooks import loader
from mqttd.operate import plugins as plugin_commands
from tools import requirements


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_entry_points_exist(project: dict[str, Any]) -> None:
    groups = project["project"]["entry-points"]
    for group in (project["project"]["scripts"], *groups.values()):
        for target in group.values():
            module, _, name = target.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_a_source_tree_finds_what_an_installation_does(project: dict[str, Any]) -> None:
    groups = project["project"]["entry-points"]
    assert sorted(loader._own_names()) == sorted(groups["mqttd.plugins"])
    for name, target in groups["mqttd.plugins"].items():
        module, _, attribute = target.partition(":")
        assert loader.find(name) is getattr(importlib.import_module(module), attribute)
    assert {name: f"{module}:main" for name, module in plugin_commands.OWN.items()} == groups[
        "mqttd.commands"
    ]


def test_the_version_stands_in_one_place(project: dict[str, Any]) -> None:
    assert project["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", mqttd.__version__)


def test_the_build_is_the_one_asked_for(build: str) -> None:
    assert mqttd.COMPILED is (build == "compiled")


def test_requirements(project: dict[str, Any]) -> None:
    run = list(requirements.requirements(project, "run"))
    assert run == project["project"]["dependencies"]
    test = list(requirements.requirements(project, "test"))
    assert any(line.startswith("rich") for line in test), "the extra that test names is followed"
    assert not any(line.startswith("mqttd") for line in test)
    build = list(requirements.requirements(project, "build"))
    assert build == project["build-system"]["requires"]


def test_requirements_as_a_command(root: Path) -> None:
    command = [sys.executable, str(root / "tools" / "requirements.py"), "run", "dev"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "pyyaml" in done.stdout
    assert "ruff" in done.stdout


def test_every_dependency_has_a_lower_bound(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"].values()
    lists = [project["project"]["dependencies"], project["build-system"]["requires"], *extras]
    for line in (line for lines in lists for line in lines):
        assert ">=" in line or line.startswith("mqttd["), line


def test_every_package_is_in_the_wheel(root: Path, project: dict[str, Any]) -> None:
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    names = ("mqttd", "device_sim", "mqttd_plugins")
    assert included == [pattern for name in names for pattern in (name, f"{name}.*")]
    for name in ("mqttd", "device_sim", "plugins/mqttd_plugins"):
        for path in (root / name).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path
