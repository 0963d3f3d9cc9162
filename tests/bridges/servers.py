"""Real servers for the tests of bridges: found, started on free ports, killed, started again.

A server is started in a temporary directory of its own on loopback; or it is one that already
runs, if `MQTTD_TEST_<NAME>` holds its address (host:port); or, where neither is there and Docker
runs, it is in a container. Those two are not killed, and tests that would kill them are skipped. A
server that is not there is a skip that names the package.

Everything that a server starts is in the process group of the process started here, and ends with
it in `kill`.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from tests.bridges import containers
from tests.bridges.containers import Container, Image
from tests.tls import Authority

_PATIENCE_S = 120.0


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return True
    except OSError:
        return False


class Server(ABC):
    """One server. `host` and `port` stay the same when it is started again."""

    NAME: ClassVar[str]
    """`MQTTD_TEST_<NAME>`, and what tests call it."""
    IMAGE: ClassVar[Image | None] = None
    """The image for a machine that hasn't it installed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.host = "127.0.0.1"
        self.ours = True  # a process started here, so it may be killed
        self._processes: list[subprocess.Popen[bytes]] = []
        self._container: Container | None = None
        address = os.environ.get(f"MQTTD_TEST_{self.NAME.upper()}")
        if address:
            host, _, port = address.rpartition(":")
            self.host, self.port, self.ours = host, int(port), False
            return
        missing = self.missing()
        if not missing:
            self.port = 0
            self.prepare()
            return
        if self.IMAGE is not None:
            no_container = containers.missing()
            if not no_container:
                (self.port,) = free_ports(1)
                self.ours = False
                self._container = Container(self.IMAGE, self.port)
                return
            missing = f"{missing}; for {self.IMAGE.name} in a container: {no_container}"
        pytest.skip(
            f"{missing}; or set MQTTD_TEST_{self.NAME.upper()}=HOST:PORT",
            allow_module_level=True,
        )

    @abstractmethod
    def missing(self) -> str:
        """What isn't installed, and how to get it; "" if nothing is missing."""

    @abstractmethod
    def prepare(self) -> None:
        """Choose `port`, write the configuration. Once."""

    @abstractmethod
    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        """What to start, each with its environment; the last one is the server."""

    def serves(self) -> bool:
        """Whether it does its work yet. An open port may be all that there is to ask."""
        return answers(self.port, self.host)

    def start(self) -> None:
        """Start it, and wait until it serves."""
        atexit.register(self.kill)  # whatever raises before somebody else does it
        if not self.ours:
            if self._container is not None:
                self._container.start()
                self._wait(lambda: None)
            return
        for command, environment in self.commands():
            with open(self.place / "server.log", "ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=self.place,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        self._wait(self._processes[-1].poll)

    def _wait(self, poll: Callable[[], int | None]) -> None:
        """Until it serves. `poll`: the exit status, None while it runs."""
        give_up_at = time.monotonic() + _PATIENCE_S
        while not self.serves():
            ended = poll()
            if ended is not None or time.monotonic() > give_up_at:
                what = "gives no answer" if ended is None else f"ended with {ended}"
                log = self.place / "server.log"
                log_end = log.read_text(errors="replace")[-3000:] if log.exists() else ""
                self.kill()
                raise RuntimeError(f"{self.NAME} {what}:\n{log_end}")
            time.sleep(0.1)

    def ensure(self) -> None:
        """Start it if a test before this one has killed it."""
        if not self._processes:
            self.start()

    def may_be_killed(self) -> None:
        """Skip the test if the server isn't one of ours."""
        if not self.ours:
            pytest.skip(f"MQTTD_TEST_{self.NAME.upper()} is not for killing")

    def kill(self) -> None:
        """End it as a power cut would; a container that is ours, in good order."""
        atexit.unregister(self.kill)
        if self._container is not None:
            self._container.stop()
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes = []

    def restart(self) -> None:
        """Kill it and start it again on the same port with the same data."""
        self.kill()
        self.start()


class RabbitMQ(Server):
    """RabbitMQ from Debian's package, without plugins; its user is guest, guest."""

    NAME = "rabbitmq"
    IMAGE = Image("rabbitmq:3.13", 5672)
    _BIN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def missing(self) -> str:
        if self._BIN.exists() and shutil.which("epmd"):
            return ""
        return "rabbitmq-server isn't installed: apt-get install rabbitmq-server"

    def prepare(self) -> None:
        self.port, self._epmd, self._dist = free_ports(3)
        (self.place / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "vm_memory_high_watermark.absolute = 256MB\n"
            "disk_free_limit.absolute = 10MB\n"
            "log.console.level = error\n"
            "max_message_size = 262144\n"
        )
        (self.place / "enabled_plugins").write_text("[].\n")

    def environment(self) -> dict[str, str]:
        """Also for `rabbitmqctl`."""
        place = self.place
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"mqttd{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(place / "mnesia"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(place / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(place / "config"),
            # No scheduler that spins: the machine has other things to do.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none",
        }

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        environment = self.environment()
        return [
            (["epmd", "-port", str(self._epmd), "-address", "127.0.0.1"], environment),
            ([str(self._BIN)], environment),
        ]


_JARS = Path("/usr/share/java")
_ACTIVEMQ_XML = """\
<beans xmlns="http://www.springframework.org/schema/beans"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans
  http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
  http://activemq.apache.org/schema/core
  http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" brokerName="localhost"
    dataDirectory="{place}/data" useShutdownHook="false" schedulerSupport="false">
    <persistenceAdapter>
      <kahaDB directory="{place}/data/kahadb" journalMaxFileLength="8mb"/>
    </persistenceAdapter>
    <plugins>
      <simpleAuthenticationPlugin anonymousAccessAllowed="false">
        <users>
          <authenticationUser username="admin" password="admin" groups="all,few"/>
          <authenticationUser username="guest" password="guest" groups="few"/>
        </users>
      </simpleAuthenticationPlugin>
      <authorizationPlugin>
        <map>
          <authorizationMap>
            <authorizationEntries>
              <authorizationEntry queue=">" read="all" write="all" admin="all"/>
              <authorizationEntry topic=">" read="all" write="all" admin="all"/>
              <authorizationEntry queue="t.>" read="few" write="few" admin="few"/>
              <authorizationEntry topic="t.>" read="few" write="few" admin="few"/>
              <authorizationEntry topic="ActiveMQ.Advisory.>" read="few" write="few" admin="few"/>
            </authorizationEntries>
          </authorizationMap>
        </map>
      </authorizationPlugin>
    </plugins>
    <systemUsage>
      <systemUsage>
        <memoryUsage><memoryUsage limit="64 mb"/></memoryUsage>
        <storeUsage><storeUsage limit="1 gb"/></storeUsage>
        <tempUsage><tempUsage limit="64 mb"/></tempUsage>
      </systemUsage>
    </systemUsage>
    <transportConnectors>
      <transportConnector name="stomp"
        uri="stomp://127.0.0.1:{port}?wireFormat.maxDataLength=262144"/>
    </transportConnectors>
  </broker>
</beans>
"""


class ActiveMQ(Server):
    """ActiveMQ Classic from Debian's package: admin may do all, guest what begins with t."""

    NAME = "activemq"

    def missing(self) -> str:
        if not (_JARS / "activemq-stomp.jar").exists():
            return "activemq isn't installed: apt-get install activemq"
        if not shutil.which("java"):
            return "there is no java: apt-get install default-jre-headless"
        return ""

    def prepare(self) -> None:
        (self.port,) = free_ports(1)
        conf = self.place / "conf"
        conf.mkdir()
        (conf / "activemq.xml").write_text(_ACTIVEMQ_XML.format(place=self.place, port=self.port))
        (conf / "log4j.properties").write_text(
            "log4j.rootLogger=WARN, console\n"
            "log4j.appender.console=org.apache.log4j.ConsoleAppender\n"
            "log4j.appender.console.layout=org.apache.log4j.PatternLayout\n"
        )

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        place = self.place
        named: tuple[str, ...] = (
            "activemq-*",
            "kahadb*",
            "hawtbuf*",
            "geronimo-j*",
            "xbean*",
            "spring*",
        )
        named += ("commons-*", "slf4j-*", "log4j-1.2*", "jms*", "stax*")
        jars = sorted({str(jar) for name in named for jar in _JARS.glob(f"{name}.jar")})
        command = [
            *("java", "-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            f"-Dactivemq.home={place}",
            f"-Dactivemq.base={place}",
            f"-Dactivemq.conf={place}/conf",
            f"-Dactivemq.data={place}/data",
            f"-Dlog4j.configuration=file:{place}/conf/log4j.properties",
            f"-Djava.io.tmpdir={place}",
            *("-cp", os.pathsep.join([f"{place}/conf", *jars])),
            *("org.apache.activemq.console.Main", "start", "xbean:file:conf/activemq.xml"),
        ]
        return [(command, {"PATH": os.environ["PATH"], "HOME": str(place)})]


_KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{control}
listeners={clients},CONTROLLER://127.0.0.1:{control}
advertised.listeners={clients}
controller.listener.names=CONTROLLER
listener.security.protocol.map=\
PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config={plain} required user_guest="guest";
listener.name.sasl_ssl.plain.sasl.jaas.config={plain} required user_guest="guest";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram} required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram} required;
ssl.keystore.type=PEM
ssl.keystore.location={place}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={place}/ca.pem
listener.name.ssl.ssl.client.auth=required
log.dirs={place}/data
log.flush.interval.messages=1
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""


_KAFKA_ENVIRONMENT = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
    "KAFKA_ADVERTISED_LISTENERS": "PLAINTEXT://127.0.0.1:{port}",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
}


class Kafka(Server):
    """One node of Kafka (KRaft), its jars from Maven Central.

    At `sasl` and `sasl_tls` it wants guest, guest, at `tls` a certificate of `ca`, which has signed
    its own. Every message is on disk before it is confirmed, so that `kill` stands for a power cut.
    """

    NAME = "kafka"
    IMAGE = Image("apache/kafka:3.9.1", 9092, _KAFKA_ENVIRONMENT)
    POM = Path(__file__).with_name("kafka") / "pom.xml"
    JARS = Path(__file__).parents[2] / "build" / "kafka"

    def missing(self) -> str:
        if not shutil.which("java"):
            return "there is no java: apt-get install default-jre-headless"
        if not list(self.JARS.glob("kafka_*.jar")):
            return (
                "there are no jars of Kafka: apt-get install maven, and then "
                "mvn -q -f tests/bridges/kafka/pom.xml dependency:copy-dependencies"
            )
        return ""

    def prepare(self) -> None:
        *ports, control = free_ports(5)
        self.port, self.sasl, self.tls, self.sasl_tls = ports
        self.ca = Authority(self.place)
        cert, key = self.ca.issue("server", "localhost")
        (self.place / "server.pem").write_bytes(key.read_bytes() + cert.read_bytes())
        names = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL")
        properties = self.place / "server.properties"
        properties.write_text(
            _KAFKA_PROPERTIES.format(
                clients=",".join(
                    f"{name}://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)
                ),
                control=control,
                place=self.place,
                plain="org.apache.kafka.common.security.plain.PlainLoginModule",
                scram="org.apache.kafka.common.security.scram.ScramLoginModule",
            )
        )
        cluster = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        users: list[str] = []
        for name in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            users += ("--add-scram", f"{name}=[name=guest,password=guest]")
        tool = ("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties))
        subprocess.run(
            self.java(*tool, *users),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def java(self, *what: str) -> list[str]:
        """The command that runs a class of Kafka, its own clients among them."""
        return [
            *("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            *("-cp", str(self.JARS / "*"), *what),
        ]

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        command = self.java("kafka.Kafka", str(self.place / "server.properties"))
        return [(command, {"PATH": os.environ["PATH"], "HOME": str(self.place)})]


_ELASTICMQ_CONF = """\
include classpath("application.conf")
node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "127.0.0.1", bind-port = {port} }}
rest-stats {{ enabled = false }}
queues-storage {{ enabled = true, path = "{place}/queues.conf" }}
messages-storage {{
  enabled = true
  uri = "jdbc:h2:{place}/messages;WRITE_DELAY=0"
}}
"""


class ElasticMQ(Server):
    """ElasticMQ from Maven Central, which speaks as Amazon SQS does, and keeps its messages."""

    NAME = "sqs"
    IMAGE = Image("softwaremill/elasticmq-native:1.6.14", 9324)
    JARS = Path(__file__).parents[2] / "build" / "elasticmq"

    def missing(self) -> str:
        if not shutil.which("java"):
            return "there is no java: apt-get install default-jre-headless"
        if not list(self.JARS.glob("elasticmq-server_*.jar")):
            return (
                "there are no jars of ElasticMQ: apt-get install maven, and then "
                "mvn -q -f tests/bridges/elasticmq/pom.xml dependency:copy-dependencies"
            )
        return ""

    def prepare(self) -> None:
        (self.port,) = free_ports(1)
        (self.place / "elasticmq.conf").write_text(
            _ELASTICMQ_CONF.format(port=self.port, place=self.place)
        )

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        command = [
            *("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            f"-Dconfig.file={self.place}/elasticmq.conf",
            *("-cp", str(self.JARS / "*"), "org.elasticmq.server.Main"),
        ]
        return [(command, {"PATH": os.environ["PATH"], "HOME": str(self.place)})]


class Moto(Server):
    """moto's server, which speaks as Amazon SQS does as well, and keeps everything in memory."""

    NAME = "moto"
    IMAGE = Image("motoserver/moto:5.1.4", 5000)

    def missing(self) -> str:
        if find_spec("moto") is None or find_spec("flask") is None:
            return "moto's server isn't installed: pip install 'moto[server]'"
        return ""

    def prepare(self) -> None:
        (self.port,) = free_ports(1)

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        return [(command, {"PATH": os.environ["PATH"], "HOME": str(self.place)})]


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """RabbitMQ, for all tests of this worker."""
    yield from _running(RabbitMQ(tmp_path_factory.mktemp("rabbitmq")))


@pytest.fixture
def rabbitmq(rabbitmq_server: Server) -> Server:
    """RabbitMQ, running."""
    rabbitmq_server.ensure()
    return rabbitmq_server


@pytest.fixture(scope="session")
def activemq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ActiveMQ, for all tests of this worker."""
    yield from _running(ActiveMQ(tmp_path_factory.mktemp("activemq")))


@pytest.fixture
def activemq(activemq_server: Server) -> Server:
    """ActiveMQ, running."""
    activemq_server.ensure()
    return activemq_server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Kafka, for all tests of this worker."""
    yield from _running(Kafka(tmp_path_factory.mktemp("kafka")))


@pytest.fixture(scope="session")
def elasticmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ElasticMQ, for all tests of this worker."""
    yield from _running(ElasticMQ(tmp_path_factory.mktemp("elasticmq")))


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """moto's server, for all tests of this worker."""
    yield from _running(Moto(tmp_path_factory.mktemp("moto")))
