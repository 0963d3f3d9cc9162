"""What of `bridge_kafka` needs no Kafka: its configuration, records, what an answer means."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._bridge.remote import Failure, Incoming, Intake, Item, Poison, Refused, Retry
from mqttd_plugins._kafka import message_of, record_headers, topic_of
from mqttd_plugins._kafka_in import Reader
from mqttd_plugins._kafka_out import Learnt, Writer
from mqttd_plugins.bridge_kafka import BridgeKafka, Config, KafkaRule, told
from pydantic import ValidationError

from mqttd.api import Message, MessageProperties
from mqttd.testing import StandIn
from tests.bridges.kit import back, out


def config(*rules: dict[str, Any], **more: Any) -> Config:
    return Config.model_validate({"addresses": ["127.0.0.1"], "rules": list(rules), **more})


def wrong(*rules: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config(*rules, **more)
    return str(caught.value)


# The configuration.


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (out("#", "no topic"), "'no topic' is no topic of Kafka"),
        (out("#", "x" * 250), "is no topic of Kafka"),
        (out("#", "..", create={}), "is no topic of Kafka"),
        (back("a/b", "in"), "from: 'a/b' is no topic of Kafka"),
        (out("#", "{topic}", create={}), "create: needs the name of one topic in `to`"),
        (out("#", "a", create={"partitions": 0}), "greater than or equal to 1"),
    ],
)
def test_rules_that_can_not_work(rule: dict[str, Any], text: str) -> None:
    assert text in wrong(rule)


def test_settings_that_can_not_work() -> None:
    assert "username: needs a password_file" in wrong(out("#", "a"), username="x")
    assert "probe is above 0" in wrong(out("#", "a"), probe=0)
    assert "rules[1]: rules[0] consumes" in wrong(back("a", "x"), back("a", "y"))


def test_rules_that_make_a_loop() -> None:
    text = wrong(out("s/#", "s"), back("s", "s/{key}"))
    assert "rules[0] and rules[1]: a loop" in text
    assert config(out("s/#", "s"), back("s", "in/{key}")).rules[0].topic == "s"


def test_slashes_of_a_target_are_dots() -> None:
    assert config(out("#", "a/b")).rules[0].topic == "a.b"
    assert topic_of("plant/7/t") == "plant.7.t"


async def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(ValueError, match=r'pip install "mqttd\[kafka\]"'):
        await BridgeKafka(config(out("#", "a")), StandIn("up")).check()


async def test_a_password_file_that_is_not_there_is_found_by_check(tmp_path: Path) -> None:
    made = config(out("#", "a"), username="x", password_file=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="none: No such file"):
        await BridgeKafka(made, StandIn("up")).check()


# Records.


def item(topic: str = "t", payload: bytes = b"x", number: int = 1, **more: Any) -> Item:
    rule = KafkaRule.model_validate(out("#", topic, **more))
    message = Message("a", payload, 1)
    return Item(number, rule, message, id=f"id-{number}", target=topic, key="k")


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(
    st.lists(st.tuples(_NAMES, _NAMES), max_size=4),
    st.none() | st.binary(max_size=20),
    st.none() | _NAMES,
    st.none() | st.sampled_from([0, 1]),
    st.none() | st.floats(1, 1e6),
)
def test_properties_survive_a_record(
    user: list[tuple[str, str]],
    correlation: bytes | None,
    content_type: str | None,
    format_indicator: int | None,
    expires_in_s: float | None,
) -> None:
    user = [pair for pair in user if pair[0] not in ("mqttd-id", "mqttd-via")]
    properties = MessageProperties(format_indicator, content_type, "r/t", correlation, tuple(user))
    message = Message("a", b"p", 1, True, properties, expires_in_s)
    rule = KafkaRule.model_validate(out("#", "t"))
    sent = record_headers(Item(1, rule, message, id="i", target="t", key="k"), 1000.0)
    got, _ = message_of("t", b"p", sent, 1000.0)
    ours = {"mqttd-id"}
    kept = tuple(pair for pair in got.properties.user_properties if pair[0] not in ours)
    assert kept == tuple(user)
    assert got.properties.correlation_data == correlation
    assert got.properties.content_type == content_type
    assert got.properties.payload_format_indicator == format_indicator
    assert got.properties.response_topic == "r/t"
    assert got.retain
    assert (got.expires_in_s is None) == (expires_in_s is None)
    if expires_in_s is not None and got.expires_in_s is not None:
        assert abs(got.expires_in_s - expires_in_s) < 0.01


def test_an_envelope_says_what_it_is() -> None:
    headers = record_headers(item(payload=b"x"), 0.0)
    assert ("content-type", b"application/json") not in headers
    rule = KafkaRule.model_validate(out("#", "t", payload="envelope"))
    message = Message("a", b"p", 1, properties=MessageProperties(content_type="text/plain"))
    headers = record_headers(Item(1, rule, message, id="i", target="t", key="k"), 0.0)
    assert [value for name, value in headers if name == "content-type"] == [b"application/json"]


def test_a_record_of_somebody_else() -> None:
    odd = [("x", None), ("nul", b"a\0b"), ("bytes", b"\xff"), ("y", b"1")]
    message, headers = message_of("t", None, odd, 0.0)
    assert message.payload == b""
    assert message.properties.user_properties == (("x", ""), ("bytes", "\ufffd"), ("y", "1"))
    assert headers == {"x": "", "bytes": "\ufffd", "y": "1"}


# The way out, with a producer that does what it is told.


def numbered(number: int, key: str = "k", topic: str = "t") -> Item:
    """An item whose payload is its number."""
    rule = KafkaRule.model_validate(out("#", topic))
    message = Message("a", b"%d" % number, 1)
    return Item(number, rule, message, id=f"id-{number}", target=topic, key=key)


class Batch:
    def __init__(self, most: int) -> None:
        self.values: list[bytes] = []
        self._most = most

    def append(self, *, timestamp: None, key: bytes, value: bytes, headers: Any) -> Any:
        if len(self.values) >= self._most:
            return None
        self.values.append(value)
        return SimpleNamespace()


class Producer:
    PARTITIONS = 1

    def __init__(self, *topics: str) -> None:
        self.topics = set(topics)
        self.sent: list[tuple[str, int, list[bytes], asyncio.Future[None]]] = []
        self.raises: Exception | None = None
        self.most = 1000  # records in a batch
        partitions = set(range(self.PARTITIONS))
        cluster = SimpleNamespace(
            partitions_for_topic=lambda name: partitions if name in self.topics else None,
            unauthorized_topics=set(),
        )
        self.client = SimpleNamespace(
            cluster=cluster, add_topic=self._nothing, force_metadata_update=self._nothing
        )

    async def _nothing(self, *_: str) -> bool:
        return True

    def create_batch(self) -> Batch:
        return Batch(self.most)

    async def send_batch(self, batch: Batch, topic: str, partition: int) -> Any:
        if self.raises is not None:
            raise self.raises
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent.append((topic, partition, batch.values, future))
        return future


class ManyParted(Producer):
    PARTITIONS = 3


class Sending:
    def __init__(
        self, *topics: str, producer: type[Producer] = Producer, named: frozenset[str] = frozenset()
    ) -> None:
        self.producer = producer(*topics)
        self.named = named
        self.answers: dict[int, Failure | None] = {}
        self.ends: list[Failure] = []
        self.learnt = Learnt()
        self.again()

    def again(self) -> None:
        """The next connection."""
        end = self.ends.append
        self.writer = Writer(self.producer, self.learnt, 5.0, 2000, end, self.named)

    def done(self, item: Item, failure: Failure | None) -> None:
        self.answers[item.seq] = failure

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_items_are_confirmed_as_kafka_confirms_them() -> None:
    at = Sending("t", "u")
    await at.writer.send([numbered(1), numbered(2), numbered(3, topic="u")], at.done)
    sent = [(topic, values) for topic, _, values, _ in at.producer.sent]
    assert sent == [("t", [b"1", b"2"]), ("u", [b"3"])]
    at.producer.sent[0][3].set_result(None)
    await at.settle()
    assert at.answers == {1: None, 2: None}
    assert at.ends == []


@pytest.mark.parametrize("remembered", [3, 10_000])
async def test_a_key_has_the_partition_that_kafkas_own_clients_choose(
    monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr("mqttd_plugins._kafka_out._PLACES", remembered)
    at = Sending("t", producer=ManyParted)
    items = [numbered(number, f"k{number % 8}") for number in range(32)]
    await at.writer.send(items, at.done)
    chosen = {int(value): place for _, place, values, _ in at.producer.sent for value in values}
    choose = DefaultPartitioner()
    assert chosen == {each.seq: choose(each.key.encode(), [0, 1, 2], []) for each in items}
    assert len(at.producer.sent) == len(set(chosen.values())) > 1
    for _, _, values, _ in at.producer.sent:
        assert values == sorted(values, key=int)


async def test_a_key_that_takes_much_memory_is_not_remembered() -> None:
    at = Sending("t", producer=ManyParted)
    await at.writer.send([numbered(1, "k" * 512), numbered(2, "k" * 513)], at.done)
    assert list(at.writer._places) == [(3, b"k" * 512)]
    sent = {int(value) for _, _, values, _ in at.producer.sent for value in values}
    assert sent == {1, 2}


async def test_what_doesnt_fit_into_a_batch_goes_into_the_next() -> None:
    at = Sending("t")
    at.producer.most = 2
    await at.writer.send([numbered(number) for number in range(5)], at.done)
    assert [values for _, _, values, _ in at.producer.sent] == [[b"0", b"1"], [b"2", b"3"], [b"4"]]


async def test_a_refused_batch_ends_the_producer_and_blames_nobody() -> None:
    at = Sending("t")
    await at.writer.send([item(number=1), item(number=2)], at.done)
    at.producer.sent[0][3].set_exception(errors.MessageSizeTooLargeError())
    await at.settle()
    assert at.answers == {}
    assert len(at.ends) == 1
    assert isinstance(at.ends[0], Retry)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(errors.MessageSizeTooLargeError(), Poison), (errors.CorruptRecordException(), Retry)],
)
async def test_after_it_records_go_alone_and_the_one_at_fault_is_found(
    error: Exception, kind: type[Failure]
) -> None:
    at = Sending("t")
    at.learnt.alone.add("t")
    sending = asyncio.ensure_future(at.writer.send([item(number=1), item(number=2)], at.done))
    await at.settle()
    assert len(at.producer.sent) == 1
    at.producer.sent[0][3].set_exception(error)
    await sending
    assert isinstance(at.answers[1], kind)
    assert 2 not in at.answers
    assert len(at.producer.sent) == len(at.ends) == 1


async def test_a_producer_that_is_fenced_off_is_nobodys_fault() -> None:
    at = Sending("t")
    await at.writer.send([item(number=1)], at.done)
    at.producer.sent[0][3].set_exception(errors.OutOfOrderSequenceNumber())
    await at.settle()
    assert (at.answers, at.learnt.alone, len(at.ends)) == ({}, set(), 1)


async def test_what_is_too_large_is_never_sent() -> None:
    at = Sending("t")
    await at.writer.send([item("t", b"x" * 1900, 1), item("t", b"x" * 1800, 2)], at.done)
    assert isinstance(at.answers[1], Poison)
    assert [len(values) for _, _, values, _ in at.producer.sent] == [1]
    assert at.ends == []


async def test_a_producer_that_takes_no_more_is_at_its_end() -> None:
    at = Sending("t")
    at.producer.raises = errors.KafkaTimeoutError()
    await at.writer.send([item(number=1), item(number=2)], at.done)
    assert at.answers == {}
    assert [type(end) for end in at.ends] == [Retry]


async def test_a_topic_that_we_may_not_write_to() -> None:
    at = Sending()
    at.producer.client.cluster.unauthorized_topics.add("t")
    await at.writer.send([item(number=1), item(number=2)], at.done)
    assert {str(failure) for failure in at.answers.values()} == {
        "Kafka doesn't let us write to topic 't'"
    }


async def test_a_named_topic_that_may_not_be_written_to_makes_its_messages_wait() -> None:
    at = Sending("t", "u", named=frozenset({"t"}))
    await at.writer.send([item(number=1), item(number=2), item("u", number=3)], at.done)
    at.producer.sent[0][3].set_exception(errors.TopicAuthorizationFailedError("t"))
    await at.settle()
    assert at.answers.keys() == {1, 2}
    assert all(isinstance(failure, Refused) for failure in at.answers.values())
    assert [str(end) for end in at.ends] == ["a rule: Kafka doesn't let us write to topic 't'"]
    assert isinstance(at.ends[0], Refused)
    assert at.learnt.alone == set()


async def test_a_named_topic_that_has_gone_makes_its_messages_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqttd_plugins._kafka_out._LOOK_S", 0.0)
    for named, kind in ((frozenset({"t"}), Refused), (frozenset(), Retry)):
        at = Sending(named=named)
        await at.writer.send([item(number=1), item(number=2)], at.done)
        assert [type(failure) for failure in at.answers.values()] == [kind, kind]
        assert [type(end) for end in at.ends] == [Refused] * (kind is Refused)
        assert at.producer.sent == []


# The way in, with a consumer that does what it is told.


class Consumer:
    def __init__(self) -> None:
        self.committed: list[dict[Any, int]] = []
        self.raises: Exception | None = None

    async def commit(self, offsets: dict[Any, int]) -> None:
        if self.raises is not None:
            raise self.raises
        self.committed.append(offsets)


class Room(Intake):
    window = 10

    def __init__(self) -> None:
        self.rules = [KafkaRule.model_validate(back("t", "in/{key}"))]
        self.got: list[Incoming] = []

    async def room(self) -> None:
        """There is always room."""

    def put(self, incoming: Incoming) -> None:
        self.got.append(incoming)


def reading() -> tuple[Reader, Consumer, Room, list[Failure], Callable[[int], None]]:
    consumer, room, ends = Consumer(), Room(), list[Failure]()
    reader = Reader(consumer, room, ends.append, lambda error: ends.append(Retry(str(error))))

    def put(offset: int) -> None:
        record = SimpleNamespace(
            topic="t", partition=0, offset=offset, key=b"k", value=b"x", headers=()
        )
        reader._put(reader._assignment, TopicPartition("t", 0), record)

    return reader, consumer, room, ends, put


async def test_an_offset_is_committed_when_its_record_is_durable() -> None:
    reader, consumer, room, _, put = reading()
    put(5)
    put(6)
    await reader._commit()
    assert consumer.committed == []
    room.got[0].settle(None)
    await reader._commit()
    await reader._commit()
    assert consumer.committed == [{TopicPartition("t", 0): 6}]
    assert [incoming.id for incoming in room.got] == ["t-0-5", "t-0-6"]


async def test_a_commit_that_fails_is_made_up_for() -> None:
    reader, consumer, room, _, put = reading()
    put(5)
    room.got[0].settle(None)
    consumer.raises = errors.RequestTimedOutError()
    await reader._commit()
    consumer.raises = None
    await reader._commit()
    assert consumer.committed == [{TopicPartition("t", 0): 6}]


async def test_nothing_is_committed_behind_a_record_that_was_not_taken() -> None:
    reader, consumer, room, ends, put = reading()
    put(5)
    put(6)
    room.got[0].settle(Retry("the broker ends"))
    room.got[1].settle(None)
    await reader._commit()
    assert consumer.committed == []
    assert [str(end) for end in ends] == ["the broker ends"]


async def test_what_was_settled_for_an_assignment_that_is_over_is_not_committed() -> None:
    reader, consumer, room, _, put = reading()
    put(5)
    reader._assignment += 1
    room.got[0].settle(None)
    await reader._commit()
    assert consumer.committed == []


# The connection.


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (errors.SaslAuthenticationFailed("no"), Refused, "rules[0]: Kafka: "),
        (errors.TopicAuthorizationFailedError("t"), Refused, "rules[0]: Kafka: "),
        (errors.KafkaConnectionError("gone"), Retry, "Kafka: KafkaConnectionError: gone"),
        (ConnectionRefusedError(111, "Connection refused"), Retry, "Kafka: Connection refused"),
        (TimeoutError(), Retry, "Kafka: TimeoutError"),
    ],
)
def test_what_an_error_means(error: Exception, kind: type[Failure], text: str) -> None:
    failure = told(error, "Kafka", "rules[0]")
    assert type(failure) is kind
    assert str(failure).startswith(text)
