"""Students of small networks, and what grew in them."""

import numpy as np

from onnx_net2net import load, verify, widen


def draw(*shape, seed=0):
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * np.prod(shape) ** -0.25).astype(np.float32)


def grown(teacher, framework="torch", **options):
    """Widen exactly and without new nodes; return the sizes that changed and the widening."""
    widening = widen(teacher, framework=framework, **options)
    verify(teacher, widening.student).raise_if_different()
    before, after = ([node.op_type for node in load(model).proto.graph.node if node.op_type != "Constant"]
                     for model in (teacher, widening.student))  # fmt: skip
    assert before == after
    return {change.name: change.new for change in widening.changes if change.new != change.old}, widening


def reasons(widening):
    return " ".join(group.reason or "" for group in widening.fixed)
