"""One target for each entry point: what it is fed, and what has to hold whatever it is fed.

A target's `check` takes any bytes at all. It swallows the one exception that its entry point
documents, and nothing else: whatever comes out of `check` is a fault. Beyond that it holds the
entry point to what the bytes cannot change: cutting a stream differently changes nothing, what was
decoded can be encoded again, the trie agrees with a naive matcher, a connection leaves a broker
whose books balance.

`check` returns a small value that tells behaviours apart (which packets, which error). A run keeps
the inputs whose value is new and goes on from them, so that it gets deeper than the corpus without
measuring coverage.

Must not know: how inputs are made, when a run ends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz import corpus
from mqttd.config import parse_yaml
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.decode import PublishFields, decode_packet, scan_publish
from mqttd.core.encode import encode_packet
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from mqttd.core.packets import Record
from mqttd.core.properties import (
    TABLE,
    Properties,
    decode_forwardable,
    decode_properties,
    encode_forwardable,
    encode_properties,
    scan_publish_properties,
    scan_will_properties,
)
from mqttd.core.router import ListenerInfo
from mqttd.core.settings import Settings
from mqttd.core.topics import matches, split_shared, validate_topic_filter
from mqttd.core.trie import Subscriber, Subscription, Trie
from mqttd.net.proxy import MAX_HEADER, V1, V2, Header, ProxyError, parse
from mqttd.yamltree import ConfigError, decode

VERSIONS = (spec.MQTT31, spec.MQTT311, spec.MQTT5)
NOW = 1000.0
_NOWHERE = Path("/nonexistent/mqttd-fuzz")


@dataclass(frozen=True)
class Target:
    """`seeds` makes the first corpus, `check` tries one input."""

    name: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes], object]


def _told(error: ProtocolError) -> tuple[int, str, str]:
    """What an error says, once it is sure that it can be said."""
    assert 0x80 <= error.code <= 0xFF
    assert error.detail
    assert str(error)
    return error.code, error.clause, error.detail


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same stream as a network may bring it: whole, in drops, in two unequal parts."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    middle = len(data) // 3
    yield [data[:middle], data[middle:]]


# Frames and packets.


def _frames(chunks: list[bytes]) -> tuple[list[bytes], object]:
    framer = Framer(4096)
    found: list[bytes] = []
    try:
        for chunk in chunks:
            framer.feed(chunk)
            while framer.next():
                assert framer.start < framer.pos <= framer.end <= len(framer.data)
                assert framer.first == framer.data[framer.start]
                found.append(framer.data[framer.start : framer.end])
    except ProtocolError as error:
        return found, _told(error)
    return found, framer.pending


def _read(frame: bytes, version: int, from_client: bool) -> Record | tuple[int, str, str]:
    """The packet in a frame, decoded in the middle of other bytes."""
    body = next(at for at in range(1, 5) if frame[at] < 0x80) + 1
    data = b"\xff" + frame + b"\xff"
    try:
        return decode_packet(frame[0], data, body + 1, len(frame) + 1, version, from_client)
    except ProtocolError as error:
        return _told(error)


def check_packets(data: bytes) -> object:
    """Framer, then the decoder of every packet in every version, then the encoder."""
    found: tuple[list[bytes], object] | None = None
    for chunks in cuts(data):
        again = _frames(chunks)
        assert found is None or again == found
        found = again
    assert found is not None
    seen: list[object] = [found[1] if isinstance(found[1], tuple) else ""]
    for frame in found[0]:
        for version in VERSIONS:
            for from_client in (False, True):
                packet = _read(frame, version, from_client)
                if isinstance(packet, tuple):
                    seen.append(packet)
                    continue
                seen.append(type(packet).__name__)
                assert repr(packet)
                # Not `packet` itself: MQTT 3 leaves out what it has no room for.
                wire = encode_packet(packet, version)
                same = _read(wire, version, from_client)
                assert isinstance(same, Record), same
                assert encode_packet(same, version) == wire
    return tuple(seen[:8])


# Properties.


def _named(properties: Properties) -> tuple[str, ...]:
    """What is set."""
    names = (row.name for row in TABLE.values())
    return tuple(name for name in names if getattr(properties, name) not in (None, []))


def check_properties(data: bytes) -> object:
    """A property block as each packet's, by the table and by the scanners of the hot path."""
    seen: list[object] = []
    for packet_type in range(16):
        try:
            found, after = decode_properties(data, 0, len(data), packet_type)
        except ProtocolError as error:
            seen.append(_told(error))
            continue
        assert 0 < after <= len(data)
        block = encode_properties(found)
        assert decode_properties(block, 0, len(block), packet_type) == (found, len(block))
        seen.append(_named(found))
    for from_client in (False, True):
        try:
            raw, after, alias, expiry, numbers = scan_publish_properties(
                data, 0, len(data), from_client
            )
        except ProtocolError as error:
            seen.append(_told(error))
            continue
        whole, end = decode_properties(data, 0, len(data), spec.PUBLISH)
        assert after == end
        assert (alias or None) == whole.topic_alias
        assert expiry == (
            -1 if whole.message_expiry_interval is None else whole.message_expiry_interval
        )
        assert (numbers or []) == whole.subscription_ids
        opened = decode_forwardable(raw)
        assert decode_forwardable(encode_forwardable(opened)) == opened
    try:
        raw, after, delay, expiry = scan_will_properties(data, 0, len(data))
    except ProtocolError as error:
        seen.append(_told(error))
    else:
        whole, _ = decode_properties(data, 0, len(data), 0)
        assert delay == (whole.will_delay_interval or 0)
        assert decode_forwardable(raw).user_properties == whole.user_properties
    return tuple(seen)


# Topics.


def check_topics(data: bytes) -> object:
    """Lines: the last is a topic name as it came from the wire, the others are filters."""
    *lines, key = data.split(b"\n")
    trie = Trie(20)
    seen: set[object] = set()
    inserted: list[tuple[Subscriber, str, str]] = []
    for number, line in enumerate(lines[:50]):
        text = line.decode("utf-8", "replace")
        try:
            group, inner = split_shared(text)
            validate_topic_filter(inner, 20)
        except ProtocolError as error:
            seen.add(_told(error))
            continue
        subscriber = Subscriber(str(number))
        trie.insert(Subscription(subscriber, text, number % 3), group, inner)
        inserted.append((subscriber, group, inner))
    try:
        matched = trie.lookup(key)
    except ProtocolError as error:
        seen.add(_told(error))
    else:
        topic = key.decode("utf-8")
        assert matched.topic == topic
        assert trie.lookup(key) is matched or len(key) > 512
        alone = {target.subscriber for target in matched.targets}
        shared = {(group.name, group.topic_filter) for group in matched.groups}
        for subscriber, group, inner in inserted:
            expected = matches(inner, topic)
            assert ((group, inner) in shared if group else subscriber in alone) is expected
        seen.add((len(matched.targets) > 1, len(matched.groups) > 1))
    for subscriber, group, inner in inserted:
        assert trie.remove(subscriber, group, inner) is not None
    assert trie.node_count == 0
    return frozenset(seen)


# The PROXY protocol.


def _header(data: bytes, version: str) -> Header | str | None:
    try:
        return parse(data, version)
    except ProxyError as error:
        return str(error)


def _some(length: int) -> range:
    """Every size below, or a hundred of them."""
    return range(0, length, 1 + length // 100)


def check_proxy(data: bytes) -> object:
    """Both versions, and every beginning of the bytes: an answer never changes by more bytes."""
    seen: list[object] = []
    for version in (V1, V2):
        whole = _header(data, version)
        if isinstance(whole, Header):
            assert 0 < whole.length <= min(len(data), MAX_HEADER)
            seen.append((version, whole.peer.count(":"), whole.peer[:1]))
            for size in _some(whole.length):
                assert _header(data[:size], version) is None
            alone = _header(data[: whole.length], version)
            assert isinstance(alone, Header)
            assert (alone.length, alone.peer) == (whole.length, whole.peer)
        else:
            seen.append(whole)
            assert whole is not None or len(data) < MAX_HEADER
            for size in _some(len(data) if whole is None else 0):
                assert _header(data[:size], version) is None
    return tuple(seen)


# A whole connection.


def _broker(durable: bool) -> tuple[Broker, Connection]:
    """A broker with somebody to talk to, and a few things to find."""
    settings = Settings()
    settings.receive_maximum = 5
    settings.max_queued_messages = 5
    settings.max_subscriptions = 20
    settings.max_topic_levels = 20
    settings.max_packet_size = 4096
    settings.max_connect_size = 4096
    settings.topic_alias_maximum = 5
    broker = Broker(settings, durable)
    listener = ListenerInfo("fuzz", "tcp", True)
    reader = broker.open(listener, "10.0.0.1:1", None, NOW)
    reader.receive_data(corpus.READER, NOW)
    settle(broker)
    return broker, broker.open(listener, "10.0.0.2:2", None, NOW)


def settle(broker: Broker) -> None:
    """What the shell does until nothing is left to do."""
    for _ in range(1000):
        batch = broker.take_batch()
        if batch is not None:
            broker.committed(batch.seq, NOW)
        elif broker.ready:
            broker.run(NOW)
        else:
            return
    raise AssertionError("the broker never comes to rest")


def _balanced(broker: Broker) -> bool:
    queued, inflight = broker.balance()
    counters = broker.counters
    ended = counters.delivered + sum(counters.dropped.values())
    return counters.matched == ended + queued + inflight


def _converse(chunks: list[bytes], durable: bool) -> tuple[bytes, bytes, int]:
    broker, connection = _broker(durable)
    for chunk in chunks:
        connection.receive_data(chunk, NOW)
    settle(broker)
    answer = connection.data_to_send()
    if connection.closing:
        connection.receive_data(b"\xc0\x00", NOW)
        assert connection.data_to_send() == b""
    heard = b"".join(other.data_to_send() for other in broker.connections if other != connection)
    assert _balanced(broker)
    connection.handle_timeout(NOW + 1e9)
    connection.connection_lost(NOW + 1e9)
    broker.handle_timeout(NOW + 1e9)
    settle(broker)
    assert _balanced(broker)
    assert len(broker.connections) == 1
    assert broker.counters.bugs == 0
    assert broker.counters.clients_connected == len(
        [session for session in broker.sessions.values() if session.link is not None]
    )
    return answer, heard, connection.state


def check_connection(data: bytes) -> object:
    """The first byte picks a CONNECT to begin with, or none, and whether promises wait."""
    choice = data[0] if data else 0
    stream = corpus.CONNECTS[choice % len(corpus.CONNECTS)] + data[1:]
    durable = bool(choice & 0x80)
    found: tuple[bytes, bytes, int] | None = None
    for chunks in cuts(stream):
        again = _converse(chunks, durable)
        assert found is None or again == found, (again, found)
        found = again
    assert found is not None
    answers, trouble = _frames([found[0]])
    assert isinstance(trouble, int), trouble
    assert trouble == 0
    # What came in which order, and all of an answer that ends or refuses a connection.
    said = [frame if frame[0] in (0x20, 0xE0) else frame[0] for frame in answers[:12]]
    return tuple(said), len(found[1]) // 8


def check_publish(data: bytes) -> object:
    """The scanner of the hot path, with fields that were used before."""
    fields = PublishFields()
    seen: list[object] = []
    for flags in (0, 2, 4, 9):
        for version in (spec.MQTT311, spec.MQTT5):
            try:
                scan_publish(fields, data, 0, len(data), flags, version, True)
            except ProtocolError as error:
                seen.append(_told(error))
                continue
            assert fields.rest_at <= fields.payload_at <= len(data)
            fresh = PublishFields()
            scan_publish(fresh, data, 0, len(data), flags, version, True)
            assert (fresh.key, fresh.packet_id, fresh.properties, fresh.payload_at) == (
                fields.key,
                fields.packet_id,
                fields.properties,
                fields.payload_at,
            )
            seen.append(bool(fields.properties))
    return tuple(seen)


# The configuration file.


def check_config(data: bytes) -> object:
    """From the bytes of a file to settings, or to problems that each can be printed."""
    try:
        config = parse_yaml(decode(data, "fuzz.yaml"), "fuzz.yaml", _NOWHERE)
    except ConfigError as error:
        problems = error.problems
    else:
        config.to_settings()
        config.warnings()
        return len(config.listeners)
    assert problems
    for problem in problems:
        assert str(problem).isprintable()
    return tuple((problem.path, problem.expected) for problem in problems[:3])


TARGETS = {
    target.name: target
    for target in (
        Target("packets", corpus.packets, check_packets),
        Target("publish", corpus.bodies, check_publish),
        Target("properties", corpus.properties, check_properties),
        Target("topics", corpus.topics, check_topics),
        Target("proxy", corpus.proxy, check_proxy),
        Target("connection", corpus.conversations, check_connection),
        Target("config", corpus.configs, check_config),
    )
}
