"""Teacher against student: do two models compute the same?

How far apart two equal models may be is not a constant: a deep network or a half-precision one scatters more than a
shallow one. The yardstick is the teacher's own float noise, which is how far its outputs move when onnxruntime
rearranges its arithmetic (graph optimizations off or on) and when its float inputs and the results of its layers move
by one unit in the last place. A student may be off by a few times as much (`NOISE_FACTOR`), and no more.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, NotEquivalentError
from onnx_net2net.model.history import grown_interface
from onnx_net2net.model.model import Model, ModelLike, Progress, load
from onnx_net2net.model.protos import bodies
from onnx_net2net.proof.cases import Case, Gathered, gather_cases, run_all, typical
from onnx_net2net.proof.compare import MAX_TOLERANCE, QUANTIZED_TOLERANCE, Judge, OutputReport, compare
from onnx_net2net.proof.divergence import Embed, Insides, Stand
from onnx_net2net.proof.embedding import embedding
from onnx_net2net.proof.interfaces import RunFunction, check_interfaces, on_old_part
from onnx_net2net.proof.movement import that_should_move
from onnx_net2net.proof.verdict import Departure, Verification
from onnx_net2net.rules import traits
from onnx_net2net.run.inputs import Feeds, input_specs, read_npz
from onnx_net2net.run.session import Level, Runner, blaming, provider_name

Vouch = Callable[[Model, Model], Departure | None]
"""Compares a student with what its record makes of its teacher; None where that says nothing."""


def compare_models(
    teacher: ModelLike,
    student: ModelLike | RunFunction,
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
    progress = progress or (lambda *_: None)
    provider = provider_name(provider)
    open_with = partial(Runner, provider=provider)
    old, new = load(teacher), None if callable(student) else load(student)
    grown = grown_interface(old, new) if new else {}
    if new:
        check_interfaces(old.proto.graph, new.proto.graph, grown)
    specs, moving = input_specs(old.proto), that_should_move(old.proto)
    given = read_npz(data, specs) if isinstance(data, str | os.PathLike) else data
    cap = QUANTIZED_TOLERANCE if _is_quantized(old.proto.graph) else MAX_TOLERANCE
    judge = partial(compare, rtol=rtol, atol=atol, cap=cap, units=_units(old.proto.graph))
    with old.on_disk() as old_path, (new or old).on_disk() as new_path:
        gathered = gather_cases(old_path, open_with, specs, moving, given, samples, seed, progress, cap)

        def open_student(level: Level) -> RunFunction:
            run = student if callable(student) else open_with(new_path, level)
            return on_old_part(run, grown, np.random.default_rng(seed))

        levels = gathered.levels if new else gathered.levels[:1]
        cases = gathered.cases
        answers = _answers(open_student, levels, cases, progress)
        reports, failed = _judged(cases, answers, judge, cap)
        if new is None:
            found = _Findings(unmoved=dict.fromkeys(gathered.unmoved, ()))
        else:
            locate = cache(lambda: embed or embedding(old, new))
            insides = Insides(old_path, new_path, open_with, judge, lambda name: locate()(name))
            is_exact = failed is None and rtol is None and atol is None
            change = vouch(old, new) if vouch and is_exact and not new.is_fresh else None
            found = _explained(insides, failed, gathered, change)
    return Verification(
        equivalent=failed is None and found.is_equivalent,
        provider=provider,
        runs=len(cases),
        seconds=gathered.seconds,
        bindings=tuple({tuple(case.binding.items()): case.binding for case in cases}.values()),
        outputs=_worst(reports),
        diverges_at=found.diverges_at,
        unmoved=found.unmoved if failed is None else {},
        departure=found.change if found.change and found.change.tensor is not None else None,
    )


def _answers(
    open_student: Callable[[Level], RunFunction], levels: Iterable[Level], cases: Sequence[Case], progress: Progress
) -> Iterator[list[dict[str, Array]]]:
    """Yield the student's answers to all cases, one list an optimization level."""
    for level in levels:
        with blaming(NotEquivalentError, "the student does not run"):
            answers = run_all(open_student(level), cases, "student", progress)
        yield answers


def _judged(
    cases: Sequence[Case], levels: Iterable[Sequence[Mapping[str, Array]]], judge: Judge, cap: float
) -> tuple[list[OutputReport], Feeds | None]:
    """Compare the student's answers; return all reports, and the smallest inputs for which it differs."""
    usual, steady = (typical(cases, steady=steady) for steady in (False, True))
    reports: list[OutputReport] = []
    strict: list[OutputReport] = []  # where quantizers keep their steps
    failed: set[Case] = set()
    stepped: set[Case] = set()
    for number, answers in enumerate(levels):
        for case, answer in zip(cases, answers, strict=True):
            if number and case.is_torn(cap):
                continue
            found = case.judged(answer, judge, usual, steady=False)
            held = case.judged(answer, judge, steady, steady=True) if case.is_rounded else found
            for kept, different, own in ((reports, failed, found), (strict, stepped, held)):
                kept += own
                different |= {case} if any(report.different_fraction for report in own) else set()
    if 2 * len(stepped) > len(cases):  # another step is rare; an error is there in most runs
        reports, failed = strict, failed | stepped
    smallest = min((case for case in cases if case in failed), key=lambda case: case.nbytes, default=None)
    return reports, smallest.feeds if smallest else None


@dataclass(frozen=True)
class _Findings:
    """What was found inside of two models.

    Attributes:
        diverges_at: The first tensor to differ.
        unmoved: Outputs that never moved, with what was compared instead.
        change: How the student departs from its record; None where that says nothing.
    """

    diverges_at: str | None = None
    unmoved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    change: Departure | None = None

    @property
    def is_equivalent(self) -> bool:
        """Whether nothing differs, and that says something."""
        return self.diverges_at is None and (self.change.tensor is None if self.change else all(self.unmoved.values()))


def _explained(insides: Insides, failed: Feeds | None, gathered: Gathered, change: Departure | None) -> _Findings:
    """Look for the first tensor that differs; where outputs agree but never move, for tensors inside that do."""
    if failed is not None:
        with contextlib.suppress(Exception):  # no probing may hide the finding
            return _Findings(insides.first_difference(failed))
        return _Findings()
    stands = dict.fromkeys(gathered.unmoved, Stand())
    for name in stands if change is None else ():
        with contextlib.suppress(Exception):  # what cannot be run shows nothing
            stands[name] = insides.stand_for(name, gathered.feeds)
    differs = next((stand.differs for stand in stands.values() if stand.differs), None)
    return _Findings(differs, {name: stand.tensors for name, stand in stands.items()}, change)


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


def _worst(reports: Sequence[OutputReport]) -> tuple[OutputReport, ...]:
    """Return the worst report of each output, in order."""
    by_name: dict[str, list[OutputReport]] = {}
    for report in reports:
        by_name.setdefault(report.name, []).append(report)
    return tuple(max(found, key=lambda report: report.severity) for found in by_name.values())


def _units(graph: onnx.GraphProto, outer: Mapping[str, onnx.NodeProto] | None = None) -> dict[str, float]:
    """Return 1 for the outputs that are probabilities and the like, however small they happen to be."""
    producers = {**(outer or {}), **{name: node for node in graph.node for name in node.output}}
    units = {}
    for value in graph.output:
        node = producers.get(value.name)
        while node is not None and node.op_type in traits.STILL_BOUNDED:
            node = producers.get(node.input[0])
        branches = (
            [units_of for body in bodies(node) if (units_of := _units(body, producers))] if node is not None else []
        )
        if node is not None and (node.op_type in traits.BOUNDED or branches):
            units[value.name] = 1.0
    return units


def _is_quantized(graph: onnx.GraphProto) -> bool:
    """Tell whether activations are rounded to integers, where the last place of a float can move a whole step."""
    return any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in graph.node)
