"""Builds what a measurement runs: compiled generator, compiled mqttd, peers from npm and PyPI.

Everything lands under `build/`, keyed by a hash of its sources, so that a second run finds it there
and a changed source is never measured by its old build. What can't be compiled runs pure, and says
so.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
GENERATOR = ("__init__.py", "loadgen.py", "scenarios.py")

Note = Callable[[str], None]


class BuildError(Exception):
    """A part could not be built; the text says how to get it."""


def key_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise BuildError(f"{' '.join(command[:4])} … failed:\n{last}")


def _fresh(parent: Path, key: str) -> tuple[Path, bool]:
    """The directory for this key and whether it has to be filled; older builds are removed."""
    target = parent / key
    if target.exists():
        return target, False
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir(parents=True)
    return target, True


def generator(note: Note) -> tuple[Path, bool]:
    """What to put on PYTHONPATH for the generator, and whether it is compiled."""
    sources = [ROOT / "bench" / name for name in GENERATOR]
    target, missing = _fresh(BUILD / "bench", key_of(sources))
    if not missing:
        return target, True
    if importlib.util.find_spec("mypyc") is None:
        note("the generator runs uncompiled (mypyc isn't installed): it will bound fast brokers")
        return ROOT, False
    note("compiling the generator")
    work = target.with_name("work")
    (work / "bench").mkdir(parents=True)
    for source in sources:
        shutil.copy(source, work / "bench")
    modules = [f"bench/{name}" for name in GENERATOR if name != "__init__.py"]
    try:
        _run(
            [sys.executable, "-m", "mypyc", *modules],
            work,
            {**os.environ, "MYPYC_OPT_LEVEL": "3"},
        )
    except BuildError as error:
        note(f"the generator runs uncompiled: {error}")
        return ROOT, False
    shutil.rmtree(work / "build")
    work.rename(target)
    return target, True


def mqttd(note: Note) -> Path:
    """An install of this tree, compiled as the normal install compiles it."""
    sources = list((ROOT / "mqttd").rglob("*.py"))
    sources += [path for path in (ROOT / "setup.py", ROOT / "pyproject.toml") if path.exists()]
    target, missing = _fresh(BUILD / "bench-mqttd", key_of(sources))
    if not missing:
        return target
    note("installing mqttd (this compiles its core)")
    # pip builds in the source tree: a copy keeps that tree, and other builds of it, untouched.
    work = target.with_name("src")
    work.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, work)
    for name in ("mqttd", "plugins", "device_sim"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, work / name, ignore=ignored)
    here = all(importlib.util.find_spec(name) for name in ("mypyc", "setuptools"))
    isolation = ["--no-build-isolation"] if here else []
    staging = target.with_name("staging")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", *isolation, "--target", str(staging), "."], work)
    shutil.rmtree(work)
    staging.rename(target)
    return target


def is_compiled(package: Path) -> bool:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return any((package / "mqttd" / "core").glob(f"*{suffix}"))


def aedes(note: Note) -> Path:
    """The directory with aedes in its node_modules."""
    target = BUILD / "bench-node"
    if not (target / "node_modules" / "aedes").is_dir():
        if shutil.which("npm") is None:
            raise BuildError("npm is missing (Debian: apt-get install npm)")
        note("installing aedes from npm")
        target.mkdir(parents=True, exist_ok=True)
        (target / "package.json").write_text('{"private": true}\n')
        _run(["npm", "install", "--no-audit", "--no-fund", "aedes"], target)
    # Node looks for packages beside the script.
    shutil.copy(ROOT / "bench" / "aedes.mjs", target)
    return target


def amqtt(note: Note) -> str:
    """A Python that has amqtt: this one, or one in a virtual environment of its own."""
    if importlib.util.find_spec("amqtt") is not None:
        return sys.executable
    target = BUILD / "bench-amqtt"
    python = target / "bin" / "python"
    if not (target / "ready").exists():
        note("installing amqtt from PyPI")
        _run([sys.executable, "-m", "venv", "--clear", str(target)], ROOT)
        _run([str(python), "-m", "pip", "install", "-q", "amqtt"], ROOT)
        (target / "ready").touch()
    return str(python)
