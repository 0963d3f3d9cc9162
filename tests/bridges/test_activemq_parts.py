"""How `bridge_activemq` sends, against a server that does what it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from mqttd_plugins._bridge.remote import Failure, Item, Poison
from mqttd_plugins.bridge_activemq import ActiveMQRemote, ActiveMQRule, Config

from mqttd.api import Message
from tests.bridges.kit import out
from tests.bridges.test_stomp import Server

RULE = out("#", "/queue/q")


class Sending:
    def __init__(self, remote: ActiveMQRemote, server: Server) -> None:
        self.remote = remote
        self.server = server
        self.answers: dict[int, Failure | None] = {}

    def done(self, item: Item, failure: Failure | None) -> None:
        self.answers[item.seq] = failure

    async def send(self, *items: Item) -> None:
        await self.remote.send(items, self.done)

    def commands(self) -> list[str]:
        return [frame.command for frame in self.server.got]

    async def heard(self, number: int) -> list[str]:
        await self.server.heard(number)
        return self.commands()

    async def receipt(self) -> None:
        """The server has done the last frame that asks for a receipt."""
        asked = [
            frame.headers["receipt"] for frame in self.server.got if "receipt" in frame.headers
        ]
        self.server.say(f"RECEIPT\nreceipt-id:{asked[-1]}\n\n\0".encode())


@contextlib.asynccontextmanager
async def sending(suspects: dict[str, None]) -> AsyncIterator[Sending]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    address = listening.sockets[0].getsockname()[:2]
    access: Any = SimpleNamespace(address=address, tls=None, password=None, failed=lambda: None)
    config = Config.model_validate({"addresses": ["127.0.0.1"], "rules": [RULE], "heartbeat": 0})
    remote = ActiveMQRemote(config, access, "name", suspects)
    try:
        await remote.connect()
        await server.heard(1)
        yield Sending(remote, server)
    finally:
        remote._connection.close()  # type: ignore[union-attr]
        listening.close()


def item(number: int, topic: str = "a") -> Item:
    rule = ActiveMQRule.model_validate(RULE)
    message = Message(topic, b"%d" % number, 1)
    return Item(number, rule, message, id=f"id-{number}", target="/queue/q", key=topic)


async def test_a_transaction_is_filled_while_the_one_before_it_is_committed() -> None:
    async with sending({}) as at:
        await at.send(item(1), item(2))
        one = ["CONNECT", "BEGIN", "SEND", "SEND", "COMMIT"]
        assert await at.heard(5) == one
        second = asyncio.ensure_future(at.send(item(3)))
        assert await at.heard(7) == [*one, "BEGIN", "SEND"]
        assert not second.done()
        assert at.answers == {}
        await at.receipt()
        await second
        assert await at.heard(8) == [*one, "BEGIN", "SEND", "COMMIT"]
        assert at.answers == {1: None, 2: None}
        transactions = [frame.headers["transaction"] for frame in at.server.got[1:]]
        assert transactions == ["1"] * 4 + ["2"] * 3


async def test_after_a_refusal_all_that_was_unanswered_is_suspect_until_it_is_confirmed() -> None:
    suspects: dict[str, None] = {}
    async with sending(suspects) as at:
        await at.send(item(1), item(2))
        second = asyncio.ensure_future(at.send(item(3)))
        await at.heard(7)
        at.server.say(b"ERROR\nmessage:no\n\n\0")
        await second
        await at.remote.wait()
        assert at.answers == {}
        assert set(suspects) == {"id-1", "id-2", "id-3"}
    async with sending(suspects) as at:
        alone = asyncio.ensure_future(at.send(item(1), item(2)))
        assert await at.heard(3) == ["CONNECT", "BEGIN", "SEND"]
        for heard in (4, 5):
            await at.receipt()
            await at.heard(heard)
        await alone
        assert at.commands()[3:] == ["SEND", "COMMIT"]
        await at.receipt()
        while not at.answers:
            await asyncio.sleep(0)
        assert set(suspects) == {"id-3"}


async def test_a_commit_that_nobody_waits_for_any_more_still_counts() -> None:
    async with sending({}) as at:
        await at.send(item(1))
        second = asyncio.ensure_future(at.send(item(2)))
        await at.heard(6)
        second.cancel()
        await asyncio.wait([second])
        await at.receipt()
        while not at.answers:
            await asyncio.sleep(0)
        assert at.answers == {1: None}


async def test_a_target_that_takes_much_memory_is_not_remembered() -> None:
    async with sending({}) as at:
        short, long = "/queue/".ljust(512, "q"), "/queue/".ljust(513, "q")
        rule = ActiveMQRule.model_validate(RULE)
        items = [
            Item(seq, rule, Message("a", b"x", 1), id=f"id-{seq}", target=target, key="a")
            for seq, target in ((1, short), (2, long))
        ]
        await at.send(*items)
        await at.heard(5)
        destinations = [frame.headers.get("destination") for frame in at.server.got[2:4]]
        assert destinations == [short, long]
        assert list(at.remote._destinations) == [("a rule", short)]


async def test_what_no_frame_can_hold_is_poison_and_begins_no_transaction() -> None:
    async with sending({}) as at:
        bad = item(1)
        bad.key = "\0"
        await at.send(bad)
        assert isinstance(at.answers[1], Poison)
        await at.send(item(2))
        assert await at.heard(4) == ["CONNECT", "BEGIN", "SEND", "COMMIT"]
