"""TLS on every kind of listener: who gets in, under which name, and what it costs who doesn't."""

import asyncio
import logging
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from mqttd.core.broker import Broker
from mqttd.core.packets import Publish
from mqttd.core.settings import Settings
from mqttd.net.listener import Endpoint, ListenError
from mqttd.net.tls import IdentityError, Tls, identity_of
from tests.net.kit import Served, Wire, connect_packet, endpoint, serving, until
from tests.tls import Authority, subject


class Pki:
    """An authority, a server's certificate, and strangers."""

    def __init__(self, directory: Path) -> None:
        self.ca = Authority(directory)
        self.stranger = Authority(directory, "stranger")
        self.server = self.ca.issue("server", "localhost")

    def tls(self, client_cert: str = "none", username_from: str = "cn") -> Tls:
        ca = None if client_cert == "none" else self.ca.file
        return Tls(*self.server, ca, client_cert, username_from)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=["tcp", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The same tests on every kind of socket."""
    if request.param == "tcp":
        return {"host": "127.0.0.1"}
    return {"unix_path": str(tmp_path / "m.sock")}


def listener(place: dict[str, Any], tls: Tls, **more: Any) -> Endpoint:
    return Endpoint("tls", allow_anonymous=True, tls=tls, **place, **more)


@asynccontextmanager
async def dial(served: Served, context: ssl.SSLContext) -> AsyncIterator[Wire]:
    path = served.listeners[0].endpoint.unix_path
    if path:
        streams = await asyncio.open_unix_connection(path, ssl=context, server_hostname="localhost")
        wire = Wire(*streams)
    else:
        wire = await Wire.open(served.port, tls=context)
    async with wire:
        yield wire


async def refused(served: Served, context: ssl.SSLContext) -> None:
    """With TLS 1.3 a client learns only from its first read that the server refused it."""
    try:
        async with dial(served, context) as wire:
            wire.send(connect_packet("stranger"))
            assert await wire.closed() == b""
    except (ssl.SSLError, ConnectionError):
        pass
    await until(lambda: not served.flow.shells)
    assert served.broker.counters.connections_total == 0


async def test_without_client_certificates(pki: Pki, place: dict[str, Any]) -> None:
    async with (
        serving(listener(place, pki.tls())) as served,
        dial(served, pki.ca.client()) as wire,
    ):
        await wire.connect("a")
        await wire.subscribe("a")
        wire.publish("a", bytes(500_000))
        assert (await wire.receive(Publish)).payload == bytes(500_000)
        (shell,) = served.flow.shells.values()
        assert shell.conn.identity is None
        assert shell.conn.listener.transport == ("unix+tls" if "unix_path" in place else "tcp+tls")
        assert served.listeners[0].urls[0].startswith("mqtts")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("client_cert", ["required", "optional"])
async def test_a_certificate_is_a_user_name(
    pki: Pki, place: dict[str, Any], client_cert: str, version: ssl.TLSVersion
) -> None:
    context = pki.ca.client(pki.ca.issue("pump", "pump-7"))
    context.minimum_version = context.maximum_version = version
    async with (
        serving(listener(place, pki.tls(client_cert))) as served,
        dial(served, context) as wire,
    ):
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.identity == "pump-7"
        assert shell.conn.session is not None
        assert shell.conn.session.owner == "pump-7"


async def test_the_whole_subject_as_user_name(pki: Pki) -> None:
    pair = pki.ca.issue("plant", name=subject("pump-7", "Plant 5"))
    async with (
        serving(endpoint(tls=pki.tls("required", "subject"))) as served,
        dial(served, pki.ca.client(pair)) as wire,
    ):
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.identity == "CN=pump-7,O=Plant 5"


async def test_a_certificate_without_a_say_in_the_name(pki: Pki) -> None:
    pair = pki.ca.issue("nobody", name=subject("", "Plant 5"))
    async with (
        serving(endpoint(tls=pki.tls("required", "none"))) as served,
        dial(served, pki.ca.client(pair)) as wire,
    ):
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.identity is None


async def test_optional_means_optional(pki: Pki, place: dict[str, Any]) -> None:
    async with (
        serving(listener(place, pki.tls("optional"))) as served,
        dial(served, pki.ca.client()) as wire,
    ):
        await wire.connect("a")
        (shell,) = served.flow.shells.values()
        assert shell.conn.identity is None


async def test_required_means_required(
    pki: Pki, place: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with serving(listener(place, pki.tls("required"))) as served:
            await refused(served, pki.ca.client())
            await until(lambda: caplog.records)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in caplog.text


@pytest.mark.parametrize("client_cert", ["required", "optional"])
async def test_a_certificate_of_another_authority(
    pki: Pki, place: dict[str, Any], client_cert: str, caplog: pytest.LogCaptureFixture
) -> None:
    context = pki.ca.client(pki.stranger.issue("pump", "pump-7"))
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with serving(listener(place, pki.tls(client_cert))) as served:
            await refused(served, context)
            await until(lambda: caplog.records)
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


@pytest.mark.parametrize("client_cert", ["required", "optional"])
async def test_an_expired_certificate(pki: Pki, place: dict[str, Any], client_cert: str) -> None:
    context = pki.ca.client(pki.ca.issue("old", "pump-7", days=-1))
    async with serving(listener(place, pki.tls(client_cert))) as served:
        await refused(served, context)


@pytest.mark.parametrize(
    "name",
    [
        subject("", "Plant 5"),
        subject("pump\n7"),
        subject("pump\0admin"),
        x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, "pump-7"),
                x509.NameAttribute(NameOID.COMMON_NAME, "admin"),
            ]
        ),
    ],
)
async def test_a_certificate_that_names_nobody(
    pki: Pki, place: dict[str, Any], name: x509.Name, caplog: pytest.LogCaptureFixture
) -> None:
    context = pki.ca.client(pki.ca.issue("nobody", name=name))
    with caplog.at_level(logging.INFO, "mqttd.net"):
        async with serving(listener(place, pki.tls("optional"))) as served:
            await refused(served, context)
    assert "client certificate with" in caplog.text


async def test_a_user_name_that_is_not_utf_8(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """mosquitto 2.0.16 took such a name; here the certificate names nobody."""
    certificate, _ = pki.ca.issue("latin", "pump-XXXX")
    # The signature no longer fits, so the name is tried on the function that reads it.
    raw = ssl.PEM_cert_to_DER_cert(certificate.read_text()).replace(
        b"pump-XXXX", b"pump-\xff\xfe\xfd\xfc"
    )

    class Connection:
        def getpeercert(self) -> dict[str, Any]:
            file = tmp_path / "latin.pem"
            file.write_text(ssl.DER_cert_to_PEM_cert(raw))
            return ssl._ssl._test_decode_cert(str(file))  # type: ignore[attr-defined,no-any-return]

    with pytest.raises(IdentityError):
        identity_of(Connection(), "cn")  # type: ignore[arg-type]


async def test_old_versions_are_refused(pki: Pki) -> None:
    context = pki.ca.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(endpoint(tls=pki.tls())) as served:
        await refused(served, context)


async def test_plain_mqtt_on_a_tls_listener(pki: Pki) -> None:
    async with serving(endpoint(tls=pki.tls())) as served, await Wire.open(served.port) as wire:
        wire.send(connect_packet("plain"))
        answer = await wire.closed()  # an alert of TLS, at most
        assert not answer.startswith(b"\x20")
        assert served.broker.counters.connections_total == 0


async def half_handshakes(served: Served) -> list[Wire]:
    wires = [await Wire.open(served.port) for _ in range(20)]
    for wire in wires:
        wire.send(b"\x16\x03\x01\x02\x00\x01")  # the start of a ClientHello
    return wires


async def test_handshakes_left_half_way_hold_nobody_up(pki: Pki) -> None:
    async with serving(endpoint(tls=pki.tls())) as served:
        halves = await half_handshakes(served)
        async with dial(served, pki.ca.client()) as wire:
            await wire.connect("a")
        assert served.broker.counters.connections_total == 1
        for wire in halves:
            await wire.close()


async def test_handshakes_left_half_way_end(pki: Pki) -> None:
    settings = Settings()
    settings.connect_timeout = 0.3
    async with serving(endpoint(tls=pki.tls()), broker=Broker(settings)) as served:
        for wire in await half_handshakes(served):
            await wire.closed()
            await wire.close()
        await until(lambda: served.broker.counters.connects_refused == 20)
    assert served.broker.counters.connections_total == 0


async def test_half_way_handshakes_end_with_the_listener(pki: Pki) -> None:
    async with serving(endpoint(tls=pki.tls())) as served:
        wire = await Wire.open(served.port)
        wire.send(b"\x16\x03\x01\x02\x00\x01")
        await asyncio.sleep(0.05)
        await served.listeners[0].stop()
        await wire.closed()
        await wire.close()


async def test_a_slow_reader_behind_tls_is_bounded(pki: Pki) -> None:
    settings = Settings()
    settings.write_buffer = 65536
    broker = Broker(settings)
    async with (
        serving(endpoint(tls=pki.tls()), broker=broker) as served,
        dial(served, pki.ca.client()) as slow,
        dial(served, pki.ca.client()) as source,
    ):
        await slow.connect("slow")
        await slow.subscribe("a")
        (shell,) = (one for one in served.flow.shells.values() if one.conn.client_id == "slow")
        await source.connect("source")
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(3000):
            source.publish("a", bytes(10_000))
            await source.writer.drain()
            await asyncio.sleep(0)
            waiting = shell.transport.get_write_buffer_size()
            assert waiting <= 2 * settings.write_buffer
            if "slow_reader" in broker.counters.dropped:
                break
        assert broker.counters.dropped["slow_reader"] > 0
        assert shell.paused  # type: ignore[attr-defined]
        slow.reader._transport.resume_reading()  # type: ignore[attr-defined]
        while shell.paused:  # type: ignore[attr-defined]
            await slow.receive(Publish)


async def test_certificates_are_reloaded_for_new_connections(pki: Pki, tmp_path: Path) -> None:
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"

    def install(pair: tuple[Path, Path]) -> None:
        cert.write_bytes(pair[0].read_bytes())
        key.write_bytes(pair[1].read_bytes())

    install(pki.server)
    async with serving(endpoint(tls=Tls(cert, key))) as served:  # noqa: SIM117
        async with dial(served, pki.ca.client()) as wire:
            await wire.connect("before")
            install(pki.stranger.issue("server", "localhost"))
            served.listeners[0].reload()
            with pytest.raises(ssl.SSLCertVerificationError):
                async with dial(served, pki.ca.client()):
                    pass
            async with dial(served, pki.stranger.client()) as other:
                await other.connect("after")
            await wire.subscribe("a")  # the old connection goes on
            key.write_text("nonsense")
            with pytest.raises(ListenError):
                served.listeners[0].reload()
            async with dial(served, pki.stranger.client()) as other:
                await other.connect("still")


async def test_files_that_are_no_certificates(pki: Pki, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    with pytest.raises(ListenError):
        async with serving(endpoint(tls=Tls(nonsense, nonsense))):
            pass
    with pytest.raises(ListenError, match="client_ca"):
        async with serving(endpoint(tls=Tls(*pki.server, None, "required"))):
            pass
