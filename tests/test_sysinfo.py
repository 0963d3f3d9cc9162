"""`$SYS`: Mosquitto's names and units, on a clock of the test's own; never a word to the store."""

import math
import re

import pytest

from mqttd.census import Census
from mqttd.core.packets import Filter, Puback, Publish, Suback, Subscribe
from mqttd.core.settings import Settings
from mqttd.sysinfo import ROOT, SysTree, announce
from tests.harness import FakeClient, Harness

HEAP = (1000, 2000)
COUNTS = (
    *("clients/total", "clients/connected", "clients/disconnected", "clients/maximum"),
    *("clients/expired", "clients/active", "clients/inactive", "connections/socket/count"),
    *("messages/received", "messages/sent", "messages/stored"),
    *("store/messages/count", "store/messages/bytes"),
    *("publish/messages/received", "publish/messages/sent", "publish/messages/dropped"),
    *("publish/bytes/received", "publish/bytes/sent", "bytes/received", "bytes/sent"),
    *("subscriptions/count", "shared_subscriptions/count", "retained messages/count"),
    *("heap/current", "heap/maximum"),
)
LOADS = (
    *("messages/received", "messages/sent", "publish/received", "publish/sent"),
    *("publish/dropped", "bytes/received", "bytes/sent", "connections", "sockets"),
)
WINDOWS = {"1min": 60, "5min": 300, "15min": 900}
EVERYTHING = {"uptime", *COUNTS, *(f"load/{name}/{span}" for name in LOADS for span in WINDOWS)}


class Told:
    """A tree and all that it has told so far."""

    def __init__(self, h: Harness) -> None:
        self.h = h
        self.tree = SysTree(h.broker, h.now)
        self.values: dict[str, str] = {}

    def tick(self, seconds: float = 0.0) -> dict[str, str]:
        """What is new after so many seconds."""
        self.h.now += seconds
        census = Census(self.h.broker)
        while not census.step():
            pass
        news = dict(self.tree.changed(census, HEAP, self.h.now))
        self.values |= news
        return news

    def __getitem__(self, name: str) -> str:
        return self.values[name]


def watcher(h: Harness, topic_filter: str = "$SYS/#", qos: int = 0) -> FakeClient:
    client = h.client("watcher", expiry=60 if qos else None)
    client.send(Subscribe(1, [Filter(topic_filter, qos, False, False, 0)]))
    h.commit()
    client.expect(Suback)
    return client


def test_every_name_and_its_unit() -> None:
    told = Told(Harness())
    assert set(told.tick()) == EVERYTHING
    assert told["uptime"] == "0 seconds"
    for name in COUNTS:
        assert re.fullmatch(r"\d+", told[name]), name
    for name in EVERYTHING - {"uptime", *COUNTS}:
        assert told[name] == "0.00", name
    assert (told["heap/current"], told["heap/maximum"]) == ("1000", "2000")


def test_a_heap_of_unknown_size_is_not_told() -> None:
    h = Harness()
    census = Census(h.broker)
    assert census.step()
    names = {name for name, _ in SysTree(h.broker, h.now).changed(census, (0, 0), h.now)}
    assert names == EVERYTHING - {"heap/current", "heap/maximum"}


def test_only_what_has_changed_is_told() -> None:
    h = Harness()
    told = Told(h)
    told.tick()
    assert told.tick(10) == {"uptime": "10 seconds"}
    h.client("a")
    news = told.tick(10)
    assert news["clients/total"] == news["clients/maximum"] == news["messages/received"] == "1"
    assert "clients/disconnected" not in news
    assert "publish/messages/received" not in news
    assert told.tick(0.5).keys() <= {n for n in EVERYTHING if n.startswith("load/")}


def test_what_was_forgotten_is_told_again() -> None:
    told = Told(Harness())
    told.tick()
    told.tree.forget()
    assert set(told.tick()) == EVERYTHING


def test_clients() -> None:
    h = Harness()
    told = Told(h)
    stays = h.client("stays", expiry=100)
    h.client("goes").drop()
    h.client("comes back", expiry=5).drop()
    told.tick()
    assert [told[f"clients/{name}"] for name in ("total", "connected", "disconnected")] == [
        *("2", "1", "1")
    ]
    assert (told["clients/active"], told["clients/inactive"]) == ("1", "1")
    assert told["clients/maximum"] == "2"
    assert told["connections/socket/count"] == "1"
    stays.drop()
    h.advance(6)
    told.tick()
    assert (told["clients/total"], told["clients/connected"]) == ("1", "0")
    assert (told["clients/expired"], told["clients/maximum"]) == ("1", "2")


def test_messages_and_bytes() -> None:
    h = Harness(Settings())
    told = Told(h)
    reader = h.client("reader")
    reader.subscribe("a", qos=2)
    away = h.client("away", expiry=100)
    away.subscribe("a", qos=1)
    away.drop()
    writer = h.client("writer")
    for qos in range(3):
        writer.publish("a", b"12345", qos, packet_id=qos and 7)
    told.tick()
    assert told["publish/messages/received"] == told["publish/messages/sent"] == "3"
    assert told["publish/bytes/received"] == told["publish/bytes/sent"] == "15"
    assert told["publish/messages/dropped"] == "1"  # QoS 0 for who is away
    assert told["store/messages/count"] == told["messages/stored"] == "2"
    assert told["store/messages/bytes"] == "10"
    counters = h.broker.counters
    assert told["messages/received"] == str(counters.packets_received)
    assert told["messages/sent"] == str(counters.packets_sent + 3)
    assert told["bytes/received"] == str(counters.bytes_received)
    assert told["bytes/sent"] == str(counters.bytes_sent)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("readers", [0, 1, 3])
def test_payload_is_counted_whichever_way_it_takes(version: int, readers: int) -> None:
    """Forwarded as it came, made anew for another version, encoded for one receiver alone."""
    h = Harness()
    writer = h.client("writer", version)
    for number in range(readers):
        h.client(f"{number}", 5).subscribe("#")
        h.client(f"{number} of old", 4).subscribe("#")
    for qos in range(3):
        writer.publish("a", b"x" * 10, qos, packet_id=qos and 1)
        writer.publish("a", b"x" * 10, qos, retain=True, packet_id=qos and 2)
    counters = h.broker.counters
    assert counters.publish_bytes_received == 10 * counters.publish_received == 60
    assert counters.publish_bytes_sent == 10 * counters.publish_sent == 60 * 2 * readers
    assert (counters.publish_received_qos1, counters.publish_received_qos2) == (2, 2)
    assert counters.publish_sent_qos1 == counters.publish_sent_qos2 == 0


def test_what_is_sent_is_counted_by_qos() -> None:
    h = Harness()
    marked = h.client("one")
    marked.subscribe("#", qos=2, identifier=3)
    h.client("two").subscribe("#", qos=2)
    writer = h.client("writer")
    for qos, times in ((0, 1), (1, 2), (2, 3)):
        for number in range(times):
            writer.publish("a", b"x", qos, packet_id=qos and number + 1)
    counters = h.broker.counters
    assert counters.publish_sent == 12
    assert (counters.publish_sent_qos1, counters.publish_sent_qos2) == (4, 6)
    assert counters.publish_bytes_sent == 12


def test_subscriptions_and_retained_messages() -> None:
    h = Harness()
    told = Told(h)
    client = h.client("a")
    for topic_filter in ("a", "b/#", "$share/g/c"):
        client.subscribe(topic_filter)
    client.publish("keep/1", b"12345678", retain=True)
    client.publish("keep/2", b"1", retain=True)
    client.publish("keep/2", b"12", retain=True)
    announce(h.broker, "uptime", "1 seconds", h.now)
    told.tick()
    assert (told["subscriptions/count"], told["shared_subscriptions/count"]) == ("3", "1")
    assert told["retained messages/count"] == "2"  # not those under $SYS
    assert told["store/messages/bytes"] == "10"
    client.publish("keep/1", b"", retain=True)
    told.tick()
    assert told["retained messages/count"] == "1"
    assert told["store/messages/bytes"] == "2"


def test_the_queue_of_a_shared_subscription_is_stored_too() -> None:
    h = Harness()
    told = Told(h)
    member = h.client("member", expiry=100)
    member.subscribe("$share/g/a", qos=1)
    member.drop()
    h.client("writer").publish("a", b"1234", 1, packet_id=1)
    told.tick()
    assert (told["store/messages/count"], told["store/messages/bytes"]) == ("1", "4")


@pytest.mark.parametrize("span", WINDOWS)
def test_loads_are_damped(span: str) -> None:
    h = Harness()
    told = Told(h)
    name = f"load/bytes/received/{span}"
    window = WINDOWS[span]
    told.tick()
    expected = 0.0
    for elapsed, count in ((10, 500), (10, 0), (7.5, 3), (60, 100_000), (1000, 0)):
        h.broker.counters.bytes_received += count
        told.tick(elapsed)
        rate = count * 60 / elapsed
        expected = rate + math.exp(-elapsed / window) * (expected - rate)
        assert told[name] == f"{expected:.2f}"


def test_a_load_comes_to_the_rate_and_back_to_nothing() -> None:
    h = Harness()
    told = Told(h)
    for _ in range(1000):
        h.broker.counters.publish_received += 20
        told.tick(10)
    assert told["load/publish/received/15min"] == "120.00"  # a minute
    for _ in range(2000):
        told.tick(10)
    assert told["load/publish/received/15min"] == "0.00"
    assert told.tick(10).keys() == {"uptime"}


def test_a_clock_that_stands_still_does_no_harm() -> None:
    h = Harness()
    told = Told(h)
    told.tick()
    h.broker.counters.bytes_sent += 600
    told.tick(0)
    assert told["load/bytes/sent/1min"] == "0.00"
    told.tick(60)
    assert told["load/bytes/sent/1min"] == f"{600 * (1 - math.exp(-1)):.2f}"


def test_connections_are_those_with_a_connect() -> None:
    h = Harness()
    told = Told(h)
    h.client("a")
    h.open(allow_anonymous=False).send_raw(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
    h.open().send_raw(b"\xc0\x00")
    h.open()
    assert h.broker.counters.refused == {"not_authorized": 1, "not_connect": 1}
    told.tick(60)
    whole = 1 - math.exp(-1)
    assert told["load/connections/1min"] == f"{2 * whole:.2f}"
    assert told["load/sockets/1min"] == f"{4 * whole:.2f}"


# Announcing.


def test_who_subscribes_sees_it_live_and_who_comes_later_retained() -> None:
    h = Harness()
    early = watcher(h)
    assert announce(h.broker, "clients/total", "1", h.now) == 1
    h.flush()
    message = early.expect(Publish)
    assert (message.topic, message.payload) == (ROOT + "clients/total", b"1")
    assert (message.qos, message.retain) == (0, False)
    early.drop()
    late = watcher(h)
    h.flush()
    message = late.expect(Publish)
    assert (message.payload, message.retain) == (b"1", True)


def test_a_wildcard_in_front_does_not_see_it() -> None:
    h = Harness()
    client = watcher(h, "#")
    assert announce(h.broker, "uptime", "1 seconds", h.now) == 0
    h.flush()
    assert not client.received


@pytest.mark.parametrize("queue_qos0", [False, True])
@pytest.mark.parametrize("topic_filter", ["$SYS/#", "$share/g/$SYS/#"])
def test_none_of_it_reaches_the_store(topic_filter: str, queue_qos0: bool) -> None:
    """Not for a session that lasts and subscribed with QoS 2, whether it is there or away."""
    settings = Settings()
    settings.queue_qos0 = queue_qos0
    h = Harness(settings, durable=True)
    client = watcher(h, topic_filter, 2)
    taken = h.broker.journal.next_serial

    def publish_all() -> None:
        for number in range(3):
            announce(h.broker, "uptime", f"{number} seconds", h.now)
        h.flush()

    publish_all()
    for _ in range(3):
        assert client.expect(Publish).qos == 0
    assert h.broker.journal.empty()
    client.drop()
    h.commit()
    publish_all()
    assert h.broker.journal.empty()
    assert h.broker.journal.next_serial == taken
    assert h.broker.sessions["watcher"].queue is None
    assert sum(h.broker.counters.dropped.values()) == 3
    assert settings.queue_qos0 is queue_qos0


def test_a_reader_with_a_queue_gets_it_at_once_and_unstored() -> None:
    settings = Settings()
    settings.queue_qos0 = True
    h = Harness(settings, durable=True)
    client = h.client("reader", expiry=60, receive_maximum=1, auto_ack=False)
    for number, topic_filter in enumerate(("$SYS/#", "a"), 1):
        client.send(Subscribe(number, [Filter(topic_filter, 1, False, False, 0)]))
        h.commit()
        client.expect(Suback)
    writer = h.client("writer")
    for number in (1, 2):
        writer.publish("a", b"x", 1, packet_id=number)
    h.commit()
    assert client.expect(Publish).topic == "a"
    announce(h.broker, "uptime", "1 seconds", h.now)
    h.flush()
    assert client.expect(Publish).topic == "$SYS/broker/uptime"
    assert h.broker.journal.empty()
    writer.expect(Puback)


def test_the_balance_holds_with_it() -> None:
    h = Harness()
    watcher(h)
    h.client("away", expiry=50).subscribe("$SYS/#", qos=1)
    h.client("x").subscribe("$share/g/$SYS/#")
    announce(h.broker, "uptime", "1 seconds", h.now)
    h.flush()
    counters = h.broker.counters
    queued, inflight = h.broker.balance()
    ended = counters.delivered + sum(counters.dropped.values())
    assert counters.matched == ended + queued + inflight


# The census.


def test_a_census_goes_in_steps() -> None:
    h = Harness()
    for number in range(25):
        h.client(f"{number}", 4 + number % 2, expiry=None).subscribe("a")
    census = Census(h.broker)
    steps = 1
    while not census.step(10):
        steps += 1
    assert steps == 3
    assert census.connected == {("test", 4): 13, ("test", 5): 12}
    assert census.subscriptions == 25


def test_a_step_is_short_where_much_is_in_flight() -> None:
    h = Harness()
    for name in "ab":
        h.client(name, auto_ack=False).subscribe("t", qos=1)
    writer = h.client("writer")
    for number in range(20):
        writer.publish("t", b"123", 1, packet_id=number + 1)
    census = Census(h.broker)
    assert not census.step(10)
    while not census.step(10):
        pass
    assert (census.inflight, census.inflight_bytes) == (40, 120)


def test_sessions_that_end_during_a_census_count_for_nothing() -> None:
    h = Harness()
    clients = [h.client(f"{number}") for number in range(4)]
    for client in clients:
        client.subscribe("a")
    census = Census(h.broker)
    assert not census.step(1)
    for client in clients:
        client.drop()
    assert census.step(10)
    assert census.subscriptions == 1
