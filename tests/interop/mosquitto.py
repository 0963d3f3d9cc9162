"""mosquitto_pub, mosquitto_sub and mosquitto_rr: C programs on libmosquitto, from Debian."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.interop.kit import PATIENCE, V5, V31, V311, Message, Properties, need
from tests.interop.server import Server

_MESSAGE = "MESSAGE "
_FORMAT = _MESSAGE + "%x %j"
"""The payload as hexadecimal digits, everything else as JSON."""


def place(server: Server, listener: str = "tcp") -> list[str]:
    """The arguments that lead to a listener."""
    if listener == "unix":
        return ["--unix", server.unix_path]
    arguments = ["-h", "127.0.0.1", "-p", str(server.port(listener))]
    if listener in ("tls", "mtls"):
        arguments += ["--cafile", str(server.pki.ca.file)]
    return arguments


def version_arguments(version: str) -> list[str]:
    return ["-V", {V31: "mqttv31", V311: "mqttv311", V5: "mqttv5"}[version]]


def property_arguments(command: str, properties: Properties) -> list[str]:
    """-D for each property."""
    values: list[tuple[object, ...]] = [
        ("payload-format-indicator", properties.payload_format),
        ("message-expiry-interval", properties.expiry),
        ("content-type", properties.content_type),
        ("response-topic", properties.response_topic),
        ("correlation-data", properties.correlation and properties.correlation.decode()),
        *(("user-property", name, value) for name, value in properties.user),
    ]
    arguments: list[str] = []
    for name, *value in values:
        if value != [None]:
            arguments += ["-D", command, str(name), *map(str, value)]
    return arguments


@dataclass(frozen=True)
class Result:
    status: int
    output: str


def run(program: str, *arguments: str, payload: bytes | None = None) -> Result:
    """Run one of them to its end; standard output and standard error in one text."""
    done = subprocess.run(
        [need(program), *arguments],
        input=payload,
        stdin=subprocess.DEVNULL if payload is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode())


def publish(
    server: Server,
    message: Message,
    *more: str,
    version: str = V5,
    listener: str = "tcp",
) -> Result:
    """mosquitto_pub with the payload on its standard input; fails unless it ends well."""
    arguments = [
        *place(server, listener),
        *version_arguments(version),
        *property_arguments("publish", message.properties),
        *("-t", message.topic, "-q", str(message.qos)),
        *(["-r"] if message.retain else []),
        *more,
    ]
    # It takes an empty standard input for no message at all; -n is its word for an empty one.
    source = ["-s"] if message.payload else ["-n"]
    done = run("mosquitto_pub", *arguments, *source, payload=message.payload or None)
    assert done.status == 0, done.output
    return done


class Subscriber:
    """mosquitto_sub or mosquitto_rr while it runs.

    With `ready` it is subscribed; without, it may still be on its way.
    """

    def __init__(
        self,
        server: Server,
        *arguments: str,
        version: str = V5,
        listener: str = "tcp",
        program: str = "mosquitto_sub",
        ready: bool = True,
    ) -> None:
        self._process = subprocess.Popen(
            [
                *(need("stdbuf"), "-oL", need(program)),  # it would keep its lines in a buffer
                *place(server, listener),
                *version_arguments(version),
                *("-d", "-F", _FORMAT, "-W", str(int(PATIENCE))),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self._seen: list[str] = []
        if ready:
            self.wait_for("Subscribed (mid: ")

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *_: object) -> None:
        # Not SIGTERM: its handler takes locks, and hangs when the signal finds one taken.
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait_for(self, text: str) -> str:
        """What follows this text on the next line that has it; -W ends the wait."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._seen.append(line)
            _, found, rest = line.partition(text)
            if found:
                return rest.rstrip("\n")
        raise AssertionError(f"no {text!r} in:\n{''.join(self._seen)}")

    def get_with_json(self) -> tuple[Message, dict[str, Any]]:
        """The next message, and its properties in mosquitto's words."""
        payload, _, text = self.wait_for(_MESSAGE).partition(" ")
        packet = _object(json.loads(text, object_pairs_hook=list))
        properties = _object(packet.get("properties", []))
        correlation = properties.get("correlation-data")
        message = Message(
            packet["topic"],
            bytes.fromhex(payload),
            packet["qos"],
            bool(packet["retain"]),
            Properties(
                payload_format=properties.get("payload-format-indicator"),
                expiry=properties.get("message-expiry-interval"),
                content_type=properties.get("content-type"),
                response_topic=properties.get("response-topic"),
                correlation=correlation and correlation.encode(),
                user=tuple(properties.get("user-properties", [])),
            ),
        )
        return message, properties

    def get(self) -> Message:
        return self.get_with_json()[0]

    def kill(self) -> None:
        """End it without DISCONNECT."""
        self._process.kill()

    def finish(self) -> int:
        """The status with which it ends by itself."""
        return self._process.wait(PATIENCE)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """JSON objects are read as pairs: mosquitto repeats the names of user properties."""
    return dict(pairs)
