"""When one device may publish how much, and the frames it then writes.

Two ways to decide:

    paced        message n of the device is due at origin + n * step, whatever the broker does; the
                 scheduler raises `limit` as time passes. What can't be sent at once (window or
                 socket full) is sent later with its intended time: waiting shows as latency.
    closed loop  a message takes a place in the window until every subscriber that is owed it has
                 received it and, above QoS 0, its acknowledgement is complete. With no subscriber
                 and QoS 0 there is nothing to wait for but the socket.

In both, no more QoS 1 and 2 publications are in flight than `window`, which the caller has bounded
by the broker's Receive Maximum.

Owns the templates and this arithmetic. Pure: the clock comes as `now_ns`, frames go to the client's
output. Messages that will never arrive would close the loop for good, so the caller, who has a
clock, tells it to write off what nobody waits for any more.
"""

from typing import Final

from device_sim.engine.client import CONNECTED, Client
from device_sim.judge.payload import HEADER_SIZE, MAX_LAG_US, Header, Template, encode
from device_sim.judge.tracks import Sender
from mqttd.core import spec
from mqttd.core.encode import encode_publish
from mqttd.core.packets import Publish

BATCH_BYTES: Final = 262_144
"""About as much as one publisher writes at a time, so that large payloads don't pile up."""
SHARED_ABOVE: Final = 2048
"""Payloads longer than this share their padding among all templates."""


def template(
    header: Header,
    topic: str,
    size: int,
    version: int,
    properties: bytes,
    filler: bytes,
    retain: bool = False,
) -> Template:
    """The frame that all messages of a stream are patched from; `filler` is their padding."""
    publish = Publish(topic, encode(header, size), header.qos, retain)
    if header.qos:
        publish.packet_id = 1
    if version == spec.MQTT5:
        publish.properties = properties
    frame = encode_publish(publish, version)
    topic_at = 2
    while frame[topic_at - 1] & 0x80:
        topic_at += 1
    id_at = topic_at + 2 + len(topic.encode()) if header.qos else 0
    payload_at = len(frame) - size
    if size > SHARED_ABOVE:
        return Template(frame[: payload_at + HEADER_SIZE], payload_at, id_at, filler)
    return Template(frame, payload_at, id_at)


class Publisher:
    """One publishing device."""

    def __init__(
        self, client: Client, sender: Sender, templates: list[Template], window: int, fan: int
    ) -> None:
        self.client = client
        self.sender = sender
        self.templates = templates
        self.window = window
        self.fan = fan
        self.paced = False
        self.origin_ns = 0
        self.step_ns = 0.0
        self.limit = 0
        self.blocked = False
        self.more = False
        self.batch = max(1, BATCH_BYTES // templates[0].size) if templates else 1
        self.written_off = 0
        self._seen = -1

    def outstanding(self) -> int:
        """Messages that some subscriber is still waited for to receive, in a closed loop."""
        if self.fan == 0:
            return 0
        sender = self.sender
        open_deliveries = sender.sent * self.fan - sender.arrived - self.written_off
        return max(0, -(-open_deliveries // self.fan))

    def allowance(self) -> int:
        """How many messages may be sent now."""
        sender = self.sender
        client = self.client
        if self.blocked or client.state != CONNECTED:
            return 0
        allowed = self.limit - sender.sent
        if sender.qos:
            allowed = min(allowed, self.window - client.in_flight())
        if not self.paced and self.fan:
            allowed = min(allowed, self.window - self.outstanding())
        return allowed

    def pump(self, now_ns: int) -> int:
        """Write as many messages as may be sent now; how many it were.

        `more` is left set when there is a reason to come back at once.
        """
        allowed = self.allowance()
        if allowed <= 0:
            self.more = False
            return 0
        count = min(allowed, self.batch)
        self.more = count < allowed
        sender = self.sender
        client = self.client
        out = client.out
        templates = self.templates
        streams = len(templates)
        first = sender.sent
        packet_id = 0
        intended_ns = now_ns
        lag_us = 0
        for number in range(first, first + count):
            if sender.qos:
                packet_id = client.next_id()
                client.inflight[packet_id] = number
            if self.paced:
                intended_ns = self.origin_ns + int(number * self.step_ns)
                lag_us = (now_ns - intended_ns) // 1000
                if lag_us < 0:
                    lag_us = 0
                elif lag_us > MAX_LAG_US:
                    lag_us = MAX_LAG_US
            templates[number % streams].write(
                out, packet_id, number // streams, intended_ns, lag_us
            )
        sender.sent = first + count
        return count

    def write_off(self) -> bool:
        """Give up on deliveries when none came since the last call; True when there were some."""
        sender = self.sender
        stalled = sender.arrived == self._seen and self.outstanding() > 0
        self._seen = sender.arrived
        if stalled:
            self.written_off = sender.sent * self.fan - sender.arrived
        return stalled
