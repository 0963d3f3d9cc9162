"""cert_identity: names out of certificates, who is let in, revocation, what is refused."""

import gc
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from mqttd_plugins.cert_identity import CertIdentity, Config
from pydantic import ValidationError

from mqttd.api import (
    NOT_MINE,
    Allow,
    Client,
    Credentials,
    Decision,
    Deny,
    SessionInfo,
    reason_codes,
)
from mqttd.testing import StandIn
from tests.plugins.certificate_kit import DAY, NOW, Signer, name

SIGNER = Signer()
OTHER = Signer("other-ca")
NOBODY = Credentials("claimed", b"")


async def started(**config: object) -> tuple[CertIdentity, StandIn]:
    broker = StandIn("cert_identity")
    model = Config.model_validate(config)
    plugin = CertIdentity(model, broker, wall_clock=NOW.timestamp)
    await plugin.start()
    return plugin, broker


def connected(broker: StandIn, one: Client, there: bool = True) -> None:
    session = SessionInfo(one.client_id, one.username, there, one.peer, (), 0, 0, 0)
    broker.known[one.client_id] = session


def client(der: bytes | None, client_id: str = "c", peer: str = "192.0.2.1:1") -> Client:
    return Client(client_id, "claimed", peer=peer, certificate=der)


async def decided(der: bytes | None, **config: object) -> Decision:
    plugin, _ = await started(**config)
    return plugin.authenticate(client(der), NOBODY)


async def named(der: bytes, **config: object) -> str | None:
    decision = await decided(der, **config)
    return decision.username if isinstance(decision, Allow) else None


async def test_without_a_certificate_it_has_no_opinion() -> None:
    assert await decided(None) == NOT_MINE


async def test_the_name_replaces_the_one_that_is_claimed_until_the_certificate_ends() -> None:
    decision = await decided(SIGNER.issue(name("sensor-1")))
    assert decision == Allow("cert_identity: cn", username="sensor-1", expires_in_s=86400.0)
    decision = await decided(SIGNER.issue(name("sensor-1")), disconnect_when_expired=False)
    assert decision == Allow("cert_identity: cn", username="sensor-1")


SANS = (
    x509.DNSName("sensor-1.example.com"),
    x509.UniformResourceIdentifier("urn:dev:42"),
    x509.UniformResourceIdentifier("spiffe://example.com/device/42"),
    x509.RFC822Name("ada@example.com"),
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"username_from": "subject"}, "O=us,CN=sensor-1"),
        ({"username_from": "san_dns"}, "sensor-1.example.com"),
        ({"username_from": "san_dns", "template": "{}.example.com"}, "sensor-1"),
        ({"username_from": "san_dns", "template": "{}.example.org"}, None),
        ({"username_from": "san_dns", "template": "sensor-1.example.com{}"}, None),
        ({"username_from": "san_uri"}, None),  # two of them
        ({"username_from": "san_uri", "template": "spiffe://example.com/device/{}"}, "42"),
        ({"username_from": "san_uri", "template": "urn:dev:{}"}, "42"),
        ({"username_from": "san_email", "template": "{}@example.com"}, "ada"),
        ({"template": "sensor-{}"}, "1"),
        ({"template": "{}r-1"}, "senso"),
        ({"template": "[a-z]{}"}, None),  # text, no expression
    ],
)
async def test_where_the_name_comes_from(config: dict[str, object], expected: str | None) -> None:
    der = SIGNER.issue(name("sensor-1", organization="us"), san=SANS)
    assert await named(der, **config) == expected


async def test_the_fingerprint_as_the_name() -> None:
    der = SIGNER.issue(name("x"))
    found = await named(der, username_from="fingerprint")
    assert found is not None
    assert len(found) == 64
    assert await named(der, fingerprints=[found.upper()]) == "x"
    colons = ":".join(found[at : at + 2] for at in range(0, 64, 2))
    assert await named(der, fingerprints=["0" * 64, colons]) == "x"
    assert await named(der, fingerprints=["0" * 64]) is None


@pytest.mark.parametrize(
    "subject",
    [
        name(),
        name("a", "b"),
        name("a", "a"),
        name("line\nfeed"),
        name("right\u202eleft"),
    ],
)
async def test_names_that_are_none_are_refused(subject: x509.Name) -> None:
    assert isinstance(await decided(SIGNER.issue(subject)), Deny)


async def test_no_alternative_names_at_all() -> None:
    decision = await decided(SIGNER.issue(name("a")), username_from="san_dns")
    assert decision == Deny("its certificate has no san_dns that could be its name")


async def test_what_is_no_certificate_is_refused() -> None:
    assert isinstance(await decided(b"\x30\x03abc"), Deny)
    assert isinstance(await decided(b""), Deny)


async def test_issuers_are_compared_as_names() -> None:
    der = SIGNER.issue(name("a"))
    assert await named(der, issuers=["CN=our-ca"]) == "a"
    assert await named(der, issuers=["CN=x", "CN=our-ca"]) == "a"
    assert await named(der, issuers=["CN=our"]) is None
    assert await named(OTHER.issue(name("a")), issuers=["CN=our-ca"]) is None


async def test_every_list_has_to_agree() -> None:
    der = SIGNER.issue(name("a"))
    mark = await named(der, username_from="fingerprint")
    assert await named(der, issuers=["CN=our-ca"], fingerprints=[mark]) == "a"
    assert await named(der, issuers=["CN=other-ca"], fingerprints=[mark]) is None


async def test_the_client_id_may_have_to_be_the_name() -> None:
    plugin, _ = await started(client_id_must_match=True)
    der = SIGNER.issue(name("sensor-1"))
    assert isinstance(plugin.authenticate(client(der, "sensor-1"), NOBODY), Allow)
    for client_id in ("sensor-2", "", "SENSOR-1"):
        denied = plugin.authenticate(client(der, client_id), NOBODY)
        assert isinstance(denied, Deny)
        assert denied.code == reason_codes.CLIENT_IDENTIFIER_NOT_VALID


async def test_an_expired_certificate_is_refused_whatever_tls_says() -> None:
    assert isinstance(await decided(SIGNER.issue(name("a"), life=-DAY)), Deny)


async def test_before_it_has_started_certificates_are_refused() -> None:
    plugin = CertIdentity(Config(), StandIn())
    assert isinstance(plugin.authenticate(client(SIGNER.issue(name("a"))), NOBODY), Deny)


@pytest.mark.parametrize("pem", [True, False])
async def test_revoked_certificates_are_refused(tmp_path: Path, pem: bool) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(7, 9, pem=pem))
    assert await named(SIGNER.issue(name("a"), 8), crl=[str(crl)]) == "a"
    revoked = await decided(SIGNER.issue(name("a"), 7), crl=[str(crl)])
    assert revoked == Deny("its certificate was revoked")


async def test_a_list_says_nothing_about_another_issuer(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(7))
    denied = await decided(OTHER.issue(name("a"), 8), crl=[str(crl)])
    assert denied == Deny("there is no revocation list of its certificate's issuer")
    crl.write_bytes(SIGNER.revoke(7) + OTHER.revoke(9))
    assert await named(OTHER.issue(name("a"), 7), crl=[str(crl)]) == "a"
    assert await named(OTHER.issue(name("a"), 9), crl=[str(crl)]) is None


async def test_an_expired_list_is_no_list(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(7, life=-timedelta(hours=1)))
    assert await named(SIGNER.issue(name("a"), 8), crl=[str(crl)]) is None
    assert await named(SIGNER.issue(name("a"), 8), crl=[str(crl)], expired_crl="allow") == "a"
    assert await named(SIGNER.issue(name("a"), 7), crl=[str(crl)], expired_crl="allow") is None


async def test_lists_have_to_be_signed_where_authorities_are_given(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(
        b"".join(
            signer.certificate.public_bytes(serialization.Encoding.PEM)
            for signer in (OTHER, SIGNER)
        )
    )
    crl = tmp_path / "ca.crl"
    config = {"crl": [str(crl)], "crl_ca": str(authorities)}
    crl.write_bytes(SIGNER.revoke(7))
    assert await named(SIGNER.issue(name("a"), 8), **config) == "a"
    crl.write_bytes(Signer("our-ca").revoke())  # the same name, another key
    with pytest.raises(ValueError, match=r"ca\.crl: not signed by any authority of"):
        await started(**config)


async def test_partial_lists_are_refused(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(7, extensions=[(x509.DeltaCRLIndicator(1), True)]))
    with pytest.raises(ValueError, match=r"ca\.crl: a partial revocation list"):
        await started(crl=[str(crl)])
    crl.write_bytes(SIGNER.revoke(7, extensions=[(x509.CRLNumber(1), False)]))
    await started(crl=[str(crl)])


@pytest.mark.parametrize("content", [b"", b"rubbish", b"-----BEGIN X509 CRL-----\nAAAA\n"])
async def test_what_is_no_list_is_found_by_a_check(tmp_path: Path, content: bytes) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(content)
    config = Config.model_validate({"crl": [str(crl)]})
    with pytest.raises(ValueError, match=r"ca\.crl: expected revocation lists"):
        await CertIdentity(config, StandIn()).check()
    crl.unlink()
    with pytest.raises(OSError, match="No such file"):
        await CertIdentity(config, StandIn()).check()


async def test_a_bad_issuer_is_found_by_a_check() -> None:
    config = Config.model_validate({"issuers": ["our-ca"]})
    with pytest.raises(ValueError, match="'our-ca' is no distinguished name"):
        await CertIdentity(config, StandIn()).check()


async def test_who_left_without_a_word_is_not_held_on_to(tmp_path: Path) -> None:
    file = tmp_path / "ca.crl"
    file.write_bytes(SIGNER.revoke(1))
    plugin, broker = await started(crl=[str(file)])
    certificate = SIGNER.issue(name("sensor-1"), 7)
    for number in range(3):  # none of them has a session yet, so their end is no event
        gone = client(certificate, "c", f"192.0.2.1:{number}")
        assert isinstance(plugin.authenticate(gone, NOBODY), Allow)
    del gone
    gc.collect()
    file.write_bytes(SIGNER.revoke(7))
    await plugin.reload(plugin.config)
    assert broker.kicked == []
    assert "kicked" not in broker.counts
    assert isinstance(plugin.authenticate(client(certificate), NOBODY), Deny)
    await plugin.stop()


async def test_who_is_revoked_while_connected_is_kicked(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(1))
    plugin, broker = await started(crl=[str(crl)])
    here = []
    for serial in (7, 8, 9):
        der = SIGNER.issue(name(f"n{serial}"), serial)
        here.append(client(der, f"c{serial}", f"192.0.2.1:{serial}"))
        assert isinstance(plugin.authenticate(here[-1], NOBODY), Allow)
        connected(broker, here[-1], serial < 9)
    crl.write_bytes(SIGNER.revoke(7, 9))
    os.utime(crl, ns=(1, 1))
    await broker.advance(2)
    assert broker.kicked == [("c7", "its certificate was revoked", reason_codes.NOT_AUTHORIZED)]
    assert broker.gauges["revoked"] == 2
    await plugin.stop()


async def test_who_shares_a_peer_with_others_is_kicked_as_well(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(1))
    plugin, broker = await started(crl=[str(crl)])
    here = [client(SIGNER.issue(name(f"n{n}"), n), f"c{n}", "unix:/run/s") for n in (7, 8, 9)]
    for one in here:
        assert isinstance(plugin.authenticate(one, NOBODY), Allow)
        connected(broker, one)
    crl.write_bytes(SIGNER.revoke(7, 8))
    os.utime(crl, ns=(1, 1))
    await broker.advance(2)
    assert sorted(client_id for client_id, *_ in broker.kicked) == ["c7", "c8"]
    await plugin.stop()


async def test_who_came_after_one_that_was_revoked_stays(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(1))
    plugin, broker = await started(crl=[str(crl)])
    before = client(SIGNER.issue(name("n"), 7), "c", "192.0.2.1:1")
    after = client(SIGNER.issue(name("n"), 8), "c", "192.0.2.1:2")
    for one in (before, after):  # with the same identifier
        assert isinstance(plugin.authenticate(one, NOBODY), Allow)
    connected(broker, after)
    crl.write_bytes(SIGNER.revoke(7))
    os.utime(crl, ns=(1, 1))
    await broker.advance(2)
    assert broker.kicked == []
    await plugin.stop()


async def test_a_list_that_becomes_bad_changes_nothing(tmp_path: Path) -> None:
    crl = tmp_path / "ca.crl"
    crl.write_bytes(SIGNER.revoke(7))
    plugin, broker = await started(crl=[str(crl)])
    crl.write_bytes(b"torn")
    await broker.advance(10)
    assert broker.counts == {"reload_failures": 1}
    assert isinstance(plugin.authenticate(client(SIGNER.issue(name("a"), 7)), NOBODY), Deny)
    assert isinstance(plugin.authenticate(client(SIGNER.issue(name("a"), 8)), NOBODY), Allow)
    await plugin.stop()


async def test_a_reload_takes_all_of_it_or_nothing(tmp_path: Path) -> None:
    plugin, broker = await started()
    here = client(SIGNER.issue(name("a")))
    assert isinstance(plugin.authenticate(here, NOBODY), Allow)
    connected(broker, here)
    with pytest.raises(ValueError, match="no distinguished name"):
        await plugin.reload(Config.model_validate({"issuers": ["x"], "template": "a{}"}))
    assert isinstance(plugin.authenticate(here, NOBODY), Allow)
    assert broker.kicked == []
    await plugin.reload(Config.model_validate({"issuers": ["CN=x"]}))
    assert isinstance(plugin.authenticate(here, NOBODY), Deny)
    assert [client_id for client_id, *_ in broker.kicked] == ["c"]
    await plugin.stop()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"template": "x"}, r"expected one \{\}"),
        ({"template": "{}{}"}, r"expected one \{\}"),
        ({"fingerprints": ["abc"]}, "expected SHA-256 fingerprints"),
        ({"fingerprints": ["g" * 64]}, "expected SHA-256 fingerprints"),
        ({"crl_ca": "ca.pem"}, "expected crl beside it"),
        ({"username_from": "ou"}, "username_from"),
        ({"check_interval": 0.01}, "expected 100ms or more"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(config)


async def test_the_stand_in_starts_it_as_the_broker_does() -> None:
    broker = StandIn("cert_identity")
    plugin = cast(CertIdentity, await broker.start(CertIdentity, Config()))
    assert plugin.authenticate(client(None), NOBODY) == NOT_MINE
    await plugin.stop()


async def test_what_is_missing_is_told_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mqttd_plugins._certificates", None)
    with pytest.raises(RuntimeError, match=r'pip install "mqttd\[tls\]"'):
        await CertIdentity(Config(), StandIn()).check()
