"""Rules from files and from installed packages."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from graphs import net
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from wide import draw, new_sizes

from onnx_net2net import BadInputError, rules, widen
from onnx_net2net.cli.main import main
from onnx_net2net.run import session

QONNX = Path(__file__).parents[2] / "examples" / "qonnx_rules.py"
DOMAIN = "qonnx.custom_op.general"


class Quant(OpRun):
    op_domain = DOMAIN

    def _run(self, x, scale, zero, bits, signed=1, narrow=0, rounding_mode="ROUND"):
        low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        return ((np.clip(np.round(x / scale + zero), low, high) - zero) * scale,)


def quantized():
    """A network of Brevitas: weights and activations are quantized, the weights per channel."""
    text = f"""(float[2, 8] x) => (float[2, 4] y) {{
        w = {DOMAIN}.Quant<signed = 1, narrow = 1>(up, up_scale, zero, bits) h = MatMul(x, w)
        r = Relu(h) q = {DOMAIN}.Quant<signed = 0, narrow = 0>(r, scale, zero, bits)
        v = {DOMAIN}.Quant<signed = 1, narrow = 1>(down, scale, zero, bits) y = MatMul(q, v) }}"""
    numbers = {"zero": np.float32(0), "bits": np.float32(4), "scale": np.float32(0.25)}
    scales = np.linspace(0.1, 0.3, 16, dtype=np.float32)
    proto = net(text, imports=f', "{DOMAIN}" : 1', up=draw(8, 16), up_scale=scales, down=draw(16, 4), **numbers)
    shapes = {"w": [8, 16], "h": [2, 16], "r": [2, 16], "q": [2, 16], "v": [16, 4]}
    proto.graph.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    return proto


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(rules, "_registry", {kind: list(versions) for kind, versions in rules._registry.items()})
    rules._load_installed.cache_clear()
    yield
    rules._load_installed.cache_clear()


@pytest.mark.parametrize("kind", ["replicate", "zero_out"])
def test_the_example_grows_networks_of_brevitas(registry, kind):
    rules.load_rules(QONNX)
    widening = widen(quantized(), factor=2, map=kind)
    assert new_sizes(widening) == {"up": 32}
    feeds = {"x": draw(2, 8)}
    old, new = (
        ReferenceEvaluator(proto, new_ops=[Quant]).run(None, feeds)[0]
        for proto in (quantized(), widening.student.to_proto())
    )
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_rules_come_from_a_file_on_the_command_line(registry, tmp_path, capsys):
    teacher = tmp_path / "teacher.onnx"
    teacher.write_bytes(quantized().SerializeToString())
    arguments = ["widen", str(teacher), "-o", str(tmp_path / "student.onnx"), "--factor", "2", "--no-verify"]
    assert main(arguments) == 3
    assert main([*arguments, "--rules", str(QONNX)]) == 0
    broken = tmp_path / "rules.py"
    broken.write_text("import nothing_of_this_name")
    assert main([*arguments, "--rules", str(broken)]) == 2
    assert main([*arguments, "--rules", str(tmp_path / "none.py")]) == 2
    assert main([*arguments, "--custom-op-library", str(broken)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot be loaded" in line]
    assert "rules.py cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_this_name'" in lines[0]
    assert "none.py cannot be loaded: FileNotFoundError" in lines[1]
    assert "the library" in lines[2]
    assert "cannot be loaded" in lines[2]


def test_rules_come_from_installed_packages(registry, monkeypatch, tmp_path):
    (tmp_path / "their_rules.py").write_text(QONNX.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    found = [EntryPoint("qonnx", "their_rules", "onnx_net2net.rules")]
    monkeypatch.setattr(rules, "entry_points", lambda group: found if group == "onnx_net2net.rules" else [])
    assert rules.lookup(DOMAIN, "Quant", 1) is not None
    found.append(EntryPoint("broken", "no_such_module", "onnx_net2net.rules"))
    rules._load_installed.cache_clear()
    with pytest.raises(BadInputError, match="the rules of the installed no_such_module cannot be loaded"):
        rules.lookup(DOMAIN, "Quant", 1)


def test_operators_of_a_library_run(registry, tmp_path, monkeypatch, capsys):
    """`NegPos` of onnxruntime-extensions splits its input into a negative and a positive part."""
    extensions = pytest.importorskip("onnxruntime_extensions")
    monkeypatch.setattr(session, "_libraries", [])
    text = """(float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, up) r = Relu(h) m = MatMul(r, middle) low, high = ai.onnx.contrib.NegPos(m) s = Add(low, high)
        y = MatMul(s, down) }"""
    proto = net(text, imports=', "ai.onnx.contrib" : 1', up=draw(8, 16), middle=draw(16, 12), down=draw(12, 4))
    teacher, student = tmp_path / "teacher.onnx", tmp_path / "student.onnx"
    teacher.write_bytes(proto.SerializeToString())
    arguments = ["widen", str(teacher), "-o", str(student), "--factor", "1.5"]
    assert main(arguments) == 2  # onnxruntime does not know the operator
    assert main([*arguments, "--custom-op-library", extensions.get_library_path()]) == 0
    assert "NegPos 'low' has no growth rule" in capsys.readouterr().out.replace("\n", " ")
    assert student.exists()
