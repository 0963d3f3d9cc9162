"""The page for Prometheus, read by Prometheus' own parser; what the guide and the dashboard say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mqttd import metrics
from mqttd.census import Census
from mqttd.core import counters as count
from mqttd.core import spec
from mqttd.core.letters import Letters
from mqttd.core.packets import Pingreq
from mqttd.metrics import (
    COUNTER,
    DROPS,
    HISTOGRAM,
    METRICS,
    REFUSALS,
    Buckets,
    Facts,
    HookFacts,
    PluginFacts,
)
from tests.harness import Harness

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "how-to" / "monitor.md"
DASHBOARD = ROOT / "docs" / "grafana" / "mqttd.json"
ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| (.*) \| (.*) \|$", re.MULTILINE)

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def facts() -> Facts:
    return Facts("1.2.3", "3.11", "pure", "uvloop", "full", ["test"], 5.0, 0.25, 1.5, 1 << 20, 1024)


def with_plugins() -> Facts:
    given = facts()
    given.certificates = {"tls": 2_000_000_000.0}
    given.commits = Buckets((0.001, 0.01), [3, 2, 1], 0.5)
    hooks = {"authenticate": HookFacts(7, 2, 0.5, 0.25), "observe": HookFacts(1, 0, 0.0, 0.0)}
    given.plugins = [
        PluginFacts("users", hooks, True, 3, {"logins": 5}, {"users": 2.5}),
        PluginFacts("other", {}, False, None, {"logins": 1}, {}),
    ]
    return given


def rendered(h: Harness, given: Facts | None = None) -> str:
    census = Census(h.broker)
    while not census.step():
        pass
    given = given or facts()
    found = metrics.samples(h.broker, census, given)
    return metrics.render(found, metrics.of_plugins(given.plugins)).decode()


def page(h: Harness, given: Facts | None = None) -> Page:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(rendered(h, given))
        for sample in family.samples
    }


def value(found: Page, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_every_family_is_there_with_its_type_and_help() -> None:
    families = list(text_string_to_metric_families(rendered(Harness(), with_plugins())))
    assert len(families) == len(METRICS) + 2
    for family, metric in zip(families, METRICS, strict=False):
        # The parser takes the ending of a counter for granted.
        assert family.name == metric.name.removesuffix("_total")
        assert family.type == metric.kind
        assert family.documentation == metric.meaning
        assert family.samples
        if metric.kind == HISTOGRAM:
            continue
        for sample in family.samples:
            assert sample.name == metric.name
            assert tuple(sample.labels) == metric.labels


def test_plugins() -> None:
    found = page(Harness(), with_plugins())
    by_hook = {"plugin": "users", "hook": "authenticate"}
    assert value(found, "mqttd_hook_calls_total", **by_hook) == 7
    assert value(found, "mqttd_hook_errors_total", **by_hook) == 2
    assert value(found, "mqttd_hook_seconds_total", **by_hook) == 0.5
    assert value(found, "mqttd_hook_longest_seconds", **by_hook) == 0.25
    assert value(found, "mqttd_breaker_open", plugin="users") == 1
    assert value(found, "mqttd_breaker_open", plugin="other") == 0
    assert value(found, "mqttd_events_lost_total", plugin="users") == 3
    assert series(found, "mqttd_events_lost_total", "plugin") == {"users"}
    assert value(found, "mqttd_plugin_logins_total", plugin="users") == 5
    assert value(found, "mqttd_plugin_logins_total", plugin="other") == 1
    assert value(found, "mqttd_plugin_users", plugin="users") == 2.5
    expiry = value(found, "mqttd_tls_cert_expiry_timestamp_seconds", listener="tls")
    assert expiry == 2_000_000_000


def test_a_histogram_counts_up_to_each_bound() -> None:
    found = page(Harness(), with_plugins())
    name = "mqttd_storage_commit_seconds"
    assert [value(found, f"{name}_bucket", le=le) for le in ("0.001", "0.01", "+Inf")] == [3, 5, 6]
    assert (value(found, f"{name}_count"), value(found, f"{name}_sum")) == (6, 0.5)


def test_durations_fall_into_their_buckets() -> None:
    durations = count.Durations()
    for seconds in (0.0, 0.0005, 0.0006, 7.0):
        durations.add(seconds)
    assert durations.counts[0] == 2
    assert durations.counts[1] == 1
    assert durations.counts[-1] == 1
    assert durations.seconds == pytest.approx(7.0011)
    assert len(durations.counts) == len(count.BOUNDS) + 1


def test_the_time_until_an_acknowledgement() -> None:
    h = Harness()
    h.broker.counters.acks_at_once = 3
    for seconds in (0.0001, 0.04, 5.0):
        h.broker.counters.acks.add(seconds)
    found = page(h)
    name = "mqttd_publish_ack_seconds"
    assert value(found, f"{name}_bucket", le="0.0005") == 4
    assert value(found, f"{name}_bucket", le="0.05") == 5
    assert value(found, f"{name}_bucket", le="+Inf") == value(found, f"{name}_count") == 6
    assert value(found, f"{name}_sum") == pytest.approx(5.0401)


def test_without_plugins_and_tls_there_is_nothing_of_them() -> None:
    text = rendered(Harness())
    assert "mqttd_hook_calls" not in text
    assert "mqttd_tls_cert" not in text


@pytest.mark.parametrize(("count", "gauge"), [("a b", ""), ("", "x_total"), ("a\nb 1", "ü")])
def test_a_name_that_is_none_breaks_no_page(count: str, gauge: str) -> None:
    given = facts()
    given.plugins = [PluginFacts("p", {}, False, None, {count: 1, "good": 1}, {gauge: 1.0})]
    found = page(Harness(), given)
    made_up = {name for name, _ in found if name.startswith("mqttd_plugin_")}
    assert "mqttd_plugin_good_total" in made_up
    assert made_up <= {"mqttd_plugin_good_total", "mqttd_plugin__total", "mqttd_plugin_"}


def test_figures_with_labels_are_families_of_their_own() -> None:
    given = facts()
    both = [
        ("ended_total", 3, (("way", "out"), ("reason", 'a"b'))),
        ("ended_total", 4, (("way", "in"), ("reason", "x"))),
        ("depth", 1.5, ()),
        ("paused", True, ()),
    ]
    odd = [
        ("depth", 9, (("way", "out"),)),  # other labels than the first of its name
        ("twice", 9, (("plugin", "x"),)),
        ("bad label", 9, ()),
        ("bad", 9, (("a b", "x"),)),
    ]
    given.plugins = [PluginFacts("p", figures=both), PluginFacts("q", figures=odd)]
    found = page(Harness(), given)
    assert value(found, "mqttd_plugin_ended_total", plugin="p", way="out", reason='a"b') == 3
    assert value(found, "mqttd_plugin_ended_total", plugin="p", way="in", reason="x") == 4
    assert value(found, "mqttd_plugin_depth", plugin="p") == 1.5
    assert value(found, "mqttd_plugin_paused", plugin="p") == 1
    assert sum(name.startswith("mqttd_plugin_") for name, _ in found) == 4
    assert "# TYPE mqttd_plugin_ended_total counter" in rendered(Harness(), given)
    assert "# TYPE mqttd_plugin_depth gauge" in rendered(Harness(), given)


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith(("mqttd_", "process_"))
        assert metric.name.endswith("_total") is (metric.kind == COUNTER)


def test_a_page_ends_with_a_line() -> None:
    assert rendered(Harness()).endswith("\n")


def counter_names() -> Iterator[str]:
    source = (ROOT / "mqttd" / "core" / "counters.py").read_text()
    yield from re.findall(r"self\.(\w+): (?:int|dict\[str, int\]) =", source)


@pytest.mark.parametrize("name", sorted(set(counter_names())))
def test_a_counter_that_counts_shows(name: str) -> None:
    h = Harness()
    counters = h.broker.counters
    before = page(h)
    # Each of them changes something on the page, or it would count in vain.
    if name == "dropped":
        counters.drop(count.DROP_EXPIRED)
    elif name in ("refused", "connects_refused"):
        counters.refuse(count.REFUSED_TIMEOUT)
    elif name == "gone":
        counters.leave(count.GONE_LOST)
    else:
        setattr(counters, name, getattr(counters, name) + 7)
    assert page(h) != before


def test_figures() -> None:
    h = Harness()
    h.broker.counters.drop(count.DROP_EXPIRED, 3)
    reader = h.client("reader", 4, expiry=None, auto_ack=False)
    reader.subscribe("a", qos=1)
    away = h.client("away", expiry=60)
    away.subscribe("$share/g/b", qos=1)
    away.drop()
    writer = h.client("writer")
    for qos in range(3):
        writer.publish("a", b"1234", qos, packet_id=qos and 5)
    writer.publish("b", b"12", 1, packet_id=6)
    writer.publish("c", b"123", retain=True)
    found = page(h)
    assert value(found, "mqttd_connections", listener="test", version="5") == 1
    assert value(found, "mqttd_connections", listener="test", version="3.1.1") == 1
    assert value(found, "mqttd_connections", listener="test", version="3.1") == 0
    assert value(found, "mqttd_connects_total", result="accepted", reason="success") == 3
    assert value(found, "mqttd_sessions", state="connected") == 2
    assert value(found, "mqttd_sessions", state="disconnected") == 1
    assert value(found, "mqttd_sockets") == 2
    assert value(found, "mqttd_sockets_total") == 3
    assert value(found, "mqttd_subscriptions", shared="true") == 1
    assert value(found, "mqttd_subscriptions", shared="false") == 1
    received = [value(found, "mqttd_messages_received_total", qos=qos) for qos in "012"]
    assert received == [2, 2, 1]
    sent = [value(found, "mqttd_messages_sent_total", qos=qos) for qos in "012"]
    assert sent == [1, 2, 0]
    assert value(found, "mqttd_payload_bytes_total", direction="received") == 17
    assert value(found, "mqttd_payload_bytes_total", direction="sent") == 12
    assert value(found, "mqttd_messages_dropped_total", reason="expired") == 3
    assert value(found, "mqttd_inflight") == 2
    assert value(found, "mqttd_queue_messages") == 1
    assert value(found, "mqttd_queue_bytes") == 2
    assert value(found, "mqttd_retained_messages") == 1
    assert value(found, "mqttd_retained_bytes") == 3
    assert value(found, "mqttd_loop_lag_seconds") == 0.25
    assert value(found, "process_resident_memory_bytes") == 1 << 20
    assert value(found, "mqttd_storage_info", durability="full") == 1
    sent_bytes = value(found, "mqttd_bytes_total", direction="sent")
    assert sent_bytes == h.broker.counters.bytes_sent


def test_why_clients_are_gone() -> None:
    h = Harness()
    h.client("a").disconnect()
    h.client("b").drop()
    h.client("c")
    h.client("c").send_raw(b"\xf0\x00" * 2)  # taken over; then an AUTH that it may not send
    h.client("d", 4)
    h.broker.kick("d", 0x42, "no such code", h.now)
    h.open().send_raw(b"\x30\x00")  # never was a client
    found = page(h)
    name = "mqttd_disconnects_total"
    gone = {
        labels[0][1]: number
        for (metric, labels), number in found.items()
        if metric == name and number
    }
    assert gone == {
        "by_the_client": 1,
        "connection_lost": 1,
        "session_taken_over": 1,
        "protocol_error": 1,
        "not_authorized": 1,
    }
    assert sum(gone.values()) == h.broker.counters.connects_accepted


def test_packets_by_type() -> None:
    h = Harness()
    client = h.client("c")
    client.subscribe("t", qos=1)
    client.publish("t", b"x", 1, packet_id=5)
    client.publish("t", b"x")
    client.send(Pingreq())
    found = page(h)

    def counts(direction: str) -> dict[str, float]:
        return {
            dict(labels)["type"]: number
            for (metric, labels), number in found.items()
            if metric == "mqttd_packets_total" and dict(labels)["direction"] == direction and number
        }

    assert counts("received") == {
        "connect": 1, "subscribe": 1, "publish": 2, "puback": 1, "pingreq": 1,
    }  # fmt: skip
    assert counts("sent") == {
        "connack": 1, "suback": 1, "publish": 2, "puback": 1, "pingresp": 1,
    }  # fmt: skip
    assert sum(counts("received").values()) == h.broker.counters.packets_received


def test_the_store() -> None:
    h = Harness(durable=True)
    h.client("a", expiry=60).connection.connection_lost(h.now)
    h.commit()
    h.broker.refuse(spec.QUOTA_EXCEEDED, h.now)
    found = page(h)
    assert value(found, "mqttd_storage_batches_total") == h.broker.journal.committed > 0
    assert value(found, "mqttd_storage_refusing") == 1
    h.broker.accept()
    assert value(page(h), "mqttd_storage_refusing") == 0


def series(found: Page, name: str, label: str) -> set[str]:
    return {dict(labels)[label] for (family, labels) in found if family == name}


def test_reasons_are_there_before_they_happen() -> None:
    found = page(Harness())
    named = {text for key, text in vars(count).items() if key.startswith("DROP_")}
    assert series(found, "mqttd_messages_dropped_total", "reason") == named == set(DROPS)
    refusals = {text for key, text in vars(count).items() if key.startswith("REFUSED_")}
    assert refusals <= set(REFUSALS)
    assert series(found, "mqttd_connects_total", "reason") == {"success", *REFUSALS}


@pytest.mark.parametrize("reason", [*DROPS, *REFUSALS])
def test_a_reason_is_a_word(reason: str) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", reason)


@pytest.mark.parametrize("code", sorted(spec.REASONS[spec.CONNACK] - {spec.SUCCESS}))
def test_every_refusal_of_a_connect_has_its_series(code: int) -> None:
    h = Harness()
    series_before = set(page(h))
    client = h.open()
    client.connection.refuse(code, "no")
    found = page(h)
    assert set(found) == series_before
    assert sum(h.broker.counters.refused.values()) == h.broker.counters.connects_refused == 1
    (reason,) = h.broker.counters.refused
    assert value(found, "mqttd_connects_total", result="refused", reason=reason) == 1


def test_labels_are_bounded_whatever_clients_say() -> None:
    h = Harness()
    series_before = set(page(h))
    for number in range(50):
        client = h.client(f'evil"\n{number}', 3 + number % 3, username=f"user{number}")
        client.subscribe(f"t/{number}/#")
        client.publish(f"t/{number}/{number}", b"x", number % 3, packet_id=number % 3 and 1)
        h.open().send_raw(bytes([number * 5]) * 40)
    assert set(page(h)) == series_before


def test_a_label_with_anything_in_it() -> None:
    given = facts()
    given.version = 'a"b\\c\nd'
    (family, *_) = text_string_to_metric_families(rendered(Harness(), given))
    assert family.samples[0].labels["version"] == given.version


# What is written about them.


def test_the_guide_lists_every_metric() -> None:
    rows = {
        name: (kind, labels, text) for name, kind, labels, text in ROW.findall(GUIDE.read_text())
    }
    expected = {
        metric.name: (
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.meaning,
        )
        for metric in METRICS
    }
    assert rows == expected


def test_dead_letters_are_told_apart_by_what_became_of_them() -> None:
    h = Harness()
    name = "mqttd_dead_letters_total"
    assert value(page(h), name, outcome="published") == 0
    letters = h.broker.context.letters = Letters(frozenset({count.DROP_EXPIRED}))
    letters.published, letters.again, letters.lost, letters.unread = 1, 2, 3, 4
    found = page(h)
    outcomes = ("published", "undelivered", "overflow", "unread")
    assert [value(found, name, outcome=each) for each in outcomes] == [1, 2, 3, 4]


def expressions(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "expr" in node:
            yield str(node["expr"])
        for child in node.values():
            yield from expressions(child)
    elif isinstance(node, list):
        for child in node:
            yield from expressions(child)


def test_the_dashboard_asks_for_what_there_is() -> None:
    asked = list(expressions(json.loads(DASHBOARD.read_text())))
    assert asked
    known = {metric.name: metric for metric in METRICS}
    used = set()
    for text in asked:
        for name, selector in re.findall(r"\b((?:mqttd|process)_\w+)(\{[^}]*\})?", text):
            name = re.sub("_bucket$", "", name)
            assert name in known, text
            used.add(name)
            for label in re.findall(r"(\w+)=", selector):
                assert label in (*known[name].labels, "instance", "job"), text
        if "rate(" in text:
            assert "_total" in text or "_bucket" in text
    shown = {name for name in known if name.startswith("mqttd_")}
    assert shown <= used, shown - used


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
