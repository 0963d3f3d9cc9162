"""The interface between a connection and the broker: what it offers, and what it leaves open."""

import pytest

from mqttd.core.outbound import Outbound
from mqttd.core.packets import Connect, Filter
from mqttd.core.router import MAX_EVENTS, ListenerInfo, Router
from mqttd.core.session import Session
from tests.core.rig import make_message, make_settings


def test_everything_of_a_broker_is_shared_by_reference() -> None:
    settings = make_settings(max_topic_levels=7)
    router = Router(settings, True)
    assert router.settings is settings
    assert router.context.settings is settings
    assert router.context.counters is router.counters
    assert router.context.journal is router.journal
    assert router.journal.enabled
    assert router.tables.set("t", "k", b"v") == router.journal.last() == 1
    assert router.trie.max_levels == 7
    assert (router.dirty, router.events) == ([], [])
    assert not Router(settings, False).journal.enabled


def test_a_listener_says_how_much_it_trusts() -> None:
    listener = ListenerInfo("inside", "unix", True)
    assert (listener.name, listener.transport, listener.allow_anonymous) == ("inside", "unix", True)


def test_events_are_kept_for_the_log_up_to_a_bound() -> None:
    """A flood of connections that nobody logs must not become a flood of memory."""
    router = Router(make_settings(), False)
    for number in range(MAX_EVENTS + 5):
        router.note("connect", f"c{number}", "10.0.0.1:5", "new session")
    assert len(router.events) == MAX_EVENTS
    event = router.events[2]
    assert (event.kind, event.client_id, event.peer, event.reason) == (
        "connect",
        "c2",
        "10.0.0.1:5",
        "new session",
    )
    router.events.clear()
    router.note("disconnect", "c", "", "")
    assert [event.kind for event in router.events] == ["disconnect"]


def test_assigned_client_ids_differ() -> None:
    """[MQTT-3.1.3-6] unless the shell brings a better source of them."""
    router = Router(make_settings(), False)
    made = [router.new_client_id() for _ in range(3)]
    assert len(set(made)) == 3
    router.new_client_id = lambda: "mine"
    assert router.new_client_id() == "mine"


def test_what_concerns_several_sessions_is_left_to_the_broker() -> None:
    router = Router(make_settings(), False)
    context = router.context
    connection = Outbound(context, router.dirty)
    session = Session("c", None, context)
    message = make_message()
    matched = router.trie.match("t")
    with pytest.raises(AssertionError, match="admit"):
        router.admit(connection, Connect(), None, 0.0)
    with pytest.raises(AssertionError, match="left"):
        router.left(session, connection, False, 0.0)
    with pytest.raises(AssertionError, match="forget"):
        router.forget(connection)
    with pytest.raises(AssertionError, match="set_expiry"):
        router.set_expiry(session, 1)
    with pytest.raises(AssertionError, match="forward"):
        router.forward(b"", 0, matched, session, 0.0)
    with pytest.raises(AssertionError, match="route"):
        router.route(message, matched, None, 0.0)
    with pytest.raises(AssertionError, match="storable"):
        router.storable(message, matched)
    with pytest.raises(AssertionError, match="retain"):
        router.retain(message)
    with pytest.raises(AssertionError, match="subscribe"):
        router.subscribe(session, Filter("t"), 0)
    with pytest.raises(AssertionError, match="unsubscribe"):
        router.unsubscribe(session, "t")
