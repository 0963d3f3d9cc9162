"""TLS contexts of a scenario's groups; those that ask for the same share one."""

from __future__ import annotations

import ssl

from device_sim.engine.connect import context
from device_sim.language.scenario import Scenario


def contexts(scenario: Scenario) -> dict[str, ssl.SSLContext | None]:
    """How each group speaks TLS, None for not at all; UsageError for files of no use."""
    made: dict[str, ssl.SSLContext] = {}
    found: dict[str, ssl.SSLContext | None] = {}
    for group in scenario.chosen([]):
        tls = group.tls or scenario.broker.tls
        if tls is None:
            found[group.name] = None
            continue
        key = tls.model_dump_json()
        if key not in made:
            made[key] = context(tls.ca, tls.cert, tls.key, tls.insecure)
        found[group.name] = made[key]
    return found
