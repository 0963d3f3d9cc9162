"""Client certificates that fooled other brokers, shown to cert_identity."""

from pathlib import Path

import pytest
from mqttd_plugins.cert_identity import CertIdentity, Config

from mqttd.api import Allow, Client, Credentials, Decision, Deny
from mqttd.testing import StandIn
from tests.plugins.certificate_kit import DAY, NOW, Signer, name

SIGNER = Signer()


async def decided(der: bytes, **config: object) -> Decision:
    plugin = CertIdentity(Config.model_validate(config), StandIn(), NOW.timestamp)
    await plugin.start()
    client = Client("c", "admin", peer="192.0.2.1:1", certificate=der)
    return plugin.authenticate(client, Credentials("admin", None))


@pytest.mark.parametrize("spoilt", [b"n\xffmex", b"n\xc3\x28mx", b"n\xed\xa0\x80x"])
async def test_mosquitto_2_0_16_user_name_from_a_certificate_that_is_not_utf8(
    spoilt: bytes,
) -> None:
    good = SIGNER.issue(name("namex"))
    assert isinstance(await decided(good), Allow)
    der = good.replace(b"\x0c\x05namex", b"\x0c\x05" + spoilt)
    assert der != good
    for source in ("cn", "subject"):
        assert isinstance(await decided(der, username_from=source), Deny)


async def test_mosquitto_2_0_16_name_with_a_zero_in_it_is_not_cut_there() -> None:
    der = SIGNER.issue(name("admin0x")).replace(b"admin0x", b"admin\0x")
    assert isinstance(await decided(der), Deny)


async def test_expired_revoked_other_ca_certificates_never_give_a_name(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(7))
    config = {"issuers": ["CN=our-ca"], "crl": [str(crl)]}
    assert isinstance(await decided(SIGNER.issue(name("a"), 8), **config), Allow)
    assert isinstance(await decided(SIGNER.issue(name("a"), 8, life=-DAY), **config), Deny)
    assert isinstance(await decided(SIGNER.issue(name("a"), 7), **config), Deny)
    assert isinstance(await decided(Signer("other").issue(name("a"), 8), **config), Deny)
