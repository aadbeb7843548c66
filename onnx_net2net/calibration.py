"""Mean and variance of the units of tensors, measured by running a model, and BatchNormalizations that get them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx
from onnx import helper

from onnx_net2net.errors import BadInputError
from onnx_net2net.inputs import Feeds, accepted, check_feeds, draw, input_specs
from onnx_net2net.model import Model, Progress
from onnx_net2net.runtime import LEVELS, Runner, blaming, provider_name
from onnx_net2net.tensors import Array

ROWS = 64
"""Examples that are run at once."""

_GENERATED_RUNS = 8


def measure(
    model: Model,
    tensors: Sequence[str],
    data: Mapping[str, Array] | None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Run a model and return the mean and the variance of each unit (axis 1) of some of its tensors.

    Memory is bounded: the examples are run some at a time, and of each run only sums are kept.

    Args:
        model: The model.
        tensors: Names of tensors of its main graph.
        data: Inputs by name, with examples along the first axis; generated ones if None.
        seed: Of the generated inputs.
        progress: Told how many runs are done, and of how many.

    Returns:
        For each tensor, float64 mean and variance (over all examples and positions), one a unit.

    Raises:
        BadInputError: If the model does not run, or the data does not fit it.
    """
    sums: dict[str, list[Array]] = {}
    with model.on_disk() as path, blaming(BadInputError, "the teacher does not run"):
        proto = onnx.load(path, load_external_data=False)
        known = {value.name for value in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
        run = Runner(proto.SerializeToString(), LEVELS[0], provider=provider_name("cpu"), folder=path.parent)
        batches = list(_batches(model, run, data, seed))
        for number, feeds in enumerate(batches):
            if progress is not None:
                progress("calibrating", number, len(batches))
            answer = run(feeds)
            for name in tensors:
                _add(sums.setdefault(name, []), np.asarray(answer[name], np.float64))
    return {name: _moments(found) for name, found in sums.items()}


def recalibrated(
    model: Model, data: Mapping[str, Array], *, progress: Progress | None = None
) -> tuple[Model, tuple[str, ...]]:
    """Give each BatchNormalization the mean and the variance of what it gets, one after another from the first on.

    Args:
        model: The model.
        data: Inputs by name, with examples along the first axis.
        progress: Told how many normalisations are done, and of how many.

    Returns:
        The model with other statistics, and the tensors that hold them.

    Raises:
        BadInputError: If the model does not run, or the data does not fit it.
    """
    norms = [node for node in model.proto.graph.node if node.op_type == "BatchNormalization" and len(node.output) == 1]
    changed: list[str] = []
    for number, norm in enumerate(norms):
        if progress is not None:
            progress("calibrating", number, len(norms))
        moments = measure(model, [norm.input[0]], data)[norm.input[0]]
        draft = model.draft()
        node = next(node for node in draft.graph.nodes if node.outputs and node.outputs[0].name == norm.output[0])
        for index, values in zip((3, 4), moments, strict=True):
            old = node.inputs[index]
            dtype = draft.type_of(old)
            own = values.astype(helper.tensor_dtype_to_np_dtype(dtype))
            if len(old.outputs) == 1:
                draft.replace(old, own.shape, partial(np.asarray, own))
            else:  # exporters merge vectors of equal values
                node.inputs[index] = draft.lazy_constant(f"{old.name}_own", dtype, own.shape, partial(np.asarray, own))
            changed.append(node.inputs[index].name)
        model = draft.finish()
    return model, tuple(changed)


def _batches(model: Model, run: Runner, data: Mapping[str, Array] | None, seed: int) -> Iterator[Feeds]:
    """Yield the inputs of one run after another."""
    specs = input_specs(model.proto)
    if data is None:
        rng = np.random.default_rng(seed)
        (binding,) = accepted(specs, run, rng, wanted=1)
        yield from (draw(specs, binding, rng) for _ in range(_GENERATED_RUNS))
        return
    feeds = check_feeds(data, specs)
    lengths = {array.shape[0] for array in feeds.values() if array.ndim}
    together = len(lengths) != 1 or any(not spec.shape or isinstance(spec.shape[0], int) for spec in specs)
    if together:
        yield feeds
        return
    (length,) = lengths
    for start in range(0, length, ROWS):
        yield {name: array[start : start + ROWS] for name, array in feeds.items()}


def _add(sums: list[Array], values: Array) -> None:
    """Add a run to count, mean and sum of squared distances (Chan, Golub, LeVeque 1983, which does not cancel)."""
    rows = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
    count, mean = np.array(float(len(rows))), rows.mean(0)
    squares = ((rows - mean) ** 2).sum(0)
    if not sums:
        sums[:] = [count, mean, squares]
        return
    total, delta = sums[0] + count, mean - sums[1]
    sums[2] = sums[2] + squares + delta**2 * sums[0] * count / total
    sums[1] = sums[1] + delta * count / total
    sums[0] = total


def _moments(sums: Sequence[Array]) -> tuple[Array, Array]:
    count, mean, squares = sums
    return mean, squares / count
