"""Feeds and their pacer: what is due when, what may be sent, and how it looks on the wire."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.engine.client import CONNECTED, Client
from device_sim.engine.feed import MAX_BACKLOG, NEVER, Feed, Layout, Pacer, Pour, with_length
from device_sim.judge.ledger import Ledger
from device_sim.judge.payload import decode
from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import Publish
from mqttd.core.properties import decode_forwardable

SECOND = 1_000_000_000


class Made:
    """A connected client with feeds, and what they wrote."""

    def __init__(self, qos: int = 1, streams: int = 1, window: int = 10, version: int = 5) -> None:
        self.ledger = Ledger(7, True)
        self.client = Client("c", version, self.ledger.ready)
        self.client.state = CONNECTED
        self.bodies: deque[bytes | None] = deque()
        self.asked: list[tuple[float, float]] = []
        self.version = version
        self.feed = self.add(qos, streams, window)

    def add(self, qos: int, streams: int, window: int) -> Feed:
        sender = self.ledger.add_sender(qos, streams)
        self.client.senders.append(sender)
        topics = [f"t/{at}".encode() for at in range(streams)]
        layout = Layout(
            7,
            [len(topic).to_bytes(2, "big") + topic for topic in topics],
            False,
            b"",
            self.version == spec.MQTT5,
        )
        lane = len(self.client.senders) - 1
        feed = Feed(self.client, sender, lane, [], layout, self.draw, window)
        feed.paced = True
        return feed

    def draw(self, t: float, unix_s: float) -> bytes | None:
        self.asked.append((t, unix_s))
        return self.bodies.popleft() if self.bodies else b"body"

    def written(self) -> list[Publish]:
        framer = Framer(1 << 20)
        framer.feed(bytes(self.client.data_to_send()))
        found = []
        while framer.next():
            packet = decode_packet(
                framer.first, framer.data, framer.pos, framer.end, self.version, True
            )
            assert isinstance(packet, Publish)
            found.append(packet)
        return found


def test_a_message_keeps_the_instant_at_which_it_was_due() -> None:
    made = Made(streams=2)
    made.feed.begun_ns, made.feed.unix_s = SECOND, 1000.0
    for at_ns in (2 * SECOND, 3 * SECOND, 4 * SECOND):
        assert made.feed.become_due(at_ns)
    assert made.feed.pump(5 * SECOND) == 3
    packets = made.written()
    headers = [decode(packet.payload) for packet in packets]
    assert [packet.topic for packet in packets] == ["t/0", "t/1", "t/0"]
    assert [header and header.sequence for header in headers] == [0, 0, 1]
    assert [header and header.intended_ns for header in headers] == [
        2 * SECOND,
        3 * SECOND,
        4 * SECOND,
    ]
    assert [header and header.lag_us for header in headers] == [3_000_000, 2_000_000, 1_000_000]
    assert [packet.payload[32:] for packet in packets] == [b"body"] * 3
    assert made.asked == [(1.0, 1001.0), (2.0, 1002.0), (3.0, 1003.0)]


@pytest.mark.parametrize("version", [spec.MQTT311, spec.MQTT5])
def test_the_window_is_the_clients_and_an_acknowledgement_makes_room(version: int) -> None:
    made = Made(window=3, version=version)
    other = made.add(2, 1, 3)
    for at_ns in range(5):
        made.feed.become_due(at_ns)
        other.become_due(at_ns)
    assert made.feed.pump(10) == 3
    assert other.pump(10) == 0
    assert (made.feed.starved, other.starved) == (True, True)
    assert [packet.packet_id for packet in made.written()] == [1, 2, 3]
    made.client.receive_data(b"\x40\x02\x00\x02", 0)
    assert made.ledger.ready == [made.feed.sender]
    assert other.pump(11) == 1
    assert made.client.unanswered(0) == [0, 2]
    assert made.client.unanswered(1) == [0]
    made.client.receive_maximum = 4
    made.feed.window = other.window = 100
    assert made.feed.pump(12) == 1
    assert not made.feed.more


def test_the_answer_of_a_broker_reaches_the_right_sender() -> None:
    made = Made()
    other = made.add(1, 1, 10)
    made.feed.become_due(0)
    other.become_due(0)
    made.feed.pump(0)
    other.pump(0)
    made.client.receive_data(b"\x40\x03\x00\x02\x97", 0)
    assert other.sender.refused[0].contains(0)
    assert made.feed.sender.refused == {}


def test_what_becomes_due_without_a_connection() -> None:
    made = Made()
    made.client.state = 3
    assert made.feed.become_due(1)
    assert (made.feed.skipped, len(made.feed.dues)) == (1, 0)
    made.feed.keep = True
    assert made.feed.become_due(2)
    assert len(made.feed.dues) == 1
    assert made.feed.pump(3) == 0
    made.client.state = CONNECTED
    assert made.feed.pump(4) == 1
    assert made.feed.sender.sent == 1


def test_a_connection_that_ends_takes_what_waited_unless_it_is_kept() -> None:
    made = Made()
    kept = made.add(1, 1, 10)
    kept.keep = True
    for feed in (made.feed, kept):
        feed.become_due(1)
        feed.interrupted()
        feed.hold_back()
    assert (made.feed.skipped, len(made.feed.dues)) == (1, 0)
    assert (kept.skipped, len(kept.dues), kept.held_back) == (0, 1, 0)
    made.feed.become_due(2)
    made.feed.hold_back()
    assert (made.feed.held_back, len(made.feed.dues)) == (1, 0)


def test_a_backlog_has_an_end() -> None:
    made = Made()
    made.feed.times = 3
    for at_ns in range(MAX_BACKLOG // 3 + 10):
        made.feed.become_due(at_ns)
    assert len(made.feed.dues) <= MAX_BACKLOG
    assert made.feed.held_back == 10 * 3


def test_nothing_new_is_no_message() -> None:
    made = Made()
    made.bodies.extend([b"a", None, b"b"])
    for at_ns in range(3):
        made.feed.become_due(at_ns)
    assert made.feed.pump(5) == 2
    assert (made.feed.sender.sent, made.feed.unchanged) == (2, 1)
    assert [packet.payload[32:] for packet in made.written()] == [b"a", b"b"]


def test_requests_go_out_one_by_one_and_responses_with_what_they_answer() -> None:
    made = Made()
    made.feed.asks = True
    for at_ns in range(2):
        made.feed.become_due(at_ns)
    assert made.feed.pump(7_000) == 1
    assert made.feed.pump(8_000) == 0
    assert (made.feed.open_request, made.feed.opened_ns) == (0, 7_000)
    made.feed.open_request = -1
    assert made.feed.pump(9_000) == 1
    numbers = [decode_forwardable(packet.properties).correlation_data for packet in made.written()]
    assert numbers == [(0).to_bytes(8, "big"), (1).to_bytes(8, "big")]
    answers = made.add(1, 1, 10)
    answers.reply(1, b"first")
    answers.reply(2, b"x" * 300)
    assert answers.pump(3) == 2
    answered = [decode_forwardable(packet.properties).correlation_data for packet in made.written()]
    assert answered == [b"first", b"x" * 300]


def test_frames_are_kept_until_they_are_acknowledged_and_sent_again_as_they_were() -> None:
    made = Made(qos=2)
    made.client.keeps_frames = True
    for at_ns in range(3):
        made.feed.become_due(at_ns)
    made.feed.pump(5)
    before = made.written()
    made.client.receive_data(b"\x50\x02\x00\x01", 0)
    made.client.reopen()
    made.client.state = 1
    made.client.receive_data(b"\x20\x03\x01\x00\x00", 0)
    out = bytes(made.client.data_to_send())
    assert out.startswith(b"\x62\x02\x00\x01")  # PUBREL of the one that was received
    framer = Framer(1 << 20)
    framer.feed(out[4:])
    again = []
    while framer.next():
        again.append(
            decode_packet(framer.first, framer.data, framer.pos, framer.end, spec.MQTT5, True)
        )
    for first, second in zip(before[1:], again, strict=True):
        assert isinstance(second, Publish)
        assert second.dup
        second.dup = False
        assert second == first
    assert made.feed.sender.resent[0].size == 2


def test_a_session_that_is_gone_leaves_messages_of_which_nobody_knows() -> None:
    made = Made()
    made.feed.become_due(0)
    made.feed.pump(1)
    made.client.reopen()
    made.client.state = 1
    made.client.receive_data(b"\x20\x03\x00\x00\x00", 0)
    assert made.feed.sender.unknown[0].contains(0)
    assert made.client.in_flight() == 0
    assert made.client.frames == {}


@given(st.integers(0, 268_435_455))
def test_lengths(size: int) -> None:
    encoded = with_length(size)
    value = sum((byte & 127) << 7 * at for at, byte in enumerate(encoded))
    assert value == size
    assert len(encoded) == (
        1 if size < 128 else 2 if size < 16_384 else 3 if size < 2_097_152 else 4
    )


def pour(feed: Feed, first_s: float, step_s: float, count: int, end_ns: int = NEVER) -> Pour:
    return Pour(feed, 0, first_s, step_s, None, count, end_ns)


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0.001, 2), st.integers(1, 8)), min_size=1, max_size=5
    ),
    st.lists(st.floats(0.0, 1.0), max_size=10),
)
def test_everything_becomes_due_once_in_order_and_never_early(
    plans: list[tuple[float, float, int]], steps: list[float]
) -> None:
    made = Made()
    feeds = [made.add(1, 1, 10) for _ in plans]
    pacer = Pacer()
    for feed, (first_s, step_s, count) in zip(feeds, plans, strict=True):
        pacer.add(pour(feed, first_s, step_s, count))
    now_ns = 0
    for step_s in [*steps, 100.0]:
        now_ns += int(step_s * SECOND)
        found = pacer.advance(now_ns)
        assert pacer.next_ns() > now_ns
        assert all(due <= now_ns for feed in found for due in feed.dues)
    for feed, (first_s, step_s, count) in zip(feeds, plans, strict=True):
        expected = [int((first_s + number * step_s) * 1e9) for number in range(count)]
        assert list(feed.dues) == expected
    assert pacer.next_ns() == NEVER


def test_a_pour_ends_by_its_count_its_time_its_feed_or_because_it_is_stopped() -> None:
    made = Made()
    by_count, by_time = made.add(1, 1, 10), made.add(1, 1, 10)
    by_feed, stopped = made.add(1, 1, 10), made.add(1, 1, 10)
    by_feed.most_due = 2
    pours = [
        pour(by_count, 0, 1, 3),
        pour(by_time, 0, 1, NEVER, 4 * SECOND),
        pour(by_feed, 0, 1, NEVER),
        pour(stopped, 0, 1, NEVER),
        pour(made.feed, 0, 1, 0),
    ]
    pacer = Pacer()
    for each in pours:
        pacer.add(each)
    assert [each.ended for each in pours] == [False, False, False, False, True]
    pacer.advance(2 * SECOND - 1)
    pours[3].stopped = True
    pacer.advance(1000 * SECOND)
    assert [len(feed.dues) for feed in (by_count, by_time, by_feed, stopped)] == [3, 4, 2, 2]
    assert all(each.ended for each in pours)


def test_instants_that_chance_draws() -> None:
    made = Made()
    instants = iter([0.5, 0.5, 2.0])
    pacer = Pacer()
    pacer.add(Pour(made.feed, SECOND, 0, 0, lambda: next(instants), 3, NEVER))
    pacer.advance(10 * SECOND)
    assert list(made.feed.dues) == [3 * SECOND // 2, 3 * SECOND // 2, 3 * SECOND]
