"""The long form: as many examples as wanted, a thousand to a seed. Exit 1 on a disagreement.

A run is replayed by the seed it names; the program that Hypothesis prints is the smallest one that
it found, and each of its lines is a step of `tests.model.play`.
"""

import argparse
import sys
import time
import traceback

from tests.model.machine import variants
from tests.model.run import run

EXAMPLES_A_SEED = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machine", choices=sorted(variants()), help="absent: both, in turn")
    args = parser.parse_args()
    names = [args.machine] if args.machine else sorted(variants())
    seed, left, began = args.seed, args.examples, time.monotonic()
    while left > 0:
        count = min(EXAMPLES_A_SEED, left)
        name = names[seed % len(names)]
        try:
            run(variants()[name], seed, count, args.steps)
        except Exception:
            traceback.print_exc()
            again = f"--seed {seed} --examples {count} --steps {args.steps} --machine {name}"
            print(f"replay: python -m tests.model {again}", flush=True)
            return 1
        left -= count
        done = args.examples - left
        took = time.monotonic() - began
        print(f"{done}/{args.examples} examples, seed {seed} ({name}), {took:.0f} s", flush=True)
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
