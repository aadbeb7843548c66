"""Students of students of students still compute what the first teacher does."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from onnx_net2net import deepen, inspect, load, verify, widen
from onnx_net2net.operations.deepen.deepen import sites

MODELS = Path(__file__).parents[2] / "models"
LARGEST = 600_000
"""Parameters at which a network is large enough for a test."""


class Chain(RuleBasedStateMachine):
    """Any steps in any order, of which the next is applied to what the last one made."""

    path: Path

    def __init__(self):
        super().__init__()
        self.teacher = self.student = load(self.path)
        self.steps = []

    def is_small(self):
        return self.student.parameters < LARGEST

    @precondition(is_small)
    @rule(factor=st.sampled_from([1.1, 1.37, 1.5]), kind=st.sampled_from(["replicate", "zero_out"]), data=st.data())
    def widen_some(self, factor, kind, data):
        names = [group.name for group in inspect(self.student).groups if group.reason is None]
        only = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        only = [name for name in only if "[" not in name]
        wanted = dict.fromkeys(only, f"{factor}x")
        if wanted:
            self.steps.append(("widen", wanted, kind))
            self.student = widen(self.student, sizes=wanted, map=kind, seed=len(self.steps), fill_norms=True).student

    @precondition(is_small)
    @rule(count=st.integers(1, 2), data=st.data())
    def deepen_somewhere(self, count, data):
        site = data.draw(st.sampled_from([site for site in sites(self.student) if site.ways]))
        way = data.draw(st.sampled_from(site.ways))
        count = 1 if way == "factor" else count  # a layer has two factors
        self.steps.append(("deepen", site.name, way, count))
        self.student = deepen(self.student, after=[site.name], way=way, count=count, seed=len(self.steps)).student

    @precondition(lambda self: not self.is_small())
    @rule()
    def stay(self):
        """There has to be something that can be done."""

    @invariant()
    def computes_what_the_teacher_does(self):
        verification = verify(self.teacher, self.student, samples=2)
        assert verification.equivalent, f"{self.steps}: {verification}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet", "digits_inception_bn"])
def test_any_chain_of_steps_is_exact(name):
    machine = type(name, (Chain,), {"path": MODELS / f"{name}.onnx"})
    options = settings(
        max_examples=4, stateful_step_count=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=options)
