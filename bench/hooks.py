"""`python -m bench.hooks`: what a hook costs a message, in nanoseconds of CPU.

One client publishes at QoS 0 to a topic nobody subscribes to, straight into the core: no socket, so
that what is measured is the way from a PUBLISH to a plugin and back. Cases: no plugin; a decider
whose answer is remembered; a decider that is asked each time; a hook that looks and leaves the
message as it is; the same as a coroutine that needs no waiting, and one that gives the loop one
turn. `begun` is what those would cost if they were run in place as far as they go, without a task:
that is not what the broker does, see docs/decisions/0007-hooks-run-tasks.md.

The source tree runs pure; put a build in front with PYTHONPATH to measure that.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import mqttd
from mqttd.api import ALLOW, Allow, Client, Decision, Message, Plugin, PluginConfig
from mqttd.config import PluginEntry
from mqttd.core import encode
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.packets import Connect, Publish
from mqttd.core.router import ListenerInfo
from mqttd.hooks.guard import Guard
from mqttd.hooks.loader import Prepared
from mqttd.hooks.manager import HookManager

MESSAGES = 2000
ROUNDS = 9


class Remembered(Plugin[PluginConfig]):
    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return ALLOW


class Asked(Plugin[PluginConfig]):
    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return Allow(cache=False)


class Looks(Plugin[PluginConfig]):
    def on_publish(self, client: Client, message: Message) -> None:
        return None


class Coroutine(Plugin[PluginConfig]):
    async def on_publish(self, client: Client, message: Message) -> None:
        return None


class Waits(Plugin[PluginConfig]):
    async def on_publish(self, client: Client, message: Message) -> None:
        await asyncio.sleep(0)


async def in_place(self: Guard, hook: str, answer: Awaitable[Any]) -> Any:
    """`Guard._wait` without a task: the chain's own coroutine runs the hook."""
    return await answer


async def round_of(kind: type[Plugin[Any]] | None) -> float:
    """Nanoseconds of CPU a message."""
    broker = Broker()
    entry = PluginEntry.model_validate({"use": "x"})
    plugins = [] if kind is None else [Prepared("x", kind, PluginConfig(), entry)]
    manager = HookManager(broker, plugins, lambda: None)
    await manager.start()
    try:
        connection = broker.open(ListenerInfo("t", "tcp", True), "192.0.2.1:1", None, 0.0)
        connection.receive_data(encode.encode_packet(Connect(client_id="c"), 5), 0.0)
        frame = encode.encode_packet(Publish("a/b/c", b"x" * 64), 5)
        return await spent(connection, frame)
    finally:
        await manager.stop()


async def spent(connection: Connection, frame: bytes) -> float:
    began = time.thread_time_ns()
    for _ in range(MESSAGES):
        connection.receive_data(frame, 0.0)
        while connection.suspended:
            await asyncio.sleep(0)
    return (time.thread_time_ns() - began) / MESSAGES


def cases() -> dict[str, Callable[[], Awaitable[float]]]:
    async def begun(kind: type[Plugin[Any]]) -> float:
        wait = Guard._wait
        Guard._wait = in_place  # type: ignore[method-assign]
        try:
            return await round_of(kind)
        finally:
            Guard._wait = wait  # type: ignore[method-assign]

    return {
        "no plugin": lambda: round_of(None),
        "decider, remembered": lambda: round_of(Remembered),
        "decider, asked": lambda: round_of(Asked),
        "function": lambda: round_of(Looks),
        "coroutine": lambda: round_of(Coroutine),
        "coroutine, begun": lambda: begun(Coroutine),
        "coroutine that waits": lambda: round_of(Waits),
        "coroutine that waits, begun": lambda: begun(Waits),
    }


async def measure() -> dict[str, float]:
    """The median of some rounds for each case; all cases in turn, round by round."""
    found: dict[str, list[float]] = {name: [] for name in cases()}
    for _ in range(ROUNDS):
        for name, case in cases().items():
            found[name].append(await case())
    return {name: round(statistics.median(values)) for name, values in found.items()}


def main() -> int:
    figures = asyncio.run(measure())
    if "--json" in sys.argv:
        print(json.dumps(figures))
        return 0
    build = "compiled" if mqttd.COMPILED else "pure"
    print(f"ns of CPU a message, {build} core, median of {ROUNDS} rounds")
    for name, value in figures.items():
        print(f"{name:30} {value:8,.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
