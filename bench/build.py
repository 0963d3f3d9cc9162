"""Builds what a measurement runs: compiled generator, compiled mqttd, peers from npm and PyPI.

Everything lands under `build/`, keyed by a hash of its sources, so that a second run finds it there
and a changed source is never measured by its old build. What can't be compiled runs pure, and says
so.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
KEPT = 4  # builds of each kind
GENERATOR = ("__init__.py", "lasting.py", "loadgen.py", "scenarios.py")

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


def _is_missing(target: Path) -> bool:
    if target.exists():
        os.utime(target)
        return False
    return True


@contextlib.contextmanager
def _filling(target: Path) -> Iterator[Path]:
    """An empty directory to work in; what is renamed to `target` stays, with a few older builds.

    Two runs may build the same at the same time: each works on its own, the first to finish wins.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
    builds = [path for path in target.parent.iterdir() if not path.name.startswith("work-")]
    for old in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _keep(built: Path, target: Path) -> None:
    try:
        built.rename(target)
    except OSError:
        if not target.exists():
            raise


def generator(note: Note) -> tuple[Path, bool]:
    """What to put on PYTHONPATH for the generator, and whether it is compiled."""
    sources = [ROOT / "bench" / name for name in GENERATOR]
    target = BUILD / "bench" / key_of(sources)
    if not _is_missing(target):
        return target, True
    if importlib.util.find_spec("mypyc") is None:
        note("the generator runs uncompiled (mypyc isn't installed): it will bound fast brokers")
        return ROOT, False
    note("compiling the generator")
    modules = [f"bench/{name}" for name in GENERATOR if name != "__init__.py"]
    with _filling(target) as work:
        (work / "bench").mkdir()
        for source in sources:
            shutil.copy(source, work / "bench")
        environment = {**os.environ, "MYPYC_OPT_LEVEL": "3"}
        try:
            _run([sys.executable, "-m", "mypyc", *modules], work, environment)
        except BuildError as error:
            note(f"the generator runs uncompiled: {error}")
            return ROOT, False
        shutil.rmtree(work / "build")
        _keep(work, target)
    return target, True


def mqttd(note: Note) -> Path:
    """An install of this tree, compiled as the normal install compiles it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    sources = list((ROOT / "mqttd" / "core").rglob("*.py"))
    sources += [path for path in (ROOT / "setup.py", ROOT / "pyproject.toml") if path.exists()]
    target = BUILD / "bench-mqttd" / key_of(sources)
    if not _is_missing(target):
        # What isn't compiled may have changed since: a copy is all that an install does with it.
        plugins = Path("plugins", "mqttd_plugins")
        for source, name in ((ROOT / "mqttd", "mqttd"), (ROOT / plugins, plugins.name)):
            shutil.copytree(source, target / name, ignore=ignored, dirs_exist_ok=True)
        return target
    note("installing mqttd (this compiles its core)")
    here = all(importlib.util.find_spec(name) for name in ("mypyc", "setuptools"))
    isolation = ["--no-build-isolation"] if here else []
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    with _filling(target) as work:
        # pip builds in the source tree: a copy keeps that tree, and other builds of it, untouched.
        source = work / "source"
        source.mkdir()
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, source)
        for name in ("mqttd", "plugins", "device_sim"):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=ignored)
        _run([*pip, "--no-deps", *isolation, "--target", str(work / "install"), "."], source)
        _keep(work / "install", target)
    return target


def is_compiled(package: Path) -> bool:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return any((package / "mqttd" / "core").glob(f"*{suffix}"))


def counter(note: Note) -> Path | None:
    """The library that counts syncs inside a broker (counter.c); None without a C compiler."""
    source = ROOT / "bench" / "counter.c"
    target = BUILD / "bench-counter" / key_of([source])
    if _is_missing(target):
        compiler = shutil.which(os.environ.get("CC") or "cc")
        if compiler is None:
            note("syncs and commits aren't counted: there is no C compiler")
            return None
        with _filling(target) as work:
            (work / "out").mkdir()
            output = str(work / "out" / "counter.so")
            _run([compiler, "-O2", "-shared", "-fPIC", "-o", output, str(source), "-ldl"], work)
            _keep(work / "out", target)
    return target / "counter.so"


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
