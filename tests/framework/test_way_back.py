"""Kinds of classes that exporters take apart in their own ways: grown, carried back, loaded strictly, compared."""

import contextlib
import io
import warnings

import numpy as np
import pytest

from onnx_net2net import checkpoint, widen

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn, functional = torch.nn, torch.nn.functional

EXPORTS = {
    "dynamo": {"dynamo": True},
    "dynamo unfolded": {"dynamo": True, "optimize": False},
    "TorchScript": {"dynamo": False, "opset_version": 17},
    "TorchScript unfolded": {"dynamo": False, "opset_version": 17, "do_constant_folding": False},
}


class Recurrent(nn.Module):
    def __init__(self, kind, hidden=6, **options):
        super().__init__()
        self.layers = getattr(nn, kind)(4, hidden, 2, batch_first=True, **options)
        self.head = nn.Linear(hidden * (1 + self.layers.bidirectional), 3)

    def forward(self, x):
        return self.head(self.layers(x)[0])


class Cells(nn.Module):
    """Steps of a cell, from a state of zeros that the class makes."""

    def __init__(self, kind, hidden=6):
        super().__init__()
        self.hidden, self.cell, self.head = hidden, getattr(nn, kind)(4, hidden), nn.Linear(hidden, 2)

    def forward(self, x):
        state = torch.zeros(x.shape[0], self.hidden)
        for t in range(2):
            state = self.cell(x[:, t], state)
        return self.head(state)


class ConvLstm(nn.Module):
    """Two layers of which the export merges the zeros that they start from."""

    def __init__(self, hidden=4):
        super().__init__()
        self.hidden = hidden
        self.cells = nn.ModuleList(nn.Conv2d(n + hidden, 4 * hidden, 3, padding=1) for n in (3, hidden))
        self.head = nn.Conv2d(hidden, 2, 1)

    def forward(self, x):
        zeros = torch.zeros(x.shape[0], self.hidden, *x.shape[-2:])
        states = [(zeros, zeros) for _ in self.cells]
        for t in range(2):
            y = x[:, t]
            for k, cell in enumerate(self.cells):
                h, c = states[k]
                i, f, o, g = torch.split(cell(torch.cat([y, h], 1)), self.hidden, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                y = torch.sigmoid(o) * torch.tanh(c)
                states[k] = y, c
        return self.head(y)


class TiedLm(nn.Module):
    """A tied embedding with no norm in front of the head."""

    def __init__(self, kind, width=6):
        super().__init__()
        self.table, self.head = nn.Embedding(20, width), nn.Linear(width, 20)
        self.layers = getattr(nn, kind)(width, width, batch_first=True) if kind else nn.Linear(width, width)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.layers(self.table(ids))
        return self.head(x[0] if isinstance(x, tuple) else torch.tanh(x))


class JoinedBias(nn.Module):
    """Attention whose keys have no bias: zeros between the parameters, of the class (EVA) or made anew (BEiT)."""

    def __init__(self, anew, width=8, heads=2):
        super().__init__()
        inner = 4 * heads
        self.anew, self.heads = anew, heads
        self.stem, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * inner, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(inner)), nn.Parameter(torch.randn(inner))
        self.register_buffer("k_bias", torch.zeros(inner), persistent=False)
        self.proj = nn.Linear(inner, 3)

    def forward(self, x):
        k_bias = torch.zeros_like(self.v_bias) if self.anew else self.k_bias
        x = functional.linear(self.stem(x), self.qkv.weight, torch.cat((self.q_bias, k_bias, self.v_bias)))
        q, k, v = x.reshape(*x.shape[:2], 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        weights = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Attention(nn.Module):
    def __init__(self, width=8, heads=2, key=6, value=5, **options):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, width), nn.Linear(5, key), nn.Linear(5, value)
        self.inner = nn.MultiheadAttention(width, heads, kdim=key, vdim=value, batch_first=True, **options)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.inner(self.q(x), self.k(x), self.v(x), need_weights=False)[0])


class ClassToken(nn.Module):
    """A token that is repeated for each example of a batch of two."""

    def __init__(self, how, width=8, inner=12):
        super().__init__()
        self.how, self.stem, self.head = how, nn.Conv2d(3, width, 4, 4), nn.Linear(width, 3)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        x, n = self.stem(x).flatten(2).transpose(1, 2), x.shape[0]
        token = self.token.expand(n, -1, -1) if self.how == "expand" else self.token.repeat(n, 1, 1)
        x = torch.cat([token, x], 1) + self.places
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


SERIES, WORDS = (lambda: torch.randn(2, 3, 4)), (lambda: torch.randint(0, 20, (2, 5)))
CASES = {
    "LSTM": (lambda **s: Recurrent("LSTM", **s), SERIES, 1.5, {"hidden": 9}),
    "GRU": (lambda **s: Recurrent("GRU", bidirectional=True, **s), SERIES, 1.5, {"hidden": 9}),
    "RNN": (lambda **s: Recurrent("RNN", **s), SERIES, 1.5, {"hidden": 9}),
    "cells": (lambda **s: Cells("GRUCell", **s), SERIES, 1.5, {"hidden": 9}),
    "convolutional LSTM": (ConvLstm, lambda: torch.randn(2, 2, 3, 4, 4), 1.5, {"hidden": 6}),
    "tied LSTM": (lambda **s: TiedLm("LSTM", **s), WORDS, 2, {"width": 12}),
    "tied GRU": (lambda **s: TiedLm("GRU", **s), WORDS, 1.5, {"width": 9}),
    "tied layer": (lambda **s: TiedLm(None, **s), WORDS, 2, {"width": 12}),
    "EVA": (lambda **s: JoinedBias(False, **s), lambda: torch.randn(2, 3, 5), 2, {"width": 16, "heads": 4}),
    "BEiT": (lambda **s: JoinedBias(True, **s), lambda: torch.randn(2, 3, 5), 2, {"width": 16, "heads": 4}),
    "keys of another width": (Attention, lambda: torch.randn(2, 3, 5), 2,
                              {"width": 16, "heads": 4, "key": 12, "value": 10}),
    "keys of a bias": (lambda **s: Attention(add_bias_kv=True, **s), lambda: torch.randn(2, 3, 5), 2,
                       {"width": 16, "heads": 4, "key": 12, "value": 10}),
    "expanded token": (lambda **s: ClassToken("expand", **s), lambda: torch.randn(2, 3, 8, 8), 2,
                       {"width": 16, "inner": 24}),
    "repeated token": (lambda **s: ClassToken("repeat", **s), lambda: torch.randn(2, 3, 8, 8), 2,
                       {"width": 16, "inner": 24}),
}  # fmt: skip


@pytest.mark.parametrize("export", [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith("Torch") else name for name in EXPORTS
])  # fmt: skip
@pytest.mark.parametrize("name", list(CASES))
def test_the_wider_class_computes_the_same(name, export, tmp_path):
    make, draw, factor, sizes = CASES[name]
    torch.manual_seed(0)
    module, x = make().eval(), draw()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    teacher, student = tmp_path / "teacher.onnx", tmp_path / "student.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(teacher), **EXPORTS[export])
    widening = widen(teacher, factor=factor, framework="torch")
    widening.student.save(student)
    grown = checkpoint(teacher, student, module.state_dict()).arrays()
    wider = make(**sizes).eval()
    wider.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in grown.items()}, strict=True)
    with torch.no_grad():
        expected, actual = module(x), wider(x)
    assert widening.covered > 0.85
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
