"""The brokers that are compared: how each is started on a loopback port, and ended by its pid.

A peer gets its own temporary directory, a free port and the broker's CPU core, and the
configuration its users would choose for speed without giving up a promise: anonymous, in memory,
logging nothing per message. A broker that runs already is named by host, port and pid.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import build

KNOWN = ("mosquitto", "amqtt", "aedes", "mqttd")


class PeerError(Exception):
    """A peer can't be had or doesn't start."""


@dataclass
class Peer:
    name: str
    version: str
    host: str = "127.0.0.1"
    port: int = 0
    pid: int = 0
    command: list[str] = field(default_factory=list)
    # File name → text, written before the start; `{port}` is filled in, here and in the command.
    files: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    pid: int


def mosquitto() -> Peer:
    binary = shutil.which("mosquitto") or shutil.which(
        "mosquitto", path="/usr/sbin:/usr/local/sbin"
    )
    if binary is None:
        raise PeerError("mosquitto is missing (Debian: apt-get install mosquitto)")
    text = subprocess.run([binary, "-h"], capture_output=True, text=True).stdout
    return Peer(
        "mosquitto",
        text.split()[2] if text else "?",
        command=[binary, "-c", "mosquitto.conf"],
        files={
            "mosquitto.conf": "listener {port} 127.0.0.1\nallow_anonymous true\n"
            "persistence false\nlog_dest none\n"
        },
    )


def amqtt(note: build.Note) -> Peer:
    python = build.amqtt(note)
    version = subprocess.run(
        [python, "-c", "import amqtt; print(amqtt.__version__)"], capture_output=True, text=True
    ).stdout.strip()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    # JSON is YAML.
    return Peer(
        "amqtt",
        version,
        command=[python, "-m", "amqtt.scripts.broker_script", "-c", "amqtt.yaml"],
        files={"amqtt.yaml": json.dumps(config)},
    )


def aedes(note: build.Note) -> Peer:
    node = shutil.which("node")
    if node is None:
        raise PeerError("node is missing (Debian: apt-get install nodejs npm)")
    directory = build.aedes(note)
    manifest = json.loads((directory / "node_modules" / "aedes" / "package.json").read_text())
    return Peer(
        "aedes", manifest["version"], command=[node, "aedes.mjs", "{port}"], cwd=str(directory)
    )


def mqttd(note: build.Note, package: Path | None = None) -> Peer:
    """This tree's mqttd, or the one that is installed in `package`."""
    if package is None:
        package = build.mqttd(note)
    kind = "compiled" if build.is_compiled(package) else "pure"
    env = {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", "import mqttd; print(mqttd.__version__)"],
        env={**os.environ, **env},
        cwd="/",
        capture_output=True,
        text=True,
    )
    return Peer(
        "mqttd",
        f"{done.stdout.strip() or '?'} {kind}",
        command=[sys.executable, "-m", "mqttd", "run", "-c", "mqttd.yaml"],
        files={
            "mqttd.yaml": 'listeners:\n  - {name: bench, bind: "127.0.0.1:{port}"}\n'
            'storage: {path: ":memory:"}\nlogging: {level: warning}\n'
        },
        env=env,
    )


def find(name: str, note: build.Note) -> Peer:
    """A known peer by name, or NAME=HOST:PORT:PID for one that runs already."""
    if "=" in name:
        label, _, place = name.partition("=")
        try:
            host, port, pid = place.rsplit(":", 2)
            return Peer(label, "external", host=host, port=int(port), pid=int(pid))
        except ValueError:
            raise PeerError(f"{name!r} is not NAME=HOST:PORT:PID") from None
    if name == "mosquitto":
        return mosquitto()
    if name == "amqtt":
        return amqtt(note)
    if name == "aedes":
        return aedes(note)
    if name == "mqttd":
        return mqttd(note)
    raise PeerError(f"no peer is called {name!r}; known: {', '.join(KNOWN)}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_open(
    process: subprocess.Popen[bytes], port: int, log: Path, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    tail = log.read_text(errors="replace").strip().splitlines()[-8:]
    raise PeerError("did not start: " + ("\n".join(tail) or "no output"))


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextlib.contextmanager
def running(peer: Peer, cpus: set[int]) -> Iterator[Address]:
    """The peer started on `cpus` for as long as the block lasts."""
    if not peer.command:
        yield Address(peer.host, peer.port, peer.pid)
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mqttd-bench-") as directory:
        # Mosquitto started by root reads its file as another user.
        os.chmod(directory, 0o755)
        for name, text in peer.files.items():
            Path(directory, name).write_text(text.replace("{port}", str(port)))
        log = Path(directory, "peer.log")
        command = [part.replace("{port}", str(port)) for part in peer.command]
        # A child inherits the mask: every thread it will ever start stays on its core.
        before = os.sched_getaffinity(0)
        with log.open("wb") as output:
            os.sched_setaffinity(0, cpus)
            try:
                process = subprocess.Popen(
                    command,
                    cwd=peer.cwd or directory,
                    env={**os.environ, **peer.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            finally:
                os.sched_setaffinity(0, before)
        try:
            _wait_until_open(process, port, log, 20)
            yield Address("127.0.0.1", port, process.pid)
        finally:
            stop(process)
