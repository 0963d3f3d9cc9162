"""`bridge_activemq`: its configuration, its headers, and all it promises, on a real ActiveMQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._bridge.properties import message_from
from mqttd_plugins._bridge.remote import Poison
from mqttd_plugins._stomp import Frame, StompConnection
from mqttd_plugins.bridge_activemq import (
    ActiveMQRule,
    Config,
    destination_of,
    received_headers,
    sent_headers,
)
from pydantic import ValidationError

from mqttd.api import Message
from tests.bridges.faces import bridge_of, figures, item, until_state, with_bridge
from tests.bridges.far_activemq import PLUGIN, FarActiveMQ, connection_to
from tests.bridges.mqtt_kit import Peer, properties_of, user_of
from tests.bridges.servers import Server
from tests.bridges.trial import trial
from tests.net.kit import until

OUT = {"direction": "out", "from": "site/#", "to": "/queue/t.{topic}"}
RULE = ActiveMQRule.model_validate(OUT)
WALL = 1_700_000_000.0
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
WORDS = TEXTS.filter(bool) | st.sampled_from(
    ["destination", "mqtt-topic", "transformation", "JMSXGroupID", "mqtt-user-a", "ack"]
)


def real(test: Any) -> Any:
    return pytest.mark.bridges(pytest.mark.xdist_group("activemq")(test))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({**OUT, "to": "mine"}, "to: 'mine': expected /queue/NAME or /topic/NAME"),
        ({**OUT, "to": "/queue/"}, "to: '/queue/': expected"),
        ({**OUT, "to": "/queue/a,b"}, "',' would make several destinations"),
        ({**OUT, "durable": "x"}, "durable: only rules with `direction: in`"),
        ({"direction": "in", "from": "mine"}, "from: 'mine': expected /queue/NAME"),
        ({"direction": "in", "from": "/queue/a", "group": True}, "group: only rules with"),
        ({"direction": "in", "from": "/queue/a", "durable": "x"}, "it is for topics"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Config.model_validate({"addresses": ["localhost"], "rules": [rule]})


def test_durable_names_are_for_one_rule_each() -> None:
    rules = [{"direction": "in", "from": f"/topic/{n}", "durable": "x"} for n in "ab"]
    with pytest.raises(ValidationError, match=r"rules\[1\]: rules\[0\] has that durable name"):
        Config.model_validate({"addresses": ["localhost"], "rules": rules})


def arrives(headers: list[tuple[str, str]]) -> Message:
    return message_from("t", b"x", received_headers(dict(reversed(headers))), 1, WALL)


@given(
    user=st.lists(st.tuples(WORDS, TEXTS), max_size=5),
    content_type=st.none() | TEXTS,
    correlation=st.none() | st.binary(min_size=1, max_size=40),
    expires=st.none() | st.integers(1, 10**6),
)
def test_properties_come_back_as_they_went(
    user: list[tuple[str, str]],
    content_type: str | None,
    correlation: bytes | None,
    expires: int | None,
) -> None:
    sent = item(
        RULE,
        user_properties=tuple(user),
        content_type=content_type or None,
        correlation_data=correlation,
        expires_in_s=expires,
    )
    back = arrives(sent_headers(sent, WALL))
    got = [p for p in back.properties.user_properties if p[0] not in ("mqttd-id", "mqttd-via")]
    # Where no name repeats, JMS keeps headers in no order.
    repeats = len({name for name, _ in user}) < len(user)
    assert got == user if repeats else sorted(got) == sorted(user)
    assert back.properties.content_type == (content_type or None)
    assert back.properties.correlation_data == correlation
    assert back.expires_in_s == pytest.approx(expires) if expires else back.expires_in_s is None


@pytest.mark.parametrize(
    "name",
    ["destination", "transformation", "AMQ_SCHEDULED_DELAY", "JMSXGroupID", "expires", "reply-to"],
)
def test_a_publisher_can_not_use_what_means_something_to_activemq(name: str) -> None:
    sent = item(RULE, user_properties=((name, "elsewhere"),), headers=((name, "mine"),))
    headers = sent_headers(sent, WALL)
    assert (f"mqtt-user-{name}", "elsewhere") in headers
    assert [value for other, value in headers if other == name] == ["mine"]


@pytest.mark.parametrize("topic", ["a,b", "a?x=1", "a/*", "a>", "a::b", "queue://a"])
def test_a_publisher_can_not_make_several_destinations(topic: str) -> None:
    with pytest.raises(Poison, match="several destinations"):
        destination_of(item(RULE, topic=topic, target=f"/queue/t.{topic}"))


def test_destinations_have_dots_and_keep_out_of_the_server_s_own() -> None:
    slashes = ActiveMQRule.model_validate({**OUT, "slashes": True})
    whole = ActiveMQRule.model_validate({**OUT, "to": "/topic/{topic}"})
    assert destination_of(item(RULE, target="/queue/t.a/b")) == "/queue/t.a.b"
    assert destination_of(item(slashes, target="/queue/t.a/b")) == "/queue/t.a/b"
    with pytest.raises(Poison, match="the server's own"):
        destination_of(item(whole, target="/topic/ActiveMQ/Advisory/Queue"))


def test_headers_of_other_senders() -> None:
    got = arrives(
        [
            ("reply-to", "/queue/r"),
            ("priority", "4"),
            ("expires", "0"),
            ("mine", "1"),
            ("correlation-id", "c"),
            ("long", "x" * 65536),
        ]
    )
    assert sorted(got.properties.user_properties) == [("mine", "1"), ("stomp-reply-to", "/queue/r")]
    assert got.properties.correlation_data == b"c"
    assert got.expires_in_s is None


# On a real server.


class Destination:
    """What arrives at a destination of ActiveMQ."""

    def __init__(self) -> None:
        self.got: list[Frame] = []

    async def subscribe(self, connection: StompConnection, destination: str) -> None:
        headers = [("id", destination), ("destination", destination), ("ack", "auto")]
        await connection.ask("SUBSCRIBE", headers)

    async def get(self, number: int = 1) -> list[Frame]:
        await until(lambda: len(self.got) >= number)
        found, self.got = self.got[:number], self.got[number:]
        return found


@pytest.fixture
def login(tmp_path: Path) -> dict[str, Any]:
    password = tmp_path / "password"
    password.write_text("guest")
    return {"username": "guest", "password_file": str(password)}


def bridged(server: Server, *rules: dict[str, Any], **more: Any) -> Any:
    address = f"{server.host}:{server.port}"
    return with_bridge(PLUGIN, addresses=[address], rules=list(rules), **more)


@real
async def test_every_property_passes_both_ways(activemq: Server, login: dict[str, Any]) -> None:
    out = {**OUT, "group": True}
    back = {"direction": "in", "from": "/queue/t.back", "to": "b/{topic}"}
    there = Destination()
    async with (
        connection_to(activemq, there.got.append) as connection,
        bridged(activemq, out, back, **login) as broker,
        Peer.at(broker.port("t"), "b/#") as peer,
    ):
        await there.subscribe(connection, "/queue/t.site.>")
        await until_state(broker, "up")
        sent: dict[str, Any] = {
            "payload_format_indicator": 1,
            "content_type": "text/plain",
            "response_topic": "answers/x",
            "correlation_data": b"\0\xff",
            "user_properties": [("k", "1: \\\n"), ("k", "ü"), ("transformation", "x"), ("z", "")],
        }
        await peer.publish("site/a/b", b"\xff\0raw", expiry=100, **sent)
        (frame,) = await there.get()
        headers = dict(frame.headers)
        assert (headers["destination"], frame.body) == ("/queue/t.site.a.b", b"\xff\0raw")
        assert headers["persistent"] == "true"
        assert headers["mqttd-id"] == f"{bridge_of(broker).origin}-1-1"
        for name in ("mqttd-via", "message-id", "subscription", "content-length"):
            del headers[name]
        await connection.ask(
            "SEND", [("destination", "/queue/t.back"), *headers.items()], frame.body
        )
        (here,) = await peer.get()
        assert (here.topic, here.payload) == ("b/t/back", b"\xff\0raw")
        got = properties_of(here)
        assert got.user_properties[:4] == sent.pop("user_properties")
        assert {name: getattr(got, name) for name in sent} == sent
        assert 90 < here.message_expiry <= 100
        assert user_of(here)["mqttd-id"] == headers["mqttd-id"]


@real
async def test_what_went_out_does_not_come_in_again(
    activemq: Server, login: dict[str, Any]
) -> None:
    out = {**OUT, "to": "/queue/t.echo"}
    back = {"direction": "in", "from": "/queue/t.echo", "to": "site/again"}
    async with bridged(activemq, out, back, **login) as broker, Peer.at(broker.port("t")) as peer:
        await until_state(broker, "up")
        await peer.publish("site/a", b"1")
        await until(lambda: figures(broker, "in")["dropped"] == {"loop": 1})
        assert figures(broker, "out")["matched"] == 1


@real
async def test_a_durable_subscription_to_a_topic_outlasts_the_connection(
    activemq: Server, login: dict[str, Any]
) -> None:
    back = {"direction": "in", "from": "/topic/t.news", "to": "b", "durable": "news"}
    async with (
        connection_to(activemq) as connection,
        bridged(activemq, back, **login) as broker,
        Peer.at(broker.port("t"), "b") as peer,
    ):
        await until_state(broker, "up")
        await bridge_of(broker).control("pause", {})
        await until_state(broker, "paused")
        await connection.ask("SEND", [("destination", "/topic/t.news")], b"missed")
        await bridge_of(broker).control("resume", {})
        (got,) = await peer.get()
        assert got.payload == b"missed"
        assert user_of(got)["mqttd-id"].startswith("ID:")


@real
async def test_what_activemq_refuses_is_dead_lettered_and_the_rest_goes_on(
    activemq: Server, login: dict[str, Any]
) -> None:
    closed = {"direction": "out", "from": "closed", "to": "/queue/closed"}
    there = Destination()
    async with (
        connection_to(activemq, there.got.append) as connection,
        bridged(activemq, closed, OUT, tries=2, **login) as broker,
        Peer.at(broker.port("t"), "$dlq/up") as peer,
    ):
        await there.subscribe(connection, "/queue/t.site.good")
        await until_state(broker, "up")
        await peer.publish("closed", b"1")
        await peer.publish("site/a,b", b"2")
        await peer.publish("site/good", b"3")
        dead = {one.payload: user_of(one) for one in await peer.get(2)}
        assert "User guest is not authorized to write" in dead[b"1"]["mqttd-dlq-reason"]
        assert (dead[b"1"]["mqttd-dlq-rule"], dead[b"1"]["mqttd-dlq-tries"]) == ("rules[0]", "2")
        assert "several destinations" in dead[b"2"]["mqttd-dlq-reason"]
        frames = await there.get()
        assert {frame.body for frame in frames} == {b"3"}
        await until(lambda: figures(broker, "out")["confirmed"] == 1)


@real
async def test_a_message_that_is_too_large_is_dead_lettered(
    activemq: Server, login: dict[str, Any]
) -> None:
    there = Destination()
    async with (
        connection_to(activemq, there.got.append) as connection,
        bridged(activemq, OUT, tries=2, max_message_size="300KiB", **login) as broker,
        Peer.at(broker.port("t"), "$dlq/up") as peer,
    ):
        await there.subscribe(connection, "/queue/t.site.small")
        await until_state(broker, "up")
        await peer.publish("site/larger", bytes(310_000))
        (dead,) = await peer.get()
        assert "max_message_size is 307200" in user_of(dead)["mqttd-dlq-reason"]
        await peer.publish("site/large", bytes(290_000))  # ActiveMQ has a lower limit here
        (dead,) = await peer.get()
        assert "the connection ended each time" in user_of(dead)["mqttd-dlq-reason"]
        await peer.publish("site/small", b"1")
        assert [frame.body for frame in await there.get()] == [b"1"]


@real
async def test_a_destination_that_may_not_be_read_is_named_with_its_rule(
    activemq: Server, login: dict[str, Any]
) -> None:
    good = {"direction": "in", "from": "/queue/t.x", "to": "b"}
    bad = {"direction": "in", "from": "/queue/closed", "to": "b"}
    async with bridged(activemq, good, bad, **login) as broker:
        reason = await until_state(broker, "refused")
        assert reason.startswith("rules[1]: can't subscribe to '/queue/closed': User guest is not")


@real
async def test_a_login_that_is_refused_is_told_and_messages_wait(
    activemq: Server, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("secret-1")
    login = {"username": "guest", "password_file": str(password)}
    async with bridged(activemq, OUT, **login) as broker, Peer.at(broker.port("t")) as peer:
        reason = await until_state(broker, "refused")
        assert "password" in reason
        assert "secret-1" not in reason
        await peer.publish("site/a", b"1")
        await until(lambda: figures(broker, "out")["matched"] == 1)
        assert figures(broker, "out")["confirmed"] == 0


@real
@pytest.mark.timeout(400)
async def test_nothing_is_lost_while_broker_and_activemq_are_killed(
    activemq: Server, tmp_path: Path
) -> None:
    activemq.may_be_killed()
    verdict = await trial(FarActiveMQ(tmp_path, activemq), 400, 2, 1)
    assert verdict["wrong"] == []
    assert verdict["kills"] == {"broker": 1, "far": 1}
