"""An HTTP service on a free port of loopback that answers as the test says, or talks by hand."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Service:
    """`answer` is called for each request; `requests` are what came, with bodies and headers."""

    def __init__(self, scheme: str) -> None:
        self.port = 0
        self.answer: Answer = self._nothing
        self.requests: list[dict[str, Any]] = []
        self._scheme = scheme

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/answer"

    def says(self, body: Any = None, status: int = 200, **more: Any) -> None:
        """The same answer to everybody: JSON, or a body of bytes as it is."""

        async def answer(_: web.Request) -> web.StreamResponse:
            if isinstance(body, bytes):
                return web.Response(body=body, status=status, **more)
            if status == 204:
                return web.Response(status=status)
            return web.json_response(body, status=status, **more)

        self.answer = answer

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "headers": dict(request.headers),
                "body": await request.text(),
                "peer": (request.transport or _NO_TRANSPORT).get_extra_info("peername"),
            }
        )
        return await self.answer(request)

    async def _nothing(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=500)


class _NoTransport:
    def get_extra_info(self, _: str) -> None:
        return None


_NO_TRANSPORT = _NoTransport()


@asynccontextmanager
async def served(context: ssl.SSLContext | None = None) -> AsyncIterator[Service]:
    """A service until the block ends; clients that still wait are cut off."""
    service = Service("http" if context is None else "https")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service._handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    service.port = runner.addresses[0][1]
    try:
        yield service
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talking(talk: Talk, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Bytes by hand on a free port of loopback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    made = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with made:
        yield made.sockets[0].getsockname()[1]


def dripping(start: bytes, drop: bytes) -> Talk:
    """Begins, and then says one thing again and again, never done."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.02)

    return talk
