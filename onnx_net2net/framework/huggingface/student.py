"""The student of a checkpoint: what each of its parameters grows by, its config, and what its files will hold.

Nothing is computed here. The class is exported without weights, and the usual operations say how each constant of the
graph grows; as nothing is folded, constants are the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnx_net2net.algebra.weights import WeightGrowth
from onnx_net2net.errors import BadInputError, RefusedError, some
from onnx_net2net.framework.configs import NoConfigError, StudentSizes, grown_config
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.huggingface.layers import Layers, deeper_names, plan_layers
from onnx_net2net.framework.huggingface.parameters import StudentParameter, Written
from onnx_net2net.framework.huggingface.skeleton import Skeleton
from onnx_net2net.framework.huggingface.teacher import Teacher
from onnx_net2net.framework.huggingface.vocabulary import NAME, tokens_of, with_tokens
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.statedict.unseen import Unseen
from onnx_net2net.framework.widths import compare_widths
from onnx_net2net.model.history import history
from onnx_net2net.model.model import Model
from onnx_net2net.operations.widen.widen import Widening, widen


@dataclass(frozen=True)
class Request:
    """What is asked for: options of `widen` and `deepen`.

    Attributes:
        factor: Width multiplier of all dims, or those of `only`; None for none.
        sizes: Sizes by name, pattern or role.
        only: Names or roles of the dims that `factor` is for.
        depth: How many times as deep; None for as deep.
        append: Whether copies of layers go behind the last one.
        spread: How unevenly copies share their outgoing weights.
        seed: Seed of every random choice.
        keep_numbers: Whether the class computes none of its numbers from its sizes.
        how: How routers treat copies of experts; a class has no masks.
    """

    factor: float | None = None
    sizes: Mapping[str, int | str] = field(default_factory=dict)
    only: Sequence[str] = ()
    depth: str | None = None
    append: bool = False
    spread: float = 0.3
    seed: int = 0
    keep_numbers: bool = False
    how: str = "split"

    @property
    def tokens(self) -> int | str | None:
        """The size of the vocabulary that is asked for."""
        return self.sizes.get(NAME)

    @property
    def dims(self) -> dict[str, int | str]:
        """The sizes of dims that are asked for."""
        return {name: size for name, size in self.sizes.items() if name != NAME}


@dataclass(frozen=True)
class Student:
    """What a teacher becomes.

    Attributes:
        teacher: The teacher.
        skeleton: The class at the student's sizes.
        config: What its config.json has.
        parameters: Its parameters by their names in the class.
        sources: Which of the teacher's parameters each comes from, and whether it is of a layer that is a copy.
        tensors: What its files hold, in order.
        widening: How it was widened, if it was.
        layers: The copies of layers.
        vocabulary: How many tokens there were and are, where more were asked for.
        record: The steps, as the record of a model has them.
        notes: What else there is to say.
    """

    teacher: Teacher
    skeleton: Skeleton
    config: dict[str, Any]
    parameters: Mapping[str, StudentParameter]
    sources: Mapping[str, tuple[str, bool]]
    tensors: tuple[Written, ...]
    widening: Widening | None
    layers: Layers
    vocabulary: tuple[int, int]
    record: list[dict[str, Any]]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


Compare = Callable[[Student], bool]
"""Tells whether a student computes what its teacher does."""


def plan_student(teacher: Teacher, request: Request, compare: Compare | None = None) -> Student:
    """Plan the student of a checkpoint; none of its weights are kept.

    Dims that no config of the class lets grow keep their size, unless they are asked for by name.

    Args:
        teacher: The teacher.
        request: How it is to grow.
        compare: Where a factory makes the class: finds the arguments that no shape shows. By default none are sought.

    Raises:
        BadInputError: If the class cannot be exported, or an option makes no sense.
        RefusedError: If it cannot be exact, or the class could not hold it.
    """
    if request.factor is None and not request.sizes and request.depth is None:
        raise BadInputError("nothing to grow: give a factor, sizes or a depth")
    if request.tokens is not None:
        tokens_of(teacher.skeleton, request.tokens)
    places = _places(teacher.skeleton, teacher.graph)
    layers = _layers(teacher.graph, request, teacher.skeleton.config)
    held: dict[str, int | str] = {}
    impossible: NoConfigError | None = None
    while True:
        try:
            widening = _widen(teacher.graph, request, held)
        except RefusedError as error:  # nothing is left that grows
            raise impossible or error from None
        try:
            student = _student(teacher, request, places, layers, widening, compare)
        except NoConfigError as error:
            modules = {name.rpartition(".")[0] for name in error.differing}
            more: dict[str, int | str] = {change.name: change.old for change in (widening.changes if widening else ())
                    if change.new != change.old and change.name.partition("[")[0] in modules}  # fmt: skip
            if request.factor is None or request.sizes or not more or held.keys() & more:
                raise
            held, impossible = held | more, error
            continue
        notes = [f"kept, as the class makes it of other sizes: {some(sorted(held))}"] if held else []
        return replace(student, notes=(*student.notes, *notes))


def _student(
    teacher: Teacher, request: Request, places: Mapping[str, str], layers: Layers, widening: Widening | None,
    compare: Compare | None,
) -> Student:  # fmt: skip
    """Return the student that a widening makes, with layers copied."""
    model = teacher.graph
    names = {name: (name, False) for name in teacher.parameters}
    if layers.copies:
        names = deeper_names(teacher.parameters, places, layers, model)
    own, notes = _parameters(teacher.parameters, places, _growths(widening))
    vocabulary = (0, 0)
    if request.tokens is not None:
        vocabulary = tokens_of(teacher.skeleton, request.tokens)
        own = with_tokens(teacher.skeleton, own, *vocabulary)
    ends = {name: layers.ends[place] for name, place in places.items() if place in layers.ends}
    grown = {name: _copied(name, own[source], ends.get(source)) if is_copy else replace(own[source], name=name)
             for name, (source, is_copy) in names.items()}  # fmt: skip
    absent = {name for name in (*teacher.skeleton.tied, *teacher.skeleton.tied.values())
              if teacher.called(name) not in teacher.folder.tensors}  # fmt: skip
    if teacher.unknown:
        notes.append(f"left out, as the class has none: {some(teacher.unknown)}")
    notes += widening.notes if widening else ()
    record = _record(request, widening)

    def made(config: dict[str, Any], skeleton: Skeleton) -> Student:
        tensors = tuple(Written(teacher.called(name), cut, grown[cut.parameter]) for name, cut in skeleton.cuts.items()
                        if name not in absent)  # fmt: skip
        config = {**config, **{name: value for name, value in skeleton.told.items() if name in config}}
        return Student(
            teacher, skeleton, config, grown, names, tensors, widening, layers, vocabulary, record, tuple(notes)
        )  # fmt: skip

    sizes = _sizes(model, widening.student if widening else model, grown, widening, layers, vocabulary)
    if teacher.skeleton.example is not None:  # arguments list what they like
        sizes = replace(sizes, layers={})
    return made(*grown_config(
        teacher.folder.config, teacher.skeleton.config, sizes, teacher.rebuild,
        (lambda *found: compare(made(*found))) if compare and teacher.skeleton.example is not None else None,
    ))  # fmt: skip


def _record(request: Request, widening: Widening | None) -> list[dict[str, Any]]:
    """Return what was done, as the record of a model has it."""
    steps = history(widening.student) if widening else []
    if request.depth is not None:
        steps.append({"operation": "deepen", "depth": request.depth, "append": request.append, "framework": "torch"})
    return steps


# --- The graph ----------------------------------------------------------------------------------------------------


def _places(skeleton: Skeleton, model: Model) -> dict[str, str]:
    """Return the constant of the graph that each parameter is, by name; tied ones are one."""
    known = {tensor.name for tensor in model.proto.graph.initializer}
    same: dict[str, list[str]] = {}
    for name in skeleton.shapes:
        same.setdefault(skeleton.tied.get(name, name), []).append(name)
    return {
        name: next(other for other in names if other in known)
        for names in same.values() for name in names if known.intersection(names)
    }  # fmt: skip


def _layers(model: Model, request: Request, config: Any) -> Layers:
    if request.depth is None:
        return Layers()
    return plan_layers(model, request.depth, request.append, is_told=_lists_layers(config))


def _lists_layers(config: Any) -> bool:
    """Tell whether a config has a list with an entry for each layer."""
    count = getattr(config, "num_hidden_layers", 0)
    return any(isinstance(value, list) and len(value) == count for value in config.to_dict().values())


def _widen(model: Model, request: Request, held: Mapping[str, int | str]) -> Widening | None:
    if request.factor is None and not request.dims:
        return None
    return widen(
        model, factor=request.factor, sizes={**request.dims, **held}, only=request.only, spread=request.spread,
        seed=request.seed, framework="torch", keep_numbers=request.keep_numbers, scale_weights=True,
        how=request.how,
    )  # fmt: skip


def _growths(widening: Widening | None) -> dict[str, WeightGrowth]:
    """Return how each constant of the graph grows.

    Raises:
        RefusedError: If one grows in several ways, where a class has one parameter.
    """
    found: dict[str, WeightGrowth] = {}
    for constant in widening.constants if widening else ():
        known = found.setdefault(constant.teacher, constant.growth)
        if [axis.key for axis in known.axes] != [axis.key for axis in constant.growth.axes]:
            raise RefusedError(f"{constant.teacher} would grow in several ways, where the class has one parameter")
    return found


def _parameters(
    stored: Mapping[str, Stored], places: Mapping[str, str], growths: Mapping[str, WeightGrowth]
) -> tuple[dict[str, StudentParameter], list[str]]:
    """Return the teacher's parameters with their growths, and notes on those that are not in the graph."""
    grown = {name: StudentParameter(name, stored[name], growths.get(place)) for name, place in places.items()}
    seen = [Entry(name, "same", (places[name],), one.stored, (one.growth,) if one.growth else ())
            for name, one in grown.items()]  # fmt: skip
    unseen = Unseen(seen, folded=False)
    others = [unseen.entry(name, one) for name, one in stored.items() if name not in grown]
    for entry in others:
        grown[entry.name] = StudentParameter(entry.name, entry.stored, entry.growths[-1] if entry.growths else None)
    return grown, [f"{entry.name} {entry.note}" for entry in others if entry.note]


def _copied(name: str, original: StudentParameter, end: float | None) -> StudentParameter:
    """Return the parameter of a layer's copy: the original's values, or one number where a branch ends."""
    if end is None:
        return replace(original, name=name)
    own = Stored.in_parts(original.shape, original.dtype, lambda low, high: np.full(high - low, end, original.dtype))
    return StudentParameter(name, own)


# --- The config ---------------------------------------------------------------------------------------------------


def _sizes(
    teacher: Model, student: Model, grown: Mapping[str, StudentParameter], widening: Widening | None, layers: Layers,
    vocabulary: tuple[int, int],
) -> StudentSizes:  # fmt: skip
    """Return what the student's config has to say."""
    pairs = {(old, new) for p in grown.values() for old, new in zip(p.stored.shape, p.shape, strict=True)}
    pairs |= {(change.old, change.new) for change in (widening.changes if widening else ())}
    pairs |= set(layers.counts.values())
    config = compare_widths(teacher, student).config
    named = {name: pair for name, pair in config.items() if all(type(value) is int for value in pair)}
    if "num_attention_heads" in named:  # keys have as many heads as queries, unless the graph tells them apart
        named.setdefault("num_key_value_heads", named["num_attention_heads"])
    if len(set(layers.counts.values())) == 1:
        named["num_hidden_layers"] = next(iter(layers.counts.values()))
    if vocabulary[0] != vocabulary[1]:
        named["vocab_size"] = vocabulary
    lists = {old: [layer for layer, _ in layers.order(group)] for group, (old, _) in layers.counts.items()}
    shapes = {name: parameter.shape for name, parameter in grown.items()}
    return StudentSizes(shapes, frozenset(pairs), named, lists)
