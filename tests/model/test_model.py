"""The short form of `python -m tests.model`: the same programs each time."""

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from tests.model.machine import Machine, MemoryMachine
from tests.model.run import run


@pytest.mark.parametrize(
    ("machine", "seed", "examples"),
    [(Machine, 1, 40), (Machine, 2, 40), (MemoryMachine, 3, 40)],
)
def test_the_core_does_what_the_reference_says(
    machine: type[RuleBasedStateMachine], seed: int, examples: int
) -> None:
    run(machine, seed, examples, 40)
