"""Sets of keys behind a URL: rotation, caching, and a server that is down, slow or lies."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from mqttd_plugins._jwt_keys import Key, KeyProblem, KeyRing, ring_of_set
from mqttd_plugins.jwt import Config, Jwt

from mqttd.api import Allow, Client, Credentials, Decision, Deny
from mqttd.testing import StandIn, settled
from tests.plugins.http_kit import Service, served
from tests.plugins.token_kit import EC_KEY, ED_KEY, RSA_KEY, jwk, jwks, signed
from tests.tls import Authority

BOTH = ["ES256", "EdDSA"]


async def started(service: Service, **config: Any) -> tuple[Jwt, StandIn]:
    broker = StandIn("jwt")
    model = Config.model_validate({"algorithms": BOTH, "jwks_url": service.url, **config})
    return cast(Jwt, await broker.start(Jwt, model)), broker


async def decided(plugin: Jwt, key: Any, algorithm: str, kid: str | None) -> Decision:
    token = signed(key, algorithm, kid)
    return cast(Decision, await settled(plugin.authenticate(Client("c"), Credentials("", token))))


async def admits(plugin: Jwt, key: Any, algorithm: str, kid: str | None) -> bool:
    return isinstance(await decided(plugin, key, algorithm, kid), Allow)


async def test_keys_are_fetched_once_and_kept() -> None:
    async with served() as service:
        service.says(jwks(jwk(EC_KEY, "a"), jwk(ED_KEY, "b")))
        plugin, broker = await started(service)
        for _ in range(3):
            assert await admits(plugin, EC_KEY, "ES256", "a")
            assert await admits(plugin, ED_KEY, "EdDSA", "b")
        assert not await admits(plugin, EC_KEY, "ES256", "b")
        assert not await admits(plugin, ED_KEY, "EdDSA", "a")
        assert len(service.requests) == 1
        assert broker.gauges["keys"] == 2
        await plugin.stop()


async def test_a_key_id_that_is_new_is_looked_for_but_seldom() -> None:
    async with served() as service:
        service.says(jwks(jwk(EC_KEY, "a")))
        plugin, broker = await started(service, jwks_refresh="1h")
        assert not await admits(plugin, ED_KEY, "EdDSA", "b")
        assert len(service.requests) == 1  # it was fetched a moment ago
        service.says(jwks(jwk(ED_KEY, "b")))
        await broker.advance(11)
        answers = await asyncio.gather(*(admits(plugin, ED_KEY, "EdDSA", "b") for _ in range(5)))
        assert answers == [True] * 5
        assert len(service.requests) == 2
        assert not await admits(plugin, EC_KEY, "ES256", "a")  # taken out of the set
        for number in range(20):
            assert not await admits(plugin, ED_KEY, "EdDSA", f"made up {number}")
        assert len(service.requests) == 2
        await plugin.stop()


async def test_the_set_is_fetched_again_from_time_to_time() -> None:
    async with served() as service:
        service.says(jwks(jwk(EC_KEY, "a")))
        plugin, broker = await started(service, jwks_refresh="1m")
        service.says(jwks(jwk(ED_KEY, "b")))
        await broker.advance(61)
        assert len(service.requests) == 2
        assert await admits(plugin, ED_KEY, "EdDSA", "b")
        await plugin.stop()
        await broker.advance(1000)
        assert len(service.requests) == 2


async def test_a_server_that_is_down_leaves_the_keys_in_force_until_they_are_too_old() -> None:
    async with served() as service:
        service.says(jwks(jwk(EC_KEY, "a")))
        plugin, broker = await started(service, jwks_refresh="1m", jwks_max_age="10m")
        service.says({}, status=500)
        await broker.advance(599)
        assert await admits(plugin, EC_KEY, "ES256", "a")
        assert broker.counts["jwks_failures"] > 5
        await broker.advance(10)
        denied = await decided(plugin, EC_KEY, "ES256", "a")
        assert denied == Deny("there is no key for its token")
        service.says(jwks(jwk(EC_KEY, "a")))
        await broker.advance(11)
        assert await admits(plugin, EC_KEY, "ES256", "a")
        await plugin.stop()


async def test_a_server_that_is_down_at_the_start_admits_nobody_until_it_is_back() -> None:
    async with served() as service:
        plugin, broker = await started(service)
        assert not await admits(plugin, EC_KEY, "ES256", "a")
        service.says(jwks(jwk(EC_KEY, "a")))
        await broker.advance(11)
        assert await admits(plugin, EC_KEY, "ES256", "a")
        await plugin.stop()


LIES = {
    "redirect": (b"", 302, {"headers": {"Location": "/elsewhere"}}, "answered 302"),
    "no JSON": (b"<html>", 200, {}, "expected a JWKS"),
    "deep": (b"[" * 100_000, 200, {}, "expected a JWKS"),
    "no list": (b'{"keys": {}}', 200, {}, "expected a JWKS"),
    "nothing": (b"", 204, {}, "answered 204"),
    "error": (b"", 503, {}, "answered 503"),
    "too much": (b" " * ((1 << 20) + 1), 200, {}, "more than 1048576 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_no_set_is_told_and_gives_no_keys(lie: str) -> None:
    body, status, more, told = LIES[lie]
    async with served() as service:
        service.says(body, status, **more)
        config = Config.model_validate({"algorithms": BOTH, "jwks_url": service.url})
        with pytest.raises(KeyProblem, match=told):
            await Jwt(config, StandIn("jwt")).check()
        assert len(service.requests) == 1  # a redirect isn't followed


async def test_a_server_that_drips_is_given_up() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b" ")
            await asyncio.sleep(0.02)
        return response

    async with served() as service:
        service.answer = drip
        config = Config.model_validate(
            {"algorithms": BOTH, "jwks_url": service.url, "jwks_timeout": "200ms"}
        )
        with pytest.raises(KeyProblem, match="not all of it within"):
            await Jwt(config, StandIn("jwt")).check()


async def test_nobody_there() -> None:
    async with served() as service:
        url = service.url
    config = Config.model_validate({"algorithms": BOTH, "jwks_url": url})
    with pytest.raises(KeyProblem, match="refused"):
        await Jwt(config, StandIn("jwt")).check()


async def test_the_server_has_to_prove_who_it_is(tmp_path: Path) -> None:
    import ssl

    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    async with served(context) as service:
        service.says(jwks(jwk(EC_KEY, "a")))
        plugin, _ = await started(service, jwks_ca=str(authority.file))
        assert await admits(plugin, EC_KEY, "ES256", "a")
        await plugin.stop()
        config = {"algorithms": BOTH, "jwks_url": service.url, "jwks_ca": str(other.file)}
        with pytest.raises(KeyProblem, match="certificate verify failed"):
            await Jwt(Config.model_validate(config), StandIn("jwt")).check()


async def test_a_reload_fetches_first_and_then_takes_over() -> None:
    async with served() as service:
        service.says(jwks(jwk(EC_KEY, "a")))
        plugin, _ = await started(service)
        config = Config.model_validate({"algorithms": ["ES256"], "jwks_url": service.url})
        service.says({}, status=500)
        with pytest.raises(KeyProblem):
            await plugin.reload(config)
        assert await admits(plugin, EC_KEY, "ES256", "a")
        service.says(jwks(jwk(EC_KEY, "b")))
        await plugin.reload(config)
        assert await admits(plugin, EC_KEY, "ES256", "b")
        assert not await admits(plugin, EC_KEY, "ES256", "a")
        await plugin.stop()


def test_a_token_without_a_key_id_is_for_the_only_key_of_its_kind() -> None:
    ring = ring_of_set(jwks(jwk(EC_KEY, "a"), jwk(ED_KEY, "b")), "set")
    assert ring.find(None, "ES256") is not None
    assert ring.find(None, "RS256") is None
    other = Key(object(), frozenset({"ES256"}), "c")
    assert KeyRing([other, other]).find(None, "ES256") is None


def test_a_key_serves_its_own_algorithms_alone() -> None:
    ring = ring_of_set(jwks(jwk(RSA_KEY, "a"), jwk(RSA_KEY, "b", alg="PS256")), "set")
    assert ring.find("a", "RS512") is not None
    assert ring.find("a", "ES256") is None
    assert ring.find("a", "HS256") is None
    assert ring.find("b", "PS256") is not None
    assert ring.find("b", "RS256") is None


@pytest.mark.parametrize(
    "entry",
    [
        "x",
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "x"},
        jwk(EC_KEY, "x", use="enc"),
        jwk(EC_KEY, "x", key_ops=["encrypt"]),
        jwk(EC_KEY, "x", key_ops=7),
        jwk(EC_KEY, "x", d="AAAA"),
        jwk(EC_KEY, "x", alg="RS256"),
        jwk(EC_KEY, "x", alg=["ES256"]),
        jwk(EC_KEY, "x", crv="P-384"),
        jwk(EC_KEY, "x", x="!"),
        {**jwk(EC_KEY, None), "kid": 7},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "x"},
        {"kty": "OKP", "crv": "X25519", "x": "AAAA", "kid": "x"},
    ],
)
def test_entries_that_are_no_use_are_left_out(entry: Any) -> None:
    ring = ring_of_set(jwks(entry, jwk(ED_KEY, "good")), "set")
    assert len(ring) == 1
    assert ring.find("good", "EdDSA") is not None
