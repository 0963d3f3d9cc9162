"""What the bridge says to a remote broker that is played by the test, packet by packet."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from mqttd_plugins._bridge.remote import Failure, Incoming, Intake, Item, Poison, Refused, Retry
from mqttd_plugins._bridge_access import Access
from mqttd_plugins._mqtt_config import Config
from mqttd_plugins._mqtt_remote import MqttRemote, Remembered

import mqttd
from mqttd.api import Message
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Puback,
    Publish,
    Record,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from mqttd.core.properties import Properties
from mqttd.testing import StandIn
from tests.bridges.kit import back, out
from tests.bridges.mqtt_kit import Peer, Stream, bridge_of, bridge_to, state_of, tree
from tests.net.kit import PATIENCE, until
from tests.tls import Authority

PacketT = TypeVar("PacketT", bound=Record)


class Played:
    """The remote broker: `next` is what came, `say` what it answers."""

    def __init__(self) -> None:
        self.port = 0
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._stream: Stream | None = None

    async def accept(
        self, session_present: bool = False, reason: int = 0, **properties: Any
    ) -> Connect:
        async with asyncio.timeout(PATIENCE):
            self._stream = await self._streams.get()
        connect = await self.next(Connect)
        self._stream.version = connect.version
        made = Properties()
        for name, value in properties.items():
            setattr(made, name, value)
        self.say(Connack(session_present, reason, made))
        return connect

    async def next(self, kind: type[PacketT]) -> PacketT:
        assert self._stream is not None
        async with asyncio.timeout(PATIENCE):
            packet = await self._stream.next_packet()
        assert isinstance(packet, kind), packet
        return packet

    def say(self, packet: Record) -> None:
        assert self._stream is not None
        self._stream.send(packet)

    async def hang_up(self) -> None:
        assert self._stream is not None
        await self._stream.close()


@contextlib.asynccontextmanager
async def played() -> AsyncIterator[Played]:
    made = Played()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made._streams.put_nowait(Stream(reader, writer))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


class Side:
    """The bridge's side: one connection after the other, with what they share."""

    def __init__(self, port: int, *rules: dict[str, Any], **more: Any) -> None:
        tree_ = {"addresses": [f"127.0.0.1:{port}"], "rules": list(rules) or [out("#")], **more}
        self.config = Config.model_validate(tree_)
        self.access = Access(self.config, 1883)
        self.services = services = StandIn("up")
        self.remembered = Remembered(services.table("f"), services.table("a"), "me")
        self.answers: list[tuple[int, Failure | None]] = []

    def remote(self) -> MqttRemote:
        return MqttRemote(self.config, "bridge", self.access, self.remembered)

    def item(self, seq: int, topic: str = "t", qos: int = 1, payload: bytes = b"x") -> Item:
        rule = self.config.all_rules()[0]
        message = Message(topic, payload, qos)
        return Item(seq, rule, message, id=f"i-{seq}", target=topic, key=topic)

    def done(self, item: Item, failure: Failure | None) -> None:
        self.answers.append((item.seq, failure))

    async def send(self, remote: MqttRemote, items: Sequence[Item]) -> None:
        await remote.send(items, self.done)


async def test_what_was_unacknowledged_is_sent_with_its_identifier_and_dup() -> None:
    # [MQTT-4.4.0-1] [MQTT-3.3.1-1]
    async with played() as server:
        side = Side(server.port)
        first = side.remote()
        _, connect = await asyncio.gather(first.connect(), server.accept())
        assert (connect.clean_start, connect.client_id) == (False, "bridge")
        assert connect.properties.session_expiry_interval == 7 * 86400
        items = [side.item(1), side.item(2)]
        await side.send(first, items)
        sent = [await server.next(Publish) for _ in items]
        server.say(Puback(sent[0].packet_id))
        await until(lambda: side.answers)
        await server.hang_up()
        assert isinstance(await first.wait(), Retry)
        await first.close()
        second = side.remote()
        await asyncio.gather(second.connect(), server.accept(session_present=True))
        await side.send(second, [items[1], side.item(3)])
        again, new = await server.next(Publish), await server.next(Publish)
        assert (again.packet_id, again.dup) == (sent[1].packet_id, True)
        assert (new.packet_id not in (0, again.packet_id), new.dup) == (True, False)
        await second.close()
        third = side.remote()
        await asyncio.gather(third.connect(), server.accept(session_present=False))
        await side.send(third, [items[1]])
        assert (await server.next(Publish)).dup is False  # the session is a new one
        await third.close()


async def test_no_more_are_under_way_than_the_remote_broker_allows() -> None:
    # [MQTT-3.3.4-7]
    async with played() as server:
        side = Side(server.port)
        remote = side.remote()
        await asyncio.gather(remote.connect(), server.accept(receive_maximum=2))
        sending = asyncio.ensure_future(side.send(remote, [side.item(n) for n in range(3)]))
        sent = [await server.next(Publish) for _ in range(2)]
        assert not sending.done()
        server.say(Puback(sent[0].packet_id))
        await server.next(Publish)
        await sending
        await remote.close()


@pytest.mark.parametrize(
    ("reason", "kind"),
    [(0, None), (0x10, None), (0x87, Retry), (0x97, Retry), (0x90, Poison), (0x99, Poison)],
)
async def test_what_a_reason_code_means_for_a_message(
    reason: int, kind: type[Failure] | None
) -> None:
    async with played() as server:
        side = Side(server.port)
        remote = side.remote()
        await asyncio.gather(remote.connect(), server.accept())
        await side.send(remote, [side.item(1)])
        server.say(Puback((await server.next(Publish)).packet_id, reason))
        await until(lambda: side.answers)
        ((_, failure),) = side.answers
        assert failure is None if kind is None else isinstance(failure, kind)
        await remote.close()


@pytest.mark.parametrize(
    ("version", "reason", "kind", "said"),
    [
        (5, 0x86, Refused, "Bad User Name or Password"),
        (5, 0x87, Refused, "Not authorized"),
        (5, 0x89, Retry, "Server busy"),
        ("3.1.1", 5, Refused, "not authorized"),
        ("3.1.1", 3, Retry, "server unavailable"),
    ],
)
async def test_what_a_refused_connection_means(
    version: Any, reason: int, kind: type[Failure], said: str
) -> None:
    async with played() as server:
        remote = Side(server.port, version=version).remote()
        with pytest.raises(kind, match=said):
            await asyncio.gather(remote.connect(), server.accept(reason=reason))
        await remote.close()


async def test_what_the_remote_broker_can_not_take_is_not_sent() -> None:
    async with played() as server:
        side = Side(server.port)
        remote = side.remote()
        await asyncio.gather(
            remote.connect(),
            server.accept(maximum_packet_size=200, maximum_qos=0, retain_available=0),
        )
        large = side.item(1, qos=0, payload=b"x" * 300)
        wrong = side.item(2, topic="a/#", qos=0)
        await side.send(remote, [large, wrong, side.item(3), side.item(4, qos=0)])
        kinds = {seq: type(failure) for seq, failure in side.answers}
        assert kinds == {1: Poison, 2: Poison, 3: Refused, 4: type(None)}
        assert (await server.next(Publish)).qos == 0
        await remote.close()


async def test_subscriptions_ask_for_no_local_and_what_is_refused_has_its_place() -> None:
    async with played() as server:
        side = Side(server.port, out("a"), back("b/#", "c"), back("d", "e"))
        remote = side.remote()
        await asyncio.gather(remote.connect(), server.accept())

        class Nothing:
            rules = side.config.all_rules()[1:]

        consuming = asyncio.ensure_future(remote.consume(Nothing()))  # type: ignore[arg-type]
        first = await server.next(Subscribe)
        (entry,) = first.filters
        assert (entry.no_local, entry.retain_as_published, first.subscription_id) == (True, True, 1)
        server.say(Suback(first.packet_id, [1]))
        second = await server.next(Subscribe)
        server.say(Suback(second.packet_id, [0x87]))
        with pytest.raises(Refused, match=r"rules\[2\]: can't subscribe to 'd': Not authorized"):
            await consuming
        await remote.close()


async def test_a_new_filter_is_there_before_the_old_one_goes() -> None:
    async with played() as server:
        side = Side(server.port, back("a/+", "c"))
        side.services.table("f").set("a/#", b"")
        remote = side.remote()
        await asyncio.gather(remote.connect(), server.accept(session_present=True))

        class Nothing:
            rules = side.config.all_rules()

        consuming = asyncio.ensure_future(remote.consume(Nothing()))  # type: ignore[arg-type]
        subscribe = await server.next(Subscribe)
        assert [entry.topic_filter for entry in subscribe.filters] == ["a/+"]
        server.say(Suback(subscribe.packet_id, [1]))
        unsubscribe = await server.next(Unsubscribe)
        assert unsubscribe.filters == ["a/#"]
        server.say(Unsuback(unsubscribe.packet_id, [0]))
        await consuming
        assert [name for name, _ in side.services.table("f").items()] == ["a/+"]
        await remote.close()


async def test_without_rules_inward_what_was_subscribed_to_once_is_taken_back() -> None:
    async with played() as server:
        side = Side(server.port, out("a"))
        side.services.table("f").set("a/#", b"")
        connecting = asyncio.ensure_future(side.remote().connect())
        await server.accept(session_present=True)
        unsubscribe = await server.next(Unsubscribe)
        assert unsubscribe.filters == ["a/#"]
        server.say(Unsuback(unsubscribe.packet_id, [0]))
        await connecting
        assert side.services.table("f").items() == []


async def test_a_full_disk_makes_what_comes_in_wait_for_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqttd_plugins._mqtt_remote._NO_ROOM_S", 0.001)
    taken: list[tuple[bytes, str]] = []
    asked = asyncio.Event()
    async with played() as server:
        side = Side(server.port, back("b", "c"))
        remote = side.remote()
        await asyncio.gather(remote.connect(), server.accept())

        class Held(Intake):
            rules = side.config.all_rules()
            window = 8

            async def room(self) -> None:
                asked.set()

            def put(self, incoming: Incoming) -> None:
                taken.append((incoming.message.payload, incoming.id))

        consuming = asyncio.ensure_future(remote.consume(Held()))
        server.say(Suback((await server.next(Subscribe)).packet_id, [1]))
        await consuming
        side.services.full = True
        for number in (1, 2):
            server.say(Publish("b", b"%d" % number, 1, False, False, number))
        await asked.wait()
        asked.clear()
        await asked.wait()  # again
        assert taken == []
        side.services.full = False
        await until(lambda: len(taken) == 2)
        assert [payload for payload, _ in taken] == [b"1", b"2"]
        assert all(id.startswith("me-i1-") for _, id in taken)
        assert taken[0][1] != taken[1][1]
        await remote.close()


async def test_a_disconnect_says_why() -> None:
    async with played() as server:
        remote = Side(server.port).remote()
        await asyncio.gather(remote.connect(), server.accept())
        server.say(Disconnect(0x8E))
        assert "Session taken over" in str(await remote.wait())
        await remote.close()


async def test_a_remote_broker_that_breaks_the_protocol_is_left() -> None:
    async with played() as server:
        remote = Side(server.port).remote()
        await asyncio.gather(remote.connect(), server.accept())
        assert server._stream is not None
        server._stream.send(b"\x00\x00")
        assert "broke the protocol" in str(await remote.wait())
        await remote.close()


async def test_a_remote_broker_that_gives_no_sign_of_life_is_left() -> None:
    async with played() as server:
        remote = Side(server.port).remote()
        await asyncio.gather(remote.connect(), server.accept())
        connection = remote._connection
        assert connection is not None
        connection._watch()  # half a keep alive later
        await server.next(Pingreq)
        connection._watch()  # and another
        assert str(await remote.wait()) == "no answer to PINGREQ"
        await remote.close()


async def test_an_address_that_answers_not_is_followed_by_the_next() -> None:
    async with played() as server:
        side = Side(server.port)
        dead, alive = "127.0.0.1:1", f"127.0.0.1:{server.port}"
        side.access = Access(side.config.model_copy(update={"addresses": [dead, alive]}), 1883)
        with pytest.raises(Retry, match=dead):
            await side.remote().connect()
        remote = side.remote()
        await asyncio.gather(remote.connect(), server.accept())
        await remote.close()


async def test_tls_with_a_certificate_and_a_password(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    cert, key = ca.issue("server", "localhost")
    own, own_key = ca.issue("bridge", "bridge")
    listener = {
        "name": "t",
        "bind": "127.0.0.1:0",
        "tls": {
            "cert": str(cert),
            "key": str(key),
            "client_ca": str(ca.file),
            "client_cert": "required",
            "username_from": "cn",
        },
    }
    async with mqttd.Broker({"listeners": [listener]}) as remote:
        tls = {"ca": str(ca.file), "cert": str(own), "key": str(own_key)}
        bridge = bridge_to(remote.port("t"), topics=["a out 1"], tls=tls)
        stranger = Authority(tmp_path, "stranger")
        wary = bridge_to(
            remote.port("t"), name="wary", topics=["a out 1"], tls={"ca": str(stranger.file)}
        )
        async with (
            mqttd.Broker(tree(bridge, wary)) as broker,
            Peer.at(broker.port("t"), name="here") as here,
        ):
            await here.publish("a", b"1")
            await until(lambda: bridge_of(broker).status()["out"]["confirmed"] == 1)
            await until(lambda: state_of(broker, "wary") == "refused")
            assert "its certificate: " in bridge_of(broker, "wary").status()["reason"]
