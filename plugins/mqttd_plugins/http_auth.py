"""Who a client is, and what it may do, by asking an HTTP service.

Owns: the plugin `http_auth`: what a request is made of, and what follows from an answer for the
connection, for PUBLISH, for SUBSCRIBE and for deliveries. The service and the shape of its answers
are `_http_service`, rules in them `_acl_rules`.

Must not know: connections of HTTP, TLS, how answers are remembered.

Invariants:
- No answer is a no. A service that is down refuses clients as unavailable, so that they come back;
  it doesn't count as a failure of the plugin, or a client could bring down the authentication of
  the others with a name that the service chokes on.
- What comes from a client stays a value: in JSON, in a form, in a query it is encoded as one; where
  it would break out of a header it is refused; it never becomes part of a URL's path.
- A password goes into a body or a header, nowhere else, and into no log.
- A delivery can't wait for a service: it is decided by rules that came with the client, otherwise
  by the filters that the service has granted to the client. About a topic that none of those holds
  there is no opinion: what the service wasn't asked about is no yes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

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
    NotMine,
    Plugin,
    PluginConfig,
    SubscriptionRequest,
    reason_codes,
)
from mqttd_plugins._acl_rules import BoundRules, Found, Grants, opinion
from mqttd_plugins._granted_filters import GrantedFilters
from mqttd_plugins._time_limits import check_waits
from mqttd_plugins._urls import check_headers, check_url

if TYPE_CHECKING:
    from mqttd_plugins._http_service import Outcome, Request, Service

_ABOUT_CLIENT: Final = frozenset({"clientid", "username", "peerhost", "listener"})
_LONGEST_LIFE_S: Final = 10 * 365 * 86400.0
_QUIET_S: Final = 10.0
"""Between two lines in the log about a service that doesn't answer."""


class EndpointConfig(PluginConfig):
    url: str
    """Where to ask: https://host/path."""
    method: Literal["post", "get"] = "post"
    """A body, or a query."""
    encoding: Literal["json", "form"] = "json"
    """How the body of a POST is written."""
    headers: dict[str, SecretStr] = {}
    """Headers of the request, with placeholders or without."""
    body: dict[str, str]
    """Fields and their values, with placeholders or without."""

    placeholders: ClassVar[frozenset[str]] = _ABOUT_CLIENT

    @field_validator("headers", mode="before")
    @classmethod
    def _are_headers(cls, value: object) -> object:
        if isinstance(value, dict):
            check_headers("headers", value)
        return value

    @model_validator(mode="after")
    def _known(self) -> EndpointConfig:
        templates = [*self.body.values(), *(h.get_secret_value() for h in self.headers.values())]
        if "${" in self.url:
            raise ValueError("url: expected no placeholders: they belong into body and headers")
        for name in (name for template in templates for name in _names_in(template)):
            if name not in self.placeholders:
                known = ", ".join(sorted(self.placeholders))
                raise ValueError(f"found the placeholder {name!a}, expected one of {known}")
        if self.method == "get" and any("${password}" in value for value in self.body.values()):
            raise ValueError("a password in a query ends up in logs, expected method: post")
        return self


class AuthenticateConfig(EndpointConfig):
    body: dict[str, str] = {
        "username": "${username}",
        "password": "${password}",
        "clientid": "${clientid}",
    }
    """Fields and their values, with placeholders or without."""

    placeholders: ClassVar[frozenset[str]] = _ABOUT_CLIENT | {"password"}


class AuthorizeConfig(EndpointConfig):
    body: dict[str, str] = {
        "username": "${username}",
        "clientid": "${clientid}",
        "topic": "${topic}",
        "action": "${action}",
    }
    """Fields and their values, with placeholders or without."""

    placeholders: ClassVar[frozenset[str]] = _ABOUT_CLIENT | {"topic", "action", "qos", "retain"}


class TlsConfig(PluginConfig):
    ca: FilePath | None = None
    """Authorities for the service, PEM; absent: those of the system."""
    cert: FilePath | None = None
    """A certificate to show to the service, PEM."""
    key: FilePath | None = None
    """Its private key, PEM, not encrypted."""
    verify: bool = True
    """Whether the service has to prove who it is."""


class CacheConfig(PluginConfig):
    ttl: Duration = 10.0
    """How long an answer is remembered; 0: not at all."""
    entries: int = 10_000
    """How many are."""


class Config(PluginConfig):
    authenticate: AuthenticateConfig | None = None
    """Ask who may connect; absent: don't."""
    authorize: AuthorizeConfig | None = None
    """Ask about each PUBLISH and SUBSCRIBE that no rule decides; absent: don't."""
    timeout: Duration = 4.0
    """How long a question may take, a free connection waited for."""
    connections: int = 32
    """How many to the service at the same time."""
    tls: TlsConfig = TlsConfig()
    """For https."""
    allow_plain_http: bool = False
    """Ask over http, also other machines than this one."""
    cache: CacheConfig = CacheConfig()
    """Answers that are remembered."""
    no_match: Literal["deny", "ignore"] = "deny"
    """Where rules that came with a client don't speak of a topic: no, or ask the next plugin."""
    without_acl: Literal["ignore", "allow", "deny"] = "ignore"
    """For clients that were let in without rules: ask the next plugin, yes to everything, or no."""
    receive: Literal["allow", "ignore"] = "allow"
    """With `authorize`, deliveries that no rule decides: yes to topics that a filter holds which
    the service has granted to the client, or ask the next plugin about all of them."""

    @model_validator(mode="after")
    def _fit(self, info: ValidationInfo) -> Config:
        if self.authenticate is None and self.authorize is None:
            raise ValueError("expected authenticate or authorize, or both")
        for key, end in (("authenticate", self.authenticate), ("authorize", self.authorize)):
            if end is not None:
                insist = "allow_plain_http: true"
                check_url(f"{key}.url", end.url, plain=self.allow_plain_http, instead=insist)
        if (self.tls.cert is None) != (self.tls.key is None):
            raise ValueError("tls: expected cert and key, or neither")
        if self.timeout < 0.05:
            raise ValueError("timeout: expected 50ms or more")
        if self.connections < 1 or self.cache.entries < 1:
            raise ValueError("connections, cache.entries: expected 1 or more")
        check_waits(info, timeout=self.timeout)
        return self


class _Standing:
    """What the service said about a client when it connected."""

    __slots__ = ("grants", "superuser")

    def __init__(self, superuser: bool, grants: Grants | None) -> None:
        self.superuser = superuser
        self.grants = grants


class _Asked:
    """What the service has said about a client's subscriptions, while it is here."""

    __slots__ = ("granted", "shared")

    def __init__(self) -> None:
        self.granted = GrantedFilters()
        self.shared = False  # it has subscriptions that others have granted


class _Unfit(Exception):
    """A value of the client that can't be put where it belongs."""


class HttpAuth(Plugin[Config]):
    """An authenticator and a decider that ask elsewhere."""

    def __init__(
        self, config: Config, broker: BrokerServices, wall_clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(config, broker)
        self._wall_clock = wall_clock
        self._service: Service | None = None
        self._key = f"{broker.name}.standing"
        self._asked_key = f"{broker.name}.asked"
        self._silent_until = 0.0

    async def start(self) -> None:
        self._service = await self._connected(self.config)
        self._warn(self.config)

    async def stop(self) -> None:
        if self._service is not None:
            await self._service.close()

    async def check(self) -> None:
        service = await self._connected(self.config)
        await service.close()

    async def reload(self, config: Config) -> None:
        service = await self._connected(config)
        old, self._service, self.config = self._service, service, config
        self._warn(config)
        self.broker.forget_decisions()
        if old is not None:
            await old.close()

    def _warn(self, config: Config) -> None:
        if not config.tls.verify:
            self.broker.log.warning("anybody may answer for the service: tls.verify is false")
        if config.allow_plain_http:
            self.broker.log.warning("passwords may travel in the open: allow_plain_http is true")

    # Who may connect.

    def authenticate(
        self, client: Client, credentials: Credentials
    ) -> Decision | Coroutine[Any, Any, Decision]:
        end = self.config.authenticate
        if end is None:
            return NOT_MINE
        if self._service is None:
            return Deny("http_auth hasn't started", reason_codes.SERVER_UNAVAILABLE)
        values = {**_about(client), "username": credentials.username}
        try:
            password = credentials.password
            values["password"] = None if password is None else password.decode("utf-8")
            request = _request(end, values)
        except (UnicodeDecodeError, _Unfit):
            return self._refused("its credentials can't be put to the service")
        known = self._service.remembered(request)
        if known is not None:
            return self._admission(client, known)
        return self._ask_who(client, request, self._service)

    async def _ask_who(self, client: Client, request: Request, service: Service) -> Decision:
        outcome = await self._asked(request, service)
        if outcome is None:
            reason = "the authentication service doesn't answer"
            return self._refused(reason, reason_codes.SERVER_UNAVAILABLE)
        return self._admission(client, outcome)

    def _admission(self, client: Client, outcome: Outcome) -> Decision:
        if outcome.result == "ignore":
            return NOT_MINE
        if outcome.result == "deny":
            return self._refused("the authentication service refuses it")
        left_s: float | None = None
        if outcome.expire_at is not None:
            left_s = min(outcome.expire_at - self._wall_clock(), _LONGEST_LIFE_S)
            if not left_s > 0:
                return self._refused("what the authentication service grants has expired")
        grants = None if outcome.rules is None else Grants(outcome.rules)
        client.attributes[self._key] = _Standing(outcome.superuser, grants)
        client.attributes[f"{self.broker.name}.attributes"] = dict(outcome.attributes)
        return Allow(f"{self.broker.name}: allowed", expires_in_s=left_s)

    def _refused(self, reason: str, code: int = reason_codes.NOT_AUTHORIZED) -> Deny:
        self.broker.count("refused")
        return Deny(reason, code)

    # What it may do.

    def authorize_publish(
        self, client: Client, topic: str, qos: int, retain: bool
    ) -> Decision | Coroutine[Any, Any, Decision]:
        decision = self._by_rules(
            client, "publish", lambda rules: rules.publish(topic, qos, retain)
        )
        return decision or self._by_service(
            client, {"action": "publish", "topic": topic, "qos": qos, "retain": retain}
        )

    def authorize_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> Decision | Coroutine[Any, Any, Decision]:
        wanted, qos = subscription.inner_filter, subscription.qos
        decision = self._by_rules(client, "subscribe", lambda rules: rules.subscribe(wanted, qos))
        question = {"action": "subscribe", "topic": wanted, "qos": qos, "retain": False}
        return decision or self._by_service(client, question, subscription.topic_filter)

    def _note(self, client: Client, topic_filter: str, decision: Decision) -> None:
        """Keep in mind what deliveries will be decided by. No answer changes nothing there."""
        asked = self._asked_of(client)
        if isinstance(decision, Allow):
            changed = asked.granted.add(topic_filter) and asked.shared
        else:
            changed = asked.granted.discard(topic_filter)
        if isinstance(decision, NotMine):
            self._share(client, asked)
        elif changed:  # the broker remembers what was said about topics of that filter before
            self.broker.forget_decisions(client.client_id)

    def _share(self, client: Client, asked: _Asked) -> None:
        """Others have granted it something: from now on no yes to a delivery is remembered."""
        if not asked.shared:
            asked.shared = True
            self.broker.forget_decisions(client.client_id)

    def _asked_of(self, client: Client) -> _Asked:
        asked = client.attributes.get(self._asked_key)
        if not isinstance(asked, _Asked):
            asked = client.attributes[self._asked_key] = _Asked()
        return asked

    def on_unsubscribe(self, client: Client, topic_filter: str) -> None:
        """What is granted to a client is no more than what it is subscribed to."""
        self._asked_of(client).granted.discard(topic_filter)

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        decision = self._by_rules(client, "receive", lambda rules: rules.receive(topic))
        if decision is not None:
            return decision
        if self.config.receive == "ignore":
            return NOT_MINE
        asked = self._asked_of(client)
        if asked.granted.hold(topic):
            rule = f"{self.broker.name}: the service has granted a subscription to it"
            return Allow(rule, cache=not asked.shared)
        self._share(client, asked)
        return NOT_MINE

    def _by_rules(
        self, client: Client, action: str, ask: Callable[[BoundRules], Found | None]
    ) -> Decision | None:
        """What was said when it connected; None where the service is to be asked."""
        standing = client.attributes.get(self._key)
        config, found = self.config, None
        if isinstance(standing, _Standing):
            if standing.superuser:
                return Allow(f"{self.broker.name}: superuser")
            policies = config.no_match, config.without_acl
            found = opinion(standing.grants, client, action, ask, *policies)
        if config.authorize is not None and (found is None or not found.spoke):
            return None
        # Without a standing somebody else let it in, or an earlier process did.
        if found is None or found.policy == "ignore":
            return NOT_MINE
        return self._decision(action, found.policy == "allow", found.rule, found.cache)

    def _by_service(
        self, client: Client, question: Mapping[str, Any], topic_filter: str = ""
    ) -> Decision | Coroutine[Any, Any, Decision]:
        """What the service says; with a whole `topic_filter` deliveries will go by that."""
        end, service = self.config.authorize, self._service
        if end is None or service is None:
            return Deny("http_auth hasn't started", cache=False)
        try:
            request = _request(end, {**_about(client), **question})
        except _Unfit:
            return self._decision(question["action"], False, "can't be put to the service", False)
        known = service.remembered(request)
        if known is not None:
            return self._verdict(client, question["action"], known, topic_filter)
        return self._ask_whether(client, question["action"], request, service, topic_filter)

    async def _ask_whether(
        self, client: Client, action: str, request: Request, service: Service, topic_filter: str
    ) -> Decision:
        outcome = await self._asked(request, service)
        if outcome is None:
            return self._decision(action, False, "the service doesn't answer", False)
        return self._verdict(client, action, outcome, topic_filter)

    def _verdict(
        self, client: Client, action: str, outcome: Outcome, topic_filter: str
    ) -> Decision:
        decision: Decision = NOT_MINE
        if outcome.result != "ignore":
            # Remembered here and for a while, not by the broker for as long as the connection.
            decision = self._decision(action, outcome.result == "allow", "the service", False)
        if topic_filter:
            self._note(client, topic_filter, decision)
        return decision

    def _decision(self, action: str, allowed: bool, rule: str, cache: bool) -> Decision:
        rule = f"{self.broker.name}: {rule}"
        if allowed:
            return Allow(rule, cache=cache)
        self.broker.count(f"denied_{action}")
        return Deny("the authorization service doesn't allow it", rule=rule, cache=cache)

    # The service.

    async def _asked(self, request: Request, service: Service) -> Outcome | None:
        from mqttd_plugins._http_service import Unanswered

        self.broker.count("requests")
        try:
            return await service.ask(request)
        except Unanswered as error:
            self.broker.count("failures")
            now = self.broker.now()
            if now >= self._silent_until:
                self._silent_until = now + _QUIET_S
                host = urlsplit(request.url).hostname
                self.broker.log.error("no answer that counts from %s: %s", host, error)
            return None

    async def _connected(self, config: Config) -> Service:
        try:
            from mqttd_plugins._http_service import Service, tls_context
        except ImportError:
            raise RuntimeError(
                'http_auth needs the package aiohttp: pip install "mqttd[http]"'
            ) from None
        tls = config.tls
        context = await self.broker.run_blocking(tls_context, tls.ca, tls.cert, tls.key, tls.verify)
        return Service(
            context,
            config.timeout,
            config.connections,
            config.cache.ttl,
            config.cache.entries,
            self.broker.now,
        )


def _about(client: Client) -> dict[str, Any]:
    return {
        "clientid": client.client_id,
        "username": client.username,
        "peerhost": client.address,
        "listener": client.listener,
    }


def _request(end: EndpointConfig, values: Mapping[str, Any]) -> Request:
    """What is asked. _Unfit: a value of the client would break out of a header."""
    from mqttd_plugins._http_service import Request, as_text

    headers = {
        name: as_text(_filled(template.get_secret_value(), values))
        for name, template in end.headers.items()
    }
    for text in headers.values():
        if not text.isprintable():
            raise _Unfit
    fields = {name: _filled(template, values) for name, template in end.body.items()}
    return Request(end.method, end.url, headers, fields, end.encoding == "form")


def _filled(template: str, values: Mapping[str, Any]) -> Any:
    """A template with values in it, in one pass; a placeholder alone keeps its value's type."""
    from mqttd_plugins._http_service import as_text

    names = _names_in(template)
    if len(names) == 1 and template == f"${{{names[0]}}}":
        return values[names[0]]
    out, found, rest = template.partition("${")
    while found:
        name, _, rest = rest.partition("}")
        out += as_text(values[name])
        before, found, rest = rest.partition("${")
        out += before
    return out


def _names_in(template: str) -> list[str]:
    """The placeholders of a template; one that isn't closed has a name that none can have."""
    parts = template.split("${")[1:]
    return [part.partition("}")[0] if "}" in part else f"${{{part}" for part in parts]
