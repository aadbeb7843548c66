"""`grow`: modules as users write them, with numbers of their own, grow in memory and compute what they did."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402

from onnx_net2net import BadInputError, RefusedError, grow  # noqa: E402
from onnx_net2net.framework.live.example import Example  # noqa: E402
from onnx_net2net.framework.live.trace import events_of  # noqa: E402


class Attention(nn.Module):
    """Heads in an attribute, a split by a kept width, a scale that is kept."""

    def __init__(self, width=24, heads=3):
        super().__init__()
        self.heads, self.width, self.scale = heads, width, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length = x.shape[:2]
        q, k, v = self.qkv(x).split(self.width, 2)
        q, k, v = (t.reshape(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(2, 3) * self.scale).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """A convolution, a norm, groups, and two blocks of attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 24, 3, padding=1), nn.BatchNorm1d(24), nn.Conv1d(24, 24, 3, groups=4))
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.register_buffer("mask", torch.ones(2, 5, 1), persistent=False)
        self.head = nn.Linear(24, 4)

    def forward(self, x, gain=1.0):
        x = self.stem(x).transpose(1, 2) * self.mask
        for block in self.blocks:
            x = x + block(x)
        return {"logits": self.head(x.mean(1)) * gain, "states": self.head(x)}


class Fixed(nn.Module):
    """A width in the code of its forward."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, x):
        h = self.one(x).view(-1, 4, 6)
        return self.two(torch.relu(h).reshape(-1, 24))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().double().train()


INPUT = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)).double()


def run(module, *args):
    with torch.no_grad():
        return copy.deepcopy(module).double().eval()(*(arg.double() for arg in args))


@pytest.fixture(scope="module")
def grown(net):
    optimizer = torch.optim.AdamW([{"params": net.stem.parameters(), "lr": 1e-3}, {"params": net.blocks.parameters()},
                                   {"params": net.head.parameters(), "weight_decay": 0.0}], lr=3e-4)  # fmt: skip
    for _ in range(2):
        net(INPUT)["logits"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return grow(net, {"x": INPUT, "gain": 1.0}, factor=1.5, optimizer=optimizer), optimizer


def test_it_computes_what_it_did(net, grown):
    module = grown[0].module
    assert type(module) is Net
    assert module.training
    for name, wanted in run(net, INPUT).items():
        assert torch.allclose(run(module, INPUT)[name], wanted, rtol=1e-9, atol=1e-9), name
    assert grown[0].report.difference < 1e-12


def test_layers_and_attributes_have_the_new_sizes(net, grown):
    module = grown[0].module
    assert module.stem[0].out_channels == module.stem[1].num_features == 36
    assert module.blocks[1].width == module.head.in_features == 32, "heads of 8, as the class computes a scale of it"
    assert module.blocks[1].heads == 4
    assert net.blocks[1].width == 24, "the user's module is not changed"
    changed = {str(number) for number in grown[0].report.numbers}
    assert "blocks.1.width 24 -> 32" in changed
    assert module.blocks[0].scale == net.blocks[0].scale


def test_the_optimizer_has_its_groups_and_its_state(net, grown):
    (result, old), new = grown, grown[0].optimizer
    assert type(new) is torch.optim.AdamW
    assert [len(group["params"]) for group in new.param_groups] == [len(group["params"]) for group in old.param_groups]
    assert new.param_groups[2]["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in result.module.named_parameters()}
    for group in new.param_groups:
        for parameter in group["params"]:
            assert id(parameter) in names
            assert new.state[parameter]["exp_avg"].shape == parameter.shape
            assert new.state[parameter]["step"] == 2
    result.module(INPUT)["logits"].sum().backward()
    new.step()


def test_the_moments_are_those_of_the_students_gradient(net, grown):
    """exp_avg grows like the gradient: after a step from there both modules still agree with SGD's law."""
    module = copy.deepcopy(net).double().eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
    x = INPUT.double()

    def loss(one):
        return one(x)["logits"].square().mean()

    loss(module).backward()
    optimizer.step()
    result = grow(module, x, factor=2, only=["head", "blocks.*", "stem*"], optimizer=optimizer)
    result.module.zero_grad()
    loss(result.module).backward()
    for name, parameter in result.module.named_parameters():
        momentum = result.optimizer.state[parameter]["momentum_buffer"]
        assert torch.allclose(momentum, parameter.grad, rtol=0.2, atol=0.2 * float(parameter.grad.abs().max())), name


def test_a_width_in_the_code_is_refused_with_its_line():
    with pytest.raises(RefusedError, match=r"test_grow.py:\d+: h = self.one\(x\).view\(-1, 4, 6\)") as found:
        grow(Fixed(), torch.randn(2, 8), factor=1.5)
    assert found.value.module == ""
    assert found.value.line.startswith("test_grow.py:")


def test_the_refusal_says_how_the_rest_grows():
    net, x = nn.Sequential(nn.Linear(4, 8), Fixed(), nn.Linear(3, 6), nn.Linear(6, 2)), torch.randn(2, 4)
    with pytest.raises(RefusedError, match=r'to grow the rest, give sizes=\{"1.\*": "1x"\}'):
        grow(net, x, factor=2)
    grown = grow(net, x, factor=2, sizes={"1.*": "1x"})
    first, inner, last = grown.module[0], grown.module[1].one, grown.module[2]
    assert [first.out_features, inner.out_features, last.out_features] == [16, 24, 12]


def test_a_branch_that_starts_at_zero_is_proved_too():
    """The norm behind a wrong head count is zero: only other weights show what it hides."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.gate = Attention(), nn.Parameter(torch.zeros(1, 1, 24))

        def forward(self, x):
            return x + self.inner(x) * self.gate

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 24), Hidden(), nn.Linear(24, 3))
    result = grow(module, torch.randn(2, 6, 5), factor=2)
    for one in (module, result.module):
        one.double()
    with torch.no_grad():
        open_gate = torch.ones_like(result.module[1].gate)
        module[1].gate.fill_(1.0)
        result.module[1].gate.copy_(open_gate)
    x = torch.randn(2, 6, 5).double()
    assert torch.allclose(module(x), result.module(x), rtol=1e-6, atol=1e-7)


def test_types_and_modes_stay():
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)).to(torch.bfloat16)
    module[0].eval()
    result = grow(module, torch.randn(3, 6, dtype=torch.bfloat16), factor=1.5).module
    assert result[0].weight.dtype == torch.bfloat16
    assert result[3].in_features == 12
    assert not result[0].training
    assert result[1].training


def test_what_is_tied_stays_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.inner(self.embedding(x))[0])

    torch.manual_seed(0)
    result = grow(Tied(), torch.randint(0, 20, (4, 2)), factor=2).module
    assert result.head.weight is result.embedding.weight
    assert result.inner.hidden_size == 16


def test_bad_inputs_are_said():
    with pytest.raises(BadInputError, match="there is no tensor"):
        grow(nn.Linear(2, 3), (), factor=2)
    with pytest.raises(BadInputError, match="cannot be called with example_inputs"):
        grow(nn.Linear(2, 3), torch.randn(1, 5), factor=2)
    other = torch.optim.Adam(nn.Linear(4, 4).parameters())
    with pytest.raises(BadInputError, match="parameters that the module lacks"):
        grow(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(1, 2), factor=2, optimizer=other)


def test_what_returns_no_number_proves_nothing():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.two(self.one(x).relu()) * float("nan")

    with pytest.raises(BadInputError, match="the module returns only infinite numbers and NaN for example_inputs"):
        grow(Nothing(), torch.randn(3, 4), factor=2)


def test_what_an_activation_overwrites_is_noted_as_it_was():
    """A search that took it for a difference tried hundreds of numbers at each layer."""
    net = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(inplace=True)).eval()
    (returned,) = next(e for e in events_of(net, Example(torch.randn(4, 8))) if e.path == "0" and e.returns).tensors
    assert returned.min() < 0


class Masked(nn.Module):
    """Attention whose mask is made without a type."""

    def __init__(self):
        super().__init__()
        self.up, self.q, self.k, self.out = nn.Linear(8, 12), nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(12, 4)
        self.heads = 2

    def forward(self, x):
        places = torch.ones(x.shape[:2]).cumsum(-1)
        mask = torch.zeros(x.shape[1], x.shape[1]).masked_fill(places[0][:, None] < places[0], -1e9)
        heads = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.q(x), self.k(x), self.up(x)))
        y = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=1.0)
        return self.out(y.transpose(1, 2).contiguous().flatten(2))


def test_tensors_without_a_type_and_kernels_of_attention_are_exported():
    net, x = Masked().eval(), torch.rand(2, 5, 8)
    grown = grow(net, x, factor=2)
    assert grown.module.up.out_features == 24
    assert torch.allclose(grown.module(x), net(x), atol=1e-6)
