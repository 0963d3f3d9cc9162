"""Many cuts: recordings, the cuts of each, and what they add up to.

Owns: how many cuts share a recording, which findings break which level of durability. `full`
promises all of it; `os` only that the file can be opened; `none` nothing.

Must not know: how a cut is judged.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.power.rebuild import Cut, Disk, Kind, checkpoints, choose, decode, places
from tests.power.record import Recording
from tests.power.resume import KINDS, Aftermath

CUTS_A_RECORDING: Final = 25
TRAFFIC: Final = 2.0
"""Seconds of traffic in each of the three lives of a recorded broker, on average."""
BREAKS: Final = {"full": KINDS, "os": ("refused", "damaged"), "none": ()}

Progress = Callable[[str], None]


class Campaign:
    """Adds up; `broken` is what `durability` doesn't allow."""

    def __init__(
        self,
        durability: str,
        progress: Progress,
        jobs: int = 2,
        traffic: float = TRAFFIC,
        full_log: bool = True,
        keep: Path | None = None,
    ) -> None:
        self.durability = durability
        self.broken: list[str] = []
        self.sums: Counter[str] = Counter()
        self.by_mode: Counter[str] = Counter()
        self.by_place: Counter[str] = Counter()
        self.findings: Counter[str] = Counter()
        self.cuts_with_findings = 0
        self._progress = progress
        self._traffic = traffic
        self._full_log = full_log
        self._keep = keep
        self._jobs = asyncio.Semaphore(jobs)
        self._done = 0
        self._wanted = 0

    async def run(self, cuts: int, seed: int) -> dict[str, object]:
        self._wanted = cuts
        for begun in range(0, cuts, CUTS_A_RECORDING):
            await self.record(min(CUTS_A_RECORDING, cuts - begun), seed)
            seed += 1
        return self.figures()

    def figures(self) -> dict[str, object]:
        return {
            "durability": self.durability,
            **self.sums,
            "by_mode": dict(sorted(self.by_mode.items())),
            "by_place": dict(sorted(self.by_place.items())),
            "findings": {kind: self.findings[kind] for kind in KINDS},
            "cuts_with_findings": self.cuts_with_findings,
            "broken": self.broken,
        }

    async def record(self, count: int, seed: int) -> None:
        """One recording and its cuts."""
        with tempfile.TemporaryDirectory(prefix="mqttd-power-") as name:
            directory = Path(name)
            recording = Recording(directory, self.durability, seed, self._traffic, self._full_log)
            self._progress(f"recording with seed {seed}")
            await recording.run()
            self.broken += [f"seed {seed}: without any cut: {line}" for line in recording.wrong]
            log = recording.log()
            records, ends = decode(log)
            database = recording.broker.database.name
            chance = random.Random(seed)
            cuts = choose(records, ends, recording.promises(), database, count, chance)
            self.sums["recordings"] += 1
            self.sums["recorded_operations"] += len(records)
            self.sums["recorded_bytes"] += len(log)
            found = places(records, database)
            self.sums["recorded_checkpoints"] += checkpoints(records, found)
            self.sums["recorded_log_restarts"] += len(found["log begins again"]) // 4
            self.sums["recorded_syncs"] += sum(record.kind == Kind.SYNCED for record in records)
            disk = Disk()
            followed = 0
            tasks: list[asyncio.Task[None]] = []
            async with asyncio.TaskGroup() as group:
                for number, cut in enumerate(cuts):
                    await self._jobs.acquire()
                    for record in records[followed : cut.after]:
                        disk.apply(record)
                    followed = cut.after
                    place = directory / f"cut{number}"
                    place.mkdir()
                    after = Aftermath(
                        place,
                        self.durability,
                        cut.files(disk),
                        recording.traces,
                        cut.at,
                        cut.seed,
                    )
                    tasks.append(group.create_task(self._judge(after, cut, seed, place, log)))

    async def _judge(self, after: Aftermath, cut: Cut, seed: int, place: Path, log: bytes) -> None:
        began = time.perf_counter()
        files = place / "disk"
        if self._keep is not None:
            shutil.copytree(files, place / "before")
        try:
            found = await after.run()
        finally:
            self._jobs.release()
        self._done += 1
        self.sums["cuts"] += 1
        self.sums["promised_qos1"] += after.promised[0]
        self.sums["promised_qos2"] += after.promised[1]
        self.sums["promised_sessions"] += after.sessions
        self.sums["promised_retained_writes"] += sum(after.keeper.acknowledged)
        self.by_mode[f"{cut.data}, names {cut.names}"] += 1
        self.by_place[cut.place] += 1
        counts = {kind: len(found[kind]) for kind in KINDS if found[kind]}
        self.findings.update(counts)
        self.cuts_with_findings += bool(counts)
        what = f"seed {seed}, {cut.place} at byte {cut.at}: {cut.data}, names {cut.names}"
        broken = [
            f"{what}: {kind}: {text}" for kind in BREAKS[self.durability] for text in found[kind]
        ]
        self.broken += broken
        verdict = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "all there"
        took = time.perf_counter() - began
        self._progress(f"{self._done}/{self._wanted} {what}: {verdict} ({took:.1f} s)")
        if broken and self._keep is not None:
            kept = self._keep / f"{seed}-{cut.after}-{cut.data}-{cut.names}"
            shutil.copytree(place, kept, dirs_exist_ok=True)
            (kept / "power.log").write_bytes(log)
            (kept / "broken.txt").write_text("\n".join(broken))
        shutil.rmtree(place)
