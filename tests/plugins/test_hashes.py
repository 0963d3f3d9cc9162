"""Password hashes: every format with vectors that others have made, and what is refused."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins import _hashes
from mqttd_plugins._hashes import BadHash, make, parse
from mqttd_plugins._sha512_crypt import sha512_crypt

# All of the password "password".
MOSQUITTO = {
    "$6$ of 1.6": "$6$vZY4TS+/HBxHw38S$vvjVFECzb8dyuu/mruD2QKTfdFn0WmKxbc+1TsdB0L8EdHk3v9JRmfj"
    "Hd56+VaTnUcSZOZ/hzkdvWCtxlX7AUQ==",
    "$6$": "$6$AAECAwQFBgcICQoL$b4be9ENqb54sNj+csQTvm3qRtt6r5BJ4pdELhfw3543YRDKXy8YjBxqSsJubpfDSN"
    "aXeWIFnCuo6UMHsY83J5w==",
    "$7$ of 2.0": "$7$101$AAECAwQFBgcICQoL$DEO14ViPofBJRJpN8uZINnuFUWj8eUeWhlyZ2QOQ+5LgiM0kGXMwv2H"
    "whIvlBQTsHkd+uve2/GFOr/KZ8Y/8Hw==",
    "$7$ of 2.1": "$7$1000$h0tqVxBwkB9rKAXukTtffzdbBQtNy1q5FBTDwSW4hucfjpqunBbxW10NVnRk7Cfh0lQndnO"
    "v2+k4wJavgz1JNw==$02ujkUXlKkJGFzlQHNjUgXwG3XRB1mr3vs8NX5teGCJGbN4hdgSpHNHuj47j8r5SHXsO7GeHpmkp"
    "PNhLraVVcQ==",
}
ARGON2 = (
    # From the reference implementation's test.c: version 0x13, t=2, m=2^16 KiB, p=1, "somesalt".
    "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
)
# Ulrich Drepper's vectors: "Unix crypt using SHA-256 and SHA-512".
DREPPER = [
    (
        b"Hello world!",
        "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFC"
        "oEOfaS35inz1",
    ),
    (
        b"Hello world!",
        "$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vO"
        "uZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
    ),
    (
        b"This is just a test",
        "$6$rounds=5000$toolongsaltstrin$lQ8jolhgVRVhY4b5pZKaysCLi0QBxGoNeKQzQ3glMhwllF7oGDZxUhx1yx"
        "dYcz/e1JSbq3y6JMxxl8audkUEm0",
    ),
    (
        b"a short string",
        "$6$rounds=123456$asaltof16chars..$BtCwjqMJGx5hrJhZywWvt0RLE8uZ4oPwcelCjmw2kSYu.Ec6ycULevoB"
        "K25fs2xXgMNrCzIMVcgEJAstJeonj1",
    ),
    (
        b"the minimum number is still observed",
        "$6$rounds=10$roundstoolow$kUMsbe306n21p9R.FRkW3IGn.S9NPN0x50YhH1xhLsPuWGsUSklZt58jaTfF4ZEQp"
        "yUNGc0dqbpBYYBaHHrsX.",
    ),
]


@pytest.mark.parametrize("text", MOSQUITTO.values(), ids=list(MOSQUITTO))
def test_mosquittos_hashes(text: str) -> None:
    stored = parse(text)
    assert stored.verify(b"password")
    assert not stored.verify(b"Password")
    assert not stored.verify(b"")


def test_the_reference_implementations_argon2id() -> None:
    assert parse(ARGON2).verify(b"password")
    assert not parse(ARGON2).verify(b"passwore")


@pytest.mark.parametrize(("password", "text"), DREPPER, ids=range(len(DREPPER)))
def test_crypts_hashes(password: bytes, text: str) -> None:
    stored = parse(text)
    assert stored.scheme == _hashes.SHA512_CRYPT
    assert stored.verify(password)
    assert not stored.verify(password + b"!")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 has no crypt any more")
@given(
    st.binary(max_size=200).map(lambda data: data.replace(b"\0", b"x")),
    st.text("abcXYZ019./", min_size=1, max_size=16),
    st.integers(1000, 1100),
)
def test_crypt_is_that_of_the_c_library(password: bytes, salt: str, rounds: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import crypt

        try:
            text = password.decode()
        except UnicodeDecodeError:
            text = password.decode("latin-1")
        expected = crypt.crypt(text, f"$6$rounds={rounds}${salt}")
    made = sha512_crypt(text.encode(), salt.encode(), rounds)
    assert expected.rpartition("$")[2] == made.decode()


@pytest.mark.parametrize("scheme", _hashes.WRITABLE)
def test_what_is_made_can_be_verified(scheme: str) -> None:
    text = make("pässword".encode(), scheme, iterations=1000)
    assert text != make("pässword".encode(), scheme, iterations=1000)  # a salt of its own
    assert parse(text).scheme == scheme
    assert parse(text).verify("pässword".encode())
    assert not parse(text).verify(b"password")


@pytest.mark.parametrize("password", [b"", b"x" * 1025])
def test_no_hash_is_made_of_nothing_or_too_much(password: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 1024 bytes"):
        make(password)


def test_a_password_that_is_too_long_is_wrong_and_costs_no_more() -> None:
    longest = b"x" * _hashes.LONGEST_PASSWORD
    stored = parse(make(longest, _hashes.PBKDF2, iterations=1))
    assert stored.verify(longest)
    assert not stored.verify(longest + b"x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("secret", "mqttd passwd -U"),
        ("", "not a password hash"),
        ("$2b$12$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzabcdef", "unknown kind"),
        ("$argon2i$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8", "argon2id"),
        ("$argon2id$v=18$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8", "version"),
        ("$argon2id$v=19$m=99999999,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8", "cost"),
        ("$argon2id$v=19$m=65536,t=0,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8", "cost"),
        ("$argon2id$v=19$m=65536,t=2,p=0$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8", "cost"),
        ("$argon2id$v=19$m=65536,t=2,p=1$c29t$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8", "salt"),
        ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFh", "cut off"),
        ("$7$101$AAEC", "expected \\$7\\$ITERATIONS"),
        ("$7$0$AAECAwQF$AAECAwQFAAECAwQFAAECAwQF", "iterations"),
        ("$7$99999999$AAECAwQF$AAECAwQFAAECAwQFAAECAwQF", "iterations"),
        ("$7$101$AAECAwQF$AAECAw==", "cut off"),
        ("$7$101$AAE=CAwQF$AAECAwQFAAECAwQFAAECAwQF", "base64"),
        ("$6$AAECAwQFBgcICQoL$b4be9ENqb54sNj", "88 characters"),
        ("$6$rounds=99999999$abc$" + "a" * 86, "rounds"),
    ],
)
def test_what_is_refused_and_why(text: str, problem: str) -> None:
    with pytest.raises(BadHash, match=problem) as caught:
        parse(text)
    assert not text or text not in str(caught.value)


@given(st.text(max_size=80), st.sampled_from(("", *_hashes.PREFIXES)))
def test_any_text_is_a_hash_or_refused(text: str, prefix: str) -> None:
    try:
        stored = parse(prefix + text)
    except BadHash:
        return
    assert stored.salt is not None


def test_nothing_shows_what_is_secret() -> None:
    shown = repr(parse(ARGON2))
    assert "CTFh" not in shown
    assert "c29t" not in shown
    assert "somesalt" not in shown


def test_without_argon2_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(RuntimeError, match="pip install argon2-cffi"):
        parse(ARGON2).verify(b"password")
    assert parse(MOSQUITTO["$7$ of 2.0"]).verify(b"password")


def test_argon2_is_imported_only_when_it_is_needed() -> None:
    code = (
        "import sys, mqttd_plugins._hashes as h\n"
        f"assert h.parse({MOSQUITTO['$6$']!r}).verify(b'password')\n"
        "assert 'argon2' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
