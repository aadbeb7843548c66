"""Models that each have one feature of the format, which nothing may lose."""

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from small import FLOAT, annotate, build, info, rng, tensor

FEATURES: dict[str, Callable[[], onnx.ModelProto]] = {}


def feature(function):
    FEATURES[function.__name__] = function
    return function


@feature
def model_envelope():
    proto = build(producer_name="p", producer_version="1", domain="org.x", model_version=7, doc_string="doc")
    annotate(proto)
    return proto


@feature
def graph_annotations():
    proto = build()
    proto.graph.doc_string = "graph doc"
    annotate(proto.graph)
    return proto


@feature
def node_annotations():
    proto = build()
    proto.graph.node[0].doc_string = "node doc"
    annotate(proto.graph.node[0])
    return proto


@feature
def unnamed_nodes_with_equal_names():
    nodes = [helper.make_node("Relu", ["x"], ["h"], name="n"), helper.make_node("Relu", ["h"], ["y"], name="n")]
    return build([*nodes, helper.make_node("Relu", ["h"], ["unused"])])


@feature
def node_overloads():
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    nodes = [helper.make_node("F", ["x"], ["h"], domain="f", overload="a")]
    nodes += [helper.make_node("F", ["h"], ["y"], domain="f", overload="b")]
    proto = build(nodes, opset_imports=imports)
    for overload in "ab":
        body = [helper.make_node("Relu", ["i"], ["o"])]
        function = helper.make_function("f", "F", ["i"], ["o"], body, imports[:1], overload=overload)
        proto.functions.append(function)
    return proto


@feature
def device_configurations():
    proto = build(ir_version=11)
    proto.configuration.add(name="two", num_devices=2)
    proto.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    return proto


@feature
def value_infos_of_all_kinds():
    names = ["a", "b", "c", "d", "e"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(["x", *names, "y"])]
    proto = build(nodes)
    proto.graph.value_info.extend([info("a"), info("b", ("n", "2*n")), info("c", (None, 3)), info("d", ())])
    proto.graph.value_info.append(helper.make_empty_tensor_value_info("e"))
    proto.graph.value_info.append(info("not_in_graph"))
    proto.graph.value_info[0].doc_string = "doc"
    annotate(proto.graph.value_info[0])
    proto.graph.value_info[0].type.denotation = "IMAGE"
    proto.graph.value_info[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return proto


@feature
def input_and_output_annotations():
    proto = build(inputs=[info("x", ("batch", None))], outputs=[info("y", ("batch", "width"))])
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.doc_string = "doc"
        annotate(value)
        value.type.denotation = "TENSOR"
    return proto


@feature
def output_without_shape():
    proto = build()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


@feature
def unused_input():
    return build(inputs=[info("x"), info("spare")])


@feature
def value_info_of_initializer():
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[tensor("w", np.ones(3, np.float32))])
    proto.graph.value_info.append(info("w", (3,)))
    return proto


@feature
def initializer_annotations():
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[tensor("w", np.ones(3, np.float32))])
    proto.graph.initializer[0].doc_string = "weight"
    annotate(proto.graph.initializer[0])
    return proto


@feature
def unused_initializers():
    return build(initializers=[tensor("spare", np.ones(300, np.float32)), tensor("t", np.ones(2, np.float32))])


@feature
def initializer_as_output():
    return build(outputs=[info("y"), info("w", (3,))], initializers=[tensor("w", np.ones(3, np.float32))])


@feature
def ir3_initializers_are_inputs():
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    inputs = [info("w", (3,)), info("x"), info("spare", (1,))]
    initializers = [tensor("w", np.ones(3, np.float32)), tensor("spare", np.ones(1, np.float32))]
    return build(nodes, inputs, initializers=initializers, ir_version=3, opset=7)


@feature
def sparse_initializer():
    proto = build([helper.make_node("Add", ["x", "s"], ["y"])])
    values, indices = tensor("s", np.ones(2, np.float32)), tensor("", np.array([0, 2]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return proto


@feature
def quantization_annotation():
    proto = build(initializers=[tensor("scale", np.ones(1, np.float32))])
    annotation = proto.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return proto


@feature
def training_info():
    proto = build()
    training = proto.training_info.add()
    node = helper.make_node("Identity", ["start"], ["w"])
    start = tensor("start", np.ones(300, np.float32))
    training.initialization.CopyFrom(helper.make_graph([node], "init", [], [info("w")], [start]))
    training.initialization_binding.add(key="w", value="w")
    return proto


@feature
def unused_domains():
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("z", 5)]
    return build(opset_imports=imports)


@feature
def alias_of_the_default_domain():
    return build(opset_imports=[helper.make_opsetid("ai.onnx", 18)])


@feature
def node_in_the_alias_of_the_default_domain():
    return build([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")])


@feature
def functions():
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    weight = tensor("", rng.normal(size=(3, 200)).astype(np.float32))
    body = [helper.make_node("Constant", [], ["c"], value=weight), helper.make_node("MatMul", ["i", "c"], ["h"])]
    elu = helper.make_node("Elu", ["h"], ["o"])
    elu.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "f", "F", ["i"], ["o"], [*body, elu], imports[:1], ["beta"], [helper.make_attribute("alpha", 2.0)], "doc"
    )
    function.value_info.append(info("h"))
    annotate(function)
    annotate(function.node[0])
    proto = build([helper.make_node("F", ["x"], ["y"], domain="f", beta=1)], opset_imports=imports)
    proto.functions.append(function)
    return proto


@feature
def bodies_and_outer_weights():
    """Two If bodies share an outer weight that nothing else uses; another weight lives inside."""
    inner = tensor("inner", rng.normal(size=(3, 300)).astype(np.float32))
    then = helper.make_graph([helper.make_node("Add", ["x", "w"], ["t"])], "then", [], [info("t")])
    otherwise = [helper.make_node("MatMul", ["x", "inner"], ["m"]), helper.make_node("Sub", ["m", "w"], ["e"])]
    other = helper.make_graph(otherwise, "else", [], [info("e")], [inner])
    annotate(other)
    annotate(other.node[0])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    weight = tensor("w", rng.normal(size=300).astype(np.float32))
    return build([node], [info("x"), info("c", (), TensorProto.BOOL)], [info("y")], [weight])


@feature
def loop_in_a_loop():
    def loop(name, body_nodes, result):
        inputs = [info(f"{name}_i", (), TensorProto.INT64), info(f"{name}_c", (), TensorProto.BOOL), info(f"{name}_s")]
        outputs = [info(f"{name}_c", (), TensorProto.BOOL), info(result)]
        return helper.make_graph(body_nodes, name, inputs, outputs)

    inner = loop("in", [helper.make_node("Add", ["in_s", "w"], ["in_r"])], "in_r")
    node = helper.make_node("Loop", ["n", "", "out_s"], ["out_r"], body=inner)
    outer = loop("out", [node], "out_r")
    initializers = [tensor("n", np.array(2)), tensor("w", np.ones(3, np.float32))]
    return build([helper.make_node("Loop", ["n", "", "x"], ["y"], body=outer)], initializers=initializers)


def with_attribute(**attributes):
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    return build([helper.make_node("Op", ["x"], ["y"], domain="custom", **attributes)], opset_imports=imports)


@feature
def plain_attributes():
    proto = with_attribute(f=0.1, i=-1, s="text", fs=[0.1, 2.0], ints=[1, 2], ss=["a", "b"], empty="")
    proto.graph.node[0].attribute[0].doc_string = "doc"
    return proto


@feature
def tensor_attributes():
    weights = [tensor(name, rng.normal(size=300).astype(np.float32)) for name in "ab"]
    return with_attribute(t=weights[0], ts=weights)


@feature
def graph_attributes():
    graph = build().graph
    return with_attribute(g=graph, gs=[graph, graph])


@feature
def type_attributes():
    kind = helper.make_tensor_type_proto(FLOAT, [1, "n"])
    return with_attribute(tp=kind, tps=[kind, helper.make_optional_type_proto(kind)])


@feature
def sparse_attributes():
    sparse = helper.make_sparse_tensor(tensor("s", np.ones(2, np.float32)), tensor("", np.array([0, 2])), [3])
    return with_attribute(st=sparse, sts=[sparse])


@feature
def bytes_attributes():
    return with_attribute(b=b"\xff\xfe\x00", bs=[b"\xff", b"ok"], s="text")


@feature
def empty_list_attributes():
    proto = with_attribute(i=3)
    for name, kind in (("ints", "INTS"), ("floats", "FLOATS"), ("strings", "STRINGS"), ("tensors", "TENSORS")):
        proto.graph.node[0].attribute.add(name=name, type=getattr(onnx.AttributeProto, kind))
    return proto


@feature
def exotic_types():
    element = helper.make_tensor_type_proto(FLOAT, [1, "n"])
    kinds = {
        "optional": helper.make_optional_type_proto(element),
        "sequence": helper.make_sequence_type_proto(element),
        "optional_sequence": helper.make_optional_type_proto(helper.make_sequence_type_proto(element)),
        "map": helper.make_map_type_proto(TensorProto.INT64, element),
        "sparse": helper.make_sparse_tensor_type_proto(FLOAT, [3]),
    }
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    nodes = [helper.make_node("Op", [name], [f"{name}_{end}"], domain="custom") for name in kinds for end in "oh"]
    ends = [[helper.make_value_info(name + end, kind) for name, kind in kinds.items()] for end in ("", "_o", "_h")]
    proto = build(nodes, ends[0], ends[1], opset_imports=imports)
    proto.graph.value_info.extend(ends[2])
    return proto


@feature
def optional_inputs_and_outputs():
    return with_attribute_inputs(["x", "", "x", ""], ["", "y", ""])


def with_attribute_inputs(inputs, outputs):
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    return build([helper.make_node("Op", inputs, outputs, domain="custom")], opset_imports=imports)


def with_dtype(kind, size=600):
    dtype = ir.DataType(kind)
    content = rng.integers(0, 2 if dtype == ir.DataType.BOOL else 256, (size * dtype.bitwidth + 7) // 8, np.uint8)
    weight = TensorProto(name="w", data_type=kind, dims=[size], raw_data=content.tobytes())
    return build([helper.make_node("Cast", ["w"], ["y"], to=FLOAT)], initializers=[weight], ir_version=11)


def with_typed_field(kind):
    values = rng.integers(0, 2, 600)
    weight = helper.make_tensor("w", kind, [600], values)
    assert not weight.raw_data
    return build([helper.make_node("Cast", ["w"], ["y"], to=FLOAT)], initializers=[weight], ir_version=11)


SUPPORTED = [kind for kind in TensorProto.DataType.values() if kind not in (TensorProto.UNDEFINED, TensorProto.STRING)]
for number in SUPPORTED:
    FEATURES[f"raw_{ir.DataType(number).name}"] = lambda number=number: with_dtype(number)
for number in (1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 16, 21, 22):
    FEATURES[f"typed_{ir.DataType(number).name}"] = lambda number=number: with_typed_field(number)


@feature
def strings():
    weight = helper.make_tensor("w", TensorProto.STRING, [300], ["text", "täxt", *["long" * 10] * 298])
    return build([helper.make_node("Identity", ["w"], ["y"])], initializers=[weight])


@feature
def scalars_and_empty_tensors():
    initializers = [tensor("s", np.float32(3)), tensor("e", np.zeros((0, 3), np.float32))]
    nodes = [helper.make_node("Concat", ["x", "e"], ["h"], axis=0), helper.make_node("Mul", ["h", "s"], ["y"])]
    return build(nodes, initializers=initializers)


@feature
def not_a_number():
    constant = helper.make_tensor("", FLOAT, [2], [float("nan"), 1.0])
    nodes = [helper.make_node("Constant", [], ["c"], value=constant), helper.make_node("Add", ["x", "c"], ["h"])]
    return build([*nodes, helper.make_node("Elu", ["h"], ["y"], alpha=float("nan"))])
