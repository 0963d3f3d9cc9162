"""The options of `compare` and `probe`; what they do is imported when they are called."""

import argparse


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands; each sets `run`, a function from options to an exit code."""
    compare = commands.add_parser(
        "compare",
        add_help=False,
        help="two results side by side; is the second worse?",
        description="Compare two results that --json wrote.",
        epilog="exit: 0 not worse, 1 worse, 2 usage",
    )
    compare.add_argument("--help", action="help", help="show this help and exit")
    compare.add_argument("before", metavar="BEFORE.json")
    compare.add_argument("after", metavar="AFTER.json")
    compare.add_argument(
        "--tolerance",
        default="10%",
        metavar="SHARE",
        help="how much slower is no worse; default: 10%%. Broken promises have none",
    )
    compare.add_argument("--json", action="store_true", help="for machines")
    compare.set_defaults(run=_compare)

    probe = commands.add_parser(
        "probe",
        add_help=False,
        help="what a broker supports, and its limits",
        description="Try out what a broker supports, on topics below device_sim/probe.",
        epilog="exit: 0 looked at, 2 usage, 3 no answer",
    )
    probe.add_argument("--help", action="help", help="show this help and exit")
    probe.add_argument("host", nargs="?", default="127.0.0.1", help="default: %(default)s")
    probe.add_argument("-p", "--port", type=int, help="default: 1883, with TLS 8883")
    probe.add_argument("-u", "--username")
    probe.add_argument("-P", "--password", help="or the variable DEVICE_SIM_PASSWORD")
    probe.add_argument("--tls", action="store_true", help="with the system's authorities")
    probe.add_argument("--cafile", metavar="FILE", help="TLS with this authority")
    probe.add_argument("--cert", metavar="FILE", help="a client's certificate")
    probe.add_argument("--key", metavar="FILE", help="its key")
    probe.add_argument("--insecure", action="store_true", help="TLS that verifies nothing")
    probe.add_argument(
        "--timeout", type=float, default=3.0, metavar="S", help="for an answer; default: 3"
    )
    probe.add_argument("--json", action="store_true", help="for machines")
    probe.set_defaults(run=_probe)


def _compare(options: argparse.Namespace) -> int:
    from device_sim.results.compare import run

    return run(options)


def _probe(options: argparse.Namespace) -> int:
    from device_sim.probing.probe import run

    return run(options)
