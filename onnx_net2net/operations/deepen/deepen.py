"""Net2DeeperNet on any graph: inserts layers that compute the identity at first, and learn.

Where phi(phi(v)) = phi(v), as for ReLU, a layer of the same kind with the same activation is inserted (paper, section
2.4). `analysis.activations` says what is inserted elsewhere. Residual blocks are repeated as a whole; see
`analysis.blocks`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import onnx

from onnx_net2net.algebra.floats import Array
from onnx_net2net.analysis.activations import BEST, WAYS, Site, Way, find_sites
from onnx_net2net.analysis.blocks import Block, find_blocks
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.groups import analysing, inspect
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.loadable import check_framework
from onnx_net2net.analysis.names import matching
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.graph.sizes import opsets_of
from onnx_net2net.model.history import record
from onnx_net2net.model.model import Model, ModelLike, Progress, load
from onnx_net2net.operations.deepen.factor import factorise
from onnx_net2net.operations.deepen.insert import Inserter, calibrated
from onnx_net2net.operations.deepen.repeat import Copy, WeightShape, insert_copy, program, value_numbers
from onnx_net2net.operations.widen.widen import widen

T = TypeVar("T")

_ADVICE = "; a residual branch may (residual), or a layer with an activation of its own (prelu, maxout)"

_NO_FACTORS = "only a Gemm, MatMul or Conv with one matrix of single or double precision has factors"

WIDEST_KERNEL = 7
"""Kernels of inserted convolutions are those of the layer in front, but no larger than this."""


@dataclass(frozen=True)
class Insertion:
    """What was inserted behind one layer or block.

    Attributes:
        name: The layer or block in front.
        way: What was inserted; see `way` of `deepen`.
        count: How many of it.
    """

    name: str
    way: Way | Literal["block", "cancel"]
    count: int


@dataclass(frozen=True)
class Deepening:
    """The result of `deepen`.

    Attributes:
        teacher: The model that was deepened.
        student: The deeper model; its weights are computed when it is saved or run.
        insertions: What was inserted, in the order of the layers.
        seed: Seed of every random choice.
        notes: Remarks for people.
        copies: The copies of blocks, in the order of the graph, without those that cancel (way "cancel").
        depths: For each group of numbered blocks: the number of blocks before and after.
        exact: Whether the student computes the same as the teacher; False if `rank` is too small for that.
    """

    teacher: Model
    student: Model
    insertions: tuple[Insertion, ...]
    seed: int
    notes: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()
    depths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    exact: bool = True


def sites(model: ModelLike) -> list[Site]:
    """List the layers of a model and what can be inserted behind each.

    Raises:
        BadInputError: If the model cannot be used.
    """
    return _found(model, find_sites)


def blocks(model: ModelLike) -> list[Block]:
    """List the residual blocks of a model, and why some cannot be repeated.

    Raises:
        BadInputError: If the model cannot be used.
    """
    return _found(model, find_blocks)


def _found(model: ModelLike, find: Callable[[Analysis, onnx.ModelProto], list[T]]) -> list[T]:
    with analysing(load(model)) as (opened, analysis):
        return find(analysis, opened.model.proto)


def deepen(
    teacher: ModelLike,
    *,
    after: Sequence[str] = (),
    all: bool = False,
    count: int = 1,
    pairs: int = 0,
    way: Way | Literal["cancel"] | None = None,
    width: int | str | None = None,
    rank: int | None = None,
    repeat: Mapping[str, int | str] | Sequence[str] = (),
    depth: str | float | None = None,
    append: bool = False,
    calibrate: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
    framework: str | None = None,
    progress: Progress | None = None,
) -> Deepening:
    """Insert layers that compute the identity (Net2DeeperNet, paper section 2.4).

    Args:
        teacher: A path, a model in memory or a loaded model; it is not changed.
        after: Names or patterns of the layers behind which to insert.
        all: Whether to insert behind every layer whose activation admits an identity. With `way`: behind every layer
            that admits this way.
        count: How many layers to insert behind each.
        pairs: How many pairs of a horizontal and a vertical convolution to insert instead (paper, section 3.4).
        way: What to insert; by default the best for each layer. "identity": a layer with the network's activation.
            "pair": a layer with two columns for each unit (behind GELU and its kin). "residual": a branch whose last
            weight is zero. "prelu": a layer with PReLU, whose slopes start at 1. "maxout": the larger of two equal
            identities; only noise or dropout makes them different. "factor": two layers in the place of the layer
            itself, with an activation between them (paper, section 2.4). For blocks there is also "cancel": two copies
            with opposite signs, which works where a branch cannot end in zero.
        width: Units of the new layers (`96`), or a multiplier (`"2x"`); at least the width of the layer in front.
        rank: With the way "factor": the number of units between the two layers; half of them are the negatives of the
            other half. By default so many that the student is exact; with fewer it is the nearest approximation.
        repeat: How many copies of residual blocks to insert, by the names or patterns of blocks or of their groups
            ({"layer3": 4} or ["layer3=+4"]). Copies are spread evenly over the blocks that match.
        depth: How many times as deep every group of blocks becomes, by copies (2 or "2x").
        append: Whether copies go behind the last block of the group, and not behind their originals.
        calibrate: Inputs (arrays by name, or an npz file of them) on which the statistics of inserted
            BatchNormalizations are measured, so that the new layers change little when training begins. By default
            inputs are generated.
        seed: Seed of every random choice.
        framework: ``"torch"``, ``"keras"`` or ``"flax"``: the weights of the student must fit a class of it, made with
            more layers. Then only numbered blocks are copied, and only among blocks that compute the same.
        progress: Called with the number of finished calibration runs, and of all.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.operations.verify`.

    Raises:
        BadInputError: The model cannot be used, or an option makes no sense.
        RefusedError: Nothing can be inserted behind a layer that was named, or a block cannot be repeated.
    """
    check_framework(framework)
    if repeat or depth is not None:
        for_layers = after or all or count != 1 or pairs or width is not None or calibrate is not None or rank
        if for_layers or way not in (None, "cancel") or (repeat and depth is not None):
            raise BadInputError("repeat and depth copy blocks: give one of them, and no options for layers")
        factor = None if depth is None else depth_factor(depth)
        return _repeated(load(teacher), _counts(repeat), factor, append, way == "cancel", seed, framework)
    if framework:
        raise RefusedError(
            f"a class of {framework} has no such layers: repeat its blocks (repeat, depth), or fill a deeper class by "
            "transfer"
        )
    if append or way == "cancel":
        raise BadInputError("append and cancel are for blocks (repeat, depth)")
    if bool(after) == all:
        raise BadInputError("say where to insert layers (after, or all), or which blocks to copy (repeat, depth)")
    if count < 1 or pairs < 0:
        raise BadInputError(f"count must be at least 1 and pairs at least 0, not {count} and {pairs}")
    if pairs and way not in (None, "identity"):
        raise BadInputError("pairs are always identities; give no other way")
    if way is not None and way not in WAYS:
        raise BadInputError(f"there is no way {way!r}; there are {', '.join(WAYS)}")
    if way == "factor" and (count != 1 or width is not None):
        raise BadInputError("the way factor takes neither count nor width")
    if rank is not None and (way != "factor" or rank < 1):
        raise BadInputError("rank is the number of units between two factors, at least 1 (--with factor)")
    if way == "factor":
        return _factored(load(teacher), after, rank, seed)
    deepening = _inserted(load(teacher), after, way, count, pairs, calibrate, seed, progress)
    return deepening if width is None else _widened(deepening, width)


def _inserted(
    model: Model,
    after: Sequence[str],
    way: Way | None,
    count: int,
    pairs: int,
    calibrate: str | os.PathLike[str] | Mapping[str, Array] | None,
    seed: int,
    progress: Progress | None,
) -> Deepening:
    """Insert layers behind those named, or behind all."""
    with analysing(model) as (opened, analysis):
        found = find_sites(analysis, opened.model.proto)
        if pairs:
            found = [_for_pairs(site) for site in found]
            way = "identity"
        chosen = _named(found, after, way) if after else _all(found, way)
        measured = calibrated(model, chosen, calibrate, seed, progress)
        inputs = {"calibrated on": "generated inputs" if calibrate is None else "data"} if measured else {}
        draft = Draft.of(analysis)
        inserter = Inserter(draft, opsets_of(model.proto)[""], seed, measured)
        for site, one in chosen:
            for number in range(pairs or count):
                inserter.insert(site, one, number, _kernels(site, in_pairs=pairs > 0))
        names = [site.name for site, _ in chosen]
        options = {"after": names, "count": count, "pairs": pairs, "way": way, "seed": seed}
        metadata = record(model, "deepen", options, {**opened.notes(), **inputs})
        student = opened.close(draft.graph.finish(metadata))
    layers = 2 * pairs or count
    insertions = tuple(Insertion(site.name, one, layers) for site, one in chosen)
    notes = ("inserted normalisations are calibrated on generated inputs (--calibrate takes real ones)",)
    return Deepening(model, student, insertions, seed, notes if measured and calibrate is None else ())


def _factored(model: Model, after: Sequence[str], rank: int | None, seed: int) -> Deepening:
    """Put two factors in the place of layers that are named, or of all."""
    with analysing(model) as (opened, analysis):
        found = find_sites(analysis, opened.model.proto)
        chosen = _named(found, after, "factor") if after else _all(found, "factor")
        draft = Draft.of(analysis)
        inserter = Inserter(draft, opsets_of(model.proto)[""], seed, {})
        notes = [factorise(draft, inserter, site, rank) for site, _ in chosen]
        options = {"after": [site.name for site, _ in chosen], "way": "factor", "rank": rank, "seed": seed}
        student = opened.close(draft.graph.finish(record(model, "deepen", options, opened.notes())))
    insertions = tuple(Insertion(site.name, "factor", 1) for site, _ in chosen)
    lossy = tuple(note for note in notes if note)
    return Deepening(model, student, insertions, seed, lossy, exact=not lossy)


def _widened(deepening: Deepening, width: int | str) -> Deepening:
    """Widen the layers that were inserted."""
    new = tuple(f"{insertion.name}_new" for insertion in deepening.insertions)
    groups = inspect(deepening.student).groups
    sizes = {group.name: width for group in groups if group.name.startswith(new) and group.reason is None}
    if not sizes:
        raise RefusedError("new layers cannot have another width here: their units are tied to other layers")
    widening = widen(deepening.student, sizes=sizes, seed=deepening.seed)
    return replace(deepening, student=widening.student, notes=(*deepening.notes, *widening.notes))


def _counts(repeat: Mapping[str, int | str] | Sequence[str]) -> dict[str, int]:
    """Return how many copies are asked for by each pattern."""
    items = (
        repeat.items()
        if isinstance(repeat, Mapping)
        else [(i.rpartition("=")[0], i.rpartition("=")[2]) for i in repeat]
    )
    counts = {}
    for pattern, number in items:
        try:
            counts[pattern] = int(number)
        except ValueError:
            counts[pattern] = 0
        if not pattern or counts[pattern] < 1:
            raise BadInputError(f"repeat {pattern}={number}: write PATTERN=+N, like 'layer3=+4'")
    return counts


def depth_factor(depth: str | float) -> float:
    """Return a multiplier, written like 2x.

    Raises:
        BadInputError: If it is none above 1.
    """
    try:
        factor = float(str(depth).removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 1 < factor < math.inf:
        raise BadInputError(f"depth must be a multiplier above 1, like 2x, not {depth}")
    return factor


def _repeated(
    model: Model, counts: Mapping[str, int], factor: float | None, append: bool, cancels: bool, seed: int,
    framework: str | None,
) -> Deepening:  # fmt: skip
    """Insert copies of blocks."""
    with analysing(model) as (opened, analysis):
        found = find_blocks(analysis, opened.model.proto)
        if not found:
            raise RefusedError("there are no residual blocks to repeat")
        if cancels:
            found = [replace(block, reason=block.obstacle) for block in found]
        alike = alike_groups(analysis, found)
        if framework:
            known = {block.name for block in found}
            found = [_in_class(block, known, alike, append, cancels) for block in found]
        copies = _by_pattern(found, counts) if factor is None else _by_factor(found, factor)
        draft = Draft.of(analysis)
        tensors = draft.graph.tensors()
        made: list[Copy] = []
        for block, number in copies.items():
            behind = _last_like(analysis, found, block) if append else block
            taken = {other.name for other in found}
            names = (name for n in itertools.count() if (name := f"{block.name}_new{n}") not in taken)
            for name in itertools.islice(names, number):
                constants = insert_copy(draft, opened.model.proto, block, tensors[behind.exit], name, cancels)
                made.append(Copy(block.name, behind.name, tuple(constants), block.group in alike))
        options: dict[str, object] = {"repeat": dict(counts)} if factor is None else {"depth": factor}
        options |= {"append": append, "way": "cancel" if cancels else None, "seed": seed}
        options |= {"framework": framework} if framework else {}
        student = opened.close(draft.graph.finish(record(model, "deepen", options, opened.notes())))
    way: Literal["block", "cancel"] = "cancel" if cancels else "block"
    insertions = tuple(Insertion(block.name, way, number) for block, number in copies.items())
    depths = {} if cancels else _depths(found, copies)
    return Deepening(model, student, insertions, seed, (), () if cancels else tuple(made), depths)


def alike_groups(analysis: Analysis, found: Sequence[Block]) -> set[str]:
    """Return the groups whose blocks with weights of the same shapes compute the same, but for their values."""
    programs: dict[str, dict[tuple[object, ...], set[object]]] = {block.group: {} for block in found}
    numbers = value_numbers(analysis)
    for block in found:
        own = program(analysis, block, numbers)
        shapes = tuple(shape for _, _, _, reads in own for shape in reads if isinstance(shape, WeightShape))
        programs[block.group].setdefault(shapes, set()).add(own)
    return {group for group, kinds in programs.items() if all(len(own) == 1 for own in kinds.values())}


def _in_class(block: Block, names: Collection[str], alike: Collection[str], append: bool, cancels: bool) -> Block:
    """Give a block a reason if no class made with more layers has copies of it."""
    reason = block.reason
    if cancels:
        reason = "a class has no two copies that cancel"
    elif "#" in block.name or f"{block.name}#2" in names:
        reason = reason or "it is only a part of the module of its name; fill a deeper class by transfer"
    elif not block.name[-1].isdigit():
        reason = reason or "it has no number, so that a class takes no more of it; fill a deeper class by transfer"
    elif block.group not in alike and not append:
        reason = reason or "the blocks of its group differ, and a class may tell them apart by their numbers (append)"
    return replace(block, reason=reason)


def _depths(found: Sequence[Block], copies: Mapping[Block, int]) -> dict[str, tuple[int, int]]:
    """Return how many blocks the groups that get copies have, before and after."""
    more: dict[str, int] = {}
    for block, number in copies.items():
        more[block.group] = more.get(block.group, 0) + number
    before = {group: sum(block.group == group for block in found) for group in more}
    return {group: (before[group], before[group] + number) for group, number in more.items()}


def _by_pattern(found: Sequence[Block], counts: Mapping[str, int]) -> dict[Block, int]:
    copies: dict[Block, int] = {}
    for pattern, number in counts.items():
        matches = matching(pattern, found, lambda block: (block.name, block.group), "block")
        spread = spread_copies(matches, number)
        if not spread:
            raise RefusedError(f"{matches[0].name!r} cannot be repeated: {matches[0].reason}{_advice(matches)}")
        for block, more in spread.items():
            copies[block] = copies.get(block, 0) + more
    return copies


def _by_factor(found: Sequence[Block], factor: float) -> dict[Block, int]:
    """Spread over each group as many copies as it lacks."""
    groups: dict[str, list[Block]] = {}
    for block in found:
        groups.setdefault(block.group, []).append(block)
    copies: dict[Block, int] = {}
    for members in groups.values():
        copies.update(spread_copies(members, round(len(members) * (factor - 1))))
    if not copies:
        few = f"{factor:g} times as deep is less than one more in every group"
        no = f"no block can be repeated: {found[0].reason}{_advice(found)}"
        raise RefusedError(few if any(not b.reason for b in found) else no)
    return copies


def _advice(blocks: Sequence[Block]) -> str:
    return "; two copies that cancel could be inserted (cancel)" if any(not b.obstacle for b in blocks) else ""


def spread_copies(members: Sequence[Block], number: int) -> dict[Block, int]:
    """Share copies evenly among the blocks that can be repeated."""
    fit = [block for block in members if not block.reason]
    shares = [((i + 1) * number) // len(fit) - (i * number) // len(fit) for i in range(len(fit))]
    return {block: share for block, share in zip(fit, shares, strict=True) if share}


def _last_like(analysis: Analysis, found: Sequence[Block], block: Block) -> Block:
    """Return the last block of the group whose result has the shape of this block's."""
    shape = analysis.sizes.shape(block.exit)
    group = [other for other in found if other.group == block.group and other.exit]
    return [other for other in group if analysis.sizes.shape(other.exit) == shape][-1]


def _for_pairs(site: Site) -> Site:
    """Allow nothing but a site behind a convolution of images."""
    if len(site.kernel) == 2 and max(site.kernel) > 1:
        return site
    return replace(site, ways=(), reason=site.reason or "only kernels with two axes can be pairs")


def _kernels(site: Site, in_pairs: bool) -> list[tuple[int, ...]]:
    """Return the kernels of what is inserted at once: like that of the layer, with a middle, and not too large."""
    sizes = tuple(min(size - 1 + size % 2, WIDEST_KERNEL) for size in site.kernel)
    return [(1, max(sizes)), (max(sizes), 1)] if in_pairs else [sizes]


def _all(found: Sequence[Site], way: Way | None) -> list[tuple[Site, Way]]:
    """Choose every site where an identity, or the way that is asked for, can be inserted."""
    wanted = (way,) if way else BEST
    chosen = [(site, one) for site in found if (one := next((w for w in site.ways if w in wanted), None))]
    if not chosen:
        if not found:
            raise RefusedError("nothing can be inserted: the model has no layers")
        reason = next((site.reason for site in found if site.reason), "there is no place for it")
        raise RefusedError(f"nothing can be inserted: {reason}" + ("" if way else _ADVICE))
    return chosen


def _named(found: Sequence[Site], after: Sequence[str], way: Way | None) -> list[tuple[Site, Way]]:
    chosen: dict[int, tuple[Site, Way]] = {}
    for pattern in after:
        matches = matching(pattern, found, lambda site: (site.name,), "layer")
        fit = [(site, way or site.ways[0]) for site in matches if site.ways and way in (None, *site.ways)]
        if not fit:
            reason = _NO_FACTORS if way == "factor" and not matches[0].reason else matches[0].reason
            raise RefusedError(f"nothing of the kind can be inserted behind {matches[0].name!r}: {reason}")
        chosen.update((site.layer, (site, one)) for site, one in fit)
    return [chosen[layer] for layer in sorted(chosen)]
