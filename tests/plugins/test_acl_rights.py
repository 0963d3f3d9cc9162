"""What a list grants: the order of questions, groups, subscriptions as sets of topics."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins._acl_rights import Acl, Rights, Ruling
from mqttd_plugins._acl_text import parse

from mqttd.api import matches


def acl(text: str) -> Acl:
    return Acl(parse(text.encode(), "acl"))


def rights(text: str, user: str | None = None, client: str = "c") -> Rights:
    return acl(text).rights(user, client)


def line(ruling: Ruling) -> tuple[bool, int | None]:
    return ruling.allowed, ruling.rule.line if ruling.rule else None


def test_read_receives_and_write_publishes() -> None:
    mine = rights("topic read r\ntopic write w\ntopic both\ntopic deny d")
    receives = [mine.receive(topic).allowed for topic in ("r", "w", "both", "d")]
    publishes = [mine.publish(topic).allowed for topic in ("r", "w", "both", "d")]
    assert receives == [True, False, True, False]
    assert publishes == [False, True, True, False]


def test_a_deny_wins_over_what_stands_before_it() -> None:
    mine = rights("topic a/#\ntopic deny a/b/#\ntopic a/b/c")
    assert line(mine.publish("a/x")) == (True, 1)
    assert line(mine.publish("a/b/c")) == (False, 2)
    assert line(mine.receive("a/b")) == (False, 2)


def test_of_two_rules_that_grant_the_first_is_named() -> None:
    assert line(rights("topic +/b\ntopic a/b").publish("a/b")) == (True, 1)
    assert line(rights("topic a/b\ntopic +/b").publish("a/b")) == (True, 1)


def test_rules_before_the_first_user_are_for_clients_without_a_name_alone() -> None:
    text = "topic a\nuser roger\ntopic b\n"
    assert rights(text).publish("a").allowed
    assert not rights(text).publish("b").allowed
    assert not rights(text, "roger").publish("a").allowed
    assert rights(text, "roger").publish("b").allowed
    assert not rights(text, "rogers").publish("b").allowed
    assert not rights(text, "").publish("a").allowed  # an empty name is a name


def test_own_rules_come_before_patterns() -> None:
    text = "pattern deny a/%c\nuser roger\ntopic a/c\n"
    assert line(rights(text, "roger").publish("a/c")) == (True, 3)
    assert line(rights(text, "other").publish("a/c")) == (False, 1)
    text = "pattern a/%c\nuser roger\ntopic deny a/#\n"
    assert line(rights(text, "roger").publish("a/c")) == (False, 3)


def test_placeholders_stand_for_the_names_of_who_asks() -> None:
    text = "pattern read u/%u\npattern write c/%c/#"
    assert rights(text, "roger", "c1").receive("u/roger").allowed
    assert not rights(text, "roger", "c1").receive("u/other").allowed
    assert rights(text, "roger", "c1").publish("c/c1/x").allowed
    assert not rights(text, "roger", "c1").publish("c/c2/x").allowed


def test_patterns_with_a_user_name_are_nothing_to_clients_without_one() -> None:
    mine = rights("pattern read u/%u\npattern read c/%c\n", None, "c1")
    assert not mine.receive("u/").allowed
    assert mine.receive("c/c1").allowed


def test_members_have_the_rules_of_their_groups() -> None:
    text = "group g\nmember a\nmember b\ntopic g/#\nuser a\ntopic deny g/x\nuser b\ntopic y\n"
    assert line(rights(text, "a").publish("g/y")) == (True, 4)
    assert line(rights(text, "a").publish("g/x")) == (False, 6)
    assert line(rights(text, "b").publish("g/x")) == (True, 4)
    assert line(rights(text, "b").publish("y")) == (True, 8)
    assert not rights(text, "c").publish("g/x").allowed
    assert not rights(text, "g").publish("g/x").allowed  # a group is no user
    assert not rights(text).publish("g/x").allowed


def test_a_deny_of_a_group_wins_over_the_users_own_rules() -> None:
    text = "user a\ntopic x\ngroup g\nmember a\ntopic deny x\n"
    assert line(rights(text, "a").publish("x")) == (False, 5)


def test_topics_with_a_dollar_need_a_rule_with_one() -> None:
    mine = rights("topic #\ntopic +/broker/#")
    assert not mine.receive("$SYS/broker/uptime").allowed
    assert rights("topic read $SYS/#").receive("$SYS/broker/uptime").allowed
    assert not rights("topic read $SYS/#").subscribe("#").allowed


def test_a_refusal_without_a_rule_says_whose() -> None:
    assert rights("", "eve\n").publish("a") == Ruling(
        False, None, "no rule lets user 'eve\\n' write it"
    )
    assert "client without a user name read" in rights("").receive("a").reason


@pytest.mark.parametrize(
    ("rules", "wanted", "answer"),
    [
        ("topic read a/#", "a/#", (True, 1, False)),
        ("topic read a/#", "a/+/b", (True, 1, False)),
        ("topic read a/#", "a", (True, 1, False)),
        ("topic read a/#", "#", (True, 1, True)),
        ("topic read a/b\ntopic read a/#", "a/+", (True, 2, False)),
        ("topic write a/#", "a/#", (False, None, False)),
        ("topic read a/#", "b/#", (False, None, False)),
        ("topic read a/#\ntopic deny a/b", "a/#", (True, 1, True)),
        ("topic read a/#\ntopic deny a/b", "a/b", (False, 2, False)),
        ("topic read a/#\ntopic deny a/b/#", "a/b/+", (False, 2, False)),
        ("topic read a/#\ntopic deny a/b/#", "a/c/+", (True, 1, False)),
        ("topic read a/#\ntopic deny a/#", "#", (False, 2, False)),
        ("topic deny #\ntopic read a/#", "a/#", (False, 1, False)),
        ("topic deny #\ntopic read $SYS/#", "$SYS/#", (True, 2, False)),
        ("pattern read a/%c\ntopic deny a/c", "a/+", (False, 2, False)),
        ("pattern read a/%c\npattern read a/d", "a/+", (True, 1, True)),
    ],
)
def test_a_subscription_is_granted_if_something_can_come_through_it(
    rules: str, wanted: str, answer: tuple[bool, int | None, bool]
) -> None:
    ruling = rights(rules).subscribe(wanted)
    assert (*line(ruling), ruling.partial) == answer


WORDS = ("a", "c", "$s")
TOPICS = ["/".join(levels) for n in (1, 2, 3) for levels in product(WORDS, repeat=n)]
FILTERS = [
    *("#", "+", "a", "c", "$s", "a/#", "+/a", "+/#", "a/+", "a/c", "$s/#", "$s/a"),
    *("a/a/#", "+/+/a", "a/+/c", "c/#"),
]
RULES = st.lists(
    st.tuples(
        st.sampled_from(("topic", "pattern")),
        st.sampled_from(("read", "write", "readwrite", "deny")),
        st.sampled_from(FILTERS),
    ),
    max_size=6,
)


def by_the_book(rules: list[tuple[str, str, str]], topic: str, access: str) -> bool:
    """The text of the manual, one rule after the other."""
    for kind in ("topic", "pattern"):
        mine = [rule for rule in rules if rule[0] == kind]
        for _, granted, topic_filter in sorted(mine, key=lambda rule: rule[1] != "deny"):
            if matches(topic_filter, topic):
                if granted == "deny":
                    return False
                if granted in (access, "readwrite"):
                    return True
    return False


@given(RULES, st.sampled_from(TOPICS))
def test_every_topic_is_decided_by_the_book(rules: list[tuple[str, str, str]], topic: str) -> None:
    mine = rights("\n".join(" ".join(rule) for rule in rules))
    assert mine.publish(topic).allowed == by_the_book(rules, topic, "write")
    assert mine.receive(topic).allowed == by_the_book(rules, topic, "read")


@given(RULES, st.sampled_from(FILTERS))
def test_a_subscription_is_refused_only_if_nothing_can_come_through_it(
    rules: list[tuple[str, str, str]], wanted: str
) -> None:
    ruling = rights("\n".join(" ".join(rule) for rule in rules)).subscribe(wanted)
    under = [topic for topic in TOPICS if matches(wanted, topic)]
    readable = [topic for topic in under if by_the_book(rules, topic, "read")]
    if readable:
        assert ruling.allowed
    if ruling.allowed and not ruling.partial:
        assert readable == under
