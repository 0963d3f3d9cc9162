"""What became of every message: the counters of a bridge, and the identity that they hold.

    matched = queued + in flight + confirmed + dead-lettered + dropped (by reason)

`matched` is what the rules' filters matched, `queued` what waits in the outbox, `in flight` what
was taken out of it and isn't settled. A message that several rules send counts once: as
dead-lettered if it was so for one of them, else as confirmed if one was, else as dropped.

`failed` counts attempts, not messages, and stands outside of the identity.

Must not know: how anything is sent.
"""

from __future__ import annotations

from typing import Any, Final

from mqttd.api import BrokerServices

DROPPED: Final = 0
CONFIRMED: Final = 1
DEAD: Final = 2


class Way:
    """The figures of one direction."""

    def __init__(self, name: str, services: BrokerServices) -> None:
        self.taken = 0  # out of the outbox, or from the remote system
        self.confirmed = 0
        self.dead_lettered = 0
        self.failed = 0
        self.dropped: dict[str, int] = {}
        self._name = name
        self._services = services

    @property
    def settled(self) -> int:
        return self.confirmed + self.dead_lettered + sum(self.dropped.values())

    @property
    def in_flight(self) -> int:
        return self.taken - self.settled

    def take(self) -> None:
        self.taken += 1

    def untake(self) -> None:
        """It was not begun, and will come again."""
        self.taken -= 1

    def settle(self, outcome: int, reason: str = "") -> None:
        """One message is done with."""
        if outcome == CONFIRMED:
            self.confirmed += 1
            self._services.count(f"{self._name}_confirmed")
        elif outcome == DEAD:
            self.dead_lettered += 1
            self._services.count(f"{self._name}_dead_lettered")
        else:
            self._drop(reason)

    def fail(self) -> None:
        """An attempt has failed, the message hasn't yet."""
        self.failed += 1
        self._services.count(f"{self._name}_failed")

    def never_taken(self, reason: str) -> None:
        """The outbox dropped a message: it was full, or the message expired."""
        self.taken += 1
        self._drop(reason)

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self._services.count(f"{self._name}_dropped_{reason}")

    def report(self) -> dict[str, Any]:
        return {
            "in_flight": self.in_flight,
            "confirmed": self.confirmed,
            "failed": self.failed,
            "dead_lettered": self.dead_lettered,
            "dropped": dict(self.dropped),
        }
