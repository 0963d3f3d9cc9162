"""`bridge_sqs` without a server: batches that fail in part, limits, what is hidden and deleted."""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mqttd_plugins._bridge.remote import Failure, Incoming, Intake, Item, Poison, Retry
from mqttd_plugins._bridge.rules import BridgeConfig, Rule
from mqttd_plugins._sqs import LARGEST
from mqttd_plugins._sqs_in import Receiver, Settle
from mqttd_plugins.bridge_sqs import Access, Config, SqsRemote, SqsRule
from pydantic import ValidationError

from mqttd.api import Message
from mqttd.config import parse_yaml
from mqttd.yamltree import Document
from tests.bridges.kit import back, out

_SEQ = itertools.count(1)
PAGE = Path(__file__).parents[2] / "docs/how-to/bridge-sqs.md"
Answers = list[tuple[str, Failure | None]]


class Refusal(Exception):
    """An answer of AWS that is an error."""

    def __init__(self, code: str) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}}


class Fake:
    """A client of SQS: keeps what it is asked, and answers what the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.attributes: dict[str, str] | Exception = {"MaximumMessageSize": "2000"}
        self.sends: Callable[[list[dict[str, Any]]], Any] = taking
        self.deletes: Callable[[list[dict[str, Any]]], Any] = taking
        self.messages: list[list[dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(**arguments: Any) -> Any:
            await asyncio.sleep(0)
            self.asked.append((name, arguments))
            return await self._answer(name, arguments)

        return ask

    async def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "get_queue_url":
            return {"QueueUrl": f"http://sqs/{arguments['QueueName']}"}
        if name == "get_queue_attributes":
            if isinstance(self.attributes, Exception):
                raise self.attributes
            return {"Attributes": self.attributes}
        if name == "send_message_batch":
            return self.sends(arguments["Entries"])
        if name == "delete_message_batch":
            return self.deletes(arguments["Entries"])
        if name == "receive_message":
            if not self.messages:
                await asyncio.get_running_loop().create_future()
            return {"Messages": self.messages.pop(0)}
        return {}

    def calls(self, name: str) -> list[dict[str, Any]]:
        return [arguments for asked, arguments in self.asked if asked == name]

    def handles(self, name: str) -> list[str]:
        """Those of all entries of all calls."""
        return [entry["ReceiptHandle"] for one in self.calls(name) for entry in one["Entries"]]


def taking(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Successful": [{"Id": entry["Id"]} for entry in entries]}


def config(*rules: dict[str, Any], **more: Any) -> Config:
    return Config.model_validate({"region": "eu-central-1", "rules": list(rules), **more})


def remote_to(client: Fake, *rules: dict[str, Any], **more: Any) -> SqsRemote:
    remote = SqsRemote(config(*rules or (out("#", "q"),), **more), Access(None, None))
    remote._client = client
    remote._over = asyncio.get_running_loop().create_future()
    return remote


def item(payload: bytes = b"x", target: str = "q") -> Item:
    number = next(_SEQ)
    rule = SqsRule.model_validate(out("#", "q"))
    return Item(number, rule, Message("t", payload, 1), id=f"i-{number}", target=target, key="t")


async def settled() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


async def sent(remote: SqsRemote, *payloads: bytes, target: str = "q") -> Answers:
    """What became of each, in the order of the answers."""
    answers: Answers = []

    def done(one: Item, failure: Failure | None) -> None:
        answers.append((one.payload.decode()[:10], failure))

    await remote.send([item(payload, target) for payload in payloads], done)
    await settled()
    return answers


def reasons(answers: Answers) -> dict[str, tuple[type[Failure], str] | None]:
    return {
        name: None if failure is None else (type(failure), failure.reason)
        for name, failure in answers
    }


# Outward.


async def test_each_message_of_a_batch_gets_its_own_answer() -> None:
    client = Fake()
    client.sends = lambda entries: {
        "Successful": [{"Id": "2"}, {"Id": "0"}],
        "Failed": [
            {"Id": "1", "Code": "InvalidMessageContents", "Message": "odd", "SenderFault": True},
            {"Id": "3", "Code": "InternalError", "SenderFault": False},
        ],
    }
    remote = remote_to(client)
    answers = reasons(await sent(remote, b"a", b"b", b"c", b"d", b"e"))
    assert answers == {
        "a": None,
        "b": (Poison, "SQS: InvalidMessageContents: odd"),
        "c": None,
        "d": (Retry, "SQS: InternalError: "),
        "e": (Retry, "SQS: no word of it in the answer to its batch"),
    }
    assert remote._free._value == 16
    assert remote._over is not None
    assert not remote._over.done()


@pytest.mark.parametrize("prefix", ["", "AWS.SimpleQueueService."])
async def test_a_batch_that_is_refused_as_a_whole_is_sent_one_by_one(prefix: str) -> None:
    def sends(entries: list[dict[str, Any]]) -> dict[str, Any]:
        if any(entry["MessageBody"] == "bad" for entry in entries):
            raise Refusal(prefix + "InvalidMessageContents")
        return taking(entries)

    client = Fake()
    client.sends = sends
    answers = reasons(await sent(remote_to(client), b"a", b"bad", b"c"))
    assert answers["a"] is None
    assert answers["c"] is None
    assert answers["bad"] is not None
    assert answers["bad"][0] is Poison
    sizes = [len(one["Entries"]) for one in client.calls("send_message_batch")]
    assert sizes == [3, 1, 1, 1]


async def test_a_failure_that_is_no_message_s_ends_the_connection() -> None:
    def sends(entries: list[dict[str, Any]]) -> dict[str, Any]:
        raise Refusal("RequestThrottled")

    client = Fake()
    client.sends = sends
    remote = remote_to(client)
    assert await sent(remote, b"a", b"b") == []
    assert isinstance(await remote.wait(), Retry)


async def test_a_batch_stays_below_what_the_queue_takes() -> None:
    client = Fake()
    remote = remote_to(client)
    await remote._look_for(remote._config.rules[0], "q")
    # Each has some 190 bytes besides: id, headers, topic.
    answers = reasons(await sent(remote, *[bytes([65 + n]) * 700 for n in range(5)], b"x" * 2000))
    sizes = [len(one["Entries"]) for one in client.calls("send_message_batch")]
    assert sizes == [2, 2, 1]
    poison = answers.pop("x" * 10)
    assert poison is not None
    assert poison[0] is Poison
    assert poison[1].startswith("too large: 2")
    assert poison[1].endswith("and SQS takes 2000")
    assert set(answers.values()) == {None}


@pytest.mark.parametrize(
    ("attributes", "more", "most"),
    [
        ({"MaximumMessageSize": "262144"}, {}, 262_144),
        ({}, {}, LARGEST),
        (Refusal("AccessDenied"), {}, LARGEST),
        ({"MaximumMessageSize": "262144"}, {"max_message_size": "1KiB"}, 1024),
    ],
)
async def test_the_limit_is_the_queue_s_unless_it_is_configured(
    attributes: dict[str, str] | Exception, more: dict[str, Any], most: int
) -> None:
    client = Fake()
    client.attributes = attributes
    remote = remote_to(client, **more)
    await remote._look_for(remote._config.rules[0], "q")
    assert remote._most("q") == most
    assert bool(client.calls("get_queue_attributes")) is not bool(more)


async def test_more_than_ten_attributes_never_leave() -> None:
    client = Fake()
    await sent(remote_to(client), b"\0")
    (call,) = client.calls("send_message_batch")
    assert set(call["Entries"][0]["MessageAttributes"]) == {
        "mqttd-id",
        "mqtt-headers",
        "mqtt-topic",
        "mqtt-encoding",
    }


# Inward.


class Taker(Intake):
    """Takes whatever comes; `settle` is for the test."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self.window = 8
        self.came: list[Incoming] = []

    async def room(self) -> None:
        await asyncio.sleep(0)

    def put(self, incoming: Incoming) -> None:
        self.came.append(incoming)


def came(*handles: str, group: str = "g") -> list[dict[str, Any]]:
    return [
        {
            "MessageId": f"m-{handle}",
            "ReceiptHandle": handle,
            "Body": handle,
            "Attributes": {"MessageGroupId": group},
        }
        for handle in handles
    ]


class Bench:
    """A receiver at work, with a clock that the test moves."""

    def __init__(self, *messages: list[dict[str, Any]], window: int = 20) -> None:
        self.client = Fake()
        self.client.messages = list(messages)
        self.settles: dict[str, Settle] = {}
        self.now = 1000.0
        self.receiver = Receiver(self.client, "http://sqs/q", 30, 20, window)
        self._works = [
            asyncio.ensure_future(self.receiver.poll(Taker(), self._put, lambda: self.now)),
            asyncio.ensure_future(self.receiver.delete_all()),
        ]

    def _put(self, got: dict[str, Any], settle: Settle) -> None:
        self.settles[got["ReceiptHandle"]] = settle

    async def end(self) -> None:
        for work in self._works:
            work.cancel()
        await asyncio.gather(*self._works, return_exceptions=True)


async def test_nothing_is_deleted_before_it_is_settled() -> None:
    bench = Bench(came("a", "b", "c"))
    await settled()
    assert bench.client.handles("delete_message_batch") == []
    bench.settles["a"](None)
    bench.settles["b"](None)
    await settled()
    assert bench.client.handles("delete_message_batch") == ["a", "b"]
    assert len(bench.client.calls("delete_message_batch")) == 1
    await bench.end()


async def test_no_more_is_asked_for_than_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(came(*"abcdefg"), came("h"), window=12)
    await settled()
    asked = [one["MaxNumberOfMessages"] for one in bench.client.calls("receive_message")]
    assert asked == [10, 5, 4]
    assert {one["WaitTimeSeconds"] for one in bench.client.calls("receive_message")} == {20}
    await bench.end()


async def test_what_could_not_be_deleted_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttd_plugins._sqs_in._AGAIN_S", 0.0)
    bench = Bench(came("a", "b", "c"))
    failures = [{"Id": "1", "SenderFault": False}, {"Id": "2", "SenderFault": True}]
    bench.client.deletes = lambda entries: {"Failed": [failures.pop()] if failures else []}
    await settled()
    for settle in bench.settles.values():
        settle(None)
    await settled()
    # c is too old to be deleted, which is no use trying again; b fails once.
    assert bench.client.handles("delete_message_batch") == ["a", "b", "c"]
    bench.settles.clear()
    bench.client.messages = []
    await bench.end()


async def test_a_failed_delete_is_repeated_for_that_message_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqttd_plugins._sqs_in._AGAIN_S", 0.0)
    bench = Bench(came("a", "b", "c"))
    failures = [[{"Id": "1", "SenderFault": False}]]
    bench.client.deletes = lambda entries: {"Failed": failures.pop() if failures else []}
    await settled()
    for settle in bench.settles.values():
        settle(None)
    await settled()
    assert bench.client.handles("delete_message_batch") == ["a", "b", "c", "b"]
    await bench.end()


async def test_what_takes_long_here_stays_hidden_there() -> None:
    bench = Bench(came(*"abcdefghij"), came("k", "l"))
    await settled()
    bench.settles["a"](None)
    await bench.receiver.hide(bench.now + 5)  # 25 of 30 s are left
    assert bench.client.calls("change_message_visibility_batch") == []
    await bench.receiver.hide(bench.now + 11)
    changed = bench.client.calls("change_message_visibility_batch")
    assert [len(one["Entries"]) for one in changed] == [10, 1]
    assert bench.client.handles("change_message_visibility_batch") == list("bcdefghijkl")
    assert {entry["VisibilityTimeout"] for one in changed for entry in one["Entries"]} == {30}
    await bench.receiver.hide(bench.now + 12)  # they were hidden a second ago
    assert len(bench.client.calls("change_message_visibility_batch")) == 2
    await bench.receiver.hide(bench.now + 22)
    assert len(bench.client.calls("change_message_visibility_batch")) == 4
    await bench.end()


async def test_at_the_end_the_settled_are_deleted_and_the_rest_is_given_back() -> None:
    bench = Bench(came("a", "b", "c"))
    await settled()
    await bench.end()
    bench.settles["a"](None)
    bench.settles["b"](Retry("the broker ends"))
    await bench.receiver.give_back()
    assert bench.client.handles("delete_message_batch") == ["a"]
    (back_,) = bench.client.calls("change_message_visibility_batch")
    assert [(e["ReceiptHandle"], e["VisibilityTimeout"]) for e in back_["Entries"]] == [
        ("b", 0),
        ("c", 0),
    ]


@pytest.mark.parametrize("failed", [True, False])
async def test_a_connection_that_failed_gives_nothing_back(failed: bool) -> None:
    client = Fake()
    client.messages = [came("a")]
    remote = remote_to(client, back("q", "in/{key}"))
    rule = remote._config.all_rules()[0]
    await remote._look_for(remote._config.rules[0], "q")
    taker = Taker(rule)
    await remote.consume(taker)
    await settled()
    (incoming,) = taker.came
    assert (incoming.key, incoming.id, incoming.message.payload) == ("g", "m-a", b"a")
    if failed:
        remote.end(Retry("reset"))
    await remote.close()
    given = client.handles("change_message_visibility_batch")
    assert given == ([] if failed else ["a"])


# Loops.


@pytest.mark.parametrize(
    ("source", "queue", "to", "loops"),
    [
        ("a/#", "q", "a/{key}", True),
        ("a/#", "q", "b/{key}", False),
        ("a/#", "other", "a/{key}", False),
        ("a/+/b", "q", "{topic}/x/b", False),
        ("q/+/b", "q", "{topic}/x/b", True),
        ("a/+", "{topic[1]}", "a/{key}", False),  # the text doesn't show it; the hops will
    ],
)
def test_a_loop_that_the_text_shows_is_refused(
    source: str, queue: str, to: str, loops: bool
) -> None:
    rules = (out(source, queue), back("q", to))
    if not loops:
        assert config(*rules).all_rules()
        return
    with pytest.raises(ValidationError, match=r"rules\[0\] and rules\[1\]: a loop: what goes out"):
        config(*rules)


# The page.


def test_the_page_has_the_keys_and_their_defaults_and_its_example_is_good() -> None:
    text = PAGE.read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \| .* \|$", text, re.MULTILINE)
    told = {key: default for keys, default in rows for key in re.findall(r"\w+", keys)}
    own = Config.model_fields.keys() - BridgeConfig.model_fields.keys()
    assert told.keys() == own
    usual = config(out("#", "a"))
    for key, default in told.items():
        field = Config.model_fields[key]
        if default == "required":
            assert field.is_required()
        elif default == "absent":
            assert getattr(usual, key) is None
        else:
            document: Any = Document(f"{key}: {default.strip('`')}", "page").value
            assert config(out("#", "a"), **document) == usual
            assert config(out("#", "a"), **{key: 7}) != usual
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (entry,) = parse_yaml(block, "page").plugins
    assert entry.use == "bridge_sqs"
    assert len(Config.model_validate(entry.config).all_rules()) == 2
