"""Compares tensors inside two models: finds the first that differs, and inner tensors for outputs that never move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_net2net.algebra.floats import Array, epsilon
from onnx_net2net.model.protos import by_name, captured, refill
from onnx_net2net.proof.compare import Judge, gap, largest_of
from onnx_net2net.proof.noise import FLOATS, drawn, noisy_twin, nudged
from onnx_net2net.run.inputs import Feeds, input_specs
from onnx_net2net.run.session import LEVELS, Level, Runner

Embed = Callable[[str], Sequence[Array | None] | None]
"""For a tensor of the teacher, the positions of its units on each axis of the student's (None: all of
the axis); None if the two cannot be compared."""

_WITNESS = 1e-3
"""A tensor that moves by less than this part of its largest value counts as one that does not move."""

_CHUNK = 128  # intermediate tensors fetched in one run: what bounds the memory of the search


@dataclass(frozen=True)
class Stand:
    """The tensors that are compared instead of an output that is the same whatever the inputs are.

    Attributes:
        tensors: Those that the output is made from, that move, and that agree.
        differs: One of those that does not agree.
    """

    tensors: tuple[str, ...] = ()
    differs: str | None = None


@dataclass(frozen=True)
class Insides:
    """Compares tensors inside two models.

    Attributes:
        teacher: The model file.
        student: The other one.
        open_with: Opens a model for running.
        judge: Compares two tensors.
        embed: Tells where the teacher's units are in the student.
    """

    teacher: Path
    student: Path
    open_with: Callable[..., Runner]
    judge: Judge
    embed: Embed

    def first_difference(self, feeds: Feeds) -> str | None:
        """Return the first float tensor of the teacher, in topological order, that the student does not reproduce."""
        names = [name for node in _read(self.teacher).graph.node for name in node.output if name]
        return next((name for name, agree in self._agreements(names, feeds) if not agree), None)

    def stand_for(self, output: str, feeds: tuple[Feeds, Feeds]) -> Stand:
        """Go back from an output, and compare the first tensors that both models have and that two feeds tell apart."""
        old, new = _read(self.teacher).graph, _read(self.student).graph
        ours, theirs = by_name(old.initializer), by_name(new.initializer)
        producers = {name: node for node in old.node for name in node.output}
        moves = self._moving(list(producers), feeds)
        agreeing: list[str] = []
        front, seen, walked = [output], set[str](), list[str]()
        while front:
            walked += front
            made = {name for at in front for name in (*producers[at].input, *captured([producers[at]])) if name}
            seen |= (made := made - seen)
            found = dict(self._agreements(sorted(made & moves), feeds[0], integers=True))
            others = (n for n in made if n in ours and n in theirs and _changed(ours[n], theirs[n]))
            differs = next((name for name, agree in found.items() if not agree), None) or next(others, None)
            if differs is not None:
                return Stand(differs=differs)
            agreeing += found
            front = [name for name in made if name in producers and name not in found]
        if not agreeing:  # the same nodes with the same constants make it of the inputs
            copies = {name: node for node in new.node for name in node.output}
            constants = seen & ours.keys()
            if constants <= theirs.keys() and all(
                name in copies and producers[name].SerializeToString() == copies[name].SerializeToString()
                for name in walked
            ):
                small = all(_is_inside(tensors[name]) for name in constants for tensors in (ours, theirs))
                agreeing += sorted(seen - producers.keys() - constants) if small else []
        return Stand(tuple(agreeing))

    def _moving(self, names: Sequence[str], feeds: tuple[Feeds, Feeds]) -> set[str]:
        """Return which tensors of the teacher are not the same for two sets of inputs."""
        moves: set[str] = set()
        proto = _read(self.teacher)
        for chunk in _chunks(names):
            one, other = (self._values(chunk, proto, self.teacher, LEVELS[0], fed) for fed in feeds)
            known = (name for name in chunk if name in one and name in other)
            moves |= {name for name in known if differ(one[name], other[name], _WITNESS * largest_of(one[name]))}
        return moves

    def _agreements(self, names: Sequence[str], feeds: Feeds, *, integers: bool = False) -> Iterator[tuple[str, bool]]:
        """Tell of each float tensor that can be compared whether it agrees; of integers, if asked, only those that do.

        Integers that differ may be sizes that have grown, or be rounded to another step.
        """
        old, noisy, new = _read(self.teacher), _read(self.teacher), _read(self.student)
        theirs = {name for node in new.graph.node for name in node.output}
        rng = np.random.default_rng(0)
        moved = nudged(feeds, input_specs(old), rng)
        moved |= drawn(noisy_twin(noisy), rng)
        plain, optimized = LEVELS
        for chunk in _chunks([name for name in names if name in theirs]):
            runs = (
                self._values(chunk, old, self.teacher, plain, feeds),
                self._values(chunk, old, self.teacher, optimized, feeds),
                self._values(chunk, noisy, self.teacher, plain, moved),
            )
            answer = self._values(chunk, new, self.student, plain, feeds)
            for name in chunk:
                known = [run[name] for run in runs if name in run]
                found = _embedded(answer[name], self.embed(name)) if name in answer else None
                if found is None or len(known) < len(runs) or found.shape != known[0].shape:
                    continue  # grown
                agree = not self.judge(name, found, known[:2], known[2:]).different_fraction
                if epsilon(found.dtype) or (integers and agree):
                    yield name, agree

    def _values(
        self, names: Sequence[str], proto: onnx.ModelProto, path: Path, level: Level, feeds: Feeds
    ) -> dict[str, Array]:
        """Run a model, whose outputs are replaced, for some of its tensors."""
        refill(proto.graph.output, [onnx.ValueInfoProto(name=name) for name in names])
        return self.open_with(proto.SerializeToString(), level, file=path)(feeds)


def _read(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))


def _is_inside(tensor: onnx.TensorProto) -> bool:
    """Tell whether the values of a constant are in the model's own file."""
    return bool(tensor.data_location != onnx.TensorProto.EXTERNAL)


def _changed(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    """Tell whether two float constants of the same shape have other values, as far as the file itself has them."""
    if one.data_type not in FLOATS or one.dims != other.dims or not (_is_inside(one) and _is_inside(other)):
        return False  # integers may be sizes, which grow
    return differ(numpy_helper.to_array(one), numpy_helper.to_array(other))


def differ(one: Array, other: Array, slack: float = 0.0) -> bool:
    """Tell whether two arrays have values further apart than `slack` in the part that is common to their shapes."""
    if one.ndim != other.ndim:
        return True
    part = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return bool(np.any(gap(one[part], other[part]) > slack))


def _embedded(values: Array, positions: Sequence[Array | None] | None) -> Array | None:
    """Return the teacher's units among those of the student's tensor."""
    if positions is None or len(positions) != values.ndim:
        return None
    for axis, chosen in enumerate(positions):
        if chosen is not None:
            values = np.take(values, chosen, axis)
    return values
