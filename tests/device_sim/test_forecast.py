"""The plan of a scenario: clients, messages and deliveries, counted before anything runs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.language.arrival import MessageTimes
from device_sim.language.forecast import forecast
from tests.device_sim.scenarios import entry, group, read, tree


def test_clients_streams_and_stages() -> None:
    plan = forecast(
        read(
            tree(
                groups=[
                    group(tags={"room": ["a", "b"]}, publish=[entry(topic="h/{room}/{id}", qos=1)]),
                    {"name": "all", "count": 2, "subscribe": [{"filters": ["h/#", "h/a/+"]}]},
                    {"name": "some", "subscribe": [{"filters": ["h/a/#"]}]},
                    {
                        "name": "share",
                        "count": 5,
                        "subscribe": [{"filters": ["h/+/+"], "share": "s"}],
                    },
                ],
                stages=[
                    {"name": "up", "actions": [{"connect": {"at": 1, "over": 3}}]},
                    {"name": "go", "duration": 10, "actions": [{"publish": {"factor": 2}}]},
                ],
            )
        )
    )
    assert plan.connections == 18
    [stream] = plan.streams
    # Both of `all` once in spite of two filters, one of `share`, and `some` for every other device.
    assert stream.fan == 3.5
    assert (stream.rate, stream.qos, stream.topic) == (5.0, "1", "h/a/sensor-00000")
    up, go = plan.stages
    assert (up.seconds, up.messages) == (4, 0)
    assert (go.messages, go.deliveries, go.rate) == (100, 350, 10)
    assert (plan.messages, plan.deliveries, plan.seconds) == (100, 350, 14)


def one(publish: dict[str, Any], action: dict[str, Any] | None = None, **keys: Any) -> Any:
    groups = [group(publish=[publish]), {"name": "w", "subscribe": [{"filters": ["#"]}]}]
    stage = {"name": "s", "duration": 10, "actions": [{"publish": action or {}}], **keys}
    return forecast(read(tree(groups=groups, stages=[stage]))).stages[0]


def test_limits() -> None:
    assert one(entry(count=3)).messages == 30
    assert one(entry(), {"count": 2}).messages == 20
    assert one(entry(), {"at": 6, "duration": 60}).messages == 20
    assert one(entry(), {"duration": 4}).messages == 20


def test_a_closed_loop_is_counted_only_when_it_has_a_count() -> None:
    assert one({"topic": "t/{id}"}).closed_loop
    assert one({"topic": "t/{id}"}, {"count": 7}).messages == 70


def test_transfers_and_streams() -> None:
    assert one(entry(every=10, transfer={"size": 1000, "chunk": 100})).messages == 100
    assert one(entry(topic="t/{id}/{stream}", streams=3)).deliveries == 50


def test_requests_are_answered() -> None:
    groups = [
        {"name": "a", "count": 4, "respond": [{"filter": "c/{id}"}]},
        {
            "name": "c",
            "request": [{"topic": "c/{target}", "targets": "a", "response": "r/{id}", "every": 1}],
        },
    ]
    plan = forecast(read(tree(groups=groups)))
    assert (plan.messages, plan.deliveries) == (20, 20)
    assert plan.streams[0].topic == "c/a-00000"


@given(
    st.sampled_from(
        ["linear", {"burst": {"size": 3}}, {"step": {"steps": 4, "over": 8}}],
    ),
    st.booleans(),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_the_plan_counts_what_the_times_bring(arrival: Any, together: bool, factor: float) -> None:
    keys = entry(every=0.7, arrival=arrival, together=together)
    scenario = read(tree(groups=[group(publish=[keys])]))
    sensor = scenario.groups[0]
    due = 0
    for index in range(sensor.count):
        times = MessageTimes(sensor.publish[0], 0, "sensor", index, sensor.count, "k", factor)
        while times.next() < 10:
            due += 1
    # A message of each device that is due at the very end may fall on either side of it.
    assert one(keys, {"factor": factor}).messages == pytest.approx(due, abs=10)


def test_poisson_is_an_expectation() -> None:
    assert one(entry(arrival="poisson")).messages == 50
