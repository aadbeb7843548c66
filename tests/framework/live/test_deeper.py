"""`grow(depth=)`: lists get copies of blocks that change nothing, run, and learn; what does not follow is refused."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402

from onnx_net2net import BadInputError, GrowthSchedule, RefusedError, grow  # noqa: E402


class Block(nn.Module):
    def __init__(self, width, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    """Blocks in a list, run as `how` says."""

    def __init__(self, how="all", width=8, depth=2):
        super().__init__()
        self.how, self.depth = how, depth
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Block(width, number) for number in range(depth))
        if how == "named":
            self.first, self.second = self.blocks
            del self.blocks
        if how == "shared":
            self.blocks[1] = self.blocks[0]
        if how == "tied":
            self.blocks[1].mlp[2].weight = self.blocks[0].mlp[2].weight

    def forward(self, x):
        x = self.stem(x)
        blocks = [self.first, self.second] if self.how == "named" else self.blocks
        for number in range({"counted": self.depth, "fixed": 2}.get(self.how, len(blocks))):
            x = blocks[number](x)
            x = nn.functional.layer_norm(x, x.shape[-1:]) if self.how == "normalised" else x
        return self.head(x)


class Residual(nn.Module):
    """A branch with BatchNormalizations."""

    def __init__(self, width=6):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def images():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), Residual(), nn.Identity(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip


def made(how="all"):
    torch.manual_seed(0)
    return Net(how).double()


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("how", ["all", "counted"])
def test_a_list_gets_copies_that_run(how):
    module = made(how)
    grown = grow(module, X, depth=2).module
    assert len(grown.blocks) == 4
    assert grown.depth == 4
    assert torch.equal(grown(X), module(X))
    assert len(module.blocks) == 2
    ran = []
    for block in grown.blocks:
        block.register_forward_hook(lambda own, *_: ran.append(own))
    grown(X).sum().backward()
    assert ran == list(grown.blocks)
    assert sum(not block.mlp[2].weight.any() for block in grown.blocks) == 2
    assert all(block.mlp[2].weight.grad.any() for block in grown.blocks)
    assert [block.layer_idx for block in grown.blocks] == [0, 1, 2, 3]


def test_a_sequential_moves_what_comes_behind():
    torch.manual_seed(0)
    module, x = images().eval(), torch.randn(2, 2, 8, 8)
    for norm in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.running_mean += torch.rand(6)
    grown = grow(module, x, depth={"2": 1}).module
    kinds = [type(one).__name__ for one in grown]
    assert kinds[:6] == ["Conv2d", "ReLU", "Residual", "Residual", "Identity", "Residual"]
    assert not grown[3].norm2.weight.any()
    assert grown[3].norm2.running_mean.equal(module[2].norm2.running_mean)
    assert torch.allclose(grown(x), module(x), atol=1e-6)


def test_wider_and_deeper_at_once():
    module = made()
    result = grow(module, X, factor=2, depth={"blocks": 1})
    assert (len(result.module.blocks), result.module.stem.out_features) == (3, 16)
    assert result.report.difference < 1e-12
    assert "blocks  2 -> 3 blocks" in str(result.report)
    assert torch.allclose(result.module(X), module(X), rtol=1e-9)


@pytest.mark.parametrize("names", [True, False])
def test_the_optimizer_gets_the_parameters_of_copies_where_the_originals_are(names):
    module = made()
    named = [(name, p) for name, p in module.named_parameters()]
    groups = [{"params": [(n, p) if names else p for n, p in named if (p.ndim > 1) == is_matrix], "lr": rate}
              for is_matrix, rate in ((True, 0.1), (False, 0.2))]  # fmt: skip
    optimizer = torch.optim.AdamW(groups)
    module(X).square().sum().backward()
    optimizer.step()
    result = grow(module, X, depth=2, optimizer=optimizer)
    order = {id(p): name for name, p in result.module.named_parameters()}
    state = result.optimizer.state
    for group, is_matrix in zip(result.optimizer.param_groups, (True, False), strict=True):
        wanted = [name for name, p in result.module.named_parameters() if (p.ndim > 1) == is_matrix]
        assert [order[id(p)] for p in group["params"]] == wanted
        assert not names or group["param_names"] == wanted
    fresh = {order[id(p)] for group in result.optimizer.param_groups for p in group["params"] if p not in state}
    copies = [number for number, block in enumerate(result.module.blocks) if not block.mlp[2].weight.any()]
    assert fresh == {name for name in order.values() if name.startswith(tuple(f"blocks.{k}." for k in copies))}
    result.module(X).square().sum().backward()
    result.optimizer.step()
    assert all(p in state for p in result.module.parameters())


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("fixed", "does not run what blocks gained: its forward counts"),
        ("named", "it has no number, so that a class takes no more of it"),
        ("normalised", "computes something else with more blocks"),
        ("tied", r"blocks\.0\.mlp\.2\.weight and blocks\.1\.mlp\.2\.weight are one tensor"),
        ("shared", r"blocks\.0\.norm\.weight and blocks\.1\.norm\.weight are one tensor"),
    ],
)
def test_what_does_not_follow_is_refused(how, why):
    module = made(how)
    before = module(X)
    with pytest.raises(RefusedError, match=why):
        grow(module, X, depth=2)
    assert torch.equal(module(X), before)


def test_options_that_make_no_sense_are_told():
    with pytest.raises(BadInputError, match="depth must be a multiplier above 1"):
        grow(made(), X, depth=0.5)
    with pytest.raises(RefusedError, match="no residual blocks"):
        grow(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), X.float(), depth=2)


def schedule_of(module, optimizer):
    return GrowthSchedule(module, optimizer, X, at={2: {"depth": 2}}, warmup=1, total=4)


def steps(schedule, module, optimizer, end):
    while schedule.steps < end:
        module(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = module(X)
        if schedule.step():
            assert torch.equal(module(X), before)


def test_a_schedule_goes_deeper_and_resumes_behind_it():
    module = made()
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    schedule = schedule_of(module, optimizer)
    steps(schedule, module, optimizer, 3)
    saved = [one.state_dict() for one in (schedule, module, optimizer)]
    saved = torch.load(_stored(saved), weights_only=True)
    steps(schedule, module, optimizer, 4)
    again = made()
    other = torch.optim.AdamW(again.parameters(), 0.01)
    resumed = schedule_of(again, other)
    for one, state in zip((resumed, again, other), saved, strict=True):
        one.load_state_dict(state)
    assert len(again.blocks) == 4
    steps(resumed, again, other, 4)
    for name, wanted in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], wanted), name


def _stored(value):
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file
