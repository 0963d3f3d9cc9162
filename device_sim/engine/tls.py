"""How the devices of a scenario speak TLS.

Groups that ask for the same share one context. Where the certificate or its key is a template with
parts, each device has its own, and a context of its own for each connection: a context holds one
certificate. All of them are loaded once before the run, so that one of no use is told then.

Must not know: devices, sockets.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

from device_sim.engine.connect import context
from device_sim.engine.plan import UsageError
from device_sim.language.naming import Names, Template
from device_sim.language.scenario import Group, Scenario, Tls

TOLD: Final = 3
"""So many certificates of no use are named."""


class GroupTls:
    """How the devices of one group speak TLS."""

    def __init__(self, tls: Tls, shared: ssl.SSLContext | None) -> None:
        """`shared` is None where each device has a certificate of its own."""
        self._tls = tls
        self._shared = shared

    def context(self, names: Names) -> ssl.SSLContext:
        """For a connection of this device; UsageError when its files are of no use any more."""
        if self._shared is not None:
            return self._shared
        tls = self._tls
        return context(tls.ca, *_own(tls, names), tls.insecure)


def contexts(scenario: Scenario) -> dict[str, GroupTls | None]:
    """How each group speaks TLS, None for not at all; UsageError for files of no use."""
    made: dict[str, ssl.SSLContext] = {}
    found: dict[str, GroupTls | None] = {}
    for group in scenario.chosen([]):
        tls = group.tls or scenario.broker.tls
        if tls is None:
            found[group.name] = None
            continue
        if _parts(tls):
            _try_all(group, tls)
            found[group.name] = GroupTls(tls, None)
            continue
        key = tls.model_dump_json()
        if key not in made:
            (names, *_) = _names(group, 1)
            made[key] = context(tls.ca, *_own(tls, names), tls.insecure)
        found[group.name] = GroupTls(tls, made[key])
    return found


def _parts(tls: Tls) -> frozenset[str]:
    return Template(tls.cert or "").parts | Template(tls.key or "").parts


def _own(tls: Tls, names: Names) -> tuple[str | None, str | None]:
    """The files of a device: its certificate and its key."""
    certificate = None if tls.cert is None else names.render(Template(tls.cert))
    return certificate, None if tls.key is None else names.render(Template(tls.key))


def _names(group: Group, count: int) -> Iterator[Names]:
    pattern = Template(group.id)
    for index in range(count):
        yield Names("", group.name, index, pattern, group.tags)


def _try_all(group: Group, tls: Tls) -> None:
    context(tls.ca, None, None, tls.insecure)
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    useless: list[str] = []
    for names in _names(group, group.count):
        certificate, key = _own(tls, names)
        if certificate is None:
            continue
        try:
            trial.load_cert_chain(certificate, key)
        except OSError as error:
            useless.append(f"{certificate}: {error}")
    if useless:
        more = f"; and {len(useless) - TOLD} more" if len(useless) > TOLD else ""
        raise UsageError(f"certificates of {group.name}: {'; '.join(useless[:TOLD])}{more}")
