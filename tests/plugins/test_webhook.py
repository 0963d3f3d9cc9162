"""webhook: what is told and how, what an answer means, what is kept, and a real HTTP service."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from mqttd_plugins.webhook import Config, Webhook
from pydantic import ValidationError

from mqttd.api import CONNECTED, DELIVERED, DISCONNECTED, PUBLISHED, SUBSCRIBED, Event
from mqttd.testing import StandIn
from tests.plugins.http_kit import dripping, talking

URL = "http://127.0.0.1:1/hook"


class Service:
    """What a service would see: bodies, and the answers that it gives in turn, then 200."""

    def __init__(self, *answers: int | tuple[int, float]) -> None:
        self.answers = list(answers)
        self.batches: list[list[dict[str, Any]]] = []
        self.taken: list[dict[str, Any]] = []
        self.refuses: Callable[[list[dict[str, Any]]], int] | None = None

    async def post(self, body: bytes) -> tuple[int, float]:
        events = json.loads(body)["events"]
        self.batches.append(events)
        answer = self.answers.pop(0) if self.answers else 200
        if self.refuses is not None:
            answer = self.refuses(events)
        status, after_s = answer if isinstance(answer, tuple) else (answer, 0.0)
        if status == 200:
            self.taken += events
        return status, after_s


@asynccontextmanager
async def started(
    service: Service, broker: StandIn | None = None, **config: Any
) -> AsyncIterator[tuple[Webhook, StandIn]]:
    broker = StandIn("webhook") if broker is None else broker
    settings = {"url": URL, "linger": 0, **config}
    plugin = cast(Webhook, await broker.start(Webhook, Config.model_validate(settings)))
    plugin._post = service.post  # type: ignore[method-assign]
    try:
        yield plugin, broker
    finally:
        await plugin.stop()


async def settle(broker: StandIn, seconds: float = 0.0) -> None:
    for _ in range(40):
        await asyncio.sleep(0)
        await broker.advance(0.0)
    await broker.advance(seconds)
    for _ in range(40):
        await asyncio.sleep(0)
        await broker.advance(0.0)


def event(client_id: str, kind: str = CONNECTED, **more: Any) -> Event:
    return Event(kind, 1_700_000_000.25, client_id, **more)


def names(events: list[dict[str, Any]]) -> list[str]:
    return [one["client_id"] for one in events]


# What is told.


async def test_an_event_is_told_with_all_that_is_known_but_the_payload() -> None:
    service = Service()
    async with started(service, events=["published"]) as (plugin, broker):
        plugin.observe(
            [
                event(
                    *("c", PUBLISHED),
                    username="ann",
                    peer="192.0.2.1:5",
                    topic="a/b",
                    qos=1,
                    retain=True,
                    payload=b"secret",
                )
            ]
        )
        await settle(broker)
    (told,) = service.taken
    assert told.pop("id") > 10**15
    assert told == {
        "kind": "published",
        "at": "2023-11-14T22:13:20.250+00:00",
        "client_id": "c",
        "username": "ann",
        "peer": "192.0.2.1:5",
        "topic": "a/b",
        "qos": 1,
        "retain": True,
        "reason": "",
    }
    assert broker.table().items() == []
    assert broker.counts == {"sent": 1}


async def test_a_payload_goes_along_if_it_is_asked_for_and_not_too_large() -> None:
    service = Service()
    kinds = ["published", "delivered"]
    async with started(service, events=kinds, payload=True, max_payload=4) as (plugin, broker):
        for payload in (b"\x00\xff", b"large"):
            plugin.observe([event("c", PUBLISHED, topic="t", payload=payload)])
        plugin.observe([event("c", DELIVERED, topic="t")])
        await settle(broker)
    first, second, third = service.taken
    assert (base64.b64decode(first["payload"]), first["payload_bytes"]) == (b"\x00\xff", 2)
    assert "payload" not in second
    assert second["payload_bytes"] == 5
    assert "payload_bytes" not in third


async def test_events_about_other_topics_are_not_told() -> None:
    service = Service()
    kinds = ["published", "subscribed", "connected"]
    async with started(service, events=kinds, topics=["a/#", "b"]) as (plugin, broker):
        for topic in ("a/x", "b", "b/c", "$SYS/a"):
            plugin.observe([event(topic, PUBLISHED, topic=topic)])
        for topic in ("a/+", "c", "$share/g/a/b"):
            plugin.observe([event(topic, SUBSCRIBED, topic=topic)])
        plugin.observe([event("it")])
        await settle(broker)
    assert names(service.taken) == ["a/x", "b", "a/+", "$share/g/a/b", "it"]


def test_a_plugin_watches_what_it_tells() -> None:
    plugin = Webhook(Config(url=URL, events=["denied", "dropped"]), StandIn())
    assert plugin.watches == {"denied", "dropped"}


# Batches, order, failures.


async def test_events_are_told_in_order_and_in_batches() -> None:
    service = Service()
    async with started(service, batch=4) as (plugin, broker):
        plugin.observe([event(str(number)) for number in range(10)])
        await settle(broker)
    assert names(service.taken) == [str(number) for number in range(10)]
    assert [len(batch) for batch in service.batches] == [4, 4, 2]
    ids = [one["id"] for one in service.taken]
    assert ids == sorted(set(ids))


async def test_a_first_event_waits_a_moment_for_others() -> None:
    service = Service()
    async with started(service, linger="250ms") as (plugin, broker):
        await settle(broker, 1.0)
        plugin.observe([event("1")])
        await settle(broker, 0.125)
        plugin.observe([event("2")])
        assert service.batches == []
        await settle(broker, 0.125)
        assert [len(batch) for batch in service.batches] == [2]


async def test_a_failure_is_tried_again_ever_more_slowly_and_nothing_overtakes() -> None:
    service = Service(500, 0, 301, 404, 503)
    async with started(service, batch=1, retry_first=1, retry_most=4) as (plugin, broker):
        plugin.observe([event("1"), event("2")])
        began, instants = broker.clock, []
        for _ in range(400):
            seen = len(service.batches)
            await settle(broker, 0.0625)
            instants += [broker.clock - began] * (len(service.batches) - seen)
    assert [names(batch) for batch in service.batches] == [["1"]] * 6 + [["2"]]
    waits = [late - early for early, late in pairwise(instants[:6])]
    for wait, longest in zip(waits, [1, 2, 4, 4, 4], strict=True):
        assert longest / 2 - 0.07 <= wait <= longest + 0.07
    assert broker.counts == {"failures": 5, "sent": 2}


async def test_a_service_that_asks_for_time_gets_it_within_reason() -> None:
    service = Service((429, 3.0), (503, 10.0**6))
    async with started(service, retry_first=0.1, retry_most=5) as (plugin, broker):
        plugin.observe([event("1")])
        await settle(broker, 2.9)
        assert len(service.batches) == 1
        await settle(broker, 0.2)
        assert len(service.batches) == 2
        await settle(broker, 5.0)
        assert names(service.taken) == ["1"]


async def test_an_event_that_the_service_cannot_take_is_found_and_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service()
    service.refuses = lambda events: 400 if "bad" in names(events) else 200
    async with started(service, batch=8) as (plugin, broker):
        sent = [event(name) for name in ("1", "2", "3", "bad", "4", "5", "6", "7")]
        plugin.observe(sent)
        await settle(broker)
    assert names(service.taken) == ["1", "2", "3", "4", "5", "6", "7"]
    assert broker.counts == {"sent": 7, "rejected": 1}
    assert "answers 400" in caplog.text


async def test_batches_shrink_for_a_service_that_finds_them_too_large() -> None:
    service = Service()
    service.refuses = lambda events: 413 if len(events) > 3 else 200
    async with started(service, batch=16) as (plugin, broker):
        plugin.observe([event(str(number)) for number in range(20)])
        await settle(broker)
    assert names(service.taken) == [str(number) for number in range(20)]
    assert "rejected" not in broker.counts


# What is kept.


async def test_what_was_not_taken_outlives_the_process() -> None:
    service = Service(*[0] * 99)
    async with started(service) as (plugin, broker):
        plugin.observe([event("1"), event("2")])
        await settle(broker, 5.0)
    assert service.taken == []
    first_ids = [one["id"] for one in service.batches[0]]
    again = StandIn("webhook")
    again.tables = broker.tables
    service = Service()
    async with started(service, again) as (plugin, broker):
        await settle(broker)
        plugin.observe([event("3")])
        await settle(broker)
    assert names(service.taken) == ["1", "2", "3"]
    assert [one["id"] for one in service.taken[:2]] == first_ids
    assert service.taken[2]["id"] > first_ids[1]


@pytest.mark.parametrize("bound", [{"max_events": 3}, {"max_bytes": 600}])
async def test_the_oldest_events_go_when_there_are_too_many(bound: dict[str, Any]) -> None:
    service = Service(*[0] * 99)
    async with started(service, batch=2, **bound) as (plugin, broker):
        for number in range(10):
            plugin.observe([event(str(number))])
            await settle(broker)
        waiting = len(broker.table().items())
        assert waiting <= 3
        assert broker.counts["dropped"] == 10 - waiting
        assert broker.gauges["waiting"] == waiting
        service.answers.clear()
        await settle(broker, 60.0)
    assert names(service.taken) == ["7", "8", "9"][-waiting:]


async def test_events_that_are_dropped_while_they_are_sent_take_nothing_else_along() -> None:
    release = asyncio.Event()

    class Slow(Service):
        async def post(self, body: bytes) -> tuple[int, float]:
            await release.wait()
            return await super().post(body)

    service = Slow()
    async with started(service, max_events=3, batch=2) as (plugin, broker):
        plugin.observe([event(str(number)) for number in range(3)])
        await settle(broker)
        plugin.observe([event(str(number)) for number in range(3, 6)])
        release.set()
        await settle(broker)
    assert names(service.taken) == ["0", "1", "3", "4", "5"]


async def test_with_a_full_disk_new_events_are_dropped_and_counted() -> None:
    service = Service(500)
    async with started(service) as (plugin, broker):
        plugin.observe([event("a")])
        await settle(broker)
        broker.full = True
        plugin.observe([event("b"), event("c")])
        assert broker.counts["dropped"] == 2
        broker.full = False
        plugin.observe([event("d")])
        await settle(broker, 60.0)
    assert names(service.taken) == ["a", "d"]


async def test_a_reload_sends_what_waits_to_the_new_address_at_once() -> None:
    service = Service(0)
    async with started(service, retry_first=30) as (plugin, broker):
        plugin.observe([event("1")])
        await settle(broker)
        assert service.taken == []
        await plugin.reload(Config(url="http://127.0.0.1:2/other", linger=0))
        await settle(broker)
        assert names(service.taken) == ["1"]
        with pytest.raises(ValueError, match="events can't be changed"):
            await plugin.reload(Config(url=URL, events=["denied"]))
        assert plugin.config.url == "http://127.0.0.1:2/other"


async def test_the_operator_sees_what_waits() -> None:
    service = Service(*[0] * 9)
    async with started(service) as (plugin, broker):
        plugin.observe([event("1")])
        await settle(broker)
        answer = await plugin.control("status", {})
        assert isinstance(answer, dict)
        assert (answer["waiting"], answer["failures_in_a_row"]) == (1, 1)
        with pytest.raises(ValueError, match="no action 'flush'"):
            await plugin.control("flush", {})


# Over HTTP.


@asynccontextmanager
async def serving(handler: Any) -> AsyncIterator[TestServer]:
    application = web.Application()
    application.router.add_route("*", "/hook", handler)
    server = TestServer(application, host="127.0.0.1")
    await server.start_server()
    try:
        yield server
    finally:
        await server.close()


async def test_a_service_gets_a_signed_body(tmp_path: Path) -> None:
    requests: list[tuple[bytes, dict[str, str]]] = []

    async def hook(request: web.Request) -> web.Response:
        requests.append((await request.read(), dict(request.headers)))
        return web.Response(status=204)

    (tmp_path / "secret").write_text("k3y\n")
    async with serving(hook) as server:
        config = {
            "url": str(server.make_url("/hook")),
            "secret_file": str(tmp_path / "secret"),
            "headers": {"X-Api-Key": "abc"},
            "batch": 1,
        }
        broker = StandIn("webhook")
        plugin = await broker.start(Webhook, Config.model_validate(config))
        plugin.observe([event("c")])
        async with asyncio.timeout(30):
            while broker.table().items():
                await asyncio.sleep(0.005)
        await plugin.stop()
    ((body, headers),) = requests
    signature = hmac.new(b"k3y", body, hashlib.sha256).hexdigest()
    assert headers["X-Mqttd-Signature"] == f"sha256={signature}"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Api-Key"] == "abc"
    assert names(json.loads(body)["events"]) == ["c"]
    assert broker.counts == {"sent": 1}


async def test_redirects_are_not_followed_and_no_service_is_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    elsewhere: list[str] = []

    async def hook(request: web.Request) -> web.Response:
        elsewhere.append(request.path)
        return web.Response(status=307, headers={"Location": "/hook?again"})

    async with serving(hook) as server:
        broker = StandIn("webhook")
        plugin = cast(
            Webhook,
            await broker.start(Webhook, Config(url=str(server.make_url("/hook")), linger=0)),
        )
        assert await plugin._post(b"{}") == (307, 0.0)
        assert elsewhere == ["/hook"]
    assert await plugin._post(b"{}") == (0, 0.0)
    await plugin.stop()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: "], ids=["status", "header"])
async def test_a_service_that_drips_is_given_up(start: bytes) -> None:
    async with talking(dripping(start, b"x")) as port:
        config = Config(url=f"http://127.0.0.1:{port}/", timeout=0.05)
        plugin = cast(Webhook, await StandIn("webhook").start(Webhook, config))
        assert await plugin._post(b"{}") == (0, 0.0)
        await plugin.stop()


# Configuration.


async def test_files_that_are_no_good_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "ca.pem").write_text("nothing")
    for key, file, told in (
        ("secret_file", "none", r"none: No such file"),
        ("secret_file", "empty", r"empty: empty: expected"),
        ("ca", "ca.pem", r"ca.pem: no certificates"),
        ("ca", "none.pem", r"none.pem: no certificates"),
    ):
        values = {"url": "https://x.example/", key: str(tmp_path / file)}
        plugin = Webhook(Config.model_validate(values), StandIn())
        with pytest.raises(ValueError, match=told):
            await plugin.check()
        with pytest.raises(ValueError, match=told):
            await plugin.start()
    await Webhook(Config(url=URL), StandIn()).check()


async def test_without_aiohttp_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(RuntimeError, match=r'pip install "mqttd\[http\]"'):
        await Webhook(Config(url=URL), StandIn()).check()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"url": "ftp://x.example/"}, "expected https://"),
        ({"url": "http://x.example/"}, r"found http to x.example.*allow_plain_http: true"),
        ({"events": []}, "none would ever be told"),
        ({"events": ["born"]}, "'connected'"),
        ({"topics": ["a/#/b"]}, "no topic filter"),
        ({"headers": {"Content-Type": "x"}}, "set by the plugin"),
        ({"headers": {"X Y": "x"}}, "no name of a header"),
        ({"headers": {"X": "a\r\nEvil: b"}}, "control character"),
        ({"retry_first": 0}, "retry_first"),
        ({"retry_first": 5, "retry_most": 4}, "retry_most"),
        ({"timeout": 0}, "timeout"),
        ({"ca": "ca.pem"}, "https URL"),
        ({"batch": 0}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate({"url": URL, **config})


def test_plain_http_goes_elsewhere_where_the_configuration_insists() -> None:
    config = Config(url="http://x.example/", allow_plain_http=True)
    assert config.url == "http://x.example/"


def test_what_is_told_by_default_is_who_comes_and_goes() -> None:
    config = Config(url=URL)
    assert config.events == [CONNECTED, DISCONNECTED, "refused"]
    assert not config.payload
