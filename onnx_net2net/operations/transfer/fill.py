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
from onnx_net2net.operations.transfer.modules import Module, Parameter, Segment, Use
from onnx_net2net.operations.transfer.networks import Compute, Networks
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
"""What is added to a parameter of the teacher's module, at the target's size, in the common order, by the node of the
target's module and what the parameter is."""


class Filling:
    """The values that a target gets.

    Args:
        networks: The two networks, of which the teacher has the target's sizes by now; obstacles are noted.
        fit: How it got them.
        changes: What is added to parameters at the moment at which values are computed; None if nothing ever is.

    Attributes:
        kept: Modules that keep what they had, if there may be changes.
    """

    def __init__(self, networks: Networks, fit: Fit, changes: Changes | None = None) -> None:
        self._networks, self._target = networks, networks.target
        self._fit = fit
        analysis = networks.target.analysis
        self._changes = changes
        self._initial = {key: analysis.draft.reader(use.constant) for key, use in analysis.uses.items()}
        self._writes: dict[Use, _Write] = {}
        self.kept: list[Module] = []

    # -- from the teacher --------------------------------------------------------------------------------------

    def fill(self, old: Module, new: Module) -> None:
        """Give the parameters of a module of the target those of one of the teacher."""
        compare(self._networks, old, new)
        parameters = self._fit.sources(old, new)
        reads = self._networks.teacher.readers(parameters)
        for what in [what for what in old.parameters if what not in reads]:
            self._networks.hinder(old.name, f"its {what} needs nodes of its own when it grows")
        shifts = "weight" in reads and ("bias" in new.parameters or new.norm is not None)
        if self._changes is not None and shifts and not reads.keys() & {"bias", "mean"}:
            reads["bias"] = partial(np.zeros, self._networks.teacher.shape(parameters["weight"])[0], np.float32)
        reads = {what: self._changed(new, what, read) for what, read in reads.items()}
        values = Conversion(self._networks, old, new, dict(reads)).convert()
        for what, parameter in new.parameters.items():
            source = parameters.get(what) or (parameters.get("shift") if what == "bias" else None)
            if what in values and source is not None:
                is_plain = values[what] is reads.get(what) and (self._changes is None or what == "weight")
                self._put(new, what, values[what], source, () if is_plain else (what, new.node))
            elif what in values:
                self._write(parameter, ("identity", parameter.use), values[what], "identity")

    def _changed(self, module: Module, what: str, read: Compute) -> Compute:
        """Return what reads a parameter with what is to be added to it then."""
        changes = self._changes
        if changes is None:
            return read

        def values() -> Array:
            change = changes.get((module.node, what))
            return read() if change is None else read() + change

        return values

    def _put(
        self, module: Module, what: str, compute: Compute, source: Parameter, converted: tuple[object, ...]
    ) -> None:
        """Write a parameter of the teacher, in the common order, to the place of one of the target.

        Args:
            module: The module of the target.
            what: Which of its parameters.
            compute: What computes the values.
            source: Where the teacher has them.
            converted: What else equal values have in common, if they are no longer the teacher's own.
        """
        parameter, constant = module.parameters[what], self._networks.teacher.constant(source)
        if not self._is_same_kind(constant, parameter):
            self._networks.hinder(module.name, f"its {what} is quantized in one of the two networks only")
            return
        zeros = ring(self._networks, source, parameter) if what == "weight" else None
        parts = self._parts(parameter, source)

        def values() -> Array:
            made = compute() if zeros is None else surrounded(compute(), zeros)
            return self._spread(made, parameter, parts, zero=what == "weight") if parts else made

        grown = list(self._networks.teacher.shape(source))
        for axis, places in parts:
            if grown and grown[axis] == int(places.sum()):
                grown[axis] = len(places)
        wanted = self._target.shape(parameter)
        if grown and zeros is None and _real(grown) != _real(wanted):
            self._misfit(module, what, grown, wanted)
        key = "teacher", id(constant), parameter.order, converted
        self._write(parameter, key, values, "teacher", constant.name if constant is not None else "")

    def _is_same_kind(self, constant: Constant | None, parameter: Parameter) -> bool:
        """Tell whether both constants hold floats, or both integers of one type."""
        own = self._target.analysis.uses[parameter.use].constant
        if constant is None or (self._networks.teacher.is_float(constant) and self._target.is_float(own)):
            return True
        return self._networks.teacher.dtype(constant) == self._target.dtype(own)

    def _misfit(self, module: Module, what: str, grown: Sequence[int], wanted: Sequence[int]) -> None:
        """Note once that a module is filled in part."""
        if not any(obstacle.place == module.name for obstacle in self._networks.obstacles):
            texts = [" x ".join(map(str, _real(shape))) for shape in (wanted, grown)]
            reason = f"its {what} of {texts[0]} is filled in part, from one of {texts[1]}"
            self._networks.hinder(module.name, reason)

    def _parts(self, parameter: Parameter, source: Parameter) -> list[tuple[int, Places]]:
        """Return the axes of which the target has parts that the teacher has not, with the places that it has."""
        axes = source.axes(self._networks.teacher.analysis), parameter.axes(self._target.analysis)
        found = []
        for axis, (old, new) in enumerate(zip(*axes, strict=True) if len(axes[0]) == len(axes[1]) else ()):
            segments = self._fit.sizes.segments(old, new)
            if segments is not None:
                found.append((axis, np.concatenate([np.full(size, own) for size, own in segments])))
        return found

    def _spread(self, values: Array, parameter: Parameter, parts: list[tuple[int, Places]], zero: bool) -> Array:
        """Put values where the teacher has them; the other places are not read, or keep what they had."""
        initial = np.array(parameter.common(self._initial[parameter.use]()))
        for axis, places in parts:
            if values.shape[axis] != int(places.sum()):
                return values
            shape = [size if other != axis else len(places) for other, size in enumerate(values.shape)]
            rest = initial.shape == tuple(shape) and not zero
            whole = initial if rest else np.zeros(shape, values.dtype)
            whole[(slice(None),) * axis + (places,)] = values
            values = whole
        return values

    def _write(
        self, parameter: Parameter, key: tuple[object, ...], compute: Compute, origin: str, teacher: str = ""
    ) -> None:
        """Write values in the common order; of those of another shape the middle."""
        constant = self._target.analysis.uses[parameter.use].constant
        shape, kind, wanted = tuple(constant.shape), self._target.dtype(constant), self._target.shape(parameter)

        def values() -> Array:
            made = compute()
            if made.size == math.prod(wanted) and _real(made.shape) == _real(wanted):
                made = made.reshape(wanted)
            else:
                initial = np.array(parameter.common(self._initial[parameter.use]()))
                made = clip(made, initial) if made.ndim == initial.ndim else initial
            if factors is not None:
                made = made * factors.reshape(-1, *(1 for _ in made.shape[1:]))
            return parameter.own(made, shape).astype(kind, copy=False)

        factors = self._fit.factors.get(parameter.use)
        self._writes[parameter.use] = _Write((*key, id(factors)), values, origin, teacher)

    def copy(self, number: Number) -> None:
        """Give a single number the teacher's value, if the target stores it as a parameter."""
        if number.is_stored:
            self._fill_with(number.use, number.old, "teacher", number.teacher)
        else:
            node = self._target.nodes[number.use[0]]
            reason = f"a number of this {node.op} is {number.old:.6g} in the teacher and {number.new:.6g} in the target"
            self._networks.hinder(node.name or node.outputs[0].name, reason)

    def copy_table(self, table: Table) -> None:
        """Give a mask or a list of places the teacher's values, if it is no parameter of a module."""
        key = "table", table.teacher, table.use
        self._writes.setdefault(table.use, _Write(key, table.read, "teacher", table.teacher))

    # -- what the target has in excess -------------------------------------------------------------------------

    def silence(self, segment: Segment) -> None:
        """Let what nothing corresponds to compute the identity."""
        if segment.block is not None:
            if not segment.neutral:
                reason = f"nothing in the teacher corresponds to this block, and {segment.block.reason}"
                self._networks.hinder(segment.name, reason)
                self._keep(segment.modules)
                return
            for use in segment.block.zeroed:
                self._fill_with(use, 0.0, "zero")
            return
        (module,) = segment.modules
        if module.neutral:
            self._make_identity(module)
        elif segment.repeats:
            self._undo(module)
            epsilon = self._target.epsilon(module.node)
            if epsilon > _NOTHING:
                reason = f"it normalises once more, which is not the same to about its epsilon of {epsilon:.0e}"
                self._networks.hinder(module.name, reason)
        elif self._target.nodes[module.node].op in ("Mul", "Add", "BatchNormalization"):
            self._undo(module)
        elif module.is_layer:
            reason = (
                f"nothing in the teacher corresponds to it, and this {module.text} cannot compute the identity here"
            )
            self._networks.hinder(module.name, reason)
            self._keep(segment.modules)
        else:
            what = "normalising twice is not normalising once" if module.normalises else "it keeps its values"
            self._networks.hinder(module.name, f"nothing in the teacher corresponds to this {module.text}; {what}")

    def _keep(self, modules: Sequence[Module]) -> None:
        """Leave modules as they are, but for what is measured of them."""
        for module in modules if self._changes is not None else ():
            self.kept.append(module)
            for what in module.parameters.keys() & {"mean", "variance"}:
                parameter = module.parameters[what]
                read = self._changed(module, what, partial(parameter.common, self._initial[parameter.use]()))
                self._write(parameter, ("kept", parameter.use), read, "kept")

    def _fill_with(self, use: Use, value: float, origin: str, teacher: str = "") -> None:
        constant = self._target.analysis.uses[use].constant
        shape, kind = tuple(constant.shape), self._target.dtype(constant)
        self._writes[use] = _Write((origin, value, shape), partial(np.full, shape, value, kind), origin, teacher)

    def _make_identity(self, module: Module) -> None:
        """Make a layer an identity, and let its normalisation undo itself."""
        parameter = module.parameters["weight"]
        group = int(self._target.nodes[module.node].attrs.get("group", 1))
        shape = tuple(axis.size for axis in parameter.axes(self._target.analysis))
        weights = partial(dirac(shape[0], group), shape, np.dtype(np.float32))
        self._write(parameter, ("identity", parameter.use), weights, "identity")
        self._undo(module)

    def _undo(self, module: Module) -> None:
        """Let a normalisation, or a scale and a shift that are constants, do nothing."""
        epsilon = self._target.epsilon(module.norm) if module.norm is not None else 0.0
        values = {"scale": math.sqrt(1 + epsilon), "variance": 1.0}
        for what, parameter in module.parameters.items():
            if what != "weight":
                self._fill_with(parameter.use, values.get(what, 0.0), "identity")

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
            for position, (what, readers) in enumerate(
                sorted(parted.items(), key=lambda segment: segment[0] is not None)
            ):
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
