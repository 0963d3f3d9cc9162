"""Dead letters: what stands for messages that ended undelivered, and when."""

import pytest

from mqttd.core import counters as count
from mqttd.core import spec
from mqttd.core.letters import MARK, MAX_LETTERS, Letter, Letters
from mqttd.core.message import Message
from mqttd.core.packets import Filter, Puback, Pubrec, Suback, Subscribe
from mqttd.core.properties import Properties
from mqttd.core.queue import PAGE, Queue
from mqttd.core.wire import u16
from tests.core.paging_kit import Paged, deep, queue_of
from tests.core.rig import make_message, make_settings
from tests.harness import FakeClient, Harness

ALL = frozenset(
    {
        count.DROP_EXPIRED,
        count.DROP_QUEUE_FULL,
        count.DROP_REFUSED,
        count.DROP_SESSION_ENDED,
        count.DROP_TOO_LARGE,
    }
)


class Buried:
    """A broker whose dead letters go to `dead/REASON`."""

    def __init__(self, h: Harness, reasons: frozenset[str] = ALL) -> None:
        self.h = h
        self.broker = h.broker
        self.letters = self.broker.context.letters = Letters(reasons)
        self.asked: list[Letter] = []
        self.broker.hooks.undelivered = self.hook

    def hook(self, letter: Letter) -> Message | None:
        self.asked.append(letter)
        topic = "dead/" + letter.reason
        name, value = MARK.encode(), letter.reason.encode()
        mark = b"\x26" + u16(len(name)) + name + u16(len(value)) + value
        return Message(topic, topic.encode(), letter.message.payload, 1, False, mark, 0.0, "")

    @property
    def reasons(self) -> list[str]:
        return [letter.reason for letter in self.asked]

    def client(self, name: str, topic_filter: str, **more: object) -> FakeClient:
        client = self.h.client(name, **more)  # type: ignore[arg-type]
        client.send(Subscribe(1, [Filter(topic_filter, 1)]))
        if self.h.durable:
            self.h.commit()
        client.take_first(Suback)
        return client

    def send(self, *payloads: bytes, properties: bytes = b"", expires_at: float = 0.0) -> None:
        for payload in payloads:
            message = Message("t", b"t", payload, 1, False, properties, expires_at, "p")
            self.broker.publish(message, self.h.now)
        self.h.flush()


def payloads(client: FakeClient) -> list[bytes]:
    return [bytes(message.payload) for message in client.messages()]


def test_a_full_queue_leads_to_a_letter_in_the_same_tick() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)))
    collector = b.client("collector", "dead/#")
    b.client("a", "t", expiry=1000).drop()
    b.send(b"1", b"2")
    (message,) = collector.messages()
    assert (message.topic, bytes(message.payload)) == ("dead/queue_full", b"2")
    (letter,) = b.asked
    assert (letter.client_id, letter.group) == ("a", "")
    assert b.letters.published == 1


def test_what_a_receiver_refuses_or_leaves_behind_leads_to_letters() -> None:
    b = Buried(Harness())
    collector = b.client("collector", "dead/#")
    receiver = b.client("a", "t", auto_ack=False)
    b.send(b"1", b"2")
    first, _ = receiver.messages()
    receiver.send(Puback(first.packet_id, 0x83))
    receiver.drop()  # the session ends with it
    assert payloads(collector) == [b"1", b"2"]
    assert b.reasons == [count.DROP_REFUSED, count.DROP_SESSION_ENDED]


def test_what_expires_leads_to_a_letter() -> None:
    b = Buried(Harness())
    collector = b.client("collector", "dead/#")
    b.client("a", "t", expiry=1000).drop()
    b.send(b"1", expires_at=b.h.now + 5)
    b.h.advance(10)
    b.h.client("a", clean=False)
    assert payloads(collector) == [b"1"]


def test_the_group_is_told_and_the_member_where_there_was_one() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)))
    member = b.client("m", "$share/g/t", expiry=1000, auto_ack=False)
    b.send(b"1")
    (packet,) = member.messages()
    member.send(Puback(packet.packet_id, 0x83))
    member.drop()
    b.send(b"2", b"3")
    assert [(each.client_id, each.group) for each in b.asked] == [
        ("m", "$share/g/t"),
        ("", "$share/g/t"),
    ]


def test_reasons_that_nobody_wants_lead_to_nothing() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)), frozenset({count.DROP_EXPIRED}))
    b.client("a", "t", expiry=1000).drop()
    b.send(b"1", b"2")
    assert b.asked == []
    assert b.h.dropped == {count.DROP_QUEUE_FULL: 1}


def test_a_letter_that_is_undelivered_itself_is_only_counted() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)))
    b.client("collector", "dead/#", expiry=1000).drop()
    b.client("a", "t", expiry=1000).drop()
    b.send(b"1", b"2", b"3", b"4")
    assert len(b.asked) == 3
    assert b.letters.again == 2  # the collector's queue has room for one
    assert b.h.dropped == {count.DROP_QUEUE_FULL: 3 + 2}


def test_a_letter_that_matches_the_full_queue_again_makes_no_loop() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)))
    b.client("a", "#", expiry=1000).drop()
    b.send(b"1", b"2")
    assert len(b.asked) == 1
    assert b.letters.again == 1


def test_the_mark_on_a_clients_message_is_just_a_user_property() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)))
    collector = b.client("collector", "dead/#")
    b.client("a", "t", expiry=1000).drop()
    forged = b"\x26" + u16(len(MARK)) + MARK.encode() + b"\x00\x01x"
    publisher = b.h.client("p")
    for payload in (b"1", b"2"):
        publisher.publish("t", payload, 1, properties=forged)
    assert payloads(collector) == [b"2"]
    assert (b.letters.published, b.letters.again) == (1, 0)


@pytest.mark.parametrize("topic_filter", ["t", "$share/g/t"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_is_too_large_leads_to_a_letter_that_names_its_group(
    topic_filter: str, qos: int
) -> None:
    b = Buried(Harness())
    collector = b.client("collector", "dead/#")
    properties = Properties()
    properties.maximum_packet_size = 64
    small = b.client("small", topic_filter, properties=properties)
    b.h.client("p").publish("t", b"x" * 64, qos)
    (packet,) = collector.messages()
    assert packet.topic == "dead/packet_too_large"
    (letter,) = b.asked
    group = "" if topic_filter == "t" else topic_filter
    assert (letter.client_id, letter.group) == ("small", group)
    b.h.client("q").publish("t", b"fits", qos)
    assert payloads(small) == [b"fits"]


def test_the_list_is_bounded() -> None:
    letters = Letters(ALL)
    message = Message("t", b"t", b"", 1, False, b"", 0.0, "")
    for _ in range(MAX_LETTERS + 3):
        letters.add(count.DROP_EXPIRED, "c", "", message)
    assert len(letters.take()) == MAX_LETTERS
    assert letters.lost == 3
    assert letters.take() == []


@pytest.mark.parametrize("topic_filter", ["t", "$share/g/t"])
def test_what_only_the_store_has_is_read_when_its_session_ends(topic_filter: str) -> None:
    h = Paged()
    h.most = 17  # deliveries in a page: it is cut short, again and again
    b = Buried(h)
    b.client("a", topic_filter, expiry=10).drop()
    sent = [b"%d" % number for number in range(100)]
    b.send(*sent)
    h.commit()
    h.advance(20)
    assert b.broker.balance() == (100 - 64, 0)
    h.commit()
    assert sorted([each.message.payload for each in b.asked]) == sorted(sent)
    assert {each.reason for each in b.asked} == {count.DROP_SESSION_ENDED}
    group = "" if topic_filter == "t" else topic_filter
    assert {(each.client_id, each.group) for each in b.asked} == {("" if group else "a", group)}
    assert h.dropped == {count.DROP_SESSION_ENDED: 100}
    assert (h.shelf.rows, b.letters.unread, b.broker.balance()) == ({}, 0, (0, 0))


def test_what_only_the_store_has_is_read_when_it_expires() -> None:
    h = Paged()
    b = Buried(h)
    b.client("a", "t", expiry=1000).drop()
    b.send(*[b"stays"] * 64)
    b.send(*[b"%d" % number for number in range(30)], expires_at=h.now + 5)
    b.send(b"stays")
    h.commit()
    h.now += 5
    h.tidy()
    h.commit()
    assert [each.message.payload for each in b.asked] == [b"%d" % number for number in range(30)]
    assert {(each.reason, each.client_id) for each in b.asked} == {(count.DROP_EXPIRED, "a")}
    assert [row.payload for row in h.shelf.rows.values()] == [b"stays"] * 65
    assert b.broker.balance() == (65, 0)


def test_what_has_ended_stays_with_the_store_while_that_takes_nothing() -> None:
    h = Paged()
    b = Buried(h)
    b.client("a", "t", expiry=10).drop()
    b.send(*[b"x"] * 100)
    h.commit()
    h.advance(20)
    h.write()
    b.broker.refuse(spec.QUOTA_EXCEEDED, h.now)
    assert b.broker.take_requests() == []
    assert b.broker.balance() == (100 - 64, 0)
    b.broker.accept()
    h.commit()
    assert (len(b.asked), b.letters.lost, h.shelf.rows) == (100, 0, {})


def test_who_waits_for_a_page_is_not_kept_waiting_by_what_has_ended() -> None:
    h = Paged()
    b = Buried(h)
    session = deep(h)
    context = b.broker.context
    h.broker.journal.durable = 100 * PAGE
    context.end_unread(Queue(9, True, "b"), count.DROP_EXPIRED, list(range(1, 20 * PAGE + 1)))
    context.want_page(queue_of(session), session, None)
    taken = b.broker.take_requests()
    assert [each.reason for each in taken] == ["", count.DROP_EXPIRED]
    read = taken[1].serials
    assert read == list(range(1, 257))
    # A plugin is asked about each of them: no more at a time, and none that would be lost.
    b.letters.waiting = [Letter("", "", "", make_message())] * (MAX_LETTERS - 10)
    (next_,) = b.broker.take_requests()
    assert next_.serials == list(range(257, 267))
    left = [serial for each in context.requests for serial in each.serials]
    assert left == list(range(267, 20 * PAGE + 1))


def test_what_only_the_store_has_is_not_read_where_nobody_asks() -> None:
    h = Paged()
    b = Buried(h, frozenset({count.DROP_REFUSED}))
    b.client("a", "t", expiry=10).drop()
    b.send(*[b"x"] * 100)
    h.commit()
    h.advance(20)
    h.commit()
    assert (h.shelf.read, h.shelf.rows, b.asked) == (0, {}, [])
    assert h.dropped == {count.DROP_SESSION_ENDED: 100}


def test_a_hook_that_fails_costs_its_letter_alone() -> None:
    b = Buried(Harness(make_settings(max_queued_messages=1)))
    hook = b.hook

    def fails_first(letter: Letter) -> Message | None:
        made = hook(letter)
        if len(b.asked) == 1:
            raise RuntimeError("no")
        return made

    b.broker.hooks.undelivered = fails_first
    collector = b.client("collector", "dead/#")
    b.client("a", "t", expiry=1000).drop()
    b.send(b"1", b"2", b"3")
    assert payloads(collector) == [b"3"]
    assert b.broker.counters.hook_failures == 1


# Durability.


@pytest.mark.parametrize("qos", [1, 2])
def test_a_publisher_is_acknowledged_when_the_letter_is_durable(qos: int) -> None:
    h = Harness(make_settings(max_queued_messages=1), durable=True)
    b = Buried(h)
    b.client("collector", "dead/#", expiry=1000).drop()
    b.client("a", "t", expiry=1000).drop()
    h.commit()
    publisher = h.client("p", auto_ack=False)
    publisher.publish("t", b"1", 1)
    h.commit()
    publisher.recv()
    publisher.publish("t", b"2", qos)
    assert len(b.asked) == 1
    publisher.expect_nothing()
    h.commit()
    publisher.expect(Puback if qos == 1 else Pubrec)


def test_a_publisher_waits_for_nothing_when_no_letter_is_stored() -> None:
    h = Harness(make_settings(max_queued_messages=1), durable=True)
    b = Buried(h)
    b.client("a", "t", expiry=1000).drop()
    h.commit()
    publisher = h.client("p")
    publisher.publish("t", b"1", 1)
    h.commit()
    publisher.recv()
    publisher.publish("t", b"2", 1)
    publisher.expect(Puback)


def test_a_message_and_its_letter_change_places_in_one_batch() -> None:
    h = Paged()
    b = Buried(h)
    b.client("collector", "dead/#", expiry=1000).drop()
    receiver = b.client("a", "t", expiry=1000, auto_ack=False)
    b.send(b"1")
    h.commit()
    assert [row.payload for row in h.shelf.rows.values()] == [b"1"]
    (packet,) = receiver.messages()
    receiver.connection.receive_data(b"\x40\x04" + u16(packet.packet_id) + b"\x83\x00", h.now)
    b.broker.bury(h.now)  # as the committer does before it takes a batch
    batch = b.broker.take_batch()
    assert batch is not None
    h.shelf.write(batch)
    assert [row.topic for row in h.shelf.rows.values()] == ["dead/refused_by_receiver"]


def test_letters_wait_while_the_store_takes_nothing() -> None:
    h = Harness(durable=True)
    b = Buried(h)
    b.client("collector", "dead/#", expiry=1000).drop()
    receiver = b.client("a", "t", auto_ack=False)
    b.send(b"1")
    b.broker.refuse(0x97, h.now)
    receiver.drop()
    assert b.asked == []
    b.broker.accept()
    h.flush()
    assert b.reasons == [count.DROP_SESSION_ENDED]


def test_a_publisher_waits_for_the_letter_of_a_message_that_was_never_stored() -> None:
    h = Paged()
    b = Buried(h)
    b.client("collector", "dead/#", expiry=1000).drop()
    receiver = b.client("a", "t", expiry=1000, auto_ack=False)
    publisher = h.client("p")
    publisher.publish("t", b"1", 1)
    (packet,) = receiver.messages()
    receiver.send(Puback(packet.packet_id, 0x83))  # before its batch was taken
    publisher.expect_nothing()
    h.commit()
    publisher.expect(Puback)
    assert [row.topic for row in h.shelf.rows.values()] == ["dead/refused_by_receiver"]


def test_a_publisher_waits_no_longer_where_the_letter_is_not_stored() -> None:
    h = Paged()
    b = Buried(h)
    receiver = b.client("a", "t", expiry=1000, auto_ack=False)
    publisher = h.client("p")
    publisher.publish("t", b"1", 1)
    (packet,) = receiver.messages()
    receiver.send(Puback(packet.packet_id, 0x83))
    assert len(b.asked) == 1
    publisher.expect(Puback)


def test_two_letters_of_one_message_are_both_waited_for() -> None:
    h = Paged()
    b = Buried(h)
    b.client("collector", "dead/#", expiry=1000).drop()
    receivers = [b.client(name, "t", expiry=1000, auto_ack=False) for name in "ab"]
    publisher = h.client("p")
    publisher.publish("t", b"1", 1)
    for receiver in receivers:
        (packet,) = receiver.messages()
        receiver.send(Puback(packet.packet_id, 0x83))
    publisher.expect_nothing()
    h.commit()
    publisher.expect(Puback)
    assert len(h.shelf.rows) == 2
