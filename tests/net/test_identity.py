"""Who a certificate's subject says it is."""

import pytest

from mqttd.net.tls import CN, SUBJECT, IdentityError, name_of

Subject = tuple[tuple[tuple[str, str], ...], ...]


def rdn(*pairs: tuple[str, str]) -> Subject:
    return tuple((pair,) for pair in pairs)


def test_the_common_name() -> None:
    subject = rdn(("countryName", "AT"), ("organizationName", "Plant 5"), ("commonName", "pump-7"))
    assert name_of(subject, CN) == "pump-7"


def test_the_whole_subject_as_rfc_4514_writes_it() -> None:
    subject = rdn(("countryName", "AT"), ("organizationName", "Plant, 5"), ("commonName", "pump-7"))
    assert name_of(subject, SUBJECT) == "CN=pump-7,O=Plant\\, 5,C=AT"


def test_several_attributes_in_one_place() -> None:
    subject: Subject = ((("userId", "7"), ("commonName", "pump")),)
    assert name_of(subject, SUBJECT) == "UID=7+CN=pump"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a+b", "a\\+b"),
        (" a ", "\\ a\\ "),
        (" ", "\\ "),
        ("#a", "\\#a"),
        ('a"b\\c;<>', 'a\\"b\\\\c\\;\\<\\>'),
    ],
)
def test_what_could_be_read_as_syntax_is_escaped(value: str, written: str) -> None:
    assert name_of(rdn(("commonName", value)), SUBJECT) == f"CN={written}"


def test_an_attribute_without_a_short_name_keeps_its_own() -> None:
    assert name_of(rdn(("serialNumber", "12")), SUBJECT) == "serialNumber=12"


@pytest.mark.parametrize(
    "subject",
    [
        (),
        rdn(("organizationName", "Plant 5")),
        rdn(("commonName", "")),
        rdn(("commonName", "pump-7"), ("commonName", "admin")),
        rdn(("commonName", "admin\0.example.com")),
        rdn(("commonName", "a\nb")),
        rdn(("commonName", "a\x7fb")),
        rdn(("commonName", "a\u202eb")),
        rdn(("commonName", "a\ud800b")),
        rdn(("commonName", "a" * 65536)),
    ],
)
def test_a_name_that_could_be_mistaken_is_refused(subject: Subject) -> None:
    with pytest.raises(IdentityError):
        name_of(subject, CN)


def test_an_empty_subject_is_nobody() -> None:
    with pytest.raises(IdentityError):
        name_of((), SUBJECT)
