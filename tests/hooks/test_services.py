"""What the broker does for plugins: promises, tables, clients inside, timers, threads, the end."""

import asyncio
import gc
import logging
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mqttd.api import (
    BrokerServices,
    Client,
    Drop,
    InternalClient,
    Message,
    MessageProperties,
    NoRoom,
    Plugin,
    PluginConfig,
    Received,
    reason_codes,
)
from mqttd.core.packets import Disconnect, Puback
from mqttd.hooks.services import THREADS, Services, Stopped
from tests.harness import FakeClient
from tests.hooks.kit import Hooked, hooked, prepared
from tests.net.kit import running


class Idle(Plugin[PluginConfig]):
    """Does nothing: a test uses its services."""


@asynccontextmanager
async def serving(
    durable: bool = False, *names: str
) -> AsyncIterator[tuple[Hooked, BrokerServices]]:
    plugins = [prepared(Idle, name) for name in names or ("p",)]
    async with hooked(*plugins, durable=durable) as made:
        yield made, made.manager.services[plugins[0].name]


async def reader(made: Hooked, *filters: str) -> FakeClient:
    client = await made.client("reader")
    for name in filters or ("#",):
        client.subscribe(name, qos=1)
    return client


# Publishing.


async def test_publishing_says_how_many_matched() -> None:
    async with serving() as (made, services):
        client = await reader(made)
        properties = MessageProperties(content_type="text", user_properties=(("a", "b"),))
        assert await services.publish(Message("t", b"x", 1, properties=properties)) == 1
        await made.turn()
        (got,) = client.messages()
        assert (got.payload, got.qos, got.properties) == (b"x", 1, properties.encoded())
        client.drop()
        assert await services.publish(Message("t", b"x")) == 0


async def test_it_resolves_when_it_is_durable() -> None:
    async with serving(True) as (made, services):
        task = asyncio.create_task(services.publish(Message("t", b"x", 1, retain=True)))
        await made.turn()
        assert not task.done()
        await made.commit()
        assert await task == 0
        assert made.broker.retained.count == 1


async def test_no_hook_is_asked_about_what_a_plugin_publishes() -> None:
    class Denies(Plugin[PluginConfig]):
        def on_publish(self, client: Client, message: Message) -> Drop:
            raise AssertionError

    async with hooked(prepared(Denies, "p")) as made:
        client = await reader(made)
        await made.manager.services["p"].publish(Message("t", b"x"))
        await made.turn()
        assert len(client.messages()) == 1


@pytest.mark.parametrize(
    "message",
    [Message("a/#"), Message(""), Message("t", qos=3), Message("t", "text")],  # type: ignore[arg-type]
)
async def test_what_is_no_message_is_not_published(message: Message) -> None:
    async with serving() as (_, services):
        with pytest.raises(ValueError, match="not a message"):
            await services.publish(message)


async def test_with_a_broken_store_a_publish_fails() -> None:
    async with serving(True) as (made, services):
        made.broker.refuse(reason_codes.UNSPECIFIED_ERROR, made.h.now)
        with pytest.raises(Stopped, match="the store has failed"):
            await services.publish(Message("t", b"x", 1, retain=True))


async def test_with_a_full_disk_a_publish_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(True) as (made, services):
        made.broker.refuse(reason_codes.QUOTA_EXCEEDED, made.h.now)
        pause = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await pause.wait()

        with monkeypatch.context() as patch:
            patch.setattr("mqttd.hooks.services.asyncio.sleep", sleep)
            task = asyncio.create_task(services.publish(Message("t", b"x", 1, retain=True)))
            await asyncio.wait((task,), timeout=0.01)
        assert not task.done()
        made.broker.accept()
        pause.set()
        await made.turn()
        await made.commit()
        assert await task == 0


# Tables.


async def test_a_table_is_written_at_once_and_durable_later() -> None:
    async with serving(True, "p", "other") as (made, services):
        table = services.table()
        promise = asyncio.ensure_future(table.set("k", b"v"))
        assert table.get("k") == b"v"
        assert table.items() == [("k", b"v")]
        assert services.table("second").get("k") is None
        assert made.manager.services["other"].table().get("k") is None
        await made.turn()
        assert not promise.done()
        await made.commit()
        await promise
        table.delete("k")
        table.delete("never there")
        assert table.get("k") is None


async def test_what_a_hook_wrote_is_durable_before_the_acknowledgement() -> None:
    class Takes(Plugin[PluginConfig]):
        def on_publish(self, client: Client, message: Message) -> Drop:
            self.broker.table().set(message.topic, message.payload)
            return Drop("kept")

    async with hooked(prepared(Takes), durable=True) as made:
        client = await made.client()
        client.publish("t", b"x", 1)
        await made.turn()
        client.expect_nothing()
        await made.commit()
        assert client.expect(Puback).reason == 0


# Looking around.


async def test_retained_messages_are_found() -> None:
    async with serving() as (made, services):
        client = await made.client()
        for number in range(300):
            client.publish(f"t/{number}", b"x", retain=True)
        client.publish("t/gone", b"x", retain=True, message_expiry=0)
        client.publish("u", b"x", retain=True)
        await asyncio.sleep(0.001)
        found = [message.topic async for message in services.retained("t/+")]
        assert sorted(found) == sorted(f"t/{number}" for number in range(300))
        with pytest.raises(ValueError, match="not a filter"):
            await anext(services.retained("a/#/b"))


async def test_sessions_are_found() -> None:
    async with serving() as (made, services):
        client = await made.client("here", username="u", expiry=60)
        client.subscribe("t", qos=1)
        away = await made.client("away", expiry=60)
        away.subscribe("t", qos=1)
        away.drop()
        await services.client("in")
        client.auto_ack = False
        client.publish("t", b"x", 1)
        here = services.session("here")
        assert here is not None
        assert (here.username, here.connected, here.peer) == ("u", True, client.connection.peer)
        assert (here.subscriptions, here.in_flight, here.queued) == (("t",), 1, 0)
        gone = services.session("away")
        assert gone is not None
        assert (gone.connected, gone.peer, gone.queued) == (False, "", 1)
        assert gone.expiry_interval_s == 60
        assert services.session("nobody") is None
        found = {session.client_id: session async for session in services.sessions()}
        assert sorted(found) == ["away", "here", "in"]
        assert (found["in"].username, found["in"].peer) == (None, "inside")


async def test_kicking() -> None:
    async with serving() as (made, services):
        client = await made.client()
        assert services.kick("c", "too loud", reason_codes.QUOTA_EXCEEDED)
        assert not services.kick("nobody")
        await made.turn()
        bye = client.expect(Disconnect)
        assert bye.reason == reason_codes.QUOTA_EXCEEDED
        assert client.closed
        assert not services.kick("c")


async def test_a_hook_may_kick_whoever_it_is_asked_about() -> None:
    """The core is in the midst of that connection: it ends when the core is done."""

    class Kicks(Plugin[PluginConfig]):
        def on_publish(self, client: Client, message: Message) -> None:
            self.broker.kick(client.client_id, "publish")

        def on_deliver(self, client: Client, message: Message) -> None:
            self.broker.kick(client.client_id, "deliver")

    async with hooked(prepared(Kicks)) as made:
        client = await reader(made)
        client.publish("t", b"x", 1)
        await made.turn()
        kinds = [type(packet) for packet in client.recv()]
        assert kinds[-1] is Disconnect
        assert kinds.count(Disconnect) == 1
        assert client.closed
        assert made.broker.counters.bugs == 0


async def test_who_comes_back_at_once_is_not_kicked_again() -> None:
    async with serving() as (made, services):
        await made.client(expiry=60)
        services.kick("c")
        client = made.say(expiry=60, clean_start=False)  # takes the session over first
        await made.turn()
        assert not client.closed


# Clients inside.


async def collect(client: AsyncIterator[Received], count: int) -> list[Received]:
    async with asyncio.timeout(10):
        return [await anext(client) for _ in range(count)]


async def test_a_client_inside_gets_what_it_subscribes_to() -> None:
    async with serving() as (made, services):
        inside = await services.client("in")
        await inside.subscribe("t/#", 2)
        assert inside.subscriptions == ["t/#"]
        sender = await made.client()
        sender.publish("t/1", b"x", 2)
        sender.publish("t/2", b"y", 0)
        await made.turn()
        (one, two) = await collect(aiter(inside), 2)
        assert (one.message.topic, one.message.payload, one.message.qos) == ("t/1", b"x", 1)
        assert one.message.client_id == "c"
        assert not one.duplicate
        assert (two.message.qos, inside.in_flight) == (0, 1)
        two.ack()
        one.ack()
        one.ack()
        assert (inside.in_flight, inside.queued) == (0, 0)
        await inside.unsubscribe("t/#")
        assert inside.subscriptions == []
        with pytest.raises(ValueError, match="can't subscribe"):
            await inside.subscribe("a/#/b")


async def test_a_client_inside_sees_the_redeliveries_of_a_shared_subscription() -> None:
    async with serving() as (made, services):
        first, second = [await services.client(name) for name in ("first", "second")]
        for inside in (first, second):
            await inside.subscribe("$share/g/t")
        sender = await made.client()
        sender.publish("t", b"x", 1)
        await made.turn()
        assert [each.redeliveries for each in await first.take()] == [0]
        first.close()
        await made.turn()
        assert [each.redeliveries for each in await second.take()] == [1]


async def test_all_that_came_is_taken_at_once_until_the_client_is_closed() -> None:
    async with serving() as (made, services):
        inside = await services.client("in")
        await inside.subscribe("t")
        sender = await made.client()
        for number in range(3):
            sender.publish("t", b"%d" % number, 1)
        await made.turn()
        taken = await inside.take()
        assert [received.message.payload for received in taken] == [b"0", b"1", b"2"]
        assert not any(received.number for received in taken)  # of a broker that keeps nothing
        for received in taken:
            received.ack()
        assert inside.in_flight == 0
        waiting = asyncio.ensure_future(inside.take())
        await made.turn()
        assert not waiting.done()
        inside.close()
        assert await waiting == []


async def test_its_receive_maximum_holds_and_a_refusal_is_one() -> None:
    async with serving() as (made, services):
        inside = await services.client("in", receive_maximum=1)
        await inside.subscribe("t")
        sender = await made.client()
        for number in range(3):
            sender.publish("t", b"%d" % number, 1)
        await made.turn()
        assert (inside.in_flight, inside.queued) == (1, 2)
        arrivals = aiter(inside)
        for number in range(3):
            (got,) = await collect(arrivals, 1)
            assert got.message.payload == b"%d" % number
            got.ack(reason_codes.UNSPECIFIED_ERROR)
            await made.turn()
        assert made.h.dropped == {"refused_by_receiver": 3}


async def test_its_own_messages_do_not_come_back() -> None:
    async with serving() as (made, services):
        inside = await services.client("in")
        await inside.subscribe("t")
        other = await reader(made, "t")
        assert await inside.publish(Message("t", b"x")) == 1
        await services.publish(Message("t", b"y"))
        await made.turn()
        assert [packet.payload for packet in other.messages()] == [b"x", b"y"]
        (got,) = await collect(aiter(inside), 1)
        assert got.message.payload == b"y"


async def test_a_slow_reader_of_qos_0_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttd.hooks.services._MAILBOX", 10)
    async with serving() as (made, services):
        inside = await services.client("in")
        await inside.subscribe("t")
        sender = await made.client()
        for _ in range(50):
            sender.publish("t", b"x")
            await made.turn(1)
        assert made.h.dropped["slow_reader"] == 39
        arrivals = aiter(inside)
        await collect(arrivals, 11)
        sender.publish("t", b"later")
        await made.turn()
        (got,) = await collect(arrivals, 1)
        assert got.message.payload == b"later"


async def test_what_was_not_acknowledged_comes_again_to_the_next_client() -> None:
    async with serving() as (made, services):
        inside = await services.client("in")
        await inside.subscribe("t")
        with pytest.raises(ValueError, match="in use"):
            await services.client("in")
        sender = await made.client()
        for number in range(2):
            sender.publish("t", b"%d" % number, 1)
        await made.turn()
        (one, _) = await collect(aiter(inside), 2)
        inside.close()
        inside.close()
        one.ack()  # too late
        assert [got async for got in inside] == []
        with pytest.raises(Stopped):
            await inside.publish(Message("t"))
        again = await services.client("in")
        await made.turn()
        found = await collect(aiter(again), 2)
        assert [(got.message.payload, got.duplicate) for got in found] == [
            (b"0", True),
            (b"1", True),
        ]


async def test_a_client_inside_survives_a_restart(tmp_path: Path) -> None:
    plugin = f"{__name__}:Bridge"
    config: dict[str, object] = {
        "listeners": [{"name": "tcp", "bind": "127.0.0.1:0"}],
        "storage": {"path": str(tmp_path / "mqttd.db")},
        "plugins": [{"use": plugin}],
    }
    for turn in range(2):
        Bridge.got.clear()
        async with running(config) as app:
            assert app.hooks is not None
            services = app.hooks.services["Bridge"]
            await services.publish(Message("t", b"%d" % turn, 1))
            async with asyncio.timeout(10):
                while len(Bridge.got) < 1 + turn:
                    await asyncio.sleep(0.001)
        assert [got.message.payload for got in Bridge.got] == [b"0", b"1"][: turn + 1]
        assert [got.duplicate for got in Bridge.got] == [True, False][1 - turn :]


class Bridge(Plugin[PluginConfig]):
    """Receives without ever acknowledging."""

    got: list[Received] = []  # noqa: RUF012  of all that were made

    async def start(self) -> None:
        self.client = await self.broker.client("bridge")
        if not self.client.subscriptions:
            await self.client.subscribe("t")
        self.broker.spawn(self.receive())

    async def receive(self) -> None:
        async for received in self.client:
            self.got.append(received)


# Timers, tasks, threads.


async def test_timers() -> None:
    done: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0)
        done.append("awaited")

    async with serving() as (made, services):
        services.call_later(0.0, lambda: done.append("called"))
        services.call_later(0.0, later)
        cancelled = services.call_later(0.0, lambda: done.append("cancelled"))
        cancelled.cancel()
        cancelled.cancel()
        never = services.call_later(-5.0, lambda: done.append("past"))
        await made.until(lambda: len(done) == 3)
        never.cancel()
    assert sorted(done) == ["awaited", "called", "past"]


async def test_a_timer_that_fails_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    async def fail_later() -> None:
        raise RuntimeError("broken later")

    async with serving() as (made, services):
        services.call_later(0.0, fail)
        services.call_later(0.0, fail_later)
        await made.until(lambda: "broken later" in caplog.text)
    assert "plugin p failed in a timer" in caplog.text


async def test_a_timer_that_calls_exit_ends_no_broker(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (made, services):
        services.call_later(0.0, lambda: sys.exit(3))
        await made.until(lambda: "failed in a timer" in caplog.text)
        assert await services.run_blocking(len, "abc") == 3


async def test_a_timer_or_task_that_blocks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mqttd.plugins")

    async def work() -> None:
        await asyncio.sleep(0)
        time.sleep(0.1)

    async with serving() as (made, services):
        services.call_later(0.0, lambda: time.sleep(0.1))
        services.spawn(work(), "poll")
        await made.until(lambda: caplog.text.count("blocked the loop") == 2)
    assert "in a timer" in caplog.text
    assert "in poll" in caplog.text


async def test_what_a_plugin_started_ends_with_it() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            done.append("ended")

    async def at_once() -> None:
        done.append("began")

    async with serving(True) as (made, services):
        services.spawn(work(), "worker")
        services.call_later(0.005, lambda: done.append("timer"))
        inside = await asyncio.wait_for(_client(made, services), 10)
        promise = asyncio.ensure_future(services.table().set("k", b"v"))
        await made.turn()
        gone = services.spawn(at_once())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gone.cancel()
            await made.turn()
            gc.collect()
    with pytest.raises(Stopped):
        await promise
    assert [got async for got in inside] == []
    with pytest.raises(Stopped):
        await services.run_blocking(threading.get_ident)
    with pytest.raises(Stopped):
        await services.table().set("k", b"later")
    services.call_later(0.0, lambda: done.append("late"))
    await asyncio.sleep(0.01)
    assert done == ["ended"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _client(made: Hooked, services: BrokerServices) -> InternalClient:
    task = asyncio.create_task(services.client("in"))
    await made.turn()
    await made.commit()
    return await task


async def test_a_plugin_that_hangs_in_its_threads_keeps_no_other_waiting() -> None:
    ended = threading.Event()
    async with serving(False, "stuck", "other") as (made, services):
        try:
            stuck = [asyncio.ensure_future(services.run_blocking(ended.wait)) for _ in range(9)]
            await made.turn()
            assert await made.manager.services["other"].run_blocking(len, "abc") == 3
            assert not any(one.done() for one in stuck)
        finally:
            ended.set()
        assert await asyncio.gather(*stuck) == [True] * 9


@pytest.mark.parametrize("name", ["", "more"])
async def test_with_a_full_disk_a_row_is_refused_and_nothing_kept(name: str) -> None:
    async with serving(True) as (made, services):
        table = services.table(name)
        table.set("old", b"1")
        await made.commit()
        made.broker.refuse(reason_codes.QUOTA_EXCEEDED, made.h.now)
        with pytest.raises(NoRoom):
            table.set("new", b"v")
        assert table.items() == [("old", b"1")]
        gone = asyncio.ensure_future(table.delete("old"))
        await made.turn()
        assert table.items() == []
        assert not gone.done()
        made.broker.accept()
        await made.commit()
        assert gone.done()
        table.set("new", b"v")
        assert table.get("new") == b"v"


async def test_with_a_store_that_has_failed_no_row_changes() -> None:
    async with serving(True) as (made, services):
        table = services.table()
        table.set("old", b"1")
        await made.commit()
        made.broker.refuse(reason_codes.UNSPECIFIED_ERROR, made.h.now)
        with pytest.raises(Stopped):
            table.set("new", b"v")
        with pytest.raises(Stopped):
            table.delete("old")
        assert table.items() == [("old", b"1")]


async def test_a_retained_message_at_qos_0_waits_for_room() -> None:
    async with serving(True) as (made, services):
        made.broker.refuse(reason_codes.QUOTA_EXCEEDED, made.h.now)
        waiting = asyncio.ensure_future(services.publish(Message("t", b"x", retain=True)))
        await made.turn()
        assert made.broker.retained.count == 0
        assert not waiting.done()
        made.broker.refuse(reason_codes.UNSPECIFIED_ERROR, made.h.now)
        with pytest.raises(Stopped):
            await waiting


async def test_promises_nobody_waits_for_are_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(True) as (_, services):
        services.table().set("k", b"v")
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_blocking_work_is_bounded() -> None:
    running_now = [0]
    most = [0]
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            running_now[0] += 1
            most[0] = max(most[0], running_now[0])
        time.sleep(0.002)
        with lock:
            running_now[0] -= 1
        return number

    async with serving() as (_, services):
        found = await asyncio.gather(*(services.run_blocking(work, n) for n in range(20)))
        assert found == list(range(20))
        assert most[0] == THREADS
        with pytest.raises(ZeroDivisionError):
            await services.run_blocking(divmod, 1, 0)


async def test_figures_and_audit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mqttd.audit")
    async with serving() as (_, services):
        services.count("logins")
        services.count("logins", 2)
        services.gauge("users", 7.5)
        services.audit("users_changed", added=1)
        assert isinstance(services, Services)
        assert (services.counts, services.gauges) == ({"logins": 3}, {"users": 7.5})
        assert abs(services.now() - time.monotonic()) < 1.0
    assert "users_changed" in caplog.text
