"""What all devices of a run share: its identity and seed, its sockets, addresses and its ear.

A device tells `report` when it lost its connection or couldn't make one although nobody had told it
to. Those whose way to the broker goes through a proxy of the simulator (`carried`) stand in
`carried_links` by its port and their own, so that it is known whose bytes were damaged.
`restless` is true while links drop and devices sleep; at the end of a run everybody stays. Owned by
the run, read by everybody else. Must not know: what a device does, books, stages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from device_sim.engine.client import Client
from device_sim.engine.device_link import DeviceLink
from device_sim.engine.link import Switchboard
from device_sim.engine.tls import GroupTls
from device_sim.judge.histogram import Histogram
from device_sim.language.scenario import Group


class Inhabitant(Protocol):
    """A device, as far as what befalls it concerns the run."""

    client: Client
    group: Group
    faults: int
    fault_until: float
    harmed: bool

    def harm(self, link: DeviceLink) -> None: ...


class Surroundings:
    """`report` takes what befell a device: `lost` or `failed`, and why."""

    def __init__(self, run: int, seed: int, switchboard: Switchboard) -> None:
        self.run = run
        self.seed = seed
        self.prefix = ""
        self.begun_ns = time.monotonic_ns()
        self.unix_s = time.time()
        self.switchboard = switchboard
        self.connect_times = Histogram()
        self.connect_timeout_s = 10.0
        self.addresses: dict[str, tuple[str, int]] = {}
        self.tls: dict[str, GroupTls | None] = {}
        self.gate = asyncio.Semaphore(200)
        self.restless = True
        self.violations: dict[str, int] = {}
        self.carried: set[str] = set()
        self.carried_links: dict[tuple[int, int], tuple[Inhabitant, DeviceLink]] = {}
        self.report: Callable[[Inhabitant, str, str], None] = _ignore

    def violation(self, what: str) -> None:
        """Count something that a broker may not do."""
        self.violations[what] = self.violations.get(what, 0) + 1


def _ignore(device: Inhabitant, kind: str, words: str) -> None:
    """Nobody listens."""
