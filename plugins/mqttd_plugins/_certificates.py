"""What a client certificate says: a name, an issuer, and whether it was revoked.

Owns: taking one name out of a certificate (subject or alternative names, cut to the shape of a
template), and lists of revoked certificates (CRLs, PEM or DER).

Must not know: the plugin's configuration, the broker, TLS: that the certificate was signed by an
authority we trust and is in its time has been verified in the handshake.

Invariants:
- One name or none. Two values that could be the name are a refusal: whichever was taken, an
  authority that lets clients add names would have let them choose.
- A list counts for certificates of its own issuer alone. With lists in force, a certificate whose
  issuer has none is refused, as OpenSSL does: nobody can say that it wasn't revoked.
- A list that covers only some certificates (a delta, a distribution point of its own) is refused,
  since what isn't on it may be revoked all the same.

It imports `cryptography`, and is imported where that is needed, not before.
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

_PEM: Final = b"-----BEGIN X509 CRL-----"
_PEM_END: Final = b"-----END X509 CRL-----"
_INVISIBLE: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LONGEST: Final = 65535
_TextName = type[x509.DNSName] | type[x509.UniformResourceIdentifier] | type[x509.RFC822Name]
_SAN_TYPES: Final[dict[str, _TextName]] = {
    "san_dns": x509.DNSName,
    "san_uri": x509.UniformResourceIdentifier,
    "san_email": x509.RFC822Name,
}


class Refused(Exception):
    """The certificate names nobody, or somebody who may not come in."""


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER, as lower-case hex digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def name_of(certificate: x509.Certificate, source: str, template: str) -> str:
    """The one value at `source` that has the shape of `template`: what stands for its `{}`."""
    before, _, after = template.partition("{}")
    found = {
        value[len(before) : len(value) - len(after)]
        for value in _values(certificate, source)
        if len(value) > len(before) + len(after)
        and value.startswith(before)
        and value.endswith(after)
    }
    if len(found) != 1:
        raise Refused(f"its certificate has {len(found) or 'no'} {source} that could be its name")
    (name,) = found
    if any(unicodedata.category(character) in _INVISIBLE for character in name):
        raise Refused(f"the {source} of its certificate has invisible characters")
    if len(name.encode("utf-8")) > _LONGEST:
        raise Refused(f"the {source} of its certificate is too long for a user name")
    return name


def _values(certificate: x509.Certificate, source: str) -> Sequence[str]:
    try:
        if source == "cn":
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            return [_text(name.value) for name in names] if len(names) == 1 else []
        if source == "subject":
            return [certificate.subject.rfc4514_string()]
        if source == "fingerprint":
            return [fingerprint_of(certificate)]
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return [_text(value) for value in extension.value.get_values_for_type(_SAN_TYPES[source])]
    except x509.ExtensionNotFound:
        return []
    except (ValueError, x509.DuplicateExtension):  # not UTF-8, not DER
        raise Refused(f"the {source} of its certificate can't be read") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value


def parse_certificate(der: bytes) -> x509.Certificate:
    """ValueError for what is no certificate."""
    return x509.load_der_x509_certificate(der)


def parse_name(text: str) -> x509.Name:
    """A distinguished name as RFC 4514 writes it; ValueError for what is none."""
    return x509.Name.from_rfc4514_string(text)


class RevocationLists:
    """CRLs in force."""

    def __init__(self, lists: Iterable[x509.CertificateRevocationList] = ()) -> None:
        self._by_issuer: dict[x509.Name, list[x509.CertificateRevocationList]] = {}
        for found in lists:
            self._by_issuer.setdefault(found.issuer, []).append(found)

    def __len__(self) -> int:
        """How many certificates are revoked."""
        return sum(len(found) for lists in self._by_issuer.values() for found in lists)

    def check(
        self, certificate: x509.Certificate, now: datetime.datetime, expired_counts: bool
    ) -> None:
        """Raise Refused unless a list in its time says that the certificate isn't revoked.

        With `expired_counts` a list whose time is over still serves.
        """
        if not self._by_issuer:
            return
        lists = self._by_issuer.get(certificate.issuer)
        if lists is None:
            raise Refused("there is no revocation list of its certificate's issuer")
        serial = certificate.serial_number
        if any(found.get_revoked_certificate_by_serial_number(serial) for found in lists):
            raise Refused("its certificate was revoked")
        if not expired_counts and all(is_over(found, now) for found in lists):
            raise Refused("the revocation list of its certificate's issuer has expired")

    def expired(self, now: datetime.datetime) -> list[str]:
        """The issuers whose lists' time is over."""
        return [
            issuer.rfc4514_string()
            for issuer, lists in self._by_issuer.items()
            if all(is_over(found, now) for found in lists)
        ]


def is_over(found: x509.CertificateRevocationList, now: datetime.datetime) -> bool:
    until = found.next_update_utc
    return until is not None and until < now


def load_lists(files: Sequence[Path], authorities: Path | None) -> RevocationLists:
    """Read CRLs; with a PEM file of `authorities`, each has to be signed by one of them.

    ValueError with the name of the file; OSError where one can't be read.
    """
    signers = _load_authorities(authorities) if authorities is not None else None
    lists: list[x509.CertificateRevocationList] = []
    for file in files:
        for found in _load(file):
            _complete(found, file)
            if signers is not None and not any(_signed(found, signer) for signer in signers):
                raise ValueError(f"{file}: not signed by any authority of {authorities}")
            lists.append(found)
    return RevocationLists(lists)


def _load(file: Path) -> list[x509.CertificateRevocationList]:
    raw = file.read_bytes()
    try:
        if _PEM not in raw:
            return [x509.load_der_x509_crl(raw)]
        blocks = raw.split(_PEM)[1:]
        return [
            x509.load_pem_x509_crl(_PEM + block.partition(_PEM_END)[0] + _PEM_END + b"\n")
            for block in blocks
        ]
    except ValueError:
        raise ValueError(f"{file}: expected revocation lists (CRL) as PEM or DER") from None


def _complete(found: x509.CertificateRevocationList, file: Path) -> None:
    try:
        partial = any(
            extension.critical or isinstance(extension.value, x509.DeltaCRLIndicator)
            for extension in found.extensions
        )
    except ValueError:
        raise ValueError(f"{file}: a revocation list with an extension that isn't one") from None
    if partial:
        raise ValueError(f"{file}: a partial revocation list, expected complete ones")


def _load_authorities(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError:
        raise ValueError(f"{file}: expected certificates of authorities as PEM") from None


def _signed(found: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    key = signer.public_key()
    try:
        return found.issuer == signer.subject and found.is_signature_valid(key)  # type: ignore[arg-type]
    except TypeError:  # a kind of key that signs no lists
        return False
