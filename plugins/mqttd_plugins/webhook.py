"""`webhook`: what happens in the broker, told to an HTTP service, each event at least once.

Owns: which events are told, the batches, the signature, and what an answer means. An event goes
into the plugin's table first and out of it when the service has answered 2xx. Anything else is
tried again, ever more slowly, and nothing overtakes it: order is kept. Only what the service says
is wrong with the request itself (400, 413, 422) is tried in halves, until one event alone is found
to be the cause; that one is dropped, and counted, so that it doesn't block the others for ever.

Must not know: who else authenticates or authorises; nothing here decides anything.

Invariants: the queue is bounded, the oldest events go first, counted; no secret and no payload is
ever logged; redirects are not followed, so the signature goes to the configured address alone; a
service that is down slows nobody down.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib
import random
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from mqttd.api import (
    BrokerServices,
    Duration,
    Event,
    FilePath,
    Plugin,
    PluginConfig,
    Size,
    Timer,
    matches,
)
from mqttd_plugins._event_queue import EventQueue
from mqttd_plugins._topics import check_filter
from mqttd_plugins._urls import check_headers, check_url

SIGNATURE: Final = "X-Mqttd-Signature"
MAX_BODY: Final = 1024 * 1024
"""Bytes of one request, unless a single event is larger."""
WRONG_REQUEST: Final = frozenset({400, 413, 422})
ABOUT_TOPICS: Final = frozenset(
    {"published", "delivered", "dropped", "denied", "subscribed", "unsubscribed"}
)
_RESERVED_HEADERS: Final = frozenset({"content-type", "content-length", SIGNATURE.lower()})

Kind = Literal[
    "connected",
    "disconnected",
    "refused",
    "subscribed",
    "unsubscribed",
    "published",
    "denied",
    "delivered",
    "dropped",
    "session_created",
    "session_expired",
    "session_taken_over",
]


class Config(PluginConfig):
    url: str
    """Where events are posted: https://HOST/PATH; over http to this machine alone."""
    allow_plain_http: bool = False
    """Post over http, also to other machines than this one."""
    events: list[Kind] = ["connected", "disconnected", "refused"]
    """The kinds that are told."""
    topics: list[str] = ["#"]
    """Topic filters: of events about a topic only those are told that one of these matches."""
    payload: bool = False
    """Send the payload of `published` along, in base64."""
    max_payload: Size = 64 * 1024
    """A larger payload is left out, with its length in its place."""
    secret_file: FilePath | None = None
    """Holds the key of the signature; absent: nothing is signed."""
    headers: dict[str, SecretStr] = {}
    """Sent along, for an API key, say."""
    ca: FilePath | None = None
    """Certificates (PEM) to trust instead of the system's."""
    timeout: Duration = 10.0
    """For one request."""
    batch: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Events in one request at most."""
    linger: Duration = 0.1
    """How long a first event waits for others."""
    max_events: Annotated[int, Field(ge=1)] = 10_000
    """Events that wait at most; above that the oldest are dropped."""
    max_bytes: Size = 16 * 1024 * 1024
    """The same in bytes."""
    retry_first: Duration = 0.5
    """The first wait after a failure; each further one is twice as long, somewhat at random."""
    retry_most: Duration = 60.0
    """The longest wait."""

    @field_validator("topics")
    @classmethod
    def _are_filters(cls, value: list[str]) -> list[str]:
        for topic_filter in value:
            check_filter(topic_filter)
        return value

    @field_validator("headers", mode="before")
    @classmethod
    def _are_headers(cls, value: object) -> object:
        if isinstance(value, dict):
            check_headers("headers", value)
            for name in value:
                if name.lower() in _RESERVED_HEADERS:
                    raise ValueError(f"headers: {name} is set by the plugin")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        insist = "allow_plain_http: true"
        check_url("url", self.url, plain=self.allow_plain_http, instead=insist)
        if not self.events:
            raise ValueError("events: none would ever be told")
        if self.timeout <= 0 or self.retry_first <= 0 or self.retry_most < self.retry_first:
            raise ValueError("timeout and retry_first are above 0, retry_most not below the latter")
        if self.ca is not None and not self.url.startswith("https:"):
            raise ValueError("ca belongs to an https URL")
        return self


class Webhook(Plugin[Config]):
    """Events, posted."""

    def __init__(self, config: Config, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self.watches = frozenset(config.events)
        self._queue: EventQueue | None = None
        self._http: Any = None
        self._tls: ssl.SSLContext | None = None
        self._secret: bytes | None = None
        self._woken = asyncio.Event()
        self._work: Timer | None = None
        self._pausing: asyncio.Future[None] | None = None
        self._failures = 0
        self._at_once = config.batch

    async def start(self) -> None:
        aiohttp = _aiohttp()
        self._secret, self._tls = await self.broker.run_blocking(_read, self.config)
        self._queue = EventQueue(self.broker.table(), self.config.max_events, self.config.max_bytes)
        self._http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        self._count()
        self._woken.set()
        self._work = self.broker.spawn(self._send_all(), "sender")

    async def stop(self) -> None:
        if self._work is not None:
            self._work.cancel()
        if self._http is not None:
            await self._http.close()

    async def check(self) -> None:
        _aiohttp()
        await self.broker.run_blocking(_read, self.config)

    async def reload(self, config: Config) -> None:
        """What waits goes to the new address, at once. Kinds of events are those of the start."""
        if frozenset(config.events) != self.watches:
            raise ValueError("events can't be changed while the broker runs")
        self._secret, self._tls = await self.broker.run_blocking(_read, config)
        self.config = config
        self._at_once = config.batch
        if self._queue is not None:
            self._queue.most, self._queue.most_bytes = config.max_events, config.max_bytes
        _wake(self._pausing)

    def observe(self, events: Sequence[Event]) -> None:
        queue = self._queue
        if queue is None:
            return
        config = self.config
        for event in events:
            if event.kind in ABOUT_TOPICS and not self._is_told(event.topic):
                continue
            with_payload = config.max_payload if config.payload else None
            queue.put(event, with_payload if event.kind == "published" else None)
        self._count()
        self._woken.set()

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        if action != "status" or self._queue is None:
            return await super().control(action, arguments)
        return {
            "waiting": len(self._queue),
            "waiting_bytes": self._queue.octets,
            "failures_in_a_row": self._failures,
        }

    def _is_told(self, topic: str) -> bool:
        if topic.startswith("$share/"):
            topic = topic.split("/", 2)[-1]
        return any(matches(topic_filter, topic) for topic_filter in self.config.topics)

    def _count(self) -> None:
        assert self._queue is not None
        if self._queue.dropped:
            self.broker.count("dropped", self._queue.dropped)
            self._queue.dropped = 0
        self.broker.gauge("waiting", len(self._queue))

    # Sending.

    async def _send_all(self) -> None:
        queue = self._queue
        assert queue is not None
        while True:
            await self._woken.wait()
            if 0 < len(queue) < self._at_once:
                await self._pause(self.config.linger)
            self._woken.clear()
            while rows := queue.head(self._at_once, MAX_BODY):
                await self._send(queue, rows)
                self._count()

    async def _send(self, queue: EventQueue, rows: list[tuple[int, bytes]]) -> None:
        """Post some events, and act on the answer."""
        status, after_s = await self._post(b'{"events":[' + b",".join(r for _, r in rows) + b"]}")
        numbers = [number for number, _ in rows]
        if 200 <= status < 300:
            queue.done(numbers)
            self._is_there()
            self._at_once = min(self._at_once * 2, self.config.batch)
            self.broker.count("sent", len(rows))
            return
        if status in WRONG_REQUEST:
            self._is_there()
            if len(rows) > 1:
                self._at_once = len(rows) // 2
                return
            queue.done(numbers)
            self.broker.count("rejected")
            self.broker.log.error("event %d is dropped: the service answers %d", numbers[0], status)
            return
        self._failures += 1
        self.broker.count("failures")
        if self._failures == 1:
            what = f"answers {status}" if status else "can't be reached"
            self.broker.log.warning("the service %s; events wait", what)
        await self._pause(max(self._backoff_s(), min(after_s, self.config.retry_most)))

    def _is_there(self) -> None:
        if self._failures:
            self.broker.log.info("the service answers again")
        self._failures = 0

    def _backoff_s(self) -> float:
        config = self.config
        longest_s = min(config.retry_first * 2.0 ** min(self._failures - 1, 60), config.retry_most)
        return longest_s * random.uniform(0.5, 1.0)

    async def _post(self, body: bytes) -> tuple[int, float]:
        """Status of the answer, 0 for none, and for how long the service asks to be left alone."""
        aiohttp = _aiohttp()
        own = self.config.headers.items()
        headers = {name: text.get_secret_value() for name, text in own}
        headers["Content-Type"] = "application/json"
        if self._secret is not None:
            headers[SIGNATURE] = f"sha256={sign(self._secret, body)}"
        try:
            async with self._http.post(
                self.config.url,
                data=body,
                headers=headers,
                allow_redirects=False,
                ssl=True if self._tls is None else self._tls,
                timeout=aiohttp.ClientTimeout(total=self.config.timeout),
            ) as answer:
                return answer.status, _seconds(answer.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return 0, 0.0

    async def _pause(self, seconds: float) -> None:
        self._pausing = over = asyncio.get_running_loop().create_future()
        timer = self.broker.call_later(seconds, lambda: _wake(over))
        try:
            await over
        finally:
            timer.cancel()
            self._pausing = None


def sign(secret: bytes, body: bytes) -> str:
    """HMAC-SHA256 of the body, as a receiver has to compute it."""
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def _wake(over: asyncio.Future[None] | None) -> None:
    if over is not None and not over.done():
        over.set_result(None)


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0


def _aiohttp() -> Any:
    try:
        return importlib.import_module("aiohttp")
    except ImportError as error:
        raise RuntimeError('webhook needs aiohttp: pip install "mqttd[http]"') from error


def _read(config: Config) -> tuple[bytes | None, ssl.SSLContext | None]:
    """The secret and the certificates. ValueError names the file that is no good."""
    secret = None
    if config.secret_file is not None:
        secret = _text(config.secret_file).strip()
        if not secret:
            raise ValueError(f"{config.secret_file}: empty: expected the key of the signature")
    if config.ca is None:
        return secret, None
    try:
        return secret, ssl.create_default_context(cafile=str(config.ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{config.ca}: no certificates: {error.strerror or error}") from None


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
