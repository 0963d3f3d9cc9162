"""The part of the build that pyproject.toml can't say: mqttd/core becomes one native library.

mypyc compiles every module of mqttd/core, and what device_sim does for each message, as one group,
so that calls between them are C calls.
Where that is not possible (no C compiler, no Python headers, no CPython) the same source is
installed as it is, with a note. Both builds pass the same tests; `mqttd --version` says which one
runs.

    MQTTD_PURE=1      don't compile
    MQTTD_COMPILED=1  fail instead of falling back

The result is all or nothing: a build that fails half-way leaves no native module behind, because
a native module without its group can't be imported. Editable installs stay pure: nothing is ever
built into the source tree.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CORE = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "mqttd" / "core").glob("*.py")
    if path.name != "__init__.py"
)
SIMULATOR = [
    *(f"device_sim/engine/{name}.py" for name in ("client", "feed", "publisher", "schedule")),
    *(
        f"device_sim/judge/{name}.py"
        for name in ("histogram", "ledger", "oracles", "payload", "ranges", "tracks", "verdict")
    ),
]
MUST_COMPILE = os.environ.get("MQTTD_COMPILED") == "1"


def note(text: str) -> None:
    line = "-" * 78
    print(f"{line}\nmqttd: {text}\n{line}", file=sys.stderr, flush=True)


def fall_back(reason: str) -> None:
    if MUST_COMPILE:
        raise SystemExit(f"mqttd: MQTTD_COMPILED=1, but {reason}")
    note(f"installing the core as pure Python, several times slower: {reason}")


def why_not() -> str:
    """What stands in the way of a compiler, as far as it can be told without running one."""
    if platform.python_implementation() != "CPython":
        return "mypyc compiles for CPython only"
    if sys.platform == "win32":
        return ""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(shlex.split(command)[0]) is None:
        return f"there is no C compiler ({command}); on Debian: apt-get install gcc"
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        return f"there is no Python.h in {include}; on Debian: apt-get install python3-dev"
    return ""


def native_core() -> list[Extension]:
    """The extensions to build; none for a pure build, or when no file is built at all."""
    commands = set(sys.argv[1:])
    if commands & {"egg_info", "dist_info", "sdist", "clean"}:
        return []
    if os.environ.get("MQTTD_PURE") == "1":
        note("installing the core as pure Python, as MQTTD_PURE=1 asks")
        return []
    if commands & {"editable_wheel", "develop", "--inplace"}:
        note("an editable install runs the source tree, as pure Python")
        return []
    reason = why_not()
    if reason:
        fall_back(reason)
        return []
    # Neither the user's mypy settings nor what the rest of the package imports (through the
    # annotations of mqttd/__init__.py) may decide whether the core builds.
    arguments = [
        "--config-file=",
        "--python-version=3.11",
        "--follow-imports=silent",
        *CORE,
        *SIMULATOR,
    ]
    try:
        from mypyc.build import mypycify

        extensions = mypycify(arguments, opt_level="3", debug_level="0", group_name="mqttd_core")
    except (Exception, SystemExit) as error:
        fall_back(f"mypyc refused the core ({type(error).__name__}: {error})")
        return []
    for extension in extensions:
        # A warning that next year's compiler invents is no reason to run pure.
        extension.extra_compile_args = [
            argument for argument in extension.extra_compile_args if argument != "-Werror"
        ]
    return extensions


class AllOrNothing(build_ext):
    """Build the whole group, or remove what was built of it."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
            fall_back(f"the C compiler failed ({str(error)[:160]})")

    def get_outputs(self) -> list[str]:
        return super().get_outputs() if self.extensions else []


setup(ext_modules=native_core(), cmdclass={"build_ext": AllOrNothing})
