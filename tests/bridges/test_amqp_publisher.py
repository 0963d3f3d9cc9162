"""Publishes, confirms and returns: who is answered, once, with what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins import _amqp_wire as wire
from mqttd_plugins._amqp_connection import Channel, Connection, Ended
from mqttd_plugins._amqp_publisher import Publisher
from mqttd_plugins._amqp_wire import Frames
from mqttd_plugins._bridge.remote import Failure, Item, Poison, Refused, Retry
from mqttd_plugins.bridge_rabbitmq import RabbitRule

from mqttd.api import Message

RULE = RabbitRule.model_validate({"direction": "out", "from": "#"})


class Desk:
    """A publisher, what it wrote, and what it answered."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.connection = Connection()
        self.connection.connection_made(cast(asyncio.BaseTransport, self))
        self.channel = Channel(self.connection, 1)
        self.publisher = Publisher(self.connection, self.channel)
        self.answers: list[tuple[str, Failure | None]] = []

    def write(self, data: bytes) -> None:  # as a transport
        self.writes.append(data)

    def item(self, id: str, payload: bytes = b"x") -> Item:
        message = Message("a/b", payload, 1)
        return Item(1, RULE, message, id=id, target="a/b", key="a/b")

    def publish(self, *ids: str, exchange: str = "e", key: str = "k", **more: Any) -> None:
        for id in ids:
            block = wire.block_of({"message_id": id} | more)
            self.publisher.publish(self.item(id), exchange, key, block, self._done, mandatory=True)
        self.publisher.flush()

    def _done(self, item: Item, failure: Failure | None) -> None:
        self.answers.append((item.id, failure))

    def come(self, method: wire.Method, *fields: Any) -> None:
        ((kind, _, payload),) = Frames().feed(method.frame(1, *fields))
        self.channel.took(kind, payload)

    def come_back(self, id: str, exchange: str = "e", key: str = "k") -> None:
        self.come(wire.RETURN, 312, "NO_ROUTE", exchange, key)
        for frame in (
            wire.content_header(1, 1, wire.block_of({"message_id": id})),
            wire.frame_of(3, 1, b"x"),
        ):
            ((kind, _, payload),) = Frames().feed(frame)
            self.channel.took(kind, payload)

    def texts(self) -> list[tuple[str, str]]:
        return [(id, "" if failure is None else failure.reason) for id, failure in self.answers]


async def test_many_messages_are_one_write_in_their_order() -> None:
    at = Desk()
    at.publish("1", "2", "3")
    assert len(at.writes) == 1
    frames = Frames().feed(at.writes[0])
    assert [kind for kind, _, _ in frames] == [wire.METHOD, wire.HEADER, wire.BODY] * 3
    assert wire.method_from(frames[0][2]) == (wire.PUBLISH, [0, "e", "k", True, False])
    ids = [wire.content_from(frame[2])[1].message_id for frame in frames[1::3]]
    assert ids == ["1", "2", "3"]
    at.publisher.flush()
    assert len(at.writes) == 1


async def test_a_confirm_may_stand_for_many() -> None:
    at = Desk()
    at.publish("1", "2", "3", "4", "5")
    at.come(wire.ACK, 2, False)
    at.come(wire.ACK, 3, True)
    assert at.texts() == [("2", ""), ("1", ""), ("3", "")]
    at.come(wire.ACK, 3, True)
    at.come(wire.ACK, 9, False)
    assert len(at.answers) == 3
    at.come(wire.ACK, 0, True)  # everything
    assert at.texts()[3:] == [("4", ""), ("5", "")]


async def test_a_confirm_for_many_looks_at_none_that_is_long_answered() -> None:
    at = Desk()
    at.publish("1", "2", "3", "4")
    for tag, first in ((2, 1), (1, 3), (3, 4)):
        at.come(wire.ACK, tag, False)
        assert at.publisher._first == first
    at.come(wire.ACK, 4, True)
    assert at.texts() == [("2", ""), ("1", ""), ("3", ""), ("4", "")]


async def test_what_rabbitmq_refuses_may_work_later() -> None:
    at = Desk()
    at.publish("1", "2")
    at.come(wire.NACK, 2, True, False)
    assert [id for id, _ in at.answers] == ["1", "2"]
    for _, failure in at.answers:
        assert isinstance(failure, Retry)
        assert "basic.nack" in failure.reason


async def test_what_came_back_is_unroutable_when_it_is_confirmed() -> None:
    at = Desk()
    at.publish("1", "2")
    at.publish("2", exchange="other")
    at.come_back("2")
    at.come_back("2", key="nobody's")
    assert not at.answers
    at.come(wire.ACK, 3, True)
    text = "unroutable: no queue takes it (exchange 'e', routing key 'k')"
    assert at.texts() == [("1", ""), ("2", text), ("2", "")]
    at.publish("2")  # tried again, and now there is a queue
    at.come(wire.ACK, 4, False)
    assert at.texts()[-1] == ("2", "")


async def test_two_of_the_same_place_and_id_are_told_apart() -> None:
    at = Desk()
    one = at.item("1")
    at.publish("1")
    assert at.publisher.is_flying(one, "e", "k")
    assert not at.publisher.is_flying(one, "e", "other")
    waiting = asyncio.ensure_future(at.publisher.until_answered(one, "e", "k"))
    at.publish("2")
    await asyncio.sleep(0)
    at.come(wire.ACK, 2, False)
    await asyncio.sleep(0)
    assert not waiting.done()
    at.come(wire.ACK, 1, False)
    await waiting
    assert not at.publisher.is_flying(one, "e", "k")


async def test_nothing_is_answered_when_the_channel_ends_and_nobody_waits_on() -> None:
    at = Desk()
    one = at.item("1")
    at.publish("1")
    waiting = asyncio.ensure_future(at.publisher.until_answered(one, "e", "k"))
    await asyncio.sleep(0)
    at.channel.end(Ended("PRECONDITION_FAILED - too large", 406))
    await waiting
    at.publish("2")
    assert (at.answers, at.publisher.refusal, len(at.writes)) == ([], None, 1)


@pytest.mark.parametrize("words", ["access to exchange", "write access to exchange"])
async def test_a_right_that_is_missing_is_no_fault_of_a_message(words: str) -> None:
    at = Desk()
    at.publish("1", "2")
    at.publish("3", exchange="other")
    text = f"ACCESS_REFUSED - {words} 'e' in vhost '/' refused for user 'u'"
    at.channel.end(Ended(text, 403))
    at.publish("4")
    at.publish("5", exchange="other")
    assert [id for id, _ in at.answers] == ["1", "2", "4"]
    assert all(isinstance(failure, Refused) for _, failure in at.answers)
    assert str(at.publisher.refusal) == f"a rule: {text}"


async def test_the_exchange_without_a_name_has_one_in_refusals() -> None:
    at = Desk()
    at.publish("1", exchange="")
    text = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'"
    at.channel.end(Ended(text, 403))
    assert [id for id, _ in at.answers] == ["1"]


@pytest.mark.parametrize("key", ["k", "ACCESS_REFUSED - access to exchange 'e' in vhost"])
async def test_a_topic_that_nobody_may_publish_is_the_message_s_fault(key: str) -> None:
    at = Desk()
    at.publish("1", key=key)
    text = f"ACCESS_REFUSED - access to topic '{key}' in exchange 'e' in vhost '/' refused for user"
    at.channel.end(Ended(text, 403))
    assert (at.answers, at.publisher.refusal) == ([], None)


async def test_headers_larger_than_a_frame_are_poison_and_count_no_tag() -> None:
    at = Desk()
    at.connection.frame_max = 4096
    with pytest.raises(Poison, match=r"headers take 42\d\d bytes, and RabbitMQ takes 4096 at most"):
        at.publish("1", headers={"a": "x" * 4200})
    at.publish("2")
    at.come(wire.ACK, 1, False)
    assert at.texts() == [("2", "")]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.booleans()), max_size=30))
def test_each_is_answered_once_whatever_is_confirmed(
    steps: Sequence[tuple[bool, int, bool]],
) -> None:
    async def run() -> None:
        at = Desk()
        flying: list[int] = []
        expected: list[str] = []
        last = 0
        for publish, tag, multiple in steps:
            if publish:
                last += 1
                flying.append(last)
                at.publish(str(last))
                continue
            all_of_them = multiple and tag == 0
            hit = [n for n in flying if n == tag or (multiple and n < tag) or all_of_them]
            flying = [number for number in flying if number not in hit]
            expected += map(str, hit)
            at.come(wire.ACK, tag, multiple)
        assert [id for id, _ in at.answers] == expected

    asyncio.run(run())
