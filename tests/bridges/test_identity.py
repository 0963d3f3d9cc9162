"""Ids over restarts, for messages that look the same as often as not."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from mqttd_plugins._bridge.identity import Identity

from mqttd.api import Message, Received
from mqttd.testing import StandIn

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.sampled_from("ab")),
        st.tuples(st.just("ack"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["restart", "crash"]), st.just(0)),
    ),
    max_size=40,
)


def received(payload: str, duplicate: bool) -> Received:
    return Received(Message("t", payload.encode(), 1), duplicate, lambda reason: None)


@settings(max_examples=100)
@given(STEPS)
def test_what_is_redelivered_has_its_id_and_nothing_else_has(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(_over_restarts(steps))


async def _over_restarts(steps: list[tuple[str, Any]]) -> None:
    services = StandIn()
    state, rows = services.table(), services.table("ids")
    ids = Identity(state, rows)
    await ids.open()
    outstanding: list[tuple[str, Any]] = []
    given_before: set[str] = set()
    for step, what in steps:
        if step == "new":
            ticket = ids.ticket(received(what, False))
            assert ticket.id not in given_before
            given_before.add(ticket.id)
            outstanding.append((what, ticket))
        elif step == "ack" and outstanding:
            _, ticket = outstanding.pop(what % len(outstanding))
            ids.settled(ticket)
        elif step in ("restart", "crash"):
            undone = ""
            if step == "crash" and outstanding:
                # The last message is durable, the row with its id is not, so nobody saw the id.
                undone = outstanding[-1][1].id
                rows.delete(outstanding[-1][1].row)
            ids = Identity(state, rows)
            await ids.open()
            again = [(payload, ids.ticket(received(payload, True))) for payload, _ in outstanding]
            for payload in "ab":
                before = {t.id for p, t in outstanding if p == payload} - {undone}
                after = {t.id for p, t in again if p == payload}
                assert before <= after
                assert not (after - before) & given_before
            given_before |= {ticket.id for _, ticket in again}
            outstanding = again
    for _, ticket in outstanding:
        ids.settled(ticket)
    ids.ticket(received("c", False))
    assert len(rows.items()) == 1
