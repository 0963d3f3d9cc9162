"""Where a server for the tests comes from: an address, this machine, a container, or nowhere."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from tests.bridges import containers
from tests.bridges.containers import Image
from tests.bridges.servers import Server

ADDRESS = "MQTTD_TEST_THING"


class Thing(Server):
    """A server that is installed, or isn't."""

    NAME = "thing"
    IMAGE = Image("thing:1", 7000, {"HOST": "127.0.0.1:{port}"})
    INSTALLED = False
    prepared = False

    def missing(self) -> str:
        return "" if self.INSTALLED else "thing isn't installed: apt-get install thing"

    def prepare(self) -> None:
        self.port, self.prepared = 1, True

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        raise AssertionError("nothing is started here but containers")


class FakeContainer:
    """As `DockerContainer`, as far as it is used: a socket that listens."""

    made: ClassVar[list["FakeContainer"]] = []

    def __init__(self, image: str) -> None:
        self.image = image
        self.environment: dict[str, str] = {}
        self.ports: dict[str, Any] = {}
        self.socket: socket.socket | None = None
        self.made.append(self)

    def with_env(self, name: str, value: str) -> "FakeContainer":
        self.environment[name] = value
        return self

    def start(self) -> "FakeContainer":
        self.socket = socket.create_server(self.ports["7000/tcp"])
        return self

    def stop(self) -> None:
        assert self.socket is not None
        self.socket.close()
        self.socket = None


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeContainer]]:
    """A machine with Docker and testcontainers."""
    module: Any = ModuleType("testcontainers.core.container")
    module.DockerContainer = FakeContainer
    for name in ("testcontainers", "testcontainers.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(containers, "docker_runs", lambda: True)
    monkeypatch.setattr(containers, "find_spec", lambda name: object())
    FakeContainer.made = []
    yield FakeContainer.made
    for one in FakeContainer.made:
        if one.socket is not None:
            one.stop()


def test_an_address_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: list[FakeContainer]
) -> None:
    monkeypatch.setenv(ADDRESS, "far:7001")
    monkeypatch.setattr(Thing, "INSTALLED", True)
    thing = Thing(tmp_path)
    thing.start()
    assert (thing.host, thing.port, thing.prepared, docker) == ("far", 7001, False, [])
    with pytest.raises(pytest.skip.Exception, match=f"{ADDRESS} is not for killing"):
        thing.may_be_killed()


def test_what_is_installed_comes_before_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: list[FakeContainer]
) -> None:
    monkeypatch.setattr(Thing, "INSTALLED", True)
    thing = Thing(tmp_path)
    assert (thing.prepared, thing.ours, docker) == (True, True, [])
    thing.may_be_killed()


def test_a_container_where_nothing_is_installed(
    tmp_path: Path, docker: list[FakeContainer]
) -> None:
    thing = Thing(tmp_path)
    assert docker == []  # not before it is started
    thing.start()
    (container,) = docker
    assert container.image == "thing:1"
    assert container.ports == {"7000/tcp": ("127.0.0.1", thing.port)}
    assert container.environment == {"HOST": f"127.0.0.1:{thing.port}"}
    assert thing.serves()
    with pytest.raises(pytest.skip.Exception, match="is not for killing"):
        thing.may_be_killed()
    thing.kill()
    assert not thing.serves()
    thing.kill()


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (False, "apt-get install thing; for thing:1 in a container: no Docker runs; or set"),
        (True, "Docker runs, but not without: pip install testcontainers; or set"),
    ],
)
def test_a_skip_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool, text: str
) -> None:
    monkeypatch.setattr(containers, "docker_runs", lambda: runs)
    monkeypatch.setattr(containers, "find_spec", lambda name: None)
    with pytest.raises(pytest.skip.Exception) as skipped:
        Thing(tmp_path)
    assert text in str(skipped.value)
    assert f"{ADDRESS}=HOST:PORT" in str(skipped.value)


def test_a_server_without_an_image_is_installed_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: list[FakeContainer]
) -> None:
    monkeypatch.setattr(Thing, "IMAGE", None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install thing; or set"):
        Thing(tmp_path)
    assert docker == []


def test_docker_runs_only_where_it_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker_runs = containers.docker_runs.__wrapped__
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker_runs() is False
    tool = tmp_path / "docker"
    for status, runs in ((1, False), (0, True)):
        tool.write_text(f"#!/bin/sh\nexit {status}\n")
        tool.chmod(0o755)
        assert docker_runs() is runs
