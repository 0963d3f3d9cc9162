"""When a certificate is over, read out of its bytes."""

import base64
import datetime
import random
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mqttd.net.tls import expires_at


def certificate(end: datetime.datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker.example" * 4)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(2**150 + 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(end)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "end",
    [
        datetime.datetime(2031, 2, 3, 4, 5, 6),
        datetime.datetime(2049, 12, 31, 23, 59, 59),
        datetime.datetime(2050, 1, 1),  # from here on another type of time
        datetime.datetime(9999, 12, 31, 23, 59, 59),  # "has no well-defined end"
    ],
)
def test_the_end(end: datetime.datetime, tmp_path: Path) -> None:
    file = tmp_path / "s.crt"
    chain = certificate(datetime.datetime(2021, 1, 1))
    file.write_bytes(b"a comment\n" + certificate(end) + chain)
    assert expires_at(file) == end.replace(tzinfo=datetime.UTC).timestamp()


def test_files_that_hold_no_certificate(tmp_path: Path) -> None:
    file = tmp_path / "s.crt"
    with pytest.raises(OSError, match="No such file"):
        expires_at(file)
    chance = random.Random(5)
    good = certificate(datetime.datetime(2031, 1, 1))
    bodies = [b"", b"nonsense", good[:200], good.replace(b"M", b"!", 1)]
    for size in range(0, 60, 3):
        inner = chance.randbytes(size)
        bodies.append(
            b"-----BEGIN CERTIFICATE-----\n"
            + base64.encodebytes(inner)
            + b"-----END CERTIFICATE-----\n"
        )
    for body in bodies:
        file.write_bytes(body)
        with pytest.raises(ValueError):  # noqa: PT011
            expires_at(file)
