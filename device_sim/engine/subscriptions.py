"""A device's subscriptions, and what each of them is owed: tracks, and retained messages.

What a topic retains is known from its publisher's books at the moment when SUBSCRIBE goes out, no
message is watched for it. Pure: no socket and no clock.
"""

from __future__ import annotations

from device_sim.engine.feed import Feed
from device_sim.judge.oracles import Replay, Retained
from device_sim.judge.tracks import Track
from mqttd.core.packets import Filter


class Owed:
    """The retained messages of one stream at one subscription."""

    def __init__(self, replay: Replay, retained: Retained, feed: Feed | None, stream: int) -> None:
        self.replay = replay
        self.retained = retained
        self.feed = feed
        self.stream = stream
        self.contested = False
        """Several publishers retain on the topic: nobody can name the last message."""

    def ask(self) -> None:
        """SUBSCRIBE goes out: what does the topic retain by now?

        At least the last message whose acknowledgement was complete.
        """
        if self.feed is not None and self.feed.sender.doubt is not None:
            self.retained.forget()  # who knows what the broker was told to retain
        elif self.feed is not None and not self.contested:
            self._catch_up(self.feed)
        self.replay.subscribe()

    def _catch_up(self, feed: Feed) -> None:
        sender = feed.sender
        newest = sender.sent_on(self.stream) - 1
        if newest >= 0:
            self.retained.sent(newest)
        if sender.qos:
            not_known = set(feed.client.unanswered(feed.lane))
            for book in (sender.refused, sender.unknown):
                answers = book.get(self.stream)
                if answers is not None:
                    while newest >= 0 and answers.contains(newest):
                        newest -= 1
            while newest >= 0 and newest * sender.streams + self.stream in not_known:
                newest -= 1
            if newest >= 0:
                self.retained.settled(newest)


class Subscription:
    """One filter of a device, and the tracks of what it is owed by it."""

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.tracks: list[Track] = []
        self.replays: list[Owed] = []
