"""A lying stream: what is dropped, doubled, swapped or damaged is counted, each in its class."""

import random

import pytest

from device_sim.judge import ledger as books
from device_sim.judge.ledger import Ledger, Watcher
from device_sim.judge.payload import Header, encode
from device_sim.judge.ranges import MAX_RANGES
from device_sim.judge.tracks import Sender
from device_sim.judge.verdict import Outcome, Verdict

RUN = 77
MS = 1_000_000
DUP = 8
RETAIN = 1


class Stream:
    """A publisher with one stream or more and one subscriber, and the wire between them."""

    def __init__(self, qos: int = 1, streams: int = 1, published: int | None = None) -> None:
        self.qos = qos
        self.ledger = Ledger(RUN, paced=True)
        self.sender: Sender = self.ledger.add_sender(
            qos if published is None else published, streams
        )
        self.watcher: Watcher = self.ledger.add_watcher()
        for stream in range(streams):
            self.watcher.expect(self.topic(stream), self.sender, stream, qos)

    @staticmethod
    def topic(stream: int) -> bytes:
        return b"t/%d" % stream

    def payload(self, sequence: int, stream: int = 0) -> bytes:
        return encode(Header(RUN, 0, stream, self.qos, sequence, sequence * MS, 2000), 64)

    def arrive(self, *sequences: int, stream: int = 0, flags: int = 0) -> None:
        for sequence in sequences:
            self.deliver(self.payload(sequence, stream), stream, flags)

    def deliver(self, payload: bytes, stream: int = 0, flags: int = 0) -> None:
        data = b"head" + payload + b"tail"
        self.watcher.receive(
            self.topic(stream), data, 4, 4 + len(payload), self.qos << 1 | flags, 10_000 * MS
        )

    def close(
        self, sent: int, unanswered: list[int] | None = None, connected: bool = True
    ) -> Verdict:
        self.sender.sent = sent
        self.sender.close(unanswered or [], connected)
        return self.ledger.close()


def classes(verdict: Verdict) -> dict[str, int]:
    """What was counted, without the two large numbers and the zeros."""
    counted: dict[str, int] = {}
    for total in verdict.totals.values():
        for name, count in total.numbers().items():
            counted[name] = counted.get(name, 0) + count
    assert counted["sent"] >= counted["received"]
    return {
        name: n for name, n in counted.items() if n and name not in ("sent", "received", "acked")
    }


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_honest_stream_breaks_nothing(qos: int) -> None:
    stream = Stream(qos)
    stream.arrive(*range(100))
    verdict = stream.close(100)
    assert classes(verdict) == {}
    assert verdict.sum("received") == 100
    assert verdict.broken(strict=True) == []
    assert verdict.troubled == []


@pytest.mark.parametrize(
    ("qos", "strict", "broken"),
    [
        (0, False, []),
        (0, True, ["QoS 0: lost"]),
        (1, False, ["QoS 1: lost"]),
        (2, False, ["QoS 2: lost"]),
    ],
)
def test_loss(qos: int, strict: bool, broken: list[str]) -> None:
    stream = Stream(qos)
    stream.arrive(1, 2, 5, 6)
    verdict = stream.close(9)
    assert classes(verdict) == {"lost": 5}
    assert verdict.broken(strict) == broken


@pytest.mark.parametrize(
    ("qos", "flags", "broken"),
    [
        (0, 0, ["QoS 0: duplicated"]),
        (0, DUP, ["QoS 0: duplicated"]),
        (1, DUP, []),
        (1, 0, ["QoS 1: duplicated without DUP"]),
        (2, DUP, ["QoS 2: duplicated"]),
        (2, 0, ["QoS 2: duplicated"]),
    ],
)
def test_duplicates(qos: int, flags: int, broken: list[str]) -> None:
    stream = Stream(qos)
    stream.arrive(0, 1, 2)
    stream.arrive(1, 1, flags=flags)
    verdict = stream.close(3)
    expected = {"duplicated": 2} if flags else {"duplicated": 2, "unflagged": 2}
    assert classes(verdict) == expected
    assert verdict.broken(strict=True) == broken


def test_a_loss_and_a_duplicate_do_not_cancel() -> None:
    stream = Stream(1)
    stream.arrive(0, 2, 2, flags=DUP)
    assert classes(stream.close(3)) == {"lost": 1, "duplicated": 1}


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_reordering_is_counted_once_for_each_message_that_came_too_late(qos: int) -> None:
    stream = Stream(qos)
    stream.arrive(1, 0, 2, 5, 4, 3, 6)
    verdict = stream.close(7)
    assert classes(verdict) == {"reordered": 3}
    assert verdict.broken(strict=False) == [f"QoS {qos}: reordered"]


def test_a_second_copy_of_a_straggler_is_a_duplicate() -> None:
    stream = Stream(1)
    stream.arrive(1, 0)
    stream.arrive(0, flags=DUP)
    assert classes(stream.close(2)) == {"reordered": 1, "duplicated": 1}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("damage", ["flip", "cut", "tiny", "longer"])
def test_a_damaged_message_is_corrupt_and_not_lost_besides(qos: int, damage: str) -> None:
    stream = Stream(qos)
    good = stream.payload(1)
    bad = {
        "flip": good[:40] + bytes([good[40] ^ 1]) + good[41:],
        "cut": good[:-1],
        "tiny": good[:10],
        "longer": good + b"x",
    }[damage]
    stream.arrive(0)
    stream.deliver(bad)
    stream.arrive(2)
    verdict = stream.close(3)
    assert classes(verdict) == {"corrupt": 1}
    assert verdict.broken(strict=False) == [f"QoS {qos}: corrupt"]


def test_more_lost_than_corrupt_leaves_the_difference_lost() -> None:
    stream = Stream(1)
    stream.arrive(0)
    stream.deliver(b"rubbish")
    assert classes(stream.close(4)) == {"corrupt": 1, "lost": 2}


def test_unexpected_by_reason() -> None:
    stream = Stream(1, streams=2)
    stream.arrive(0, 1)
    foreign_run = encode(Header(RUN + 1, 0, 0, 1, 2, 0, 0), 64)
    stream.deliver(foreign_run)
    foreign_publisher = encode(Header(RUN, 9, 0, 1, 2, 0, 0), 64)
    stream.deliver(foreign_publisher)
    stream.deliver(stream.payload(2, stream=0), stream=1)
    stream.watcher.receive(b"nobody's", b"payload", 0, 7, 2, 0)
    verdict = stream.close(4)
    assert verdict.strays == {
        books.FOREIGN_RUN: 1,
        books.WRONG_TOPIC: 2,
        books.FOREIGN_TOPIC: 1,
    }
    assert verdict.sum("unexpected") == 4
    assert verdict.sum("unexpected", 1) == 3
    assert verdict.sum("lost") == 2
    assert verdict.broken(strict=False) == [
        "QoS 1: lost",
        "QoS 1: unexpected",
        "unexpected messages on topics of nobody",
    ]


def test_a_wrong_qos_or_a_retain_flag_is_unexpected_and_arrives() -> None:
    stream = Stream(1)
    stream.arrive(0, flags=RETAIN)
    data = stream.payload(1)
    stream.watcher.receive(stream.topic(0), data, 0, len(data), 2 << 1, 0)
    verdict = stream.close(2)
    assert classes(verdict) == {"unexpected": 2}
    assert verdict.strays == {books.RETAINED: 1, books.WRONG_QOS: 1}
    assert verdict.sum("received") == 2


def test_messages_that_were_never_sent() -> None:
    stream = Stream(1)
    stream.arrive(0, 2, 5, 6, 9)
    verdict = stream.close(4)
    assert classes(verdict) == {"lost": 2, "unexpected": 3}
    assert verdict.strays == {books.NEVER_SENT: 3}
    assert verdict.sum("received") == 2


def test_what_was_not_acknowledged_is_unknown_when_the_publisher_is_gone() -> None:
    stream = Stream(1)
    stream.arrive(0, 1, 3)
    verdict = stream.close(6, unanswered=[3, 4, 5], connected=False)
    assert classes(verdict) == {"lost": 1, "unknown": 2}
    assert verdict.sum("sent") == verdict.sum("received") + 1 + 2


def test_qos_0_that_was_on_its_way_when_the_publisher_went_is_unknown() -> None:
    stream = Stream(0)
    stream.arrive(0, 2)
    assert classes(stream.close(5, connected=False)) == {"lost": 1, "unknown": 2}


def test_a_missing_acknowledgement_on_a_live_connection_breaks_the_promise() -> None:
    stream = Stream(2)
    stream.arrive(0, 1)
    verdict = stream.close(3, unanswered=[1, 2])
    assert classes(verdict) == {"unknown": 1, "unacknowledged": 2}
    assert verdict.broken(strict=False) == ["QoS 2: unacknowledged"]


def test_what_the_broker_refused_is_not_lost() -> None:
    stream = Stream(1, streams=2)
    stream.arrive(0, 2, stream=0)
    stream.arrive(0, 1, stream=1)
    stream.sender.refuse(2)
    stream.sender.refuse(5)
    verdict = stream.close(6)
    assert classes(verdict) == {"refused": 2}
    assert verdict.broken(strict=True) == []


def test_what_a_cut_subscriber_misses_is_unknown() -> None:
    stream = Stream(1)
    stream.arrive(0, 2)
    stream.watcher.cut = True
    assert classes(stream.close(10)) == {"unknown": 8}


def test_the_delivery_qos_makes_the_rule() -> None:
    stream = Stream(qos=0, published=1)
    stream.arrive(0)
    verdict = stream.close(2)
    assert verdict.sum("lost", 0) == 1
    assert verdict.broken(strict=False) == []


def test_streams_of_one_publisher_are_numbered_on_their_own() -> None:
    stream = Stream(1, streams=3)
    assert [Sender(0, 1, 3).sent_on(n) for n in range(3)] == [0, 0, 0]
    stream.arrive(0, 1, 2, stream=0)
    stream.arrive(0, 1, 2, stream=1)
    stream.arrive(0, stream=2)
    verdict = stream.close(8)
    assert [outcome.sent for outcome in verdict.troubled] == [2]
    assert classes(verdict) == {"lost": 1}


def test_memory_is_bounded_and_what_cannot_be_told_is_late() -> None:
    stream = Stream(1)
    holes = MAX_RANGES + 10
    stream.arrive(*range(1, 2 * holes, 2))
    track = stream.watcher.tracks[b"t/0"]
    assert track.holes is not None
    assert len(track.holes.starts) == MAX_RANGES
    stream.arrive(4)
    stream.arrive(2 * holes - 4)
    verdict = stream.close(2 * holes)
    assert classes(verdict) == {"late": 1, "reordered": 1, "lost": holes - 1}
    assert "QoS 1: late" in verdict.broken(strict=False)


def test_the_closed_loop_hears_of_each_first_arrival_once() -> None:
    stream = Stream(1)
    stream.arrive(0, 1)
    stream.arrive(1, flags=DUP)
    stream.deliver(b"corrupt, but its place in the window is free again")
    assert stream.sender.arrived == 3
    assert stream.ledger.ready == [stream.sender]
    stream.ledger.ready.clear()
    stream.sender.ready = False
    stream.deliver(b"damaged")
    assert stream.ledger.ready == [stream.sender]


def test_without_verification_arrivals_are_counted_and_nothing_else() -> None:
    stream = Stream(1)
    stream.ledger.verify = False
    stream.arrive(0, 2)
    stream.deliver(b"damaged")
    assert stream.sender.arrived == 3
    assert stream.ledger.ready == [stream.sender]
    assert stream.ledger.from_sent.count == 0
    assert stream.close(3).sum("received") == 0


def test_latency_from_the_intended_and_from_the_actual_send() -> None:
    stream = Stream(1)
    data = encode(Header(RUN, 0, 0, 1, 0, 5 * MS, 3000), 64)
    stream.watcher.receive(b"t/0", data, 0, len(data), 2, 15 * MS)
    assert stream.ledger.from_intended.maximum == 10_000
    assert stream.ledger.from_sent.maximum == 7_000
    stream.ledger.paced = False
    stream.arrive(1)
    assert stream.ledger.from_intended.count == 1
    assert stream.ledger.from_sent.count == 2


def test_the_worst_tracks_are_listed_first_and_not_too_many() -> None:
    verdict = Verdict(keep=2)
    for publisher in range(20):
        outcome = Outcome(1, publisher, 0, 0, "t")
        outcome.lost = publisher
        verdict.add(outcome)
    verdict.rank()
    assert [outcome.publisher for outcome in verdict.troubled] == [19, 18]
    assert verdict.troubled_count == 19
    assert verdict.total(1).tracks == 20


@pytest.mark.parametrize("seed", range(20))
def test_a_random_liar_is_counted_exactly(seed: int) -> None:
    rng = random.Random(seed)
    stream = Stream(2, streams=3)
    told = {"lost": 0, "duplicated": 0, "unflagged": 0, "reordered": 0, "corrupt": 0}
    for number in range(3):
        sequence = 0
        while sequence < 300:
            lie = rng.choice(["none", "none", "drop", "double", "double-dup", "swap", "damage"])
            if lie == "drop":
                told["lost"] += 1
            elif lie == "swap":
                stream.arrive(sequence + 1, sequence, stream=number)
                told["reordered"] += 1
                sequence += 1
            elif lie == "damage":
                stream.deliver(stream.payload(sequence, number)[:-3], number)
                told["corrupt"] += 1
            else:
                stream.arrive(sequence, stream=number)
                if lie == "double":
                    stream.arrive(sequence, stream=number)
                    told["unflagged"] += 1
                if lie == "double-dup":
                    stream.arrive(sequence, stream=number, flags=DUP)
                if lie != "none":
                    told["duplicated"] += 1
            sequence += 1
        stream.sender.sent = max(stream.sender.sent, sequence * 3)
        if sequence == 300:
            stream.arrive(300, stream=number)
    verdict = stream.close(301 * 3)
    assert classes(verdict) == told
    assert verdict.sum("sent") == verdict.sum("received") + told["lost"] + told["corrupt"]
