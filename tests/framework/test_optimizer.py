"""The state of an optimizer grows by the law of growth-math.md, 3.2: against autograd, and in function space."""

import copy
import json
import warnings

import numpy as np
import pytest

from onnx_net2net import BadInputError, RefusedError, deepen, widen
from onnx_net2net.cli.main import main

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from onnx_net2net.framework.checkpoint import checkpoint  # noqa: E402
from onnx_net2net.framework.optimizer import grow_state  # noqa: E402

# --- Networks, made from the shapes of a state dict, as a config would say -----------------------------------


class Mlp(nn.Module):
    def __init__(self, a=8, b=6):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, a), nn.Tanh(), nn.Linear(a, b), nn.GELU(), nn.Linear(b, 3))

    def forward(self, x):
        return self.layers(x)

    @classmethod
    def of(cls, shapes):
        return cls(shapes["layers.0.weight"][0], shapes["layers.2.weight"][0])

    @staticmethod
    def batch():
        return torch.randn(16, 5), torch.randint(0, 3, (16,))


class ConvNet(nn.Module):
    def __init__(self, a=6, b=8):
        super().__init__()
        self.stem = nn.Conv2d(2, a, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(a)
        self.depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.conv = nn.Conv2d(a, b, 3)
        self.head = nn.Linear(b * 9, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.stem(x)))
        x = torch.relu(self.conv(x + torch.tanh(self.depthwise(x))))
        return self.head(x.flatten(1))

    @classmethod
    def of(cls, shapes):
        return cls(shapes["stem.weight"][0], shapes["conv.weight"][0])

    @staticmethod
    def batch():
        return torch.randn(8, 2, 5, 5), torch.randint(0, 3, (8,))


class Transformer(nn.Module):
    def __init__(self, stream=8, heads=2, ffn=12):
        super().__init__()
        self.heads, self.width = heads, 4
        self.table = nn.Embedding(11, stream)
        self.first = nn.LayerNorm(stream)
        self.qkv = nn.Linear(stream, 3 * heads * self.width)
        self.proj = nn.Linear(heads * self.width, stream)
        self.second = nn.LayerNorm(stream)
        self.up, self.down = nn.Linear(stream, ffn), nn.Linear(ffn, stream)
        self.head = nn.Linear(stream, 3)

    def forward(self, ids):
        x = self.table(ids)
        n = ids.shape[1]
        q, k, v = self.qkv(self.first(x)).reshape(-1, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        scores = (q * self.width**-0.5) @ k.transpose(-1, -2)
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, self.heads * self.width))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.second(x))))
        return self.head(x[:, 0])

    @classmethod
    def of(cls, shapes):
        return cls(shapes["table.weight"][1], shapes["proj.weight"][1] // 4, shapes["up.weight"][0])

    @staticmethod
    def batch():
        return torch.randint(0, 11, (16, 7)), torch.randint(0, 3, (16,))


class TiedLm(nn.Module):
    def __init__(self, stream=8, ffn=12):
        super().__init__()
        self.table, self.head = nn.Embedding(11, stream), nn.Linear(stream, 11, bias=False)
        self.head.weight = self.table.weight
        self.up, self.down, self.norm = nn.Linear(stream, ffn), nn.Linear(ffn, stream), nn.LayerNorm(stream)

    def forward(self, ids):
        x = self.table(ids)
        x = x + self.down(torch.nn.functional.gelu(self.up(x)))
        return self.head(self.norm(x))[:, -1]

    @classmethod
    def of(cls, shapes):
        return cls(shapes["table.weight"][1], shapes["up.weight"][0])

    @staticmethod
    def batch():
        return torch.randint(0, 11, (16, 7)), torch.randint(0, 11, (16,))


class Parted(nn.Module):
    """A half of what one layer makes is divided among copies, and weighed by the other half."""

    def __init__(self, inner=8):
        super().__init__()
        self.fused, self.head = nn.Linear(5, 2 * inner), nn.Linear(inner, 3)

    def forward(self, x):
        gate, value = self.fused(x).chunk(2, -1)
        gate = torch.sigmoid(gate)
        return self.head(gate) * (gate * value).sum(-1, keepdim=True)

    @classmethod
    def of(cls, shapes):
        return cls(shapes["head.weight"][1])

    @staticmethod
    def batch():
        return Mlp.batch()


NETS = [Mlp, ConvNet, Transformer, TiedLm]


def backward(module, batch):
    module.zero_grad()
    torch.nn.functional.cross_entropy(module(batch[0]), batch[1]).backward()


def steps(module, optimizer, batches):
    for batch in batches:
        backward(module, batch)
        optimizer.step()


def trained(kind, make, count=5, **options):
    """A network after some steps, in eval mode, and its optimizer."""
    torch.manual_seed(0)
    module = kind()
    steps(module.train(), torch.optim.Adam(module.parameters(), 0.01), [kind.batch() for _ in range(10)])
    optimizer = make(module.parameters(), **options)
    steps(module.eval(), optimizer, [kind.batch() for _ in range(count)])
    return module, optimizer


def exported(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"dynamo": False, "do_constant_folding": False, "opset_version": 17, "input_names": ["x"],
                   "dynamic_axes": {"x": [0]}}  # fmt: skip
        torch.onnx.export(copy.deepcopy(module).eval(), (module.batch()[0],), path, **options)
    return path


def grown(module, path, **options):
    """The student as a class, and how its entries grew; copies share their weights evenly."""
    teacher = exported(module, path / "teacher.onnx")
    options = {"factor": 2, "spread": 0, "framework": "torch", **options}
    student = widen(teacher, **options).student
    made = checkpoint(teacher, student, module.state_dict())
    state = {name: torch.from_numpy(np.array(value)) for name, value in made.arrays().items()}
    wider = type(module).of({name: tuple(value.shape) for name, value in state.items()})
    wider.load_state_dict(state)
    return wider.eval(), made


def assert_near(actual, expected, part=1e-5):
    assert actual.shape == expected.shape
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= part * scale + 1e-12


# --- Against autograd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("kind", [*NETS, Parted])
def test_momentum_is_the_gradient_of_the_grown_network(kind, factor, tmp_path):
    """After one step of SGD the momentum is the gradient; so it must be in the student."""
    module, _ = trained(kind, torch.optim.SGD, 0, lr=0.0)
    wider, made = grown(module, tmp_path, factor=factor)
    optimizer, batch = torch.optim.SGD(module.parameters(), 0.0, momentum=0.9), kind.batch()
    steps(module, optimizer, [batch])
    state = grow_state(optimizer.state_dict(), made)
    backward(wider, batch)
    assert sum(p.numel() for p in wider.parameters()) > 1.5 * sum(p.numel() for p in module.parameters())
    for number, parameter in enumerate(wider.parameters()):
        assert_near(state["state"][number]["momentum_buffer"], parameter.grad)


@pytest.mark.parametrize("kind", [*NETS, Parted])
def test_the_moments_of_adam_are_those_of_the_grown_network(kind, tmp_path):
    """Both moments of teacher and student after the same gradients, which no step has changed."""
    module, _ = trained(kind, torch.optim.SGD, 0, lr=0.0)
    wider, made = grown(module, tmp_path, factor=2)
    batches = [kind.batch() for _ in range(3)]
    optimizers = [torch.optim.AdamW(m.parameters(), 0.0, amsgrad=True) for m in (module, wider)]
    for network, optimizer in zip((module, wider), optimizers, strict=True):
        steps(network, optimizer, batches)
    state = grow_state(optimizers[0].state_dict(), made)["state"]
    truth = optimizers[1].state_dict()["state"]
    assert state.keys() == truth.keys()
    for number, expected in truth.items():
        assert state[number]["step"] == expected["step"] == 3
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert_near(state[number][name], expected[name], 1e-4 if name != "exp_avg" else 1e-5)


@pytest.mark.parametrize(
    ("kind", "part"), [(Mlp, 1e-5), (Parted, 1e-5), (ConvNet, 1e-5), (Transformer, 0.1), (TiedLm, 0.15)]
)
def test_copies_of_uneven_shares_get_their_share_of_the_gradient(kind, part, tmp_path):
    """By default, exactly where no statistic and no tied weight reads them; these share their part evenly."""
    module, _ = trained(kind, torch.optim.SGD, 0, lr=0.0)
    wider, made = grown(module, tmp_path, spread=0.3)
    optimizer, batch = torch.optim.SGD(module.parameters(), 0.0, momentum=0.9), kind.batch()
    steps(module, optimizer, [batch])
    state = grow_state(optimizer.state_dict(), made)["state"]
    backward(wider, batch)
    for number, parameter in enumerate(wider.parameters()):
        carried = state[number]["momentum_buffer"]
        assert_near(carried, parameter.grad, part)
        assert float(torch.cosine_similarity(carried.flatten(), parameter.grad.flatten(), 0)) > 0.98


def test_copies_of_uneven_shares_learn_different_things(tmp_path):
    """Adam moves copies by equal steps at first; that their outgoing weights differ parts them."""
    module, optimizer = trained(Mlp, torch.optim.Adam, 5, lr=0.01)
    wider, made = grown(module, tmp_path, spread=0.3)
    student = torch.optim.Adam(wider.parameters(), 0.01)
    student.load_state_dict(grow_state(optimizer.state_dict(), made))
    index = made["layers.0.weight"].growths[0].axes[0].map.index
    pairs = [np.flatnonzero(index == unit)[:2] for unit in range(8) if (index == unit).sum() > 1]

    def apart():
        weights = wider.state_dict()["layers.0.weight"]
        return min(float((weights[a] - weights[b]).abs().max()) for a, b in pairs)

    assert apart() == 0
    steps(wider, student, [Mlp.batch() for _ in range(20)])
    assert apart() > 1e-4


# --- In function space ---------------------------------------------------------------------------------------


def predicted(module, before, made):
    """The teacher after its step, but that what weighs c copies has moved c times as far (growth-math.md, 3.2)."""
    state = {}
    for name, value in module.state_dict().items():
        entry = made[name]
        moved = (value - before[name]).double()
        for axis, side in enumerate(entry.growths[0].axes if entry.growths else ()):
            if side.reads:
                counts = torch.from_numpy(np.bincount(side.map.index, minlength=side.map.old)).double()
                moved = moved * counts.reshape(-1, *(1,) * (moved.ndim - 1 - axis))
        for growth in entry.growths:  # a scale of the share c has c copies that move a whole step each
            moved = moved / growth.factor
        state[name] = before[name].double() + moved
    expected = copy.deepcopy(module).double()
    expected.load_state_dict(state)
    return expected


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("kind", NETS)
def test_one_step_of_adam_is_what_the_law_predicts_in_function_space(kind, make, tmp_path):
    options = {"lr": 0.02, "eps": 1e-16, "weight_decay": 0.0}
    module, optimizer = trained(kind, make, 20, **options)
    wider, made = grown(module, tmp_path, factor=2)
    state = grow_state(optimizer.state_dict(), made)
    before = copy.deepcopy(module.state_dict())
    batch, probe = kind.batch(), kind.batch()[0]

    precise = copy.deepcopy(module).double()
    teacher_step = make(precise.parameters(), **options)
    teacher_step.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    wide = wider.double()
    student_step = make(wide.parameters(), **options)
    student_step.load_state_dict(state)
    target, inputs = batch[1], batch[0] if batch[0].dtype == torch.int64 else batch[0].double()
    probe = probe if probe.dtype == torch.int64 else probe.double()
    steps(precise, teacher_step, [(inputs, target)])
    steps(wide, student_step, [(inputs, target)])

    expected = predicted(precise, before, made)(probe)
    start = module.double()(probe)
    assert float((expected - start).abs().max()) > 1e-3 * float(start.abs().max())  # the step can be seen
    assert float((expected - precise(probe)).abs().max()) > 1e-3 * float(start.abs().max())  # and is not the teacher's
    assert_near(wide(probe), expected)


def test_units_that_are_no_copies_start_without_a_state(tmp_path):
    module, optimizer = trained(Mlp, torch.optim.Adam, 3, lr=0.01)
    _, made = grown(module, tmp_path, map="zero_out")
    state = grow_state(optimizer.state_dict(), made)["state"]
    old = optimizer.state_dict()["state"]
    assert torch.equal(state[2]["exp_avg"][:6, :8], old[2]["exp_avg"])
    assert torch.equal(state[2]["exp_avg_sq"][:6, :8], old[2]["exp_avg_sq"])
    for name in ("exp_avg", "exp_avg_sq"):
        assert not state[2][name][6:].any()
        assert not state[2][name][:, 8:].any()


# --- Which parameter is which --------------------------------------------------------------------------------


def test_parameters_are_found_by_name_where_the_optimizer_has_names(tmp_path):
    module, _ = trained(Mlp, torch.optim.Adam, 0)
    wider, made = grown(module, tmp_path)

    def optimizer_of(network):
        named = list(network.named_parameters())
        groups = [[item for item in named if (item[1].ndim == 1) == is_bias] for is_bias in (True, False)]
        return torch.optim.Adam([{"params": group} for group in groups], lr=0.01)

    optimizer = optimizer_of(module)
    steps(module, optimizer, [Mlp.batch()])
    state = grow_state(optimizer.state_dict(), made)
    other = optimizer_of(wider)
    other.load_state_dict(state)
    steps(wider, other, [Mlp.batch()])
    optimizer.param_groups[0].pop("param_names")
    optimizer.param_groups[1].pop("param_names")
    with pytest.raises(BadInputError, match=r"2 groups of parameters without names; make it of named_param"):
        grow_state(optimizer.state_dict(), made)


def test_buffers_are_no_parameters_and_others_are_refused(tmp_path):
    module, optimizer = trained(ConvNet, torch.optim.Adam, 1, lr=0.01)
    _, made = grown(module, tmp_path)
    state = optimizer.state_dict()
    assert len(grow_state(state, made)["state"]) == len(list(module.parameters())) < len(made.entries)
    some = torch.optim.Adam(list(module.parameters())[1:], lr=0.01)
    steps(module, some, [ConvNet.batch()])
    with pytest.raises(BadInputError, match="8 parameters are not those of the state dict, in order"):
        grow_state(some.state_dict(), made)
    turned = torch.optim.Adam(list(module.parameters())[::-1], lr=0.01)
    steps(module, turned, [ConvNet.batch()])
    with pytest.raises(BadInputError, match="not those of the state dict"):
        grow_state(turned.state_dict(), made)


class Masked(nn.Module):
    """Buffers of its own beside the parameters, of shapes that parameters have too, and one inside a module."""

    def __init__(self, hidden=8):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(5))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5]))
        self.up, self.down = nn.Linear(5, hidden), nn.Linear(hidden, 3)
        self.down.register_buffer("weight_scale", torch.ones(3))

    def forward(self, x):
        return self.down(torch.tanh(self.up((x + self.shift) * self.mask))) * self.down.weight_scale

    of = classmethod(lambda cls, shapes: cls(shapes["up.weight"][0]))
    batch = staticmethod(Mlp.batch)


def test_what_is_not_in_the_optimizer_is_a_buffer(tmp_path):
    module, optimizer = trained(Masked, torch.optim.Adam, 1, lr=0.01)
    _, made = grown(module, tmp_path)
    state = grow_state(optimizer.state_dict(), made)["state"]
    assert [tuple(values["exp_avg"].shape) for values in state.values()] == [(5,), (16, 5), (16,), (3, 16), (3,)]
    assert torch.equal(state[0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_buffer_that_could_be_a_parameter_by_its_shape_is_refused_without_names(tmp_path):
    class Doubtful(Masked):
        def __init__(self, hidden=8):
            super().__init__(hidden)
            self.a, self.b = nn.Module(), nn.Module()
            self.a.register_buffer("gain", torch.ones(3))
            self.b.gain = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return super().forward(x) * self.a.gain * self.b.gain

    module, optimizer = trained(Doubtful, torch.optim.Adam, 1, lr=0.01)
    _, made = grown(module, tmp_path)
    with pytest.raises(
        BadInputError, match=r"which of 'down.weight_scale' and 'b.gain' is a parameter; make it of named_parameters"
    ):
        grow_state(optimizer.state_dict(), made)
    named = torch.optim.Adam(module.named_parameters(), lr=0.01)
    steps(module, named, [Masked.batch()])
    assert len(grow_state(named.state_dict(), made)["state"]) == 6


# --- Other optimizers ----------------------------------------------------------------------------------------


class Lion(torch.optim.Optimizer):
    """As its paper has it (arXiv 2302.06675); torch has none."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p -= group["lr"] * (0.9 * mean + 0.1 * p.grad).sign()
                mean.lerp_(p.grad, 0.01)


def muon(parameters, lr):
    return torch.optim.Muon([(name, p) for name, p in parameters if p.ndim == 2], lr=lr, nesterov=False)


def named(kind):
    return lambda parameters, lr: kind(parameters, lr=lr)


def flat_adafactor(parameters, lr):
    """Adafactor of transformers, whose means have no axis of one unit."""
    transformers = pytest.importorskip("transformers")
    return transformers.Adafactor(parameters, lr=lr, relative_step=False, scale_parameter=False)


MAKERS = {
    "lion": (named(Lion), {"exp_avg": 1e-5}),
    "muon": (muon, {"momentum_buffer": 1e-5}),
    "adafactor": (named(torch.optim.Adafactor), {"row_var": 0.25, "col_var": 0.25, "variance": 1e-4}),
    "adafactor of transformers": (
        flat_adafactor, {"exp_avg_sq_row": 0.25, "exp_avg_sq_col": 0.25, "exp_avg_sq": 1e-4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Mlp, ConvNet, Transformer])
@pytest.mark.parametrize("name", MAKERS)
def test_the_state_of_other_optimizers_is_that_of_the_grown_network(kind, name, tmp_path):
    """After the same gradients, which no step has changed.

    Adafactor's means along axes do not tell the squares that they are means of, which are taken to be products of both:
    where units have different numbers of copies these are estimates.
    """
    make, kept = MAKERS[name]
    module, _ = trained(kind, torch.optim.SGD, 0, lr=0.0)
    wider, made = grown(module, tmp_path, factor=2)
    batches = [kind.batch() for _ in range(3)]
    optimizers = [make(network.named_parameters(), 0.0) for network in (module, wider)]
    for network, optimizer in zip((module, wider), optimizers, strict=True):
        steps(network, optimizer, batches)
    state = grow_state(optimizers[0].state_dict(), made)["state"]
    truth = optimizers[1].state_dict()["state"]
    seen = set()
    assert state.keys() == truth.keys()
    for number, expected in truth.items():
        assert state[number].keys() == expected.keys()
        for what in kept.keys() & expected.keys():
            seen.add(what)
            assert_near(state[number][what], expected[what], kept[what])
    assert seen == kept.keys()
    optimizers[1].load_state_dict({**optimizers[1].state_dict(), "state": state})
    steps(wider, optimizers[1], batches[:1])


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_copies_of_blocks_start_without_a_state_of_other_optimizers(name, tmp_path):
    make, kept = MAKERS[name]
    torch.manual_seed(0)

    class Deep(nn.Module):
        def __init__(self, depth=1):
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(depth)
            )

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

        batch = staticmethod(Mlp.batch)

    module = Deep(2)
    optimizer = make(module.parameters(), 0.01)
    steps(module, optimizer, [Mlp.batch()])
    teacher = exported(module, tmp_path / "teacher.onnx")
    student = deepen(teacher, repeat={"blocks": 1}, framework="torch").student
    made = checkpoint(teacher, student, module.state_dict())
    deeper = Deep(3)
    deeper.load_state_dict(made.state_dict())
    state = grow_state(optimizer.state_dict(), made)
    names = [name for name, _ in deeper.named_parameters()]
    copied = {entry.name for entry in made.entries if entry.relation == "copied"}
    assert len(copied) == 4
    assert {names[number] for number in state["state"]} == set(names) - copied
    old = dict(zip((name for name in names if name not in copied), module.parameters(), strict=True))
    for number, values in state["state"].items():
        for what in kept.keys() & values.keys():
            assert_near(values[what], optimizer.state[old[names[number]]][what])
    other = make(deeper.parameters(), 0.01)
    other.load_state_dict(state)
    steps(deeper, other, [Mlp.batch()])


def test_an_optimizer_with_another_law_is_refused(tmp_path):
    module, optimizer = trained(Mlp, torch.optim.RMSprop, 1, lr=0.01)
    _, made = grown(module, tmp_path)
    with pytest.raises(RefusedError, match="how 'square_avg' grows is not known"):
        grow_state(optimizer.state_dict(), made)
    with pytest.raises(BadInputError, match="no state dict of an optimizer"):
        grow_state(module.state_dict(), made)


# --- The command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "factor", "arguments"),
    [(Mlp, "1.5", [12, 9]), (ConvNet, "1.5", [9, 12]), (Transformer, "2", [16, 4, 24]), (TiedLm, "2", [16, 24])],
)
def test_the_whole_way_back(kind, factor, arguments, tmp_path, capsys):
    """Widen, carry over, build the wider class, load strictly, compare."""
    module, _ = trained(kind, torch.optim.Adam, 1, lr=0.01)
    paths = {
        name: str(tmp_path / name) for name in ("teacher.onnx", "teacher.pt", "student.onnx", "student.safetensors")
    }
    teacher, old, student, new = paths.values()
    exported(module, teacher)
    torch.save(module.state_dict(), old)
    assert main(["widen", teacher, "-o", student, "--factor", factor, "--for", "torch"]) == 0
    assert main(["checkpoint", teacher, student, "--state-dict", old, "-o", new]) == 0
    factory = ["--module", f"{__name__}:{kind.__name__}", "--args", json.dumps(arguments)]
    assert main(["verify", teacher, *factory, "--state-dict", new]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("equivalent in ")
    assert main(["verify", teacher, *factory, "--state-dict", old]) == 1
    assert "does not fit the class" in capsys.readouterr().err


def test_the_command_writes_the_state_beside_the_weights(tmp_path, capsys):
    module, optimizer = trained(Mlp, torch.optim.Adam, 3, lr=0.01)
    teacher = exported(module, tmp_path / "teacher.onnx")
    torch.save(module.state_dict(), tmp_path / "teacher.pt")
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "training.pt")
    options = [str(teacher), "-o", str(tmp_path / "student.onnx"), "--factor", "1.5", "--for", "torch"]
    assert main(["widen", *options]) == 0
    out = tmp_path / "student.safetensors"
    command = ["checkpoint", str(teacher), str(tmp_path / "student.onnx"), "--state-dict", str(tmp_path / "teacher.pt"),
               "-o", str(out)]  # fmt: skip
    assert main([*command, "--optimizer", str(tmp_path / "training.pt"), "--report", "text"]) == 0
    printed = capsys.readouterr().out
    assert "student.optimizer.pt in " in printed
    assert "layers.2: in_features 8 -> 12, out_features 6 -> 9\n" in printed
    wider = Mlp(12, 9)
    state = torch.load(tmp_path / "student.optimizer.pt")
    resumed = torch.optim.Adam(wider.parameters(), lr=0.01)
    resumed.load_state_dict(state)
    steps(wider, resumed, [Mlp.batch()])
    assert resumed.state_dict()["state"][0]["step"] == 4
    assert main([*command, "--optimizer", str(tmp_path / "teacher.pt"), "--json"]) == 2
    assert "no 'state' or no 'param_groups'" in capsys.readouterr().err
    assert main([*command, "--report", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["widths"]["modules"]
