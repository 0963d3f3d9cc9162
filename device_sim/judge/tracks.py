"""Tracks: what one reader saw of one numbered stream, and what it was owed of it.

A `Sender` counts what a publisher sent and what became of the acknowledgements; a `Track` compares
the numbers that arrive at one reader with the number it expects next. Three kinds of tracks differ
in what is owed:

    Track               each message once, in order
    Whole and Member    a shared subscription: each message once to all members together
    WillTrack           the wills of those connections that ended without a DISCONNECT

`excused` holds what nobody owes: what was sent before the reader joined, while it was away without
a session that had to keep it, or while the publisher's connection broke. Where outside can't know,
a message is excused; what is told as lost was owed for certain.

A scenario may damage the bytes of a connection. What that does to a message is in doubt (`Doubt`):
on the tracks of that device, from the first message that had not arrived when it began to the last
one that was sent when the connection ended, what is missing is excused, and what comes twice, late
or damaged is forgiven.

Several publishers may share a topic. The first track of a topic is found by it; those of the others
stand `beside` it, by publisher and stream.

Pure, and of constant size for each track: see ranges.py. Called for each message, hence compiled.
"""

from device_sim.judge.oracles import Replay, Wills
from device_sim.judge.ranges import Ranges
from device_sim.judge.verdict import Outcome


class Doubt:
    """What damage on purpose makes uncertain about the numbers of a stream, or of a sender.

    Both ends of a track may be damaged, hence `sources` counts. Everything below `end` is in doubt
    for good, and while there are sources, everything is.
    """

    def __init__(self) -> None:
        self.sources = 0
        self.start = 0
        self.end = 0
        self.forgiven = 0

    def covers(self, number: int) -> bool:
        """Whether anything may have become of this message."""
        return self.sources > 0 or number < self.end


class Sender:
    """One publisher's side of the books.

    Messages are numbered per publisher; number n belongs to stream n % streams and is the
    (n // streams)-th there. `arrived` counts deliveries at all subscribers, which is what a closed
    loop steers by; `ready` is set while the sender stands in Ledger.ready. `clears` says that it
    also sends empty retained messages, which have no number.
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
        self.resent: dict[int, Ranges] = {}
        self.clears = False
        self.tracks: list[Track] = []
        self.doubt: Doubt | None = None

    def sent_on(self, stream: int) -> int:
        """How many messages of one stream were sent."""
        return (self.sent + self.streams - 1 - stream) // self.streams

    def refuse(self, number: int) -> None:
        """The broker answered message `number` with a reason code of failure."""
        self._note(self.refused, number)

    def resend(self, number: int) -> None:
        """Message `number` goes out once more: the broker may deliver it once more at QoS 1."""
        self._note(self.resent, number)

    def give_up(self, numbers: list[int]) -> None:
        """The session of these messages is gone: their acknowledgement will never come."""
        for number in numbers:
            self._note(self.unknown, number)

    def interrupted(self) -> None:
        """The connection broke: QoS 0 messages that had not arrived may never have left."""
        if self.qos == 0:
            for track in self.tracks:
                track.excuse(track.edge(), self.sent_on(track.stream))

    def harm(self) -> None:
        """Bytes of its connection are damaged from now on."""
        if self.doubt is None:
            self.doubt = Doubt()
        self.doubt.sources += 1
        for track in self.tracks:
            track.harm()

    def heal(self) -> None:
        """That connection is gone."""
        doubt = self.doubt
        if doubt is not None and doubt.sources:
            doubt.sources -= 1
            doubt.end = self.sent
            for track in self.tracks:
                track.heal()

    def doubtful(self, stream: int, sequence: int) -> bool:
        """Whether damage on purpose may have changed topic or flags of this message."""
        doubt = self.doubt
        return doubt is not None and doubt.covers(sequence * self.streams + stream)

    def acked_on(self, stream: int) -> int:
        """How many messages of one stream were acknowledged."""
        if self.qos == 0:
            return 0
        count = self.sent_on(stream)
        for book in (self.unknown, self.refused):
            ranges = book.get(stream)
            if ranges is not None:
                count -= ranges.size + ranges.folded
        return count

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
        self.expiring = False
        self.replay: Replay | None = None
        self.as_published = False
        """The subscription keeps the RETAIN flag, so live and retained copies look the same."""
        self.beside: dict[int, Track] | None = None
        self.doubt: Doubt | None = None
        self.excused: Ranges | None = None
        self._left_at = -1
        self._back_at = 0

    def excuse(self, start: int, end: int) -> None:
        """Nobody owes messages `start` up to, without, `end`; they may come all the same."""
        doubt = self.doubt
        if doubt is not None and doubt.sources:
            # Ranges are appended in their order: what is in doubt before it comes along.
            start = min(start, doubt.start)
            doubt.start = max(doubt.start, end)
        if start >= end:
            return
        excused = self.excused
        if excused is None:
            excused = self.excused = Ranges()
        if excused.ends:
            start = max(start, excused.ends[-1])
            if len(excused.starts) >= excused.limit:
                # No more gaps can be remembered: rather excuse too much than accuse wrongly.
                start = excused.ends[-1]
        excused.append(start, end)

    def edge(self) -> int:
        """The first message that may still be under way."""
        return self.expected

    def harm(self) -> None:
        """Bytes on its way are damaged from now on, at the publisher's end or at the reader's."""
        doubt = self.doubt
        if doubt is None:
            doubt = self.doubt = Doubt()
        if not doubt.sources:
            doubt.start = self.edge()
        doubt.sources += 1
        if self.replay is not None:
            self.replay.waive()

    def heal(self) -> None:
        """The connection whose bytes were damaged is gone: what is sent from now on is owed."""
        doubt = self.doubt
        if doubt is not None and doubt.sources:
            doubt.sources -= 1
            if not doubt.sources:
                self._end_doubt(doubt)

    def blurred(self) -> bool:
        """Whether a damaged copy may be one of the messages in doubt."""
        doubt = self.doubt
        return doubt is not None and doubt.covers(self.edge())

    def _end_doubt(self, doubt: Doubt) -> None:
        """Whoever calls this has no source left, or is about to close the track."""
        sent = self.sender.sent_on(self.stream)
        self.excuse(doubt.start, sent)
        doubt.end = max(doubt.end, sent)

    def _forgives(self, sequence: int) -> bool:
        doubt = self.doubt
        if doubt is None or not doubt.covers(sequence):
            return False
        doubt.forgiven += 1
        return True

    def leave(self) -> None:
        """The reader's connection, or its subscription, is gone or not there yet."""
        if self._left_at < 0:
            self._left_at = self.expected
        if self.replay is not None:
            self.replay.leave()

    def back(self, kept: bool) -> None:
        """The reader is there again; `kept` says that its session had to outlive the gap.

        That is for the standard to say, not for the broker. QoS 0 is owed to nobody who is away,
        nor is a message that may have expired meanwhile.
        """
        if self._left_at >= 0:
            if not kept or self.qos == 0 or self.expiring:
                self.excuse(self._left_at, self.sender.sent_on(self.stream))
            self._left_at = -1
            self._back_at = self.expected

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
                if not self._forgives(sequence):
                    self.reordered += 1
                return True
            if sequence < holes.floor:
                if not self._forgives(sequence):
                    self.late += 1
                return False
        if self._forgives(sequence):
            return False
        self.duplicated += 1
        if not dup and sequence >= self._back_at:
            resent = self.sender.resent.get(self.stream)
            if resent is None or not resent.contains(sequence):
                self.unflagged += 1
        return False

    def retained(self, sequence: int) -> bool:
        """Book a copy that is marked as retained; False when none was asked for."""
        return self.replay is not None and self.replay.arrive(sequence)

    def missing(self) -> int:
        """How many messages are owed and haven't come yet, as long as the reader is there."""
        if self._left_at >= 0:
            return 0
        sender = self.sender
        sent = sender.sent_on(self.stream)
        doubt = self.doubt
        if doubt is not None and doubt.sources:
            sent = min(sent, doubt.start)
        holes = self.holes
        if sent <= self.expected and (holes is None or not holes.size):
            return 0
        missing = holes.clipped(sent) if holes is not None else Ranges()
        missing.append(self.expected, sent)
        excused = missing.intersection(self.excused or Ranges())
        count = missing.size - excused.size
        for book in (sender.unknown, sender.refused):
            answers = book.get(self.stream)
            if answers is not None:
                count -= missing.common(answers) - excused.common(answers)
        return count

    def close(self, topic: str, cut: bool) -> tuple[Outcome, int]:
        """The numbers of this track, and how many of its messages nobody had sent.

        What is missing is split by who answers for it; `cut` says that the reader's connection
        ended before the run did.
        """
        sender = self.sender
        sent = sender.sent_on(self.stream)
        if self.doubt is not None and self.doubt.sources:
            self._end_doubt(self.doubt)
        holes = self.holes if self.holes is not None else Ranges()
        missing = holes.clipped(sent)
        received = self.expected - holes.size - holes.folded
        never_sent = 0
        if self.expected > sent:
            never_sent = self.expected - sent - (holes.size - missing.size)
            received -= never_sent
        missing.append(self.expected, sent)
        if self._left_at >= 0:
            self.excuse(self._left_at, sent)
        if sender.cut and sender.qos == 0:
            self.excuse(self.edge(), sent)
        unknown = refused = 0
        if cut:
            unknown = missing.size + missing.folded
        else:
            free = self.excused or Ranges()
            excused = missing.intersection(free)
            # Which messages a folded hole had is forgotten: as many as can be are excused.
            unknown = excused.size + min(missing.folded, free.below(missing.floor))
            answers = sender.unknown.get(self.stream)
            if answers is not None:
                unknown += missing.common(answers) - excused.common(answers)
            answers = sender.refused.get(self.stream)
            if answers is not None:
                refused = missing.common(answers) - excused.common(answers) + answers.folded
        owed = max(0, missing.size + missing.folded - unknown - refused)

        outcome = Outcome(self.qos, sender.index, self.stream, self.subscriber, topic)
        outcome.sent = sent
        outcome.received = received
        outcome.acked = sender.acked_on(self.stream)
        outcome.lost = owed - min(owed, self.corrupt)
        outcome.unknown = unknown
        outcome.refused = refused
        outcome.duplicated = self.duplicated
        outcome.unflagged = self.unflagged
        outcome.reordered = self.reordered
        outcome.late = self.late
        outcome.corrupt = self.corrupt
        outcome.unexpected = self.unexpected + never_sent
        if self.replay is not None:
            self.replay.settle()
            outcome.stale = self.replay.stale
            outcome.corrupt += self.replay.corrupt
            outcome.missing_retained = self.replay.missing
        return outcome, never_sent


def put(tracks: dict[bytes, Track], topic: bytes, track: Track) -> None:
    """One more track of a topic; one that is there already for its publisher and stream stays."""
    first = tracks.get(topic)
    if first is None:
        tracks[topic] = track
    elif first.sender is not track.sender or first.stream != track.stream:
        if first.beside is None:
            first.beside = {}
        first.beside.setdefault(track.sender.index << 16 | track.stream, track)


def listed(tracks: dict[bytes, Track]) -> list[tuple[bytes, Track]]:
    """All tracks with their topics."""
    found: list[tuple[bytes, Track]] = []
    for topic, track in tracks.items():
        found.append((topic, track))
        if track.beside is not None:
            for other in track.beside.values():
                found.append((topic, other))
    return found


class WillTrack(Track):
    """The wills of one device at one subscriber: message n is the will of its n-th connection.

    Which of them had to come is said by `wills`; the order of wills is nobody's promise.
    """

    def __init__(self, sender: Sender, wills: Wills, qos: int, subscriber: int) -> None:
        super().__init__(sender, 0, qos, subscriber)
        self.wills = wills

    def back(self, kept: bool) -> None:
        self.sender.sent = self.wills.ended
        super().back(kept)

    def heal(self) -> None:
        self.sender.sent = self.wills.ended
        super().heal()

    def arrive(self, sequence: int, dup: bool) -> bool:
        super().arrive(sequence, dup)
        # Made when its connection began, a will says nothing about latency.
        return False

    def missing(self) -> int:
        wills = self.wills
        if self._left_at >= 0 or not wills.owed.size:
            return 0
        missing = self.holes.clipped(wills.ended) if self.holes is not None else Ranges()
        missing.append(self.expected, wills.ended)
        absent = missing.intersection(wills.owed)
        return absent.size - absent.common(self.excused or Ranges())

    def close(self, topic: str, cut: bool) -> tuple[Outcome, int]:
        wills = self.wills
        sent = self.sender.sent = wills.ended
        if self.doubt is not None and self.doubt.sources:
            self._end_doubt(self.doubt)
        if self._left_at >= 0 or cut:
            self.excuse(self.expected if cut else self._left_at, sent)
        holes = self.holes if self.holes is not None else Ranges()
        received = self.expected - holes.size - holes.folded
        missing = holes.clipped(sent)
        missing.append(self.expected, sent)
        absent = missing.intersection(wills.owed)
        unknown = absent.common(self.excused or Ranges())
        welcome = wills.owed.size - absent.size + wills.allowed.size - missing.common(wills.allowed)

        outcome = Outcome(self.qos, self.sender.index, 0, self.subscriber, topic)
        outcome.sent = wills.owed.size
        outcome.received = wills.owed.size - absent.size
        outcome.unknown = unknown
        outcome.missing_will = absent.size - unknown
        outcome.duplicated = self.duplicated
        outcome.unflagged = self.unflagged
        outcome.corrupt = self.corrupt
        unwelcome = max(0, received - welcome)
        outcome.unexpected = self.unexpected + unwelcome
        return outcome, unwelcome


class Share:
    """A shared subscription: its members together are owed each message once.

    Order holds for what one member receives, and no longer once a member has left: what it had not
    acknowledged goes to another one, after later messages.
    """

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.tracks: dict[bytes, Track] = {}
        self.ordered = True

    def expect(self, topic: bytes, sender: Sender, stream: int, qos: int) -> "Whole":
        """The members are owed the messages of one stream, at this QoS."""
        track = Whole(sender, stream, qos, self.index)
        track.excuse(0, sender.sent_on(stream))
        sender.tracks.append(track)
        put(self.tracks, topic, track)
        return track


class Whole(Track):
    """A stream at a whole shared subscription; the holes of it are under way to some member."""

    def edge(self) -> int:
        holes = self.holes
        return holes.starts[0] if holes is not None and holes.starts else self.expected

    def member_left(self, kept: bool) -> None:
        """What was under way comes again without DUP, to somebody else; or never."""
        self._back_at = self.expected
        if not kept or self.qos == 0 or self.expiring:
            self.excuse(self.edge(), self.sender.sent_on(self.stream))


class Member(Track):
    """What one member of a share saw of a stream; what counts is booked with the whole."""

    def __init__(self, share: Share, whole: Whole, subscriber: int) -> None:
        super().__init__(whole.sender, whole.stream, whole.qos, subscriber)
        self.share = share
        self.whole = whole

    def leave(self) -> None:
        super().leave()
        self.share.ordered = False
        self.whole.member_left(True)

    def back(self, kept: bool) -> None:
        super().back(kept)
        self.whole.member_left(kept)

    def harm(self) -> None:
        self.whole.harm()

    def heal(self) -> None:
        self.whole.heal()

    def blurred(self) -> bool:
        return self.whole.blurred()

    def arrive(self, sequence: int, dup: bool) -> bool:
        whole = self.whole
        # That others are ahead in the stream is no disorder.
        reordered = whole.reordered
        fresh = whole.arrive(sequence, dup)
        whole.reordered = reordered
        if fresh:
            if sequence >= self.expected:
                self.expected = sequence + 1
            elif self.share.ordered and not whole._forgives(sequence):
                whole.reordered += 1
        return fresh

    def hand_over(self) -> None:
        """The run is over: what this member knows goes to the whole."""
        if self._left_at >= 0:
            self.whole.member_left(False)
        self.whole.corrupt += self.corrupt
        self.whole.unexpected += self.unexpected
