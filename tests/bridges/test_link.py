"""The one connection: made again after ever longer waits, refused, paused; its state is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mqttd_plugins._bridge.link import Link
from mqttd_plugins._bridge.outward import backoff_s
from mqttd_plugins._bridge.remote import Refused, Remote, Retry

from mqttd.api import Message
from tests.bridges.kit import Desk, FakeRemote, back, incoming, out


class Linked(Desk):
    link: Link
    states: list[str]


@asynccontextmanager
async def linked() -> AsyncIterator[Linked]:
    at = Linked(out("#"), back("q"), retry_first=1.0, retry_most=8.0)
    await at.begin()
    at.states = []

    def make() -> Remote:
        return at.system.remote()

    def changed() -> None:
        at.states.append(at.link.state)

    at.link = Link(at.services, at.config, make, at.outward, at.inward, changed)
    at.works.append(asyncio.ensure_future(at.link.run()))
    await at.settle()
    yield at
    await at.end()


async def test_it_connects_and_both_ways_work() -> None:
    async with linked() as at:
        at.put("a")
        await at.settle()
        assert (at.link.state, at.arrived) == ("up", ["a"])
        intake = at.system.last.intake
        assert intake is not None
        intake.put(incoming(intake.rules[0]))
        await at.settle()
        assert len(at.outbox.published) == 1


async def test_it_connects_again_and_what_waited_is_sent() -> None:
    async with linked() as at:
        first = at.system.last
        at.system.break_off("cut")
        await at.settle()
        assert (at.link.state, at.link.reason, first.closed) == ("down", "cut", True)
        at.put("a")
        await at.services.advance(1.0)
        await at.settle()
        assert at.states == ["connecting", "up", "down", "connecting", "up"]
        assert at.arrived == ["a"]


async def test_waits_grow_to_the_longest_and_begin_anew_after_something_got_through() -> None:
    async with linked() as at:
        at.system.refuses = Retry("no route")
        at.system.break_off()
        await at.settle()
        for _ in range(8):
            await at.services.advance(8.0)
            await at.settle()
        assert at.link.attempts >= 8
        at.system.refuses = None
        await at.services.advance(8.0)
        await at.settle()
        at.put("a")
        await at.settle()
        at.system.break_off()
        await at.settle()
        assert at.link.attempts == 1


@pytest.mark.parametrize("failures", [1, 2, 3, 10, 10_000])
def test_a_wait_is_between_half_and_all_of_its_bound(failures: int) -> None:
    config = Desk(out("#"), retry_first=1.0, retry_most=8.0).config
    bound = min(2.0 ** min(failures - 1, 10), 8.0)
    waits = [backoff_s(config, failures) for _ in range(50)]
    assert all(bound / 2 <= wait <= bound for wait in waits)
    assert len(set(waits)) > 1


async def test_a_remote_system_that_refuses_is_asked_rarely_and_the_state_says_why() -> None:
    async with linked() as at:
        at.system.refuses = Refused("no queue q", "rules[1]")
        at.system.break_off()
        await at.settle()
        await at.services.advance(1.0)
        await at.settle()
        assert (at.link.state, at.link.reason) == ("refused", "rules[1]: no queue q")
        tries = len(at.system.connections)
        await at.services.advance(3.9)
        await at.settle()
        assert len(at.system.connections) == tries
        at.system.refuses = None
        await at.services.advance(8.0)
        await at.settle()
        assert at.link.state == "up"


async def test_paused_until_it_is_resumed() -> None:
    async with linked() as at:
        at.link.pause()
        await at.settle()
        assert (at.link.state, at.system.last.closed) == ("paused", True)
        at.put("a")
        await at.services.advance(100.0)
        await at.settle()
        assert at.arrived == []
        at.link.resume()
        await at.settle()
        assert (at.link.state, at.arrived) == ("up", ["a"])


async def test_paused_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    connect = FakeRemote.connect

    async def slow(self: FakeRemote) -> None:
        await gate.wait()
        await connect(self)

    monkeypatch.setattr(FakeRemote, "connect", slow)
    async with linked() as at:
        at.link.pause()
        assert at.link.state == "paused"
        gate.set()
        await at.settle()
        assert (at.link.state, at.states) == ("paused", ["connecting", "paused"])
        at.link.resume()
        await at.settle()
        assert at.link.state == "up"


async def test_resume_does_not_wait_for_the_next_try() -> None:
    async with linked() as at:
        at.system.break_off()
        await at.settle()
        at.link.resume()
        await at.settle()
        assert at.link.state == "up"


async def test_a_connection_that_does_not_come_about_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(self: FakeRemote) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeRemote, "connect", never)
    at = Linked(out("#"), connect_timeout=0.01)
    await at.begin()
    at.link = Link(at.services, at.config, at.system.remote, at.outward, at.inward, lambda: None)
    at.works.append(asyncio.ensure_future(at.link.run()))
    async with asyncio.timeout(30):
        while not at.link.attempts:
            await asyncio.sleep(0.005)
    assert at.link.reason == "no connection within 0.01 s"
    await at.end()


async def test_a_bug_of_a_face_ends_the_connection_and_not_the_bridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with linked() as at:

        async def broken(*_: object) -> None:
            raise KeyError("bug")

        with monkeypatch.context() as patch:
            patch.setattr(FakeRemote, "send", broken)
            at.outbox.put(Message("t", b"a", 1))
            await at.settle()
        assert at.link.state == "down"
        assert "bug" in at.link.reason
        await at.services.advance(1.0)
        await at.settle()
        assert (at.link.state, at.arrived) == ("up", ["a"])


@pytest.mark.parametrize("part", ["connect", "consume", "close"])
async def test_a_bug_at_either_end_of_a_connection_costs_no_more_than_that(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked() as at:

        async def broken(*_: object) -> None:
            raise ValueError("bug")

        with monkeypatch.context() as patch:
            patch.setattr(FakeRemote, part, broken)
            at.system.break_off("cut")
            await at.settle()
            await at.services.advance(1.0)
            await at.settle()
            expected = ("up", "") if part == "close" else ("down", "an error of the bridge: bug")
            assert (at.link.state, at.link.reason) == expected
        await at.services.advance(8.0)
        await at.settle()
        assert at.link.state == "up"


async def test_a_connection_that_is_over_gives_nothing_more() -> None:
    async with linked() as at:
        old = at.system.last.intake
        assert old is not None
        at.system.break_off("cut")
        await at.settle()
        old.put(incoming(old.rules[0]))
        await at.settle()
        assert at.outbox.published == []
        await at.services.advance(1.0)
        await at.settle()
        new = at.system.last.intake
        assert new is not None
        new.put(incoming(new.rules[0]))
        await at.settle()
        assert len(at.outbox.published) == 1


async def test_a_pause_is_no_fault_of_a_message_that_waits_for_its_answer() -> None:
    async with linked() as at:
        at.system.silent = True
        at.put("a")
        for _ in range(10):
            await at.settle()
            at.link.pause()
            await at.settle()
            at.link.resume()
        await at.settle()
        assert (at.dead, at.outbox.in_flight) == ([], 1)
        assert at.outward.figures.failed == 0
