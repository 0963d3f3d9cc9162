"""From a list of links to connected, subscribed and equipped devices.

Owns the storm of connects: how many at a time, how many a second, how long one may take, and what
each device needs from the broker's CONNACK before it may publish (Receive Maximum, Maximum QoS,
Maximum Packet Size). A subscriber asks for its filters and learns here which tracks it is owed, at
the QoS that was granted. Whatever goes wrong is a ConnectionEnded that says where and why, and ends
the storm.
"""

import asyncio
import ssl
import time

from device_sim.engine.link import ConnectionEnded, Link, Switchboard
from device_sim.engine.plan import FILTERS_A_PACKET, Plan, Settings, UsageError
from device_sim.engine.publisher import Publisher, template
from device_sim.judge.histogram import Histogram
from device_sim.judge.ledger import Watcher
from device_sim.judge.payload import Header, padding
from device_sim.judge.tracks import Sender
from mqttd.core import spec
from mqttd.core.packets import Connect, Record, Suback


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """How to speak TLS, None for not at all; files that can't be used are a UsageError."""
    if not settings.tls:
        return None
    return context(settings.cafile, settings.certfile, settings.keyfile, settings.insecure)


def context(
    authority: str | None, certificate: str | None, key: str | None, insecure: bool
) -> ssl.SSLContext:
    """A client's TLS; UsageError names the file that can't be used."""
    try:
        made = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise UsageError(f"the authority {authority}: {error}") from None
    if certificate:
        try:
            made.load_cert_chain(certificate, key)
        except OSError as error:
            raise UsageError(f"the certificate {certificate}: {error}") from None
    if insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


class Connector:
    """Brings links up; `halt` is the run's word that no more are wanted."""

    def __init__(
        self,
        plan: Plan,
        switchboard: Switchboard,
        tls: ssl.SSLContext | None,
        halt: asyncio.Event,
    ) -> None:
        self.plan = plan
        self.switchboard = switchboard
        self.times = Histogram()
        self._tls = tls
        self._halt = halt
        self._filler = padding(plan.run, plan.settings.size)
        self._properties = plan.settings.publish_properties()

    async def storm(self, links: list[Link]) -> None:
        """Connect them all, a bounded number at a time and no more a second than asked for."""
        waiting = iter(enumerate(links))
        begun = time.monotonic()
        rate = self.plan.settings.connect_rate

        async def worker() -> None:
            for at, link in waiting:
                if self._halt.is_set():
                    return
                if rate:
                    await asyncio.sleep(max(0.0, begun + at / rate - time.monotonic()))
                await self._connect(link)
                if link.client.watcher is not None:
                    await self._subscribe(link, link.client.watcher)
                for sender in link.client.senders:
                    self._equip(link, sender)

        workers = [
            asyncio.ensure_future(worker())
            for _ in range(min(self.plan.settings.connect_parallel, len(links)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _connect(self, link: Link) -> None:
        settings = self.plan.settings
        begun_ns = time.monotonic_ns()
        name = link.client.client_id
        password = None if settings.password is None else settings.password.encode()
        try:
            async with asyncio.timeout(settings.connect_timeout):
                await self.switchboard.loop.create_connection(
                    lambda: link, settings.host, settings.port, ssl=self._tls
                )
                link.client.connect(
                    Connect(
                        "MQIsdp" if settings.version == spec.MQTT31 else "MQTT",
                        settings.version,
                        True,
                        settings.keep_alive,
                        link.client.client_id,
                        username=settings.username,
                        password=password,
                    )
                )
                self.switchboard.mark_dirty(link)
                await link.event()
        except TimeoutError:
            seconds = settings.connect_timeout
            raise ConnectionEnded(f"{name}: no CONNACK within {seconds:g} s") from None
        except OSError as error:
            raise ConnectionEnded(f"{name}: {error}") from None
        self.times.record((time.monotonic_ns() - begun_ns) // 1000)

    async def _subscribe(self, link: Link, watcher: Watcher) -> None:
        filters = self.plan.filters(watcher.index)
        granted = 2
        for at in range(0, len(filters), FILTERS_A_PACKET):
            part = filters[at : at + FILTERS_A_PACKET]
            link.client.subscribe(part)
            self.switchboard.mark_dirty(link)
            reasons = await self._suback(link)
            if len(reasons) != len(part) or max(reasons) >= 0x80:
                raise ConnectionEnded(
                    f"{link.client.client_id}: refused the subscription to {part[0].topic_filter}"
                )
            granted = min(granted, *reasons)
        for device, stream in self.plan.owed(watcher.index):
            topic = self.plan.topic(device, stream).encode()
            qos = min(granted, self.plan.settings.qos_of(device))
            watcher.expect(topic, self.switchboard.ledger.senders[device], stream, qos)

    async def _suback(self, link: Link) -> list[int]:
        try:
            async with asyncio.timeout(self.plan.settings.connect_timeout):
                packet: Record = await link.event()
        except TimeoutError:
            raise ConnectionEnded(f"{link.client.client_id}: no SUBACK") from None
        assert isinstance(packet, Suback)
        return packet.reasons

    def _equip(self, link: Link, sender: Sender) -> None:
        """Give a connected device its templates and its window."""
        settings = self.plan.settings
        client = link.client
        index = sender.index
        if sender.qos > client.maximum_qos:
            raise ConnectionEnded(
                f"{client.client_id}: the broker's Maximum QoS is {client.maximum_qos}"
            )
        templates = []
        for stream in range(settings.streams):
            header = Header(self.plan.run, index, stream, sender.qos, 0, 0, 0)
            topic = self.plan.topic(index, stream)
            made = template(
                header, topic, settings.size, settings.version, self._properties, self._filler
            )
            if 0 < client.maximum_packet_size < made.size:
                raise ConnectionEnded(
                    f"{client.client_id}: the broker's Maximum Packet Size is "
                    f"{client.maximum_packet_size}, a message has {made.size} bytes"
                )
            templates.append(made)
        window = min(settings.window, client.receive_maximum)
        publisher = Publisher(client, sender, templates, window, self.plan.fan)
        publisher.paced = settings.paced
        self.switchboard.attach(publisher, link)
