"""The course that every run takes, a flood's and a scenario's: work, silence, books, goodbye.

Owns what they have in common: the frame around the work, with its ends; the wait for silence; a
look once a second (samples, pings); how interrupts and broken connections end a run. What the work
is, who is connected and what is still owed is said by `Flood` and `Run`, which are courses.

How a run ends. Normally: when its work is done it waits until nothing that can still come is
missing, or until nothing has come for long enough. Broken off: something failed that must not, or
somebody interrupted; the work stops at once, what is on its way may still settle, and the books are
closed with what was seen. The second interrupt doesn't wait either. Load always ends by itself.

Patience is counted in polls, not by the clock: before each poll the loop has looked at every
socket. While this process doesn't run, be it for seconds, nobody's silence grows.

Must not know: stages, rates, topics, verdicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from device_sim.engine.link import ConnectionEnded, Link, Switchboard
from device_sim.engine.process import ProcessError
from device_sim.judge.histogram import Histogram
from device_sim.judge.ledger import Ledger
from device_sim.judge.verdict import Verdict
from device_sim.results.result import Distribution

POLL_S: Final = 0.05
GRACE_S: Final = 0.25
"""After everything has arrived, this long is listened for copies that nobody needs."""
STALL_S: Final = 2.0
"""A closed loop that has heard nothing for this long stops waiting for what is outstanding."""
SAMPLE_S: Final = 1.0
GOODBYE_S: Final = 1.0
"""So long connections get to close in good manners."""


class Sample:
    """One line of progress: totals since the start, and what the last interval brought."""

    def __init__(self, phase: str, elapsed_s: float, connected: int) -> None:
        self.phase = phase
        self.elapsed_s = elapsed_s
        self.connected = connected
        self.sent = 0
        self.received = 0
        self.sent_per_s = 0.0
        self.received_per_s = 0.0
        self.outstanding = 0
        self.p50_us = 0.0
        self.p99_us = 0.0
        self.latency = Distribution()


def polls(seconds: float) -> int:
    """How many polls take at least that long."""
    return math.ceil(seconds / POLL_S)


class Idle:
    """For how many polls a number has not changed."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._last = number()
        self._polls = 0

    def poll(self) -> int:
        """To be called once a poll; how many of them have seen no change."""
        current = self._number()
        self._polls = self._polls + 1 if current == self._last else 0
        self._last = current
        return self._polls


class Course(ABC):
    """One run and everything that was seen of it; `begun` is when its time line starts, or 0."""

    def __init__(
        self, paced: bool, on_sample: Callable[[Sample], None], begun: float = 0.0
    ) -> None:
        self.run_id = int.from_bytes(os.urandom(4), "big")
        self.started = datetime.now(UTC).astimezone()
        self.begun = begun
        self.ledger = Ledger(self.run_id, paced)
        self.loop_name = ""
        self.phase = "starting"
        self.broken_off = ""
        self.verdict = Verdict()
        self.violations: dict[str, int] = {}
        self.series: list[Sample] = []
        self.pacing_lag = Histogram()
        self.connect_s = 0.0
        self.publish_s = 0.0
        self.settle_s = 0.0
        self.cpu_s = 0.0
        self.received_in_time = 0
        self.halt = asyncio.Event()
        self._on_sample = on_sample
        self._interrupted = False
        self._abandoned = False

    # What a flood and a scenario fill in

    def prepare(self) -> None:  # noqa: B027 (not every course has something to prepare)
        """What needs the switchboard and comes before the work."""

    @abstractmethod
    async def work(self) -> None:
        """Everything up to and with the silence at the end."""

    @abstractmethod
    def links_up(self) -> Iterable[Link]:
        """The links of all that are connected."""

    @abstractmethod
    def outstanding(self) -> int:
        """How much may still come to connections that are up."""

    @abstractmethod
    def activity(self) -> int:
        """A number that changes whenever anything is sent, received, acknowledged or connected."""

    @abstractmethod
    def close_books(self) -> None:
        """The last look at what was seen; `verdict` and `violations` are known afterwards."""

    @abstractmethod
    def part(self) -> list[Link]:
        """Disconnect everybody; the links that are closing now."""

    def look(self, rounds: int) -> None:  # noqa: B027 (nor to do once a second)
        """What else is done once a second; `rounds` counts from 1."""

    # The course

    async def run(self) -> None:
        """All of it; never raises for what a broker or a network does."""
        loop = asyncio.get_running_loop()
        self.loop_name = type(loop).__module__.split(".")[0]
        self.begun = self.begun or time.monotonic()
        self.switchboard = Switchboard(loop, self.ledger)
        self.prepare()
        keeper = loop.create_task(self._keep_time())
        try:
            await self.work()
        except (ConnectionEnded, ProcessError, OSError) as error:
            self.break_off(str(error))
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            self.close_books()
            self.phase = "leaving"
            await self.leave()

    def break_off(self, why: str) -> None:
        """Leave out what is still to come; the first reason goes to the result."""
        if not self.halt.is_set():
            self.broken_off = why
            self.halt.set()

    def interrupt(self) -> None:
        """Somebody wants an end: no more work, the second time no more waiting either."""
        if self._interrupted:
            self._abandoned = True
        self._interrupted = True
        self.break_off("interrupted")

    @property
    def at_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begun

    def idle(self) -> Idle:
        """For how many polls nothing has happened."""
        return Idle(self.activity)

    async def settle(self, patience_s: float) -> bool:
        """Wait until nothing is missing, or nothing has come for so long; whether nothing is."""
        idle = self.idle()
        while not self._abandoned:
            await asyncio.sleep(POLL_S)
            still = idle.poll()
            if still >= polls(GRACE_S) and self.outstanding() == 0:
                return True
            if still >= polls(patience_s):
                return False
        return False

    async def leave(self) -> None:
        """Disconnect in good manners, and don't wait for a broker that doesn't answer."""
        links = self.part()
        deadline = time.monotonic() + GOODBYE_S
        while time.monotonic() < deadline and not all(link.lost for link in links):
            await asyncio.sleep(0.01)
        for link in links:
            if not link.lost and link.transport is not None:
                link.transport.abort()

    # Once a second

    async def _keep_time(self) -> None:
        """Samples for the progress view, pings for silent connections, and `look`."""
        ledger = self.ledger
        latencies = ledger.from_intended if ledger.paced else ledger.from_sent
        last = Sample(self.phase, 0.0, 0)
        snapshot = latencies.copy()
        next_at = self.begun + SAMPLE_S
        rounds = 0
        while True:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at += SAMPLE_S
            rounds += 1
            sample = self._sample(last, latencies.since(snapshot))
            snapshot = latencies.copy()
            self.series.append(sample)
            self._on_sample(sample)
            last = sample
            self._ping()
            self.look(rounds)

    def _sample(self, last: Sample, part: Histogram) -> Sample:
        sample = Sample(self.phase, self.at_s, sum(1 for _ in self.links_up()))
        sample.sent = sum(sender.sent for sender in self.ledger.senders)
        sample.received = sum(sender.arrived for sender in self.ledger.senders)
        sample.outstanding = self.outstanding()
        seconds = sample.elapsed_s - last.elapsed_s
        if seconds > 0:
            sample.sent_per_s = (sample.sent - last.sent) / seconds
            sample.received_per_s = (sample.received - last.received) / seconds
        sample.p50_us = part.percentile(50)
        sample.p99_us = part.percentile(99)
        sample.latency = Distribution.of(part)
        return sample

    def _ping(self) -> None:
        now_ns = time.monotonic_ns()
        for link in self.links_up():
            keep_alive = link.client.keep_alive
            idle_ns = now_ns - link.last_write_ns
            if keep_alive and idle_ns > keep_alive * 500_000_000 and not link.frozen:
                link.client.ping()
                self.switchboard.mark_dirty(link)
