"""Values for the constants of a target: the teacher's, those of layers that do nothing, or the ones that it had."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_net2net.algebra.clipping import clip
from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.names import scope_of
from onnx_net2net.graph.graph import Constant
from onnx_net2net.operations.deepen.insert import dirac
from onnx_net2net.operations.transfer.convert import Conversion, compare, ring, surrounded
from onnx_net2net.operations.transfer.differences import Table
from onnx_net2net.operations.transfer.fit import Fit
from onnx_net2net.operations.transfer.modules import Item, Slot, Unit, Use
from onnx_net2net.operations.transfer.networks import Compute, Sides
from onnx_net2net.operations.transfer.numbers import Number
from onnx_net2net.rewrite.rewrite import shown_name

_NOTHING = 1e-8
"""An epsilon beside which a variance of 1 is 1 in single precision."""

Places = np.ndarray
"""A boolean for each place of an axis: whether the teacher has it."""


@dataclass(frozen=True)
class Source:
    """Where the values of a tensor of the target came from.

    Attributes:
        name: The tensor.
        shape: Its shape.
        origin: "teacher", "reconstructed" (the teacher's, fitted to what it makes of examples), "identity" (a layer or
            normalisation that does nothing), "zero", "measured" or "kept".
        teacher: The teacher's tensor, "" if there is none.
        target: Its name in the target, where several nodes may have read one tensor that no longer have equal values.
        scopes: The modules of the nodes that read it, "" where the file does not tell.
    """

    name: str
    shape: tuple[int, ...]
    origin: str
    teacher: str = ""
    target: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Write:
    """New values for one use of a constant.

    Attributes:
        key: What is the same for equal values.
        compute: What computes them, in the constant's own order.
        origin: Where they come from, as in `Source`.
        teacher: The teacher's tensor.
    """

    key: tuple[object, ...]
    compute: Compute
    origin: str
    teacher: str = ""


Changes = dict[tuple[int, str], Array]
"""What is added to a parameter of the teacher's unit, at the target's size, in the common order, by the node of the
target's unit and what the parameter is."""


class Filling:
    """The values that a target gets.

    Args:
        sides: The two networks, of which the teacher has the target's sizes by now; obstacles are noted.
        fit: How it got them.
        changes: What is added to parameters at the moment at which values are computed; None if nothing ever is.

    Attributes:
        kept: Units that keep what they had, if there may be changes.
    """

    def __init__(self, sides: Sides, fit: Fit, changes: Changes | None = None) -> None:
        self._sides, self._target = sides, sides.target
        self._sizes, self._factors, self._tied = fit.sizes, fit.factors, fit.tied
        analysis = sides.target.analysis
        self._changes = changes
        self._initial = {key: analysis.draft.reader(use.constant) for key, use in analysis.uses.items()}
        self._writes: dict[Use, _Write] = {}
        self.kept: list[Unit] = []

    # -- from the teacher --------------------------------------------------------------------------------------

    def fill(self, old: Unit, new: Unit) -> None:
        """Give the parameters of a unit of the target those of one of the teacher."""
        compare(self._sides, old, new)
        slots = {what: self._tied.get(new.slots[what].use, slot) if what in new.slots else slot
                 for what, slot in old.slots.items()}  # fmt: skip
        reads = {what: read for what, slot in slots.items() if (read := self._sides.teacher.reader(slot))}
        for what in [what for what in old.slots if what not in reads]:
            self._sides.hinder(old.name, f"its {what} needs nodes of its own when it grows")
        shifts = "weight" in reads and ("bias" in new.slots or new.norm is not None)
        if self._changes is not None and shifts and not reads.keys() & {"bias", "mean"}:
            reads["bias"] = partial(np.zeros, self._sides.teacher.shape(slots["weight"])[0], np.float32)
        reads = {what: self._changed(new, what, read) for what, read in reads.items()}
        values = Conversion(self._sides, old, new, dict(reads)).convert()
        for what, slot in new.slots.items():
            source = slots.get(what) or (slots.get("shift") if what == "bias" else None)
            if what in values and source is not None:
                is_plain = values[what] is reads.get(what) and (self._changes is None or what == "weight")
                self._put(new, what, values[what], source, () if is_plain else (what, new.node))
            elif what in values:
                self._write(slot, ("identity", slot.use), values[what], "identity")

    def _changed(self, unit: Unit, what: str, read: Compute) -> Compute:
        """Return what reads a parameter with what is to be added to it then."""
        changes = self._changes
        if changes is None:
            return read

        def values() -> Array:
            change = changes.get((unit.node, what))
            return read() if change is None else read() + change

        return values

    def _put(self, unit: Unit, what: str, compute: Compute, source: Slot, converted: tuple[object, ...]) -> None:
        """Write a parameter of the teacher, in the common order, to the place of one of the target.

        Args:
            unit: The unit of the target.
            what: Which of its parameters.
            compute: What computes the values.
            source: Where the teacher has them.
            converted: What else equal values have in common, if they are no longer the teacher's own.
        """
        slot, constant = unit.slots[what], self._sides.teacher.constant(source)
        if not self._is_same_kind(constant, slot):
            self._sides.hinder(unit.name, f"its {what} is quantized in one of the two networks only")
            return
        zeros = ring(self._sides, source, slot) if what == "weight" else None
        parts = self._parts(slot, source)

        def values() -> Array:
            made = compute() if zeros is None else surrounded(compute(), zeros)
            return self._spread(made, slot, parts, zero=what == "weight") if parts else made

        grown = list(self._sides.teacher.shape(source))
        for axis, places in parts:
            if grown and grown[axis] == int(places.sum()):
                grown[axis] = len(places)
        wanted = self._target.shape(slot)
        if grown and zeros is None and _real(grown) != _real(wanted):
            self._misfit(unit, what, grown, wanted)
        key = "teacher", id(constant), slot.order, converted
        self._write(slot, key, values, "teacher", constant.name if constant is not None else "")

    def _is_same_kind(self, constant: Constant | None, slot: Slot) -> bool:
        """Tell whether both constants hold floats, or both integers of one type."""
        own = self._target.analysis.uses[slot.use].constant
        if constant is None or (self._sides.teacher.is_float(constant) and self._target.is_float(own)):
            return True
        return self._sides.teacher.dtype(constant) == self._target.dtype(own)

    def _misfit(self, unit: Unit, what: str, grown: Sequence[int], wanted: Sequence[int]) -> None:
        """Note once that a unit is filled in part."""
        if not any(obstacle.place == unit.name for obstacle in self._sides.obstacles):
            texts = [" x ".join(map(str, _real(shape))) for shape in (wanted, grown)]
            reason = f"its {what} of {texts[0]} is filled in part, from one of {texts[1]}"
            self._sides.hinder(unit.name, reason)

    def _parts(self, slot: Slot, source: Slot) -> list[tuple[int, Places]]:
        """Return the axes of which the target has parts that the teacher has not, with the places that it has."""
        axes = source.axes(self._sides.teacher.analysis), slot.axes(self._target.analysis)
        found = []
        for axis, (old, new) in enumerate(zip(*axes, strict=True) if len(axes[0]) == len(axes[1]) else ()):
            segments = self._sizes.segments(old, new)
            if segments is not None:
                found.append((axis, np.concatenate([np.full(size, own) for size, own in segments])))
        return found

    def _spread(self, values: Array, slot: Slot, parts: list[tuple[int, Places]], zero: bool) -> Array:
        """Put values where the teacher has them; the other places are not read, or keep what they had."""
        initial = np.array(slot.common(self._initial[slot.use]()))
        for axis, places in parts:
            if values.shape[axis] != int(places.sum()):
                return values
            shape = [size if other != axis else len(places) for other, size in enumerate(values.shape)]
            rest = initial.shape == tuple(shape) and not zero
            whole = initial if rest else np.zeros(shape, values.dtype)
            whole[(slice(None),) * axis + (places,)] = values
            values = whole
        return values

    def _write(self, slot: Slot, key: tuple[object, ...], compute: Compute, origin: str, teacher: str = "") -> None:
        """Write values in the common order; of those of another shape the middle."""
        constant = self._target.analysis.uses[slot.use].constant
        shape, kind, wanted = tuple(constant.shape), self._target.dtype(constant), self._target.shape(slot)

        def values() -> Array:
            made = compute()
            if made.size == math.prod(wanted) and _real(made.shape) == _real(wanted):
                made = made.reshape(wanted)
            else:
                initial = np.array(slot.common(self._initial[slot.use]()))
                made = clip(made, initial) if made.ndim == initial.ndim else initial
            if factors is not None:
                made = made * factors.reshape(-1, *(1 for _ in made.shape[1:]))
            return slot.own(made, shape).astype(kind, copy=False)

        factors = self._factors.get(slot.use)
        self._writes[slot.use] = _Write((*key, id(factors)), values, origin, teacher)

    def copy(self, number: Number) -> None:
        """Give a single number the teacher's value, if the target stores it as a parameter."""
        if number.is_stored:
            self._fill_with(number.use, number.old, "teacher", number.teacher)
        else:
            node = self._target.nodes[number.use[0]]
            reason = f"a number of this {node.op} is {number.old:.6g} in the teacher and {number.new:.6g} in the target"
            self._sides.hinder(node.name or node.outputs[0].name, reason)

    def copy_table(self, table: Table) -> None:
        """Give a mask or a list of places the teacher's values, if it is no parameter of a unit."""
        key = "table", table.teacher, table.use
        self._writes.setdefault(table.use, _Write(key, table.read, "teacher", table.teacher))

    # -- what the target has in excess -------------------------------------------------------------------------

    def silence(self, item: Item) -> None:
        """Let what nothing corresponds to compute the identity."""
        if item.block is not None:
            if not item.neutral:
                reason = f"nothing in the teacher corresponds to this block, and {item.block.reason}"
                self._sides.hinder(item.name, reason)
                self._keep(item.units)
                return
            for use in item.block.zeroed:
                self._fill_with(use, 0.0, "zero")
            return
        (unit,) = item.units
        if unit.neutral:
            self._make_identity(unit)
        elif item.repeats:
            self._undo(unit)
            epsilon = self._target.epsilon(unit.node)
            if epsilon > _NOTHING:
                reason = f"it normalises once more, which is not the same to about its epsilon of {epsilon:.0e}"
                self._sides.hinder(unit.name, reason)
        elif self._target.nodes[unit.node].op in ("Mul", "Add", "BatchNormalization"):
            self._undo(unit)
        elif "weight" in unit.slots:
            reason = f"nothing in the teacher corresponds to it, and this {unit.text} cannot compute the identity here"
            self._sides.hinder(unit.name, reason)
            self._keep(item.units)
        else:
            what = "normalising twice is not normalising once" if unit.normalises else "it keeps its values"
            self._sides.hinder(unit.name, f"nothing in the teacher corresponds to this {unit.text}; {what}")

    def _keep(self, units: Sequence[Unit]) -> None:
        """Leave units as they are, but for what is measured of them."""
        for unit in units if self._changes is not None else ():
            self.kept.append(unit)
            for what in unit.slots.keys() & {"mean", "variance"}:
                slot = unit.slots[what]
                read = self._changed(unit, what, partial(slot.common, self._initial[slot.use]()))
                self._write(slot, ("kept", slot.use), read, "kept")

    def _fill_with(self, use: Use, value: float, origin: str, teacher: str = "") -> None:
        constant = self._target.analysis.uses[use].constant
        shape, kind = tuple(constant.shape), self._target.dtype(constant)
        self._writes[use] = _Write((origin, value, shape), partial(np.full, shape, value, kind), origin, teacher)

    def _make_identity(self, unit: Unit) -> None:
        """Make a layer an identity, and let its normalisation undo itself."""
        slot = unit.slots["weight"]
        group = int(self._target.nodes[unit.node].attrs.get("group", 1))
        shape = tuple(axis.size for axis in slot.axes(self._target.analysis))
        weights = partial(dirac(shape[0], group), shape, np.dtype(np.float32))
        self._write(slot, ("identity", slot.use), weights, "identity")
        self._undo(unit)

    def _undo(self, unit: Unit) -> None:
        """Let a normalisation, or a scale and a shift that are constants, do nothing."""
        epsilon = self._target.epsilon(unit.norm) if unit.norm is not None else 0.0
        values = {"scale": math.sqrt(1 + epsilon), "variance": 1.0}
        for what, slot in unit.slots.items():
            if what != "weight":
                self._fill_with(slot.use, values.get(what, 0.0), "identity")

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self) -> Iterator[Source]:
        """Put all values into the target's draft; constants that several nodes read in different ways are parted."""
        nodes = self._target.nodes
        for uses in self._target.analysis.readings():
            constant, keys = uses[0].constant, [(use.node, use.input) for use in uses]
            parted: dict[object, list[Use]] = {}
            values = [key for key in keys if nodes[key[0]].op not in ("Shape", "Size")]  # the shape stays
            for key in values or keys:
                parted.setdefault(self._writes[key].key if key in self._writes else None, []).append(key)
            is_float = self._target.is_float(constant) and math.prod(constant.shape) > 1
            first, shape = keys[0], tuple(constant.shape)
            name = shown_name(nodes[first[0]].inputs[first[1]])  # that of a Constant node has none of its own
            for position, (what, readers) in enumerate(sorted(parted.items(), key=lambda item: item[0] is not None)):
                if what is not None:
                    write = self._writes[readers[0]]
                    own = self._replace(constant, name, write.compute, readers if position else ())
                    yield Source(own, shape, write.origin, write.teacher, name, self._scopes(readers))
                elif is_float:
                    yield Source(name, shape, "kept", "", name, self._scopes(readers))

    def _replace(self, constant: Constant, name: str, compute: Compute, parted: Sequence[Use]) -> str:
        """Give a constant new values, or those of its readers that are to have other ones; return the name."""
        draft, shape = self._target.analysis.draft, tuple(constant.shape)
        if not parted:
            draft.replace(constant, shape, compute)
            return name
        kind = draft.type_of(constant)
        own = draft.lazy_constant(f"{name}_own", kind, shape, compute, like=constant)
        for node, index in parted:
            self._target.nodes[node].inputs[index] = own
        return str(own.name)

    def _scopes(self, readers: Sequence[Use]) -> tuple[str, ...]:
        nodes = self._target.opened.model.proto.graph.node
        return tuple(scope_of(nodes[number]) for number, _ in readers)


def _real(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)
