"""delayed: when a message goes out and in which order, what is refused, restarts, the operator."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._delayed_rows import from_row, message_of, to_row
from mqttd_plugins.delayed import Config, Delayed

from mqttd.api import (
    Client,
    Deny,
    Drop,
    Message,
    MessageProperties,
    NoRoom,
    reason_codes,
)
from mqttd.testing import StandIn


class Unsteady(StandIn):
    """A stand-in that may fail to publish."""

    broken = False

    async def publish(self, message: Message) -> int:
        if self.broken:
            raise OSError("no space")
        return await super().publish(message)


async def started(broker: Unsteady | None = None, **config: Any) -> tuple[Delayed, Unsteady]:
    broker = Unsteady() if broker is None else broker
    plugin = await broker.start(Delayed, Config.model_validate(config))
    return cast(Delayed, plugin), broker


async def send(
    plugin: Delayed,
    topic: str,
    payload: bytes = b"p",
    client_id: str = "pump",
    user: str | None = None,
    **more: Any,
) -> Deny | Drop | None:
    message = Message(topic, payload, client_id=client_id, **more)
    answer = plugin.on_publish(Client(client_id, user), message)
    return await answer if isinstance(answer, Awaitable) else answer


def payloads(broker: Unsteady) -> list[bytes]:
    return [message.payload for message in broker.published]


async def test_a_message_goes_out_when_its_time_has_come_as_it_came() -> None:
    plugin, broker = await started()
    properties = MessageProperties(1, "text/plain", "r/t", b"\0\1", (("a", "b"), ("a", "c")))
    answer = await send(plugin, "$delayed/10/a/b", qos=2, retain=True, properties=properties)
    assert isinstance(answer, Drop)
    ((asked, *what),) = broker.asked
    assert (asked.client_id, what) == ("pump", ["a/b", 2, True])
    await broker.advance(9.9)
    assert broker.published == []
    await broker.advance(0.1)
    assert broker.published == [
        Message("a/b", b"p", 2, True, properties, client_id="pump"),
    ]
    assert broker.table().items() == []
    assert broker.counts == {"accepted": 1, "published": 1}
    assert broker.gauges == {"waiting": 0, "waiting_bytes": 0}
    await broker.advance(100.0)
    assert len(broker.published) == 1


async def test_other_topics_go_their_way() -> None:
    plugin, broker = await started()
    for topic in ("a/b", "$delayedx/1/a", "$app/1/a", "delayed/1/a"):
        assert await send(plugin, topic) is None
    assert broker.counts == {}


@pytest.mark.parametrize(
    "topic",
    [
        "$delayed",
        "$delayed/",
        "$delayed/5",
        "$delayed/5/",
        "$delayed//a",
        "$delayed/-1/a",
        "$delayed/1.5/a",
        "$delayed/1e3/a",
        "$delayed/0x5/a",
        "$delayed/٣/a",
        "$delayed/99999999999/a",
        "$delayed/a/5",
        "$delayed/5/$SYS/broker/x",
        "$delayed/5/$delayed/5/a",
        "$delayed/5/$share/g/a",
        "$delayed/5/" + "/" * 300,
    ],
)
async def test_what_is_no_delay_is_refused(topic: str) -> None:
    plugin, broker = await started()
    deny = await send(plugin, topic)
    assert isinstance(deny, Deny)
    assert deny.code == reason_codes.TOPIC_NAME_INVALID
    assert broker.table().items() == []
    assert broker.counts == {"refused": 1}


async def test_without_a_delay_it_goes_out_at_once() -> None:
    plugin, broker = await started()
    await send(plugin, "$delayed/0/a")
    await broker.advance(0.0)
    assert payloads(broker) == [b"p"]


async def test_what_is_due_first_goes_first_and_equals_in_the_order_they_came() -> None:
    plugin, broker = await started()
    for number, seconds in enumerate([5, 3, 5, 3, 4]):
        await send(plugin, f"$delayed/{seconds}/a", b"%d" % number)
    await broker.advance(10.0)
    assert payloads(broker) == [b"1", b"3", b"4", b"0", b"2"]


async def test_many_that_are_due_at_once_keep_their_order() -> None:
    plugin, broker = await started()
    sent = [b"%d" % number for number in range(1000)]
    for payload in sent:
        await send(plugin, "$delayed/5/a", payload)
    await broker.advance(5.0)
    assert payloads(broker) == sent


# Rights and limits.


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Deny("line 3", reason_codes.NOT_AUTHORIZED, "acl:3"), reason_codes.NOT_AUTHORIZED),
        (Deny("too much", reason_codes.QUOTA_EXCEEDED), reason_codes.QUOTA_EXCEEDED),
    ],
)
async def test_who_may_not_publish_the_inner_topic_may_not_later_either(
    verdict: Deny, code: int
) -> None:
    plugin, broker = await started()
    broker.answer = verdict
    deny = await send(plugin, "$delayed/5/secret")
    assert isinstance(deny, Deny)
    assert deny.code == code
    await broker.advance(10.0)
    assert broker.published == []
    assert broker.table().items() == []


async def test_too_long_a_delay_is_refused() -> None:
    plugin, _ = await started(max_delay="1m")
    assert isinstance(await send(plugin, "$delayed/60/a"), Drop)
    deny = await send(plugin, "$delayed/61/a")
    assert isinstance(deny, Deny)
    assert deny.code == reason_codes.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    "limit",
    [
        {"max_messages": 2},
        {"max_messages_per_client": 2},
        {"max_bytes": 600},
        {"max_bytes_per_client": 600},
    ],
)
async def test_no_more_waits_than_may(limit: dict[str, Any]) -> None:
    plugin, broker = await started(**limit)
    for _ in range(2):
        assert isinstance(await send(plugin, "$delayed/5/a", bytes(100)), Drop)
    deny = await send(plugin, "$delayed/5/a", bytes(100))
    assert isinstance(deny, Deny)
    assert deny.code == reason_codes.QUOTA_EXCEEDED
    of_another = await send(plugin, "$delayed/5/a", bytes(100), "valve")
    assert isinstance(of_another, Drop) == any("per_client" in key for key in limit)
    await broker.advance(5.0)
    assert isinstance(await send(plugin, "$delayed/5/a", bytes(100)), Drop)


async def test_another_client_id_brings_no_more_room_where_users_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: dict[str, Any] = {"max_messages_per_client": 1, "publisher": "user"}
    plugin, broker = await started(**limits)
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="one", user="ann"), Drop)
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="two", user="ann"), Deny)
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="two", user="bob"), Drop)
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="ann"), Drop)  # no user
    plugin, broker = await restarted(broker, 1.0, monkeypatch, **limits)
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="three", user="ann"), Deny)


async def test_with_a_full_disk_nothing_is_kept_in_memory_alone() -> None:
    plugin, broker = await started()
    broker.full = True
    with pytest.raises(NoRoom):
        await send(plugin, "$delayed/5/a")
    assert await plugin.control("list", {}) == {"waiting": 0, "matched": 0, "messages": []}
    broker.full = False
    assert isinstance(await send(plugin, "$delayed/5/a"), Drop)


async def test_a_reload_counts_anew() -> None:
    plugin, broker = await started(max_messages_per_client=1)
    await send(plugin, "$delayed/5/a", client_id="one", user="ann")
    await plugin.reload(Config(max_messages_per_client=1, publisher="user"))
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="two", user="ann"), Deny)
    await broker.advance(5.0)
    assert broker.gauges["waiting_bytes"] == 0
    assert isinstance(await send(plugin, "$delayed/5/a", client_id="two", user="ann"), Drop)


async def test_a_message_that_expires_meanwhile_is_not_published() -> None:
    plugin, broker = await started()
    await send(plugin, "$delayed/10/a", b"gone", expires_in_s=10.0)
    await send(plugin, "$delayed/10/a", b"left", expires_in_s=15.0)
    await broker.advance(10.0)
    assert payloads(broker) == [b"left"]
    assert broker.published[0].expires_in_s == 5.0
    assert broker.counts["expired"] == 1
    assert broker.table().items() == []


async def test_what_cannot_be_published_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    plugin, broker = await started()
    for payload in (b"1", b"2", b"3"):
        await send(plugin, "$delayed/5/a", payload)
    broker.broken = True
    await broker.advance(7.5)
    assert broker.published == []
    assert len(broker.table().items()) == 3
    assert "no space" in caplog.text
    broker.broken = False
    await broker.advance(1.0)
    assert payloads(broker) == [b"1", b"2", b"3"]
    assert broker.table().items() == []
    assert broker.counts["failed"] == 9


async def test_the_row_stays_until_the_message_is_durable_and_a_stop_waits_for_that() -> None:
    """What a crash leaves is the row, or the message, or both: never neither."""
    durable = asyncio.Event()

    class Slow(Unsteady):
        async def publish(self, message: Message) -> int:
            await super().publish(message)
            await durable.wait()
            return 1

    plugin, broker = await started(Slow())
    await send(plugin, "$delayed/5/a", b"1")
    await send(plugin, "$delayed/6/a", b"2")
    going = asyncio.ensure_future(broker.advance(7.0))
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(plugin.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    assert payloads(broker) == [b"1"]
    assert len(broker.table().items()) == 2
    assert await plugin.control("delete", {"id": 1}) == {"deleted": 0}
    assert not stopping.done()
    durable.set()
    await stopping
    await going
    assert payloads(broker) == [b"1"]
    assert [key for key, _ in broker.table().items()] == ["2"]


# Restarts.


async def restarted(
    broker: Unsteady, after_s: float, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> tuple[Delayed, Unsteady]:
    epoch = time.time() + after_s
    monkeypatch.setattr(time, "time", lambda: epoch)
    again = Unsteady()
    again.tables = broker.tables
    return await started(again, **config)


async def test_messages_outlive_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, broker = await started()
    properties = MessageProperties(user_properties=(("a", "b"),))
    await send(plugin, "$delayed/100/a", b"1", qos=1, retain=True, properties=properties)
    await send(plugin, "$delayed/10/b", b"2")
    await send(plugin, "$delayed/10/b", b"3", expires_in_s=30.0)
    await plugin.stop()
    plugin, broker = await restarted(broker, 40.0, monkeypatch)
    await broker.advance(0.0)
    assert payloads(broker) == [b"2"]  # late, and the third has expired
    await broker.advance(59.0)
    assert len(broker.published) == 1
    await send(plugin, "$delayed/0/a", b"new")
    await broker.advance(2.0)
    assert payloads(broker) == [b"2", b"new", b"1"]
    assert broker.published[2] == Message("a", b"1", 1, True, properties, client_id="pump")


async def test_equals_keep_their_order_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, broker = await started()
    sent = [b"%d" % number for number in range(20)]
    frozen = time.time()
    monkeypatch.setattr(time, "time", lambda: frozen)
    for payload in sent:
        await send(plugin, "$delayed/10/a", payload)
    plugin, broker = await restarted(broker, 5.0, monkeypatch)
    await broker.advance(10.0)
    assert payloads(broker) == sent


@pytest.mark.parametrize("step_s", [-(10.0**8), 10.0**8])
async def test_a_wall_clock_that_was_set_makes_nothing_wait_longer(
    step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, broker = await started()
    await send(plugin, "$delayed/100/a")
    plugin, broker = await restarted(broker, step_s, monkeypatch)
    await broker.advance(100.0)
    assert payloads(broker) == [b"p"]


async def test_a_row_that_cannot_be_read_does_not_hide_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR)
    plugin, broker = await started()
    await send(plugin, "$delayed/5/a")
    for number, row in enumerate((b"", b"\0\0\0\2{}", b"\0\0\0\x09[1, 2, 3]", b"\xff" * 40)):
        broker.table().set(str(number + 100), row)
    broker.table().set("x", to_row(Message("a"), None, 1.0, 0.0))
    _, broker = await restarted(broker, 5.0, monkeypatch)
    await broker.advance(5.0)
    assert payloads(broker) == [b"p"]
    assert len(caplog.records) == 5


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)


@given(
    topic=TEXT,
    payload=st.binary(max_size=50),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    client_id=TEXT,
    username=st.none() | TEXT,
    pairs=st.lists(st.tuples(TEXT, TEXT), max_size=4),
)
def test_any_message_comes_back_out_of_its_row(
    topic: str,
    payload: bytes,
    qos: int,
    retain: bool,
    client_id: str,
    username: str | None,
    pairs: list[tuple[str, str]],
) -> None:
    properties = MessageProperties(user_properties=tuple(pairs))
    message = Message(topic, payload, qos, retain, properties, client_id=client_id)
    row = to_row(message, username, 10.0, 5000.0)
    assert message_of(row) == message
    waiting = from_row("7", row, 100.0, 5004.0)
    assert (waiting.serial, waiting.due_at, waiting.topic) == (7, 106.0, topic)
    assert waiting.username == username


# The operator.


async def test_the_operator_sees_what_waits_and_takes_it_out() -> None:
    plugin, broker = await started()
    await send(plugin, "$delayed/30/a/1", b"secret")
    await send(plugin, "$delayed/10/a/2", b"secret", "valve", qos=1)
    await send(plugin, "$delayed/20/b", b"secret")
    answer = await plugin.control("list", {"topic": "a/#"})
    assert isinstance(answer, dict)
    assert (answer["waiting"], answer["matched"]) == (3, 2)
    assert [one["topic"] for one in answer["messages"]] == ["a/2", "a/1"]
    assert answer["messages"][0]["due_in_s"] == 10.0
    assert "secret" not in str(answer)
    first = answer["messages"][0]["id"]
    answer = await plugin.control("list", {"client_id": "valve", "limit": 5})
    assert isinstance(answer, dict)
    assert [one["id"] for one in answer["messages"]] == [first]
    await plugin.control("delete", {"id": first})
    await broker.advance(60.0)
    assert [message.topic for message in broker.published] == ["b", "a/1"]
    assert broker.audited == [("delayed_delete", {"topic": "a/2", "client_id": "valve"})]
    assert await plugin.control("delete", {"id": first}) == {"deleted": 0}


async def test_the_operator_takes_out_all_of_a_client_or_of_a_topic() -> None:
    plugin, broker = await started()
    for topic, client_id in (("a/1", "pump"), ("a/2", "pump"), ("a/1", "valve"), ("b", "valve")):
        await send(plugin, f"$delayed/5/{topic}", client_id=client_id)
    assert await plugin.control("delete", {"client_id": "pump"}) == {"deleted": 2}
    assert await plugin.control("delete", {"topic": "a/#"}) == {"deleted": 1}
    assert len(broker.table().items()) == 1
    await broker.advance(5.0)
    assert [message.topic for message in broker.published] == ["b"]
    assert broker.gauges == {"waiting": 0, "waiting_bytes": 0}


@pytest.mark.parametrize(
    ("action", "arguments", "told"),
    [
        ("delete", {}, "expected id, client_id or topic"),
        ("delete", {"client_id": 7}, "client_id: expected"),
        ("delete", {"topic": "#/a"}, "topic: "),
        ("delete", {"id": "1"}, "id: expected"),
        ("delete", {"id": True}, "id: expected"),
        ("list", {"limit": -1}, "limit: expected"),
        ("list", {"limit": "all"}, "limit: expected"),
        ("list", {"topic": "a/#/b"}, "topic: "),
        ("list", {"topic": 7}, "topic: expected"),
        ("publish", {}, "no action 'publish'"),
    ],
)
async def test_what_the_operator_mistyped_is_told(
    action: str, arguments: dict[str, object], told: str
) -> None:
    plugin, _ = await started()
    with pytest.raises(ValueError, match=told):
        await plugin.control(action, arguments)
