"""Run the fuzz targets for a bounded time: `python -m fuzz.run --seconds 60 [--target NAME]`.

Where atheris can be imported, it steers by coverage, one process a target. Elsewhere a loop of our
own mutates the corpus, keeps every input that showed a new behaviour and goes on from there; with
the same seed and the same code it tries the same inputs in the same order.

A fault prints the traceback and the input, leaves the input in a file and ends the run. Exit code
0: nothing found, 1: a fault, 2: usage. `--input FILE` tries one input again.
"""

import argparse
import hashlib
import importlib
import importlib.util
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fuzz.targets import TARGETS, Target

LONGEST = 4096
SLOW = 5.0  # seconds of computing that no input of this size is worth
KEPT = Path("build/fuzz")
_INTERESTING = (0, 1, 2, 4, 0x10, 0x20, 0x23, 0x2B, 0x2F, 0x30, 0x7F, 0x80, 0x82, 0xC0, 0xFE, 0xFF)


class Mutator:
    """Makes inputs out of inputs."""

    def __init__(self, seeds: list[bytes], seed: int) -> None:
        self.pool = seeds if seeds else [b""]
        self._random = random.Random(seed)

    def next(self) -> bytes:
        rng = self._random
        # The youngest inputs are the strangest: every other time one of them is taken.
        recent = self.pool[-50:] if rng.random() < 0.5 else self.pool
        data = bytearray(rng.choice(recent))
        for _ in range(1 << rng.randrange(4)):
            self._change(data)
        return bytes(data[:LONGEST])

    def _change(self, data: bytearray) -> None:
        rng = self._random
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice(_INTERESTING)
        elif kind == 2 and at < len(data):
            data[at] = (data[at] + rng.choice((-1, 1))) & 0xFF
        elif kind == 3:
            data.insert(at, rng.choice(_INTERESTING))
        elif kind == 4:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 5:
            end = at + rng.randrange(1, 33)
            data[at:at] = data[at:end]
        elif kind == 6:
            other = rng.choice(self.pool)
            start = rng.randrange(len(other) + 1)
            data[at:] = other[start:]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))


def attempt(target: Target, data: bytes) -> tuple[bool, object]:
    """Whether an input is harmless, and what it did."""
    began = time.process_time()
    try:
        behaviour = target.check(data)
    except Exception:
        traceback.print_exc()
        return False, None
    spent = time.process_time() - began
    if spent > SLOW:
        print(f"{target.name}: {spent:.1f} s of computing")
        return False, None
    return True, behaviour


def report(target: Target, data: bytes) -> None:
    """Say what broke it, and keep that."""
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    file.write_bytes(data)
    print(f"{target.name}: a fault, by {len(data)} bytes: {data[:200].hex(' ')}")
    print(f"again: python -m fuzz.run --target {target.name} --input {file}")


def run(target: Target, seconds: float, seed: int, inputs: int = 0) -> bool:
    """Our own loop, for some time or a number of inputs, the corpus before all. True: no fault."""
    mutator = Mutator(target.seeds(), seed)
    seeds = list(mutator.pool)
    behaviours: set[object] = set()
    end = time.monotonic() + seconds
    tried = 0
    while tried < len(seeds) or (tried < inputs if inputs else time.monotonic() < end):
        data = seeds[tried] if tried < len(seeds) else mutator.next()
        good, behaviour = attempt(target, data)
        if not good:
            report(target, data)
            return False
        if behaviour not in behaviours:
            behaviours.add(behaviour)
            if tried >= len(seeds):
                mutator.pool.append(data)
        tried += 1
    print(f"{target.name}: {tried} inputs, {len(behaviours)} behaviours, no fault", flush=True)
    return True


def instrumented(atheris: Any, target: Target) -> Target:
    """The same target on modules that tell atheris where they are; compiled ones can't."""
    if not str(importlib.import_module("mqttd.core.spec").__file__).endswith(".py"):
        return target
    for name in [name for name in sys.modules if name.split(".")[0] in ("mqttd", "fuzz", "tests")]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["mqttd"], enable_loader_override=False):
        found: Target = importlib.import_module("fuzz.targets").TARGETS[target.name]
    return found


def run_atheris(target: Target, seconds: float, seed: int) -> None:
    """Atheris takes the process over and ends it."""
    atheris = importlib.import_module("atheris")
    folder = KEPT / "corpus" / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds():
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    options = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={LONGEST}", f"-seed={seed}"]
    options += [f"-artifact_prefix={KEPT}/{target.name}-", "-close_fd_mask=1"]
    check = instrumented(atheris, target).check

    def one_input(data: bytes) -> None:
        check(data)

    atheris.Setup([sys.argv[0], *options, str(folder)], one_input)
    atheris.Fuzz()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="altogether (default: 60)")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one target (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")
    parser.add_argument("--engine", choices=("auto", "own", "atheris"), default="auto")
    parser.add_argument("--input", type=Path, help="try this one input of --target again")
    arguments = parser.parse_args(argv)
    if arguments.input is not None and arguments.target is None:
        parser.error("--input needs --target")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    chosen = [TARGETS[arguments.target]] if arguments.target else list(TARGETS.values())
    if arguments.input is not None:
        good, behaviour = attempt(chosen[0], arguments.input.read_bytes())
        print(behaviour if good else "a fault")
        return 0 if good else 1
    engine = arguments.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "own"
    share = arguments.seconds / len(chosen)
    if engine == "own":
        results = [run(target, share, arguments.seed) for target in chosen]
        return 0 if all(results) else 1
    if arguments.target:
        run_atheris(chosen[0], share, arguments.seed)
        return 0
    command = [sys.executable, "-m", "fuzz.run", "--engine", "atheris", "--seed"]
    command += [str(arguments.seed), "--seconds", str(share), "--target"]
    codes = [subprocess.run([*command, target.name], check=False).returncode for target in chosen]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
