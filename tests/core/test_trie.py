"""The subscription trie, held to the plain definition of matching."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.topics import matches, split_shared
from mqttd.core.trie import (
    MEMO_KEY_BYTES,
    Matched,
    SharedGroup,
    Subscriber,
    Subscription,
    Target,
    Trie,
)


def subscribe(
    trie: Trie,
    subscriber: Subscriber,
    topic_filter: str,
    qos: int = 0,
    no_local: bool = False,
    retain_as_published: bool = False,
    identifier: int = 0,
) -> Subscription:
    subscription = Subscription(
        subscriber, topic_filter, qos, no_local, retain_as_published, 0, identifier
    )
    group, inner = split_shared(topic_filter)
    trie.insert(subscription, group, inner)
    return subscription


def unsubscribe(trie: Trie, subscriber: Subscriber, topic_filter: str) -> Subscription | None:
    group, inner = split_shared(topic_filter)
    return trie.remove(subscriber, group, inner)


def readers(matched: Matched) -> list[str]:
    return sorted(target.subscriber.client_id for target in matched.targets)


def the_target(matched: Matched) -> Target:
    assert len(matched.targets) == 1
    return matched.targets[0]


def the_group(matched: Matched) -> SharedGroup:
    assert len(matched.groups) == 1
    return matched.groups[0]


FILTERS = [
    "#",
    "+",
    "/",
    "/#",
    "/+",
    "+/",
    "+/+",
    "+/#",
    "+/+/#",
    "a",
    "a/",
    "a/#",
    "a/+",
    "a/b",
    "a//b",
    "a/+/b",
    "a/b/#",
    "a/$x",
    "$x",
    "$x/#",
    "$x/+",
    "$x/a",
    "$SYS/#",
]
TOPICS = [
    "/",
    "//",
    "a",
    "A",
    "b",
    " ",
    "/a",
    "a/",
    "a/b",
    "a//b",
    "a/b/",
    "a/b/c/d/e",
    "a/$x",
    "$x",
    "$x/",
    "$x/a",
    "$x/a/b",
    "$SYS",
    "$SYS/broker",
    "$",
    "caf\u00e9",
    "cafe\u0301",
]


@pytest.mark.parametrize("topic", TOPICS)
def test_each_filter_matches_as_defined(topic: str) -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.2-1] [MQTT-4.7.3-4]
    trie = Trie()
    for topic_filter in FILTERS:
        subscribe(trie, Subscriber(topic_filter), topic_filter)
    expected = sorted(topic_filter for topic_filter in FILTERS if matches(topic_filter, topic))
    assert readers(trie.match(topic)) == expected
    assert readers(trie.lookup(topic.encode())) == expected


def test_nothing_matches_in_an_empty_trie() -> None:
    matched = Trie().match("a/b")
    assert matched.topic == "a/b"
    assert matched.key == b"a/b"
    assert matched.targets == []
    assert matched.groups == []


def test_hash_takes_the_topics_below_and_the_parent() -> None:
    trie = Trie()
    subscribe(trie, Subscriber("all"), "a/b/#")
    assert [topic for topic in ("a", "a/b", "a/b/", "a/b/c/d") if trie.match(topic).targets] == [
        "a/b",
        "a/b/",
        "a/b/c/d",
    ]


def test_names_that_python_or_the_trie_might_take_for_something_else() -> None:
    trie = Trie()
    names = ["__class__", "None", "{0}", "%s", "hash", "plus", "children", "\n", "\u2028"]
    for name in names:
        subscribe(trie, Subscriber(name), name)
    for name in names:
        assert readers(trie.lookup(name.encode())) == [name]


def test_overlapping_subscriptions_become_one_target() -> None:
    # [MQTT-3.3.4-2] one copy at the highest QoS, [MQTT-3.3.4-4] with all the identifiers
    trie = Trie()
    ann = Subscriber("ann")
    third = subscribe(trie, ann, "#", qos=0, identifier=30)
    first = subscribe(trie, ann, "a/+", qos=2, identifier=7, retain_as_published=True)
    subscribe(trie, ann, "c/d", qos=2, identifier=99)
    none = subscribe(trie, ann, "a/#", qos=1)
    second = subscribe(trie, ann, "a/b", qos=1, identifier=7)
    target = the_target(trie.match("a/b"))
    assert target.subscriber is ann
    assert target.qos == 2
    assert target.retain_as_published
    # In the order of subscribing; equal identifiers of different filters stay both.
    assert target.subscriptions == [third, first, none, second]
    assert target.identifiers == [30, 7, 7]
    # [MQTT-3.3.4-3] the same as properties of a PUBLISH
    assert target.identifier_block == b"\x0b\x1e\x0b\x07\x0b\x07"


@pytest.mark.parametrize(
    ("flags", "every", "mixed"),
    [
        ([False], False, False),
        ([True], True, False),
        ([True, True], True, False),
        ([False, False], False, False),
        ([True, False], False, True),
        ([False, True, True], False, True),
    ],
)
def test_no_local_of_a_merged_target(flags: list[bool], every: bool, mixed: bool) -> None:
    # [MQTT-3.8.3-3]
    trie = Trie()
    ann = Subscriber("ann")
    for topic_filter, flag in zip(["a/b", "a/#", "#"], flags, strict=False):
        subscribe(trie, ann, topic_filter, no_local=flag)
    target = the_target(trie.match("a/b"))
    assert target.no_local is every
    assert target.mixed_no_local is mixed


def test_overlaps_of_some_leave_the_others_alone() -> None:
    trie = Trie()
    ann, bob, cid = Subscriber("ann"), Subscriber("bob"), Subscriber("cid")
    for topic_filter in ("a/#", "a/b", "+/b"):
        subscribe(trie, ann, topic_filter)
    subscribe(trie, bob, "a/b", qos=1)
    subscribe(trie, cid, "+/b", qos=2)
    targets = {target.subscriber.client_id: target for target in trie.match("a/b").targets}
    assert {name: len(target.subscriptions) for name, target in targets.items()} == {
        "ann": 3,
        "bob": 1,
        "cid": 1,
    }
    assert (targets["bob"].qos, targets["cid"].qos) == (1, 2)


def test_a_lone_target_is_made_once_for_all_topics() -> None:
    trie = Trie()
    ann = Subscriber("ann")
    subscribe(trie, ann, "a/#")
    subscribe(trie, Subscriber("bob"), "a/#")
    subscribe(trie, Subscriber("cid"), "a/x")
    once, again = trie.match("a/b"), trie.match("a/x")
    assert set(once.targets) < set(again.targets)


def test_a_hundred_thousand_overlapping_filters_are_one_target() -> None:
    # A topic of 18 levels is matched by every filter of its levels and "+": 2 ** 17 with the
    # first level given. All belong to one client.
    trie = Trie()
    ann = Subscriber("ann")
    filters = ["a"]
    for _ in range(17):
        filters = [below for above in filters for below in (above + "/a", above + "/+")]
    for number, topic_filter in enumerate(filters, 1):
        subscribe(trie, ann, topic_filter, identifier=number)
    matched = trie.match("/".join(["a"] * 18))
    target = the_target(matched)
    assert len(target.subscriptions) == len(filters) == 131072
    assert target.identifiers == list(range(1, len(filters) + 1))
    assert target.identifier_block.endswith(b"\x0b\xff\xff\x07\x0b\x80\x80\x08")
    assert matched.weight > len(filters)
    assert trie.visited <= trie.node_count + 1


def test_an_equal_filter_replaces() -> None:
    # [MQTT-3.8.4-3]
    trie = Trie()
    ann, bob = Subscriber("ann"), Subscriber("bob")
    old = subscribe(trie, ann, "a/+", qos=0)
    new = Subscription(ann, "a/+", 1)
    assert trie.insert(new, "", "a/+") is old
    assert the_target(trie.match("a/b")).subscriptions == [new]
    # The same where several subscribers share the node.
    other = subscribe(trie, bob, "a/+")
    newest = Subscription(ann, "a/+", 2)
    assert trie.insert(newest, "", "a/+") is new
    assert [target.subscriptions for target in trie.match("a/b").targets] == [[newest], [other]]
    assert trie.node_count == 2


def test_a_replaced_subscription_goes_to_the_end_of_the_order() -> None:
    trie = Trie()
    ann = Subscriber("ann")
    subscribe(trie, ann, "a", identifier=1)
    subscribe(trie, ann, "+", identifier=2)
    subscribe(trie, ann, "a", identifier=3)
    assert the_target(trie.match("a")).identifiers == [2, 3]


def test_equal_client_ids_are_different_subscribers() -> None:
    trie = Trie()
    one, two = Subscriber("same"), Subscriber("same")
    subscribe(trie, one, "a")
    subscribe(trie, two, "a")
    assert len(trie.match("a").targets) == 2
    assert unsubscribe(trie, one, "a") is not None
    assert the_target(trie.match("a")).subscriber is two


def test_remove_takes_the_exact_filter_only() -> None:
    # [MQTT-3.10.4-1]
    trie = Trie()
    ann = Subscriber("ann")
    for topic_filter in ("a/+", "a/b/#", "a/c"):
        subscribe(trie, ann, topic_filter)
    before = trie.generation
    for topic_filter in ("a/b", "a", "a/#", "a/b/+", "a/c/d", "+/b", "#", "$x", "A/c"):
        assert unsubscribe(trie, ann, topic_filter) is None
    assert trie.generation == before
    gone = unsubscribe(trie, ann, "a/+")
    assert gone is not None
    assert gone.topic_filter == "a/+"
    assert unsubscribe(trie, ann, "a/+") is None


def test_remove_leaves_other_subscribers_of_the_filter() -> None:
    trie = Trie()
    people = [Subscriber(name) for name in ("ann", "bob", "cid")]
    stranger = Subscriber("stranger")
    for person in people:
        subscribe(trie, person, "a")
    assert unsubscribe(trie, stranger, "a") is None
    for left in (["ann", "bob", "cid"], ["bob", "cid"], ["cid"]):
        assert readers(trie.match("a")) == left
        assert unsubscribe(trie, people[3 - len(left)], "a") is not None
    assert unsubscribe(trie, people[0], "a") is None
    assert trie.node_count == 0


def test_remove_from_a_node_with_one_other() -> None:
    trie = Trie()
    subscribe(trie, Subscriber("ann"), "a")
    assert unsubscribe(trie, Subscriber("bob"), "a") is None
    assert readers(trie.match("a")) == ["ann"]


@pytest.mark.parametrize("topic_filter", [*FILTERS, "$share/g/a/+", "$share/g/#", "$share/g//"])
def test_the_last_removal_prunes_everything(topic_filter: str) -> None:
    trie = Trie()
    ann = Subscriber("ann")
    subscribe(trie, ann, topic_filter)
    assert trie.node_count == split_shared(topic_filter)[1].count("/") + 1
    assert unsubscribe(trie, ann, topic_filter) is not None
    assert trie.node_count == 0


def test_pruning_stops_where_something_lives() -> None:
    trie = Trie()
    ann = Subscriber("ann")
    for topic_filter in ("a/b/c/d", "a/b", "a/b/x", "a/b/+/d", "a/b/#"):
        subscribe(trie, ann, topic_filter)
    assert trie.node_count == 8
    counts = []
    for topic_filter in ("a/b/c/d", "a/b/#", "a/b/x", "a/b/+/d", "a/b"):
        unsubscribe(trie, ann, topic_filter)
        counts.append(trie.node_count)
    assert counts == [6, 5, 4, 2, 0]


def test_a_removed_subscriber_is_let_go_at_once() -> None:
    # The memo and the lone target hold it no longer, and no collector has to be waited for.
    trie = Trie()
    ann = Subscriber("ann")
    subscribe(trie, ann, "a/#")
    subscribe(trie, ann, "a/+")
    old = subscribe(trie, ann, "b")
    trie.lookup(b"a/b")
    trie.lookup(b"b")
    trie.match("a")
    gc.disable()
    try:
        subscribe(trie, ann, "b")
        assert old.lone is None
        for topic_filter in ("a/#", "a/+", "b"):
            gone = unsubscribe(trie, ann, topic_filter)
            assert gone is not None
            assert gone.lone is None
        assert not any(isinstance(one, Matched) for one in gc.get_referrers(ann))
    finally:
        gc.enable()


def test_a_group_appears_as_itself() -> None:
    # [MQTT-4.8.2-1]
    trie = Trie()
    ann, bob, cid = Subscriber("ann"), Subscriber("bob"), Subscriber("cid")
    one = subscribe(trie, ann, "$share/g/a/#", qos=1)
    two = subscribe(trie, bob, "$share/g/a/#", qos=2)
    subscribe(trie, cid, "a/+")
    subscribe(trie, ann, "a/b")
    matched = trie.match("a/b")
    assert readers(matched) == ["ann", "cid"]
    group = the_group(matched)
    assert (group.name, group.topic_filter) == ("g", "a/#")
    assert group.members == [one, two]
    assert (group.cursor, group.queue) == (0, None)
    assert one.group is group
    assert two.group is group
    assert matched.weight == 1 + 2 + 1


def test_groups_differ_by_name_and_by_filter() -> None:
    trie = Trie()
    ann = Subscriber("ann")
    for topic_filter in ("$share/g/a/b", "$share/h/a/b", "$share/g/a/+", "$share/G/a/b"):
        subscribe(trie, ann, topic_filter)
    found = {(group.name, group.topic_filter) for group in trie.match("a/b").groups}
    assert found == {("g", "a/b"), ("h", "a/b"), ("g", "a/+"), ("G", "a/b")}
    assert trie.match("a/b").targets == []


def test_leading_wildcards_of_a_group_do_not_reach_system_topics() -> None:
    # [MQTT-4.7.2-1]
    trie = Trie()
    subscribe(trie, Subscriber("ann"), "$share/g/#")
    subscribe(trie, Subscriber("bob"), "$share/h/$SYS/#")
    assert the_group(trie.match("$SYS/x")).name == "h"
    assert the_group(trie.match("x")).name == "g"


def test_a_member_replaces_itself_in_its_place() -> None:
    # [MQTT-3.8.4-3]
    trie = Trie()
    ann, bob = Subscriber("ann"), Subscriber("bob")
    old = subscribe(trie, ann, "$share/g/a")
    other = subscribe(trie, bob, "$share/g/a")
    new = Subscription(ann, "$share/g/a", 2)
    assert trie.insert(new, "g", "a") is old
    assert the_group(trie.match("a")).members == [new, other]


def test_the_last_member_takes_the_place_of_one_that_leaves() -> None:
    trie = Trie()
    people = [Subscriber(name) for name in "abcd"]
    for person in people:
        subscribe(trie, person, "$share/g/t")
    group = the_group(trie.match("t"))

    def names() -> str:
        return "".join(member.subscriber.client_id for member in group.members)

    assert names() == "abcd"
    seen = []
    for index in (1, 2, 3, 0):
        assert unsubscribe(trie, people[index], "$share/g/t") is not None
        assert unsubscribe(trie, people[index], "$share/g/t") is None
        seen.append(names())
    assert seen == ["adc", "ad", "a", ""]
    assert trie.node_count == 0


def test_an_empty_group_goes_and_its_neighbours_stay() -> None:
    trie = Trie()
    ann = Subscriber("ann")
    for topic_filter in ("t", "$share/g/t", "$share/h/t"):
        subscribe(trie, ann, topic_filter)
    assert unsubscribe(trie, ann, "$share/none/t") is None
    gone = unsubscribe(trie, ann, "$share/g/t")
    assert gone is not None
    # Whoever distributes finds the group, and what it left in its queue, at the subscription.
    assert gone.group is not None
    assert gone.group.members == []
    assert the_group(trie.match("t")).name == "h"
    assert unsubscribe(trie, ann, "$share/h/t") is not None
    assert unsubscribe(trie, ann, "$share/h/t") is None
    assert readers(trie.match("t")) == ["ann"]
    assert trie.node_count == 1
    assert unsubscribe(trie, ann, "t") is not None
    assert trie.node_count == 0


def test_a_topic_is_walked_once_a_generation() -> None:
    trie = Trie()
    ann, bob = Subscriber("ann"), Subscriber("bob")
    subscribe(trie, ann, "a")
    first = trie.lookup(b"a")
    assert first.generation == trie.generation
    assert trie.lookup(b"a") is first
    subscribe(trie, bob, "elsewhere")
    second = trie.lookup(b"a")
    assert second is not first
    assert second.generation == trie.generation > first.generation
    subscribe(trie, bob, "+")
    assert readers(trie.lookup(b"a")) == ["ann", "bob"]
    unsubscribe(trie, ann, "a")
    assert readers(trie.lookup(b"a")) == ["bob"]
    assert readers(first) == ["ann"]


def test_match_leaves_the_memo_alone() -> None:
    trie = Trie()
    assert trie.match("a") is not trie.match("a")
    assert trie.lookup(b"a") is not trie.match("a")


def test_long_topics_are_not_remembered() -> None:
    trie = Trie()
    longest = b"a" * MEMO_KEY_BYTES
    assert trie.lookup(longest) is trie.lookup(longest)
    assert trie.lookup(longest + b"a") is not trie.lookup(longest + b"a")


def living_matches() -> int:
    gc.collect()
    return sum(isinstance(one, Matched) for one in gc.get_objects())


def test_the_memo_is_bounded_and_keeps_what_is_asked_for() -> None:
    before = living_matches()
    trie = Trie(memo_entries=10)
    hot = trie.lookup(b"hot")
    cold = trie.lookup(b"cold")
    for number in range(1000):
        trie.lookup(b"once/%d" % number)
        if number % 5 == 0:
            assert trie.lookup(b"hot") is hot
    assert trie.lookup(b"cold") is not cold
    assert living_matches() - before <= 2 * 10 + 1


def test_the_memo_is_bounded_by_what_it_holds_as_well() -> None:
    trie = Trie(memo_weight=100)
    for number in range(60):
        subscribe(trie, Subscriber(str(number)), "#")
    one, two, three = trie.lookup(b"1"), trie.lookup(b"2"), trie.lookup(b"3")
    assert one.weight == 61
    # Two fill a half: the third made them the old half, from which one comes back.
    assert trie.lookup(b"2") is two
    # The next starts a new half again, and what nobody asked for is forgotten.
    trie.lookup(b"4")
    assert trie.lookup(b"3") is three
    assert trie.lookup(b"1") is not one


@pytest.mark.parametrize(
    ("key", "code", "clause"),
    [
        (b"", spec.TOPIC_NAME_INVALID, "MQTT-4.7.3-1"),
        (b"a/#", spec.TOPIC_NAME_INVALID, "MQTT-4.7.0-1"),
        (b"+/a", spec.TOPIC_NAME_INVALID, "MQTT-4.7.0-1"),
        (b"/" * 200, spec.TOPIC_NAME_INVALID, ""),
        (b"/" * 65535, spec.TOPIC_NAME_INVALID, ""),
        (b"a\0b", spec.MALFORMED_PACKET, "MQTT-1.5.4-2"),
        (b"a\xffb", spec.MALFORMED_PACKET, "MQTT-1.5.4-1"),
        (b"a\xed\xa0\x80", spec.MALFORMED_PACKET, "MQTT-1.5.4-1"),
        (b"\xc0\x80", spec.MALFORMED_PACKET, "MQTT-1.5.4-1"),
    ],
)
def test_lookup_refuses_what_is_no_topic_name(key: bytes, code: int, clause: str) -> None:
    # [MQTT-3.3.2-2] [MQTT-4.7.0-1] [MQTT-4.7.3-1] [MQTT-1.5.4-1] [MQTT-1.5.4-2]
    trie = Trie()
    subscribe(trie, Subscriber("ann"), "#")
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            trie.lookup(key)
        assert (caught.value.code, caught.value.clause) == (code, clause)


def test_lookup_keeps_a_leading_feff() -> None:
    # [MQTT-1.5.4-3]
    assert Trie().lookup(b"\xef\xbb\xbfa").topic == "\ufeffa"


def test_the_bound_of_levels_can_be_chosen() -> None:
    trie = Trie(max_levels=2)
    trie.lookup(b"a/b")
    with pytest.raises(ProtocolError, match="too many levels"):
        trie.lookup(b"a/b/c")


@pytest.mark.parametrize("level", ["", "+", "a"])
def test_depth_costs_no_stack_and_linear_work(level: str) -> None:
    depth = 30_000
    trie = Trie()
    ann = Subscriber("ann")
    topic_filter = "/".join([level] * depth)
    subscribe(trie, ann, topic_filter)
    assert trie.node_count == depth
    topic = "/".join([level.replace("+", "x")] * depth)
    for probe, found in ((topic, 1), (topic + "/x", 0), (topic + "/" + topic, 0)):
        assert len(trie.match(probe).targets) == found
        assert trie.visited == depth + 1
    assert unsubscribe(trie, ann, topic_filter) is not None
    assert trie.node_count == 0


def test_a_deep_trie_can_be_let_go() -> None:
    trie = Trie()
    subscribe(trie, Subscriber("ann"), "a/" * 30_000)
    del trie
    gc.collect()


def test_a_walk_visits_only_what_can_match() -> None:
    trie = Trie()
    for number in range(1000):
        subscribe(trie, Subscriber(str(number)), f"site/{number}/+/temperature")
        subscribe(trie, Subscriber(str(number)), f"{number}/#")
    trie.match("site/7/oven/temperature")
    # The root, and one node for each of the four levels.
    assert trie.visited == 5
    trie.match("nothing/of/the/kind")
    assert trie.visited == 1


def test_many_plus_filters_cost_no_more_than_their_nodes() -> None:
    trie = Trie()
    depth = 150
    for length in range(1, depth + 1):
        subscribe(trie, Subscriber(str(length)), "/".join(["+"] * length))
        subscribe(trie, Subscriber(str(length)), "/".join(["+"] * length) + "/b")
    trie.match("/".join(["a"] * depth))
    assert trie.visited == depth + 1
    trie.match("/".join(["b"] * depth))
    assert trie.visited <= trie.node_count + 1


levels = st.sampled_from(["", "a", "b", "$a"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
inner_filters = (
    st.tuples(st.lists(st.one_of(levels, st.just("+")), max_size=4), st.booleans())
    .map(lambda parts: "/".join([*parts[0], "#"] if parts[1] else parts[0]))
    .filter(bool)
)
commands = st.tuples(
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from(["", "", "g", "h"]),
    inner_filters,
    st.integers(0, 2),
)


@given(st.lists(commands, max_size=40), st.lists(topics, min_size=1, max_size=4))
def test_any_history_matches_as_defined(
    history: list[tuple[bool, int, str, str, int]], probes: list[str]
) -> None:
    trie = Trie()
    people = [Subscriber(str(number)) for number in range(3)]
    held: dict[tuple[int, str, str], Subscription] = {}
    order: list[Subscription] = []
    for adding, who, group, inner, qos in history:
        key = (who, group, inner)
        before = held.pop(key, None)
        if before is not None:
            order.remove(before)
        if adding:
            subscription = Subscription(people[who], inner, qos, identifier=len(order) + 1)
            assert trie.insert(subscription, group, inner) is before
            held[key] = subscription
            order.append(subscription)
        else:
            assert trie.remove(people[who], group, inner) is before
        for topic in probes:
            check(trie.lookup(topic.encode()), topic, order, held)
    prefixes = {
        (inner.startswith("$"), "/".join(inner.split("/")[: length + 1]), length)
        for _, _, inner in held
        for length in range(inner.count("/") + 1)
    }
    assert trie.node_count == len(prefixes)
    for who, group, inner in held:
        trie.remove(people[who], group, inner)
    assert trie.node_count == 0


def check(
    matched: Matched,
    topic: str,
    order: list[Subscription],
    held: dict[tuple[int, str, str], Subscription],
) -> None:
    plain: dict[Subscriber, list[Subscription]] = {}
    shared: dict[tuple[str, str], set[Subscription]] = {}
    names = {subscription: key for key, subscription in held.items()}
    for subscription in order:
        _, group, inner = names[subscription]
        if not matches(inner, topic):
            continue
        if group:
            shared.setdefault((group, inner), set()).add(subscription)
        else:
            plain.setdefault(subscription.subscriber, []).append(subscription)
    assert {target.subscriber: target.subscriptions for target in matched.targets} == plain
    assert len(matched.targets) == len(plain)
    for target in matched.targets:
        several = plain[target.subscriber]
        assert target.qos == max(one.qos for one in several)
        assert target.identifiers == [one.identifier for one in several]
    assert {
        (group.name, group.topic_filter): set(group.members) for group in matched.groups
    } == shared
    assert len(matched.groups) == len(shared)
