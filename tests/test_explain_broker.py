"""`explain` on a broker with a plugin that denies, changes and takes; the audit trail beside it."""

import asyncio
import logging
from typing import Any

import pytest

from mqttd.app import App
from mqttd.core.packets import Connack, Connect, Filter, Puback, Publish, Suback, Subscribe
from mqttd.core.properties import Properties
from mqttd.net.lines import Refused
from mqttd.operate import answers, audit
from mqttd.operate.answers import Operator
from tests.net.kit import Wire, loopback, running

PLUGIN = {"use": "tests.gate:Gate"}


def guarded(tmp_path: Any) -> dict[str, object]:
    return {
        "listeners": [loopback(allow_anonymous=True)],
        "control": {"path": str(tmp_path / "m.ctl")},
        "plugins": [PLUGIN],
    }


async def asked(app: App, **request: object) -> tuple[list[Any], Any]:
    """An answer of the broker, without the socket."""
    operator = Operator(app.broker, app.hooks, lambda: None, app._reload_told)
    lines = [
        line async for portion in operator.answer({"do": "explain", **request}) for line in portion
    ]
    return [line["item"] for line in lines[:-1]], lines[-1]["end"]


async def client(app: App, client_id: str) -> Wire:
    wire = await Wire.open(app.listeners[0].port)
    await wire.connect(client_id)
    return wire


async def publish(wire: Wire, topic: str) -> int:
    """At QoS 1; the reason code of the answer."""
    wire.publish(topic, b"secret payload", 1, 1)
    return (await wire.receive(Puback)).reason


async def test_who_allowed_denied_changed_and_took_it(tmp_path: Any) -> None:
    async with (
        running(guarded(tmp_path)) as app,
        await client(app, "sub") as sub,
        await client(app, "pub") as pub,
    ):
        await sub.subscribe("#")
        assert await publish(pub, "fine") == 0
        assert await publish(pub, "forbidden/x") == 0x87
        assert await publish(pub, "rename/me") == 0
        assert await publish(pub, "eaten") == 0
        messages, end = await asked(app)
        fine, forbidden, renamed, eaten = messages
        assert (fine["topic"], fine["verdict"]) == ("fine", "accepted")
        assert fine["rule"] == "gate:2 all else"
        assert (forbidden["verdict"], forbidden["rule"]) == ("denied", "gate:1 forbidden")
        assert (renamed["topic"], renamed["changed_by"]) == ("renamed", ["Gate"])
        assert (eaten["topic"], eaten["changed_by"]) == ("eaten", ["Gate: eaten"])
        assert eaten["receivers"] == []
        assert end["record"]["limit"] == 10_000
        _, end = await asked(app, client="sub", topic="eaten")
        assert "taken_by_plugin" in [one["code"] for one in end["findings"]]
        _, end = await asked(app, client="sub", topic="forbidden/x")
        (denied,) = [one for one in end["findings"] if one["code"] == "publish_denied"]
        assert denied["rule"] == "gate:1 forbidden"


async def test_what_a_receiver_may_not_have_is_dropped_and_counted(tmp_path: Any) -> None:
    async with (
        running(guarded(tmp_path)) as app,
        await client(app, "sub") as sub,
        await client(app, "pub") as pub,
    ):
        await sub.subscribe("#")
        await publish(pub, "hidden/x")
        assert app.broker.counters.dropped == {"not_authorized": 1}
        (message,), end = await asked(app, client="sub", topic="hidden/x")
        assert message["receivers"][0]["dropped"] == {"not_authorized": 1}
        codes = {one["code"]: one for one in end["findings"]}
        assert codes["receive_denied"]["rule"] == "gate:4 hidden"
        assert codes["dropped"]["reason"] == "not_authorized"


async def test_what_a_plugin_takes_is_dropped_and_counted(tmp_path: Any) -> None:
    async with (
        running(guarded(tmp_path)) as app,
        await client(app, "sub") as sub,
        await client(app, "pub") as pub,
    ):
        await sub.subscribe("#")
        await publish(pub, "filtered")
        await publish(pub, "fine")
        assert (await sub.receive(Publish)).topic == "fine"
        assert app.broker.counters.dropped == {"dropped_by_plugin": 1}
        (message,), _ = await asked(app, client="sub", topic="filtered")
        assert message["receivers"][0]["dropped"] == {"dropped_by_plugin": 1}


async def test_a_subscribe_that_was_refused(tmp_path: Any) -> None:
    async with (
        running(guarded(tmp_path)) as app,
        await client(app, "sub") as sub,
        await client(app, "pub") as pub,
    ):
        sub.send(Subscribe(1, [Filter("secret/#", 0, False, False, 0)]))
        assert (await sub.receive(Suback)).reasons == [0x87]
        await publish(pub, "secret/x")
        _, end = await asked(app, client="sub", topic="secret/x")
        (denied,) = [one for one in end["findings"] if one["code"] == "subscribe_denied"]
        assert denied["rule"] == "gate:3 secret"


async def test_the_rule_of_the_first_answer_is_on_record_for_what_it_granted(tmp_path: Any) -> None:
    async with (
        running(guarded(tmp_path)) as app,
        await client(app, "pub") as pub,
    ):
        for topic in ("a", "b", "a"):  # granted before: nobody was asked
            await publish(pub, topic)
        messages, _ = await asked(app)
        assert [one["rule"] for one in messages] == ["gate:2 all else"] * 3
        assert [one["asked_now"] for one in messages] == [False] * 3


async def test_without_a_rule_in_the_record_the_plugins_are_asked_now(tmp_path: Any) -> None:
    tree = {**guarded(tmp_path), "plugins": [{"use": "tests.gate:Doorman"}]}
    async with running(tree) as app, await client(app, "pub") as pub:
        for topic in ("a", "b", "a"):  # at QoS 0 the third goes the short way, past every rule
            pub.publish(topic, b"x")
        await publish(pub, "end")
        messages, _ = await asked(app)
        assert [one["rule"] for one in messages] == ["doorman:1"] * 4
        assert [one["asked_now"] for one in messages] == [False, False, True, False]


async def test_a_plugin_that_is_slow_to_say_keeps_no_answer_waiting(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "EXPLAIN_S", 0.05)
    tree = {**guarded(tmp_path), "plugins": [{"use": "tests.gate:Doorman"}]}
    async with running(tree) as app, await client(app, "pub") as pub:
        for topic in ("a", "b", "a"):
            pub.publish(topic, b"x")
        await publish(pub, "end")

        async def hang(*_: object) -> None:
            await asyncio.get_running_loop().create_future()

        assert app.hooks is not None
        monkeypatch.setattr(app.hooks.chains, "authorize_publish", hang)
        messages, end = await asked(app)
        assert end["late"]
        assert [one["rule"] for one in messages] == ["doorman:1", "doorman:1", "", "doorman:1"]


async def test_a_question_that_is_none(tmp_path: Any) -> None:
    async with running(guarded(tmp_path)) as app:
        for request in ({"topic": "a#"}, {"client": 3}, {"since_s": "x"}, {"limit": -1}):
            with pytest.raises(Refused):
                await asked(app, **request)


# The audit trail.


def lines(caplog: pytest.LogCaptureFixture, kind: str) -> list[dict[str, object]]:
    """The fields of all lines of a kind in the trail."""
    return [
        record.__dict__["mqttd_fields"]
        for record in caplog.records
        if record.name == "mqttd.audit" and record.getMessage() == kind
    ]


async def test_the_trail_says_who_came_and_who_was_refused(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(guarded(tmp_path)) as app:
        async with await Wire.open(app.listeners[0].port) as wire:
            wire.send(Connect("MQTT", 5, True, 0, "c1", None, "ann\n", b"s4cr4t", Properties()))
            assert (await wire.receive(Connack)).reason == 0
        async with await Wire.open(app.listeners[0].port) as wire:
            wire.send(Connect("MQTT", 5, True, 0, "c2", None, "bob", b"s3cr3t", Properties()))
            assert (await wire.receive(Connack)).reason == 0x86
        await app.stop(0.0)
    (came,) = lines(caplog, "connect")
    assert (came["client"], came["user"]) == ("c1", "ann\n")
    assert str(came["peer"]).startswith("127.0.0.1:")
    (refused,) = lines(caplog, "refused")
    assert (refused["client"], refused["user"]) == ("c2", "bob")
    assert "not that one" in str(refused["reason"])
    assert "s3cr3t" not in repr([record.__dict__ for record in caplog.records])


async def test_denials_are_in_the_trail_and_one_client_cannot_flood_it(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        running(guarded(tmp_path)) as app,
        await client(app, "pub") as pub,
        await client(app, "other") as other,
    ):
        for number in range(audit.DENIALS + 20):
            await publish(pub, f"forbidden/{number}")
        await publish(other, "forbidden/x")
        other.send(Subscribe(1, [Filter("secret/#", 0, False, False, 0)]))
        await other.receive(Suback)
    denied = lines(caplog, "publish_denied")
    assert [one["client"] for one in denied] == ["pub"] * audit.DENIALS + ["other"]
    assert denied[0]["topic"] == "forbidden/0"
    assert denied[0]["reason"] == "gate:1 forbidden"
    (subscribe,) = lines(caplog, "subscribe_denied")
    assert subscribe["topic"] == "secret/#"
    assert "secret payload" not in caplog.text
