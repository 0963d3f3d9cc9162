"""`python -m bench.rabbitmq`: the CPU that RabbitMQ costs a bridge, each way, without a broker.

The face of `bridge_rabbitmq` alone, against a RabbitMQ that is started for it: as many messages of
64 bytes as asked for go into a durable queue, persistent, each with its confirm, and come out of it
again. `out_us` and `in_us` are CPU time of this process for each message, so they hold on a busy
machine, too; `server_out_us` and `server_in_us` are what RabbitMQ itself took. What a whole bridge
does in a second is asked of `bench.bridges`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bridges.__main__ import ready

ready()
from mqttd_plugins._bridge.remote import Failure, Incoming, Intake, Item  # noqa: E402
from mqttd_plugins._bridge.rules import Rule  # noqa: E402
from mqttd_plugins.bridge_rabbitmq import Config, RabbitRemote, _access_of  # noqa: E402

from mqttd.api import Message  # noqa: E402
from tests.bridges.far_rabbitmq import RoomyRabbitMQ  # noqa: E402
from tests.bridges.servers import RabbitMQ  # noqa: E402

PAYLOAD = b"." * 64
TOPICS = 16
SHARE = RabbitRemote.batch  # items that the core hands over at once


class Counted(Intake):
    """Takes what comes, and settles it at once."""

    def __init__(self, config: Config, expected: int) -> None:
        self.rules: Sequence[Rule] = [rule for rule in config.rules if rule.direction == "in"]
        self.window = config.window
        self.everything = asyncio.Event()
        self._left = expected

    async def room(self) -> None:
        return

    def put(self, incoming: Incoming) -> None:
        incoming.settle(None)
        self._left -= 1
        if not self._left:
            self.everything.set()


def items(rule: Rule, first: int, number: int) -> list[Item]:
    out = []
    for seq in range(first, first + number):
        topic = f"out/k{seq % TOPICS}"
        message = Message(topic, PAYLOAD, 1, client_id="bench")
        id = f"0123456789-1-{seq}"
        out.append(Item(seq, rule, message, id=id, via="0123456789", target=rule.to, key=topic))
    return out


async def publish(remote: RabbitRemote, config: Config, messages: int) -> float:
    """CPU seconds of publishing so many; what the items themselves cost isn't counted."""
    await remote.connect()
    confirmed = 0
    news = asyncio.Event()

    def done(item: Item, failure: Failure | None) -> None:
        nonlocal confirmed
        assert failure is None
        confirmed += 1
        news.set()

    waiting = collections.deque(items(config.rules[0], 1, messages))
    began, sent = time.process_time(), 0
    while confirmed < messages:
        while waiting and sent - confirmed < config.window:
            share = min(SHARE, len(waiting), config.window - (sent - confirmed))
            await remote.send([waiting.popleft() for _ in range(share)], done)
            sent += share
            await asyncio.sleep(0)
        news.clear()
        if confirmed < messages:
            await news.wait()
    return time.process_time() - began


async def consume(remote: RabbitRemote, config: Config, messages: int) -> float:
    """CPU seconds of consuming so many."""
    await remote.connect()
    intake = Counted(config, messages)
    began = time.process_time()
    await remote.consume(intake)
    await intake.everything.wait()
    return time.process_time() - began


def cpu_s_of(server: RabbitMQ) -> float:
    """CPU seconds of all processes that RabbitMQ consists of."""
    groups = {process.pid for process in server._processes}
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) in groups:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def measure(server: RabbitMQ, args: argparse.Namespace) -> dict[str, Any]:
    messages, queue = args.messages, {"type": args.queue}
    rules = [
        {"direction": "out", "from": "#", "exchange": "", "to": "bench", "declare_queue": queue},
        {"direction": "in", "from": "bench", "declare_queue": queue},
    ]
    address = f"{server.host}:{server.port}"
    config = Config.model_validate({"addresses": [address], "rules": rules, "window": args.window})
    access = _access_of(config)
    out: dict[str, Any] = {"messages": messages, "queue": args.queue, "window": args.window}
    for name, work in (("out", publish), ("in", consume)):
        log = logging.getLogger("bench")
        remote = RabbitRemote(config, access, "bench", [config.max_message_size], log)
        began, server_s = time.monotonic(), cpu_s_of(server)
        try:
            cpu_s = await work(remote, config, messages)
        finally:
            await remote.close()
        server_s = cpu_s_of(server) - server_s
        out[f"{name}_us"] = round(cpu_s / messages * 1e6, 1)
        out[f"server_{name}_us"] = round(server_s / messages * 1e6, 1)
        out[f"{name}_per_s"] = round(messages / (time.monotonic() - began))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rabbitmq")
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--queue", choices=["classic", "quorum"], default="classic")
    parser.add_argument("--window", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mqttd-bench-") as place:
        server = RoomyRabbitMQ(Path(place))
        server.start()
        try:
            print(json.dumps(asyncio.run(measure(server, args))))
        finally:
            server.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
