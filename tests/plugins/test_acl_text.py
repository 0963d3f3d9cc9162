"""The syntax of access control lists: what Mosquitto takes, groups, and what is refused where."""

from pathlib import Path

import pytest
from mqttd_plugins._acl_text import AclError, parse


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(AclError) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), "acl")
    return caught.value.problems


def access(text: str) -> tuple[str, str]:
    (rule,) = parse(text.encode(), "acl").anonymous
    return rule.access, "/".join(rule.levels)


def test_the_access_word_may_be_left_out() -> None:
    assert access("topic a/b") == ("readwrite", "a/b")
    assert access("topic read a/b") == ("read", "a/b")
    assert access("topic write a/b") == ("write", "a/b")
    assert access("topic readwrite a/b") == ("readwrite", "a/b")
    assert access("topic deny a/b") == ("deny", "a/b")


def test_a_single_word_is_the_topic_even_if_it_is_an_access_word() -> None:
    assert access("topic read") == ("readwrite", "read")
    assert access("topic read write") == ("read", "write")


def test_an_access_word_without_a_topic_is_told() -> None:
    acl = parse(b"topic deny", "acl")
    assert acl.warnings == ["acl:1: deny is the topic here: no filter stands behind it"]


def test_a_topic_with_spaces_needs_an_access_word() -> None:
    assert access("topic read  living room/lamp ") == ("read", "living room/lamp")
    assert problems("topic living room/lamp") == [
        "acl:1: found 'living', expected read, write, readwrite or deny before a topic that "
        "holds spaces"
    ]


def test_rules_belong_to_the_section_above_them() -> None:
    acl = parse(
        b"topic a\n"
        b"user roger of the rovers\r\n"
        b"topic b\n"
        b"\n"
        b"  # a comment\n"
        b"pattern write up/%c\n"
        b"group g\n"
        b"member roger of the rovers\n"
        b"topic c\n"
        b"user roger of the rovers\n"
        b"topic d\n",
        "acl",
    )
    assert [rule.text for rule in acl.anonymous] == ["topic a"]
    assert [rule.line for rule in acl.users["roger of the rovers"]] == [3, 11]
    assert [rule.text for rule in acl.groups["g"]] == ["topic c"]
    assert [rule.text for rule in acl.patterns] == ["pattern write up/%c"]
    assert acl.groups_of("roger of the rovers") == ["g"]
    assert acl.groups_of("roger") == []
    assert len(acl) == 5
    assert acl.warnings == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("allow a/b", "found 'allow', expected topic, pattern, user, group or member"),
        ("topic\tread a", "found 'topic\\tread', expected topic, pattern, user, group or member"),
        ("group: a b", "found 'group:', expected topic, pattern, user, group or member"),
        ("topic", "a rule without a topic, expected `topic [ACCESS] FILTER`"),
        ("user", "`user` without a name"),
        ("group", "`group` without a name"),
        ("member a", "`member` outside of a group, expected `group NAME` before it"),
        ("user a\x07", "a control character in the name 'a\\x07'"),
        ("topic a/#/b", "'a/#/b' is no topic filter: # has to stand alone in the last level"),
        ("topic read a+/b", "'a+/b' is no topic filter: + has to fill a whole level"),
        (
            "topic $share/g/a",
            "rules name the filter behind $share/GROUP/, which is what is checked",
        ),
        ("pattern deny a/x%c", "%c has to fill a whole level, as in a/%c/b"),
        ("pattern %u%u", "%u has to fill a whole level, as in a/%c/b"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: str, what: str) -> None:
    assert problems(f"# first\n{line}\n") == [f"acl:2: {what}"]


def test_every_problem_of_a_file_is_told() -> None:
    found = problems(b"user\ntopic a\nfoo\ntopic \xff\n")
    assert [line.partition(": ")[0] for line in found] == ["acl:1", "acl:3", "acl:4"]
    assert found[2] == "acl:4: bytes that aren't UTF-8"


def test_a_section_that_is_wrong_gives_its_rules_to_nobody() -> None:
    # A file is taken whole or not at all; the rule would be everybody's otherwise.
    assert problems("user\ntopic secret/#\n")


def test_a_member_is_one_of_the_group_above_it_and_no_user_section_reaches_into_it() -> None:
    assert problems("group g\nuser a\nmember b\n") == [
        "acl:3: `member` outside of a group, expected `group NAME` before it"
    ]


def test_what_has_no_effect_is_warned_of() -> None:
    acl = parse(b"topic a/%c\npattern a/b\ngroup g\ntopic x\n", "acl")
    assert acl.warnings == [
        "acl:1: %c and %u mean something in `pattern` lines alone",
        "acl:2: a pattern without %c and %u is the same rule for everybody",
        "acl:3: group 'g' has no members",
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert len(parse(b"\xef\xbb\xbftopic a\n", "acl")) == 1


def test_the_example_is_good(root: Path) -> None:
    acl = parse((root / "config/acl.example").read_bytes(), "acl.example")
    assert acl.warnings == []
    assert acl.groups_of("carol of the night shift") == ["operators"]
