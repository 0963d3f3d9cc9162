"""The run of a scenario: stages one after the other, then silence, then the books are closed.

Owns what needs a clock and concerns everybody: the tick that sends what has become due, a look
once a second (samples, pings, requests nobody answered), the time line, the wait for silence at the
end. What an action does is in `acts`, what a device does in `device`, who is owed what in `fleet`;
the judgement is the ledger's.

How a run ends. Normally: after the last stage nothing drops or sleeps any more, whoever is away
comes back at once, and the run waits until nothing that can still come is missing, or until nothing
has come for the scenario's `drain`. Broken off: somebody interrupted it, the broker didn't start, a
connection failed although nothing in the scenario made it fail, a `wait` took too long, or a device
couldn't come back at the end; then the rest of the stages is left out, and the books are closed
with what was seen. Patience is counted in polls, as in a flood. No run lasts for ever: every stage
has an end, and so has silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from device_sim.engine.acts import Acts
from device_sim.engine.control import Control
from device_sim.engine.feed import NEVER, Pacer
from device_sim.engine.fleet import Fleet
from device_sim.engine.flood import GRACE_S, POLL_S, SAMPLE_S, STALL_S, Idle, Sample, polls
from device_sim.engine.link import ConnectionEnded, Switchboard
from device_sim.engine.process import ProcessError
from device_sim.engine.proxy import Proxy
from device_sim.engine.surroundings import Surroundings
from device_sim.engine.tls import contexts
from device_sim.judge.histogram import Histogram
from device_sim.judge.ledger import Ledger
from device_sim.judge.verdict import Verdict
from device_sim.language.scenario import Group, Scenario
from device_sim.results.result import Distribution, Fault, Stage

LEAST_TICK_S: Final = 0.001
AFTERMATH_S: Final = 3.0
"""So long after a fault a connection may still fail because of it."""


class Run:
    """One run, or the part of one that this process drives, and everything that was seen of it."""

    def __init__(
        self,
        scenario: Scenario,
        on_sample: Callable[[Sample], None],
        *,
        control: Control | None = None,
        place: int = 0,
        slices: int = 1,
        begun: float | None = None,
    ) -> None:
        """`begun` is the instant from which its time line counts; None: when it runs."""
        self.scenario = scenario
        self.run_id = int.from_bytes(os.urandom(4), "big")
        self.started = datetime.now(UTC).astimezone()
        self.control = control or Control(scenario.broker)
        self.address = (scenario.broker.host, scenario.broker.known_port)
        self.place = place
        self.slices = slices
        self.begun = begun or 0.0
        self.ledger = Ledger(self.run_id, _is_paced(scenario))
        self.loop_name = ""
        self.broken_off = ""
        self.phase = "starting"
        self.verdict = Verdict()
        self.violations: dict[str, int] = {}
        self.stages: list[Stage] = []
        self.faults: list[Fault] = []
        self.series: list[Sample] = []
        self.round_trips = Histogram()
        self.pacing_lag = Histogram()
        self.unanswered = 0
        self.failed_connects = 0
        self.lost_connections = 0
        self.lost_words = ""
        self.connect_s = 0.0
        self.publish_s = 0.0
        self.settle_s = 0.0
        self.cpu_s = 0.0
        self.received_in_time = 0
        self.halt = asyncio.Event()
        self.pacer = Pacer()
        self.proxies: dict[str, Proxy] = {}
        self.broker_down = False
        self.fault_until = 0.0
        self._on_sample = on_sample
        self._abandoned = False
        self._interrupted = False
        self._publishing = 0
        self._publishing_since = (0.0, 0.0)
        self._tick_due_ns = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._tls = contexts(scenario)

    async def run(self) -> None:
        """All of it; never raises for what a broker or a network does."""
        loop = asyncio.get_running_loop()
        self.loop_name = type(loop).__module__.split(".")[0]
        if not self.begun:
            self.begun = time.monotonic()
        self.switchboard = Switchboard(loop, self.ledger)
        self.around = Surroundings(self.run_id, self.scenario.seed, self.switchboard)
        self.around.tls = self._tls
        self.around.report = self._befell
        self.fleet = Fleet(self.scenario, self.around, self.place, self.slices)
        self.everybody = self.fleet.everybody()
        keeper = loop.create_task(self._keep_time())
        try:
            await self._address()
            await self._play()
            await self._drain()
        except (ConnectionEnded, ProcessError, OSError) as error:
            self.break_off(str(error))
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            self._close_books()
            await self._leave()

    def break_off(self, why: str) -> None:
        """Leave out what is still to come; the first reason goes to the result."""
        if not self.halt.is_set():
            self.broken_off = why
            self.halt.set()

    def interrupt(self) -> None:
        """Somebody wants an end: no more stages, the second time no more waiting either."""
        if self._interrupted:
            self._abandoned = True
        self._interrupted = True
        self.break_off("interrupted")

    @property
    def at_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begun

    # Setting the stage

    async def _address(self) -> None:
        """Have a broker, and proxies for those groups whose network is going to be bad."""
        host, port = self.address = await self.control.start()
        for group in self.fleet.groups:
            self.around.addresses[group.name] = host, port
        for group in self.scenario.carried():
            proxy = self.proxies[group.name] = Proxy(host, port, self.scenario.seed)
            await proxy.open()
            self.around.addresses[group.name] = "127.0.0.1", proxy.port

    async def _play(self) -> None:
        gc.collect()
        gc.freeze()
        for number, stage in enumerate(self.scenario.stages):
            if self.halt.is_set():
                return
            began = await self.control.stage(number)
            self.phase = stage.name
            at_s = began - self.begun
            await Acts(self, stage, number).play(began)
            self.stages.append(Stage(name=stage.name, at_s=at_s, until_s=self.at_s))

    # Publishing

    def publishing(self, more: int) -> None:
        """One `publish` action has begun (1) or ended (-1): that is when speed is measured."""
        before = self._publishing
        self._publishing += more
        now, cpu = time.monotonic(), time.process_time()
        if not before and self._publishing:
            self._publishing_since = (now, cpu)
        elif before and not self._publishing:
            self.publish_s += now - self._publishing_since[0]
            self.cpu_s += cpu - self._publishing_since[1]
            self.received_in_time = self.ledger.received

    def tick(self) -> None:
        """Send what has become due by now, and come back when more does."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        now_ns = time.monotonic_ns()
        if 0 < self._tick_due_ns <= now_ns:
            self.pacing_lag.record((now_ns - self._tick_due_ns) // 1000)
        for feed in self.pacer.advance(now_ns):
            self.switchboard.mark_ready(feed)
        self._tick_due_ns = 0
        next_ns = self.pacer.next_ns()
        if next_ns < NEVER:
            wait_s = max(LEAST_TICK_S, (next_ns - now_ns) / 1e9)
            self._tick_due_ns = now_ns + int(wait_s * 1e9)
            self._ticker = self.switchboard.loop.call_later(wait_s, self.tick)

    # The time line

    def fault(self, kind: str, detail: str = "", devices: int = 0) -> Fault:
        """Something begins that the scenario does to the run."""
        fault = Fault(at_s=self.at_s, kind=kind, detail=detail, devices=devices)
        self.faults.append(fault)
        return fault

    def troubled(self, group: Group) -> bool:
        """Connections of this group fail because the scenario makes them fail."""
        proxy = self.proxies.get(group.name)
        bad = proxy is not None and not (proxy.up.clear and proxy.down.clear)
        return self.broker_down or bad or time.monotonic() < self.fault_until

    def aftermath(self) -> None:
        """A fault is over; what it broke may show a little later."""
        self.fault_until = time.monotonic() + AFTERMATH_S

    def _befell(self, group: Group, client_id: str, kind: str, words: str) -> None:
        """A device lost its connection or couldn't make one, and nobody had told it to."""
        if kind == "failed":
            self.failed_connects += 1
        if self.troubled(group):
            return
        if kind == "lost":
            self.lost_connections += 1
        self.lost_words = self.lost_words or f"{client_id}: {words}"
        if group.reconnect is None:
            self.break_off(f"{client_id}: {words}")
        last = self.faults[-1] if self.faults else None
        name = f"connection {kind}"
        if last is not None and last.kind == name and self.at_s - last.at_s < SAMPLE_S:
            last.devices += 1
        else:
            self.fault(name, words, 1)

    # Silence

    def outstanding(self) -> int:
        """Deliveries, wills, acknowledgements and responses that may still come."""
        count = self.ledger.missing()
        for device in self.everybody:
            if device.up:
                count += device.client.in_flight()
                for feed in device.feeds:
                    count += len(feed.dues) + (feed.open_request >= 0)
            elif device.wanted:
                count += 1
        return count

    def _activity(self) -> int:
        """A number that changes whenever anything is sent, received, acknowledged or connected."""
        count = self.ledger.received
        for sender in self.ledger.senders:
            count += 2 * sender.sent
        for device in self.everybody:
            count -= device.client.in_flight()
            count += device.up
        return count

    async def settle(self, patience_s: float) -> bool:
        """Wait until nothing is missing, or nothing has come for so long; whether nothing is."""
        idle = Idle(self._activity)
        while not self._abandoned:
            await asyncio.sleep(POLL_S)
            still = idle.poll()
            if still >= polls(GRACE_S) and self.outstanding() == 0:
                return True
            if still >= polls(patience_s):
                return False
        return False

    async def _drain(self) -> None:
        self.phase = "draining"
        begun = time.monotonic()
        self.around.restless = False
        if not self.broken_off:
            for device in self.everybody:
                device.hurry()
        await self.settle(self.scenario.drain)
        self._miss_who_stayed_away()
        self.settle_s = time.monotonic() - begun

    def _miss_who_stayed_away(self) -> None:
        """What is owed to a device that can't come back is unknown: that is no good end."""
        away = [device for device in self.everybody if device.wanted and not device.up]
        if away:
            client = away[0].client
            others = f" and {len(away) - 1} more" if len(away) > 1 else ""
            why = f": {client.error}" if client.error else ""
            self.break_off(f"{client.client_id}{others} couldn't come back at the end{why}")

    # The end

    def _close_books(self) -> None:
        now = time.monotonic()
        for device in self.everybody:
            device.close_books(now, self._abandoned)
            for what, count in device.client.violations.items():
                self.around.violations[what] = self.around.violations.get(what, 0) + count
        for dialogue in self.fleet.dialogues:
            self.round_trips.merge(dialogue.round_trips)
            self.unanswered += dialogue.unanswered
        self.violations = self.around.violations
        self.verdict = self.ledger.close()

    async def _leave(self) -> None:
        """Disconnect in good manners, don't wait for a broker that doesn't answer, end it."""
        self.phase = "leaving"
        links = [link for device in self.everybody for link in device.part()]
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and not all(link.lost for link in links):
            await asyncio.sleep(0.01)
        for link in links:
            if not link.lost and link.transport is not None:
                link.transport.abort()
        for proxy in self.proxies.values():
            await proxy.close()
        await self.control.close()

    # Once a second

    async def _keep_time(self) -> None:
        """Samples for the progress view, pings for silent connections, ends of patience."""
        last = Sample(self.phase, 0.0, 0)
        snapshot = self.ledger.from_sent.copy()
        next_at = self.begun + SAMPLE_S
        rounds = 0
        while True:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at += SAMPLE_S
            rounds += 1
            latencies = self.ledger.from_intended if self.ledger.paced else self.ledger.from_sent
            sample = self._sample(last, latencies.since(snapshot))
            snapshot = latencies.copy()
            self.series.append(sample)
            self._on_sample(sample)
            last = sample
            self._ping()
            now_ns = time.monotonic_ns()
            for dialogue in self.fleet.dialogues:
                dialogue.expire(now_ns)
            if rounds % round(STALL_S) == 0:
                self._unstall()

    def _sample(self, last: Sample, part: Histogram) -> Sample:
        connected = sum(1 for device in self.everybody if device.up)
        sample = Sample(self.phase, self.at_s, connected)
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
        for device in self.everybody:
            link = device.link
            if link is None or link.frozen or not device.up:
                continue
            keep_alive = device.client.keep_alive
            if keep_alive and now_ns - link.last_write_ns > keep_alive * 500_000_000:
                device.client.ping()
                self.switchboard.mark_dirty(link)

    def _unstall(self) -> None:
        """Let closed loops go on whose outstanding messages nobody has received for a while."""
        for index, publisher in self.switchboard.publishers.items():
            if publisher.paced or not publisher.fan or self.switchboard.links[index].lost:
                continue
            if publisher.write_off():
                self.switchboard.mark_ready(publisher)


def _is_paced(scenario: Scenario) -> bool:
    """Some messages have instants at which they are due."""
    return any(
        entry.interval is not None
        for group in scenario.chosen([])
        for entry in [*group.publish, *group.request]
    )
