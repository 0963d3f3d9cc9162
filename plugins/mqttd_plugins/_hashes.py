"""Password hashes: reading one, checking a password against it, making a new one.

Owns: the formats. `$argon2id$…` (PHC; the default), Mosquitto's `$7$…` (PBKDF2-HMAC-SHA512) and
`$6$…` (SHA-512 once), and crypt(3)'s `$6$…`, which amqtt wrote. The two `$6$` are told apart by
their shape: Mosquitto's salt and digest are padded base64 (the digest 88 characters), crypt's
digest is 86 characters of its own alphabet. Verifying any of them takes Python's hashlib;
argon2-cffi is imported when the first argon2id hash is met.

Must not know: users, files, threads, the broker.

Invariants: `parse` takes only what can be verified, at a cost that one login may have, so a typing
error in a file shows when it is read and not when somebody logs in. Comparing takes constant
time. No error text and no `repr` holds any part of a hash or a password. A password is bytes, as
MQTT carries it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final

from mqttd_plugins._sha512_crypt import (
    DEFAULT_ROUNDS,
    FEWEST_ROUNDS,
    LONGEST_SALT,
    MOST_ROUNDS,
    sha512_crypt,
)

ARGON2ID: Final = "argon2id"
PBKDF2: Final = "sha512-pbkdf2"
SHA512: Final = "sha512"
SHA512_CRYPT: Final = "sha512-crypt"
WRITABLE: Final = (ARGON2ID, PBKDF2)
"""What `make` makes. The others are read only: they are too cheap to guess at."""

PREFIXES: Final = ("$argon2", "$7$", "$6$")

LONGEST_PASSWORD: Final = 1024
"""Bytes. No longer one is right, so that nobody makes the broker hash what he likes."""

# OWASP's choice for argon2id where memory and time of a login count: 19 MiB, two passes, one lane.
ARGON2_MEMORY_KIB: Final = 19456
ARGON2_PASSES: Final = 2
ARGON2_LANES: Final = 1
PBKDF2_ITERATIONS: Final = 210_000
_SALT_BYTES: Final = 16
_PBKDF2_SALT_BYTES: Final = 12  # Mosquitto 2.0 takes no other
_DIGEST_BYTES: Final = 32

_MOST_MEMORY_KIB: Final = 1 << 20
_MOST_PASSES: Final = 64
_MOST_LANES: Final = 64
_MOST_ITERATIONS: Final = 10_000_000
_SHORTEST_DIGEST: Final = 16
_LONGEST_PART: Final = 512

_ARGON2: Final = re.compile(
    r"\$argon2id\$(?:v=(\d{1,2})\$)?m=(\d{1,8}),t=(\d{1,4}),p=(\d{1,3})"
    r"\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)
_PBKDF2: Final = re.compile(r"\$7\$(\d{1,9})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")
_SHA512: Final = re.compile(r"\$6\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/]{86}==)")
_CRYPT: Final = re.compile(r"\$6\$(?:rounds=(\d{1,9})\$)?([^$:\s]*)\$([./0-9A-Za-z]{86})")


class BadHash(ValueError):
    """The text is no password hash that can be used; says why, and never shows the text."""


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """One hash. `cost` is what its scheme needs: (memory KiB, passes, lanes, version) or (n,)."""

    scheme: str
    cost: tuple[int, ...]
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def verify(self, password: bytes) -> bool:
        """Whether this is the password. Takes milliseconds of CPU: call it in a thread."""
        made = self._digest_of(password[:LONGEST_PASSWORD])
        return hmac.compare_digest(made, self.digest) and len(password) <= LONGEST_PASSWORD

    def _digest_of(self, password: bytes) -> bytes:
        if self.scheme == ARGON2ID:
            return _argon2id(password, self.salt, self.cost, len(self.digest))
        if self.scheme == PBKDF2:
            (iterations,) = self.cost
            return hashlib.pbkdf2_hmac("sha512", password, self.salt, iterations, len(self.digest))
        if self.scheme == SHA512:
            return hashlib.sha512(password + self.salt).digest()
        (rounds,) = self.cost
        return sha512_crypt(password, self.salt, rounds)


def parse(text: str) -> PasswordHash:
    """The hash that a password file or a database has. BadHash where it is none."""
    if text.startswith("$argon2"):
        return _parse_argon2(text)
    if text.startswith("$7$"):
        return _parse_pbkdf2(text)
    if text.startswith("$6$"):
        return _parse_six(text)
    if text.startswith("$"):
        raise BadHash(
            "a hash of an unknown kind: expected $argon2id$, $7$ or $6$ (set the password again "
            "with `mqttd passwd`)"
        )
    raise BadHash("not a password hash (if it is the password itself: `mqttd passwd -U FILE`)")


def _parse_argon2(text: str) -> PasswordHash:
    match = _ARGON2.fullmatch(text)
    if match is None:
        raise BadHash("expected $argon2id$v=19$m=MEMORY,t=PASSES,p=LANES$SALT$DIGEST, base64 bare")
    version, memory, passes, lanes = (int(number or 16) for number in match.groups()[:4])
    if version not in (16, 19):
        raise BadHash(f"argon2 version {version}: expected 19 (or 16)")
    if not (8 * lanes <= memory <= _MOST_MEMORY_KIB and 1 <= passes <= _MOST_PASSES):
        raise BadHash(
            f"argon2 cost: expected m from 8 times p to {_MOST_MEMORY_KIB}, "
            f"t from 1 to {_MOST_PASSES}"
        )
    if not 1 <= lanes <= _MOST_LANES:
        raise BadHash(f"argon2 cost: expected p from 1 to {_MOST_LANES}")
    salt, digest = _unpadded(match[5]), _unpadded(match[6])
    if len(salt) < 8:
        raise BadHash("argon2 salt: expected 8 bytes or more")
    return _checked(ARGON2ID, (memory, passes, lanes, version), salt, digest)


def _parse_pbkdf2(text: str) -> PasswordHash:
    match = _PBKDF2.fullmatch(text)
    if match is None:
        raise BadHash("expected $7$ITERATIONS$SALT$DIGEST, in padded base64")
    iterations = int(match[1])
    if not 1 <= iterations <= _MOST_ITERATIONS:
        raise BadHash(f"$7$: expected from 1 to {_MOST_ITERATIONS} iterations")
    return _checked(PBKDF2, (iterations,), _padded(match[2]), _padded(match[3]))


def _parse_six(text: str) -> PasswordHash:
    match = _SHA512.fullmatch(text)
    if match is not None:
        return _checked(SHA512, (), _padded(match[1]), _padded(match[2]))
    match = _CRYPT.fullmatch(text)
    if match is None:
        raise BadHash(
            "expected $6$SALT$DIGEST: a digest of 88 characters in base64 (Mosquitto) or of 86 "
            "(crypt, also with rounds=N)"
        )
    rounds = DEFAULT_ROUNDS if match[1] is None else int(match[1])
    if rounds > MOST_ROUNDS:
        raise BadHash(f"$6$: expected at most {MOST_ROUNDS} rounds")
    salt = match[2].encode()[:LONGEST_SALT]
    cost = (max(rounds, FEWEST_ROUNDS),)
    return PasswordHash(SHA512_CRYPT, cost, salt, match[3].encode())


def _checked(scheme: str, cost: tuple[int, ...], salt: bytes, digest: bytes) -> PasswordHash:
    if len(digest) < _SHORTEST_DIGEST:
        raise BadHash(f"{scheme}: the digest is cut off")
    if max(len(digest), len(salt)) > _LONGEST_PART:
        raise BadHash(f"{scheme}: expected salt and digest of at most {_LONGEST_PART} bytes")
    return PasswordHash(scheme, cost, salt, digest)


def _padded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadHash("salt and digest have to be base64") from None


def _unpadded(text: str) -> bytes:
    return _padded(text + "=" * (-len(text) % 4))


def make(password: bytes, scheme: str = ARGON2ID, iterations: int = PBKDF2_ITERATIONS) -> str:
    """The text of a new hash, with a salt of its own. `iterations` are those of PBKDF2.

    ValueError for a password that is empty or longer than 1024 bytes.
    """
    if not 0 < len(password) <= LONGEST_PASSWORD:
        raise ValueError(f"expected a password of 1 to {LONGEST_PASSWORD} bytes")
    if scheme == PBKDF2:
        salt = secrets.token_bytes(_PBKDF2_SALT_BYTES)
        digest = hashlib.pbkdf2_hmac("sha512", password, salt, iterations, 64)
        return f"$7${iterations}${_b64(salt)}${_b64(digest)}"
    salt = secrets.token_bytes(_SALT_BYTES)
    cost = (ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, 19)
    digest = _argon2id(password, salt, cost, _DIGEST_BYTES)
    bare = f"{_b64(salt).rstrip('=')}${_b64(digest).rstrip('=')}"
    return f"$argon2id$v=19$m={ARGON2_MEMORY_KIB},t={ARGON2_PASSES},p={ARGON2_LANES}${bare}"


def decoy() -> PasswordHash:
    """A hash that no password fits, at the cost of a new one: for users that don't exist."""
    cost = (ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, 19)
    salt, digest = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_DIGEST_BYTES)
    return PasswordHash(ARGON2ID, cost, salt, digest)


def argon2() -> ModuleType:
    """`argon2.low_level`. RuntimeError, with what to install, where it isn't there."""
    try:
        from argon2 import low_level
    except ImportError as error:
        raise RuntimeError("argon2id needs argon2-cffi: pip install argon2-cffi") from error
    return low_level


def _argon2id(password: bytes, salt: bytes, cost: tuple[int, ...], length: int) -> bytes:
    memory, passes, lanes, version = cost
    kind = argon2().Type.ID
    made = argon2().hash_secret_raw(password, salt, passes, memory, lanes, length, kind, version)
    return bytes(made)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
