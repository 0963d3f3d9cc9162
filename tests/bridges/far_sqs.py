"""ElasticMQ, for Amazon SQS, as the far end of a trial; both ways by FIFO queues.

ElasticMQ keeps its messages on disk, and may be killed; but it forgets then which messages of a
group are in somebody's hands, and hands out those behind them: `python -m
tests.bridges.sqs_order` shows it without any code of ours. So the order counts until it is
killed for the first time, and `--only broker` is the trial of the order.

moto is no far end: it keeps nothing over its own end, and when several messages of a group become
visible again, as after the end of a broker, it hands out the last of them first (moto 5.2.5; the
same script shows it).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from tests.bridges.servers import ElasticMQ, Server
from tests.bridges.trial import Far, Got, Ledger

PLUGIN = "mqttd_plugins.bridge_sqs:BridgeSqs"
_AGAIN_S = 0.2


def client_to(server: Server) -> Any:
    """A client, to be used by `async with`."""
    return get_session().create_client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=f"http://{server.host}:{server.port}",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=AioConfig(connect_timeout=2, read_timeout=5, max_pool_connections=40),
    )


def access(server: Server, directory: Path) -> dict[str, Any]:
    """What the configuration of a bridge to it needs."""
    secret = directory / "secret"
    secret.write_text("x\n")
    return {
        "region": "us-east-1",
        "endpoint": f"http://{server.host}:{server.port}",
        "access_key": "x",
        "secret_file": str(secret),
        "retry_first": "50ms",
        "retry_most": "300ms",
    }


class FarSqs(Far):
    """ElasticMQ."""

    NAME = "sqs"
    KEEPS_ORDER = False
    _numbers = itertools.count(1)

    def __init__(self, directory: Path, server: Server | None = None) -> None:
        super().__init__(directory)
        place = directory / "sqs"
        place.mkdir()
        self._server = server or ElasticMQ(place)
        self._begun = server is not None
        number = next(self._numbers)
        self._out, self._in = f"trial-{number}-out.fifo", f"trial-{number}-in.fifo"

    def plugin(self) -> dict[str, Any]:
        config = {
            **access(self._server, self.directory),
            "visibility": "3s",
            "poll": 1,
            "tries": 1000,
            "rules": [
                {"direction": "out", "from": "out/#", "to": self._out, "create": {}},
                {"direction": "in", "from": self._in, "to": "in/{key}", "create": {}},
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
            with contextlib.suppress(BotoCoreError, ClientError, OSError):
                async with client_to(self._server) as client:
                    url = (await client.get_queue_url(QueueName=self._in))["QueueUrl"]
                    await asyncio.gather(
                        *(self._send(client, url, ledger, key) for key in ledger.todo)
                    )
            await asyncio.sleep(_AGAIN_S)

    async def _send(self, client: Any, url: str, ledger: Ledger, key: str) -> None:
        numbers = ledger.todo[key]
        while numbers:
            number = numbers[0]
            ledger.sent[number] += 1
            its_id = f"{number}-{ledger.sent[number]}"
            await client.send_message(
                QueueUrl=url,
                MessageBody=ledger.text(key, number),
                MessageGroupId=key,
                MessageDeduplicationId=its_id,
                MessageAttributes={"mqttd-id": {"DataType": "String", "StringValue": its_id}},
            )
            ledger.acknowledged.add(numbers.pop(0))

    async def receive(self, got: Got) -> None:
        while True:
            with contextlib.suppress(BotoCoreError, ClientError, OSError):
                async with client_to(self._server) as client:
                    url = (await client.get_queue_url(QueueName=self._out))["QueueUrl"]
                    while True:
                        await self._receive(client, url, got)
            await asyncio.sleep(_AGAIN_S)

    async def _receive(self, client: Any, url: str, got: Got) -> None:
        answer = await client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=1,
            VisibilityTimeout=3,
            MessageAttributeNames=["All"],
        )
        found = answer.get("Messages", ())
        for each in found:
            got(each["Body"], each["MessageAttributes"]["mqttd-id"]["StringValue"])
        if found:
            entries = [
                {"Id": str(number), "ReceiptHandle": each["ReceiptHandle"]}
                for number, each in enumerate(found)
            ]
            await client.delete_message_batch(QueueUrl=url, Entries=entries)
