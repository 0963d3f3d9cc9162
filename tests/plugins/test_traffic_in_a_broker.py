"""rate_limit, ban, topic_rewrite, delayed, webhook and schema where they belong: in a broker that
listens, with clients that speak MQTT. What each of them does is shown in tests of its own."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

import mqttd
from mqttd.api import reason_codes
from mqttd.core.packets import (
    Disconnect,
    Puback,
    Publish,
    Unsuback,
    Unsubscribe,
)
from mqttd.core.properties import decode_forwardable
from tests.net.kit import Wire, until
from tests.plugins.broker_kit import (
    acknowledged,
    broker_with,
    client,
    counts_of,
    plugin_of,
    rewriting,
)
from tests.store.test_process import connect as lasting
from tests.store.test_process import ready

# rate_limit


async def test_who_does_not_yield_is_refused_or_sent_away() -> None:
    limits: dict[str, Any] = {"client": {"messages": 0.001}, "max_delay": 0}
    async with (
        broker_with({"use": "rate_limit", "config": limits}) as broker,
        client(broker, "writer") as writer,
    ):
        answers = [await acknowledged(writer, "t", b"x", number) for number in (1, 2)]
        assert answers == [reason_codes.NO_MATCHING_SUBSCRIBERS, reason_codes.QUOTA_EXCEEDED]
    limits["then"] = "disconnect"
    async with (
        broker_with({"use": "rate_limit", "config": limits}) as broker,
        client(broker, "writer") as writer,
    ):
        writer.publish("t", b"x")
        writer.publish("t", b"x")
        assert (await writer.receive(Disconnect)).reason == reason_codes.MESSAGE_RATE_TOO_HIGH


# ban


async def connack(broker: mqttd.Broker, name: str) -> int:
    async with await Wire.open(broker.port("t")) as wire:
        return (await wire.connect(name)).reason


async def test_a_ban_by_hand_ends_the_connection_and_outlives_the_broker(tmp_path: Path) -> None:
    plugin = {"use": "ban"}
    storage = {"path": str(tmp_path / "mqttd.db")}
    async with broker_with(plugin, storage=storage) as broker, client(broker, "pump") as pump:
        arguments = {"kind": "client", "value": "pump", "reason": "broken"}
        answer = await plugin_of(broker, "ban").control("add", arguments)
        assert isinstance(answer, dict)
        assert answer["kicked"] == ["pump"]
        reason = (await pump.receive(Disconnect)).reason
        assert reason == reason_codes.ADMINISTRATIVE_ACTION
        assert await connack(broker, "pump") == reason_codes.BANNED
        assert await connack(broker, "valve") == reason_codes.SUCCESS
    async with broker_with(plugin, storage=storage) as broker:
        assert await connack(broker, "pump") == reason_codes.BANNED
        await plugin_of(broker, "ban").control("remove", {"kind": "client", "value": "pump"})
        assert await connack(broker, "pump") == reason_codes.SUCCESS


async def test_an_address_that_guesses_passwords_is_kept_out() -> None:
    rule = {"exempt": [], "brute_force": {"failures": 3}}
    listener = {"name": "t", "bind": "127.0.0.1:0", "allow_anonymous": False}
    async with broker_with({"use": "ban", "config": rule}, listeners=[listener]) as broker:
        answers = []
        for _ in range(3):
            answers.append(await connack(broker, "c"))
        bans = plugin_of(broker, "ban")
        await until(lambda: bans._bans.entries)  # type: ignore[attr-defined]
        assert answers == [reason_codes.NOT_AUTHORIZED] * 3
        assert await connack(broker, "c") == reason_codes.BANNED


async def test_an_authenticator_that_fails_bans_nobody() -> None:
    rule = {"exempt": [], "brute_force": {"failures": 1}}
    broken = {"use": "tests.plugins.rights:Broken"}
    async with broker_with({"use": "ban", "config": rule}, broken) as broker:
        for _ in range(3):
            assert await connack(broker, "c") == reason_codes.UNSPECIFIED_ERROR
        assert counts_of(broker, "ban") == {}


async def test_a_client_that_flaps_is_kicked_and_kept_out() -> None:
    rule = {"exempt": [], "flapping": {"connects": 3}}
    async with broker_with({"use": "ban", "config": rule}) as broker:
        for _ in range(2):
            assert await connack(broker, "c") == reason_codes.SUCCESS
        async with client(broker, "c") as flapping:
            reason = (await flapping.receive(Disconnect)).reason
            assert reason == reason_codes.ADMINISTRATIVE_ACTION
        assert await connack(broker, "c") == reason_codes.BANNED
        assert await connack(broker, "d") == reason_codes.SUCCESS


async def test_an_older_client_that_is_banned_is_not_authorised() -> None:
    rule = {"use": "ban", "config": {"exempt": []}}
    async with broker_with(rule) as broker:
        await plugin_of(broker, "ban").control("add", {"kind": "address", "value": "127.0.0.0/8"})
        async with await Wire.open(broker.port("t")) as wire:
            wire.version = 4
            assert (await wire.connect("c")).reason == 5  # not authorised


# topic_rewrite


async def test_old_and_new_topics_meet() -> None:
    rules = rewriting(
        ("publish subscribe", "old/#", "new/{topic[1:]}"), ("deliver", "new/+/out", "{topic[1]}")
    )
    async with (
        broker_with(rules) as broker,
        client(broker, "reader") as reader,
        client(broker, "writer") as writer,
    ):
        await reader.subscribe("old/+/x", 1)
        await reader.subscribe("new/+/out", 1)
        assert await acknowledged(writer, "old/1/x", b"1") == reason_codes.SUCCESS
        assert await acknowledged(writer, "new/2/x", b"2") == reason_codes.SUCCESS
        assert await acknowledged(writer, "old/3/out", b"3") == reason_codes.SUCCESS
        got = [await reader.receive(Publish) for _ in range(3)]
        assert [(one.topic, one.payload) for one in got] == [
            *(("new/1/x", b"1"), ("new/2/x", b"2"), ("3", b"3")),
        ]
        reader.send(Unsubscribe(2, ["old/+/x"]))
        assert (await reader.receive(Unsuback)).reasons == [reason_codes.SUCCESS]
        reason = await acknowledged(writer, "old/1/x", b"4")
        assert reason == reason_codes.NO_MATCHING_SUBSCRIBERS


# delayed


async def test_a_delayed_message_goes_out_in_its_time_and_to_its_topic_alone() -> None:
    async with (
        broker_with({"use": "delayed"}) as broker,
        client(broker, "writer") as writer,
        client(broker, "reader") as reader,
    ):
        await reader.subscribe("#", 1)
        await reader.subscribe("$delayed/#", 1)
        for seconds, payload in ((3600, b"later"), (0, b"soon")):
            topic = f"$delayed/{seconds}/a"
            assert await acknowledged(writer, topic, payload) == reason_codes.SUCCESS
        message = await reader.receive(Publish)
        assert (message.topic, message.payload, message.qos) == ("a", b"soon", 1)
        answer = await plugin_of(broker, "delayed").control("list", {})
        assert isinstance(answer, dict)
        assert [one["topic"] for one in answer["messages"]] == ["a"]


async def test_delayed_messages_outlive_a_broker_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "mqttd.yaml").write_text(
        "listeners: [{name: tcp, bind: '127.0.0.1:0'}]\n"
        "storage: {path: mqttd.db}\n"
        "plugins: [{use: delayed}]\n"
    )

    sent = [b"%d" % number for number in range(20)]

    async def started() -> tuple[asyncio.subprocess.Process, Wire]:
        arguments = ("-m", "mqttd", "run", "-c", "mqttd.yaml")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments), stdout=PIPE, stderr=PIPE, cwd=tmp_path
        )
        return process, await Wire.open(await ready(process))

    process, wire = await started()
    async with wire:
        await lasting(wire, "reader")
        await wire.subscribe("a", 1)
        for number, payload in enumerate(sent):
            wire.publish("$delayed/2/a", payload, 1, number + 1)
        for _ in sent:
            assert (await wire.receive(Puback)).reason == reason_codes.SUCCESS
        process.kill()
    await process.communicate()
    process, wire = await started()
    got: list[bytes] = []
    async with wire:
        assert await lasting(wire, "reader")
        while len(got) < len(sent):
            message = await wire.receive(Publish)
            wire.send(Puback(message.packet_id))
            if message.payload not in got:  # on a slow machine it was killed while they left
                got.append(message.payload)
    assert got == sent
    process.terminate()
    await process.communicate()


# webhook


async def test_a_service_hears_who_comes_and_goes() -> None:
    told: list[dict[str, Any]] = []

    async def hook(request: web.Request) -> web.Response:
        told.extend(json.loads(await request.read())["events"])
        return web.Response(status=503 if len(told) == 1 else 200)

    application = web.Application()
    application.router.add_post("/", hook)
    server = TestServer(application, host="127.0.0.1")
    await server.start_server()
    config = {
        "url": str(server.make_url("/")),
        "events": ["connected", "published", "disconnected"],
        "retry_first": "10ms",
        "linger": 0,
    }
    try:
        async with broker_with({"use": "webhook", "config": config}) as broker:
            async with client(broker, "pump") as wire:
                await until(lambda: len(told) == 2)
                await acknowledged(wire, "a/b", b"secret")
            await until(lambda: len(told) == 4)
    finally:
        await server.close()
    assert [(one["kind"], one["client_id"], one["topic"]) for one in told] == [
        ("connected", "pump", ""),
        ("connected", "pump", ""),  # the first time it was answered 503
        ("published", "pump", "a/b"),
        ("disconnected", "pump", ""),
    ]
    assert told[0] == told[1]
    assert "payload" not in told[2]


# schema


async def test_what_is_not_valid_is_refused_or_put_aside(tmp_path: Path) -> None:
    (tmp_path / "number.json").write_text('{"type": "number"}')
    file = str(tmp_path / "number.json")
    config = {
        "rules": [
            {"filter": "a/+", "file": file},
            {"filter": "b/+", "file": file, "mode": "quarantine", "quarantine": "bad"},
        ]
    }
    async with (
        broker_with({"use": "schema", "config": config}) as broker,
        client(broker, "reader") as reader,
        client(broker, "writer") as writer,
    ):
        await reader.subscribe("#", 1)
        reason = await acknowledged(writer, "a/1", b"cold")
        assert reason == reason_codes.PAYLOAD_FORMAT_INVALID
        assert await acknowledged(writer, "b/1", b"cold") == reason_codes.SUCCESS
        assert await acknowledged(writer, "a/1", b"21") == reason_codes.SUCCESS
        got = [await reader.receive(Publish) for _ in range(2)]
    assert [(one.topic, one.payload) for one in got] == [("bad", b"cold"), ("a/1", b"21")]
    pairs = decode_forwardable(got[0].properties).user_properties
    assert pairs == [
        ("original-topic", "b/1"),
        ("reason", "no JSON"),
        ("client-id", "writer"),
    ]
