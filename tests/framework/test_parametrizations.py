"""Weights that a class computes of others, and sums without a weight of their own: the whole way with torch."""

import warnings

import pytest

from onnx_net2net import RefusedError, checkpoint, verify, widen

torch = pytest.importorskip("torch")
nn = torch.nn


class Normed(nn.Module):
    """Convolutions, a transposed one and a Linear under weight or spectral norm, with a residual branch."""

    def __init__(self, norm, width=8, inner=8):
        super().__init__()
        self.a, self.b = norm(nn.Conv1d(4, width, 3)), norm(nn.Conv1d(width, width, 3, padding=1))
        self.t, self.l = norm(nn.ConvTranspose1d(width, inner, 4, 2)), norm(nn.Linear(inner, 6))

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.t(x + self.b(torch.tanh(x))))
        return self.l(x.transpose(1, 2))


class Attended(nn.Module):
    """A graph attention layer as in GAT: parameters multiplied on and summed over."""

    def __init__(self, width=6):
        super().__init__()
        self.width, self.lin, self.head = width, nn.Linear(8, 4 * width, bias=False), nn.Linear(4 * width, 3)
        self.source, self.target = (nn.Parameter(torch.randn(1, 4, width) * 0.5) for _ in range(2))

    def forward(self, x):
        z = self.lin(x).view(-1, 4, self.width)
        left, right = ((z * vector).sum(-1) for vector in (self.source, self.target))
        p = torch.softmax(nn.functional.leaky_relu(left[:, None] + right[None], 0.2), 1)
        return self.head(torch.einsum("ijh,jhd->ihd", p, z).reshape(-1, 4 * self.width))


class Towers(nn.Module):
    """Two towers, the second behind a ReLU."""

    def __init__(self, width=8, inner=16):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, inner), nn.Tanh(), nn.Linear(inner, width))
        self.other = nn.Sequential(nn.Linear(4, width), nn.ReLU())

    def forward(self, x):
        return self.one(x) @ self.other(x.flip(0)).T


class Scan(nn.Module):
    """A selective scan as in Mamba, step by step: B and C are parts of what one layer makes."""

    def __init__(self, states=4, channels=6, rank=3):
        super().__init__()
        self.states, self.channels, self.rank = states, channels, rank
        self.project, self.step = nn.Linear(channels, rank + 2 * states, bias=False), nn.Linear(rank, channels)
        self.decay, self.up, self.out = (
            nn.Parameter(-torch.rand(channels, states)),
            nn.Linear(5, channels),
            nn.Linear(channels, 5),
        )

    def forward(self, x):
        u = torch.tanh(self.up(x))
        step, b, c = self.project(u).split([self.rank, self.states, self.states], -1)
        step = torch.sigmoid(self.step(step))
        h, results = torch.zeros(x.shape[0], self.channels, self.states), []
        for t in range(3):
            h = torch.exp(step[:, t, :, None] * self.decay) * h + (step * u)[:, t, :, None] * b[:, t, None]
            results.append((h * c[:, t, None]).sum(-1))
        return self.out(torch.stack(results, 1))


class LowRank(nn.Module):
    """LoRA: the class computes alpha / r."""

    def __init__(self, width=8, rank=4):
        super().__init__()
        self.base, self.head, self.scale = nn.Linear(5, width), nn.Linear(width, 3), 14 / rank
        self.a, self.b = nn.Parameter(torch.randn(rank, 5) * 0.3), nn.Parameter(torch.randn(width, rank) * 0.3)

    def forward(self, x):
        return self.head(torch.relu(self.base(x) + (x @ self.a.T @ self.b.T) * self.scale))


def weight_norm(layer):
    return nn.utils.parametrizations.weight_norm(layer)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


def sizes_of_normed(state):
    return {"width": len(state["a.bias"]), "inner": len(state["t.bias"])}


CASES = {
    "weight norm": (lambda **sizes: Normed(weight_norm, **sizes), (2, 4, 9), sizes_of_normed),
    "old weight norm": (lambda **sizes: Normed(old_weight_norm, **sizes), (2, 4, 9), sizes_of_normed),
    "spectral norm": (lambda **sizes: Normed(nn.utils.spectral_norm, **sizes), (2, 4, 9), sizes_of_normed),
    "graph attention": (Attended, (5, 8), lambda state: {"width": state["source"].shape[2]}),
    "two towers": (Towers, (3, 4), lambda state: {
        "width": len(state["other.0.bias"]), "inner": len(state["one.0.bias"])}),
    "selective scan": (Scan, (2, 3, 5), lambda state: dict(
        zip(("channels", "states"), state["decay"].shape, strict=True), rank=state["step.weight"].shape[1])),
    "low rank": (LowRank, (2, 5), lambda state: {"width": len(state["base.bias"]), "rank": len(state["a"])}),
}  # fmt: skip

GROWN = {"weight norm": {"width": 12, "inner": 12}, "old weight norm": {"width": 12, "inner": 12},
         "spectral norm": {"width": 12, "inner": 12}, "graph attention": {"width": 9},
         "two towers": {"width": 12, "inner": 24}, "selective scan": {"channels": 9, "states": 6, "rank": 4},
         "low rank": {"width": 12, "rank": 4}}  # fmt: skip


def export(name, path, **options):
    class_, shape, _ = CASES[name]
    torch.manual_seed(0)
    model = class_()
    if name == "spectral norm":
        model(torch.randn(shape))  # the power iteration of the first training step
    model, x = model.eval(), torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), **options)
    return model


UNFOLDED = {"torchscript": {"dynamo": False, "opset_version": 17, "do_constant_folding": False},
            "dynamo": {"dynamo": True, "optimize": False, "verbose": False}}  # fmt: skip


@pytest.mark.parametrize("exporter", UNFOLDED)
@pytest.mark.parametrize("name", CASES)
def test_the_wider_class_computes_what_the_teacher_computes(tmp_path, name, exporter):
    class_, shape, sizes = CASES[name]
    model = export(name, tmp_path / "teacher.onnx", **UNFOLDED[exporter])
    named = {"sizes": {"lin[[]1]": 9}} if name == "graph attention" else {"factor": 1.5}  # not the heads
    widening = widen(tmp_path / "teacher.onnx", framework="torch", **named)
    widening.student.save(tmp_path / "student.onnx")
    grown = checkpoint(tmp_path / "teacher.onnx", tmp_path / "student.onnx", model.state_dict())
    state = {key: torch.from_numpy(value) for key, value in grown.arrays().items()}
    assert sizes(state) == GROWN[name]
    wider = class_(**sizes(state))
    wider.load_state_dict(state, strict=True)
    torch.manual_seed(1)
    x = torch.randn(shape)
    torch.testing.assert_close(wider.eval()(x), model(x), rtol=1e-4, atol=1e-5)
    verify(tmp_path / "teacher.onnx", widening.student).raise_if_different()


def test_a_folded_parametrization_is_refused_with_the_export_that_helps(tmp_path):
    model = export("weight norm", tmp_path / "teacher.onnx", dynamo=True, verbose=False)
    widen(tmp_path / "teacher.onnx", factor=1.5, framework="torch").student.save(tmp_path / "student.onnx")
    with pytest.raises(RefusedError, match="folding off"):
        checkpoint(tmp_path / "teacher.onnx", tmp_path / "student.onnx", model.state_dict())


def test_half_folded_ones_are_refused_so_too(tmp_path):
    """TorchScript folds the matrix that spectral norm makes of a kernel, and not the kernel."""
    model = export("spectral norm", tmp_path / "teacher.onnx", dynamo=False, opset_version=17)
    widen(tmp_path / "teacher.onnx", factor=1.5, framework="torch").student.save(tmp_path / "student.onnx")
    with pytest.raises(RefusedError, match="folding off"):
        checkpoint(tmp_path / "teacher.onnx", tmp_path / "student.onnx", model.state_dict())


def test_a_class_that_keeps_its_numbers_grows_the_rank(tmp_path):
    export("low rank", tmp_path / "teacher.onnx", **UNFOLDED["torchscript"])
    options = {"factor": 1.5, "framework": "torch", "keep_numbers": True}
    widening = widen(tmp_path / "teacher.onnx", **options)
    assert sorted(c.new for c in widening.changes if c.new != c.old) == [6, 12]
    assert any("3.5" in number for number in widening.numbers)
