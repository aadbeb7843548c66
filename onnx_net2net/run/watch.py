"""What tensors inside a model hold when it runs: single ones, and the mean and the variance of their units."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError
from onnx_net2net.model.model import Model, Progress
from onnx_net2net.run.inputs import Feeds, InputSpec, accepted, check_feeds, draw, input_specs
from onnx_net2net.run.session import Runner, blaming

ROWS = 16
"""Examples that are run at once; many tensors of each may be looked at."""

_GENERATED_RUNS = 8


Watch = Callable[[Feeds, Sequence[str]], dict[str, Array]]
"""Runs a model on inputs and returns some of its tensors."""


@contextlib.contextmanager
def watched(model: Model, tensors: Iterable[str], whose: str) -> Iterator[Watch]:
    """Open a model so that tensors inside of it can be looked at.

    Args:
        model: The model.
        tensors: Names of tensors of its main graph.
        whose: How messages call the model.

    Raises:
        BadInputError: If the model does not run, or not with what it is fed.
    """
    failure = f"the {whose} does not run"
    with model.on_disk() as path:
        proto = onnx.load(path, load_external_data=False)
        known = {value.name for value in (*proto.graph.output, *proto.graph.input)}
        inner = [name for name in dict.fromkeys(tensors) if name not in known]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
        with blaming(BadInputError, failure):
            run = Runner(proto.SerializeToString(), file=path)

        def watch(feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
            given = {name: feeds[name] for name in names if name in feeds}
            made = [name for name in names if name not in feeds]
            with blaming(BadInputError, failure):
                return {**given, **(run(feeds, made) if made else {})}

        yield watch


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
    specs = input_specs(model.proto)
    with watched(model, tensors, "teacher") as watch:
        if data is None:
            outputs = [value.name for value in model.proto.graph.output]
            batches = _drawn(specs, lambda feeds: watch(feeds, outputs), seed)
        else:
            batches = in_batches(data, specs)
        for number, feeds in enumerate(batches):
            if progress is not None:
                progress("calibrating", number, len(batches))
            answer = watch(feeds, tensors)
            for name in tensors:
                _add(sums.setdefault(name, []), np.asarray(answer[name], np.float64))
    return {name: _moments(found) for name, found in sums.items()}


def in_batches(data: Mapping[str, Array], specs: Sequence[InputSpec], source: str = "data") -> list[Feeds]:
    """Divide examples among runs: some at a time, or as many as the model takes.

    Raises:
        BadInputError: If they do not fit the model.
    """
    lengths = {len(array) if np.ndim(array) else 0 for array in data.values()}
    taken = {spec.shape[0] if spec.shape else 0 for spec in specs}
    numbers = [size for size in taken if isinstance(size, int)]
    step = ROWS if not numbers else numbers[0] if len(taken) == 1 else 0
    if len(lengths) != 1 or not step or (numbers and max(lengths) % step):
        return [check_feeds(data, specs, source)]
    (length,) = lengths
    if not length:
        check_feeds(data, specs, source)
        raise BadInputError(f"{source} has no examples")
    parts = ({name: array[start : start + step] for name, array in data.items()} for start in range(0, length, step))
    return [check_feeds(part, specs, source) for part in parts]


def _drawn(specs: Sequence[InputSpec], run: Callable[[Feeds], object], seed: int) -> list[Feeds]:
    """Generate the inputs of some runs."""
    rng = np.random.default_rng(seed)
    (binding,) = accepted(specs, run, rng, wanted=1)
    return [draw(specs, binding, rng) for _ in range(_GENERATED_RUNS)]


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
