"""jwt: which tokens count, who they name, what they allow, and when they end."""

import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from mqttd_plugins.jwt import Config, Jwt
from pydantic import ValidationError

from mqttd.api import NOT_MINE, Allow, Client, Credentials, Decision, Deny, SubscriptionRequest
from mqttd.testing import StandIn, settled
from tests.plugins.token_kit import (
    EC_KEY,
    ED_KEY,
    HOUR,
    RSA_KEY,
    SECRET,
    by_hand,
    claims,
    jwk,
    jwks,
    private_pem,
    public_pem,
    signed,
)

HS: dict[str, Any] = {"algorithms": ["HS256"], "secret": SECRET}


OTHER_KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER_KEYS["PS512"] = OTHER_KEYS["RS256"]


async def started(**config: Any) -> tuple[Jwt, StandIn]:
    broker = StandIn("jwt")
    return cast(Jwt, await broker.start(Jwt, Config.model_validate(config or HS))), broker


async def decided(token: bytes | None, client: Client | None = None, **config: Any) -> Decision:
    plugin, _ = await started(**config)
    client = client or Client("c1", "claimed")
    answer = await settled(plugin.authenticate(client, Credentials("claimed", token)))
    await plugin.stop()
    return cast(Decision, answer)


async def reason(token: bytes, client: Client | None = None, **config: Any) -> str:
    decision = await decided(token, client, **config)
    assert isinstance(decision, Deny)
    return decision.reason


async def test_a_good_token_gives_the_name_and_the_end() -> None:
    decision = await decided(signed())
    assert isinstance(decision, Allow)
    assert decision.username == "ada"
    assert decision.expires_in_s is not None
    assert HOUR - 60 < decision.expires_in_s <= HOUR + 10  # with the leeway


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [("RS256", RSA_KEY), ("PS512", RSA_KEY), ("ES256", EC_KEY), ("EdDSA", ED_KEY)],
)
async def test_public_keys(tmp_path: Path, algorithm: str, key: Any) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem(key))
    config: dict[str, Any] = {"algorithms": [algorithm], "public_key_file": str(file)}
    assert isinstance(await decided(signed(key, algorithm), **config), Allow)
    wrong = signed(OTHER_KEYS[algorithm], algorithm)
    assert await reason(wrong, **config) == "the signature of its token is wrong"


async def test_secrets_of_a_file_and_in_base64(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET.encode() + b"\n")
    config: dict[str, Any] = {"algorithms": ["HS256", "HS512"], "secret_file": str(file)}
    assert isinstance(await decided(signed(algorithm="HS512"), **config), Allow)
    file.write_bytes(
        b"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm"
        b"MDEyMzQ1Njc4OWFiY2RlZg==\n"
    )
    assert isinstance(await decided(signed(), **config, secret_base64=True), Allow)
    assert isinstance(await decided(signed(), **config), Deny)


@pytest.mark.parametrize("password", [None, b"", b"hunter2", b"a.b", b"a.b.c", b"..", b"\xff.."])
async def test_what_is_no_token_is_for_other_plugins(password: bytes | None) -> None:
    assert await decided(password) == NOT_MINE


async def test_the_token_in_the_user_name() -> None:
    plugin, _ = await started(**HS, token_in="username")
    client = Client("c1", "token")
    answer = plugin.authenticate(client, Credentials(signed().decode(), None))
    assert isinstance(answer, Allow)
    assert answer.username == "ada"
    assert plugin.authenticate(client, Credentials(None, signed())) == NOT_MINE
    assert plugin.authenticate(client, Credentials("ada", signed())) == NOT_MINE


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"exp": int(time.time()) - HOUR}, "its token has expired"),
        ({"nbf": int(time.time()) + HOUR}, "its token isn't valid yet"),
        ({"iat": int(time.time()) + HOUR}, "its token isn't valid yet"),
        ({"exp": None}, "its token has no exp"),
        ({"exp": "soon"}, "its token can't be read"),
        ({"sub": None}, "its token names no user"),
        ({"sub": ""}, "its token names no user"),
        ({"sub": "a\nb"}, "its token names no user"),
        ({"sub": "a" * 7000}, "a token that is too long"),
        ({"aud": "them"}, "its token is for another audience"),
    ],
)
async def test_claims_that_are_no_good(more: dict[str, Any], told: str) -> None:
    assert await reason(signed(**more)) == told


async def test_clocks_may_be_apart_by_the_leeway() -> None:
    late = int(time.time()) - 60
    decision = await decided(signed(exp=late), **HS, leeway="2m")
    assert isinstance(decision, Allow)
    assert decision.expires_in_s is not None
    assert 0 < decision.expires_in_s <= 60


async def test_issuer_and_audience_are_those_of_the_configuration() -> None:
    config: dict[str, Any] = {**HS, "issuer": "https://id.example", "audience": ["mqtt", "other"]}
    good: dict[str, Any] = {"iss": "https://id.example", "aud": ["x", "mqtt"]}
    assert isinstance(await decided(signed(**good), **config), Allow)
    assert await reason(signed(**{**good, "iss": "https://evil.example"}), **config) == (
        "its token comes from another issuer"
    )
    assert await reason(signed(aud="mqtt"), **config) == "its token has no iss"
    told = await reason(signed(**{**good, "aud": ["x"]}), **config)
    assert told == "its token is for another audience"
    assert await reason(signed(iss=good["iss"]), **config) == "its token has no aud"


async def test_other_claims_may_have_to_be_something() -> None:
    config: dict[str, Any] = {
        **HS,
        "claims": {"clientid": "${clientid}", "user": "${username}", "tenant": "t1"},
    }
    good: dict[str, Any] = {"clientid": "c1", "user": "claimed", "tenant": "t1"}
    assert isinstance(await decided(signed(**good), **config), Allow)
    for name, value in (("clientid", "c2"), ("user", "x"), ("tenant", ["t1"]), ("tenant", None)):
        told = await reason(signed(**{**good, name: value}), **config)
        assert told == f"the claim '{name}' of its token isn't as expected"
    nameless = await reason(signed(**{**good, "clientid": ""}), Client("", "claimed"), **config)
    assert nameless == "the claim 'clientid' of its token isn't as expected"


async def test_a_token_without_an_end_is_taken_only_if_wanted() -> None:
    decision = await decided(signed(exp=None), **HS, require_exp=False)
    assert decision == Allow("jwt: HS256", username="ada")
    kept = await decided(signed(), **HS, disconnect_when_expired=False)
    assert kept == Allow("jwt: HS256", username="ada")
    for exp in (10**15, 10**400):
        far = await decided(signed(exp=exp), **HS)
        assert isinstance(far, Allow)
        assert far.expires_in_s == 10 * 365 * 86400.0


async def test_the_user_name_may_stand_in_another_claim() -> None:
    decision = await decided(signed(device="d7"), **HS, username_claim="device")
    assert isinstance(decision, Allow)
    assert decision.username == "d7"
    assert isinstance(await decided(signed(), **HS, username_claim="device"), Deny)


async def with_rules(acl: Any, **config: Any) -> tuple[Jwt, Client, StandIn]:
    plugin, broker = await started(**HS, **config)
    client = Client("c1", "claimed", peer="192.0.2.7:1")
    answer = plugin.authenticate(client, Credentials("claimed", signed(acl=acl)))
    assert isinstance(answer, Allow)
    client.username = answer.username
    return plugin, client, broker


async def test_rules_in_a_token_decide() -> None:
    plugin, client, broker = await with_rules(
        {"pub": ["up/${username}/${clientid}"], "sub": ["down/#"]}
    )
    allowed = plugin.authorize_publish(client, "up/ada/c1", 0, False)
    assert allowed == Allow("jwt: allow publish up/${username}/${clientid}")
    denied = plugin.authorize_publish(client, "up/claimed/c1", 0, False)
    assert denied == Deny("its token doesn't allow it", rule="jwt: none of its rules")
    for wanted, answer in (("down/a", Allow), ("$share/g/down/a", Allow), ("#", Deny)):
        decision = plugin.authorize_subscribe(client, SubscriptionRequest(wanted))
        assert isinstance(decision, answer)
    assert isinstance(plugin.authorize_receive(client, "down/x"), Allow)
    assert isinstance(plugin.authorize_receive(client, "up/ada/c1"), Deny)
    assert broker.counts == {"denied_publish": 1, "denied_subscribe": 1, "denied_receive": 1}


async def test_decisions_that_depend_on_more_than_the_topic_arent_remembered() -> None:
    rule = {"permission": "allow", "action": "all", "topic": "a", "qos": [0]}
    plugin, client, _ = await with_rules([rule])
    assert plugin.authorize_publish(client, "a", 0, False) == Allow("jwt: allow all a", cache=False)
    assert isinstance(plugin.authorize_publish(client, "a", 1, False), Deny)


@pytest.mark.parametrize("acl", ["#", [{"permission": "allow"}], {"pub": ["a/#/b"]}, [[]], 7])
async def test_rules_that_cant_be_understood_let_nobody_in(acl: Any) -> None:
    assert (await reason(signed(acl=acl))).startswith("the rules in its token can't be understood")


async def test_what_no_rule_speaks_of_may_be_left_to_others() -> None:
    plugin, client, _ = await with_rules([], no_match="ignore", without_acl="allow")
    assert plugin.authorize_publish(client, "a", 0, False) == NOT_MINE
    assert plugin.authorize_receive(client, "a") == NOT_MINE


@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        ("ignore", NOT_MINE),
        ("allow", Allow("jwt: without_acl")),
        ("deny", Deny("its token doesn't allow it", rule="jwt: without_acl")),
    ],
)
async def test_clients_without_rules(policy: str, answer: Decision) -> None:
    plugin, client, _ = await with_rules(None, without_acl=policy)
    assert plugin.authorize_publish(client, "a", 0, False) == answer
    assert plugin.authorize_receive(client, "a") == answer
    stranger = Client("c2", "somebody")
    assert plugin.authorize_subscribe(stranger, SubscriptionRequest("a")) == NOT_MINE


async def test_rules_arent_looked_at_where_there_is_no_claim_for_them() -> None:
    plugin, client, _ = await with_rules("rubbish", acl_claim=None)
    assert plugin.authorize_publish(client, "a", 0, False) == NOT_MINE


async def test_a_new_token_replaces_the_rules_of_the_old_one() -> None:
    plugin, client, _ = await with_rules({"all": ["#"]})
    plugin.authenticate(client, Credentials("claimed", signed(acl={"pub": ["a"]})))
    assert isinstance(plugin.authorize_publish(client, "b", 0, False), Deny)
    plugin.authenticate(client, Credentials("claimed", signed()))
    assert plugin.authorize_publish(client, "b", 0, False) == NOT_MINE


async def test_claims_are_there_for_other_plugins() -> None:
    client = Client("c1")
    await decided(signed(tenant="t1"), client, **HS)
    assert client.attributes["jwt.claims"]["tenant"] == "t1"


async def test_a_changed_key_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(jwk(EC_KEY, "old")))
    config: dict[str, Any] = {"algorithms": ["ES256", "EdDSA"], "jwks_file": str(file)}
    plugin, broker = await started(**config)

    async def answer(key: Any, algorithm: str, kid: str) -> Decision:
        made = plugin.authenticate(Client("c"), Credentials("", signed(key, algorithm, kid)))
        return cast(Decision, await settled(made))

    assert isinstance(await answer(EC_KEY, "ES256", "old"), Allow)
    assert isinstance(await answer(EC_KEY, "ES256", "other"), Deny)
    file.write_bytes(jwks(jwk(ED_KEY, "new")) + b" ")
    await broker.advance(3)
    assert isinstance(await answer(EC_KEY, "ES256", "old"), Deny)
    assert isinstance(await answer(ED_KEY, "EdDSA", "new"), Allow)
    file.write_bytes(b"torn")
    await broker.advance(10)
    assert broker.counts["reload_failures"] == 1
    assert isinstance(await answer(ED_KEY, "EdDSA", "new"), Allow)
    await plugin.stop()


async def test_a_reload_takes_all_of_it_or_nothing(tmp_path: Path) -> None:
    plugin, broker = await started()
    bad = Config.model_validate({"algorithms": ["ES256"], "public_key_file": str(tmp_path / "x")})
    with pytest.raises(OSError, match="No such file"):
        await plugin.reload(bad)
    assert isinstance(plugin.authenticate(Client("c"), Credentials("", signed())), Allow)
    assert broker.forgotten == []
    await plugin.reload(Config.model_validate({**HS, "issuer": "x"}))
    assert isinstance(plugin.authenticate(Client("c"), Credentials("", signed())), Deny)
    assert broker.forgotten == [None]
    await plugin.stop()


async def test_before_it_has_started_there_are_no_keys() -> None:
    plugin = Jwt(Config.model_validate(HS), StandIn("jwt"))
    assert isinstance(plugin.authenticate(Client("c"), Credentials("", signed())), Deny)


@pytest.mark.parametrize(
    ("content", "algorithm", "source", "told"),
    [
        (private_pem(EC_KEY), "ES256", "public_key_file", "found a private key, expected a public"),
        (b"rubbish", "ES256", "public_key_file", "found something else, expected a public"),
        (public_pem(EC_KEY), "RS256", "public_key_file", "no key in it for RS256"),
        (b"short\n", "HS256", "secret_file", "has 5 bytes, expected 32 or more"),
        (b"[]", "ES256", "jwks_file", "expected a JWKS"),
        (b"{", "ES256", "jwks_file", "expected a JWKS"),
        (jwks(), "ES256", "jwks_file", "no public key for signatures in it"),
        (jwks(jwk(EC_KEY, "a", use="enc")), "ES256", "jwks_file", "no public key for signatures"),
        (jwks({"kty": "oct", "k": "c2VjcmV0"}), "ES256", "jwks_file", "no public key"),
        (jwks(jwk(EC_KEY, "a")), "EdDSA", "jwks_file", "no key in it for EdDSA"),
    ],
)
async def test_keys_that_are_no_good_are_found_by_a_check(
    tmp_path: Path, content: bytes, algorithm: str, source: str, told: str
) -> None:
    file = tmp_path / "keyfile"
    file.write_bytes(content)
    config = Config.model_validate({"algorithms": [algorithm], source: str(file)})
    with pytest.raises(ValueError, match=f"keyfile: .*{told}"):
        await Jwt(config, StandIn()).check()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"algorithms": [], "secret": SECRET}, "expected one or more"),
        ({"algorithms": ["none"], "secret": SECRET}, "algorithms"),
        ({"algorithms": ["HS256", "RS256"], "secret": SECRET}, "not both"),
        ({"algorithms": ["HS256"]}, "found none of them"),
        ({**HS, "jwks_file": "x"}, "found secret and jwks_file"),
        ({"algorithms": ["HS256"], "public_key_file": "x"}, "expected secret or secret_file"),
        ({"algorithms": ["RS256"], "secret": SECRET}, "expected a public key or a JWKS"),
        ({"algorithms": ["RS256"], "jwks_url": "http://id.example/k"}, "expected https"),
        ({"algorithms": ["RS256"], "jwks_url": "file:///etc/passwd"}, "expected https"),
        ({"algorithms": ["RS256"], "jwks_url": "https:///k"}, "expected https"),
        ({**HS, "jwks_refresh": 0}, "expected 100ms or more"),
        ({**HS, "check_interval": 0.01}, "expected 100ms or more"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(config)


def test_the_secret_isnt_shown() -> None:
    assert SECRET not in repr(Config.model_validate(HS))


def test_tokens_by_hand_are_as_good_as_others() -> None:
    """What the hostile tests put together would be taken with the right key and header."""
    import jwt

    token = by_hand({"alg": "HS256"}, claims(), SECRET.encode())
    assert jwt.decode(token, SECRET, ["HS256"])["sub"] == "ada"


async def test_what_is_missing_is_told_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    by_url = {"algorithms": ["RS256"], "jwks_url": "https://id.example/keys"}
    for config in (HS, by_url):
        with pytest.raises(RuntimeError, match=r'pip install "mqttd\[jwt\]"'):
            await Jwt(Config.model_validate(config), StandIn()).check()
