"""The flood: connect, subscribe, publish in a closed loop or at a rate, settle.

Owns the order of these phases and what needs a clock in them: the pacing tick, and the help for a
closed loop that waits for what won't come. The frame around them, with the ways in which a run
ends, is `course`. How a connection is made is said in connect, the arithmetic is elsewhere (plan,
schedule, publisher), and so is the judgement (ledger, verdict).

Publishing stops at its time or count, or when the broker keeps the rest back for too long. A
connection that couldn't be made or is lost breaks the run off.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Final

from device_sim.engine.client import Client
from device_sim.engine.connect import Connector, tls_context
from device_sim.engine.course import POLL_S, STALL_S, Course, Sample, polls
from device_sim.engine.link import Link
from device_sim.engine.plan import Plan, Settings
from device_sim.engine.schedule import Schedule
from device_sim.judge.histogram import Histogram

TICK_NS: Final = 1_000_000
HELPS: Final = 3
"""So often a closed loop is helped in vain before it is given up: the second time works."""
UNLIMITED: Final = 2**62


class Flood(Course):
    """One flood and everything that was seen of it."""

    def __init__(self, settings: Settings, on_sample: Callable[[Sample], None]) -> None:
        super().__init__(settings.paced, on_sample)
        self.settings = settings
        self.plan = Plan(settings, self.run_id)
        self.phase = "connecting"
        self.connect_times = Histogram()
        self.sent_in_time = 0
        self.held_back = 0
        self.written_off = 0
        self._tls = tls_context(settings)
        self._subscribers: list[Link] = []
        self._publishers: list[Link] = []
        self._schedule: Schedule | None = None
        self._tick_due_ns = 0
        self._ticker: asyncio.TimerHandle | None = None

    async def work(self) -> None:
        await self._connect_all()
        if not self.halt.is_set():
            await self._publish()
            self.phase = "settling"
            begun = time.monotonic()
            await self.settle(self.settings.settle)
            self.settle_s = time.monotonic() - begun

    def links_up(self) -> Iterator[Link]:
        for link in (*self._subscribers, *self._publishers):
            if link.transport is not None and not link.lost:
                yield link

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
        connector = Connector(self.plan, self.switchboard, self._tls, self.halt)
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
        self.phase = "publishing"
        cpu = time.process_time()
        begun_ns = time.monotonic_ns()
        if settings.paced:
            self._start_schedule(begun_ns)
        else:
            for publisher in self.switchboard.publishers.values():
                publisher.limit = settings.count or UNLIMITED
                self.switchboard.mark_ready(publisher)
        end_ns = begun_ns + int(settings.seconds * 1e9) if settings.seconds else UNLIMITED
        idle = self.idle()
        stall = polls(STALL_S)
        patience = polls(settings.settle)
        if not settings.paced:
            patience = max(patience, HELPS * stall)
        polled = 0
        while not self.halt.is_set() and not self._all_sent():
            left_s = (end_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.halt.wait(), min(POLL_S, left_s))
            polled += 1
            if not settings.paced and polled % stall == 0:
                self._unstall()
            # Without a time limit, a broker that answers nothing must not keep the run for ever.
            if idle.poll() >= patience and not settings.seconds and self._all_due():
                break
        if not self.halt.is_set():
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

    def outstanding(self) -> int:
        """Deliveries and acknowledgements that are still owed by connections that are still up."""
        fan = self.plan.fan
        if any(link.lost for link in self._subscribers):
            fan = 0
        count = 0
        for link, sender in zip(self._publishers, self.ledger.senders, strict=True):
            if not link.lost:
                count += max(0, sender.sent * fan - sender.arrived) + link.client.in_flight()
        return count

    def activity(self) -> int:
        count = self.ledger.received
        for link, sender in zip(self._publishers, self.ledger.senders, strict=True):
            count += 2 * sender.sent - link.client.in_flight()
        return count

    def close_books(self) -> None:
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

    def part(self) -> list[Link]:
        links = [link for link in [*self._subscribers, *self._publishers] if link.transport]
        now_ns = time.monotonic_ns()
        for link in links:
            link.leaving = True
            link.client.disconnect()
            link.flush(now_ns)
            if link.transport is not None:
                link.transport.close()
        return links
