"""Tokens and keys for tests: signed by PyJWT, or put together by hand where it would refuse."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
HOUR = 3600


def claims(**more: Any) -> dict[str, Any]:
    """Good ones, for an hour; a claim of None is left out."""
    now = int(time.time())
    made = {"sub": "ada", "iat": now - 60, "exp": now + HOUR, **more}
    return {name: value for name, value in made.items() if value is not None}


def signed(
    key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **more: Any
) -> bytes:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode(claims(**more), key, algorithm, headers=headers).encode()


def by_hand(header: object, payload: object, secret: bytes = b"") -> bytes:
    """Any header over any claims; an HMAC with `secret`, or no signature."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)
    ]
    text = b".".join(_encoded(part) for part in parts)
    signature = hmac.digest(secret, text, hashlib.sha256) if secret else b""
    return text + b"." + _encoded(signature)


def _as_bytes(part: object) -> bytes:
    return part if isinstance(part, bytes) else json.dumps(part).encode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def public_pem(key: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def private_pem(key: Any) -> bytes:
    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public key of `key` as an entry of a set."""
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        made = json.loads(RSAAlgorithm.to_jwk(public))
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = json.loads(ECAlgorithm.to_jwk(public))
    else:
        made = json.loads(OKPAlgorithm.to_jwk(public))
    named = {} if kid is None else {"kid": kid}
    return {**made, **named, **more}


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()
