"""Ways around rights and order that plugins have opened in other brokers, tried on ours.

Each test bears the name of the report it comes from. The plugins are rate_limit, topic_rewrite and
delayed, inside a broker that listens.
"""

from pathlib import Path

import pytest

from mqttd.api import reason_codes
from mqttd.core.packets import Puback, Publish
from tests.plugins.broker_kit import (
    RIGHTS,
    acknowledged,
    broker_with,
    client,
    counts_of,
    granted,
    rewriting,
)


@pytest.mark.parametrize("qos", [1, 2])
async def test_emqx_order_is_kept_under_a_rate_limit(qos: int) -> None:
    """EMQX (changes): QoS 1 and 2 out of order under a rate limit."""
    limits = {"client": {"messages": 200.0, "burst": "10ms"}}
    async with (
        broker_with({"use": "rate_limit", "config": limits}) as broker,
        client(broker, "reader") as reader,
        client(broker, "writer") as writer,
    ):
        await reader.subscribe("t", 1)
        sent = [b"%d" % number for number in range(30)]
        for number, payload in enumerate(sent):
            writer.publish("t", payload, qos, number + 1)
        got = []
        for number in range(len(sent)):
            message = await reader.receive(Publish)
            reader.send(Puback(number + 1))
            got.append(message.payload)
        assert got == sent
        assert counts_of(broker, "rate_limit")["delayed"] > 0


async def test_mosquitto_3670_what_was_rewritten_is_authorised_again() -> None:
    """mosquitto #3670, #3672: a plugin rewrites a topic after the access list was asked."""
    rules = rewriting(("publish subscribe", "open/#", "secret/{topic[1:]}"))
    rights = {"use": RIGHTS, "config": {"publish": ["open/#"], "subscribe": ["open/#"]}}
    for plugins in ((rules, rights), (rights, rules)):
        async with (
            broker_with(*plugins) as broker,
            client(broker, "c") as wire,
        ):
            assert await acknowledged(wire, "open/x", b"x") == reason_codes.NOT_AUTHORIZED
            assert await granted(wire, "open/x") == reason_codes.NOT_AUTHORIZED
    # And the other way round: a right to what comes out is none to what goes in.
    rights["config"] = {"publish": ["secret/#"], "subscribe": ["secret/#"]}
    async with broker_with(rules, rights) as broker, client(broker, "c") as wire:
        assert await acknowledged(wire, "open/x", b"x") == reason_codes.NOT_AUTHORIZED


async def test_mosquitto_3671_what_goes_out_under_another_topic_is_authorised_again() -> None:
    """mosquitto #3671: a plugin rewrites the topic of what goes out after the check."""
    rules = rewriting(("deliver", "open/#", "secret/{topic[1:]}"))
    rights = {"use": RIGHTS, "config": {"publish": ["#"], "receive": ["open/#", "end"]}}
    async with (
        broker_with(rules, rights) as broker,
        client(broker, "c") as wire,
        client(broker, "writer") as other,
    ):
        await wire.subscribe("#", 1)
        for topic in ("open/x", "end"):
            assert await acknowledged(other, topic, b"x") == reason_codes.SUCCESS
        assert (await wire.receive(Publish)).topic == "end"


async def test_cve_2026_95846_a_delay_is_no_way_around_a_right() -> None:
    """CVE-2026-95846: a message that is published on behalf of a client escapes its rights."""
    rights = {"use": RIGHTS, "config": {"publish": ["$delayed/#", "open"]}}
    async with (
        broker_with({"use": "delayed"}, rights) as broker,
        client(broker, "c") as wire,
    ):
        assert await acknowledged(wire, "$delayed/0/secret", b"x") == reason_codes.NOT_AUTHORIZED
        assert await acknowledged(wire, "$delayed/0/open", b"x") == reason_codes.SUCCESS
    rights = {"use": RIGHTS, "config": {"publish": ["open"]}}
    async with (
        broker_with({"use": "delayed"}, rights) as broker,
        client(broker, "c") as wire,
    ):
        assert await acknowledged(wire, "$delayed/0/open", b"x") == reason_codes.NOT_AUTHORIZED


async def test_a_delay_is_no_way_around_other_plugins(tmp_path: Path) -> None:
    """Rules are written for topics, not for the ways that lead there."""
    file = tmp_path / "number.json"
    file.write_text('{"type": "number"}')
    schema = {"rules": [{"filter": "sensors/#", "file": str(file)}]}
    rules = rewriting(("publish", "home/#", "of/{client_id}/{topic}"))
    async with (
        broker_with({"use": "schema", "config": schema}, rules, {"use": "delayed"}) as broker,
        client(broker, "c") as wire,
        client(broker, "reader") as reader,
    ):
        await reader.subscribe("#", 1)
        refused = await acknowledged(wire, "$delayed/0/sensors/1", b"cold")
        assert refused == reason_codes.PAYLOAD_FORMAT_INVALID
        for topic in ("$delayed/0/sensors/1", "$delayed/0/home/1"):
            assert await acknowledged(wire, topic, b"21") == reason_codes.SUCCESS
        got = {(await reader.receive(Publish)).topic for _ in range(2)}
    assert got == {"sensors/1", "of/c/home/1"}


@pytest.mark.parametrize("topic", ["$SYS/broker/version", "$share/g/a", "$delayed/0/a"])
async def test_aedes_597_a_delay_is_no_way_to_the_topics_of_the_broker(topic: str) -> None:
    """aedes #597: clients publish to topics that only the broker should."""
    async with broker_with({"use": "delayed"}) as broker, client(broker, "c") as wire:
        reason = await acknowledged(wire, f"$delayed/0/{topic}", b"x")
        assert reason == reason_codes.TOPIC_NAME_INVALID
