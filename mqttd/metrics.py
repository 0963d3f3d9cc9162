"""The broker's figures in Prometheus' text format (0.0.4), read when somebody asks.

Owns: the names, types, labels and meanings of all metrics (`METRICS`; docs/how-to/monitor.md shows
the same list, a test compares them), and the format.

Must not know: HTTP, sockets, the clock, where the process' figures come from. `samples` reads plain
integers of the core and gets the rest handed in as `Facts`.

Invariants: label values come from closed sets (listeners and plugins of the configuration, hooks,
protocol versions, QoS, reasons of `mqttd.core.counters` and of CONNACK), never from the network;
every series of such a set is there from the start, with 0, so that the first event counts in a
rate, but for those of hooks, which begin with the first call; a counter only grows while the broker
lives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mqttd.census import Census
from mqttd.core import counters as count
from mqttd.core import spec
from mqttd.core.broker import Broker
from mqttd.core.counters import Counters
from mqttd.core.letters import Letters

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"


class Metric(NamedTuple):
    """One family."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


METRICS: Final = (
    Metric("mqttd_build_info", GAUGE, ("version", "python", "build", "loop"), "what runs; 1"),
    Metric("mqttd_start_time_seconds", GAUGE, (), "when the broker started, since 1970"),
    Metric("mqttd_loop_lag_seconds", GAUGE, (), "longest delay of a timer in the last 15 s"),
    Metric("mqttd_sockets", GAUGE, (), "connections open, with those before their CONNECT"),
    Metric("mqttd_sockets_total", COUNTER, (), "connections accepted"),
    Metric("mqttd_connections", GAUGE, ("listener", "version"), "clients connected"),
    Metric("mqttd_connections_maximum", GAUGE, (), "most clients connected at once"),
    Metric("mqttd_connects_total", COUNTER, ("result", "reason"), "how connections began"),
    Metric("mqttd_disconnects_total", COUNTER, ("reason",), "clients that are gone"),
    Metric("mqttd_sessions", GAUGE, ("state",), "sessions, also of clients that are away"),
    Metric("mqttd_sessions_expired_total", COUNTER, (), "sessions whose time was over"),
    Metric("mqttd_takeovers_total", COUNTER, (), "connections displaced by one of the same client"),
    Metric("mqttd_subscriptions", GAUGE, ("shared",), "subscriptions of all sessions"),
    Metric("mqttd_packets_total", COUNTER, ("direction", "type"), "MQTT packets"),
    Metric("mqttd_bytes_total", COUNTER, ("direction",), "bytes of MQTT, without TLS, WebSocket"),
    Metric("mqttd_messages_received_total", COUNTER, ("qos",), "PUBLISH packets from clients"),
    Metric("mqttd_messages_sent_total", COUNTER, ("qos",), "PUBLISH packets to clients"),
    Metric("mqttd_payload_bytes_total", COUNTER, ("direction",), "bytes of payload in PUBLISH"),
    Metric("mqttd_publish_ack_seconds", HISTOGRAM, (), "from a PUBLISH to its PUBACK or PUBREC"),
    Metric("mqttd_messages_refused_total", COUNTER, (), "PUBLISH packets that were not taken"),
    Metric(
        "mqttd_messages_matched_total",
        COUNTER,
        (),
        "pairs of message and subscription that matched",
    ),
    Metric("mqttd_messages_delivered_total", COUNTER, (), "of these: delivered, acknowledged"),
    Metric("mqttd_messages_dropped_total", COUNTER, ("reason",), "of these: ended undelivered"),
    Metric("mqttd_dead_letters_total", COUNTER, ("outcome",), "of those: became a dead letter"),
    Metric("mqttd_messages_redelivered_total", COUNTER, (), "sent again, marked DUP"),
    Metric("mqttd_inflight", GAUGE, (), "sent and not acknowledged yet"),
    Metric("mqttd_queue_messages", GAUGE, (), "waiting for sessions and shared subscriptions"),
    Metric("mqttd_queue_bytes", GAUGE, (), "payload of those in memory, not of those on disk"),
    Metric("mqttd_retained_messages", GAUGE, (), "retained messages, without those under $SYS"),
    Metric("mqttd_retained_bytes", GAUGE, (), "their payload"),
    Metric("mqttd_wills_total", COUNTER, (), "wills published"),
    Metric("mqttd_protocol_errors_total", COUNTER, (), "clients that broke the protocol"),
    Metric("mqttd_answers_too_large_total", COUNTER, (), "clients that can't take an answer"),
    Metric("mqttd_hook_failures_total", COUNTER, (), "deciders that failed, which denies"),
    Metric("mqttd_hook_calls_total", COUNTER, ("plugin", "hook"), "hooks of plugins, called"),
    Metric("mqttd_hook_errors_total", COUNTER, ("plugin", "hook"), "of these: failed, or too slow"),
    Metric(
        "mqttd_hook_seconds_total", COUNTER, ("plugin", "hook"), "time spent in them, waiting too"
    ),
    Metric("mqttd_hook_longest_seconds", GAUGE, ("plugin", "hook"), "the longest of these calls"),
    Metric(
        "mqttd_breaker_open", GAUGE, ("plugin",), "1 while a plugin is left alone after failures"
    ),
    Metric(
        "mqttd_events_lost_total", COUNTER, ("plugin",), "events that an observer was too slow for"
    ),
    Metric(
        "mqttd_events_failed_total", COUNTER, ("plugin",), "events that an observer failed to take"
    ),
    Metric("mqttd_events_overflow_total", COUNTER, (), "events too many for any observer"),
    Metric("mqttd_bugs_total", COUNTER, (), "exceptions that ended one connection; see the log"),
    Metric(
        "mqttd_tls_cert_expiry_timestamp_seconds",
        GAUGE,
        ("listener",),
        "when the certificate in use is over, since 1970",
    ),
    Metric("mqttd_storage_info", GAUGE, ("durability",), "what an acknowledgement promises; 1"),
    Metric("mqttd_storage_batches_total", COUNTER, (), "transactions that became durable"),
    Metric("mqttd_storage_operations_total", COUNTER, (), "changes in them, some of many rows"),
    Metric(
        "mqttd_storage_elided_total", COUNTER, (), "deliveries settled before they were written"
    ),
    Metric("mqttd_storage_commit_seconds", HISTOGRAM, (), "how long a transaction took"),
    Metric("mqttd_storage_waiting", GAUGE, (), "connections with answers that wait for the disk"),
    Metric("mqttd_storage_refusing", GAUGE, (), "1 while nothing is stored: a full or broken disk"),
    Metric("process_cpu_seconds_total", COUNTER, (), "CPU time, of user and system"),
    Metric("process_resident_memory_bytes", GAUGE, (), "memory in use"),
    Metric("process_max_fds", GAUGE, (), "file descriptors, hence connections, that it may have"),
)

DROPS: Final = (
    count.DROP_OFFLINE_QOS0,
    count.DROP_SLOW_READER,
    count.DROP_QUEUE_FULL,
    count.DROP_EXPIRED,
    count.DROP_TOO_LARGE,
    count.DROP_SESSION_ENDED,
    count.DROP_REFUSED,
    count.DROP_LOST,
    count.DROP_NO_MEMBER,
    count.DROP_REDELIVERIES,
    count.DROP_REPLACED,
    count.DROP_NOT_AUTHORIZED,
    count.DROP_BY_PLUGIN,
)
REFUSALS: Final = (
    count.REFUSED_HANDSHAKE,
    count.REFUSED_NOT_CONNECT,
    count.REFUSED_TIMEOUT,
    count.REFUSED_LEFT,
    *(spec.reason_word(code) for code in sorted(spec.REASONS[spec.CONNACK] - {spec.SUCCESS})),
)
ENDS: Final = (
    count.GONE_BY_CLIENT,
    count.GONE_LOST,
    *(spec.reason_word(code, spec.DISCONNECT) for code in sorted(spec.REASONS[spec.DISCONNECT])),
)
PACKETS: Final = tuple(
    (kind, spec.PACKET_NAMES[kind].lower()) for kind in range(spec.CONNECT, spec.AUTH + 1)
)
VERSIONS: Final = {spec.MQTT31: "3.1", spec.MQTT311: "3.1.1", spec.MQTT5: "5"}


@dataclass(slots=True)
class HookFacts:
    """What one hook of one plugin has cost."""

    calls: int
    failures: int
    seconds: float
    longest_s: float


@dataclass(slots=True)
class PluginFacts:
    """One plugin, with the figures that it keeps itself: `mqttd_plugin_NAME_total` and gauges.

    `figures` are names as they are, values and labels.
    """

    name: str
    hooks: dict[str, HookFacts] = field(default_factory=dict)
    resting: bool = False
    lost: int | None = None  # events; None for one that doesn't observe
    counts: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    figures: Sequence[tuple[str, float, tuple[tuple[str, str], ...]]] = ()
    failed: int = 0  # events that it failed to take


@dataclass(slots=True)
class Buckets:
    """Durations: how many up to each bound and not up to the one before; the last has no bound."""

    bounds: tuple[float, ...]
    counts: list[int]
    seconds: float


@dataclass(slots=True)
class Facts:
    """What isn't in the core."""

    version: str = ""
    python: str = ""
    build: str = ""
    loop: str = ""
    durability: str = ""
    listeners: list[str] = field(default_factory=list)
    started_at: float = 0.0
    lag: float = 0.0
    cpu_s: float = 0.0
    resident: int = 0
    max_fds: int = 0
    certificates: dict[str, float] = field(default_factory=dict)  # listener → end
    plugins: list[PluginFacts] = field(default_factory=list)
    commits: Buckets | None = None
    operations: int = 0


Number = int | float
Series = dict[tuple[str, ...], Number]


def samples(broker: Broker, census: Census, facts: Facts) -> dict[str, Series]:
    """Label values → value, of every family."""
    clients = broker.counters.clients_connected
    watcher = broker.context.watcher
    build = (facts.version, facts.python, facts.build, facts.loop)
    single: dict[str, Number] = {
        "mqttd_start_time_seconds": facts.started_at,
        "mqttd_loop_lag_seconds": facts.lag,
        "mqttd_inflight": census.inflight,
        "mqttd_queue_messages": census.queued,
        "mqttd_queue_bytes": census.queued_bytes,
        "mqttd_retained_messages": census.retained,
        "mqttd_retained_bytes": census.retained_bytes,
        "mqttd_storage_batches_total": broker.journal.committed,
        "mqttd_storage_operations_total": facts.operations,
        "mqttd_storage_elided_total": broker.journal.elided,
        "mqttd_storage_waiting": len(broker.context.holding),
        "mqttd_storage_refusing": 1 if broker.journal.refusing else 0,
        "mqttd_events_overflow_total": 0 if watcher is None else watcher.lost,
        "process_cpu_seconds_total": facts.cpu_s,
        "process_resident_memory_bytes": facts.resident,
        "process_max_fds": facts.max_fds,
    }
    found: dict[str, Series] = {name: {(): value} for name, value in single.items()}
    shared = census.shared_subscriptions
    found |= {
        "mqttd_build_info": {build: 1},
        "mqttd_connections": _connections(census, facts.listeners),
        "mqttd_sessions": {
            ("connected",): clients,
            ("disconnected",): len(broker.sessions) - clients,
        },
        "mqttd_subscriptions": {
            ("false",): census.subscriptions - shared,
            ("true",): shared,
        },
        "mqttd_storage_info": {(facts.durability,): 1},
        "mqttd_tls_cert_expiry_timestamp_seconds": {
            (name,): at for name, at in facts.certificates.items()
        },
    }
    found["mqttd_publish_ack_seconds"] = _histogram(_acks(broker.counters))
    found["mqttd_storage_commit_seconds"] = _histogram(facts.commits)
    found["mqttd_dead_letters_total"] = _letters(broker.context.letters)
    return found | _counted(broker.counters) | _plugins(facts.plugins)


def _letters(letters: Letters | None) -> Series:
    """`published`; the rest are those that became none: undelivered themselves, too many at once,
    or with the store alone."""
    return {
        ("published",): letters.published if letters is not None else 0,
        ("undelivered",): letters.again if letters is not None else 0,
        ("overflow",): letters.lost if letters is not None else 0,
        ("unread",): letters.unread if letters is not None else 0,
    }


def _acks(counters: Counters) -> Buckets:
    first, *others = counters.acks.counts
    counts = [first + counters.acks_at_once, *others]
    return Buckets(count.BOUNDS, counts, counters.acks.seconds)


def _histogram(buckets: Buckets | None) -> Series:
    """By the bound, then what has no bound; `render` makes a sample of each."""
    if buckets is None:
        return {}
    found: Series = {}
    total = 0
    for bound, number in zip((*map(str, buckets.bounds), "+Inf"), buckets.counts, strict=True):
        total += number
        found["_bucket", bound] = total
    return found | {("_sum",): buckets.seconds, ("_count",): total}


def _plugins(plugins: list[PluginFacts]) -> dict[str, Series]:
    calls: Series = {}
    errors: Series = {}
    seconds: Series = {}
    longest: Series = {}
    for plugin in plugins:
        for name, hook in plugin.hooks.items():
            calls[plugin.name, name] = hook.calls
            errors[plugin.name, name] = hook.failures
            seconds[plugin.name, name] = hook.seconds
            longest[plugin.name, name] = hook.longest_s
    return {
        "mqttd_hook_calls_total": calls,
        "mqttd_hook_errors_total": errors,
        "mqttd_hook_seconds_total": seconds,
        "mqttd_hook_longest_seconds": longest,
        "mqttd_breaker_open": {(one.name,): int(one.resting) for one in plugins},
        "mqttd_events_lost_total": {
            (one.name,): one.lost for one in plugins if one.lost is not None
        },
        "mqttd_events_failed_total": {
            (one.name,): one.failed for one in plugins if one.lost is not None
        },
    }


def of_plugins(plugins: list[PluginFacts]) -> list[tuple[Metric, Series]]:
    """The families that plugins have made up, in the order of their names.

    A name that two kinds of figures would share, or that no metric can have, is left out, and so is
    a figure with other labels than the first of its name.
    """
    found: dict[str, tuple[Metric, Series]] = {}
    for plugin in plugins:
        figures: list[tuple[str, Number, tuple[tuple[str, str], ...]]] = [
            (f"{name}_total", value, ()) for name, value in plugin.counts.items()
        ]
        figures += [
            (name, value, ())
            for name, value in plugin.gauges.items()
            if not name.endswith("_total")
        ]
        for name, value, labels in (*figures, *plugin.figures):
            whole = f"mqttd_plugin_{name}"
            names = ("plugin", *(label for label, _ in labels))
            if not all(map(_NAME.fullmatch, (whole, *names))) or len(set(names)) < len(names):
                continue
            if whole not in found:
                kind = COUNTER if name.endswith("_total") else GAUGE
                found[whole] = Metric(whole, kind, names, "kept by the plugin"), {}
            metric, series = found[whole]
            if metric.labels == names:
                series[(plugin.name, *(value for _, value in labels))] = value
    return [found[name] for name in sorted(found)]


def _counted(counters: Counters) -> dict[str, Series]:
    single = {
        "mqttd_sockets": counters.connections,
        "mqttd_sockets_total": counters.connections_total,
        "mqttd_connections_maximum": counters.clients_maximum,
        "mqttd_sessions_expired_total": counters.sessions_expired,
        "mqttd_takeovers_total": counters.takeovers,
        "mqttd_messages_refused_total": counters.publish_refused,
        "mqttd_messages_matched_total": counters.matched,
        "mqttd_messages_delivered_total": counters.delivered,
        "mqttd_messages_redelivered_total": counters.redelivered,
        "mqttd_wills_total": counters.wills_published,
        "mqttd_protocol_errors_total": counters.protocol_errors,
        "mqttd_answers_too_large_total": counters.answers_too_large,
        "mqttd_hook_failures_total": counters.hook_failures,
        "mqttd_bugs_total": counters.bugs,
    }
    found: dict[str, Series] = {name: {(): value} for name, value in single.items()}
    connects: Series = {("accepted", "success"): counters.connects_accepted}
    connects |= {("refused", reason): 0 for reason in REFUSALS}
    connects |= {("refused", reason): number for reason, number in counters.refused.items()}
    drops: Series = {(reason,): 0 for reason in DROPS}
    found["mqttd_connects_total"] = connects
    found["mqttd_messages_dropped_total"] = drops | {
        (reason,): number for reason, number in counters.dropped.items()
    }
    found["mqttd_packets_total"] = _packets(counters)
    ends: Series = {(reason,): 0 for reason in ENDS}
    ends |= {(reason,): number for reason, number in counters.gone.items()}
    found["mqttd_disconnects_total"] = ends
    found["mqttd_bytes_total"] = _both(counters.bytes_received, counters.bytes_sent)
    found["mqttd_payload_bytes_total"] = _both(
        counters.publish_bytes_received, counters.publish_bytes_sent
    )
    found["mqttd_messages_received_total"] = _by_qos(
        counters.publish_received, counters.publish_received_qos1, counters.publish_received_qos2
    )
    found["mqttd_messages_sent_total"] = _by_qos(
        counters.publish_sent, counters.publish_sent_qos1, counters.publish_sent_qos2
    )
    return found


def _packets(counters: Counters) -> Series:
    received, sent = list(counters.received), list(counters.sent)
    received[spec.PUBLISH] = counters.packets_received - sum(received)
    sent[spec.PUBLISH] = counters.publish_sent
    found: Series = {}
    for direction, numbers in (("received", received), ("sent", sent)):
        found |= {(direction, name): numbers[kind] for kind, name in PACKETS}
    return found


def _both(received: int, sent: int) -> Series:
    return {("received",): received, ("sent",): sent}


def _by_qos(all_of_them: int, qos1: int, qos2: int) -> Series:
    return {("0",): all_of_them - qos1 - qos2, ("1",): qos1, ("2",): qos2}


def _connections(census: Census, listeners: list[str]) -> Series:
    found: Series = {(name, version): 0 for name in listeners for version in VERSIONS.values()}
    for (name, level), number in census.connected.items():
        found[name, VERSIONS[level]] = number
    return found


def render(found: dict[str, Series], more: Sequence[tuple[Metric, Series]] = ()) -> bytes:
    """The text format. A family without a series, as those of plugins are without any, is left
    out."""
    lines = []
    for metric, series in (*((one, found[one.name]) for one in METRICS), *more):
        if not series:
            continue
        lines.append(f"# HELP {metric.name} {metric.meaning}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for values, number in series.items():
            name, labels = metric.name, metric.labels
            if metric.kind == HISTOGRAM:
                name += values[0]
                labels, values = ("le",)[: len(values) - 1], values[1:]
            pairs = zip(labels, values, strict=True)
            text = ",".join(f'{label}="{_escaped(value)}"' for label, value in pairs)
            # The sign makes a number of a plugin's True.
            lines.append(f"{name}{'{' + text + '}' if text else ''} {+number!r}")
    lines.append("")
    return "\n".join(lines).encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
