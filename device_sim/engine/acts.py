"""One stage: its actions side by side, each carried out on the devices that it is for.

An action is a coroutine that sleeps until its time, does what it does, and undoes it when it is
over: a network is good again, a hung device goes on, a slow reader reads. Which devices a fraction
means is drawn from the seed, the number of the stage and that of the action. A stage with a
duration lasts as long, whatever its actions do; one without ends with the last action that has an
end of its own, and ends those that have none.

What the scenario does to the run is stamped on its time line. Must not know: how a device connects,
what a message looks like, what the verdict is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from device_sim.engine.client import CONNECTED
from device_sim.engine.control import Control
from device_sim.engine.course import POLL_S
from device_sim.engine.device import Device
from device_sim.engine.feed import NEVER, Feed, Pacer, Pour
from device_sim.engine.fleet import Fleet
from device_sim.engine.link import ConnectionEnded, Switchboard
from device_sim.engine.proxy import GOOD, Conditions, Proxy
from device_sim.engine.surroundings import Inhabitant, Surroundings
from device_sim.language import actions
from device_sim.language.arrival import MessageTimes, connect_times
from device_sim.language.chance import Chance
from device_sim.language.check import OPEN_ENDED
from device_sim.language.forecast import entries_of
from device_sim.language.scenario import PublishEntry, RequestEntry, Scenario, Stage
from device_sim.results.result import Fault

WAIT_S: Final = 30.0
"""How long `until` is waited for when the scenario doesn't say."""


class Running(Protocol):
    """The run that the actions are part of, as far as they need it."""

    scenario: Scenario
    fleet: Fleet
    around: Surroundings
    switchboard: Switchboard
    pacer: Pacer
    control: Control
    proxies: dict[str, Proxy]
    everybody: list[Device]
    halt: asyncio.Event
    broker_down: bool
    harmed: set[str]
    failed_connects: int
    connect_s: float

    @property
    def at_s(self) -> float: ...
    def fault(self, kind: str, detail: str = "", devices: int = 0) -> Fault: ...
    def troubled(self, device: Inhabitant) -> bool: ...
    def at_fault(self, devices: list[Device]) -> AbstractContextManager[None]: ...
    def publishing(self, more: int) -> None: ...
    def tick(self) -> None: ...
    async def settle(self, patience_s: float) -> bool: ...
    def break_off(self, why: str) -> None: ...


class Acts:
    """The actions of one stage of a run."""

    def __init__(self, run: Running, stage: Stage, number: int) -> None:
        self.run = run
        self.stage = stage
        self.number = number
        self._ends_at = NEVER / 1e9
        self._do: dict[str, Callable[[Any, int], Awaitable[None]]] = {
            "connect": self._connect,
            "publish": self._publish,
            "disconnect": self._disconnect,
            "slow_reader": self._slow_reader,
            "pause": self._pause,
            "kill_broker": self._kill_broker,
            "restart_broker": self._restart_broker,
            "network": self._network,
            "wait": self._wait,
        }

    async def play(self, begun: float) -> None:
        """The whole stage; what an action can't do ends the run."""
        stage = self.stage
        if stage.duration is not None:
            self._ends_at = begun + stage.duration
        tasks: list[asyncio.Future[Any]] = []
        with_end: list[asyncio.Future[Any]] = []
        for at, action in enumerate(stage.actions):
            task = asyncio.ensure_future(self._act(at, action.kind, action.body, begun))
            tasks.append(task)
            if _has_end(action.kind, action.body):
                with_end.append(task)
        halted = asyncio.ensure_future(self.run.halt.wait())
        try:
            while not halted.done() and not self._is_over(with_end):
                pending = {halted, *(task for task in tasks if not task.done())}
                left_s = max(0.0, self._ends_at - time.monotonic())
                timeout_s = None if stage.duration is None else left_s
                await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for each in tasks:
                    if each.done():
                        each.result()
        finally:
            for each in [*tasks, halted]:
                each.cancel()
            await asyncio.gather(*tasks, halted, return_exceptions=True)

    def _is_over(self, with_end: list[asyncio.Future[Any]]) -> bool:
        if self.stage.duration is not None:
            return time.monotonic() >= self._ends_at
        return all(task.done() for task in with_end)

    async def _act(self, at: int, kind: str, body: actions.Action, begun: float) -> None:
        await self._sleep(begun + body.at)
        await self._do[kind](body, at)

    async def _sleep(self, until: float) -> None:
        """Until an instant, or until the run is broken off."""
        with contextlib.suppress(TimeoutError):
            left_s = until - time.monotonic()
            if left_s > 0:
                await asyncio.wait_for(self.run.halt.wait(), left_s)

    async def _last(self, duration: float | None) -> None:
        """As long as an action takes: its duration, or until the stage ends it."""
        now = time.monotonic()
        await self._sleep(NEVER / 1e9 if duration is None else now + duration)

    def _chosen(self, body: Any, at: int, up: bool | None = None) -> list[Device]:
        """The devices an action is for; `up` says what they have to be for it."""
        groups = self.run.scenario.chosen(body.groups)
        devices = [device for group in groups for device in self.run.fleet.devices[group.name]]
        fraction = getattr(body, "fraction", 1.0)
        if fraction < 1.0:
            chance = Chance(self.run.scenario.seed, "chosen", self.number, at)
            count = max(1, round(fraction * len(devices)))
            devices = [devices[index] for index in chance.sample(count, len(devices))]
        return [device for device in devices if up is None or device.up == up]

    # Devices come and go

    async def _connect(self, body: actions.Connect, at: int) -> None:
        run = self.run
        devices = self._chosen(body, at, up=False)
        chance = Chance(run.scenario.seed, "arrival", self.number, at)
        times = connect_times(len(devices), body.over, body.arrival, chance)
        run.around.connect_timeout_s = body.timeout
        begun = time.monotonic()
        waiting = iter(zip(times, devices, strict=True))

        async def worker() -> None:
            for after_s, device in waiting:
                await self._sleep(begun + after_s)
                if run.halt.is_set():
                    return
                await self._connect_one(device, body.timeout)

        count = min(body.parallel, len(devices))
        workers = [asyncio.ensure_future(worker()) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            run.connect_s += time.monotonic() - begun

    async def _connect_one(self, device: Device, timeout_s: float) -> None:
        try:
            await device.connect(timeout_s)
        except ConnectionEnded:
            self.run.failed_connects += 1
            if not self.run.troubled(device):
                raise
            device.come_back()

    async def _disconnect(self, body: actions.Disconnect, at: int) -> None:
        devices = self._chosen(body, at, up=True)
        fault = self.run.fault("disconnect", _words(body.mode, body), len(devices))
        begun = time.monotonic()
        for place, device in enumerate(devices):
            if body.over:
                await self._sleep(begun + body.over * place / len(devices))
            if body.mode == "clean":
                device.leave()
            else:
                device.drop(body.mode)
        if body.over:
            fault.until_s = self.run.at_s

    async def _slow_reader(self, body: actions.SlowReader, at: int) -> None:
        devices = self._chosen(body, at, up=True)
        detail = _words(f"{body.rate} bytes/s", body)
        with self._fault("slow_reader", detail, devices, len(devices)):
            try:
                for device in devices:
                    device.read_slowly(body.rate)
                await self._last(body.duration)
            finally:
                for device in devices:
                    device.read_slowly(-1)

    async def _pause(self, body: actions.Pause, at: int) -> None:
        devices = self._chosen(body, at, up=True)
        with self._fault("pause", _words("", body), devices, len(devices)):
            try:
                for device in devices:
                    device.freeze(True)
                await self._last(body.duration)
            finally:
                for device in devices:
                    device.freeze(False)

    @contextlib.contextmanager
    def _fault(
        self, kind: str, detail: str, devices: list[Device], count: int = 0
    ) -> Iterator[Fault]:
        """It is on the time line with this number of devices, and these stand in it."""
        fault = self.run.fault(kind, detail, count)
        with self.run.at_fault(devices):
            try:
                yield fault
            finally:
                fault.until_s = self.run.at_s

    # The broker and the network

    async def _kill_broker(self, body: actions.KillBroker, at: int) -> None:
        run = self.run
        run.broker_down = True
        run.fault("kill_broker", body.signal)
        await run.control.kill(f"{self.number}.{at}", body.signal == "term")
        for device in run.everybody:
            device.broker_died()

    async def _restart_broker(self, body: actions.RestartBroker, at: int) -> None:
        run = self.run
        run.broker_down = True
        with self._fault("restart_broker", "", run.everybody):
            await run.control.restart(f"{self.number}.{at}", body.timeout)
            run.broker_down = False

    async def _network(self, body: actions.Network, at: int) -> None:
        run = self.run
        proxies = [run.proxies[group.name] for group in run.scenario.chosen(body.groups)]
        bad = Conditions(
            body.delay, body.jitter, float(body.bandwidth or 0), body.corrupt, body.cut
        )
        up = GOOD if body.direction == "down" else bad
        down = GOOD if body.direction == "up" else bad
        damaged, harmed = sum(proxy.corrupted for proxy in proxies), len(run.harmed)
        with self._fault(
            "network", _words(_conditions(body), body), self._chosen(body, at)
        ) as fault:
            try:
                for proxy in proxies:
                    proxy.change(up, down)
                await self._last(body.duration)
            finally:
                for proxy in proxies:
                    proxy.change(GOOD, GOOD)
                damaged = sum(proxy.corrupted for proxy in proxies) - damaged
                if damaged:
                    fault.devices = len(run.harmed) - harmed
                    fault.detail += f": {damaged} pieces damaged"

    async def _wait(self, body: actions.Wait, at: int) -> None:
        if body.until is None:
            await self._last(body.duration)
            return
        run = self.run
        patience_s = WAIT_S if body.timeout is None else body.timeout
        gives_up_at = time.monotonic() + patience_s
        devices = self._chosen(body, at)
        while not run.halt.is_set():
            if body.until == "settled":
                done = await run.settle(patience_s)
            else:
                done = all(device.up or not device.wanted for device in devices)
            if done:
                return
            if time.monotonic() >= gives_up_at:
                run.break_off(f"{self.stage.name}: not {body.until} within {patience_s:g} s")
                return
            await asyncio.sleep(POLL_S)

    # Publishing

    async def _publish(self, body: actions.Publish, at: int) -> None:
        del at
        run = self.run
        pours: list[Pour] = []
        loops: list[Feed] = []
        begun_ns = time.monotonic_ns()
        for group in run.scenario.chosen(body.groups):
            for key, entry in entries_of(group):
                if body.entries and entry.name not in body.entries:
                    continue
                devices = run.fleet.devices[group.name]
                feeds = run.fleet.entries[group.name, key]
                for device, feed in zip(devices, feeds, strict=True):
                    if entry.interval is not None:
                        pours.append(self._pour(device, key, entry, feed, body, begun_ns))
                    else:
                        _open_loop(feed, body.count)
                        loops.append(feed)
        run.publishing(1)
        try:
            for pour in pours:
                run.pacer.add(pour)
            for feed in loops:
                run.switchboard.mark_ready(feed)
            run.tick()
            if body.count is None:
                await self._last(body.duration)
            else:
                await self._until_sent(pours, loops, body.duration)
        finally:
            run.tick()  # what became due while the loop was busy is late, but it is sent
            run.switchboard.flush()
            for pour in pours:
                pour.stopped = True
                pour.feed.hold_back()
            for feed in loops:
                feed.limit = feed.sender.sent
            run.publishing(-1)

    def _pour(
        self,
        device: Device,
        key: str,
        entry: PublishEntry | RequestEntry,
        feed: Feed,
        body: actions.Publish,
        begun_ns: int,
    ) -> Pour:
        seed, group = self.run.scenario.seed, device.group
        times = MessageTimes(entry, seed, group.name, device.index, group.count, key, body.factor)
        # Nothing is due after its stage, however long a busy loop takes to end it.
        end_ns = min(NEVER, int(self._ends_at * 1e9))
        if body.duration is not None:
            end_ns = min(end_ns, begun_ns + int(body.duration * 1e9))
        next_s = None if times.even else times.next
        count = NEVER if body.count is None else body.count
        return Pour(feed, begun_ns, times.first_s, times.step_s, next_s, count, end_ns)

    async def _until_sent(
        self, pours: list[Pour], loops: list[Feed], duration: float | None
    ) -> None:
        """Until everything that was to be sent is, or as long as the action takes."""
        until = NEVER / 1e9 if duration is None else time.monotonic() + duration
        while not self.run.halt.is_set() and time.monotonic() < until:
            if all(_poured(pour) for pour in pours) and all(_looped(feed) for feed in loops):
                return
            await asyncio.sleep(POLL_S)


def _has_end(kind: str, body: Any) -> bool:
    """Whether an action ends by itself."""
    if kind not in OPEN_ENDED or body.duration is not None:
        return True
    return isinstance(body, actions.Publish) and body.count is not None


def _open_loop(feed: Feed, count: int | None) -> None:
    sent = feed.sender.sent
    feed.limit = min(feed.most_due, NEVER if count is None else sent + count)


def _poured(pour: Pour) -> bool:
    return pour.ended and (not pour.feed.dues or pour.feed.client.state != CONNECTED)


def _looped(feed: Feed) -> bool:
    return feed.sender.sent >= feed.limit


def _words(what: str, body: actions.GroupAction) -> str:
    """The details of a fault: what, and to whom."""
    parts = [what] if what else []
    fraction = getattr(body, "fraction", 1.0)
    if fraction < 1.0:
        parts.append(f"{fraction:.0%}")
    if body.groups:
        parts.append(", ".join(body.groups))
    return " ".join(parts)


def _conditions(body: actions.Network) -> str:
    parts = []
    if body.delay or body.jitter:
        parts.append(f"delay {body.delay * 1000:g} ms +{body.jitter * 1000:g} ms")
    if body.bandwidth:
        parts.append(f"{body.bandwidth} bytes/s")
    if body.cut:
        parts.append("cut")
    if body.corrupt:
        parts.append(f"corrupt {body.corrupt:.2%}")
    if body.direction != "both":
        parts.append(body.direction)
    return ", ".join(parts)
