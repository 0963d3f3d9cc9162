"""The example of a plugin in a package of its own: its tests pass, and `use: hello` finds it.

Nothing is installed: what pip would leave behind of its pyproject.toml is written into a directory
of the test, and the package stands on the path.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mqttd.config import parse_yaml
from mqttd.hooks.loader import names, prepare

ROOT = Path(__file__).parents[1]
HELLO = ROOT / "docs" / "examples" / "hello-plugin"


def test_its_own_tests_pass(tmp_path: Path) -> None:
    environment = dict(os.environ)
    places = [str(HELLO), environment.get("PYTHONPATH", str(ROOT))]
    environment["PYTHONPATH"] = os.pathsep.join(places)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HELLO)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_its_entry_point_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((HELLO / "pyproject.toml").read_text())["project"]
    info = tmp_path / "mqttd_hello-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
    points = project["entry-points"]["mqttd.plugins"]
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text("[mqttd.plugins]\n" + "".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(HELLO)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mqttd_hello", raising=False)
    assert "hello" in names()
    readme = (HELLO / "README.md").read_text()
    text = readme.partition("```yaml\n")[2].partition("```")[0]
    (one,) = prepare(parse_yaml(text))
    assert (one.name, one.made_by.__name__) == ("hello", "Hello")
    assert one.config.model_dump() == {"prefix": "hello", "text": "Welcome, {client_id}."}
    del sys.modules["mqttd_hello"]
