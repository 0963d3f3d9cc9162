"""`bridge_sqs` with two servers that behave like Amazon SQS; and what needs no server."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mqttd_plugins._bridge.remote import Item, Poison, Refused, Retry
from mqttd_plugins._sqs import check_size, entry_of, message_of, queue_of, short
from mqttd_plugins._sqs_in import Receiver
from mqttd_plugins.bridge_sqs import Access, BridgeSqs, Config, SqsRemote, SqsRule, told
from pydantic import ValidationError

import mqttd
from mqttd.api import Message, MessageProperties
from mqttd.testing import StandIn
from tests.bridges.far_sqs import PLUGIN, FarSqs, access, client_to
from tests.bridges.kit import back, out
from tests.bridges.mqtt_kit import Peer, properties_of, user_of
from tests.bridges.servers import ElasticMQ, Server
from tests.bridges.trial import trial

REAL = [pytest.mark.bridges, pytest.mark.xdist_group("sqs")]
PATIENCE = 60.0
_NUMBERS = itertools.count(1)
NOBODY = Access(None, None)


def real(test: Any) -> Any:
    """A test that needs the server."""
    for mark in REAL:
        test = mark(test)
    return test


@contextlib.asynccontextmanager
async def bridged(
    server: Server, place: Path, *rules: dict[str, Any], **more: Any
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


@pytest.fixture(params=["elasticmq", "moto"])
def sqs(request: pytest.FixtureRequest) -> Server:
    """Each of the two that behave like SQS."""
    server: Server = request.getfixturevalue(request.param)
    return server


async def until_confirmed(bridge: BridgeSqs, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while bridge.status()["out"]["confirmed"] < count:
            await asyncio.sleep(0.02)


async def until_empty(server: Server, queue: str) -> None:
    wanted = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    async with client_to(server) as client, asyncio.timeout(PATIENCE):
        url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
        while True:
            left = await client.get_queue_attributes(QueueUrl=url, AttributeNames=wanted)
            if set(left["Attributes"].values()) == {"0"}:
                return
            await asyncio.sleep(0.05)


async def taken(
    client: Any, queue: str, count: int, *, delete: bool = True
) -> list[dict[str, Any]]:
    """So many messages of a queue; those that aren't deleted are visible again at once."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
        while len(found) < count:
            answer = await client.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1,
                VisibilityTimeout=30 if delete else 0,
            )
            for each in answer.get("Messages", ()):
                found.append(each)
                if delete:
                    await client.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])
    return found


async def put(client: Any, queue: str, texts: list[str]) -> None:
    """Send to a FIFO queue, the first word as group."""
    url = (await client.get_queue_url(QueueName=queue))["QueueUrl"]
    for start in range(0, len(texts), 10):
        entries = [
            {
                "Id": str(number),
                "MessageBody": text,
                "MessageGroupId": text.split()[0],
                "MessageDeduplicationId": text.replace(" ", "-"),
            }
            for number, text in enumerate(texts[start : start + 10])
        ]
        answer = await client.send_message_batch(QueueUrl=url, Entries=entries)
        assert not answer.get("Failed")


def by_key(texts: list[str]) -> dict[str, list[str]]:
    """The texts of each first word, in order."""
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(text.split()[0], []).append(text)
    return found


async def until_state(bridge: BridgeSqs, state: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while bridge.link is None or bridge.link.state != state:
            await asyncio.sleep(0.02)


@real
async def test_every_property_of_mqtt_5_passes_out_and_in_again(
    sqs: Server, tmp_path: Path
) -> None:
    """By a FIFO queue with the one, by a standard queue with the other."""
    queue = f"q{next(_NUMBERS)}{'.fifo' if isinstance(sqs, ElasticMQ) else ''}"
    more: dict[str, Any] = {
        "payload_format_indicator": 1,
        "content_type": "text/plain",
        "response_topic": "answers/x",
        "correlation_data": b"\0\xff",
        "user_properties": [("k", "1"), ("k", "2"), ("z", "")],
    }
    async with bridged(sqs, tmp_path, out("s/#", queue, create={})) as (bridge, here):
        await here.publish("s/7", b"\0\xff", expiry=100, **more)
        await until_confirmed(bridge, 1)
        origin = bridge.origin
    async with bridged(sqs, tmp_path, back(queue, "in/x")) as (bridge, here):
        (got,) = await here.get()
        properties = properties_of(got)
        assert got.payload == b"\0\xff"
        assert properties.user_properties[:3] == more.pop("user_properties")
        assert {name: getattr(properties, name) for name in more} == more
        assert user_of(got)["mqttd-id"].startswith(f"{origin}-")
        assert 0 < got.message_expiry <= 100
        await until_empty(sqs, queue)


@real
async def test_the_order_of_each_group_is_kept_both_ways(sqs: Server, tmp_path: Path) -> None:
    there, here_ = f"q{next(_NUMBERS)}.fifo", f"q{next(_NUMBERS)}.fifo"
    texts = [f"{key} {number}" for number in range(5) for key in "abc"]
    rules = (out("s/+", there, create={}), back(here_, "in/{key}", create={}))
    async with bridged(sqs, tmp_path, *rules) as (bridge, here), client_to(sqs) as client:
        await until_state(bridge, "up")
        for text in texts:
            await here.publish(f"s/{text[0]}", text.encode())
        got = [each["Body"] for each in await taken(client, there, len(texts))]
        assert by_key(got) == by_key(texts)
        await put(client, here_, texts)
        async with asyncio.timeout(PATIENCE):
            while len(here.got) < len(texts):
                await asyncio.sleep(0.02)
        assert by_key([each.payload.decode() for each in here.got]) == by_key(texts)
        assert {each.topic for each in here.got} == {"in/a", "in/b", "in/c"}


@real
async def test_a_copy_within_five_minutes_is_sqs_s_to_drop(sqs: Server, tmp_path: Path) -> None:
    queue = f"q{next(_NUMBERS)}.fifo"
    same = [("mqttd-id", "seven")]
    async with (
        bridged(sqs, tmp_path, out("s/#", queue, create={})) as (bridge, here),
        client_to(sqs) as client,
    ):
        for text in (b"1", b"1 again"):
            await here.publish("s/1", text, user_properties=same)
        await here.publish("s/1", b"2", user_properties=[("mqttd-id", "eight")])
        await until_confirmed(bridge, 3)
        got = await taken(client, queue, 2)
        assert [each["Body"] for each in got] == ["1", "2"]


@real
async def test_what_nobody_could_process_comes_from_the_redrive_queue(
    sqs: Server, tmp_path: Path
) -> None:
    number = next(_NUMBERS)
    queue, dead = f"q{number}", f"q{number}-dead"
    async with client_to(sqs) as client:
        url = (await client.create_queue(QueueName=dead))["QueueUrl"]
        wanted = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        arn = wanted["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})
        made = {"settings": {"RedrivePolicy": policy}}
        async with bridged(sqs, tmp_path, out("s", queue, create=made)) as (bridge, here):
            await here.publish("s", b"poison")
            await until_confirmed(bridge, 1)
        await taken(client, queue, 1, delete=False)  # and its consumer ends
        async with bridged(sqs, tmp_path, back(queue, "in/x"), back(dead, "in/dead")) as (_, here):
            async with asyncio.timeout(PATIENCE):
                while not here.got:
                    await asyncio.sleep(0.02)
            assert [(each.topic, each.payload) for each in here.got] == [("in/dead", b"poison")]


@real
async def test_what_takes_long_here_comes_once_and_a_pause_gives_it_back(
    sqs: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = f"q{next(_NUMBERS)}.fifo"
    hidden = 0
    hide = Receiver.hide

    async def counted(receiver: Receiver, now: float) -> None:
        nonlocal hidden
        await hide(receiver, now)
        hidden += 1

    monkeypatch.setattr(Receiver, "hide", counted)
    rule = back(queue, "in/{key}", create={})
    async with (
        bridged(sqs, tmp_path, rule, visibility="2s") as (bridge, _),
        client_to(sqs) as client,
    ):
        await until_state(bridge, "up")
        assert bridge.inward is not None
        publish, full = bridge.inward._publish, asyncio.Event()

        async def waits(message: Message) -> int:
            await full.wait()
            return await publish(message)

        bridge.inward._publish = waits
        await put(client, queue, ["a 1", "a 2", "a 3"])
        async with asyncio.timeout(PATIENCE):
            while hidden < 5:  # for longer than SQS would have waited
                await asyncio.sleep(0.02)
        assert 1 <= bridge.status()["in"]["in_flight"] <= 3  # and not a copy more
        await bridge.control("pause", {})
        got = await taken(client, queue, 3)
        assert sorted(each["Body"] for each in got) == ["a 1", "a 2", "a 3"]
        full.set()


@real
async def test_a_queue_that_is_not_there_is_refused_until_it_is(
    sqs: Server, tmp_path: Path
) -> None:
    queue = f"q{next(_NUMBERS)}"
    async with bridged(sqs, tmp_path, out("s/#", queue)) as (bridge, here):
        await until_state(bridge, "refused")
        assert bridge.status()["reason"] == f"rules[0]: there is no queue {queue!r}"
        await here.publish("s/1", b"1")
        async with client_to(sqs) as client:
            await client.create_queue(QueueName=queue)
        await until_state(bridge, "up")


@real
async def test_what_sqs_can_not_take_is_dead_lettered(sqs: Server, tmp_path: Path) -> None:
    """The one says before what a queue takes, the other only refuses."""
    rule = out("s/#", f"q{next(_NUMBERS)}", create={})
    async with bridged(sqs, tmp_path, rule) as (bridge, here):
        await here.publish("s/1", b"x" * 1_048_450)
        (dead,) = await here.get()
        assert re.match("too large: |SQS: .*TooLong", user_of(dead)["mqttd-dlq-reason"])
        await here.publish("s/1", b"y")
        await until_confirmed(bridge, 1)
        assert bridge.status()["out"]["dead_letters"] == {"refused": 1}


@real
async def test_both_are_killed_and_nothing_is_lost_nor_late(
    elasticmq: Server, tmp_path: Path
) -> None:
    """First the broker, which shows the order; then ElasticMQ, which forgets it: see `far_sqs`."""
    elasticmq.may_be_killed()
    try:
        verdict = await trial(FarSqs(tmp_path, elasticmq), 200, 2, 1)
    finally:
        await asyncio.to_thread(elasticmq.restart)
    assert verdict["wrong"] == []
    assert (verdict["out"], verdict["in"]) == (200, 200)
    assert verdict["kills"] == {"broker": 1, "far": 1}


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
    assert SqsRemote(config(out("#", "a")), NOBODY).per_key == 0
    assert SqsRemote(config(out("#", "a.fifo")), NOBODY).per_key == 1
    assert SqsRemote(config(out("#", "{topic}")), NOBODY).per_key == 1


def item(payload: bytes, key: str = "k", properties: Any = None) -> Item:
    message = Message("s/1", payload, 1, properties=properties)
    rule = SqsRule.model_validate(out("#", "q.fifo"))
    return Item(1, rule, message, id="i-1", target="q.fifo", key=key)


@settings(max_examples=50)
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
