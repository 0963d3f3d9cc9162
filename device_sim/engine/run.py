"""The run of a scenario: stages one after the other, then silence, then the books are closed.

Owns what needs a clock and concerns everybody: the tick that sends what has become due, patience
with requests that nobody answered, the time line, the end of the stages. What an action does is in
`acts`, what a device does in `device`, who is owed what in `fleet`; the judgement is the ledger's.
The frame, with the ways in which a run ends, is `course`.

After the last stage nothing drops or sleeps any more, whoever is away comes back at once, and the
run waits for silence. It is broken off when the broker didn't start, a connection failed although
nothing in the scenario made it fail, a `wait` took too long, or a device couldn't come back at the
end; then the rest of the stages is left out. No run lasts for ever: every stage has an end, and so
has silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Final

from device_sim.engine.acts import Acts
from device_sim.engine.control import Control
from device_sim.engine.course import SAMPLE_S, STALL_S, Course, Sample
from device_sim.engine.device import Device
from device_sim.engine.feed import NEVER, Pacer
from device_sim.engine.fleet import Fleet
from device_sim.engine.link import Link
from device_sim.engine.proxy import Proxy
from device_sim.engine.surroundings import Inhabitant, Surroundings
from device_sim.engine.tls import contexts
from device_sim.judge.histogram import Histogram
from device_sim.language.scenario import Scenario
from device_sim.results.result import Fault, Stage

LEAST_TICK_S: Final = 0.001
AFTERMATH_S: Final = 3.0
"""So long after a fault the connection of a device that stood in it may fail because of it."""


class Run(Course):
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
        super().__init__(_is_paced(scenario), on_sample, begun or 0.0)
        self.scenario = scenario
        self.control = control or Control(scenario.broker)
        self.address = (scenario.broker.host, scenario.broker.known_port)
        self.place = place
        self.slices = slices
        self.stages: list[Stage] = []
        self.faults: list[Fault] = []
        self.round_trips = Histogram()
        self.unanswered = 0
        self.forgiven = 0
        self.failed_connects = 0
        self.lost_connections = 0
        self.lost_words = ""
        self.pacer = Pacer()
        self.proxies: dict[str, Proxy] = {}
        self.broker_down = False
        self.harmed: set[str] = set()
        """The devices of whose connections the scenario has damaged bytes."""
        self._publishing = 0
        self._publishing_since = (0.0, 0.0)
        self._tick_due_ns = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._tls = contexts(scenario)

    def prepare(self) -> None:
        self.around = Surroundings(self.run_id, self.scenario.seed, self.switchboard)
        self.around.tls = self._tls
        self.around.report = self._befell
        self.fleet = Fleet(self.scenario, self.around, self.place, self.slices)
        self.everybody = self.fleet.everybody()

    async def work(self) -> None:
        await self._address()
        await self._play()
        await self._drain()

    def links_up(self) -> Iterator[Link]:
        for device in self.everybody:
            if device.up and device.link is not None:
                yield device.link

    # Setting the stage

    async def _address(self) -> None:
        """Have a broker, and proxies for those groups whose network is going to be bad."""
        host, port = self.address = await self.control.start()
        for group in self.fleet.groups:
            self.around.addresses[group.name] = host, port
        for group in self.scenario.carried():
            proxy = self.proxies[group.name] = Proxy(host, port, self.scenario.seed)
            await proxy.open()
            proxy.on_damage = functools.partial(self._damaged, proxy.port)
            self.around.carried.add(group.name)
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

    def troubled(self, device: Inhabitant) -> bool:
        """This device's connection fails because the scenario makes it fail."""
        if self.broker_down or device.faults or device.harmed:
            return True
        return time.monotonic() < device.fault_until

    @contextlib.contextmanager
    def at_fault(self, devices: list[Device]) -> Iterator[None]:
        """Within it, and a little later, connections of these devices fail because of a fault."""
        for device in devices:
            device.faults += 1
        try:
            yield
        finally:
            for device in devices:
                device.faults -= 1
                device.fault_until = time.monotonic() + AFTERMATH_S

    def _damaged(self, proxy_port: int, port: int) -> None:
        """Bytes of a connection were corrupted on purpose."""
        known = self.around.carried_links.get((proxy_port, port))
        if known is not None:
            device, link = known
            device.harm(link)
            self.harmed.add(device.client.client_id)

    def _befell(self, device: Inhabitant, kind: str, words: str) -> None:
        """A device lost its connection or couldn't make one, and nobody had told it to."""
        client_id = device.client.client_id
        if kind == "failed":
            self.failed_connects += 1
        if self.troubled(device):
            return
        if kind == "lost":
            self.lost_connections += 1
        self.lost_words = self.lost_words or f"{client_id}: {words}"
        if device.group.reconnect is None:
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
            if device.harmed:
                continue  # what is open there may stay so
            if device.up:
                count += device.client.in_flight()
                for feed in device.feeds:
                    count += len(feed.dues) + (feed.open_request >= 0)
            elif device.wanted:
                count += 1
        return count

    def activity(self) -> int:
        count = self.ledger.received
        for sender in self.ledger.senders:
            count += 2 * sender.sent
        for device in self.everybody:
            count -= device.client.in_flight()
            count += device.up
        return count

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

    def close_books(self) -> None:
        now = time.monotonic()
        for device in self.everybody:
            device.close_books(now, self._abandoned)
            for what, count in device.client.violations.items():
                self.around.violations[what] = self.around.violations.get(what, 0) + count
        for dialogue in self.fleet.dialogues:
            if not self.broken_off:
                dialogue.close()
            self.round_trips.merge(dialogue.round_trips)
            self.unanswered += dialogue.unanswered
        self.violations = self.around.violations
        self.verdict = self.ledger.close()
        self.forgiven = self.ledger.forgiven
        self.forgiven += sum(device.client.forgiven for device in self.everybody)

    def part(self) -> list[Link]:
        return [link for device in self.everybody for link in device.part()]

    async def leave(self) -> None:
        """Disconnect, and end what was started."""
        await super().leave()
        for proxy in self.proxies.values():
            await proxy.close()
        await self.control.close()

    # Once a second

    def look(self, rounds: int) -> None:
        """End the patience with requests, help closed loops."""
        now_ns = time.monotonic_ns()
        for dialogue in self.fleet.dialogues:
            dialogue.expire(now_ns)
        if rounds % round(STALL_S) == 0:
            self._unstall()

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
