"""Teacher against student: do two models compute the same?

How far apart two equal models may be is not a constant: a deep network or a half-precision one scatters more than a
shallow one. The yardstick is the teacher's own float noise, which is how far its outputs move when onnxruntime
rearranges its arithmetic (graph optimizations off or on) and when its float inputs and the results of its layers move
by one unit in the last place. A student may be a few times as far away, and no farther.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnx_net2net.compare import MAX_TOLERANCE, NOISE_FACTOR, QUANTIZED_TOLERANCE, Judge, OutputReport, compare, finite
from onnx_net2net.divergence import Embed, first_difference
from onnx_net2net.embedding import embedding
from onnx_net2net.errors import BadInputError, NotEquivalentError
from onnx_net2net.history import grown_interface
from onnx_net2net.inputs import SCALES, Feeds, InputSpec, accepted, check_feeds, draw, input_specs, read_npz
from onnx_net2net.model import Array, Model, Progress, load
from onnx_net2net.noise import is_rounded_dynamically, noisy_twin, nudged
from onnx_net2net.protos import bodies
from onnx_net2net.runtime import LEVELS, Runner, blaming, provider_name

__all__ = ["MAX_TOLERANCE", "NOISE_FACTOR", "Embed", "OutputReport", "Verification", "verify"]


Run = Callable[[Feeds], dict[str, Array]]
"""What answers to inputs by name with outputs by name."""

QUICK_SECONDS = 0.2
"""More than the asked samples are run while they take no longer than this."""

MOST_SAMPLES = 24

SLOW_SECONDS = 1.0
"""A model whose runs take longer is compared on fewer samples and sizes."""

_BOUNDED = {"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf"}
_MOVES = {
    "Concat",
    "ReduceMean",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Identity",
    "Split",
    "Gather",
}


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        equivalent: Whether all outputs agree in all runs.
        provider: The onnxruntime execution provider that ran both models.
        runs: How many different inputs were run.
        bindings: The sizes given to the dynamic axes; one empty binding for a static model or given data.
        outputs: One report an output, in the teacher's order.
        diverges_at: The first tensor of the teacher, in topological order, that the student does not reproduce;
            None where all agree or none could be compared.
    """

    equivalent: bool
    provider: str
    runs: int
    bindings: tuple[dict[str, int], ...]
    outputs: tuple[OutputReport, ...]
    diverges_at: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values; an infinite number becomes None."""
        record = asdict(self)
        for report in record["outputs"]:
            report.update({k: None for k, v in report.items() if isinstance(v, float) and not math.isfinite(v)})
        return {**record, "bindings": list(record["bindings"]), "outputs": list(record["outputs"])}

    def raise_if_different(self) -> None:
        """Do nothing if the models are equivalent.

        Raises:
            NotEquivalentError: They are not; the text is that of this object.
        """
        if not self.equivalent:
            raise NotEquivalentError(str(self))

    def __str__(self) -> str:
        worst = max(self.outputs, key=lambda report: report.severity, default=None)
        where = f"{self.runs} runs on {self.provider.removesuffix('ExecutionProvider')}"
        if worst is None:
            return f"equivalent: no outputs, {where}"
        figures = f"output {worst.name!r} is off by {worst.max_abs:.2g} (relative {worst.max_rel:.2g}, "
        figures += f"{worst.ratio:.2g} x the teacher's noise, tolerance {worst.tolerance:.2g})"
        if worst.different_fraction and not worst.max_abs:
            figures = f"output {worst.name!r} is finite in one of the models only"
        if self.equivalent:
            return f"equivalent in {where}: at worst {figures}"
        first = f"; the first tensor to differ is {self.diverges_at!r}" if self.diverges_at else ""
        return f"not equivalent in {where}: {figures} in {worst.different_fraction:.2%} of its elements{first}"


def verify(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model,
    student: str | os.PathLike[str] | onnx.ModelProto | Model | Run,
    *,
    provider: str = "cpu",
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    samples: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    embed: Embed | None = None,
) -> Verification:
    """Compare all outputs of two models on the same inputs.

    Both models run with onnxruntime's graph optimizations off and on. An element of the student is as wrong as its
    distance to the nearer of the teacher's two values; integers, booleans and strings must equal one of them, and
    NaN and infinities must stand where the teacher has them. In each run and output floats may be off by
    `NOISE_FACTOR` times the teacher's noise plus the distance between its two values, but by no more than
    `MAX_TOLERANCE` of its largest magnitude.

    Args:
        teacher: The reference: a file or a model in memory.
        student: What is judged; it must have inputs and outputs of the same names, types and compatible shapes. Where
            it was given more classes or input channels on request, the old ones, which come first, are compared.
            What is no model may be a function from inputs to outputs, both by name (`pytorch.ModuleRunner`).
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt``, ``dml``, ``coreml``, ``openvino``, ``rocm`` or the
            full name of an onnxruntime execution provider.
        data: Inputs to use instead of generated ones: arrays by name, or an npz file of them.
        samples: The least number of generated inputs; every accepted set of sizes of the dynamic axes has one. By
            default 3, or 2 where a run takes long, and more where it takes next to no time.
        rtol: Allowed error as a part of the teacher's value; with this or `atol` given the noise does not matter.
        atol: Allowed absolute error.
        seed: Of the generated inputs.
        progress: Told what is running, how many runs are done, and of how many.
        embed: Tells where the units of a teacher's tensor are in the student's, to compare tensors that have grown
            in the search for the first one that differs; by default found from the two graphs.

    Returns:
        The comparison; a difference is no exception, see `Verification.raise_if_different`.

    Raises:
        BadInputError: The teacher does not run, or the provider or the data cannot be used.
        NotEquivalentError: The student does not run, or has other inputs or outputs.
    """
    check_options(samples, rtol, atol, seed)
    provider = provider_name(provider)
    open_with = partial(Runner, provider=provider)
    old, new = load(teacher), None if callable(student) else load(student)
    grown = grown_interface(old, new) if new else {}
    if new:
        _check_interfaces(old.proto.graph, new.proto.graph, grown)
    specs = input_specs(old.proto)
    feeds = read_npz(data, specs) if isinstance(data, str | os.PathLike) else data
    gather = partial(_cases, specs=specs, given=feeds, samples=samples, seed=seed, progress=progress)
    cap = QUANTIZED_TOLERANCE if _is_quantized(old.proto.graph) else MAX_TOLERANCE
    judge = partial(compare, rtol=rtol, atol=atol, cap=cap, units=_units(old.proto.graph))
    with old.on_disk() as old_path, (new or old).on_disk() as new_path:
        levels, cases = _teach(old_path, open_with, gather, progress)
        reports: list[OutputReport] = []
        strict: list[OutputReport] = []
        for level in levels if new else levels[:1]:
            with blaming(NotEquivalentError, "the student does not run"):
                run = student if callable(student) else open_with(new_path, level)
                runner = _on_old_part(run, grown, np.random.default_rng(seed))
                answers = _run_all(runner, [case.feeds for case in cases], "student", progress)
            for case, answer in zip(cases, answers, strict=True):
                reports += (found := list(case.judged(answer, judge, case.nudged)))
                strict += (held := list(case.judged(answer, judge, case.steady)) if case.is_rounded else found)
                case.failed |= any(report.different_fraction > 0 for report in found)
                case.stepped |= any(report.different_fraction > 0 for report in held)
        if 2 * sum(case.stepped for case in cases) > len(cases):  # another step is rare; an error is there in most runs
            reports = strict
            for case in cases:
                case.failed |= case.stepped
        failed = min((case.feeds for case in cases if case.failed), key=_bytes, default=None)
        culprit = None
        if failed is not None and new is not None:
            with contextlib.suppress(Exception):  # no probing may hide the finding
                embed = embed or embedding(old, new)
                culprit = first_difference(old_path, new_path, failed, open_with, judge, embed)
    return Verification(
        equivalent=failed is None,
        provider=provider,
        runs=len(cases),
        bindings=tuple({tuple(case.binding.items()): case.binding for case in cases}.values()),
        outputs=_worst(reports),
        diverges_at=culprit,
    )


def _on_old_part(run: Run, grown: Mapping[tuple[str, int], tuple[int, int]], rng: np.random.Generator) -> Run:
    """Let a student with a larger interface take the teacher's inputs, and return the teacher's part of its outputs.

    New entries of inputs get values of old ones, drawn at random: whatever they are, they must not matter.
    """
    if not grown:
        return run

    def run_old_part(feeds: Feeds) -> dict[str, Array]:
        feeds = dict(feeds)
        for (name, axis), (old, new) in grown.items():
            if name in feeds and feeds[name].shape[axis] == old:
                places = np.concatenate([np.arange(old), rng.integers(0, old, new - old)])
                feeds[name] = np.take(feeds[name], places, axis=axis)
        answer = run(feeds)
        for (name, axis), (old, new) in grown.items():
            if name in answer and answer[name].shape[axis] == new:
                answer[name] = np.take(answer[name], np.arange(old), axis=axis)
        return answer

    return run_old_part


def check_runs(model: Model) -> None:
    """Refuse a model that onnxruntime does not take; those with operators of its user's own are not tried.

    Raises:
        BadInputError: It does not; the text says why.
    """
    domains = {node.domain for node in model.proto.graph.node if node.domain}
    if any(not domain.startswith(("ai.onnx", "com.microsoft")) for domain in domains):
        return
    with model.on_disk() as path, blaming(BadInputError, "the teacher does not run"):
        Runner(path, LEVELS[0], provider=provider_name("cpu"))


def check_options(samples: int | None, rtol: float | None, atol: float | None, seed: int) -> None:
    """Refuse options of `verify` that make no sense.

    Raises:
        BadInputError: One of them is out of range.
    """
    if samples is not None and samples < 1:
        raise BadInputError(f"samples must be at least 1, not {samples}")
    if seed < 0:
        raise BadInputError(f"the seed must be at least 0, not {seed}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"{name} must be a number of at least 0, not {value}")


@dataclass
class _Case:
    """One set of inputs and what the teacher makes of it."""

    feeds: Feeds
    answers: list[dict[str, Array]]  # one an optimization level
    nudged: dict[str, Array]  # the answer when everything moves by one unit in the last place
    steady: dict[str, Array]  # the same, but what dynamic quantizers round, which may be another step then
    binding: dict[str, int] = field(default_factory=dict)
    failed: bool = False
    stepped: bool = False  # whether it would have failed by the latter

    @property
    def is_rounded(self) -> bool:
        """Whether there are dynamic quantizers."""
        return self.steady is not self.nudged

    def judged(self, answer: Mapping[str, Array], judge: Judge, moved: Mapping[str, Array]) -> Iterator[OutputReport]:
        """Compare a student's answer to this case, output by output."""
        for name in self.answers[0]:
            yield judge(name, answer.get(name), [*(known[name] for known in self.answers), moved[name]])


def _worst(reports: Sequence[OutputReport]) -> tuple[OutputReport, ...]:
    """Return the worst report of each output, in order."""
    by_name: dict[str, list[OutputReport]] = {}
    for report in reports:
        by_name.setdefault(report.name, []).append(report)
    return tuple(max(found, key=lambda report: report.severity) for found in by_name.values())


def _teach(
    path: Path,
    open_with: Callable[..., Runner],
    gather: Callable[[Runner, Sequence[Runner]], list[_Case]],
    progress: Progress | None,
) -> tuple[list[ort.GraphOptimizationLevel], list[_Case]]:
    """Run the teacher; return the optimization levels at which it runs, and the cases."""
    levels: list[ort.GraphOptimizationLevel] = []
    cases: list[_Case] = []
    refusal: BadInputError | None = None
    for level in LEVELS:
        try:
            with blaming(BadInputError, "the teacher does not run"):
                runner = open_with(path, level)
                if not cases:
                    twins = [open_with(t.SerializeToString(), level, folder=path.parent) for t in _noisy_twins(path)]
                    cases = gather(runner, twins)
                else:
                    answers = _run_all(runner, [case.feeds for case in cases], "teacher", progress)
                    for case, answer in zip(cases, answers, strict=True):
                        case.answers.append(answer)
                levels.append(level)
        except BadInputError as error:  # a model that onnxruntime optimized before may refuse a level
            refusal = error
    if refusal is not None and not levels:
        raise refusal
    return levels, cases


def _noisy_twins(path: Path) -> Iterator[onnx.ModelProto]:
    """Yield a model with the errors of float arithmetic; where quantizers choose their steps, one that keeps these."""
    proto = onnx.load(path, load_external_data=False)
    steady = copy.deepcopy(proto) if is_rounded_dynamically(proto) else None
    yield noisy_twin(proto)
    if steady is not None:
        yield noisy_twin(steady, steps=False)


def _cases(
    runner: Runner,
    twins: Sequence[Runner],
    *,
    specs: Sequence[InputSpec],
    given: Mapping[str, Array] | None,
    samples: int | None,
    seed: int,
    progress: Progress | None,
) -> list[_Case]:
    """Return the given inputs, or generated ones that the teacher accepts, with its answers."""
    rng = np.random.default_rng(seed)
    cases: list[_Case] = []
    seconds: list[float] = []

    def attempt(feeds: Feeds) -> None:
        """Add a case, or raise whatever tells that the teacher refuses these inputs."""
        if progress is not None:
            progress("teacher", len(cases), max(samples or 3, len(cases) + 1))
        started = time.perf_counter()
        answer = runner(feeds)
        seconds.append(time.perf_counter() - started)
        if not any(np.any(finite(values)) for values in answer.values()):
            raise ValueError("all outputs are empty, NaN or infinite, so nothing can be compared")
        moved = nudged(feeds, specs, rng)
        try:
            answers = [noisy(moved) for noisy in twins]
        except Exception:  # a size hung on the last place of a float
            answers = [runner(moved)]
        cases.append(_Case(feeds, [answer], answers[0], answers[-1]))

    if given is not None:
        attempt(check_feeds(given, specs))
        _check_repeatable(runner, cases[0])
        return cases
    found = accepted(specs, attempt, rng, slow=2 * SLOW_SECONDS)
    is_slow = min(seconds) > SLOW_SECONDS
    if not is_slow:
        _check_repeatable(runner, cases[0])
    wanted = samples or (2 if is_slow else 3)
    for index in itertools.count(len(found)):
        if index >= wanted and (index >= MOST_SAMPLES or sum(seconds) > QUICK_SECONDS):
            break
        with contextlib.suppress(Exception):  # a scale too large for this model, or an index beyond a table
            attempt(draw(specs, found[index % len(found)], rng, scale=SCALES[index % len(SCALES)]))
    for index, case in enumerate(cases):
        case.binding = found[index % len(found)]
    return cases


def _check_repeatable(runner: Runner, case: _Case) -> None:
    """Refuse a teacher whose floats differ between two runs by more than threads can make them."""
    again = runner(case.feeds)
    for name, values in case.answers[0].items():
        if values.dtype.kind == "f":
            slack = 0.01 * float(np.max(np.abs(values), initial=0, where=finite(values)))
            other = again[name]
            if other.shape != values.shape or not np.allclose(values, other, rtol=0.01, atol=slack, equal_nan=True):
                raise BadInputError("the teacher is random: two runs on the same inputs differ")


def _run_all(
    runner: Callable[[Feeds], dict[str, Array]], feeds: Sequence[Feeds], what: str, progress: Progress | None
) -> list[dict[str, Array]]:
    answers = []
    for done, one in enumerate(feeds):
        if progress is not None:
            progress(what, done, len(feeds))
        answers.append(runner(one))
    return answers


def _bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


def _check_interfaces(
    teacher: onnx.GraphProto, student: onnx.GraphProto, grown: Mapping[tuple[str, int], tuple[int, int]]
) -> None:
    for what in ("input", "output"):
        old, new = _values(teacher, what), _values(student, what)
        if old.keys() != new.keys():
            raise NotEquivalentError(f"the student's {what}s are {sorted(new)}, the teacher's {sorted(old)}")
        for name in old:
            changed = {axis for place, axis in grown if place == name}
            if not _compatible(old[name].type, new[name].type, changed):
                texts = [helper.printable_value_info(value[name]).lstrip("%") for value in (old, new)]
                raise NotEquivalentError(f"{what} {texts[0]} of the teacher is {texts[1]} in the student")


def _units(graph: onnx.GraphProto, outer: Mapping[str, onnx.NodeProto] | None = None) -> dict[str, float]:
    """Return 1 for the outputs that are probabilities and the like, however small they happen to be."""
    producers = {**(outer or {}), **{name: node for node in graph.node for name in node.output}}
    units = {}
    for value in graph.output:
        node = producers.get(value.name)
        while node is not None and node.op_type in _MOVES:
            node = producers.get(node.input[0])
        branches = (
            [units_of for body in bodies(node) if (units_of := _units(body, producers))] if node is not None else []
        )
        if node is not None and (node.op_type in _BOUNDED or branches):
            units[value.name] = 1.0
    return units


def _is_quantized(graph: onnx.GraphProto) -> bool:
    """Tell whether activations are rounded to integers, where the last place of a float can move a whole step."""
    return any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in graph.node)


def _values(graph: onnx.GraphProto, what: str) -> dict[str, onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in graph.initializer}  # IR 3 lists them among the inputs
    return {value.name: value for value in getattr(graph, what) if value.name not in constants or what == "output"}


def _compatible(one: onnx.TypeProto, other: onnx.TypeProto, changed: Collection[int] = ()) -> bool:
    first, second = one.tensor_type, other.tensor_type
    if one.WhichOneof("value") != other.WhichOneof("value") or first.elem_type != second.elem_type:
        return False
    if not (first.HasField("shape") and second.HasField("shape")):
        return True
    pairs = enumerate(itertools.zip_longest(first.shape.dim, second.shape.dim))
    return all(
        a and b and (axis in changed or 0 in (a.dim_value, b.dim_value) or a.dim_value == b.dim_value)
        for axis, (a, b) in pairs
    )
