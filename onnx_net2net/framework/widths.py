"""The widths of a model as the constructors of a framework take them, and how they differ in a student.

What a user has to write to get the wider class: the sizes of each module, the fields of a config where all layers
agree, the products that sizes must stay, and the numbers that a class computes from its sizes where the file has
constants. All of it is read off the graph; names only say what belongs to which module.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_net2net.algebra.dims import Axis, Product, leaves, resolve
from onnx_net2net.analysis.blocks import find_blocks
from onnx_net2net.analysis.groups import Group, inspect_analysis
from onnx_net2net.analysis.inference import Analysis, infer
from onnx_net2net.analysis.layers import parts_of
from onnx_net2net.analysis.multipliers import formula, frozen_constants, scalings
from onnx_net2net.analysis.names import module_of, scope_of
from onnx_net2net.analysis.routers import last_choices
from onnx_net2net.graph.flatten import open_bodies
from onnx_net2net.graph.graph import Constant
from onnx_net2net.graph.walk import constant_of, source
from onnx_net2net.model.history import history
from onnx_net2net.model.model import Model
from onnx_net2net.rules import traits

ConstructorSizes = dict[str, int | tuple[int, ...]]
"""Sizes of a module by the names of its constructor's parameters."""

Pair = tuple[Any, Any]
"""A size in the teacher and in the student."""


@dataclass
class Constructed:
    """A module as its constructor makes it."""

    kind: str  # its class in PyTorch
    sizes: ConstructorSizes  # the sizes that it is made with
    # For sizes that are products or sums of them, the factors: (3 x heads x head_dim).
    products: dict[str, str] = field(default_factory=dict)


@dataclass
class Widths:
    """The widths of one model."""

    modules: dict[str, Constructed]  # the modules by path
    config: dict[str, int | float]  # sizes that all layers have in common, by the names that configs give them
    epsilons: dict[str, float]  # the epsilon of each normalisation, by path
    rotary: tuple[int, ...]  # how many pairs rotary embeddings turn


@dataclass(frozen=True)
class Recomputed:
    """A number that a class computes, where the file has a constant."""

    what: str  # what it is, with its node
    value: float | None  # the constant in both files, None for a whole table
    formula: Pair  # what the class computes, in the teacher and in the student
    holds: bool  # whether the class made at the student's sizes computes what the file has


@dataclass(frozen=True)
class WidthReport:
    """How the widths of a student differ from its teacher's.

    Attributes:
        modules: For each module of the teacher its kind, and each size in the teacher and the student.
        config: The same for fields of configs.
        products: What sizes of the student are products of, by module and size.
        recomputed: The numbers that a class computes.
        epsilons: The normalisations whose epsilon differs.
        depths: How many blocks each group of them has, where a step of `deepen` repeated some.
    """

    modules: dict[str, tuple[str, dict[str, Pair]]]
    config: dict[str, Pair]
    products: dict[str, dict[str, str]]
    recomputed: tuple[Recomputed, ...]
    epsilons: dict[str, Pair]
    depths: dict[str, Pair] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        return {
            "modules": [
                {"module": name, "kind": kind, **{size: list(pair) for size, pair in sizes.items()}}
                for name, (kind, sizes) in self.modules.items()
            ],
            "config": {name: list(pair) for name, pair in self.config.items()},
            "products": self.products,
            "recomputed": [
                {"what": r.what, "value": r.value, "formula": list(r.formula), "holds": r.holds}
                for r in self.recomputed
            ],
            "epsilons": {name: list(pair) for name, pair in self.epsilons.items()},
            **({"depths": {name: list(pair) for name, pair in self.depths.items()}} if self.depths else {}),
        }

    def lines(self) -> Iterator[str]:
        """Yield what differs, one line a module, for people."""
        for name, (_, sizes) in self.modules.items():
            changed = [f"{size} {_text(old)} -> {_text(new)}" for size, (old, new) in sizes.items() if old != new]
            if changed:
                yield f"{name}: {', '.join(changed)}"
        for name, (before, after) in self.depths.items():
            yield f"blocks of {name}: {before} -> {after}"
        if self.config:
            fields = [
                f"{n} {_text(a)} -> {_text(b)}" if a != b else f"{n} {_text(a)}" for n, (a, b) in self.config.items()
            ]
            yield f"config: {', '.join(fields)}"
        shown = {text: (name, size) for name, sizes in self.products.items() for size, text in sizes.items()}
        for text, (name, size) in shown.items():
            yield f"must hold: {name} {size} {text}"
        for found in self.recomputed:
            old, new = found.formula
            value = "" if found.value is None else f" {found.value:.6g} ="
            other = "" if found.holds else f"; the class would have {new}, which DIFFERS"
            yield f"computed by the class: {found.what} has{value} {old}{other}"
        for name, (before, after) in self.epsilons.items():
            yield f"to be given to the class: eps of {name} {before:.6g} -> {after:.6g}"


def _text(size: Any) -> str:
    return str(list(size)) if isinstance(size, tuple) else f"{size:g}"


def compare_widths(teacher: Model, student: Model) -> WidthReport:
    """Compare the widths of a student with those of its teacher; no weight is read.

    Modules are paired by their paths. A module that the student does not have (it was deepened, or its nodes have
    lost their names) is left out.
    """
    models = [_open(model) for model in (teacher, student)]
    old, new = (widths(*model) for model in models)
    modules = {
        name: (module.kind, _pairs(module.sizes, new.modules[name].sizes))
        for name, module in old.modules.items()
        if name in new.modules and new.modules[name].kind == module.kind
    }
    is_deeper = any(step["operation"] == "deepen" for step in history(student)[len(history(teacher)) :])
    counts = [Counter(block.group for block in find_blocks(analysis, flat.proto)) if is_deeper else Counter[str]()
              for flat, analysis in models]  # fmt: skip
    depths = {group: (number, counts[1].get(group, 0)) for group, number in counts[0].items()}
    if len(depths) == 1 and "num_attention_heads" in old.config:
        old.config["num_hidden_layers"], new.config["num_hidden_layers"] = next(iter(depths.values()))
    recomputed = list(_recomputed(*(analysis for _, analysis in models)))
    if old.rotary or new.rotary:
        texts = [f"{', '.join(map(str, found))} pairs" for found in (old.rotary, new.rotary)]
        same = old.rotary == new.rotary
        recomputed.append(Recomputed("the table of the rotary embedding", None, (texts[0], texts[1]), same))
    epsilons = _pairs(old.epsilons, new.epsilons)
    return WidthReport(
        modules, _pairs(old.config, new.config),
        {name: module.products for name, module in new.modules.items() if module.products}, tuple(recomputed),
        {name: pair for name, pair in epsilons.items() if not math.isclose(*pair, rel_tol=1e-6)},
        {group: pair for group, pair in depths.items() if pair[0] != pair[1]},
    )  # fmt: skip


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Pair]:
    """Return what both have by the same name."""
    return {name: (value, new[name]) for name, value in old.items() if name in new}


def _open(model: Model) -> tuple[Model, Analysis]:
    flat = open_bodies(model).model
    return flat, infer(flat)


# --- Modules -------------------------------------------------------------------------------------------------


def widths(model: Model, analysis: Analysis) -> Widths:
    """Return the widths of a model that was analysed."""
    modules: dict[str, Constructed] = {}
    epsilons: dict[str, float] = {}
    uses = Counter(id(use.constant) for use in analysis.uses.values())
    for number, node in enumerate(analysis.nodes):
        read = _weight(analysis, number) if number in analysis.said else None
        if read is None and node.op not in traits.UNIT_NORMS - traits.ROW_NORMS:  # whose weights may be made
            continue
        module = _module(analysis, number, read[1] if read else 1)
        if module is None:
            continue
        proto, constant = model.proto.graph.node[number], read[0] if read else None
        # Exporters merge vectors of equal values, and fold norms into the matrices before them.
        is_own = constant is not None and uses[id(constant)] == 1 and len(constant.shape) > 1
        name = ("" if is_own else scope_of(proto)) or module_of(node, proto, constant.name if constant else "")
        modules.setdefault(name, module)
        if "epsilon" in node.attrs:
            epsilons.setdefault(name, float(node.attrs["epsilon"]))
    groups = inspect_analysis(model, analysis).groups
    rotary = tuple(sorted({group.size for group in groups if group.role == "rotary pairs"}))
    experts = {dim for group in groups if group.role == "experts" for dim in group.dims}
    lists = [places for dim, places in last_choices(analysis).items()
             if dim in experts and places.inputs[0].op == "TopK"]  # fmt: skip
    chosen = {shape[-1] for places in lists if (shape := analysis.sizes.shape(places.name))}
    config = _config(groups, modules) | ({"num_experts_per_tok": chosen.pop()} if len(chosen) == 1 else {})
    return Widths(modules, config, epsilons, rotary)


def _weight(analysis: Analysis, number: int) -> tuple[Constant, int] | None:
    """Return the constant that a layer multiplies or scales by, perhaps rearranged, and which input it is."""
    node = analysis.nodes[number]
    for index in (0,) if (node.op, 0) in traits.TABLES else (1, 0) if node.op == "MatMul" else (1,):
        if index >= len(node.inputs):
            continue
        constant = constant_of(source(node.inputs[index], traits.REARRANGES - traits.REFOLDS))
        if constant is not None:
            return constant, index
    return None


def _module(analysis: Analysis, number: int, index: int) -> Constructed | None:
    """Return the module that a node is, by what its weight at an input says; None where it is none."""
    node = analysis.nodes[number]
    axes = analysis.input_axes(number, index) or ()
    shape = [axis.size for axis in axes]
    attrs = node.attrs
    if node.op in traits.KERNELS and len(shape) > 2:
        groups = int(attrs.get("group", 1))
        made, read = traits.weight_axes(node.op, attrs)
        ends = shape[0], shape[1] * groups
        sizes: ConstructorSizes = {"in_channels": ends[read], "out_channels": ends[made], "groups": groups}
        reason = f"and in_channels are multiples of groups {groups}"
        why = {"out_channels": reason, **_products(out_channels=axes[made])} if groups > 1 else {}
        return Constructed(f"{node.op}{len(shape) - 2}d", sizes, why)
    if node.op in traits.MATRICES and len(shape) == 2:
        at = next(
            (position for c in analysis.said[number].contractions for side, position in c.sides if side == index), 0
        )
        summed, other = axes[at], axes[1 - at]
        sizes = {"in_features": summed.size, "out_features": other.size}
        return Constructed("Linear", sizes, _products(in_features=summed, out_features=other))
    if (node.op, index) in traits.TABLES and len(shape) == 2 and not int(attrs.get("axis", 0)):
        return Constructed("Embedding", {"num_embeddings": shape[0], "embedding_dim": shape[1]})
    if node.op in traits.FIXED_NORMS:
        rank = len(analysis.input_axes(number, 0) or ()) - 2
        return Constructed(f"BatchNorm{max(rank, 1)}d", {"num_features": shape[0]})
    if node.op in traits.ROW_NORMS:
        return Constructed("LayerNorm" if node.op[0] == "L" else "RMSNorm", {"normalized_shape": tuple(shape)})
    if node.op == "GroupNormalization":
        channels = (analysis.input_axes(number, 0) or ())[1].size
        return Constructed("GroupNorm", {"num_groups": int(attrs["num_groups"]), "num_channels": channels})
    if node.op == "InstanceNormalization":
        return _group_norm(analysis, number)
    if node.op in traits.RECURRENT:
        return Constructed(node.op, {"input_size": shape[2], "hidden_size": int(attrs["hidden_size"])})
    if node.op == "PRelu":
        return Constructed("PReLU", {"num_parameters": math.prod(shape)})
    return None


def _group_norm(analysis: Analysis, number: int) -> Constructed:
    """Return a normalisation of each channel, or of groups of channels, which exporters write as channels."""
    node = analysis.nodes[number]
    axes = analysis.input_axes(number, 0) or ()
    makers = node.inputs[0].inputs
    before = analysis.input_axes(analysis.numbers[id(makers[0])], 0) if makers and makers[0].op == "Reshape" else None
    if before and len(before) > 1 and len(axes) > 1 and set(leaves(axes[1])) <= set(leaves(before[1])):
        return Constructed("GroupNorm", {"num_groups": axes[1].size, "num_channels": before[1].size})
    return Constructed(f"InstanceNorm{max(len(axes) - 2, 1)}d", {"num_features": axes[1].size if len(axes) > 1 else 0})


def _products(**axes: Axis) -> dict[str, str]:
    """Return for each of the sizes that is a product the factors of its parts."""
    found = {}
    for name, axis in axes.items():
        parts = [resolve(part) for part in parts_of(axis)]
        if any(isinstance(part, Product) for part in parts):
            texts = [" x ".join(str(p.size) for p in part.parts) if isinstance(part, Product) else str(part.size)
                     for part in parts]  # fmt: skip
            found[name] = f"{axis.size} = {' + '.join(texts)}"
    return found


# --- Configs -------------------------------------------------------------------------------------------------

_FIELDS = {
    "residual stream": "hidden_size",
    "ffn": "intermediate_size",
    "query/key head_dim": "head_dim",
    "head_dim": "head_dim",
    "kv heads": "num_key_value_heads",
    "experts": "num_experts",
    "state": "state_size",
    "vocabulary": "vocab_size",
}
"""The fields of configs for roles whose size they are, as transformers call them."""

_BOTTLENECK = re.compile(r"layer(\d+)\.\d+\.conv([23])")


def _config(groups: Iterable[Group], modules: Mapping[str, Constructed]) -> dict[str, int | float]:
    """Return the sizes that all layers have in common, by the names that configs give them."""
    sizes: dict[str, set[int]] = {}
    for group in groups:
        sizes.setdefault(group.role, set()).add(group.size)
    one = {role: next(iter(found)) for role, found in sizes.items() if role and len(found) == 1}
    config: dict[str, int | float] = {name: one[role] for role, name in _FIELDS.items() if role in one}
    if "value head_dim" in one:
        config.setdefault("head_dim", one["value head_dim"])
    if "heads" in one:
        config["num_attention_heads"] = one["heads"]
    elif "kv heads" in one and "heads per kv head" in one:
        config["num_attention_heads"] = one["kv heads"] * one["heads per kv head"]
    if "hidden_size" in config and "intermediate_size" in config:
        config["mlp_ratio"] = config["intermediate_size"] / config["hidden_size"]
    if not config.keys() & {"num_attention_heads", "intermediate_size", "state_size"}:
        config.clear()  # the streams of a convolutional network are of many sizes
    return {**config, **_width_per_group(modules)}


def _width_per_group(modules: Mapping[str, Constructed]) -> dict[str, int | float]:
    """Return the width of a group in the first stage of a ResNet, where the other stages have 2, 4 and 8 times that."""
    widths_: set[float] = set()
    for name, module in modules.items():
        place = _BOTTLENECK.search(name)
        if place and place[2] == "2" and name[: place.end() - 1] + "3" in modules and module.kind == "Conv2d":
            channels, groups = module.sizes["out_channels"], module.sizes["groups"]
            assert isinstance(channels, int)
            assert isinstance(groups, int)
            widths_.add(channels / groups / 2 ** (int(place[1]) - 1))
    return {"width_per_group": widths_.pop()} if len(widths_) == 1 else {}


# --- Numbers that a class computes ---------------------------------------------------------------------------


def _recomputed(teacher: Analysis, student: Analysis) -> Iterator[Recomputed]:
    """Yield the constants of the teacher that a class computes from its sizes, and whether they hold in the student."""
    there = {scaling.node: scaling for scaling in scalings(student)}
    for constant in frozen_constants(teacher):
        scaling = there.get(constant.node)
        axes: Sequence[Axis] = scaling.axes if scaling else ()
        size = axes[constant.place].size if constant.place < len(axes) else constant.axis.size
        holds = math.isclose(size**constant.power, scaling.value if scaling else constant.value, rel_tol=1e-3)
        yield Recomputed(constant.node, constant.value, (constant.text, formula(size, constant.power)), holds)
