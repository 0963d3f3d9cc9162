"""SHA-512 crypt, the `$6$` of crypt(3): what amqtt up to 0.11 wrote into its password files.

Owns: the digest, as Ulrich Drepper's "Unix crypt using SHA-256 and SHA-512" describes it. Python's
own `crypt` has gone with 3.13, and the libraries that have it come under an import name that two
of them share (docs/decisions/0006), so the sixty lines are here, held to the published vectors.

Must not know: files, users, which other formats there are.

It runs in Python and holds the interpreter, unlike every other format. It therefore steps aside
after each few hundred rounds, so that the event loop, in another thread, never waits for more than
a fraction of a millisecond. Nobody should write new hashes of this kind; nothing here can.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

DEFAULT_ROUNDS: Final = 5000
FEWEST_ROUNDS: Final = 1000
MOST_ROUNDS: Final = 10_000_000  # the format allows 999,999,999, which is a quarter of an hour
LONGEST_SALT: Final = 16
_PERIOD: Final = 42  # what is hashed in a round depends on its number modulo 2, 3 and 7
_PERIODS_A_TURN: Final = 6
_ASIDE_S: Final = 0.00002
_ALPHABET: Final = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def sha512_crypt(password: bytes, salt: bytes, rounds: int) -> bytes:
    """The 86 characters after the last `$`. Keep passwords short: the cost of long ones is square.

    `salt` has at most 16 bytes; `rounds` are at least 1000.
    """
    first = _start(password, salt)
    p = _fill(hashlib.sha512(password * len(password)).digest(), len(password))
    s = _fill(hashlib.sha512(salt * (16 + first[0])).digest(), len(salt))
    return _encoded(_stretch(first, p, s, rounds))


def _start(password: bytes, salt: bytes) -> bytes:
    other = hashlib.sha512(password + salt + password).digest()
    context = hashlib.sha512(password + salt + _fill(other, len(password)))
    length = len(password)
    while length:
        context.update(other if length & 1 else password)
        length >>= 1
    return context.digest()


def _stretch(digest: bytes, p: bytes, s: bytes, rounds: int) -> bytes:
    # What stands behind the digest in even rounds, and in front of it in odd ones.
    fixed = []
    for number in range(_PERIOD):
        between = (s if number % 3 else b"") + (p if number % 7 else b"")
        fixed.append(p + between if number & 1 else between + p)
    pairs = list(zip(fixed[::2], fixed[1::2], strict=True))
    sha512 = hashlib.sha512
    whole, rest = divmod(rounds, _PERIOD)
    for period in range(whole):
        for behind, before in pairs:
            digest = sha512(before + sha512(digest + behind).digest()).digest()
        if period % _PERIODS_A_TURN == 0:
            time.sleep(_ASIDE_S)
    for number in range(rest):
        other = fixed[number]
        digest = sha512(other + digest if number & 1 else digest + other).digest()
    return digest


def _fill(digest: bytes, length: int) -> bytes:
    """As many bytes as `length` says, the digest over and over."""
    whole, rest = divmod(length, len(digest))
    return digest * whole + digest[:rest]


def _encoded(digest: bytes) -> bytes:
    """crypt's own base64, over bytes in the order that the format has."""
    out = bytearray()
    for number in range(21):
        trio = (number, number + 21, number + 42)
        turn = number % 3
        high, middle, low = (digest[place] for place in trio[turn:] + trio[:turn])
        _put(out, high << 16 | middle << 8 | low, 4)
    _put(out, digest[63], 2)
    return bytes(out)


def _put(out: bytearray, bits: int, characters: int) -> None:
    for _ in range(characters):
        out.append(_ALPHABET[bits & 63])
        bits >>= 6
