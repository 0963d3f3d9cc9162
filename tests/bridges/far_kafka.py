"""Kafka as the far end of a trial, killed by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.bridges.servers import Kafka, Server
from tests.bridges.trial import Far, Got, Ledger

PLUGIN = "mqttd_plugins.bridge_kafka:BridgeKafka"
PARTITIONS = 3
_AGAIN_S = 0.2
_SHORT_MS = 5000
# It is killed on purpose, and each client would tell of that again and again.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


async def make_topics(server: Server, *names: str, **settings: str) -> None:
    """Topics that weren't there."""
    admin = AIOKafkaAdminClient(bootstrap_servers=f"{server.host}:{server.port}")
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(name, PARTITIONS, 1, topic_configs=settings) for name in names]
        )
    finally:
        await admin.close()


class FarKafka(Far):
    NAME = "kafka"
    _numbers = itertools.count(1)

    def __init__(self, directory: Path, server: Server | None = None) -> None:
        super().__init__(directory)
        place = directory / "kafka"
        place.mkdir()
        self._server = server or Kafka(place)
        self._begun = server is not None
        self._made = False
        number = next(self._numbers)
        self._out, self._in = f"trial-{number}-out", f"trial-{number}-in"

    @property
    def _address(self) -> str:
        return f"{self._server.host}:{self._server.port}"

    def plugin(self) -> dict[str, Any]:
        config = {
            "addresses": [self._address],
            "retry_first": "50ms",
            "retry_most": "300ms",
            "session_timeout": "3s",
            "request_timeout": "5s",
            "probe": "1s",
            "tries": 1000,
            "rules": [
                {"direction": "out", "from": "out/#", "to": self._out},
                {"direction": "in", "from": self._in, "to": "in/{key}"},
            ],
        }
        return {"use": PLUGIN, "name": "up", "config": config}

    async def start(self) -> None:
        if not self._begun:
            await asyncio.to_thread(self._server.start)
        self._begun = False
        if not self._made:
            await make_topics(self._server, self._out, self._in)
            self._made = True

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def send(self, ledger: Ledger) -> None:
        while any(ledger.todo.values()):
            producer = AIOKafkaProducer(
                bootstrap_servers=self._address, acks="all", request_timeout_ms=_SHORT_MS
            )
            with contextlib.suppress(KafkaError, OSError):
                try:
                    await producer.start()
                    await asyncio.gather(
                        *(self._send(producer, ledger, key) for key in ledger.todo)
                    )
                finally:
                    await producer.stop()
            await asyncio.sleep(_AGAIN_S)

    async def _send(self, producer: Any, ledger: Ledger, key: str) -> None:
        numbers = ledger.todo[key]
        while numbers:
            number = numbers[0]
            ledger.sent[number] += 1
            headers = [("mqttd-id", f"{number}-{ledger.sent[number]}".encode())]
            text = ledger.text(key, number).encode()
            await producer.send_and_wait(self._in, text, key.encode(), headers=headers)
            ledger.acknowledged.add(numbers.pop(0))

    async def receive(self, got: Got) -> None:
        """From the beginning again after each failure: what came is known by its id."""
        while True:
            consumer = AIOKafkaConsumer(
                self._out,
                bootstrap_servers=self._address,
                auto_offset_reset="earliest",
                request_timeout_ms=_SHORT_MS,
            )
            with contextlib.suppress(KafkaError, OSError):
                try:
                    await consumer.start()
                    async for record in consumer:
                        headers = dict(record.headers)
                        got(record.value.decode(), headers.get("mqttd-id", b"").decode())
                finally:
                    await consumer.stop()
            await asyncio.sleep(_AGAIN_S)
