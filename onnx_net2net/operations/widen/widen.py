"""Net2WiderNet on any graph: chooses sizes and maps for its dims, and rewrites the graph by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.algebra.maps import NEVER, MapKind, is_never
from onnx_net2net.analysis.draft import Draft
from onnx_net2net.analysis.groups import Group, covered, paused_gc
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.analysis.loadable import analyse
from onnx_net2net.analysis.multipliers import numbers_beside
from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.graph.flatten import Opened
from onnx_net2net.model.history import record
from onnx_net2net.model.model import Model, ModelLike, load
from onnx_net2net.operations.widen.experts import route
from onnx_net2net.operations.widen.options import WidenOptions
from onnx_net2net.operations.widen.plan import Change, WidenPlan
from onnx_net2net.operations.widen.scaled import allow_padding, scaling_for
from onnx_net2net.rewrite.constants import GrownConstant
from onnx_net2net.rewrite.rewrite import rewrite
from onnx_net2net.rules.reasons import ReasonKind, kind_of
from onnx_net2net.texts import table_html


@dataclass(frozen=True)
class Widening:
    """The result of `widen`.

    Attributes:
        teacher: The model that was widened.
        student: The wider model; its weights are computed when it is saved or run.
        changes: The dims that were asked to grow: each with its size before and after, and its map.
        exact: Whether the student computes the same as the teacher (False with `noise` or `random_pad`).
        seed: Seed of every random choice.
        covered: The fraction of the weight elements that lie on an axis that grew.
        fixed: The dims that could not grow; the `reason` of each says why.
        notes: Remarks for people on further changes of the graph.
        constants: How each constant that grew did so.
        inserted: What a framework's class would need besides larger weights: new nodes, and numbers that it computes
            differently.
        numbers: Single numbers that scale something beside a dim that grew. A class that computes such a number from
            its sizes would get another value.
    """

    teacher: Model
    student: Model
    changes: tuple[Change, ...]
    exact: bool
    seed: int
    covered: float
    fixed: tuple[Group, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    constants: tuple[GrownConstant, ...] = field(default=(), repr=False)
    inserted: tuple[str, ...] = field(default=(), repr=False)
    numbers: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """Names of dims that kept their size, with reasons; without kernels and positions, largest weights first."""
        fixed = [
            (g.elements, g.name, g.reason)
            for g in self.fixed
            if g.reason and kind_of(g.reason) is not ReasonKind.ROUTINE
        ]
        kept = [(change.name, change.why) for change in self.changes if change.why]
        return (*((name, why) for _, name, why in sorted(fixed, key=lambda one: -one[0])), *kept)

    def _repr_html_(self) -> str:
        rows = ((change.name, change.old, change.new, change.map, change.tensors) for change in self.changes)
        sizes = f"{self.teacher.parameters:,} -> {self.student.parameters:,} parameters"
        return table_html(("dim", "before", "after", "map", "tensors"), rows, sizes)


def widen(
    teacher: ModelLike,
    *,
    factor: float | None = None,
    sizes: Mapping[str, int | str] | None = None,
    only: Sequence[str] = (),
    multiple_of: int = 1,
    map: MapKind = "replicate",
    spread: float = 0.3,
    noise: float = 0.0,
    seed: int = 0,
    prior: float | None = None,
    fill_norms: bool | None = None,
    framework: str | None = None,
    keep_numbers: bool = False,
    how: str = "split",
    scale_weights: bool = False,
    loads: Mapping[str, Sequence[float]] | None = None,
) -> Widening:
    """Widen the hidden dims of a model without changing its function (Net2WiderNet, paper section 2.3).

    Args:
        teacher: A path, a model in memory or a loaded model (see `load`); it is not changed.
        factor: Width multiplier (>= 1) for every hidden dim, or for those that `only` names. Each dim grows to the
            nearest size that it can have exactly. If an axis is a product (groups x channels), one factor of it grows:
            the one that comes near the multiplier and lets most weights grow.
        sizes: New sizes by the name, pattern or role of a dim: a number of units (`96`), more units (`"+4"`) or a
            multiplier (`"2x"`). Dims of the interface (classes, vocabulary, input channels) grow only if they are named
            here. Their old units stay first, and new ones are appended.
        only: Names, patterns or roles (`"ffn"`) of the dims that `factor` is for.
        multiple_of: New sizes are multiples of this.
        map: What new units are. "replicate": copies. "zero_out": units with weights of their own that no weight reads
            yet. "zero_in": units that are zero. "random_pad": random units, not exact. Dims that do not admit the map
            are replicated. See `onnx_net2net.algebra.maps`.
        spread: How unevenly copies share their outgoing weights, relative to each weight; 0 is evenly. The student is
            exact in any case.
        noise: Noise on the incoming weights of copies, relative to the weights, as in the paper. Not exact.
        seed: Seed of every random choice.
        prior: Probability (0 <= prior < 1) at which new classes start; by default 0.01 under a sigmoid. Under a
            softmax it can only be 0, because the old outputs would change otherwise.
        fill_norms: Whether a dim whose norm admits only multiples of its size may have any width. If so, nodes (Slice,
            Concat, Slice) fill the input of the norm up to the next multiple and cut its result. By default this is
            done where multiples would miss `factor` by more than a tenth, and not for `sizes`.
        framework: ``"torch"``, ``"keras"`` or ``"flax"``: the weights of the student must fit a class of it, made at
            the new sizes. Dims whose growth a class could not follow keep their size (see
            `onnx_net2net.analysis.loadable`).
        keep_numbers: Pass True if this class computes no number from its sizes (like alpha / r of LoRA, or
            width ** -0.5). Then a dim may grow even if a number in the file looks like a function of its size.
        how: How a router treats copies of an expert. ``"split"``: for each token masks let it see one copy only.
            ``"topk"``: it chooses all copies of an expert together, so that k grows, too. ``"lift"``: a bias rules the
            copies out until a load balancer raises it. ``"granular"``: experts are cut into parts instead, which are
            chosen together. Only ``"split"`` needs new nodes, which no class of a framework has.
        scale_weights: With `framework`: whether weights may be scaled so that the class can follow more growth. Then a
            stream in front of norms may have any width without another epsilon, and dims may grow although the class
            computes a number from their size.
        loads: By the name of a dim of experts: how often each expert is chosen
            (`onnx_net2net.operations.widen.load.expert_load`). Busy experts get more copies. By default all get equally
            many; a remainder goes to the first ones.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.operations.verify`.

    Raises:
        BadInputError: The model cannot be used, or an option makes no sense.
        RefusedError: A size in `sizes` is not possible exactly, or nothing can grow.
    """
    options = WidenOptions(
        factor, dict(sizes or {}), tuple(only), multiple_of, map, spread, noise, seed, prior, fill_norms, framework,
        keep_numbers, how, scale_weights and framework is not None,
        {name: list(numbers) for name, numbers in (loads or {}).items()},
    )  # fmt: skip
    if factor is None and not sizes:
        raise BadInputError("nothing to widen: give a factor or sizes")
    model = load(teacher)
    with paused_gc():
        return _widen(model, options)


def _widen(model: Model, options: WidenOptions) -> Widening:
    framework, factor = options.framework, options.factor
    opened, analysis, inspection, ties = analyse(
        model,
        framework,
        keep_numbers=options.keep_numbers,
        with_zeros=options.map == "zero_in",
        scale_weights=options.scale_weights,
    )
    if options.scale_weights:
        allow_padding(analysis, inspection, ties)
    plan = WidenPlan(analysis, inspection, options)
    plan.set_sizes(options.sizes)
    if factor is not None:
        plan.widen_all(factor, options.only)
    copies = route(analysis, plan.routed, plan.growth, options)
    metadata = record(model, "widen", options.recorded, {**opened.notes(), **plan.interface()})
    if not plan.growth and (factor is None or factor > 1):
        raise RefusedError(f"nothing grows: {_main_reason(plan, analysis)}")
    plan.check_map()
    if framework:
        plan.share_by_units(ties.rescaled)
    share = covered(analysis, plan.growth)
    notes = list(_notes(opened, analysis, plan))
    numbers = numbers_beside(analysis, plan.growth)
    if framework and numbers:
        notes.append(
            f"numbers beside dims that grew, which the class must not compute from its sizes: {_some(numbers)}"
        )
    scaling = scaling_for(analysis, plan.growth, ties) if options.scale_weights else None
    draft = Draft.of(analysis)
    grown = rewrite(
        opened.model, draft, plan.growth, options.style, metadata, scaling=scaling, ties=ties, copies=copies
    )
    if framework and (grown.inserted or grown.untied):
        what = grown.inserted[0] if grown.inserted else f"two versions of {grown.untied[0]!r}"
        raise RefusedError(f"a class of {framework} could not follow: the student needs {what}")
    if grown.untied:
        notes.append(f"untied, as their uses grow differently: {', '.join(grown.untied)}")
    return Widening(
        teacher=model,
        student=opened.close(grown.model),
        changes=tuple(plan.changes()),
        exact=options.is_exact,
        seed=options.seed,
        covered=share,
        fixed=tuple(g for g in inspection.groups if g.reason and not any(dim in plan.growth for dim in g.dims)),
        notes=tuple(notes),
        constants=grown.constants,
        inserted=tuple(map(str, grown.inserted)),
        numbers=tuple(numbers),
    )


def _notes(opened: Opened, analysis: Analysis, plan: WidenPlan) -> Iterator[str]:
    """Say what was done to the graph besides growing it, and what could be done."""
    for what, names in opened.notes().items():
        yield f"{what}: {', '.join(names)}"
    hidden = {dim for dim in plan.growth if not dim.pinned}
    cut = sorted(name for name in analysis.cut if any(hidden & set(leaves(axis)) for axis in analysis.axes[name]))
    if cut:
        yield f"outputs cut to the teacher's units (a Gather): {', '.join(cut)}"
    new = [group.name for group in plan.inspection.groups if any(is_never(plan.growth.get(dim)) for dim in group.dims)]
    if new:
        yield (
            f"new entries of {_some(new)} have probability 0: a node adds {NEVER:g} to their logits; to let them "
            "in, raise that over the training to log(p / (1 - p)), with p from near 0 to the probability that is wanted"
        )
    if not plan.routed and any(dim.pinned for dim in plan.growth):
        yield "new inputs and outputs have no moments: let the learning rate rise from 0 while the optimizer settles"
    filled, held = plan.odd()
    if filled:
        yield f"filled up to multiples for norms (--no-fill-norms leaves these as they are): {_some(filled)}"
    if held:
        yield f"multiples only, far from what was wanted (--fill-norms lets them have any size): {_some(held)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _main_reason(plan: WidenPlan, analysis: Analysis) -> str:
    """Return why the largest of the dims that were to grow stays as it is."""
    chosen = plan.chosen or list(plan.inspection.groups)
    if all(group.on_request for group in chosen):
        for number, _, contraction in analysis.weighings():
            if contraction.axis.size == 1:
                node = analysis.nodes[number]
                label = node.name or node.outputs[0].name
                return f"{node.op} {label!r} reads a single unit, whose axis of size 1 may also broadcast"
    if not chosen:
        return "the model has no weights with a dim of more than one unit"
    growable = [group for group in chosen if group.reason is None]
    if growable:
        largest = max(growable, key=lambda group: group.elements)
        nearest = f"{largest.name!r} has {largest.size} units, and that is the nearest size to what was asked for"
        return f"{nearest}; the next are {plan.next_sizes(largest)}"
    largest = max(chosen, key=lambda group: group.elements)
    return f"{largest.name!r}: {largest.reason}"
