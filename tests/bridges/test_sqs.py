"""`bridge_sqs` with ElasticMQ, which keeps to what Amazon says of SQS; and what needs no server."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._bridge.remote import Item, Poison, Refused, Retry
from mqttd_plugins._sqs import check_size, entry_of, message_of, queue_of, short
from mqttd_plugins.bridge_sqs import BridgeSqs, Config, SqsRemote, SqsRule, told
from pydantic import ValidationError

import mqttd
from mqttd.api import Message, MessageProperties
from mqttd.testing import StandIn
from tests.bridges.far_sqs import PLUGIN, FarSqs, access, client_to
from tests.bridges.kit import back, out
from tests.bridges.mqtt_kit import Peer, properties_of, user_of
from tests.bridges.servers import ElasticMQ
from tests.bridges.trial import trial

REAL = [pytest.mark.bridges, pytest.mark.xdist_group("sqs")]
PATIENCE = 60.0
_NUMBERS = itertools.count(1)


def real(test: Any) -> Any:
    """A test that needs the server."""
    for mark in REAL:
        test = mark(test)
    return test


@contextlib.asynccontextmanager
async def bridged(
    server: ElasticMQ, place: Path, *rules: dict[str, Any], **more: Any
) -> AsyncIterator[tuple[BridgeSqs, Peer]]:
    config = {**access(server, place), "poll": 1, "rules": list(rules), **more}
    tree = {
        "listeners": [{"name": "t", "bind": "127.0.0.1:0", "allow_anonymous": True}],
        "plugins": [{"use": PLUGIN, "name": "up", "config": config}],
        "storage": {"path": ":memory:"},
    }
    async with (
        mqttd.Broker(tree) as broker,
        Peer.at(broker.port("t"), "in/#", "$dlq/#", name="here") as here,
    ):
        assert broker._app.hooks is not None
        bridge = broker._app.hooks.plugin("up")
        assert isinstance(bridge, BridgeSqs)
        yield bridge, here


async def until_state(bridge: BridgeSqs, state: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while bridge.link is None or bridge.link.state != state:
            await asyncio.sleep(0.02)


@real
@pytest.mark.parametrize("suffix", ["", ".fifo"])
async def test_every_property_of_mqtt_5_passes_out_and_in_again(
    elasticmq: ElasticMQ, tmp_path: Path, suffix: str
) -> None:
    queue = f"q{next(_NUMBERS)}{suffix}"
    more: dict[str, Any] = {
        "payload_format_indicator": 1,
        "content_type": "text/plain",
        "response_topic": "answers/x",
        "correlation_data": b"\0\xff",
        "user_properties": [("k", "1"), ("k", "2"), ("z", "")],
    }
    async with bridged(elasticmq, tmp_path, out("s/#", queue, create={})) as (bridge, here):
        await here.publish("s/7", b"\0\xff", expiry=100, **more)
        async with asyncio.timeout(PATIENCE):
            while bridge.status()["out"]["confirmed"] < 1:
                await asyncio.sleep(0.02)
        origin = bridge.origin
    async with bridged(elasticmq, tmp_path, back(queue, "in/x")) as (bridge, here):
        (got,) = await here.get()
        properties = properties_of(got)
        assert got.payload == b"\0\xff"
        assert properties.user_properties[:3] == more.pop("user_properties")
        assert {name: getattr(properties, name) for name in more} == more
        assert user_of(got)["mqttd-id"] == f"{origin}-1-1"
        assert 0 < got.message_expiry <= 100
        async with client_to(elasticmq) as client, asyncio.timeout(PATIENCE):
            url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
            wanted = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
            while True:
                left = await client.get_queue_attributes(QueueUrl=url, AttributeNames=wanted)
                if set(left["Attributes"].values()) == {"0"}:
                    break
                await asyncio.sleep(0.05)


@real
async def test_a_queue_that_is_not_there_is_refused_until_it_is(
    elasticmq: ElasticMQ, tmp_path: Path
) -> None:
    queue = f"q{next(_NUMBERS)}"
    async with bridged(elasticmq, tmp_path, out("s/#", queue)) as (bridge, here):
        await until_state(bridge, "refused")
        assert bridge.status()["reason"] == f"rules[0]: there is no queue {queue!r}"
        await here.publish("s/1", b"1")
        async with client_to(elasticmq) as client:
            await client.create_queue(QueueName=queue)
        await until_state(bridge, "up")


@real
async def test_what_sqs_can_not_take_is_dead_lettered(elasticmq: ElasticMQ, tmp_path: Path) -> None:
    rule = out("s/#", f"q{next(_NUMBERS)}", create={})
    async with bridged(elasticmq, tmp_path, rule) as (bridge, here):
        await here.publish("s/1", b"x" * 262_144)
        (dead,) = await here.get()
        assert user_of(dead)["mqttd-dlq-reason"].startswith("too large: ")
        await here.publish("s/1", b"y")
        async with asyncio.timeout(PATIENCE):
            while bridge.status()["out"]["confirmed"] < 1:
                await asyncio.sleep(0.02)


@real
async def test_the_broker_is_killed_and_nothing_is_lost(
    elasticmq: ElasticMQ, tmp_path: Path
) -> None:
    if not elasticmq.ours:
        pytest.skip("a server that already runs isn't killed")
    try:
        verdict = await trial(FarSqs(tmp_path, elasticmq), 300, 1, 1)
    finally:
        await asyncio.to_thread(elasticmq.restart)
    assert verdict["wrong"] == []
    assert (verdict["out"], verdict["in"], verdict["kills"]) == (300, 300, {"broker": 1})


@real
async def test_the_server_is_killed_too_and_nothing_is_lost(
    elasticmq: ElasticMQ, tmp_path: Path
) -> None:
    """ElasticMQ itself forgets the order of a group when it is started again."""
    if not elasticmq.ours:
        pytest.skip("a server that already runs isn't killed")
    try:
        verdict = await trial(FarSqs(tmp_path, elasticmq), 300, 2, 1)
    finally:
        await asyncio.to_thread(elasticmq.restart)
    assert [wrong for wrong in verdict["wrong"] if " came after " not in wrong] == []
    assert (verdict["out"], verdict["in"]) == (300, 300)


# Without a server.


def config(*rules: dict[str, Any], **more: Any) -> Config:
    return Config.model_validate({"region": "eu-central-1", "rules": list(rules), **more})


@pytest.mark.parametrize(
    ("rule", "more", "text"),
    [
        (out("#", "a b"), {}, "'a b' is no queue of SQS"),
        (back("a/b", "in"), {}, "from: 'a/b' is no queue of SQS"),
        (out("#", "{topic}", create={}), {}, "create: needs the name of one queue"),
        (out("#", "a"), {"access_key": "x"}, "access_key and secret_file"),
        (out("#", "a"), {"visibility": "13h"}, "visibility is 1s to 12h"),
        (out("#", "a"), {"poll": 21}, "less than or equal to 20"),
    ],
)
def test_configurations_that_can_not_work(
    rule: dict[str, Any], more: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        config(rule, **more)
    assert text in str(caught.value)


async def test_a_secret_that_is_not_there_is_found_by_check(tmp_path: Path) -> None:
    made = config(out("#", "a"), access_key="x", secret_file=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="none: No such file"):
        await BridgeSqs(made, StandIn("up")).check()


def test_only_fifo_queues_hold_a_key_to_one_item() -> None:
    assert SqsRemote(config(out("#", "a")), None).per_key == 0
    assert SqsRemote(config(out("#", "a.fifo")), None).per_key == 1
    assert SqsRemote(config(out("#", "{topic}")), None).per_key == 1


def item(payload: bytes, key: str = "k", properties: Any = None) -> Item:
    message = Message("s/1", payload, 1, properties=properties)
    rule = SqsRule.model_validate(out("#", "q.fifo"))
    return Item(1, rule, message, id="i-1", target="q.fifo", key=key)


@given(
    st.binary(max_size=40) | st.text(max_size=20).map(lambda t: t.encode(errors="replace")),
    st.lists(st.tuples(st.text("ab\n\x07é", max_size=4), st.text("ab\n\x07é", max_size=4))),
)
def test_payload_and_properties_survive(payload: bytes, user: list[tuple[str, str]]) -> None:
    properties = MessageProperties(user_properties=tuple(user))
    entry = entry_of(item(payload, properties=properties), "q.fifo", 0.0)
    assert entry["MessageBody"]
    assert len(entry["MessageAttributes"]) <= 10
    texts = [entry["MessageBody"]]
    texts += [each["StringValue"] for each in entry["MessageAttributes"].values()]
    assert all(char in "\t\n\r" or char >= " " for text in texts for char in text)
    message, _ = message_of("q.fifo", {**entry, "Body": entry["MessageBody"]}, 0.0)
    assert message.payload == payload
    kept = [p for p in message.properties.user_properties if p[0] != "mqttd-id"]
    assert kept == user


def test_group_and_deduplication_id_fit_and_stay() -> None:
    entry = entry_of(item(b"x", "s/1"), "q.fifo", 0.0)
    assert entry["MessageGroupId"] == "s/1"
    assert entry["MessageDeduplicationId"] == short("i-1/" + item(b"x").place)
    long = short("x" * 129)
    assert long == short("x" * 129) != short("x" * 130)
    assert len(long) == 43
    assert short("with space") != "with space"
    assert "MessageGroupId" not in entry_of(item(b"x"), "q", 0.0)


def test_the_limit_counts_attributes_too() -> None:
    entry = entry_of(item(b"x" * 100), "q.fifo", 0.0)
    size = check_size(entry, 1000)
    assert size > 100 + len("mqtt-headers")
    with pytest.raises(Poison, match=f"too large: {size} bytes"):
        check_size(entry, size - 1)


def test_names_of_queues() -> None:
    assert queue_of("plant/7") == "plant-7"
    assert queue_of("a" * 75 + ".fifo")
    for bad in ("", "a.b", "a" * 81, ".fifo", "a" * 76 + ".fifo"):
        with pytest.raises(ValueError, match="no queue of SQS"):
            queue_of(bad)


class Answer(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


def test_what_an_error_means() -> None:
    assert isinstance(told(Answer("InvalidClientTokenId"), "rules[0]"), Refused)
    assert isinstance(told(Answer("QueueDoesNotExist"), "rules[0]"), Refused)
    assert isinstance(told(Answer("RequestThrottled")), Retry)
    assert isinstance(told(ConnectionResetError("reset")), Retry)
