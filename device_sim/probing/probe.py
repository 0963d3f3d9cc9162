"""What a broker supports, and its limits: asked for, read from CONNACK, and tried out.

Three groups of findings: the protocol versions that it accepts, what it announces in an MQTT 5
CONNACK, and what it does when each feature is used. A feature that is announced and doesn't work
shows as such, and so does one that works without being announced.

Every trial has connections and topics of its own (`device_sim/probe/RUN/…`), retains nothing that
it doesn't clear, leaves no session behind, and ends within a few times the timeout. Where nothing
may come, a second message that has to come says when to stop waiting.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from device_sim.engine.connect import tls_context
from device_sim.engine.plan import Settings, UsageError
from device_sim.probing.inquiry import Inquiry, Target, Unanswered
from mqttd.core import spec
from mqttd.core.packets import Connack, Connect, Filter, Publish, Will
from mqttd.core.properties import Properties, encode_forwardable

SCHEMA: Final = "device_sim.probe/1"
YES: Final = "yes"
NO: Final = "no"
PAYLOAD: Final = b"a payload that has to come back as it was"
LARGE: Final = 1 << 20
"""The largest payload that is tried."""
DEEP: Final = 128
FLIGHT: Final = 200
VERSIONS: Final = (("3.1", spec.MQTT31), ("3.1.1", spec.MQTT311), ("5", spec.MQTT5))

Trial = Callable[["Probe"], Awaitable[str]]


class Finding:
    """One line of the table. `supported` is None for what is a number and no feature."""

    def __init__(self, group: str, name: str, answer: str, detail: str = "") -> None:
        self.group = group
        self.name = name
        self.answer = answer
        self.detail = detail

    @property
    def supported(self) -> bool | None:
        return {YES: True, NO: False}.get(self.answer)

    def document(self) -> dict[str, Any]:
        """The finding for machines."""
        return {
            "group": self.group,
            "name": self.name,
            "answer": self.answer,
            "supported": self.supported,
            "detail": self.detail,
        }


class Probe:
    """One look at one broker."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.version = 0
        self.findings: list[Finding] = []
        self.connack = Connack()
        self._run = os.urandom(4).hex()
        self._clients = 0
        self._open: list[Inquiry] = []

    async def look(self) -> list[Finding]:
        """Every finding; Unanswered when the broker accepts no version at all."""
        refusals: list[str] = []
        for name, version in VERSIONS:
            try:
                inquiry = await self.connect(version)
            except Unanswered as answer:
                refusals.append(str(answer))
                self._found("versions", f"MQTT {name}", NO, str(answer))
            else:
                self.version = version
                self.connack = inquiry.connack
                self._found("versions", f"MQTT {name}", YES)
            await self._leave_all()
        if not self.version:
            raise Unanswered("; ".join(dict.fromkeys(refusals)))
        if self.version == spec.MQTT5:
            self._announced(self.connack.properties)
        for name, least, trial in TRIALS:
            if self.version >= least:
                await self._try(name, trial)
        return self.findings

    def topic(self, name: str) -> str:
        """A topic of this run."""
        return f"device_sim/probe/{self._run}/{name}"

    def client_id(self) -> str:
        """A client identifier that nobody else has, of at most 23 letters and digits."""
        self._clients += 1
        return f"dsprobe{self._run}x{self._clients}"

    async def connect(
        self,
        version: int = 0,
        client_id: str | None = None,
        clean: bool = True,
        will: Will | None = None,
        properties: Properties | None = None,
    ) -> Inquiry:
        """A new connection; all of them are ended after the trial."""
        inquiry = Inquiry(self.target, version or self.version)
        self._open.append(inquiry)
        name = self.client_id() if client_id is None else client_id
        await inquiry.connect(
            Connect(
                clean_start=clean, keep_alive=60, client_id=name, will=will, properties=properties
            )
        )
        return inquiry

    async def _try(self, name: str, trial: Trial) -> None:
        try:
            async with asyncio.timeout(4 * self.target.timeout_s):
                answer = await trial(self)
        except Unanswered as refusal:
            self._found("tried", name, NO, str(refusal))
        except TimeoutError:
            self._found("tried", name, NO, "took too long")
        else:
            self._found("tried", name, *answer.split(": ", 1))
        await self._leave_all()

    async def _leave_all(self) -> None:
        for inquiry in self._open:
            await inquiry.leave()
        self._open.clear()

    def _found(self, group: str, name: str, answer: str, detail: str = "") -> None:
        self.findings.append(Finding(group, name, answer, detail))

    def _announced(self, properties: Properties) -> None:
        """What CONNACK says, with what holds when it says nothing."""
        for name, value, default in (
            ("receive maximum", properties.receive_maximum, "65535"),
            ("maximum packet size", properties.maximum_packet_size, "no limit"),
            ("topic alias maximum", properties.topic_alias_maximum, "0"),
            ("maximum QoS", properties.maximum_qos, "2"),
            ("server keep alive", properties.server_keep_alive, "the client's"),
        ):
            self._found("announced", name, default if value is None else str(value))
        for name, flag in (
            ("retained messages", properties.retain_available),
            ("wildcard subscriptions", properties.wildcard_subscription_available),
            ("subscription identifiers", properties.subscription_identifier_available),
            ("shared subscriptions", properties.shared_subscription_available),
        ):
            self._found("announced", name, NO if flag == 0 else YES)


# A trial answers `yes`, `no`, or what it measured, with a detail after a colon.


async def _round_trip(probe: Probe, qos: int) -> str:
    inquiry = await probe.connect()
    topic = probe.topic(f"qos{qos}")
    await inquiry.subscribe([Filter(topic, qos)])
    await inquiry.publish(Publish(topic, PAYLOAD, qos))
    message = await inquiry.message()
    if message.payload != PAYLOAD:
        return f"{NO}: the payload came back changed"
    return YES if message.qos == qos else f"{NO}: it was delivered at QoS {message.qos}"


async def _qos0(probe: Probe) -> str:
    return await _round_trip(probe, 0)


async def _qos1(probe: Probe) -> str:
    return await _round_trip(probe, 1)


async def _qos2(probe: Probe) -> str:
    return await _round_trip(probe, 2)


async def _wildcards(probe: Probe) -> str:
    inquiry = await probe.connect()
    for topic_filter, topic in (("w/+/b", "w/a/b"), ("h/#", "h/a/b/c"), ("p/#", "p")):
        await inquiry.subscribe([Filter(probe.topic(topic_filter))])
        await inquiry.publish(Publish(probe.topic(topic), b""))
        if (await inquiry.message()).topic != probe.topic(topic):
            return f"{NO}: {topic_filter} brought another topic"
    return YES


async def _retained(probe: Probe) -> str:
    inquiry = await probe.connect()
    topic, marker = probe.topic("retained"), probe.topic("marker")
    try:
        await inquiry.publish(Publish(topic, b"kept", 1, True))
        reader = await probe.connect()
        await reader.subscribe([Filter(topic, 1)])
        if not (await reader.message()).retain:
            return f"{NO}: it came without the retain flag"
    finally:
        await inquiry.publish(Publish(topic, b"", 1, True))
    later = await probe.connect()
    await later.subscribe([Filter(topic, 1), Filter(marker, 1)])
    await inquiry.publish(Publish(marker, b"", 1))
    return YES if (await later.message()).topic == marker else f"{NO}: it can't be cleared"


async def _session(probe: Probe) -> str:
    name = probe.client_id()
    topic = probe.topic("session")
    lasting = Properties()
    lasting.session_expiry_interval = 60
    reader = await probe.connect(client_id=name, clean=False, properties=lasting)
    granted = reader.connack.properties.session_expiry_interval
    await reader.subscribe([Filter(topic, 1)])
    await reader.leave()
    writer = await probe.connect()
    await writer.publish(Publish(topic, b"meanwhile", 1))
    try:
        back = await probe.connect(client_id=name, clean=False, properties=lasting)
        if not back.connack.session_present:
            return f"{NO}: CONNACK says that no session is present"
        await back.message()
        await back.leave()
    finally:
        await probe.connect(client_id=name)
    return YES if granted is None else f"{YES}: for {granted} s instead of the 60 s asked for"


async def _longest_session(probe: Probe) -> str:
    name = probe.client_id()
    forever = Properties()
    forever.session_expiry_interval = 0xFFFFFFFF
    inquiry = await probe.connect(client_id=name, clean=False, properties=forever)
    granted = inquiry.connack.properties.session_expiry_interval
    await inquiry.leave()
    await probe.connect(client_id=name)
    if granted is None or granted == 0xFFFFFFFF:
        return "never expires"
    return f"{granted} s"


async def _will(probe: Probe) -> str:
    topic = probe.topic("will")
    reader = await probe.connect()
    await reader.subscribe([Filter(topic, 1)])
    device = await probe.connect(will=Will(topic, b"gone", 1))
    device.abort()
    return YES if (await reader.message()).payload == b"gone" else NO


async def _shared(probe: Probe) -> str:
    topic = probe.topic("shared")
    members = [await probe.connect() for _ in range(2)]
    for member in members:
        await member.subscribe([Filter(f"$share/probe/{topic}", 1)])
    writer = await probe.connect()
    for number in range(10):
        await writer.publish(Publish(topic, b"%d" % number, 1))
    for member in members:
        await member.ping()
    counts = [len(member.messages) for member in members]
    if sum(counts) != 10:
        return f"{NO}: of 10 messages {counts[0]} and {counts[1]} came"
    return f"{YES}: 10 messages were dealt {counts[0]} and {counts[1]}"


async def _identifiers(probe: Probe) -> str:
    inquiry = await probe.connect()
    topic = probe.topic("identifier")
    await inquiry.subscribe([Filter(topic)], identifier=77)
    await inquiry.publish(Publish(topic, b""))
    found = (await inquiry.message()).subscription_ids
    return YES if found == [77] else f"{NO}: the message carried {found or 'none'}"


async def _alias_in(probe: Probe) -> str:
    inquiry = await probe.connect()
    if not inquiry.connack.properties.topic_alias_maximum:
        return f"{NO}: Topic Alias Maximum is 0"
    topic = probe.topic("alias")
    await inquiry.subscribe([Filter(topic)])
    await inquiry.publish(Publish(topic, b"1", topic_alias=1))
    await inquiry.publish(Publish("", b"2", topic_alias=1))
    await inquiry.message()
    return YES if (await inquiry.message()).topic == topic else f"{NO}: it went elsewhere"


async def _alias_out(probe: Probe) -> str:
    welcome = Properties()
    welcome.topic_alias_maximum = 10
    inquiry = await probe.connect(properties=welcome)
    topic = probe.topic("alias")
    await inquiry.subscribe([Filter(topic)])
    for _ in range(3):
        await inquiry.publish(Publish(topic, b""))
    aliases = [(await inquiry.message()).topic_alias for _ in range(3)]
    return YES if any(aliases) else f"{NO}: it sends full topics"


async def _no_local(probe: Probe) -> str:
    inquiry = await probe.connect()
    mine, marker = probe.topic("mine"), probe.topic("marker")
    await inquiry.subscribe([Filter(mine, no_local=True), Filter(marker)])
    await inquiry.publish(Publish(mine, b""))
    await inquiry.publish(Publish(marker, b""))
    return YES if (await inquiry.message()).topic == marker else NO


async def _as_published(probe: Probe) -> str:
    inquiry = await probe.connect()
    topic = probe.topic("as-published")
    await inquiry.subscribe([Filter(topic, retain_as_published=True)])
    await inquiry.publish(Publish(topic, b"", retain=True))
    return YES if (await inquiry.message()).retain else NO


async def _expiry(probe: Probe) -> str:
    inquiry = await probe.connect()
    topic = probe.topic("expiry")
    await inquiry.subscribe([Filter(topic)])
    await inquiry.publish(Publish(topic, b"", message_expiry=100))
    left = (await inquiry.message()).message_expiry
    return YES if 0 <= left <= 100 else f"{NO}: the interval was not passed on"


async def _properties(probe: Probe) -> str:
    given = Properties()
    given.user_properties.append(("name", "value"))
    given.response_topic = probe.topic("response")
    given.correlation_data = b"\x00\xff"
    given.content_type = "text/plain"
    properties = encode_forwardable(given)
    inquiry = await probe.connect()
    topic = probe.topic("properties")
    await inquiry.subscribe([Filter(topic)])
    await inquiry.publish(Publish(topic, b"", properties=properties))
    # The order of different properties is the broker's affair.
    came = (await inquiry.message()).properties
    return YES if sorted(came) == sorted(properties) else f"{NO}: they were not passed on unchanged"


async def _no_name(probe: Probe) -> str:
    inquiry = await probe.connect(client_id="")
    name = inquiry.connack.properties.assigned_client_identifier
    return f"{YES}: the broker said {name}" if name else YES


async def _long_name(probe: Probe) -> str:
    await probe.connect(client_id=probe.client_id().ljust(256, "x"))
    return f"{YES}: 256 characters"


async def _payload(probe: Probe) -> str:
    """The largest power of two up to LARGE that is acknowledged and comes back."""
    accepted = 0
    size = 1024
    why = ""
    topic = probe.topic("payload")
    while size <= LARGE:
        inquiry = await probe.connect()
        await inquiry.subscribe([Filter(topic, 1)])
        try:
            await inquiry.publish(Publish(topic, bytes(size), 1))
            if len((await inquiry.message()).payload) != size:
                break
        except Unanswered as answer:
            why = f": {size} bytes: {answer}"
            break
        accepted = size
        size *= 2
    if accepted >= LARGE:
        return f"{accepted} bytes: or more, this was the largest tried"
    return f"{accepted} bytes{why}"


async def _levels(probe: Probe) -> str:
    inquiry = await probe.connect()
    topic = probe.topic("/".join(["l"] * DEEP))
    await inquiry.subscribe([Filter(topic)])
    await inquiry.publish(Publish(topic, b""))
    return f"{YES}: {DEEP} and more" if (await inquiry.message()).topic == topic else NO


async def _flight(probe: Probe) -> str:
    topic = probe.topic("flight")
    reader = await probe.connect()
    reader.holding_back = True
    await reader.subscribe([Filter(topic, 1)])
    writer = await probe.connect()
    for _ in range(FLIGHT):
        await writer.publish(Publish(topic, b"", 1))
    await reader.ping()
    count = len(reader.messages)
    return f"{count}: and more" if count >= FLIGHT else str(count)


async def _says(probe: Probe) -> str:
    inquiry = await probe.connect()
    await inquiry.subscribe([Filter("$SYS/broker/version")])
    await inquiry.ping()
    if not inquiry.messages:
        return f"{NO}: no retained message on $SYS/broker/version"
    text = inquiry.messages[0].payload.decode("utf-8", "replace")
    return f"{YES}: {text[:100]}"


TRIALS: Final[tuple[tuple[str, int, Trial], ...]] = (
    ("QoS 0", spec.MQTT31, _qos0),
    ("QoS 1", spec.MQTT31, _qos1),
    ("QoS 2", spec.MQTT31, _qos2),
    ("wildcard subscriptions", spec.MQTT31, _wildcards),
    ("retained messages", spec.MQTT31, _retained),
    ("persistent sessions", spec.MQTT31, _session),
    ("longest session expiry", spec.MQTT5, _longest_session),
    ("will", spec.MQTT31, _will),
    ("shared subscriptions", spec.MQTT31, _shared),
    ("subscription identifiers", spec.MQTT5, _identifiers),
    ("topic alias, to the broker", spec.MQTT5, _alias_in),
    ("topic alias, from the broker", spec.MQTT5, _alias_out),
    ("no local", spec.MQTT5, _no_local),
    ("retain as published", spec.MQTT5, _as_published),
    ("message expiry passed on", spec.MQTT5, _expiry),
    ("user properties passed on", spec.MQTT5, _properties),
    ("empty client identifier", spec.MQTT311, _no_name),
    ("long client identifier", spec.MQTT31, _long_name),
    ("topic levels", spec.MQTT31, _levels),
    ("payload", spec.MQTT31, _payload),
    ("in flight to a subscriber", spec.MQTT31, _flight),
    ("$SYS", spec.MQTT31, _says),
)
"""Name, the least version that has it, and the trial."""


def table(findings: list[Finding]) -> list[str]:
    """The findings as lines of text."""
    width = max(len(each.name) for each in findings)
    answers = max(len(each.answer) for each in findings)
    lines: list[str] = []
    group = ""
    for each in findings:
        if each.group != group:
            group = each.group
            lines += ["", group] if lines else [group]
        line = f"  {each.name.ljust(width)}  {each.answer.ljust(answers)}  {each.detail}"
        lines.append(line.rstrip())
    return lines


def run(options: argparse.Namespace) -> int:
    """The command; the exit code."""
    tls = bool(options.tls or options.cafile or options.cert or options.insecure)
    if options.timeout <= 0:
        raise UsageError("--timeout is a positive number of seconds")
    context = tls_context(
        Settings(
            tls=tls,
            cafile=options.cafile,
            certfile=options.cert,
            keyfile=options.key,
            insecure=options.insecure,
        )
    )
    target = Target(
        options.host,
        options.port or (8883 if tls else 1883),
        context,
        options.username,
        options.password or os.environ.get("DEVICE_SIM_PASSWORD"),
        options.timeout,
    )
    probe = Probe(target)
    try:
        findings = asyncio.run(probe.look())
    except Unanswered as answer:
        print(f"device_sim: {target.host}:{target.port}: {answer}", file=sys.stderr)
        return 3
    if options.json:
        document = {
            "schema": SCHEMA,
            "host": target.host,
            "port": target.port,
            "findings": [each.document() for each in findings],
        }
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print("\n".join(table(findings)))
    return 0
