"""What the constants of a model become when a class of the user's own was trained that it was exported from.

`onnx_net2net.framework.statedict.carry` finds which constant an entry is, and in what layout, by the values from before
training. Here the values from after it go the other way: into the place of the entry in the constant. A convolution
into which a BatchNormalization was folded is folded again, and a table that was looked up is looked up again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array, is_float
from onnx_net2net.algebra.rows import is_fill
from onnx_net2net.algebra.views import Once, apply
from onnx_net2net.errors import BadInputError, RefusedError, some
from onnx_net2net.framework.formats.stored import StateDict
from onnx_net2net.framework.fx.parameters import Trained
from onnx_net2net.framework.statedict.carry import Carrier, descendants_of, match_all, one_each
from onnx_net2net.framework.statedict.folded import EPSILONS
from onnx_net2net.framework.statedict.match import Match, StoredConstant, constants_of, single
from onnx_net2net.model.model import Model
from onnx_net2net.model.protos import scopes
from onnx_net2net.rules import traits

_NORM = ("weight", "bias", "running_mean", "running_var")

_CLOSE = 1e-4


def returned(
    model: Model, trained: Sequence[Trained], before: StateDict, after: StateDict
) -> dict[int, Callable[[], Array]]:
    """Return what constants become, by their numbers among the tensors of the model.

    Args:
        model: The model, with the weights of `before`.
        trained: Its constants that training changes.
        before: The class's state dict as it was.
        after: The same after training.

    Raises:
        BadInputError: The two state dicts are not of the same class.
        RefusedError: What changed has no place in the model.
    """
    _check_same(before, after)
    constants = constants_of(model)
    descendants = {name: descendants_of(constant, ()) for name, constant in constants.items()}
    carrier = Carrier(before, constants, constants, descendants, match_all(before, constants), "")
    matches = one_each({name: carrier.later(name) for name in before}, constants)
    news = _News(constants, before, after)
    for name, found in matches.items():
        if found and found[0].axes is None:
            news.write(name, found[0])
    for name, found in matches.items():  # copies that the export made of what is read twice; fills are equal by chance
        for match in () if is_fill(before[name].read()) else found[1:]:
            if match.axes is None and not any(piece.constant in news.values for piece in match.pieces):
                news.write(name, match)
    news.fold({name: found[0] for name, found in matches.items() if found and found[0].relation == "folded"})
    for name, found in matches.items():
        if found and found[0].relation == "gathered":
            news.look_up(name, found[0])
    changed = [name for name in before if _differ(before[name].read(), after[name].read())]
    lost = [name for name in changed if is_float(before[name].dtype) and not matches[name]]
    unknown = [one.constant for one in trained if one.constant not in news.values and one.constant in constants]
    if lost and unknown:
        raise RefusedError(
            f"these were trained, and are not in the model: {some(lost)}; and no entry explains these of the model: "
            f"{some(unknown)} (export with folding off, or export again)"
        )
    numbers = _numbers(model.proto)
    return {numbers[name]: _reader(values) for name, values in news.values.items()}


def _reader(values: Array) -> Callable[[], Array]:
    return lambda: values


def _check_same(before: StateDict, after: StateDict) -> None:
    """Refuse state dicts that are not of the same class at the same sizes."""
    missing, unknown = before.keys() - after.keys(), after.keys() - before.keys()
    if missing or unknown:
        parts = [f"it has no {some(sorted(missing))}"] if missing else []
        parts += [f"there was no {some(sorted(unknown))}"] if unknown else []
        raise BadInputError(f"the state dicts before and after training differ in more than values: {'; '.join(parts)}")
    for name, stored in before.items():
        if stored.shape != after[name].shape:
            raise BadInputError(f"{name} has the shape {list(after[name].shape)}, before {list(stored.shape)}")
        if is_float(stored.dtype) and not np.isfinite(single(after[name].read())).all():
            raise BadInputError(f"{name} has values that are not finite; the training diverged")


def _differ(one: Array, other: Array) -> bool:
    return not np.array_equal(single(one), single(other))


def _numbers(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the number among `all_tensors` of each initializer, and of the value of each Constant node."""
    return {name: number for number, name in enumerate(_tensor_names(proto))}


def _tensor_names(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield what nodes call each tensor, in the order of `all_tensors`; "" for those that are no constant."""
    for scope in scopes(proto):
        yield from (tensor.name for tensor in getattr(scope, "initializer", ()))
        for attribute in getattr(scope, "attribute_proto", ()):
            yield from [""] * (attribute.HasField("t") + len(attribute.tensors))
        for node in scope.node:
            for attribute in node.attribute:
                is_value = node.op_type in traits.CONSTANTS and attribute.name == "value"
                if attribute.HasField("t"):
                    yield node.output[0] if is_value else ""
                yield from [""] * len(attribute.tensors)


class _News:
    """The new values of constants.

    Attributes:
        values: By the names of the constants.
    """

    def __init__(self, constants: Mapping[str, StoredConstant], before: StateDict, after: StateDict) -> None:
        self._constants, self._before, self._after = constants, before, after
        self._writers: dict[str, list[str]] = {}
        self._places: dict[str, Array] = {}
        self.values: dict[str, Array] = {}

    def write(self, name: str, match: Match) -> None:
        """Write an entry where it lies in constants.

        Raises:
            RefusedError: If another one lies there too, and they are no longer the same.
        """
        values, start = self._after[name].read(), 0
        for piece in match.pieces:
            constant = self._constants[piece.constant]
            places = apply(piece.view, np.arange(int(np.prod(constant.shape))).reshape(constant.shape))
            part = values
            if len(match.pieces) > 1:
                stop = start + places.shape[match.axis]
                part, start = values.take(np.arange(start, stop), match.axis), stop
            self._put(name, constant, places.reshape(-1), part.reshape(-1))
            whole = self.values[piece.constant]
            for step in piece.view:
                if isinstance(step, Once):
                    whole[:] = whole.take([0], step.axis)

    def _put(self, name: str, constant: StoredConstant, places: Array, values: Array) -> None:
        whole = self.values.setdefault(constant.name, np.array(constant.read()))
        known = self._places.setdefault(constant.name, np.zeros(whole.size, bool))
        flat, values = whole.reshape(-1), values.astype(constant.dtype)
        both = known[places]
        if both.any() and not np.array_equal(flat[places][both], values[both]):
            other = self._writers[constant.name]
            raise RefusedError(
                f"{some([*other, name])} are one tensor {constant.name!r} in the model, and were trained apart (export "
                "with folding off)"
            )
        flat[places], known[places] = values, True
        self._writers.setdefault(constant.name, []).append(name)

    def fold(self, matches: Mapping[str, Match]) -> None:
        """Fold normalisations into the layers before them, as they were.

        Raises:
            RefusedError: If it is not found out how.
        """
        layers: dict[str, dict[str, Match]] = {}
        for name, match in matches.items():
            layers.setdefault(match.pieces[0].constant, {})[name] = match
        for constant, parts in layers.items():
            weight = next((name for name in parts if len(self._before[name].shape) > 1), "")
            mean = next((name for name in parts if name.endswith("running_mean")), "")
            order, axes = (parts[name].axes if name else None for name in (weight, mean))
            if order is None or axes is None:
                raise RefusedError(f"{constant} was folded from {some(list(parts))} in an unknown way")
            prefix = mean.removesuffix("running_mean")
            norm = {what: f"{prefix}{what}" for what in _NORM if f"{prefix}{what}" in parts}
            own = next((name for name in parts if name != weight and name not in norm.values()), None)
            layer = _Folded([axis or 0 for axis in order], axes[0] or 0, weight, own, norm)
            bias = next((match.pieces[1].constant for match in parts.values() if len(match.pieces) > 1), None)
            self._fold(constant, bias, layer)

    def _fold(self, constant: str, bias: str | None, layer: _Folded) -> None:
        old = single(self._constants[constant].read())
        slack = _CLOSE * float(np.abs(old).max(initial=0))
        fits = (e for e in EPSILONS if np.allclose(layer.weight(self._before, e), old, _CLOSE, slack))
        epsilon = next(fits, None)
        if epsilon is None:
            raise RefusedError(f"{constant} was folded in an unknown way")
        shift = layer.bias(self._after, epsilon)
        if bias is None and np.any(np.abs(shift) > slack):
            raise RefusedError(f"{constant} was folded without a bias, and now has one")
        for name, values in ((constant, layer.weight(self._after, epsilon)), (bias, shift)):
            if name is not None:
                target = self._constants[name]
                self.values[name] = values.reshape(target.shape).astype(target.dtype)

    def look_up(self, name: str, match: Match) -> None:
        """Look a table up again, at the places that the constant was looked up at.

        Raises:
            RefusedError: If these are not clear.
        """
        constant = self._constants[match.pieces[0].constant]
        assert match.axes is not None
        unit = next(k for k, axis in enumerate(match.axes) if axis is not None)
        axis = match.axes[unit]
        assert axis is not None
        old, new = (np.moveaxis(entries[name].read(), unit, 0) for entries in (self._before, self._after))
        old, new = (table.reshape(len(table), -1) for table in (old, new))
        values = np.moveaxis(constant.read(), axis, 0)
        flat = values.reshape(len(values), -1)
        row = next((k for k in range(len(old)) if len(np.unique(single(old[k]))) == old.shape[1]), None)
        if row is not None:
            order = np.argsort(single(old[row]))
            places = order[np.searchsorted(single(old[row])[order], single(flat[row])).clip(max=len(order) - 1)]
        if row is None or not np.array_equal(single(old[:, places]), single(flat)):
            raise RefusedError(f"it is unclear which entries of {name} are in {constant.name}")
        found = np.moveaxis(new[:, places].reshape(values.shape), 0, axis)
        self.values[constant.name] = np.ascontiguousarray(found).astype(constant.dtype)


class _Folded:
    """A layer into which a normalisation was folded."""

    def __init__(self, order: Sequence[int], axis: int, weight: str, own: str | None, norm: Mapping[str, str]) -> None:
        """Note the entries.

        Args:
            order: For each axis of the weight that of the constant.
            axis: The axis of the constant that the layer makes.
            weight: The weight's name.
            own: That of the layer's own bias, if it has one.
            norm: Those of the normalisation, by what they are.
        """
        self._order, self._axis, self._weight, self._own, self._norm = order, axis, weight, own, norm

    def _part(self, entries: StateDict, what: str, size: int) -> Array:
        name = self._norm.get(what)
        if name is None:
            return np.ones(size) if what == "weight" else np.zeros(size)
        return entries[name].read().astype(np.float64)

    def _scale(self, entries: StateDict, epsilon: float) -> Array:
        variance = self._part(entries, "running_var", 0)
        scale: Array = self._part(entries, "weight", len(variance)) / np.sqrt(variance + epsilon)
        return scale

    def weight(self, entries: StateDict, epsilon: float) -> Array:
        """Return the weight with the normalisation in it, as the constant has it."""
        values, scale = entries[self._weight].read().astype(np.float64), self._scale(entries, epsilon)
        values = np.transpose(values, np.argsort(self._order))
        result: Array = values * scale.reshape(-1, *(1,) * (values.ndim - 1 - self._axis))
        return result

    def bias(self, entries: StateDict, epsilon: float) -> Array:
        """Return the bias with the normalisation in it."""
        scale = self._scale(entries, epsilon)
        before = entries[self._own].read().astype(np.float64) if self._own else 0.0
        shift: Array = (before - self._part(entries, "running_mean", 0)) * scale
        return shift + self._part(entries, "bias", len(scale))
