"""The result of a finished run of a scenario: books, histograms and time line in one document."""

from __future__ import annotations

from device_sim.engine.flood_result import point
from device_sim.engine.limits import peak_memory
from device_sim.engine.run import Run
from device_sim.results.result import (
    Connects,
    Incidents,
    Requests,
    Result,
    Scenario,
    Throughput,
    environment,
)


def run_result(run: Run, file: str, scale: float, strict: bool, warnings: list[str]) -> Result:
    """Everything about a run, or a part of one, that is over; yet to be judged.

    `remarks` are left to whoever has the whole run.
    """
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
            generator_memory=peak_memory(),
        ),
        connect=Connects(seconds=run.connect_s, failed=run.failed_connects),
        incidents=Incidents(
            lost_connections=run.lost_connections,
            first_lost=run.lost_words,
            skipped_offline=sum(feed.skipped for feed in feeds),
            damaged_pieces=sum(proxy.corrupted for proxy in run.proxies.values()),
            forgiven=run.forgiven,
        ),
        stages=run.stages,
        faults=run.faults,
        series=[point(sample) for sample in run.series],
        warnings=warnings,
    )
    result.verdict.strict = strict
    result.verdict.broken_off = run.broken_off
    result.book(run.verdict)
    result.measure("from_sent", run.ledger.from_sent)
    result.measure("connect", run.around.connect_times)
    if run.ledger.paced:
        result.measure("from_intended", run.ledger.from_intended)
        result.measure("pacing_lag", run.pacing_lag)
    if any(group.request for group in scenario.chosen([])):
        result.requests = Requests(answered=run.round_trips.count, unanswered=run.unanswered)
        result.measure("round_trip", run.round_trips)
    return result


def remarks(result: Result) -> list[str]:
    """What a reader of the verdict has to know besides; of the whole run, once it is merged."""
    found = []
    incidents = result.incidents
    if incidents.lost_connections:
        found.append(
            f"{incidents.lost_connections} connections were lost without the scenario's doing; "
            f"the first: {incidents.first_lost}"
        )
    if result.requests is not None and result.requests.unanswered:
        found.append(f"{result.requests.unanswered} requests were not answered in time")
    if incidents.damaged_pieces:
        found.append(
            f"{incidents.damaged_pieces} pieces were damaged on purpose: "
            f"{incidents.forgiven} odd arrivals and packets on their connections are forgiven, "
            "and what is missing there is unknown"
        )
    if incidents.skipped_offline:
        found.append(
            f"{incidents.skipped_offline} messages came due while their device was offline, "
            "and were not sent"
        )
    return found


def _headline(run: Run) -> str:
    scenario = run.scenario
    groups = ", ".join(f"{group.count} {group.name}" for group in scenario.groups)
    host, port = run.address
    return f"{scenario.scenario}  {host}:{port}  {groups}  seed {scenario.seed}"
