"""ActiveMQ Artemis, from Maven Central: a server, and the far end of a trial.

It speaks STOMP as ActiveMQ Classic does, and differs where `bridge_activemq` could notice: what a
destination's prefix means is a setting of the acceptor, queues are made by whoever names them, and
the errors have other words. Every message is on disk before it is confirmed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.bridges.far_activemq import FarActiveMQ
from tests.bridges.servers import Server, free_ports

_BROKER_XML = """\
<configuration xmlns="urn:activemq">
  <core xmlns="urn:activemq:core">
    <name>tests</name>
    <journal-type>NIO</journal-type>
    <journal-pool-files>4</journal-pool-files>
    <journal-directory>{place}/data/journal</journal-directory>
    <bindings-directory>{place}/data/bindings</bindings-directory>
    <paging-directory>{place}/data/paging</paging-directory>
    <large-messages-directory>{place}/data/large</large-messages-directory>
    <security-enabled>false</security-enabled>
    <acceptors>
      <acceptor name="stomp">tcp://127.0.0.1:{port}?protocols=STOMP;anycastPrefix=/queue/;multicastPrefix=/topic/</acceptor>
    </acceptors>
    <address-settings>
      <address-setting match="#">
        <auto-delete-queues>false</auto-delete-queues>
        <auto-delete-addresses>false</auto-delete-addresses>
      </address-setting>
    </address-settings>
  </core>
</configuration>
"""


class Artemis(Server):
    """ActiveMQ Artemis, open to all."""

    NAME = "artemis"
    JARS = Path(__file__).parents[2] / "build" / "artemis"

    def missing(self) -> str:
        if not shutil.which("java"):
            return "there is no java: apt-get install default-jre-headless"
        if not list(self.JARS.glob("artemis-server-*.jar")):
            return (
                "there are no jars of ActiveMQ Artemis: apt-get install maven, and then "
                "mvn -q -f tests/bridges/artemis/pom.xml dependency:copy-dependencies"
            )
        return ""

    def prepare(self) -> None:
        (self.port,) = free_ports(1)
        etc = self.place / "etc"
        etc.mkdir()
        (etc / "broker.xml").write_text(_BROKER_XML.format(place=self.place, port=self.port))

    def commands(self) -> list[tuple[list[str], dict[str, str]]]:
        command = [
            *("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            *("-cp", str(self.JARS / "*")),
            *("org.apache.activemq.artemis.core.server.embedded.Main", str(self.place)),
        ]
        return [(command, {"PATH": os.environ["PATH"], "HOME": str(self.place)})]


class FarArtemis(FarActiveMQ):
    NAME = "artemis"

    def __init__(self, directory: Path, server: Server | None = None) -> None:
        if server is None:
            place = directory / "artemis"
            place.mkdir()
            super().__init__(directory, Artemis(place))
            self._begun = False
        else:
            super().__init__(directory, server)
