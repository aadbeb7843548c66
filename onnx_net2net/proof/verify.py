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
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, NotEquivalentError
from onnx_net2net.model.history import grown_interface
from onnx_net2net.model.model import Model, Progress, load
from onnx_net2net.model.protos import bodies
from onnx_net2net.proof.compare import (
    MAX_TOLERANCE,
    NOISE_FACTOR,
    QUANTIZED_TOLERANCE,
    OutputReport,
    Typical,
    compare,
    finite,
    largest_of,
    noise_of,
)
from onnx_net2net.proof.divergence import Embed, first_difference, stand_for
from onnx_net2net.proof.embedding import embedding
from onnx_net2net.proof.movement import bolder, that_should_move, unmoved
from onnx_net2net.proof.noise import Error, drawn, is_rounded_dynamically, noisy_twin, nudged
from onnx_net2net.proof.verdict import Departure, Verification
from onnx_net2net.run.inputs import SCALES, Feeds, InputSpec, accepted, check_feeds, draw, input_specs, read_npz
from onnx_net2net.run.session import LEVELS, Level, Runner, blaming, provider_name

__all__ = ["MAX_TOLERANCE", "NOISE_FACTOR", "Embed", "OutputReport", "Run", "Verification", "compare_models"]


Run = Callable[[Feeds], dict[str, Array]]
"""What answers to inputs by name with outputs by name."""

Vouch = Callable[[Model, Model], Departure | None]
"""Compares a student with what its record makes of its teacher; None where that says nothing."""

QUICK_SECONDS = 0.2
"""More than the asked samples are run while they take no longer than this."""

MOST_SAMPLES = 24

ENOUGH_ELEMENTS = 32
MOST_DRAWS = 8
"""The noise of a single element may round to nothing: what has few of them is moved several times."""

MOVING_SECONDS = 5.0
"""For so long inputs are looked for that move an output."""

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


def compare_models(
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
    vouch: Vouch | None = None,
) -> Verification:
    """Compare all outputs of two models on the same inputs, as `operations.verify.verify` says.

    Where the outputs agree, `vouch` compares the student with its record.
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
    gather = partial(
        _cases,
        specs=specs,
        moving=that_should_move(old.proto),
        given=feeds,
        samples=samples,
        seed=seed,
        progress=progress,
    )
    cap = QUANTIZED_TOLERANCE if _is_quantized(old.proto.graph) else MAX_TOLERANCE
    judge = partial(compare, rtol=rtol, atol=atol, cap=cap, units=_units(old.proto.graph))
    locate = cache(lambda: embed or embedding(old, new or old))
    with old.on_disk() as old_path, (new or old).on_disk() as new_path:
        levels, gathered = _teach(old_path, open_with, gather, progress)
        cases = gathered.cases
        usual, steady = (_typical(cases, steady) for steady in (False, True))
        reports: list[OutputReport] = []
        strict: list[OutputReport] = []
        for level in levels if new else levels[:1]:
            with blaming(NotEquivalentError, "the student does not run"):
                run = student if callable(student) else open_with(new_path, level)
                runner = _on_old_part(run, grown, np.random.default_rng(seed))
                answers = _run_all(runner, [case.feeds for case in cases], "student", progress)
            for case, answer in zip(cases, answers, strict=True):
                if level is not levels[0] and case.is_torn(cap):
                    continue
                reports += (found := list(case.judged(answer, judge, False, usual)))
                strict += (held := list(case.judged(answer, judge, True, steady)) if case.is_rounded else found)
                case.failed |= any(report.different_fraction > 0 for report in found)
                case.stepped |= any(report.different_fraction > 0 for report in held)
        if 2 * sum(case.stepped for case in cases) > len(cases):  # another step is rare; an error is there in most runs
            reports = strict
            for case in cases:
                case.failed |= case.stepped
        failed = min((case.feeds for case in cases if case.failed), key=_bytes, default=None)
        culprit, change = None, None
        still: dict[str, tuple[str, ...]] = {}
        if failed is not None and new is not None:
            with contextlib.suppress(Exception):  # no probing may hide the finding
                culprit = first_difference(old_path, new_path, failed, open_with, judge, locate())
        elif failed is None:
            if vouch and new is not None and not new.is_fresh and rtol is None and atol is None:
                change = vouch(old, new)
            still = dict.fromkeys(gathered.unmoved, ())
            for name in still if new is not None and change is None else ():
                with contextlib.suppress(Exception):  # what cannot be run shows nothing
                    inside = stand_for(name, old_path, new_path, gathered.feeds, open_with, judge, locate())
                    still[name], culprit = inside.tensors, culprit or inside.differs
    is_shown = all(still.values()) or (change is not None and change.tensor is None)
    return Verification(
        equivalent=failed is None and culprit is None and is_shown and (change is None or change.tensor is None),
        provider=provider,
        runs=len(cases),
        bindings=tuple({tuple(case.binding.items()): case.binding for case in cases}.values()),
        outputs=_worst(reports),
        diverges_at=culprit,
        unmoved=still,
        departure=change if change is not None and change.tensor is not None else None,
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


def check_runs(model: Model, what: str = "the teacher") -> None:
    """Refuse a model that onnxruntime does not take; those with operators of its user's own are not tried.

    Args:
        model: The model.
        what: What messages call it.

    Raises:
        BadInputError: It does not; the text says why.
    """
    domains = {node.domain for node in model.proto.graph.node if node.domain}
    if any(not domain.startswith(("ai.onnx", "com.microsoft")) for domain in domains):
        return
    with model.on_disk() as path, blaming(BadInputError, f"{what} does not run"):
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
    nudged: list[dict[str, Array]]  # answers when everything moves by one unit in the last place, one a draw
    steady: list[dict[str, Array]]  # the same, but what dynamic quantizers round, which may be another step then
    binding: dict[str, int] = field(default_factory=dict)
    failed: bool = False
    stepped: bool = False  # whether it would have failed by the latter

    @property
    def is_rounded(self) -> bool:
        """Whether there are dynamic quantizers."""
        return self.steady is not self.nudged

    def is_torn(self, cap: float) -> bool:
        """Whether optimizations alone change a float output by more than any noise excuses.

        Where exact sums decide over steps (Sign of whole numbers), folded weights that are no longer whole fall to
        either side.
        """
        first, *others = self.answers
        return any(noise_of(v, [o[n] for o in others]) > cap * largest_of(v) for n, v in first.items())

    def judged(
        self,
        answer: Mapping[str, Array],
        judge: Callable[..., OutputReport],
        steady: bool,
        typical: Mapping[str, Typical],
    ) -> Iterator[OutputReport]:
        """Compare a student's answer to this case, output by output."""
        moved = self.steady if steady else self.nudged
        for name in self.answers[0]:
            known, draws = ([values[name] for values in answers] for answers in (self.answers, moved))
            yield judge(name, answer.get(name), known, draws, typical=typical.get(name, Typical()))


@dataclass(frozen=True)
class _Gathered:
    """The cases, the outputs that none of them moves, and two sets of inputs of the same sizes."""

    cases: list[_Case]
    unmoved: list[str]
    feeds: tuple[Feeds, Feeds]


def _typical(cases: Sequence[_Case], steady: bool) -> dict[str, Typical]:
    """Return what each output is like in most cases."""
    found: dict[str, Typical] = {}
    for name in cases[0].answers[0]:
        firsts = [case.answers[0][name] for case in cases if name in case.answers[0]]
        draws = [case.steady if steady else case.nudged for case in cases if name in case.answers[0]]
        noises = [noise_of(v, [moved[name] for moved in own]) for v, own in zip(firsts, draws, strict=True)]
        # Where it is rounded away in most cases, the others tell how large it is.
        noise = statistics.median(noises) or math.sqrt(statistics.fmean(noise * noise for noise in noises))
        found[name] = Typical(noise, statistics.median(map(largest_of, firsts)))
    return found


def _worst(reports: Sequence[OutputReport]) -> tuple[OutputReport, ...]:
    """Return the worst report of each output, in order."""
    by_name: dict[str, list[OutputReport]] = {}
    for report in reports:
        by_name.setdefault(report.name, []).append(report)
    return tuple(max(found, key=lambda report: report.severity) for found in by_name.values())


def _teach(
    path: Path,
    open_with: Callable[..., Runner],
    gather: Callable[[Runner, Sequence[_Twin]], _Gathered],
    progress: Progress | None,
) -> tuple[list[Level], _Gathered]:
    """Run the teacher; return the optimization levels at which it runs, and the cases."""
    levels: list[Level] = []
    gathered: _Gathered | None = None
    refusal: BadInputError | None = None
    for level in LEVELS:
        try:
            with blaming(BadInputError, "the teacher does not run"):
                runner = open_with(path, level)
                if gathered is None:
                    twins = [
                        _Twin(open_with(twin.SerializeToString(), level, file=path), errors)
                        for twin, errors in _noisy_twins(path)
                    ]
                    gathered = gather(runner, twins)
                else:
                    answers = _run_all(runner, [case.feeds for case in gathered.cases], "teacher", progress)
                    for case, answer in zip(gathered.cases, answers, strict=True):
                        case.answers.append(answer)
                levels.append(level)
        except BadInputError as error:  # a model that onnxruntime optimized before may refuse a level
            refusal = error
    if gathered is None:
        raise refusal or BadInputError("the teacher does not run")
    return levels, gathered


@dataclass(frozen=True)
class _Twin:
    """A model with the errors of float arithmetic, drawn anew at each call."""

    run: Runner
    errors: Sequence[Error]

    def __call__(self, feeds: Feeds, rng: np.random.Generator) -> dict[str, Array]:
        return self.run({**feeds, **drawn(self.errors, rng)})


def _noisy_twins(path: Path) -> Iterator[tuple[onnx.ModelProto, list[Error]]]:
    """Yield a model with the errors of float arithmetic; where quantizers choose their steps, one that keeps these."""
    proto = onnx.load(path, load_external_data=False)
    steady = copy.deepcopy(proto) if is_rounded_dynamically(proto) else None
    yield proto, noisy_twin(proto)
    if steady is not None:
        yield steady, noisy_twin(steady, steps=False)


def _cases(
    runner: Runner,
    twins: Sequence[_Twin],
    *,
    specs: Sequence[InputSpec],
    moving: Sequence[str],
    given: Mapping[str, Array] | None,
    samples: int | None,
    seed: int,
    progress: Progress | None,
) -> _Gathered:
    """Return the given inputs, or generated ones that the teacher accepts, with its answers."""
    rng, noise = np.random.default_rng(seed), np.random.default_rng([seed, 1])
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
        fewest = min((values.size for values in answer.values() if values.size), default=1)
        draws = max(1, min(MOST_DRAWS if seconds[-1] < SLOW_SECONDS else 3, math.ceil(ENOUGH_ELEMENTS / fewest)))
        moved = [nudged(feeds, specs, rng) for _ in range(draws)]
        try:
            answers = [[noisy(one, noise) for one in moved] for noisy in twins]
        except Exception:  # a size hung on the last place of a float
            answers = [[runner(one) for one in moved]]
        cases.append(_Case(feeds, [answer], answers[0], answers[-1]))

    def move(binding: Mapping[str, int] | None) -> _Gathered:
        """Look for inputs that move the outputs which none has moved so far; generated ones become cases."""
        usual = _typical(cases, steady=False)
        slack = {name: usual[name].slack for name in moving if name in usual}
        still = unmoved(slack, [case.answers[0] for case in cases])
        others: list[Feeds] = []
        started = time.perf_counter()
        for feeds in bolder(specs, cases[0].feeds, binding, rng) if still else ():
            with contextlib.suppress(Exception):  # too large for this model
                answer = runner(feeds)
                if all(np.all(finite(values)) for values in answer.values()):
                    others.append(feeds)
                    left = unmoved(still, [cases[0].answers[0], answer])
                    if binding is not None and left != still:
                        attempt(feeds)
                        cases[-1].binding = dict(binding)
                    still = left
            if not still or time.perf_counter() - started > MOVING_SECONDS:
                break
        if given is not None and not others:
            still = {}  # nothing else can be run, and whoever gave the inputs chose them
        return _Gathered(cases, list(still), (cases[0].feeds, others[0] if others else cases[-1].feeds))

    if given is not None:
        attempt(check_feeds(given, specs))
        _check_repeatable(runner, cases[0])
        return move(None)
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
    return move(cases[0].binding)


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
