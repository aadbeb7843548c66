"""A state dict from a graph alone, for users without the teacher's own: as far as names in the graph tell it.

Most exports keep the names of parameters, and the modules of nodes name the others. If a convolution has a bias without
the name of a parameter, a BatchNormalization was folded into it. It comes back as one that only adds the bias: scale
sqrt(1 + eps), mean 0, variance 1. It computes the same, but its statistics are not those of the training, and its name
is a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_net2net.analysis.names import is_anonymous
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.statedict.match import (
    ConstantRead,
    Match,
    Matches,
    Piece,
    StoredConstant,
    as_parameter,
    biases_of,
)
from onnx_net2net.rules import traits

EPSILON = 1e-5
"""Of torch's BatchNormalization, if not said otherwise."""


@dataclass
class Recovered:
    """What a graph tells of a state dict."""

    entries: dict[str, Stored] = field(default_factory=dict)  # the entries
    matches: Matches = field(default_factory=dict)  # the constant that each is
    # The normalisations that were folded, by the names that they may have.
    norms: list[str] = field(default_factory=list)


def recover(constants: Mapping[str, StoredConstant]) -> Recovered:
    """Return the parameters of a graph under the names that the framework gives them.

    Args:
        constants: The constants of the teacher (see `onnx_net2net.framework.statedict.match.constants_of`).
    """
    found = Recovered()
    biases = biases_of(constants)
    folded = {
        biases[read.node].name
        for constant in constants.values()
        for read in constant.reads
        if read.operator in traits.KERNELS and read.input == 1 and _is_folded(constant, biases.get(read.node))
    }
    for constant in constants.values():
        read = next((read for read in constant.reads if read.operator in traits.LAYERS and read.input > 0), None)
        own = not is_anonymous(constant.name)
        if not constant.shape or not (own or (read and read.scope)):
            continue
        if constant.name in folded and read:
            _add_norm(found, constant, _layer_of(constant, read, constants))
            continue
        kind = "weight" if read and read.input == 1 else "bias"
        name = constant.name if own or read is None else f"{read.scope}.{kind}"
        found.entries[name], match = as_parameter(constant, not own and constant.is_turned)
        found.matches[name] = [match]
    for name in [name for name in found.entries if name.endswith("running_mean")]:
        steps = np.zeros((), np.int64)  # no graph holds it, and a strict load asks for it
        found.entries[name.replace("running_mean", "num_batches_tracked")] = Stored((), steps.dtype, steps.copy)
    return found


def _is_folded(weight: StoredConstant, bias: StoredConstant | None) -> bool:
    """Tell whether the bias of a convolution is none of its own parameters."""
    return bias is not None and (is_anonymous(bias.name) or bias.name == f"{weight.name}_bias")


def _layer_of(bias: StoredConstant, read: ConstantRead, constants: Mapping[str, StoredConstant]) -> str:
    weight = next(c for c in constants.values() if any(r.node == read.node and r.input == 1 for r in c.reads))
    return read.scope if is_anonymous(weight.name) else weight.name.rpartition(".")[0]


def _add_norm(found: Recovered, bias: StoredConstant, layer: str) -> None:
    """Add a BatchNormalization that does nothing but add the bias."""
    parent, _, last = layer.rpartition(".")
    own = str(int(last) + 1) if last.isdigit() else last.replace("conv", "bn") if "conv" in last else f"{last}_bn"
    prefix = f"{parent}.{own}" if parent else own
    found.norms.append(prefix)
    values = {"weight": np.sqrt(1 + EPSILON), "running_mean": 0.0, "running_var": 1.0}
    for what, value in values.items():
        array = np.full(bias.shape, value, bias.dtype)
        found.entries[f"{prefix}.{what}"] = Stored(array.shape, array.dtype, array.copy)
        found.matches[f"{prefix}.{what}"] = [Match("recovered", (Piece(bias.name, ()),), axes=(0,), scales=True)]
    found.entries[f"{prefix}.bias"] = Stored(bias.shape, bias.dtype, bias.read)
    found.matches[f"{prefix}.bias"] = [Match("recovered", (Piece(bias.name, ()),))]
