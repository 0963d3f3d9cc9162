"""One broker and one Node process for each pytest process, stopped at the end and checked."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.kit import Peer
from tests.interop.mqttjs import Node, install
from tests.interop.peers import KINDS
from tests.interop.server import Pki, Server


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def _session_server(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mqttd"), pki)
    yield server
    server.stop()


@pytest.fixture
def server(_session_server: Server) -> Iterator[Server]:
    """A broker that other tests use too: keep to topics and client ids of your own."""
    yield _session_server
    assert _session_server.running


@pytest.fixture
def own_server(pki: Pki, tmp_path: Path) -> Iterator[Server]:
    """A broker for tests that end it."""
    server = Server(tmp_path, pki)
    yield server
    if server.running:
        server.stop()


@pytest.fixture
def topic() -> str:
    """A topic that no other test knows."""
    return f"interop/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def node(pytestconfig: pytest.Config) -> Iterator[Node]:
    node = Node(install(pytestconfig.rootpath / "build" / "interop-node"))
    yield node
    node.stop()


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Callable[[str], Peer]:
    """Makes a client by the name of its kind; Node runs only where one needs it."""
    return lambda kind: KINDS[kind](lambda: request.getfixturevalue("node"))
