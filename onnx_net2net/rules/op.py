"""One node as its rule sees it, and the statements that a rule can make about it.

A rule reads `inputs`, `outputs` (axes), `values` (integers that are known) and `attrs`, and makes statements:
which axes are the same (`unify`, `apply`, `broadcast`), which must stay (`freeze`), which carry a statistic
(`uniform`), which are summed over (`contract`), and which numbers in the node are sizes (`sizes`, `attribute`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from onnx_net2net.algebra import dims
from onnx_net2net.algebra.dims import Axes, Axis, Concat, Dim, Product
from onnx_net2net.rules.reasons import KERNEL, LOOKED_UP, RANKED, UNREAD, Reason
from onnx_net2net.rules.signature import Term, parse
from onnx_net2net.rules.statements import (
    Contraction,
    IndexRange,
    Integers,
    Selection,
    SizeAttribute,
    SizeInput,
    Statements,
    Statistic,
)


class _Attributes(dict[str, Any]):
    """Attribute values by name, with the names that were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


class UnknownShapeError(Exception):
    """A rule needs the axes of an operand that are not known."""


def required(axes: Axes | None) -> Axes:
    """Return axes; raise UnknownShapeError where they are not known."""
    if axes is None:
        raise UnknownShapeError
    return axes


def is_one(axis: Axis) -> bool:
    """Tell whether an axis is of size 1 and stays so: it stretches along others."""
    return axis.size == 1 and all(dim.frozen for dim in dims.leaves(axis))


class Op:
    """One node as its rule sees it: methods that read the node, and methods that make statements about its axes.

    The object notes what a rule reads. If the rule overlooks an attribute or an operand, the node is frozen.

    Attributes:
        kind: Operator type. `domain` and `version` (the opset that the model imports) belong to it.
        label: The node's name in messages.
        attrs: Attribute values by name.
        inputs: For each input its axes; None if the node leaves it out or its shape is not known.
        outputs: The same for outputs.
        values: For each input its value as an array, if it is a small constant or follows from shapes; else None.
        constant: For each input: whether its value is the same for all sizes of the dynamic axes.
        listed: For each input with indices that a node chose along an axis (TopK, ArgMax): this axis.
    """

    def __init__(
        self,
        kind: str,
        label: str,
        inputs: Sequence[Axes | None],
        outputs: Sequence[Axes | None],
        *,
        domain: str = "",
        version: int = 1,
        attrs: Mapping[str, Any] | None = None,
        values: Sequence[np.ndarray | None] = (),
        constant: Sequence[bool] = (),
        listed: Mapping[int, Axis] = MappingProxyType({}),
    ) -> None:
        self.kind, self.label, self.domain, self.version = kind, label, domain, version
        self.attrs = _Attributes(attrs or {})
        self._inputs, self._outputs = list(inputs), list(outputs)
        self.values = list(values) or [None] * len(self._inputs)
        self.constant = list(constant) or [False] * len(self._inputs)
        self.listed = listed
        self.said = Statements()
        self.read_inputs: set[int] = set()
        self.read_outputs: set[int] = set()

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[Axes | None]:
        """The axes of each input; asking for them marks every input as read."""
        self.read_inputs.update(range(len(self._inputs)))
        return self._inputs

    @property
    def outputs(self) -> list[Axes | None]:
        """The axes of each output; asking for them marks every output as read."""
        self.read_outputs.update(range(len(self._outputs)))
        return self._outputs

    def input(self, index: int) -> Axes | None:
        """Return the axes of an input; None if the node leaves it out or its shape is not known."""
        self.read_inputs.add(index)
        return self._inputs[index] if index < len(self._inputs) else None

    def output(self, index: int = 0) -> Axes | None:
        """Return the axes of an output; None if the node leaves it out or its shape is not known."""
        self.read_outputs.add(index)
        return self._outputs[index] if index < len(self._outputs) else None

    def known(self, index: int) -> Axes:
        """Return the axes of an input that the operator always has; without them the node is frozen.

        Raises:
            UnknownShapeError: Its shape is not known; the node is then frozen.
        """
        return required(self.input(index))

    def result(self) -> Axes:
        """Return the axes of the first output; see `known`."""
        return required(self.output())

    def value(self, index: int) -> np.ndarray | None:
        """Return the value of an input as an array; None if it is not known."""
        self.read_inputs.add(index)
        return self.values[index] if index < len(self.values) else None

    def overlooked(self) -> Iterator[tuple[str, str | int]]:
        """Yield what the node has and the rule did not read: ("attribute", name), ("input", i), ("output", i)."""
        yield from [("attribute", name) for name in self.attrs if name not in self.attrs.asked]
        ends = ("input", self._inputs, self.read_inputs), ("output", self._outputs, self.read_outputs)
        for what, operands, read in ends:
            yield from [(what, k) for k, axes in enumerate(operands) if axes is not None and k not in read]

    def forget_readers(self) -> None:
        """Forget what was read so far."""
        self.attrs.asked.clear()
        self.read_inputs.clear()
        self.read_outputs.clear()

    def has(self, index: int) -> bool:
        """Tell whether the node has this input."""
        return self.input(index) is not None

    def ints(self, name: str, index: int | None = None) -> list[int] | None:
        """Return the integers of an attribute or, as in newer opsets, of an input; None if neither is known."""
        if name in self.attrs:
            value = self.attrs[name]
            return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
        known = self.value(index) if index is not None else None
        return None if known is None else [int(v) for v in known.reshape(-1)]

    def axis(self, rank: int, default: int, name: str = "axis") -> int:
        """Return an attribute that names one of `rank` axes, as a number that is not negative."""
        return int(self.attrs.get(name, default)) % max(rank, 1)

    # -- saying ----------------------------------------------------------------------------------------

    def why(self, reason: str) -> str:
        """Phrase a reason with the node in front."""
        text = f"{self.kind} {self.label!r} {reason}"
        return Reason(text, reason.kind) if isinstance(reason, Reason) else text

    def unify(self, a: Axis, b: Axis, reason: str = "cannot have different dims on this axis") -> bool:
        """State that two axes have the same units in the same order; return whether that is possible."""
        return a is b or dims.join(a, b) or dims.unify(a, b, self.why(reason))

    def unify_all(self, left: Iterable[Axis], right: Iterable[Axis]) -> None:
        """State that two sequences of axes are the same, one by one."""
        for a, b in zip(left, right, strict=True):
            self.unify(a, b)

    def freeze(self, axes: Axis | Iterable[Axis] | None, reason: str) -> None:
        """State that axes keep their size and order; the reason follows the node's name in messages."""
        all_axes = (axes,) if isinstance(axes, (Dim, Product, Concat)) else tuple(axes or ())
        why = self.why(reason) if all_axes else ""
        for axis in all_axes:
            dims.freeze(axis, why)

    def look_up(self, axis: Axis, index: int | None = None) -> None:
        """State that indices at run time pick entries along an axis: it keeps its size, or gets new entries at its end.

        Args:
            axis: The axis.
            index: The input with the indices. If a node chose them along another axis, the two axes are the same.
        """
        dims.pin(axis, self.why(LOOKED_UP))
        self.said.tables += (axis,)
        source = self.listed.get(index) if index is not None else None
        if source is not None and source.size == axis.size:
            self.unify(source, axis, "looks up what was chosen along another axis")

    def choose(
        self, index: int, position: int, *outputs: int, reason: str = "ranks the entries along this axis"
    ) -> None:
        """State that the largest entries along an axis of an input are chosen; `outputs` hold their indices.

        The axis keeps its size. Or it gets copies, if only one copy can be chosen at a time (see `analysis.routers`).
        """
        axis = self.known(index)[position]
        dims.pin(axis, self.why(reason))
        self.said.choices += ((index, position),)
        self.said.places.update(dict.fromkeys(outputs, axis))

    def chosen(self, axes: Sequence[Axis]) -> None:
        """State that these axes of outputs, which run over the chosen entries (as in TopK), are one; see `choose`."""
        for axis in axes:
            self.unify(axes[0], axis)
            dims.pin(axis, self.why(RANKED))
        self.said.chosen += tuple(axes[:1])

    def normalise(self, axes: Iterable[Axis]) -> None:
        """State that a softmax runs over axes: they keep their size, or get new entries whose probability is 0."""
        for axis in axes:
            dims.pin(axis, self.why("normalises over this axis"))
            self.said.normalised += (axis,)

    def freeze_all(self, reason: str) -> None:
        """Fix every axis of the node."""
        self.said.closed = True
        for axes in (*self._inputs, *self._outputs):
            self.freeze(axes, reason)

    def uniform(
        self,
        axes: Iterable[Axis],
        law: str | None = None,
        *,
        inputs: tuple[int, ...] = (0,),
        scale: int | None = None,
        shift: int | None = None,
        total: int | None = None,
        epsilon: float = 1e-5,
    ) -> None:
        """State that a statistic runs over axes, so that all their units are copied equally often.

        With a `law` the dim may also have any width: padding units that the statistic does not notice are added, and
        the node's scale and `epsilon` are corrected. `Statistic` describes the arguments.
        """
        over = tuple(axes)
        for axis in over:
            dims.keep_uniform(axis, self.why("takes a statistic over it"))
        self.said.statistics += (Statistic(over, law, inputs, scale, shift, total, epsilon),)

    def only_copies(self, axis: Axis, reason: str) -> None:
        """Allow only growth whose new units are copies of old ones."""
        dims.only_copies(axis, self.why(reason))

    def shares(self, position: int) -> None:
        """State that a softmax runs over hidden units on an axis of input 0: copies share the unit's probability."""
        self.said.normalised += (self.input(0) or ())[position : position + 1]
        self.said.shares += (position,)

    def contract(self, axis: Axis, sides: Iterable[tuple[int, int]], law: str = "sum") -> None:
        """State that the node sums over an axis; `Contraction` describes the arguments."""
        self.said.contractions += (Contraction(axis, tuple(sides), law),)

    def size(
        self,
        index: int,
        element: int,
        *axes: Axis,
        whole: Axis | None = None,
        instead: Mapping[int, Axis | None] = MappingProxyType({}),
    ) -> None:
        """State that an element of an integer input is the total size of the axes; see `SizeInput`."""
        self.read_inputs.add(index)
        self.said.size_inputs += (SizeInput(index, element, axes, whole, instead),)

    def attribute(self, name: str, *axes: Axis, element: int | None = None, whole: Axis | None = None) -> None:
        """State that an attribute (or one entry of it) is the total size of the axes; see `size`."""
        self.attrs.asked.add(name)
        self.said.size_attributes += (SizeAttribute(name, element, axes, whole),)

    def default(self, name: str, value: float, axis: Axis) -> None:
        """State that an absent attribute stands for `value`; when the axis grows, this value has to be written."""
        self.said.defaults += ((name, value, axis),)

    def select(self, axis: int, units: Sequence[Axis], order: np.ndarray, index: int | None = None) -> None:
        """State that the node picks units along an axis; see `Selection`."""
        self.said.selections += (Selection(axis, tuple(units), order, index),)

    def permute(self, position: int, source: Axis, target: Axis, order: np.ndarray, index: int | None = None) -> bool:
        """State that unit `k` of `target` is unit `order[k]` of `source`; each unit becomes a dim of its own.

        Args:
            position: The position of the axis.
            source: The axis of the input.
            target: The axis of the output.
            order: For each unit of the output, its position in the input.
            index: The input that holds `order`, if there is one.
        """
        if all(dim.frozen for dim in (*dims.leaves(source), *dims.leaves(target))):
            return True
        if all(dim.frozen for dim in dims.leaves(target)):
            self.freeze(source, "looks fixed places up along this axis")
            return True
        if np.array_equal(order, np.arange(source.size)):
            self.select(position, [source], np.array([0]), index)
            return self.unify(source, target)
        if max(source.size, target.size) > dims.LIMIT:
            self.freeze((source, target), "rearranges more units than are followed one by one")
            return True
        single = dims.units(source)
        self.select(position, single, order, index)
        return self.unify(Concat(single[k] for k in order), target)

    def list_run(self, index: int, column: int, along: int, before: Axis, units: Axis, rest: Axis) -> None:
        """State that an input lists a range of indices; `IndexRange` describes the arguments."""
        self.said.runs += (IndexRange(index, column, along, before, units, rest),)

    def pointwise(self, kind: str) -> None:
        """State what the node does to each unit alone.

        Args:
            kind: "linear": f(a x + b y) = a f(x) + b f(y). "zero": zeros stay zeros. "relu": zeros stay zeros, but get
                no gradient. "partial": random values may become infinite or NaN (log, sqrt). "any": none of these.
        """
        self.said.pointwise = kind

    def scales(self, *inputs: int) -> None:
        """State that these inputs are factors or divisors: for new units that are zero they are copied, not zero."""
        self.said.scales = self.said.scales.union(inputs)

    def ignores(self, *inputs: int) -> None:
        """State that the node reads only the dtype or the shape of these inputs, so that any size will do."""
        self.read_inputs.update(inputs)
        self.said.ignored = self.said.ignored.union(inputs)

    def scalars(self, *inputs: int) -> None:
        """State that these inputs are numbers for the whole node, like a ratio or a count; their axes are frozen."""
        self.said.ignored = self.said.ignored.union(inputs)
        for index in inputs:
            self.freeze(self.input(index), UNREAD)

    def integers(self, index: int, zero_point: int, axis: int) -> None:
        """State that an input holds integers to compute with; copies share those of a constant in whole parts.

        Args:
            index: The input.
            zero_point: The input that holds their zero point, if the node has one.
            axis: The axis of the integers along which a one-dimensional zero point lies.
        """
        self.said.integers[index] = Integers(zero_point, axis)

    def broadcast(self, operands: Iterable[Axes | None], result: Axes) -> None:
        """State that operands are broadcast to the result as in ONNX and numpy: aligned at the right, 1 stretches."""
        for axes in operands:
            for a, b in zip(reversed(axes or ()), reversed(result), strict=False):
                if a.size == b.size and not (a.size == 1 and is_one(a) and not is_one(b)):
                    self.unify(a, b)
                elif a.size not in (1, b.size):
                    self.freeze((a, b), "has axes that do not broadcast")

    # -- signatures ------------------------------------------------------------------------------------

    def apply(
        self, text: str, *, sizes: Mapping[str, str | int] | None = None, fixed: str = "", uniform: str = ""
    ) -> None:
        """Make the statements of a signature (see `onnx_net2net.rules.signature`).

        Args:
            text: The signature.
            sizes: For letters whose size does not follow from the shapes: a number, or the name of an attribute. The
                attribute (1 if absent) holds the size, and is changed when the dim grows.
            fixed: Letters, separated by spaces, of axes that never grow.
            uniform: Letters, separated by spaces, of axes that a statistic runs over.
        """
        signature = parse(text)
        known: dict[str, Axis | Axes] = {}
        numbers = {k: int(self.attrs.get(v, 1)) if isinstance(v, str) else v for k, v in (sizes or {}).items()}
        contracted, places = signature.contracted, dict[tuple[str, int], int]()
        operands = [self.input(index) for index in range(len(signature.inputs))]
        operands += [self.output(index) for index in range(len(signature.outputs))]
        for index, axes in enumerate(operands):
            if axes is None:
                continue
            matched = signature.aligned(index, len(axes))
            if matched is None:
                self.freeze_all("has an operand of unexpected rank")
                return
            for term, position, run in matched:
                for name in term.names if contracted else ():
                    if name in contracted:
                        places[name, index] = position
                self._bind(term, axes[position : position + len(run)], known, numbers)
        for name in fixed.split():
            self.freeze(known.get(name), KERNEL)
        for name in uniform.split():
            found = known.get(name, ())
            self.uniform(found if isinstance(found, tuple) else (found,))
        for name, holders in contracted.items():
            axis = known.get(name)
            sides = [(index, places[name, index]) for index in holders if (name, index) in places]
            if axis is not None and not isinstance(axis, tuple):
                self.contract(axis, sides)
        for name, size in (sizes or {}).items():
            axis = known.get(name)
            if isinstance(size, str) and axis is not None and not isinstance(axis, tuple):
                self.attribute(size, axis)

    def _bind(self, term: Term, run: Axes, known: dict[str, Axis | Axes], numbers: dict[str, int]) -> None:
        """Give the letters of a term their axes, or unify with those they have."""
        if term.star:
            earlier = known.setdefault(term.names[0], run)
            if isinstance(earlier, tuple) and len(earlier) == len(run):
                self.unify_all(earlier, run)
            return
        if not run:
            return
        (axis,) = run
        if len(term.names) == 1:
            earlier = known.setdefault(term.names[0], axis)
            if earlier is axis or isinstance(earlier, tuple) or (term.broadcast and axis.size == 1 != earlier.size):
                return
            self.unify(earlier, axis)
            return
        missing = [name for name in term.names if name not in known and name not in numbers]
        covered = 1
        for name in term.names:
            covered *= known[name].size if name in known else numbers.get(name, 1)  # type: ignore[union-attr]
        if len(missing) > 1 or axis.size % max(covered, 1) or covered == 0:
            self.freeze(axis, "does not divide this axis")
            return
        for name in term.names:
            if name not in known:
                own = covered == 1 and name not in numbers  # the factor is the axis, also where its size is 1
                known[name] = axis if own else Dim(numbers[name] if name in numbers else axis.size // covered)
        self.unify(Product([known[name] for name in term.names]), axis)  # type: ignore[misc]
