"""What a device says when it connects: who it is, what of it is to be kept, and its will.

The will carries the header that makes it traceable, with the number of the connection that it
belongs to. Passwords are read here and go nowhere else. Must not know: sockets, what comes of it.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

from device_sim.engine.client import Client
from device_sim.engine.surroundings import Surroundings
from device_sim.judge.oracles import Wills
from device_sim.judge.payload import Header, seal
from device_sim.judge.tracks import Sender
from device_sim.language.naming import Names, Template
from device_sim.language.scenario import Group
from mqttd.core import spec
from mqttd.core.packets import Connect, Will
from mqttd.core.properties import Properties


class Newcomer(Protocol):
    """The device, as far as its CONNECT tells of it."""

    around: Surroundings
    client: Client
    group: Group
    names: Names
    will_sender: Sender | None
    wills: Wills

    def topic(self, text: str) -> str: ...


def connect_packet(device: Newcomer, clean: bool) -> Connect:
    """The CONNECT of the device's next connection."""
    group = device.group
    client = device.client
    properties = Properties()
    if client.version == spec.MQTT5:
        if group.session_expiry:
            properties.session_expiry_interval = min(group.session_expiry, 0xFFFFFFFF)
        if group.receive_maximum is not None:
            properties.receive_maximum = group.receive_maximum
    username, password = _credentials(device)
    return Connect(
        "MQIsdp" if client.version == spec.MQTT31 else "MQTT",
        client.version,
        clean,
        group.keep_alive,
        client.client_id,
        _will(device),
        username,
        password,
        properties,
    )


def _credentials(device: Newcomer) -> tuple[str | None, bytes | None]:
    credentials = device.group.credentials
    if credentials is None:
        return None, None
    username = None if credentials.username is None else _text(device, credentials.username)
    password: bytes | None = None
    if credentials.password is not None:
        password = _text(device, credentials.password.get_secret_value()).encode()
    elif credentials.password_env is not None:
        password = os.environ.get(credentials.password_env, "").encode()
    return username, password


def _will(device: Newcomer) -> Will | None:
    will = device.group.will
    sender = device.will_sender
    if will is None or sender is None:
        return None
    run, number = device.around.run, device.wills.ended
    header = Header(run, sender.index, 0, will.qos, number, time.monotonic_ns(), 0)
    body = _text(device, will.payload).encode()
    topic = device.topic(will.topic)
    return Will(topic, seal(header, body), will.qos, will.retain, will.delay)


def _text(device: Newcomer, text: str) -> str:
    return device.names.render(Template(text))
