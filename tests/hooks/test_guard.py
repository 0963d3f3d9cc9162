"""One plugin's hooks, whatever they do: raise, hang, answer rubbish, block, are cancelled."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import pytest

from mqttd.api import (
    Allow,
    Client,
    Decision,
    Deny,
    Figure,
    NoRoom,
    Plugin,
    PluginConfig,
    reason_codes,
)
from mqttd.hooks import guard as guard_module
from mqttd.hooks.guard import WATCH, Failed, Guard, begin
from mqttd.testing import StandIn
from tests.hooks.kit import SHORT_S, guard_of

VALID = (Allow, Deny)
CLIENT = Client("c")


class Scripted(Plugin[PluginConfig]):
    """`authorize_publish` does what the test says; no other hook is there."""

    answer: Callable[[], Any] = staticmethod(Allow)

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return self.answer()  # type: ignore[no-any-return]


def scripted(answer: Callable[[], Any], **entry: Any) -> Guard:
    plugin = Scripted(PluginConfig(), StandIn())
    plugin.answer = answer
    return guard_of(plugin, **entry)


async def ask(guard: Guard) -> Any:
    return await guard.ask("authorize_publish", VALID, CLIENT, "t", 0, False)


def ask_now(guard: Guard) -> Any:
    return guard.ask_now("authorize_publish", VALID, CLIENT, "t", 0, False)


def failing(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


async def hang() -> Allow:
    await asyncio.get_running_loop().create_future()
    return Allow()


async def give_up() -> Allow:
    raise asyncio.CancelledError


async def wait_and_fail() -> Allow:
    await asyncio.sleep(0)
    raise KeyError("deep inside")


async def wait_and_allow() -> Allow:
    await asyncio.sleep(0)
    async with asyncio.timeout(10):  # needs a task of its own
        await asyncio.sleep(0)
    return Allow("later")


def test_only_what_is_overridden_is_a_hook() -> None:
    guard = scripted(Allow)
    assert guard.has("authorize_publish")
    for hook in ("authorize_subscribe", "authenticate", "observe", "on_publish"):
        assert not guard.has(hook)


def test_a_hook_that_is_not_used_is_none() -> None:
    guard = scripted(Allow)
    guard.plugin.unused = frozenset({"authorize_publish"})
    assert not guard.has("authorize_publish")


async def test_an_answer_at_once_makes_no_task() -> None:
    guard = scripted(lambda: Allow("now"))
    before = len(asyncio.all_tasks())
    answer, rest = begin(ask(guard))
    assert (answer, rest) == (Allow("now"), None)
    assert len(asyncio.all_tasks()) == before
    assert ask_now(guard) == Allow("now")
    assert guard.stats["authorize_publish"].calls == 2
    assert guard.stats["authorize_publish"].failures == 0


async def test_an_answer_that_waits_goes_on_where_it_was_left() -> None:
    answer, rest = begin(ask(scripted(wait_and_allow)))
    assert answer is None
    assert rest is not None
    assert await rest == Allow("later")


FAILURES: dict[str, Callable[[], Any]] = {
    "raises": failing(RuntimeError("no")),
    "raises later": wait_and_fail,
    "raises CancelledError": failing(asyncio.CancelledError()),
    "is cancelled": give_up,
    "raises its own TimeoutError": failing(TimeoutError("backend")),
    "hangs": hang,
    "None": lambda: None,
    "True": lambda: True,
    "the class": lambda: Allow,
    "text": lambda: "allow",
    "a coroutine that answers rubbish": lambda: asyncio.sleep(0, "yes"),
    "raises StopIteration": failing(StopIteration(Allow())),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_whatever_goes_wrong_is_a_failure(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard = scripted(FAILURES[what], name="shaky", timeout=SHORT_S)
    answer = await asyncio.create_task(ask(guard))
    assert isinstance(answer, Failed)
    assert answer.reason == "plugin shaky failed in authorize_publish"
    assert guard.stats["authorize_publish"].failures == 1
    (line,) = caplog.messages
    assert line.startswith("plugin shaky failed in authorize_publish: ")
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert bool(tracebacks) == (what.startswith("raises") or what == "is cancelled")


@pytest.mark.parametrize("what", FAILURES)
async def test_where_a_hook_may_not_wait_everything_else_is_a_failure(what: str) -> None:
    guard = scripted(FAILURES[what])
    assert isinstance(ask_now(guard), Failed)
    assert guard.stats["authorize_publish"].failures == 1


async def test_a_coroutine_where_it_may_not_be_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(ask_now(scripted(wait_and_allow)), Failed)
    assert "it may not wait" in caplog.text


async def test_a_hook_that_hangs_is_ended() -> None:
    ended: list[str] = []

    async def hang_and_tell() -> Allow:
        try:
            return await hang()
        finally:
            ended.append("ended")

    guard = scripted(hang_and_tell, timeout=SHORT_S)
    assert isinstance(await asyncio.create_task(ask(guard)), Failed)
    await asyncio.sleep(0)
    assert ended == ["ended"]


async def test_a_hook_that_does_not_let_go_keeps_nobody(caplog: pytest.LogCaptureFixture) -> None:
    let_go = asyncio.Event()

    async def stubborn() -> Allow:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return Allow()

    guard = scripted(stubborn, timeout=SHORT_S)
    assert isinstance(await asyncio.create_task(ask(guard)), Failed)
    assert "no answer within 0.02 s" in caplog.text
    let_go.set()
    await asyncio.sleep(0)


async def test_who_is_no_longer_interested_ends_the_hook() -> None:
    """Being cancelled from outside is no failure of the plugin."""
    guard = scripted(hang)
    task = asyncio.create_task(ask(guard))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert guard.stats["authorize_publish"].failures == 0


async def test_what_was_begun_and_given_up_leaves_no_task() -> None:
    _, rest = begin(ask(scripted(hang)))
    assert rest is not None
    del rest
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# The log.


async def test_tracebacks_of_one_hook_come_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    guard = scripted(failing(RuntimeError("no")), clock=lambda: now[0], breaker={"failures": 0})
    for _ in range(50):
        await ask(guard)
    assert len(caplog.records) == 1
    now[0] += 11.0
    await ask(guard)
    assert len(caplog.records) == 2
    assert guard.stats["authorize_publish"].failures == 51


async def test_a_step_that_blocks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def block() -> Allow:
        await asyncio.sleep(0)
        time.sleep(guard_module.BLOCKING_S)
        return Allow()

    guard = scripted(block, name="slow")
    assert await asyncio.create_task(ask(guard)) == Allow()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("plugin slow blocked the loop for ")
    assert line.endswith(" in authorize_publish")


async def test_who_blocks_at_the_moment_is_found_by_a_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_WATCH_S", 0.02)

    def block() -> Allow:
        while not any("has been blocking" in line for line in caplog.messages):
            time.sleep(0.005)
        return Allow()

    guard = scripted(block, name="stuck")
    WATCH.start()
    try:
        assert await ask(guard) == Allow()
    finally:
        WATCH.stop()
    line = next(line for line in caplog.messages if "has been blocking" in line)
    assert line.startswith("plugin stuck has been blocking the loop for ")
    assert "test_guard.py" in line  # where
    assert "\n" not in line


def test_the_thread_ends_with_its_last_user() -> None:
    WATCH.start()
    WATCH.start()
    thread = WATCH._thread
    assert thread is not None
    WATCH.stop()
    assert WATCH._thread is thread
    WATCH.stop()
    assert WATCH._thread is None
    WATCH.start()
    assert WATCH._thread not in (None, thread)
    WATCH.stop()
    thread.join(5.0)
    assert not thread.is_alive()


# The circuit breaker.


def breaking(clock: Callable[[], float]) -> tuple[Guard, list[str]]:
    """A plugin that fails as long as `mood` says so; three failures open the breaker for 10 s."""
    mood = ["fail"]

    def answer() -> Any:
        calls.append(mood[0])
        if mood[0] == "fail":
            raise RuntimeError("no")
        return Allow()

    calls: list[str] = []
    guard = scripted(answer, clock=clock, breaker={"failures": 3, "rest": "10s"})
    guard.plugin.calls = calls  # type: ignore[attr-defined]
    return guard, mood


async def test_the_breaker_opens_rests_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    guard, mood = breaking(lambda: now[0])
    calls = guard.plugin.calls  # type: ignore[attr-defined]
    for _ in range(3):
        assert not guard.resting
        await ask(guard)
    assert guard.resting
    assert "3 times in a row: it is left alone for 10 s, which counts as deny" in caplog.text
    for _ in range(5):
        answer = await ask(guard)
        assert isinstance(answer, Failed)
        assert answer.reason == "plugin plugin is resting after failures"
        assert isinstance(ask_now(guard), Failed)
    assert len(calls) == 3  # left alone
    assert guard.stats["authorize_publish"].failures == 13
    now[0] += 10.0
    await ask(guard)  # tried again: one more failure is enough
    assert len(calls) == 4
    assert guard.resting
    now[0] += 10.0
    mood[0] = "work"
    assert await ask(guard) == Allow()
    mood[0] = "fail"
    await ask(guard)
    assert not guard.resting  # counted from the beginning


async def test_a_success_in_between_keeps_the_breaker_closed() -> None:
    guard, mood = breaking(lambda: 100.0)
    for turn in range(12):
        mood[0] = "work" if turn % 3 == 2 else "fail"
        await ask(guard)
    assert not guard.resting


async def test_a_breaker_of_0_never_opens() -> None:
    guard = scripted(failing(RuntimeError("no")), breaker={"failures": 0})
    for _ in range(100):
        await ask(guard)
    assert not guard.resting


async def test_calls_that_were_under_way_open_no_second_breaker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = scripted(hang, timeout=SHORT_S, breaker={"failures": 2, "rest": "1h"})
    answers = await asyncio.gather(*(ask(guard) for _ in range(10)))
    assert all(isinstance(answer, Failed) for answer in answers)
    assert caplog.text.count("left alone") == 1


async def test_begin_returns_what_needs_no_waiting() -> None:
    async def chain(steps: list[Awaitable[int]]) -> int:
        return sum([await step for step in steps])

    async def at_once() -> int:
        return 1

    assert begin(chain([at_once(), at_once()])) == (2, None)
    future = asyncio.get_running_loop().create_future()
    answer, rest = begin(chain([at_once(), future, asyncio.sleep(0, 4)]))
    assert answer is None
    assert rest is not None
    future.set_result(2)
    assert await rest == 7


async def test_begin_hands_an_exception_on() -> None:
    async def fail(later: bool) -> None:
        if later:
            await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        begin(fail(False))
    _, rest = begin(fail(True))
    assert rest is not None
    with pytest.raises(KeyError):
        await rest


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mqttd.plugins")


class Shown(Plugin[PluginConfig]):
    """Shows what the test says."""

    shows: Callable[[], Any] = staticmethod(list)

    def figures(self) -> Iterable[Figure]:
        return self.shows()  # type: ignore[no-any-return]


def figures_of(shows: Callable[[], Any]) -> tuple[Guard, list[Figure]]:
    plugin = Shown(PluginConfig(), StandIn())
    plugin.shows = shows
    guard = guard_of(plugin)
    return guard, guard.figures()


def test_figures_are_shown_as_far_as_they_are_figures() -> None:
    good = Figure("a", 1, (("way", "out"),))
    odd: list[Any] = [("a", 1, ()), Figure("a", "1"), Figure(1, 1), Figure("a", 1, (("way", 1),))]  # type: ignore[arg-type]
    odd += [Figure("a", 1, 7), Figure("a", 1, (("way",),)), Figure("a", 1, (7,))]  # type: ignore[arg-type]
    assert figures_of(lambda: [good, *odd, good])[1] == [good, good]
    assert figures_of(lambda: repeat(good))[1] == [good] * guard_module.MAX_FIGURES
    assert scripted(Allow).figures() == []


async def none_at_all() -> list[Figure]:
    return []


def exits_on_the_way() -> Iterator[Figure]:
    yield Figure("a", 1)
    raise SystemExit(3)


@pytest.mark.parametrize(
    "shows", [failing(ValueError("x")), lambda: 7, none_at_all, exits_on_the_way]
)
def test_figures_that_fail_are_missing_and_the_breaker_hears_nothing(
    shows: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    guard, found = figures_of(shows)
    for _ in range(20):
        assert guard.figures() == found == []
    assert (guard.stats["figures"].calls, guard.stats["figures"].failures) == (21, 21)
    assert not guard.resting
    assert len(caplog.records) == 1


async def test_nonsense_is_a_failure_although_the_call_was_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = scripted(
        lambda *_: Allow(), clock=lambda: 100.0, breaker={"failures": 3, "rest": "10s"}
    )
    for number in range(1, 4):
        assert not guard.resting
        assert await ask(guard) == Allow()
        failed = guard.reject("authorize_publish", "an invalid message: topic")
        assert failed.reason == "plugin plugin failed in authorize_publish"
        assert guard.stats["authorize_publish"].failures == number
    assert guard.resting
    assert "failed in authorize_publish: it made an invalid message: topic" in caplog.text


async def test_a_full_disk_is_no_fault_of_the_plugin() -> None:
    guard = scripted(failing(NoRoom()), breaker={"failures": 2})
    for answer in [await ask(guard), ask_now(guard), await ask(guard)]:
        assert isinstance(answer, Failed)
        assert answer.code == reason_codes.QUOTA_EXCEEDED
    assert guard.stats["authorize_publish"].failures == 3
    assert not guard.resting
