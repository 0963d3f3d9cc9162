"""What one device of a scenario sends of one entry: messages that differ, at instants that differ.

A `Feed` is a publisher of a flood that has learned three things. Its messages have instants of
their own: what has become due waits in `dues` until window and socket have room, and keeps the
instant at which it should have gone. What stands behind the header is drawn message by message,
unless all are alike, then it patches a template as a flood does. And its device comes and goes.

A `Pour` is one `publish` action for one feed: it knows when the next message is due. The `Pacer`
holds all pours in a heap and moves what has become due to its feed; nothing is kept by message
before that, and no more than MAX_BACKLOG after it.

Pure: instants come as nanoseconds, frames go to the client's output. Called for each message,
hence compiled.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from typing import Final

from device_sim.engine.client import CONNECTED, LANE_BITS, Client
from device_sim.engine.publisher import BATCH_BYTES, Publisher
from device_sim.judge.payload import HEADER_SIZE, LAYOUT, MAGIC, MAX_LAG_US, Template
from device_sim.judge.tracks import Sender
from mqttd.core import spec

MAX_BACKLOG: Final = 10_000
"""Messages of a feed that are due and not sent; what becomes due beyond is held back for good."""
NEVER: Final = 2**62

_COVERED: Final = struct.Struct(">BBHIIIQI")
_CRC: Final = struct.Struct(">I")
_NUMBER: Final = struct.Struct(">Q")

Draw = Callable[[float, float], bytes | None]
"""From seconds of the run and time of day to what stands behind the header; None: nothing new."""


class Layout:
    """What all messages of a feed have in common on the wire.

    `topics` are those of the streams, with their length in front; `properties` come without theirs,
    and before MQTT 5 there are none at all.
    """

    def __init__(
        self, run: int, topics: list[bytes], retain: bool, properties: bytes, version5: bool
    ) -> None:
        self.run = run
        self.topics = topics
        self.retain = retain
        self.properties = properties
        self.version5 = version5


def with_length(size: int) -> bytearray:
    """A variable byte integer. [MQTT-1.5.5-1]"""
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return out


def request_number(number: int) -> bytes:
    """The Correlation Data of a request."""
    return _NUMBER.pack(number)


def correlation_data(data: bytes) -> bytes:
    """The property as it stands on the wire."""
    size = len(data)
    return bytes((spec.CORRELATION_DATA, size >> 8, size & 0xFF)) + data


class Feed(Publisher):
    """One device's messages of one entry.

    `lane` is the place of the sender among the client's. `draw` is not asked when there are
    `templates`. A feed of requests (`asks`) numbers its messages in Correlation Data and has one of
    them open at a time, until the caller sets `open_request` to -1. One of responses has the
    Correlation Data of each in `correlations`, beside `dues`.
    """

    def __init__(
        self,
        client: Client,
        sender: Sender,
        lane: int,
        templates: list[Template],
        layout: Layout,
        draw: Draw,
        window: int,
    ) -> None:
        super().__init__(client, sender, templates, window, 0)
        self.lane = lane
        self.layout = layout
        self.draw = draw
        self.dues: deque[int] = deque()
        self.times = 1
        """Messages each time that something is due: the pieces of a file."""
        self.keep = False
        """What becomes due without a connection is sent afterwards."""
        self.asks = False
        self.open_request = -1
        self.opened_ns = 0
        self.correlations: deque[bytes] = deque()
        self.due = 0
        self.most_due = NEVER
        self.skipped = 0
        self.held_back = 0
        self.unchanged = 0
        self.begun_ns = 0
        self.unix_s = 0.0
        self.starved = False
        """Something waits for the window, which the device's other feeds use, too."""

    def become_due(self, at_ns: int) -> bool:
        """One more is due; False when no more are wanted in the whole run."""
        if self.due >= self.most_due:
            return False
        self.due += 1
        if not self.keep and self.client.state != CONNECTED:
            self.skipped += self.times
        elif len(self.dues) + self.times > MAX_BACKLOG:
            self.held_back += self.times
        else:
            for _ in range(self.times):
                self.dues.append(at_ns)
        return True

    def reply(self, at_ns: int, correlation: bytes) -> None:
        """A response is due."""
        if len(self.dues) >= MAX_BACKLOG:
            self.held_back += 1
        else:
            self.dues.append(at_ns)
            self.correlations.append(correlation)

    def interrupted(self) -> None:
        """The connection ended."""
        self.more = False
        self.sender.interrupted()
        if not self.keep:
            self.skipped += len(self.dues)
            self.dues.clear()
            self.correlations.clear()

    def hold_back(self) -> None:
        """Publishing is over: what window and socket had no room for isn't sent any more."""
        if not self.keep:
            self.held_back += len(self.dues)
            self.dues.clear()

    def allowance(self) -> int:
        """How many messages may be sent now."""
        client = self.client
        if self.blocked or client.state != CONNECTED or self.open_request >= 0:
            return 0
        allowed = len(self.dues) if self.paced else self.limit - self.sender.sent
        if self.sender.qos:
            window = min(self.window, client.receive_maximum)
            allowed = min(allowed, window - client.in_flight())
        elif not self.paced and self.fan:
            allowed = min(allowed, self.window - self.outstanding())
        if self.asks:
            allowed = min(allowed, 1)
        return allowed

    def pump(self, now_ns: int) -> int:
        """Write as many messages as may be sent now; how many it were.

        `more` is left set when there is a reason to come back at once.
        """
        allowed = self.allowance()
        self.more = False
        if allowed <= 0:
            self.starved = self._waits()
            return 0
        sender = self.sender
        out = self.client.out
        first = sender.sent
        handled = 0
        while handled < allowed and len(out) < BATCH_BYTES:
            handled += 1
            intended_ns = now_ns
            lag_us = 0
            if self.paced:
                intended_ns = self.dues.popleft()
                lag_us = min(max(0, (now_ns - intended_ns) // 1000), MAX_LAG_US)
            self._write(out, intended_ns, lag_us)
        self.more = handled < allowed
        self.starved = not self.more and self._waits()
        return sender.sent - first

    def _waits(self) -> bool:
        if not self.sender.qos:
            return False
        return bool(self.dues) if self.paced else self.sender.sent < self.limit

    def _write(self, out: bytearray, intended_ns: int, lag_us: int) -> None:
        sender = self.sender
        client = self.client
        number = sender.sent
        if self.templates:
            packet_id = self._packet_id(number) if sender.qos else 0
            begun = len(out)
            stream = number % sender.streams
            self.templates[stream].write(
                out, packet_id, number // sender.streams, intended_ns, lag_us
            )
        else:
            t = (intended_ns - self.begun_ns) / 1e9
            body = self.draw(t, self.unix_s + t)
            if body is None:
                self.unchanged += 1
                return
            packet_id = self._packet_id(number) if sender.qos else 0
            begun = len(out)
            self._frame(out, packet_id, number, intended_ns, lag_us, body)
        if packet_id and client.keeps_frames:
            client.frames[packet_id] = bytes(out[begun:])
        if self.asks:
            self.open_request = number
            self.opened_ns = intended_ns + lag_us * 1000
        sender.sent = number + 1

    def _packet_id(self, number: int) -> int:
        client = self.client
        packet_id = client.next_id()
        client.inflight[packet_id] = self.lane << LANE_BITS | number
        return packet_id

    def _frame(
        self,
        out: bytearray,
        packet_id: int,
        number: int,
        intended_ns: int,
        lag_us: int,
        body: bytes,
    ) -> None:
        sender = self.sender
        layout = self.layout
        stream = number % sender.streams
        head = bytearray(layout.topics[stream])
        if packet_id:
            head.append(packet_id >> 8)
            head.append(packet_id & 0xFF)
        if layout.version5:
            properties = layout.properties
            if self.asks:
                properties = correlation_data(request_number(number)) + properties
            elif self.correlations:
                properties = correlation_data(self.correlations.popleft()) + properties
            head += with_length(len(properties))
            head += properties
        covered = _COVERED.pack(
            MAGIC,
            LAYOUT << 4 | sender.qos,
            stream,
            layout.run,
            sender.index,
            number // sender.streams,
            intended_ns,
            lag_us,
        )
        out.append(0x30 | sender.qos << 1 | (1 if layout.retain else 0))
        out += with_length(len(head) + HEADER_SIZE + len(body))
        out += head
        out += _CRC.pack(zlib.crc32(body, zlib.crc32(covered)))
        out += covered
        out += body


class Pour:
    """One `publish` action for one feed.

    The messages come at `first_s + n * step_s` from `begun_ns` on, or when `next_s` says, if that
    isn't None; no more than `count`, all of them before `end_ns`.
    """

    def __init__(
        self,
        feed: Feed,
        begun_ns: int,
        first_s: float,
        step_s: float,
        next_s: Callable[[], float] | None,
        count: int,
        end_ns: int,
    ) -> None:
        self.feed = feed
        self.begun_ns = begun_ns
        self.first_s = first_s
        self.step_s = step_s
        self.next_s = next_s
        self.left = count
        self.number = 0
        self.end_ns = end_ns
        self.stopped = False
        self.ended = False

    def next_ns(self) -> int:
        """When the next message is due; NEVER when there is none."""
        if self.left <= 0 or self.stopped:
            return NEVER
        self.left -= 1
        next_s = self.next_s
        if next_s is None:
            after_s = self.first_s + self.number * self.step_s
            self.number += 1
        else:
            after_s = next_s()
        at_ns = self.begun_ns + int(after_s * 1e9)
        return at_ns if at_ns < self.end_ns else NEVER


class Pacer:
    """All pours, the one that is due next on top."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Pour]] = []
        self._serial = 0

    def add(self, pour: Pour) -> None:
        """Let a pour begin."""
        at_ns = pour.next_ns()
        if at_ns < NEVER:
            self._serial += 1
            heappush(self.heap, (at_ns, self._serial, pour))
        else:
            pour.ended = True

    def next_ns(self) -> int:
        """When something is due next; NEVER for nothing at all."""
        return self.heap[0][0] if self.heap else NEVER

    def advance(self, now_ns: int) -> list[Feed]:
        """Let time pass; the feeds that have more due than before, some of them several times."""
        heap = self.heap
        found: list[Feed] = []
        while heap and heap[0][0] <= now_ns:
            at_ns, _, pour = heap[0]
            following_ns = NEVER
            if not pour.stopped and pour.feed.become_due(at_ns):
                found.append(pour.feed)
                following_ns = pour.next_ns()
            if following_ns < NEVER:
                self._serial += 1
                heapreplace(heap, (following_ns, self._serial, pour))
            else:
                heappop(heap)
                pour.ended = True
        return found
