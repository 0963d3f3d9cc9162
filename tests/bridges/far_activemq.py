"""ActiveMQ as the far end of a trial, killed by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mqttd_plugins._stomp import Frame, StompConnection, StompError

from tests.bridges.servers import ActiveMQ, Server
from tests.bridges.trial import Far, Got, Ledger

PLUGIN = "mqttd_plugins.bridge_activemq:BridgeActiveMQ"
_AGAIN_S = 0.1


@contextlib.asynccontextmanager
async def connection_to(
    server: Server, arrived: Callable[[Frame], None] = lambda frame: None
) -> AsyncIterator[StompConnection]:
    """A connection as admin."""
    made = await StompConnection.open(server.host, server.port, arrived, largest=1 << 24)
    try:
        login = [("host", "localhost"), ("login", "admin"), ("passcode", "admin")]
        await made.connect(login, 10.0)
        yield made
    finally:
        made.close()


class FarActiveMQ(Far):
    NAME = "activemq"

    def __init__(self, directory: Path, server: Server | None = None) -> None:
        super().__init__(directory)
        place = directory / "activemq"
        place.mkdir()
        self._server = server or ActiveMQ(place)
        self._begun = server is not None
        self._password = directory / "password"
        self._password.write_text("guest\n")

    def plugin(self) -> dict[str, Any]:
        config = {
            "addresses": [f"{self._server.host}:{self._server.port}"],
            "username": "guest",
            "password_file": str(self._password),
            "retry_first": "50ms",
            "retry_most": "300ms",
            "tries": 1000,
            "rules": [
                {"direction": "out", "from": "out/#", "to": "/queue/t.trial.out"},
                {"direction": "in", "from": "/queue/t.trial.in", "to": "in/{key}"},
            ],
        }
        return {"use": PLUGIN, "name": "up", "config": config}

    async def start(self) -> None:
        if not self._begun:
            await asyncio.to_thread(self._server.start)
        self._begun = False

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def send(self, ledger: Ledger) -> None:
        while any(ledger.todo.values()):
            with contextlib.suppress(StompError, OSError):
                async with connection_to(self._server) as connection:
                    await asyncio.gather(
                        *(self._send(connection, ledger, key) for key in ledger.todo)
                    )
            await asyncio.sleep(_AGAIN_S)

    async def _send(self, connection: StompConnection, ledger: Ledger, key: str) -> None:
        numbers = ledger.todo[key]
        while numbers:
            ledger.sent[numbers[0]] += 1
            headers = [
                ("destination", "/queue/t.trial.in"),
                ("persistent", "true"),
                ("mqttd-key", key),
            ]
            await connection.ask("SEND", headers, ledger.text(key, numbers[0]).encode())
            ledger.acknowledged.add(numbers.pop(0))

    async def receive(self, got: Got) -> None:
        while True:
            with contextlib.suppress(StompError, OSError):
                await self._receive(got)
            await asyncio.sleep(_AGAIN_S)

    async def _receive(self, got: Got) -> None:
        def arrived(frame: Frame) -> None:
            got(frame.body.decode(), frame.headers.get("mqttd-id", ""))
            connection.send("ACK", [("id", frame.headers["ack"])])

        async with connection_to(self._server, arrived) as connection:
            headers = [("id", "0"), ("destination", "/queue/t.trial.out")]
            await connection.ask("SUBSCRIBE", [*headers, ("ack", "client-individual")])
            await asyncio.wait([connection.lost])
