"""The server's side of one SCRAM-SHA-256 exchange: RFC 5802 with the hash of RFC 7677.

Owns: the four messages and what is wrong with one of them. Texts in, texts out:

    client-first  n,,n=user,r=CNONCE
    server-first  r=CNONCE+SNONCE,s=SALT,i=ITERATIONS
    client-final  c=biws,r=CNONCE+SNONCE,p=PROOF
    server-final  v=SIGNATURE

Must not know: MQTT, where keys come from, chance (whoever begins brings the nonce).

Channel binding is not offered, since a broker behind a proxy doesn't see the client's TLS. So the
flags `n` and `y` are good, and `p=…` is refused. Acting as somebody else (an authzid) isn't
offered either, nor is any extension that has to be understood (`m=`).

Invariant: whatever is wrong after the first message gives the same answer: an exchange for a user
who doesn't exist runs to its end, like one with a wrong password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import Final

from mqttd_plugins._scram_keys import LONGEST_NAME, Keys, saslprep

_LONGEST_MESSAGE: Final = 4096
_LONGEST_NONCE: Final = 512
_NONCE: Final = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
_ESCAPE: Final = re.compile(r"=(2C|3D)?")


class BadMessage(ValueError):
    """A message is not what RFC 5802 says; the text says why, for the log and the client."""


class ClientFirst:
    """What a client begins with."""

    def __init__(self, data: bytes) -> None:
        text = _text(data)
        flag, comma, rest = text.partition(",")
        if flag.startswith("p="):
            raise BadMessage("channel binding is not supported")
        authzid, other_comma, bare = rest.partition(",")
        if flag not in ("n", "y") or not comma or not other_comma:
            raise BadMessage("expected n,,n=USER,r=NONCE")
        if bare.startswith("m="):
            raise BadMessage("an extension that is not supported")
        parts = bare.split(",")
        if len(parts) < 2 or not parts[0].startswith("n=") or not parts[1].startswith("r="):
            raise BadMessage("expected n,,n=USER,r=NONCE")
        self.header = f"{flag},{authzid},"
        self.bare = bare
        self.user = _name(parts[0][2:])
        self.nonce = parts[1][2:]
        if not _NONCE.fullmatch(self.nonce) or len(self.nonce) > _LONGEST_NONCE:
            raise BadMessage("the nonce is empty, too long, or not printable")
        if authzid and (not authzid.startswith("a=") or _name(authzid[2:]) != self.user):
            raise BadMessage("nobody may act as somebody else")


class Exchange:
    """From the server's first message to its last. Never used twice."""

    def __init__(self, first: ClientFirst, keys: Keys, nonce: str) -> None:
        """`nonce` is the server's part: printable, without a comma, not to be guessed."""
        self.user = first.user
        self._first = first
        self._keys = keys
        self._nonce = first.nonce + nonce
        salt = base64.b64encode(keys.salt).decode()
        self.challenge = f"r={self._nonce},s={salt},i={keys.iterations}"

    def used(self, keys: Keys) -> bool:
        """Whether these are the keys of this exchange."""
        return keys == self._keys

    def finish(self, data: bytes) -> str | None:
        """The server's last message; None where the proof is wrong. BadMessage for nonsense."""
        unproven, mark, proof = _text(data).rpartition(",p=")
        parts = unproven.split(",")
        if not mark or len(parts) < 2:
            raise BadMessage("expected c=BINDING,r=NONCE,p=PROOF")
        if parts[0] != "c=" + base64.b64encode(self._first.header.encode()).decode():
            raise BadMessage("the binding is another one than at the beginning")
        if parts[1] != f"r={self._nonce}":
            raise BadMessage("the nonce is another one than at the beginning")
        message = f"{self._first.bare},{self.challenge},{unproven}".encode()
        if not self._is_proof(_decoded(proof), message):
            return None
        signature = hmac.digest(self._keys.server_key, message, "sha256")
        return "v=" + base64.b64encode(signature).decode()

    def _is_proof(self, proof: bytes, message: bytes) -> bool:
        signature = hmac.digest(self._keys.stored_key, message, "sha256")
        if len(proof) != len(signature):
            raise BadMessage("the proof has the wrong length")
        client_key = bytes(one ^ other for one, other in zip(proof, signature, strict=True))
        return hmac.compare_digest(hashlib.sha256(client_key).digest(), self._keys.stored_key)


def _text(data: bytes) -> str:
    if len(data) > _LONGEST_MESSAGE:
        raise BadMessage(f"longer than {_LONGEST_MESSAGE} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadMessage("not UTF-8") from None


def _name(escaped: str) -> str:
    """A user name out of a message, where `=2C` is a comma and `=3D` an equals sign."""
    if any(match[1] is None for match in _ESCAPE.finditer(escaped)):
        raise BadMessage("= in a user name has to be =3D")
    plain = escaped.replace("=2C", ",").replace("=3D", "=")
    if len(plain) > LONGEST_NAME:
        raise BadMessage(f"a user name of more than {LONGEST_NAME} characters")
    try:
        name = saslprep(plain)
    except ValueError as error:
        raise BadMessage(f"user name: {error}") from None
    if not 0 < len(name) <= LONGEST_NAME:
        raise BadMessage("the user name is empty, or too long once it is prepared")
    return name


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadMessage("the proof is not base64") from None
