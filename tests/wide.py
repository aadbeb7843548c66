"""Small networks that tests widen, and what is read of the students."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from graphs import net

from onnx_net2net import load, verify, widen

MODELS = Path(__file__).parents[1] / "models"
DIGITS = ("digits_mlp", "digits_resnet", "digits_inception_bn")
MLP = MODELS / "digits_mlp.onnx"
RESNET = MODELS / "digits_resnet.onnx"


def draw(*shape, dtype=np.float32, seed=0):
    """Weights of about unit gain."""
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * np.prod(shape) ** -0.25).astype(dtype)


def mlp(act="Relu", dtype=np.float32, kind="float", **options):
    text = f"({kind}[N, 8] x) => ({kind}[N, 4] y) {{ h = MatMul(x, up) r = {act}(h) y = MatMul(r, down) }}"
    return net(text, up=draw(8, 16, dtype=dtype), down=draw(16, 4, dtype=dtype), **options)


def widen_exactly(teacher, **options):
    """Widen, and assert that the student computes what the teacher does."""
    widening = widen(teacher, **options)
    assert widening.exact
    verify(teacher, widening.student).raise_if_different()
    return widening


def contents(model):
    """The model with the bytes of all its weights."""
    with load(model).on_disk() as path:
        return onnx.load(path)


def new_sizes(widening):
    return {change.name: change.new for change in widening.changes}


def run(model, feeds):
    with load(model).on_disk() as path:
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def normed(between=""):
    """A LayerNormalization behind a linear layer, or behind what stands between the two."""
    act, source = (f"r = {between}(h)", "r") if between else ("", "h")
    text = f"""(float[N, 8] x) => (float[N, 4] y) {{
        h = MatMul(x, up) {act} l = LayerNormalization({source}, s, b) y = MatMul(l, down) }}"""
    return net(text, up=draw(8, 16), s=1 + draw(16), b=draw(16), down=draw(16, 4))
