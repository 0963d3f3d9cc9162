"""One plugin's hooks, called so that whatever they do costs nobody else.

Owns: the time limit of a hook that waits, the circuit breaker, the counting of calls, failures and
seconds, the traceback with the plugin's name in the log, and the search for who blocks the loop.

Must not know: what a hook decides (`mqttd.hooks.deciders`), clients, messages.

Invariants: no exception of a plugin leaves `ask` or `ask_now`, they return `Failed`; an answer of a
type that the hook can't give is a failure, and so is one that the caller has to `reject`; a plugin
that finds no room on the disk has failed in that call, and isn't the worse for it; while the
breaker is open the plugin isn't called, which counts as a failure too, but is not logged again.

A hook that only computes is called in place, with no task; one that waits runs in a task of its
own, since what it awaits (time-outs of an HTTP client, say) may ask for one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator
from itertools import islice
from time import perf_counter
from typing import Any, Final, TypeVar

from mqttd.config import PluginEntry
from mqttd.core import spec
from mqttd.hooks.plugin import NoRoom, Plugin
from mqttd.hooks.values import Figure
from mqttd.log import escape

logger: Final = logging.getLogger("mqttd.plugins")

BLOCKING_S: Final = 0.1  # a step of a hook that took longer has held everybody up
MAX_FIGURES: Final = 500  # of a plugin, at /metrics
_WATCH_S: Final = 1.0
_EXIT: Final = "a plugin may not end the broker"
_QUIET_S: Final = 10.0  # between two tracebacks of the same hook

AnswerT = TypeVar("AnswerT")


class Failed:
    """The hook gave no answer that counts. `code`: what a client is refused with for it."""

    def __init__(self, reason: str, code: int = spec.UNSPECIFIED_ERROR) -> None:
        self.reason = reason
        self.code = code


class _TooLate(Exception):
    """The hook took longer than it may; a TimeoutError might be one of its own."""


class HookStats:
    """What one hook of one plugin has cost, and how often it failed."""

    __slots__ = ("calls", "failures", "longest_s", "seconds", "silent_until")

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.seconds = 0.0
        self.longest_s = 0.0
        self.silent_until = 0.0


class Guard:
    """Calls the hooks of one plugin."""

    def __init__(
        self, name: str, plugin: Plugin[Any], entry: PluginEntry, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.plugin = plugin
        self.stats: dict[str, HookStats] = {}
        self.rests_until = 0.0  # the breaker is open until then
        self.adjust(entry)
        self._row = 0  # failures since the last success
        self._row_before = 0  # what it was before that success
        self._clock = clock

    def adjust(self, entry: PluginEntry) -> None:
        """Trust the plugin as far as its entry in the configuration says."""
        self.on_failure = entry.on_failure
        self._timeout = entry.timeout
        self._failures = entry.breaker.failures
        self._rest = entry.breaker.rest

    def has(self, hook: str) -> bool:
        """Whether the plugin overrides a hook, and uses it."""
        if hook in self.plugin.unused:
            return False
        return getattr(type(self.plugin), hook) is not getattr(Plugin, hook)

    @property
    def resting(self) -> bool:
        """The breaker is open."""
        return self._clock() < self.rests_until

    async def ask(self, hook: str, valid: tuple[type, ...], *arguments: object) -> Any:
        """Call a hook that may wait; its answer is one of `valid`, or `Failed`."""
        if self.rests_until and self.resting:
            return self._refused(hook)
        stats = self._stats(hook)
        stats.calls += 1
        began = perf_counter()
        try:
            answer = self._call(hook, arguments)
            if not isinstance(answer, valid) and isinstance(answer, Awaitable):
                answer = await self._wait(hook, answer)
        except _TooLate:
            return self._fail(hook, stats, f"no answer within {self._timeout:g} s", None)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._fail(hook, stats, "it was cancelled", error)
        except NoRoom:
            return self._full(hook, stats)
        except Exception as error:
            return self._fail(hook, stats, type(error).__name__, error)
        finally:
            spent = perf_counter() - began
            stats.seconds += spent
            stats.longest_s = max(stats.longest_s, spent)
        return self._judge(hook, stats, valid, answer)

    def ask_now(self, hook: str, valid: tuple[type, ...], *arguments: object) -> Any:
        """Call a hook that may not wait."""
        if self.rests_until and self.resting:
            return self._refused(hook)
        stats = self._stats(hook)
        stats.calls += 1
        began = perf_counter()
        try:
            answer = self._call(hook, arguments)
        except NoRoom:
            return self._full(hook, stats)
        except (Exception, asyncio.CancelledError) as error:
            return self._fail(hook, stats, type(error).__name__, error)
        finally:
            spent = perf_counter() - began
            stats.seconds += spent
            stats.longest_s = max(stats.longest_s, spent)
        if isinstance(answer, Coroutine):
            answer.close()
            return self._fail(hook, stats, "it may not wait, and is a coroutine function", None)
        return self._judge(hook, stats, valid, answer)

    def figures(self) -> list[Figure]:
        """What the plugin shows at /metrics, without what is no figure.

        Nobody is denied anything because of them: the breaker hears of no failure here, nor of a
        success.
        """
        if not self.has("figures"):
            return []
        stats = self._stats("figures")
        stats.calls += 1
        try:
            answer = self._call("figures", ())
            if isinstance(answer, Coroutine):
                answer.close()
            began = WATCH.enter(self.name, "figures")  # a generator begins only here
            try:
                found = list(islice(answer, MAX_FIGURES))
            finally:
                WATCH.leave(began)
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            stats.failures += 1
            now = self._clock()
            if now >= stats.silent_until:
                stats.silent_until = now + _QUIET_S
                logger.error("plugin %s failed in figures: %s", self.name, error, exc_info=error)
            return []
        return [one for one in found if _is_figure(one)]

    def _stats(self, hook: str) -> HookStats:
        stats = self.stats.get(hook)
        if stats is None:
            stats = self.stats[hook] = HookStats()
        return stats

    def _call(self, hook: str, arguments: tuple[object, ...]) -> Any:
        began = WATCH.enter(self.name, hook)
        try:
            return getattr(self.plugin, hook)(*arguments)
        except SystemExit as error:
            raise RuntimeError(_EXIT) from error
        finally:
            WATCH.leave(began)

    async def _wait(self, hook: str, answer: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(Watched(self.name, hook, answer))
        try:
            done, _ = await asyncio.wait((task,), timeout=self._timeout)
        except BaseException:  # given up, perhaps without having been asked to go on
            task.cancel()
            task.add_done_callback(_swallow)
            raise
        if not done:
            task.cancel()
            task.add_done_callback(_swallow)
            raise _TooLate
        return task.result()

    def _judge(self, hook: str, stats: HookStats, valid: tuple[type, ...], answer: Any) -> Any:
        if not isinstance(answer, valid):
            what = f"an answer of the type {type(answer).__name__}"
            return self._fail(hook, stats, what, None)
        self._row_before = self._row
        self._row = 0
        self.rests_until = 0.0
        return answer

    def reject(self, hook: str, wrong: str) -> Failed:
        """An answer of the right type turned out to be nonsense: the hook has failed after all."""
        self._row = self._row_before
        return self._fail(hook, self._stats(hook), f"it made {wrong}", None)

    def _full(self, hook: str, stats: HookStats) -> Failed:
        """It couldn't do its work since the disk is full, which is no fault of the plugin."""
        stats.failures += 1
        return Failed(f"plugin {self.name} had no room in {hook}", spec.QUOTA_EXCEEDED)

    def _refused(self, hook: str) -> Failed:
        self._stats(hook).failures += 1
        return Failed(f"plugin {self.name} is resting after failures")

    def _fail(self, hook: str, stats: HookStats, what: str, error: BaseException | None) -> Failed:
        stats.failures += 1
        self._row += 1
        now = self._clock()
        if now >= stats.silent_until:
            stats.silent_until = now + _QUIET_S
            logger.error("plugin %s failed in %s: %s", self.name, hook, what, exc_info=error)
        # What was under way when the breaker opened and fails now opens no second one.
        if self._failures and self._row >= self._failures and now >= self.rests_until:
            self.rests_until = now + self._rest
            logger.error(
                "plugin %s failed %d times in a row: it is left alone for %g s, which counts as %s",
                self.name,
                self._row,
                self._rest,
                self.on_failure,
            )
        return Failed(f"plugin {self.name} failed in {hook}")


def _is_figure(one: object) -> bool:
    """Whether it is what its annotations say; a plugin may have made it in any way."""
    return (
        isinstance(one, Figure)
        and isinstance(one.name, str)
        and isinstance(one.value, int | float)
        and isinstance(one.labels, tuple)
        and all(map(_is_label, one.labels))
    )


def _is_label(one: object) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and all(isinstance(text, str) for text in one)


def _swallow(task: asyncio.Future[Any]) -> None:
    """What a hook that was given up says later interests nobody."""
    if not task.cancelled():
        task.exception()


class _Watch:
    """Who is on the loop at the moment, and a thread that says so when it lasts too long."""

    def __init__(self) -> None:
        self._now: tuple[str, str, float] | None = None
        self._thread: threading.Thread | None = None
        self._stop: threading.Event | None = None
        self._users = 0
        self._loop_thread = 0

    def start(self) -> None:
        """Watch the calling thread. Balanced by `stop`."""
        self._users += 1
        if self._thread is None:
            self._loop_thread = threading.get_ident()
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="mqttd-watch", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        self._users -= 1
        if self._users == 0 and self._stop is not None:
            self._stop.set()
            self._thread = None

    def enter(self, plugin: str, hook: str) -> tuple[str, str, float]:
        began = self._now = (plugin, hook, perf_counter())
        return began

    def leave(self, began: tuple[str, str, float]) -> None:
        self._now = None
        spent = perf_counter() - began[2]
        if spent >= BLOCKING_S:
            logger.warning("plugin %s blocked the loop for %.3f s in %s", began[0], spent, began[1])

    def _run(self, stop: threading.Event) -> None:
        told: tuple[str, str, float] | None = None
        while not stop.wait(_WATCH_S):
            now = self._now
            if now is None or now is told or perf_counter() - now[2] < _WATCH_S:
                continue
            told = now
            frame = sys._current_frames().get(self._loop_thread)
            where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
            logger.error(
                "plugin %s has been blocking the loop for %.1f s in %s, at: %s",
                now[0],
                perf_counter() - now[2],
                now[1],
                escape(where, 2000),
            )


WATCH: Final = _Watch()


class _Steps(Awaitable[AnswerT]):
    """A coroutine, step by step: what each step says to the loop, and back."""

    def __init__(self, steps: Generator[Any, Any, AnswerT], begun: Any = None) -> None:
        self._steps = steps
        self._begun = begun  # what the first step, taken already, waits for

    def __await__(self) -> Generator[Any, Any, AnswerT]:
        future = self._begun
        value: Any = None
        error: BaseException | None = None
        while True:
            if future is not None:
                try:
                    value = yield future
                except BaseException as caught:
                    error = caught
            try:
                future = self.step(value, error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            value = error = None
            if future is None:  # as asyncio.sleep(0) does
                yield None

    def step(self, value: Any, error: BaseException | None) -> Any:
        if error is not None:
            return self._steps.throw(error)
        return self._steps.send(value)


class Watched(_Steps[AnswerT]):
    """Runs what a hook returned, or work of a plugin beside the hooks, and times each step."""

    def __init__(self, plugin: str, hook: str, inner: Awaitable[AnswerT]) -> None:
        super().__init__(_steps_of(inner))
        self._inner = inner
        self._plugin = plugin
        self._hook = hook

    def __del__(self) -> None:
        if isinstance(self._inner, Coroutine):
            self._inner.close()  # or Python complains of one that was cancelled before it began

    def step(self, value: Any, error: BaseException | None) -> Any:
        began = WATCH.enter(self._plugin, self._hook)
        try:
            return super().step(value, error)
        except SystemExit as exit_:  # the loop would end with it
            raise RuntimeError(_EXIT) from exit_
        finally:
            WATCH.leave(began)


def _steps_of(inner: Awaitable[AnswerT]) -> Generator[Any, Any, AnswerT]:
    return (yield from inner.__await__())


def begin(work: Coroutine[Any, Any, AnswerT]) -> tuple[AnswerT | None, Awaitable[AnswerT] | None]:
    """Run a coroutine as far as it goes without waiting: its result, or what is left of it."""
    steps = _steps_of(work)
    try:
        future = steps.send(None)
    except StopIteration as end:
        return end.value, None
    return None, _Steps(steps, future)
