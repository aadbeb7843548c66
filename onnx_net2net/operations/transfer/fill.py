"""Values for a target's modules: the teacher's, those of layers that do nothing, or the ones that they had."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.graph.graph import Constant, dtype_of
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.operations.deepen.insert import dirac
from onnx_net2net.operations.transfer.convert import Conversion, note_differences, ring, surrounded
from onnx_net2net.operations.transfer.counterparts import Table
from onnx_net2net.operations.transfer.fit import Fit
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Networks
from onnx_net2net.operations.transfer.segments import Segment
from onnx_net2net.operations.transfer.values import Provenance, Values, real
from onnx_net2net.rules import traits

_NOTHING = 1e-8
"""An epsilon beside which a variance of 1 is 1 in single precision."""

Changes = dict[tuple[int, str], Array]
"""Corrections by the node of the target's module and the parameter's role, in the common order, at the target's size.

They are added to the teacher's parameters.
"""


class Filling:
    """Gives a target its values.

    Args:
        networks: The two networks; the teacher has grown to the target's sizes. Obstacles are noted.
        fit: How it has grown.
        changes: Corrections, which are looked up each time that values are computed; None if there are never any.

    Attributes:
        values: The values so far.
        kept: Modules that keep their values, if there may be corrections.
    """

    def __init__(self, networks: Networks, fit: Fit, changes: Changes | None = None) -> None:
        self._networks, self._target = networks, networks.target
        self._fit = fit
        self._changes = changes
        self.values = Values(networks.target, fit.factors, fit.offsets)
        self.kept: list[Module] = []

    # -- from the teacher --------------------------------------------------------------------------------------

    def fill(self, old: Module, new: Module) -> None:
        """Give the parameters of a module of the target those of one of the teacher."""
        if old.uses <= self._networks.teacher.identities and new.uses <= self._target.identities:
            return
        note_differences(self._networks, old, new)
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
                self.values.put(parameter, ("identity", parameter.use), values[what], "identity")

    def _changed(self, module: Module, what: str, read: Compute) -> Compute:
        """Return what reads a parameter and adds the correction that there is by then."""
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
        """Give a parameter of the target one of the teacher's.

        Args:
            module: The module of the target.
            what: The parameter's role.
            compute: Computes the values, in the common order.
            source: Where the teacher has them.
            converted: Part of the key of values that are no longer the teacher's own; see `Values.put`.
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
        if grown and zeros is None and real(grown) != real(wanted):
            self._misfit(module, what, grown, wanted)
        key = "teacher", id(constant), parameter.order, converted
        self.values.put(parameter, key, values, "teacher", constant.name if constant is not None else "")

    def _is_same_kind(self, constant: Constant | None, parameter: Parameter) -> bool:
        """Tell whether both constants hold floats, or both integers of one type."""
        own = self._target.original(parameter.use)
        if constant is None or (self._networks.teacher.is_float(constant) and self._target.is_float(own)):
            return True
        return dtype_of(constant) == dtype_of(own)

    def _misfit(self, module: Module, what: str, grown: Sequence[int], wanted: Sequence[int]) -> None:
        """Note once that a module is filled in part."""
        if not any(obstacle.place == module.name for obstacle in self._networks.obstacles):
            texts = [" x ".join(map(str, real(shape))) for shape in (wanted, grown)]
            reason = f"its {what} of {texts[0]} is filled in part, from one of {texts[1]}"
            self._networks.hinder(module.name, reason)

    def _parts(self, parameter: Parameter, source: Parameter) -> list[tuple[int, Array]]:
        """Return the axes on which the target has more parts, each with the places of the teacher's: bool [size]."""
        axes = source.axes(self._networks.teacher.analysis), parameter.axes(self._target.analysis)
        found = []
        for axis, (old, new) in enumerate(zip(*axes, strict=True) if len(axes[0]) == len(axes[1]) else ()):
            parts = self._fit.sizes.more_parts(old, new)
            if parts is not None:
                found.append((axis, np.concatenate([np.full(size, own) for size, own in parts])))
        return found

    def _spread(self, values: Array, parameter: Parameter, parts: list[tuple[int, Array]], zero: bool) -> Array:
        """Put values where the teacher has them; the other places are zero or keep what they had."""
        initial = np.array(self.values.initial(parameter))
        for axis, places in parts:
            if values.shape[axis] != int(places.sum()):
                return values
            shape = [size if other != axis else len(places) for other, size in enumerate(values.shape)]
            rest = initial.shape == tuple(shape) and not zero
            whole = initial if rest else np.zeros(shape, values.dtype)
            whole[(slice(None),) * axis + (places,)] = values
            values = whole
        return values

    def copy(self, table: Table) -> None:
        """Give a number or table the teacher's values, if the target stores it as it stores parameters."""
        if table.literal:
            node = self._target.nodes[table.use[0]]
            self._networks.hinder(node.name or node.outputs[0].name, table.literal)
        elif table.is_number:
            self.values.fill(table.use, float(table.read()), "teacher", table.teacher)
        elif not self.values.has(table.use):
            self.values.set(table.use, ("table", table.teacher, table.use), table.read, "teacher", table.teacher)

    def fill_outputs(self) -> Iterator[Provenance]:
        """Give outputs that are parameters the teacher's values, unless they are filled where nodes read them."""
        teacher, target = (network.analysis.graph for network in self._networks)
        read = {id(use.constant) for use in self._target.analysis.uses.values()}
        for old, new in zip(teacher.graph.outputs, target.graph.outputs, strict=True):
            one, other = constant_of(old), constant_of(new)
            if other is None or id(other) in read:
                continue
            if one is None or tuple(one.shape) != tuple(other.shape):
                what = "computes this output" if one is None else f"has it with the shape {list(one.shape)}"
                self._networks.hinder(str(new.name), f"it is a constant of the target, and the teacher {what}")
                continue
            target.replace(other, tuple(other.shape), teacher.reader(one))
            yield Provenance(str(other.name), tuple(other.shape), "teacher", str(one.name), str(other.name))

    # -- modules that only the target has ----------------------------------------------------------------------

    def silence(self, segment: Segment) -> None:
        """Let modules that the teacher does not have compute the identity, or say why they cannot."""
        if segment.block is not None:
            if not segment.neutral:
                reason = f"nothing in the teacher corresponds to this block, and {segment.block.reason}"
                self._networks.hinder(segment.name, reason)
                self._keep(segment.modules)
                return
            for use, value in segment.values.items():
                self.values.fill(use, value, "identity" if value else "zero")
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
        elif self._target.nodes[module.node].op in traits.FIXED_NORMS | traits.AFFINE:
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
        """Leave modules as they are; only measured statistics may be corrected."""
        for module in modules if self._changes is not None else ():
            self.kept.append(module)
            for what in module.parameters.keys() & {"mean", "variance"}:
                parameter = module.parameters[what]
                read = self._changed(module, what, partial(self.values.initial, parameter))
                self.values.put(parameter, ("kept", parameter.use), read, "kept")

    def _make_identity(self, module: Module) -> None:
        """Make a layer an identity, and let its normalisation undo itself."""
        parameter = module.parameters["weight"]
        group = int(self._target.nodes[module.node].attrs.get("group", 1))
        shape = tuple(axis.size for axis in parameter.axes(self._target.analysis))
        weights = partial(dirac(shape[0], group), shape, np.dtype(np.float32))
        self.values.put(parameter, ("identity", parameter.use), weights, "identity")
        self._undo(module)

    def _undo(self, module: Module) -> None:
        """Let a normalisation, or a scale and a shift that are constants, do nothing."""
        epsilon = self._target.epsilon(module.norm) if module.norm is not None else 0.0
        values = {"scale": math.sqrt(1 + epsilon), "variance": 1.0}
        for what, parameter in module.parameters.items():
            if what != "weight":
                self.values.fill(parameter.use, values.get(what, 0.0), "identity")
