"""Products of matrices: an axis of both operands is summed over."""

from onnx_net2net.rules import rule
from onnx_net2net.rules.op import Op


@rule("Gemm")
def gemm(op: Op) -> None:
    """Alpha * A' B' + beta * C, with C broadcast to the result."""
    a = "k m" if op.attrs.get("transA", 0) else "m k"
    b = "n k" if op.attrs.get("transB", 0) else "k n"
    op.apply(f"{a}, {b}, m~ n~ -> m n")


@rule("MatMul")
def matmul(op: Op) -> None:
    """numpy.matmul: the last axis of A meets the last but one of B; leading axes broadcast; vectors are rows."""
    a, b, out = op.known(0), op.known(1), op.result()
    inner = len(b) - min(len(b), 2)
    op.unify(a[-1], b[inner])
    op.contract(a[-1], [(0, len(a) - 1), (1, inner)])
    rows, columns = a[-2:-1], b[inner + 1 :]
    op.unify_all((*rows, *columns), out[len(out) - len(rows) - len(columns) :])
    op.broadcast([a[:-2], b[:-2]], out[: len(out) - len(rows) - len(columns)])


@rule("Einsum")
def einsum(op: Op) -> None:
    """Sum over the letters that the result does not have; an ellipsis is a run of broadcast axes."""
    equation = str(op.attrs["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = ("..." if "..." in left else "") + "".join(x for x in sorted(set(letters)) if letters.count(x) == 1)
    terms = left.split(",")
    if any(len(set(term)) < len(term) for term in (x.replace("...", "") for x in (*terms, right))):
        op.freeze_all("takes a diagonal")
        return
    spaced = [" ".join(term.replace("...", "~")).replace("~", "*rest") for term in terms]
    op.apply(", ".join(spaced) + " -> " + " ".join(right.replace("...", "~")).replace("~", "*rest"))
    for letter in set("".join(terms)) - set(right) - {"."}:
        holders = [index for index, term in enumerate(terms) if letter in term]
        if len(holders) == 1:
            axes, position = op.input(holders[0]), terms[holders[0]].replace("...", "~").index(letter)
            if axes is not None:
                position -= len(terms[holders[0]].replace("...", "~")) if "..." in terms[holders[0]][:position] else 0
                op.contract(axes[position], [(holders[0], position % len(axes))])
