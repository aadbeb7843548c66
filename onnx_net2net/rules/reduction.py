"""Reductions: what an axis is summed into has to be weighed as before."""

from onnx_net2net.rules import rule
from onnx_net2net.rules.op import Op

# How the operator sums; a ReduceMean also divides by the size, which grows.
LAWS = {
    "ReduceSum": "sum",
    "ReduceL1": "sum",
    "ReduceLogSum": "sum",
    "ReduceMean": "mean",
    "ReduceL2": "square",
    "ReduceSumSquare": "square",
}


@rule("ReduceSum", "ReduceL1", "ReduceLogSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "ReduceMax", "ReduceMin",
      "ReduceProd", "ReduceLogSumExp")  # fmt: skip
def reduce(op: Op) -> None:
    """Reduce `axes` (all by default); the others pass."""
    source, target = op.known(0), op.result()
    axes = op.ints("axes", 1)
    if axes is None and op.has(1):
        op.freeze_all("reduces axes that are not known")
        return
    if not axes and op.attrs.get("noop_with_empty_axes", 0):
        op.unify_all(source, target)
        return
    reduced = {a % len(source) for a in axes} if axes else set(range(len(source)))
    kept = [axis for position, axis in enumerate(source) if position not in reduced]
    op.unify_all(kept, [t for p, t in enumerate(target) if p not in reduced] if op.attrs.get("keepdims", 1) else target)
    for position in reduced:
        axis = source[position]
        if op.kind in LAWS:
            op.contract(axis, [(0, position)], LAWS[op.kind])
        elif op.kind in ("ReduceMax", "ReduceMin"):
            op.only_copies(axis, "takes an extreme over this axis")
        else:
            op.freeze(axis, "reduces this axis in a way that copies change")
    linear, unsafe = ("ReduceSum", "ReduceMean"), ("ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
    op.pointwise("linear" if op.kind in linear else "any" if op.kind in unsafe else "zero")


@rule("ArgMax", "ArgMin")
def arg_extreme(op: Op) -> None:
    """Return positions along an axis, which has to keep its order."""
    source, target = op.known(0), op.result()
    at = op.axis(len(source), 0)
    if op.kind == "ArgMax" and not op.attrs.get("select_last_index", 0):
        op.choose(0, at, 0, reason="returns positions along this axis")
    else:
        op.freeze(source[at], "returns positions along this axis")
    kept = [axis for position, axis in enumerate(source) if position != at]
    op.unify_all(kept, [t for p, t in enumerate(target) if p != at] if op.attrs.get("keepdims", 1) else target)
