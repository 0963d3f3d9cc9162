"""`device_sim run`: options to a run, or to several that share it, and a result to an exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

from device_sim.engine.interrupts import interrupts
from device_sim.engine.loops import factory_of
from device_sim.engine.plan import UsageError
from device_sim.language.scenario_commands import add_shrinking
from device_sim.results.outputs import add_outputs

if TYPE_CHECKING:
    from device_sim.engine.course import Sample
    from device_sim.engine.progress import Plain
    from device_sim.engine.run import Run
    from device_sim.judge.thresholds import Threshold
    from device_sim.language.scenario import Scenario
    from device_sim.results.result import Result

MAX_WORKERS = 64


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; it sets `run`, a function from options to an exit code."""
    parser = commands.add_parser(
        "run",
        add_help=False,
        help="run a scenario: a fleet of devices, faults, and a verdict",
        description="Run a scenario and verify every delivery.",
        epilog="exit: 0 good, 1 a promise was broken, 2 usage, 3 broken off",
    )
    parser.add_argument("--help", action="help", help="show this help and exit")
    parser.add_argument("scenario", metavar="SCENARIO", help="a file, or a name in the catalogue")
    parser.add_argument("-h", "--host", help="instead of the scenario's own")
    parser.add_argument("-p", "--port", type=int, help="instead of the scenario's own")
    add_shrinking(parser)
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that share the devices, or auto: one for each CPU; default: 1",
    )
    parser.add_argument("--strict", action="store_true", help="loss at QoS 0 is bad, too")
    parser.add_argument(
        "--fail-on", action="append", default=[], metavar="TERMS", help="'lost>0,p99>50ms'"
    )
    add_outputs(parser)
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    parser.add_argument(
        "--loop", choices=("auto", "uvloop", "asyncio"), default="auto", help="default: %(default)s"
    )
    parser.set_defaults(run=_run)


def _workers(text: str) -> int:
    if text == "auto":
        return min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, and no number up to {MAX_WORKERS}")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from device_sim.engine import limits, progress
    from device_sim.language.load import ScenarioError, elsewhere, load
    from device_sim.results import outputs

    try:
        scenario = load(options.scenario, options.scale, options.speed, options.seed)
        scenario = elsewhere(scenario, options.host, options.port)
    except ScenarioError as error:
        raise UsageError(str(error)) from None
    terms = _terms(scenario, options.fail_on)
    counts = [group.count for group in scenario.groups]
    carried = [group.count for group in scenario.carried()]
    warnings = limits.prepare(counts, carried, options.workers)
    for text in warnings:
        print(f"device_sim: warning: {text}", file=sys.stderr)
    with progress.view(options.quiet) as view:
        result = _result(scenario, options, warnings, view)
    code = result.judge(terms)
    outputs.write(result, options)
    return code


def _terms(scenario: Scenario, texts: list[str]) -> list[Threshold]:
    from device_sim.judge import thresholds

    try:
        return thresholds.parse([*scenario.thresholds, *texts])
    except ValueError as error:
        raise UsageError(f"--fail-on: {error}") from None


def _result(
    scenario: Scenario, options: argparse.Namespace, warnings: list[str], view: Plain
) -> Result:
    from device_sim.engine.run_result import remarks, run_result
    from device_sim.engine.workers import share_out

    factory = factory_of(options.loop)
    if options.workers > 1:
        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(share_out(scenario, options, warnings, view))
    else:
        with asyncio.Runner(loop_factory=factory) as runner:
            run = runner.run(_alone(scenario, view))
        result = run_result(run, options.scenario, options.scale, options.strict, warnings)
    result.warnings += remarks(result)
    return result


async def _alone(scenario: Scenario, view: Plain) -> Run:
    from device_sim.engine.run import Run

    def show(sample: Sample) -> None:
        view.update(sample)

    run = Run(scenario, show)
    with interrupts(run.interrupt):
        await run.run()
    return run
