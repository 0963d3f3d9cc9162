"""The run: connect, subscribe, publish, settle, close the books.

Owns the order of these phases and what needs a clock in them: the pacing tick, keep-alive pings,
the watch for silence at the end. How a connection is made is said in connect, the arithmetic is
elsewhere (plan, schedule, publisher), and so is the judgement (ledger, verdict).

Patience is counted in polls, not by the clock: before each poll the loop has looked at every
socket. While this process doesn't run, be it for seconds, nobody's silence grows.

How a run ends. Normally: publishing stops at its time or count, then the run waits until everything
that is owed has arrived and all acknowledgements are complete, or nothing has come for `settle`
seconds. Broken off: a connection couldn't be made or was lost, or somebody interrupted; publishing
stops at once, what is on its way may still settle, and the books are closed with what was seen.
Load therefore always ends by itself.
"""

import asyncio
import contextlib
import gc
import math
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from device_sim.engine.client import Client
from device_sim.engine.connect import Connector, tls_context
from device_sim.engine.link import ConnectionEnded, Link, Switchboard
from device_sim.engine.plan import Plan, Settings
from device_sim.engine.schedule import Schedule
from device_sim.judge.histogram import Histogram
from device_sim.judge.ledger import Ledger
from device_sim.judge.verdict import Verdict
from device_sim.results.result import Distribution

TICK_NS: Final = 1_000_000
POLL_S: Final = 0.05
GRACE_S: Final = 0.25
"""After everything has arrived, this long is listened for copies that nobody needs."""
STALL_S: Final = 2.0
"""A closed loop that has heard nothing for this long stops waiting for what is outstanding."""
HELPS: Final = 3
"""So often a closed loop is helped in vain before it is given up: the second time works."""
SAMPLE_S: Final = 1.0
UNLIMITED: Final = 2**62


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


class Flood:
    """One run and everything that was seen of it."""

    def __init__(self, settings: Settings, on_sample: Callable[[Sample], None]) -> None:
        self.settings = settings
        self.run_id = int.from_bytes(os.urandom(4), "big")
        self.plan = Plan(settings, self.run_id)
        self.ledger = Ledger(self.run_id, settings.paced)
        self.loop_name = ""
        self.broken_off = ""
        self.verdict = Verdict()
        self.violations: dict[str, int] = {}
        self.series: list[Sample] = []
        self.connect_times = Histogram()
        self.pacing_lag = Histogram()
        self.connect_s = 0.0
        self.publish_s = 0.0
        self.settle_s = 0.0
        self.cpu_s = 0.0
        self.sent_in_time = 0
        self.received_in_time = 0
        self.held_back = 0
        self.written_off = 0
        self._tls = tls_context(settings)
        self._on_sample = on_sample
        self._subscribers: list[Link] = []
        self._publishers: list[Link] = []
        self._phase = "connecting"
        self.started = datetime.now().astimezone()
        self._started_at = time.monotonic()
        self._halt = asyncio.Event()
        self._interrupted = False
        self._abandoned = False
        self._schedule: Schedule | None = None
        self._tick_due_ns = 0
        self._ticker: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """All phases; never raises for what a broker or a network does."""
        loop = asyncio.get_running_loop()
        self.loop_name = type(loop).__module__.split(".")[0]
        self.switchboard = Switchboard(loop, self.ledger)
        self._started_at = time.monotonic()
        keeper = loop.create_task(self._keep_time())
        try:
            await self._connect_all()
            if not self._halt.is_set():
                await self._publish()
                await self._settle()
        except ConnectionEnded as ended:
            self.break_off(str(ended))
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            self._close_books()
            await self._leave()

    def break_off(self, why: str) -> None:
        """Stop publishing; the first reason goes to the report."""
        if not self._halt.is_set():
            self.broken_off = why
            self._halt.set()

    def interrupt(self) -> None:
        """Somebody wants an end: stop publishing, the second time stop waiting for arrivals too."""
        if self._interrupted:
            self._abandoned = True
        self._interrupted = True
        self.break_off("interrupted")

    # Connecting

    async def _connect_all(self) -> None:
        settings = self.settings
        begun = time.monotonic()
        for index in range(settings.subscribers):
            client = self._client("s", index)
            client.watcher = self.ledger.add_watcher()
            self._subscribers.append(Link(self.switchboard, client, self._lost))
        for index in range(settings.devices):
            client = self._client("p", index)
            client.senders.append(self.ledger.add_sender(settings.qos_of(index), settings.streams))
            self._publishers.append(Link(self.switchboard, client, self._lost))
        connector = Connector(self.plan, self.switchboard, self._tls, self._halt)
        self.connect_times = connector.times
        await connector.storm(self._subscribers)
        await connector.storm(self._publishers)
        self.connect_s = time.monotonic() - begun

    def _client(self, role: str, index: int) -> Client:
        # Letters and digits, at most 23: what every server has to accept. [MQTT-3.1.3-5]
        client_id = f"ds{self.run_id:08x}{role}{index}"
        return Client(client_id, self.settings.version, self.ledger.ready)

    def _lost(self, link: Link) -> None:
        watcher = link.client.watcher
        if watcher is not None:
            watcher.cut = True
        self.break_off(f"{link.client.client_id}: {link.client.error}")

    # Publishing

    async def _publish(self) -> None:
        settings = self.settings
        gc.collect()
        gc.freeze()
        self._phase = "publishing"
        cpu = time.process_time()
        begun_ns = time.monotonic_ns()
        if settings.paced:
            self._start_schedule(begun_ns)
        else:
            for publisher in self.switchboard.publishers.values():
                publisher.limit = settings.count or UNLIMITED
                self.switchboard.mark_ready(publisher)
        end_ns = begun_ns + int(settings.seconds * 1e9) if settings.seconds else UNLIMITED
        idle = Idle(self._activity)
        stall = polls(STALL_S)
        patience = polls(settings.settle)
        if not settings.paced:
            patience = max(patience, HELPS * stall)
        polled = 0
        while not self._halt.is_set() and not self._all_sent():
            left_s = (end_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._halt.wait(), min(POLL_S, left_s))
            polled += 1
            if not settings.paced and polled % stall == 0:
                self._unstall()
            # Without a time limit, a broker that answers nothing must not keep the run for ever.
            if idle.poll() >= patience and not settings.seconds and self._all_due():
                break
        if not self._halt.is_set():
            # What became due while the loop was busy is late, but it is sent.
            self._tick()
            self.switchboard.flush()
        self._stop_publishing()
        self.publish_s = (time.monotonic_ns() - begun_ns) / 1e9
        self.cpu_s = time.process_time() - cpu
        self.sent_in_time = sum(sender.sent for sender in self.ledger.senders)
        self.received_in_time = sum(sender.arrived for sender in self.ledger.senders)

    def _start_schedule(self, now_ns: int) -> None:
        settings = self.settings
        total = UNLIMITED
        if settings.count:
            total = settings.count * settings.devices
        if settings.seconds:
            total = min(total, round(settings.seconds * settings.rate * settings.devices))
        schedule = Schedule(settings.devices, settings.rate, now_ns, total)
        for index, publisher in self.switchboard.publishers.items():
            publisher.origin_ns = schedule.device_origin_ns(index)
            publisher.step_ns = schedule.step_ns
        self._schedule = schedule
        self._tick_due_ns = now_ns
        self._tick()

    def _tick(self) -> None:
        """The paced run's clock: what has become due since the last tick is sent now."""
        schedule = self._schedule
        if schedule is None:
            return
        now_ns = time.monotonic_ns()
        self.pacing_lag.record((now_ns - self._tick_due_ns) // 1000)
        for number in schedule.advance(now_ns):
            device = number % schedule.devices
            publisher = self.switchboard.publishers[device]
            publisher.limit = schedule.limit(device)
            self.switchboard.mark_ready(publisher)
        self._tick_due_ns = now_ns + TICK_NS
        self._ticker = self.switchboard.loop.call_later(TICK_NS / 1e9, self._tick)

    def _all_due(self) -> bool:
        """Nothing but the broker keeps the rest of the messages back."""
        schedule = self._schedule
        return schedule is None or schedule.done >= schedule.total

    def _unstall(self) -> None:
        """Let devices go on whose outstanding messages nobody has received since the last time."""
        for index, publisher in self.switchboard.publishers.items():
            if not self.switchboard.links[index].lost and publisher.write_off():
                self.switchboard.mark_ready(publisher)

    def _all_sent(self) -> bool:
        settings = self.settings
        if settings.paced:
            schedule = self._schedule
            if schedule is None or schedule.done < schedule.total:
                return False
            return sum(sender.sent for sender in self.ledger.senders) >= schedule.total
        if not settings.count:
            return False
        return all(sender.sent >= settings.count for sender in self.ledger.senders)

    def _stop_publishing(self) -> None:
        self._schedule = None
        if self._ticker is not None:
            self._ticker.cancel()
        for publisher in self.switchboard.publishers.values():
            sent = publisher.sender.sent
            if publisher.paced or self.settings.count:
                self.held_back += max(0, publisher.limit - sent)
            publisher.limit = sent

    # Settling

    def _outstanding(self) -> int:
        """Deliveries and acknowledgements that are still owed by connections that are still up."""
        fan = self.plan.fan
        if any(link.lost for link in self._subscribers):
            fan = 0
        count = 0
        for link, sender in zip(self._publishers, self.ledger.senders, strict=True):
            if not link.lost:
                count += max(0, sender.sent * fan - sender.arrived) + link.client.in_flight()
        return count

    def _activity(self) -> int:
        """A number that changes whenever anything is sent, received or acknowledged."""
        count = self.ledger.received
        for link, sender in zip(self._publishers, self.ledger.senders, strict=True):
            count += 2 * sender.sent - link.client.in_flight()
        return count

    async def _settle(self) -> None:
        self._phase = "settling"
        begun = time.monotonic()
        idle = Idle(self._activity)
        while not self._abandoned:
            await asyncio.sleep(POLL_S)
            patience = GRACE_S if self._outstanding() == 0 else self.settings.settle
            if idle.poll() >= polls(patience):
                break
        self.settle_s = time.monotonic() - begun

    def _close_books(self) -> None:
        if self._abandoned:
            for watcher in self.ledger.watchers:
                watcher.cut = True
        for link, sender in zip(self._publishers, self.ledger.senders, strict=True):
            sender.close(link.client.unanswered(), not link.lost and not self._abandoned)
        for publisher in self.switchboard.publishers.values():
            self.written_off += publisher.written_off
        for link in [*self._subscribers, *self._publishers]:
            for what, count in link.client.violations.items():
                self.violations[what] = self.violations.get(what, 0) + count
        self.verdict = self.ledger.close()

    async def _leave(self) -> None:
        """Disconnect in good manners, and don't wait for a broker that doesn't answer."""
        self._phase = "leaving"
        links = [link for link in [*self._subscribers, *self._publishers] if link.transport]
        now_ns = time.monotonic_ns()
        for link in links:
            link.leaving = True
            link.client.disconnect()
            link.flush(now_ns)
            if link.transport is not None:
                link.transport.close()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and not all(link.lost for link in links):
            await asyncio.sleep(0.01)
        for link in links:
            if not link.lost and link.transport is not None:
                link.transport.abort()

    # Once a second

    async def _keep_time(self) -> None:
        """Samples for the progress view, pings for silent connections."""
        last = Sample(self._phase, 0.0, 0)
        snapshot = self.ledger.from_sent.copy()
        next_at = self._started_at + SAMPLE_S
        while True:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at += SAMPLE_S
            latencies = self.ledger.from_intended if self.ledger.paced else self.ledger.from_sent
            part = latencies.since(snapshot)
            snapshot = latencies.copy()
            sample = self._sample(last, part)
            self.series.append(sample)
            self._on_sample(sample)
            last = sample
            self._ping()

    def _sample(self, last: Sample, part: Histogram) -> Sample:
        links = [*self._subscribers, *self._publishers]
        connected = sum(1 for link in links if link.transport is not None and not link.lost)
        sample = Sample(self._phase, time.monotonic() - self._started_at, connected)
        sample.sent = sum(sender.sent for sender in self.ledger.senders)
        sample.received = sum(sender.arrived for sender in self.ledger.senders)
        sample.outstanding = self._outstanding()
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
        for link in [*self._subscribers, *self._publishers]:
            keep_alive = link.client.keep_alive
            if keep_alive and now_ns - link.last_write_ns > keep_alive * 500_000_000:
                link.client.ping()
                self.switchboard.mark_dirty(link)
