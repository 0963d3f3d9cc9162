"""Why a client got nothing of a topic, or not all: what the operator can act on, in words.

Owns: the reasons, in the order in which a message meets them: nobody published it; it was denied;
the client has no session, or had none; no filter of it matches, and which one comes closest; it is
its own message; it was away; it may not have it, by which rule; the message expired, found a queue
full, went to another member of a shared group.

Must not know: the socket, how findings are printed. `explain` tells what became of each message;
here is what was never matched at all.

Invariants: every finding is one sentence with a code that lasts (docs/how-to/why-not-delivered.md
has the list, a test compares them); asking changes nothing in the broker. Clients choose how many
and how long their names and filters are, so what resembles is looked for among a bounded number,
by a bounded length: no client can make an answer hold the others up.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from mqttd.core import counters as count
from mqttd.core import watch
from mqttd.core.broker import Broker
from mqttd.core.session import Session
from mqttd.core.topics import matches, split_shared
from mqttd.core.watch import Trace
from mqttd.hooks.manager import HookManager
from mqttd.hooks.values import Client, Deny
from mqttd.operate.explain import Question, Story

_SEARCHED: Final = 20_000  # client ids, or filters, that are looked at
_COMPARED: Final = 200  # of those, how many are compared as a whole
_LONGEST: Final = 200  # characters of each

CODES: Final = {
    "no_record": "the broker keeps no record of decisions",
    "not_published": "nobody published to the topic",
    "publish_denied": "the publisher may not",
    "taken_by_plugin": "a plugin took the message",
    "no_session": "there is no session of this client id",
    "subscribe_denied": "its SUBSCRIBE was refused",
    "unsubscribed": "it has unsubscribed, or the subscription was taken away",
    "no_match": "none of its filters matches",
    "late": "it subscribed after the message was published",
    "no_local": "it is the publisher, and asked not to get its own messages",
    "receive_denied": "it may not receive the topic",
    "offline": "it has no connection",
    "taken_over": "another connection took its session over",
    "dropped": "messages for it were dropped",
    "waiting": "messages wait for it, or are not acknowledged",
    "shared": "its subscription is shared: each message goes to one member",
    "delivered": "messages were delivered",
    "member": "how many of those for its shared subscription went to it",
}


def finding(code: str, says: str, **more: object) -> dict[str, Any]:
    assert code in CODES
    return {"code": code, "says": says, **more}


def why(
    broker: Broker,
    hooks: HookManager | None,
    question: Question,
    found: list[Story],
    told: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """What there is to say about a client and a topic. `told` is `found` as `explain` tells it."""
    watcher = broker.context.watcher
    if watcher is None or not watcher.limit:
        findings = [
            finding("no_record", "The broker keeps no record of decisions (control.record is 0).")
        ]
        traces: list[Trace] = []
    else:
        findings = []
        traces = list(watcher.traces)
        findings += _published(question, found)
    findings += _subscribed(broker, question, found, traces)
    findings += _received(broker, hooks, question, told)
    return findings


def _published(question: Question, found: list[Story]) -> list[dict[str, Any]]:
    findings = []
    if not found:
        says = f"Nobody published to {question.topic} in the time that the record covers."
        findings.append(finding("not_published", says))
    denied = [story for story in found if story.denied]
    for story in denied[-1:]:
        says = (
            f"{len(denied)} of {len(found)} publications were denied, the last one by"
            f" {story.trace.client_id}: {story.trace.reason or 'no reason given'}."
        )
        findings.append(finding("publish_denied", says, rule=story.trace.reason))
    for story in found:
        takers = [one for one in story.changed if ": " in one]
        if takers and not story.trace.names:
            findings.append(finding("taken_by_plugin", f"A plugin took it: {takers[-1]}."))
            break
    return findings


def _subscribed(
    broker: Broker, question: Question, found: list[Story], traces: list[Trace]
) -> list[dict[str, Any]]:
    client_id, topic = question.client_id, question.topic
    session = broker.sessions.get(client_id)
    if session is None:
        return [_no_session(broker, client_id, traces)]
    matching = [
        subscription
        for subscription in session.subscriptions.values()
        if matches(split_shared(subscription.topic_filter)[1], topic)
    ]
    if not matching:
        return _no_filter(session, topic, traces)
    findings = []
    matched = any(client_id in story.trace.names for story in found)
    at = _subscribed_at(client_id, topic, traces)
    if found and not matched and at > max(story.trace.until for story in found):
        says = f"It subscribed to {matching[0].topic_filter} after the last message."
        findings.append(finding("late", says))
    if all(subscription.no_local for subscription in matching) and any(
        story.trace.client_id == client_id for story in found
    ):
        says = "It published them itself, and its subscription says No Local."
        findings.append(finding("no_local", says))
    for subscription in matching:
        group = subscription.group
        if group is not None and len(group.members) > 1:
            others = [one.subscriber.client_id for one in group.members]
            others.remove(client_id)
            says = (
                f"{subscription.topic_filter} is shared: each message goes to one of"
                f" {len(group.members)} members, among them {', '.join(others[:3])}."
            )
            findings.append(finding("shared", says, filter=subscription.topic_filter))
    return findings


def _no_session(broker: Broker, client_id: str, traces: list[Trace]) -> dict[str, Any]:
    says = f"There is no session of {client_id}"
    last = _last(traces, client_id, (watch.DISCONNECTED, watch.EXPIRED, watch.REFUSED))
    if last is not None:
        words = {watch.EXPIRED: "it expired", watch.REFUSED: f"it was refused: {last.reason}"}
        says += ": " + words.get(last.kind, "its session ended with its connection")
        return finding("no_session", says + ".")
    close = _resembling(client_id, islice(broker.sessions, _SEARCHED))
    if close:
        says += f"; there is one of {close}"
    return finding("no_session", says + ".")


def _resembling(client_id: str, names: Iterable[str]) -> str:
    """The name that is most like `client_id`; "" where none is."""
    wanted = client_id[:_LONGEST]
    similar = (name for name in names if abs(len(name) - len(client_id)) <= 2)
    likely = heapq.nlargest(_COMPARED, similar, key=lambda name: _agreeing(name, client_id))
    found = {name[:_LONGEST]: name for name in reversed(likely)}
    close = difflib.get_close_matches(wanted, found, n=1)
    return found[close[0]] if close else ""


def _agreeing(one: str, other: str) -> int:
    """How many characters stand at the same place, counted from the left and from the right."""
    one, other = one[:_LONGEST], other[:_LONGEST]
    return sum(map(str.__eq__, one, other)) + sum(map(str.__eq__, one[::-1], other[::-1]))


def _no_filter(session: Session, topic: str, traces: list[Trace]) -> list[dict[str, Any]]:
    findings = []
    client_id = session.client_id
    for kind, code, words in (
        (watch.SUBSCRIBE_DENIED, "subscribe_denied", "Its SUBSCRIBE to {} was refused"),
        (watch.UNSUBSCRIBED, "unsubscribed", "It is no longer subscribed to {}"),
    ):
        last = _last_about(traces, client_id, kind, topic)
        if last is not None:
            says = words.format(last.topic)
            says += f": {last.reason}." if last.reason else "."
            findings.append(finding(code, says, rule=last.reason))
    if not session.subscriptions:
        findings.append(finding("no_match", "It has no subscription at all."))
        return findings
    best = _closest(islice(session.subscriptions, _SEARCHED), topic)
    says = f"None of its {len(session.subscriptions)} filters matches."
    says += f" The closest is {best}: {difference(split_shared(best)[1], topic)}."
    findings.append(finding("no_match", says, closest=best))
    return findings


def _closest(filters: Iterable[str], topic: str) -> str:
    """The filter that agrees with a topic in most levels from the left; then the one most alike."""
    levels = topic.split("/")
    best: list[str] = []
    most = -1
    for topic_filter in filters:
        agree = _levels_agreeing(split_shared(topic_filter)[1], levels)
        if agree > most:
            best, most = [], agree
        if agree == most and len(best) < _COMPARED:
            best.append(topic_filter)
    return max(best, key=lambda one: _likeness(split_shared(one)[1], topic))


def _levels_agreeing(topic_filter: str, levels: list[str]) -> int:
    agree = 0
    for level, found in zip(topic_filter.split("/", len(levels)), levels, strict=False):
        if level not in ("+", found):
            break
        agree += 1
    return agree


def _likeness(topic_filter: str, topic: str) -> float:
    return difflib.SequenceMatcher(None, topic_filter[:_LONGEST], topic[:_LONGEST]).ratio()


def difference(topic_filter: str, topic: str) -> str:
    """In words, the first level at which a filter and a topic part."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return f"a filter that begins with {wanted[0]} doesn't reach topics that begin with $"
    for place, level in enumerate(wanted, 1):
        if level == "#":
            return "it matches"
        if place > len(levels):
            return f"level {place} is {level}, the topic ends before it"
        if level not in ("+", levels[place - 1]):
            return f"level {place} is {level}, in the topic {levels[place - 1]}"
    if len(levels) > len(wanted):
        return f"the topic goes on after level {len(wanted)}: {'/'.join(levels[len(wanted) :])}"
    return "it matches"


def _received(
    broker: Broker, hooks: HookManager | None, question: Question, told: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What became of what matched, and what would become of the next one."""
    session = broker.sessions.get(question.client_id)
    if session is None:
        return []
    findings = _may_receive(session, hooks, question.topic)
    watcher = broker.context.watcher
    traces = [] if watcher is None else list(watcher.traces)
    over = _last(traces, session.client_id, (watch.TAKEN_OVER,))
    if over is not None:
        says = f"A connection from {over.origin} took its session over."
        findings.append(finding("taken_over", says))
    if session.link is None:
        kept = "QoS 1 and 2 wait for it" if session.durable else "nothing waits for it"
        findings.append(finding("offline", f"It is not connected: {kept}."))
    delivered = waiting = 0
    dropped: dict[str, int] = {}
    shared: dict[str, int] = {}
    for message in told:
        for receiver in message["receivers"]:
            name = receiver["client"]
            if receiver["shared"]:
                handed = receiver["members"].get(session.client_id, 0)
                shared[name] = shared.get(name, 0) + handed
            if name != session.client_id:
                continue
            delivered += receiver["delivered"]
            waiting += receiver["in_flight"] + receiver["queued"]
            for reason, number in receiver["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + number
    for reason, number in dropped.items():
        says = f"{number} dropped: {DROPS.get(reason, reason)}."
        findings.append(finding("dropped", says, reason=reason, count=number))
    if waiting:
        says = f"{waiting} wait in its queue, or were sent and are not acknowledged."
        findings.append(finding("waiting", says, count=waiting))
    if delivered:
        findings.append(finding("delivered", f"{delivered} delivered.", count=delivered))
    for name, number in shared.items():
        says = f"{number or 'None'} of those for {name} went to it."
        findings.append(finding("member", says, filter=name, count=number))
    return findings


def _may_receive(session: Session, hooks: HookManager | None, topic: str) -> list[dict[str, Any]]:
    """What the plugins say now."""
    if hooks is None or not isinstance(session.guest, Client):
        return []
    decision = hooks.chains.authorize_receive(session.guest, topic)
    if not isinstance(decision, Deny):
        return []
    rule = decision.rule or decision.reason
    return [finding("receive_denied", f"It may not receive {topic}: {rule}.", rule=rule)]


DROPS: Final = {
    count.DROP_OFFLINE_QOS0: "QoS 0, and it wasn't connected",
    count.DROP_SLOW_READER: "QoS 0, and it reads too slowly",
    count.DROP_QUEUE_FULL: "its queue was full",
    count.DROP_EXPIRED: "they expired before they could be sent",
    count.DROP_TOO_LARGE: "larger than the packets it accepts",
    count.DROP_SESSION_ENDED: "its session ended",
    count.DROP_REFUSED: "it refused them",
    count.DROP_LOST: "the store no longer has them",
    count.DROP_NOT_AUTHORIZED: "it may not receive them",
    count.DROP_BY_PLUGIN: "a plugin took them out",
    count.DROP_NO_MEMBER: "QoS 0, and no member of the group could take them",
    count.DROP_REDELIVERIES: "its receivers left them unfinished too often",
    count.DROP_REPLACED: "newer messages of their topics came to the queue",
    "no_local": "its own messages, and it asked for No Local",
}


def _last(traces: list[Trace], client_id: str, kinds: tuple[int, ...]) -> Trace | None:
    for trace in reversed(traces):
        if trace.client_id == client_id and trace.kind in kinds:
            return trace
    return None


def _last_about(traces: list[Trace], client_id: str, kind: int, topic: str) -> Trace | None:
    """The last trace of a kind whose filter matches a topic."""
    for trace in reversed(traces):
        if trace.client_id == client_id and trace.kind == kind and trace.topic:
            inner = trace.topic.split("/", 2)[-1] if _is_shared(trace.topic) else trace.topic
            if matches(inner, topic):
                return trace
    return None


def _is_shared(topic_filter: str) -> bool:
    return topic_filter.startswith("$share/") and topic_filter.count("/") > 1


def _subscribed_at(client_id: str, topic: str, traces: list[Trace]) -> float:
    trace = _last_about(traces, client_id, watch.SUBSCRIBED, topic)
    return 0.0 if trace is None else trace.at
