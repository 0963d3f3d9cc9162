"""What ElasticMQ and moto do with a group of a FIFO queue: without a bridge or any code of ours.

    python -m tests.bridges.sqs_order

Amazon says of a group: while a message of it is in flight, no other is handed out; and in which
order they are. Each server gets 30 messages of one group, ten are received, none is deleted. Then
ElasticMQ is killed and started again with all that it had on disk, while the ten are still in
flight; moto goes on until they are visible again. What is handed out next should be nothing for
the one, and 0 to 9 for the other.

Prints it; exit 1 if one of them has become better than `far_sqs` says it is.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bridges.far_sqs import client_to
from tests.bridges.servers import ElasticMQ, Moto, Server


async def sent(server: Server, count: int) -> str:
    """The queue with so many messages of one group."""
    async with client_to(server) as client:
        made = await client.create_queue(QueueName="q.fifo", Attributes={"FifoQueue": "true"})
        url: str = made["QueueUrl"]
        for number in range(count):
            await client.send_message(
                QueueUrl=url,
                MessageBody=str(number),
                MessageGroupId="g",
                MessageDeduplicationId=str(number),
            )
    return url


async def received(server: Server, url: str, hidden_s: int) -> list[int]:
    """The next ten, which stay hidden for so long."""
    async with client_to(server) as client:
        answer: dict[str, Any] = await client.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=hidden_s
        )
    return [int(each["Body"]) for each in answer.get("Messages", ())]


async def tried(server: Server) -> list[int]:
    """What is handed out after the ten."""
    server.start()
    try:
        url = await sent(server, 30)
        hidden_s = 30 if isinstance(server, ElasticMQ) else 2
        print(server.NAME, "received, not deleted:", await received(server, url, hidden_s))
        print(server.NAME, "received then:        ", await received(server, url, hidden_s))
        if isinstance(server, ElasticMQ):
            server.restart()
        else:
            await asyncio.sleep(hidden_s + 0.5)
        after = await received(server, url, hidden_s)
        print(server.NAME, "received after that:  ", after)
        return after
    finally:
        server.kill()


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="mqttd-sqs-") as place:
        elasticmq = await tried(ElasticMQ(Path(place)))
        moto = await tried(Moto(Path(place)))
    return 0 if elasticmq and moto != list(range(10)) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
