"""Checking passwords beside the event loop, a few at a time, and not twice in a row.

Owns: the line in which logins wait for a hash, and the memory of which passwords were right. A
password hash costs tens of milliseconds of CPU on purpose, so a thousand clients that come back at
once are a minute of it. At most `parallel` hashes are computed at any time, in threads; the rest
wait here, as coroutines, so that one whose client has given up costs nothing. Who has waited for
`patience` is sent away (`Busy`) before the broker's own limit for a hook runs out: that would count
as a failure of the plugin, and after a few of them nobody would be asked any more.

What was right a moment ago is remembered for `remember_s`, under a keyed hash of user, stored hash
and password, so that a fleet with one password, or a client on a bad line, is hashed once. The key
is made for this process and never leaves it. Whoever gets to the head of the line looks into the
memory again: the one before him may have had the same password. Wrong passwords are not
remembered, so guessing never becomes cheap.

Must not know: where users come from, MQTT.

Invariants: an unknown user costs a hash like a known one, at the cost of somebody who exists, the
same one for the same name; a changed hash is never vouched for by the memory of the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from pydantic import Field

from mqttd.api import BrokerServices, Duration, PluginConfig
from mqttd_plugins._hashes import PasswordHash, decoy

_KEY_BYTES: Final = 32


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
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # until when
        self._nobody = decoy()

    async def verify(self, user: str, stored: PasswordHash, password: bytes) -> bool:
        """Whether it is the user's password. Busy when its turn doesn't come."""
        mark = self._mark(user, stored, password)
        if self._is_remembered(mark):
            return True
        await self._turn()
        try:
            if self._is_remembered(mark):
                return True
            self._broker.count("hashes")
            right = await self._broker.run_blocking(stored.verify, password)
        finally:
            self._slots.release()
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
