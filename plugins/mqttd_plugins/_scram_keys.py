"""The keys of a SCRAM-SHA-256 user: made of a password, written to a file, read again.

Owns: SaltedPassword, StoredKey and ServerKey of RFC 5802 with SHA-256 (RFC 7677), SASLprep (RFC
4013) for user names and passwords, and the text form `SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER`,
which is PostgreSQL's.

Must not know: the exchange of messages, files, MQTT.

Invariant: the password can't be read out of the keys. Who steals them can try passwords against
them, and can pretend to be the server, but can't log in with them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass, field
from typing import Final

ITERATIONS: Final = 15_000
FEWEST_ITERATIONS: Final = 4096  # RFC 7677
MOST_ITERATIONS: Final = 10_000_000
LONGEST_NAME: Final = 256  # characters: preparing one is slow, and anybody may send one
SALT_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_TEXT: Final = re.compile(
    r"SCRAM-SHA-256\$(\d{1,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)"
)
_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


@dataclass(frozen=True, slots=True)
class Keys:
    """What a server keeps of one user."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @property
    def text(self) -> str:
        stored, server = _b64(self.stored_key), _b64(self.server_key)
        return f"SCRAM-SHA-256${self.iterations}:{_b64(self.salt)}${stored}:{server}"


def derive(password: str, salt: bytes, iterations: int) -> Keys:
    """The keys of a password. ValueError where SASLprep forbids it, or it is empty."""
    prepared = saslprep(password)
    if not prepared:
        raise ValueError("the password is empty")
    salted = hashlib.pbkdf2_hmac("sha256", prepared.encode("utf-8"), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return Keys(
        iterations,
        salt,
        hashlib.sha256(client_key).digest(),
        hmac.digest(salted, b"Server Key", "sha256"),
    )


def make(password: str, iterations: int = ITERATIONS) -> str:
    """The text form of a password's keys, with a new salt. ValueError as `derive`."""
    return derive(password, secrets.token_bytes(SALT_BYTES), iterations).text


def parse(text: str) -> Keys:
    """The keys of a text form. ValueError, which shows nothing of it, where it is none."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError("expected SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY, in base64")
    iterations = int(match[1])
    if not FEWEST_ITERATIONS <= iterations <= MOST_ITERATIONS:
        raise ValueError(f"expected {FEWEST_ITERATIONS} to {MOST_ITERATIONS} iterations")
    try:
        parts = [base64.b64decode(part, validate=True) for part in match.groups()[1:]]
    except binascii.Error:
        raise ValueError("salt and keys have to be base64") from None
    salt, stored, server = parts
    if not salt or len(stored) != _DIGEST_BYTES or len(server) != _DIGEST_BYTES:
        raise ValueError(f"expected a salt, and two keys of {_DIGEST_BYTES} bytes")
    return Keys(iterations, salt, stored, server)


def saslprep(text: str) -> str:
    """RFC 4013, as for a stored string. ValueError for characters that it forbids."""
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.normalize("NFKC", mapped)
    # Each once: NFKC makes eighteen of some characters, and anybody may send hundreds of them.
    characters = set(prepared)
    for character in characters:
        if stringprep.in_table_a1(character) or any(is_in(character) for is_in in _PROHIBITED):
            raise ValueError("there is a character that SCRAM doesn't allow (SASLprep, RFC 4013)")
    if any(stringprep.in_table_d1(character) for character in characters):
        ends = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if not ends or any(stringprep.in_table_d2(character) for character in characters):
            raise ValueError("text of both directions is mixed (SASLprep, RFC 4013)")
    return prepared


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
