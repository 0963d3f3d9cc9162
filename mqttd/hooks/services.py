"""What the broker does for plugins: `BrokerServices` on a real core.

Owns: promises that wait for a commit, clients inside and their mailboxes, timers, tasks and the
threads of `run_blocking`, the counters of plugins.

Must not know: sockets; how the store commits, only which batch it has reached.

Invariants: everything here is done on the loop's thread; what a plugin has started ends with it;
a promise is kept or broken, never forgotten: when the broker stops, who still waits is told so.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

from mqttd import log
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.errors import ProtocolError
from mqttd.core.inside import Arrival, Inside
from mqttd.core.packets import Filter
from mqttd.core.session import Session
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from mqttd.core.settings import SharePolicy as CorePolicy
from mqttd.core.shared import is_there, queue_of
from mqttd.core.topics import split_shared, validate_topic_filter
from mqttd.hooks.convert import core_message_of, message_of
from mqttd.hooks.guard import WATCH, Watched
from mqttd.hooks.plugin import (
    BrokerServices,
    InternalClient,
    NoRoom,
    Received,
    Responder,
    SessionInfo,
    Table,
    Timer,
)
from mqttd.hooks.requests import Requests
from mqttd.hooks.values import (
    Allow,
    Client,
    Deny,
    Message,
    MessageProperties,
    ShareInfo,
    SharePolicy,
)

ResultT = TypeVar("ResultT")

THREADS: Final = 2  # of `run_blocking`, of each plugin: the loop needs a core as well
_SLICE: Final = 256  # sessions, or retained messages, looked at before others get their turn
_STOPPED: Final = "the broker has stopped"
_FAILED: Final = "the store has failed: nothing becomes durable any more"
_MAILBOX: Final = 10_000  # QoS 0 messages that wait for a client inside, then they are dropped

logger: Final = logging.getLogger("mqttd.plugins")
audit: Final = logging.getLogger("mqttd.audit")


class Decides(Protocol):
    """What services ask of the hook manager."""

    def forget_decisions(self, client_id: str | None) -> None: ...

    async def may_publish(
        self, client: Client, topic: str, qos: int, retain: bool
    ) -> Allow | Deny: ...


class Stopped(RuntimeError):
    """The broker stopped before what was promised came true."""


class Works:
    """What the services of all plugins share."""

    def __init__(self, broker: Broker, schedule: Callable[[], None], decides: Decides) -> None:
        self.broker = broker
        self.schedule = schedule
        self.decides = decides
        self.clients: dict[Inside, _Inner] = {}
        self._promises: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = 0
        self._tasks: set[asyncio.Future[Any]] = set()
        self._timers: set[Later] = set()
        self._leaving: list[tuple[Connection, int, str]] = []
        self._closed = False
        self._pools: dict[str, ThreadPoolExecutor] = {}  # by plugin: none waits for another's

    def tick(self) -> None:
        """Keep the promises that a commit has made true; hand over what came for clients inside."""
        committed = self.broker.journal.committed
        promises = self._promises
        while promises and promises[0][0] <= committed:
            future = heapq.heappop(promises)[2]
            if not future.done():
                future.set_result(None)
        leaving, self._leaving = self._leaving, []
        for connection, code, reason in leaving:
            self.broker.context.at(monotonic())
            try:
                connection.close(code, reason, monotonic())
            except Exception:  # a bug: the others are told nevertheless
                logger.exception("bug: exception out of the core for %s", connection.peer)
        woken = self.broker.woken
        if woken:
            taken = woken.copy()
            woken.clear()
            for inside in taken:
                inner = self.clients.get(inside)
                if inner is not None:
                    inner.collect()

    def durable(self, barrier: int) -> Awaitable[None]:
        """Comes true with the commit of a batch. `Stopped` where none is to come."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(_seen)
        if barrier <= self.broker.journal.committed:
            future.set_result(None)
        elif self._closed:
            future.set_exception(Stopped(_STOPPED))
        else:
            self._order += 1
            heapq.heappush(self._promises, (barrier, self._order, future))
            self.schedule()
        return future

    def spawn(self, work: Awaitable[Any], name: str = "") -> asyncio.Future[Any]:
        """A task that is held on to, and whose failure is logged."""
        task = asyncio.ensure_future(work)
        if isinstance(task, asyncio.Task) and name:
            task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Stopped):
            name = task.get_name() if isinstance(task, asyncio.Task) else "plugin"
            logger.error("%s failed", name, exc_info=error)

    def later(self, delay_s: float, action: Callable[[], None]) -> Timer:
        """Call `action` after `delay_s`, unless everything has ended by then."""
        timer = Later(self._timers)
        if not self._closed:
            timer.start(asyncio.get_running_loop(), max(delay_s, 0.0), action)
        return timer

    def kick(self, client_id: str, code: int, reason: str) -> bool:
        """End a connection once whoever calls is back from the core, which may be in its midst."""
        session = self.broker.sessions.get(client_id)
        connection = None if session is None else session.link
        if not isinstance(connection, Connection):
            return False
        self._leaving.append((connection, code, reason))
        self.schedule()
        return True

    async def run_blocking(
        self, plugin: str, function: Callable[..., ResultT], *arguments: Any
    ) -> ResultT:
        """`function` in one of the plugin's own threads, which begin with the first call."""
        if self._closed:
            raise Stopped(_STOPPED)
        pool = self._pools.get(plugin)
        if pool is None:
            pool = self._pools[plugin] = ThreadPoolExecutor(THREADS, f"mqttd-{plugin}")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, function, *arguments)

    def has_failed(self) -> bool:
        """The store has, for good; not so a full disk, which may have room again."""
        refusing = self.broker.journal.refusing
        return refusing != 0 and refusing != spec.QUOTA_EXCEEDED

    async def close(self) -> None:
        """Break what can't be kept any more, and end what runs."""
        self._closed = True
        for _, _, future in self._promises:
            if not future.done():
                future.set_exception(Stopped(_STOPPED))
        self._promises.clear()
        for timer in list(self._timers):
            timer.cancel()
        for inner in list(self.clients.values()):
            inner.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _seen(future: asyncio.Future[None]) -> None:
    """Nobody has to await a promise: one that is broken then is no error of theirs."""
    if not future.cancelled():
        future.exception()


class Later(Timer):
    """Something at a time. It stands in `timers` until it has happened, or is cancelled."""

    def __init__(self, timers: set[Later]) -> None:
        self._timers = timers
        self._handle: asyncio.TimerHandle | None = None

    def start(
        self, loop: asyncio.AbstractEventLoop, delay_s: float, action: Callable[[], None]
    ) -> None:
        def go() -> None:
            self._timers.discard(self)
            action()

        self._timers.add(self)
        self._handle = loop.call_later(delay_s, go)

    def cancel(self) -> None:
        self._timers.discard(self)
        if self._handle is not None:
            self._handle.cancel()


class _Task(Timer):
    """Work that runs until it ends."""

    def __init__(self, task: asyncio.Future[Any]) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()


class _Rows(Table):
    def __init__(self, works: Works, name: str) -> None:
        self._works = works
        self._name = name

    def get(self, key: str) -> bytes | None:
        return self._works.broker.tables.get(self._name, key)

    def items(self) -> list[tuple[str, bytes]]:
        return self._works.broker.tables.items(self._name)

    def set(self, key: str, value: bytes) -> Awaitable[None]:
        self._look()
        if self._works.broker.journal.refusing:
            raise NoRoom(errno.ENOSPC, "the disk is full: nothing more is stored")
        return self._works.durable(self._works.broker.tables.set(self._name, key, value))

    def delete(self, key: str) -> Awaitable[None]:
        # With a full disk as well: it frees room, and its promise comes true when there is some.
        self._look()
        return self._works.durable(self._works.broker.tables.drop(self._name, key))

    def _look(self) -> None:
        if self._works.has_failed():
            raise Stopped(_FAILED)


class _Arrived(Received):
    """A message in a mailbox; thousands a second are made, so it has no closure of its own."""

    __slots__ = ("_inner", "_packet_id", "_session")

    def __init__(self, arrival: Arrival, inner: _Inner, now: float) -> None:
        core = arrival.message
        self.message = Message(
            core.topic,
            core.payload,
            arrival.qos,
            arrival.retain,
            None,
            core.expires_at - now if core.expires_at else None,
            core.origin,
            core.properties,
        )
        self.duplicate = arrival.dup
        self.number = arrival.number
        self.redeliveries = arrival.redeliveries
        self._packet_id = arrival.packet_id
        self._inner = inner
        self._session = inner.session

    def ack(self, reason: int = spec.SUCCESS) -> None:
        packet_id, self._packet_id = self._packet_id, 0
        if packet_id:
            self._inner.acknowledge(packet_id, self._session, reason)


class _Inner(InternalClient):
    """A client inside, for a plugin."""

    def __init__(self, works: Works, inside: Inside) -> None:
        self.client_id = inside.client_id
        self._works = works
        self._inside = inside
        self._mailbox: deque[Received] = deque()
        self._woken = asyncio.Event()
        self._closed = False
        works.clients[inside] = self

    @property
    def session(self) -> Session | None:
        return self._inside.session

    def collect(self) -> None:
        """What the session has sent goes into the mailbox."""
        now = monotonic()
        inside = self._inside
        self._mailbox.extend([_Arrived(arrival, self, now) for arrival in inside.take()])
        if len(self._mailbox) > _MAILBOX:
            inside.writable = False
        self._woken.set()

    def acknowledge(self, packet_id: int, session: Session | None, reason: int) -> None:
        """Settle a message, unless the session that sent it has gone."""
        inside = self._inside
        if session is not None and inside.session is session:
            inside.settle(packet_id, reason, monotonic())
            self._works.schedule()

    def _session(self) -> Session:
        session = self._inside.session
        if session is None:
            raise Stopped(f"the client {self.client_id} is closed")
        return session

    async def subscribe(
        self,
        topic_filter: str,
        qos: int = 1,
        *,
        no_local: bool = True,
        retain_as_published: bool = True,
        retain_handling: int = 1,
    ) -> None:
        session = self._session()
        if topic_filter.startswith("$share/"):
            no_local = False  # [MQTT-3.8.3-4]
        entry = Filter(topic_filter, min(qos, 1), no_local, retain_as_published, retain_handling)
        code = self._works.broker.subscribe(session, entry, 0)
        if code >= 0x80:
            raise ValueError(f"can't subscribe to {topic_filter!r}: {spec.reason_name(code)}")
        self._works.schedule()
        await self._works.durable(session.barrier)

    async def unsubscribe(self, topic_filter: str) -> None:
        session = self._session()
        self._works.broker.unsubscribe(session, topic_filter)
        self._works.schedule()
        await self._works.durable(session.barrier)

    @property
    def subscriptions(self) -> list[str]:
        return list(self._session().subscriptions)

    async def __aiter__(self) -> AsyncIterator[Received]:
        while await self._filled():
            received = self._mailbox.popleft()
            self._taken()
            yield received

    async def take(self) -> list[Received]:
        await self._filled()
        found = list(self._mailbox)
        self._mailbox.clear()
        self._taken()
        return found

    async def _filled(self) -> bool:
        """Wait until something is there; False when nothing will be any more."""
        while not self._mailbox:
            if self._closed:
                return False
            self._woken.clear()
            await self._woken.wait()
        return True

    def _taken(self) -> None:
        inside = self._inside
        if not inside.writable and len(self._mailbox) < _MAILBOX // 2:
            inside.writable = True
            if inside.session is not None:
                inside.session.pump(monotonic())
                self._works.schedule()

    async def publish(self, message: Message) -> int:
        return await submit(self._works, message, self.client_id, self._session())

    @property
    def queued(self) -> int:
        session = self._inside.session
        if session is None or session.queue is None:
            return 0
        return len(session.queue)

    @property
    def in_flight(self) -> int:
        session = self._inside.session
        return 0 if session is None else len(session.window.deliveries)

    def close(self) -> None:
        if self._works.clients.pop(self._inside, None) is None:
            return
        self._works.broker.leave_inside(self._inside, monotonic())
        self._closed = True
        self._woken.set()
        self._works.schedule()


async def submit(works: Works, message: Message, origin: str, session: Session | None) -> int:
    """Publish, and wait until it is durable; returns how many matched. ValueError, or `Stopped`."""
    now = monotonic()
    core = core_message_of(message, now, origin)
    while True:
        try:
            done = works.broker.submit(core, now, session)
            break
        except ProtocolError as error:
            if error.code != spec.QUOTA_EXCEEDED:
                raise Stopped(_FAILED) from error
            # The disk is full: as with any client, the message stays with its publisher meanwhile.
            await asyncio.sleep(0.5)
    works.schedule()
    if done.barrier:
        await works.durable(done.barrier)
    return done.matched


class Services(BrokerServices):
    """The services of one plugin."""

    def __init__(self, name: str, works: Works) -> None:
        self.name = name
        self.log = logging.getLogger(f"mqttd.plugins.{name}")
        self.counts: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self._works = works
        self._requests = Requests(self)

    def now(self) -> float:
        return monotonic()

    async def publish(self, message: Message) -> int:
        return await submit(self._works, message, message.client_id, None)

    async def client(
        self, client_id: str, *, receive_maximum: int = 256, session_expiry_s: int = 0xFFFFFFFF
    ) -> InternalClient:
        works = self._works
        try:
            inside = works.broker.connect_inside(
                client_id, f"\0{self.name}", session_expiry_s, receive_maximum, monotonic()
            )
        except ProtocolError as error:
            raise ValueError(f"no client {client_id!r}: {error}") from error
        inner = _Inner(works, inside)
        works.schedule()
        session = inside.session
        if session is not None:
            await works.durable(session.barrier)
        return inner

    async def request(
        self,
        topic: str,
        payload: bytes = b"",
        *,
        timeout_s: float = 5.0,
        qos: int = 1,
        properties: MessageProperties | None = None,
    ) -> Message:
        return await self._requests.request(topic, payload, timeout_s, qos, properties)

    async def respond(
        self,
        topic_filter: str,
        handler: Responder,
        *,
        reply_to: Sequence[str] = ("response/#", "$reply/#"),
    ) -> Timer:
        return await self._requests.respond(topic_filter, handler, reply_to)

    def govern(self, topic_filter: str, policy: SharePolicy | None) -> None:
        name, inner = split_shared(topic_filter)
        found = None if policy is None else _core_policy(policy)
        if not name or not self._works.broker.govern(name, inner, found):
            raise ValueError(f"nobody is subscribed to {topic_filter!r} as a shared subscription")
        self._works.schedule()

    def share(self, topic_filter: str) -> ShareInfo | None:
        name, inner = split_shared(topic_filter)
        group = self._works.broker.trie.group(name, inner) if name else None
        if group is None:
            return None
        queue = queue_of(group)
        connected = sum(is_there(member) for member in group.members)
        return ShareInfo(0 if queue is None else len(queue), len(group.members), connected)

    async def retained(self, topic_filter: str) -> AsyncIterator[Message]:
        try:
            validate_topic_filter(topic_filter)
        except ProtocolError as error:
            raise ValueError(f"not a filter: {topic_filter!r}: {error}") from error
        cursor = self._works.broker.retained.cursor(topic_filter)
        while not cursor.done:
            now = monotonic()
            for core in cursor.take(_SLICE):
                if core.expires_at and core.expires_at <= now:
                    continue
                yield message_of(core, now)
            await asyncio.sleep(0)

    def session(self, client_id: str) -> SessionInfo | None:
        session = self._works.broker.sessions.get(client_id)
        return None if session is None else session_info(session)

    async def sessions(self) -> AsyncIterator[SessionInfo]:
        sessions = self._works.broker.sessions
        for place, client_id in enumerate(list(sessions)):
            session = sessions.get(client_id)
            if session is not None:
                yield session_info(session)
            if place % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)

    def kick(
        self, client_id: str, reason: str = "", code: int = spec.ADMINISTRATIVE_ACTION
    ) -> bool:
        return self._works.kick(client_id, code, reason or "by a plugin")

    def forget_decisions(self, client_id: str | None = None) -> None:
        self._works.decides.forget_decisions(client_id)

    async def may_publish(
        self, client: Client, topic: str, qos: int = 0, retain: bool = False
    ) -> Allow | Deny:
        return await self._works.decides.may_publish(client, topic, qos, retain)

    def call_later(self, delay_s: float, action: Callable[[], object]) -> Timer:
        def go() -> None:
            began = WATCH.enter(self.name, "a timer")
            try:
                result = action()
            except (Exception, SystemExit):  # the loop would end with the latter
                self.log.exception("plugin %s failed in a timer", self.name)
                return
            finally:
                WATCH.leave(began)
            if isinstance(result, Awaitable):
                self.spawn(result, "timer")

        return self._works.later(delay_s, go)

    def spawn(self, work: Awaitable[object], name: str = "") -> Timer:
        name = name or "task"
        watched = Watched(self.name, name, work)
        return _Task(self._works.spawn(watched, f"{name} of plugin {self.name}"))

    async def run_blocking(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return await self._works.run_blocking(self.name, function, *arguments)

    def table(self, name: str = "") -> Table:
        return _Rows(self._works, f"{self.name}/{name}" if name else self.name)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def audit(self, kind: str, **fields: object) -> None:
        log.events(audit, [(kind, logging.INFO, {"plugin": self.name, **fields})])


def _core_policy(policy: SharePolicy) -> CorePolicy:
    made = CorePolicy()
    made.max_length = policy.max_length
    made.overflow = DROP_OLDEST if policy.drop_oldest else DROP_NEWEST
    made.ttl = policy.ttl_s
    made.redelivery_limit = policy.redelivery_limit
    made.exclusive = policy.exclusive
    made.one_at_a_time = policy.one_at_a_time
    made.last_value = policy.last_value
    made.keep_qos0 = policy.keep_qos0
    return made


def session_info(session: Session) -> SessionInfo:
    """A session as plugins and operators see it."""
    link = session.link
    owner = session.owner
    return SessionInfo(
        session.client_id,
        None if owner is None or owner.startswith("\0") else owner,
        link is not None,
        link.peer if isinstance(link, Connection) else ("inside" if link is not None else ""),
        tuple(session.subscriptions),
        0 if session.queue is None else len(session.queue),
        len(session.window.deliveries),
        session.expiry_interval,
    )
