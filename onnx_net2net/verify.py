"""Teacher against student: do two models compute the same?

How far apart two equal models may be is not a constant: a deep network or a half-precision one scatters more than a
shallow one. The yardstick is the teacher's own float noise, which is how far its outputs move when onnxruntime
rearranges its arithmetic (graph optimizations off or on) and when its float inputs and the results of its layers move
by one unit in the last place. A student may be a few times as far away, and no farther.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnx_net2net.embedding import embedding
from onnx_net2net.errors import BadInputError, Net2NetError, NotEquivalentError
from onnx_net2net.inputs import (
    SCALES,
    Array,
    Feeds,
    InputSpec,
    accepted,
    check_feeds,
    draw,
    input_specs,
    one_line,
    read_npz,
)
from onnx_net2net.model import Model, Progress, load

NOISE_FACTOR = 20.0
"""How many times the teacher's own noise the student may be away."""

MAX_TOLERANCE = 0.01
"""However noisy the teacher is, an error above this part of its largest output is one."""

_LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
_CHUNK = 128  # intermediate tensors fetched in one run: what bounds the memory of the search
# Where the error of one unit in the last place is put that measures the noise.
_LAYERS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", "Add", "Sub", "Mul", "Div"}
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # TF32 keeps 10 bits of float32's 23

Embed = Callable[[str], Sequence[Array | None] | None]
"""For a tensor of the teacher, the positions of its units on each axis of the student's (None: all of
the axis); None if the two cannot be compared."""

_Judge = Callable[[str, Array | None, Sequence[Array]], "OutputReport"]


@dataclass(frozen=True)
class OutputReport:
    """How one output compares, in the run where it compares worst.

    Attributes:
        name: The output.
        max_abs: Largest absolute difference among elements finite in both.
        max_rel: ``max_abs`` as a part of the teacher's largest magnitude.
        noise: The teacher's own float noise, absolute; 0 for integers.
        tolerance: The absolute difference that is allowed to the largest element.
        ratio: ``max_abs / noise``; 0 for integers.
        different_fraction: The part of the elements that is out of tolerance.
    """

    name: str
    max_abs: float
    max_rel: float
    noise: float
    tolerance: float
    ratio: float
    different_fraction: float

    @property
    def severity(self) -> tuple[bool, float]:
        """Orders reports from the best to the worst."""
        return self.different_fraction > 0, self.max_abs / self.tolerance if self.tolerance else self.max_abs


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
        """The same as JSON-ready values; an infinite number becomes None."""
        record = asdict(self)
        for report in record["outputs"]:
            report.update({k: None for k, v in report.items() if isinstance(v, float) and not math.isfinite(v)})
        return {**record, "bindings": list(record["bindings"]), "outputs": list(record["outputs"])}

    def raise_if_different(self) -> None:
        """Does nothing if the models are equivalent.

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
        if self.equivalent:
            return f"equivalent in {where}: at worst {figures}"
        first = f"; the first tensor to differ is {self.diverges_at!r}" if self.diverges_at else ""
        return f"not equivalent in {where}: {figures} in {worst.different_fraction:.2%} of its elements{first}"


def verify(
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model,
    student: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    provider: str = "cpu",
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    samples: int = 3,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    embed: Embed | None = None,
) -> Verification:
    """Compares all outputs of two models on the same inputs.

    Both models run with onnxruntime's graph optimizations off and on. An element of the student is as wrong as its
    distance to the nearer of the teacher's two values; integers, booleans and strings must equal one of them, and
    NaN and infinities must stand where the teacher has them. In each run and output floats may be off by
    `NOISE_FACTOR` times the teacher's noise plus the distance between its two values, but by no more than
    `MAX_TOLERANCE` of its largest magnitude.

    Args:
        teacher: The reference: a file or a model in memory.
        student: What is judged; it must have inputs and outputs of the same names, types and compatible shapes.
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt``, ``dml``, ``coreml``, ``openvino``, ``rocm`` or the
            full name of an onnxruntime execution provider.
        data: Inputs to use instead of generated ones: arrays by name, or an npz file of them.
        samples: The least number of generated inputs; every accepted set of sizes of the dynamic axes has one.
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
    open_with = partial(_Runner, provider=_provider_name(provider))
    old, new = load(teacher), load(student)
    _check_interfaces(old.proto.graph, new.proto.graph)
    specs = input_specs(old.proto)
    feeds = read_npz(data, specs) if isinstance(data, str | os.PathLike) else data
    judge = partial(_compare, rtol=rtol, atol=atol)
    with old.on_disk() as old_path, new.on_disk() as new_path:
        levels, cases = _teach(old_path, open_with, specs, feeds, samples, seed, progress)
        reports: dict[str, list[OutputReport]] = {}
        for level in levels:
            with _blaming(NotEquivalentError, "the student does not run"):
                answers = _run_all(open_with(new_path, level), [case.feeds for case in cases], "student", progress)
            for case, answer in zip(cases, answers, strict=True):
                for report in case.judged(answer, judge):
                    reports.setdefault(report.name, []).append(report)
                    case.failed |= report.different_fraction > 0
        failed = min((case.feeds for case in cases if case.failed), key=_bytes, default=None)
        culprit = None
        if failed is not None:
            with contextlib.suppress(Exception):  # no probing may hide the finding
                embed = embed or embedding(old, new)
                culprit = _first_difference(old_path, new_path, failed, _provider_name(provider), judge, embed)
    return Verification(
        equivalent=failed is None,
        provider=_provider_name(provider),
        runs=len(cases),
        bindings=tuple({tuple(case.binding.items()): case.binding for case in cases}.values()),
        outputs=tuple(max(found, key=lambda report: report.severity) for found in reports.values()),
        diverges_at=culprit,
    )


@dataclass
class _Case:
    """One set of inputs and what the teacher makes of it."""

    feeds: Feeds
    answers: list[dict[str, Array]]  # one an optimization level
    nudged: dict[str, Array]  # the answer when everything moves by one unit in the last place
    binding: dict[str, int] = field(default_factory=dict)
    failed: bool = False

    def judged(self, answer: Mapping[str, Array], judge: _Judge) -> Iterator[OutputReport]:
        """Compares a student's answer to this case, output by output."""
        for name in self.answers[0]:
            yield judge(name, answer.get(name), [*(known[name] for known in self.answers), self.nudged[name]])


class _Runner:
    """A model opened in onnxruntime; a call runs it."""

    def __init__(
        self, model: Path | bytes, level: ort.GraphOptimizationLevel, *, provider: str, folder: Path | None = None
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4  # errors come as exceptions; they need not be printed too
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(
            source, options, [(provider, _OPTIONS.get(provider, {}))], enable_fallback=0
        )
        if (got := self._session.get_providers()[0]) != provider:  # onnxruntime only prints a warning
            raise BadInputError(f"{provider} cannot be loaded, onnxruntime would run on {got}{_hint(provider)}")
        self._names = [value.name for value in self._session.get_outputs()]
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        self._exotic = any("bfloat16" in value.type or "float8" in value.type for value in values)

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Returns the outputs by name; members of sequences and maps count as outputs."""
        if self._exotic:  # types that numpy lacks
            inputs = {name: _to_ort(array) for name, array in feeds.items()}
            values = [_from_ort(value) for value in self._session.run_with_ort_values(None, inputs)]
        else:
            values = self._session.run(None, feeds)
        named = (_tensors(name, value) for name, value in zip(self._names, values, strict=True))
        return dict(itertools.chain.from_iterable(named))


def _teach(
    path: Path,
    open_with: Callable[..., _Runner],
    specs: Sequence[InputSpec],
    given: Mapping[str, Array] | None,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> tuple[list[ort.GraphOptimizationLevel], list[_Case]]:
    """Runs the teacher; returns the optimization levels at which it runs, and the cases."""
    levels: list[ort.GraphOptimizationLevel] = []
    cases: list[_Case] = []
    refusal: BadInputError | None = None
    for level in _LEVELS:
        try:
            with _blaming(BadInputError, "the teacher does not run"):
                runner = open_with(path, level)
                if not cases:
                    twin = _noisy_twin(onnx.load(path, load_external_data=False))
                    noisy = open_with(twin.SerializeToString(), level, folder=path.parent)
                    cases = _cases(runner, noisy, specs, given, samples, seed, progress)
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


def _cases(
    runner: _Runner,
    noisy: _Runner,
    specs: Sequence[InputSpec],
    given: Mapping[str, Array] | None,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> list[_Case]:
    """The inputs to compare on, with the teacher's answers: the given ones, or generated ones that it accepts."""
    rng = np.random.default_rng(seed)
    cases: list[_Case] = []

    def attempt(feeds: Feeds) -> None:
        if progress is not None:
            progress("teacher", len(cases), max(samples, len(cases) + 1))
        answer = runner(feeds)
        if not any(np.any(_finite(values)) for values in answer.values()):
            raise ValueError("all outputs are empty, NaN or infinite, so nothing can be compared")
        moved = _nudged(feeds, specs, rng)
        try:
            cases.append(_Case(feeds, [answer], noisy(moved)))
        except Exception:  # a size hung on the last place of a float
            cases.append(_Case(feeds, [answer], runner(moved)))

    if given is not None:
        attempt(check_feeds(given, specs))
        return cases
    found = accepted(specs, attempt, rng)
    for index in range(len(found), samples):
        with contextlib.suppress(ValueError):  # a scale too large or too small for this model
            attempt(draw(specs, found[index % len(found)], rng, scale=SCALES[index % len(SCALES)]))
    for index, case in enumerate(cases):
        case.binding = found[index % len(found)]
    return cases


def _run_all(runner: _Runner, feeds: Sequence[Feeds], what: str, progress: Progress | None) -> list[dict[str, Array]]:
    answers = []
    for done, one in enumerate(feeds):
        if progress is not None:
            progress(what, done, len(feeds))
        answers.append(runner(one))
    return answers


def _bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


def _nudged(feeds: Feeds, specs: Sequence[InputSpec], rng: np.random.Generator) -> Feeds:
    """The inputs with every float moved by one unit in the last place, up or down at random."""
    moved = dict(feeds)
    for spec in specs:
        if spec.kind in {"real", "positive"} and spec.dtype.kind == "f":  # a moved mask or id would be another one
            target = np.where(rng.random(feeds[spec.name].shape) < 0.5, np.inf, -np.inf)
            moved[spec.name] = np.nextafter(feeds[spec.name], target.astype(spec.dtype))
    return moved


def _noisy_twin(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place, with an error of one unit in the last place behind every layer that has weights.

    Moving the inputs alone would miss what gets lost later, where numbers are larger, and a language model takes
    nothing but whole numbers.
    """
    rng = np.random.default_rng(0)
    floats = {t.name: t for t in proto.graph.initializer if _epsilon(helper.tensor_dtype_to_np_dtype(t.data_type))}
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        weight = next((floats[name] for name in node.input if name in floats), None)
        if weight is not None and node.op_type in _LAYERS and math.prod(weight.dims) > 4:  # fewer: sizes and scales
            name = node.output[0]
            node.output[0] = f"{name}/exact"
            signs = rng.choice([-1, 1], _per_unit(node, weight))
            values = 1 + signs * _epsilon(helper.tensor_dtype_to_np_dtype(weight.data_type))
            factor = helper.make_tensor(f"{name}/error", weight.data_type, signs.shape, values.ravel())
            proto.graph.initializer.append(factor)
            nodes.append(helper.make_node("Mul", [node.output[0], factor.name], [name]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _per_unit(node: onnx.NodeProto, weight: onnx.TensorProto) -> list[int]:
    """The shape of one factor for each output unit of a layer, or of a single one where units are hard to tell."""
    dims, flags = list(weight.dims), {attribute.name for attribute in node.attribute if attribute.i}
    place = list(node.input).index(weight.name)
    if len(dims) < 2 or flags & {"transA", "axis"} or place != (node.op_type != "Gather"):
        return []
    if node.op_type == "Conv":
        return [dims[0], *[1] * (len(dims) - 2)]
    return [dims[0 if "transB" in flags else -1]] if node.op_type in {"MatMul", "Gemm", "Gather"} else []


def _compare(
    name: str, student: Array | None, teacher: Sequence[Array], *, rtol: float | None, atol: float | None
) -> OutputReport:
    """Compares one tensor.

    Args:
        name: For the report.
        student: Its values, None if the student has none.
        teacher: The teacher's values at each optimization level, and last those with everything nudged.
        rtol: As in `verify`.
        atol: As in `verify`.
    """
    first, *others, _ = teacher
    if student is None or student.shape != first.shape:
        return OutputReport(name, math.inf, math.inf, 0.0, 0.0, math.inf, 1.0)
    error = np.min([_gap(student, first), *(_gap(student, other) for other in others if other.shape == first.shape)], 0)
    largest = float(np.max(np.abs(first), initial=0, where=_finite(first))) if first.dtype != object else 1.0
    epsilon = _epsilon(first.dtype)
    noise, allowed = 0.0, np.zeros(())
    if epsilon is not None:
        *rearranged, nudged = (_largest(_gap(first, one)) if one.shape == first.shape else 0.0 for one in teacher[1:])
        levels = max(rearranged, default=0.0)
        # The levels are the noise only where nothing could be moved. Otherwise they are added once: some optimizations
        # approximate, and a student that gets only some of them lands between the two.
        noise = max(nudged or levels, epsilon * largest, float(ml_dtypes.finfo(first.dtype).tiny))
        limit = max(MAX_TOLERANCE, 4 * epsilon) * largest  # bfloat16 has steps of 0.8 %
        allowed = np.asarray(min(NOISE_FACTOR * noise + levels, limit))
        if rtol is not None or atol is not None:
            allowed = (atol or 0.0) + (rtol or 0.0) * np.abs(first.astype(np.float64))
    different = (error > allowed) | np.isinf(error)
    off = _largest(error)
    return OutputReport(
        name=name,
        max_abs=off,
        max_rel=off / largest if largest else off,
        noise=noise,
        tolerance=_largest(allowed),
        ratio=off / noise if noise else 0.0,
        different_fraction=float(np.mean(different)) if different.size else 0.0,
    )


def _gap(one: Array, other: Array) -> Array:
    """Absolute differences, infinite where only one is finite; of texts, 1 where they differ."""
    same = one == other
    if one.dtype == object:
        return np.asarray(~np.asarray(same, bool), np.float64)
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - other)
    return np.where(same | (np.isnan(one) & np.isnan(other)), 0.0, np.where(np.isnan(gap), np.inf, gap))


def _largest(values: Array) -> float:
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))


def _finite(values: Array) -> Array:
    if _epsilon(values.dtype) is None:
        return np.ones(values.shape, bool)
    return np.isfinite(values.astype(np.float64))


def _epsilon(dtype: np.dtype[Any]) -> float | None:
    """The relative spacing of a float type, None for any other type."""
    try:
        return float(ml_dtypes.finfo(dtype).eps)
    except ValueError:
        return None


def _first_difference(
    teacher: Path, student: Path, feeds: Feeds, provider: str, judge: _Judge, embed: Embed | None
) -> str | None:
    """The first float tensor of the teacher, in topological order, that the student does not reproduce."""
    old, new = (onnx.load(path, load_external_data=False) for path in (teacher, student))
    theirs = {name for node in new.graph.node for name in node.output}
    common = [name for node in old.graph.node for name in node.output if name and name in theirs]
    nudged = _nudged(feeds, input_specs(old), np.random.default_rng(0))
    noisy = _noisy_twin(onnx.load(teacher, load_external_data=False))
    for start in range(0, len(common), _CHUNK):
        names = common[start : start + _CHUNK]
        first = _intermediates(old, names, teacher.parent, _LEVELS[0], provider, feeds)
        second = _intermediates(old, names, teacher.parent, _LEVELS[1], provider, feeds)
        moved = _intermediates(noisy, names, teacher.parent, _LEVELS[0], provider, nudged)
        answer = _intermediates(new, names, student.parent, _LEVELS[0], provider, feeds)
        for name in names:
            values = _embedded(answer.get(name), name, embed)
            known = [values_of[name] for values_of in (first, second, moved) if name in values_of]
            if values is None or len(known) < 3 or values.shape != known[0].shape or _epsilon(values.dtype) is None:
                continue  # grown, or a shape computation, which need not agree
            if judge(name, values, known).different_fraction:
                return str(name)
    return None


def _intermediates(
    proto: onnx.ModelProto,
    names: Sequence[str],
    folder: Path,
    level: ort.GraphOptimizationLevel,
    provider: str,
    feeds: Feeds,
) -> dict[str, Array]:
    """Runs a model, whose external data is in ``folder``, with other outputs."""
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return _Runner(proto.SerializeToString(), level, provider=provider, folder=folder)(feeds)


def _embedded(values: Array | None, name: str, embed: Embed | None) -> Array | None:
    """The teacher's units among those of the student's tensor."""
    if values is None or embed is None:
        return values
    positions = embed(name)
    if positions is None or len(positions) != values.ndim:
        return None
    for axis, chosen in enumerate(positions):
        if chosen is not None:
            values = np.take(values, chosen, axis)
    return values


def _check_interfaces(teacher: onnx.GraphProto, student: onnx.GraphProto) -> None:
    for what in ("input", "output"):
        old, new = _values(teacher, what), _values(student, what)
        if old.keys() != new.keys():
            raise NotEquivalentError(f"the student's {what}s are {sorted(new)}, the teacher's {sorted(old)}")
        for name in old:
            if not _compatible(old[name].type, new[name].type):
                texts = [helper.printable_value_info(value[name]).lstrip("%") for value in (old, new)]
                raise NotEquivalentError(f"{what} {texts[0]} of the teacher is {texts[1]} in the student")


def _values(graph: onnx.GraphProto, what: str) -> dict[str, onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in graph.initializer}  # IR 3 lists them among the inputs
    return {value.name: value for value in getattr(graph, what) if value.name not in constants or what == "output"}


def _compatible(one: onnx.TypeProto, other: onnx.TypeProto) -> bool:
    first, second = one.tensor_type, other.tensor_type
    if one.WhichOneof("value") != other.WhichOneof("value") or first.elem_type != second.elem_type:
        return False
    if not (first.HasField("shape") and second.HasField("shape")):
        return True
    pairs = itertools.zip_longest(first.shape.dim, second.shape.dim)
    return all(a and b and (0 in (a.dim_value, b.dim_value) or a.dim_value == b.dim_value) for a, b in pairs)


def _provider_name(name: str) -> str:
    full = _PROVIDERS.get(name.lower(), name)
    if full not in ort.get_available_providers():
        if full not in ort.get_all_providers():
            raise BadInputError(f"there is no provider {name!r}; known are {', '.join(_PROVIDERS)}")
        raise BadInputError(f"this onnxruntime has no {full}{_hint(full)}")
    return full


def _hint(provider: str) -> str:
    if provider in {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
        return "; pip install 'onnx-net2net[gpu]' brings it, the driver and the CUDA libraries have to be there"
    return "; install the onnxruntime package that was built with it"


def _to_ort(array: Array) -> ort.OrtValue:
    if array.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, helper.np_dtype_to_tensor_dtype(array.dtype))


def _from_ort(value: ort.OrtValue) -> Any:
    """The value as numpy has it; onnxruntime itself converts no bfloat16."""
    if not value.is_tensor():
        return None  # a sequence beside a bfloat16 tensor: not seen so far
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.element_type()))
    if dtype.kind != "V":
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype).reshape(value.shape())


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """The tensors of an output, which may be a sequence or a map."""
    if isinstance(value, list | dict):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in members:
            yield from _tensors(f"{name}[{key!r}]", member)
    elif value is not None:
        yield name, np.asarray(value)


@contextlib.contextmanager
def _blaming(kind: type[Net2NetError], what: str) -> Iterator[None]:
    """Turns whatever onnxruntime raises into one line of ``kind``."""
    try:
        yield
    except Net2NetError:
        raise
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise kind(f"{what}: {one_line(error)}") from None
