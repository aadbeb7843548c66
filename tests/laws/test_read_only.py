"""Nothing that was inferred of a graph changes afterwards, whatever is made of it."""

import sys

import numpy as np
import pytest
from classes import draw
from graphs import net

from onnx_net2net import deepen, narrow, transfer, upcycle, widen
from onnx_net2net.algebra.dims import leaves, resolve
from onnx_net2net.analysis.inference import infer

TIED = """(int64[N, 5] ids) => (float[N, 5, 20] y) {
    e = Gather(table, ids) n = LayerNormalization(e, gain, shift) h = MatMul(n, up) a = Relu(h) d = MatMul(a, down)
    s = Add(e, d) f = LayerNormalization(s, last, shift) y = MatMul(f, head) }"""


def tied(width):
    given = {"table": draw(20, width), "up": draw(width, 2 * width), "down": draw(2 * width, width)}
    given |= {"gain": np.ones(width, np.float32), "last": draw(width), "shift": draw(width)}
    return net(TIED, 17, **given, head=given["table"].T.copy())


def known(analysis):
    for node in analysis.nodes:
        yield node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], repr(node.attrs)
    yield list(analysis.sizes.types)
    for use in analysis.uses.values():
        yield use.constant.shape, analysis.graph.read(use.constant).tobytes()
    for axes in (*(use.axes for use in analysis.uses.values()), *analysis.axes.values()):
        for axis in axes:
            yield repr(resolve(axis)), *((d.fixed, d.pinned, d.statistic, d.copies, d.ratio) for d in leaves(axis))


@pytest.fixture
def inferred(monkeypatch):
    """Note what is known of each graph when its inference ends."""
    found = []

    def noted(model, **options):
        analysis = infer(model, **options)
        found.append((analysis, list(known(analysis))))
        return analysis

    for name, module in list(sys.modules.items()):
        if name.startswith("onnx_net2net.") and getattr(module, "infer", None) is infer:
            monkeypatch.setattr(module, "infer", noted)
    return found


@pytest.mark.parametrize("operation", [
    lambda: widen(tied(8), factor=2),
    lambda: widen(tied(8), factor=2, framework="torch"),
    lambda: widen(tied(8), factor=1.5, framework="torch", scale_weights=True),
    lambda: transfer(tied(8), tied(16)),
    lambda: deepen(tied(8), depth=2),
    lambda: narrow(widen(tied(8), factor=2).student),
    lambda: upcycle(tied(8), experts=2),
])  # fmt: skip
def test_what_is_known_of_a_graph_stays_as_it_was_inferred(operation, inferred):
    operation()
    assert inferred
    for analysis, before in inferred:
        assert list(known(analysis)) == before
