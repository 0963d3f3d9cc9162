"""Chance that can be repeated: small generators, one for each thing that needs its own.

A generator is seeded with the scenario's seed and the names of what it is for (group, device,
entry). What one device draws therefore never depends on another one, on the number of worker
processes, or on the order in which devices come to their turn.

SplitMix64 (Steele, Lea, Flood 2014): one 64-bit number of state, where Python's own generator has
2.5 kB, of which ten thousand devices would have several each. Good enough for simulation, useless
for secrets. The sequence depends on nothing but the seed: neither on the Python version nor on the
machine, as far as its `math` agrees in the last digit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


class Chance:
    """A stream of random numbers."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, *names: str | int) -> None:
        text = "\0".join([str(seed), *(str(name) for name in names)])
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        self._state = int.from_bytes(digest, "big")

    def bits(self) -> int:
        """64 random bits."""
        self._state = state = (self._state + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        return state ^ (state >> 31)

    def random(self) -> float:
        """From 0 to just below 1."""
        return (self.bits() >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """From low to high."""
        return low + (high - low) * self.random()

    def below(self, end: int) -> int:
        """A whole number from 0 to end - 1."""
        return self.bits() * end >> 64

    def normal(self, mean: float, sd: float) -> float:
        """Normally distributed: Box and Muller, of whose two numbers one is used."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.random()))
        return mean + sd * radius * math.cos(math.tau * self.random())

    def exponential(self, mean: float) -> float:
        """Exponentially distributed: the time to the next of events that don't know each other."""
        return -mean * math.log(1.0 - self.random())

    def weighted(self, sums: Sequence[float]) -> int:
        """An index, by running sums of weights; the last of them is their total."""
        wanted = self.random() * sums[-1]
        for index, upper in enumerate(sums):
            if wanted < upper:
                return index
        return len(sums) - 1

    def sample(self, count: int, size: int) -> list[int]:
        """`count` different numbers below `size`, in order."""
        moved: dict[int, int] = {}
        drawn = []
        for end in range(size, size - count, -1):
            at = self.below(end)
            drawn.append(moved.get(at, at))
            moved[at] = moved.get(end - 1, end - 1)
        return sorted(drawn)


def running_sums(weights: Sequence[float]) -> list[float]:
    """What `Chance.weighted` takes."""
    sums: list[float] = []
    for weight in weights:
        sums.append(weight + (sums[-1] if sums else 0.0))
    return sums
