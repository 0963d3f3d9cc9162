"""RabbitMQ as the far end of a trial, killed by SIGKILL; and one with TLS and more users.

The clients here are aiormq's, which the bridge has nothing in common with.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage

from tests.bridges.servers import RabbitMQ, Server, free_ports
from tests.bridges.trial import Far, Got, Ledger
from tests.tls import Authority

PLUGIN = "mqttd_plugins.bridge_rabbitmq:BridgeRabbitMQ"
_AGAIN_S = 0.1


class RoomyRabbitMQ(RabbitMQ):
    """It holds more messages, for long trials, before it takes no more."""

    def prepare(self) -> None:
        super().prepare()
        with open(self.place / "rabbitmq.conf", "a") as conf:
            conf.write("vm_memory_high_watermark.absolute = 1GB\n")  # the later line counts


class SecureRabbitMQ(RabbitMQ):
    """It listens with TLS, too. `thermometer` logs in by certificate, `reader` may write nothing.

    The password of `reader` is `reader`; whose certificate isn't of `authority` has no way in.
    """

    def prepare(self) -> None:
        super().prepare()
        (self.tls_port,) = free_ports(1)
        self.authority = Authority(self.place)
        certificate, key = self.authority.issue("server", "localhost")
        with open(self.place / "rabbitmq.conf", "a") as conf:
            conf.write(
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
                f"ssl_options.cacertfile = {self.authority.file}\n"
                f"ssl_options.certfile = {certificate}\n"
                f"ssl_options.keyfile = {key}\n"
                "ssl_options.verify = verify_peer\n"
                "ssl_options.fail_if_no_peer_cert = false\n"
                "ssl_cert_login_from = common_name\n"
                "auth_mechanisms.1 = PLAIN\n"
                "auth_mechanisms.2 = EXTERNAL\n"
                f"load_definitions = {self.place}/definitions.json\n"
            )
        (self.place / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
        rights = {"guest": ".*", "thermometer": ".*", "reader": "^$"}
        definitions = {
            "vhosts": [{"name": "/"}],
            "users": [{"name": n, "password_hash": _hashed(n), "tags": ""} for n in rights],
            "permissions": [
                {"user": name, "vhost": "/", "configure": ".*", "write": write, "read": ".*"}
                for name, write in rights.items()
            ],
        }
        (self.place / "definitions.json").write_text(json.dumps(definitions))

    def control(self, *what: str) -> None:
        """`rabbitmqctl` and what follows it."""
        node = self.environment()["RABBITMQ_NODENAME"]
        command = [str(self._BIN.with_name("rabbitmqctl")), "-q", "-n", node, *what]
        subprocess.run(command, env=self.environment(), check=True, stdout=subprocess.DEVNULL)


def _hashed(password: str) -> str:
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


@contextlib.asynccontextmanager
async def channel_to(server: Server, confirms: bool = True) -> AsyncIterator[AbstractChannel]:
    """A channel of a connection of its own."""
    connection = await aiormq.connect(f"amqp://guest:guest@{server.host}:{server.port}/")
    try:
        yield await connection.channel(publisher_confirms=confirms)
    finally:
        with contextlib.suppress(Exception):
            await connection.close()


class FarRabbitMQ(Far):
    NAME = "rabbitmq"

    def __init__(self, directory: Path, server: Server | None = None) -> None:
        super().__init__(directory)
        place = directory / "rabbitmq"
        place.mkdir()
        self._server = server or RoomyRabbitMQ(place)
        logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # it tells of every end at length
        self._begun = server is not None

    def plugin(self) -> dict[str, Any]:
        config = {
            "addresses": [f"{self._server.host}:{self._server.port}"],
            "retry_first": "50ms",
            "retry_most": "300ms",
            "tries": 1000,
            "rules": [
                {"direction": "out", "from": "out/#"},
                {"direction": "in", "from": "trial-in", "to": "{topic}"},
            ],
        }
        return {"use": PLUGIN, "name": "up", "config": config}

    async def start(self) -> None:
        if not self._begun:
            await asyncio.to_thread(self._server.start)
        self._begun = False
        async with channel_to(self._server) as channel:
            for queue, key, kind in (
                ("trial-out", "out.#", "quorum"),
                ("trial-in", "in.#", "classic"),
            ):
                # Without the last one a new consumer may be ahead of what an old one has to return.
                await channel.queue_declare(
                    queue,
                    durable=True,
                    arguments={"x-queue-type": kind, "x-single-active-consumer": True},
                )
                await channel.queue_bind(queue, "amq.topic", key)

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def send(self, ledger: Ledger) -> None:
        while any(ledger.todo.values()):
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, RuntimeError):
                async with channel_to(self._server) as channel:
                    await asyncio.gather(*(self._send(channel, ledger, key) for key in ledger.todo))
            await asyncio.sleep(_AGAIN_S)

    async def _send(self, channel: AbstractChannel, ledger: Ledger, key: str) -> None:
        numbers = ledger.todo[key]
        while numbers:
            number = numbers[0]
            ledger.sent[number] += 1
            properties = aiormq.spec.Basic.Properties(
                delivery_mode=2, message_id=f"{number}-{ledger.sent[number]}"
            )
            await channel.basic_publish(
                ledger.text(key, number).encode(),
                exchange="amq.topic",
                routing_key=f"in.{key}",
                properties=properties,
                mandatory=True,
            )
            ledger.acknowledged.add(numbers.pop(0))

    async def receive(self, got: Got) -> None:
        async def arrived(delivered: DeliveredMessage) -> None:
            assert delivered.delivery_tag is not None
            headers = delivered.header.properties.headers or {}
            got(delivered.body.decode(), str(headers.get("mqttd-id", "")))
            await delivered.channel.basic_ack(delivered.delivery_tag)

        while True:
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, RuntimeError):
                async with channel_to(self._server, confirms=False) as channel:
                    await channel.basic_qos(prefetch_count=100)
                    await channel.basic_consume("trial-out", arrived)
                    await asyncio.wait([channel.closing])
            await asyncio.sleep(_AGAIN_S)
