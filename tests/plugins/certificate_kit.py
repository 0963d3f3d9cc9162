"""Certificates and revocation lists for tests of plugins, made on the spot."""

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime(2030, 6, 1, tzinfo=datetime.UTC)
"""The wall clock of tests that use these certificates."""
DAY = datetime.timedelta(days=1)


def name(*common_names: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common_names]
    if organization:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


class Signer:
    """An authority: certificates, and lists of those it took back."""

    def __init__(self, common_name: str = "our-ca") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name(common_name)
        self.certificate = self._build(self.name, self.key, 1, DAY * 100, [])

    def issue(
        self,
        subject: x509.Name,
        serial: int = 7,
        life: datetime.timedelta = DAY,
        san: Sequence[x509.GeneralName] = (),
    ) -> bytes:
        """A certificate as DER."""
        made = self._build(subject, ec.generate_private_key(ec.SECP256R1()), serial, life, san)
        return made.public_bytes(serialization.Encoding.DER)

    def revoke(
        self,
        *serials: int,
        pem: bool = True,
        life: datetime.timedelta = DAY,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> bytes:
        """A revocation list, PEM or DER."""
        builder = x509.CertificateRevocationListBuilder(issuer_name=self.name)
        builder = builder.last_update(NOW - DAY * 10).next_update(NOW + life)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(entry.revocation_date(NOW - DAY).build())
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        encoding = serialization.Encoding.PEM if pem else serialization.Encoding.DER
        return builder.sign(self.key, hashes.SHA256()).public_bytes(encoding)

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        serial: int,
        life: datetime.timedelta,
        san: Sequence[x509.GeneralName],
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(NOW - DAY * 10)
            .not_valid_after(NOW + life)
        )
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), False)
        return builder.sign(self.key, hashes.SHA256())
