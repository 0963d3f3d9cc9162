"""TLS on a listener: the context of the server, and who a client's certificate says it is.

Owns: which versions are spoken (1.2 and 1.3), whether clients are asked for a certificate, when the
server's own is over, and the translation of a verified certificate's subject into a user name.

Must not know: configuration files, connections. The handshake itself belongs to the loop.

Invariants: a context that requires certificates never lets a client without one through, on any
kind of listener (there is one function that makes contexts); a subject that can't be a user name
(absent, ambiguous, not UTF-8, with control characters) is refused, never shortened or guessed at.
"""

from __future__ import annotations

import ssl
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

NONE: Final = "none"
CN: Final = "cn"
SUBJECT: Final = "subject"

OPTIONAL: Final = "optional"
REQUIRED: Final = "required"

# The short names of RFC 4514 and those that OpenSSL's tools print.
_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_VERSION: Final = 0xA0  # of the optional element in front
_UTC_TAG: Final = 0x17
_UTC_TIME: Final = "%y%m%d%H%M%SZ"
_INVISIBLE: Final = ("Cc", "Cf", "Cs")  # control, format (reorders or hides text), surrogate
_ESCAPED: Final = '"+,;<>\\'


class IdentityError(Exception):
    """A verified certificate that names nobody the broker could know."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What a listener has to know to speak TLS."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    client_cert: str = NONE  # none, optional, required
    username_from: str = CN  # cn, subject, none


def server_context(tls: Tls, protocol: str) -> ssl.SSLContext:
    """A context from files; OSError or ssl.SSLError if they don't serve. `protocol` is for ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that asks for ever new handshakes on one connection only costs time.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([protocol])
    # Without a password callback an encrypted key would ask on the terminal.
    context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    if tls.client_cert != NONE:
        if tls.client_ca is None:
            raise ValueError("client certificates need client_ca, the authorities that sign them")
        context.load_verify_locations(tls.client_ca)
        required = tls.client_cert == REQUIRED
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def identity_of(connection: ssl.SSLObject, username_from: str) -> str | None:
    """The user name a client proved by its certificate; None if it showed none."""
    if username_from == NONE:
        return None
    try:
        certificate = connection.getpeercert()
    except (ValueError, ssl.SSLError) as error:  # UnicodeDecodeError is a ValueError
        raise IdentityError(f"a subject that can't be read: {error}") from None
    if not certificate:
        return None
    subject: Any = certificate.get("subject", ())
    return name_of(subject, username_from)


def name_of(subject: tuple[tuple[tuple[str, str], ...], ...], username_from: str) -> str:
    """The user name in a subject as `ssl` decodes it: RDNs of (attribute, value) pairs."""
    if username_from == CN:
        names = [value for rdn in subject for key, value in rdn if key == "commonName"]
        if len(names) > 1:
            raise IdentityError("a subject with several common names")
        name = names[0] if names else ""
    else:
        # RFC 4514: the last RDN first.
        name = ",".join("+".join(_attribute(*pair) for pair in rdn) for rdn in reversed(subject))
    if not name:
        raise IdentityError("an empty name")
    if len(name.encode("utf-8", "surrogatepass")) > 65535:
        raise IdentityError("a name that is too long")
    # A user name travels in logs, topics and access rules: nothing in it may be invisible.
    if any(unicodedata.category(char) in _INVISIBLE for char in name):
        raise IdentityError("a name with control characters")
    return name


def _attribute(key: str, value: str) -> str:
    escaped = "".join("\\" + char if char in _ESCAPED else char for char in value)
    if escaped.startswith((" ", "#")):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and len(value) > 1:
        escaped = escaped[:-1] + "\\ "
    return f"{_SHORT.get(key, key)}={escaped}"


def expires_at(cert: Path) -> float:
    """When the first certificate of a PEM file is over, in seconds since 1970.

    OSError or ValueError where the file holds none that can be read.
    """
    text = cert.read_text(encoding="ascii", errors="replace")
    begin = text.find(ssl.PEM_HEADER)
    end = text.find(ssl.PEM_FOOTER, begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate")
    der = ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)] + "\n")
    # RFC 5280: Certificate → tbsCertificate → [version], serial, signature, issuer, validity.
    _, body, _ = _element(der, 0)
    _, place, _ = _element(der, body)
    tag, _, after = _element(der, place)
    if tag == _VERSION:
        place = after
    for _ in range(3):
        _, _, place = _element(der, place)
    _, inside, _ = _element(der, place)
    _, _, not_after = _element(der, inside)
    tag, start, stop = _element(der, not_after)
    form = _UTC_TIME if tag == _UTC_TAG else "%Y%m%d%H%M%SZ"
    at = datetime.strptime(der[start:stop].decode("ascii"), form)
    return at.replace(tzinfo=UTC).timestamp()


def _element(der: bytes, place: int) -> tuple[int, int, int]:
    """Tag, begin and end of the content of a DER element. ValueError where it is cut off."""
    if place + 2 > len(der):
        raise ValueError("a certificate that ends early")
    start = place + 2
    size = der[place + 1]
    if size >= 0x80:
        width = size & 0x7F
        size = int.from_bytes(der[start : start + width], "big")
        start += width
    if start + size > len(der):
        raise ValueError("a certificate that ends early")
    return der[place], start, start + size
