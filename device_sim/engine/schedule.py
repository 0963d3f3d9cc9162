"""When each message of a paced run is due.

All devices together send at an even rate: the k-th message of the run belongs to device k % n and
is due at origin + k * interval. Hence a device's messages are 1/rate apart and the devices are
spread evenly over that time; nothing is kept by message, and what is due by now is one division.

Pure: the clock comes as `now_ns`.
"""


class Schedule:
    """How many messages are due, in all and by device."""

    def __init__(self, devices: int, rate: float, origin_ns: int, total: int) -> None:
        self.devices = devices
        self.origin_ns = origin_ns
        self.interval_ns = 1e9 / (rate * devices)
        self.step_ns = 1e9 / rate
        self.total = total
        self.done = 0

    def device_origin_ns(self, device: int) -> int:
        """When the first message of a device is due."""
        return self.origin_ns + int(device * self.interval_ns)

    def limit(self, device: int) -> int:
        """How many messages of one device have become due."""
        return (self.done - device + self.devices - 1) // self.devices

    def advance(self, now_ns: int) -> range:
        """Let time pass; the devices that have more due now than before, as a range modulo n."""
        due = self.done
        if now_ns >= self.origin_ns:
            due = int((now_ns - self.origin_ns) / self.interval_ns) + 1
        due = max(self.done, min(due, self.total))
        before = self.done
        self.done = due
        return range(before, min(due, before + self.devices))
