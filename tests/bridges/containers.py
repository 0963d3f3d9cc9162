"""Servers in containers, for a machine that has Docker and not the server itself.

Owns: whether that can be had at all, and the life of one container. Its port on loopback is chosen
before it starts, since some servers have to be told at which address they are found.

Must not know: which servers there are, when a container is the last resort (`servers` does).

`testcontainers` is imported when a container is started and not before: a machine that has the
servers needs neither it nor Docker. A container isn't killed by a test: it keeps nothing.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

_LOOK_S = 20.0


class Image(NamedTuple):
    """What to run. In the values of `environment` `{port}` is the port on this machine."""

    name: str
    port: int
    environment: Mapping[str, str] = {}


@functools.cache
def docker_runs() -> bool:
    """Whether there is a Docker that answers."""
    if not shutil.which("docker"):
        return False
    try:
        told = subprocess.run(["docker", "info"], capture_output=True, timeout=_LOOK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.returncode == 0


def missing() -> str:
    """What keeps a container from being had; "" if nothing does."""
    if not docker_runs():
        return "no Docker runs"
    if find_spec("testcontainers") is None:
        return "Docker runs, but not without: pip install testcontainers"
    return ""


class Container:
    """One container, which listens on a port of loopback."""

    def __init__(self, image: Image, port: int) -> None:
        self._image = image
        self._port = port
        self._running: Any = None

    def start(self) -> None:
        """Start it; it may take a while until it serves."""
        library = import_module("testcontainers.core.container")
        made = library.DockerContainer(self._image.name)
        # As Docker's own library takes it: `with_bind_ports` would listen on all addresses.
        made.ports[f"{self._image.port}/tcp"] = ("127.0.0.1", self._port)
        for name, value in self._image.environment.items():
            made = made.with_env(name, value.format(port=self._port))
        self._running = made.start()

    def stop(self) -> None:
        """End it, if it runs."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()
