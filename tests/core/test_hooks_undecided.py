"""Who leaves before a decision, who authenticates again, and topics that are not for everybody."""

import pytest

from mqttd.core import counters as count
from mqttd.core import spec
from mqttd.core.auth import AuthStep, Verdict
from mqttd.core.connection import Connection
from mqttd.core.packets import Auth, Connack, Disconnect, Filter, Puback, Suback, Subscribe, Will
from mqttd.core.watch import REFUSED, Watcher
from tests.core.handshake_kit import connect, say
from tests.core.hook_kit import Admitting
from tests.harness import Harness
from tests.spec.kit import props

# Who goes before it is answered.


def test_who_leaves_while_it_is_decided_on_has_made_an_attempt() -> None:
    h = Harness()
    h.broker.context.watcher = watcher = Watcher(10)
    hooks = Admitting(h, None)
    say(h, connect(username="u")).drop()
    assert h.events("refused") == ["it left before the decision"]
    assert h.broker.counters.refused == {count.REFUSED_LEFT: 1}
    (trace,) = watcher.traces
    assert (trace.kind, trace.reason) == (REFUSED, "it left before the decision")
    hooks.answer(Verdict(False))
    assert len(h.events("refused")) == 1


@pytest.mark.parametrize("goodbye", [True, False])
def test_who_leaves_between_two_steps_has_made_one_too(goodbye: bool) -> None:
    h = Harness()
    h.broker.hooks.enhanced_methods = ("M",)
    h.broker.hooks.enhanced = lambda *_: AuthStep(spec.CONTINUE_AUTHENTICATION)
    client = say(h, connect(properties=props(authentication_method="M")))
    client.expect(Auth)
    if goodbye:
        client.disconnect()
    client.drop()
    assert h.broker.counters.refused == {count.REFUSED_LEFT: 1}


def test_who_is_refused_or_never_said_a_word_is_not_counted_once_more() -> None:
    h = Harness()
    hooks = Admitting(h, Verdict(False))
    say(h, connect()).drop()
    h.open().drop()
    hooks.verdict = Verdict(True)
    h.client("c").drop()
    assert h.broker.counters.refused == {"not_authorized": 1}


def test_what_is_private_is_for_the_log_alone() -> None:
    h = Harness()
    Admitting(h, Verdict(False, spec.UNSPECIFIED_ERROR, "sorry", private="plugin x: line 7"))
    client = say(h, connect())
    answer = client.expect(Connack)
    assert answer.properties.reason_string == "Unspecified error: sorry [MQTT-3.1.4-2]"
    assert h.events("refused") == ["Unspecified error: sorry [MQTT-3.1.4-2] (plugin x: line 7)"]


def test_what_is_private_of_who_fails_to_authenticate_again_is_for_the_log_too() -> None:
    h = Harness()
    steps = [AuthStep(spec.SUCCESS, username="u")]
    steps.append(AuthStep(spec.NOT_AUTHORIZED, reason="sorry", private="plugin x: line 7"))
    h.broker.hooks.enhanced_methods = ("M",)
    h.broker.hooks.enhanced = lambda *_: steps.pop(0)
    method = props(authentication_method="M")
    client = h.client("c", properties=method)
    client.send(Auth(spec.REAUTHENTICATE, method))
    answer = client.expect(Disconnect)
    assert answer.properties is not None
    assert answer.properties.reason_string == "Not authorized: sorry [MQTT-4.12.0-4]"
    assert h.events("disconnect") == ["Not authorized: sorry [MQTT-4.12.0-4] (plugin x: line 7)"]


def test_who_authenticates_again_is_known_as_somebody_new() -> None:
    h = Harness()
    old, new = object(), object()
    verdicts = [Verdict(True, username="u", guest=old), Verdict(True, username="u", guest=new)]
    h.broker.hooks.enhanced_methods = ("M",)
    h.broker.hooks.enhanced = lambda *_: AuthStep(spec.SUCCESS, verdict=verdicts.pop(0))
    method = props(authentication_method="M")
    client = h.client("c", properties=method)
    connection = client.connection
    assert isinstance(connection, Connection)
    assert connection.guest is old
    client.send(Auth(spec.REAUTHENTICATE, method))
    client.expect(Auth)
    assert connection.guest is new
    assert h.broker.sessions["c"].guest is new


# Topics that are not for everybody.


@pytest.mark.parametrize("topic", ["$CONTROL/dynamic-security/v1", "$CONTROL", "$SYS/x"])
def test_a_will_on_a_topic_of_the_broker_is_refused_as_a_publish_is(topic: str) -> None:
    h = Harness()
    client = say(h, connect(will=Will(topic, b"x", 1, False)))
    assert client.expect(Connack).reason == spec.NOT_AUTHORIZED
    client = h.client("c", auto_ack=False)
    client.publish(topic, b"x", 1)
    assert client.expect(Puback).reason == spec.NOT_AUTHORIZED


@pytest.mark.parametrize(
    ("topic_filter", "code"),
    [
        ("$reply/#", spec.NOT_AUTHORIZED),
        ("$reply/+", spec.NOT_AUTHORIZED),
        ("$reply/other", spec.NOT_AUTHORIZED),
        ("$share/g/$reply/other", spec.NOT_AUTHORIZED),
        ("$reply/c/#", spec.NOT_AUTHORIZED),  # a client may be called c/d
        ("$reply/c", 0),
        ("$share/g/$reply/c", 0),
        ("$replying/other", 0),
    ],
)
def test_answers_are_for_who_asked(topic_filter: str, code: int) -> None:
    h = Harness()
    client = h.client("c")
    client.send(Subscribe(7, [Filter(topic_filter, 0)]))
    assert client.expect(Suback).reasons == [code]


@pytest.mark.parametrize("name", ["+", "#", "a/+", "a/#"])
def test_no_name_of_a_client_is_a_wildcard(name: str) -> None:
    h = Harness()
    client = h.client(name)
    client.send(Subscribe(7, [Filter("$reply/" + name, 0)]))
    assert client.expect(Suback).reasons == [spec.NOT_AUTHORIZED]
