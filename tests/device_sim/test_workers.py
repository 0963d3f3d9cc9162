"""Several processes that share a run: slices that need nobody else, and one exact result."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from device_sim.engine.process import environment
from device_sim.engine.run import Run
from device_sim.engine.run_result import run_result
from device_sim.language.load import elsewhere, parse
from device_sim.results.merging import merge
from device_sim.results.result import Result
from tests.device_sim.test_run import broker, port_of

TEXT = """
scenario: slices
drain: 10s
groups:
  - name: device
    count: 7
    will: {topic: "gone/{id}", qos: 1}
    publish: [{topic: "x/{id}", qos: 1, rate: 100, count: 10}]
    respond: [{filter: "ask/{id}", qos: 1, fields: {ok: true}}]
  - {name: reader, id: the-reader, subscribe: [{filters: ["x/#", "gone/#"], qos: 1}]}
  - name: sharing
    count: 2
    subscribe: [{filters: ["x/#"], qos: 1, share: crew}]
  - name: asking
    count: 2
    request:
      - topic: "ask/{target}"
        targets: device
        response: "told/{id}"
        qos: 1
        every: 10ms
        count: 5
stages:
  - {name: connect, actions: [connect: {}]}
  - {name: go, actions: [publish: {count: 10}]}
  - {name: settle, actions: [wait: {until: settled}]}
  - {name: fall, actions: [disconnect: {groups: [device], mode: reset}]}
"""


async def test_slices_are_disjoint_and_their_results_add_up() -> None:
    results: list[Result] = []
    async with broker() as app:
        wanted = elsewhere(parse(TEXT), "127.0.0.1", port_of(app))
        runs = [Run(wanted, lambda sample: None, place=place, slices=3) for place in range(3)]
        await asyncio.gather(*(run.run() for run in runs))
        for run in runs:
            results.append(run_result(run, "slices", 1.0, False, []))
    merged = merge(results)
    assert merged.judge([]) == 0, merged.verdict
    names = [device.client.client_id for run in runs for device in run.everybody]
    assert len(set(names)) == len(names)
    groups = [[len(devices) for devices in run.fleet.devices.values()] for run in runs]
    # A group that is too small for all slices has one device in each.
    assert groups == [[3, 1, 1, 1], [2, 1, 1, 1], [2, 1, 1, 1]]
    qos1 = merged.totals["qos1"]
    # Messages to a reader and to a share, requests and responses, a will of each device.
    assert qos1["received"] == qos1["sent"] == 7 * 10 * 2 + 2 * 3 * 5 + 7
    assert merged.histograms["from_sent"].count == sum(
        result.histograms["from_sent"].count for result in results
    )
    assert merged.histograms["round_trip"].count == 3 * 5
    assert merged.scenario.workers == 3


async def test_a_worker_that_dies_ends_the_run_and_the_others_tell_what_they_saw(
    tmp_path: Path,
) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(TEXT.replace("{count: 10}", "{duration: 10m}").replace("count: 10}]", "}]"))
    async with broker() as app:
        command = ["run", str(file), "-p", str(port_of(app)), "--workers", "2", "--json"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "device_sim", *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            limit=1 << 24,
        )
        assert process.stderr is not None
        while b" go " not in await process.stderr.readline():
            assert process.returncode is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children.split()[1]), signal.SIGKILL)
        said, _ = await process.communicate()
    result = json.loads(said)
    assert process.returncode == 3
    assert result["verdict"]["broken_off"] == "worker 1 ended with code -9"
    assert result["scenario"]["workers"] == 1
    assert result["totals"]["qos1"]["received"] == result["totals"]["qos1"]["sent"] > 0
