"""What a network costs before anything is trained: parameters, multiplications, and the time of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.costs import costs_of
from onnx_net2net.model.model import Model
from onnx_net2net.run.inputs import accepted, draw, input_specs
from onnx_net2net.run.session import LEVELS, Runner, blaming

_RUNS, _SECONDS = 15, 2.0
"""A run is timed so often, or for so long."""


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Its float elements.
        macs: Products that one run sums, where dynamic axes are 1 or as in `graph.costs`.
        latency: Milliseconds of a run in onnxruntime on CPU; None where it was not measured.
    """

    parameters: int
    macs: int
    latency: float | None = None


def cost_of(model: Model, timed: bool = False) -> Cost:
    """Return what a network costs.

    Args:
        model: The network.
        timed: Whether to run it.

    Raises:
        BadInputError: If it does not run.
    """
    return Cost(model.parameters, costs_of(model).multiplications, _latency(model) if timed else None)


def _latency(model: Model) -> float:
    """Return the median time of a run on generated inputs, in milliseconds."""
    specs, rng = input_specs(model.proto), np.random.default_rng(0)
    with model.on_disk() as path, blaming(BadInputError, "the network does not run"):
        runner = Runner(path, LEVELS[-1])
        feeds = draw(specs, accepted(specs, runner, rng, wanted=1)[0], rng)
        times: list[float] = []
        while len(times) < _RUNS and sum(times) < _SECONDS:
            began = time.perf_counter()
            runner(feeds)
            times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[len(times) // 2]
