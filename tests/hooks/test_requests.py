"""Requests and answers of plugins, in a broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mqttd.api import Message, MessageProperties, Plugin, PluginConfig
from mqttd.core.packets import Filter, Publish, Suback, Subscribe
from mqttd.hooks import requests
from tests.harness import FakeClient
from tests.hooks.kit import Hooked, hooked, prepared


class Empty(PluginConfig):
    """Nothing."""


class Asks(Plugin[Empty]):
    """Does what the test says."""


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Hooked, Any]]:
    async with hooked(prepared(Asks)) as it:
        pulse = asyncio.ensure_future(_beat(it))
        try:
            yield it, it.manager.services["asks"]
        finally:
            pulse.cancel()


async def _beat(it: Hooked) -> None:
    while True:
        await it.turn(1)
        await asyncio.sleep(0)


def topics_of(client: FakeClient) -> list[str]:
    return [each.topic for each in client.received if isinstance(each, Publish)]


async def test_a_request_gets_the_answer_of_a_responder() -> None:
    async with asking() as (_, broker):
        seen: list[Message] = []

        async def double(request: Message) -> bytes:
            seen.append(request)
            return request.payload * 2

        await broker.respond("service/+", double)
        wanted = MessageProperties(content_type="x", response_topic="elsewhere")
        answer = await broker.request("service/a", b"ab", properties=wanted)
        assert (answer.payload, answer.qos) == (b"abab", 1)
        (request,) = seen
        assert request.topic == "service/a"
        assert request.properties.content_type == "x"
        assert request.properties.response_topic == answer.topic
        assert answer.topic.startswith("$reply/")


async def test_many_at_once_get_each_their_own() -> None:
    async with asking() as (_, broker):
        gates = [asyncio.Event() for _ in range(20)]

        async def slowly(request: Message) -> bytes:
            place = int(request.payload)
            await gates[place].wait()
            if place:
                gates[place - 1].set()
            return request.payload

        await broker.respond("s", slowly)
        gates[-1].set()  # the last that was asked is the first that is answered
        found = await asyncio.gather(*[broker.request("s", b"%d" % n) for n in range(20)])
        assert [int(answer.payload) for answer in found] == list(range(20))


async def test_a_message_as_an_answer_keeps_its_properties() -> None:
    async with asking() as (_, broker):
        made = MessageProperties(content_type="y", response_topic="not/this")
        await broker.respond("s", lambda _: Message("ignored", b"1", 0, True, properties=made))
        answer = await broker.request("s")
        assert (answer.payload, answer.retain) == (b"1", False)
        assert answer.properties.content_type == "y"
        assert answer.properties.response_topic is None


async def test_nobody_subscribes() -> None:
    async with asking() as (_, broker):
        with pytest.raises(LookupError, match="nobody subscribes to s"):
            await broker.request("s")


async def test_an_answer_that_comes_too_late_is_counted() -> None:
    async with asking() as (it, broker):
        asked: asyncio.Queue[Message] = asyncio.Queue()
        await broker.respond("s", asked.put_nowait)
        with pytest.raises(TimeoutError, match=r"no answer on s within 0\.02 s"):
            await broker.request("s", timeout_s=0.02)
        request = await asked.get()
        client = await it.client("someone")
        topic = request.properties.response_topic
        key = request.properties.correlation_data
        assert topic is not None
        for data in (key, b"guessed", None):
            properties = MessageProperties(correlation_data=data).encoded()
            client.publish(topic, b"late", properties=properties)
        await it.until(lambda: broker.counts.get("late_answers") == 3)


async def test_a_responder_answers_only_where_it_may() -> None:
    async with asking() as (it, broker):
        await broker.respond("s", lambda _: b"x")
        client = await it.client("c")
        client.send(Subscribe(1, [Filter("#", 1)]))
        await it.until(lambda: any(isinstance(each, Suback) for each in client.received))
        client.recv()
        for topic in ("admin/door", "$SYS/x", None):
            properties = MessageProperties(response_topic=topic).encoded()
            client.publish("s", b"", 1, properties=properties)
        await it.until(lambda: broker.counts.get("unanswered_requests") == 3)
        properties = MessageProperties(response_topic="response/c", correlation_data=b"k").encoded()
        client.publish("s", b"", 1, properties=properties)
        await it.until(lambda: "response/c" in topics_of(client))
        topics = topics_of(client)
        assert topics.count("response/c") == 1
        assert "admin/door" not in topics


async def test_no_more_requests_are_answered_at_once_than_at_qos_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "_AT_ONCE", 3)
    async with asking() as (it, broker):
        gate = asyncio.Event()
        begun: list[bytes] = []

        async def slowly(request: Message) -> None:
            begun.append(request.payload)
            await gate.wait()

        await broker.respond("s", slowly)
        client = await it.client("flood")
        for number in range(8):
            client.publish("s", b"%d" % number)
        await it.until(lambda: len(begun) == 3)
        await it.turn()
        assert begun == [b"0", b"1", b"2"]
        gate.set()
        await it.until(lambda: len(begun) == 8)


async def test_a_responder_that_fails_fails_its_request_alone() -> None:
    async with asking() as (_, broker):

        def sometimes(request: Message) -> bytes:
            if request.payload == b"bad":
                raise RuntimeError("no")
            return b"good"

        await broker.respond("s", sometimes)
        with pytest.raises(TimeoutError):
            await broker.request("s", b"bad", timeout_s=0.02)
        assert (await broker.request("s")).payload == b"good"
        assert broker.counts["failed_requests"] == 1


async def test_a_responder_that_was_told_to_stop_answers_no_more() -> None:
    async with asking() as (_, broker):
        responding = await broker.respond("s", lambda _: b"x")
        await broker.request("s")
        responding.cancel()
        with pytest.raises(LookupError):
            await broker.request("s")


async def test_a_responder_needs_a_filter() -> None:
    async with asking() as (it, broker):
        with pytest.raises(ValueError, match="can't subscribe"):
            await broker.respond("a/#/b", lambda _: b"")
        assert not it.broker.sessions
