"""Who a client is, by its certificate.

Owns: the plugin `cert_identity`: which certificates come in, the user name that they give, when
they cease to count. What stands in a certificate or in a revocation list is `_certificates`.

Must not know: TLS. The broker has verified that the certificate comes from an authority of the
listener and is in its time; without one the plugin has no opinion.

Invariants:
- The name comes from the certificate alone, whatever the client claims.
- A certificate that names nobody, isn't on a list of those allowed, or was revoked is a refusal:
  other plugins aren't asked.
- A list of revoked certificates that becomes bad while the broker runs changes nothing; one that
  becomes good ends the connections of those who are on it.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal
from weakref import WeakSet

from pydantic import field_validator, model_validator

from mqttd.api import (
    NOT_MINE,
    Allow,
    BrokerServices,
    Client,
    Credentials,
    Decision,
    Deny,
    FilePath,
    Plugin,
    PluginConfig,
    reason_codes,
)
from mqttd_plugins._files import Followed, Interval

if TYPE_CHECKING:
    from cryptography import x509

    from mqttd_plugins._certificates import RevocationLists


class Config(PluginConfig):
    username_from: Literal["cn", "subject", "san_dns", "san_uri", "san_email", "fingerprint"] = "cn"
    """Where in the certificate the user name stands."""
    template: str = "{}"
    """The shape of that value; what stands for `{}` is the user name."""
    issuers: list[str] = []
    """Distinguished names (RFC 4514) of those who may have signed it; empty: any authority."""
    fingerprints: list[str] = []
    """SHA-256 of the certificates that may come in, in hex; empty: any certificate."""
    crl: list[FilePath] = []
    """Lists of revoked certificates, PEM or DER; empty: revocation isn't checked."""
    crl_ca: FilePath | None = None
    """Authorities, PEM: each list has to be signed by one. Absent: the files are trusted."""
    expired_crl: Literal["deny", "allow"] = "deny"
    """What a list is worth when its time is over."""
    client_id_must_match: bool = False
    """The client id has to be the user name."""
    disconnect_when_expired: bool = True
    """A connection ends when its certificate does."""
    check_interval: Interval = 2.0
    """How often to look whether `crl` or `crl_ca` have changed; 0: only when told to reload."""

    @field_validator("template")
    @classmethod
    def _one_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("expected one {}, where the user name stands, as in {}.example.com")
        return template

    @field_validator("fingerprints")
    @classmethod
    def _hex(cls, fingerprints: list[str]) -> list[str]:
        plain = [text.replace(":", "").lower() for text in fingerprints]
        for text in plain:
            if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
                raise ValueError("expected SHA-256 fingerprints: 64 hex digits, colons or none")
        return plain

    @model_validator(mode="after")
    def _fit(self) -> Config:
        if self.crl_ca is not None and not self.crl:
            raise ValueError("crl_ca: expected crl beside it, the lists that are to be signed")
        return self


class _State:
    """What a configuration and its files amount to."""

    def __init__(self, config: Config, issuers: frozenset[x509.Name], lists: RevocationLists):
        self.config = config
        self.issuers = issuers
        self.fingerprints = frozenset(config.fingerprints)
        self.lists = lists


class _Holder:
    """Somebody who came with a certificate.

    It lives in the client's attributes and goes with it, also when the client leaves before it has
    a session, which is no event. Nothing else tells clients apart: through a proxy, or a Unix
    socket, they may share a peer, and one identifier may be taken over by the next.
    """

    __slots__ = ("__weakref__", "certificate", "client")

    def __init__(self, client: Client, certificate: x509.Certificate) -> None:
        self.client = client
        self.certificate = certificate


class CertIdentity(Plugin[Config]):
    """An authenticator that believes certificates."""

    def __init__(
        self, config: Config, broker: BrokerServices, wall_clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(config, broker)
        self._wall_clock = wall_clock
        self._state: _State | None = None
        self._files: Followed[_State] = Followed(broker, "revocation lists", self._changed)
        self._mine = f"{broker.name}: holder"
        self._holders: WeakSet[_Holder] = WeakSet()

    async def start(self) -> None:
        self._install(await self._follow(self.config))

    async def stop(self) -> None:
        self._files.stop()

    async def check(self) -> None:
        await self.broker.run_blocking(_load, self.config)

    async def reload(self, config: Config) -> None:
        state = await self._follow(config)
        self.config = config
        self._install(state)

    def authenticate(self, client: Client, credentials: Credentials) -> Decision:
        der = client.certificate
        if der is None:
            return NOT_MINE
        if self._state is None:
            return Deny("cert_identity hasn't started")
        from mqttd_plugins._certificates import Refused, name_of, parse_certificate

        config = self._state.config
        try:
            certificate = parse_certificate(der)
            self._admit(self._state, certificate, config.expired_crl == "allow")
            name = name_of(certificate, config.username_from, config.template)
        except Refused as error:
            return self._refused(str(error))
        except ValueError:
            return self._refused("its certificate can't be read")
        if config.client_id_must_match and client.client_id != name:
            reason = "the client id isn't the name in its certificate"
            return self._refused(reason, reason_codes.CLIENT_IDENTIFIER_NOT_VALID)
        left_s = certificate.not_valid_after_utc.timestamp() - self._wall_clock()
        if config.disconnect_when_expired and left_s <= 0:
            return self._refused("its certificate has expired")
        holder = client.attributes[self._mine] = _Holder(client, certificate)
        self._holders.add(holder)
        return Allow(
            f"cert_identity: {config.username_from}",
            username=name,
            expires_in_s=left_s if config.disconnect_when_expired else None,
        )

    def _refused(self, reason: str, code: int = reason_codes.NOT_AUTHORIZED) -> Deny:
        self.broker.count("refused")
        return Deny(reason, code)

    def _admit(self, state: _State, certificate: x509.Certificate, expired_counts: bool) -> None:
        """Raise Refused for one that may not come in."""
        from mqttd_plugins._certificates import Refused, fingerprint_of

        if state.issuers and certificate.issuer not in state.issuers:
            raise Refused("its certificate comes from an issuer that isn't listed")
        if state.fingerprints and fingerprint_of(certificate) not in state.fingerprints:
            raise Refused("its certificate isn't listed")
        state.lists.check(certificate, self._now(), expired_counts)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._wall_clock(), datetime.UTC)

    async def _follow(self, config: Config) -> _State:
        paths = [*config.crl, config.crl_ca] if config.crl_ca is not None else config.crl
        return await self._files.follow(paths, config.check_interval, partial(_load, config))

    def _changed(self, state: _State) -> None:
        self._install(state)
        self.broker.audit("crl_reloaded", revoked=len(state.lists))

    def _install(self, state: _State) -> None:
        """Put it in force, also for those who are here already.

        They stay where only the time of a list is over: a forgotten renewal ends no connection.
        """
        from mqttd_plugins._certificates import Refused

        self._state = state
        self.broker.gauge("revoked", len(state.lists))
        for issuer in state.lists.expired(self._now()):
            self.broker.log.warning("the revocation list of %s has expired", ascii(issuer))
        for client, certificate in [(one.client, one.certificate) for one in self._holders]:
            session = self.broker.session(client.client_id)
            if session is None or not session.connected or session.peer != client.peer:
                continue  # it has left; when it comes back it shows its certificate again
            try:
                self._admit(state, certificate, expired_counts=True)
            except Refused as error:
                self.broker.count("kicked")
                self.broker.kick(client.client_id, str(error), reason_codes.NOT_AUTHORIZED)


def _load(config: Config) -> _State:
    """Read what the configuration names. ValueError, OSError: it is no good, and why."""
    try:
        from mqttd_plugins._certificates import load_lists, parse_name
    except ImportError:
        raise RuntimeError(
            'cert_identity needs the package cryptography: pip install "mqttd[tls]"'
        ) from None
    issuers = set()
    for text in config.issuers:
        try:
            issuers.add(parse_name(text))
        except ValueError:
            raise ValueError(
                f"issuers: {text!a} is no distinguished name, expected one as CN=our-ca,O=us"
            ) from None
    return _State(config, frozenset(issuers), load_lists(config.crl, config.crl_ca))
