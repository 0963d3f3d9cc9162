"""Tests of bridges: the fixtures that start real servers."""

from tests.bridges.servers import (
    activemq,
    activemq_server,
    elasticmq,
    kafka,
    moto,
    rabbitmq,
    rabbitmq_server,
)

__all__ = [
    "activemq",
    "activemq_server",
    "elasticmq",
    "kafka",
    "moto",
    "rabbitmq",
    "rabbitmq_server",
]
