"""What the tests of deep queues on a file share: looks into one, steps of a committer, tidying."""

import gc

from mqttd.core.inflight import Delivery
from mqttd.core.packets import Connack, Connect
from mqttd.core.properties import Properties
from mqttd.core.queue import Queue
from mqttd.core.trie import SharedGroup
from mqttd.store.base import Tidied
from tests.harness import FakeClient
from tests.store.disk import (
    Disk,
)

HEAD = 64  # deliveries in the head of somebody who is away


def queue_of(disk: Disk, client_id: str) -> Queue:
    queue = disk.broker.sessions[client_id].queue
    assert queue is not None
    return queue


def group_of(disk: Disk) -> SharedGroup:
    (group,) = disk.broker.context.queued_groups
    return group


def tidy(disk: Disk) -> int:
    """Housekeeping until there is nothing left to do; returns in how many slices."""
    slices = 1
    while disk.tidy():
        slices += 1
    return slices


def hear(disk: Disk, tidied: Tidied) -> None:
    """What the committer does with what a slice found; nothing of it is in the file yet."""
    disk.broker.expired(tidied.expired)


def look(disk: Disk) -> Tidied:
    """A slice of housekeeping that the core hasn't heard of."""
    return disk._runner.run(disk.store.tidy())


def arrive(disk: Disk, client_id: str, expiry: int = 3600) -> FakeClient:
    """A client takes its session, and the pages that this makes its queue want are on their way."""
    client = disk.open()
    client.auto_ack = False
    properties = Properties()
    properties.session_expiry_interval = expiry
    client.send(Connect("MQTT", 5, False, 0, client_id, None, None, None, properties))
    step(disk)
    assert client.expect(Connack).session_present
    return client


def step(disk: Disk) -> None:
    """One batch, and no page."""
    batch = disk.broker.take_batch()
    assert batch is not None
    disk.write(batch)
    disk.broker.committed(batch.seq, disk.now)
    disk.flush()


def ended(disk: Disk) -> int:
    """Deliveries of nobody."""
    owned = "SELECT number FROM sessions UNION ALL SELECT number FROM shares"
    count: int = disk.rows(f"SELECT count(*) FROM deliveries WHERE owner NOT IN ({owned})")[0][0]
    return count


def in_memory(topic: str) -> int:
    """Deliveries of a topic's messages that are objects."""
    gc.collect()
    found = (each for each in gc.get_objects() if isinstance(each, Delivery))
    return sum(each.message.topic == topic for each in found)
