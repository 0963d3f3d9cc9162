"""The shim from Python's side: how it is built, the environment it wants, and its faults.

Owns: the compilation of `shim.c`, the names of its environment variables, the layout of the page
that faults are set in.

    shim = Shim(directory, root)          # root: the directory that is watched
    subprocess.run([...], env={**os.environ, **shim.environment})
    shim.faults.set("enospc")             # at any time, until
    shim.faults.clear()
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("shim.c")


def missing() -> str:
    """Why the shim can't be built here, and what helps; empty where it can."""
    if not sys.platform.startswith("linux") or struct.calcsize("P") != 8:
        return f"the recorder is for 64-bit Linux, this is {platform.platform()}"
    if shutil.which("cc") is None:
        return "the recorder needs a C compiler: apt-get install gcc libc6-dev"
    return ""


def build(directory: Path) -> Path:
    """Compile it into `directory`."""
    library = directory / "shim.so"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
    return library


class Faults:
    """What goes wrong on the disk. Takes effect at once, in every process under the shim.

    enospc       while set, nothing can be written, extended or created
    eio_write    while set, no write succeeds
    eio_fsync    so many syncs fail from now on; counts down to 0
    fsync_delay  milliseconds before each sync
    """

    NAMES: Final = ("enospc", "eio_write", "eio_fsync", "fsync_delay")

    def __init__(self, file: Path) -> None:
        self.file = file
        self.clear()

    def set(self, name: str, value: int = 1) -> None:
        with self.file.open("r+b") as page:
            page.seek(4 * self.NAMES.index(name))
            page.write(struct.pack("=I", value))

    def get(self, name: str) -> int:
        with self.file.open("rb") as page:
            values = struct.unpack("=4I", page.read(16))
        return int(values[self.NAMES.index(name)])

    def clear(self) -> None:
        # Not truncated first: a process that has it mapped would be killed.
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, bytes(4 * len(self.NAMES)), 0)
        finally:
            os.close(descriptor)


class Shim:
    """The shim for one watched directory; its own files are in another one."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.log = directory / "power.log"
        self.log.touch()
        self.faults = Faults(directory / "faults")
        self.environment: Final = {
            "LD_PRELOAD": str(build(directory)),
            "MQTTD_POWER_ROOT": str(root),
            "MQTTD_POWER_LOG": str(self.log),
            "MQTTD_POWER_FAULTS": str(self.faults.file),
        }
