"""What has to be true besides deliveries: retained messages, wills, sessions.

Each oracle is told what a device did and says what the broker then owes. It claims no more than the
standard promises: where the order of two events can't be known from outside (an acknowledgement was
under way, a session was about to expire) either answer is right.

    Retained  the message that a topic retains by now: at least the last one whose acknowledgement
              was complete, and nothing once an empty one has been acknowledged
    Replay    one new subscription's view of it: `stale` is an older message than the broker had
              promised, `missing` one that didn't come although it had to
    Wills     which connections of a device ended in a way that publishes their will
    Session   whether CONNACK has to say that a session is present

Pure: numbers and `now` in, judgements out. Memory is constant for a topic, a subscription and a
device. The ledger compares what arrives; nothing here knows payloads, topics or clients.
"""

from typing import Final

from device_sim.judge.ranges import Ranges

ABSENT: Final = 0
PRESENT: Final = 1
EITHER: Final = 2

SESSION_LOST: Final = "session lost: Session Present 0 before the session had expired"
SESSION_INVENTED: Final = "session invented: Session Present 1 though none was left"

NEVER_EXPIRES: Final = float("inf")
SESSION_GRACE_S: Final = 1.0
"""This close to its expiry a session may be there or not."""


class Retained:
    """The retained message of one topic, by the numbers of its stream."""

    def __init__(self) -> None:
        self.floor = 0
        self.newest = -1
        self.held = False
        self._cleared_after = -1

    def sent(self, number: int) -> None:
        """Message `number` went out with the retain flag."""
        self.newest = number

    def settled(self, number: int) -> None:
        """Its acknowledgement is complete: it replaces all before it."""
        if number >= self.floor:
            self.floor = number
            self.held = number > self._cleared_after

    def forget(self) -> None:
        """Nobody can say any more what the topic retains."""
        self.floor = 0
        self.held = False

    def clear_sent(self) -> None:
        """An empty retained message went out: what was held may be gone."""
        self._cleared_after = self.newest
        self.held = False

    def clear_settled(self) -> None:
        """It was acknowledged: what was sent before it must not be seen again."""
        self.floor = max(self.floor, self._cleared_after + 1)


class Replay:
    """What a subscription is owed of the retained message, over all times that it is made."""

    def __init__(self, retained: Retained) -> None:
        self.stale = 0
        self.missing = 0
        self.received = 0
        self.corrupt = 0
        self._retained = retained
        self._floor = 0
        self._owed = False
        self._open = False

    def subscribe(self) -> None:
        """SUBSCRIBE goes out, in a form that asks for retained messages."""
        self.settle()
        self._floor = self._retained.floor
        self._owed = self._retained.held
        self._open = True

    def subscribed(self) -> None:
        """SUBACK came; a message that was cleared in the meantime is owed no more."""
        self._owed = self._owed and self._retained.held

    def arrive(self, number: int) -> bool:
        """A copy that is marked as retained; False when no subscription asked for it."""
        if not self._open:
            return False
        self._open = False
        self._owed = False
        self.received += 1
        if number < self._floor:
            self.stale += 1
        return True

    def damaged(self) -> bool:
        """A copy with a wrong check sum that is marked as retained; False: none is waited for.

        It stands for what was owed, which isn't missing besides. Where nothing was, an earlier run
        may have left it behind.
        """
        if not self._open:
            return False
        self.corrupt += self._owed
        self._open = False
        self._owed = False
        return True

    def waive(self) -> None:
        """Damage on purpose: whatever comes, or doesn't, is right."""
        self._owed = False
        self._floor = 0

    def leave(self) -> None:
        """The connection ended: what hasn't come can't come."""
        self._open = False
        self._owed = False

    def settle(self) -> None:
        """No more will come: what is owed is missing."""
        if self._owed:
            self.missing += 1
        self.leave()


class Wills:
    """The connections of one device in order, numbered from 0, and how each of them ended."""

    def __init__(self) -> None:
        self.ended = 0
        self.owed = Ranges()
        self.allowed = Ranges()

    def died(self) -> None:
        """A connection ended without DISCONNECT, and the broker has to notice: publish its will."""
        self.owed.append(self.ended, self.ended + 1)
        self.ended += 1

    def left(self) -> None:
        """A connection ended with DISCONNECT: its will must not be seen. [MQTT-3.14.4-3]"""
        self.ended += 1

    def doubtful(self) -> None:
        """A connection ended and it can't be known what the broker makes of it."""
        self.allowed.append(self.ended, self.ended + 1)
        self.ended += 1

    def vanished(self) -> int:
        """A connection ended, `decide` will say how; its number."""
        self.ended += 1
        return self.ended - 1

    def decide(self, number: int, owed: bool) -> None:
        """The will of a connection that vanished is owed, or may come."""
        (self.owed if owed else self.allowed).add(number)


class Session:
    """What one client identifier's next CONNACK has to say about its session."""

    def __init__(self) -> None:
        self._expiry_s = 0.0
        self._ended_at = 0.0
        self._exists = ABSENT

    def ended(self, expiry_s: float, now: float) -> None:
        """A connection ended, and its session is to be kept for so long."""
        self._expiry_s = expiry_s
        self._ended_at = now
        self._exists = PRESENT if expiry_s > 0 else ABSENT

    def doubt(self) -> None:
        """Something happened after which either answer is right."""
        self._exists = EITHER

    def expected(self, clean: bool, now: float) -> int:
        """PRESENT, ABSENT or EITHER."""
        if clean:
            return ABSENT  # [MQTT-3.2.2-2]
        if self._exists != PRESENT:
            return self._exists
        age_s = now - self._ended_at
        if age_s < self._expiry_s - SESSION_GRACE_S:
            return PRESENT
        if age_s < self._expiry_s + SESSION_GRACE_S:
            return EITHER
        return ABSENT

    def check(self, clean: bool, present: bool, now: float) -> str:
        """What is wrong with Session Present in a CONNACK, or nothing."""
        expected = self.expected(clean, now)
        if expected == PRESENT and not present:
            return SESSION_LOST
        if expected == ABSENT and present:
            return SESSION_INVENTED
        return ""
