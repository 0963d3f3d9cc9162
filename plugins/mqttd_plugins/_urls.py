"""Addresses of HTTP services, as configurations give them, and headers with secrets in them.

Owns: `check_url` and `check_headers`: what is wrong with either, said without showing any part of
it that may be secret.

Must not know: what is asked there.

Invariants: an address holds no credentials, and plain HTTP goes to this machine alone, unless the
configuration insists: everybody on the way could read what is sent, and write what is answered.
They are to be called by validators of whole models: what a validator of one key refuses is shown
beside its reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit


def check_url(key: str, url: str, *, plain: bool = False, instead: str = "") -> None:
    """ValueError where it is no address to send secrets to.

    `plain`: http may go to other machines as well; `instead` is what to do where it may not.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{key}: no URL, expected https://HOST/PATH") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError(f"{key}: expected https://HOST/PATH")
    if "@" in parts.netloc:
        raise ValueError(f"{key}: expected no credentials in it: they belong into headers")
    if parts.scheme == "http" and not plain and not _is_here(host):
        hint = f" ({instead})" if instead else ""
        raise ValueError(
            f"{key}: found http to {host}, expected https: "
            f"what is sent and answered would travel in the open{hint}"
        )


def check_headers(key: str, headers: Mapping[str, object]) -> None:
    """ValueError, which names the header and not its value, for what is no text of one line."""
    for name, text in headers.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{key}: {name!a} is no name of a header")
        if not isinstance(text, str):
            raise ValueError(f"{key}: {name}: expected text, in quotes where it looks like more")
        if any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise ValueError(f"{key}: {name}: a control character in a header")


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
