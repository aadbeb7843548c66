"""What a network costs before anything is trained: parameters, multiplications, and the time of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_net2net.algebra.dims import Dim, leaf_set
from onnx_net2net.analysis.groups import paused_gc
from onnx_net2net.analysis.inference import Analysis, infer
from onnx_net2net.errors import BadInputError
from onnx_net2net.graph.flatten import open_bodies
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
        macs: Multiplications with a sum behind them in one run, at the sizes that dynamic axes are probed with. Only
            the ratio of two networks of the same inputs means something.
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
    with paused_gc():
        analysis = infer(open_bodies(model).model)
        macs = sum(_macs(analysis))
    return Cost(model.parameters, macs, _latency(model) if timed else None)


def _macs(analysis: Analysis) -> Iterator[int]:
    """Yield the multiplications of each sum of products: elements of the result, times all that it sums over."""
    for number, said in analysis.said.items():
        output = analysis.nodes[number].outputs[0].name
        shape, axes = analysis.sizes.shape(output), analysis.axes.get(output)
        for contraction in said.contractions:
            index = contraction.sides[-1][0]
            operand = analysis.input_axes(number, index)
            if len(contraction.sides) > 1 and shape is not None and axes is not None and operand is not None:
                summed: set[Dim] = leaf_set(*operand) - leaf_set(*axes)
                yield math.prod(shape) * math.prod(dim.size for dim in summed)


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
