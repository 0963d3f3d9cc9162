"""Requests and answers over MQTT, for plugins.

Owns: `Requests`, one plugin's requests that wait for an answer, by correlation data, and what
answers the requests of others. Both are clients inside, with sessions that end with the process: an
answer that comes after a restart has nobody who waits for it.

Must not know: the core. It stands on `BrokerServices` alone.

Invariants: a request ends in one answer, a time-out or the end of the plugin, and leaves nothing
behind; correlation data and response topic can't be guessed, so that who knows neither can't
answer; an answer that comes too late, or that nobody asked for, is counted and dropped; a request
is acknowledged when its answer is out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from mqttd.core import spec
from mqttd.core.topics import matches
from mqttd.hooks.plugin import BrokerServices, InternalClient, Responder, Timer
from mqttd.hooks.values import NO_PROPERTIES, Message, MessageProperties

_AT_ONCE: Final = 1024  # answers, and requests that are being answered


class Requests:
    """The requests of one plugin, and its answers to those of others."""

    def __init__(self, broker: BrokerServices) -> None:
        self._broker = broker
        self._waiting: dict[bytes, asyncio.Future[Message]] = {}
        self._topic = f"$reply/{secrets.token_urlsafe(12)}"
        self._client: InternalClient | None = None
        self._opening = asyncio.Lock()
        self._responders = 0

    async def request(
        self,
        topic: str,
        payload: bytes,
        timeout_s: float,
        qos: int,
        properties: MessageProperties | None,
    ) -> Message:
        """See `BrokerServices.request`."""
        client = await self._opened()
        key = secrets.token_bytes(16)
        asked = replace(
            properties or NO_PROPERTIES, response_topic=self._topic, correlation_data=key
        )
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[key] = answer
        try:
            async with asyncio.timeout(timeout_s):
                message = Message(topic, payload, qos, properties=asked, expires_in_s=timeout_s)
                if not await client.publish(message):
                    raise LookupError(f"nobody subscribes to {topic}")
                return await answer
        except TimeoutError as error:
            raise TimeoutError(f"no answer on {topic} within {timeout_s:g} s") from error
        finally:
            del self._waiting[key]

    async def _opened(self) -> InternalClient:
        async with self._opening:
            if self._client is None:
                client = await self._broker.client(
                    f"{self._topic}/requests", receive_maximum=_AT_ONCE, session_expiry_s=0
                )
                await client.subscribe(self._topic)
                self._broker.spawn(self._collect(client), "answers")
                self._client = client
            return self._client

    async def _collect(self, client: InternalClient) -> None:
        async for received in client:
            received.ack()
            answer = self._waiting.get(received.message.properties.correlation_data or b"")
            if answer is None or answer.done():
                self._broker.count("late_answers")
            else:
                answer.set_result(received.message)

    async def respond(
        self, topic_filter: str, handler: Responder, reply_to: Sequence[str]
    ) -> Timer:
        """See `BrokerServices.respond`."""
        self._responders += 1
        client = await self._broker.client(
            f"{self._topic}/responder-{self._responders}",
            receive_maximum=_AT_ONCE,
            session_expiry_s=0,
        )
        try:
            await client.subscribe(topic_filter)
        except ValueError:
            client.close()
            raise
        return _Responding(self._broker, client, handler, tuple(reply_to))


class _Responding(Timer):
    """Answers requests, each in a task of its own, until it is told to stop."""

    def __init__(
        self,
        broker: BrokerServices,
        client: InternalClient,
        handler: Responder,
        reply_to: tuple[str, ...],
    ) -> None:
        self._broker = broker
        self._client = client
        self._handler = handler
        self._reply_to = reply_to
        self._room = asyncio.Semaphore(_AT_ONCE)  # QoS 0 knows no receive maximum
        self._task = broker.spawn(self._run(), "requests")

    def cancel(self) -> None:
        self._task.cancel()
        self._client.close()

    async def _run(self) -> None:
        async for received in self._client:
            await self._room.acquire()
            self._broker.spawn(self._answer(received.message, received.ack), "a request")

    async def _answer(self, request: Message, ack: Callable[..., None]) -> None:
        try:
            await self._respond(request, ack)
        finally:
            self._room.release()

    async def _respond(self, request: Message, ack: Callable[..., None]) -> None:
        try:
            answer = self._handler(request)
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer is not None:
                await self._send(request, answer)
        except Exception:
            self._broker.count("failed_requests")
            self._broker.log.exception("plugin %s failed in a request", self._broker.name)
            ack(spec.IMPLEMENTATION_SPECIFIC_ERROR)
            return
        ack()

    async def _send(self, request: Message, answer: bytes | Message) -> None:
        topic = request.properties.response_topic
        if topic is None or not any(matches(allowed, topic) for allowed in self._reply_to):
            self._broker.count("unanswered_requests")
            return
        message = answer if isinstance(answer, Message) else Message(topic, answer)
        key = request.properties.correlation_data
        properties = replace(message.properties, response_topic=None, correlation_data=key)
        message = message.replace(topic=topic, qos=request.qos, retain=False, properties=properties)
        await self._broker.publish(message)
