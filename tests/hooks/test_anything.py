"""Whatever plugins answer, the broker holds: no bug, no silent loss, nobody in without a yes.

Two plugins answer every hook out of a bag of right, wrong and absurd values, at once or later,
while a few clients come, go, subscribe and publish.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mqttd.api import (
    ALLOW,
    DENY,
    NOT_MINE,
    Allow,
    Client,
    Continue,
    Deny,
    Drop,
    Message,
    MessageProperties,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
)
from mqttd.core.packets import Filter, Publish, Subscribe, Unsubscribe, Will
from tests.conftest import new_loop
from tests.core.vectors import untimed
from tests.harness import FakeClient
from tests.hooks.kit import Hooked, hooked, prepared

ABSURD: tuple[Any, ...] = (
    *(None, True, 0, "", "allow", b"", [], {}, object(), Allow, Deny, NotImplemented),
    *(Continue(b"x"), Drop(), Message("t"), SubscriptionRequest("t")),
    *(Allow(username=7), Allow(username="\0x"), Allow(expires_in_s="x"), Allow(rule=5)),  # type: ignore[arg-type]
    *(Deny(code=0), Deny(code=-1), Deny(code=1 << 40), Deny(code="x"), Deny(reason=5)),  # type: ignore[arg-type]
    *(Deny(code=0x8A), Deny(code=0x1FF, reason="x" * 70000), Deny(rule="y" * 70000)),
    *(Drop(reason=7), Drop(reason="z" * 70000)),  # type: ignore[arg-type]
)
MESSAGES: tuple[Any, ...] = (
    *(Message("u", b"y", 2, True), Message("t/t", b"", 1), Message("$SYS/x"), Message("a/#")),
    *(Message("u", b"y", 9), Message("", b""), Message(7), Message("u", "text")),  # type: ignore[arg-type]
    Message("u", b"y", properties=MessageProperties(user_properties=(("a", "b"),) * 3)),
    Message("u", b"y", properties=MessageProperties(content_type="\0")),
    Message("u", b"y", block=b"\xff\xff"),
    *(Message("u", b"y", expires_in_s=-5), Message("u", b"y", expires_in_s=float("nan"))),
    *(Message("u", b"y", expires_in_s=1e300), Message("u", bytes(100_000), 1, True)),
)
FILTERS: tuple[Any, ...] = (
    *(SubscriptionRequest("u", 2), SubscriptionRequest("$share/g/#", 1), SubscriptionRequest("#")),
    *(SubscriptionRequest("a/#/b"), SubscriptionRequest("u", 7), SubscriptionRequest(None)),  # type: ignore[arg-type]
    SubscriptionRequest("$share/g/u", no_local=True),
)


class Anything(Plugin[PluginConfig]):
    """Answers out of `bag`."""

    watches = frozenset({"published", "dropped", "connected", "denied"})
    chance: random.Random
    tame: float

    async def start(self) -> None:
        self.chance = random.Random(0)
        self.tame = 0.5

    def _answer(self, usual: Any, *bags: tuple[Any, ...]) -> Any:
        chance = self.chance
        if chance.random() < self.tame:
            return usual
        found = chance.choice(chance.choice((ABSURD, *bags)))
        how = chance.randrange(8)
        if how == 0:
            raise RuntimeError("broken")
        if how == 1:
            return self._later(found)
        if how == 2:
            return self._broken_later()
        if how == 3 and self.broker.name == "kicks":
            self.broker.kick("abc"[chance.randrange(3)])
            self.broker.forget_decisions()
        return found

    async def _later(self, found: Any) -> Any:
        await asyncio.sleep(0)
        return found

    async def _broken_later(self) -> Any:
        await asyncio.sleep(0)
        raise asyncio.CancelledError


def _hook(usual: Any, *bags: tuple[Any, ...]) -> Callable[..., Any]:
    return lambda self, *_: self._answer(usual, *bags)


DECIDING = (ALLOW, DENY, NOT_MINE)
for name in ("authorize_publish", "authorize_subscribe", "authorize_receive"):
    setattr(Anything, name, _hook(ALLOW, DECIDING))
Anything.on_publish = _hook(None, MESSAGES)  # type: ignore[method-assign]
Anything.on_deliver = _hook(None, MESSAGES)  # type: ignore[method-assign]
Anything.on_subscribe = _hook(None, FILTERS)  # type: ignore[method-assign]
Anything.on_unsubscribe = _hook(None, ("u", "a/#/b", ""))  # type: ignore[method-assign]
Anything.on_connect = _hook(None)  # type: ignore[method-assign]
Anything.observe = _hook(None)  # type: ignore[method-assign]


class Gate(Plugin[PluginConfig]):
    """The one that authenticates: it says yes to who is called so, and is absurd otherwise."""

    def authenticate(self, client: Client, credentials: Any) -> Any:
        if credentials.username == "yes":
            return Allow(username="yes")
        return ABSURD[hash(credentials.username) % len(ABSURD)]


async def live(seed: int, moves: list[tuple[str, int]], durable: bool) -> None:
    plugins = [prepared(Gate), prepared(Anything, "one"), prepared(Anything, "kicks")]
    for one in plugins[1:]:
        one.entry = one.entry.model_copy(update={"on_failure": ("deny", "allow", "skip")[seed % 3]})
    async with hooked(*plugins, durable=durable) as made:
        for place, name in enumerate(("one", "kicks")):
            plugin = made.manager.plugin(name)
            assert isinstance(plugin, Anything)
            plugin.chance = random.Random(seed + place)
        clients: dict[str, FakeClient] = {}
        for action, number in moves:
            act(made, clients, action, "abc"[number % 3], number)
            await made.turn(3)
            if number % 4 == 0:
                await made.commit()
        await made.turn()
        for client in list(made.h.clients.values()):
            client.drop()
        await made.turn()
        await made.commit()
        made.h.advance(1000.0)
        await made.turn()
        await made.commit()
        counters = made.broker.counters
        queued, inflight = made.broker.balance()
        assert counters.bugs == 0
        ended = counters.delivered + sum(counters.dropped.values())
        assert counters.matched == ended + queued + inflight
        assert {session.owner for session in made.broker.sessions.values()} <= {"yes"}
        assert not made.broker.sessions
        assert not made.broker.context.holding
        assert made.broker.trie.node_count == 0


def act(made: Hooked, clients: dict[str, FakeClient], action: str, name: str, number: int) -> None:
    client = clients.get(name)
    if client is None or client.closed or action == "connect":
        user = "yes" if number % 5 else f"no {number}"
        will = Will("t", b"will", number % 3, False, number % 2)
        clients[name] = made.say(name, username=user, expiry=(number % 3) * 10, will=will)
        return
    if action == "publish":
        client.send(
            Publish("t", b"x", number % 3, number % 7 == 0, False, number % 3 and number + 1)
        )
    elif action == "subscribe":
        entry = Filter(("t", "#", "$share/g/t")[number % 3], number % 3)
        client.send(Subscribe(number + 1, [entry, Filter("u", 1)]))
    elif action == "unsubscribe":
        client.send(Unsubscribe(number + 1, ["t", "u"]))
    else:
        client.drop()


ACTIONS = ("connect", "publish", "publish", "publish", "subscribe", "subscribe", "unsubscribe")
moves = st.lists(st.tuples(st.sampled_from((*ACTIONS, "drop")), st.integers(0, 40)), max_size=25)


@untimed
@given(st.integers(0, 1 << 30), moves, st.booleans())
def test_whatever_plugins_answer_the_broker_holds(
    seed: int, moves: list[tuple[str, int]], durable: bool
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(live(seed, moves, durable))
