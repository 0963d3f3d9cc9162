"""Tests of bridges: the fixtures that start real servers, and the marker of tests that need one."""

import pytest

from tests.bridges.servers import (
    activemq,
    activemq_server,
    elasticmq,
    kafka,
    rabbitmq,
    rabbitmq_server,
)

__all__ = ["activemq", "activemq_server", "elasticmq", "kafka", "rabbitmq", "rabbitmq_server"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bridges: needs a real server of another system")
