"""A module of the teacher in the form of the target's: with or without bias, normalisation, scale and shift.

Also attributes that have to be equal, kernels that a ring of zeros makes larger, and convolutions in fewer groups.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import defs, helper

from onnx_net2net.algebra.floats import Array, Compute
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.graph.graph import Node
from onnx_net2net.graph.sizes import opsets_of
from onnx_net2net.model.model import Model
from onnx_net2net.operations.transfer.align import Alignment
from onnx_net2net.operations.transfer.modules import Module, Parameter
from onnx_net2net.operations.transfer.networks import Network, Networks
from onnx_net2net.rules import traits

_LAYOUT = {"transA", "transB", "momentum", "training_mode", "spatial", "is_test"}
_DEFAULTS = {"group": 1, "alpha": 1.0, "beta": 1.0, "auto_pad": "NOTSET"}
"""Of operators of other domains than ONNX's own."""

_STATISTICS = {"scale", "shift", "mean", "variance"}


@dataclass
class Conversion:
    """Brings the parameters of a module of the teacher into the form of one of the target.

    Attributes:
        networks: The two networks; obstacles are noted.
        old: The teacher's module.
        new: The target's.
        values: Computes each parameter, by its role.
    """

    networks: Networks
    old: Module
    new: Module
    values: dict[str, Compute]

    def convert(self) -> dict[str, Compute]:
        """Return the parameters in the target's form."""
        old, new, values = self.old, self.new, self.values
        if old.norm is not None and old.is_layer and new.norm is None:
            return self._folded()
        if new.norm is not None and old.is_layer and old.norm is None:
            self._add_norm(new.norm)
        if old.norm is not None and new.norm is not None:
            self._match_epsilons(old.norm, new.norm)
        self._match_bias()
        for what in ("scale", "shift"):
            if what in values and what not in new.parameters and np.any(values[what]() != (what == "scale")):
                self._hinder(f"it has no {what}, but the teacher's has one")
            elif what in new.parameters and what not in values:
                values[what] = partial(np.full, self._size(what), float(what == "scale"))
        return values

    def _hinder(self, reason: str) -> None:
        self.networks.hinder(self.new.name, reason)

    def _size(self, what: str) -> int:
        """Return the number of elements of a parameter of the target, 0 where there is none."""
        parameter = self.new.parameters.get(what)
        return math.prod(self.networks.target.original(parameter.use).shape) if parameter is not None else 0

    def _zeros(self) -> Compute:
        return partial(np.zeros, self._size("bias") or self._size("shift"), np.float32)

    def _folded(self) -> dict[str, Compute]:
        """Return weights and a bias that have the normalisation of the teacher's layer in them."""
        old, values = self.old, self.values
        assert old.norm is not None
        transposed = old.kind in traits.TRANSPOSED
        grouped = transposed and self.networks.teacher.nodes[old.node].attrs.get("group", 1) != 1
        if "bias" not in self.new.parameters or grouped or not values.keys() >= _STATISTICS:
            self._hinder("it cannot hold the teacher's normalisation")
            return values
        epsilon = self.networks.teacher.epsilon(old.norm)
        weight, bias = values["weight"], values.get("bias", lambda: np.zeros(()))

        def factor() -> Array:
            return values["scale"]().astype(np.float64) / np.sqrt(values["variance"]().astype(np.float64) + epsilon)

        def folded() -> Array:
            plain = weight()
            out = 1 if transposed else 0
            scaled: Array = plain * factor().reshape([-1 if axis == out else 1 for axis in range(plain.ndim)])
            return scaled

        return {"weight": folded, "bias": lambda: (bias() - values["mean"]()) * factor() + values["shift"]()}

    def _add_norm(self, norm: int) -> None:
        """Let a normalisation that only the target has add the bias, and do nothing else."""
        units = self._size("bias") or self._size("shift")
        epsilon = self.networks.target.epsilon(norm)
        self.values["shift"], self.values["mean"] = self.values.pop("bias", self._zeros()), self._zeros()
        self.values["variance"] = partial(np.ones, units, np.float32)
        self.values["scale"] = partial(np.full, units, math.sqrt(1 + epsilon))

    def _match_epsilons(self, old: int, new: int) -> None:
        """Scale the results of a BatchNormalization so that another epsilon makes no difference."""
        before, after = self.networks.teacher.epsilon(old), self.networks.target.epsilon(new)
        if before != after and {"scale", "variance"} <= self.values.keys():
            scale, variance = self.values["scale"], self.values["variance"]
            self.values["scale"] = lambda: scale() * np.sqrt((variance() + after) / (variance() + before))

    def _match_bias(self) -> None:
        values, new = self.values, self.new
        if "bias" in values and "bias" not in new.parameters:
            bias = values.pop("bias")
            if new.norm is not None and "mean" in values:
                mean = values["mean"]
                values["mean"] = lambda: mean() - bias()
            elif np.any(bias()):
                self._hinder("it has no bias, but the teacher's layer has one")
        elif "bias" in new.parameters and "bias" not in values:
            values["bias"] = self._zeros()


# --- Attributes and kernels ----------------------------------------------------------------------------------


def note_differences(networks: Networks, old: Module, new: Module) -> None:
    """Note the attributes and kernels in which the nodes of two layers differ."""
    one, other = networks.teacher.nodes[old.node], networks.target.nodes[new.node]
    if one.op != other.op:
        return
    kernels = old.kernel, new.kernel
    are_layers = old.is_layer and new.is_layer
    if kernels[0] != kernels[1] and are_layers and not _surrounds(networks, old, new):
        texts = [" x ".join(map(str, kernel or (1,))) for kernel in kernels]
        reason = f"no zeros around a kernel of {texts[0]} make it one of {texts[1]} with these pads"
        networks.hinder(new.name, reason)
    for key, *values in attributes(networks, one, other):
        if key in ("kernel_shape", "pads") and kernels[0] != kernels[1]:
            continue
        if not (old.norm is not None and key == "epsilon"):
            networks.hinder(new.name, f"{key} is {values[0]} in the teacher and {values[1]} in the target")


def attributes(networks: Networks, one: Node, other: Node) -> Iterator[tuple[str, object, object]]:
    """Yield the attributes that differ in a node of the teacher and one of the target, with their values there."""
    known = _defaults(networks.teacher, one), _defaults(networks.target, other)
    either = {**known[0], **known[1]}  # an older version of an operator does what the default of a newer one says
    for key in sorted({*one.attrs, *other.attrs} - _LAYOUT):
        both = zip(known, (one, other), strict=True)
        values = [_plain({**either, **own, **node.attrs}.get(key)) for own, node in both]
        if values[0] != values[1]:
            yield key, values[0], values[1]


def _defaults(network: Network, node: Node) -> dict[str, object]:
    """Return the default attributes of an operator in the version that the file imports."""
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    known: dict[str, object] = dict(_DEFAULTS)
    with contextlib.suppress(defs.SchemaError):
        schema = defs.get_schema(node.op, opsets_of(network.opened.model.proto).get(domain, 1), domain)
        for name, attribute in schema.attributes.items():
            if attribute.default_value.type:
                value = helper.get_attribute_value(attribute.default_value)
                known[name] = value.decode() if isinstance(value, bytes) else value
    return known


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | list | tuple):
        values = list(value)
        return None if all(v == 1 for v in values) or not any(values) else values
    return round(value, 12) if isinstance(value, float) else value


def ring(networks: Networks, old: Parameter, new: Parameter) -> list[int] | None:
    """Return the zeros that a kernel needs on each side, by axis; None if it has the target's size or cannot get it."""
    axes = [own.axes(network.analysis)[own.channels :] for own, network in zip((old, new), networks, strict=True)]
    kernels = [[axis.size for axis in own] for own in axes]
    if kernels[0] == kernels[1]:
        return None
    rank = max(map(len, kernels))
    more = [b - a for a, b in zip(*(kernel or [1] * rank for kernel in kernels), strict=True)]
    return [size // 2 for size in more] if all(size >= 0 and size % 2 == 0 for size in more) else None


def surrounded(kernel: Array, zeros: Sequence[int]) -> Array:
    """Return a kernel of shape (out, in, *size), or (out, in) if of one place, with a ring of zeros around it."""
    whole = kernel.reshape(*kernel.shape, *(1 for _ in range(2 + len(zeros) - kernel.ndim)))
    return np.pad(whole, [(0, 0), (0, 0), *((n, n) for n in zeros)])


def _surrounds(networks: Networks, old: Module, new: Module) -> bool:
    """Tell whether the larger kernel of the target reaches as much further as it is padded more."""
    zeros = ring(networks, old.parameters["weight"], new.parameters["weight"])
    if zeros is None:
        return False
    pads, attrs = [], [networks.teacher.nodes[old.node].attrs, networks.target.nodes[new.node].attrs]
    for own in attrs:
        if own.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return False
        pads.append(own["pads"] if any(own.get("pads", ())) else [0] * (2 * len(zeros)))
    steps = attrs[1].get("dilations") or [1] * len(zeros)
    further = [size * step for size, step in zip(zeros, steps, strict=True)] * 2
    return len(pads[0]) == len(further) and [a + b for a, b in zip(pads[0], further, strict=True)] == list(pads[1])


# --- Groups --------------------------------------------------------------------------------------------------


def regrouped(networks: Networks, found: Alignment) -> Model | None:
    """Return the teacher with as few groups as the target has, None if it has them.

    Args:
        networks: The two networks.
        found: Which of their modules correspond.
    """
    changes = list(_changes(networks, found))
    if not changes:
        return None
    draft = Draft.of(networks.teacher.analysis)
    for module, groups in changes:
        constant, before = draft.uses[module.node, 1].constant, _groups(networks.teacher, module)
        out, read, *kernel = constant.shape
        shape = (out, read * before // groups, *kernel)
        draft.graph.replace(constant, shape, partial(_blocks, draft.graph.reader(constant), before, groups))
        draft.nodes[module.node].attrs["group"] = groups
    return draft.graph.finish()


def _changes(networks: Networks, found: Alignment) -> Iterator[tuple[Module, int]]:
    """Yield convolutions of the teacher with the groups that they have in the target, if these are fewer and larger."""
    alone = {uses[0] for uses in networks.teacher.readings.values() if len(uses) == 1}
    for old, new in found.pairs:
        before, after = _groups(networks.teacher, old), _groups(networks.target, new)
        if 0 < after < before and before % after == 0 and new.shape[0] >= old.shape[0] and (old.node, 1) in alone:
            yield old, after


def _groups(network: Network, module: Module) -> int:
    """Return the number of groups of a convolution, 0 for other layers."""
    node = network.nodes[module.node]
    return int(node.attrs.get("group", 1)) if node.op in traits.PLAIN_CONVOLUTIONS and module.is_layer else 0


def _blocks(read: Compute, before: int, after: int) -> Array:
    """Return weights of (out, in / after, *kernel) that compute what those of (out, in / before, *kernel) do."""
    weights, each = read(), np.arange(before // after)
    out, inputs, *kernel = weights.shape
    blocks = np.zeros((after, len(each), out // before, len(each), inputs, *kernel), weights.dtype)
    parts = weights.reshape(after, len(each), out // before, inputs, *kernel)
    blocks[:, each, :, each] = parts.swapaxes(0, 1)
    return blocks.reshape(out, len(each) * inputs, *kernel)
