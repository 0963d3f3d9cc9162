"""The way out: order, acknowledgement, poison, ids, on a remote system that obeys the test."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mqttd_plugins._bridge.remote import Failure, Item, Poison, Refused, Retry

from mqttd.api import Message, MessageProperties
from tests.bridges.kit import Desk, out, reason_of


async def desk(*trees: dict[str, Any], **more: Any) -> Desk:
    made = Desk(*(trees or (out("#", key="k"),)), **more)
    await made.begin()
    return made


async def test_a_message_leaves_the_outbox_only_when_it_is_confirmed() -> None:
    at = await desk()
    at.system.silent = True
    at.put("a")
    remote = await at.connect()
    assert (at.arrived, at.outbox.in_flight) == (["a"], 1)
    item, done = remote.unanswered[0]
    done(item, None)
    assert (at.outbox.in_flight, at.outbox.acknowledged) == (0, 1)
    await at.end()


async def test_rules_are_found_for_more_topics_than_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqttd_plugins._bridge.outward._TOPICS", 2)
    at = await desk(out("a/#", "A"), out("+/1", "B"))
    await at.connect()
    for _ in range(2):
        for topic in ("a/1", "a/2", "b/1"):
            at.put(topic, topic=topic)
    await at.settle()
    targets = [(item.message.topic, item.target) for item in at.system.arrived]
    assert targets == 2 * [("a/1", "A"), ("a/1", "B"), ("a/2", "A"), ("b/1", "B")]
    await at.end()


async def test_a_topic_that_takes_much_memory_is_not_remembered() -> None:
    at = await desk(out("#", "A"))
    await at.connect()
    for _ in range(2):
        for topic in ("t" * 512, "t" * 513):
            at.put("x", topic=topic)
    await at.settle()
    assert len(at.arrived) == 4
    assert list(at.outward._matched) == ["t" * 512]
    await at.end()


async def test_confirms_are_pipelined_and_come_in_any_order() -> None:
    at = await desk()
    at.system.silent = True
    at.put("a", "b", "c")
    remote = await at.connect()
    assert at.arrived == ["a", "b", "c"]
    for item, done in reversed(remote.unanswered):
        done(item, None)
    assert at.outbox.acknowledged == 3
    await at.end()


async def test_nothing_of_a_key_overtakes_one_that_failed_and_other_keys_go_on() -> None:
    at = await desk(out("#"), tries=9)
    fails = {"a1"}
    at.system.answer = lambda item: Retry("busy") if item.payload.decode() in fails else None
    at.system.batch = 1
    await at.connect()
    at.put("a1", "a2", topic="a")
    at.put("b1", topic="b")
    await at.settle()
    assert at.arrived == ["b1"]
    fails.clear()
    await at.services.advance(60)
    await at.settle()
    assert at.arrived == ["b1", "a1", "a2"]
    assert at.outbox.in_flight == 0
    await at.end()


async def test_what_was_not_answered_is_sent_again_in_order_with_the_same_ids() -> None:
    at = await desk()
    at.system.silent = True
    at.put("a", "b", "c")
    remote = await at.connect()
    item, done = remote.unanswered[1]
    done(item, None)
    await at.disconnect()
    late, late_done = remote.unanswered[0]
    late_done(late, None)
    assert at.outbox.acknowledged == 1  # an answer of a connection that is over says nothing
    at.system.silent = False
    await at.connect()
    assert at.arrived == ["a", "b", "c", "a", "c"]
    assert at.system.ids[3:] == [at.system.ids[0], at.system.ids[2]]
    await at.end()


@pytest.mark.parametrize("numbered", [True, False])
async def test_an_id_is_the_same_after_a_restart(numbered: bool) -> None:
    at = await desk()
    at.outbox.numbered = numbered
    at.system.silent = True
    at.put("a", "same", "same", "b")
    remote = await at.connect()
    item, done = remote.unanswered[1]
    done(item, None)
    await at.end()
    at.outbox.restart()
    at.system.silent = False
    await at.begin()
    await at.connect()
    at.put("same")
    await at.settle()
    first, again = at.system.arrived[:4], at.system.arrived[4:]
    assert [item.payload for item in again] == [b"a", b"same", b"b", b"same"]
    assert [item.id for item in again[:3]] == [first[0].id, first[2].id, first[3].id]
    assert len(set(at.system.ids)) == 5
    assert not at.services.table("ids").items()
    await at.end()


async def test_rows_that_nobody_claimed_go() -> None:
    at = await desk()
    at.outbox.numbered = False
    at.system.silent = True
    at.put("a")
    await at.connect()
    await at.end()
    at.outbox.unacknowledged.clear()  # the session was taken away, say
    await at.begin()
    at.system.silent = False
    await at.connect()
    at.put("a")
    await at.settle()
    assert len(set(at.system.ids)) == 2
    assert not at.services.table("ids").items()
    await at.end()


async def test_a_message_keeps_the_id_that_it_has_and_gets_another_hop() -> None:
    at = await desk()
    user = (("mqttd-id", "x-1"), ("mqttd-via", "far"))
    at.outbox.put(Message("t", b"a", 1, properties=MessageProperties(user_properties=user)))
    await at.connect()
    (item,) = at.system.arrived
    assert (item.id, item.via) == ("x-1", f"far,{at.identity.origin}")
    assert not at.services.table("ids").items()
    await at.end()


@pytest.mark.parametrize("numbered", [True, False])
async def test_nobody_can_give_a_message_the_id_of_another(numbered: bool) -> None:
    at = await desk()
    at.outbox.numbered = numbered
    await at.connect()
    at.put("first")
    await at.settle()
    head, _, last = at.system.ids[0].rpartition("-")
    guessed = f"{head}-{int(last, 16) + 2:x}"
    user = (("mqttd-id", guessed),)
    at.outbox.put(Message("t", b"forged", 1, properties=MessageProperties(user_properties=user)))
    at.put("real")
    await at.settle()
    assert at.arrived == ["first", "forged", "real"]
    assert at.system.ids[2] == guessed
    assert len(set(at.system.ids)) == 3
    await at.end()


async def test_a_message_with_too_many_hops_is_dropped() -> None:
    at = await desk()
    user = (("mqttd-via", "a,b,c,d,e,f,g,h"),)
    at.outbox.put(Message("t", b"a", 1, properties=MessageProperties(user_properties=user)))
    await at.connect()
    assert at.arrived == []
    assert at.out_figures.dropped == {"hops": 1}
    assert at.outbox.in_flight == 0
    await at.end()


async def test_poison_is_dead_lettered_with_the_reason_and_the_stream_goes_on() -> None:
    at = await desk(tries=3)
    at.system.answer = lambda item: Poison("too large") if item.payload == b"bad" else None
    at.put("a", "bad", "c")
    await at.connect()
    assert at.arrived == ["a", "c"]
    (dead,) = at.dead
    assert (dead.topic, dead.payload, dead.qos) == ("$dlq/desk", b"bad", 1)
    assert reason_of(dead) == "too large"
    user = dict(dead.properties.user_properties)
    assert (user["mqttd-dlq-topic"], user["mqttd-dlq-rule"]) == ("t", "rules[0]")
    assert at.outbox.in_flight == 0
    await at.end()


async def test_what_fails_again_and_again_is_dead_lettered_after_so_many_tries() -> None:
    at = await desk(tries=3)
    tries: list[str] = []

    def answer(item: Item) -> Failure | None:
        if item.payload != b"bad":
            return None
        tries.append(item.id)
        return Retry("busy")

    at.system.answer = answer
    at.put("bad", "b")
    await at.connect()
    for _ in range(4):
        await at.services.advance(60)
        await at.settle()
    assert len(tries) == 3
    assert at.arrived == ["b"]
    assert reason_of(at.dead[0]) == "busy"
    assert at.out_figures.report() | {"failed": 3, "dead_lettered": 1} == at.out_figures.report()
    await at.end()


async def test_an_item_that_is_refused_for_the_configuration_waits_for_ever() -> None:
    at = await desk(tries=1)
    at.system.answer = lambda item: Refused("no such queue", item.place)
    at.put("a")
    await at.connect()
    for _ in range(5):
        await at.services.advance(60)
        await at.settle()
    assert (at.dead, at.outbox.in_flight) == ([], 1)
    at.system.answer = lambda item: None
    await at.services.advance(60)
    await at.settle()
    assert at.arrived == ["a"]
    await at.end()


async def test_a_message_that_ends_every_connection_is_found_and_others_are_not_blamed() -> None:
    at = await desk(tries=2)
    at.system.silent = True
    at.put("bad", "b", "c")
    for _ in range(2):  # all of them are under way, and it could be any
        await at.connect()
        await at.disconnect()
    for _ in range(2):  # one by one
        before = len(at.arrived)
        await at.connect()
        assert at.arrived[before:] == ["bad"]
        await at.disconnect()
        await at.services.advance(60)
    at.system.silent = False
    await at.connect()
    assert [dead.payload for dead in at.dead] == [b"bad"]
    assert at.arrived[-2:] == ["b", "c"]
    await at.end()


async def test_with_one_at_a_time_a_key_is_strictly_in_order() -> None:
    at = await desk(per_key=1)
    at.system.silent = True
    at.put("a", "b", "c")
    remote = await at.connect()
    for expected in (["a"], ["a", "b"], ["a", "b", "c"]):
        assert at.arrived == expected
        item, done = remote.unanswered[-1]
        done(item, None)
        await at.settle()
    assert at.outbox.acknowledged == 3
    await at.end()


async def test_several_rules_send_a_message_which_is_acknowledged_after_the_last_of_them() -> None:
    at = await desk(out("a/#", "one"), out("+/b", "two"), out("c", "three"))
    at.system.silent = True
    at.put("x", topic="a/b")
    remote = await at.connect()
    assert [item.target for item in at.system.arrived] == ["one", "two"]
    assert len(set(at.system.ids)) == 1
    remote.unanswered[0][1](remote.unanswered[0][0], None)
    assert at.outbox.in_flight == 1
    remote.unanswered[1][1](remote.unanswered[1][0], None)
    assert at.outbox.in_flight == 0
    assert at.out_figures.confirmed == 1
    await at.end()


async def test_a_message_without_what_its_target_needs_is_dead_lettered() -> None:
    at = await desk(out("#", "q/{property[site]}"))
    at.put("a")
    await at.connect()
    assert reason_of(at.dead[0]) == "to: there is no user property 'site'"
    assert at.outbox.in_flight == 0
    await at.end()


def upper(message: Message) -> Message | None:
    if message.payload == b"no":
        return None
    if message.payload == b"bad":
        raise KeyError("what")
    return message.replace(payload=message.payload.upper())


async def test_a_function_changes_drops_and_fails() -> None:
    at = await desk(out("#", function="tests.bridges.test_outward:upper"))
    at.put("a", "no", "bad")
    await at.connect()
    assert at.arrived == ["A"]
    assert at.out_figures.dropped == {"function": 1}
    assert "KeyError" in reason_of(at.dead[0])
    assert at.outbox.in_flight == 0
    await at.end()


async def test_qos_0_is_sent_again_while_the_process_lasts() -> None:
    at = await desk()
    at.system.silent = True
    at.put("a", qos=0)
    await at.connect()
    await at.disconnect()
    at.system.silent = False
    await at.connect()
    assert at.arrived == ["a", "a"]
    assert len(set(at.system.ids)) == 1
    assert (at.out_figures.confirmed, at.out_figures.in_flight) == (1, 0)
    assert not at.services.table("ids").items()
    await at.end()


async def test_qos_0_is_bounded_while_nobody_takes_it() -> None:
    at = await desk(window=4)
    at.put(*("x" * 100), qos=0)
    await at.settle()
    assert at.outward.figures.taken == 8
    await at.connect()
    await at.settle()
    assert len(at.arrived) == 100
    await at.end()


async def test_subscriptions_that_no_rule_asks_for_any_more_go() -> None:
    at = Desk(out("a/#"), out("b", qos=0), out("b", "x"), out("c", share="g"))
    at.outbox.filters = {"old/#": 1, "a/#": 1}
    await at.begin()
    assert at.outbox.filters == {"a/#": 1, "b": 1, "$share/g/c": 1}
    await at.end()


async def test_a_new_filter_is_there_before_the_old_one_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = Desk(out("a/+"))
    at.outbox.filters = {"a/#": 1}
    there: list[list[str]] = []
    unsubscribe = at.outbox.unsubscribe

    async def watched(topic_filter: str) -> None:
        there.append(at.outbox.subscriptions)
        await unsubscribe(topic_filter)

    monkeypatch.setattr(at.outbox, "unsubscribe", watched)
    await at.begin()
    assert there == [["a/#", "a/+"]]
    assert at.outbox.subscriptions == ["a/+"]
    await at.end()


ANSWERS = st.sampled_from(["yes", "yes", "yes", "retry", "poison", "silent"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc")),
        st.tuples(st.just("answers"), st.lists(ANSWERS, min_size=1, max_size=6)),
        st.tuples(st.sampled_from(["lose", "connect", "restart", "wait"]), st.just("")),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_nothing_is_lost_or_out_of_order_and_every_message_is_counted(
    steps: list[tuple[str, Any]],
) -> None:
    asyncio.run(_whatever_happens(steps))


async def _whatever_happens(steps: list[tuple[str, Any]]) -> None:
    at = Desk(out("#"), tries=3)
    at.system.per_key = 1  # the fake refuses one and takes the next
    answers: list[str] = []
    unanswered: set[str] = set()

    def answer(item: Item) -> Failure | None:
        word = answers.pop(0) if answers else "yes"
        if word == "silent":
            unanswered.add(item.id)
            at.system.silent = True
        return {"retry": Retry("busy"), "poison": Poison("bad")}.get(word)

    at.system.answer = answer
    await at.begin()
    connected = False
    sent = earlier = 0

    def identity_holds() -> None:
        way = at.out_figures
        matched = way.settled + way.in_flight + at.outbox.queued
        assert earlier + matched == sent
        assert way.in_flight == at.outbox.in_flight

    for step, what in steps:
        if step == "put":
            sent += 1
            at.put(str(sent), topic=what)
        elif step == "answers":
            answers += what
        elif step == "wait":
            await at.services.advance(60)
        elif step == "lose" and connected:
            await at.disconnect()
            connected = False
            at.system.silent = False
        elif step == "connect" and not connected:
            await at.connect()
            connected = True
        elif step == "restart":
            await at.end()
            connected = False
            at.system.silent = False
            earlier += at.out_figures.settled
            at.outbox.restart()
            await at.begin()
        await at.settle()
        identity_holds()
    if connected:
        await at.disconnect()
    answers.clear()
    at.system.silent = False
    for _ in range(3):
        await at.connect()
        await at.services.advance(60)
        await at.settle()
        await at.disconnect()
    identity_holds()
    assert at.outbox.in_flight == at.outbox.queued == 0
    await at.end()
    dead = {int(message.payload) for message in at.dead}
    first: dict[str, list[int]] = {}
    ids: dict[int, set[str]] = {}
    for item in at.system.arrived:
        number = int(item.payload)
        known = ids.setdefault(number, set())
        if not known:
            first.setdefault(item.message.topic, []).append(number)
        known.add(item.id)
    assert set(ids) | dead == set(range(1, sent + 1))
    assert all(len(each) == 1 for each in ids.values())
    for numbers in first.values():
        assert numbers == sorted(numbers)


async def test_a_connection_that_ends_while_an_id_is_written_spoils_nothing() -> None:
    at = await desk()
    at.outbox.numbered = False
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    table = at.services.table("ids")
    put = table.set

    def slow(key: str, value: bytes) -> Any:
        put(key, value)
        return written

    at.identity._ids.set = slow  # type: ignore[method-assign]
    at.put("a")
    await at.connect()
    assert at.arrived == []
    await at.disconnect()
    written.set_result(None)
    await at.connect()
    assert at.arrived == ["a"]
    await at.end()


async def test_a_full_disk_keeps_what_needs_a_row_and_nothing_overtakes_it() -> None:
    at = await desk()
    at.outbox.numbered = False
    at.services.full = True
    await at.connect()
    at.put("a", "b")
    at.put("c", qos=0)
    await at.settle()
    await at.services.advance(60.0)
    await at.settle()
    assert (at.arrived, at.outbox.in_flight) == ([], 2)
    at.services.full = False
    await at.services.advance(1.0)
    await at.settle()
    assert (at.arrived, at.outbox.in_flight) == (["a", "b", "c"], 0)
    await at.end()
