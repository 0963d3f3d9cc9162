"""What became of messages, and why a client got nothing: out of the record, without plugins."""

import asyncio
import difflib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core.packets import Will
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST, Settings
from mqttd.core.watch import Watcher
from mqttd.metrics import DROPS
from mqttd.operate import explained, why
from mqttd.operate.explain import Question, stories, tell
from mqttd.operate.why import CODES, difference
from tests.harness import Harness

EPOCH = 1_700_000_000.0
GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "why-not-delivered.md"

Told = list[dict[str, Any]]


def recording(
    settings: Settings | None = None, durable: bool = False, limit: int = 1000
) -> Harness:
    h = Harness(settings, durable)
    h.broker.context.watcher = Watcher(limit)
    return h


def told(h: Harness, client: str = "", topic: str = "", **more: Any) -> Told:
    async def gather() -> Told:
        question = Question(client, topic, **more)
        return [
            message
            async for portion in tell(h.broker, None, question, EPOCH)
            for message in portion
        ]

    return asyncio.run(gather())


def findings(h: Harness, client: str, topic: str) -> Told:
    question = Question(client, topic)
    found = asyncio.run(stories(h.broker, Question("", topic)))
    return why.why(h.broker, None, question, found, told(h, client, topic))


def codes(h: Harness, client: str, topic: str) -> list[str]:
    return [one["code"] for one in findings(h, client, topic)]


def says(h: Harness, client: str, topic: str, code: str) -> str:
    (text,) = [one["says"] for one in findings(h, client, topic) if one["code"] == code]
    return str(text)


def receiver(message: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in message["receivers"] if one["client"] == name]
    return dict(found)


# Messages.


def test_who_got_it() -> None:
    h = recording()
    h.client("one").subscribe("a/#", qos=1)
    h.client("two").subscribe("a/+")
    h.client("pub").publish("a/b", b"x", 1)
    (message,) = told(h)
    assert message["topic"] == "a/b"
    assert (message["from"], message["qos"], message["count"]) == ("pub", 1, 1)
    assert (message["verdict"], message["rule"]) == ("accepted", "")
    assert {one["client"]: one["delivered"] for one in message["receivers"]} == {"one": 1, "two": 1}
    assert message["first_at"] == EPOCH + h.now


def test_nobody_matched() -> None:
    h = recording()
    h.client("pub").publish("a/b", b"x", 1)
    assert told(h)[0]["receivers"] == []


def test_what_is_in_flight_and_what_waits() -> None:
    h = recording()
    h.client("slow", receive_maximum=1, auto_ack=False).subscribe("a", qos=1)
    pub = h.client("pub")
    for _ in range(3):
        pub.publish("a", b"x", 1)
    messages = [receiver(message, "slow") for message in told(h)]
    for state, number in (("in_flight", 1), ("queued", 2), ("delivered", 0)):
        assert sum(one[state] for one in messages) == number, state
    assert sum(message["count"] for message in told(h)) == 3


def test_a_run_of_messages_is_one_line() -> None:
    h = recording()
    h.client("sub").subscribe("a")
    pub = h.client("pub")
    for _ in range(100):
        pub.publish("a", b"x")
        h.now += 1
    (message,) = told(h)
    assert message["count"] == receiver(message, "sub")["delivered"] == 100
    assert message["last_at"] - message["first_at"] == 99


def test_drops_have_their_reasons() -> None:
    settings = Settings()
    settings.max_queued_messages = 2
    h = recording(settings)
    away = h.client("away", expiry=60)
    away.subscribe("a", qos=1)
    away.drop()
    pub = h.client("pub")
    pub.publish("a", b"x")
    for _ in range(5):
        pub.publish("a", b"x", 1)
    dropped: dict[str, int] = {}
    for message in told(h):
        for reason, number in receiver(message, "away")["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + number
    assert dropped == {"offline_qos0": 1, "queue_full": 3}
    assert sum(receiver(message, "away")["queued"] for message in told(h)) == 2


def test_the_oldest_that_had_to_go_is_not_taken_for_delivered() -> None:
    settings = Settings()
    settings.max_queued_messages = 1
    settings.queue_overflow = DROP_OLDEST
    h = recording(settings)
    away = h.client("away", expiry=60)
    away.subscribe("a/#", qos=1)
    away.drop()
    pub = h.client("pub")
    pub.publish("a/1", b"x", 1)
    pub.publish("a/2", b"x", 1)
    first, second = (receiver(message, "away") for message in told(h))
    assert (first["dropped"], first["delivered"]) == ({"queue_full": 1}, 0)
    assert second["queued"] == 1


def test_what_came_out_of_the_queue_later() -> None:
    h = recording()
    away = h.client("away", expiry=60)
    away.subscribe("a", qos=1)
    away.drop()
    h.client("pub").publish("a", b"x", 1)
    assert receiver(told(h)[0], "away")["queued"] == 1
    h.client("away", clean=False, expiry=60)
    found = receiver(told(h)[0], "away")
    assert (found["queued"], found["delivered"]) == (0, 1)


def test_what_leaves_a_queue_in_a_row_belongs_to_many_messages() -> None:
    h = recording()
    away = h.client("away", expiry=60)
    away.subscribe("a/#", qos=1)
    away.drop()
    pub = h.client("pub")
    for _ in range(3):
        pub.publish("a/1", b"x", 1)
        pub.publish("a/2", b"x", 1)
    h.client("away", clean=False, expiry=60)
    assert [receiver(message, "away")["delivered"] for message in told(h)] == [1] * 6
    h.client("away", clean=False, expiry=60).drop()
    pub.publish("a/1", b"x", 1, message_expiry=1)
    pub.publish("a/1", b"x", 1, message_expiry=1)
    h.advance(5)
    h.client("away", clean=False, expiry=60)
    last = [receiver(message, "away") for message in told(h)[-2:]]
    assert [one["dropped"] for one in last] == [{"expired": 1}] * 2


def test_what_expires_in_the_middle_of_a_queue_is_found_there() -> None:
    settings = Settings()
    settings.max_queued_messages = 3
    h = recording(settings)
    away = h.client("away", expiry=600)
    away.subscribe("a", qos=1)
    away.drop()
    pub = h.client("pub")
    pub.publish("a", b"x", 1, message_expiry=1)
    pub.publish("a", b"x", 1)
    pub.publish("a", b"x", 1, message_expiry=1)
    h.advance(5)
    pub.publish("a", b"x", 1)  # finds the queue full, and two of it expired
    found = [receiver(message, "away") for message in told(h)]
    assert [one["dropped"] for one in found] == [{"expired": 1}, {}, {"expired": 1}, {}]
    assert [one["queued"] for one in found] == [0, 1, 0, 1]


def test_what_expired_in_the_queue() -> None:
    h = recording()
    away = h.client("away", expiry=600)
    away.subscribe("a", qos=1)
    away.drop()
    h.client("pub").publish("a", b"x", 1, message_expiry=5)
    h.advance(10)
    h.client("away", clean=False, expiry=60)
    found = receiver(told(h)[0], "away")
    assert (found["dropped"], found["delivered"]) == ({"expired": 1}, 0)


def test_a_shared_group_stands_for_its_members() -> None:
    h = recording()
    for name in ("one", "two"):
        h.client(name).subscribe("$share/g/a", qos=1)
    h.client("pub").publish("a", b"x", 1)
    found = receiver(told(h, "one")[0], "$share/g/a")
    assert (found["shared"], found["delivered"]) == (True, 1)
    assert codes(h, "one", "a")[0] == "shared"


@pytest.mark.parametrize("qos", [0, 1])
def test_of_a_shared_group_the_members_are_named(qos: int) -> None:
    h = recording()
    for name in ("one", "two"):
        h.client(name).subscribe("$share/g/a", qos=1)
    for _ in range(5):
        h.client("pub").publish("a", b"x", qos)
    (first, *rest) = told(h)
    found = [receiver(each, "$share/g/a")["members"] for each in (first, *rest)]
    total: dict[str, int] = {}
    for each in found:
        for name, number in each.items():
            total[name] = total.get(name, 0) + number
    assert total == {"one": 3, "two": 2}
    assert says(h, "one", "a", "member") == "3 of those for $share/g/a went to it."
    h.client("three").subscribe("$share/g/a")
    assert says(h, "three", "a", "member") == "None of those for $share/g/a went to it."


def test_which_member_took_it_out_of_the_queue_of_its_group() -> None:
    h = recording()
    h.client("one", expiry=100).subscribe("$share/g/a", qos=1)
    h.client("two", expiry=100).subscribe("$share/g/a", qos=1)
    for name in ("one", "two"):
        h.client(name, clean=False, expiry=100).drop()
    h.client("pub").publish("a", b"x", 1)
    assert receiver(told(h)[0], "$share/g/a")["members"] == {}
    h.client("two", clean=False, expiry=100)
    h.flush()
    found = receiver(told(h)[0], "$share/g/a")
    assert (found["members"], found["delivered"], found["queued"]) == ({"two": 1}, 1, 0)


def test_of_a_large_group_some_members_are_named() -> None:
    h = recording()
    for number in range(20):
        h.client(f"m{number}").subscribe("$share/g/a")
    pub = h.client("pub")
    for _ in range(40):
        pub.publish("a")
    members = receiver(told(h)[0], "$share/g/a")["members"]
    assert len(members) == 17
    assert sum(members.values()) == 40
    assert members[""] == 8


def test_a_question_ends_when_its_time_is_over() -> None:
    h = recording()
    h.client("pub").publish("a")
    watcher = h.broker.context.watcher
    assert watcher is not None
    watcher.traces.extend([watcher.traces[-1]] * 2500)  # more than a step
    whole = Question(limit=10_000)
    cut = Question(limit=10_000, until=0.0)
    assert len(asyncio.run(stories(h.broker, whole))) == 2501
    assert 0 < len(asyncio.run(stories(h.broker, cut))) < 2501
    assert (whole.late, cut.late) == (False, True)


def test_questions_narrow_it_down() -> None:
    h = recording()
    h.client("one").subscribe("a/#")
    h.client("two").subscribe("b")
    pub, other = h.client("pub"), h.client("other")
    pub.publish("a/1")
    pub.publish("b")
    h.now += 60
    other.publish("a/2")
    topics = [message["topic"] for message in told(h)]
    assert topics == ["a/1", "b", "a/2"]
    assert [message["topic"] for message in told(h, "one")] == ["a/1", "a/2"]
    assert [message["topic"] for message in told(h, "pub")] == ["a/1", "b"]
    assert [message["topic"] for message in told(h, topic="a/+")] == ["a/1", "a/2"]
    assert [message["topic"] for message in told(h, since=h.now)] == ["a/2"]
    assert [message["topic"] for message in told(h, limit=1)] == ["a/2"]
    (message,) = told(h, "one", "a/1")
    assert [one["client"] for one in message["receivers"]] == ["one"]


def test_a_record_that_is_full_forgets_the_oldest() -> None:
    h = recording(limit=4)
    h.client("sub").subscribe("#")
    pub = h.client("pub")
    for number in range(10):
        pub.publish(f"a/{number}")
    assert [message["topic"] for message in told(h)] == ["a/6", "a/7", "a/8", "a/9"]


def test_without_a_record_there_is_nothing_to_tell() -> None:
    h = Harness()
    h.client("pub").publish("a")
    assert told(h) == []
    assert codes(h, "sub", "a")[0] == "no_record"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "drop", "return", "ack", "late"]),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=25,
)


@given(ACTIONS, st.sampled_from([DROP_NEWEST, DROP_OLDEST]))
def test_numbers_add_up_whatever_happens(
    actions: list[tuple[str, int, int]], overflow: str
) -> None:
    settings = Settings()
    settings.max_queued_messages = 3
    settings.queue_overflow = overflow
    h = recording(settings)
    clients = {}
    for number in range(3):
        name = f"c{number}"
        clients[name] = h.client(name, expiry=100, receive_maximum=2, auto_ack=number == 0)
        clients[name].subscribe("a/#", qos=number)
    pub = h.client("pub")
    for what, who, qos in actions:
        name = f"c{who}"
        if what == "publish":
            pub.publish(f"a/{who}", b"x", qos)
        elif what == "late":
            pub.publish(f"a/{who}", b"x", qos, message_expiry=1)
            h.advance(2)
        elif what == "drop" and name in clients:
            clients.pop(name).drop()
        elif what == "return" and name not in clients:
            clients[name] = h.client(name, clean=False, expiry=100, receive_maximum=2)
    for message in told(h, limit=1000):
        for one in message["receivers"]:
            states = one["delivered"] + one["in_flight"] + one["queued"]
            assert states + sum(one["dropped"].values()) == message["count"]
            assert min(one["delivered"], one["in_flight"], one["queued"]) >= 0


# Why.


def test_nobody_published() -> None:
    h = recording()
    h.client("sub").subscribe("a")
    assert codes(h, "sub", "a") == ["not_published"]


def test_a_client_id_that_nobody_has() -> None:
    h = recording()
    h.client("sensor-17").subscribe("a")
    h.client("pub").publish("a")
    assert "sensor-17" in says(h, "sensor-71", "a", "no_session")


def test_a_session_that_ended() -> None:
    h = recording()
    h.client("sub").drop()
    assert "ended with its connection" in says(h, "sub", "a", "no_session")
    h.client("kept", expiry=5).drop()
    h.advance(6)
    assert "expired" in says(h, "kept", "a", "no_session")


def test_who_resembles_is_found_among_many() -> None:
    h = recording()
    for name in ("x" * 60_000, *(f"sensor-{number:03}" for number in range(300)), "valve-7"):
        h.client(name)
    assert "there is one of sensor-123." in says(h, "sensor-123x", "a", "no_session")
    assert "there is one of valve-7." in says(h, "Valve-7", "a", "no_session")
    assert "there is one of" not in says(h, "boiler", "a", "no_session")
    assert "there is one of " + "x" * 60_000 in says(h, "x" * 60_001, "a", "no_session")


def test_only_so_much_of_names_and_filters_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(junk: None, one: str, other: str) -> difflib.SequenceMatcher[str]:
        compared.append(max(len(one), len(other)))
        return matcher(junk, one, other)

    matcher = difflib.SequenceMatcher
    monkeypatch.setattr(difflib, "SequenceMatcher", counted)
    h = recording()
    sub = h.client("sub")
    for number in range(500):
        sub.subscribe(f"site/{number}/" + "x" * 5_000)
    sub.subscribe("site/+/temp")
    h.client("pub").publish("site/1/temperature")
    assert "site/+/temp:" in says(h, "sub", "site/1/temperature", "no_match")
    assert 0 < len(compared) <= 200
    assert max(compared) <= 200


def test_no_filter_matches_and_which_comes_closest() -> None:
    h = recording()
    sub = h.client("sub")
    for topic_filter in ("x/y/z", "site/1/temp", "site/+/humidity"):
        sub.subscribe(topic_filter)
    h.client("pub").publish("site/1/temperature")
    text = says(h, "sub", "site/1/temperature", "no_match")
    assert "site/1/temp:" in text
    assert "level 3 is temp, in the topic temperature" in text
    assert "no subscription" in says(h, "pub", "site/1/temperature", "no_match")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "text"),
    [
        ("a/b", "a/c", "level 2 is b, in the topic c"),
        ("a/+/c", "a/b/d", "level 3 is c, in the topic d"),
        ("a/b/c", "a/b", "level 3 is c, the topic ends before it"),
        ("a", "a/b/c", "the topic goes on after level 1: b/c"),
        ("#", "$SYS/x", "a filter that begins with # doesn't reach topics that begin with $"),
        ("a/#", "a/b", "it matches"),
        ("a/+", "a/b", "it matches"),
    ],
)
def test_where_a_filter_and_a_topic_part(topic_filter: str, topic: str, text: str) -> None:
    assert difference(topic_filter, topic) == text


def test_it_subscribed_too_late() -> None:
    h = recording()
    sub = h.client("sub")
    h.client("pub").publish("a")
    h.now += 1
    sub.subscribe("a")
    assert "after the last message" in says(h, "sub", "a", "late")


def test_it_has_unsubscribed() -> None:
    h = recording()
    sub = h.client("sub")
    sub.subscribe("$share/g/a/+")
    sub.unsubscribe("$share/g/a/+")
    h.client("pub").publish("a/b")
    assert "no longer subscribed to $share/g/a/+" in says(h, "sub", "a/b", "unsubscribed")


def test_its_subscribe_was_refused() -> None:
    settings = Settings()
    settings.max_subscriptions = 1
    h = recording(settings)
    sub = h.client("sub")
    sub.subscribe("a")
    sub.subscribe("b/#")
    assert "Quota" in says(h, "sub", "b/c", "subscribe_denied")


def test_its_own_messages() -> None:
    h = recording()
    sub = h.client("sub")
    sub.subscribe("a", no_local=True)
    sub.publish("a", b"x", 1)
    assert "No Local" in says(h, "sub", "a", "no_local")


def test_it_is_away() -> None:
    h = recording()
    kept = h.client("kept", expiry=60)
    kept.subscribe("a", qos=1)
    kept.drop()
    pub = h.client("pub")
    pub.publish("a", b"x", 1)
    pub.publish("a", b"x", 0)
    assert codes(h, "kept", "a") == ["offline", "dropped", "waiting"]
    assert "QoS 0, and it wasn't connected" in says(h, "kept", "a", "dropped")


def test_somebody_else_has_its_session() -> None:
    h = recording()
    h.client("sub", expiry=60).subscribe("a")
    h.client("sub", clean=False, expiry=60, peer="10.9.9.9:1")
    h.client("pub").publish("a")
    assert "10.9.9.9:1 took its session over" in says(h, "sub", "a", "taken_over")


def test_it_got_it_after_all() -> None:
    h = recording()
    h.client("sub").subscribe("a")
    h.client("pub").publish("a")
    assert codes(h, "sub", "a") == ["delivered"]


def test_a_will_is_a_message_like_any_other() -> None:
    h = recording()
    h.client("sub").subscribe("will")
    h.client("gone", will=Will("will", b"x", 1, False)).drop()
    (message,) = told(h)
    assert (message["topic"], message["from"]) == ("will", "gone")


def test_asking_changes_nothing() -> None:
    h = recording()
    h.client("sub").subscribe("a", qos=1)
    h.client("pub").publish("a", b"x", 1)
    assert h.broker.context.watcher is not None
    before = (len(h.broker.context.watcher.traces), dict(vars_of(h)))
    for _ in range(2):
        findings(h, "sub", "a")
        findings(h, "nobody", "b")
    assert (len(h.broker.context.watcher.traces), dict(vars_of(h))) == before


def vars_of(h: Harness) -> dict[str, object]:
    counters = h.broker.counters
    names = ("matched", "delivered", "publish_sent", "bytes_sent", "clients_connected")
    return {name: getattr(counters, name) for name in names}


def test_the_guide_lists_every_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", GUIDE.read_text(), re.MULTILINE))
    assert {code: text.strip() for code, text in rows.items()} == CODES


# What is printed.


def test_sentences_come_first_then_the_messages() -> None:
    h = recording()
    h.client("slow", receive_maximum=1, auto_ack=False).subscribe("a", qos=1)
    pub = h.client("pub")
    pub.publish("a", b"x", 1)
    pub.publish("a", b"x", 1, retain=True)
    end = {
        "findings": findings(h, "slow", "a"),
        "record": {"limit": 9, "held": 9, "reaches_back_s": 300},
    }
    text = list(explained.lines(told(h, "slow", "a"), end, "slow", EPOCH + h.now + 180))
    assert text[0] == "2 wait in its queue, or were sent and are not acknowledged."
    assert text[2] == "a: message from pub, QoS 1"
    assert text[3] == "  slow: 1 in flight"
    assert text[4].endswith("3 min ago")
    assert "a: message from pub, QoS 1, retained" in text
    assert text[-1] == "The record is full; it reaches back 5 min."


def test_members_are_printed() -> None:
    h = recording()
    h.client("one").subscribe("$share/g/a")
    pub = h.client("pub")
    end = {"findings": [], "record": {"limit": 9, "held": 1, "reaches_back_s": 1}, "late": False}
    pub.publish("a")
    assert "  $share/g/a: 1 delivered, to one" in explained.lines(told(h), end, "", EPOCH)
    h.client("two").subscribe("$share/g/a")
    pub.publish("a")
    pub.publish("a")
    text = list(explained.lines(told(h), end, "", EPOCH))
    assert "  $share/g/a: 2 delivered, to two (1), one (1)" in text


def test_nothing_found_says_how_far_the_record_reaches() -> None:
    end = {"findings": [], "record": {"limit": 9, "held": 3, "reaches_back_s": 60}}
    (text,) = explained.lines([], end, "", 0.0)
    assert "holds 3 decisions and reaches back 60 s" in text
    late = {**end, "late": True}
    assert next(explained.lines([], late, "", 0.0)).startswith("This is not all")
    end = {"findings": [], "record": {"limit": 0, "held": 0, "reaches_back_s": 0}}
    assert "keeps no record" in next(explained.lines([], end, "", 0.0))


def test_every_kind_of_drop_has_its_words() -> None:
    assert set(DROPS) | {"no_local"} == set(why.DROPS)
