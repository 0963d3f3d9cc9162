"""`bridge_rabbitmq`: its configuration, and everything it promises, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from mqttd_plugins._amqp_connection import Channel, Connection, Ended
from mqttd_plugins._bridge.remote import Retry
from mqttd_plugins.bridge_rabbitmq import Config, RabbitRemote, _access_of, _Acks
from pydantic import ValidationError

from tests.bridges.faces import bridge_of, figures, until_state, with_bridge
from tests.bridges.far_rabbitmq import PLUGIN, FarRabbitMQ, SecureRabbitMQ, channel_to
from tests.bridges.mqtt_kit import Peer, properties_of, user_of
from tests.bridges.servers import Server
from tests.bridges.trial import trial
from tests.net.kit import reserved_port, until
from tests.tls import Authority

LOG = logging.getLogger("test")
OUT = {"direction": "out", "from": "site/#"}
REAL = (pytest.mark.bridges, pytest.mark.xdist_group("rabbitmq"))


def real(test: Any) -> Any:
    for mark in REAL:
        test = mark(test)
    return test


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """RabbitMQ, with TLS and more users."""
    server = SecureRabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


def configured(*rules: dict[str, Any], **more: Any) -> Config:
    return Config.model_validate({"addresses": ["localhost"], "rules": list(rules), **more})


def queue(**declared: Any) -> dict[str, Any]:
    return {"direction": "in", "from": "q", "declare_queue": declared}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({**OUT, "exchange": "amq.x", "declare_exchange": "topic"}, "RabbitMQ's own"),
        ({**OUT, "exchange": "", "declare_exchange": "topic"}, "RabbitMQ's own"),
        ({**OUT, "exchange": "x" * 256}, "exchange: .* at most 255 bytes"),
        ({**OUT, "headers": {"CC": "q"}}, "headers: CC: RabbitMQ takes no text there"),
        ({**OUT, "declare_queue": {}}, 'declare_queue: outward it needs `exchange: ""`'),
        ({**OUT, "exchange": "", "to": "q{topic}", "declare_queue": {}}, "declare_queue: outward"),
        ({"direction": "in", "from": "q", "exchange": "e"}, "exchange: only rules with"),
        ({"direction": "in", "from": "q", "mandatory": False}, "mandatory: only rules with"),
        ({"direction": "in", "from": "ü" * 128}, "from: .* at most 255 bytes"),
        (queue(bindings=[{"exchange": "x" * 256}]), "exchange: .* at most 255 bytes"),
        (queue(bindings=[{"key": "x" * 256}]), "key: .* at most 255 bytes"),
        (queue(arguments={"x" * 256: 1}), "arguments: .* at most 255 bytes"),
        (queue(arguments={"x-max-length": 2**63}), "integers have 64 bits"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        configured(rule)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"username": "x"}, "username: needs a password_file"),
        ({"password_file": "x"}, "a password needs a username"),
        ({"vhost": ""}, "vhost: empty"),
        ({"vhost": "x" * 256}, "vhost: .* at most 255 bytes"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["a:b"]}, "'a:b' is no address"),
        ({"tls": {"key": "k"}}, "a key needs a cert"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(more: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        configured(OUT, **more)


def test_one_queue_is_consumed_by_one_rule() -> None:
    rule = {"direction": "in", "from": "q"}
    with pytest.raises(ValidationError, match=r"rules\[1\]: rules\[0\] consumes this queue"):
        configured(rule, rule)


def test_files_that_are_no_good_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for config, text in (
        (configured(OUT, username="u", password_file=str(empty)), "empty: expected a password"),
        (configured(OUT, username="u", password_file=str(tmp_path / "no")), "No such file"),
        (configured(OUT, tls={"ca": str(empty)}), "empty: no certificates"),
        (configured(OUT, tls={"cert": str(empty)}), "empty: no certificate with its key"),
    ):
        with pytest.raises(ValueError, match=text):
            _access_of(config)


async def test_of_several_addresses_the_next_one_is_tried_after_a_failure() -> None:
    with reserved_port() as one, reserved_port() as other:
        config = configured(OUT, addresses=[f"127.0.0.1:{one}", f"127.0.0.1:{other}"])
        access = _access_of(config)
        tried = []
        for _ in range(3):
            remote = RabbitRemote(config, access, "up", [1], LOG)
            tried.append(access.address[1])
            with pytest.raises(Retry):
                await remote.connect()
            await remote.close()
        assert tried == [one, other, one]


async def test_acknowledgements_never_pass_what_is_not_settled() -> None:
    sent: list[tuple[int, bool]] = []

    class Recorder:
        def send(self, _: object, tag: int, multiple: bool) -> None:
            sent.append((tag, multiple))

    acks = _Acks(cast(Channel, Recorder()))
    for tags, expected in (((2, 3), []), ((1,), [(3, True)]), ((5,), []), ((4, 6, 8), [(6, True)])):
        for tag in tags:
            acks.settle(tag)
        await asyncio.sleep(0)
        assert sent == expected
        sent.clear()


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        ("PRECONDITION_FAILED - message size 9 is larger than configured max size 5", 5),
        ("PRECONDITION_FAILED - message size 9 is larger than max size 500", 100),
        ("ACCESS_REFUSED - access to topic 'message size 9 is larger than max size 5'", 100),
    ],
)
async def test_only_rabbitmq_itself_says_what_is_too_large(text: str, largest: int) -> None:
    known = [100]
    config = configured(OUT)
    remote = RabbitRemote(config, _access_of(config), "up", known, LOG)
    channel = Channel(cast(Connection, None), 1)
    remote._channels.append(channel)
    channel.end(Ended(text, 406))
    assert str(await remote.wait()) == text
    assert known == [largest]


# On a real server.


class Queue:
    """What arrives in a queue of RabbitMQ."""

    def __init__(self, channel: AbstractChannel, name: str) -> None:
        self.channel = channel
        self.name = name
        self.got: list[DeliveredMessage] = []

    async def bind(self, key: str) -> Queue:
        await self.channel.queue_declare(self.name, exclusive=True)
        await self.channel.queue_bind(self.name, "amq.topic", key)
        await self.channel.basic_consume(self.name, self._arrived, no_ack=True)
        return self

    async def _arrived(self, delivered: DeliveredMessage) -> None:
        self.got.append(delivered)

    async def get(self, number: int = 1) -> list[DeliveredMessage]:
        await until(lambda: len(self.got) >= number)
        found, self.got = self.got[:number], self.got[number:]
        return found


def secured(server: Server) -> SecureRabbitMQ:
    if not server.ours:
        pytest.skip(
            "this RabbitMQ has not the users and certificates of the test: "
            "apt-get install rabbitmq-server, and leave MQTTD_TEST_RABBITMQ unset"
        )
    assert isinstance(server, SecureRabbitMQ)
    return server


def bridged(server: Server, *rules: dict[str, Any], **more: Any) -> Any:
    address = f"{server.host}:{server.port}"
    return with_bridge(PLUGIN, addresses=[address], rules=list(rules), **more)


@real
async def test_every_property_passes_both_ways(rabbitmq: Server) -> None:
    back = {"direction": "in", "from": "props-back", "to": "b/{key}", "declare_queue": {}}
    async with (
        channel_to(rabbitmq) as channel,
        bridged(rabbitmq, OUT, back) as broker,
        Peer.at(broker.port("t"), "b/#") as peer,
    ):
        queue = await Queue(channel, "props").bind("site.#")
        await until_state(broker, "up")
        sent: dict[str, Any] = {
            "payload_format_indicator": 1,
            "content_type": "text/plain",
            "response_topic": "answers/x",
            "correlation_data": b"\0\xff",
            "user_properties": [("k", "1"), ("k", "2"), ("CC", "props-back"), ("z", "")],
        }
        await peer.publish("site/a/b", b"\xffraw", expiry=100, **sent)
        (there,) = await queue.get()
        properties = there.header.properties
        assert (there.routing_key, there.body) == ("site.a.b", b"\xffraw")
        assert properties.delivery_mode == 2
        assert properties.message_id == f"{bridge_of(broker).origin}-1-1"
        assert properties.headers is not None
        assert properties.headers.pop("mqttd-via") == bridge_of(broker).origin
        await channel.basic_publish(there.body, routing_key="props-back", properties=properties)
        (here,) = await peer.get()
        assert (here.topic, here.payload) == ("b/props-back", b"\xffraw")
        got = properties_of(here)
        assert got.user_properties[:4] == sent.pop("user_properties")
        assert {name: getattr(got, name) for name in sent} == sent
        assert 90 < here.message_expiry <= 100
        assert user_of(here)["mqttd-id"] == properties.message_id
        assert not peer.got  # CC sent no copy


@real
async def test_what_went_out_does_not_come_in_again(rabbitmq: Server) -> None:
    queue = {"type": "classic", "bindings": [{"key": "site.#"}]}
    back = {"direction": "in", "from": "echo", "to": "site/again", "declare_queue": queue}
    async with bridged(rabbitmq, OUT, back) as broker, Peer.at(broker.port("t")) as peer:
        await until_state(broker, "up")
        await peer.publish("site/a", b"1")
        await until(lambda: figures(broker, "in")["dropped"] == {"loop": 1})
        assert figures(broker, "out")["matched"] == 1


@real
async def test_queues_and_exchanges_are_declared_and_a_queue_is_a_target(rabbitmq: Server) -> None:
    made = {**OUT, "exchange": "made", "declare_exchange": "fanout"}
    named = {"direction": "out", "from": "q", "exchange": "", "to": "straight", "declare_queue": {}}
    fed = {"type": "classic", "bindings": [{"exchange": "made", "key": ""}]}
    back = {"direction": "in", "from": "fed", "to": "b/{topic}", "declare_queue": fed}
    straight = {"direction": "in", "from": "straight", "to": "b/{topic}"}
    async with (
        bridged(rabbitmq, made, named, back, straight) as broker,
        Peer.at(broker.port("t")) as peer,
    ):
        await until_state(broker, "up")
        await peer.publish("site/a", b"1")
        await peer.publish("q", b"2")
        # Both come back, as loops: that they came is what this is about.
        await until(lambda: figures(broker, "in")["dropped"] == {"loop": 2})
        assert figures(broker, "out")["confirmed"] == 2


@real
async def test_what_rabbitmq_refuses_is_dead_lettered_and_the_rest_goes_on(
    rabbitmq: Server,
) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = {"type": "classic", "arguments": full}
    rules: list[dict[str, Any]] = [
        {"direction": "out", "from": "full", "exchange": "", "to": "full", "declare_queue": queue},
        {"direction": "out", "from": "nobody/+", "to": "nobody.{topic[1]}"},
        {"direction": "out", "from": "drop", "to": "nobody", "mandatory": False},
    ]
    async with (
        channel_to(rabbitmq) as channel,
        bridged(rabbitmq, *rules, tries=2) as broker,
        Peer.at(broker.port("t"), "$dlq/up") as peer,
    ):
        await until_state(broker, "up")
        await peer.publish("full", b"1")
        await until(lambda: figures(broker, "out")["confirmed"] == 1)
        await peer.publish("full", b"2")
        (dead,) = await peer.get()
        assert dead.payload == b"2"
        assert "basic.nack" in user_of(dead)["mqttd-dlq-reason"]
        await peer.publish("nobody/x", b"3")
        (dead,) = await peer.get()
        assert "unroutable" in user_of(dead)["mqttd-dlq-reason"]
        assert user_of(dead)["mqttd-dlq-rule"] == "rules[1]"
        assert user_of(dead)["mqttd-dlq-tries"] == "2"
        await peer.publish("nobody/" + "y" * 255, b"4")
        (dead,) = await peer.get()
        assert "routing key has 262 bytes" in user_of(dead)["mqttd-dlq-reason"]
        await peer.publish("drop", b"5")
        await until(lambda: figures(broker, "out")["confirmed"] == 2)
        assert bridge_of(broker).status()["state"] == "up"
        await channel.queue_delete("full")


@real
async def test_a_message_that_is_too_large_is_dead_lettered_and_the_limit_learnt(
    rabbitmq: Server,
) -> None:
    async with (
        channel_to(rabbitmq) as channel,
        bridged(rabbitmq, OUT) as broker,
        Peer.at(broker.port("t"), "$dlq/up") as peer,
    ):
        queue = await Queue(channel, "large").bind("site.#")
        await until_state(broker, "up")
        for number in range(2):
            await peer.publish("site/big", bytes(300_000))
            (dead,) = await peer.get()
            assert "RabbitMQ takes 262144" in user_of(dead)["mqttd-dlq-reason"], number
        await peer.publish("site/small", b"1")
        assert [one.body for one in await queue.get()] == [b"1"]


@real
async def test_an_exchange_that_is_not_there_is_waited_for(rabbitmq: Server) -> None:
    async with (
        channel_to(rabbitmq) as channel,
        bridged(rabbitmq, {**OUT, "exchange": "later"}) as broker,
        Peer.at(broker.port("t")) as peer,
    ):
        await peer.publish("site/a", b"1")
        reason = await until_state(broker, "refused")
        assert reason.startswith("rules[0]: RabbitMQ: NOT_FOUND - no exchange 'later'")
        queue = Queue(channel, "waiting")
        await channel.exchange_declare("later", exchange_type="topic")
        await queue.bind("unused")
        await channel.queue_bind("waiting", "later", "site.#")
        assert [one.body for one in await queue.get()] == [b"1"]
        await channel.exchange_delete("later")


@real
async def test_a_queue_that_is_deleted_is_waited_for(rabbitmq: Server) -> None:
    back = {"direction": "in", "from": "fleeting", "to": "b"}
    async with (
        channel_to(rabbitmq) as channel,
        bridged(rabbitmq, back) as broker,
        Peer.at(broker.port("t"), "b") as peer,
    ):
        assert "no queue 'fleeting'" in await until_state(broker, "refused")
        await channel.queue_declare("fleeting")
        await until_state(broker, "up")
        await channel.queue_delete("fleeting")
        assert "no queue 'fleeting'" in await until_state(broker, "refused")
        await channel.queue_declare("fleeting")
        await channel.basic_publish(b"1", routing_key="fleeting")
        (got,) = await peer.get()
        assert (got.payload, got.qos) == (b"1", 1)
        await channel.queue_delete("fleeting")


@real
@pytest.mark.parametrize("wrong", [{"username": "guest"}, {"vhost": "nowhere"}])
async def test_a_login_that_is_refused_is_told_and_messages_wait(
    rabbitmq: Server, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    password = tmp_path / "password"
    password.write_text("secret-1")
    if "username" in wrong:
        wrong = {**wrong, "password_file": str(password)}
    async with bridged(rabbitmq, OUT, **wrong) as broker, Peer.at(broker.port("t")) as peer:
        reason = await until_state(broker, "refused")
        assert ("wrong username or password" if "username" in wrong else "nowhere") in reason
        assert "secret-1" not in reason
        await peer.publish("site/a", b"1")
        await until(lambda: figures(broker, "out")["matched"] == 1)
        assert figures(broker, "out")["confirmed"] == 0


@real
async def test_what_came_in_and_makes_no_topic_is_dead_lettered(rabbitmq: Server) -> None:
    queue = {"type": "classic", "bindings": [{"key": "odd.#"}]}
    rule = {"direction": "in", "from": "odd", "to": "{key}", "declare_queue": queue}
    async with (
        channel_to(rabbitmq) as channel,
        bridged(rabbitmq, rule) as broker,
        Peer.at(broker.port("t"), "#", "$dlq/up") as peer,
    ):
        await until_state(broker, "up")
        for key in ("odd.#", "odd.good"):
            await channel.basic_publish(key.encode(), exchange="amq.topic", routing_key=key)
        got = {one.topic: one for one in await peer.get(2)}
        assert got["odd.good"].payload == b"odd.good"
        assert "to: " in user_of(got["$dlq/up"])["mqttd-dlq-reason"]
        state = await channel.queue_declare("odd", passive=True)
        assert state.message_count == 0


@real
async def test_over_tls_by_password_and_by_certificate(rabbitmq: Server) -> None:
    secure = secured(rabbitmq)
    address, trust = f"localhost:{secure.tls_port}", {"ca": str(secure.authority.file)}
    pair = secure.authority.issue("thermometer", "thermometer")
    shown = {"cert": str(pair[0]), "key": str(pair[1])}
    async with channel_to(rabbitmq) as channel:
        queue = await Queue(channel, "secure").bind("site.#")
        by_name = {"username": "guest"}
        for tls, login in ((trust, {}), (trust | shown, {}), (trust | shown, by_name)):
            async with (
                with_bridge(PLUGIN, addresses=[address], rules=[OUT], tls=tls, **login) as broker,
                Peer.at(broker.port("t")) as peer,
            ):
                await peer.publish("site/a", b"1")
                assert [one.body for one in await queue.get()] == [b"1"]


@real
async def test_a_certificate_that_is_no_good_is_refused_on_either_side(
    rabbitmq: Server, tmp_path: Path
) -> None:
    secure = secured(rabbitmq)
    address, trust = f"localhost:{secure.tls_port}", {"ca": str(secure.authority.file)}
    other = Authority(tmp_path, "other")
    for tls, pair, text in (
        ({"ca": str(other.file)}, None, "its certificate is no good"),
        (trust, other.issue("stranger", "thermometer"), "localhost:"),
        (trust, secure.authority.issue("nobody", "nobody"), "the certificate is no login"),
    ):
        shown = {} if pair is None else {"cert": str(pair[0]), "key": str(pair[1])}
        rules, more = [OUT], {"tls": tls | shown, "addresses": [address]}
        async with with_bridge(PLUGIN, rules=rules, **more) as broker:
            assert text in await until_state(broker, "refused"), text


@real
async def test_a_user_that_may_not_write_loses_nothing(rabbitmq: Server, tmp_path: Path) -> None:
    secured(rabbitmq)
    password = tmp_path / "password"
    password.write_text("reader")
    login = {"username": "reader", "password_file": str(password), "tries": 1}
    async with bridged(rabbitmq, OUT, **login) as broker, Peer.at(broker.port("t")) as peer:
        for number in range(4):
            await peer.publish(f"site/{number}", b"1")
        reason = await until_state(broker, "refused")
        assert reason.startswith("rules[0]: ACCESS_REFUSED - access to exchange 'amq.topic'")
        await until(lambda: figures(broker, "out")["failed"] >= 8)  # on two connections
        assert figures(broker, "out")["dead_lettered"] == 0


@real
async def test_a_rabbitmq_that_is_out_of_memory_takes_nothing_and_still_gives(
    rabbitmq: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secure = secured(rabbitmq)
    back = {"direction": "in", "from": "stock", "to": "b"}
    async with channel_to(rabbitmq) as channel:
        queue = await Queue(channel, "blocked").bind("site.#")
        await channel.queue_declare("stock")
        for _ in range(10):
            await channel.basic_publish(b"1", routing_key="stock")
        await asyncio.to_thread(secure.control, "set_vm_memory_high_watermark", "0.00001")
        try:
            async with (
                bridged(rabbitmq, OUT, back, window=2) as broker,
                Peer.at(broker.port("t"), "b") as peer,
            ):
                await peer.publish("site/a", b"2")
                await until(lambda: "takes no messages: low on memory" in caplog.text)
                assert len(await peer.get(10)) == 10  # five times as many as the prefetch
                assert figures(broker, "out")["in_flight"] == 1
                await asyncio.to_thread(secure.control, "set_vm_memory_high_watermark", "0.4")
                assert [one.body for one in await queue.get()] == [b"2"]
                assert "takes messages again" in caplog.text
        except BaseException:
            await asyncio.to_thread(secure.control, "set_vm_memory_high_watermark", "0.4")
            raise
        await channel.queue_delete("stock")


@real
@pytest.mark.timeout(400)
async def test_nothing_is_lost_while_broker_and_rabbitmq_are_killed(
    rabbitmq: Server, tmp_path: Path
) -> None:
    rabbitmq.may_be_killed()
    verdict = await trial(FarRabbitMQ(tmp_path, rabbitmq), 400, 2, 1)
    assert verdict["wrong"] == []
    assert verdict["kills"] == {"broker": 1, "far": 1}
