"""What golden vectors are made of; see `vectors`."""

from dataclasses import dataclass

from hypothesis import settings

from mqttd.core import spec
from mqttd.core.packets import Record
from mqttd.core.properties import Properties

V31, V311, V5 = (spec.MQTT31,), (spec.MQTT311,), (spec.MQTT5,)
V3 = (spec.MQTT31, spec.MQTT311)
ALL = (spec.MQTT31, spec.MQTT311, spec.MQTT5)

# A property holds or it doesn't; how long that took says more about the machine.
untimed = settings(deadline=None)


@dataclass(frozen=True)
class Vector:
    """`packet` for good ones; `error` (a reason code) and perhaps `clause` for bad ones."""

    name: str
    versions: tuple[int, ...]
    wire: bytes
    packet: Record | None = None
    error: int = 0
    clause: str = ""
    canonical: bool = True
    from_client: bool = False

    @property
    def body(self) -> int:
        """Where the fixed header ends."""
        at = 1
        while self.wire[at] & 0x80:
            at += 1
        return at + 1


def unhex(text: str) -> bytes:
    """Hex in lines, each with a comment behind `#`."""
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


def good(
    name: str, versions: tuple[int, ...], wire: str, packet: Record, canonical: bool = True
) -> Vector:
    return Vector(name, versions, unhex(wire), packet, canonical=canonical)


def bad(
    name: str,
    versions: tuple[int, ...],
    wire: str,
    error: int,
    clause: str = "",
    from_client: bool = False,
) -> Vector:
    return Vector(name, versions, unhex(wire), error=error, clause=clause, from_client=from_client)


def props(**values: object) -> Properties:
    """Properties with some of them set; a name that does not exist is an error."""
    made = Properties()
    for name, value in values.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made
