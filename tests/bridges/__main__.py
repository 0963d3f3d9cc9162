"""The long form: a bridge, so many messages each way, so many kills of the broker and the far end.

    python -m tests.bridges --bridge mqtt --messages 20000 --kills 6
    python -m tests.bridges --bridge mosquitto --messages 20000 --kills 6
    python -m tests.bridges --bridge kafka --messages 20000 --kills 6

Prints what it counted; exit 1 if something acknowledged was lost, the order of a key was broken, or
a copy had another id than the first. `--seed N` repeats the choice of what is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bridges.trial import Far

ROOT = Path(__file__).parents[2]


def _mqtt(place: Path) -> Far:
    from tests.bridges.far_mqtt import FarMqttd

    return FarMqttd(place)


def _mqtt_3(place: Path) -> Far:
    from tests.bridges.far_mqtt import FarMqttd

    return FarMqttd(place, "3.1.1")


def _mosquitto(place: Path) -> Far:
    from tests.bridges.far_mqtt import FarMosquitto

    return FarMosquitto(place)


def _kafka(place: Path) -> Far:
    from tests.bridges.far_kafka import FarKafka

    return FarKafka(place)


def _rabbitmq(place: Path) -> Far:
    from tests.bridges.far_rabbitmq import FarRabbitMQ

    return FarRabbitMQ(place)


def _activemq(place: Path) -> Far:
    from tests.bridges.far_activemq import FarActiveMQ

    return FarActiveMQ(place)


def _artemis(place: Path) -> Far:
    from tests.bridges.far_artemis import FarArtemis

    return FarArtemis(place)


def _sqs(place: Path) -> Far:
    from tests.bridges.far_sqs import FarSqs

    return FarSqs(place)


# Each is imported when it is asked for: it needs what the others don't.
FACES: dict[str, Callable[[Path], Far]] = {
    "mqtt": _mqtt,
    "mqtt-3.1.1": _mqtt_3,
    "mosquitto": _mosquitto,
    "kafka": _kafka,
    "sqs": _sqs,
    "rabbitmq": _rabbitmq,
    "activemq": _activemq,
    "artemis": _artemis,
}


def ready() -> None:
    """Find everything in a source tree, here and in the processes that are started."""
    for place in (str(ROOT / "plugins"), str(ROOT)):
        sys.path.insert(0, place)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getenv("PYTHONPATH"), place]))


def main() -> int:
    ready()
    parser = argparse.ArgumentParser(prog="python -m tests.bridges")
    parser.add_argument("--bridge", choices=sorted(FACES), default="mqtt")
    parser.add_argument("--messages", type=int, default=20_000, help="each way")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("broker", "far"), help="kill this one alone")
    args = parser.parse_args()
    from tests.bridges.trial import trial

    with tempfile.TemporaryDirectory(prefix="mqttd-bridges-") as place:
        far = FACES[args.bridge](Path(place))
        victims = (args.only,) if args.only else ("broker", "far")
        verdict = asyncio.run(trial(far, args.messages, args.kills, args.seed, victims))
    print(json.dumps(verdict))
    return 1 if verdict["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
