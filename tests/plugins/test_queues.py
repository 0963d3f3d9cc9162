"""Queues by name: their configuration, and what they do in a broker."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins.queues import Config, Queues
from pydantic import ValidationError

import mqttd
from mqttd.api import (
    Client,
    Deny,
    Message,
    SubscriptionRequest,
    Undelivered,
    reason_codes,
)
from mqttd.core.packets import Filter, Puback, Publish, Suback, Subscribe, Unsuback, Unsubscribe
from mqttd.core.properties import decode_forwardable
from mqttd.core.spec import NO_MATCHING_SUBSCRIBERS
from mqttd.testing import StandIn
from tests.hooks.kit import hooked, prepared
from tests.net.kit import Wire, until
from tests.plugins.broker_kit import RIGHTS, acknowledged, broker_with, client, plugin_of

QUEUES = "mqttd_plugins.queues:Queues"
ME = Client("c")


def config(**values: Any) -> Config:
    return Config.model_validate(values)


def queues(*made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"use": QUEUES, "name": "queues", "config": {"queues": list(made), **more}}


async def started(**values: Any) -> tuple[Queues, StandIn]:
    broker = StandIn("queues")
    plugin = await broker.start(Queues, config(**values))
    assert isinstance(plugin, Queues)
    return plugin, broker


# The configuration.


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"queues": [{"name": "a/b"}]}, "name"),
        ({"queues": [{"name": ""}]}, "name"),
        ({"queues": [{"name": "a"}, {"name": "a"}]}, "two of them are called a"),
        ({"queues": [{"name": "a", "filter": "a/#/b"}]}, "filter: expected a topic filter"),
        ({"queues": [{"name": "a", "filter": "$share/g/a"}]}, "without"),
        ({"queues": [{"name": "a", "dead_letter_topic": "a/+"}]}, "expected a topic"),
        ({"queues": [{"name": "a", "dead_letter_topic": "$SYS/a"}]}, "belongs to the broker"),
        ({"queues": [{"name": "a", "order": "lifo"}]}, "order"),
        ({"on_demand": {"max_queues": 0}}, "max_queues"),
    ],
)
def test_what_is_no_configuration(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**values)


async def test_every_option_becomes_the_policy_of_the_group() -> None:
    _, broker = await started(
        queues=[
            {
                "name": "a",
                "filter": "x/#",
                "max_length": 5,
                "overflow": "drop_oldest",
                "ttl": "1m",
                "order": "strict",
                "redelivery_limit": 3,
                "exclusive": True,
                "last_value": True,
                "keep_qos0": False,
            }
        ]
    )
    policy = broker.policies["$share/$queue.a/x/#"]
    assert policy is not None
    assert (policy.max_length, policy.drop_oldest, policy.ttl_s) == (5, True, 60.0)
    assert (policy.redelivery_limit, policy.one_at_a_time, policy.exclusive) == (3, True, True)
    assert (policy.last_value, policy.keep_qos0) == (True, False)


# Names.


async def test_a_name_stands_for_the_shared_subscription() -> None:
    plugin, _ = await started(queues=[{"name": "a", "filter": "x/#"}, {"name": "b"}])
    found = plugin.on_subscribe(ME, SubscriptionRequest("$queue/a", 2, True, False, 1))
    assert found == SubscriptionRequest("$share/$queue.a/x/#", 1, False, False, 1)
    found = plugin.on_subscribe(ME, SubscriptionRequest("$queue/b", 0))
    assert found == SubscriptionRequest("$share/$queue.b/$queue/b", 0)
    assert plugin.on_unsubscribe(ME, "$queue/a") == "$share/$queue.a/x/#"
    assert plugin.on_unsubscribe(ME, "$queue/z") == "$share/$queue.z/$queue/z"


async def test_other_subscriptions_are_left_alone() -> None:
    plugin, _ = await started(queues=[{"name": "a"}])
    for topic_filter in ("#", "a", "$share/g/$queue/a", "$queue"):
        assert plugin.on_subscribe(ME, SubscriptionRequest(topic_filter, 2)) is None
        assert plugin.on_unsubscribe(ME, topic_filter) is None
    by_hand = SubscriptionRequest("$share/$queue.a/$queue/a", 2)
    assert plugin.on_subscribe(ME, by_hand) == SubscriptionRequest(by_hand.topic_filter, 1)


@pytest.mark.parametrize("name", ["", "b", "+", "#", "a/b", "a/", "A"])
async def test_a_queue_that_is_not_there_cannot_be_subscribed_to(name: str) -> None:
    plugin, broker = await started(queues=[{"name": "a"}])
    denied = plugin.on_subscribe(ME, SubscriptionRequest(f"$queue/{name}"))
    assert isinstance(denied, Deny)
    assert denied.code == reason_codes.TOPIC_FILTER_INVALID
    assert broker.counts == {"unknown_queue": 1}


@pytest.mark.parametrize(("name", "made"), [("job.1", True), ("other", False), ("job/1", False)])
async def test_queues_on_demand_have_names_like_others(name: str, made: bool) -> None:
    plugin, _ = await started(on_demand={"prefix": "job"})
    answer = plugin.on_subscribe(ME, SubscriptionRequest(f"$queue/{name}"))
    assert isinstance(answer, SubscriptionRequest) == made


# Dead letters.


async def test_dead_letters_go_where_the_queue_says() -> None:
    plugin, _ = await started(
        queues=[
            {"name": "a", "filter": "x/#", "dead_letter_topic": "dead/{queue}/{reason}/{topic}"},
            {"name": "b"},
        ]
    )
    message = Message("x/1", b"1", 0, True, expires_in_s=0.0)
    made = plugin.on_undelivered(Undelivered(message, "expired", "", "$share/$queue.a/x/#"))
    assert made is not None
    assert (made.topic, made.payload, made.qos, made.retain) == (
        "dead/a/expired/x/1",
        b"1",
        1,
        False,
    )
    assert made.expires_in_s is None
    for share in ("$share/$queue.b/$queue/b", "$share/$queue.z/x", "$share/a/x/#", ""):
        assert plugin.on_undelivered(Undelivered(message, "expired", "", share)) is None


# In a broker.


async def consume(wire: Wire, queue: str = "a") -> int:
    wire.send(Subscribe(1, [Filter(f"$queue/{queue}", 1)]))
    return (await wire.receive(Suback)).reasons[0]


async def take(wire: Wire, reason: int | None = 0) -> Publish:
    packet = await wire.receive(Publish)
    if reason is not None:
        wire.send(Puback(packet.packet_id, reason))
    return packet


async def queued(broker: mqttd.Broker, name: str = "a") -> tuple[int, int]:
    answer: Any = await plugin_of(broker, "queues").control("list", {})
    (found,) = [each for each in answer["queues"] if each["name"] == name]
    return found["queued"], found["consumers"]


async def test_messages_wait_for_a_consumer_over_a_restart(tmp_path: Path) -> None:
    storage = {"path": str(tmp_path / "q.db")}
    async with broker_with(queues({"name": "a"}), storage=storage) as broker:
        async with client(broker, "p") as wire:
            for n in range(100):  # more than the head of a queue
                assert await acknowledged(wire, "$queue/a", b"%d" % n, n + 1) == 0
        assert await queued(broker) == (100, 0)
    async with broker_with(queues({"name": "a"}), storage=storage) as broker:
        assert await queued(broker) == (100, 0)
        async with client(broker, "c") as wire:
            assert await consume(wire) == 1
            packets = [await take(wire) for _ in range(100)]
            assert [int(packet.payload) for packet in packets] == list(range(100))
            # Nothing was handed to the queue's own session in the moments it was connected.
            assert not any(packet.properties for packet in packets)
            await until(lambda: not broker._app.broker.balance()[1])
    async with broker_with(queues({"name": "a"}), storage=storage) as broker:
        assert await queued(broker) == (0, 0)


async def test_consumers_share_the_work_and_what_one_leaves_goes_to_the_other() -> None:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            broker_with(queues({"name": "a", "filter": "work/#"}))
        )
        p = await stack.enter_async_context(client(broker, "p"))
        c1 = await stack.enter_async_context(client(broker, "c1"))
        async with client(broker, "c2") as c2:
            assert await consume(c1) == await consume(c2) == 1
            for n in range(4):
                await acknowledged(p, "work/x", b"%d" % n, n + 1)
            mine = [await take(c1), await take(c1)]
            lost = [await take(c2, None), await take(c2, None)]
        again = [await take(c1), await take(c1)]
        assert sorted(bytes(each.payload) for each in mine + again) == [b"0", b"1", b"2", b"3"]
        assert [each.payload for each in again] == [each.payload for each in lost]
        for each in again:
            found = decode_forwardable(each.properties).user_properties
            assert found == [("mqttd-redeliveries", "1")]
        c1.send(Unsubscribe(2, ["$queue/a"]))
        assert (await c1.receive(Unsuback)).reasons == [0]
        await acknowledged(p, "work/x", b"4", 9)
        assert await queued(broker) == (1, 0)


async def test_what_the_queue_gives_up_goes_to_its_dead_letter_topic() -> None:
    made = {
        "name": "a",
        "filter": "t",
        "redelivery_limit": 1,
        "max_length": 2,
        "dead_letter_topic": "dead/{reason}",
    }
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(broker_with(queues(made)))
        p = await stack.enter_async_context(client(broker, "p"))
        d = await stack.enter_async_context(client(broker, "d"))
        await d.subscribe("dead/#", 1)
        await acknowledged(p, "t", b"poison", 1)
        for name in ("c1", "c2"):
            async with client(broker, name) as consumer:
                await consume(consumer)
                assert (await take(consumer, None)).payload == b"poison"
        letter = await take(d)
        assert (letter.topic, letter.payload) == ("dead/redelivery_limit", b"poison")
        async with client(broker, "c3") as consumer:
            await consume(consumer)
            await acknowledged(p, "t", b"bad", 2)
            await take(consumer, 0x83)
            letter = await take(d)
            assert (letter.topic, letter.payload) == ("dead/refused_by_receiver", b"bad")
        for n in range(3):
            await acknowledged(p, "t", b"%d" % n, n + 3)
        letter = await take(d)
        assert (letter.topic, letter.payload) == ("dead/queue_full", b"2")
        properties = dict(decode_forwardable(letter.properties).user_properties)
        assert properties["mqttd-share"] == "$share/$queue.a/t"


async def test_what_expires_while_nobody_consumes_is_seen_to() -> None:
    made = {"name": "a", "ttl": "1ms", "dead_letter_topic": "dead"}
    async with broker_with(queues(made)) as broker, client(broker, "p") as p:
        await p.subscribe("dead", 1)
        await acknowledged(p, "$queue/a", b"1")
        plugin = plugin_of(broker, "queues")
        assert isinstance(plugin, Queues)

        def looked() -> bool:
            plugin._look()
            return not broker._app.broker.balance()[0]

        await until(looked)
        assert (await take(p)).payload == b"1"


async def test_a_queue_on_demand_is_made_and_stays(tmp_path: Path) -> None:
    storage = {"path": str(tmp_path / "q.db")}
    made = queues(on_demand={"prefix": "j", "max_queues": 2})
    async with broker_with(made, storage=storage) as broker:
        plugin = plugin_of(broker, "queues")
        assert isinstance(plugin, Queues)
        async with client(broker, "c") as wire:
            assert await consume(wire, "j1") == 1
            assert await consume(wire, "j2") == 1
            await until(lambda: len(plugin.queues) == 2)
            assert await consume(wire, "j3") == reason_codes.TOPIC_FILTER_INVALID
            assert await consume(wire, "k") == reason_codes.TOPIC_FILTER_INVALID
        async with client(broker, "p") as wire:
            assert await acknowledged(wire, "$queue/j1", b"1") == 0
    async with broker_with(made, storage=storage) as broker:
        assert await queued(broker, "j1") == (1, 0)
        again = plugin_of(broker, "queues")
        with pytest.raises(ValueError, match="1 messages wait in j1"):
            await again.control("delete", {"name": "j1"})
        assert await again.control("delete", {"name": "j1", "force": True}) == {
            "deleted": "j1",
            "messages": 1,
        }
        assert broker._app.broker.counters.dropped == {"session_ended": 1}
    async with broker_with(made, storage=storage) as broker:
        answer: Any = await plugin_of(broker, "queues").control("list", {})
        assert [each["name"] for each in answer["queues"]] == ["j2"]


async def test_a_publisher_makes_a_queue_before_anybody_consumes() -> None:
    """Two at once make one; a name that may not be is made by nobody."""
    made = config(on_demand={"prefix": "j", "made_by": "anybody", "max_queues": 1})
    async with hooked(prepared(Queues, "queues", made), durable=True) as it:
        plugin = it.manager.plugin("queues")
        assert isinstance(plugin, Queues)
        first, second = await it.client("p1"), await it.client("p2")
        for publisher in (first, second):
            publisher.publish("$queue/j1", publisher.client_id.encode(), 1)
        async with asyncio.timeout(30):
            while not (first.received and second.received):
                await it.commit()
        assert [each.take_first(Puback).reason for each in (first, second)] == [0, 0]
        assert list(plugin.queues) == ["j1"]
        for name in ("j2", "k"):
            first.publish(f"$queue/{name}", b"x", 1)
            await it.commit()
            assert first.take_first(Puback).reason == NO_MATCHING_SUBSCRIBERS
        consumer = await it.client("c")
        consumer.send(Subscribe(1, [Filter("$queue/j1", 1)]))
        await it.commit()
        assert sorted(bytes(each.payload) for each in consumer.messages()) == [b"p1", b"p2"]


async def test_publishers_are_not_looked_at_where_they_make_no_queues() -> None:
    for on_demand in (None, {"made_by": "consumers"}):
        async with hooked(prepared(Queues, "queues", config(on_demand=on_demand))) as it:
            assert it.broker.hooks.publish is None
            plugin = it.manager.plugin("queues")
            assert isinstance(plugin, Queues)
            with pytest.raises(ValueError, match="can't"):
                await plugin.reload(config(on_demand={"made_by": "anybody"}))


async def test_what_waits_in_a_queue_that_is_deleted_goes_to_its_dead_letter_topic() -> None:
    made = config(on_demand={"made_by": "anybody", "dead_letter_topic": "dead/{queue}/{reason}"})
    async with hooked(prepared(Queues, "queues", made)) as it:
        collector = await it.client("collector")
        collector.send(Subscribe(1, [Filter("dead/#", 1)]))
        publisher = await it.client("p")
        publisher.publish("$queue/q", b"1", 1)
        await it.until(lambda: publisher.received)
        plugin = it.manager.plugin("queues")
        assert isinstance(plugin, Queues)
        answer = await plugin.control("delete", {"name": "q", "force": True})
        assert answer == {"deleted": "q", "messages": 1}
        await it.turn()
        (letter,) = collector.messages()
        assert (letter.topic, bytes(letter.payload)) == ("dead/q/session_ended", b"1")


async def test_nobody_makes_a_queue_that_it_may_not_have() -> None:
    rights = {"use": RIGHTS, "config": {"publish": [], "subscribe": ["$queue/mine"]}}
    async with broker_with(queues(on_demand={}), rights) as broker, client(broker, "c") as wire:
        plugin = plugin_of(broker, "queues")
        assert isinstance(plugin, Queues)
        assert await consume(wire, "other") == reason_codes.NOT_AUTHORIZED
        assert await consume(wire, "mine") == 1
        await until(lambda: plugin.queues)
        assert list(plugin.queues) == ["mine"]


async def test_a_filter_cannot_change_under_messages_that_wait(tmp_path: Path) -> None:
    storage = {"path": str(tmp_path / "q.db")}
    async with broker_with(queues({"name": "a", "filter": "x"}), storage=storage) as broker:
        async with client(broker, "p") as wire:
            await acknowledged(wire, "x", b"1")
        plugin = plugin_of(broker, "queues")
        with pytest.raises(ValueError, match=r"1 messages of its filter x\s+wait"):
            await plugin.reload(config(queues=[{"name": "a", "filter": "y"}]))
        async with client(broker, "c") as wire:
            await consume(wire)
            await take(wire)
            await until(lambda: broker._app.broker.balance() == (0, 0))
        await plugin.reload(config(queues=[{"name": "a", "filter": "y"}, {"name": "b"}]))
        async with client(broker, "p") as wire:
            await acknowledged(wire, "y", b"2")
        assert await queued(broker) == (1, 0)
        with pytest.raises(ValueError, match="declared in the configuration"):
            await plugin.control("delete", {"name": "a"})
        with pytest.raises(ValueError, match="expected one of a, b"):
            await plugin.control("delete", {"name": "z"})
        with pytest.raises(ValueError, match="on_demand"):
            await plugin.reload(config(on_demand={}))
