"""Tokens that fooled verifiers elsewhere, shown to the plugin jwt."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from mqttd_plugins.jwt import Config, Jwt

from mqttd.api import Allow, Client, Credentials, Decision, Deny, NotMine, SubscriptionRequest
from mqttd.testing import StandIn, settled
from tests.plugins.token_kit import (
    EC_KEY,
    RSA_KEY,
    SECRET,
    by_hand,
    claims,
    jwk,
    jwks,
    public_pem,
    signed,
)

HS: dict[str, Any] = {"algorithms": ["HS256"], "secret": SECRET}


async def decided(token: bytes, config: dict[str, Any]) -> Decision:
    plugin = await StandIn("jwt").start(Jwt, Config.model_validate(config))
    answer = await settled(plugin.authenticate(Client("c"), Credentials("admin", token)))
    await plugin.stop()
    return cast(Decision, answer)


@pytest.fixture
def by_pem(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem(RSA_KEY))
    return {"algorithms": ["RS256"], "public_key_file": str(file)}


async def test_jwt_alg_confusion_a_public_key_is_no_secret(
    tmp_path: Path, by_pem: dict[str, Any]
) -> None:
    assert isinstance(await decided(signed(RSA_KEY, "RS256"), by_pem), Allow)
    pem = public_pem(RSA_KEY)
    entry = jwk(RSA_KEY, "a")
    file = tmp_path / "set.json"
    file.write_bytes(jwks(entry))
    by_set = {"algorithms": ["RS256"], "jwks_file": str(file)}
    for secret in (pem, pem.strip(), json.dumps(entry).encode(), entry["n"].encode()):
        for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "a"}):
            forged = by_hand(header, claims(), secret)
            assert isinstance(await decided(forged, by_pem), Deny)
            assert isinstance(await decided(forged, by_set), Deny)


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", None, [], {}, 0, "hs256"]
)
async def test_jwt_alg_none_in_any_spelling(algorithm: Any, by_pem: dict[str, Any]) -> None:
    for config in (HS, by_pem):
        token = by_hand({"alg": algorithm, "typ": "JWT"}, claims())
        assert isinstance(await decided(token, config), Deny | NotMine)
        token = by_hand({"alg": algorithm, "typ": "JWT"}, claims(), SECRET.encode())
        assert isinstance(await decided(token, config), Deny | NotMine)


async def test_jwt_alg_missing() -> None:
    token = by_hand({"typ": "JWT"}, claims(), SECRET.encode())
    assert isinstance(await decided(token, HS), Deny | NotMine)


async def test_jwt_without_a_signature_or_with_an_empty_one() -> None:
    good = signed()
    head, body, _ = good.split(b".")
    for token in (head + b"." + body + b".", head + b"." + body, head + b".." + body, b"." + good):
        assert not isinstance(await decided(token, HS), Allow)


async def test_jwt_every_bit_of_the_signature_counts() -> None:
    good = signed()
    head, _, signature = good.rpartition(b".")
    for place in range(len(signature)):
        other = b"A" if signature[place : place + 1] != b"A" else b"Q"
        token = head + b"." + signature[:place] + other + signature[place + 1 :]
        assert isinstance(await decided(token, HS), Deny), place


async def test_jwt_claims_exchanged_under_a_good_signature() -> None:
    head, _, signature = signed().split(b".")
    _, body, _ = signed(sub="admin").split(b".")
    assert isinstance(await decided(b".".join((head, body, signature)), HS), Deny)


async def test_jwt_keys_that_the_token_brings_along_arent_used(by_pem: dict[str, Any]) -> None:
    import jwt

    mine = jwk(EC_KEY, "mine")
    for extra in (
        {"jwk": mine},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"kid": "../../../../dev/null"},
        {"kid": "' UNION SELECT 'secret"},
    ):
        token = jwt.encode(claims(), EC_KEY, "ES256", headers=extra).encode()
        assert isinstance(await decided(token, by_pem), Deny)
        config = {**by_pem, "algorithms": ["RS256", "ES256"]}
        assert isinstance(await decided(token, config), Deny)


async def test_jwt_psychic_signature_of_zeros(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem(EC_KEY))
    head = by_hand({"alg": "ES256"}, claims()).rpartition(b".")[0]
    config = {"algorithms": ["ES256"], "public_key_file": str(file)}
    assert isinstance(await decided(head + b"." + b"A" * 86, config), Deny)


async def test_jwt_critical_headers_that_arent_understood() -> None:
    for header in (
        {"alg": "HS256", "crit": ["exp"], "exp": 1},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "crit": "b64"},
    ):
        token = by_hand(header, claims(), SECRET.encode())
        assert not isinstance(await decided(token, HS), Allow)


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"null",
        b"7",
        b"{",
        b"",
        b"\xff",
        b"[" * 4000,
        b'{"sub":"a","exp":NaN}',
        b'{"sub":"a","exp":Infinity}',
        b'{"sub":"a","exp":1e999}',
        b'{"sub":"a","exp":-1}',
        b'{"sub":"a","exp":true}',
        b'{"sub":"a","exp":[9999999999]}',
        b'{"sub":["a"],"exp":9999999999}',
        b'{"sub":{"a":1},"exp":9999999999}',
        b'{"sub":"a","exp":9999999999,"nbf":"x"}',
        b'{"sub":"\\ud800","exp":9999999999}',
        b'{"sub":"a\\u0000b","exp":9999999999}',
        b'{"sub":"a\\u202eb","exp":9999999999}',
    ],
)
async def test_jwt_claims_that_are_none_though_the_signature_is_good(payload: bytes) -> None:
    token = by_hand({"alg": "HS256"}, payload, SECRET.encode())
    assert isinstance(await decided(token, HS), Deny)


async def test_jwt_oversized_tokens_are_refused_unread() -> None:
    token = signed(padding="x" * 10_000)
    assert await decided(token, HS) == Deny("a token that is too long")
    assert isinstance(await decided(token, {**HS, "max_token_size": "64KiB"}), Allow)
    assert isinstance(await decided(b"." * 1_000_000, HS), Deny)


async def test_cve_2017_7650_names_with_wildcards_widen_no_rule_of_a_token() -> None:
    plugin = await StandIn("jwt").start(Jwt, Config.model_validate(HS))
    acl = {"all": ["u/${username}/#", "c/${clientid}"]}
    for client_id, sub in (("c1", "#"), ("c1", "+"), ("#", "ada"), ("+", "ada"), ("a/b", "ada")):
        client = Client(client_id)
        answer = await settled(
            plugin.authenticate(client, Credentials("", signed(sub=sub, acl=acl)))
        )
        assert isinstance(answer, Allow)
        client.username = answer.username
        for topic in ("u/bob/x", "c/c2", "c/a/b", f"u/{sub}/x"):
            assert isinstance(plugin.authorize_publish(client, topic, 0, False), Deny)
            assert isinstance(plugin.authorize_receive(client, topic), Deny)
        for wanted in ("u/#", "#", "$share/g/u/+/#", "c/+"):
            decision = plugin.authorize_subscribe(client, SubscriptionRequest(wanted))
            assert isinstance(decision, Deny)
    await plugin.stop()


async def test_jwt_reasons_hold_no_word_of_the_token(caplog: pytest.LogCaptureFixture) -> None:
    marker = "SECRETMARKER"
    for token in (
        by_hand({"alg": marker}, claims(), SECRET.encode()),
        by_hand({"alg": "HS256", "kid": marker}, claims(sub=marker), b"wrong" * 10),
        signed(aud=marker),
        signed(iss=marker, exp=1),
        signed(acl={marker: []}),
        signed(acl=[{"permission": marker}]),
        signed(acl=[{"permission": "allow", "topic": "a", marker: marker}]),
        signed(acl=[{"permission": "allow", "topic": f"{marker}/#/x"}]),
    ):
        decision = await decided(token, HS)
        assert isinstance(decision, Deny)
        assert marker not in decision.reason + decision.rule
    assert marker not in caplog.text
