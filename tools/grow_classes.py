"""Classes as people write them by hand, with views, splits, heads and numbers of their own; `grow_table` grows them.

None is written for this package: they keep their widths in attributes or in their code, as tutorials and papers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as nf

Case = tuple[nn.Module, tuple[torch.Tensor, ...]]


class DoubleConv(nn.Sequential):
    """Two convolutions of a U-Net."""

    def __init__(self, i: int, o: int) -> None:
        one, two = (nn.Conv2d(k, o, 3, padding=1, bias=False) for k in (i, o))
        super().__init__(one, nn.BatchNorm2d(o), nn.ReLU(True), two, nn.BatchNorm2d(o), nn.ReLU(True))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015)."""

    def __init__(self, c: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.n_channels, self.n_classes = 3, classes
        self.inc, self.down1, self.down2 = DoubleConv(3, c), DoubleConv(c, 2 * c), DoubleConv(2 * c, 4 * c)
        self.up1, self.conv1 = nn.ConvTranspose2d(4 * c, 2 * c, 2, stride=2), DoubleConv(4 * c, 2 * c)
        self.up2, self.conv2 = nn.ConvTranspose2d(2 * c, c, 2, stride=2), DoubleConv(2 * c, c)
        self.outc = nn.Conv2d(c, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.inc(x)
        b = self.down1(nf.max_pool2d(a, 2))
        c = self.down2(nf.max_pool2d(b, 2))
        y = self.conv1(torch.cat([b, self.up1(c)], 1))
        return self.outc(self.conv2(torch.cat([a, self.up2(y)], 1)))


class VAE(nn.Module):
    """Variational autoencoder of images, whose decoder reshapes by a number that it keeps."""

    def __init__(self, c: int = 16, latent: int = 12) -> None:
        super().__init__()
        self.channels, self.latent_dim = 4 * c, latent
        self.encoder = nn.Sequential(
            nn.Conv2d(1, c, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(c, 4 * c, 3, 2, 1), nn.LeakyReLU()
        )
        self.fc_mu, self.fc_var = nn.Linear(4 * c * 16, latent), nn.Linear(4 * c * 16, latent)
        self.decoder_input = nn.Linear(latent, 4 * c * 16)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4 * c, c, 3, 2, 1, 1), nn.LeakyReLU(),
                                     nn.ConvTranspose2d(c, 1, 3, 2, 1, 1), nn.Sigmoid())  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = torch.flatten(self.encoder(x), start_dim=1)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var) if self.training else mu
        return self.decoder(self.decoder_input(z).view(-1, self.channels, 4, 4)), mu, log_var


class Generator(nn.Module):
    """Generator of a DCGAN."""

    def __init__(self, nz: int = 20, ngf: int = 16) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 4), nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 2), nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, 3, 4, 2, 1, bias=False), nn.Tanh())  # fmt: skip

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z)


class Discriminator(nn.Module):
    """Discriminator with spectral norms."""

    def __init__(self, ndf: int = 16) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        one, two = norm(nn.Conv2d(3, ndf, 4, 2, 1)), norm(nn.Conv2d(ndf, 2 * ndf, 4, 2, 1))
        last = norm(nn.Linear(2 * ndf * 16, 1))
        self.main = nn.Sequential(one, nn.LeakyReLU(0.2), two, nn.LeakyReLU(0.2), nn.Flatten(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


class TiedLanguageModel(nn.Module):
    """LSTM language model with a tied embedding (the example of PyTorch)."""

    def __init__(self, tokens: int = 60, width: int = 24, layers: int = 2) -> None:
        super().__init__()
        self.ntoken, self.nhid, self.nlayers = tokens, width, layers
        self.drop, self.encoder = nn.Dropout(0.2), nn.Embedding(tokens, width)
        self.rnn, self.decoder = nn.LSTM(width, width, layers), nn.Linear(width, tokens)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(self.nlayers, x.shape[1], self.nhid, dtype=self.encoder.weight.dtype)
        output, _ = self.rnn(self.drop(self.encoder(x)), (state, state))
        return nf.log_softmax(self.decoder(self.drop(output)).view(-1, self.ntoken), dim=1)


class Seq2Seq(nn.Module):
    """GRU encoder and decoder with additive attention (Bahdanau et al. 2015)."""

    def __init__(self, tokens: int = 50, e: int = 20, h: int = 28) -> None:
        super().__init__()
        self.hidden_size = h
        self.source, self.target = nn.Embedding(tokens, e), nn.Embedding(tokens, e)
        self.encoder = nn.GRU(e, h, batch_first=True)
        self.Wa, self.Ua, self.Va = nn.Linear(h, h), nn.Linear(h, h), nn.Linear(h, 1)
        self.cell, self.out = nn.GRUCell(e + h, h), nn.Linear(h, tokens)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        keys, state = self.encoder(self.source(source))
        state, outputs = state[0], []
        for step in range(target.shape[1]):
            score = self.Va(torch.tanh(self.Wa(state)[:, None] + self.Ua(keys))).squeeze(2)
            context = torch.bmm(nf.softmax(score, -1).unsqueeze(1), keys).squeeze(1)
            state = self.cell(torch.cat([self.target(target[:, step]), context], 1), state)
            outputs.append(self.out(state))
        return torch.stack(outputs, 1)


class GATLayer(nn.Module):
    """Graph attention (Velickovic et al. 2018) on a dense adjacency matrix."""

    def __init__(self, i: int, o: int, heads: int, concat: bool = True) -> None:
        super().__init__()
        self.n_heads, self.n_hidden, self.concat = heads, o // heads if concat else o, concat
        self.linear = nn.Linear(i, self.n_hidden * heads, bias=False)
        self.left, self.right = (nn.Parameter(torch.randn(1, heads, self.n_hidden) * 0.3) for _ in range(2))

    def forward(self, h: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        g = self.linear(h).view(h.shape[0], self.n_heads, self.n_hidden)
        left, right = (g * self.left).sum(-1), (g * self.right).sum(-1)
        e = nf.leaky_relu(left[:, None] + right[None], 0.2).masked_fill(adjacency[..., None] == 0, float("-inf"))
        found = torch.einsum("ijh,jhf->ihf", torch.softmax(e, 1), g)
        return found.reshape(h.shape[0], self.n_heads * self.n_hidden) if self.concat else found.mean(1)


class GAT(nn.Module):
    """Two layers of graph attention."""

    def __init__(self, i: int = 10, h: int = 24, classes: int = 4) -> None:
        super().__init__()
        self.one, self.two = GATLayer(i, h, 3), GATLayer(h, classes, 1, concat=False)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        return self.two(nf.elu(self.one(x, adjacency)), adjacency)


class WaveNet(nn.Module):
    """Dilated gated convolutions with residual and skip connections (van den Oord et al. 2016)."""

    def __init__(self, c: int = 12, skip: int = 20, layers: int = 3) -> None:
        super().__init__()
        self.residual_channels = c
        self.first = nn.Conv1d(4, c, 1)
        self.gates = nn.ModuleList(nn.Conv1d(c, 2 * c, 2, dilation=2**k) for k in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(c, skip, 1) for _ in range(layers))
        self.one, self.two = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.first(x), 0
        for k, (gate, residual, skip) in enumerate(zip(self.gates, self.residual, self.skip, strict=True)):
            h = gate(nf.pad(x, (2**k, 0)))
            h = torch.tanh(h[:, : self.residual_channels]) * torch.sigmoid(h[:, self.residual_channels :])
            total, x = total + skip(h), x + residual(h)
        return self.two(nf.relu(self.one(nf.relu(total))))


class ActorCritic(nn.Module):
    """A policy with a state-independent log std and a value function."""

    def __init__(self, observations: int = 8, actions: int = 3, h: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observations, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh())
        self.mean, self.value, self.log_std = (
            nn.Linear(h, actions),
            nn.Linear(h, 1),
            nn.Parameter(torch.zeros(actions) - 0.5),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_std.exp().expand(x.shape[0], -1), self.value(h).squeeze(-1)


class TNet(nn.Module):
    """The network that predicts a transform of PointNet."""

    def __init__(self, k: int, c: int = 16) -> None:
        super().__init__()
        self.k = k
        self.conv1, self.conv2 = nn.Conv1d(k, c, 1), nn.Conv1d(c, 4 * c, 1)
        self.bn1, self.bn2, self.fc = nn.BatchNorm1d(c), nn.BatchNorm1d(4 * c), nn.Linear(4 * c, k * k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nf.relu(self.bn2(self.conv2(nf.relu(self.bn1(self.conv1(x)))))).amax(2)
        return self.fc(h).view(-1, self.k, self.k) + torch.eye(self.k, dtype=x.dtype)


class PointNet(nn.Module):
    """PointNet (Qi et al. 2017) with its transform of the input."""

    def __init__(self, classes: int = 5, c: int = 16) -> None:
        super().__init__()
        self.stn = TNet(3)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, c, 1), nn.Conv1d(c, 2 * c, 1), nn.Conv1d(2 * c, 8 * c, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(c), nn.BatchNorm1d(2 * c), nn.BatchNorm1d(8 * c)
        self.fc1, self.fc2 = nn.Linear(8 * c, 4 * c), nn.Linear(4 * c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.bmm(x.transpose(2, 1), self.stn(x)).transpose(2, 1)
        x = nf.relu(self.bn2(self.conv2(nf.relu(self.bn1(self.conv1(x))))))
        x = torch.max(self.bn3(self.conv3(x)), 2)[0].view(-1, self.conv3.out_channels)
        return self.fc2(nf.relu(self.fc1(x)))


class CrossAttention(nn.Module):
    """Attention of a Perceiver."""

    def __init__(self, q: int, kv: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_q, self.to_kv = (
            nn.Linear(q, heads * dim_head, bias=False),
            nn.Linear(kv, heads * dim_head * 2, bias=False),
        )
        self.to_out = nn.Linear(heads * dim_head, q)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        b, n, h = x.shape[0], x.shape[1], self.heads
        q, (k, v) = self.to_q(x), self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (t.reshape(b, t.shape[1], h, -1).transpose(1, 2) for t in (q, k, v))
        found = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(-1) @ v
        return self.to_out(found.transpose(1, 2).reshape(b, n, -1))


class Perceiver(nn.Module):
    """Perceiver (Jaegle et al. 2021) with learnt latents."""

    def __init__(self, i: int = 12, d: int = 24, latents: int = 5, classes: int = 4) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, d))
        self.norm, self.cross, self.inner = nn.LayerNorm(d), CrossAttention(d, i, 2, 10), CrossAttention(d, d, 2, 10)
        self.ff = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.head = nn.Linear(d, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.latents.expand(x.shape[0], -1, -1)
        z = z + self.cross(self.norm(z), x)
        z = z + self.inner(self.norm(z), self.norm(z))
        return self.head((z + self.ff(z)).mean(1))


class RealNVP(nn.Module):
    """A flow of affine couplings (Dinh et al. 2017)."""

    def __init__(self, d: int = 6, h: int = 24, steps: int = 3) -> None:
        super().__init__()
        self.d = d
        sizes = ((d // 2, h), (h, h), (h, d))
        self.nets = nn.ModuleList(self.net(*(nn.Linear(*size) for size in sizes)) for _ in range(steps))

    @staticmethod
    def net(one: nn.Module, two: nn.Module, three: nn.Module) -> nn.Module:
        """Return what computes scale and shift."""
        return nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), three)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for net in self.nets:
            a, b = x[:, : self.d // 2], x[:, self.d // 2 :]
            s, t = net(a).chunk(2, 1)
            s = torch.tanh(s)
            x, log_det = torch.cat([b * s.exp() + t, a], 1), log_det + s.sum(1)
        return x, log_det


class WeightNormed(nn.Module):
    """A vocoder's residual stack with weight norm."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.pre, self.post = norm(nn.Conv1d(8, c, 7, padding=3)), norm(nn.Conv1d(c, 1, 7, padding=3))
        pairs = ((nn.Conv1d(c, c, 3, padding=d, dilation=d), nn.Conv1d(c, c, 1)) for d in (1, 3))
        self.blocks = nn.ModuleList(nn.ModuleList(map(norm, pair)) for pair in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pre(x)
        for one, two in self.blocks:
            x = x + two(nf.leaky_relu(one(nf.leaky_relu(x, 0.1)), 0.1))
        return torch.tanh(self.post(nf.leaky_relu(x)))


class EncoderClassifier(nn.Module):
    """`nn.TransformerEncoder` behind an embedding with sinusoidal positions."""

    def __init__(self, tokens: int = 60, d: int = 24, heads: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.d_model, self.embedding = d, nn.Embedding(tokens, d)
        place, step = torch.arange(40).unsqueeze(1), torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d))
        pe = torch.zeros(40, d)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(place * step), torch.cos(place * step)
        self.register_buffer("pe", pe)
        layer = nn.TransformerEncoderLayer(d, heads, 40, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(d, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x) * math.sqrt(self.d_model) + self.pe[: x.shape[1]]
        return self.head(self.encoder(x).mean(1))


class CausalSelfAttention(nn.Module):
    """Attention of minGPT."""

    def __init__(self, d: int, heads: int, block: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.n_head, self.n_embd = nn.Linear(d, 3 * d), nn.Linear(d, d), heads, d
        self.register_buffer("bias", torch.tril(torch.ones(block, block)).view(1, 1, block, block))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (z.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for z in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = nf.softmax(att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf")), dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(b, t, c))


class Block(nn.Module):
    """A block of minGPT."""

    def __init__(self, d: int, heads: int, block: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(d), CausalSelfAttention(d, heads, block), nn.LayerNorm(d)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(nf.gelu(self.mlp.c_fc(self.ln_2(x))))


class MinGPT(nn.Module):
    """minGPT (Karpathy)."""

    def __init__(self, tokens: int = 50, d: int = 24, heads: int = 3, block: int = 16) -> None:
        super().__init__()
        self.block_size, self.wte, self.wpe = block, nn.Embedding(tokens, d), nn.Embedding(block, d)
        self.h, self.ln_f = nn.ModuleList(Block(d, heads, block) for _ in range(2)), nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, tokens, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class ConvLSTM(nn.Module):
    """A convolutional LSTM (Shi et al. 2015) over a short sequence of images."""

    def __init__(self, i: int = 2, h: int = 10) -> None:
        super().__init__()
        self.hidden_dim, self.conv, self.out = h, nn.Conv2d(i + h, 4 * h, 3, padding=1), nn.Conv2d(h, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = cell = x.new_zeros(x.shape[0], self.hidden_dim, *x.shape[-2:])
        for step in range(x.shape[1]):
            gates = self.conv(torch.cat([x[:, step], state], dim=1))
            i, f, o, g = torch.split(gates, self.hidden_dim, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
        return self.out(state)


class SqueezeExcite(nn.Module):
    """A residual network whose blocks weigh their channels."""

    class Unit(nn.Module):
        """One block."""

        def __init__(self, c: int, r: int = 4) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(c, c, 3, padding=1, groups=4), nn.BatchNorm2d(c)
            self.fc = nn.Sequential(nn.Linear(c, c // r), nn.ReLU(), nn.Linear(c // r, c), nn.Sigmoid())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn(self.conv(x))
            b, c, _, _ = y.size()
            return nf.relu(x + y * self.fc(nf.adaptive_avg_pool2d(y, 1).view(b, c)).view(b, c, 1, 1))

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = (
            nn.Conv2d(3, c, 3, padding=1),
            nn.Sequential(self.Unit(c), self.Unit(c)),
            nn.Linear(c, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class MixtureOfExperts(nn.Module):
    """A dense mixture of experts, whose weights are one tensor."""

    def __init__(self, i: int = 10, h: int = 20, o: int = 4, experts: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(i, experts)
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(experts, i, h) * 0.3),
            nn.Parameter(torch.randn(experts, h, o) * 0.3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nf.gelu(torch.einsum("bi,eih->beh", x, self.w1))
        return torch.einsum("beh,eho,be->bo", h, self.w2, self.gate(x).softmax(-1))


class DLRM(nn.Module):
    """Embeddings and a dense tower, joined by their dot products (Naumov et al. 2019)."""

    def __init__(self, dense: int = 8, d: int = 16, tables: int = 3) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, d) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(dense, 32), nn.ReLU(), nn.Linear(32, d), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(d + pairs, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        t = torch.stack([x, *(table(sparse[:, k]) for k, table in enumerate(self.tables))], 1)
        z = torch.bmm(t, t.transpose(1, 2))
        i, j = torch.tril_indices(t.shape[1], t.shape[1], -1)
        return self.top(torch.cat([x, z[:, i, j]], 1))


class NBeats(nn.Module):
    """Blocks with a backcast and a forecast (Oreshkin et al. 2020)."""

    class Block(nn.Module):
        """One block."""

        def __init__(self, length: int, horizon: int, h: int) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(length, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU())
            self.back, self.forth = nn.Linear(h, length), nn.Linear(h, horizon)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = self.body(x)
            return self.back(h), self.forth(h)

    def __init__(self, length: int = 12, horizon: int = 4, h: int = 24) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(length, horizon, h) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = 0
        for block in self.blocks:
            back, forth = block(x)
            x, total = x - back, total + forth
        return total


class HardCoded(nn.Module):
    """A class with a width in its code: it has to be refused, with this line."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.one(x).view(-1, 4, 6)
        return self.two(torch.relu(h).reshape(-1, 24))


def ids(high: int, *shape: int) -> torch.Tensor:
    """Draw numbers of tokens."""
    return torch.randint(0, high, shape)


CLASSES: dict[str, Callable[[], Case]] = {
    "unet": lambda: (UNet(), (torch.randn(2, 3, 16, 16),)),
    "vae": lambda: (VAE(), (torch.rand(2, 1, 16, 16),)),
    "gan_generator": lambda: (Generator(), (torch.randn(3, 20, 1, 1),)),
    "gan_discriminator": lambda: (Discriminator(), (torch.randn(2, 3, 16, 16),)),
    "tied_lstm": lambda: (TiedLanguageModel(), (ids(60, 7, 2),)),
    "seq2seq_attention": lambda: (Seq2Seq(), (ids(50, 2, 6), ids(50, 2, 5))),
    "gat": lambda: (GAT(), (torch.randn(7, 10), (torch.rand(7, 7) > 0.4).float() + torch.eye(7))),
    "wavenet": lambda: (WaveNet(), (torch.randn(2, 4, 11),)),
    "actor_critic": lambda: (ActorCritic(), (torch.randn(3, 8),)),
    "pointnet": lambda: (PointNet(), (torch.randn(2, 3, 20),)),
    "perceiver": lambda: (Perceiver(), (torch.randn(2, 9, 12),)),
    "realnvp": lambda: (RealNVP(), (torch.randn(4, 6),)),
    "weight_norm": lambda: (WeightNormed(), (torch.randn(2, 8, 12),)),
    "transformer_encoder": lambda: (EncoderClassifier(), (ids(60, 2, 9),)),
    "mingpt": lambda: (MinGPT(), (ids(50, 2, 9),)),
    "conv_lstm": lambda: (ConvLSTM(), (torch.randn(2, 3, 2, 6, 6),)),
    "squeeze_excite": lambda: (SqueezeExcite(), (torch.randn(2, 3, 8, 8),)),
    "mixture_of_experts": lambda: (MixtureOfExperts(), (torch.randn(5, 10),)),
    "dlrm": lambda: (DLRM(), (torch.randn(4, 8), ids(20, 4, 3))),
    "nbeats": lambda: (NBeats(), (torch.randn(3, 12),)),
    "hard_coded": lambda: (HardCoded(), (torch.randn(3, 8),)),
}
"""Classes and what they are called with."""
