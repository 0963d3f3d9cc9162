"""Rules as EMQX writes them: both forms, the first that speaks, names put in, what is refused."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._acl_rules import BoundRules, Found, Grants, RulesError, parse_rules

from mqttd.api import Client, matches


def bound(
    value: object, client_id: str = "c1", username: str | None = "ada", address: str = "192.0.2.7"
) -> BoundRules:
    return parse_rules(value).bind(client_id, username, address)


def allow(action: str, *topics: str, **more: object) -> dict[str, object]:
    return {"permission": "allow", "action": action, "topics": list(topics), **more}


def deny(action: str, *topics: str, **more: object) -> dict[str, object]:
    return {**allow(action, *topics, **more), "permission": "deny"}


def test_the_first_rule_that_speaks_decides() -> None:
    mine = bound([deny("all", "a/b"), allow("all", "a/#"), deny("all", "a/c")])
    assert mine.publish("a/b", 0, False) == Found(False, "deny all a/b")
    assert mine.publish("a/c", 0, False) == Found(True, "allow all a/#")
    assert mine.publish("b", 0, False) is None
    assert mine.receive("a/b") == Found(False, "deny all a/b")
    assert mine.receive("a/c") == Found(True, "allow all a/#")
    assert mine.receive("b") is None


def test_an_action_speaks_of_nothing_else() -> None:
    mine = bound([allow("publish", "p"), allow("subscribe", "s")])
    assert mine.publish("p", 0, False) == Found(True, "allow publish p")
    assert mine.publish("s", 0, False) is None
    assert mine.subscribe("p", 0) is None
    assert mine.receive("p") is None
    assert mine.subscribe("s", 0) == Found(True, "allow subscribe s")
    assert mine.receive("s") == Found(True, "allow subscribe s")


def test_lists_only_allow() -> None:
    mine = bound({"pub": ["p/${clientid}"], "sub": ["s/#"], "all": ["x"]})
    assert mine.publish("p/c1", 0, False) == Found(True, "allow publish p/${clientid}")
    assert mine.publish("p/c2", 0, False) is None
    assert mine.subscribe("s/a", 0) == Found(True, "allow subscribe s/#")
    assert mine.publish("s/a", 0, False) is None
    assert mine.publish("x", 0, False) == mine.receive("x") == Found(True, "allow all x")


def test_a_single_topic_and_an_action_that_is_left_out() -> None:
    mine = bound([{"permission": "allow", "topic": "a"}])
    assert mine.publish("a", 0, False) == mine.receive("a") == Found(True, "allow all a")


def test_a_subscription_is_allowed_by_a_rule_that_holds_all_of_it() -> None:
    mine = bound([deny("subscribe", "a/secret"), allow("subscribe", "a/#")])
    assert mine.subscribe("a/#", 0) == Found(True, "allow subscribe a/#")
    assert mine.subscribe("a/+/b", 0) == Found(True, "allow subscribe a/#")
    assert mine.subscribe("a/secret", 0) == Found(False, "deny subscribe a/secret")
    assert mine.subscribe("#", 0) is None
    assert mine.receive("a/secret") == Found(False, "deny subscribe a/secret")


def test_eq_means_the_filter_and_nothing_else() -> None:
    mine = bound([deny("subscribe", "eq #", "eq a/x"), allow("subscribe", "#")])
    assert mine.subscribe("#", 0) == Found(False, "deny subscribe eq #")
    assert mine.subscribe("a/#", 0) == Found(True, "allow subscribe #")
    assert mine.receive("b") == Found(True, "allow subscribe #")
    assert mine.receive("a/x") == Found(False, "deny subscribe eq a/x")
    mine = bound([allow("all", "eq a/#")])
    assert mine.subscribe("a/#", 0) == Found(True, "allow all eq a/#")
    assert mine.subscribe("a/b", 0) is None
    assert mine.receive("a/b") == Found(True, "allow all eq a/#")
    assert mine.publish("a/b", 0, False) is None


def test_conditions_on_qos_and_retain() -> None:
    mine = bound([allow("publish", "a", qos=[0, 1], retain=False), allow("subscribe", "s", qos=0)])
    assert mine.publish("a", 1, False) == Found(True, "allow publish a")
    assert mine.publish("a", 2, False) is None
    assert mine.publish("a", 1, True) is None
    assert mine.subscribe("s", 0) == Found(True, "allow subscribe s")
    assert mine.subscribe("s", 1) is None
    assert bound([allow("all", "a", retain="all")]).publish("a", 0, True) is not None


def test_a_deny_of_a_qos_is_about_asking_not_about_the_topic() -> None:
    mine = bound([deny("subscribe", "a", qos=2), allow("all", "#")])
    assert mine.subscribe("a", 2) == Found(False, "deny subscribe a")
    assert mine.receive("a") == Found(True, "allow all #")


def test_rules_for_addresses_are_for_those_alone() -> None:
    rules = [deny("all", "a", ipaddr="192.0.2.0/24"), allow("all", "a", ipaddr="2001:db8::1")]
    assert bound(rules).publish("a", 0, False) == Found(False, "deny all a")
    at_v6 = bound(rules, address="2001:db8::1")
    assert at_v6.publish("a", 0, False) == Found(True, "allow all a")
    mapped = bound(rules, address="::ffff:192.0.2.7")  # on a socket for IPv6 and IPv4
    assert mapped.publish("a", 0, False) == Found(False, "deny all a")
    assert bound(rules, address="unix:/run/mqttd.sock").publish("a", 0, False) is None


def test_names_are_put_in_within_a_level_and_once() -> None:
    mine = bound([allow("all", "dev-${clientid}/${username}/${clientid}")], "c1", "ada")
    assert mine.publish("dev-c1/ada/c1", 0, False) is not None
    assert mine.publish("dev-${clientid}/ada/c1", 0, False) is None
    sly = bound([allow("all", "u/${clientid}/${username}")], "x${username}", "ada")
    assert sly.publish("u/x${username}/ada", 0, False) is not None
    assert sly.publish("u/xada/ada", 0, False) is None


@pytest.mark.parametrize("name", ["#", "+", "a/b", "", "$SYS", "a+", "x\0"])
def test_a_name_that_leaves_its_level_spoils_the_rules_that_need_it(name: str) -> None:
    mine = bound([deny("all", "u/${clientid}"), allow("all", "#")], name)
    assert mine.spoilt
    answer = Found(False, "${clientid} can't stand for the client's name")
    assert mine.publish("a", 0, False) == mine.receive("a") == mine.subscribe("a", 0) == answer
    assert bound([allow("all", "u/${username}")], "c", name).spoilt
    assert bound([allow("all", "a")], name).publish("a", 0, False) is not None


def test_a_client_without_a_user_name_has_none_to_put_in() -> None:
    assert bound([allow("all", "u/${username}")], username=None).spoilt


def test_the_rules_of_a_client_follow_its_names() -> None:
    client = Client("", "claimed")
    grants = Grants(parse_rules([allow("all", "${clientid}/${username}")]))
    assert grants.of(client).spoilt
    client.client_id, client.username = "c1", "ada"
    assert grants.of(client).publish("c1/ada", 0, False) is not None
    assert grants.of(client) is grants.of(client)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "expected a list of rules, or lists under pub, sub and all"),
        ("allow", "expected a list of rules"),
        ({"pub": ["a"], "deny": ["b"]}, "no other lists than pub, sub and all"),
        ({"pub": "a"}, "pub: expected a list of topics"),
        ({"sub": [1]}, "topic: expected text"),
        (["a"], "rule 1: expected an object"),
        ([allow("all", "a"), {}], "rule 2: permission: expected allow or deny"),
        ([{"permission": True, "topic": "a"}], "permission: expected allow or deny"),
        ([allow("write", "a")], "action: expected publish, subscribe or all"),
        ([{**allow("all", "a"), "action": ["all"]}], "action: expected publish"),
        ([allow("all")], "expected topic or topics"),
        ([{"permission": "deny", "topics": "a"}], "topics: expected a list"),
        ([allow("all", "a/#/b")], "topic: # has to stand alone in the last level"),
        ([allow("all", "")], "topic: empty topic"),
        ([allow("all", "$share/g/a")], r"expected the filter behind \$share"),
        ([allow("all", "a/${cert_common_name}")], "no other placeholders than"),
        ([allow("all", "a/%c")], "no other placeholders than"),
        ([allow("all", "a", qos=3)], "qos: expected 0, 1, 2"),
        ([allow("all", "a", qos=[])], "qos: expected 0, 1, 2"),
        ([allow("all", "a", qos=True)], "qos: expected 0, 1, 2"),
        ([allow("all", "a", retain=1)], "retain: expected true, false or all"),
        ([allow("all", "a", ipaddr="192.0.2.1/24")], "ipaddr: expected an address"),
        ([allow("all", "a", ipaddr=7)], "ipaddr: expected an address"),
        (
            [allow("all", "a", clientid_re="^a")],
            "rule 1: expected no other keys than action, ipaddr",
        ),
        ([allow("all", *(["a"] * 2001))], "more than 2000"),
    ],
)
def test_what_isnt_understood_is_refused(value: object, told: str) -> None:
    with pytest.raises(RulesError, match=told):
        parse_rules(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(("permission", "action", "topic", "topics", "qos", "pub", "all", "x")),
            inner | st.sampled_from(("allow", "deny", "a/+", "eq #")),
            max_size=4,
        )
    ),
    max_leaves=6,
)


@given(JSON)
def test_any_value_is_rules_or_an_error(value: object) -> None:
    try:
        rules = parse_rules(value)
    except RulesError:
        return
    found = rules.bind("c", "u", "").publish("a/b", 0, False)
    assert found is None or found.allowed == found.rule.startswith("allow")


FILTERS = ("#", "+", "a", "a/#", "+/b", "a/+", "a/b", "$s/#")
TOPICS = ["/".join(levels) for n in (1, 2) for levels in product(("a", "b", "$s"), repeat=n)]


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(FILTERS)), max_size=5),
    st.sampled_from(FILTERS),
)
def test_what_is_allowed_whole_is_allowed_topic_by_topic_but_for_earlier_denies(
    pairs: list[tuple[bool, str]], wanted: str
) -> None:
    mine = bound([(allow if allows else deny)("all", text) for allows, text in pairs])
    answer = mine.subscribe(wanted, 0)
    for topic in (topic for topic in TOPICS if matches(wanted, topic)):
        first = next((allows for allows, text in pairs if matches(text, topic)), None)
        found = mine.receive(topic)
        assert (found.allowed if found else None) == first
        if answer is not None and not answer.allowed:
            assert first is not None
