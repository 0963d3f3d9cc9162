"""The command line: arguments to settings, the verdict to an exit code.

    0  good: every promise that a QoS makes was kept
    1  bad: one was broken, or a threshold of --fail-on
    2  usage
    3  broken off: a connection couldn't be made or was lost, or the run was interrupted

A broken promise outranks a run that was broken off: it has been seen, whatever came after.

`-h` is the host, as with Mosquitto's clients; help is `--help`. Modules that cost time to import
are imported when a command needs them.
"""

import argparse
import asyncio
import os
import sys

from device_sim.engine import running
from device_sim.engine.interrupts import interrupts
from device_sim.engine.loops import factory_of
from device_sim.engine.plan import DEFAULT_PATTERN, VERSIONS, Settings, UsageError
from device_sim.language import scenario_commands
from device_sim.results import result_commands
from device_sim.results.outputs import add_outputs


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"device_sim: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="device_sim",
        add_help=False,
        description="Simulated MQTT devices, and a verdict on the broker that serves them.",
    )
    parser.add_argument("--help", action="help", help="show this help and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flood = commands.add_parser(
        "flood",
        add_help=False,
        help="many devices publish, subscribers verify: nothing to configure",
        description="Flood a broker with publishing devices and verify every delivery.",
        epilog="exit: 0 good, 1 a promise was broken, 2 usage, 3 broken off",
    )
    _add_flood(flood)
    flood.set_defaults(run=_flood)
    running.register(commands)
    scenario_commands.register(commands)
    result_commands.register(commands)
    return parser


def _add_flood(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--help", action="help", help="show this help and exit")

    broker = parser.add_argument_group("broker")
    broker.add_argument("-h", "--host", default="127.0.0.1", help="default: %(default)s")
    broker.add_argument("-p", "--port", type=int, help="default: 1883, with TLS 8883")
    broker.add_argument(
        "-V", "--mqtt-version", choices=VERSIONS, default="3.1.1", help="default: %(default)s"
    )
    broker.add_argument("-u", "--username")
    broker.add_argument("-P", "--password", help="or the variable DEVICE_SIM_PASSWORD")
    broker.add_argument("-k", "--keep-alive", type=int, default=60, metavar="S")
    broker.add_argument("--tls", action="store_true", help="with the system's authorities")
    broker.add_argument("--cafile", metavar="FILE", help="TLS with this authority")
    broker.add_argument("--cert", metavar="FILE", help="the devices' certificate")
    broker.add_argument("--key", metavar="FILE", help="its key")
    broker.add_argument("--insecure", action="store_true", help="TLS that verifies nothing")

    load = parser.add_argument_group("load")
    load.add_argument("-n", "--devices", type=int, default=10, help="default: %(default)s")
    load.add_argument(
        "-r",
        "--rate",
        type=float,
        default=0.0,
        help="messages per second and device; without it a closed loop, as fast as it goes",
    )
    load.add_argument(
        "-q", "--qos", type=_qos_list, default=(0,), help="0, 1 or 2, or dealt out in turn: 0,1,2"
    )
    load.add_argument(
        "-t", "--time", type=float, metavar="S", help="seconds to publish; default: 10"
    )
    load.add_argument(
        "-c", "--count", type=int, default=0, help="messages per device, then stop publishing"
    )
    load.add_argument(
        "-s", "--size", type=int, default=64, help="bytes of payload, 32 or more; default: 64"
    )
    load.add_argument(
        "-w",
        "--window",
        type=int,
        default=0,
        help="messages in flight per device; default: 10 in a closed loop, 1000 at a rate",
    )
    load.add_argument("--streams", type=int, default=1, help="topics per device; default: 1")
    load.add_argument("--topic-pattern", default=DEFAULT_PATTERN, help="default: %(default)s")
    load.add_argument(
        "--user-property", action="append", default=[], metavar="NAME=VALUE", help="needs -V 5"
    )

    watch = parser.add_argument_group("subscribers")
    watch.add_argument(
        "--subscribers", type=int, default=-1, metavar="N", help="default: 10, at most one a device"
    )
    watch.add_argument("--sub-qos", type=int, choices=(0, 1, 2), default=2, help="default: 2")
    watch.add_argument(
        "--watch",
        choices=("split", "all"),
        default="split",
        help="deal the devices out to the subscribers, or all to each; default: split",
    )

    pace = parser.add_argument_group("connecting and settling")
    pace.add_argument(
        "--connect-parallel", type=int, default=50, metavar="N", help="at a time; default: 50"
    )
    pace.add_argument(
        "--connect-rate", type=float, default=0.0, metavar="N", help="a second; default: no limit"
    )
    pace.add_argument(
        "--connect-timeout", type=float, default=10.0, metavar="S", help="default: 10"
    )
    pace.add_argument(
        "--settle",
        type=float,
        default=3.0,
        metavar="S",
        help="how long nothing may come before what is missing is lost; default: 3",
    )

    verdict = parser.add_argument_group("verdict and output")
    verdict.add_argument("--save", metavar="FILE", help="write the flood down as a scenario")
    verdict.add_argument("--strict", action="store_true", help="loss at QoS 0 is bad, too")
    verdict.add_argument(
        "--fail-on", action="append", default=[], metavar="TERMS", help="'lost>0,p99>50ms'"
    )
    add_outputs(verdict)
    verdict.add_argument("--quiet", action="store_true", help="no live progress")
    verdict.add_argument(
        "--loop", choices=("auto", "uvloop", "asyncio"), default="auto", help="default: %(default)s"
    )


def _qos_list(text: str) -> tuple[int, ...]:
    levels = text.split(",")
    if not all(level in ("0", "1", "2") for level in levels):
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2 or several like 0,1,2")
    return tuple(int(level) for level in levels)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the arguments ask for, checked."""
    tls = bool(options.tls or options.cafile or options.cert or options.insecure)
    seconds = options.time
    if seconds is None:
        seconds = 0.0 if options.count else 10.0
    pairs = []
    for text in options.user_property:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--user-property {text}: not NAME=VALUE")
        pairs.append((name, value))
    settings = Settings(
        host=options.host,
        port=options.port or (8883 if tls else 1883),
        devices=options.devices,
        rate=options.rate,
        qos=options.qos,
        seconds=seconds,
        count=options.count,
        size=options.size,
        window=options.window,
        streams=options.streams,
        subscribers=options.subscribers,
        subscriber_qos=options.sub_qos,
        watch=options.watch,
        pattern=options.topic_pattern,
        version=VERSIONS[options.mqtt_version],
        user_properties=pairs,
        username=options.username,
        password=options.password or os.environ.get("DEVICE_SIM_PASSWORD"),
        keep_alive=options.keep_alive,
        tls=tls,
        cafile=options.cafile,
        certfile=options.cert,
        keyfile=options.key,
        insecure=options.insecure,
        connect_parallel=options.connect_parallel,
        connect_rate=options.connect_rate,
        connect_timeout=options.connect_timeout,
        settle=options.settle,
    )
    settings.check()
    return settings


def _flood(options: argparse.Namespace) -> int:
    from device_sim.engine import limits, progress
    from device_sim.engine.flood import Flood
    from device_sim.engine.flood_result import flood_result
    from device_sim.judge import thresholds
    from device_sim.results import outputs

    settings = settings_of(options)
    try:
        terms = thresholds.parse(options.fail_on)
    except ValueError as error:
        raise UsageError(f"--fail-on: {error}") from None
    if options.save is not None:
        from device_sim.language import save

        save.write(options.save, settings, options.strict, options.fail_on)
    factory = factory_of(options.loop)
    warnings = limits.prepare([settings.devices, settings.subscribers], [])
    for text in warnings:
        print(f"device_sim: warning: {text}", file=sys.stderr)

    with progress.view(options.quiet) as view:

        async def run() -> Flood:
            flood = Flood(settings, view.update)
            with interrupts(flood.interrupt):
                await flood.run()
            return flood

        with asyncio.Runner(loop_factory=factory) as runner:
            flood = runner.run(run())

    result = flood_result(flood, options.strict, warnings)
    code = result.judge(terms)
    outputs.write(result, options)
    return code
