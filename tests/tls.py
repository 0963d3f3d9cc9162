"""Certificates for tests: an authority, a server, clients good and bad, made on the spot.

Nothing is kept in the repository that could expire; keys are P-256, which costs a millisecond each.
"""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)
_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def subject(common_name: str, organization: str = "") -> x509.Name:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    if organization:
        names.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(names)


class Authority:
    """Signs certificates and writes them into `directory`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = subject(f"mqttd test {name}")
        builder = self._builder(self._subject, self._key.public_key(), 10 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        builder = builder.add_extension(_CA_USAGE, True)
        self._key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        builder = builder.add_extension(self._key_id, False)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._sign(builder))

    def issue(
        self, file: str, common_name: str = "", *, name: x509.Name | None = None, days: int = 1
    ) -> tuple[Path, Path]:
        """Certificate and key; with `days` below 0 it has expired already."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(
            subject(common_name) if name is None else name, key.public_key(), days * DAY
        )
        hosts: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), False)
        # Python 3.13 verifies strictly: who signed has to be named by its key.
        signer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_id)
        builder = builder.add_extension(signer, False)
        certificate = self.directory / f"{self.name}-{file}.crt"
        certificate.write_bytes(self._sign(builder))
        private = self.directory / f"{self.name}-{file}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, private

    def client(self, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority and shows `pair`."""
        context = ssl.create_default_context(cafile=self.file)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 5 * DAY)
            .not_valid_after(now + life)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)
