"""What became of messages, out of the record of decisions and what the sessions hold now.

Owns: how the traces of `core.watch` become one answer for each message (or run of equal ones): who
published it, which rule allowed or denied it, which plugin changed it, whom it matched, and for
each of them how many were delivered, are in flight, wait, or were dropped and why; of a shared
group, which members got them.

Must not know: the socket that asks, how an answer is printed, files and lines of rules (they are
text). Why a client got nothing of a topic is `mqttd.operate.why`.

Invariants: nothing is changed by asking, but that plugins which have to be asked again count it as
ever; the record is read in steps, so that a long one holds nobody up, and no longer than until
`Question.until`: what isn't found, or asked for, by then is left out, and the answer says so;
numbers add up: `count =
delivered + in_flight + queued + all of dropped` for each receiver. What a restart forgot is not
guessed at: a message from before it is not in the record.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from mqttd.core import counters as count
from mqttd.core import watch
from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.session import Session
from mqttd.core.settings import DROP_OLDEST
from mqttd.core.shared import queue_of
from mqttd.core.topics import matches
from mqttd.core.watch import Trace
from mqttd.hooks.manager import HookManager
from mqttd.hooks.values import Client, Deny

_STEP: Final = 2000  # traces looked at before others get their turn
_PORTION: Final = 20  # messages in one portion of the answer


@dataclass(slots=True)
class Question:
    """What is asked for. `client_id`: as publisher or receiver; `topic`: a topic or a filter."""

    client_id: str = ""
    topic: str = ""
    since: float = 0.0  # in the core's clock
    limit: int = 50
    until: float = math.inf  # when the answer has to be there, in the core's clock
    late: bool = False  # it wasn't, not all of it

    def is_about(self, topic: str) -> bool:
        return not self.topic or topic == self.topic or matches(self.topic, topic)

    def is_over(self) -> bool:
        """There is no time left."""
        self.late = self.late or monotonic() >= self.until
        return self.late


@dataclass(slots=True)
class Tally:
    """What was written down about a story for one receiver."""

    queued: int = 0
    left: int = 0  # of those: sent later, or dropped out of the queue
    dropped: dict[str, int] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)  # of a group, that were handed some

    @property
    def waiting(self) -> int:
        return max(self.queued - self.left, 0)


@dataclass(slots=True)
class Story:
    """One message, or a run of messages that differ in nothing but their payload."""

    trace: Trace
    topic: str
    denied: bool = False
    changed: list[str] = field(default_factory=list)  # by which plugins
    tallies: dict[str, Tally] = field(default_factory=dict)

    def tally(self, name: str) -> Tally:
        found = self.tallies.get(name)
        if found is None:
            found = self.tallies[name] = Tally()
        return found

    def add(self, trace: Trace, number: int) -> None:
        """`number` of the messages ended, or were put off, as a trace says."""
        tally = self.tally(trace.client_id)
        if trace.kind == watch.QUEUED:
            tally.queued += number
            return
        if trace.kind == watch.DROPPED:
            tally.dropped[trace.reason] = tally.dropped.get(trace.reason, 0) + number
        elif trace.reason:
            tally.members[trace.reason] = tally.members.get(trace.reason, 0) + number
        tally.left += min(number, tally.waiting)

    def room(self, trace: Trace, still_queued: int) -> int:
        """How many of the messages a trace can be about."""
        tally = self.tally(trace.client_id)
        if tally.queued or trace.kind == watch.SENT:
            return max(tally.waiting - still_queued, 0)
        low = max(self.trace.serial, trace.serial)
        high = min(self.trace.last_serial, trace.last_serial)
        return max(high - low + 1 - sum(tally.dropped.values()), 0)


async def stories(broker: Broker, question: Question) -> list[Story]:
    """The messages of the record that a question is about, the last `limit`, oldest first."""
    watcher = broker.context.watcher
    if watcher is None:
        return []
    found: list[Story] = []
    outcomes: list[Trace] = []
    wanted = (watch.PUBLISHED, watch.DENIED)
    for place, trace in enumerate(list(watcher.traces)):
        if place % _STEP == _STEP - 1:
            if question.is_over():
                break
            await asyncio.sleep(0)
        if trace.kind in wanted:
            found.append(Story(trace, trace.topic, trace.kind == watch.DENIED))
        elif trace.serial and trace.kind in _OUTCOMES:
            outcomes.append(trace)
    first = [story.trace.serial for story in found]
    held = Held(broker)
    seen = 0
    for trace in outcomes:
        seen += 1 + _attribute(found, first, trace, held)
        if seen >= _STEP:
            seen = 0
            if question.is_over():
                break
            await asyncio.sleep(0)
    about = [story for story in found if _is_about(broker, question, story)]
    return about[-question.limit :]


_OUTCOMES: Final = (watch.DROPPED, watch.QUEUED, watch.SENT, watch.CHANGED)


def _attribute(found: list[Story], first: list[int], trace: Trace, held: Held) -> int:
    """Give what a trace says to the stories that it is about; how many were looked at.

    Serials only grow, and each belongs to one message; but what leaves a queue in a row is one
    trace, though it came in as many stories. The first and the last of them are certain. Between
    them a queue keeps the order, and what it still holds has not left it.
    """
    start = place = max(bisect.bisect_right(first, trace.serial) - 1, 0)
    concerned = []
    while place < len(found) and found[place].trace.serial <= trace.last_serial:
        story = found[place]
        place += 1
        if story.trace.last_serial < trace.serial:
            continue
        if trace.kind == watch.CHANGED:
            story.changed.append(trace.reason)
            if not story.topic:
                story.topic = trace.topic  # a plugin took it, so it was routed nowhere
        elif story.topic == trace.topic and story.trace.client_id == trace.origin:
            concerned.append(story)
    if len(concerned) <= 1:
        for story in concerned:
            story.add(trace, trace.count)
        return place - start
    waiting = held.of(trace.client_id)[1]
    left = trace.count - 1  # one is the last story's
    for story in concerned[:-1]:
        number = min(story.room(trace, _within(waiting, story.trace)), left)
        left -= number
        if number:
            story.add(trace, number)
    concerned[-1].add(trace, 1 + left)
    return place - start


def _is_about(broker: Broker, question: Question, story: Story) -> bool:
    trace = story.trace
    if trace.until < question.since or not question.is_about(story.topic):
        return False
    client_id = question.client_id
    if not client_id or trace.client_id == client_id or client_id in trace.names:
        return True
    session = broker.sessions.get(client_id)
    shared = () if session is None else session.subscriptions
    return any(name in shared for name in trace.names if name.startswith("$share/"))


async def tell(
    broker: Broker, hooks: HookManager | None, question: Question, epoch: float
) -> AsyncIterator[list[dict[str, Any]]]:
    """The messages as plain values, some at a time. `epoch` + the core's clock is wall time."""
    portion: list[dict[str, Any]] = []
    held = Held(broker)
    rules = _Rules(broker, hooks, question)
    for story in await stories(broker, question):
        portion.append(await _told(broker, rules, story, question, held, epoch))
        if len(portion) >= _PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


async def _told(
    broker: Broker,
    rules: _Rules,
    story: Story,
    question: Question,
    held: Held,
    epoch: float,
) -> dict[str, Any]:
    trace = story.trace
    rule, now_asked = await rules.of(story)
    names = trace.names
    if question.client_id and trace.client_id != question.client_id:
        names = tuple(name for name in names if _is_of(broker, name, question.client_id))
    return {
        "topic": story.topic,
        "from": trace.client_id or trace.origin,
        "qos": trace.qos,
        "retain": trace.retain,
        "count": trace.count,
        "first_at": trace.at + epoch,
        "last_at": trace.until + epoch,
        "verdict": "denied" if story.denied else "accepted",
        "rule": rule,
        "asked_now": now_asked,
        "changed_by": sorted(set(story.changed)),
        "receivers": [_received(broker, story, name, held) for name in names],
        "others": len(trace.names) - len(names),
    }


def _is_of(broker: Broker, name: str, client_id: str) -> bool:
    session = broker.sessions.get(client_id)
    return name == client_id or (session is not None and name in session.subscriptions)


class _Rules:
    """Which rule decided on a message: as it was written down, or as the plugins say now."""

    def __init__(self, broker: Broker, hooks: HookManager | None, question: Question) -> None:
        self._broker = broker
        self._hooks = hooks
        self._question = question
        self._known: dict[tuple[str, str, int, bool], str] = {}

    async def of(self, story: Story) -> tuple[str, bool]:
        """The rule, and whether it had to be asked for now; once for each topic of a client."""
        trace = story.trace
        if trace.reason or story.denied or self._hooks is None:
            return trace.reason, False
        session = self._broker.sessions.get(trace.client_id)
        if session is None or not isinstance(session.guest, Client):
            return "", False
        if not self._hooks.chains.publish_deciders:
            return "", False
        key = (trace.client_id, story.topic, trace.qos, trace.retain)
        if key not in self._known:
            if self._question.is_over():
                return "", False
            ask = self._hooks.chains.authorize_publish(session.guest, *key[1:])
            left = self._question.until - monotonic()
            try:
                decision = await asyncio.wait_for(ask, None if left == math.inf else left)
            except TimeoutError:
                self._question.late = True
                return "", False
            reason = decision.reason if isinstance(decision, Deny) else ""
            self._known[key] = decision.rule or reason
        return self._known[key], True


class Held:
    """What sessions and groups hold now, by the serial of the message; looked up once each."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._known: dict[str, tuple[list[int], list[int], bool]] = {}

    def of(self, name: str) -> tuple[list[int], list[int], bool]:
        """Serials in flight, serials in the queue, and whether the queue is longer than these."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._look(name)
        return found

    def _look(self, name: str) -> tuple[list[int], list[int], bool]:
        if name.startswith("$share/"):
            for group in self._broker.context.queued_groups:
                if f"$share/{group.name}/{group.topic_filter}" == name:
                    queue = queue_of(group)
                    if queue is not None:
                        return [], _serials(queue.head), bool(queue.tail or queue.coming)
            return [], [], False
        session = self._broker.sessions.get(name)
        if session is None:
            return [], [], False
        flying = _serials(session.window.deliveries.values())
        queue = session.queue
        if queue is None:
            return flying, [], False
        return flying, _serials(queue.head), bool(queue.tail or queue.coming)


def _serials(deliveries: Iterable[Delivery]) -> list[int]:
    return sorted(delivery.message.serial for delivery in deliveries)


def _within(serials: list[int], trace: Trace) -> int:
    low = bisect.bisect_left(serials, trace.serial)
    return bisect.bisect_right(serials, trace.last_serial) - low


def _received(broker: Broker, story: Story, name: str, held: Held) -> dict[str, Any]:
    """What became of a story for one of those it matched."""
    trace = story.trace
    tally = story.tallies.get(name) or Tally()
    dropped = dict(tally.dropped)
    flying, waiting, more = held.of(name)
    in_flight = min(_within(flying, trace), trace.count)
    in_queue = _within(waiting, trace)
    if more:
        in_queue = max(in_queue, tally.waiting)  # the rest of a deep queue is on disk
    elif tally.waiting > in_queue and broker.settings.queue_overflow == DROP_OLDEST:
        # Only the store had it at hand, so nobody could write its end down.
        gone = tally.waiting - in_queue
        dropped[count.DROP_QUEUE_FULL] = dropped.get(count.DROP_QUEUE_FULL, 0) + gone
    rest = trace.count - in_flight - in_queue
    for reason in list(dropped):
        # What a session holds is certain; of a row that left its queue one may be elsewhere.
        dropped[reason] = min(dropped[reason], max(rest, 0))
        rest -= dropped[reason]
    dropped = {reason: number for reason, number in dropped.items() if number}
    session = broker.sessions.get(name)
    return {
        "client": name,
        "delivered": max(rest, 0),
        "in_flight": in_flight,
        "queued": in_queue,
        "dropped": dropped,
        "connected": _is_connected(session),
        "shared": name.startswith("$share/"),
        "members": _members(trace, tally, name),
    }


def _members(trace: Trace, tally: Tally, name: str) -> dict[str, int]:
    """How many of a story each member of a shared group was handed, at once or later."""
    found = dict(tally.members)
    for member, number in ((trace.members or {}).get(name) or {}).items():
        found[member] = found.get(member, 0) + number
    return found


def _is_connected(session: Session | None) -> bool:
    return session is not None and session.link is not None
