"""The configuration tree as the shell wants it: endpoints, places, certificates.

Owns: the translation of one part of the tree into the value objects of `net`, which know nothing of
configuration files.

Must not know: what is done with them.
"""

from __future__ import annotations

from mqttd.config import ListenerConfig, MetricsConfig
from mqttd.net.listener import Endpoint
from mqttd.net.protocol import StreamProtocol
from mqttd.net.sockets import Place
from mqttd.net.tls import Tls


def place_of(metrics: MetricsConfig | None) -> Place | None:
    """Where to answer over HTTP, if at all."""
    return None if metrics is None else Place(metrics.host, metrics.port, metrics.unix_path)


def certificate_of(shell: object) -> bytes | None:
    """The certificate (DER) that the client of a connection has shown, verified by the listener."""
    if not isinstance(shell, StreamProtocol):
        return None
    found = shell.transport.get_extra_info("ssl_object")
    der = None if found is None else found.getpeercert(binary_form=True)
    return der if isinstance(der, bytes) else None


def endpoint_of(listener: ListenerConfig, authenticated: bool = False) -> Endpoint:
    """The configuration of one listener as `net` wants it."""
    tls = None
    if listener.tls is not None:
        tls = Tls(
            listener.tls.cert,
            listener.tls.key,
            listener.tls.client_ca,
            listener.tls.client_cert,
            listener.tls.username_from,
        )
    return Endpoint(
        listener.name,
        listener.host,
        listener.port,
        listener.unix_path,
        listener.transport,
        listener.path,
        listener.accepts_anonymous(authenticated),
        listener.proxy_protocol,
        tls,
        tuple(listener.allow_origins),
        tuple(listener.proxy_from),
    )
