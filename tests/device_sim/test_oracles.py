"""What is owed to readers that come and go, to shares, of wills, retained messages and sessions.

A broker is played message by message; the last test plays thousands of random ones, honest and
lying, beside a plain reference that keeps every message.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_sim.judge import ledger as books
from device_sim.judge import oracles
from device_sim.judge.ledger import Ledger, Watcher
from device_sim.judge.oracles import Replay, Retained, Session, Wills
from device_sim.judge.payload import Header, encode
from device_sim.judge.ranges import MAX_RANGES, Ranges
from device_sim.judge.tracks import Sender, Share, Track
from device_sim.judge.verdict import CLASSES, Verdict

RUN = 5
TOPIC = b"t"
DUP = 8
RETAIN = 1


class Path:
    """A publisher with one stream and one subscriber."""

    def __init__(self, qos: int = 1, published: int | None = None) -> None:
        self.qos = qos
        self.ledger = Ledger(RUN, paced=False)
        self.sender: Sender = self.ledger.add_sender(qos if published is None else published, 1)
        self.watcher: Watcher = self.ledger.add_watcher()
        self.track: Track = self.watcher.expect(TOPIC, self.sender, 0, qos)

    def publish(self, count: int = 1) -> None:
        self.sender.sent += count

    def arrive(self, *numbers: int, flags: int = 0, watcher: Watcher | None = None) -> None:
        for number in numbers:
            data = encode(Header(RUN, self.sender.index, 0, self.qos, number, 0, 0), 40)
            (watcher or self.watcher).receive(TOPIC, data, 0, 40, self.qos << 1 | flags, 0)

    def close(self, unanswered: list[int] | None = None, connected: bool = True) -> Verdict:
        self.sender.close(unanswered or [], connected)
        return self.ledger.close()


def classes(verdict: Verdict) -> dict[str, int]:
    """What was counted, without zeros and the three large numbers."""
    large = ("sent", "received", "acked")
    return {name: verdict.sum(name) for name in CLASSES if verdict.sum(name) and name not in large}


# Readers


@pytest.mark.parametrize(
    ("qos", "kept", "counted"),
    [
        (0, True, {"unknown": 3}),
        (0, False, {"unknown": 3}),
        (1, True, {"lost": 3}),
        (1, False, {"unknown": 3}),
        (2, True, {"lost": 3}),
        (2, False, {"unknown": 3}),
    ],
)
def test_what_a_reader_misses_while_it_is_away(
    qos: int, kept: bool, counted: dict[str, int]
) -> None:
    path = Path(qos)
    path.publish(2)
    path.arrive(0, 1)
    path.watcher.leave()
    path.publish(3)
    path.watcher.back(kept)
    path.publish()
    path.arrive(5)
    assert classes(path.close()) == counted


@pytest.mark.parametrize("qos", [1, 2])
def test_a_kept_session_brings_what_was_sent_meanwhile(qos: int) -> None:
    path = Path(qos)
    path.publish(2)
    path.arrive(0)
    path.watcher.leave()
    path.publish(3)
    path.watcher.back(True)
    path.arrive(1, 2, 3, 4)
    assert classes(path.close()) == {}


def test_loss_before_and_after_an_absence_is_loss() -> None:
    path = Path(1)
    path.publish(3)
    path.arrive(0, 2)
    path.watcher.leave()
    path.publish(3)
    path.watcher.back(False)
    path.publish(2)
    path.arrive(7)
    assert classes(path.close()) == {"lost": 2, "unknown": 3}


def test_who_never_comes_back_is_owed_nothing_more() -> None:
    path = Path(2)
    path.publish(4)
    path.arrive(0, 2)
    path.watcher.leave()
    path.publish(5)
    assert classes(path.close()) == {"lost": 1, "unknown": 6}


def test_who_joins_late_is_owed_what_is_sent_from_then_on() -> None:
    path = Path(1)
    path.publish(10)
    late = path.ledger.add_watcher()
    late.expect(TOPIC, path.sender, 0, 1)
    path.publish(3)
    path.arrive(*range(13))
    path.arrive(9, 10, 12, watcher=late)
    assert classes(path.close()) == {"unknown": 9, "lost": 1}


def test_messages_that_may_expire_are_not_owed_to_the_absent() -> None:
    path = Path(1)
    path.track.expiring = True
    path.watcher.leave()
    path.publish(3)
    path.watcher.back(True)
    path.publish(2)
    path.arrive(1, 3)
    assert classes(path.close()) == {"unknown": 2, "lost": 1}


@pytest.mark.parametrize(
    ("qos", "counted", "broken"),
    [
        (1, {"duplicated": 2}, []),
        (2, {"duplicated": 2, "unflagged": 0}, ["QoS 2: duplicated"]),
    ],
)
def test_a_copy_after_a_reconnect_needs_no_dup_and_is_still_none_too_many_at_qos_2(
    qos: int, counted: dict[str, int], broken: list[str]
) -> None:
    path = Path(qos)
    path.publish(3)
    path.arrive(0, 1, 2)
    path.watcher.leave()
    path.watcher.back(True)
    path.arrive(1, 2)
    verdict = path.close()
    assert {name: verdict.sum(name) for name in counted} == counted
    assert verdict.broken(strict=True) == broken


def test_a_copy_of_what_came_after_the_reconnect_needs_dup() -> None:
    path = Path(1)
    path.watcher.leave()
    path.watcher.back(True)
    path.publish()
    path.arrive(0, 0)
    assert path.close().broken(strict=False) == ["QoS 1: duplicated without DUP"]


def test_many_absences_excuse_too_much_rather_than_accuse_wrongly() -> None:
    path = Path(1)
    absences = MAX_RANGES + 50
    for _ in range(absences):
        path.watcher.leave()
        path.publish()
        path.watcher.back(False)
        path.publish()
        path.arrive(path.sender.sent - 1)
    assert path.track.excused is not None
    assert len(path.track.excused.starts) <= MAX_RANGES
    assert classes(path.close()) == {"unknown": absences}


# Publishers


def test_qos_0_that_was_under_way_when_the_publisher_fell_is_unknown() -> None:
    path = Path(0)
    path.publish(5)
    path.arrive(0, 1, 3)
    path.sender.interrupted()
    path.publish(3)
    path.arrive(5, 7)
    assert classes(path.close()) == {"lost": 2, "unknown": 1}


def test_qos_1_is_owed_by_its_acknowledgement_and_not_by_its_connection() -> None:
    path = Path(1)
    path.publish(5)
    path.arrive(0, 1)
    path.sender.interrupted()
    path.sender.give_up([3, 4])
    verdict = path.close()
    assert classes(verdict) == {"lost": 1, "unknown": 2}
    assert verdict.sum("acked") == 3


def test_a_message_that_was_sent_again_may_come_again_at_qos_1() -> None:
    path = Path(1)
    path.publish(3)
    path.arrive(0, 1, 2)
    path.sender.resend(1)
    path.arrive(1)
    path.arrive(2)
    verdict = path.close()
    assert classes(verdict) == {"duplicated": 2, "unflagged": 1}


def test_acked_is_counted_by_the_publication() -> None:
    path = Path(qos=0, published=1)
    path.publish(6)
    path.arrive(*range(6))
    path.sender.refuse(2)
    verdict = path.close(unanswered=[5])
    assert verdict.sum("acked") == 4
    path = Path(0)
    path.publish(3)
    assert path.close().sum("acked") == 0


# Shared subscriptions


class Shared(Path):
    """A publisher and a shared subscription of some members."""

    def __init__(self, qos: int = 1, members: int = 3) -> None:
        super().__init__(qos)
        self.ledger.watchers.clear()
        self.share: Share = self.ledger.add_share("g")
        self.share.expect(TOPIC, self.sender, 0, qos)
        self.members = [self.ledger.add_watcher() for _ in range(members)]
        for member in self.members:
            member.join(self.share)

    def give(self, member: int, *numbers: int, flags: int = 0) -> None:
        self.arrive(*numbers, flags=flags, watcher=self.members[member])


def test_a_share_gets_each_message_once() -> None:
    shared = Shared()
    shared.publish(9)
    for member in (2, 0, 1):
        shared.give(member, *range(member, 9, 3))
    verdict = shared.close()
    assert classes(verdict) == {}
    assert (verdict.sum("sent"), verdict.sum("received")) == (9, 9)
    assert verdict.total(1).tracks == 1


def test_what_no_member_gets_is_lost_and_what_two_get_is_doubled() -> None:
    shared = Shared()
    shared.publish(6)
    shared.give(0, 0, 3)
    shared.give(1, 1, 3)
    verdict = shared.close()
    assert classes(verdict) == {"lost": 3, "duplicated": 1, "unflagged": 1}
    assert verdict.troubled[0].topic == "$share/g/t"


def test_order_holds_for_each_member_alone() -> None:
    shared = Shared()
    shared.publish(6)
    shared.give(0, 4, 5)
    shared.give(1, 0, 2, 1)
    shared.give(2, 3)
    assert classes(shared.close()) == {"reordered": 1}


def test_what_a_member_damages_or_should_not_get_is_told_of_the_share() -> None:
    shared = Shared()
    shared.publish(2)
    shared.give(0, 0)
    shared.members[1].receive(TOPIC, b"x" * 40, 0, 40, 2, 0)
    shared.give(1, 7)
    assert classes(shared.close()) == {"corrupt": 1, "unexpected": 1}


@pytest.mark.parametrize(
    ("qos", "kept", "counted"),
    [
        (1, True, {"lost": 1}),
        (1, False, {"unknown": 1}),
        (2, True, {"lost": 1}),
        (2, False, {"unknown": 1}),
        (0, True, {"unknown": 1}),
    ],
)
def test_what_was_under_way_to_a_member_that_left(
    qos: int, kept: bool, counted: dict[str, int]
) -> None:
    shared = Shared(qos)
    shared.publish(4)
    shared.give(0, 0)
    shared.give(1, 2, 3)
    shared.members[0].leave()
    shared.members[0].back(kept)
    assert classes(shared.close()) == counted


def test_a_member_that_stays_away_leaves_doubt_and_others_take_over_out_of_order() -> None:
    shared = Shared()
    shared.publish(4)
    shared.give(0, 0)
    shared.give(1, 3)
    shared.members[0].leave()
    shared.give(1, 1, 0)
    assert classes(shared.close()) == {"unknown": 1, "duplicated": 1}


# Retained messages


class Kept(Path):
    """A publisher that retains, and a reader that subscribes after it."""

    def __init__(self, qos: int = 1) -> None:
        super().__init__(qos)
        self.retained = Retained()
        self.replay = self.track.replay = Replay(self.retained)

    def retain(self, settled: bool = True) -> int:
        number = self.sender.sent
        self.publish()
        self.retained.sent(number)
        if settled:
            self.retained.settled(number)
        self.arrive(number)
        return number

    def subscribe(self, *replayed: int) -> None:
        self.replay.subscribe()
        self.arrive(*replayed, flags=RETAIN)
        self.replay.subscribed()


def test_the_last_settled_message_or_a_newer_one_is_replayed() -> None:
    kept = Kept()
    kept.retain()
    kept.retain()
    kept.subscribe(1)
    kept.retain(settled=False)
    kept.subscribe(1)
    kept.subscribe(2)
    verdict = kept.close()
    assert classes(verdict) == {}
    assert kept.replay.received == 3


def test_an_older_one_is_stale() -> None:
    kept = Kept()
    kept.retain()
    kept.retain()
    kept.subscribe(0)
    verdict = kept.close()
    assert classes(verdict) == {"stale": 1}
    assert verdict.broken(strict=False) == ["QoS 1: stale retained"]


def test_none_is_missing_and_at_qos_0_never_bad_unless_strict() -> None:
    kept = Kept()
    kept.retain()
    kept.subscribe()
    kept.subscribe(0)
    kept.subscribe()
    verdict = kept.close()
    assert classes(verdict) == {"missing_retained": 2}
    assert verdict.broken(strict=False) == ["QoS 1: missing retained"]
    kept = Kept(0)
    kept.retain()
    kept.subscribe()
    verdict = kept.close()
    assert verdict.broken(strict=False) == []
    assert verdict.broken(strict=True) == ["QoS 0: missing retained"]


def test_nothing_is_owed_before_anything_is_settled_and_none_may_come_after_a_clear() -> None:
    kept = Kept()
    kept.retain(settled=False)
    kept.subscribe()
    kept.retained.settled(0)
    kept.retained.clear_sent()
    kept.subscribe()
    kept.subscribe(0)
    assert (kept.replay.stale, kept.replay.missing) == (0, 0)
    kept.retained.clear_settled()
    kept.subscribe()
    kept.subscribe(0)
    assert classes(kept.close()) == {"stale": 1}


def test_a_clear_that_crosses_the_subscription_takes_the_claim_away() -> None:
    kept = Kept()
    kept.retain()
    kept.replay.subscribe()
    kept.retained.clear_sent()
    kept.replay.subscribed()
    assert classes(kept.close()) == {}


def test_after_a_clear_a_new_message_is_owed_again() -> None:
    kept = Kept()
    kept.retain()
    kept.retained.clear_sent()
    kept.retained.clear_settled()
    kept.retain()
    kept.subscribe()
    assert classes(kept.close()) == {"missing_retained": 1}


def test_a_replay_that_nobody_asked_for_is_unexpected() -> None:
    kept = Kept()
    kept.retain()
    kept.subscribe(0, 0)
    verdict = kept.close()
    assert classes(verdict) == {"unexpected": 1, "duplicated": 1, "unflagged": 1}
    assert verdict.strays == {books.RETAINED: 1}


def test_a_connection_that_breaks_before_the_replay_is_owed_none() -> None:
    kept = Kept()
    kept.retain()
    kept.replay.subscribe()
    kept.watcher.leave()
    kept.watcher.back(True)
    assert classes(kept.close()) == {}


def test_an_empty_message_that_clears_is_no_damage_where_it_is_expected() -> None:
    kept = Kept()
    kept.watcher.receive(TOPIC, b"", 0, 0, 2, 0)
    kept.sender.clears = True
    kept.watcher.receive(TOPIC, b"", 0, 0, 2, 0)
    assert classes(kept.close()) == {"corrupt": 1}


# Wills


class Mortal:
    """A device with a will and somebody who watches its topic."""

    def __init__(self, qos: int = 1) -> None:
        self.qos = qos
        self.ledger = Ledger(RUN, paced=False)
        self.sender = self.ledger.add_sender(qos, 1)
        self.watcher = self.ledger.add_watcher()
        self.wills = Wills()
        self.watcher.expect_will(TOPIC, self.sender, self.wills, qos)

    def will(self, *connections: int, flags: int = 0) -> None:
        for number in connections:
            data = encode(Header(RUN, self.sender.index, 0, self.qos, number, 0, 0), 40)
            self.watcher.receive(TOPIC, data, 0, 40, self.qos << 1 | flags, 99)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_wills_come_after_a_death_and_never_after_a_disconnect(qos: int) -> None:
    mortal = Mortal(qos)
    mortal.wills.left()
    mortal.wills.died()
    mortal.wills.doubtful()
    mortal.wills.died()
    mortal.wills.doubtful()
    mortal.will(1, 3, 4)
    verdict = mortal.ledger.close()
    assert classes(verdict) == {}
    assert (verdict.sum("sent"), verdict.sum("received")) == (2, 2)
    assert mortal.ledger.from_sent.count == 0
    assert mortal.ledger.ready == []


@pytest.mark.parametrize(
    ("qos", "broken"), [(0, []), (1, ["QoS 1: missing will"]), (2, ["QoS 2: missing will"])]
)
def test_a_missing_will(qos: int, broken: list[str]) -> None:
    mortal = Mortal(qos)
    mortal.wills.died()
    mortal.wills.died()
    mortal.wills.died()
    mortal.will(1)
    verdict = mortal.ledger.close()
    assert classes(verdict) == {"missing_will": 2}
    assert verdict.broken(strict=False) == broken


def test_a_will_that_nobody_died_for_is_unexpected() -> None:
    mortal = Mortal()
    mortal.wills.died()
    mortal.wills.left()
    mortal.will(0, 1, 5)
    verdict = mortal.ledger.close()
    assert classes(verdict) == {"unexpected": 2}
    assert verdict.strays == {books.UNWELCOME_WILL: 2}


def test_a_will_that_comes_twice_is_doubled_and_their_order_is_free() -> None:
    mortal = Mortal(2)
    for _ in range(3):
        mortal.wills.died()
    mortal.will(2, 0, 1, 1)
    assert classes(mortal.ledger.close()) == {"duplicated": 1, "unflagged": 1}


@pytest.mark.parametrize(
    ("kept", "counted"), [(True, {"missing_will": 1}), (False, {"unknown": 1})]
)
def test_a_will_while_the_reader_is_away(kept: bool, counted: dict[str, int]) -> None:
    mortal = Mortal()
    mortal.watcher.leave()
    mortal.wills.died()
    mortal.watcher.back(kept)
    mortal.wills.died()
    mortal.will(1)
    assert classes(mortal.ledger.close()) == counted


# Sessions


@pytest.mark.parametrize(
    ("expiry_s", "away_s", "clean", "present", "problem"),
    [
        (60.0, 10.0, False, True, ""),
        (60.0, 10.0, False, False, oracles.SESSION_LOST),
        (60.0, 10.0, True, True, oracles.SESSION_INVENTED),
        (60.0, 10.0, True, False, ""),
        (60.0, 59.5, False, True, ""),
        (60.0, 60.5, False, False, ""),
        (60.0, 70.0, False, True, oracles.SESSION_INVENTED),
        (60.0, 70.0, False, False, ""),
        (0.0, 0.1, False, True, oracles.SESSION_INVENTED),
        (oracles.NEVER_EXPIRES, 1e9, False, False, oracles.SESSION_LOST),
        (oracles.NEVER_EXPIRES, 1e9, False, True, ""),
    ],
)
def test_session_present(
    expiry_s: float, away_s: float, clean: bool, present: bool, problem: str
) -> None:
    session = Session()
    session.ended(expiry_s, 1000.0)
    assert session.check(clean, present, 1000.0 + away_s) == problem


def test_the_first_connection_has_no_session_and_in_doubt_both_answers_are_right() -> None:
    session = Session()
    assert session.check(False, True, 0.0) == oracles.SESSION_INVENTED
    assert session.check(False, False, 0.0) == ""
    session.ended(60.0, 0.0)
    session.doubt()
    assert session.check(False, True, 1.0) == session.check(False, False, 1.0) == ""


# All of it at random


class Reference:
    """The same rules, told message by message, with a set for everything."""

    def __init__(self, qos: int) -> None:
        self.qos = qos
        self.sent = 0
        self.got: set[int] = set()
        self.excused: set[int] = set()
        self.highest = -1
        self.away = False
        self.left_at = 0
        self.back_at = 0
        self.counts = {"duplicated": 0, "unflagged": 0, "reordered": 0}

    def arrive(self, number: int, dup: bool) -> None:
        if number in self.got:
            self.counts["duplicated"] += 1
            if not dup and number >= self.back_at:
                self.counts["unflagged"] += 1
            return
        self.got.add(number)
        if number < self.highest:
            self.counts["reordered"] += 1
        self.highest = max(self.highest, number)

    def leave(self) -> None:
        if not self.away:
            self.away = True
            self.left_at = self.highest + 1

    def back(self, kept: bool) -> None:
        if self.away:
            self.away = False
            self.back_at = self.highest + 1
            if not kept or self.qos == 0:
                self.excused |= set(range(self.left_at, self.sent))

    def close(self, unanswered: set[int]) -> dict[str, int]:
        if self.away:
            self.excused |= set(range(self.left_at, self.sent))
        missing = set(range(self.sent)) - self.got
        unknown = missing & (self.excused | unanswered)
        found = {**self.counts, "lost": len(missing - unknown), "unknown": len(unknown)}
        return {name: count for name, count in found.items() if count}


EVENTS = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 5)),
    st.tuples(st.just("arrive"), st.integers(0, 12)),
    st.tuples(st.just("again"), st.integers(0, 12)),
    st.tuples(st.just("leave"), st.just(0)),
    st.tuples(st.just("back"), st.integers(0, 1)),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 1, 2]), st.lists(EVENTS, max_size=60), st.sets(st.integers(0, 40)))
def test_a_random_broker_and_a_random_reader_are_judged_exactly(
    qos: int, events: list[tuple[str, int]], doubted: set[int]
) -> None:
    path = Path(qos)
    reference = Reference(qos)
    for event, number in events:
        if event == "publish":
            path.publish(number)
            reference.sent += number
        elif event == "arrive" and number < reference.sent:
            path.arrive(reference.sent - 1 - number)
            reference.arrive(reference.sent - 1 - number, dup=False)
        elif event == "again" and reference.sent:
            path.arrive(number % reference.sent, flags=DUP if qos else 0)
            reference.arrive(number % reference.sent, dup=qos > 0)
        elif event == "leave":
            path.watcher.leave()
            reference.leave()
        elif event == "back":
            path.watcher.back(bool(number))
            reference.back(bool(number))
    unanswered = {number for number in doubted if qos and number < reference.sent}
    path.sender.give_up(sorted(unanswered))
    verdict = path.close()
    assert classes(verdict) == reference.close(unanswered)
    assert verdict.sum("sent") == (
        verdict.sum("received") + verdict.sum("lost") + verdict.sum("unknown")
    )


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_intersection_of_ranges(one: set[int], other: set[int]) -> None:
    both = ranges(one).intersection(ranges(other))
    assert {n for n in range(62) if both.contains(n)} == one & other
    assert both.size == len(one & other) == ranges(one).common(ranges(other))


def ranges(members: set[int]) -> Ranges:
    found = Ranges()
    for member in sorted(members):
        found.append(member, member + 1)
    return found
