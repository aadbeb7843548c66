"""Dense classes of PyTorch fill classes with experts: strict loading, and the same results in double precision."""

import contextlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from checkpoint_table import import_torchvision  # noqa: E402
from torch import nn  # noqa: E402

from onnx_net2net import transfer  # noqa: E402
from onnx_net2net.framework.filled import fill_state_dict  # noqa: E402

WIDTH, HIDDEN, EXPERTS = 16, 24, 4


class Experts(nn.Module):
    """Token-choice experts with stacked weights, as V-MoE has them; gates are divided by their sum."""

    def __init__(self, hidden: int, k: int = 2) -> None:
        super().__init__()
        self.k = k
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, hidden) / 4)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, hidden) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, hidden, WIDTH) / 4)
        self.down_bias = nn.Parameter(torch.randn(EXPERTS, WIDTH) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        top, places = self.gate(rows).softmax(-1).topk(self.k)
        weights = torch.zeros(rows.shape[0], EXPERTS, dtype=x.dtype).scatter(1, places, top / top.sum(-1, keepdim=True))
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
