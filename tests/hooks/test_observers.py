"""Observers: in order, some at a time, bounded; one that fails or is slow costs nobody else."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from mqttd.api import (
    CONNECTED,
    DELIVERED,
    DENIED,
    DISCONNECTED,
    DROPPED,
    EVENT_KINDS,
    PUBLISHED,
    REFUSED,
    SESSION_CREATED,
    SESSION_EXPIRED,
    SESSION_TAKEN_OVER,
    SUBSCRIBED,
    UNSUBSCRIBED,
    Allow,
    Client,
    Credentials,
    Decision,
    Deny,
    Event,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
)
from mqttd.core.packets import Will
from mqttd.core.watch import Watcher
from mqttd.hooks import observers
from mqttd.hooks.observers import BATCH, KINDS, Observer
from tests.hooks.kit import SHORT_S, Hooked, hooked, prepared


class Notes(Plugin[PluginConfig]):
    watches = EVENT_KINDS
    batches: list[list[Event]]

    async def start(self) -> None:
        self.batches = []

    def observe(self, events: Sequence[Event]) -> Awaitable[None] | None:
        self.batches.append(list(events))
        return None

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]


def notes(made: Hooked, name: str = "notes") -> Notes:
    plugin = made.manager.plugin(name)
    assert isinstance(plugin, Notes)
    return plugin


def watching(*kinds: str) -> type[Notes]:
    return type("Watching", (Notes,), {"watches": frozenset(kinds)})


def test_every_kind_of_event_comes_from_somewhere() -> None:
    assert set(KINDS.values()) == EVENT_KINDS


class Decides(Plugin[PluginConfig]):
    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        return Deny("no such user") if credentials.username == "x" else Allow()

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return Deny("not yours") if topic == "secret" else Allow()

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        return Deny("not yours") if subscription.topic_filter == "secret" else Allow()


async def test_the_life_of_a_client_in_events() -> None:
    async with hooked(prepared(Decides), prepared(Notes)) as made:
        before = time.time()
        client = await made.client("c", username="u", expiry=5)
        client.subscribe("t", qos=1)
        client.subscribe("secret")
        client.publish("t", b"payload", 1, retain=True)
        client.publish("secret", b"hidden", 1)
        client.unsubscribe("t")
        again = await made.client("c", username="u", expiry=5, clean_start=False)
        again.subscribe("t", qos=1)
        again.drop()
        other = await made.client("o")
        other.publish("t", b"q0", 0)
        await made.refused("r", username="x")
        made.h.advance(10.0)
        await made.turn()
        found = [(e.kind, e.client_id, e.topic, e.qos, e.reason) for e in notes(made).events]
        peer = client.connection.peer
        assert found == [
            (SESSION_CREATED, "c", "", 0, ""),
            (CONNECTED, "c", "", 0, "MQTT 5.0, new session"),
            (SUBSCRIBED, "c", "t", 1, ""),
            (DENIED, "c", "secret", 0, "not yours"),
            (PUBLISHED, "c", "t", 1, ""),
            (DELIVERED, "c", "t", 1, ""),
            (DENIED, "c", "secret", 1, "not yours"),
            (UNSUBSCRIBED, "c", "t", 0, ""),
            (SESSION_TAKEN_OVER, "c", "", 0, ""),
            (DISCONNECTED, "c", "", 0, "session taken over"),
            (CONNECTED, "c", "", 0, "MQTT 5.0, session resumed"),
            (SUBSCRIBED, "c", "t", 1, ""),
            (DELIVERED, "c", "t", 1, ""),
            (DISCONNECTED, "c", "", 0, "connection lost"),
            (SESSION_CREATED, "o", "", 0, ""),
            (CONNECTED, "o", "", 0, "MQTT 5.0, new session"),
            (PUBLISHED, "o", "t", 0, ""),
            (DROPPED, "c", "t", 0, "offline_qos0"),
            (REFUSED, "r", "", 0, found[-2][4]),
            (SESSION_EXPIRED, "c", "", 0, "session expiry interval over"),
        ]
        assert "no such user" in found[-2][4]
        first = notes(made).events[:5]
        assert [event.peer for event in first] == [peer, peer, peer, peer, ""]
        assert [event.username for event in first] == ["u", "u", "u", "u", None]
        published = first[4]
        assert (published.payload, published.retain) == (b"payload", True)
        assert "payload" not in repr(published)
        assert before - 1 <= published.at <= time.time() + 1
        payloads = [event.payload for event in notes(made).events if event.kind != PUBLISHED]
        assert set(payloads) == {b""}


async def test_the_publisher_of_a_message_is_no_address() -> None:
    """Also where the message was never written down, as one of an earlier process."""
    async with hooked(prepared(watching(DELIVERED), "notes")) as made:
        client = await made.client()
        sender = await made.client("s", will=Will("t", b"x", 0, False))
        client.subscribe("t")
        sender.drop()
        await made.turn()
        (event,) = notes(made).events
        assert (event.client_id, event.peer) == ("c", "")


async def test_only_what_is_watched_is_told() -> None:
    one, two = watching(CONNECTED), watching(CONNECTED, DISCONNECTED)
    async with hooked(prepared(one, "one"), prepared(two, "two")) as made:
        client = await made.client()
        client.subscribe("t")
        client.drop()
        await made.turn()
        assert [event.kind for event in notes(made, "one").events] == [CONNECTED]
        assert [event.kind for event in notes(made, "two").events] == [CONNECTED, DISCONNECTED]


async def test_what_is_watched_may_be_chosen_by_the_configuration() -> None:
    class Chooses(Notes):
        def __init__(self, config: PluginConfig, broker: Any) -> None:
            super().__init__(config, broker)
            self.watches = frozenset({CONNECTED})

    async with hooked(prepared(Chooses, "notes")) as made:
        client = await made.client()
        client.drop()
        await made.turn()
        assert [event.kind for event in notes(made).events] == [CONNECTED]


async def test_an_observer_that_watches_nothing_costs_nothing() -> None:
    async with hooked(prepared(watching(), "notes")) as made:
        assert made.broker.context.watcher is None


async def test_events_come_in_batches_of_bounded_size() -> None:
    async with hooked(prepared(watching(PUBLISHED), "notes")) as made:
        client = await made.client()
        for number in range(BATCH + 3):
            client.publish("t", b"%d" % number)
        await made.turn()
        assert [len(batch) for batch in notes(made).batches] == [BATCH, 3]
        payloads = [event.payload for event in notes(made).events]
        assert payloads == [b"%d" % number for number in range(BATCH + 3)]


class Slow(Notes):
    """Waits for `go` with every batch."""

    go: asyncio.Event

    async def start(self) -> None:
        await super().start()
        self.go = asyncio.Event()

    async def observe(self, events: Sequence[Event]) -> None:
        await self.go.wait()
        self.batches.append(list(events))


def observer(made: Hooked) -> Observer:
    return made.manager._observers.observers[0]


async def test_a_slow_one_gathers_and_then_loses_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observers, "MAX_WAITING", 5)
    slow = type("Slow", (Slow,), {"watches": frozenset({PUBLISHED})})
    plugins = prepared(slow, "notes"), prepared(watching(PUBLISHED), "quick")
    async with hooked(*plugins) as made:
        client = await made.client()
        for number in range(10):
            client.publish("t", b"%d" % number)
            await made.turn(2)
        assert observer(made).lost == 4  # one under way, five waiting
        assert len(notes(made, "quick").events) == 10
        plugin = notes(made)
        assert isinstance(plugin, Slow)
        plugin.go.set()
        await made.turn()
        assert [event.payload for event in plugin.events] == [b"0", b"1", b"2", b"3", b"4", b"5"]
        client.publish("t", b"again")
        await made.turn()
        assert plugin.events[-1].payload == b"again"


@pytest.mark.parametrize("policy", ["deny", "allow", "skip"])
async def test_one_that_fails_is_skipped_and_goes_on(policy: str) -> None:
    class Fails(Notes):
        watches = frozenset({PUBLISHED})

        def observe(self, events: Sequence[Event]) -> None:
            super().observe(events)
            if events[0].payload == b"1":
                raise RuntimeError("broken")

    plugins = prepared(Fails, "notes", on_failure=policy), prepared(watching(PUBLISHED), "other")
    async with hooked(*plugins) as made:
        client = await made.client()
        for number in range(4):
            client.publish("t", b"%d" % number)
            await made.turn(2)
        assert len(notes(made).events) == 4
        assert len(notes(made, "other").events) == 4
        assert made.manager.guards[0].stats["observe"].failures == 1
        assert [one.failed for one in made.manager.observers] == [1, 0]
        assert not client.closed


async def test_one_that_hangs_is_given_up() -> None:
    slow = type("Slow", (Slow,), {"watches": frozenset({PUBLISHED})})
    async with hooked(prepared(slow, "notes", timeout=SHORT_S)) as made:
        client = await made.client()
        client.publish("t", b"lost")
        await made.turn()
        await made.until(lambda: made.manager.guards[0].stats["observe"].failures)
        plugin = notes(made)
        assert isinstance(plugin, Slow)
        plugin.go.set()
        client.publish("t", b"told")
        await made.turn()
        assert [event.payload for event in plugin.events] == [b"told"]


async def test_what_happened_before_the_end_is_told() -> None:
    slow = type("Waits", (Slow,), {"watches": frozenset({DISCONNECTED})})
    plugins = prepared(slow, "notes"), prepared(watching(DISCONNECTED), "quick")
    async with hooked(*plugins) as made:
        client = await made.client()
        quick, plugin = notes(made, "quick"), notes(made)
        assert isinstance(plugin, Slow)
        client.drop()
        asyncio.get_running_loop().call_later(0.01, plugin.go.set)
    assert [event.kind for event in quick.events] == [DISCONNECTED]
    assert [event.kind for event in plugin.events] == [DISCONNECTED]


async def test_the_record_of_decisions_goes_on_beside_observers() -> None:
    async with hooked() as made:
        made.broker.context.watcher = Watcher(10)
        client = await made.client()
        client.publish("t", b"x")
        assert len(made.broker.context.watcher.traces) == 3
