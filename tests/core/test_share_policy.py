"""Shared groups with a policy: how long they wait, for how much, and who is served."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import counters as count
from mqttd.core.message import Message
from mqttd.core.packets import Filter, Puback, Publish, Suback, Subscribe, Unsubscribe
from mqttd.core.properties import decode_forwardable
from mqttd.core.settings import DROP_OLDEST, SharePolicy
from mqttd.core.shared import queue_of
from mqttd.core.trie import SharedGroup
from tests.core.paging_kit import Paged
from tests.core.rig import make_settings
from tests.core.vectors import props
from tests.harness import FakeClient, Harness

SHARED = "$share/g/t/#"


class Grouped:
    """A broker with one governed group, whose permanent member is never there."""

    def __init__(self, h: Harness | None = None, **policy: object) -> None:
        self.h = Harness() if h is None else h
        self.broker = self.h.broker
        keeper = self.broker.connect_inside("keeper", "\0queues", 1 << 31, 1, self.h.now)
        assert keeper.session is not None
        self.broker.subscribe(keeper.session, Filter(SHARED, 1), 0)
        self.broker.leave_inside(keeper, self.h.now)
        self.policy = SharePolicy()
        for name, value in policy.items():
            assert hasattr(self.policy, name)
            setattr(self.policy, name, value)
        assert self.broker.govern("g", "t/#", self.policy)

    @property
    def group(self) -> SharedGroup:
        group = self.broker.trie.group("g", "t/#")
        assert group is not None
        return group

    def send(self, *payloads: str, topic: str = "t/a", qos: int = 1, expires_at: float = 0) -> None:
        for payload in payloads:
            message = Message(
                topic, topic.encode(), payload.encode(), qos, False, b"", expires_at, "p"
            )
            self.broker.publish(message, self.h.now)
        self.settle()

    def settle(self) -> None:
        if self.h.durable:
            self.h.commit()
        self.h.flush()

    def consumer(self, name: str, **more: object) -> FakeClient:
        client = self.h.client(name, auto_ack=False, **more)  # type: ignore[arg-type]
        client.send(Subscribe(1, [Filter(SHARED, 1)]))
        self.settle()
        client.take_first(Suback)
        return client

    def waiting(self) -> list[str]:
        queue = queue_of(self.group)
        return [] if queue is None else [text(each.message) for each in queue.head]


def text(message: Message | Publish) -> str:
    return bytes(message.payload).decode()


def texts(client: FakeClient) -> list[str]:
    return [text(message) for message in client.messages()]


def ack(client: FakeClient, packets: list[Publish], reason: int = 0) -> list[str]:
    for packet in packets:
        client.send(Puback(packet.packet_id, reason))
    return [text(packet) for packet in packets]


def tries(packet: Publish) -> str | None:
    found = decode_forwardable(packet.properties).user_properties
    return dict(found).get("mqttd-redeliveries")


def test_messages_wait_though_no_consumer_ever_was_there() -> None:
    g = Grouped()
    g.send("1", "2")
    assert g.waiting() == ["1", "2"]
    assert texts(g.consumer("c")) == ["1", "2"]


def test_a_group_that_nobody_knows_has_no_policy() -> None:
    g = Grouped()
    assert not g.broker.govern("other", "t/#", g.policy)
    assert not g.broker.govern("g", "u/v/w", g.policy)
    assert not g.broker.govern("g", "$t", g.policy)


def test_what_a_plugin_keeps_outlives_the_longest_session_of_a_client() -> None:
    h = Harness(make_settings(session_expiry_max=10))
    g = Grouped(h)
    g.send("1")
    h.advance(3600)
    assert g.waiting() == ["1"]


# Bounds.


def test_a_full_group_drops_what_is_new() -> None:
    g = Grouped(max_length=2)
    g.send("1", "2", "3")
    assert g.waiting() == ["1", "2"]
    assert g.h.dropped == {count.DROP_QUEUE_FULL: 1}


def test_a_full_group_drops_what_is_old() -> None:
    g = Grouped(max_length=2, overflow=DROP_OLDEST)
    g.send("1", "2", "3")
    assert g.waiting() == ["2", "3"]
    assert g.h.dropped == {count.DROP_QUEUE_FULL: 1}


def test_the_bound_of_a_group_may_be_above_that_of_the_broker() -> None:
    g = Grouped(Harness(make_settings(max_queued_messages=1)), max_length=3)
    g.send("1", "2", "3", "4")
    assert g.waiting() == ["1", "2", "3"]


def test_no_message_waits_longer_than_its_group_allows() -> None:
    g = Grouped(ttl=10.0)
    g.send("1")
    g.send("2", expires_at=g.h.now + 5)
    g.send("3", expires_at=g.h.now + 500)
    g.h.advance(7)
    g.send("4")
    g.h.advance(4)
    assert texts(g.consumer("c")) == ["4"]
    assert g.h.dropped == {count.DROP_EXPIRED: 3}


def test_a_limit_on_waiting_is_for_that_group_alone() -> None:
    g = Grouped(ttl=10.0)
    other = g.h.client("o", expiry=1000)
    other.subscribe("t/#", 1)
    other.drop()
    g.send("1")
    g.h.advance(20)
    other = g.h.client("o", clean=False)
    assert texts(other) == ["1"]
    assert texts(g.consumer("c")) == []


@pytest.mark.parametrize("there", [False, True], ids=["away", "there"])
def test_an_acknowledgement_waits_for_the_copy_that_expires_sooner(there: bool) -> None:
    h = Harness(durable=True)
    g = Grouped(h, ttl=10.0)
    h.commit()
    if there:
        g.consumer("c", expiry=100)
    publisher = h.client("p")
    publisher.publish("t/a", b"1", 1)
    publisher.expect_nothing()
    h.commit()
    publisher.expect(Puback)


@pytest.mark.parametrize("ttl", [0.0, 10.0])
def test_what_a_consumer_that_does_not_last_has_is_still_the_queues(ttl: float) -> None:
    h = Paged()
    g = Grouped(h, ttl=ttl)
    h.commit()
    consumer = g.consumer("c")
    publisher = h.client("p")
    publisher.publish("t/a", b"1", 1)
    (packet,) = consumer.messages()
    publisher.expect_nothing()
    h.commit()
    publisher.expect(Puback)
    assert h.shelf.of(g.group.number) == [b"1"]
    ack(consumer, [packet])
    h.commit()
    assert h.shelf.of(g.group.number) == []


def test_what_a_consumer_finishes_at_once_is_never_stored() -> None:
    h = Paged()
    g = Grouped(h)
    h.commit()
    consumer = g.consumer("c")
    publisher = h.client("p")
    publisher.publish("t/a", b"1", 1)
    ack(consumer, consumer.messages())
    publisher.expect(Puback)
    h.commit()
    assert h.shelf.rows == {}


# QoS 0.


def test_qos_0_is_kept_only_where_that_is_asked_for() -> None:
    g = Grouped()
    g.send("1", qos=0)
    assert g.h.dropped == {count.DROP_NO_MEMBER: 1}
    g = Grouped(keep_qos0=True)
    g.send("1", "2", qos=0)
    consumer = g.consumer("c")
    packets = consumer.messages()
    assert [(text(packet), packet.qos) for packet in packets] == [("1", 0), ("2", 0)]
    assert g.broker.balance() == (0, 0)


def test_qos_0_that_a_client_publishes_is_kept_too() -> None:
    g = Grouped(keep_qos0=True)
    g.h.client("p").publish("t/a", b"1")
    assert g.waiting() == ["1"]


def test_qos_0_is_not_kept_while_the_store_takes_nothing() -> None:
    g = Grouped(Harness(durable=True), keep_qos0=True)
    g.h.commit()
    g.broker.refuse(0x97, g.h.now)
    g.send("1", qos=0)
    assert g.h.dropped == {count.DROP_NO_MEMBER: 1}


# Redelivery.


def test_what_a_consumer_leaves_unfinished_comes_to_another_with_its_count() -> None:
    g = Grouped()
    first = g.consumer("c1")
    g.send("1")
    (packet,) = first.messages()
    assert tries(packet) is None
    first.drop()
    second = g.consumer("c2")
    (packet,) = second.messages()
    assert (text(packet), tries(packet)) == ("1", "1")
    second.drop()
    third = g.consumer("c3")
    (packet,) = third.messages()
    assert tries(packet) == "2"
    ack(third, [packet])
    assert g.broker.balance() == (0, 0)


def test_mqtt_3_gets_no_count_but_the_message() -> None:
    g = Grouped()
    first = g.consumer("c1")
    g.send("1")
    first.drop()
    second = g.consumer("c2", version=4)
    (packet,) = second.messages()
    assert (text(packet), packet.properties) == ("1", b"")


def test_a_plain_shared_subscription_shows_no_count() -> None:
    g = Grouped()
    g.broker.govern("g", "t/#", None)
    first = g.consumer("c1")
    g.send("1")
    first.drop()
    (packet,) = g.consumer("c2").messages()
    assert tries(packet) is None


def test_who_was_not_sent_a_message_did_not_try_it() -> None:
    g = Grouped()
    slow = g.consumer("c1", receive_maximum=1)
    g.send("1", "2")
    slow.drop()
    packets = g.consumer("c2").messages()
    assert [(text(packet), tries(packet)) for packet in packets] == [("1", "1"), ("2", None)]


@pytest.mark.parametrize("durable", [False, True])
def test_above_its_limit_a_message_is_dropped(durable: bool) -> None:
    g = Grouped(Harness(durable=durable), redelivery_limit=2)
    g.send("1", "2")
    for name in ("c1", "c2", "c3"):
        consumer = g.consumer(name)
        assert texts(consumer) == ["1", "2"]
        consumer.drop()
        g.settle()
    assert g.h.dropped == {count.DROP_REDELIVERIES: 2}
    assert texts(g.consumer("c4")) == []


def test_a_publisher_is_acknowledged_though_its_message_is_dropped_before_it_is_stored() -> None:
    h = Harness(durable=True)
    g = Grouped(h, redelivery_limit=1)
    h.commit()
    first = g.consumer("c1")
    publisher = h.client("p")
    publisher.publish("t/a", b"1", 1)
    first.drop()
    second = h.client("c2", auto_ack=False)
    second.subscribe(SHARED, 1)
    second.drop()
    h.commit()
    publisher.expect(Puback)


def test_a_refusal_ends_it_for_all() -> None:
    g = Grouped()
    first = g.consumer("c1")
    g.send("1")
    ack(first, first.messages(), 0x83)
    first.drop()
    assert texts(g.consumer("c2")) == []
    assert g.h.dropped == {count.DROP_REFUSED: 1}


# Who is served.


def test_consumers_get_the_same_share() -> None:
    g = Grouped()
    consumers = [g.consumer(f"c{n}") for n in range(3)]
    for n in range(30):
        g.send(str(n))
    assert [len(consumer.messages()) for consumer in consumers] == [10, 10, 10]


def test_a_slow_consumer_gets_what_it_can_take() -> None:
    g = Grouped()
    slow = g.consumer("slow", receive_maximum=1)
    fast = g.consumer("fast")
    fast.auto_ack = True
    g.send(*map(str, range(20)))
    assert len(texts(slow)) == 1
    assert len(texts(fast)) == 19


def test_one_of_an_exclusive_group_gets_everything_until_it_leaves() -> None:
    g = Grouped(exclusive=True)
    first = g.consumer("c1")
    second = g.consumer("c2")
    third = g.consumer("c3")
    g.send("1", "2")
    assert ack(first, first.messages()) == ["1", "2"]
    first.drop()
    g.send("3")
    assert texts(second) == ["3"]
    again = g.consumer("c1")  # whoever comes back stands at the end
    g.send("4")
    assert texts(second) == ["4"]
    second.unsubscribe(SHARED)
    g.send("5")
    assert (texts(third), texts(again)) == (["5"], [])


def test_what_waits_for_the_one_goes_to_the_next_when_it_leaves() -> None:
    g = Grouped(exclusive=True)
    first = g.consumer("c1", receive_maximum=1)
    second = g.consumer("c2")
    g.send("1", "2")
    assert (texts(first), texts(second)) == (["1"], [])
    first.drop()
    assert texts(second) == ["1", "2"]


def test_what_waits_goes_to_the_next_when_the_one_unsubscribes() -> None:
    g = Grouped(exclusive=True)
    first = g.consumer("c1", receive_maximum=1)
    second = g.consumer("c2")
    g.send("1", "2")
    first.unsubscribe(SHARED)
    assert texts(second) == ["2"]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("expiry", [0, 10])
def test_who_unsubscribes_and_goes_leaves_what_it_has_to_the_others(
    durable: bool, expiry: int
) -> None:
    g = Grouped(Harness(durable=durable))
    first = g.consumer("c1", expiry=expiry)
    g.send("1", "2", "3")
    (_, two, _) = first.messages()
    second = g.consumer("c2")
    first.send(Unsubscribe(9, [SHARED]))
    ack(first, [two])
    g.settle()
    assert texts(second) == []  # [MQTT-3.10.4-3] it is still to be completed
    first.drop()
    g.settle()
    g.h.advance(10)
    g.settle()
    assert [(text(packet), tries(packet)) for packet in second.messages()] == [
        ("1", "1"),
        ("3", "1"),
    ]
    assert g.h.dropped == {}


def test_in_strict_order_the_next_waits_for_the_one_before() -> None:
    g = Grouped(one_at_a_time=True)
    first = g.consumer("c1")
    second = g.consumer("c2")
    g.send("1", "2", "3")
    (one,) = first.messages()
    assert (text(one), texts(second)) == ("1", [])
    first.drop()  # it comes again before anything that is younger
    (one,) = second.messages()
    assert (text(one), tries(one)) == ("1", "1")
    ack(second, [one])
    (two,) = second.messages()
    assert text(two) == "2"
    second.unsubscribe(SHARED)
    third = g.consumer("c3")
    assert texts(third) == []
    ack(second, [two])
    assert texts(third) == ["3"]


def test_strict_order_goes_on_when_a_message_is_too_large_for_who_gets_it() -> None:
    g = Grouped(one_at_a_time=True)
    small = g.consumer("c", properties=props(maximum_packet_size=40))
    g.send("x" * 100, "2")
    assert texts(small) == ["2"]
    assert g.h.dropped == {count.DROP_TOO_LARGE: 1}


# Last value.


def test_a_newer_message_of_a_topic_replaces_the_one_that_waits() -> None:
    g = Grouped(last_value=True)
    g.send("1", topic="t/a")
    g.send("2", topic="t/b")
    g.send("3", topic="t/a")
    assert g.waiting() == ["2", "3"]
    assert g.h.dropped == {count.DROP_REPLACED: 1}
    assert texts(g.consumer("c")) == ["2", "3"]
    assert not g.group.latest


def test_what_is_given_back_does_not_come_after_a_newer_one_that_waits() -> None:
    g = Grouped(last_value=True)
    first = g.consumer("c1", receive_maximum=1)
    g.send("1")
    g.send("2")
    first.drop()
    assert texts(g.consumer("c2")) == ["2"]
    assert g.h.dropped == {count.DROP_REPLACED: 1}


@pytest.mark.parametrize("durable", [False, True])
def test_a_newer_message_replaces_what_was_given_back(durable: bool) -> None:
    g = Grouped(Harness(durable=durable), last_value=True, redelivery_limit=1)
    for _ in range(2):
        first = g.consumer("c1")
        g.send("1")
        first.drop()
        g.send("2")
        second = g.consumer("c2")
        assert ack(second, second.messages()) == ["2"]
        second.drop()
    assert g.h.dropped == {count.DROP_REPLACED: 2}
    assert not g.group.latest


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_left_unfinished_too_often_was_no_longer_the_newest_that_waits(
    durable: bool,
) -> None:
    g = Grouped(Harness(durable=durable), last_value=True, redelivery_limit=1)
    g.send("1")
    g.send("other", topic="t/b")
    for _ in range(2):
        consumer = g.consumer("c", receive_maximum=1)
        assert texts(consumer) == ["1"]
        consumer.drop()
        g.settle()
    assert g.h.dropped == {count.DROP_REDELIVERIES: 1}
    assert g.waiting() == ["other"]


def test_a_message_in_the_tail_is_replaced_as_well() -> None:
    g = Grouped(Paged(), last_value=True)
    topics = [f"t/{n}" for n in range(100)]
    for topic in topics:
        g.send("old", topic=topic)
    for topic in topics:
        g.send("new", topic=topic)
    queue = queue_of(g.group)
    assert queue is not None
    assert queue.tail
    assert len(queue) == 100
    consumer = g.consumer("c")
    g.settle()
    assert texts(consumer) == ["new"] * 100
    assert g.h.dropped == {count.DROP_REPLACED: 100}


def test_what_is_on_its_way_in_a_page_is_seen_to_be_stale() -> None:
    h = Paged()
    g = Grouped(h, last_value=True)
    for n in range(100):
        g.send("old", topic=f"t/{n}")
    consumer = h.client("c", auto_ack=False)
    h.write()
    consumer.subscribe(SHARED, 1)
    h.flush()
    requests = h.broker.take_requests()
    assert requests
    h.broker.publish(Message("t/99", b"t/99", b"new", 1, False, b"", 0.0, "p"), h.now)
    for request in requests:
        h.broker.paged(request, h.shelf.page(request), h.now)
    g.settle()
    found = texts(consumer)
    assert found.count("old") == 99
    assert found[-1] == "new"


# The balance.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish0", "come", "go", "ack", "refuse", "later", "commit"]),
        st.integers(0, 2),
    ),
    max_size=40,
)


@given(
    STEPS,
    st.booleans(),
    st.fixed_dictionaries(
        {
            "max_length": st.sampled_from([0, 2]),
            "overflow": st.sampled_from(["drop_newest", DROP_OLDEST]),
            "ttl": st.sampled_from([0.0, 5.0]),
            "redelivery_limit": st.sampled_from([0, 1]),
            "exclusive": st.booleans(),
            "one_at_a_time": st.booleans(),
            "last_value": st.booleans(),
            "keep_qos0": st.booleans(),
        }
    ),
)
def test_every_message_ends_in_one_state_whatever_the_policy(
    steps: list[tuple[str, int]], durable: bool, policy: dict[str, object]
) -> None:
    g = Grouped(Paged() if durable else Harness(), **policy)
    g.settle()
    present: dict[int, FakeClient] = {}
    unacked: dict[int, list[Publish]] = {}
    for what, who in steps:
        client = present.get(who)
        if what.startswith("publish"):
            message = Message(f"t/{who}", b"t/%d" % who, b"x", what == "publish", False, b"", 0, "")
            g.broker.publish(message, g.h.now)
        elif what == "come" and client is None:
            present[who] = g.consumer(f"c{who}", clean=False, expiry=who * 100, receive_maximum=2)
            unacked[who] = []
        elif what == "go" and client is not None:
            present.pop(who).drop()
        elif what in ("ack", "refuse") and client is not None:
            unacked[who] += [packet for packet in client.messages() if packet.qos]
            if unacked[who]:
                ack(client, [unacked[who].pop(0)], 0x83 if what == "refuse" else 0)
        elif what == "later":
            g.h.advance(2)
        elif what == "commit":
            g.settle()
        g.h.flush()
    g.settle()
    counters = g.broker.counters
    queued, inflight = g.broker.balance()
    assert counters.matched == counters.delivered + queued + inflight + sum(
        counters.dropped.values()
    )
    if policy["max_length"]:
        assert queued <= 2 + 3 * 2  # and what three consumers gave back
    if policy["one_at_a_time"]:
        assert inflight <= 1
    for client in present.values():
        client.drop()
    # Nothing is stuck: who takes everything leaves nothing.
    g.h.client("last").send(Subscribe(1, [Filter(SHARED, 1)]))
    g.settle()
    assert g.broker.balance() == (0, 0)
    assert g.group.outstanding is None
    assert not g.group.latest
