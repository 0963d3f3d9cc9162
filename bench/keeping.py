"""Brokers that keep something: how each is configured for it, started, killed and started again.

Owns: the variants that `bench.durable` and `bench.loss` compare, on top of `bench.peers`; one
broker process with its directory, which stays the same across restarts; what can be read of it from
outside (memory, rows in mqttd's file, syncs where `counter` is given).

Variants: `mqttd-full`, `mqttd-os`, `mqttd-none` (the levels of durability, on a file) and
`mqttd-memory`, all without a limit on queues; `mosquitto` writes its file every half an hour as it
comes, `mosquitto-1s` every second, `mosquitto-each` on each change; `amqtt` as it comes.
NAME@DIR is a variant of mqttd with the package in DIR, an install of another version.
"""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench import build, peers
from bench.loadgen import COUNTS, Meter, connect_packet

MQTTD = ("full", "os", "none", "memory")
MOSQUITTO = {
    "mosquitto": "",
    "mosquitto-1s": "autosave_interval 1\n",
    "mosquitto-each": "autosave_interval 1\nautosave_on_changes true\n",
}
KNOWN = (*(f"mqttd-{level}" for level in MQTTD), *MOSQUITTO, "amqtt")
DATABASE = "mqttd.db"


def find(name: str, package: Path | None, note: build.Note) -> peers.Peer:
    """A variant by its name; `package` is where mqttd is, unless it is to be built here."""
    variant, _, place = name.partition("@")
    if variant in MOSQUITTO:
        return _mosquitto(variant)
    if variant == "amqtt":
        return peers.amqtt(note)
    level = variant.removeprefix("mqttd-")
    if not variant.startswith("mqttd-") or level not in MQTTD:
        raise peers.PeerError(f"no variant is called {name!r}; known: {', '.join(KNOWN)}")
    peer = peers.mqttd(note, Path(place).resolve() if place else package)
    storage = f"path: {DATABASE}, durability: {level}" if level != "memory" else 'path: ":memory:"'
    text = (
        'listeners:\n  - {name: bench, bind: "127.0.0.1:{port}"}\n'
        f"storage: {{{storage}}}\nlimits: {{max_queued_messages: 0}}\nlogging: {{level: warning}}\n"
    )
    return replace(peer, name=name, files={"mqttd.yaml": text})


def _mosquitto(variant: str) -> peers.Peer:
    peer = peers.mosquitto()
    text = (
        "listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n"
        "persistence true\npersistence_location ./\nmax_queued_messages 0\n" + MOSQUITTO[variant]
    )
    if os.getuid() == 0:
        text += "user root\n"  # or it couldn't write here
    return replace(peer, name=variant, files={"mosquitto.conf": text})


class Broker:
    """One broker in a directory of its own, as often as it is started."""

    def __init__(
        self, peer: peers.Peer, directory: Path, cpus: set[int], counter: Path | None = None
    ) -> None:
        self.peer = peer
        self.directory = directory
        self.port = peers.free_port()
        self.counts = ""  # the file with the numbers of counter.c
        self._log = directory / "peer.log"
        self._cpus = cpus
        self._env = {**os.environ, **peer.env}
        self._process: subprocess.Popen[bytes] | None = None
        if counter is not None:
            self.counts = str(directory / "counts")
            Path(self.counts).write_bytes(bytes(8 * COUNTS))
            self._env.update(LD_PRELOAD=str(counter), BENCH_COUNTER=self.counts)
        for name, text in peer.files.items():
            (directory / name).write_text(text.replace("{port}", str(self.port)))

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def launch(self) -> None:
        command = [part.replace("{port}", str(self.port)) for part in self.peer.command]
        # A child inherits the mask: every thread it will ever start stays on these cores.
        before = os.sched_getaffinity(0)
        with self._log.open("ab") as output:
            os.sched_setaffinity(0, self._cpus)
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=self.peer.cwd or self.directory,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            finally:
                os.sched_setaffinity(0, before)

    def is_open(self) -> bool:
        """Whether it accepts connections by now; PeerError when it has ended instead."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise peers.PeerError(f"did not start, or ended: {self.tail()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def start(self, timeout: float = 60.0) -> float:
        """Seconds from the command to the first CONNACK: a socket that listens isn't an answer."""
        began = time.monotonic()
        self.launch()
        while not self.is_open():
            if time.monotonic() - began > timeout:
                raise peers.PeerError(f"not up after {timeout:.0f} s: {self.tail()}")
            time.sleep(0.005)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout) as probe:
                probe.sendall(connect_packet("probe", 4))
                if probe.recv(4, socket.MSG_WAITALL) != b"\x20\x02\x00\x00":
                    raise peers.PeerError("refuses a connection")
                probe.sendall(b"\xe0\x00")
        except OSError as error:
            raise peers.PeerError(f"takes connections but doesn't answer: {error}") from None
        return time.monotonic() - began

    def tail(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()[-8:]
        return "\n".join(lines) or "no output"

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, timeout: float = 60.0) -> float:
        """SIGTERM; seconds until it had ended."""
        began = time.monotonic()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise peers.PeerError(f"did not stop within {timeout:.0f} s") from None
            self._process = None
        return time.monotonic() - began

    def cpu_ns(self) -> int:
        """CPU time since its start."""
        return Meter(self.pid).cpu_ns()

    def rss(self) -> int:
        return self._status("VmRSS:")

    def peak(self) -> int:
        """The most it had since `reset_peak`."""
        return self._status("VmHWM:")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        return 0

    def stored(self) -> int | None:
        """Deliveries in mqttd's file; None where there is no such file."""
        file = self.directory / DATABASE
        if not file.exists():
            return None
        with contextlib.closing(sqlite3.connect(file)) as db:
            count: int = db.execute("SELECT count(*) FROM deliveries").fetchone()[0]
        return count


@contextlib.contextmanager
def broker(
    peer: peers.Peer, cpus: set[int], counter: Path | None = None, where: str | None = None
) -> Iterator[Broker]:
    """A broker that wasn't started yet; afterwards no process and no file of it is left."""
    with tempfile.TemporaryDirectory(prefix="mqttd-bench-", dir=where) as directory:
        made = Broker(peer, Path(directory), cpus, counter)
        try:
            yield made
        finally:
            made.kill()
