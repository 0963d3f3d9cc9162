"""When devices arrive and when messages are due: linear, poisson, in steps, in bursts.

Two questions with the same words:

    connect_times   so many devices within a time: how long after its begin each of them comes
    MessageTimes    messages without an end at a mean interval: when the next one is due

The mean is the same for all four. A poisson process with a known number of arrivals in a time is
that many independent uniform instants, in order. In steps, the rate rises from its n-th part to
all of it in n equal times; the instants are where the integral of that rate reaches the next whole
number. A burst of b messages stands for b intervals.

Pure: times are seconds from the begin of the action, chance comes in.
"""

from __future__ import annotations

import math

from device_sim.language.actions import ArrivalModel
from device_sim.language.chance import Chance
from device_sim.language.scenario import MessageArrival, Paced


def connect_times(
    count: int, over_s: float, arrival: str | ArrivalModel, chance: Chance
) -> list[float]:
    """When each of `count` devices begins to connect, in order."""
    if isinstance(arrival, ArrivalModel):
        if arrival.step is not None:
            steps = arrival.step.steps
            whole = steps * (steps + 1) / 2
            step_s = over_s / steps
            return [_on_stairs(whole * at / count, steps) * step_s for at in range(count)]
        assert arrival.burst is not None
        size = arrival.burst.size
        bursts = -(-count // size)
        return [at // size * over_s / bursts for at in range(count)]
    if arrival == "poisson":
        return sorted(chance.uniform(0.0, over_s) for _ in range(count))
    return [at * over_s / count for at in range(count)]


def _on_stairs(area: float, steps: int) -> float:
    """Where under stairs of 1, 2, … `steps`, each 1 wide, the area on the left is so large."""
    # The first n stairs hold n * (n + 1) / 2; behind the last one it goes on at its height.
    height = min(int((math.sqrt(8.0 * area + 1.0) + 1.0) / 2.0), steps)
    return height - 1 + (area - height * (height - 1) / 2) / height


class MessageTimes:
    """When the messages of one device and entry are due.

    `even` holds for linear arrivals: message n is due at `first_s + n * step_s`, and a caller may
    calculate that itself instead of asking.
    """

    def __init__(
        self,
        entry: Paced,
        seed: int,
        group: str,
        index: int,
        devices: int,
        key: str,
        factor: float = 1.0,
    ) -> None:
        """`key` names the entry among those of the device, `devices` is the size of the group."""
        interval = entry.interval
        if interval is None:
            raise ValueError("a closed loop has no times")
        self.step_s = interval / factor
        self._sent = 0
        self._at = 0.0
        self._steps = 0
        self._stair_s = 0.0
        self._burst = 1
        arrival = entry.arrival
        self.even = arrival == "linear"
        self._poisson = arrival == "poisson"
        if isinstance(arrival, MessageArrival):
            if arrival.step is not None:
                self._steps = arrival.step.steps
                self._stair_s = arrival.step.over / arrival.step.steps
            elif arrival.burst is not None:
                self._burst = arrival.burst.size
        self._phase = 0.0 if entry.together else index / devices
        self.first_s = self._phase * self.step_s * self._burst
        who = (group,) if entry.together else (group, index)
        self._chance = Chance(seed, "times", *who, key)

    def next(self) -> float:
        """Seconds from the begin of publishing to the next message; never less than the last."""
        number = self._sent
        self._sent += 1
        if self._poisson:
            self._at += self._chance.exponential(self.step_s)
            return self._at
        if self._steps:
            # One unit of area is a message at a rate of 1/steps of the full one.
            unit = self.step_s * self._steps / self._stair_s
            return _on_stairs((number + self._phase) * unit, self._steps) * self._stair_s
        return self.first_s + number // self._burst * self._burst * self.step_s
