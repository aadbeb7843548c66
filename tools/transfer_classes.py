"""Networks of families that no library has small, written as people write them; `transfer_table.py` fills them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Pre-norm attention over tokens: `heads` heads of queries share `shared` heads of keys and values.

    Fused: one layer makes keys and values, and torch's own function does the rest, as in PVT and SegFormer.
    """

    def __init__(self, width: int = 16, heads: int = 4, shared: int = 2, head: int = 4, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.shared, self.head, self.fused = heads, shared, head, fused
        self.embed, self.norm = nn.Embedding(20, width), nn.LayerNorm(width)
        self.q = nn.Linear(width, heads * head)
        if fused:
            self.kv = nn.Linear(width, 2 * shared * head)
        else:
            self.k, self.v = nn.Linear(width, shared * head), nn.Linear(width, shared * head)
        self.o, self.out = nn.Linear(heads * head, width), nn.Linear(width, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y, (batch, length) = self.norm(x), tokens.shape
        q = self.q(y).view(batch, length, self.heads, self.head).transpose(1, 2)
        if self.fused:
            k, v = self.kv(y).view(batch, length, 2, self.shared, self.head).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1)))
        k, v = (one(y).view(batch, length, self.shared, self.head).transpose(1, 2) for one in (self.k, self.v))
        k, v = (one.repeat_interleave(self.heads // self.shared, 1) for one in (k, v))
        mixed = torch.softmax(q @ k.transpose(2, 3) * self.head**-0.5, -1) @ v
        return self.out(x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1)))


class WaveNet(nn.Module):
    """Gated convolutions with a residual and a skip each (van den Oord et al. 2016)."""

    def __init__(self, width: int = 6, skip: int = 10, depth: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, width, 1), nn.Conv1d(skip, 5, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=1) for _ in range(depth))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(())
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            one, other = gate(x).chunk(2, 1)
            z = torch.tanh(one) * torch.sigmoid(other)
            x, total = x + residual(z), total + skip(z)
        return self.last(functional.relu(total))


class NBeats(nn.Module):
    """Blocks that subtract a backcast and add a forecast (Oreshkin et al. 2020)."""

    def __init__(self, width: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Sequential(nn.Linear(10, width), nn.ReLU()) for _ in range(depth))
        self.backcasts = nn.ModuleList(nn.Linear(width, 10) for _ in range(depth))
        self.forecasts = nn.ModuleList(nn.Linear(width, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for hidden, backcast, forecast in zip(self.hidden, self.backcasts, self.forecasts, strict=True):
            z = hidden(x)
            x, total = x - backcast(z), total + forecast(z)
        return total


class PointNet(nn.Module):
    """Points, and a matrix that the network makes for their features (Qi et al. 2017)."""

    def __init__(self, features: int = 8, width: int = 16) -> None:
        super().__init__()
        self.features = features
        self.a, self.norm = nn.Conv1d(3, features, 1), nn.BatchNorm1d(features)
        self.b, self.c = nn.Conv1d(features, width, 1), nn.Linear(width, features**2)
        self.d, self.out = nn.Conv1d(features, width, 1), nn.Linear(width, 4)

    def forward(self, points: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.a(points)))
        matrix = self.c(functional.relu(self.b(x)).amax(2)).view(-1, self.features, self.features) + torch.eye(
            self.features
        )
        x = torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1)
        return self.out(functional.relu(self.d(x)).amax(2))


class Dlrm(nn.Module):
    """Dot products of all pairs of embeddings (Naumov et al. 2019)."""

    def __init__(self, features: int = 8, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, features) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, features), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(features + 6, width), nn.ReLU(), nn.Linear(width, 1))
        rows, columns = torch.tril_indices(4, 4, -1)
        self.register_buffer("pairs", rows * 4 + columns)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(x)
        all_ = torch.stack([dense, *(table(categories[:, n]) for n, table in enumerate(self.tables))], 1)
        products = torch.bmm(all_, all_.transpose(1, 2)).flatten(1)[:, self.pairs]
        return torch.sigmoid(self.top(torch.cat([dense, products], 1)))


class Towers(nn.Module):
    """Cosines of users and items."""

    def __init__(self, features: int = 8, width: int = 16) -> None:
        super().__init__()
        self.users = nn.Sequential(nn.Embedding(20, features), nn.Linear(features, width), nn.ReLU(),
                                   nn.Linear(width, features))  # fmt: skip
        self.items = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, features))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return functional.normalize(self.users(users), dim=-1) @ functional.normalize(self.items(items), dim=-1).T


class Policy(nn.Module):
    """Mean and deviation of actions; the logarithm of the deviation is a parameter."""

    def __init__(self, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        layers = [(nn.Linear(width if n else 6, width), nn.ReLU()) for n in range(depth)]
        self.body, self.mean = nn.Sequential(*(one for pair in layers for one in pair)), nn.Linear(width, 4)
        self.log_std = nn.Parameter(torch.full((4,), -0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(self.body(x)), self.log_std


class Gates(nn.Module):
    """Convolutions with squeeze and excitation in the chain itself, as in RepViT."""

    def __init__(self, width: int = 8, gates: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
            )
            for _ in range(gates)
        )
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x))
        for gate in self.gates:
            x = x * gate(x)
        return self.out(functional.relu(self.b(x)).mean((2, 3)))


class Highway(nn.Module):
    """Layers that a gate passes by (Srivastava et al. 2015)."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, width), nn.Linear(width, 2)
        self.layers, self.gates = (nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for layer, gate in zip(self.layers, self.gates, strict=True):
            g = torch.sigmoid(gate(x))
            x = g * functional.relu(layer(x)) + (1 - g) * x
        return self.out(x)


class Pooling(nn.Module):
    """A PoolFormer (Yu et al. 2022): what mixes tokens has a norm and a scale, and no other weights."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 3)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(2 * depth))
        self.scales = nn.ParameterList(nn.Parameter(0.5 * torch.ones(width, 1, 1)) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for n, (scale, mlp) in enumerate(zip(self.scales, self.mlps, strict=True)):
            y = self.norms[2 * n](x)
            x = x + scale * (functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
            x = x + mlp(self.norms[2 * n + 1](x))
        return self.out(x.mean((2, 3)))


class Rectified(nn.Module):
    """Residual branches that end in ReLU."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 3)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + functional.relu(norm(conv(x)))
        return self.out(x.mean((2, 3)))


class Vocoder(nn.Module):
    """Weight norm, as in HiFi-GAN (Kong et al. 2020)."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.first, self.out = norm(nn.Conv1d(4, width, 3, padding=1)), norm(nn.Conv1d(width, 3, 1))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(width, width, 3, padding=1)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(functional.leaky_relu(x, 0.1))
        return torch.tanh(self.out(x))


class Mixture(nn.Module):
    """Experts that all compute, weighed by a Softmax (Jacobs et al. 1991)."""

    def __init__(self, width: int = 8, experts: int = 4, hidden: int = 12) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(6, width), nn.Linear(width, experts), nn.Linear(width, 3)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * 0.4)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gates = torch.softmax(self.router(x), -1)
        made = torch.einsum("bef,efd->bed", nn.functional.gelu(torch.einsum("bd,edf->bef", x, self.up)), self.down)
        return self.head(x + (gates[..., None] * made).sum(1))


def tokens() -> Tensor:
    """Return two rows of tokens."""
    return torch.randint(0, 20, (2, 6))


def pictures() -> Tensor:
    """Return two small pictures."""
    return torch.randn(2, 3, 12, 12)


INPUTS = {
    "Attention": lambda: {"tokens": tokens()},
    "WaveNet": lambda: {"x": torch.randn(2, 1, 12)},
    "NBeats": lambda: {"x": torch.randn(3, 10)},
    "PointNet": lambda: {"points": torch.randn(2, 3, 16)},
    "Dlrm": lambda: {"x": torch.randn(4, 5), "categories": torch.randint(0, 10, (4, 3))},
    "Towers": lambda: {"users": torch.randint(0, 20, (4,)), "items": torch.randn(4, 5)},
    "Policy": lambda: {"x": torch.randn(3, 6)},
    "Gates": lambda: {"x": pictures()},
    "Highway": lambda: {"x": torch.randn(3, 4)},
    "Pooling": lambda: {"x": pictures()},
    "Rectified": lambda: {"x": pictures()},
    "Mixture": lambda: {"x": torch.randn(4, 6)},
    "Vocoder": lambda: {"x": torch.randn(2, 4, 9)},
}
"""What each is called with."""

FAMILIES = {
    "attention, one head -> two": ("Attention", {"heads": 1, "shared": 1}, {"heads": 2, "shared": 2}),
    "attention, fused, one head -> two (x2)": (
        "Attention",
        {"heads": 1, "shared": 1, "head": 16, "fused": True},
        {"heads": 2, "shared": 2, "head": 16, "width": 32, "fused": True},
    ),
    "attention, one shared head -> two (x2)": ("Attention", {"shared": 1}, {"heads": 8, "shared": 2, "width": 32}),
    "attention, two shared heads -> four": ("Attention", {}, {"shared": 4}),
    "wavenet -> wider and deeper": ("WaveNet", {}, {"width": 9, "skip": 14, "depth": 4}),
    "nbeats -> wider and deeper": ("NBeats", {}, {"width": 18, "depth": 4}),
    "pointnet -> wider (x1.5)": ("PointNet", {}, {"features": 12, "width": 24}),
    "dlrm -> wider (x1.5)": ("Dlrm", {}, {"features": 12, "width": 24}),
    "towers, cosines -> wider (x1.5)": ("Towers", {}, {"features": 12, "width": 24}),
    "policy -> wider and deeper": ("Policy", {}, {"width": 24, "depth": 2}),
    "gates -> with gates, wider": ("Gates", {}, {"width": 12, "gates": 1}),
    "highway -> wider and deeper": ("Highway", {}, {"width": 12, "depth": 3}),
    "poolformer -> wider (x2) and deeper": ("Pooling", {}, {"width": 16, "depth": 3}),
    "rectified branches -> wider and deeper": ("Rectified", {}, {"width": 12, "depth": 3}),
    "mixture, softmax -> six experts of four": ("Mixture", {}, {"experts": 6, "hidden": 20}),
    "vocoder, weight norm -> wider (x2) and deeper": ("Vocoder", {}, {"width": 16, "depth": 2}),
}
"""Pairs: the class, and how the teacher and the target are made."""
