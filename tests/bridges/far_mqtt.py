"""Other MQTT brokers as the far end of a trial: an mqttd that is killed, a mosquitto that ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bridges.mqtt_kit import BRIDGE, Mosquitto
from tests.bridges.trial import Far, Got, Ledger, Node, publish_all, subscribe_all
from tests.net.kit import reserved_port


def _plugin(port: int, version: Any) -> dict[str, Any]:
    out = {"direction": "out", "from": "out/#", "to": "far/{topic[1:]}"}
    if version != 5:
        out["payload"] = "envelope"  # it has no other place for the id
    config = {
        "addresses": [f"127.0.0.1:{port}"],
        "version": version,
        "retry_first": "50ms",
        "retry_most": "300ms",
        "tries": 1000,
        "rules": [out, {"direction": "in", "from": "back/#", "to": "in/{topic[1:]}"}],
    }
    return {"use": BRIDGE, "name": "up", "config": config}


class FarMqttd(Far):
    """Another mqttd, killed by SIGKILL."""

    NAME = "mqtt"

    def __init__(self, directory: Path, version: Any = 5) -> None:
        super().__init__(directory)
        self._version = version
        self._reserved = reserved_port()
        self._port = self._reserved.__enter__()
        self._node = Node(directory / "far", self._port)

    def plugin(self) -> dict[str, Any]:
        return _plugin(self._port, self._version)

    async def start(self) -> None:
        await self._node.start()

    async def kill(self) -> None:
        await self._node.kill()

    async def send(self, ledger: Ledger) -> None:
        await publish_all(self._node, "back", ledger)

    async def receive(self, got: Got) -> None:
        await subscribe_all(self._node, "far/#", "far-reader", got)


class FarMosquitto(Far):
    """Debian's mosquitto, ended by SIGTERM: what it acknowledged is on disk only then."""

    NAME = "mosquitto"

    def __init__(self, directory: Path, version: Any = "3.1.1") -> None:
        super().__init__(directory)
        self._version = version
        self._server = Mosquitto(directory)

    def plugin(self) -> dict[str, Any]:
        return _plugin(self._server.port, self._version)

    async def start(self) -> None:
        await self._server.start()

    async def kill(self) -> None:
        await self._server.stop()

    async def send(self, ledger: Ledger) -> None:
        await publish_all(self._server, "back", ledger)

    async def receive(self, got: Got) -> None:
        await subscribe_all(self._server, "far/#", "far-reader", got)
