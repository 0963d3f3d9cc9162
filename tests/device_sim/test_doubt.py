"""Damage that the scenario itself does: what it accounts for is forgiven, and nothing besides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.judge import ledger as books
from device_sim.judge.ledger import Watcher
from device_sim.judge.oracles import Replay, Retained
from device_sim.judge.payload import Header, encode
from tests.device_sim.test_oracles import DUP, RETAIN, RUN, TOPIC, Path, Shared, classes

JUNK = b"x" * 40
QOS1 = 2


class Damaged(Path):
    """A publisher and a subscriber, one of whose connections the scenario may damage."""

    def __init__(self, qos: int = 1) -> None:
        super().__init__(qos)
        self.ledger.harmed = True

    def junk(self, topic: bytes = TOPIC, watcher: Watcher | None = None, flags: int = 0) -> None:
        (watcher or self.watcher).receive(topic, JUNK, 0, len(JUNK), self.qos << 1 | flags, 0)

    def copy(self, number: int, topic: bytes, flags: int = 0) -> None:
        data = encode(Header(RUN, self.sender.index, 0, self.qos, number, 0, 0), 40)
        self.watcher.receive(topic, data, 0, 40, self.qos << 1 | flags, 0)


@pytest.mark.parametrize("end", ["sender", "watcher"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_is_sent_over_a_damaged_connection_is_in_doubt_and_nothing_else(
    qos: int, end: str
) -> None:
    path = Damaged(qos)
    path.publish(2)
    path.arrive(1)  # 0 is lost before
    getattr(path, end).harm()
    path.publish(6)
    path.junk()
    path.arrive(4, 3, 4)  # 2 came damaged, 3 late, 4 twice, 5 never
    getattr(path, end).heal()
    path.arrive(7)  # 6 is lost, which was sent meanwhile
    path.publish(3)
    path.arrive(3, flags=DUP)
    path.arrive(9, 9)  # 8 and 10 are lost afterwards
    counted = {"lost": 3, "unknown": 3, "duplicated": 1, "unflagged": 1}
    assert classes(path.close()) == counted
    assert path.ledger.forgiven == 4


def test_damage_that_comes_later_is_the_brokers() -> None:
    path = Damaged()
    path.sender.harm()
    path.publish(2)
    path.arrive(0)
    path.sender.heal()
    path.junk()  # the second message, most likely
    path.publish(2)
    path.arrive(2)
    path.junk()
    assert classes(path.close()) == {"corrupt": 1, "unknown": 1}
    assert path.ledger.forgiven == 1


def test_damage_at_both_ends_lasts_until_both_are_gone() -> None:
    path = Damaged(qos=0)
    path.sender.harm()
    path.publish()
    path.watcher.harm()
    path.publish()
    path.sender.heal()
    path.sender.interrupted()  # excuses what is under way, while the reader is still in doubt
    path.publish()
    path.junk()
    assert path.track.missing() == 0
    path.watcher.heal()
    path.publish()
    assert path.track.missing() == 1
    assert classes(path.close()) == {"lost": 1, "unknown": 3}


def test_damage_that_lasts_to_the_end() -> None:
    path = Damaged()
    path.publish()
    path.watcher.harm()
    path.publish(3)
    path.arrive(3)
    assert path.track.missing() == 0
    assert classes(path.close()) == {"unknown": 3}


def test_where_a_damaged_topic_leads_to_nobody_expects_it() -> None:
    path = Damaged()
    other = path.ledger.add_sender(1, 1)
    path.watcher.expect(b"other", other, 0, 1)
    path.publish(2)
    path.copy(0, b"nobody's")
    path.sender.harm()
    path.copy(1, b"nobody's")
    path.copy(1, b"other")
    path.junk(b"nobody's")
    path.copy(1, TOPIC, flags=RETAIN)
    other.sent = 2
    data = encode(Header(RUN, other.index, 0, 1, 1, 0, 0), 40)
    path.watcher.receive(b"nobody's", data, 0, 40, QOS1, 0)  # the other one is unharmed
    assert path.ledger.forgiven == 4
    verdict = path.close()
    assert verdict.strays == {books.FOREIGN_TOPIC: 2}
    assert classes(verdict)["unexpected"] == 2


def test_strays_at_a_reader_with_a_damaged_connection_are_forgiven_while_it_lasts() -> None:
    path = Damaged()
    path.watcher.harm()
    path.junk(b"nobody's")
    path.junk(TOPIC)
    path.watcher.heal()
    path.junk(b"nobody's")
    verdict = path.close()
    assert verdict.strays == {books.FOREIGN_TOPIC: 1}
    assert path.ledger.forgiven == 2


def test_a_damaged_message_on_a_topic_that_several_share() -> None:
    path = Damaged()
    other = path.ledger.add_sender(1, 1)
    path.watcher.expect(TOPIC, other, 0, 1)
    other.harm()
    path.junk()  # it could be the other one's
    other.heal()
    path.junk()
    assert classes(path.close()) == {"corrupt": 1}


def test_a_share_of_which_one_member_is_damaged() -> None:
    shared = Shared()
    shared.ledger.harmed = True
    shared.publish(4)
    shared.members[1].harm()
    shared.give(0, 1, 2)
    shared.members[1].receive(TOPIC, JUNK, 0, len(JUNK), QOS1, 0)
    assert shared.ledger.missing() == 0
    shared.members[1].heal()
    shared.publish(2)
    shared.give(0, 5)
    assert classes(shared.close()) == {"lost": 1, "unknown": 2}


def replaying(path: Damaged, held: bool = True) -> Replay:
    """A subscription that is owed message 0, or nothing."""
    retained = Retained()
    path.publish()
    path.arrive(0)
    retained.sent(0)
    if held:
        retained.settled(0)
    replay = path.track.replay = Replay(retained)
    replay.subscribe()
    return replay


def test_a_damaged_retained_message_counts_once_and_hides_no_loss() -> None:
    path = Damaged()
    replaying(path)
    path.junk(flags=RETAIN)
    path.publish()  # and is lost
    assert path.sender.arrived == 1
    assert classes(path.close()) == {"corrupt": 1, "lost": 1}


def test_a_damaged_retained_message_that_nobody_is_owed_may_be_an_earlier_runs() -> None:
    path = Damaged()
    replaying(path, held=False)
    path.junk(flags=RETAIN)
    path.junk(b"nobody's", flags=RETAIN)
    data = encode(Header(RUN + 1, 0, 0, 1, 0, 0, 0), 40)
    path.watcher.receive(b"nobody's", data, 0, 40, QOS1 | RETAIN, 0)
    verdict = path.close()
    assert (classes(verdict), verdict.strays) == ({}, {})


def test_a_damaged_reader_is_owed_no_replay() -> None:
    path = Damaged()
    replaying(path)
    path.watcher.harm()
    assert classes(path.close()) == {}
    retained = Retained()
    retained.sent(4)
    retained.settled(4)
    retained.forget()
    again = Replay(retained)
    again.subscribe()
    assert again.arrive(1)
    again.settle()
    assert (again.stale, again.missing) == (0, 0)


STEPS = st.lists(st.sampled_from(["arrive", "lose", "junk", "twice", "harm", "heal"]), max_size=60)


@given(STEPS, st.sampled_from(["sender", "watcher"]))
def test_only_what_happens_in_doubt_is_forgiven(steps: list[str], end: str) -> None:
    """Each step is a message with a fate; the fates outside of the damage are counted exactly."""
    path = Damaged(qos=2)
    counted = {"lost": 0, "corrupt": 0, "unflagged": 0, "unknown": 0}
    forgiven = 0
    harmed = False
    for step in steps:
        if step in ("harm", "heal"):
            if harmed != (step == "harm"):
                # What had not arrived by then may be what was damaged: let something arrive.
                path.publish()
                path.arrive(path.sender.sent - 1)
                getattr(getattr(path, end), step)()
                harmed = not harmed
            continue
        number = path.sender.sent
        path.publish()
        if step == "lose":
            counted["unknown" if harmed else "lost"] += 1
        elif step == "junk":
            # A copy that nobody can read is taken for the message before it, if that is in doubt.
            doubtful = path.track.blurred()
            assert doubtful or not harmed
            path.junk()
            forgiven += doubtful
            counted["corrupt"] += not doubtful
            counted["unknown"] += harmed
            counted["lost"] += doubtful and not harmed
        else:
            path.arrive(number)
        if step == "twice":
            path.arrive(number)
            forgiven += harmed
            counted["unflagged"] += not harmed
    found = classes(path.close())
    assert found.pop("duplicated", 0) == counted["unflagged"]
    assert found == {name: count for name, count in counted.items() if count}
    assert path.ledger.forgiven == forgiven
