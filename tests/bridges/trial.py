"""A trial of a bridge: so many messages each way, while the broker and the far end are killed.

What has to hold, whatever is killed and when: what was acknowledged to a sender arrives; the
messages of one key arrive in order, but for copies; copies that the bridge made carry the id of
the first. A sender that isn't answered sends again, which makes another message: so a number may
have as many ids as it was sent times.

`Far` is the other system, as a trial sees it. A face that is to be tried derives from it; that of
`bridge_mqtt` is in `tests.bridges.far_mqtt`.
"""

from __future__ import annotations

import asyncio
import json
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mqttd.core.packets import Connack, Connect, Filter, Puback, Publish, Subscribe
from mqttd.core.properties import Properties, decode_forwardable
from tests.bridges.mqtt_kit import Stream
from tests.crash.wire import Process

Got = Callable[[str, str], None]
"""Called with the text of a message and its id."""

PATIENCE = 300.0
KEYS = 16
_AGAIN_S = 0.05


class Node(Process):
    """An mqttd process. Its port is the same at every start, where one is given."""

    def __init__(self, directory: Path, port: int = 0, *plugins: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory, "full")
        tree = json.loads(self._config.read_text())
        tree["listeners"] = [{"name": "tcp", "bind": f"127.0.0.1:{port}"}]
        tree["plugins"] = list(plugins)
        self._config.write_text(json.dumps(tree))


class Ledger:
    """What was sent one way, what was acknowledged, and what arrived."""

    def __init__(self, way: str, messages: int) -> None:
        self.way = way
        self.todo: dict[str, list[int]] = {
            f"k{key}": list(range(key, messages, KEYS)) for key in range(KEYS)
        }
        self.messages = messages
        self.sent: Counter[int] = Counter()
        self.acknowledged: set[int] = set()
        self.arrived: list[tuple[str, int]] = []
        self.ids: defaultdict[int, set[str]] = defaultdict(set)
        self.copies = 0
        self._ordered: int | None = None  # arrivals whose order counts; None: all

    def text(self, key: str, number: int) -> str:
        return f"{self.way} {key} {number}"

    def take(self, text: str, id: str) -> None:
        way, key, number = text.split()
        assert way == self.way
        if int(number) in self.ids:
            self.copies += 1
        else:
            self.arrived.append((key, int(number)))
        self.ids[int(number)].add(id)

    def forgive_order(self) -> None:
        """From here on the order of arrivals is nobody's fault."""
        if self._ordered is None:
            self._ordered = len(self.arrived)

    @property
    def complete(self) -> bool:
        return len(self.acknowledged) == self.messages and self.acknowledged <= self.ids.keys()

    def wrong(self, with_ids: bool) -> list[str]:
        """What doesn't hold."""
        found = [f"{self.way} {n}: lost" for n in sorted(self.acknowledged - self.ids.keys())]
        last: dict[str, int] = {}
        for key, number in self.arrived[: self._ordered]:
            if number < last.get(key, -1):
                found.append(f"{self.way} {key}: {number} came after {last[key]}")
            last[key] = max(number, last.get(key, -1))
        for number, ids in self.ids.items():
            if with_ids and ("" in ids or len(ids) > self.sent[number]):
                found.append(f"{self.way} {number}: sent {self.sent[number]} times, ids {ids}")
        return found


class Far(ABC):
    """The other system."""

    NAME: ClassVar[str]
    IDS_IN: ClassVar[bool] = True
    """Whether what comes in has an id."""
    KEEPS_ORDER: ClassVar[bool] = True
    """Whether it still knows the order of a key when it was killed itself; else the order is
    looked at until then."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def plugin(self) -> dict[str, Any]:
        """The entry in the configuration: out from `out/#`, in to `in/...`."""

    @abstractmethod
    async def start(self) -> None:
        """Start it; again after `kill`, with all that it had."""

    @abstractmethod
    async def kill(self) -> None:
        """End it as hard as it can stand."""

    @abstractmethod
    async def send(self, ledger: Ledger) -> None:
        """Send what is to do, over and over until it is acknowledged, each key in order."""

    @abstractmethod
    async def receive(self, got: Got) -> None:
        """Receive what the bridge sent out, until it is cancelled. Survives `kill`."""


async def connected(node: Any, client_id: str) -> Stream:
    """A connection with a session that lasts; waits until somebody answers."""
    while True:
        try:
            wire = await Stream.at(node.port)
        except OSError:
            await asyncio.sleep(_AGAIN_S)
            continue
        properties = Properties()
        properties.session_expiry_interval = 0xFFFFFFFF
        wire.send(Connect("MQTT", 5, False, 0, client_id, None, None, None, properties))
        try:
            assert (await wire.receive(Connack)).reason == 0
        except (AssertionError, OSError):
            await wire.close()
            await asyncio.sleep(_AGAIN_S)
            continue
        return wire


async def publish_all(node: Any, topic: str, ledger: Ledger) -> None:
    """Publish at QoS 1 to `topic/KEY`, one of each key at a time, until all is acknowledged."""
    while any(ledger.todo.values()):
        wire = await connected(node, f"sender-{ledger.way}")
        try:
            await _publish_some(wire, topic, ledger)
        except (AssertionError, OSError):  # the connection ended
            await asyncio.sleep(_AGAIN_S)
        finally:
            await wire.close()


async def _publish_some(wire: Stream, topic: str, ledger: Ledger) -> None:
    keys = list(ledger.todo)

    def publish(key: str) -> None:
        number = ledger.todo[key][0]
        ledger.sent[number] += 1
        wire.publish(f"{topic}/{key}", ledger.text(key, number).encode(), 1, keys.index(key) + 1)

    for key, numbers in ledger.todo.items():
        if numbers:
            publish(key)
    while any(ledger.todo.values()):
        puback = await wire.receive(Puback)
        assert puback.reason < 0x80
        key = keys[puback.packet_id - 1]
        ledger.acknowledged.add(ledger.todo[key].pop(0))
        if ledger.todo[key]:
            publish(key)


async def subscribe_all(node: Any, topic_filter: str, client_id: str, got: Got) -> None:
    """Receive at QoS 1 with a session that lasts, until it is cancelled."""
    while True:
        wire = await connected(node, client_id)
        try:
            wire.send(Subscribe(1, [Filter(topic_filter, 1)]))
            while True:
                packet = await wire.next_packet()
                if packet is None:
                    break
                if not isinstance(packet, Publish):
                    continue
                user = decode_forwardable(packet.properties).user_properties
                text, its_id = packet.payload.decode(), dict(user).get("mqttd-id", "")
                if text.startswith("{"):
                    tree = json.loads(text)
                    text, its_id = tree["payload"], tree["id"]
                got(text, its_id)
                wire.send(Puback(packet.packet_id))
        except OSError:
            await asyncio.sleep(_AGAIN_S)
        finally:
            await wire.close()


async def trial(
    far: Far, messages: int, kills: int, seed: int, victims: Sequence[str] = ("broker", "far")
) -> dict[str, Any]:
    """Run it; what was counted, and under `wrong` what didn't hold."""
    chance = random.Random(seed)
    await far.start()
    node = Node(far.directory / "broker", 0, far.plugin())
    await node.start()
    out, back = Ledger("out", messages), Ledger("in", messages)
    readers = [
        asyncio.ensure_future(far.receive(out.take)),
        asyncio.ensure_future(subscribe_all(node, "in/#", "reader", back.take)),
    ]
    await asyncio.sleep(1.0)  # both are subscribed
    senders = [
        asyncio.ensure_future(publish_all(node, "out", out)),
        asyncio.ensure_future(far.send(back)),
    ]
    killed: Counter[str] = Counter()
    try:
        async with asyncio.timeout(PATIENCE + messages / 10):
            for number in range(kills):
                due = 2 * messages * (number + 1) // (kills + 1)
                while len(out.arrived) + len(back.arrived) < due:
                    _look(readers + senders)
                    await asyncio.sleep(0.01)
                each_once = number < len(victims)
                victim = victims[number] if each_once else chance.choice(victims)
                killed[victim] += 1
                if victim == "broker":
                    await node.kill()
                    await asyncio.sleep(chance.random() * 0.5)
                    await node.start()
                else:
                    if not far.KEEPS_ORDER:
                        out.forgive_order()
                        back.forgive_order()
                    await far.kill()
                    await asyncio.sleep(chance.random() * 0.5)
                    await far.start()
            while not (out.complete and back.complete):
                _look(readers + senders)
                await asyncio.sleep(0.02)
    except TimeoutError:
        pass  # what is missing is told below
    finally:
        for work in (*senders, *readers):
            work.cancel()
        await asyncio.gather(*senders, *readers, return_exceptions=True)
        await node.discard()
        await far.kill()
    wrong = out.wrong(True) + back.wrong(far.IDS_IN)
    for ledger in (out, back):
        if not ledger.complete:
            got, sent = len(ledger.arrived), len(ledger.acknowledged)
            wrong.append(f"{ledger.way}: {sent} of {messages} acknowledged, {got} arrived")
    return {
        "bridge": far.NAME,
        "seed": seed,
        "messages": messages,
        "kills": dict(killed),
        "out": len(out.arrived),
        "in": len(back.arrived),
        "copies": {"out": out.copies, "in": back.copies},
        "sent_again": sum((out.sent + back.sent).values()) - 2 * messages,
        "wrong": wrong[:20],
    }


def _look(works: Sequence[asyncio.Future[None]]) -> None:
    """A part of the trial that failed ends it."""
    for work in works:
        if work.done() and not work.cancelled() and work.exception() is not None:
            raise RuntimeError("a part of the trial failed") from work.exception()
