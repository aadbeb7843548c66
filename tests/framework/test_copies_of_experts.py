"""Dense classes of PyTorch fill classes with experts: strict loading, and the same results in double precision."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from checkpoint_table import import_torchvision  # noqa: E402
from torch import nn  # noqa: E402

from onnx_net2net import checkpoint, transfer, widen  # noqa: E402
from onnx_net2net.framework.optimizer import grow_state  # noqa: E402
from onnx_net2net.framework.statedict.filled import fill_state_dict  # noqa: E402

WIDTH, HIDDEN, EXPERTS = 16, 24, 4


class Experts(nn.Module):
    """Token-choice experts with stacked weights, as V-MoE has them; gates are divided by their sum."""

    def __init__(self, hidden: int, experts: int = EXPERTS, k: int = 2, raw: bool = False) -> None:
        super().__init__()
        self.k, self.count, self.raw = k, experts, raw
        self.gate = nn.Linear(WIDTH, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, WIDTH, hidden) / 4)
        self.up_bias = nn.Parameter(torch.randn(experts, hidden) / 4)
        self.down = nn.Parameter(torch.randn(experts, hidden, WIDTH) / 4)
        self.down_bias = nn.Parameter(torch.randn(experts, WIDTH) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        scores = self.gate(rows)
        top, places = (scores.sigmoid() if self.raw else scores.softmax(-1)).topk(self.k)
        gates = top if self.raw else top / top.sum(-1, keepdim=True)
        weights = torch.zeros(rows.shape[0], self.count, dtype=x.dtype).scatter(1, places, gates)
        hidden = torch.einsum("td,edh->teh", rows, self.up) + self.up_bias
        made = torch.einsum("teh,ehd->ted", nn.functional.gelu(hidden), self.down) + self.down_bias
        return torch.einsum("ted,te->td", made, weights).reshape(x.shape)


class Block(nn.Module):
    def __init__(self, hidden: int, experts: bool) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        dense = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))
        self.mlp = Experts(hidden) if experts else dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        parts = (layer(y).reshape(*y.shape[:2], 2, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, value = parts
        weights = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, hidden: int = HIDDEN, experts: tuple[bool, ...] = (False, False)) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.pos = nn.Parameter(torch.randn(1, 16, WIDTH))
        self.blocks = nn.ModuleList(Block(hidden, one) for one in experts)
        self.head = nn.Linear(WIDTH, 10)
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            y = block(y)
        return self.head(y.mean(1))


def exported(module: nn.Module, given: torch.Tensor, path: Path, **options: object) -> Path:
    torch.onnx.export(module.eval(), (given,), str(path), dynamo=True, verbose=False, **options)
    return path


def filled(teacher: nn.Module, target: nn.Module, fresh: nn.Module, given: torch.Tensor, folder: Path, **options):
    """The target's class with the teacher's weights, by way of two files and a strict load."""
    paths = [exported(m, given, folder / f"{n}.onnx", **options) for n, m in (("dense", teacher), ("moe", target))]
    result = transfer(*paths)
    assert not result.obstacles, [str(obstacle) for obstacle in result.obstacles]
    torch.save(target.state_dict(), folder / "moe.pt")
    fill_state_dict(result, folder / "moe.pt").save(folder / "filled.pt")
    fresh.load_state_dict(torch.load(folder / "filled.pt", weights_only=True), strict=True)
    return fresh.eval()


def assert_same(one: nn.Module, other: nn.Module, given: torch.Tensor, tolerance: float) -> None:
    with torch.no_grad():
        expected, found = (module.double()(given) for module in (one, other))
    assert float((expected - found).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("hidden", [HIDDEN, 40])
def test_a_vision_transformer_fills_one_with_experts(tmp_path, hidden):
    torch.manual_seed(0)
    teacher, given = ViT(), torch.randn(2, 3, 16, 16)
    kinds = (False, True)  # as V-MoE, every other block
    target, fresh = ViT(hidden, kinds), ViT(hidden, kinds)
    assert_same(teacher, filled(teacher, target, fresh, given, tmp_path), given.double(), 1e-6)


def test_parts_of_experts_fill_a_class_with_more_and_smaller_ones(tmp_path):
    torch.manual_seed(0)
    old, given = Experts(HIDDEN), torch.randn(2, 6, WIDTH)
    teacher, student = exported(old, given, tmp_path / "teacher.onnx"), tmp_path / "student.onnx"
    widen(teacher, sizes={"experts": "2x"}, how="granular", framework="torch").student.save(student)
    checkpoint(teacher, student, old.state_dict()).save(tmp_path / "grown.pt")
    fresh = Experts(HIDDEN // 2, 2 * EXPERTS, 4)
    fresh.load_state_dict(torch.load(tmp_path / "grown.pt", weights_only=True), strict=True)
    assert_same(old, fresh, given.double(), 1e-6)
    half = HIDDEN // 2
    assert torch.equal(fresh.up[1], old.up[0, :, half:])
    assert torch.equal(fresh.down[2], 2 * old.down[1, :half])


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("how", ["topk", "granular"])
def test_the_momentum_is_the_gradient_of_the_class_with_more_experts(tmp_path, how, raw):
    torch.manual_seed(0)
    old, given = Experts(HIDDEN, raw=raw), torch.randn(2, 6, WIDTH)
    teacher, student = exported(old, given, tmp_path / "teacher.onnx"), tmp_path / "student.onnx"
    options = {"how": how, "framework": "torch", "spread": 0}  # with equal copies in topk
    widen(teacher, sizes={"experts": "2x"}, **options).student.save(student)
    made = checkpoint(teacher, student, old.state_dict())
    fresh = Experts(HIDDEN // 2 if how == "granular" else HIDDEN, 2 * EXPERTS, 4, raw)
    fresh.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in made.arrays().items()})
    optimizer = torch.optim.SGD(old.parameters(), 0.0, momentum=0.9)
    target = torch.randn(2, 6, WIDTH)
    for module in (old, fresh):
        ((module(given) - target) ** 2).mean().backward()
    optimizer.step()
    state = grow_state(optimizer.state_dict(), made)["state"]
    for number, (name, parameter) in enumerate(fresh.named_parameters()):
        carried, scale = state[number]["momentum_buffer"], float(parameter.grad.abs().max())
        if how == "granular" and name == "gate.weight":  # the parts of an expert share its gradient, not evenly
            carried, found = (value.reshape(EXPERTS, 2, WIDTH).sum(1) for value in (carried, parameter.grad))
        else:
            found = parameter.grad
        assert float((carried - found).abs().max()) <= 1e-5 * scale, name


@pytest.mark.slow
def test_mistral_fills_a_deeper_mixtral(tmp_path):
    with contextlib.suppress(ImportError):
        import_torchvision()
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "use_cache": False, "attn_implementation": "eager", "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    more = {"num_local_experts": 8, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}

    class Logits(nn.Module):
        def __init__(self, name: str, **own: object) -> None:
            super().__init__()
            config = getattr(transformers, f"{name}Config")(**sizes, **own)
            self.model = getattr(transformers, f"{name}ForCausalLM")(config)
            for parameter in self.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids).logits

    torch.manual_seed(0)
    ids = torch.randint(0, 61, (2, 9))
    dims = {"ids": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("sequence", max=60)}}
    teacher = Logits("Mistral", num_hidden_layers=2, intermediate_size=40)
    target, fresh = (Logits("Mixtral", num_hidden_layers=3, intermediate_size=60, **more) for _ in range(2))
    # The class computes its router and norms in single precision.
    assert_same(teacher, filled(teacher, target, fresh, ids, tmp_path, dynamic_shapes=dims), ids, 1e-5)
