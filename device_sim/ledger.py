"""The ledger: what was sent, what came, and what that says about the broker.

A *track* is the path (publisher, topic stream, QoS, subscriber). The publisher numbers the messages
of a stream from 0; the track compares the numbers that arrive with the number it expects next.
Everything on a track ends in one of these classes:

    received     the first intact copy arrived
    duplicated   one more copy; `unflagged` counts those that came without DUP
    reordered    a first copy that came after a later message's
    lost         no copy came although the broker owed it
    corrupt      came with a wrong check sum; stands for one missing message of its track
    unexpected   came though nobody owed it: unknown topic, other run, other publisher or stream,
                 never sent, wrong QoS, marked as retained. The last two do arrive besides.
    unknown      missing, but never acknowledged, or its reader's connection ended: nobody owed it
    refused      missing, but the broker had said no with a reason code
    late         came after its hole was given up; see below

QoS is that of the delivery, the lower of published and granted. Which classes break its promise is
said in verdict.py.

A track costs a fixed amount of memory: the next number, the counters, and at most ranges.MAX_RANGES
holes. With more open holes the oldest counts as missing for good; an arrival from below it can be a
duplicate or a straggler, which can't be told any more, hence its own class.

Pure: bytes and `now_ns` in, numbers out. It must not know sockets, MQTT framing or the clock.
Balance, held by a test: sent = received + lost + unknown + refused + corrupt standing for missing.
"""

import zlib
from struct import Struct
from typing import Final

from device_sim.histogram import Histogram
from device_sim.payload import HEADER_SIZE, LAYOUT, MAGIC
from device_sim.ranges import Ranges
from device_sim.verdict import Outcome, Verdict

FOREIGN_TOPIC: Final = "unknown topic"
FOREIGN_RUN: Final = "other run"
WRONG_TOPIC: Final = "other stream's topic"
NEVER_SENT: Final = "never sent"
WRONG_QOS: Final = "wrong qos"
RETAINED: Final = "marked retained"

_DUP: Final = 0x08
_RETAIN: Final = 0x01
_HEADER: Final = Struct(">IBBHIIIQI")


class Sender:
    """One publisher's side of the books.

    Messages are numbered per publisher; number n belongs to stream n % streams and is the
    (n // streams)-th there. `arrived` counts deliveries at all subscribers, which is what a closed
    loop steers by; `ready` is set while the sender stands in Ledger.ready.
    """

    def __init__(self, index: int, qos: int, streams: int) -> None:
        self.index = index
        self.qos = qos
        self.streams = streams
        self.sent = 0
        self.arrived = 0
        self.ready = False
        self.cut = False
        self.unacknowledged = 0
        self.refused: dict[int, Ranges] = {}
        self.unknown: dict[int, Ranges] = {}

    def sent_on(self, stream: int) -> int:
        """How many messages of one stream were sent."""
        return (self.sent + self.streams - 1 - stream) // self.streams

    def refuse(self, number: int) -> None:
        """The broker answered message `number` with a reason code of failure."""
        self._note(self.refused, number)

    def close(self, unanswered: list[int], connected: bool) -> None:
        """The run is over; these messages never saw the end of their acknowledgement."""
        self.cut = not connected
        if connected:
            self.unacknowledged = len(unanswered)
        for number in unanswered:
            self._note(self.unknown, number)

    def _note(self, book: dict[int, Ranges], number: int) -> None:
        stream = number % self.streams
        ranges = book.get(stream)
        if ranges is None:
            ranges = book[stream] = Ranges()
        ranges.add(number // self.streams)


class Track:
    """One path: what one subscriber saw of one stream of one publisher."""

    def __init__(self, sender: Sender, stream: int, qos: int, subscriber: int) -> None:
        self.sender = sender
        self.stream = stream
        self.qos = qos
        self.subscriber = subscriber
        self.expected = 0
        self.holes: Ranges | None = None
        self.duplicated = 0
        self.unflagged = 0
        self.reordered = 0
        self.late = 0
        self.corrupt = 0
        self.unexpected = 0

    def arrive(self, sequence: int, dup: bool) -> bool:
        """Book an intact copy; True when it is the first of its message."""
        expected = self.expected
        if sequence == expected:
            self.expected = expected + 1
            return True
        holes = self.holes
        if sequence > expected:
            if holes is None:
                holes = self.holes = Ranges()
            holes.append(expected, sequence)
            self.expected = sequence + 1
            return True
        if holes is not None:
            if holes.remove(sequence):
                self.reordered += 1
                return True
            if sequence < holes.floor:
                self.late += 1
                return False
        self.duplicated += 1
        if not dup:
            self.unflagged += 1
        return False

    def close(self, topic: str, cut: bool) -> tuple[Outcome, int]:
        """The numbers of this track, and how many of its messages nobody had sent.

        What is missing is split by who answers for it; `cut` says that the reader's connection
        ended before the run did.
        """
        sender = self.sender
        sent = sender.sent_on(self.stream)
        holes = self.holes if self.holes is not None else Ranges()
        missing = holes.clipped(sent)
        received = self.expected - holes.size - holes.folded
        never_sent = 0
        if self.expected > sent:
            never_sent = self.expected - sent - (holes.size - missing.size)
            received -= never_sent
        missing.append(self.expected, sent)
        unknown = refused = 0
        if cut:
            unknown = missing.size + missing.folded
        else:
            answers = sender.unknown.get(self.stream)
            if answers is not None:
                unknown = missing.common(answers)
            if sender.cut and sender.qos == 0:
                unknown += max(0, sent - self.expected)
            answers = sender.refused.get(self.stream)
            if answers is not None:
                refused = missing.common(answers) + answers.folded
        owed = max(0, missing.size + missing.folded - unknown - refused)

        outcome = Outcome(self.qos, sender.index, self.stream, self.subscriber, topic)
        outcome.sent = sent
        outcome.received = received
        outcome.lost = owed - min(owed, self.corrupt)
        outcome.unknown = unknown
        outcome.refused = refused
        outcome.duplicated = self.duplicated
        outcome.unflagged = self.unflagged
        outcome.reordered = self.reordered
        outcome.late = self.late
        outcome.corrupt = self.corrupt
        outcome.unexpected = self.unexpected + never_sent
        return outcome, never_sent


class Watcher:
    """One subscriber's side of the books: it knows each topic it is owed and its track."""

    def __init__(self, ledger: "Ledger", index: int) -> None:
        self.ledger = ledger
        self.index = index
        self.cut = False
        self.tracks: dict[bytes, Track] = {}

    def expect(self, topic: bytes, sender: Sender, stream: int, qos: int) -> Track:
        """This subscriber is owed the messages of one stream, at this QoS."""
        track = Track(sender, stream, qos, self.index)
        self.tracks[topic] = track
        return track

    def receive(
        self, topic: bytes, data: bytes, start: int, end: int, flags: int, now_ns: int
    ) -> None:
        """Book a PUBLISH: payload `data[start:end]`, flags of its fixed header."""
        ledger = self.ledger
        ledger.received += 1
        track = self.tracks.get(topic)
        if track is None:
            ledger.stray(FOREIGN_TOPIC)
            return
        sender = track.sender
        if end - start < HEADER_SIZE:
            self._corrupt(track)
            return
        crc, magic, kind, stream, run, publisher, sequence, intended_ns, lag_us = (
            _HEADER.unpack_from(data, start)
        )
        if zlib.crc32(data[start + 4 : end]) != crc or magic != MAGIC or kind >> 4 != LAYOUT:
            self._corrupt(track)
            return
        if run != ledger.run:
            track.unexpected += 1
            ledger.stray(FOREIGN_RUN)
            return
        if publisher != sender.index or stream != track.stream:
            track.unexpected += 1
            ledger.stray(WRONG_TOPIC)
            return
        if flags & 7 != track.qos << 1:
            track.unexpected += 1
            ledger.stray(RETAINED if flags & _RETAIN else WRONG_QOS)
        if not track.arrive(sequence, flags & _DUP != 0):
            return
        sender.arrived += 1
        if not sender.ready:
            sender.ready = True
            ledger.ready.append(sender)
        since_intended_us = (now_ns - intended_ns) // 1000
        if ledger.paced:
            ledger.from_intended.record(since_intended_us)
        ledger.from_sent.record(since_intended_us - lag_us)

    def _corrupt(self, track: Track) -> None:
        track.corrupt += 1
        # It takes the place of a message in a closed loop, which would wait for it otherwise.
        sender = track.sender
        sender.arrived += 1
        if not sender.ready:
            sender.ready = True
            self.ledger.ready.append(sender)


class Ledger:
    """All senders and watchers of a run.

    `paced` says that messages have intended send times that differ from the actual ones;
    `ready` collects the senders whose messages arrived since the caller last emptied it.
    """

    def __init__(self, run: int, paced: bool) -> None:
        self.run = run
        self.paced = paced
        self.received = 0
        self.senders: list[Sender] = []
        self.watchers: list[Watcher] = []
        self.ready: list[Sender] = []
        self.strays: dict[str, int] = {}
        self.from_intended = Histogram()
        self.from_sent = Histogram()

    def add_sender(self, qos: int, streams: int) -> Sender:
        """Open the books of the next publisher."""
        sender = Sender(len(self.senders), qos, streams)
        self.senders.append(sender)
        return sender

    def add_watcher(self) -> Watcher:
        """Open the books of the next subscriber."""
        watcher = Watcher(self, len(self.watchers))
        self.watchers.append(watcher)
        return watcher

    def stray(self, reason: str) -> None:
        """Count an unexpected message by the reason why it is one."""
        self.strays[reason] = self.strays.get(reason, 0) + 1

    def close(self, keep: int = 20) -> Verdict:
        """Balance the books, after all senders have been closed.

        `keep` bounds how many tracks in trouble are told one by one.
        """
        verdict = Verdict(keep)
        for reason, count in self.strays.items():
            verdict.stray(reason, count)
        verdict.ownerless = self.strays.get(FOREIGN_TOPIC, 0)
        for watcher in self.watchers:
            for topic, track in watcher.tracks.items():
                outcome, never_sent = track.close(topic.decode("utf-8", "replace"), watcher.cut)
                verdict.add(outcome)
                verdict.stray(NEVER_SENT, never_sent)
        for sender in self.senders:
            if sender.unacknowledged:
                verdict.total(sender.qos).unacknowledged += sender.unacknowledged
        verdict.rank()
        return verdict
