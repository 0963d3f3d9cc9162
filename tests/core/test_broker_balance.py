"""No silent loss: every message × matching subscription ends in exactly one counted state.

Random lives of a few clients, through the harness: they come, go, subscribe alone and in groups,
publish, acknowledge in any order or not at all, stop reading, let sessions and messages expire.
After each step the counters have to add up, and nothing may be left behind when everybody is gone.
"""

from hypothesis import given
from hypothesis import strategies as st

from mqttd.core.packets import (
    Connect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    Will,
)
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from tests.core.rig import make_settings
from tests.core.vectors import props, untimed
from tests.harness import FakeClient, Harness

NAMES = ("a", "b", "c")
FILTERS = ("t", "+", "#", "$share/g/t", "$share/g/+", "$share/h/t")
TOPICS = ("t", "t", "u")
ACTIONS = (
    *("publish", "publish", "publish", "subscribe", "subscribe", "acknowledge", "acknowledge"),
    *("drop", "disconnect", "come", "clean", "pause", "resume", "wait", "unsubscribe", "refuse"),
    "commit",
)
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES), st.integers(0, 5), st.booleans()),
    max_size=60,
)


class Lives:
    """The clients of one example; what they have received and not acknowledged waits in them."""

    def __init__(self, durable: bool, overflow: str) -> None:
        settings = make_settings(
            max_queued_messages=3,
            queue_overflow=overflow,
            queue_qos0=durable,
            write_buffer=1024,
            session_expiry_max=50,
        )
        self.h = Harness(settings, durable)
        self.clients: dict[str, FakeClient] = {}

    def client(self, name: str, number: int = 1, clean: bool = False) -> FakeClient:
        """The client of this name, connected; `number` picks its properties."""
        found = self.clients.get(name)
        if found is not None and not found.closed and not clean:
            return found
        asked = props(
            session_expiry_interval=(0, 5, 50)[number % 3],
            receive_maximum=1 + number % 2,
            maximum_packet_size=100 if number == 5 else None,
        )
        will = Will(TOPICS[number % 3], b"will", 1, False, number)
        version = 4 if number == 4 else 5
        found = self.h.open(version)
        found.auto_ack = False
        found.send(Connect("MQTT", version, clean, 0, name, will, properties=asked))
        self.clients[name] = found
        return found

    def act(self, action: str, name: str, number: int, flag: bool) -> None:
        h = self.h
        if action == "wait":
            h.advance((0.5, 1.0, 3.0, 6.0, 10.0, 60.0)[number])
            return
        if action == "commit":
            h.commit()
            return
        client = self.client(name, number, action == "clean")
        if action == "publish":
            client.publish(
                TOPICS[number % 3],
                bytes(200) if number == 5 else b"x",
                number % 3,
                flag,
                message_expiry=2 if flag and client.version == 5 else -1,
            )
        elif action == "subscribe":
            entry = Filter(FILTERS[number], (number + flag) % 3, flag and number < 3)
            client.send(Subscribe(client.next_id(), [entry]))
        elif action == "unsubscribe":
            client.send(Unsubscribe(client.next_id(), [FILTERS[number]]))
        elif action in ("acknowledge", "refuse"):
            self.acknowledge(client, 0x97 if action == "refuse" else 0, flag)
        elif action == "drop":
            client.drop()
            del self.clients[name]
        elif action == "disconnect":
            client.disconnect(4 if flag and client.version == 5 else 0)
            del self.clients[name]
        elif action == "pause":
            client.pause()
        elif action == "resume":
            client.resume()

    def acknowledge(self, client: FakeClient, reason: int, backwards: bool) -> None:
        found = client.recv()
        for packet in reversed(found) if backwards else found:
            if client.version < 5:
                reason = 0
            if isinstance(packet, Publish) and packet.qos == 1:
                client.send(Puback(packet.packet_id, reason))
            elif isinstance(packet, Publish) and packet.qos == 2:
                client.send(Pubrec(packet.packet_id, reason))
            elif isinstance(packet, Pubrel):
                client.send(Pubcomp(packet.packet_id))
            elif isinstance(packet, Pubrec) and packet.reason < 0x80:
                client.send(Pubrel(packet.packet_id))

    def check(self) -> None:
        queued, inflight = self.h.broker.balance()
        counters = self.h.broker.counters
        ended = counters.delivered + sum(counters.dropped.values())
        assert counters.matched == ended + queued + inflight
        assert counters.clients_connected == len(
            [session for session in self.h.broker.sessions.values() if session.link is not None]
        )


@untimed
@given(steps, st.booleans(), st.sampled_from((DROP_NEWEST, DROP_OLDEST)))
def test_every_match_is_counted_once_whatever_the_clients_do(
    moves: list[tuple[str, str, int, bool]], durable: bool, overflow: str
) -> None:
    lives = Lives(durable, overflow)
    for move in moves:
        lives.act(*move)
        lives.check()
    h = lives.h
    for client in list(h.clients.values()):  # also those that were displaced and never read it
        client.drop()
    lives.check()
    h.commit()
    h.advance(1000.0)
    h.commit()
    lives.check()
    # Everybody is gone for good: nothing waits any more, and nothing is left behind.
    assert not h.broker.sessions
    assert not h.broker.connections
    assert h.broker.balance() == (0, 0)
    assert h.broker.trie.node_count == 0
    assert not h.broker.context.holding
    assert not h.broker.ready
    assert h.broker.counters.bugs == 0


@untimed
@given(steps, st.booleans())
def test_whoever_comes_back_and_reads_is_never_left_waiting(
    moves: list[tuple[str, str, int, bool]], durable: bool
) -> None:
    """[MQTT-4.5.0-1] Whatever is queued moves on as soon as its receivers can take it."""
    lives = Lives(durable, DROP_NEWEST)
    for move in moves:
        lives.act(*move)
    h = lives.h
    for _ in range(60):
        for name in NAMES:
            client = lives.client(name)
            if not client.connection.writable:
                client.resume()
            lives.acknowledge(client, 0, False)
        h.commit()
        owed = sum(client.connection.inbound_open for client in lives.clients.values())
        if not owed and h.broker.balance() == (0, 0):
            break
    assert h.broker.balance() == (0, 0)
    assert owed == 0
    lives.check()
