"""What became of messages, out of the record of decisions and what the sessions hold now.

Owns: how the traces of `core.watch` become one answer for each message (or run of equal ones): who
published it, which rule allowed or denied it, which plugin changed it, whom it matched, and for
each of them how many were delivered, are in flight, wait, or were dropped and why.

Must not know: the socket that asks, how an answer is printed, files and lines of rules (they are
text). Why a client got nothing of a topic is `mqttd.why`.

Invariants: nothing is changed by asking; the record is read in steps, so that a long one holds
nobody up; numbers add up: `count = delivered + in_flight + queued + all of dropped` for each
receiver. What a restart forgot is not guessed at: a message from before it is not in the record.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
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

    def is_about(self, topic: str) -> bool:
        return not self.topic or topic == self.topic or matches(self.topic, topic)


@dataclass(slots=True)
class Story:
    """One message, or a run of messages that differ in nothing but their payload."""

    trace: Trace
    topic: str
    denied: bool = False
    outcomes: list[Trace] = field(default_factory=list)


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
            await asyncio.sleep(0)
        if trace.kind in wanted:
            found.append(Story(trace, trace.topic, trace.kind == watch.DENIED))
        elif trace.serial and trace.kind in _OUTCOMES:
            outcomes.append(trace)
    first = [story.trace.serial for story in found]
    for trace in outcomes:
        # Serials only grow, and each belongs to one message.
        place = bisect.bisect_right(first, trace.serial) - 1
        if place < 0 or found[place].trace.last_serial < trace.serial:
            continue  # its message is no longer in the record
        story = found[place]
        story.outcomes.append(trace)
        if trace.kind == watch.CHANGED and not story.topic:
            story.topic = trace.topic  # a plugin took it, so it was routed nowhere
    about = [story for story in found if _is_about(broker, question, story)]
    return about[-question.limit :]


_OUTCOMES: Final = (watch.DROPPED, watch.QUEUED, watch.SENT, watch.CHANGED)


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
    held = _Held(broker)
    for story in await stories(broker, question):
        portion.append(await _told(broker, hooks, story, question, held, epoch))
        if len(portion) >= _PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


async def _told(
    broker: Broker,
    hooks: HookManager | None,
    story: Story,
    question: Question,
    held: _Held,
    epoch: float,
) -> dict[str, Any]:
    trace = story.trace
    rule, now_asked = await _rule(broker, hooks, story)
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
        "changed_by": sorted({one.reason for one in story.outcomes if one.kind == watch.CHANGED}),
        "receivers": [_received(broker, story, name, held) for name in names],
        "others": len(trace.names) - len(names),
    }


def _is_of(broker: Broker, name: str, client_id: str) -> bool:
    session = broker.sessions.get(client_id)
    return name == client_id or (session is not None and name in session.subscriptions)


async def _rule(broker: Broker, hooks: HookManager | None, story: Story) -> tuple[str, bool]:
    """Which rule decided, and whether it had to be asked for now."""
    trace = story.trace
    if trace.reason or story.denied or hooks is None:
        return trace.reason, False
    session = broker.sessions.get(trace.client_id)
    if session is None or not isinstance(session.guest, Client):
        return "", False
    if not hooks.chains.publish_deciders:
        return "", False
    decision = await hooks.chains.authorize_publish(
        session.guest, story.topic, trace.qos, trace.retain
    )
    if isinstance(decision, Deny):
        return decision.rule or decision.reason, True
    return decision.rule, True


class _Held:
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


def _received(broker: Broker, story: Story, name: str, held: _Held) -> dict[str, Any]:
    """What became of a story for one of those it matched."""
    trace = story.trace
    dropped: dict[str, int] = {}
    queued = sent = 0
    for one in story.outcomes:
        if one.client_id != name:
            continue
        if one.kind == watch.QUEUED:
            queued += one.count
        elif one.kind == watch.SENT:
            sent += one.count
        elif one.kind == watch.DROPPED:
            dropped[one.reason] = dropped.get(one.reason, 0) + one.count
    flying, waiting, more = held.of(name)
    in_flight = min(_within(flying, trace), trace.count)
    in_queue = _within(waiting, trace)
    oldest_goes = broker.settings.queue_overflow == DROP_OLDEST
    ended = sum(
        number
        for reason, number in dropped.items()
        if reason in _AFTER_QUEUE or (oldest_goes and reason == count.DROP_QUEUE_FULL)
    )
    left = max(queued - sent - ended, 0)
    if more:
        in_queue = max(in_queue, left)  # the rest of a deep queue is on disk
    elif left > in_queue and oldest_goes:
        # Only the store had it at hand, so nobody could write its end down.
        gone = left - in_queue
        dropped[count.DROP_QUEUE_FULL] = dropped.get(count.DROP_QUEUE_FULL, 0) + gone
    rest = trace.count - sum(dropped.values()) - in_flight - in_queue
    session = broker.sessions.get(name)
    return {
        "client": name,
        "delivered": max(rest, 0),
        "in_flight": in_flight,
        "queued": in_queue,
        "dropped": dropped,
        "connected": _is_connected(session),
        "shared": name.startswith("$share/"),
    }


# What may happen to a message after it was queued.
_AFTER_QUEUE: Final = (
    count.DROP_EXPIRED,
    count.DROP_SESSION_ENDED,
    count.DROP_NOT_AUTHORIZED,
)


def _is_connected(session: Session | None) -> bool:
    return session is not None and session.link is not None
