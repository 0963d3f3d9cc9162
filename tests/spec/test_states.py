"""Any packet in any state: hypothesis draws a state, a packet, and what to spoil about it.

The property is the same for all: no exception leaves the core; the connection
answers or is closed; once closed, or once a DISCONNECT was sent, it says nothing
more; what it says can be decoded; a bystander notices nothing; and the counters
still add up. The failing pair is printed by hypothesis in terms of packets.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.auth import AuthStep, Verdict
from mqttd.core.encode import encode_packet
from mqttd.core.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqttd.core.properties import Properties
from tests.harness import FakeClient, Harness
from tests.spec import raw
from tests.spec.kit import props
from tests.spec.kit import settings as broker_settings

CANARY = "the canary's own topic"


class Stage(Harness):
    """Remembers everyone who ever connected; a durable one commits at once, or holds."""

    def __init__(self, durable: bool) -> None:
        super().__init__(broker_settings(max_packet_size=2000, max_queued_messages=5), durable)
        self.hold = False
        self.everyone: list[FakeClient] = []

    def open(self, *args: Any, **options: Any) -> FakeClient:
        made = super().open(*args, **options)
        self.everyone.append(made)
        return made

    def flush(self) -> None:
        super().flush()
        while not self.hold:
            batch = self.broker.take_batch()
            if batch is None:
                return
            self.broker.committed(batch.seq, self.now)
            super().flush()


# --- states: how a connection got to where the packet meets it ---


def fresh(h: Harness) -> FakeClient:
    return h.open()


def fresh_v4(h: Harness) -> FakeClient:
    return h.open(version=4)


def half_a_connect(h: Harness) -> FakeClient:
    c = h.open()
    c.send_raw(raw.connect(b"c")[:7])
    return c


def connected(h: Harness) -> FakeClient:
    return h.client("c", expiry=60, auto_ack=False, will=Will("a", b"w", 1, delay_interval=5))


def connected_v3(h: Harness) -> FakeClient:
    return h.client("c", version=3, clean=False, auto_ack=False)


def connected_v4(h: Harness) -> FakeClient:
    return h.client("c", version=4, auto_ack=False, will=Will("a/b", b"w", 2, True))


def subscribed(h: Harness) -> FakeClient:
    c = connected(h)
    for topic_filter in ("a", "a/#", "+/b", "$share/g/a"):
        c.subscribe(topic_filter, qos=2, identifier=7)
    h.client("pub").publish("a", b"retained", retain=True)
    c.recv()
    return c


def subscribed_v4(h: Harness) -> FakeClient:
    c = connected_v4(h)
    c.subscribe("a/#", qos=2)
    return c


def receiving_qos_2(h: Harness) -> FakeClient:
    """The broker holds identifiers 1 and 2 of an unfinished inbound QoS 2."""
    c = subscribed(h)
    for packet_id in (1, 2):
        c.send(Publish("x", b"x", 2, packet_id=packet_id))
    c.recv()
    return c


def sending(h: Harness) -> FakeClient:
    """Outbound QoS 1 and 2 in every stage: published, released, with others waiting."""
    c = subscribed(h)
    pub = h.client("pub")
    for i in range(1, 9):
        pub.publish("a", b"x", qos=1 + i % 2)
    for p in [p for p in c.recv() if isinstance(p, Publish) and p.qos == 2][:2]:
        c.send(Pubrec(p.packet_id))
    c.recv()
    return c


def sending_v4(h: Harness) -> FakeClient:
    c = subscribed_v4(h)
    pub = h.client("pub")
    for i in range(1, 9):
        pub.publish("a", b"x", qos=1 + i % 2)
    c.recv()
    return c


def window_full(h: Harness) -> FakeClient:
    c = h.client("c", expiry=60, receive_maximum=1, auto_ack=False)
    c.subscribe("a", qos=2)
    pub = h.client("pub")
    for i in range(1, 4):
        pub.publish("a", b"x", qos=1 + i % 2)
    c.recv()
    return c


def resumed(h: Harness) -> FakeClient:
    sending(h).drop()
    c = h.client("c", clean=False, expiry=60, auto_ack=False)
    c.recv()
    return c


def write_blocked(h: Harness) -> FakeClient:
    c = subscribed(h)
    c.pause()
    h.client("pub").publish("a", b"x", qos=1)
    return c


def taken_over(h: Harness) -> FakeClient:
    c = subscribed(h)
    h.client("c", clean=False, expiry=60)
    c.recv()
    return c


def said_goodbye(h: Harness) -> FakeClient:
    c = subscribed(h)
    c.send(Disconnect())
    return c


def tiny(h: Harness) -> FakeClient:
    """Takes packets of 20 bytes, wants no reasons."""
    wants = props(maximum_packet_size=20, request_problem_information=0)
    c = h.client("c", properties=wants, auto_ack=False)
    c.subscribe("a", qos=2)
    return c


def with_aliases(h: Harness) -> FakeClient:
    c = h.client("c", properties=props(topic_alias_maximum=2), auto_ack=False)
    c.subscribe("a/#", qos=2)
    c.send(Publish("a/long/topic", b"x", topic_alias=1))
    c.recv()
    return c


def waiting_for_the_disk(h: Harness) -> FakeClient:
    """On a durable broker: CONNECT is accepted, its CONNACK not yet sent."""
    assert isinstance(h, Stage)
    h.hold = h.durable
    connect = Connect(
        client_id="c", clean_start=False, properties=props(session_expiry_interval=60)
    )
    c = h.open()
    c.send(connect)
    c.send_raw(raw.subscribe(5, b"a", options=1))
    c.drop()
    c = h.open()
    c.send(connect)
    return c


def suspended(h: Harness) -> FakeClient:
    h.broker.hooks.authenticate = lambda connection, connect: None
    c = h.open()
    c.send(Connect(client_id="c"))
    h.broker.hooks.authenticate = None
    return c


def play(connection: object, method: str, data: bytes | None, first: bool) -> AuthStep | None:
    if data == b"later":
        return None
    code = spec.SUCCESS if data == b"good" else spec.CONTINUE_AUTHENTICATION
    return AuthStep(code, b"?") if data != b"bad" else AuthStep(spec.NOT_AUTHORIZED)


def challenged(h: Harness) -> FakeClient:
    h.broker.hooks.enhanced = play
    h.broker.hooks.enhanced_methods = ("m",)
    c = h.open()
    c.send(Connect(client_id="c", properties=props(authentication_method="m")))
    c.recv()
    return c


def reauthenticating(h: Harness) -> FakeClient:
    c = challenged(h)
    c.send(Auth(0x18, props(authentication_method="m", authentication_data=b"good")))
    c.expect(Connack)
    c.send(Auth(0x19, props(authentication_method="m")))
    c.recv()
    return c


STATES: list[Callable[[Harness], FakeClient]] = [
    fresh,
    fresh_v4,
    half_a_connect,
    connected,
    connected_v3,
    connected_v4,
    subscribed,
    subscribed_v4,
    receiving_qos_2,
    sending,
    sending_v4,
    window_full,
    resumed,
    write_blocked,
    taken_over,
    said_goodbye,
    tiny,
    with_aliases,
    waiting_for_the_disk,
    suspended,
    challenged,
    reauthenticating,
]

# --- packets: everything a client, or a confused server, could send ---

ids = st.one_of(st.integers(1, 9), st.sampled_from([255, 256, 65_535]))
topics = st.sampled_from(["a", "a/b", "x", "$SYS/x", "", "/", "a/+", "#", "ü", "$share/g/a"])
filters = st.sampled_from(
    ["a", "a/#", "+/b", "#", "+", "$share/g/a", "$share/g/#", "$share//a", "$SYS/#", "a+", "", "/"]
)
payloads = st.sampled_from([b"", b"x", bytes(100), b"\xff\x00"])
qos = st.integers(0, 2)
flag = st.booleans()
reasons = st.one_of(
    st.sampled_from([0, 4, 0x10, 0x18, 0x19, 0x80, 0x87, 0x92]), st.integers(0, 255)
)
forwardable = st.sampled_from(
    [
        b"",
        b"\x26\x00\x01k\x00\x01v",
        b"\x01\x01\x03\x00\x01c",
        b"\x08\x00\x01r\x09\x00\x01d",
        b"\x02\x00\x00\x00\x01",
        b"\x0b\x01",
        b"\x23\x00\x00",
    ]
)


@st.composite
def property_sets(draw: st.DrawFn) -> Properties | None:
    """Some properties, whether or not the packet they end up in may carry them."""
    if draw(flag):
        return None
    values = {
        "session_expiry_interval": st.sampled_from([0, 10, 0xFFFFFFFF]),
        "receive_maximum": st.sampled_from([0, 1, 65_535]),
        "maximum_packet_size": st.sampled_from([0, 1, 20, 1000]),
        "topic_alias_maximum": st.sampled_from([0, 1, 65_535]),
        "request_problem_information": st.integers(0, 2),
        "request_response_information": st.integers(0, 2),
        "authentication_method": st.sampled_from(["", "m", "other"]),
        "authentication_data": st.sampled_from([b"", b"good", b"bad", b"later"]),
        "reason_string": st.sampled_from(["", "because"]),
        "user_properties": st.just([("k", "v"), ("k", "v")]),
    }
    names = draw(st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True))
    return props(**{name: draw(values[name]) for name in names})


maybe = property_sets()
wills = st.builds(
    Will,
    topics,
    payloads,
    qos,
    flag,
    st.sampled_from([0, 5, 0xFFFFFFFF]),
    st.sampled_from([-1, 0, 10]),
    forwardable,
)
connects = st.builds(
    Connect,
    st.sampled_from(["MQTT", "MQIsdp", "mqtt", ""]),
    st.sampled_from([3, 4, 5, 5, 5, 6, 0]),
    flag,
    st.sampled_from([0, 1, 65_535]),
    st.sampled_from(["c", "", "d", "ü"]),
    st.none() | wills,
    st.none() | st.just("ann"),
    st.none() | st.just(b"secret"),
    maybe,
    flag,
)
publishes = st.builds(
    Publish,
    topics,
    payloads,
    qos,
    flag,
    flag,
    ids,
    forwardable,
    st.sampled_from([0, 0, 0, 1, 64, 65, 65_535]),
    st.sampled_from([-1, 0, 10]),
    st.sampled_from([[], [], [1], [7, 7]]),
)
subscribes = st.builds(
    Subscribe,
    ids,
    st.lists(st.builds(Filter, filters, qos, flag, flag, st.integers(0, 3)), max_size=3),
    st.sampled_from([0, 1, 268_435_455]),
    maybe,
)
packets: st.SearchStrategy[Record] = st.one_of(
    connects,
    publishes,
    subscribes,
    st.builds(Puback, ids, reasons, maybe),
    st.builds(Pubrec, ids, reasons, maybe),
    st.builds(Pubrel, ids, reasons, maybe),
    st.builds(Pubcomp, ids, reasons, maybe),
    st.builds(Unsubscribe, ids, st.lists(filters, max_size=3), maybe),
    st.builds(Pingreq),
    st.builds(Disconnect, reasons, maybe),
    st.builds(Auth, reasons, maybe),
    st.builds(Connack, flag, st.just(0), maybe),
    st.builds(Suback, ids, st.just([0])),
    st.builds(Unsuback, ids, st.just([0])),
    st.builds(Pingresp),
)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What happens to the bytes on their way: often nothing."""
    kind = draw(st.sampled_from(["keep", "keep", "flip", "cut", "shorten", "pad", "insert"]))
    place = draw(st.integers(0, 10_000))
    value = draw(st.integers(1, 255))

    def apply(data: bytes) -> bytes:
        at = place % len(data)
        body = data[2:]
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        if kind == "cut":
            return data[:at]
        if len(data) > 120:
            return data
        if kind == "shorten" and body:
            return raw.frame(data[0], body[: place % len(body)])
        if kind == "pad":
            return raw.frame(data[0], body + bytes([value]) * (1 + place % 3))
        if kind == "insert" and body:
            at = place % len(body)
            return raw.frame(data[0], body[:at] + bytes([value]) + body[at:])
        return data

    return apply


# --- events: what happens around the connection meanwhile ---


def nothing(h: Harness, c: FakeClient) -> None:
    pass


def somebody_takes_over(h: Harness, c: FakeClient) -> None:
    newcomer = h.open()
    session = props(session_expiry_interval=60)
    newcomer.send(Connect(client_id="c", clean_start=False, properties=session))


def somebody_starts_clean(h: Harness, c: FakeClient) -> None:
    h.open(version=4).send_raw(raw.connect(b"c", 4))


def somebody_publishes(h: Harness, c: FakeClient) -> None:
    pub = h.client("another publisher")
    for qos in (0, 1, 2):
        pub.publish("a", b"y", qos=qos)


def time_passes(h: Harness, c: FakeClient) -> None:
    h.advance(8)


def the_network_breaks(h: Harness, c: FakeClient) -> None:
    c.closed = True
    c.drop()


def the_reader_stalls(h: Harness, c: FakeClient) -> None:
    if not c.closed:
        c.pause()
        somebody_publishes(h, c)
        c.resume()


EVENTS: list[Callable[[Harness, FakeClient], None]] = [
    nothing,
    nothing,
    somebody_takes_over,
    somebody_starts_clean,
    somebody_publishes,
    time_passes,
    the_network_breaks,
    the_reader_stalls,
]

# --- the property ---


def answers(c: FakeClient) -> bool:
    """Still in a state where a PINGREQ has to be answered."""
    c.send(Pingreq())
    return c.closed or any(isinstance(p, Pingresp) for p in c.recv())


def framed(data: bytes) -> bool:
    """Whether the bytes are exactly one whole packet."""
    length = 0
    for place in range(1, min(5, len(data))):
        length |= (data[place] & 0x7F) << (7 * (place - 1))
        if data[place] < 0x80:
            return len(data) == place + 1 + length
    return False


def check_opening(c: FakeClient) -> None:
    """CONNACK comes first, once, and only AUTH before it."""
    kinds: list[int] = []
    place = 0
    while place < len(c.raw):
        kinds.append(c.raw[place] >> 4)
        length = shift = 0
        while True:
            place += 1
            length |= (c.raw[place] & 0x7F) << shift
            shift += 7
            if c.raw[place] < 0x80:
                break
        place += 1 + length
    while kinds and kinds[0] == spec.AUTH:
        kinds.pop(0)
    assert not kinds or kinds[0] == spec.CONNACK
    assert kinds.count(spec.CONNACK) <= 1


def check_silence_after_goodbye(c: FakeClient) -> None:
    got = c.recv()
    for place, packet in enumerate(got):
        if isinstance(packet, Disconnect):  # [MQTT-3.14.4-1] [MQTT-3.14.4-2]
            assert c.closed
            assert place == len(got) - 1


@given(
    st.sampled_from(STATES),
    st.lists(st.tuples(packets, mutations()), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(EVENTS),
)
@settings(max_examples=400, deadline=None)
def test_any_packet_in_any_state(
    state: Callable[[Harness], FakeClient],
    sequence: list[tuple[Record, Callable[[bytes], bytes]]],
    durable: bool,
    event: Callable[[Harness, FakeClient], None],
) -> None:
    # [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT-3.14.4-1] [MQTT-3.14.0-1] [MQTT-3.2.0-1] [MQTT-3.2.0-2]
    h = Stage(durable)
    canary = h.client("the canary", version=5, keep_alive=0)
    canary.subscribe(CANARY, qos=1)
    c = state(h)
    was_waiting = c.connection.suspended or state in (fresh, fresh_v4, half_a_connect, challenged)
    whole = True
    h.hold = durable
    for place, (packet, spoil) in enumerate(sequence):
        if place == len(sequence) // 2:
            event(h, c)
        data = spoil(encode_packet(packet, 5 if isinstance(packet, Auth) else c.version))
        whole = whole and framed(data)
        if not c.closed:
            c.connection.receive_data(data, h.now)
            c.version = c.connection.version
            h.flush()
    h.hold = False
    h.flush()
    check_silence_after_goodbye(c)
    if c.connection.suspended:
        if state is suspended:
            c.connection.authenticated(Verdict(True), h.now)
        else:
            c.connection.enhanced_step(AuthStep(spec.SUCCESS), h.now)
        h.flush()
        c.recv()
    elif whole and not was_waiting and not c.closed and state is not write_blocked:
        assert answers(c)
    h.advance(30)
    canary.recv()
    h.client("canary's friend").publish(CANARY, b"sing", qos=1)
    (song,) = [p for p in canary.recv() if isinstance(p, Publish)]
    assert song.payload == b"sing"
    counters = h.broker.counters
    assert counters.bugs == 0
    queued, inflight = h.broker.balance()
    done = counters.delivered + sum(counters.dropped.values())
    for client in h.everyone:
        check_opening(client)
    assert counters.matched == done + queued + inflight
