"""The keys that tokens are verified with: from a file, or from a set that its owner rotates.

Owns: `KeyRing` (which key for a key id and an algorithm), reading secrets, PEM files and JWKS, and
`RemoteKeys`, a JWKS behind a URL with its cache.

Must not know: HTTP (`_http_fetch`), tokens beyond those two words of their header, claims, clients.

Invariants:
- A key serves only algorithms of its own kind: the public key of RSA is never the secret of an
  HMAC, whatever a token says. Keys of a set are public ones; secret and private ones are left out.
- A key id that isn't known makes the set be fetched again, but seldom, and everybody who waits for
  that waits for the same answer.
- A set that can't be fetched leaves the last one in force until it is too old; then there are no
  keys, and no token is good.

It imports `jwt` (PyJWT) and `cryptography`, and is imported where those are needed, not before.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from mqttd.api import BrokerServices, Timer
from mqttd_plugins._http_fetch import Unfetched, fetch

RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
HMAC: Final[Mapping[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The least bytes of a secret (RFC 7518, 3.2)."""
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_RSA_BITS: Final = 2048
_LARGEST_SET: Final = 1 << 20
_RETRY_S: Final = 10.0
"""Between two attempts, whether the last one failed or brought keys that weren't asked for."""


class KeyProblem(ValueError):
    """A key, or a set of them, that is no good."""


class Key:
    """A key, its id in a set (None: it has none), and the algorithms it serves."""

    __slots__ = ("algorithms", "key", "key_id")

    def __init__(self, key: Any, algorithms: frozenset[str], key_id: str | None = None) -> None:
        self.key = key
        self.algorithms = algorithms
        self.key_id = key_id


class KeyRing:
    """Keys in force. With `by_id` a token that names a key has to be signed with that one."""

    def __init__(self, keys: Iterable[Key] = (), by_id: bool = True) -> None:
        self._keys = list(keys)
        self._by_id = by_id

    def __len__(self) -> int:
        return len(self._keys)

    def serves(self, algorithms: Iterable[str]) -> bool:
        return any(key.algorithms & set(algorithms) for key in self._keys)

    def find(self, key_id: str | None, algorithm: str) -> Key | None:
        """The key for a token; None if there is none, or if it could be one of several."""
        fit = [key for key in self._keys if algorithm in key.algorithms]
        if self._by_id and key_id is not None:
            fit = [key for key in fit if key.key_id == key_id]
        return fit[0] if len(fit) == 1 else None


def ring_of_secret(secret: bytes, is_base64: bool, algorithms: Iterable[str]) -> KeyRing:
    """One secret. KeyProblem if it is too short for one of the algorithms."""
    if is_base64:
        try:
            padded = secret + b"=" * (-len(secret) % 4)
            secret = base64.b64decode(
                padded.translate(bytes.maketrans(b"-_", b"+/")), validate=True
            )
        except binascii.Error:
            raise KeyProblem("the secret isn't base64") from None
    least = max(HMAC[algorithm] for algorithm in algorithms)
    if len(secret) < least:
        raise KeyProblem(f"the secret has {len(secret)} bytes, expected {least} or more")
    return KeyRing([Key(secret, frozenset(algorithms))], by_id=False)


def ring_of_pem(file: Path) -> KeyRing:
    """The public key, or that of the certificate, in a PEM file."""
    raw = file.read_bytes()
    try:
        if b"-----BEGIN CERTIFICATE-----" in raw:
            key: Any = x509.load_pem_x509_certificate(raw).public_key()
        else:
            key = serialization.load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        found = "a private key" if b"PRIVATE KEY" in raw else "something else"
        raise KeyProblem(f"{file}: found {found}, expected a public key as PEM") from None
    try:
        return KeyRing([Key(key, _algorithms_of(key))], by_id=False)
    except KeyProblem as error:
        raise KeyProblem(f"{file}: {error}") from None


def ring_of_set(raw: bytes, where: str) -> KeyRing:
    """The public keys for signatures in a JWKS. KeyProblem if there is none."""
    try:
        entries = json.loads(raw)["keys"]
        if not isinstance(entries, list):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise KeyProblem(f'{where}: expected a JWKS, {{"keys": [...]}}') from None
    keys = [key for key in map(_from_set, entries) if key is not None]
    if not keys:
        raise KeyProblem(f"{where}: no public key for signatures in it")
    return KeyRing(keys)


def _from_set(entry: object) -> Key | None:
    """A key of a set; None for one that is for something else, or that isn't understood."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP") or "d" in entry:
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    key_id, named = entry.get("kid"), entry.get("alg")
    try:
        key = jwt.PyJWK(entry).key
        algorithms = _algorithms_of(key)
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    if named is not None:
        algorithms &= {named} if isinstance(named, str) else set()
    if not algorithms or not (key_id is None or isinstance(key_id, str)):
        return None
    return Key(key, algorithms, key_id)


def _algorithms_of(key: object) -> frozenset[str]:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _RSA_BITS:
            raise KeyProblem(f"an RSA key of {key.key_size} bits, expected {_RSA_BITS} or more")
        return RSA
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return frozenset({_CURVES[key.curve.name]})
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return frozenset({"EdDSA"})
    raise KeyProblem("a kind of key that no algorithm here uses")


class RemoteKeys:
    """A JWKS behind a URL: fetched at the start, every `refresh_s`, and for a new key id."""

    def __init__(
        self,
        broker: BrokerServices,
        url: str,
        authorities: Path | None,
        timeout_s: float,
        refresh_s: float,
        max_age_s: float,
    ) -> None:
        self._broker = broker
        self._url = url
        self._authorities = authorities
        self._timeout_s = timeout_s
        self._refresh_s = refresh_s
        self._max_age_s = max_age_s
        self._ring = KeyRing()
        self._fetched_at = -max_age_s
        self._tried_at = -_RETRY_S
        self._under_way: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._stopped = False

    async def fetch(self) -> KeyRing:
        """The set as it is now; KeyProblem if it can't be had."""
        wait = self._timeout_s
        return await self._broker.run_blocking(_fetch, self._url, self._authorities, wait)

    async def start(self) -> None:
        """Fetch it. Where that fails no token is good until a later attempt succeeds."""
        await self._try()

    def adopt(self, ring: KeyRing) -> None:
        """Go on from a set that was fetched already."""
        self._tried_at = self._fetched_at = self._broker.now()
        self._ring = ring
        self._again(self._refresh_s)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def find(self, key_id: str | None, algorithm: str) -> Key | None:
        if self._broker.now() - self._fetched_at > self._max_age_s:
            return None
        return self._ring.find(key_id, algorithm)

    @property
    def may_try(self) -> bool:
        """Whether it is time for another attempt, or one is under way."""
        return (
            self._under_way is not None or self._broker.now() - self._tried_at >= _RETRY_S
        ) and not self._stopped

    async def search(self, key_id: str | None, algorithm: str) -> Key | None:
        """As `find`, after another attempt to fetch the set if it is time for one."""
        if self.may_try:
            await self._try()
        return self.find(key_id, algorithm)

    async def _try(self) -> None:
        if self._under_way is not None:
            await asyncio.shield(self._under_way)
            return
        self._under_way = done = asyncio.get_running_loop().create_future()
        self._tried_at = self._broker.now()
        if self._timer is not None:
            self._timer.cancel()
        wait_s = min(_RETRY_S, self._refresh_s)
        try:
            self._ring = await self.fetch()
            self._fetched_at = self._broker.now()
            wait_s = self._refresh_s
        except KeyProblem as error:
            self._broker.count("jwks_failures")
            self._broker.log.error("the keys can't be fetched: %s", error)
        finally:
            self._under_way = None
            done.set_result(None)
            self._broker.gauge("keys", len(self._ring))
            self._again(wait_s)

    def _again(self, wait_s: float) -> None:
        if not self._stopped:
            self._timer = self._broker.call_later(wait_s, self._try)


def _fetch(url: str, authorities: Path | None, timeout_s: float) -> KeyRing:
    """In a thread."""
    try:
        raw = fetch(url, authorities, timeout_s, _LARGEST_SET)
    except Unfetched as error:
        raise KeyProblem(str(error)) from None
    return ring_of_set(raw, url.partition("?")[0])
