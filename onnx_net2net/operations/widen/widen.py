"""Net2WiderNet on any graph: choose sizes and maps for its dims, and rewrite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx_net2net.algebra.dims import leaves
from onnx_net2net.algebra.maps import NEVER, Kind, is_never
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
from onnx_net2net.operations.widen.plan import Change, Plan
from onnx_net2net.operations.widen.scaled import allow_padding, scaling_for
from onnx_net2net.rewrite.constants import GrownConstant
from onnx_net2net.rewrite.rewrite import rewrite
from onnx_net2net.rules.reasons import Kind as ReasonKind, kind_of
from onnx_net2net.texts import table_html


@dataclass(frozen=True)
class Widening:
    """A widened model.

    Attributes:
        teacher: The model that was widened.
        student: The result; its weights are computed when it is saved or run.
        changes: What became of each dim that was to grow.
        exact: Whether the student computes the teacher's function (False after `noise` or `random_pad`).
        seed: Seed of every random choice.
        covered: Share of the weight elements that lie on an axis that grew.
        fixed: The dims that could not grow, with the reason.
        notes: What else was done to the graph, for people.
        constants: How each constant grew that did.
        inserted: What a framework's class would need besides weights of other sizes: nodes, and numbers that were kept.
        numbers: Single numbers that scale something beside a dim that grew. A class that computes them from its sizes
            would compute others.
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
        """The dims that kept their size and the reasons, those on most weights first, without kernels and positions."""
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
    map: Kind = "replicate",
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
        teacher: A path, a model in memory or a loaded model; it is not changed.
        factor: Width multiplier (>= 1) for every hidden dim, or for those that `only` names. Each dim grows to the
            nearest size that it can have exactly. If an axis is a product (groups x channels), one factor of it grows:
            the one that comes near the multiplier and lets most weights grow.
        sizes: Sizes by dim name, pattern or role: a number of units (`96`) or a multiplier (`"2x"`). Dims of the
            interface (classes, vocabulary, input channels) grow only if they are named here. Their old units stay as
            they are, and new ones are appended.
        only: Names, patterns or roles (`"ffn"`) of the dims that `factor` is for.
        multiple_of: New sizes are multiples of this.
        map: How new units come about (see `onnx_net2net.algebra.maps`); dims that do not admit it are replicated.
        spread: How unevenly copies share their outgoing weights, relative to each weight. The student stays exact.
        noise: Noise on the incoming weights of copies, as in the paper, relative to the weights. Not exact.
        seed: Seed of every random choice.
        prior: Probability (0 <= prior < 1) at which new classes start; by default 0.01 under a sigmoid. Under a
            softmax it can only be 0, because the old outputs would change otherwise.
        fill_norms: Whether a dim whose norm admits only multiples of its size may have any width. If so, nodes (Slice,
            Concat, Slice) fill the input of the norm up to the next multiple and cut its result. By default this is
            done where multiples would miss `factor` by more than a tenth, and not for `sizes`.
        framework: ``"torch"``, ``"keras"`` or ``"flax"`` for a student whose weights fit a class made at the new sizes.
            Dims whose growth a class could not follow keep their size (see `onnx_net2net.analysis.loadable`).
        keep_numbers: Whether that class computes none of its numbers from its sizes (alpha / r of LoRA, width ** -0.5).
            Then dims may grow although a number in the file is a function of their size.
        how: How a router treats the copies that experts get. ``"split"``: masks let it see one of each expert, for each
            token another one. ``"topk"``: it chooses all copies of an expert together, and so as many times more.
            ``"lift"``: a bias rules them out until a balancer raises it. ``"granular"``: they are no copies but parts,
            with a part of the units of their expert each, and chosen together. The last three need no nodes, as a
            class of a framework has none.
        scale_weights: With a framework, whether weights are scaled so that the class follows more growth: a stream in
            front of norms at any width, without another epsilon, and dims of whose size it computes a number.
        loads: For names of dims of experts how often each expert is chosen (`operations.widen.load.expert_load`): those
            that have most to do get most copies. By default all get as many, and the first ones one more.

    Returns:
        The student and what was done. Nothing is verified here; see `onnx_net2net.operations.verify`.

    Raises:
        BadInputError: If the model cannot be used, or an option makes no sense.
        RefusedError: If a size cannot be had exactly.
    """
    options = WidenOptions(
        factor, dict(sizes or {}), tuple(only), multiple_of, map, spread, noise, seed, prior, fill_norms, framework,
        keep_numbers, how, scale_weights and framework is not None,
        {name: list(numbers) for name, numbers in (loads or {}).items()},
    )  # fmt: skip
    if factor is None and not sizes:
        raise BadInputError("give a factor or sizes, or there is nothing to widen")
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
    plan = Plan(analysis, inspection, options)
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
    grown = rewrite(
        opened.model, analysis, plan.growth, options.style, metadata, scaling=scaling, ties=ties, copies=copies
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


def _notes(opened: Opened, analysis: Analysis, plan: Plan) -> Iterator[str]:
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


def _main_reason(plan: Plan, analysis: Analysis) -> str:
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
