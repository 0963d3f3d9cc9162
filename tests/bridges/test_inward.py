"""The way in: durable before it is acknowledged, in order, what can't be processed put aside."""

import asyncio
from typing import Any

import pytest
from mqttd_plugins._bridge.remote import Failure, Incoming, Retry

from mqttd.api import Message
from mqttd.hooks.convert import core_message_of
from tests.bridges.kit import Desk, back, incoming, reason_of


async def desk(*trees: dict[str, Any], **more: Any) -> Desk:
    made = Desk(*trees, **more)
    await made.begin()
    return made


def topics(at: Desk) -> list[str]:
    return [message.topic for message in at.outbox.published]


async def test_it_is_settled_when_the_broker_has_it_and_not_before() -> None:
    at = await desk(back("q", "in/{topic}"))
    gate = asyncio.Event()
    publish = at.inward._publish

    async def slow(message: Message) -> int:
        await gate.wait()
        return await publish(message)

    at.inward._publish = slow
    settled: list[Failure | None] = []
    at.inward.put(incoming(at.inward.rules[0], settled=settled))
    await at.settle()
    assert settled == []
    gate.set()
    await at.settle()
    assert (settled, topics(at)) == ([None], ["in/remote"])
    await at.end()


async def test_they_are_published_and_settled_in_order() -> None:
    at = await desk(back("q", "in/{key}"))
    settled: list[int] = []
    rule = at.inward.rules[0]
    for number in range(600):
        message = Message("q", str(number).encode(), 1)
        answer = lambda failure, number=number: settled.append(number)  # noqa: E731
        at.inward.put(Incoming(rule, message, answer, key=str(number % 3)))
    await until_settled(at, settled, 600)
    assert settled == list(range(600))
    assert [int(message.payload) for message in at.outbox.published] == settled
    await at.end()


async def until_settled(at: Desk, settled: list[int], number: int) -> None:
    async with asyncio.timeout(30):
        while len(settled) < number:
            await asyncio.sleep(0)


async def test_there_is_room_for_so_many_and_no_more() -> None:
    at = await desk(back("q"), window=2)
    rule = at.inward.rules[0]
    await at.inward.room()
    at.inward.put(incoming(rule))
    await at.inward.room()
    at.inward.put(incoming(rule))
    waiting = asyncio.ensure_future(at.inward.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await at.settle()
    assert waiting.done()
    await at.end()


async def test_a_function_and_headers_change_it_and_its_id_is_kept() -> None:
    at = await desk(
        back("q", "in/x", function="tests.bridges.test_outward:upper", headers={"k": "{header[h]}"})
    )
    rule = at.inward.rules[0]
    at.inward.put(incoming(rule, b"a", id="their-1", headers={"h": "v"}))
    at.inward.put(incoming(rule, b"a", id="their-2", user=[("mqttd-id", "ours-9")]))
    settled: list[Failure | None] = []
    at.inward.put(incoming(rule, b"no", settled=settled))
    await at.settle()
    first, second = at.outbox.published
    assert first.payload == b"A"
    assert dict(first.properties.user_properties) == {"mqttd-id": "their-1", "k": "v"}
    assert dict(second.properties.user_properties) == {"mqttd-id": "ours-9"}
    assert settled == [None]
    assert at.inward.figures.dropped == {"function": 1}
    await at.end()


@pytest.mark.parametrize(
    ("tree", "more", "reason"),
    [
        (back("q", "in/{header[h]}"), {}, "there is no header 'h'"),
        (back("q", "{key}"), {"key": "a/#"}, "to: makes no topic"),
        (back("q", "{key}"), {"key": "$SYS/x"}, "the target would begin with $"),
        (back("q", "x", payload="envelope"), {}, "the payload is no JSON object"),
        (back("q", "x", function="tests.bridges.test_outward:upper"), {"payload": b"bad"}, "KeyE"),
    ],
)
async def test_what_can_not_be_processed_is_dead_lettered_and_acknowledged(
    tree: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    at = await desk(tree)
    settled: list[Failure | None] = []
    rule = at.inward.rules[0]
    payload = more.pop("payload", b"x")
    at.inward.put(incoming(rule, payload, topic="bad#name", settled=settled, **more))
    await at.settle()
    assert settled == [None]
    (dead,) = at.dead
    assert reason in reason_of(dead)
    assert dead.payload == payload
    user = dict(dead.properties.user_properties)
    assert (user["mqttd-dlq-topic"], user["mqttd-dlq-rule"]) == ("q", "rules[0]")
    assert at.inward.figures.dead_lettered == 1
    await at.end()


@pytest.mark.parametrize(
    ("via", "reason"), [("x,here,y", "loop"), ("a,b,c,d,e,f,g,h", "hops"), ("x", "")]
)
async def test_what_has_been_here_is_dropped(via: str, reason: str) -> None:
    at = await desk(back("q"))
    at.inward.origins = frozenset({"here", "sibling"})
    settled: list[Failure | None] = []
    at.inward.put(incoming(at.inward.rules[0], user=[("mqttd-via", via)], settled=settled))
    await at.settle()
    assert settled == [None]
    assert at.inward.figures.dropped == ({reason: 1} if reason else {})
    assert len(at.outbox.published) == (0 if reason else 1)
    await at.end()


async def test_what_has_expired_is_dropped() -> None:
    at = await desk(back("q"))
    rule = at.inward.rules[0]
    settled: list[Failure | None] = []
    at.inward.put(Incoming(rule, Message("q", b"", 1, expires_in_s=0.0), settled.append))
    await at.settle()
    assert (settled, at.inward.figures.dropped) == ([None], {"expired": 1})
    await at.end()


async def test_a_broker_that_stops_acknowledges_nothing() -> None:
    at = await desk(back("q"))

    async def stopped(message: Message) -> int:
        raise RuntimeError("the broker has stopped")

    at.inward._publish = stopped
    settled: list[Failure | None] = []
    at.inward.put(incoming(at.inward.rules[0], settled=settled))
    await at.settle()
    assert isinstance(settled[0], Retry)
    assert at.inward.figures.in_flight == 0
    await at.end()


@pytest.mark.parametrize(
    ("more", "user"),
    [
        ({"id": "a\0b"}, []),
        ({"id": "i" * 70_000}, []),
        ({}, [("a", "\ud800")]),
        ({}, [("a", "x" * 70_000)]),
    ],
)
async def test_what_no_message_can_hold_is_dead_lettered_without_it_and_the_rest_goes_on(
    more: dict[str, str], user: list[tuple[str, str]]
) -> None:
    at = await desk(back("q"))
    published: list[Message] = []

    async def publish(message: Message) -> int:
        core_message_of(message, 0.0, "")  # as the broker does
        published.append(message)
        return 1

    at.inward._publish = at.inward._dead_letters._publish = publish
    rule = at.inward.rules[0]
    settled: list[Failure | None] = []
    at.inward.put(incoming(rule, b"bad", user=user, settled=settled, **more))
    at.inward.put(incoming(rule, b"good", user=[("a", "b")], settled=settled))
    await at.settle()
    assert settled == [None, None]
    dead, good = sorted(published, key=lambda message: message.payload)
    assert (dead.payload, dead.topic, good.payload) == (b"bad", "$dlq/desk", b"good")
    assert {name[:9] for name, _ in dead.properties.user_properties} == {"mqttd-dlq"}
    assert at.inward.figures.dead_letters == {"refused": 1}
    await at.end()


async def test_a_bug_costs_one_message() -> None:
    at = await desk(back("q"))
    publish = at.inward._publish

    async def broken(message: Message) -> int:
        if message.payload == b"bad":
            raise KeyError("bug")
        return await publish(message)

    at.inward._publish = broken
    settled: list[Failure | None] = []
    for payload in (b"bad", b"good"):
        at.inward.put(incoming(at.inward.rules[0], payload, settled=settled))
    await at.settle()
    assert (settled, topics(at)) == ([None, None], ["remote"])
    (dead,) = at.dead
    assert reason_of(dead) == "an error of the bridge: KeyError: 'bug'"
    await at.end()


async def test_an_acknowledgement_that_fails_keeps_up_nothing() -> None:
    at = await desk(back("q"), window=1)
    settled: list[Failure | None] = []

    def broken(failure: Failure | None) -> None:
        raise ValueError("bug")

    rule = at.inward.rules[0]
    at.inward.put(Incoming(rule, Message("q", b"1", 1), broken))
    at.inward.put(incoming(rule, b"2", settled=settled))
    await at.settle()
    await at.inward.room()
    assert (settled, len(at.outbox.published)) == ([None], 2)
    await at.end()


async def test_what_was_not_begun_when_the_connection_ended_is_forgotten() -> None:
    at = await desk(back("q"), window=1)
    settled: list[Failure | None] = []
    at.inward.put(incoming(at.inward.rules[0], settled=settled))
    at.inward.lost()
    await at.inward.room()
    await at.settle()
    assert (settled, at.outbox.published, at.inward.figures.in_flight) == ([], [], 0)
    await at.end()


async def test_what_still_arrives_on_a_connection_that_is_over_does_not_overtake() -> None:
    at = await desk(back("q"))
    rule = at.inward.rules[0]
    at.inward.put(incoming(rule, b"1"))
    at.inward.lost()
    at.inward.put(incoming(rule, b"2"))  # while it is being closed
    await at.settle()
    assert (at.outbox.published, at.inward.figures.taken) == ([], 0)
    at.inward.begin()
    for payload in (b"1", b"2"):
        at.inward.put(incoming(rule, payload))
    await at.settle()
    assert [message.payload for message in at.outbox.published] == [b"1", b"2"]
    await at.end()
