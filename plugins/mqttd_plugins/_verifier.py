"""Checking passwords beside the event loop, a few at a time, and not twice in a row.

Owns: the line in which logins wait for a hash, and the memory of which passwords were right. A
password hash costs tens of milliseconds of CPU on purpose, so a thousand clients that come back at
once are a minute of it. At most `parallel` hashes are computed at any time, in threads; the rest
wait here, as coroutines, so that one whose client has given up costs nothing. Whose turn won't come
within `patience`, by what hashes took lately, is sent away at once (`Busy`): to let all of a crowd
wait, and refuse them in the same instant when the broker's own limit for a hook runs out, would
stall everybody else, and count as failures of the plugin.

What was right a moment ago is remembered for a while, under a keyed hash of user, stored hash and
password, so that a client on a bad line is hashed once; and who comes with the same three while a
hash is waited for gets the same answer, so that a fleet with one password is hashed once, too. The
key is made for this process and never leaves it. Wrong passwords are not remembered, so guessing
never becomes cheap.

Must not know: where users come from, MQTT.

Invariants: an unknown user costs a hash like a known one, at the cost of somebody who exists, the
same one for the same name; a changed hash is never vouched for by the memory of the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Self

from pydantic import Field, ValidationInfo, model_validator

from mqttd.api import BrokerServices, Duration, PluginConfig
from mqttd_plugins._hashes import PasswordHash, decoy
from mqttd_plugins._time_limits import check_waits

_KEY_BYTES: Final = 32
_FIRST_GUESS_S: Final = 0.05  # what a hash takes
_WEIGHT: Final = 0.2  # of the latest one in the average


class Busy(Exception):
    """It is not anybody's turn within `patience`: too many want to be checked at a time."""


class HashingConfig(PluginConfig):
    """How much of the machine checking passwords may have."""

    parallel: int | None = Field(default=None, ge=1, le=64)
    """Hashes computed at the same time; absent: half of the processors, at most four."""
    patience: Duration = Field(default=4.0, gt=0)
    """How long a login may wait for its turn before it is refused with 0x89, server busy; to be
    shorter than the plugin's `timeout`."""
    remember: Duration = Field(default=60.0, ge=0)
    """How long a right password needs no hash again; 0 for never."""
    remember_entries: int = Field(default=10_000, ge=1)
    """How many right passwords are remembered, the latest ones."""

    @model_validator(mode="after")
    def _in_time(self, info: ValidationInfo) -> Self:
        check_waits(info, patience=self.patience)
        return self


def processors() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Verifier:
    """Answers whether a password is right. For use on the event loop alone."""

    def __init__(self, broker: BrokerServices, config: HashingConfig) -> None:
        self._broker = broker
        self._config = config
        self.parallel = config.parallel or min(4, max(1, processors() // 2))
        self._slots = asyncio.Semaphore(self.parallel)
        self._waiting = 0
        self._hash_s = _FIRST_GUESS_S
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._under_way: dict[bytes, asyncio.Future[bool | None]] = {}
        self._right: OrderedDict[bytes, float] = OrderedDict()  # until when
        self._nobody = decoy()

    async def verify(self, user: str, stored: PasswordHash, password: bytes) -> bool:
        """Whether it is the user's password. Busy when its turn doesn't come."""
        mark = self._mark(user, stored, password)
        while not self._is_remembered(mark):
            under_way = self._under_way.get(mark)
            if under_way is None:
                return await self._lead(mark, stored, password)
            answer = await asyncio.shield(under_way)
            if answer is not None:
                return answer
        return True

    async def _lead(self, mark: bytes, stored: PasswordHash, password: bytes) -> bool:
        """Compute a hash, for all who come with the same mark meanwhile."""
        if self._waiting * self._hash_s > self._config.patience * self.parallel:
            self._broker.count("busy")
            raise Busy
        answer: bool | None = None
        told = self._under_way[mark] = asyncio.get_running_loop().create_future()
        try:
            await self._turn()
            try:
                self._broker.count("hashes")
                right, took_s = await self._broker.run_blocking(_timed, stored, password)
                answer = right
            finally:
                self._slots.release()
        finally:
            del self._under_way[mark]
            told.set_result(answer)  # None: who leads has given up, and another one has to
        self._hash_s += _WEIGHT * (took_s - self._hash_s)
        if right:
            self._remember(mark)
        return right

    async def _turn(self) -> None:
        self._waiting += 1
        self._broker.gauge("hashes_waiting", self._waiting)
        try:
            async with asyncio.timeout(self._config.patience):
                await self._slots.acquire()
        except TimeoutError:
            self._broker.count("busy")
            raise Busy from None
        finally:
            self._waiting -= 1
            self._broker.gauge("hashes_waiting", self._waiting)

    async def waste(self, user: str, known: Sequence[PasswordHash], password: bytes) -> None:
        """Spend on an unknown user what a known one would cost. Busy as `verify`.

        Which of the `known` hashes it is depends on the name, so that asking again tells nothing.
        """
        stored = self._nobody
        if known:
            name = user.encode("utf-8", "surrogatepass")
            number = hashlib.blake2b(name, key=self._key, digest_size=8).digest()
            stored = known[int.from_bytes(number, "big") % len(known)]
        # It must not be right by chance: the owner's password would answer sooner a second time.
        await self.verify(user, stored, b"\0" + password)

    def forget(self) -> None:
        """From now on every password is hashed again, once."""
        self._right.clear()

    def _mark(self, user: str, stored: PasswordHash, password: bytes) -> bytes:
        mark = hashlib.blake2b(key=self._key, digest_size=32)
        for part in (user.encode("utf-8", "surrogatepass"), stored.salt, stored.digest, password):
            mark.update(len(part).to_bytes(4, "big"))
            mark.update(part)
        return mark.digest()

    def _is_remembered(self, mark: bytes) -> bool:
        until = self._right.get(mark)
        if until is None:
            return False
        if until <= self._broker.now():
            del self._right[mark]
            return False
        self._broker.count("remembered")
        return True

    def _remember(self, mark: bytes) -> None:
        if self._config.remember <= 0:
            return
        self._right[mark] = self._broker.now() + self._config.remember
        self._right.move_to_end(mark)
        while len(self._right) > self._config.remember_entries:
            self._right.popitem(last=False)


def _timed(stored: PasswordHash, password: bytes) -> tuple[bool, float]:
    """The verdict, and the seconds that it took, waiting for a thread not included."""
    began = time.perf_counter()
    return stored.verify(password), time.perf_counter() - began
