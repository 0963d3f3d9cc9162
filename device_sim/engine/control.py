"""The broker of a run, and the pace of its stages, as one process of the run sees them.

Alone, a run starts the broker itself, if the scenario wants one started, and its stages begin when
it gets to them. As one of several workers it asks their parent for both, see `workers`.
"""

from __future__ import annotations

import time

from device_sim.engine.process import BrokerProcess
from device_sim.language.scenario import Broker


class Control:
    """What a run that is alone does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._process: BrokerProcess | None = None

    async def start(self) -> tuple[str, int]:
        """Have a broker; its address. ProcessError when it doesn't start."""
        broker = self._broker
        launch = broker.start
        if launch is None:
            return broker.host, broker.known_port
        self._process = BrokerProcess(
            launch.command, launch.files, launch.ready, host=broker.host, port=broker.port
        )
        await self._process.start(launch.timeout)
        return broker.host, self._process.port

    async def stage(self, number: int) -> float:
        """Wait until a stage may begin; the instant, by the monotonic clock."""
        del number
        return time.monotonic()

    async def kill(self, action: str, gently: bool) -> None:
        """End the broker: SIGTERM or SIGKILL. `action` names the one of the scenario."""
        del action
        if self._process is not None:
            await (self._process.terminate() if gently else self._process.kill())

    async def restart(self, action: str, timeout_s: float) -> None:
        """Start it again; ProcessError when it doesn't."""
        del action
        if self._process is not None:
            await self._process.start(timeout_s)

    async def close(self) -> None:
        """The run is over: end a broker that was started."""
        if self._process is not None:
            await self._process.close()
