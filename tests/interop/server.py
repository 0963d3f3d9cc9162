"""The broker under test as an operator runs it: `python -m mqttd run -c FILE`, stopped by SIGTERM.

It runs the build and the event loop of this test run, on free ports, in a directory of its own.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mqttd.net import loops
from tests.tls import Authority

PATIENCE = 60.0


class Pki:
    """An authority, the server's certificate, and those of two clients."""

    def __init__(self, directory: Path) -> None:
        self.ca = Authority(directory)
        self.server = self.ca.issue("server", "localhost")
        self.alice = self.ca.issue("alice", "alice")
        self.bob = self.ca.issue("bob", "bob")


class Server:
    """A running broker with a listener of every kind.

    `tcp`, `tls`, `mtls` (a client certificate is required, its common name is the user), `ws`,
    `wss`, `unix`.
    """

    def __init__(self, directory: Path, pki: Pki) -> None:
        self.pki = pki
        self.unix_path = str(directory / "mqttd.sock")
        self._log_file = directory / "mqttd.log"
        config = directory / "mqttd.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mqttd", "run", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=directory,
                env=os.environ | {loops.VARIABLE: loops.choose()},
            )
        self.urls: dict[str, str] = {}
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            watchdog.cancel()

    def _config(self) -> dict[str, object]:
        certificate, key = map(str, self.pki.server)
        tls = {"cert": certificate, "key": key}
        identity = {
            "client_ca": str(self.pki.ca.file),
            "client_cert": "required",
            "username_from": "cn",
        }
        any_port = "127.0.0.1:0"
        return {
            "listeners": [
                {"name": "tcp", "bind": any_port},
                {"name": "tls", "bind": any_port, "tls": tls},
                {"name": "mtls", "bind": any_port, "tls": tls | identity},
                {"name": "ws", "bind": any_port, "transport": "websocket"},
                {"name": "wss", "bind": any_port, "transport": "websocket", "tls": tls},
                {"name": "unix", "bind": f"unix:{self.unix_path}"},
            ],
            "storage": {"path": ":memory:"},
            "logging": {"level": "info", "format": "json"},
        }

    def _wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.split()
            if words[:1] == ["listening"]:
                self.urls[words[1]] = words[2]
            if words == ["ready"]:
                return
        raise AssertionError(f"mqttd didn't start: {self._log_file.read_text()}")

    def port(self, listener: str) -> int:
        port = urlsplit(self.urls[listener]).port
        assert port is not None
        return port

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far, line by line."""
        return [json.loads(line) for line in self._log_file.read_text().splitlines()]

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, when it has ended by itself."""
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def stop(self) -> None:
        """SIGTERM; fails if the broker doesn't end well, or met a bug while it ran."""
        self.terminate()
        status = self.wait()
        bad = [line for line in self.log() if line["level"] in ("error", "critical")]
        assert (status, bad) == (0, [])
