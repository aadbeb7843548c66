"""Puts trained weights back into the file that the training started from, and leaves everything else as it is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.errors import BadInputError, some
from onnx_net2net.framework.formats import state_dicts
from onnx_net2net.framework.formats.stored import StateDict, Stored
from onnx_net2net.framework.fx.parameters import Trained, trained_of
from onnx_net2net.framework.returned import returned
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.model.protos import all_tensors
from onnx_net2net.model.tensors import Weight, make_stub, set_inline, stub_key

StateDictLike = str | os.PathLike[str] | Mapping[str, Any]
"""A state dict: a file, or what `state_dict()` returns."""


def refit(model: ModelLike, state_dict: StateDictLike, *, before: StateDictLike | None = None) -> Model:
    """Replace a model's weights by trained ones.

    Args:
        model: The model that the training started from.
        state_dict: The trained weights: a file (.safetensors, .pt), or the result of `module.state_dict()`. Names are
            those of `to_torch` or those of the file, or with `before` those of your class. Other constants of the file
            may be among them if they are unchanged.
        before: Needed for weights of your own class: its state dict from before the training, with the values that the
            model has. That is the state dict that was exported, or the one that `checkpoint` wrote. Its entries are
            found in the model by their values; they may be transposed, concatenated or folded there.

    Returns:
        The model with the trained weights. Nodes, metadata with the record of growth, dtypes, and the layout of
        external data are unchanged.

    Raises:
        BadInputError: A file cannot be read, a name is unknown or missing, or a shape or dtype differs.
        RefusedError: An entry was trained that has no place in the model.
    """
    loaded = load(model)
    entries, files = _read(state_dict)
    trained = trained_of(loaded).trained
    if before is None:
        found = _by_name(loaded, trained, entries)
    else:
        own, more = _read(before)
        found, files = returned(loaded, trained, own, entries), [*files, *more]
    return _replaced(loaded, found, files)


def _read(source: StateDictLike) -> tuple[StateDict, list[Path]]:
    """Return a state dict, and the files that it is read from later; tensors in memory are copied now."""
    if not isinstance(source, Mapping):
        return state_dicts.read(source), [Path(source)]
    entries = state_dicts.from_torch(source)
    return {name: _copied(stored) for name, stored in entries.items()}, []


def _copied(stored: Stored) -> Stored:
    values = np.array(stored.read())
    return dataclasses.replace(stored, read=lambda: values, elements=None)


def _by_name(model: Model, trained: tuple[Trained, ...], entries: StateDict) -> dict[int, Callable[[], Array]]:
    """Return what each constant becomes, by its number among the tensors of the model."""
    wanted = {one.name: one for one in trained}
    if any(name not in entries for name in wanted):
        in_file = {one.constant: one for one in trained}
        wanted = in_file if all(name in entries for name in in_file) else wanted
    others = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    unknown = [name for name in entries if name not in wanted and not _is(others.get(name), entries[name], model)]
    missing = [name for name in wanted if name not in entries]
    if unknown or missing:
        parts = [f"the model has no {some(unknown)}"] if unknown else []
        parts += [f"it has no {some(missing)}"] if missing else []
        raise BadInputError(
            f"the state dict is not that of to_torch(model): {'; '.join(parts)} (for a class of your own give the "
            "state dict from before training, too: --before)"
        )
    for name, one in wanted.items():
        stored = entries[name]
        if stored.shape != one.shape:
            raise BadInputError(f"{name} has the shape {list(stored.shape)}, in the model {list(one.shape)}")
        if stored.dtype != one.dtype:
            raise BadInputError(f"{name} is {stored.dtype}, in the model {one.dtype}; convert it first")
    return {one.tensor: _finite(name, entries[name].read) for name, one in wanted.items()}


def _is(tensor: onnx.TensorProto | None, stored: Stored, model: Model) -> bool:
    """Tell whether an entry is a constant of the model, unchanged."""
    return tensor is not None and np.array_equal(model.tensor(tensor).numpy(), stored.read())


def _finite(name: str, read: Callable[[], Array]) -> Callable[[], Array]:
    values = read()
    if not np.isfinite(values.astype(np.float32) if values.dtype.itemsize < 4 else values).all():
        raise BadInputError(f"{name} has values that are not finite; the training diverged")
    return read


def _replaced(model: Model, found: Mapping[int, Callable[[], Array]], files: list[Path]) -> Model:
    """Return a model with other values of some tensors, each of the same type and shape."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    weights = dict(model.weights)
    for number, tensor in enumerate(all_tensors(proto)):
        if number not in found:
            continue
        weight = Weight(tensor.data_type, tensor.dims, tensor.name, found[number])
        if stub_key(tensor) is not None:
            make_stub(tensor, weight, weights)
        elif (content := weight.tobytes()) != model.tensor(tensor).tobytes():
            set_inline(tensor, content)
    alive = {stub_key(tensor) for tensor in all_tensors(proto)}
    weights = {key: weight for key, weight in weights.items() if key in alive}
    return dataclasses.replace(model, proto=proto, weights=weights, path=None, sources=(*model.sources, *files))
