"""http_auth: what is asked, what answers mean, what is remembered, and a service that fails."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from mqttd_plugins import _granted_filters
from mqttd_plugins._granted_filters import GrantedFilters
from mqttd_plugins.http_auth import Config, HttpAuth
from pydantic import ValidationError

from mqttd.api import (
    NOT_MINE,
    Allow,
    Client,
    Credentials,
    Decision,
    Deny,
    SubscriptionRequest,
    reason_codes,
)
from mqttd.testing import StandIn, settled
from tests.plugins.http_kit import Service, dripping, served, talking
from tests.tls import Authority

WALL = 1_900_000_000.0
UNAVAILABLE = Deny("the authentication service doesn't answer", reason_codes.SERVER_UNAVAILABLE)


async def started(service: Service | None = None, **config: Any) -> tuple[HttpAuth, StandIn]:
    if service is not None:
        config.setdefault("authenticate", {})
        for name in ("authenticate", "authorize"):
            if config.get(name) is not None:
                config[name] = {"url": service.url, **config[name]}
    broker = StandIn("http_auth")
    plugin = HttpAuth(Config.model_validate(config), broker, lambda: WALL)
    await plugin.start()
    return plugin, broker


def ada() -> Client:
    return Client("c1", "ada", peer="192.0.2.7:4000", listener="tcp")


async def login(
    plugin: HttpAuth, client: Client | None = None, password: bytes | None = b"pw"
) -> Decision:
    client = client or ada()
    answer = plugin.authenticate(client, Credentials(client.username, password))
    return cast(Decision, await settled(answer))


async def may_publish(
    plugin: HttpAuth, client: Client, topic: str, qos: int = 0, retain: bool = False
) -> Decision:
    return cast(Decision, await settled(plugin.authorize_publish(client, topic, qos, retain)))


async def may_subscribe(plugin: HttpAuth, client: Client, topic_filter: str) -> Decision:
    request = SubscriptionRequest(topic_filter, qos=1)
    return cast(Decision, await settled(plugin.authorize_subscribe(client, request)))


async def test_allow_deny_ignore() -> None:
    async with served() as service:
        plugin, broker = await started(service, cache={"ttl": 0})
        service.says({"result": "allow"})
        assert await login(plugin) == Allow("http_auth: allowed")
        service.says(status=204)
        assert await login(plugin) == Allow("http_auth: allowed")
        service.says({"result": "deny"})
        assert await login(plugin) == Deny("the authentication service refuses it")
        service.says({"result": "ignore"})
        assert await login(plugin) == NOT_MINE
        service.says({"is_superuser": True})
        assert await login(plugin) == NOT_MINE
        assert broker.counts == {"requests": 5, "refused": 1}
        await plugin.stop()


async def test_what_is_asked_by_default() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(service)
        await login(plugin)
        (request,) = service.requests
        assert request["method"] == "POST"
        assert request["path"] == "/answer"
        assert json.loads(request["body"]) == {
            "username": "ada",
            "password": "pw",
            "clientid": "c1",
        }
        assert request["headers"]["Content-Type"] == "application/json"
        await login(plugin, Client("c2"), None)
        assert json.loads(service.requests[1]["body"]) == {
            "username": None,
            "password": None,
            "clientid": "c2",
        }
        await plugin.stop()


async def test_templates_in_body_and_headers() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(
            service,
            authenticate={
                "headers": {"X-Client": "id ${clientid}", "Authorization": "Bearer key"},
                "body": {"who": "${username}@${peerhost}", "on": "${listener}", "fixed": "x"},
            },
        )
        await login(plugin)
        (request,) = service.requests
        assert json.loads(request["body"]) == {"who": "ada@192.0.2.7", "on": "tcp", "fixed": "x"}
        assert request["headers"]["X-Client"] == "id c1"
        assert request["headers"]["Authorization"] == "Bearer key"
        await plugin.stop()


async def test_a_form_and_a_query() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(service, authenticate={"encoding": "form"})
        await login(plugin, Client("c&1", "a=b"), b"p w")
        assert service.requests[0]["body"] == "username=a%3Db&password=p+w&clientid=c%261"
        await plugin.stop()
        plugin, _ = await started(
            service, authenticate={"method": "get", "body": {"c": "${clientid}"}}
        )
        await login(plugin, Client("../admin?x=1#"))
        assert service.requests[1]["method"] == "GET"
        assert service.requests[1]["path"] == "/answer"
        assert service.requests[1]["query"] == {"c": "../admin?x=1#"}
        await plugin.stop()


async def test_values_keep_their_types_in_json_and_are_text_elsewhere() -> None:
    body = {"qos": "${qos}", "retain": "${retain}", "both": "${qos}/${retain}"}
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(service, authenticate=None, authorize={"body": body})
        await may_publish(plugin, ada(), "t", 1, True)
        assert json.loads(service.requests[0]["body"]) == {
            "qos": 1,
            "retain": True,
            "both": "1/true",
        }
        await plugin.stop()
        form = {"body": body, "encoding": "form"}
        plugin, _ = await started(service, authenticate=None, authorize=form)
        await may_publish(plugin, ada(), "t", 1, True)
        assert service.requests[1]["body"] == "qos=1&retain=true&both=1%2Ftrue"
        await plugin.stop()


async def test_what_was_put_in_isnt_looked_at_for_placeholders() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        body = {"a": "${clientid} ${username}"}
        plugin, _ = await started(service, authenticate={"body": body})
        await login(plugin, Client("${password}", "${clientid}"))
        assert json.loads(service.requests[0]["body"]) == {"a": "${password} ${clientid}"}
        await plugin.stop()


async def test_what_is_granted_may_expire() -> None:
    async with served() as service:
        plugin, _ = await started(service, cache={"ttl": 0})
        service.says({"result": "allow", "expire_at": WALL + 60})
        assert await login(plugin) == Allow("http_auth: allowed", expires_in_s=60.0)
        service.says({"result": "allow", "expire_at": WALL - 1})
        assert isinstance(await login(plugin), Deny)
        service.says({"result": "allow", "expire_at": 10**30})
        assert await login(plugin) == Allow("http_auth: allowed", expires_in_s=10 * 365 * 86400.0)
        await plugin.stop()


async def test_a_superuser_may_do_everything() -> None:
    async with served() as service:
        service.says({"result": "allow", "is_superuser": True})
        plugin, _ = await started(service, authorize={})
        client = ada()
        await login(plugin, client)
        superuser = Allow("http_auth: superuser")
        assert plugin.authorize_publish(client, "a", 0, False) == superuser
        assert plugin.authorize_subscribe(client, SubscriptionRequest("#")) == superuser
        assert plugin.authorize_receive(client, "a") == superuser
        assert len(service.requests) == 1
        await plugin.stop()


async def test_rules_that_came_with_the_client_decide() -> None:
    rules = [
        {"permission": "deny", "action": "all", "topic": "up/secret"},
        {"permission": "allow", "action": "publish", "topic": "up/#"},
        {"permission": "allow", "action": "subscribe", "topic": "down/${clientid}", "qos": [0, 1]},
    ]
    async with served() as service:
        service.says({"result": "allow", "acl": rules, "client_attrs": {"tenant": "t1"}})
        plugin, broker = await started(service)
        client = ada()
        await login(plugin, client)
        allowed = await may_publish(plugin, client, "up/x")
        assert allowed == Allow("http_auth: allow publish up/#", cache=False)
        denied = await may_publish(plugin, client, "up/secret")
        assert isinstance(denied, Deny)
        assert denied.rule == "http_auth: deny all up/secret"
        denied = await may_publish(plugin, client, "x")
        assert isinstance(denied, Deny)
        assert denied.rule == "http_auth: none of its rules"
        assert isinstance(await may_subscribe(plugin, client, "$share/g/down/c1"), Allow)
        assert isinstance(await may_subscribe(plugin, client, "down/c2"), Deny)
        assert isinstance(plugin.authorize_receive(client, "down/c1"), Allow)
        assert isinstance(plugin.authorize_receive(client, "x"), Deny)
        assert client.attributes["http_auth.attributes"] == {"tenant": "t1"}
        assert len(service.requests) == 1
        assert broker.counts["denied_publish"] == 2
        await plugin.stop()


async def test_what_no_rule_decides_is_asked() -> None:
    async with served() as service:
        service.says({"result": "allow", "acl": {"pub": ["a"]}})
        plugin, _ = await started(service, authorize={}, cache={"ttl": 0})
        client = ada()
        await login(plugin, client)
        service.says({"result": "deny"})
        assert isinstance(await may_publish(plugin, client, "a"), Allow)
        assert isinstance(await may_publish(plugin, client, "b"), Deny)
        assert json.loads(service.requests[1]["body"]) == {
            "username": "ada",
            "clientid": "c1",
            "topic": "b",
            "action": "publish",
        }
        service.says({"result": "ignore"})
        assert await may_subscribe(plugin, client, "b") == NOT_MINE
        service.says(status=204)
        assert await may_subscribe(plugin, client, "$share/g/b/#") == Allow(
            "http_auth: the service", cache=False
        )
        body = json.loads(service.requests[3]["body"])
        assert (body["action"], body["topic"]) == ("subscribe", "b/#")
        await plugin.stop()


GRANTED = "http_auth: the service has granted a subscription to it"


async def test_a_service_that_drips_has_one_limit_for_all_of_its_answer() -> None:
    async with talking(dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x")) as port:
        end = {"url": f"http://127.0.0.1:{port}/x"}
        plugin, broker = await started(authenticate=end, timeout="100ms")
        assert await login(plugin) == UNAVAILABLE
        assert broker.counts["failures"] == 1
        await plugin.stop()


async def test_deliveries_follow_the_subscriptions_that_were_granted() -> None:
    async with served() as service:
        plugin, broker = await started(service, authenticate=None, authorize={}, cache={"ttl": 0})
        client = ada()
        service.says({"result": "allow"})
        for topic_filter in ("a/#", "$share/g/b/+", "c"):
            await may_subscribe(plugin, client, topic_filter)
        for topic in ("a/1", "b/1", "c"):
            assert plugin.authorize_receive(client, topic) == Allow(GRANTED)
        service.says(b"broken")
        assert isinstance(await may_subscribe(plugin, client, "a/#"), Deny)
        assert plugin.authorize_receive(client, "a/1") == Allow(GRANTED)  # no answer is no new one
        plugin.on_unsubscribe(client, "c")
        service.says({"result": "deny"})
        await may_subscribe(plugin, client, "a/#")
        assert broker.forgotten == ["c1"]  # the yes to a/1 isn't true any longer
        for topic in ("a/1", "c", "b/1/x", "$SYS/x", "x"):
            assert plugin.authorize_receive(client, topic) == NOT_MINE
        assert plugin.authorize_receive(client, "b/1") == Allow(GRANTED, cache=False)
        assert plugin.authorize_receive(ada(), "b/1") == NOT_MINE
        await plugin.stop()
        plugin, _ = await started(service, authenticate=None, authorize={}, receive="ignore")
        service.says({"result": "allow"})
        await may_subscribe(plugin, client, "x")
        assert plugin.authorize_receive(client, "x") == NOT_MINE
        await plugin.stop()


async def test_who_has_subscriptions_from_elsewhere_has_no_yes_remembered() -> None:
    async with served() as service:
        plugin, broker = await started(service, authenticate=None, authorize={}, cache={"ttl": 0})
        client = ada()
        service.says({"result": "allow"})
        await may_subscribe(plugin, client, "a/#")
        assert plugin.authorize_receive(client, "a/1") == Allow(GRANTED)
        service.says({"result": "ignore"})
        assert await may_subscribe(plugin, client, "b/#") == NOT_MINE
        assert broker.forgotten == ["c1"]
        assert plugin.authorize_receive(client, "a/1") == Allow(GRANTED, cache=False)
        assert plugin.authorize_receive(client, "b/1") == NOT_MINE
        service.says({"result": "allow"})
        await may_subscribe(plugin, client, "b/1")  # a no to it may be remembered
        assert broker.forgotten == ["c1", "c1"]
        await plugin.stop()


def test_filters_that_are_too_many_are_not_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_granted_filters, "MOST", 2)
    granted = GrantedFilters()
    assert [granted.add(name) for name in ("a", "b/+", "a", "c")] == [True, True, False, False]
    assert not granted.hold("c")
    assert granted.discard("a")
    assert not granted.discard("a")
    assert granted.add("c")
    assert granted.hold("c")
    assert granted.hold("b/x")


@pytest.mark.parametrize(
    ("policy", "kind"), [("ignore", type(NOT_MINE)), ("allow", Allow), ("deny", Deny)]
)
async def test_clients_that_came_without_rules(policy: str, kind: type) -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(service, without_acl=policy)
        client = ada()
        await login(plugin, client)
        assert isinstance(plugin.authorize_publish(client, "a", 0, False), kind)
        assert isinstance(plugin.authorize_receive(client, "a"), kind)
        assert plugin.authorize_receive(Client("stranger"), "a") == NOT_MINE
        await plugin.stop()


async def test_answers_are_remembered_for_a_while() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, broker = await started(service, authorize={}, cache={"ttl": "10s"})
        client = ada()
        assert isinstance(await login(plugin, client), Allow)
        assert isinstance(plugin.authenticate(client, Credentials("ada", b"pw")), Allow)
        assert isinstance(await may_publish(plugin, client, "a"), Allow)
        assert isinstance(plugin.authorize_publish(client, "a", 0, False), Allow)
        assert len(service.requests) == 2
        service.says({"result": "deny"})
        assert isinstance(await login(plugin, client, b"other"), Deny)
        assert isinstance(await login(plugin, Client("c2", "ada")), Deny)
        assert isinstance(await may_publish(plugin, client, "b"), Deny)
        assert isinstance(await login(plugin, client), Allow)
        await broker.advance(10)
        assert isinstance(await login(plugin, client), Deny)
        assert len(service.requests) == 6
        await plugin.stop()


async def test_what_is_remembered_is_bounded_and_holds_no_password() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, broker = await started(service, cache={"ttl": "10s", "entries": 3})
        for number in range(10):
            await login(plugin, Client(f"c{number}", "ada"), b"hunter2")
        known = cast(Any, plugin)._service._known
        assert len(known) == 3
        assert "hunter2" not in repr(known)
        await broker.advance(10)
        await login(plugin)
        assert len(known) == 1
        await plugin.stop()


BAD: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "400": (b"", 400, {}),
    "401": ({"result": "allow"}, 401, {}),
    "403": ({"result": "allow"}, 403, {}),
    "500": ({"result": "allow"}, 500, {}),
    "201": ({"result": "allow"}, 201, {}),
    "redirect": (b"", 302, {"headers": {"Location": "/allow"}}),
    "redirect 307": (b"", 307, {"headers": {"Location": "/allow"}}),
    "text": (b"allow", 200, {}),
    "nothing": (b"", 200, {}),
    "html": (b"<html>", 200, {"content_type": "text/html"}),
    "no UTF-8": (b'{"result":"\xff"}', 200, {}),
    "list": ([], 200, {}),
    "null": (None, 200, {}),
    "deep": (b"[" * 60_000, 200, {}),
    "result": ({"result": "yes"}, 200, {}),
    "result true": ({"result": True}, 200, {}),
    "result list": ({"result": ["allow"]}, 200, {}),
    "superuser": ({"result": "allow", "is_superuser": "false"}, 200, {}),
    "attributes": ({"result": "allow", "client_attrs": {"a": 1}}, 200, {}),
    "expire_at": ({"result": "allow", "expire_at": "never"}, 200, {}),
    "expire_at huge": ({"result": "allow", "expire_at": 10**400}, 200, {}),
    "expire_at true": ({"result": "allow", "expire_at": True}, 200, {}),
    "rules": ({"result": "allow", "acl": [{"permission": "maybe"}]}, 200, {}),
    "too much": (b'{"result":"allow"}' + b" " * 65536, 200, {}),
    "gzip": (b"\x1f\x8b\x08\x00", 200, {"headers": {"Content-Encoding": "gzip"}}),
}


@pytest.mark.parametrize("name", BAD)
async def test_no_answer_that_counts_is_a_no(name: str) -> None:
    body, status, more = BAD[name]
    async with served() as service:
        service.says(body, status, **more)
        plugin, broker = await started(service, authorize={})
        assert await login(plugin) == UNAVAILABLE
        denied = await may_publish(plugin, ada(), "a")
        assert isinstance(denied, Deny)
        assert denied.rule == "http_auth: the service doesn't answer"
        assert not denied.cache
        assert isinstance(await may_subscribe(plugin, ada(), "a"), Deny)
        assert broker.counts["failures"] == 3
        assert [request["path"] for request in service.requests] == ["/answer"] * 3
        service.says({"result": "allow"})  # nothing of it was remembered
        assert isinstance(await login(plugin), Allow)
        await plugin.stop()


async def test_an_expiry_that_is_no_time_is_a_no() -> None:
    async with served() as service:
        for body in (
            b'{"result":"allow","expire_at":NaN}',
            b'{"result":"allow","expire_at":-1e999}',
        ):
            service.says(body)
            plugin, _ = await started(service)
            assert isinstance(await login(plugin), Deny)
            await plugin.stop()


async def test_a_slow_service_is_a_no() -> None:
    release = asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"result": "allow"})

    async def stuck(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"result":"allow"}')
        await release.wait()
        return response

    async with served() as service:
        plugin, broker = await started(service, timeout="100ms", connections=1)
        for answer in (slow, stuck):
            service.answer = answer
            # The second waits for the only connection, and its time runs meanwhile.
            answers = await asyncio.gather(login(plugin), login(plugin))
            assert list(answers) == [UNAVAILABLE] * 2
        assert broker.counts["failures"] == 4
        release.set()
        await plugin.stop()


async def test_nobody_there_is_a_no() -> None:
    async with served() as service:
        plugin, _ = await started(service)
    assert await login(plugin) == UNAVAILABLE
    await plugin.stop()


async def test_connections_are_used_again() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(service, cache={"ttl": 0}, connections=2)
        for _ in range(3):
            await asyncio.gather(*(login(plugin) for _ in range(4)))
        assert len({request["peer"] for request in service.requests}) <= 2
        await plugin.stop()


async def test_no_cookies_are_kept() -> None:
    async with served() as service:
        service.says({"result": "allow"}, headers={"Set-Cookie": "session=1"})
        plugin, _ = await started(service, cache={"ttl": 0})
        for _ in range(2):
            await login(plugin)
        assert "Cookie" not in service.requests[1]["headers"]
        await plugin.stop()


async def test_failures_are_logged_seldom_and_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served() as service:
        service.says({"result": "MARKER allow", "acl": ["MARKER"]})
        plugin, broker = await started(
            service, authenticate={"headers": {"Authorization": "MARKER"}}, cache={"ttl": 0}
        )
        for _ in range(5):
            await login(plugin, Client("MARKER", "MARKER"), b"MARKER")
        lines = [record for record in caplog.records if record.name == broker.log.name]
        assert [line.getMessage() for line in lines] == [
            "no answer that counts from 127.0.0.1: a result that is neither allow, deny nor ignore"
        ]
        await broker.advance(11)
        await login(plugin)
        assert len([r for r in caplog.records if r.name == broker.log.name]) == 2
        assert "MARKER" not in "".join(line.getMessage() for line in lines)
        assert "MARKER" not in repr(plugin.config)
        await plugin.stop()


async def test_values_that_would_break_out_of_a_header_are_refused() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        header = {"headers": {"X-Client": "${clientid}"}}
        plugin, _ = await started(service, authenticate=header, authorize=header)
        for client_id in ("a\r\nX-Admin: 1", "a\nb", "a\0b"):
            client = Client(client_id, "ada")
            assert isinstance(await login(plugin, client), Deny)
            assert isinstance(await may_publish(plugin, client, "a"), Deny)
        assert service.requests == []
        await plugin.stop()


async def test_a_password_that_is_no_text_is_refused() -> None:
    async with served() as service:
        service.says({"result": "allow"})
        plugin, _ = await started(service)
        assert isinstance(await login(plugin, password=b"\xff\xfe"), Deny)
        assert service.requests == []
        await plugin.stop()


async def test_the_service_has_to_prove_who_it_is(tmp_path: Path) -> None:
    import ssl

    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    cert, key = authority.issue("broker")
    mine = {"cert": str(cert), "key": str(key)}
    async with served(context) as service:
        service.says({"result": "allow"})
        for tls, kind in (
            ({"ca": str(authority.file), **mine}, Allow),
            ({"verify": False, **mine}, Allow),
            ({"ca": str(other.file), **mine}, Deny),
            ({**mine}, Deny),
            ({"ca": str(authority.file)}, Deny),  # shows no certificate itself
        ):
            plugin, _ = await started(service, tls=tls)
            assert isinstance(await login(plugin), kind), tls
            await plugin.stop()


async def test_what_is_unsafe_is_told_at_the_start_and_at_a_reload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    end = {"url": "https://auth.example/x"}
    plugin, _ = await started(authenticate=end, tls={"verify": False})
    assert caplog.messages == ["anybody may answer for the service: tls.verify is false"]
    caplog.clear()
    await plugin.reload(Config.model_validate({"authenticate": end, "allow_plain_http": True}))
    assert caplog.messages == ["passwords may travel in the open: allow_plain_http is true"]
    caplog.clear()
    await plugin.reload(Config.model_validate({"authenticate": end}))
    assert caplog.messages == []
    await plugin.stop()


async def test_files_that_are_no_good_are_found_by_a_check(tmp_path: Path) -> None:
    end = {"url": "https://auth.example/x"}
    for tls in ({"ca": str(tmp_path / "none")}, {"cert": str(tmp_path / "c"), "key": "k"}):
        config = Config.model_validate({"authenticate": end, "tls": tls})
        with pytest.raises(ValueError, match=r"tls\.(ca|cert): .*No such file"):
            await HttpAuth(config, StandIn()).check()
    await HttpAuth(Config.model_validate({"authenticate": end}), StandIn()).check()


async def test_a_reload_takes_all_of_it_or_nothing(tmp_path: Path) -> None:
    async with served() as service, served() as other:
        service.says({"result": "allow"})
        other.says({"result": "deny"})
        plugin, broker = await started(service)
        end = {"url": other.url}
        bad = {"authenticate": end, "tls": {"ca": str(tmp_path / "none")}}
        with pytest.raises(ValueError, match=r"tls\.(ca|cert): .*No such file"):
            await plugin.reload(Config.model_validate(bad))
        assert isinstance(await login(plugin), Allow)
        await plugin.reload(Config.model_validate({"authenticate": end}))
        assert isinstance(await login(plugin), Deny)
        assert broker.forgotten == [None]
        await plugin.stop()


async def test_before_it_has_started_nobody_comes_in() -> None:
    config = Config.model_validate(
        {"authenticate": {"url": "https://a.example"}, "authorize": {"url": "https://a.example"}}
    )
    plugin = HttpAuth(config, StandIn())
    assert isinstance(await login(plugin), Deny)
    assert isinstance(await may_publish(plugin, ada(), "a"), Deny)


async def test_what_is_missing_is_told_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mqttd_plugins._http_service", None)
    config = Config.model_validate({"authenticate": {"url": "https://a.example"}})
    with pytest.raises(RuntimeError, match=r'pip install "mqttd\[http\]"'):
        await HttpAuth(config, StandIn()).check()


HERE = {"url": "http://127.0.0.1:1/x"}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "expected authenticate or authorize"),
        ({"authenticate": {"url": "auth.example"}}, "expected https://HOST/PATH"),
        ({"authenticate": {"url": "ftp://auth.example"}}, "expected https://HOST/PATH"),
        ({"authenticate": {"url": "https://u:p@auth.example"}}, "no credentials"),
        ({"authenticate": {"url": "https://a.example/${clientid}"}}, "expected no placeholders"),
        ({"authenticate": {"url": "http://auth.example/x"}}, "found http to auth.example"),
        ({"authenticate": {**HERE, "body": {"a": "${topic}"}}}, "found the placeholder 'topic'"),
        ({"authenticate": {**HERE, "body": {"a": "${username"}}}, "found the placeholder"),
        ({"authorize": {**HERE, "body": {"a": "${password}"}}}, "found the placeholder 'password'"),
        ({"authorize": {**HERE, "headers": {"A": "${x}"}}}, "found the placeholder 'x'"),
        ({"authenticate": {**HERE, "method": "get"}}, "a password in a query ends up in logs"),
        ({"authenticate": HERE, "tls": {"cert": "x"}}, "expected cert and key, or neither"),
        ({"authenticate": HERE, "timeout": 0}, "timeout: expected 50ms or more"),
        ({"authenticate": HERE, "connections": 0}, "expected 1 or more"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(config)


def test_http_to_another_machine_has_to_be_wanted() -> None:
    plain = {"authenticate": {"url": "http://auth.example/x"}, "allow_plain_http": True}
    assert Config.model_validate(plain).allow_plain_http
