"""The ledger: what was sent, what came, and what that says about the broker.

A *track* is the path (publisher, topic stream, QoS, subscriber). The publisher numbers the messages
of a stream from 0; the track compares the numbers that arrive with the number it expects next.
Everything on a track ends in one of these classes:

    received     the first intact copy arrived
    acked        sent, and the acknowledgement was completed (QoS 1 and 2)
    duplicated   one more copy; `unflagged` counts those that came without DUP
    reordered    a first copy that came after a later message's
    lost         no copy came although the broker owed it
    corrupt      came with a wrong check sum; stands for one missing message of its track
    unexpected   came though nobody owed it: unknown topic, other run, other publisher or stream,
                 never sent, wrong QoS, marked as retained. The last two do arrive besides.
    unknown      missing, but never acknowledged, or its reader was away without a session that had
                 to keep it: nobody owed it
    refused      missing, but the broker had said no with a reason code
    late         came after its hole was given up; see below

    stale, missing_retained, missing_will     see oracles.py, whose judgements are booked here

QoS is that of the delivery, the lower of published and granted. Which classes break its promise is
said in verdict.py.

Readers come and go. `leave` and `back` of a watcher or a track say when, and whether the session
was kept meanwhile: then what QoS 1 and 2 promise is owed across the gap, and a copy from before it
may come once more without DUP. Publishers do, too: `interrupted`, `resend` and `give_up`. Bytes
that the scenario itself damages are nobody's fault: `harm` and `heal` of senders and watchers say
from when to when, and what comes of it is `forgiven`, or unknown, see tracks.py.

A track costs a fixed amount of memory: the next number, the counters, and at most ranges.MAX_RANGES
holes. With more open holes the oldest counts as missing for good; an arrival from below it can be a
duplicate or a straggler, which can't be told any more, hence its own class.

Pure: bytes and `now_ns` in, numbers out. It must not know sockets, MQTT framing or the clock.
Balance, held by a test: sent = received + lost + unknown + refused + corrupt standing for missing.
"""

import zlib
from struct import Struct
from typing import Final

from device_sim.judge.histogram import Histogram
from device_sim.judge.oracles import Wills
from device_sim.judge.payload import HEADER_SIZE, LAYOUT, MAGIC, decode
from device_sim.judge.tracks import Member, Sender, Share, Track, Whole, WillTrack, listed, put
from device_sim.judge.verdict import Verdict

FOREIGN_TOPIC: Final = "unknown topic"
FOREIGN_RUN: Final = "other run"
WRONG_TOPIC: Final = "other stream's topic"
NEVER_SENT: Final = "never sent"
WRONG_QOS: Final = "wrong qos"
RETAINED: Final = "marked retained"
UNWELCOME_WILL: Final = "will after a DISCONNECT"

_DUP: Final = 0x08
_RETAIN: Final = 0x01
COMPILED: Final = type(put).__name__ != "function"
"""Whether this is the native build: reading bytes one by one is fast there, and slow elsewhere."""

_HEADER: Final = Struct(">IBBHIIIQI")
_crc32: Final = zlib.crc32


def _u32(data: bytes, at: int) -> int:
    return data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]


def _header(data: bytes, at: int) -> tuple[int, int, int, int, int, int, int, int, int]:
    """The fields of payload.py's header: with struct, or without where that is faster."""
    if not COMPILED:
        fields: tuple[int, int, int, int, int, int, int, int, int] = _HEADER.unpack_from(data, at)
        return fields
    return (
        _u32(data, at),
        data[at + 4],
        data[at + 5],
        data[at + 6] << 8 | data[at + 7],
        _u32(data, at + 8),
        _u32(data, at + 12),
        _u32(data, at + 16),
        _u32(data, at + 20) << 32 | _u32(data, at + 24),
        _u32(data, at + 28),
    )


class Watcher:
    """One subscriber's side of the books: it knows each topic it is owed and its track."""

    def __init__(self, ledger: "Ledger", index: int) -> None:
        self.ledger = ledger
        self.index = index
        self.cut = False
        self.harmed = False
        """Bytes of its connection are damaged."""
        self.tracks: dict[bytes, Track] = {}

    def expect(self, topic: bytes, sender: Sender, stream: int, qos: int) -> Track:
        """This subscriber is owed the messages of one stream, at this QoS."""
        track = Track(sender, stream, qos, self.index)
        # Who joins late is owed what is sent from now on.
        track.excuse(0, sender.sent_on(stream))
        sender.tracks.append(track)
        put(self.tracks, topic, track)
        return track

    def expect_will(self, topic: bytes, sender: Sender, wills: Wills, qos: int) -> Track:
        """This subscriber is owed the wills of a device.

        `sender` lends them its index and is of no other use: a will has no publisher to wake.
        """
        sender.ready = True
        track = WillTrack(sender, wills, qos, self.index)
        track.excuse(0, wills.ended)
        put(self.tracks, topic, track)
        return track

    def join(self, share: Share) -> None:
        """Become a member: each message that the share is owed may come here."""
        for topic, whole in listed(share.tracks):
            if isinstance(whole, Whole):
                self.expect_shared(topic, share, whole)

    def expect_shared(self, topic: bytes, share: Share, whole: Whole) -> Track:
        """Messages of this stream may come here, as to the other members of the share."""
        member = Member(share, whole, self.index)
        put(self.tracks, topic, member)
        return member

    def leave(self) -> None:
        """The connection ended; it may come back before the run is over."""
        for _, track in listed(self.tracks):
            track.leave()

    def back(self, kept: bool) -> None:
        """It is connected and subscribed again, with the session that it had or with a new one."""
        for _, track in listed(self.tracks):
            track.back(kept)

    def harm(self) -> None:
        """Bytes of its connection are damaged from now on."""
        self.harmed = True
        for _, track in listed(self.tracks):
            track.harm()

    def heal(self) -> None:
        """That connection is gone."""
        self.harmed = False
        for _, track in listed(self.tracks):
            track.heal()

    def receive(
        self, topic: bytes, data: bytes, start: int, end: int, flags: int, now_ns: int
    ) -> None:
        """Book a PUBLISH: payload `data[start:end]`, flags of its fixed header."""
        ledger = self.ledger
        ledger.received += 1
        track = self.tracks.get(topic)
        if track is None:
            if topic not in ledger.unverified:
                self._foreign(data, start, end, flags)
            return
        sender = track.sender
        if not ledger.verify:
            self._arrived(sender)
            return
        if end - start < HEADER_SIZE:
            if end > start or not sender.clears:
                self._corrupt(track, flags)
            return
        crc, magic, kind, stream, run, publisher, sequence, intended_ns, lag_us = _header(
            data, start
        )
        if _crc32(data[start + 4 : end]) != crc or magic != MAGIC or kind >> 4 != LAYOUT:
            self._corrupt(track, flags)
            return
        if run != ledger.run:
            # Retained by an earlier run, and nobody has replaced it yet.
            if not flags & _RETAIN:
                track.unexpected += 1
                ledger.stray(FOREIGN_RUN)
            return
        if publisher != sender.index or stream != track.stream:
            beside = track.beside
            other = beside.get(publisher << 16 | stream) if beside is not None else None
            if other is None:
                if self._is_forgiven(data, start, end):
                    ledger.forgiven += 1
                else:
                    track.unexpected += 1
                    ledger.stray(WRONG_TOPIC)
                return
            track = other
            sender = track.sender
        if flags & 7 != track.qos << 1 and not self._is_live(track, sequence, flags):
            return
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

    def _is_live(self, track: Track, sequence: int, flags: int) -> bool:
        """What to make of flags that a plain delivery doesn't have; False: it isn't one."""
        if flags & _RETAIN:
            if track.as_published:
                return sequence >= track.expected
            if track.retained(sequence):
                return False
        if self.harmed or track.sender.doubtful(track.stream, sequence):
            self.ledger.forgiven += 1
            return True
        track.unexpected += 1
        self.ledger.stray(RETAINED if flags & _RETAIN else WRONG_QOS)
        return True

    def _corrupt(self, track: Track, flags: int) -> None:
        candidates = [track]
        if track.beside is not None:
            candidates += track.beside.values()
        if self.harmed or (self.ledger.harmed and _any_blurred(candidates)):
            self.ledger.forgiven += 1
        elif flags & _RETAIN and _any_replay(candidates):
            return  # no copy of a message that is on its way
        else:
            track.corrupt += 1
        # It takes the place of a message in a closed loop, which would wait for it otherwise.
        self._arrived(track.sender)

    def _foreign(self, data: bytes, start: int, end: int, flags: int) -> None:
        """A message on a topic that nobody of this run publishes to."""
        ledger = self.ledger
        if self._is_forgiven(data, start, end):
            ledger.forgiven += 1
            return
        if flags & _RETAIN:
            header = decode(data[start:end])
            if header is None or header.run != ledger.run:
                return  # what the topic retained before the run is nobody's fault
        ledger.stray(FOREIGN_TOPIC)

    def _is_forgiven(self, data: bytes, start: int, end: int) -> bool:
        """Whether damage on purpose may have brought this to a topic where nobody expects it."""
        ledger = self.ledger
        if not ledger.harmed:
            return False
        if self.harmed:
            return True
        header = decode(data[start:end])
        if header is None:
            return ledger.senders_harmed()
        if header.run != ledger.run or header.publisher >= len(ledger.senders):
            return False
        return ledger.senders[header.publisher].doubtful(header.stream, header.sequence)

    def _arrived(self, sender: Sender) -> None:
        sender.arrived += 1
        if not sender.ready:
            sender.ready = True
            self.ledger.ready.append(sender)


def _any_blurred(tracks: list[Track]) -> bool:
    return any(track.blurred() for track in tracks)


def _any_replay(tracks: list[Track]) -> bool:
    """Take a damaged retained message for the one that a subscription waits for, if any does."""
    return any(track.replay is not None and track.replay.damaged() for track in tracks)


class Ledger:
    """All senders and watchers of a run.

    `paced` says that messages have intended send times that differ from the actual ones;
    `ready` collects the senders whose messages arrived since the caller last emptied it;
    `unverified` are topics that may come to whom no track is kept for. Without `verify` arrivals
    are counted and nothing is booked: that tells what the books cost (bench/ledger.py). Once bytes
    were damaged on purpose (`harmed`), `forgiven` counts what came of it.
    """

    def __init__(self, run: int, paced: bool) -> None:
        self.run = run
        self.paced = paced
        self.verify = True
        self.received = 0
        self.harmed = False
        self.forgiven = 0
        self.senders: list[Sender] = []
        self.watchers: list[Watcher] = []
        self.shares: list[Share] = []
        self.ready: list[Sender] = []
        self.unverified: set[bytes] = set()
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

    def add_share(self, name: str) -> Share:
        """Open the books of a shared subscription."""
        share = Share(name, len(self.shares))
        self.shares.append(share)
        return share

    def senders_harmed(self) -> bool:
        """Whether the bytes of any publisher were damaged so far."""
        return any(sender.doubt is not None for sender in self.senders)

    def stray(self, reason: str) -> None:
        """Count an unexpected message by the reason why it is one."""
        self.strays[reason] = self.strays.get(reason, 0) + 1

    def missing(self) -> int:
        """How many messages and wills may still come to the readers that are there."""
        count = 0
        for watcher in self.watchers:
            for _, track in listed(watcher.tracks):
                if not isinstance(track, Member):
                    count += track.missing()
        for share in self.shares:
            for _, whole in listed(share.tracks):
                count += whole.missing()
        return count

    def close(self, keep: int = 20) -> Verdict:
        """Balance the books, after all senders have been closed.

        `keep` bounds how many tracks in trouble are told one by one.
        """
        verdict = Verdict(keep)
        for reason, count in self.strays.items():
            verdict.stray(reason, count)
        verdict.ownerless = self.strays.get(FOREIGN_TOPIC, 0)
        for watcher in self.watchers:
            for topic, track in listed(watcher.tracks):
                if isinstance(track, Member):
                    track.hand_over()
                else:
                    self._close(verdict, track, topic, "", watcher.cut)
        for share in self.shares:
            for topic, whole in listed(share.tracks):
                self._close(verdict, whole, topic, f"$share/{share.name}/", False)
        for sender in self.senders:
            if sender.unacknowledged:
                verdict.total(sender.qos).unacknowledged += sender.unacknowledged
        verdict.rank()
        return verdict

    def _close(self, verdict: Verdict, track: Track, topic: bytes, prefix: str, cut: bool) -> None:
        if track.doubt is not None:
            self.forgiven += track.doubt.forgiven
        outcome, surplus = track.close(prefix + topic.decode("utf-8", "replace"), cut)
        verdict.add(outcome)
        verdict.stray(UNWELCOME_WILL if isinstance(track, WillTrack) else NEVER_SENT, surplus)
