"""Several processes that share one run: each drives a slice of the fleet, one result is merged.

A worker is `python -m device_sim.engine.workers`. It gets its place in the first line of its
standard input and talks to its parent in lines of JSON from then on:

    worker  {"stage": 2}                        may stage 2 begin?
            {"kill": "1.0", "gently": false}    the broker, as action 0 of stage 1 wants it
            {"restart": "1.1", "timeout": 10}
            {"sample": …}                       once a second
            {"result": …}                       the last line
    parent  {"stage": 2, "at": 71.3}            it begins at this instant of the monotonic clock
            {"done": "1.0", "error": ""}
            {"break_off": "why"}                somebody interrupted the run, or a worker had to

A stage begins for all of them at the same instant, once all have asked for it. The broker, if the
scenario starts one, belongs to the parent: what several workers ask of it is done once.

Invariants: a worker that dies takes nobody with it, the run is broken off and the others' results
are merged; a parent that dies ends its workers, since their input ends. Counts and histograms are
merged exactly (`results.merging`), the verdict is judged once, on the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from typing import Any, Final

from device_sim.engine.control import Control
from device_sim.engine.course import Sample
from device_sim.engine.interrupts import interrupts
from device_sim.engine.loops import factory_of
from device_sim.engine.process import ProcessError, environment
from device_sim.engine.progress import Plain
from device_sim.engine.run import Run
from device_sim.engine.run_result import run_result
from device_sim.language.load import elsewhere, load
from device_sim.language.scenario import Scenario
from device_sim.results.merging import merge
from device_sim.results.result import Result

LINE_LIMIT: Final = 1 << 28
LEAD_S: Final = 0.05
"""So long after the last worker has asked for it a stage begins."""

Message = dict[str, Any]


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, place: int, process: asyncio.subprocess.Process) -> None:
        self.place = place
        self.process = process
        self.stage = -1
        self.sample: Message = {}
        self.result: Result | None = None
        self.ended = False

    def tell(self, message: Message) -> None:
        """A line to it; to one that has ended, nothing."""
        stdin = self.process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(json.dumps(message).encode() + b"\n")


class Parent:
    """Keeps the workers of a run in step."""

    def __init__(self, scenario: Scenario, options: argparse.Namespace, view: Plain) -> None:
        self.scenario = scenario
        self.options = options
        self.view = view
        self.control = Control(scenario.broker)
        self.workers: list[Worker] = []
        self.broken_off = ""
        self.begun = time.monotonic()
        self._done: dict[str, asyncio.Task[str]] = {}

    async def run(self) -> Result:
        """All of it; the merged result, yet to be judged."""
        with interrupts(lambda: self.break_off("interrupted")):
            return await self._run()

    async def _run(self) -> Result:
        viewer = asyncio.get_running_loop().create_task(self._show())
        try:
            host, port = await self.control.start()
            await self._hire(host, port)
            await asyncio.gather(*(self._listen(worker) for worker in self.workers))
        except ProcessError as error:
            self.broken_off = str(error)
        finally:
            viewer.cancel()
            for task in self._done.values():
                task.cancel()
            for worker in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
            await self.control.close()
        found = [worker.result for worker in self.workers if worker.result is not None]
        result = merge(found) if found else Result()
        result.verdict.broken_off = self.broken_off or result.verdict.broken_off
        return result

    def break_off(self, why: str) -> None:
        """Let all of them come to an end."""
        self.broken_off = self.broken_off or why
        for worker in self.workers:
            worker.tell({"break_off": why})

    async def _hire(self, host: str, port: int) -> None:
        options = self.options
        for place in range(options.workers):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "device_sim.engine.workers", options.loop),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment(),
                limit=LINE_LIMIT,
                start_new_session=True,
            )
            worker = Worker(place, process)
            self.workers.append(worker)
            worker.tell(
                {
                    "scenario": options.scenario,
                    "scale": options.scale,
                    "speed": options.speed,
                    "seed": options.seed,
                    "strict": options.strict,
                    "host": host,
                    "port": port,
                    "place": place,
                    "slices": options.workers,
                    "begun": self.begun,
                }
            )

    async def _listen(self, worker: Worker) -> None:
        stdout = worker.process.stdout
        assert stdout is not None
        while line := await stdout.readline():
            self._hear(worker, json.loads(line))
        code = await worker.process.wait()
        worker.ended = True
        if worker.result is None:
            self.break_off(f"worker {worker.place} ended with code {code}")
        elif worker.result.verdict.broken_off:
            self.break_off(worker.result.verdict.broken_off)
        self._begin_stages()

    def _hear(self, worker: Worker, message: Message) -> None:
        if "stage" in message:
            worker.stage = int(message["stage"])
            self._begin_stages()
        elif "sample" in message:
            worker.sample = message["sample"]
        elif "result" in message:
            worker.result = Result.model_validate(message["result"])
        else:
            name = str(message.get("kill") or message.get("restart"))
            if name not in self._done:
                self._done[name] = asyncio.ensure_future(self._act(message))
            self._done[name].add_done_callback(
                lambda task: worker.tell({"done": name, "error": _outcome(task)})
            )

    async def _act(self, message: Message) -> str:
        try:
            if "kill" in message:
                await self.control.kill("", bool(message["gently"]))
            else:
                await self.control.restart("", float(message["timeout"]))
        except ProcessError as error:
            return str(error)
        return ""

    def _begin_stages(self) -> None:
        """Begin the stage that all have asked for who are still there."""
        there = [worker for worker in self.workers if not worker.ended]
        stages = {worker.stage for worker in there}
        if len(stages) != 1 or len(self.workers) < self.options.workers:
            return
        stage = stages.pop()
        if stage >= 0:
            for worker in there:
                worker.stage = -1
                worker.tell({"stage": stage, "at": time.monotonic() + LEAD_S})

    async def _show(self) -> None:
        """The sums of what the workers last said, once a second."""
        while True:
            await asyncio.sleep(1.0)
            said = [worker.sample for worker in self.workers if worker.sample]
            if said:
                self.view.update(_sum(said))


def _outcome(task: asyncio.Task[str]) -> str:
    return "the run is over" if task.cancelled() else task.result()


def _sum(said: list[Message]) -> Sample:
    whole = Sample(said[0]["phase"], max(each["elapsed_s"] for each in said), 0)
    for each in said:
        whole.connected += each["connected"]
        whole.sent += each["sent"]
        whole.received += each["received"]
        whole.sent_per_s += each["sent_per_s"]
        whole.received_per_s += each["received_per_s"]
        whole.outstanding += each["outstanding"]
        # Only a glance: the percentiles of the whole are in the result.
        whole.p50_us = max(whole.p50_us, each["p50_us"])
        whole.p99_us = max(whole.p99_us, each["p99_us"])
    return whole


async def share_out(
    scenario: Scenario, options: argparse.Namespace, warnings: list[str], view: Plain
) -> Result:
    """Run a scenario with `options.workers` processes; the merged result, yet to be judged."""
    result = await Parent(scenario, options, view).run()
    result.warnings = [*warnings, *result.warnings]
    result.verdict.strict = options.strict
    return result


class Remote(Control):
    """What a worker does for its broker and its stages: it asks its parent."""

    def __init__(self, scenario: Scenario, host: str, port: int) -> None:
        super().__init__(scenario.broker)
        self._address = (host, port)
        self._answers: dict[str, asyncio.Future[Message]] = {}

    async def start(self) -> tuple[str, int]:
        return self._address

    async def stage(self, number: int) -> float:
        answer = await self._ask("stage", {"stage": number})
        at = float(answer["at"])
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        return at

    async def kill(self, action: str, gently: bool) -> None:
        await self._ask(action, {"kill": action, "gently": gently})

    async def restart(self, action: str, timeout_s: float) -> None:
        answer = await self._ask(action, {"restart": action, "timeout": timeout_s})
        if answer["error"]:
            raise ProcessError(str(answer["error"]))

    def hear(self, message: Message) -> None:
        """An answer has come."""
        name = "stage" if "stage" in message else str(message.get("done"))
        answer = self._answers.pop(name, None)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def give_up(self) -> None:
        """No answers will come any more."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({"at": time.monotonic(), "error": "the run is broken off"})
        self._answers.clear()

    async def _ask(self, name: str, message: Message) -> Message:
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[name] = answer
        say(message)
        return await answer


def say(message: Message) -> None:
    """A line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def work() -> None:
    """One worker's part, from its orders to its result."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    told = json.loads(await reader.readline())
    scenario = load(told["scenario"], told["scale"], told["speed"], told["seed"])
    if scenario.broker.start is None:
        scenario = elsewhere(scenario, told["host"], told["port"])
    remote = Remote(scenario, told["host"], told["port"])
    run = Run(
        scenario,
        _say_sample,
        control=remote,
        place=told["place"],
        slices=told["slices"],
        begun=told["begun"],
    )
    listener = loop.create_task(_obey(reader, run, remote))
    try:
        await run.run()
    finally:
        listener.cancel()
    result = run_result(run, told["scenario"], told["scale"], told["strict"], [])
    say({"result": result.document()})


async def _obey(reader: asyncio.StreamReader, run: Run, remote: Remote) -> None:
    while line := await reader.readline():
        message = json.loads(line)
        if "break_off" in message:
            run.break_off(str(message["break_off"]))
            remote.give_up()
        else:
            remote.hear(message)
    run.interrupt()
    remote.give_up()


def _say_sample(sample: Sample) -> None:
    names = ("phase", "elapsed_s", "connected", "sent", "received", "sent_per_s")
    more = ("received_per_s", "outstanding", "p50_us", "p99_us")
    say({"sample": {name: getattr(sample, name) for name in (*names, *more)}})


def main() -> None:
    """A worker process; its argument names the event loop."""
    with asyncio.Runner(loop_factory=factory_of(sys.argv[1])) as runner:
        runner.run(work())


if __name__ == "__main__":
    main()
