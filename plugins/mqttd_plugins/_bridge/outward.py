"""The way out: from the outbox to the remote system, nothing acknowledged before its time.

Owns: the client inside the broker whose lasting session is the outbox; what was taken out of it;
what each answer of the remote system means for a message. The session's receive maximum is the
window: the broker hands out no more until something is acknowledged, so memory is bounded by the
window, and everything else waits in the session's queue, which is on disk when it is long.

A message is acknowledged when every rule that matched it is done with it: confirmed, dead-lettered
or dropped. If its id has a row, that goes in the same turn of the loop, hence in the same commit.

A message that ends the connection is the one poison nobody names. When connections end again and
again before anything was confirmed, items are sent one by one, and each end counts as a failure of
the one item that was under way.

Must not know: how a connection is made and kept (`link`), the system behind `Remote`.

Invariants: answers of an earlier connection are ignored; `send` is never called while another
call of it runs; nothing is sent before its id is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Final

from mqttd.api import BrokerServices, InternalClient, NoRoom, Received
from mqttd.api import matches as topic_matches
from mqttd_plugins._bridge.dead_letters import DeadLetters
from mqttd_plugins._bridge.figures import (
    CONFIRMED,
    DEAD,
    DROPPED,
    FUNCTION,
    TARGET,
    TRIES,
    Way,
)
from mqttd_plugins._bridge.identity import MAX_HOPS, Identity, Ticket, hops_of, via_with
from mqttd_plugins._bridge.lanes import Lanes
from mqttd_plugins._bridge.properties import envelope_of
from mqttd_plugins._bridge.remote import Done, Failure, Item, Poison, Refused, Remote
from mqttd_plugins._bridge.rules import Applied, BridgeConfig
from mqttd_plugins._bridge.template import Unfit, Values

_FRUITLESS: Final = 2  # connections that ended with nothing confirmed, until items go one by one
_NO_ROOM_S: Final = 0.5  # until a full disk is asked again
_TURN: Final = 64  # messages taken out of the outbox, until others have their turn
_TOPICS: Final = 4096  # whose rules are remembered
_REMEMBERED: Final = 512  # letters of such a topic: publishers choose them


class _Held:
    """A message that was taken out of the outbox and isn't settled."""

    __slots__ = ("outcome", "reason", "received", "taken_at", "ticket", "waiting")

    def __init__(self, received: Received, ticket: Ticket, taken_at: float) -> None:
        self.received = received
        self.ticket = ticket
        self.taken_at = taken_at
        self.waiting = 1  # items, and one while they are being made
        self.outcome = DROPPED
        self.reason = ""


class Outward:
    """The way out of one bridge."""

    def __init__(
        self,
        services: BrokerServices,
        config: BridgeConfig,
        rules: Sequence[Applied],
        client: InternalClient,
        identity: Identity,
        figures: Way,
        dead_letters: DeadLetters,
    ) -> None:
        self.figures = figures
        self.lanes = Lanes()
        self._services = services
        self._config = config
        self._rules = rules
        self._client = client
        self._identity = identity
        self._dead_letters = dead_letters
        self._held: dict[int, _Held] = {}  # by the seq of each item
        self._in_hand: dict[_Held, None] = {}  # in the order in which they were taken
        self._most = 2 * config.window  # in hand
        self._matched: dict[str, list[Applied]] = {}  # by topic
        self._seq = 0
        self._connection = 0
        self._confirmed = 0  # on this connection
        self._fruitless = 0
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def subscribe(self) -> None:
        """Subscribe for the rules; subscriptions that no rule asks for any more go.

        In this order: what an old filter matched and a new one does shall not slip through.
        """
        wanted: dict[str, int] = {}
        for applied in self._rules:
            rule = applied.rule
            name = rule.source if rule.share is None else f"$share/{rule.share}/{rule.source}"
            wanted[name] = max(rule.qos, wanted.get(name, 0))
        for name, qos in wanted.items():
            await self._client.subscribe(name, qos)
        for name in self._client.subscriptions:
            if name not in wanted:
                await self._client.unsubscribe(name)

    @property
    def lag_s(self) -> float:
        """For how long the oldest message in hand has been there."""
        for held in self._in_hand:
            return self._services.now() - held.taken_at
        return 0.0

    async def take_all(self) -> None:
        """Take messages out of the outbox, for as long as the client lasts."""
        while taken := await self._client.take():
            for turn, received in enumerate(taken, 1):
                self.figures.take()
                try:
                    self._take(received)
                except NoRoom:
                    await self._take_with_room(received)
                if turn % _TURN == 0:
                    await asyncio.sleep(0)  # a whole window may be there at once: others go on, too
                if len(self._in_hand) >= self._most:
                    # Only QoS 0 gets here: of the rest the broker hands out the window at most.
                    self._room.clear()
                    await self._room.wait()
            self._woken.set()

    async def _take_with_room(self, received: Received) -> None:
        """The disk is full, so the row of an id can't be written: the message waits until it can.

        Nothing overtakes it.
        """
        while True:
            due = asyncio.Event()
            self._services.call_later(_NO_ROOM_S, due.set)
            await due.wait()
            with contextlib.suppress(NoRoom):
                self._take(received)
                return

    def _rules_of(self, topic: str) -> list[Applied]:
        matched = self._matched.get(topic)
        if matched is None:
            if len(self._matched) >= _TOPICS:
                self._matched.clear()
            matched = [one for one in self._rules if topic_matches(one.rule.source, topic)]
            if len(topic) <= _REMEMBERED:
                self._matched[topic] = matched
        return matched

    def _take(self, received: Received) -> None:
        message = received.message
        hops = hops_of(message.properties) if message.block else []
        matched = self._rules_of(message.topic)
        if len(hops) >= MAX_HOPS or not matched:
            received.ack()
            self.figures.settle(DROPPED, "hops" if matched else "no_rule")
            return
        ticket = self._identity.ticket(received)
        held = _Held(received, ticket, self._services.now())
        self._in_hand[held] = None
        via = via_with(hops, self._identity.origin) if hops else self._identity.origin
        for applied in matched:
            held.waiting += 1
            try:
                item = self._item(applied, received, ticket.id, via)
            except Unfit as unfit:
                self._bury(held, applied.place, 0, f"to: {unfit}", TARGET)
                continue
            except Exception as error:  # whatever the rule's function does
                self._services.log.exception("%s: its function failed", applied.place)
                reason = f"function: {type(error).__name__}: {error}"
                self._bury(held, applied.place, 0, reason, FUNCTION)
                continue
            if item is None:
                self._settle(held, DROPPED, "function")
                continue
            self._held[item.seq] = held
            self.lanes.put(item)
        self._settle(held, DROPPED, "function")
        self._woken.set()

    def _item(self, applied: Applied, received: Received, id: str, via: str) -> Item | None:
        message = applied.changed(received.message)
        if message is None:
            return None
        values = Values(message, id)
        rule = applied.rule
        payload = None
        if rule.payload == "envelope":
            payload = envelope_of(message, id, via, time.time())
        self._seq += 1
        return Item(
            self._seq,
            rule,
            message,
            id=id,
            via=via,
            target=applied.target(values),
            key=applied.key(values),
            headers=applied.headers(values),
            payload=payload,
            place=applied.place,
        )

    # Sending.

    async def send_all(self, remote: Remote) -> None:
        """Send on a connection that is up, until it is cancelled."""
        self._connection += 1
        self._confirmed = 0
        self.lanes.limit = self._config.per_key or remote.per_key
        done = self._done_on(self._connection)
        while True:
            most = remote.batch
            if self._fruitless >= _FRUITLESS:
                most = 0 if self.lanes.flying else 1
            items = self.lanes.take(most) if most else []
            if not items:
                self._woken.clear()
                await self._woken.wait()
                continue
            for item in items:
                ticket = self._held[item.seq].ticket
                if ticket.durable is not None:
                    # Shielded: a connection that ends takes nothing with it but itself.
                    await asyncio.shield(ticket.durable)
                    ticket.durable = None
            await remote.send(items, done)
            await asyncio.sleep(0)  # a remote system that answers at once leaves nobody a turn

    def lost(self, *, by_us: bool = False) -> None:
        """The connection is over: what wasn't answered is sent again. An end `by_us` is nobody's
        fault."""
        self._connection += 1
        flying = list(self.lanes.flying.values())
        if self._confirmed:
            self._fruitless = 0
        elif flying and not by_us:
            suspects = flying if self._fruitless >= _FRUITLESS else []
            self._fruitless += 1
            for item in suspects:
                self._failed(item, "the connection ended each time that it was sent")
        self.lanes.lost()

    def _done_on(self, connection: int) -> Done:
        def done(item: Item, failure: Failure | None) -> None:
            if connection != self._connection or item.seq not in self.lanes.flying:
                return
            if failure is None:
                self._confirmed += 1
                self._fruitless = 0
                self.lanes.settled(item)
                self._settle(self._held.pop(item.seq), CONFIRMED)
            elif isinstance(failure, Poison):
                item.tries += 1
                self.figures.fail()
                self._give_up(item, failure.reason, failure.cause)
            elif isinstance(failure, Refused):
                self._hold(item, self._config.retry_most)
            else:
                self._failed(item, failure.reason)
            self._woken.set()

        return done

    def _failed(self, item: Item, reason: str) -> None:
        item.tries += 1
        if item.tries >= self._config.tries:
            self.figures.fail()
            self._give_up(item, reason, TRIES)
        else:
            self._hold(item, backoff_s(self._config, item.tries))

    def _hold(self, item: Item, delay_s: float) -> None:
        self.figures.fail()
        self.lanes.failed(item)

        def release() -> None:
            self.lanes.release(item.key)
            self._woken.set()

        self._services.call_later(delay_s, release)

    def _give_up(self, item: Item, reason: str, cause: str) -> None:
        self.lanes.settled(item)
        self._bury(self._held.pop(item.seq), item.place, item.tries, reason, cause)

    def _bury(self, held: _Held, place: str, tries: int, reason: str, cause: str) -> None:
        self._services.log.warning("%s: a message is dead-lettered: %s", place, reason)

        async def bury() -> None:
            await self._dead_letters.bury(
                held.received.message, id=held.ticket.id, place=place, tries=tries, reason=reason
            )
            self._settle(held, DEAD, cause)

        self._services.spawn(bury(), "dead letter")

    def _settle(self, held: _Held, outcome: int, reason: str = "") -> None:
        """One item of a message is done with; the last one settles the message."""
        held.waiting -= 1
        if outcome > held.outcome:
            held.outcome, held.reason = outcome, reason
        if held.waiting:
            return
        held.received.ack()
        self._identity.settled(held.ticket)
        del self._in_hand[held]
        self.figures.settle(held.outcome, held.reason or reason)
        if len(self._in_hand) < self._most:
            self._room.set()


def backoff_s(config: BridgeConfig, failures: int) -> float:
    """How long to wait after so many failures in a row."""
    longest_s = min(config.retry_first * 2.0 ** min(failures - 1, 60), config.retry_most)
    return longest_s * random.uniform(0.5, 1.0)
