"""What the operator may ask of a broker that runs, and do to it, over the control socket.

Owns: the requests (`do` names one, the other keys are its arguments), what each needs, and what
comes back: plain values, a slice at a time where there may be many.

Must not know: the socket (`net.lines`), how answers are printed, what a reload consists of.

Invariants: a walk over sessions or retained messages stops for others after each slice; no payload
and no secret is in any answer; what changes something leaves a line in the audit trail; a request
that is wrong is refused with a sentence and changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from time import monotonic
from typing import Any, Final

import mqttd
from mqttd.census import Census
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.errors import ProtocolError
from mqttd.core.session import Session
from mqttd.core.topics import is_wildcard, validate_topic_filter
from mqttd.hooks.manager import HookManager
from mqttd.hooks.plugin import NoRoom, Plugin
from mqttd.metrics import VERSIONS
from mqttd.net.lines import ASKED_BY, Refused
from mqttd.operate.audit import act, shown
from mqttd.operate.explain import Question, stories, tell
from mqttd.operate.why import why

logger: Final = logging.getLogger("mqttd.plugins")

SLICE: Final = 256
EXPLAIN_S: Final = 20.0  # that an explanation may take
PLUGIN_S: Final = 60.0  # that a plugin's action may take
ROLE_S: Final = 5.0  # that each may take where all of a role are asked
STATUS: Final = "status"
ROLE_ACTIONS: Final = (STATUS, "pause", "resume")
MAX_TEXT: Final = 4096

Lines = AsyncIterator[list[dict[str, object]]]
Request = Mapping[str, Any]


class Operator:
    """Answers for one broker."""

    def __init__(
        self,
        broker: Broker,
        hooks: HookManager | None,
        schedule: Callable[[], None],
        reload: Callable[[], Awaitable[dict[str, object]]],
    ) -> None:
        self._broker = broker
        self._hooks = hooks
        self._schedule = schedule
        self._reload = reload
        self._actions: dict[str, Callable[[Request], Lines]] = {
            "clients": self._clients,
            "sessions": self._sessions,
            "retained": self._retained,
            "kick": self._kick,
            "plugin": self._plugin,
            "role": self._role,
            "explain": self._explain,
            "figures": self._figures,
            "reload": self._reload_all,
        }

    def answer(self, request: Request) -> Lines:
        """The lines of an answer. Refused."""
        action = self._actions.get(str(request.get("do")))
        if action is None:
            raise Refused(f"there is no such request; known: {', '.join(self._actions)}")
        return action(request)

    # Looking.

    async def _clients(self, request: Request) -> Lines:
        async for portion in self._walk(request, connected=True):
            yield portion

    async def _sessions(self, request: Request) -> Lines:
        async for portion in self._walk(request, connected=False):
            yield portion

    async def _walk(self, request: Request, *, connected: bool) -> Lines:
        pattern = _text(request, "filter")
        sessions = self._broker.sessions
        whole = pattern in sessions
        names = [pattern] if whole else list(sessions)
        total = 0
        for start in range(0, len(names), SLICE):
            now = monotonic()
            portion: list[dict[str, object]] = []
            for name in names[start : start + SLICE]:
                session = sessions.get(name)
                if session is None or (connected and session.link is None):
                    continue
                if pattern and not whole and not fnmatchcase(name, pattern):
                    continue
                portion.append({"item": _session(session, whole, now)})
            total += len(portion)
            yield portion
        yield [{"end": {"count": total}}]

    async def _retained(self, request: Request) -> Lines:
        topic_filter = _text(request, "filter") or "#"
        try:
            validate_topic_filter(topic_filter)
        except ProtocolError as error:
            raise Refused(f"not a filter: {error.detail}") from None
        cursor = self._broker.retained.cursor(topic_filter)
        total = 0
        while not cursor.done:
            now = monotonic()
            portion: list[dict[str, object]] = []
            for message in cursor.take(SLICE):
                left = message.expires_at - now if message.expires_at else None
                if left is not None and left <= 0:
                    continue
                item = {
                    "topic": message.topic,
                    "bytes": len(message.payload),
                    "qos": message.qos,
                    "from": message.origin,
                    "expires_in_s": None if left is None else round(left, 1),
                }
                portion.append({"item": item})
            total += len(portion)
            yield portion
        yield [{"end": {"count": total}}]

    async def _explain(self, request: Request) -> Lines:
        since_s = _number(request, "since_s", 0.0)
        now = monotonic()
        question = Question(
            _text(request, "client"),
            _text(request, "topic"),
            now - since_s if since_s else 0.0,
            int(_number(request, "limit", 50)) or 50,
            now + EXPLAIN_S,
        )
        if question.topic:
            try:
                validate_topic_filter(question.topic)
            except ProtocolError as error:
                raise Refused(f"not a topic: {error.detail}") from None
        epoch = time.time() - now
        told: list[dict[str, Any]] = []
        async for portion in tell(self._broker, self._hooks, question, epoch):
            told += portion
            yield [{"item": one} for one in portion]
        findings: list[dict[str, Any]] = []
        if question.client_id and question.topic and not is_wildcard(question.topic):
            of_topic = question_of_topic(question)
            found = await stories(self._broker, of_topic)
            question.late = question.late or of_topic.late
            findings = why(self._broker, self._hooks, question, found, told)
        end = {"findings": findings, "record": self._record(now), "late": question.late}
        yield [{"end": end}]

    def _record(self, now: float) -> dict[str, object]:
        watcher = self._broker.context.watcher
        if watcher is None:
            return {"limit": 0, "held": 0, "reaches_back_s": 0.0}
        oldest = watcher.traces[0].at if watcher.traces else now
        return {
            "limit": watcher.limit,
            "held": len(watcher.traces),
            "reaches_back_s": round(now - oldest, 1),
        }

    async def _figures(self, request: Request) -> Lines:
        """What `mqttd top` shows: totals, and those who have most waiting."""
        yield [{"end": await self._measured(int(_number(request, "top", 10)))}]

    async def _measured(self, top: int) -> dict[str, object]:
        broker = self._broker
        counters = broker.counters
        census = Census(broker)
        while not census.step():
            await asyncio.sleep(0)
        deepest: list[tuple[int, str]] = []
        sessions = broker.sessions
        for place, name in enumerate(list(sessions)):
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            session = sessions.get(name)
            if session is not None and session.queue is not None:
                deepest.append((len(session.queue), name))
        deepest.sort(reverse=True)
        return {
            "version": mqttd.__version__,
            "pid": os.getpid(),
            "at": time.time(),
            "clients": counters.clients_connected,
            "sessions": len(sessions),
            "retained": census.retained,
            "messages_received": counters.publish_received,
            "messages_sent": counters.publish_sent,
            "bytes_received": counters.bytes_received,
            "bytes_sent": counters.bytes_sent,
            "refused_messages": counters.publish_refused,
            "refused_connects": counters.connects_refused,
            "queued": census.queued,
            "in_flight": census.inflight,
            "dropped": dict(counters.dropped),
            "deepest": [{"client": name, "queued": number} for number, name in deepest[:top]],
            "plugins": self._plugin_figures(),
        }

    def _plugin_figures(self) -> list[dict[str, object]]:
        hooks = self._hooks
        if hooks is None:
            return []
        found: list[dict[str, object]] = []
        for guard in hooks.guards:
            stats = guard.stats.values()
            found.append(
                {
                    "name": guard.name,
                    "calls": sum(one.calls for one in stats),
                    "failures": sum(one.failures for one in stats),
                    "seconds": sum(one.seconds for one in stats),
                    "longest_s": max((one.longest_s for one in stats), default=0.0),
                    "resting": guard.resting,
                }
            )
        return found

    # Doing.

    async def _kick(self, request: Request) -> Lines:
        client_id = _text(request, "client")
        reason = _text(request, "reason") or "by the operator"
        if not client_id:
            raise Refused("kick needs a client")
        if not self._broker.kick(client_id, spec.ADMINISTRATIVE_ACTION, reason, monotonic()):
            raise Refused(f"{client_id} is not connected")
        self._schedule()
        act("kick", _uid(request), client=client_id, reason=reason)
        yield [{"end": {"kicked": client_id}}]

    async def _plugin(self, request: Request) -> Lines:
        name, action = _text(request, "name"), _text(request, "action")
        arguments = request.get("arguments", {})
        if not isinstance(arguments, dict):
            raise Refused("arguments: expected an object")
        plugin = None if self._hooks is None else self._hooks.plugin(name)
        if plugin is None:
            raise Refused(f"there is no plugin {name!r} in the configuration")
        done = await self._control(name, plugin, action, arguments, PLUGIN_S)
        fields = {"plugin": name, "action": action, "arguments": shown(arguments)}
        act("plugin_action", _uid(request), **fields)
        yield [{"end": {"answer": done}}]

    async def _role(self, request: Request) -> Lines:
        """Ask every plugin of a role, or one of them; who fails costs its own line alone."""
        role, name = _text(request, "role"), _text(request, "name")
        action = _text(request, "action")
        if not role or action not in ROLE_ACTIONS:
            raise Refused(f"role needs a role, and an action: {', '.join(ROLE_ACTIONS)}")
        guards = [] if self._hooks is None else self._hooks.guards
        known = {guard.name: guard.plugin for guard in guards if guard.plugin.role == role}
        if name and known and name not in known:
            raise Refused(f"there is no {role} {name!r}; there is: {', '.join(known)}")
        wanted = known if not name else {name: known[name]} if known else {}
        uid = _uid(request)
        answers = (self._of_role(one, plugin, action, uid) for one, plugin in wanted.items())
        found = await asyncio.gather(*answers)
        yield [{"item": one} for one in found]
        yield [{"end": {"count": len(found)}}]

    async def _of_role(
        self, name: str, plugin: Plugin[Any], action: str, uid: int | None
    ) -> dict[str, object]:
        try:
            done = await self._control(name, plugin, action, {}, ROLE_S)
            json.dumps(done)
        except (Refused, TypeError, ValueError) as error:
            return {"name": name, "error": str(error)}
        if action != STATUS:
            act("plugin_action", uid, plugin=name, action=action)
        return {"name": name, "answer": done}

    async def _control(
        self, name: str, plugin: Plugin[Any], action: str, arguments: dict[str, Any], limit_s: float
    ) -> object:
        """What a plugin answers. Refused."""
        try:
            async with asyncio.timeout(limit_s):
                done = await plugin.control(action, arguments)
        except ValueError as error:
            raise Refused(str(error)) from None
        except NoRoom as error:
            raise Refused(error.strerror or str(error)) from None
        except TimeoutError:
            raise Refused(f"{name} took longer than {limit_s:g} s") from None
        except (Exception, SystemExit) as error:  # the loop would end with the latter
            logger.exception("plugin %s failed in control", name)
            raise Refused(f"{name} failed: {type(error).__name__}; see the log") from None
        self._schedule()
        return done

    async def _reload_all(self, request: Request) -> Lines:
        act("reload_asked", _uid(request))
        yield [{"end": await self._reload()}]


def question_of_topic(question: Question) -> Question:
    """The same, whoever got it: what was never matched has no receiver."""
    return Question("", question.topic, question.since, question.limit, question.until)


def _session(session: Session, whole: bool, now: float) -> dict[str, object]:
    link = session.link
    owner = session.owner
    found: dict[str, object] = {
        "client": session.client_id,
        "user": None if owner is None or owner.startswith("\0") else owner,
        "connected": link is not None,
        "peer": None,
        "listener": None,
        "version": None,
        "connected_s": None,
        "subscriptions": len(session.subscriptions),
        "queued": 0 if session.queue is None else len(session.queue),
        "in_flight": len(session.window.deliveries),
        "expiry_interval_s": session.expiry_interval,
        "expires_in_s": round(session.expires_at - now, 1) if session.expires_at else None,
    }
    if isinstance(link, Connection):
        found |= {
            "peer": link.peer,
            "listener": link.listener.name,
            "version": VERSIONS[link.version],
            "connected_s": round(now - link.opened_at, 1),
        }
    elif link is not None:
        found["peer"] = "inside"
    if whole:
        found["filters"] = [
            {"filter": one.topic_filter, "qos": one.qos, "no_local": one.no_local}
            for one in islice(session.subscriptions.values(), 1000)
        ]
    return found


def _uid(request: Request) -> int | None:
    uid = request.get(ASKED_BY)
    return uid if isinstance(uid, int) else None


def _text(request: Request, key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Refused(f"{key}: expected text of at most {MAX_TEXT} characters")
    return value


def _number(request: Request, key: str, default: float) -> float:
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise Refused(f"{key}: expected a number from 0")
    return float(value)
