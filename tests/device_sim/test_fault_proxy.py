"""The proxy: bytes pass unharmed, and each fault does what it says and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

import pytest

from device_sim.engine.proxy import HIGH, Conditions, Proxy, reset
from tests.net.kit import PATIENCE, reserved_port, until


class Peer(asyncio.Protocol):
    """One end of a connection: what came, and how it ended."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.received = bytearray()
        self.chunks: list[float] = []
        self.lost = False
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.chunks.append(asyncio.get_running_loop().time())
        if self.echo:
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.error = exc


class Bench:
    """A server that echoes, a proxy in front of it, and clients on request."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.served: list[Peer] = []
        self.clients: list[Peer] = []

    def serve(self) -> Peer:
        self.served.append(Peer(echo=True))
        return self.served[-1]

    async def client(self) -> Peer:
        """A connected client whose counterpart at the server is up, too."""
        loop = asyncio.get_running_loop()
        before = len(self.served)
        _, peer = await loop.create_connection(Peer, "127.0.0.1", self.proxy.port)
        self.clients.append(peer)
        await until(lambda: len(self.served) > before)
        return peer


@contextlib.asynccontextmanager
async def bench(seed: int = 1) -> AsyncIterator[Bench]:
    loop = asyncio.get_running_loop()
    proxy = Proxy("127.0.0.1", 0, seed)
    made = Bench(proxy)
    server = await loop.create_server(made.serve, "127.0.0.1", 0)
    proxy.port_to = server.sockets[0].getsockname()[1]
    await proxy.open()
    try:
        yield made
    finally:
        await proxy.close()
        for peer in [*made.clients, *made.served]:
            peer.transport.abort()
        server.close()
        await asyncio.sleep(0)


def both(proxy: Proxy, conditions: Conditions) -> None:
    proxy.change(conditions, conditions)


def noise(size: int) -> bytes:
    return bytes(at * 31 % 251 for at in range(size))


async def test_bytes_pass_in_both_directions_and_so_does_the_end() -> None:
    async with bench() as made:
        client = await made.client()
        sent = noise(3 * HIGH)
        client.transport.write(sent)
        await until(lambda: len(client.received) == len(sent))
        assert client.received == sent
        assert len(made.proxy.pairs) == 1
        client.transport.close()
        await until(lambda: made.served[0].lost and not made.proxy.pairs)
        assert made.served[0].error is None


async def test_what_was_sent_before_the_end_arrives_before_it() -> None:
    async with bench() as made:
        client = await made.client()
        both(made.proxy, Conditions(delay_s=0.05))
        client.transport.write(b"last words")
        client.transport.close()
        await until(lambda: made.served[0].lost)
        assert made.served[0].received == b"last words"


async def test_delay_holds_in_both_directions_and_jitter_never_reorders() -> None:
    async with bench() as made:
        client = await made.client()
        loop = asyncio.get_running_loop()
        both(made.proxy, Conditions(delay_s=0.03, jitter_s=0.02))
        begun = loop.time()
        sent = b""
        for number in range(20):
            sent += b"%02d" % number
            client.transport.write(b"%02d" % number)
            await asyncio.sleep(0)
        await until(lambda: len(client.received) == len(sent))
        assert client.received == sent
        assert client.chunks[0] - begun >= 0.06 - 0.005
        both(made.proxy, Conditions())
        client.transport.write(b"!")
        await until(lambda: client.received.endswith(b"!"))


async def test_bandwidth_spreads_bytes_over_time() -> None:
    async with bench() as made:
        client = await made.client()
        loop = asyncio.get_running_loop()
        both(made.proxy, Conditions(bandwidth=100_000))
        begun = loop.time()
        client.transport.write(noise(10_000))
        await until(lambda: len(client.received) == 10_000)
        assert client.received == noise(10_000)
        assert loop.time() - begun >= 0.09  # 10,000 bytes at 100,000 a second
        assert len(made.served[0].chunks) > 3


async def test_a_slow_link_pushes_back() -> None:
    async with bench() as made:
        client = await made.client()
        both(made.proxy, Conditions(bandwidth=1_000_000))
        client.transport.set_write_buffer_limits(HIGH)
        client.transport.write(bytes(64 * HIGH))
        near = next(iter(made.proxy.pairs)).near
        await until(lambda: near.held_bytes > HIGH)
        held = near.held_bytes
        await asyncio.sleep(0.05)
        assert near.held_bytes <= held
        assert client.transport.get_write_buffer_size() > 0
        await made.proxy.close()
        await until(lambda: client.lost)


async def test_corruption_turns_over_single_bits_and_a_seed_repeats_it() -> None:
    seen = []
    for seed in (7, 7, 8):
        async with bench(seed) as made:
            client = await made.client()
            both(made.proxy, Conditions(corrupt=0.5))
            for _ in range(20):
                before = len(client.received)
                client.transport.write(bytes(8))
                await until(lambda: len(client.received) == before + 8)  # noqa: B023
            turned = sum(byte.bit_count() for byte in client.received)
            assert 0 < made.proxy.corrupted <= 40
            assert turned <= made.proxy.corrupted
            assert turned % 2 == made.proxy.corrupted % 2
            seen.append(bytes(client.received))
    assert seen[0] == seen[1] != seen[2]


async def test_directions_have_conditions_of_their_own() -> None:
    async with bench() as made:
        client = await made.client()
        ports: list[int] = []
        made.proxy.on_damage = ports.append
        made.proxy.change(Conditions(corrupt=1.0), Conditions())
        # The first piece, which says who connects, is spared.
        client.transport.write(bytes(8))
        await until(lambda: len(client.received) == 8)
        assert client.received == bytes(8)
        client.transport.write(bytes(8))
        await until(lambda: len(client.received) == 16)
        assert made.proxy.corrupted == 1
        assert client.received == made.served[0].received != bytes(16)
        assert ports == [client.transport.get_extra_info("sockname")[1]]


async def test_nothing_passes_a_cut_not_even_an_end_and_all_of_it_does_afterwards() -> None:
    async with bench() as made:
        client = await made.client()
        leaver = await made.client()
        both(made.proxy, Conditions(cut=True))
        client.transport.write(b"held")
        leaver.transport.write(b"bye")
        leaver.transport.close()
        pairs = list(made.proxy.pairs)
        await until(lambda: leaver.lost and all(pair.near.held for pair in pairs))
        await asyncio.sleep(0.02)
        assert [bytes(peer.received) for peer in made.served] == [b"", b""]
        assert not made.served[1].lost
        both(made.proxy, Conditions())
        await until(lambda: client.received == b"held")
        await until(lambda: made.served[1].lost and made.served[1].received == b"bye")


async def test_an_end_without_bytes_waits_for_the_end_of_a_cut_too() -> None:
    async with bench() as made:
        client = await made.client()
        both(made.proxy, Conditions(cut=True))
        client.transport.close()
        await until(lambda: client.lost)
        await asyncio.sleep(0.02)
        assert not made.served[0].lost
        both(made.proxy, Conditions())
        await until(lambda: made.served[0].lost)


async def test_without_a_broker_clients_are_reset_and_a_new_address_counts_at_once() -> None:
    async with bench() as made:
        good = made.proxy.port_to
        with reserved_port() as nobody:
            made.proxy.port_to = nobody
            loop = asyncio.get_running_loop()
            _, client = await loop.create_connection(Peer, "127.0.0.1", made.proxy.port)
            await until(lambda: client.lost)
        assert made.served == []
        made.proxy.port_to = good
        again = await made.client()
        again.transport.write(b"x")
        await until(lambda: again.received == b"x")


async def test_reset_is_seen_as_one() -> None:
    async with bench() as made:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(Peer, "127.0.0.1", made.proxy.port_to)
        await until(lambda: made.served)
        reset(client.transport)
        reset(client.transport)  # a second time is no error
        await until(lambda: made.served[0].lost)
        assert isinstance(made.served[0].error, ConnectionResetError)


async def test_closing_leaves_nobody_connected() -> None:
    async with bench() as made:
        client = await made.client()
        await made.proxy.close()
        assert not made.proxy.pairs
        await until(lambda: client.lost and made.served[0].lost)
        with pytest.raises(ConnectionRefusedError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.open_connection("127.0.0.1", made.proxy.port)
