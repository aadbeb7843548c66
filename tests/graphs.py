"""Small models: built, run, and grown at random; shared by the tests of rules and of whole graphs."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import defs, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_net2net.algebra.dims import Axis, Dim, leaves
from onnx_net2net.algebra.maps import Growth, Map, compose, from_index
from onnx_net2net.algebra.ratios import Ratio
from onnx_net2net.algebra.weights import Style
from onnx_net2net.analysis import inference
from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph import sizes
from onnx_net2net.graph.graph import Graph
from onnx_net2net.graph.walk import is_alias
from onnx_net2net.model.model import Model, load
from onnx_net2net.rewrite.rewrite import rewrite

Array = np.ndarray
LAST_OPSET = 26  # that onnxruntime runs
TOLERANCE = {"float16": 2e-2, "float32": 2e-4, "float64": 1e-11}

NEWEST = defs.onnx_opset_version() > LAST_OPSET and tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 24)
"""Whether nothing that is tested may be missing in the installed onnx and onnxruntime."""


def needs(has: bool, what: str) -> None:
    """Skip a test where an older onnx or onnxruntime lacks what it is about; a newer one may not."""
    assert has or not NEWEST, f"the installed libraries should have {what}"
    if not has:
        pytest.skip(f"the installed libraries have no {what}")


@functools.cache
def loads_opset(opset: int) -> bool:
    """Whether onnxruntime opens models of an operator set."""
    value = helper.make_tensor_value_info("x", 1, [1])
    graph = helper.make_graph([], "g", [value], [value])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    try:
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # of several unrelated classes
        return False
    return True


@functools.cache
def has_grouped_heads() -> bool:
    """Whether onnxruntime's Attention of ai.onnx reads the keys of a group as if each of its heads had them."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.random(shape).astype(np.float32) for name, shape in
             (("q", (17, 12, 5, 11)), ("k", (17, 3, 7, 11)), ("v", (17, 3, 7, 13)))}  # fmt: skip
    whole = {name: np.repeat(array, 12 // array.shape[1], 1) for name, array in feeds.items()}
    node = helper.make_node("Attention", list(feeds), ["y"], scale=0.3)
    one, other = (run(build([node], given, ["y"], opset=23), given)[0] for given in (feeds, whole))
    return bool(np.allclose(one, other, atol=1e-5))


def value_info(name: str, array: Array, dynamic: Collection[int] = ()) -> onnx.ValueInfoProto:
    shape = [f"{name}_{axis}" if axis in dynamic else size for axis, size in enumerate(array.shape)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Iterable[str],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 18,
    dynamic: Collection[int] = (),
) -> onnx.ModelProto:
    """A model that takes arrays like `inputs`; the types of its outputs are found by running it."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    infos = [value_info(name, array, dynamic) for name, array in inputs.items()]
    untyped = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", infos, untyped, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    results = dict(zip([value.name for value in untyped], run(proto, inputs), strict=True))
    typed = [value_info(name, array, dynamic) for name, array in results.items()]
    del proto.graph.output[:]
    proto.graph.output.extend(typed)
    return proto


def net(text: str, opset: int = 18, ir: int = 8, imports: str = "", **weights: Array) -> onnx.ModelProto:
    """A model in ONNX's textual syntax, with initializers."""
    proto = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Run in onnxruntime without optimizations, or with the reference operators where it has no kernel."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of several unrelated classes
        opset = max(entry.version for entry in proto.opset_import if not entry.domain)
        needs(loads_opset(opset), f"runtime of opset {opset}")
        if not any(hint in str(error) for hint in ("NOT_IMPLEMENTED", "No Op registered", "Type Error")):
            raise
        try:
            evaluator = ReferenceEvaluator(proto)
        except (NotImplementedError, RuntimeError) as missing:  # of an operator that only newer ones have
            needs(False, f"operator like this: {missing}")
            raise
        return evaluator.run(None, dict(feeds))
    return session.run(None, dict(feeds))


def weighty(model: Model) -> onnx.ModelProto:
    """The model with the bytes of all its weights."""
    with model.on_disk() as path:
        return onnx.load(path)


def weights(model: Model | onnx.ModelProto) -> dict[str, Array]:
    """The weights of a model, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in weighty(load(model)).graph.initializer}


def growable(analysis: Analysis) -> list[Dim]:
    """The dims that may grow; those that share a ratio with a frozen one may not."""
    dims = analysis.dims()
    stuck = {dim.ratio.root() for dim in dims if dim.ratio is not None and dim.frozen}
    return [dim for dim in dims if not dim.frozen and (dim.ratio is None or dim.ratio.root() not in stuck)]


def random_growth(dims: Iterable[Dim], rng: np.random.Generator, *, in_place: bool = True) -> dict[Dim, Map]:
    """Maps that grow each of the dims: any copies, equally many of each unit where a ratio asks for it."""
    growth: dict[Dim, Map] = {}
    times: dict[Ratio, int] = {}
    for dim in dims:
        if dim.ratio is not None:
            index = np.tile(np.arange(dim.size), times.setdefault(dim.ratio.root(), int(rng.integers(2, 4))))
        else:
            index = np.concatenate([np.arange(dim.size), rng.integers(0, dim.size, rng.integers(1, dim.size + 3))])
        growth[dim] = from_index(dim.size, index if in_place else rng.permutation(index))
    return growth


def subsets(dims: Sequence[Dim], rng: np.random.Generator, more: int = 2) -> Iterator[list[Dim]]:
    """Yield each dim alone (with those of its ratio), all of them, and some at random."""
    classes: dict[object, list[Dim]] = {}
    for dim in dims:
        classes.setdefault(dim if dim.ratio is None else dim.ratio.root(), []).append(dim)
    groups = list(classes.values())
    picks = [*np.eye(len(groups), dtype=bool)[:6], np.ones(len(groups), bool)] if groups else []
    picks += [rng.random(len(groups)) < 0.5 for _ in range(more if len(groups) > 2 else 0)]
    for pick in picks:
        if pick.any():
            yield [dim for group, taken in zip(groups, pick, strict=True) if taken for dim in group]


def copied(array: Array, axes: Sequence[Axis], growth: Growth) -> Array:
    """E·x: the array with the units of each axis copied as the maps of its dims say."""
    for position, axis in enumerate(axes):
        if any(dim in growth for dim in leaves(axis)):  # a length that data decide is none that the analysis knows
            array = np.take(array, compose(axis, growth).index, axis=position)
    return array


def analyse_open(model: Model) -> Analysis:
    """The dims of a model whose inputs and outputs may grow as well."""
    analysis = Analysis(Graph(model), sizes.infer_sizes(model.proto))
    matrices: dict[int, tuple[Axis, ...]] = {}
    for tensor in analysis.graph.inputs:
        inference._variable_axes(analysis, tensor.name)
    for number, node in enumerate(analysis.nodes):
        if not is_alias(node):
            inference._visit(analysis, number, node, sizes.opsets_of(model.proto), matrices)
    return analysis


def conform(proto: onnx.ModelProto, feeds: Mapping[str, Array], rng: np.random.Generator) -> bool:
    """Assert op(E·x) = E·op(x) for several random E; tell whether there was a dim to grow.

    Copies stand in any order, or behind the old units with weights that are spread unevenly.
    """
    model = load(proto)
    names = [value.name for value in proto.graph.output]
    expected = dict(zip(names, run(proto, feeds), strict=True))
    seed = int(rng.integers(1 << 30))
    count = len(list(subsets(growable(analyse_open(model)), np.random.default_rng(seed))))
    for k in range(count):
        analysis = analyse_open(model)  # rewriting uses it up
        dims = list(subsets(growable(analysis), np.random.default_rng(seed)))[k]
        in_place = bool(rng.integers(2))
        growth = random_growth(dims, rng, in_place=in_place)
        style = Style(int(rng.integers(99)), spread=0.3 if in_place else 0.0)
        axes = {name: analysis.axes.get(name, ()) for name in (*feeds, *names)}
        student = weighty(rewrite(model, analysis, growth, style, {}).model)
        results = run(student, {name: copied(array, axes[name], growth) for name, array in feeds.items()})
        for name, result in zip(names, results, strict=True):
            assert_close(result, copied(expected[name], axes[name], growth), f"{name} grown by {growth}")
    return count > 0


def assert_close(
    actual: Array, expected: Array, what: str = "", tolerance: float | None = None, floor: float = 1e-30
) -> None:
    """Assert that arrays agree relative to the largest magnitude, or to `floor` where that is larger."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, what
    if actual.dtype.name not in TOLERANCE:
        np.testing.assert_array_equal(actual, expected, what)
        return
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=floor)
    bound = (TOLERANCE[actual.dtype.name] if tolerance is None else tolerance) * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=what)
