"""The result of a finished run of a scenario: books, histograms and time line in one document."""

from __future__ import annotations

from device_sim.engine.flood_result import point
from device_sim.engine.run import Run
from device_sim.results.result import Connects, Result, Scenario, Throughput, environment


def run_result(run: Run, file: str, scale: float, strict: bool, warnings: list[str]) -> Result:
    """Everything about a run that is over, yet to be judged."""
    scenario = run.scenario
    feeds = [feed for device in run.everybody for feed in device.feeds]
    paced = [feed for feed in feeds if feed.paced]
    due = sum(feed.due * feed.times for feed in paced)
    result = Result(
        run=f"{run.run_id:08x}",
        started=run.started.isoformat(timespec="seconds"),
        scenario=Scenario(
            command="run",
            name=scenario.scenario,
            headline=_headline(run),
            file=file,
            seed=scenario.seed,
            scale=scale,
        ),
        environment=environment(run.loop_name),
        settings=scenario.model_dump(mode="json", exclude_unset=True),
        violations=run.violations,
        throughput=Throughput(
            asked_per_s=due / run.publish_s if due and run.publish_s else None,
            sent=sum(sender.sent for sender in run.ledger.senders),
            received=run.received_in_time,
            publish_s=run.publish_s,
            settle_s=run.settle_s,
            held_back=sum(feed.held_back + len(feed.dues) for feed in feeds),
            written_off=sum(feed.written_off for feed in feeds),
            generator_cpu=run.cpu_s / run.publish_s if run.publish_s else 0.0,
        ),
        connect=Connects(seconds=run.connect_s, failed=run.failed_connects),
        stages=run.stages,
        faults=run.faults,
        series=[point(sample) for sample in run.series],
        warnings=warnings + remarks(run),
    )
    result.verdict.strict = strict
    result.verdict.broken_off = run.broken_off
    result.book(run.verdict)
    result.measure("from_sent", run.ledger.from_sent)
    result.measure("connect", run.around.connect_times)
    if run.ledger.paced:
        result.measure("from_intended", run.ledger.from_intended)
        result.measure("pacing_lag", run.pacing_lag)
    if run.round_trips.count:
        result.measure("round_trip", run.round_trips)
    return result


def remarks(run: Run) -> list[str]:
    """What a reader of the verdict has to know besides."""
    found = []
    if run.lost_connections:
        found.append(
            f"{run.lost_connections} connections were lost without the scenario's doing; "
            f"the first: {run.lost_words}"
        )
    if run.unanswered:
        found.append(f"{run.unanswered} requests were not answered in time")
    corrupted = sum(proxy.corrupted for proxy in run.proxies.values())
    if corrupted:
        found.append(
            f"{corrupted} pieces were corrupted on purpose: what that broke is told as broken"
        )
    skipped = sum(feed.skipped for device in run.everybody for feed in device.feeds)
    if skipped:
        found.append(
            f"{skipped} messages came due while their device was offline, and were not sent"
        )
    return found


def _headline(run: Run) -> str:
    scenario = run.scenario
    groups = ", ".join(f"{group.count} {group.name}" for group in scenario.groups)
    host, port = run.address
    return f"{scenario.scenario}  {host}:{port}  {groups}  seed {scenario.seed}"
