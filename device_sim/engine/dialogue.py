"""Commands and responses: who asked what, and who has to answer whom.

A device that asks keeps one request open for each of its entries. The response is told by its
Correlation Data, which holds the number of the request, [MQTT-3.3.2-16]; the time from the request
to its response is a round trip. A request that stays without a response for too long is unanswered,
and the next one goes out. What comes afterwards is a response to nothing that is open, and ignored:
the ledger books it as the delivery that it is.

A device that answers sends what its entry says to the request's Response Topic, after it has
thought for a while. Each Response Topic is a stream of its own in the books.

A broker has to hand both properties on unaltered, [MQTT-3.3.2-15] and [MQTT-3.3.2-16]. The payload
tells who sent a message and which one it is: a request without them, and a response without the
second, is a violation.

Owns this bookkeeping. Must not know: sockets, where responses go to (the feed does).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from device_sim.engine.client import Arrival
from device_sim.engine.device import Device
from device_sim.engine.feed import Feed, request_number
from device_sim.judge.histogram import Histogram
from device_sim.judge.payload import decode
from device_sim.language.naming import Filters
from mqttd.core.errors import ProtocolError
from mqttd.core.properties import Properties, decode_forwardable

ALTERED_REQUEST: Final = "request without its Response Topic or Correlation Data"
ALTERED_RESPONSE: Final = "response without Correlation Data"


class Roles:
    """Which senders of a run send requests, and to how many targets, and which send responses."""

    def __init__(self) -> None:
        self.asking: dict[int, int] = {}
        self.answering: set[int] = set()


class Asking:
    """One entry of requests of a device."""

    def __init__(self, topic: bytes, feed: Feed, timeout_s: float) -> None:
        self.topic = topic
        self.feed = feed
        self.timeout_s = timeout_s


class Answering:
    """One entry of responses of a device; `open` makes the feed for a Response Topic."""

    def __init__(self, pattern: str, delay_s: float, open: Callable[[str], Feed]) -> None:
        self.filter: Filters[bool] = Filters()
        self.filter.add(pattern, True)
        self.delay_s = delay_s
        self.open = open
        self.feeds: dict[str, Feed] = {}


class Dialogue:
    """One device's part in all conversations."""

    def __init__(
        self, device: Device, roles: Roles, asking: list[Asking], answering: list[Answering]
    ) -> None:
        self.device = device
        self.roles = roles
        self.asking = asking
        self.answering = answering
        self.round_trips = Histogram()
        self.unanswered = 0

    def read(self, device: Device) -> None:
        """Look at everything that has come."""
        inbox = device.client.inbox
        if not inbox:
            return
        arrivals = inbox[:]
        inbox.clear()
        for arrival in arrivals:
            try:
                properties = decode_forwardable(arrival.properties)
            except ProtocolError:
                if not device.harmed:
                    device.around.violation("PUBLISH with properties that are none")
                continue
            correlation = properties.correlation_data
            self._check(arrival, properties)
            if properties.response_topic is not None and self.answering:
                self._answer(arrival, properties.response_topic, correlation or b"")
            elif correlation is not None:
                self._hear(arrival, correlation)

    def _check(self, arrival: Arrival, properties: Properties) -> None:
        around = self.device.around
        header = decode(arrival.payload)
        if header is None or header.run != around.run or self.device.harmed:
            return  # the ledger has booked it
        senders = around.switchboard.ledger.senders
        if senders[header.publisher].doubtful(header.stream, header.sequence):
            return
        correlation = properties.correlation_data
        targets = self.roles.asking.get(header.publisher, 0)
        if targets:
            number = request_number(header.sequence * targets + header.stream)
            if properties.response_topic is None or correlation != number:
                around.violation(ALTERED_REQUEST)
        elif header.publisher in self.roles.answering and correlation is None:
            around.violation(ALTERED_RESPONSE)

    def expire(self, now_ns: int) -> None:
        """Give up on requests that nobody has answered."""
        for each in self.asking:
            feed = each.feed
            if feed.open_request >= 0 and now_ns - feed.opened_ns > each.timeout_s * 1e9:
                self.unanswered += 1
                self._next(feed)

    def close(self) -> None:
        """The run is over: what is still open stays unanswered."""
        self.unanswered += sum(each.feed.open_request >= 0 for each in self.asking)

    def _hear(self, arrival: Arrival, correlation: bytes) -> None:
        number = int.from_bytes(correlation, "big")
        for each in self.asking:
            feed = each.feed
            if each.topic == arrival.topic and feed.open_request == number:
                self.round_trips.record((time.monotonic_ns() - feed.opened_ns) // 1000)
                self._next(feed)
                return

    def _next(self, feed: Feed) -> None:
        feed.open_request = -1
        self.device.around.switchboard.mark_ready(feed)

    def _answer(self, arrival: Arrival, topic: str, correlation: bytes) -> None:
        text = arrival.topic.decode("utf-8", "replace")
        for each in self.answering:
            if not each.filter.match(text):
                continue
            feed = each.feeds.get(topic)
            if feed is None:
                feed = each.feeds[topic] = each.open(topic)
                if self.device.link is not None:
                    self.device.around.switchboard.attach(feed, self.device.link)
            if each.delay_s:
                self.device.around.switchboard.loop.call_later(
                    each.delay_s, self._reply, feed, correlation
                )
            else:
                self._reply(feed, correlation)
            return

    def _reply(self, feed: Feed, correlation: bytes) -> None:
        if self.device.up or feed.keep:
            feed.reply(time.monotonic_ns(), correlation)
            self.device.around.switchboard.mark_ready(feed)
        else:
            feed.skipped += 1
