"""acl_file, cert_identity, jwt and http_auth inside a broker, with clients on real sockets."""

import datetime
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import mqttd
from mqttd.core import encode, spec
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Will,
)
from mqttd.core.properties import Properties
from tests.net.kit import Wire, loopback, until
from tests.plugins.http_kit import served
from tests.plugins.token_kit import SECRET, signed
from tests.tls import DAY, Authority


def config(*plugins: dict[str, Any], **listener: Any) -> dict[str, object]:
    return {"listeners": [loopback(**listener)], "plugins": list(plugins)}


@asynccontextmanager
async def client(
    broker: mqttd.Broker,
    client_id: str = "c1",
    username: str | None = None,
    password: bytes | None = None,
    will: Will | None = None,
    expected: int = spec.SUCCESS,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Wire]:
    host = "localhost" if tls else "127.0.0.1"
    async with await Wire.open(broker.port("tcp"), host, tls) as wire:
        wire.send(
            encode.encode_packet(
                Connect("MQTT", 5, True, 0, client_id, will, username, password, Properties()), 5
            )
        )
        assert (await wire.receive(Connack)).reason == expected
        yield wire


async def subscribed(wire: Wire, topic_filter: str) -> int:
    wire.send(Subscribe(1, [Filter(topic_filter, 1, False, False, 0)]))
    return (await wire.receive(Suback)).reasons[0]


async def published(wire: Wire, topic: str, payload: bytes = b"x") -> int:
    wire.publish(topic, payload, 1, 7)
    return (await wire.receive(Puback)).reason


async def received(wire: Wire) -> str:
    return (await wire.receive(Publish)).topic


NO_ONE = spec.NO_MATCHING_SUBSCRIBERS


async def test_acl_file_decides_about_publish_subscribe_and_each_delivery(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\ntopic deny secret/#\nuser pub\ntopic write #\n")
    plugin = {"use": "acl_file", "config": {"file": str(acl)}}
    async with (
        mqttd.Broker(config(plugin)) as broker,
        client(broker, "sub") as sub,
        client(broker, "pub", "pub") as pub,
    ):
        assert await subscribed(sub, "secret/#") == spec.NOT_AUTHORIZED
        assert await subscribed(sub, "$share/g/secret/x") == spec.NOT_AUTHORIZED
        assert await subscribed(sub, "#") == spec.GRANTED_QOS_1
        assert await published(sub, "a") == spec.NOT_AUTHORIZED
        await published(pub, "secret/x")
        assert await published(pub, "open/x") == spec.SUCCESS
        assert await received(sub) == "open/x"


async def test_a_changed_list_reaches_subscriptions_that_are_there(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic #\n")
    plugin = {"use": "acl_file", "config": {"file": str(acl), "check_interval": "100ms"}}
    async with (
        mqttd.Broker(config(plugin)) as broker,
        client(broker, "sub") as sub,
        client(broker, "pub") as pub,
    ):
        for topic_filter in ("a/#", "b/#"):
            assert await subscribed(sub, topic_filter) == spec.GRANTED_QOS_1
        assert await published(pub, "a/1") == spec.SUCCESS
        assert await received(sub) == "a/1"
        acl.write_text("topic write a/#\ntopic b/#\n")
        while await published(pub, "c") != spec.NOT_AUTHORIZED:
            pass
        await published(pub, "a/2")
        assert await published(pub, "b/2") == spec.SUCCESS
        assert await received(sub) == "b/2"


async def test_a_will_needs_the_right_to_publish_it(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\ntopic write ok\n")
    plugin = {"use": "acl_file", "config": {"file": str(acl)}}
    async with mqttd.Broker(config(plugin)) as broker, client(broker, "sub") as sub:
        assert await subscribed(sub, "#") == spec.GRANTED_QOS_1
        bad = Will("forbidden", b"gone")
        good = Will("ok", b"gone")
        async with await Wire.open(broker.port("tcp")) as wire:
            wire.send(
                encode.encode_packet(
                    Connect("MQTT", 5, True, 0, "w1", bad, None, None, Properties()), 5
                )
            )
        async with client(broker, "w2", will=good):
            pass
        assert await received(sub) == "ok"


async def test_a_certificate_gives_the_name_that_rules_are_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    acl = tmp_path / "acl"
    acl.write_text("pattern write own/%u\n")
    tls = {
        "cert": str(cert),
        "key": str(key),
        "client_ca": str(authority.file),
        "client_cert": "optional",
        "username_from": "none",
    }
    plugins = (
        {"use": "cert_identity", "config": {"template": "dev-{}"}},
        {"use": "acl_file", "config": {"file": str(acl)}},
    )
    async with mqttd.Broker(config(*plugins, tls=tls, allow_anonymous=False)) as broker:
        named = authority.client(authority.issue("one", "dev-one"))
        async with client(broker, "c1", "admin", tls=named) as wire:
            assert await published(wire, "own/one") == NO_ONE
            assert await published(wire, "own/admin") == spec.NOT_AUTHORIZED
        other = authority.client(authority.issue("two", "server-two"))
        async with client(broker, expected=spec.NOT_AUTHORIZED, tls=other):
            pass
        nameless = authority.client()
        async with client(broker, expected=spec.NOT_AUTHORIZED, tls=nameless):
            pass


JWT = {"use": "jwt", "config": {"algorithms": ["HS256"], "secret": SECRET, "leeway": 0}}


async def test_a_certificate_that_is_revoked_ends_its_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    pair = authority.issue("one", "one")
    serial = x509.load_pem_x509_certificate(pair[0].read_bytes()).serial_number
    crl = tmp_path / "ca.crl"
    crl.write_bytes(revoked(authority))
    tls = {
        "cert": str(cert),
        "key": str(key),
        "client_ca": str(authority.file),
        "client_cert": "required",
        "username_from": "none",
    }
    plugin = {
        "use": "cert_identity",
        "config": {
            "crl": [str(crl)],
            "crl_ca": str(authority.file),
            "check_interval": "100ms",
        },
    }
    async with mqttd.Broker(config(plugin, tls=tls)) as broker:
        context = authority.client(pair)
        async with client(broker, tls=context) as wire:
            crl.write_bytes(revoked(authority, serial))
            assert (await wire.receive(Disconnect)).reason == spec.NOT_AUTHORIZED
        async with client(broker, tls=context, expected=spec.NOT_AUTHORIZED):
            pass


def revoked(authority: Authority, *serials: int) -> bytes:
    """The authority's list, as PEM."""
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateRevocationListBuilder(issuer_name=authority._subject)
    builder = builder.last_update(now - DAY).next_update(now + DAY)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(now - DAY).build())
    signed_list = builder.sign(authority._key, hashes.SHA256())
    return signed_list.public_bytes(serialization.Encoding.PEM)


async def test_a_token_ends_the_connection() -> None:
    async with mqttd.Broker(config(JWT)) as broker:
        ends_at = int(time.time()) + 3
        async with client(broker, password=signed(exp=ends_at)) as wire:
            assert (await wire.receive(Disconnect)).reason >= spec.UNSPECIFIED_ERROR
            assert time.time() > ends_at - 0.1


async def test_a_token_lets_in_and_says_what_is_allowed() -> None:
    async with mqttd.Broker(config(JWT)) as broker:
        token = signed(acl={"pub": ["up/${username}"]})
        async with client(broker, "c1", "x", token) as wire:
            assert await published(wire, "up/ada") == NO_ONE
            assert await published(wire, "up/x") == spec.NOT_AUTHORIZED
            assert await subscribed(wire, "up/ada") == spec.NOT_AUTHORIZED
        for password in (b"wrong", signed(key="k" * 32), signed(exp=1), None):
            expected = spec.BAD_USER_NAME_OR_PASSWORD, spec.NOT_AUTHORIZED
            async with await Wire.open(broker.port("tcp")) as wire:
                packet = Connect("MQTT", 5, True, 0, "c1", None, "x", password, Properties())
                wire.send(encode.encode_packet(packet, 5))
                assert (await wire.receive(Connack)).reason in expected


async def test_an_http_service_lets_in_and_says_what_is_allowed() -> None:
    async with served() as service:
        end = {"url": service.url}
        plugin = {
            "use": "http_auth",
            "config": {"authenticate": end, "authorize": end, "cache": {"ttl": 0}},
        }
        async with mqttd.Broker(config(plugin)) as broker:
            service.says({"result": "allow", "acl": {"pub": ["up/${username}"]}})
            async with client(broker, "c1", "ada", b"pw") as wire:
                service.says({"result": "deny"})
                assert await published(wire, "up/ada") == NO_ONE
                assert await published(wire, "other") == spec.NOT_AUTHORIZED
                service.says({"result": "allow"})
                assert await subscribed(wire, "other") == spec.GRANTED_QOS_1
                wire.publish("other", b"x")
                assert await received(wire) == "other"
            service.says({"result": "deny"})
            async with client(broker, username="ada", expected=spec.NOT_AUTHORIZED):
                pass
            service.says(b"broken")
            async with client(broker, username="ada", expected=spec.SERVER_UNAVAILABLE):
                pass
            await until(lambda: len(service.requests) == 6)


async def test_a_service_that_has_no_opinion_leaves_deliveries_to_the_list(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read site/#\ntopic deny site/secret\n")
    async with served() as service:
        service.says({"result": "ignore"})
        plugins = (
            {"use": "http_auth", "config": {"authorize": {"url": service.url}}},
            {"use": "acl_file", "config": {"file": str(acl)}},
        )
        async with (
            mqttd.Broker(config(*plugins, allow_anonymous=True)) as broker,
            client(broker) as wire,
        ):
            assert await subscribed(wire, "site/#") == spec.GRANTED_QOS_1
            service.says({"result": "allow"})
            wire.publish("site/secret", b"x")
            wire.publish("site/open", b"x")
            assert await received(wire) == "site/open"
