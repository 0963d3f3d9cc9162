"""Who a client is, and what it may do, by a signed token.

Owns: the plugin `jwt`: where the token stands in CONNECT, which tokens count, the user name and the
rules in their claims, the end of a connection with its token. Keys are `_jwt_keys`, rules
`_acl_rules`.

Must not know: who signs tokens, and how keys get from there to here.

Invariants:
- The algorithms are those of the configuration; the token's word for its own is only compared. It
  isn't asked for a key, a URL or a certificate either.
- What isn't shaped like a token is nobody's token, and other plugins are asked; a token that isn't
  good is a refusal. Why is told without any word out of the token.
- A token with rules that can't be understood lets nobody in.
- No keys, no tokens: a set of keys that can't be fetched admits nobody new once it is too old.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import SecretStr, ValidationInfo, field_validator, model_validator

from mqttd.api import (
    NOT_MINE,
    Allow,
    BrokerServices,
    Client,
    Credentials,
    Decision,
    Deny,
    Duration,
    FilePath,
    Plugin,
    PluginConfig,
    Size,
    SubscriptionRequest,
)
from mqttd_plugins._acl_rules import (
    BoundRules,
    Found,
    Grants,
    RulesError,
    opinion,
    parse_rules,
)
from mqttd_plugins._files import Followed, Interval
from mqttd_plugins._time_limits import check_waits
from mqttd_plugins._urls import check_url

if TYPE_CHECKING:
    from mqttd_plugins._jwt_keys import Key, KeyRing, RemoteKeys

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip

_SOURCES: Final = ("secret", "secret_file", "public_key_file", "jwks_file", "jwks_url")
_CLIENT_ID: Final = "${clientid}"
_USERNAME: Final = "${username}"
_LONGEST_NAME: Final = 65535
_LONGEST_LIFE_S: Final = 10 * 365 * 86400.0  # what is longer is no end that a timer could wait for


class Config(PluginConfig):
    algorithms: list[Algorithm]
    """What tokens may be signed with: all of one kind, HS or the others."""
    secret: SecretStr | None = None
    """The secret of HS256, HS384 and HS512."""
    secret_file: FilePath | None = None
    """The same in a file; a line feed at its end isn't part of it."""
    secret_base64: bool = False
    """The secret is written in base64 (either alphabet)."""
    public_key_file: FilePath | None = None
    """A public key or a certificate, PEM."""
    jwks_file: FilePath | None = None
    """A set of public keys (JWKS)."""
    jwks_url: str | None = None
    """The same, fetched over HTTPS; over HTTP from this machine alone."""
    jwks_ca: FilePath | None = None
    """Authorities for the server of `jwks_url`, PEM; absent: those of the system."""
    jwks_timeout: Duration = 4.0
    """How long fetching the set may take."""
    jwks_refresh: Duration = 300.0
    """How often it is fetched again."""
    jwks_max_age: Duration = 86400.0
    """How old a set may become while it can't be fetched."""
    token_in: Literal["password", "username"] = "password"
    """Where in CONNECT the token stands."""
    max_token_size: Size = 8192
    """Longer ones are refused unread."""
    username_claim: str = "sub"
    """The claim with the user name."""
    issuer: str | None = None
    """What `iss` has to be; absent: it isn't looked at."""
    audience: str | list[str] | None = None
    """What `aud` has to hold (one of them); absent: tokens with an `aud` are for somebody else."""
    claims: dict[str, str] = {}
    """Claims and what they have to be; `${clientid}`, `${username}`: the names in CONNECT."""
    leeway: Duration = 10.0
    """How far apart clocks may be, for `exp`, `nbf` and `iat`."""
    require_exp: bool = True
    """Refuse tokens that never expire."""
    disconnect_when_expired: bool = True
    """A connection ends when its token expires."""
    acl_claim: str | None = "acl"
    """The claim with the rules of the client; null: rules in tokens aren't looked at."""
    no_match: Literal["deny", "ignore"] = "deny"
    """Where no rule of the token speaks of a topic: no, or ask the next plugin."""
    without_acl: Literal["ignore", "allow", "deny"] = "ignore"
    """For clients whose token has no rules: ask the next plugin, yes to everything, or no."""
    check_interval: Interval = 2.0
    """How often to look whether files have changed; 0: only when told to reload."""

    @field_validator("algorithms")
    @classmethod
    def _one_kind(cls, algorithms: list[Algorithm]) -> list[Algorithm]:
        if not algorithms:
            raise ValueError("expected one or more")
        if len({algorithm.startswith("HS") for algorithm in algorithms}) > 1:
            raise ValueError("expected HS algorithms or others, not both: a key serves one kind")
        return algorithms

    @model_validator(mode="before")
    @classmethod
    def _hides(cls, values: object) -> object:
        """What one key alone is wrong with is shown; a secret isn't."""
        if isinstance(values, dict) and not isinstance(values.get("secret", ""), str | None):
            raise ValueError("secret: expected text, in quotes where it looks like a number")
        return values

    @model_validator(mode="after")
    def _fit(self, info: ValidationInfo) -> Config:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"found {found}, expected one of {', '.join(_SOURCES)}")
        if self.jwks_url is not None:
            check_url("jwks_url", self.jwks_url)
        if self.hmac != given[0].startswith("secret"):
            expected = "secret or secret_file" if self.hmac else "a public key or a JWKS"
            raise ValueError(f"found {given[0]}, expected {expected} for {self.algorithms[0]}")
        if min(self.jwks_timeout, self.jwks_refresh, self.jwks_max_age) < 0.1:
            raise ValueError("jwks_timeout, jwks_refresh, jwks_max_age: expected 100ms or more")
        if self.jwks_url is not None:
            check_waits(info, jwks_timeout=self.jwks_timeout)
        return self

    @property
    def hmac(self) -> bool:
        return self.algorithms[0].startswith("HS")


class Jwt(Plugin[Config]):
    """An authenticator that believes tokens, and a decider for those who brought rules in one."""

    def __init__(
        self, config: Config, broker: BrokerServices, wall_clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(config, broker)
        self._wall_clock = wall_clock
        self._ring: KeyRing | None = None
        self._remote: RemoteKeys | None = None
        self._files: Followed[KeyRing] = Followed(broker, "keys", self._changed)
        self._key = f"{broker.name}.grants"

    async def start(self) -> None:
        if self.config.jwks_url is not None:
            self._remote = self._remote_keys(self.config)
            await self._remote.start()
        else:
            self._ring = await self._follow(self.config)

    async def stop(self) -> None:
        self._files.stop()
        if self._remote is not None:
            self._remote.stop()

    async def check(self) -> None:
        if self.config.jwks_url is not None:
            await self._remote_keys(self.config).fetch()
        else:
            await self.broker.run_blocking(load_ring, self.config)

    async def reload(self, config: Config) -> None:
        remote: RemoteKeys | None = None
        ring: KeyRing | None = None
        if config.jwks_url is not None:
            remote = self._remote_keys(config)
            remote.adopt(await remote.fetch())
            self._files.stop()
        else:
            ring = await self._follow(config)
        if self._remote is not None:
            self._remote.stop()
        self.config, self._ring, self._remote = config, ring, remote
        self.broker.forget_decisions()

    def authenticate(
        self, client: Client, credentials: Credentials
    ) -> Decision | Coroutine[Any, Any, Decision]:
        config = self.config
        token = credentials.password
        if config.token_in == "username":
            name = credentials.username
            token = None if name is None else name.encode("utf-8", "replace")
        if token is None:
            return NOT_MINE
        if len(token) > config.max_token_size:
            return self._refused("a token that is too long")
        header = _header(token)
        if header is None:
            return NOT_MINE
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in config.algorithms:
            return self._refused("its token is signed with another algorithm")
        if "crit" in header or not (key_id is None or isinstance(key_id, str)):
            return self._refused("the header of its token can't be understood")
        key = self._find(key_id, algorithm)
        if key is None and self._remote is not None and self._remote.may_try:
            return self._after_search(client, credentials, token, key_id, algorithm)
        return self._decided(client, credentials, token, key, algorithm)

    def authorize_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        return self._answer(client, "publish", lambda rules: rules.publish(topic, qos, retain))

    def authorize_subscribe(self, client: Client, subscription: SubscriptionRequest) -> Decision:
        wanted, qos = subscription.inner_filter, subscription.qos
        return self._answer(client, "subscribe", lambda rules: rules.subscribe(wanted, qos))

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        return self._answer(client, "receive", lambda rules: rules.receive(topic))

    def _answer(
        self, client: Client, action: str, ask: Callable[[BoundRules], Found | None]
    ) -> Decision:
        if self._key not in client.attributes:
            return NOT_MINE  # somebody else let it in, or an earlier process
        grants: Grants | None = client.attributes[self._key]
        config = self.config
        found = opinion(grants, client, action, ask, config.no_match, config.without_acl)
        if found.policy == "ignore":
            return NOT_MINE
        rule = f"{self.broker.name}: {found.rule}"
        if found.policy == "allow":
            return Allow(rule, cache=found.cache)
        self.broker.count(f"denied_{action}")
        return Deny("its token doesn't allow it", rule=rule, cache=found.cache)

    def _find(self, key_id: str | None, algorithm: str) -> Key | None:
        if self._remote is not None:
            return self._remote.find(key_id, algorithm)
        return None if self._ring is None else self._ring.find(key_id, algorithm)

    async def _after_search(
        self,
        client: Client,
        credentials: Credentials,
        token: bytes,
        key_id: str | None,
        algorithm: str,
    ) -> Decision:
        remote = self._remote
        key = None if remote is None else await remote.search(key_id, algorithm)
        return self._decided(client, credentials, token, key, algorithm)

    def _decided(
        self,
        client: Client,
        credentials: Credentials,
        token: bytes,
        key: Key | None,
        algorithm: str,
    ) -> Decision:
        if key is None:
            return self._refused("there is no key for its token")
        config = self.config
        try:
            claims = _verified(token, key, algorithm, config)
            name = _name(claims.get(config.username_claim))
            self._compare(claims, client, credentials)
            written = None if config.acl_claim is None else claims.get(config.acl_claim)
            grants = None if written is None else Grants(parse_rules(written))
            expires_in_s = self._left(claims)
        except _Refused as error:
            return self._refused(str(error))
        except RulesError as error:
            return self._refused(f"the rules in its token can't be understood: {error}")
        client.attributes[self._key] = grants
        client.attributes[f"{self.broker.name}.claims"] = claims
        return Allow(f"{self.broker.name}: {algorithm}", username=name, expires_in_s=expires_in_s)

    def _compare(self, claims: dict[str, Any], client: Client, credentials: Credentials) -> None:
        for name, expected in self.config.claims.items():
            values = {_CLIENT_ID: client.client_id, _USERNAME: credentials.username or ""}
            wanted = values.get(expected, expected)
            if not wanted or claims.get(name) != wanted:
                raise _Refused(f"the claim {name!a} of its token isn't as expected")

    def _left(self, claims: dict[str, Any]) -> float | None:
        """Seconds until the token ends; None where nothing ends with it."""
        if "exp" not in claims or not self.config.disconnect_when_expired:
            return None
        try:
            left_s = float(claims["exp"]) + self.config.leeway - self._wall_clock()
        except OverflowError:  # a whole number that no float can hold
            left_s = math.inf
        if not left_s > 0:
            raise _Refused("its token has expired")
        return min(left_s, _LONGEST_LIFE_S)

    def _refused(self, reason: str) -> Deny:
        self.broker.count("refused")
        return Deny(reason)

    def _remote_keys(self, config: Config) -> RemoteKeys:
        _require_packages()
        from mqttd_plugins._jwt_keys import RemoteKeys

        return RemoteKeys(
            self.broker,
            config.jwks_url or "",
            config.jwks_ca,
            config.jwks_timeout,
            config.jwks_refresh,
            config.jwks_max_age,
        )

    async def _follow(self, config: Config) -> KeyRing:
        files = (config.secret_file, config.public_key_file, config.jwks_file)
        paths = [file for file in files if file is not None]
        return await self._files.follow(paths, config.check_interval, partial(load_ring, config))

    def _changed(self, ring: KeyRing) -> None:
        self._ring = ring
        self.broker.audit("jwt_keys_reloaded", keys=len(ring))


class _Refused(Exception):
    pass


def load_ring(config: Config) -> KeyRing:
    """The keys that the configuration holds or names a file of. ValueError, OSError: why not."""
    _require_packages()
    from mqttd_plugins import _jwt_keys as keys

    if config.secret is not None:
        secret = config.secret.get_secret_value().encode("utf-8")
        return keys.ring_of_secret(secret, config.secret_base64, config.algorithms)
    if config.secret_file is not None:
        secret = config.secret_file.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
        try:
            return keys.ring_of_secret(secret, config.secret_base64, config.algorithms)
        except ValueError as error:
            raise ValueError(f"{config.secret_file}: {error}") from None
    if config.public_key_file is not None:
        ring = keys.ring_of_pem(config.public_key_file)
    else:
        assert config.jwks_file is not None
        ring = keys.ring_of_set(config.jwks_file.read_bytes(), str(config.jwks_file))
    if not ring.serves(config.algorithms):
        file = config.public_key_file or config.jwks_file
        raise ValueError(f"{file}: no key in it for {', '.join(config.algorithms)}")
    return ring


def _require_packages() -> None:
    try:
        import cryptography  # noqa: F401
        import jwt  # noqa: F401
    except ImportError:
        raise RuntimeError(
            'jwt needs the packages PyJWT and cryptography: pip install "mqttd[jwt]"'
        ) from None


def _header(token: bytes) -> dict[str, Any] | None:
    """The header of what is shaped like a token; None for what isn't."""
    import jwt

    if token.count(b".") != 2:
        return None
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None


def _verified(token: bytes, key: Key, algorithm: str, config: Config) -> dict[str, Any]:
    """The claims of a token that is signed, in its time, and for us."""
    import jwt

    try:
        return jwt.decode(
            token,
            key.key,
            algorithms=[algorithm],
            audience=config.audience,
            issuer=config.issuer,
            leeway=config.leeway,
            options={"require": ["exp"] if config.require_exp else []},
        )
    except jwt.ExpiredSignatureError:
        raise _Refused("its token has expired") from None
    except jwt.ImmatureSignatureError:
        raise _Refused("its token isn't valid yet") from None
    except jwt.MissingRequiredClaimError as error:
        raise _Refused(f"its token has no {error.claim}") from None
    except jwt.InvalidAudienceError:
        raise _Refused("its token is for another audience") from None
    except jwt.InvalidIssuerError:
        raise _Refused("its token comes from another issuer") from None
    except jwt.InvalidSignatureError:
        raise _Refused("the signature of its token is wrong") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise _Refused("its token can't be read") from None


def _name(value: object) -> str:
    if (
        isinstance(value, str)
        and value
        and value.isprintable()
        and len(value.encode("utf-8", "replace")) <= _LONGEST_NAME
    ):
        return value
    raise _Refused("its token names no user")
