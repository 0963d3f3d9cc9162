"""rate_limit: what waits and how long, what is refused, whom it concerns, what is remembered."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqttd_plugins.rate_limit import Config, Limit, ListenerLimits, RateLimit
from pydantic import ValidationError

from mqttd.api import Client, Deny, Message, reason_codes
from mqttd.testing import StandIn

CLIENT = Client("c", listener="tcp")


async def started(**config: Any) -> tuple[RateLimit, StandIn]:
    broker = StandIn("rate_limit")
    plugin = await broker.start(RateLimit, Config(**config))
    return cast(RateLimit, plugin), broker


async def delay_of(
    plugin: RateLimit, broker: StandIn, size: int = 0, client: Client = CLIENT
) -> float:
    """Seconds that a message of `size` bytes waits; it has to go on."""
    answer = plugin.on_publish(client, Message("t", bytes(max(size - 1, 0))))
    if answer is None:
        return 0.0
    assert isinstance(answer, Awaitable)
    waiting = asyncio.ensure_future(answer)
    began = broker.clock
    await asyncio.sleep(0)
    while not waiting.done():
        await broker.advance(0.0625)
        await asyncio.sleep(0)
    await waiting
    return broker.clock - began


def refusal(plugin: RateLimit, size: int = 1, client: Client = CLIENT) -> Deny:
    answer = plugin.on_publish(client, Message("t", bytes(size - 1)))
    assert isinstance(answer, Deny)
    return answer


async def test_what_fits_into_the_bucket_goes_on_at_once() -> None:
    plugin, broker = await started(client=Limit(messages=4.0, burst=2.0))
    for _ in range(8):
        assert plugin.on_publish(CLIENT, Message("t")) is None
    assert broker.counts == {}


async def test_messages_above_the_rate_wait_for_their_turn() -> None:
    plugin, broker = await started(client=Limit(messages=4.0))
    waits = [await delay_of(plugin, broker) for _ in range(8)]
    assert waits == [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25]
    assert broker.counts == {"delayed": 4, "delayed_milliseconds": 1000}
    assert broker.gauges["waiting"] == 0


async def test_bytes_above_the_rate_wait_for_their_turn() -> None:
    plugin, broker = await started(client=Limit(bytes=1024))
    assert await delay_of(plugin, broker, 1024) == 0
    assert await delay_of(plugin, broker, 512) == 0.5


async def test_a_message_larger_than_the_bucket_passes_if_it_is_patient() -> None:
    plugin, broker = await started(client=Limit(bytes=1024))
    assert await delay_of(plugin, broker, 2048) == 1.0
    assert await delay_of(plugin, broker, 256) == 0.25


async def test_a_message_that_would_wait_too_long_is_refused_and_costs_nothing() -> None:
    plugin, broker = await started(client=Limit(bytes=1024), max_delay=2.0)
    assert refusal(plugin, 4096).code == reason_codes.QUOTA_EXCEEDED
    assert await delay_of(plugin, broker, 1024) == 0
    assert broker.counts == {"refused": 1}


async def test_the_bytes_of_topic_and_properties_count() -> None:
    plugin, broker = await started(client=Limit(bytes=100))
    assert plugin.on_publish(CLIENT, Message("t" * 80, bytes(10), block=bytes(10))) is None
    assert await delay_of(plugin, broker, 50) == 0.5


async def test_who_presses_for_longer_than_the_patience_is_refused_what_comes_too_early() -> None:
    plugin, broker = await started(client=Limit(messages=4.0), patience=1.0)
    for _ in range(9):  # the fifth is the first to wait; the ninth comes one second later
        await delay_of(plugin, broker)
    deny = refusal(plugin)
    assert deny.code == reason_codes.QUOTA_EXCEEDED
    assert not deny.disconnect
    assert "faster than it may" in deny.reason
    # What comes in its turn still goes on.
    await broker.advance(0.25)
    assert plugin.on_publish(CLIENT, Message("t")) is None
    assert isinstance(plugin.on_publish(CLIENT, Message("t")), Deny)


async def test_who_pauses_until_the_bucket_is_full_has_yielded() -> None:
    plugin, broker = await started(client=Limit(messages=4.0), patience=1.0)
    for _ in range(9):
        await delay_of(plugin, broker)
    refusal(plugin)
    await broker.advance(1.0)
    waits = [await delay_of(plugin, broker) for _ in range(5)]
    assert waits == [0, 0, 0, 0, 0.25]


async def test_without_an_end_to_patience_everything_is_waited_for() -> None:
    plugin, broker = await started(client=Limit(messages=4.0), patience=0)
    for _ in range(400):
        await delay_of(plugin, broker)
    assert broker.counts["delayed"] == 396
    assert broker.clock == 1000.0 + 396 / 4


async def test_then_disconnect_ends_the_connection() -> None:
    plugin, broker = await started(client=Limit(messages=1.0), max_delay=0, then="disconnect")
    assert plugin.on_publish(CLIENT, Message("t")) is None
    deny = refusal(plugin)
    assert (deny.code, deny.disconnect) == (reason_codes.MESSAGE_RATE_TOO_HIGH, True)
    assert broker.counts == {"disconnected": 1}


async def test_clients_do_not_pay_for_each_other() -> None:
    plugin, broker = await started(client=Limit(messages=1.0))
    assert await delay_of(plugin, broker) == 0
    assert await delay_of(plugin, broker, client=Client("other", listener="tcp")) == 0


async def test_coming_back_brings_no_fresh_bucket() -> None:
    plugin, broker = await started(client=Limit(messages=1.0))
    assert await delay_of(plugin, broker) == 0
    assert await delay_of(plugin, broker, client=Client("c", listener="tcp")) == 1.0


async def test_a_listener_is_shared_by_its_clients() -> None:
    plugin, broker = await started(listener=Limit(messages=2.0))
    assert await delay_of(plugin, broker) == 0
    assert await delay_of(plugin, broker, client=Client("d", listener="tcp")) == 0
    assert await delay_of(plugin, broker, client=Client("e", listener="tcp")) == 0.5
    assert await delay_of(plugin, broker, client=Client("f", listener="other")) == 0


async def test_more_than_a_listener_can_take_soon_is_refused_whoever_sends_it() -> None:
    plugin, broker = await started(
        client=Limit(messages=100.0), listener=Limit(messages=1.0), max_delay=1.0
    )
    waiting = []
    assert plugin.on_publish(CLIENT, Message("t")) is None
    answer = plugin.on_publish(Client("d", listener="tcp"), Message("t"))
    assert isinstance(answer, Awaitable)
    waiting.append(asyncio.ensure_future(answer))
    late = plugin.on_publish(Client("e", listener="tcp"), Message("t"))
    assert isinstance(late, Deny)
    assert "listener" in late.reason
    await asyncio.sleep(0)
    await broker.advance(1.0)
    assert await asyncio.gather(*waiting) == [None]


async def test_a_listener_of_its_own_limits_does_not_know_the_general_ones() -> None:
    plugin, broker = await started(
        client=Limit(messages=1.0),
        listeners={
            "inside": ListenerLimits(),
            "slow": ListenerLimits(client=Limit(messages=0.5)),
        },
    )
    inside, slow = Client("c", listener="inside"), Client("c", listener="slow")
    for _ in range(50):
        assert await delay_of(plugin, broker, client=inside) == 0
    assert await delay_of(plugin, broker, client=slow) == 0
    assert await delay_of(plugin, broker, client=slow) == 2.0
    assert await delay_of(plugin, broker) == 0


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    plugin, broker = await started(client=Limit(messages=1.0))
    assert await delay_of(plugin, broker) == 0
    answer = plugin.on_publish(CLIENT, Message("t"))
    assert isinstance(answer, Awaitable)
    waiting = asyncio.ensure_future(answer)
    await asyncio.sleep(0)
    assert broker.gauges["waiting"] == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert broker.gauges["waiting"] == 0
    await broker.advance(5.0)


async def test_clients_whose_bucket_is_full_are_forgotten() -> None:
    plugin, broker = await started(client=Limit(messages=1.0))
    for number in range(100):
        await delay_of(plugin, broker, client=Client(f"c{number}"))
        await broker.advance(1.0)
    assert broker.gauges["clients"] <= 2
    assert "forgotten" not in broker.counts


async def test_a_flood_of_client_ids_costs_no_more_than_its_bound() -> None:
    plugin, broker = await started(client=Limit(messages=1.0), max_clients=10)
    for number in range(100):
        await delay_of(plugin, broker, client=Client(f"c{number}"))
    assert broker.gauges["clients"] == 10
    assert broker.counts["forgotten"] == 90
    assert await delay_of(plugin, broker, client=Client("c99")) == 1.0


async def test_a_long_client_id_takes_no_more_room_than_a_short_one() -> None:
    plugin, broker = await started(client=Limit(messages=1.0))
    long = Client("c" * 65535)
    await delay_of(plugin, broker, client=long)
    assert await delay_of(plugin, broker, client=long) == 1.0
    assert await delay_of(plugin, broker, client=Client("c" * 65534)) == 0
    assert all(len(client_id) < 100 for _, client_id in plugin._clients)


async def test_a_reload_brings_the_new_limits() -> None:
    plugin, broker = await started(client=Limit(messages=1.0))
    await delay_of(plugin, broker)
    await plugin.reload(Config(client=Limit(messages=100.0)))
    for _ in range(100):
        assert plugin.on_publish(CLIENT, Message("t")) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2000)), max_size=60))
def test_in_any_span_no_more_goes_on_than_bucket_and_rate_allow(
    sent: list[tuple[int, int]],
) -> None:
    async def body() -> None:
        plugin, broker = await started(
            client=Limit(messages=4.0, bytes=1024), max_delay=100.0, patience=0
        )
        passed: list[tuple[float, int]] = []
        for quarters, size in sent:
            await broker.advance(quarters / 4)
            await delay_of(plugin, broker, size)
            passed.append((broker.clock, size))
        for first in range(len(passed)):
            for last in range(first, len(passed)):
                span_s = passed[last][0] - passed[first][0]
                some = passed[first : last + 1]
                # The message at either end may be larger than the bucket.
                octets = sum(size for _, size in some[1:])
                assert len(some) <= 4 + 4 * span_s + 1e-6
                assert octets <= 1024 + 1024 * span_s + 1e-6

    asyncio.run(body())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "no limit is set"),
        ({"client": {"burst": 2.0}}, "no limit is set"),
        ({"client": {"messages": 0.0}}, "greater than 0"),
        ({"client": {"messages": -1.0}}, "greater than 0"),
        ({"client": {"messages": float("inf")}}, "finite"),
        ({"client": {"bytes": 0}}, "would let nothing through"),
        ({"client": {"messages": 1.0, "burst": 0}}, "longer than nothing"),
        ({"client": {"messages": 1.0}, "then": "beg"}, "'refuse' or 'disconnect'"),
        ({"client": {"message": 1.0}}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(config)
