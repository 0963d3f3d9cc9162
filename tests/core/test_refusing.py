"""A store that has no room: what would have to be kept is refused, everything else goes on.

`refuse` is what the shell calls while a batch doesn't fit, `accept` when it does again.
"""

from typing import Any

import pytest

from mqttd.core import counters as count
from mqttd.core import journal as j
from mqttd.core import spec
from mqttd.core.errors import ProtocolError
from mqttd.core.journal import Batch
from mqttd.core.outbound import Held
from mqttd.core.packets import (
    Connack,
    Connect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqttd.core.settings import NEVER
from tests.core.paging_kit import Paged
from tests.core.rig import make_message
from tests.core.vectors import props
from tests.harness import FakeClient

FULL = spec.QUOTA_EXCEEDED


class Disk(Paged):
    """A broker whose store fills up: the batch that found no room is tried again."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: Batch | None = None

    def fill_up(self) -> None:
        """The batch that was gathered doesn't fit."""
        self.refused = self.broker.take_batch()
        self.broker.refuse(FULL, self.now)
        self.flush()

    def make_room(self) -> None:
        if self.refused is not None:
            self.shelf.write(self.refused)
            self.broker.accept()
            self.broker.committed(self.refused.seq, self.now)
            self.refused = None
        else:
            self.broker.accept()
        self.flush()


def keeper(h: Disk, name: str = "keeper", topic_filter: str = "t") -> None:
    """An absent session for which messages have to be stored."""
    client = h.client(name, expiry=1000)
    client.send(Subscribe(1, [Filter(topic_filter, 2)]))
    h.commit()
    client.drop()
    h.commit()


def connect(
    h: Disk,
    name: str,
    *,
    expiry: int = 1000,
    clean: bool = False,
    version: int = 5,
    ack: bool = True,
) -> FakeClient:
    """A client whose CONNECT was sent."""
    client = h.open(version)
    client.auto_ack = ack
    asked = props(session_expiry_interval=expiry) if version == 5 else props()
    client.send(Connect("MQTT", version, clean, 0, name, None, properties=asked))
    return client


@pytest.fixture
def h() -> Disk:
    made = Disk()
    keeper(made)
    return made


def test_refusing_is_said_once(h: Disk) -> None:
    assert h.broker.journal.refusing == 0
    h.broker.refuse(FULL, h.now)
    h.broker.refuse(FULL, h.now)
    assert h.broker.journal.refusing == FULL
    h.broker.accept()
    assert h.broker.journal.refusing == 0


# What waited for the batch that found no room.


def test_mqtt_5_publishers_who_wait_are_told(h: Disk) -> None:
    publisher = h.client("p")
    ids = [publisher.publish("t", b"%d" % name, 1) for name in range(3)]
    assert publisher.connection.inbound_open == 3
    assert publisher.recv() == []
    h.fill_up()
    assert publisher.recv() == [Puback(packet_id, FULL) for packet_id in ids]
    assert publisher.connection.inbound_open == 0
    assert not h.broker.context.holding
    h.make_room()
    assert publisher.recv() == []
    h.check()
    again = h.client("keeper", clean=False, expiry=1000)
    # They may arrive nevertheless, as any message whose acknowledgement was lost.
    assert [message.payload for message in again.messages()] == [b"0", b"1", b"2"]
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_message_that_was_refused_frees_nobody_when_it_settles(h: Disk) -> None:
    """Its acknowledgement has left: the delivery that ends later has nobody to tell."""
    session = h.broker.sessions["keeper"]
    publisher = h.client("p")
    packet_id = publisher.publish("t", b"x", 1)
    assert session.queue is not None
    message = session.queue.head[0].message
    assert message.holder is publisher.connection
    h.fill_up()
    assert message.holder is None
    assert publisher.recv() == [Puback(packet_id, FULL)]
    client = connect(h, "keeper")
    assert [message.payload for message in client.messages()] == [b"x"]
    h.make_room()
    h.commit()
    assert publisher.recv() == []
    h.check()


def test_another_holder_of_a_message_is_left_alone(h: Disk) -> None:
    publisher, other = h.client("p"), h.client("q")
    publisher.publish("t", b"x", 1)
    queue = h.broker.sessions["keeper"].queue
    assert queue is not None
    queue.head[0].message.holder = other.connection
    h.fill_up()
    assert queue.head[0].message.holder is other.connection


@pytest.mark.parametrize("version", [3, 4])
def test_mqtt_3_publishers_get_nothing(h: Disk, version: int) -> None:
    """They have no word for it, and keep what isn't acknowledged."""
    publisher = h.client("p", version)
    packet_id = publisher.publish("t", b"x", 1)
    h.fill_up()
    assert publisher.recv() == []
    h.make_room()
    assert publisher.recv() == [Puback(packet_id)]
    h.check()


def test_qos_2_and_what_else_is_held_stays_held(h: Disk) -> None:
    publisher = h.client("p", expiry=1000)
    packet_id = publisher.publish("t", b"x", 2)
    publisher.send(Subscribe(9, [Filter("u", 1)]))
    publisher.send(Unsubscribe(10, ["v"]))
    h.fill_up()
    assert publisher.recv() == []
    assert publisher.connection in h.broker.context.holding
    h.make_room()
    h.commit()
    assert publisher.recv() == [
        Pubrec(packet_id),
        Suback(9, [1]),
        Unsuback(10, [spec.NO_SUBSCRIPTION_EXISTED]),
        Pubcomp(packet_id),
    ]
    h.check()


def test_pubacks_keep_their_order_around_what_stays_held(h: Disk) -> None:
    """[MQTT-4.6.0-2] One that waits for nothing but its turn isn't overtaken."""
    listener = h.client("listener")
    listener.subscribe("free", 1)
    publisher = h.client("p")
    publisher.publish("t", b"x", 2, packet_id=1)
    publisher.publish("free", b"x", 1, packet_id=2)
    publisher.publish("nobody", b"x", 1, packet_id=3)
    publisher.publish("t", b"x", 1, packet_id=4)
    publisher.publish("nobody", b"x", 1, True, packet_id=5)
    h.fill_up()
    assert publisher.recv() == [
        Puback(2),
        Puback(3, spec.NO_MATCHING_SUBSCRIBERS),
        Puback(4, FULL),
        Puback(5, FULL),
    ]
    assert publisher.connection.inbound_open == 1
    h.make_room()
    assert publisher.recv() == [Pubrec(1), Pubcomp(1)]
    assert publisher.connection.inbound_open == 0
    h.check()


def test_an_error_that_is_held_is_told_as_it_is(h: Disk) -> None:
    """It frees no place of the Receive Maximum: it never took one."""
    publisher = h.client("p")
    publisher.publish("t", b"x", 1, packet_id=1)
    publisher.publish("$SYS/x", b"x", 1, packet_id=2)
    h.fill_up()
    assert publisher.recv() == [Puback(1, FULL), Puback(2, spec.NOT_AUTHORIZED)]
    assert publisher.connection.inbound_open == 0


def test_a_fault_in_one_answer_does_not_cost_the_others_theirs(h: Disk) -> None:
    faulty, sound = h.client("faulty"), h.client("sound")
    faulty.publish("t", b"x", 1)
    packet_id = sound.publish("t", b"x", 1)
    held: Any = faulty.connection._held
    held.append(Held(b"", 99, None, False, False))
    h.fill_up()
    assert faulty.closed
    assert h.broker.counters.bugs == 1
    assert sound.recv() == [Puback(packet_id, FULL)]


def test_a_connection_that_holds_nothing_has_nothing_to_refuse(h: Disk) -> None:
    client = h.client("p")
    client.connection.refuse_held()
    h.flush()
    assert client.recv() == []


def test_everybody_is_told_why(h: Disk) -> None:
    """A store that has failed for good is another reason than one that is full."""
    publisher, lasting = h.client("p"), h.client("lasting", expiry=1000)
    publisher.publish("t", b"x", 1, packet_id=1)
    h.broker.refuse(spec.UNSPECIFIED_ERROR, h.now)
    h.flush()
    publisher.publish("t", b"x", 1, packet_id=2)
    publisher.publish("t", b"x", 2, packet_id=3)
    lasting.send(Subscribe(4, [Filter("a", 1)]))
    code = spec.UNSPECIFIED_ERROR
    assert publisher.recv() == [Puback(1, code), Puback(2, code), Pubrec(3, code)]
    assert lasting.recv() == [Suback(4, [code])]
    client = connect(h, "new")
    assert client.expect(Connack).reason == code
    assert client.closed


# PUBLISH meanwhile.


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_what_would_have_to_be_stored_is_refused(h: Disk, version: int, qos: int) -> None:
    """[MQTT-4.3.2-4] [MQTT-4.3.3-8] no acknowledgement may promise what can't be kept."""
    reader = h.client("reader")
    reader.subscribe("t", 2)
    publisher = h.client("p", version)
    h.fill_up()
    packet_id = publisher.publish("t", b"x", qos)
    if version < 5:
        assert publisher.recv() == []
    else:
        assert publisher.recv() == [
            Puback(packet_id, FULL) if qos == 1 else Pubrec(packet_id, FULL)
        ]
        assert h.broker.counters.publish_refused == 1
    assert reader.recv() == []  # nobody gets what was refused
    assert h.broker.counters.matched == 0
    assert publisher.connection.inbound_open == 0
    assert h.broker.journal.empty()
    h.make_room()
    publisher.publish("t", b"x", qos, packet_id=packet_id, dup=True)
    h.commit()
    assert [message.payload for message in reader.messages()] == [b"x"]
    assert publisher.recv()[0] == (Puback(packet_id) if qos == 1 else Pubrec(packet_id))
    h.check()


@pytest.mark.parametrize("qos", [1, 2])
def test_what_nobody_has_to_store_goes_on(h: Disk, qos: int) -> None:
    reader = h.client("reader")
    reader.subscribe("free", 2)
    lasting = h.client("lasting", expiry=1000)
    lasting.send(Subscribe(1, [Filter("free", 0)]))  # at QoS 0 there is nothing to store
    member = h.client("member")
    member.subscribe("$share/g/free", 2)
    h.commit()
    publisher = h.client("p")
    h.fill_up()
    packet_id = publisher.publish("free", b"x", qos)
    assert publisher.recv() == ([Puback(1)] if qos == 1 else [Pubrec(1), Pubcomp(1)])
    assert packet_id == 1
    for client in (reader, lasting, member):
        assert [message.payload for message in client.messages()] == [b"x"]
    missed = publisher.publish("nobody", b"x", qos)
    no = spec.NO_MATCHING_SUBSCRIBERS
    first = publisher.recv()[0]
    assert first == (Puback(missed, no) if qos == 1 else Pubrec(missed, no))
    h.check()


@pytest.mark.parametrize("why", ["group", "retained", "cleared", "publisher"])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_has_to_be_stored_beside_deliveries(h: Disk, why: str, qos: int) -> None:
    """The queue of a group, the retained message; of QoS 2 the identifier as well."""
    keeper(h, "member", "$share/g/shared")
    publisher = h.client("p", expiry=1000 if why == "publisher" else 0)
    h.commit()
    h.fill_up()
    topic = "shared" if why == "group" else "other"
    payload = b"" if why == "cleared" else b"x"
    packet_id = publisher.publish(topic, payload, qos, why in ("retained", "cleared"))
    expected = Puback(packet_id, FULL) if qos == 1 else Pubrec(packet_id, FULL)
    if why == "publisher" and qos == 1:
        expected = Puback(packet_id, spec.NO_MATCHING_SUBSCRIBERS)
    assert publisher.recv() == [expected]
    assert h.broker.retained.count == 0
    h.check()


def test_pubacks_pass_what_stays_held_and_never_each_other(h: Disk) -> None:
    """[MQTT-4.6.0-2]"""
    h.client("listener").subscribe("free", 1)
    publisher = h.client("p")
    publisher.publish("t", b"x", 2, packet_id=1)
    h.fill_up()
    publisher.publish("free", b"x", 1, packet_id=2)
    publisher.publish("t", b"x", 1, packet_id=3)
    publisher.publish("free", b"x", 1, packet_id=4)
    publisher.publish("t", b"x", 2, packet_id=5)
    assert publisher.recv() == [Puback(2), Puback(3, FULL), Puback(4)]
    assert publisher.connection.inbound_open == 1
    h.make_room()
    assert publisher.recv() == [Pubrec(1), Pubrec(5, FULL), Pubcomp(1)]
    h.check()


def test_mqtt_3_keeps_the_order_of_all_its_answers(h: Disk) -> None:
    h.client("listener").subscribe("free", 1)
    publisher = h.client("p", 4)
    publisher.publish("t", b"x", 2, packet_id=1)
    h.fill_up()
    publisher.publish("free", b"x", 1, packet_id=2)
    assert publisher.recv() == []
    assert publisher.connection.inbound_open == 2
    h.make_room()
    assert publisher.recv() == [Pubrec(1), Puback(2), Pubcomp(1)]
    assert publisher.connection.inbound_open == 0


def test_queued_qos_0_is_something_to_store_as_well() -> None:
    h = Disk()
    h.broker.settings.queue_qos0 = True
    client = h.client("c", expiry=1000)
    client.send(Subscribe(1, [Filter("t", 0)]))
    h.commit()
    client.drop()
    h.commit()
    publisher = h.client("p")
    h.fill_up()
    packet_id = publisher.publish("t", b"x", 1)
    assert publisher.recv() == [Puback(packet_id, FULL)]


def test_what_was_begun_at_qos_2_goes_on(h: Disk) -> None:
    """[MQTT-4.3.3-10] A repetition is no new message; PUBREL takes nothing that has to be kept."""
    publisher = h.client("p")
    publisher.auto_ack = False
    packet_id = publisher.publish("t", b"x", 2)
    h.commit()
    assert publisher.recv() == [Pubrec(packet_id)]
    h.fill_up()
    publisher.publish("t", b"x", 2, packet_id=packet_id, dup=True)
    assert publisher.recv() == [Pubrec(packet_id)]
    publisher.send(Pubrel(packet_id))
    assert publisher.recv() == [Pubcomp(packet_id)]
    h.check()


def test_qos_0_goes_on_but_is_not_retained(h: Disk) -> None:
    """[MQTT-3.3.1-8] a broker may discard it at any time."""
    reader = h.client("reader")
    reader.send(Subscribe(1, [Filter("t", 0, retain_as_published=True)]))
    reader.recv()
    publisher = h.client("p")
    h.fill_up()
    publisher.publish("t", b"plain")
    publisher.publish("t", b"kept", retain=True)
    got = [(message.payload, message.retain) for message in reader.messages()]
    assert got == [(b"plain", False), (b"kept", True)]
    assert h.broker.retained.count == 0
    h.make_room()
    publisher.publish("t", b"kept", retain=True)
    assert h.broker.retained.count == 1
    h.check()


# SUBSCRIBE and CONNECT meanwhile.


def test_subscriptions_that_would_have_to_be_stored_are_refused(h: Disk) -> None:
    lasting, fleeting = h.client("lasting", expiry=1000), h.client("fleeting")
    lasting.send(Subscribe(1, [Filter("before", 1)]))
    h.commit()
    lasting.recv()
    h.fill_up()
    lasting.send(Subscribe(2, [Filter("a", 1), Filter("before", 2), Filter("#/x", 1)]))
    assert lasting.recv() == [Suback(2, [FULL, FULL, spec.TOPIC_FILTER_INVALID])]
    assert fleeting.subscribe("a", 1).reasons == [1]
    session = h.broker.sessions["lasting"]
    assert list(session.subscriptions) == ["before"]
    assert session.subscriptions["before"].qos == 1
    assert h.broker.journal.empty()
    h.make_room()
    lasting.send(Subscribe(3, [Filter("a", 1)]))
    h.commit()
    assert lasting.recv() == [Suback(3, [1])]


def test_subscriptions_of_mqtt_3_get_their_one_error(h: Disk) -> None:
    """[MQTT-3.9.3-2] of MQTT 3.1.1."""
    lasting, fleeting = h.client("lasting", 4, clean=False), h.client("fleeting", 4)
    h.fill_up()
    lasting.send(Subscribe(2, [Filter("a", 1)]))
    assert lasting.recv() == [Suback(2, [0x80])]
    assert fleeting.subscribe("a", 1).reasons == [1]


def test_an_unsubscription_waits(h: Disk) -> None:
    lasting = h.client("lasting", expiry=1000)
    lasting.send(Subscribe(1, [Filter("a", 1)]))
    h.commit()
    lasting.recv()
    h.fill_up()
    lasting.send(Unsubscribe(2, ["a"]))
    assert lasting.recv() == []
    assert h.broker.publish(make_message(topic="a"), h.now) == 0
    h.make_room()
    h.commit()
    assert lasting.recv() == [Unsuback(2, [0])]


@pytest.mark.parametrize(("version", "code"), [(5, FULL), (4, 3), (3, 3)])
def test_a_new_session_that_lasts_is_refused(h: Disk, version: int, code: int) -> None:
    h.fill_up()
    client = h.open(version)
    name = "MQIsdp" if version == 3 else "MQTT"
    asked = props(session_expiry_interval=10) if version == 5 else props()
    client.send(Connect(name, version, False, 0, "new", None, properties=asked))
    (answer,) = client.recv()
    assert isinstance(answer, Connack)
    assert (answer.session_present, answer.reason) == (False, code)
    assert client.closed
    assert "new" not in h.broker.sessions
    assert h.events("refused") == ["Quota exceeded: the store takes no other session"]
    h.make_room()
    assert connect(h, "new", version=max(version, 4)).connection.established


@pytest.mark.parametrize("version", [4, 5])
def test_a_new_session_that_does_not_last_is_let_in(h: Disk, version: int) -> None:
    h.fill_up()
    client = h.client("new", version)
    assert client.subscribe("t", 1).reasons == [1]
    h.client("p").publish("t", b"x")
    assert [message.payload for message in client.messages()] == [b"x"]


def test_a_clean_start_that_would_last_leaves_the_session_as_it_is(h: Disk) -> None:
    """[MQTT-3.1.4-3] The older connection goes all the same."""
    old = h.client("c", expiry=1000)
    old.send(Subscribe(1, [Filter("a", 1)]))
    h.commit()
    h.fill_up()
    client = connect(h, "c", clean=True)
    (answer,) = client.recv()
    assert isinstance(answer, Connack)
    assert answer.reason == FULL
    assert old.closed
    assert list(h.broker.sessions["c"].subscriptions) == ["a"]
    # One that doesn't last takes nothing from the store, but the old one has to be gone for good.
    (answer,) = connect(h, "c", clean=True, expiry=0).recv()
    assert isinstance(answer, Connack)
    assert answer.reason == FULL
    h.make_room()
    h.commit()
    clean = connect(h, "c", clean=True, expiry=0)
    h.commit()
    assert clean.connection.established
    assert not h.broker.sessions["c"].subscriptions


def test_a_store_that_broke_promises_no_session(h: Disk) -> None:
    """Unlike a full disk: nothing will make the old deadline in the file untrue any more."""
    h.client("c", expiry=1000).drop()
    h.commit()
    h.broker.refuse(spec.UNSPECIFIED_ERROR, h.now)
    client = connect(h, "c")
    assert client.recv() == []
    assert not client.connection.established


def test_a_session_that_is_resumed_drains_at_qos_1(h: Disk) -> None:
    publisher = h.client("p")
    for name in range(200):
        publisher.publish("t", b"%d" % name, 1)
    h.commit()
    publisher.recv()
    publisher.publish("t", b"last", 1)
    h.fill_up()
    assert publisher.recv() == [Puback(201, FULL)]
    client = connect(h, "keeper")
    answer = client.expect(Connack)
    assert answer.session_present  # [MQTT-3.2.2-3] from the store, which has it
    while h.ask():
        h.serve()
    got = [message.payload for message in client.messages()]
    assert got == [b"%d" % name for name in range(200)]  # the last one isn't durable
    h.check()
    h.make_room()
    h.commit()
    assert [message.payload for message in client.messages()] == [b"last"]
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_session_that_is_resumed_waits_at_qos_2(h: Disk) -> None:
    """An identifier that isn't durable might be a second copy after a crash."""
    publisher = h.client("p")
    publisher.publish("t", b"x", 2)
    h.commit()
    h.fill_up()
    client = connect(h, "keeper")
    assert client.expect(Connack).session_present
    assert client.recv() == []
    h.make_room()
    h.commit()
    assert [message.payload for message in client.messages()] == [b"x"]
    h.check()


def test_a_session_whose_row_is_not_durable_is_not_promised() -> None:
    """[MQTT-3.2.2-2] Session Present is a promise even then."""
    h = Disk()
    first = connect(h, "c", expiry=NEVER)
    assert first.expect(Connack).reason == 0
    first.drop()
    h.fill_up()
    again = connect(h, "c", expiry=NEVER)
    assert again.recv() == []
    h.make_room()
    assert again.expect(Connack).session_present


def test_a_session_with_a_will_and_a_deadline_is_resumed_at_once(h: Disk) -> None:
    """With room its answer would wait until neither can come true by a crash."""
    will = Will("w", b"gone", 1, False, 100)
    client = h.client("c", expiry=1000, will=will)
    h.commit()
    client.drop()
    h.commit()
    again = connect(h, "c")
    assert again.recv() == []
    h.commit()
    assert again.expect(Connack).session_present
    again.drop()
    h.commit()
    h.fill_up()
    assert connect(h, "c").expect(Connack).session_present


# When there is room again.


def test_everything_held_leaves_and_things_go_on_as_before(h: Disk) -> None:
    third, fifth, lasting = h.client("v3", 4), h.client("v5"), h.client("lasting", expiry=1000)
    third.publish("t", b"1", 1, packet_id=1)
    fifth.publish("t", b"2", 2, packet_id=2)
    lasting.send(Subscribe(3, [Filter("a", 1)]))
    h.fill_up()
    assert third.recv() == fifth.recv() == lasting.recv() == []
    fifth.publish("t", b"no", 1, packet_id=4)
    third.publish("t", b"3", 1, packet_id=5)
    assert third.recv() == []
    assert fifth.recv() == [Puback(4, FULL)]
    h.make_room()
    h.commit()
    assert third.recv() == [Puback(1)]
    assert fifth.recv() == [Pubrec(2), Pubcomp(2)]
    assert lasting.recv() == [Suback(3, [1])]
    third.publish("t", b"3", 1, packet_id=5, dup=True)
    fifth.publish("t", b"4", 1, packet_id=6)
    h.commit()
    assert third.recv() == [Puback(5)]
    assert fifth.recv() == [Puback(6)]
    assert connect(h, "new").connection.established
    client = connect(h, "keeper")
    h.commit()
    assert [message.payload for message in client.messages()] == [b"1", b"2", b"3", b"4"]
    h.commit()
    assert not h.broker.context.holding
    assert h.dropped.get(count.DROP_QUEUE_FULL) is None
    h.check()


def test_wills_and_settlements_are_gathered_meanwhile(h: Disk) -> None:
    """The core never stops: what it can't refuse waits in the journal."""
    lasting = h.client("lasting", expiry=1000, will=Will("t", b"gone", 1, False, 0))
    h.commit()
    h.fill_up()
    lasting.drop()
    assert not h.broker.journal.empty()
    h.make_room()
    batch = h.broker.take_batch()
    assert batch is not None
    assert j.DELIVERY_ADD in [op.kind for op in batch.ops]
    h.shelf.write(batch)
    h.broker.committed(batch.seq, h.now)
    client = connect(h, "keeper")
    h.commit()
    (message,) = client.messages()
    assert isinstance(message, Publish)
    assert message.payload == b"gone"
    h.check()


@pytest.mark.parametrize("qos", [0, 1])
def test_the_broker_itself_retains_nothing_that_finds_no_room(h: Disk, qos: int) -> None:
    """Not even at QoS 0, where a client isn't told: who publishes inside is."""
    h.fill_up()
    message = make_message(b"x", qos, topic="r", retain=True)
    with pytest.raises(ProtocolError) as caught:
        h.broker.submit(message, h.now)
    assert caught.value.code == FULL
    assert h.broker.retained.count == 0
    assert h.broker.submit(make_message(b"x", 0, topic="r"), h.now).matched == 0
    h.make_room()
    h.broker.submit(message, h.now)
    assert h.broker.retained.count == 1


def test_a_will_at_qos_0_is_not_retained_with_a_full_disk(h: Disk) -> None:
    reader = h.client("r")
    reader.subscribe("w")
    client = h.client("c", will=Will("w", b"gone", 0, True))
    h.fill_up()
    client.drop()
    assert [got.payload for got in reader.messages()] == [b"gone"]
    assert h.broker.retained.count == 0
