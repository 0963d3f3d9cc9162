"""`bridge_activemq` with ActiveMQ Artemis: both ways, by queues and topics.

What is killed meanwhile is for the long form: `python -m tests.bridges --bridge artemis`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from mqttd_plugins._stomp import Frame
from mqttd_plugins.bridge_activemq import id_of

from tests.bridges.faces import until_state, with_bridge
from tests.bridges.far_activemq import PLUGIN, connection_to
from tests.bridges.far_artemis import Artemis
from tests.bridges.mqtt_kit import Peer, properties_of, user_of
from tests.bridges.servers import Server
from tests.net.kit import until


@pytest.fixture(scope="module")
def artemis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Artemis(tmp_path_factory.mktemp("artemis"))
    server.ensure()
    try:
        yield server
    finally:
        server.kill()


def bridged(server: Server, *rules: dict[str, Any]) -> Any:
    return with_bridge(PLUGIN, addresses=[f"{server.host}:{server.port}"], rules=list(rules))


@pytest.mark.bridges
@pytest.mark.xdist_group("artemis")
async def test_properties_pass_out_and_in_by_queues_and_topics(artemis: Server) -> None:
    rules = (
        {"direction": "out", "from": "site/#", "to": "/queue/t.{topic}"},
        {"direction": "in", "from": "/queue/t.back", "to": "in/queue"},
        {"direction": "in", "from": "/topic/t.news", "to": "in/topic", "durable": "news"},
    )
    got: list[Frame] = []
    async with (
        bridged(artemis, *rules) as broker,
        Peer.at(broker.port("t"), "in/#") as peer,
        connection_to(artemis, got.append) as there,
    ):
        await until_state(broker, "up")
        await there.ask("SUBSCRIBE", [("id", "0"), ("destination", "/queue/t.site.a")])
        more: dict[str, Any] = {"content_type": "text/plain", "user_properties": [("k", "1")]}
        await peer.publish("site/a", b"out", **more)
        await until(lambda: got)
        assert got[0].body == b"out"
        assert got[0].headers["mqtt-topic"] == "site/a"
        assert got[0].headers["content-type"] == "text/plain"
        for destination in ("/queue/t.back", "/topic/t.news"):
            headers = [("destination", destination), ("mine", "1"), ("content-type", "text/x")]
            await there.ask("SEND", headers, destination.encode())
        found = {each.topic: each for each in await peer.get(2)}
        assert found["in/queue"].payload == b"/queue/t.back"
        assert found["in/topic"].payload == b"/topic/t.news"
        for each in found.values():
            assert user_of(each)["mine"] == "1"
            assert properties_of(each).content_type == "text/x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("67,307", "/queue/q:307"),
        ("2175,307", "/queue/q:307"),  # after a reconnect
        ("ID:host-4711-1:1:1:1", "ID:host-4711-1:1:1:1"),  # of ActiveMQ Classic
        ("a,b", "a,b"),
    ],
)
def test_an_id_does_not_depend_on_the_connection(text: str, expected: str) -> None:
    frame = Frame("MESSAGE", {"message-id": text, "destination": "/queue/q"}, b"")
    assert id_of(frame) == expected
