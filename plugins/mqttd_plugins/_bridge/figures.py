"""What became of every message: the counters of a bridge, and the identity that they hold.

    matched = queued + in flight + confirmed + dead-lettered (by reason) + dropped (by reason)

`matched` is what the rules' filters matched, `queued` what waits in the outbox, `in flight` what
was taken out of it and isn't settled. A message that several rules send counts once: as
dead-lettered if it was so for one of them, else as confirmed if one was, else as dropped.

`failed` counts attempts, not messages, and stands outside of the identity.

Must not know: how anything is sent, and who shows the figures. They are plain integers here, and
nothing is told to anybody when one grows: `/metrics` and the operator read them when they ask, so
that what they see belongs to one instant.

Invariants: the reasons are closed sets; `/metrics` has each from the start with 0, but for those of
the broker's own that end a message in the outbox once in a while.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from mqttd.api import Figure

DROPPED: Final = 0
CONFIRMED: Final = 1
DEAD: Final = 2

# Why a message is dead-lettered.
TARGET: Final = "target"  # no target can be made of it
FUNCTION: Final = "function"  # the rule's function failed
REFUSED: Final = "refused"  # the other side will never take it
TRIES: Final = "tries"  # it was tried as often as a message is
UNREADABLE: Final = "unreadable"  # it is no envelope

_DEAD: Final = {
    "out": (TARGET, FUNCTION, REFUSED, TRIES),
    "in": (TARGET, FUNCTION, REFUSED, UNREADABLE),
}
_DROPPED: Final = {
    "out": ("no_rule", "function", "hops", "queue_full", "expired"),
    "in": ("function", "hops", "loop", "expired"),
}


class Way:
    """The figures of one direction."""

    def __init__(self, name: Literal["out", "in"]) -> None:
        self.taken = 0  # out of the outbox, or from the remote system
        self.confirmed = 0
        self.failed = 0
        self.dead_letters: dict[str, int] = {}  # by reason
        self.dropped: dict[str, int] = {}  # by reason
        self._name: Literal["out", "in"] = name

    @property
    def dead_lettered(self) -> int:
        return sum(self.dead_letters.values())

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
        """One message is done with; `reason` unless it is confirmed."""
        if outcome == CONFIRMED:
            self.confirmed += 1
            return
        ended = self.dead_letters if outcome == DEAD else self.dropped
        ended[reason] = ended.get(reason, 0) + 1

    def fail(self) -> None:
        """An attempt has failed, the message hasn't yet."""
        self.failed += 1

    def never_taken(self, reason: str) -> None:
        """The outbox dropped a message: it was full, or the message expired."""
        self.taken += 1
        self.settle(DROPPED, reason)

    def report(self) -> dict[str, Any]:
        """For the operator."""
        return {
            "in_flight": self.in_flight,
            "confirmed": self.confirmed,
            "failed": self.failed,
            "dead_lettered": self.dead_lettered,
            "dead_letters": dict(self.dead_letters),
            "dropped": dict(self.dropped),
        }

    def figures(self) -> list[Figure]:
        """For /metrics, each reason from the start."""
        way = ("direction", self._name)
        found = [
            Figure("bridge_confirmed_total", self.confirmed, (way,)),
            Figure("bridge_failed_total", self.failed, (way,)),
        ]
        for name, known, counted in (
            ("bridge_dead_lettered_total", _DEAD[self._name], self.dead_letters),
            ("bridge_dropped_total", _DROPPED[self._name], self.dropped),
        ):
            for reason, number in (dict.fromkeys(known, 0) | counted).items():
                found.append(Figure(name, number, (way, ("reason", reason))))
        return found
