"""The way in: from the remote system into the broker, acknowledged there when durable here.

Owns: what came and isn't settled; what a rule makes of it. Messages are published in the order in
which they came, several at once: each is routed in its turn, and the whole lot waits for one
commit. They are published as the client that is the outbox, so No Local keeps them from going out
again by the same bridge; what came round by another way is known by its hops.

Must not know: how a connection is made and kept, how the remote system acknowledges.

Invariants: `settle` is called in the order of `put`, once for each; never before the message, or
its dead letter, is durable; between `put` and `settle` are at most `window` messages, as long as
the face awaits `room`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from mqttd.api import (
    NO_PROPERTIES,
    BrokerServices,
    Message,
    ProtocolError,
    validate_topic_name,
)
from mqttd_plugins._bridge.dead_letters import DeadLetters
from mqttd_plugins._bridge.figures import (
    CONFIRMED,
    DEAD,
    DROPPED,
    FUNCTION,
    REFUSED,
    TARGET,
    Way,
)
from mqttd_plugins._bridge.identity import (
    MAX_HOPS,
    hops_of,
    id_of,
    stamped,
    with_user_properties,
)
from mqttd_plugins._bridge.properties import opened
from mqttd_plugins._bridge.remote import Failure, Incoming, Intake, Poison, Retry
from mqttd_plugins._bridge.rules import Applied, Rule
from mqttd_plugins._bridge.template import Unfit, Values

_AT_ONCE: Final = 256


class _Dropped(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Inward(Intake):
    """The way in of one bridge."""

    def __init__(
        self,
        services: BrokerServices,
        rules: Sequence[Applied],
        window: int,
        publish: Callable[[Message], Awaitable[int]],
        figures: Way,
        dead_letters: DeadLetters,
    ) -> None:
        self.rules: Sequence[Rule] = [one.rule for one in rules]
        self.window = window
        self.figures = figures
        self.origins: frozenset[str] = frozenset()  # of all bridges of this broker
        self._services = services
        self._applied = {id(one.rule): one for one in rules}
        self._publish = publish
        self._dead_letters = dead_letters
        self._waiting: deque[Incoming] = deque()
        self._in_hand = 0
        self._over = False
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self) -> None:
        await self._room.wait()

    def begin(self) -> None:
        """There is another connection: what comes is taken again."""
        self._over = False

    def put(self, incoming: Incoming) -> None:
        if self._over:  # behind what was forgotten: it comes again, too, and in its order
            return
        self.figures.take()
        self._waiting.append(incoming)
        self._in_hand += 1
        if self._in_hand >= self.window:
            self._room.clear()
        self._woken.set()

    async def publish_all(self) -> None:
        """Publish what comes, until it is cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                most = min(len(self._waiting), _AT_ONCE)
                some = [self._waiting.popleft() for _ in range(most)]
                for incoming in some:
                    if incoming.ready is not None:
                        await incoming.ready
                outcomes = await asyncio.gather(*(self._one(incoming) for incoming in some))
                for incoming, failure in zip(some, outcomes, strict=True):
                    self._settle(incoming, failure)

    def lost(self) -> None:
        """The connection is over: what wasn't begun, or still arrives on it, comes again."""
        self._over = True
        for _ in range(len(self._waiting)):
            self._waiting.popleft()
            self._leave()
            self.figures.untake()

    def _settle(self, incoming: Incoming, failure: Failure | None) -> None:
        self._leave()
        try:
            incoming.settle(failure)
        except Exception:  # a bug of the face: the message comes again, and the rest goes on
            place = self._applied[id(incoming.rule)].place
            self._services.log.exception("%s: a message can't be acknowledged", place)

    def _leave(self) -> None:
        self._in_hand -= 1
        if self._in_hand < self.window:
            self._room.set()

    async def _one(self, incoming: Incoming) -> Failure | None:
        """Publish one message; what to tell the remote system."""
        applied = self._applied[id(incoming.rule)]
        try:
            message = self._made(applied, incoming)
            await self._publish(message)
        except _Dropped as dropped:
            self.figures.settle(DROPPED, dropped.reason)
            return None
        except Poison as poison:
            return await self._bury(incoming, applied.place, poison.reason, poison.cause)
        except Unfit as unfit:
            return await self._bury(incoming, applied.place, str(unfit), TARGET)
        except ValueError as error:
            return await self._bury(incoming, applied.place, str(error), REFUSED)
        except RuntimeError as stopped:  # the broker ends
            self.figures.untake()
            return Retry(str(stopped))
        except Exception as error:  # a bug: it costs this message, and the rest goes on
            self._services.log.exception("%s: an error of the bridge", applied.place)
            reason = f"an error of the bridge: {type(error).__name__}: {error}"
            return await self._bury(incoming, applied.place, reason, REFUSED)
        self.figures.settle(CONFIRMED)
        return None

    async def _bury(
        self, incoming: Incoming, place: str, reason: str, cause: str
    ) -> Failure | None:
        self._services.log.warning("%s: a message is dead-lettered: %s", place, reason)
        message = incoming.message
        try:
            validate_topic_name(message.topic)
        except ProtocolError:
            # The name at the remote system may be one that no user property could hold.
            message = message.replace(topic=incoming.rule.source)
        bury = self._dead_letters.bury
        try:
            try:
                await bury(message, id=incoming.id, place=place, tries=1, reason=reason)
            except ValueError:  # its id or its properties are what MQTT can't hold
                bare = message.replace(properties=NO_PROPERTIES)
                await bury(bare, id="", place=place, tries=1, reason=reason)
        except RuntimeError as stopped:
            self.figures.untake()
            return Retry(str(stopped))
        self.figures.settle(DEAD, cause)
        return None

    def _made(self, applied: Applied, incoming: Incoming) -> Message:
        """What is published for an incoming message."""
        message = incoming.message
        headers = dict(incoming.headers)
        rule = applied.rule
        if rule.payload == "envelope":
            message, more = opened(message, time.time())
            headers |= more
        hops = hops_of(message.properties)
        if self.origins.intersection(hops):
            raise _Dropped("loop")
        if len(hops) >= MAX_HOPS:
            raise _Dropped("hops")
        if message.expires_in_s is not None and message.expires_in_s <= 0:
            raise _Dropped("expired")
        its_id = id_of(message.properties) or incoming.id
        values = Values(message, its_id, incoming.key, headers)
        topic = applied.target(values)
        try:
            validate_topic_name(topic)
        except ProtocolError as error:
            raise Poison(f"to: makes no topic: {error.detail}", TARGET) from None
        properties = message.properties
        if its_id:
            properties = stamped(properties, its_id, ",".join(hops))
        added = applied.headers(values)
        if added:
            properties = with_user_properties(properties, added)
        made = message.replace(
            topic=topic,
            qos=min(message.qos, rule.qos),
            retain=message.retain and rule.retain,
            properties=properties,
        )
        try:
            changed = applied.changed(made)
        except Exception as error:  # whatever the rule's function does
            self._services.log.exception("%s: its function failed", applied.place)
            raise Poison(f"function: {type(error).__name__}: {error}", FUNCTION) from None
        if changed is None:
            raise _Dropped("function")
        return changed
