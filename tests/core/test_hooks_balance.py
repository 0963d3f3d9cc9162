"""No silent loss with hooks: what is denied, changed, taken or dropped is counted like the rest.

The lives of `test_broker_balance`, with hooks that deny by topic and client, change, take, drop and
answer late, with verdicts that are forgotten in between, and with a client inside that takes part.
"""

from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.auth import Grant, Ruling
from mqttd.core.connection import Connection
from mqttd.core.message import Message
from mqttd.core.packets import Filter
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from tests.core.hook_kit import Publishing, allowed, changed, denied
from tests.core.test_broker_balance import Lives, steps
from tests.core.vectors import untimed

OWNER = "\0plugin"


class Guarded(Lives):
    """Lives under hooks. `mood` changes as clients act, and with it what the hooks say."""

    def __init__(self, durable: bool, overflow: str, late: bool) -> None:
        super().__init__(durable, overflow)
        broker = self.h.broker
        self.mood = 0
        self.late = late
        self.publishing = Publishing(self.h, None if late else self.rule, transforms=True)
        broker.hooks.receive = self.receive
        broker.hooks.deliver = self.deliver
        self.inside = broker.connect_inside("inside", OWNER, 50, 2, self.h.now)
        assert self.inside.session is not None
        for name in ("t", "$share/g/t"):
            broker.subscribe(self.inside.session, Filter(name, 1), 0)

    def rule(self, message: Message) -> Ruling:
        mood = self.mood % 5
        if mood == 0:
            return denied()
        if mood == 1:
            return allowed(None)
        if mood == 2:
            return changed(message, "u" if message.topic == "t" else "t", b"y", self.mood % 3)
        return allowed(message)

    def receive(self, connection: object, topic: str) -> Grant:
        assert isinstance(connection, Connection)
        if self.mood % 7 == 6:
            raise RuntimeError("broken")
        denied = (len(topic) + self.mood + ord(connection.client_id[0])) % 3 == 0
        return Grant(spec.NOT_AUTHORIZED if denied else 0, cache=self.mood % 2 == 0)

    def deliver(self, connection: object, message: Message, qos: int) -> Message | None:
        if self.mood % 4 == 3:
            return None
        return changed(message, payload=b"z").message if self.mood % 4 == 2 else message

    def act(self, action: str, name: str, number: int, flag: bool) -> None:
        super().act(action, name, number, flag)
        self.mood += 1
        if flag:
            self.h.broker.forget_decisions(name if number % 2 else "")
        if number % 3 == 0:
            self.answer()
        if action == "acknowledge":
            self.read_inside(number)

    def answer(self) -> None:
        while self.publishing.waiting:
            self.publishing.answer(self.rule)

    def read_inside(self, reason: int) -> None:
        for arrival in self.inside.take():
            if arrival.packet_id:
                self.inside.settle(arrival.packet_id, 0x80 if reason == 5 else 0, self.h.now)
        self.h.flush()

    def check(self) -> None:
        queued, inflight = self.h.broker.balance()
        counters = self.h.broker.counters
        ended = counters.delivered + sum(counters.dropped.values())
        assert counters.matched == ended + queued + inflight
        assert counters.bugs == 0


@untimed
@given(steps, st.booleans(), st.sampled_from((DROP_NEWEST, DROP_OLDEST)), st.booleans())
def test_every_match_is_counted_once_whatever_hooks_say(
    moves: list[tuple[str, str, int, bool]], durable: bool, overflow: str, late: bool
) -> None:
    lives = Guarded(durable, overflow, late)
    for move in moves:
        lives.act(*move)
        lives.check()
    h = lives.h
    lives.answer()
    for client in list(h.clients.values()):
        client.drop()
    h.broker.leave_inside(lives.inside, h.now)
    lives.check()
    h.commit()
    h.advance(1000.0)
    h.commit()
    lives.check()
    assert not h.broker.sessions
    assert not h.broker.connections
    assert h.broker.balance() == (0, 0)
    assert h.broker.trie.node_count == 0
    assert not h.broker.context.holding
    assert not h.broker.ready
