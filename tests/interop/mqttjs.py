"""MQTT.js: one Node process a test run, driven line by line (node/driver.js).

The packages of package-lock.json are installed once into build/interop-node, not into the source
tree, and again when the lock changes. Where npm can't reach its registry the tests are skipped,
unless the environment says CI: there nobody would notice.
"""

import base64
import fcntl
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.interop.kit import PATIENCE, V5, need
from tests.interop.server import Server

SOURCE = Path(__file__).parent / "node"


def install(target: Path) -> Path:
    """Install MQTT.js into `target` if it isn't there; the directory for NODE_PATH."""
    need("node")
    target.mkdir(parents=True, exist_ok=True)
    names = ("package.json", "package-lock.json")
    wanted = "".join((SOURCE / name).read_text() for name in names)
    stamp = target / ".installed"
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            command = [need("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            for name in names:
                shutil.copy(SOURCE / name, target)
            done = subprocess.run(command, cwd=target, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                text = f"npm can't install MQTT.js ({' '.join(command)} in {target}):"
                text += f"\n{done.stderr.strip()}"
                pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
            stamp.write_text(wanted)
    return target / "node_modules"


def _revive(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if value.keys() == {"base64"} else value


def _plain(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(type(value))


class Node:
    """The process; `request` and the clients' queues are thread-safe."""

    def __init__(self, modules: Path) -> None:
        self._process = subprocess.Popen(
            [need("node"), str(SOURCE / "driver.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | {"NODE_PATH": str(modules)},
        )
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Any]] = {}
        self._clients: dict[str, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def client(self) -> tuple[str, "queue.SimpleQueue[dict[str, Any]]"]:
        name = f"client-{next(self._numbers)}"
        self._clients[name] = queue.SimpleQueue()
        return name, self._clients[name]

    def request(self, op: str, client: str, **arguments: object) -> Any:
        """Let the driver do something; what it answers, RuntimeError if it failed."""
        number = next(self._numbers)
        answer: Future[Any] = Future()
        self._pending[number] = answer
        line = json.dumps({"id": number, "op": op, "client": client} | arguments, default=_plain)
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return answer.result(PATIENCE)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(PATIENCE) == 0
        finally:
            self._process.kill()
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                answer = json.loads(line, object_hook=_revive)
                if "event" in answer:
                    self._clients[answer["client"]].put(answer)
                elif "error" in answer:
                    error = RuntimeError(answer["error"])
                    self._pending.pop(answer["id"]).set_exception(error)
                else:
                    self._pending.pop(answer["id"]).set_result(answer["result"])


class MqttJs:
    """One MQTT.js client; every method waits until the broker has answered."""

    def __init__(self, node: Node, version: str = V5) -> None:
        self._node = node
        self._version = version
        self._name, self._events = node.client()

    def __enter__(self) -> "MqttJs":
        return self

    def __exit__(self, *_: object) -> None:
        self.request("drop")

    def request(self, op: str, **arguments: object) -> Any:
        return self._node.request(op, self._name, **arguments)

    def connect(self, server: Server, listener: str = "tcp", **options: object) -> dict[str, Any]:
        """The CONNACK."""
        files = {"ca": str(server.pki.ca.file)}
        return dict(
            self.request(
                "connect",
                url=server.urls[listener],
                files=files if listener in ("tls", "wss") else {},
                options={"protocolVersion": 5 if self._version == V5 else 4} | options,
            )
        )

    def subscribe(self, topics: object, **options: object) -> list[dict[str, Any]]:
        """What was granted, one object a topic filter."""
        return list(self.request("subscribe", topics=topics, options=options))

    def publish(self, topic: str, payload: bytes = b"", **options: object) -> None:
        self.request("publish", topic=topic, payload=payload, options=options)

    def event(self, kind: str = "message") -> dict[str, Any]:
        """The next event, which has to be of this kind; its packet."""
        event = self._events.get(timeout=PATIENCE)
        assert event["event"] == kind, event
        return dict(event.get("packet", {}))

    def end(self, **options: object) -> None:
        """DISCONNECT."""
        self.request("end", options=options)
        self.event("close")
