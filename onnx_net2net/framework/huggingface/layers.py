"""More layers for a class: which of its numbered modules are copied, and why a copy changes nothing.

A copy is of a whole module, as a class has no other layers. Its residual branches end in zero: in weights that are
zero, or, where the class adds 1 to a scale, in weights of -1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnx_net2net.analysis.blocks import Block, find_blocks
from onnx_net2net.analysis.groups import analysing
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.multipliers import number_of
from onnx_net2net.errors import RefusedError
from onnx_net2net.framework.formats.stored import Stored
from onnx_net2net.framework.statedict.deeper import Placed, deepened
from onnx_net2net.framework.statedict.entries import Entry
from onnx_net2net.framework.statedict.match import Match, Piece, constants_of
from onnx_net2net.graph.walk import constant_of
from onnx_net2net.model.model import Model
from onnx_net2net.operations.deepen.deepen import alike_groups, depth_factor, spread_copies
from onnx_net2net.operations.deepen.repeat import CopiedConstant, Copy, name_of


@dataclass(frozen=True)
class Layers:
    """Layers of a deeper class.

    Attributes:
        copies: The copies of layers, in the order in which they are put in.
        ends: What the constants at the ends of a layer's branches are in its copies, by name.
        counts: For each list of layers that gets longer, how many it has before and after.
    """

    copies: tuple[Copy, ...] = ()
    ends: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def order(self, group: str) -> list[tuple[int, bool]]:
        """Return for each layer of a list which of the teacher's it is or copies, and whether it is a copy."""
        found: list[tuple[int, bool]] = []
        for layer in range(self.counts[group][0]):
            found.append((layer, False))
            behind = [copy for copy in self.copies if copy.behind == f"{group}.{layer}"]
            found += [(int(copy.block.rpartition(".")[2]), True) for copy in behind]
        return found


def plan_layers(model: Model, depth: str, append: bool, is_told: bool) -> Layers:
    """Choose which layers are copied, and what ends a copy's branches.

    Args:
        model: The graph.
        depth: How many times as many layers, like 2x.
        append: Whether copies go behind the last layer of a list.
        is_told: Whether the config tells what each layer is, so that layers may differ.

    Raises:
        BadInputError: If the depth is no multiplier above 1.
        RefusedError: If no layer can be copied.
    """
    factor = depth_factor(depth)
    with analysing(model) as (opened, analysis):
        found = find_blocks(analysis, opened.model.proto)
        alike = alike_groups(analysis, found)
    copies: list[Copy] = []
    ends: dict[str, float] = {}
    counts: dict[str, tuple[int, int]] = {}
    why = ["there are no residual blocks with numbers"]
    for group, layers in _lists(found).items():
        differ = group not in alike and not append and not is_told
        reason = next((block.reason for block in layers if block.reason), "")
        if differ:
            reason = reason or "the layers differ, and the class may tell them apart by their numbers (--append)"
        if reason:
            why.append(f"{layers[0].name}: {reason}")
            continue
        more = spread_copies(layers, round(len(layers) * (factor - 1)))
        for block, number in more.items():
            copy, own = _copy(analysis, block, layers[-1] if append else block)
            ends |= own
            copies += [copy] * number
        if more:
            counts[group] = (len(layers), len(layers) + sum(more.values()))
    if not copies:
        raise RefusedError(f"no layer can be copied: {why[-1]}")
    return Layers(tuple(copies), ends, counts)


def _lists(found: Sequence[Block]) -> dict[str, list[Block]]:
    """Return the numbered modules by their lists; a module of several residual blocks is one."""
    modules: dict[str, Block] = {}
    for block in found:
        name = re.sub(r"#\d+$", "", block.name)
        known = modules.get(name)
        modules[name] = replace(block, name=name) if known is None else replace(
            known, nodes=tuple(sorted({*known.nodes, *block.nodes})), zeroed=known.zeroed | block.zeroed,
            reason=known.reason or block.reason,
        )  # fmt: skip
    lists: dict[str, list[Block]] = {}
    for name, block in modules.items():
        group, _, number = name.rpartition(".")
        if number.isdigit():
            lists.setdefault(group, []).append(block)
    return {group: layers for group, layers in lists.items() if [layer.name for layer in layers]
            == [f"{group}.{number}" for number in range(len(layers))]}  # fmt: skip


def _copy(analysis: Analysis, block: Block, behind: Block) -> tuple[Copy, dict[str, float]]:
    """Return a copy of a layer, and what ends its branches."""
    ends = dict(_ends(analysis, block))
    names = {name_of(value) for number in block.nodes for value in analysis.nodes[number].inputs
             if constant_of(value) is not None}  # fmt: skip
    constants = tuple(CopiedConstant(name, name, "", name in ends) for name in sorted(names))
    return Copy(block.name, behind.name, constants, True), ends


def _ends(analysis: Analysis, block: Block) -> Iterator[tuple[str, float]]:
    """Yield the weights at the ends of a layer's branches with what they are in a copy."""
    for number, index in block.zeroed:
        node = analysis.nodes[number]
        tensors = [node.inputs[index], *(node.inputs[1 - index : 2 - index] if node.op == "Add" else ())]
        numbers = [number_of(analysis, tensor) for tensor in tensors]
        if numbers[0] is None:
            beside = numbers[1] if len(numbers) > 1 and (number, 1 - index) in block.zeroed else None
            yield name_of(tensors[0]), -beside if beside else 0.0


def deeper_names(
    parameters: Mapping[str, Stored], places: Mapping[str, str], layers: Layers, model: Model
) -> dict[str, tuple[str, bool]]:
    """Return the parameters of the deeper class: which of the teacher's each is or copies, and whether it is a copy.

    Args:
        parameters: The teacher's parameters.
        places: The constants of the graph that they are.
        layers: The copies.
        model: The graph.

    Raises:
        RefusedError: If a copy has no number in the class, or what ends it is no parameter.
    """
    entries = []
    for name, stored in parameters.items():
        constant = places.get(name)
        matches = [Match("same", (Piece(constant, ()),))] if constant else []
        entry = Entry(name, "same" if constant else "passed through", (constant,) if constant else (), stored)
        entries.append(Placed(entry, stored, matches))
    known = set(places.values())
    lost = [name for name in layers.ends if name not in known]
    if lost:
        raise RefusedError(f"the branches of a copied layer would end in {lost[0]}, which is no parameter of the class")
    found = deepened(entries, layers.copies, constants_of(model))
    return {name: (placed.entry.name, placed.is_copy) for name, placed in found.items()}
