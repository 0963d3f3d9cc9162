"""`device_sim probe` against a broker that can everything, Mosquitto, and one that can little."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from device_sim.cli import main
from device_sim.probing.inquiry import Inquiry, Target, Unanswered
from device_sim.probing.probe import TRIALS, Finding, Probe, table
from mqttd import Broker
from mqttd.core import spec
from mqttd.core.packets import Connect, Filter, Publish
from mqttd.core.properties import Properties
from tests.device_sim.liar import Liar, Lies
from tests.device_sim.test_brokers import mosquitto
from tests.net.kit import PATIENCE, reserved_port

EVERYTHING: dict[str, Any] = {
    "listeners": [{"name": "t", "bind": "127.0.0.1:0"}],
    "storage": {"path": ":memory:"},
}


def look(port: int, timeout_s: float = PATIENCE) -> dict[str, Finding]:
    """The findings of a probe, by `group: name`."""
    findings = asyncio.run(Probe(Target("127.0.0.1", port, timeout_s=timeout_s)).look())
    found = {f"{each.group}: {each.name}": each for each in findings}
    assert len(found) == len(findings)
    return found


def look_at_mqttd(limits: dict[str, Any] | None = None) -> dict[str, Finding]:
    async def inquire() -> list[Finding]:
        async with Broker({**EVERYTHING, "limits": limits or {}}) as broker:
            return await Probe(Target("127.0.0.1", broker.port("t"), timeout_s=PATIENCE)).look()

    return {f"{each.group}: {each.name}": each for each in asyncio.run(inquire())}


def test_mqttd_supports_everything_that_is_tried() -> None:
    found = look_at_mqttd()
    assert len(found) == 3 + 9 + len(TRIALS)
    assert [name for name, each in found.items() if each.supported is False] == []
    assert found["announced: receive maximum"].answer == "1024"
    assert found["tried: payload"].answer == "524288 bytes"
    assert "Packet too large" in found["tried: payload"].detail
    assert found["tried: longest session expiry"].answer == f"{30 * 86400} s"
    assert found["tried: $SYS"].detail.startswith("mqttd ")


def test_limits_show_as_they_are_announced_and_as_they_are() -> None:
    found = look_at_mqttd(
        {
            "max_packet_size": "20KiB",
            "receive_maximum": 7,
            "max_inflight": 11,
            "topic_alias_maximum": 0,
            "session_expiry_max": "30s",
        }
    )
    assert found["announced: maximum packet size"].answer == "20480"
    assert found["tried: payload"].answer == "16384 bytes"
    assert found["announced: receive maximum"].answer == "7"
    assert found["tried: in flight to a subscriber"].answer == "11"
    assert found["announced: topic alias maximum"].answer == "0"
    assert found["tried: topic alias, to the broker"].supported is False
    assert found["tried: longest session expiry"].answer == "30 s"
    assert found["tried: persistent sessions"].detail == "for 30 s instead of the 60 s asked for"


def test_it_leaves_nothing_behind() -> None:
    async def inquire() -> list[Publish]:
        async with Broker(EVERYTHING) as broker:
            target = Target("127.0.0.1", broker.port("t"), timeout_s=PATIENCE)
            await Probe(target).look()
            after = Inquiry(target, spec.MQTT5)
            await after.connect(Connect(client_id="after"))
            await after.subscribe([Filter("device_sim/#", 1)])
            await after.ping()
            await after.leave()
            return after.messages

    assert asyncio.run(inquire()) == []


def test_mosquitto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mosquitto(tmp_path, None) as port:
        assert main(["probe", "-p", str(port), "--timeout", str(PATIENCE), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["port"]) == ("device_sim.probe/1", port)
    found = {f"{each['group']}: {each['name']}": each for each in document["findings"]}
    for name in ("MQTT 3.1", "MQTT 3.1.1", "MQTT 5"):
        assert found[f"versions: {name}"]["supported"] is True
    for name in ("QoS 2", "shared subscriptions", "will", "no local", "persistent sessions"):
        assert found[f"tried: {name}"]["supported"] is True, found[f"tried: {name}"]
    assert found["tried: $SYS"]["detail"].startswith("mosquitto")
    assert found["announced: receive maximum"]["supported"] is None


def test_a_broker_that_can_little() -> None:
    """The liar retains nothing, keeps no session, knows no alias, and swallows this will."""
    announced = Properties()
    announced.maximum_packet_size = 5000
    announced.shared_subscription_available = 0
    announced.server_keep_alive = 9
    lies = Lies()
    lies.connack_properties = announced
    lies.drop_will = {0}
    with Liar(lies) as port:
        found = look(port, timeout_s=1.0)
    assert found["announced: maximum packet size"].answer == "5000"
    assert found["announced: shared subscriptions"].supported is False
    assert found["announced: server keep alive"].answer == "9"
    assert found["announced: maximum QoS"].answer == "2"
    assert found["tried: QoS 1"].supported is True
    for name in ("will", "persistent sessions", "retained messages", "topic alias, to the broker"):
        assert found[f"tried: {name}"].supported is False, name
    assert found["tried: will"].detail == "no answer within 1 s"
    assert found["tried: $SYS"].detail == "no retained message on $SYS/broker/version"


@pytest.mark.parametrize(
    ("lie", "name", "detail"),
    [
        ("suback", "QoS 0", "refused: Topic Filter invalid"),
        ("corrupt", "QoS 1", "the payload came back changed"),
        ("drop", "QoS 2", "no answer within 0.3 s"),
        ("disconnect", "QoS 1", "sent DISCONNECT: Quota exceeded"),
        ("hang_up", "QoS 1", "connection"),
    ],
)
def test_what_the_broker_did_instead(lie: str, name: str, detail: str) -> None:
    lies = Lies()
    if lie == "suback":
        lies.suback = spec.TOPIC_FILTER_INVALID
    else:
        setattr(lies, lie, {0})
    trial = next(each for each in TRIALS if each[0] == name)

    async def inquire(port: int) -> Finding:
        probe = Probe(Target("127.0.0.1", port, timeout_s=0.3))
        probe.version = spec.MQTT5
        await probe._try(*trial[::2])
        return probe.findings[0]

    with Liar(lies) as port:
        finding = asyncio.run(inquire(port))
    assert finding.supported is False
    assert detail in finding.detail


def test_nobody_there_and_nobody_let_in(capsys: pytest.CaptureFixture[str]) -> None:
    with reserved_port() as port:
        assert main(["probe", "-p", str(port)]) == 3
    assert f"127.0.0.1:{port}: " in capsys.readouterr().err
    lies = Lies()
    lies.connack = 5
    with Liar(lies) as port:
        assert main(["probe", "-p", str(port)]) == 3
    assert "not authorized" in capsys.readouterr().err
    assert main(["probe", "--timeout", "0"]) == 2
    assert "--timeout is a positive number" in capsys.readouterr().err


def test_an_answer_that_never_comes() -> None:
    lies = Lies()
    lies.silent = True

    async def inquire(port: int) -> None:
        await Inquiry(Target("127.0.0.1", port, timeout_s=0.1), spec.MQTT311).connect(Connect())

    with Liar(lies) as port, pytest.raises(Unanswered, match=r"no answer within 0\.1 s"):
        asyncio.run(inquire(port))


def test_the_table() -> None:
    lines = table(
        [
            Finding("versions", "MQTT 5", "yes"),
            Finding("tried", "payload", "16 bytes", "32 bytes: refused"),
        ]
    )
    assert lines == [
        "versions",
        "  MQTT 5   yes",
        "",
        "tried",
        "  payload  16 bytes  32 bytes: refused",
    ]
