"""The hook manager: plugins between their configuration and the core's table of hooks.

Owns: the life of the plugins (made, started, stopped), the slots of `core.auth.Hooks` that they
fill, and the answers that come late.

Must not know: sockets, files, SQL. Of the shell it knows one thing, `schedule`: something was told
to the core, flush soon.

Invariants: a slot that no plugin needs stays None; a verdict that was under way while decisions
were forgotten is not remembered; an answer that comes for a connection that has closed does
nothing; the core hears of every answer on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

from mqttd.core import spec
from mqttd.core.auth import AuthStep, FilterRuling, Grant, Ruling, Verdict
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.errors import ProtocolError
from mqttd.core.letters import Letter, Letters
from mqttd.core.message import Message as CoreMessage
from mqttd.core.packets import Connect, Filter
from mqttd.core.session import Session
from mqttd.core.topics import split_shared, validate_topic_filter
from mqttd.hooks.convert import (
    apply_request,
    core_message_of,
    letter_of,
    message_of,
    request_of,
)
from mqttd.hooks.deciders import Chains, broken
from mqttd.hooks.guard import WATCH, Guard, begin
from mqttd.hooks.loader import Prepared
from mqttd.hooks.observers import Observer, Observers
from mqttd.hooks.plugin import Plugin
from mqttd.hooks.services import Services, Works
from mqttd.hooks.values import (
    UNDELIVERED,
    Allow,
    Client,
    Continue,
    Credentials,
    Deny,
    Drop,
    NotMine,
    SubscriptionRequest,
    Undelivered,
)

logger: Final = logging.getLogger("mqttd.plugins")

START_S: Final = 60.0  # that a plugin may take to start, and to stop
GRACE_S: Final = 5.0  # for answers that are under way when the broker stops
AnswerT = TypeVar("AnswerT")


class PluginError(Exception):
    """A plugin can't be started or reloaded; the text says which and why."""


class HookManager:
    """The plugins of one broker on one loop."""

    def __init__(
        self,
        broker: Broker,
        prepared: list[Prepared],
        schedule: Callable[[], None],
        certificate_of: Callable[[object], Any] = lambda shell: None,
    ) -> None:
        self.broker = broker
        self.guards: list[Guard] = []
        self.chains = Chains((), 0)
        self.services: dict[str, Services] = {}
        self._prepared = prepared
        self._schedule = schedule
        self._certificate_of = certificate_of
        self._works = Works(broker, schedule, self)
        self._observers = Observers(broker, self._works.spawn)
        self._generation = 0  # of decisions: raised when they are forgotten
        self._started: list[Guard] = []
        self._late: set[asyncio.Future[Any]] = set()  # answers under way
        self._watching = False

    # Life.

    async def start(self) -> None:
        """Make the plugins, start them, fill the slots. PluginError."""
        for one in self._prepared:
            services = Services(one.name, self._works)
            try:
                plugin = one.made_by(one.config, services)
            except (Exception, SystemExit) as error:
                raise PluginError(f"plugin {one.name}: {_said(error)}") from error
            self.services[one.name] = services
            self.guards.append(Guard(one.name, plugin, one.entry, monotonic))
        if self.guards:
            WATCH.start()
            self._watching = True
        for guard in self.guards:
            try:
                async with asyncio.timeout(START_S):
                    await guard.plugin.start()
            except TimeoutError as error:
                raise PluginError(f"plugin {guard.name} did not start in {START_S:g} s") from error
            except (Exception, SystemExit, asyncio.CancelledError) as error:
                if _cancelled():
                    raise
                logger.debug("plugin %s", guard.name, exc_info=True)
                raise PluginError(f"plugin {guard.name}: {_said(error)}") from error
            self._started.append(guard)
        self.chains = Chains(self.guards, self.broker.settings.max_topic_levels)
        self._fill()
        try:
            self._observers.start(self.guards)
        except ValueError as error:
            raise PluginError(str(error)) from error

    async def stop(self) -> None:
        """Stop what was started, the last first, whatever any of them raises."""
        if self._late:  # the will of a client that was sent away, say
            await asyncio.wait(self._late, timeout=GRACE_S)
        await self._observers.stop()
        while self._started:
            guard = self._started.pop()
            try:
                async with asyncio.timeout(START_S):
                    await guard.plugin.stop()
            except (Exception, SystemExit, asyncio.CancelledError):
                if _cancelled():
                    raise
                logger.exception("plugin %s failed to stop", guard.name)
        await self._works.close()
        if self._watching:
            self._watching = False
            WATCH.stop()

    @property
    def observers(self) -> list[Observer]:
        """Who is told of events, and how many each has lost."""
        return self._observers.observers

    async def reload(self, prepared: list[Prepared]) -> dict[str, str]:
        """Hand each plugin its configuration, new or not; name → why it keeps what it had."""
        failed: dict[str, str] = {}
        for one in prepared:
            guard = next((guard for guard in self.guards if guard.name == one.name), None)
            if guard is None:
                continue
            try:
                async with asyncio.timeout(START_S):
                    await guard.plugin.reload(one.config)
            except TimeoutError:
                failed[one.name] = f"it took longer than {START_S:g} s"
            except (Exception, SystemExit, asyncio.CancelledError) as error:
                if _cancelled():
                    raise
                logger.debug("plugin %s", one.name, exc_info=True)
                failed[one.name] = _said(error)
            else:
                guard.adjust(one.entry)
        return failed

    def plugin(self, name: str) -> Plugin[Any] | None:
        """A plugin by its name in the configuration."""
        for guard in self.guards:
            if guard.name == name:
                return guard.plugin
        return None

    def tick(self) -> None:
        """Once a flush: tell who waits for a commit, a message, an event."""
        self._works.tick()
        self._observers.tick()

    def _fill(self) -> None:
        hooks = self.broker.hooks
        chains = self.chains
        if chains.any:
            hooks.authenticate = self._authenticate  # every other hook needs the client it makes
        if chains.enhanced:
            hooks.enhanced_methods = tuple(chains.enhanced)
            hooks.enhanced = self._enhanced
        if chains.publish_deciders or chains.on_publish:
            hooks.publish = self._publish
            hooks.transforms = bool(chains.on_publish)
            hooks.will = self._will
        if chains.subscribe_deciders or chains.on_subscribe:
            hooks.subscribe = self._subscribe
        if chains.on_unsubscribe:
            hooks.unsubscribe = self._unsubscribe
        if chains.receive_deciders:
            hooks.receive = self._receive
        if chains.on_deliver:
            hooks.deliver = self._deliver
        if chains.on_undelivered:
            self.broker.context.letters = Letters(_reasons(chains.on_undelivered))
            hooks.undelivered = self._undelivered

    def _soon(
        self,
        work: Coroutine[Any, Any, AnswerT],
        late: Callable[[AnswerT], None],
        failed: Callable[[], AnswerT],
        connection: Connection | None = None,
    ) -> AnswerT | None:
        """The answer of a chain where it needs no waiting; else None, and `late` gets it."""
        try:
            answer, rest = begin(work)
        except Exception:
            logger.exception("bug: a chain of hooks failed")
            return failed()
        if rest is None:
            return answer

        async def finish(rest: Awaitable[AnswerT]) -> None:
            try:
                found = await rest
            except Exception:
                logger.exception("bug: a chain of hooks failed")
                found = failed()
            try:
                late(found)
            except Exception:  # as out of `receive_data`: it ends this connection and no other
                logger.exception("bug: exception out of the core after a late answer")
                if connection is not None:
                    connection.abort(monotonic())
            self._schedule()

        task = self._works.spawn(finish(rest), "hook")
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return None

    # CONNECT.

    def _authenticate(self, connection: object, connect: Connect) -> Verdict | None:
        assert isinstance(connection, Connection)
        return self._soon(
            self._admission(connection, connect),
            lambda verdict: connection.authenticated(verdict, monotonic()),
            lambda: Verdict(False, spec.UNSPECIFIED_ERROR, "authentication failed to decide"),
            connection,
        )

    def _client_of(self, connection: Connection, connect: Connect) -> Client:
        client = Client(
            connect.client_id,
            connect.username,
            connection.peer,
            connection.listener.name,
            connection.listener.transport,
            connection.version,
            connection.identity,
            self._certificate_of(connection.shell),  # not later: that would keep the connection
        )
        connection.guest = client
        return client

    async def _admission(self, connection: Connection, connect: Connect) -> Verdict:
        client = self._client_of(connection, connect)
        denied = await self._on_connect(client, connect)
        if denied is not None:
            return _refusal(denied)
        credentials = Credentials(connect.username, connect.password)
        decision = await self.chains.authenticate(client, credentials)
        if isinstance(decision, Deny):
            return _refusal(decision)
        if isinstance(decision, NotMine):
            decision = self._unclaimed(connection, connect)
            if isinstance(decision, Deny):
                return _refusal(decision)
        return await self._welcome(client, connection, connect, decision)

    async def _on_connect(self, client: Client, connect: Connect) -> Deny | None:
        if not self.chains.on_connect:
            return None
        asked = request_of(connect)
        wanted, made_by = await self.chains.connect(client, asked)
        if isinstance(wanted, Deny):
            return wanted
        if wanted != asked:
            try:
                apply_request(wanted, asked, connect)
            except (ProtocolError, ValueError, TypeError, AttributeError) as error:
                assert made_by is not None  # or it would be what was asked
                return broken(made_by.reject("on_connect", f"an invalid CONNECT: {error}"))
            client.client_id = connect.client_id
            client.username = connect.username
        return None

    def _unclaimed(self, connection: Connection, connect: Connect) -> Allow | Deny:
        """Nobody has an opinion: a certificate may speak for the client, or its listener."""
        if connection.identity is not None:
            return Allow(username=connection.identity)
        decided = self.chains.authenticators or self.chains.enhanced
        if decided and connect.username is not None:
            # In the words of a wrong password: whether the user exists is nobody's business.
            return Deny("bad user name or password", spec.BAD_USER_NAME_OR_PASSWORD)
        if not connection.listener.allow_anonymous:
            return Deny("nobody vouches for it")
        return Allow()

    async def _welcome(
        self, client: Client, connection: Connection, connect: Connect, decision: Allow
    ) -> Verdict:
        """What else is to be decided before a client is in: its will, and what it comes back to."""
        username = decision.username or connection.identity or connect.username
        if username is not None and "\0" in username:  # the broker's own sessions have such owners
            return Verdict(False, spec.BAD_USER_NAME_OR_PASSWORD, "an invalid user name")
        client.username = username
        generation = self._generation
        will = connect.will
        if will is not None:
            allowed = await self.chains.authorize_publish(client, will.topic, will.qos, will.retain)
            if isinstance(allowed, Deny):
                why = f"the will: {allowed.reason}"
                return Verdict(False, spec.NOT_AUTHORIZED, why, private=allowed.rule)
        revoked: list[str] = []
        session = self.broker.sessions.get(connect.client_id)
        if session is not None and not connect.clean_start and session.owner == username:
            revoked = await self._revoked(client, session)
        self._after(generation, connect.client_id)
        return Verdict(
            True,
            username=username,
            valid_s=_valid_s(decision),
            revoked=revoked or None,
            guest=client,
        )

    def _after(self, generation: int, client_id: str) -> None:
        """Subscriptions are allowed, by decisions that were forgotten meanwhile: look again."""
        if generation != self._generation and self.chains.subscribe_deciders:
            self._works.spawn(self._authorize_again(client_id), "authorise again")

    async def _revoked(self, client: Client, session: Session) -> list[str]:
        """The subscriptions of a session that its client may have no longer."""
        gone: list[str] = []
        if not self.chains.subscribe_deciders:
            return gone
        for subscription in list(session.subscriptions.values()):
            request = SubscriptionRequest(
                subscription.topic_filter,
                subscription.qos,
                subscription.no_local,
                subscription.retain_as_published,
                subscription.retain_handling,
            )
            decision = await self.chains.authorize_subscribe(client, request)
            if isinstance(decision, Deny):
                gone.append(subscription.topic_filter)
        return gone

    def _enhanced(
        self, connection: object, method: str, data: bytes | None, first: bool
    ) -> AuthStep | None:
        assert isinstance(connection, Connection)
        return self._soon(
            self._exchange(connection, method, data, first),
            lambda step: connection.enhanced_step(step, monotonic()),
            lambda: AuthStep(spec.UNSPECIFIED_ERROR, reason="authentication failed to decide"),
            connection,
        )

    async def _exchange(
        self, connection: Connection, method: str, data: bytes | None, first: bool
    ) -> AuthStep:
        connect = connection.connect  # None for who is connected and authenticates again
        if first:
            if connect is None:
                assert isinstance(connection.guest, Client)
                connection.claimant = connection.guest.renewed()
            else:
                connection.claimant = newcomer = self._client_of(connection, connect)
                denied = await self._on_connect(newcomer, connect)
                if denied is not None:
                    return _refused_step(denied)
        asked = connection.claimant
        assert isinstance(asked, Client)
        answer = await self.chains.authenticate_enhanced(asked, method, data, first)
        if isinstance(answer, Continue):
            return AuthStep(spec.CONTINUE_AUTHENTICATION, answer.data)
        if isinstance(answer, Deny):
            return _refused_step(answer)
        if connect is None:
            valid_s = _valid_s(answer)
            verdict = Verdict(True, username=answer.username, valid_s=valid_s, guest=asked)
            self.forget_decisions(asked.client_id)  # they may rest on what has just been renewed
        else:
            verdict = await self._welcome(asked, connection, connect, answer)
            if not verdict.allowed:
                return AuthStep(verdict.code, reason=verdict.reason, private=verdict.private)
        return AuthStep(spec.SUCCESS, answer.data, reason=verdict.reason, verdict=verdict)

    # Messages and subscriptions.

    def _publish(self, connection: object, message: CoreMessage, granted: bool) -> Ruling | None:
        assert isinstance(connection, Connection)
        return self._soon(
            self._rule(connection.guest, message, granted),
            lambda ruling: connection.ruled(ruling, monotonic()),
            lambda: Ruling(Grant(spec.UNSPECIFIED_ERROR, "a hook failed"), None),
            connection,
        )

    async def _rule(self, client: object, message: CoreMessage, granted: bool) -> Ruling:
        assert isinstance(client, Client)
        generation = self._generation
        now = monotonic()
        asked = message_of(message, now)
        decision, made, changes, final = await self.chains.publish(client, asked, granted)
        cache = final and decision.cache and not granted and generation == self._generation
        if isinstance(decision, Deny):
            return Ruling(_grant(decision), None, cache, decision.disconnect, changes)
        grant = Grant(0, "", decision.rule)
        if made is None:
            return Ruling(grant, None, False, False, changes)
        if made is asked:
            return Ruling(grant, message, cache)
        # The `now` of the question, so that waiting for the answer makes no message live longer.
        routed = core_message_of(made, now, message.origin)
        return Ruling(grant, routed, cache, False, changes)

    def _will(self, session: object, message: CoreMessage) -> bool:
        assert isinstance(session, Session)
        client = session.guest
        if not isinstance(client, Client):  # its connection was in an earlier process
            client = session.guest = Client(session.client_id, session.owner)

        def go(ruling: Ruling) -> None:
            if ruling.grant.code:
                why = ruling.grant.rule or ruling.grant.reason
                self.broker.note("will_denied", session.client_id, "", why, session.owner)
            made = None if ruling.grant.code else ruling.message
            self.broker.will_decided(message, made, session, monotonic())

        ruling = self._soon(
            self._rule(client, message, False),
            go,
            lambda: Ruling(Grant(spec.UNSPECIFIED_ERROR, "a hook failed"), None),
        )
        if ruling is None:
            return False
        go(ruling)
        return True

    def _subscribe(self, connection: object, filters: list[Filter]) -> list[FilterRuling] | None:
        assert isinstance(connection, Connection)
        return self._soon(
            self._filter(connection.guest, filters),
            lambda rulings: connection.filtered(rulings, monotonic()),
            lambda: [
                FilterRuling(entry, Grant(spec.UNSPECIFIED_ERROR, "a hook failed"))
                for entry in filters
            ],
            connection,
        )

    async def _filter(self, client: object, filters: list[Filter]) -> list[FilterRuling]:
        assert isinstance(client, Client)
        generation = self._generation
        rulings: list[FilterRuling] = []
        for entry in filters:
            if not self._is_filter(entry.topic_filter):
                rulings.append(FilterRuling(entry, Grant()))  # the core says what is wrong with it
                continue
            request = SubscriptionRequest(
                entry.topic_filter,
                entry.qos,
                entry.no_local,
                entry.retain_as_published,
                entry.retain_handling,
            )
            wanted, decision = await self.chains.subscribe(client, request)
            made = Filter(
                wanted.topic_filter,
                wanted.qos,
                wanted.no_local,
                wanted.retain_as_published,
                wanted.retain_handling,
            )
            if isinstance(decision, Deny):
                rulings.append(FilterRuling(made, _grant(decision)))
                self._send_away(client, decision)
            else:
                rulings.append(FilterRuling(made, Grant(0, "", decision.rule)))
        self._after(generation, client.client_id)
        return rulings

    def _send_away(self, client: Client, denied: Deny) -> None:
        if denied.disconnect:
            self._works.kick(client.client_id, _code(denied), denied.reason)

    def _is_filter(self, topic_filter: str) -> bool:
        try:
            validate_topic_filter(split_shared(topic_filter)[1], self.chains.max_topic_levels)
        except ProtocolError:
            return False
        return True

    def _unsubscribe(self, connection: object, topic_filter: str) -> str:
        assert isinstance(connection, Connection)
        assert isinstance(connection.guest, Client)
        return self.chains.unsubscribe(connection.guest, topic_filter)

    def _receive(self, connection: object, topic: str) -> Grant:
        assert isinstance(connection, Connection)
        assert isinstance(connection.guest, Client)
        decision = self.chains.authorize_receive(connection.guest, topic)
        if isinstance(decision, Allow):
            return Grant(cache=decision.cache)
        self._send_away(connection.guest, decision)
        return _grant(decision)

    def _deliver(self, connection: object, message: CoreMessage, qos: int) -> CoreMessage | None:
        assert isinstance(connection, Connection)
        assert isinstance(connection.guest, Client)
        now = monotonic()
        asked = message_of(message, now)
        asked.qos = qos
        made = self.chains.deliver(connection.guest, asked)
        if made is asked:
            return message
        if isinstance(made, Drop):
            return None
        return core_message_of(made, now, message.origin)

    def _undelivered(self, letter: Letter) -> CoreMessage | None:
        now = monotonic()
        message = message_of(letter.message, now)
        told = Undelivered(message, letter.reason, letter.client_id, letter.group)
        made = self.chains.undelivered(told)
        return None if made is None else core_message_of(letter_of(made, told), now, "")

    # What decisions rest on has changed.

    def forget_decisions(self, client_id: str | None) -> None:
        """See `BrokerServices.forget_decisions`."""
        self._generation += 1
        self.broker.forget_decisions(client_id or "")
        if self.chains.subscribe_deciders:
            self._works.spawn(self._authorize_again(client_id), "authorise again")

    async def _authorize_again(self, client_id: str | None) -> None:
        """Take away the subscriptions of connected clients that are denied now."""
        sessions = self.broker.sessions
        found = list(sessions.values()) if client_id is None else [sessions.get(client_id)]
        for place, session in enumerate(found):
            if place % 100 == 99:
                await asyncio.sleep(0)
            if session is None or not isinstance(session.link, Connection):
                continue
            client = session.guest
            if not isinstance(client, Client):
                continue
            for topic_filter in await self._revoked(client, session):
                if topic_filter in session.subscriptions:
                    self.broker.unsubscribe(session, topic_filter)
                    why = f"{topic_filter}: not allowed any longer"
                    self.broker.note(
                        "unsubscribed", session.client_id, client.peer, why, client.username
                    )
        self._schedule()

    async def may_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Allow | Deny:
        """See `BrokerServices.may_publish`."""
        return await self.chains.authorize_publish(client, topic, qos, retain)


def _reasons(guards: Sequence[Guard]) -> frozenset[str]:
    """The reasons for which plugins want dead letters. PluginError for one that is none."""
    found: set[str] = set()
    for guard in guards:
        unknown = sorted(guard.plugin.undelivered - UNDELIVERED)
        if unknown:
            raise PluginError(f"plugin {guard.name} wants letters of {', '.join(unknown)}")
        found |= guard.plugin.undelivered
    return frozenset(found)


def _valid_s(decision: Allow) -> float:
    """Seconds that the credentials are good for, never 0 where they end at all."""
    if decision.expires_in_s is None:
        return 0.0
    return decision.expires_in_s if decision.expires_in_s > 0.001 else 0.001


def _code(denied: Deny) -> int:
    """The reason code of a refusal, whatever the plugin says: one below 0x80 would be a success."""
    return denied.code if denied.code >= 0x80 else spec.NOT_AUTHORIZED


def _refusal(denied: Deny) -> Verdict:
    return Verdict(False, _code(denied), denied.reason, private=denied.rule)


def _refused_step(denied: Deny) -> AuthStep:
    return AuthStep(_code(denied), reason=denied.reason, private=denied.rule)


def _grant(denied: Deny) -> Grant:
    return Grant(_code(denied), denied.reason, denied.rule, denied.cache)


def _said(error: BaseException) -> str:
    """What an exception says; `sys.exit` says a number at most."""
    return "it called sys.exit" if isinstance(error, SystemExit) else str(error) or repr(error)


def _cancelled() -> bool:
    """Who waits for us has been cancelled, other than a plugin that raises CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
