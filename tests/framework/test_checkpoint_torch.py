"""The whole way with torch: export, grow, checkpoint, load strictly into the wider class, compare."""

import warnings

import numpy as np
import onnxruntime as ort
import pytest

from onnx_net2net import RefusedError, checkpoint, deepen, widen

torch = pytest.importorskip("torch")
nn = torch.nn


class Convolutional(nn.Module):
    """Convolutions with a normalisation that the export folds, a transposed one, one of groups."""

    def __init__(self, width=8, inner=12):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width, eps=1e-3)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, groups=width), nn.BatchNorm2d(width)
        self.up, self.bn3 = nn.ConvTranspose2d(width, inner, 2, 2), nn.BatchNorm2d(inner)
        self.head = nn.Linear(inner, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.up(x)))
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind="LSTM", width=6):
        super().__init__()
        self.rnn = getattr(nn, kind)(4, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class Attention(nn.Module):
    def __init__(self, inner=16):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, inner, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x))


CASES = {
    "convolutional": (Convolutional, (2, 3, 12, 12), {"width": 12, "inner": 18}),
    "lstm": (Recurrent, (2, 7, 4), {"width": 9}),
    "gru": (lambda **sizes: Recurrent("GRU", **sizes), (2, 7, 4), {"width": 9}),
    "attention": (Attention, (2, 7, 8), {"inner": 24}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_wider_class_computes_what_the_teacher_computes(tmp_path, name):
    class_, shape, sizes = CASES[name]
    torch.manual_seed(0)
    model = class_().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer += torch.rand_like(buffer)
    x = torch.randn(shape)
    teacher, student, grown = (tmp_path / file for file in ("teacher.onnx", "student.onnx", "grown.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(teacher), dynamo=False, opset_version=17)
    widen(teacher, factor=1.5, framework="torch").student.save(student)
    checkpoint(teacher, student, model.state_dict()).save(grown)
    wider = class_(**sizes).eval()
    wider.load_state_dict(torch.load(grown, weights_only=True), strict=True)
    session = ort.InferenceSession(teacher, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(wider(x).numpy(), expected, rtol=1e-4, atol=1e-5)


# --- Constants, dead parameters, layers of one size, depth -----------------------------------------------------


def export(model, x, path, exporter):
    """Export by the newer or the older exporter of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), str(path), verbose=False, dynamo=exporter == "dynamo")


def taken_back(model, x, folder, exporter, *steps):
    """Grow a model by steps; return its grown state dict and the checkpoint."""
    teacher = folder / "teacher.onnx"
    export(model, x, teacher, exporter)
    file = teacher
    for number, step in enumerate(steps):
        student = step(file).student
        file = folder / f"student{number}.onnx"
        student.save(file)
    result = checkpoint(teacher, file, model.state_dict())
    result.save(folder / "grown.pt")
    return torch.load(folder / "grown.pt", weights_only=True), result


def same(model, other, x):
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def wider(factor=2):
    return lambda model: widen(model, factor=factor, framework="torch")


class Computing(nn.Module):
    """A hidden layer meets a constant that the class computes from its width."""

    def __init__(self, kind, width=8):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, width), nn.Linear(width, 10), nn.Linear(10, 3)
        self.kind, self.width = kind, width
        self.register_buffer("steps", torch.linspace(0.5, 2, width), persistent=False)

    def constant(self):
        n = torch.arange(self.width, dtype=torch.float32)
        return {
            "frequencies": lambda: torch.exp(-9.2 * n / self.width),
            "window": lambda: torch.hann_window(self.width + 1)[1:],
            "identity": lambda: 0.5 * torch.eye(self.width),
            "slopes": lambda: 2.0 ** -(n + 1),
            "buffer": lambda: self.steps,
            "distances": lambda: (n[:, None] - n).abs() / self.width,
            "ones": lambda: torch.ones(self.width),
        }[self.kind]()

    def forward(self, x):
        hidden, constant = torch.tanh(self.first(x)), self.constant()
        hidden = hidden @ constant if constant.ndim == 2 else hidden * constant
        return self.head(torch.relu(self.second(hidden)))


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [("frequencies", "dynamo"), ("identity", "dynamo"), ("buffer", "dynamo"), ("frequencies", "TorchScript"),
     ("window", "TorchScript"), ("slopes", "TorchScript"), ("distances", "TorchScript")],
)  # fmt: skip
def test_what_a_class_computes_is_held(tmp_path, kind, exporter):
    """The layers around it grow; a student that was not grown for torch is refused."""
    pytest.importorskip("onnxscript")
    model, x = Computing(kind), torch.randn(4, 6)
    grown, _ = taken_back(model, x, tmp_path, exporter, wider())
    assert grown["first.weight"].shape[0] == 8
    assert grown["second.weight"].shape[0] == 20
    other = Computing(kind)
    other.second, other.head = nn.Linear(8, 20), nn.Linear(20, 3)
    other.load_state_dict(grown, strict=True)
    same(model, other, x)
    with pytest.raises(RefusedError, match="no entry of the state dict explains"):
        taken_back(model, x, tmp_path, exporter, lambda file: widen(file, sizes={"first": 16}))


def test_a_constant_that_copies_leave_as_it_is_may_grow(tmp_path):
    pytest.importorskip("onnxscript")
    model, x = Computing("ones"), torch.randn(4, 6)
    grown, _ = taken_back(model, x, tmp_path, "TorchScript", wider())
    other = Computing("ones", 16)
    other.second, other.head = nn.Linear(16, 20), nn.Linear(20, 3)
    other.load_state_dict(grown, strict=True)
    same(model, other, x)


class Unread(nn.Module):
    """A list whose last layer nobody reads, a head for training, an averaged copy."""

    def __init__(self, width=12, skip=6):
        super().__init__()
        self.first = nn.Conv1d(4, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(3))
        self.last, self.auxiliary = nn.Conv1d(skip, 2, 1), nn.Conv1d(width, 5, 1)
        self.average = nn.ModuleDict({"first": nn.Conv1d(4, width, 1)})

    def forward(self, x):
        x, total = self.first(x), 0
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            hidden = torch.tanh(gate(x))
            total, x = total + skip(hidden), x + residual(hidden)
        return self.last(total)


def test_what_is_not_in_the_graph_grows_like_its_siblings(tmp_path):
    model, x = Unread(), torch.randn(2, 4, 9)
    grown, result = taken_back(model, x, tmp_path, "TorchScript", wider(1.5))
    other = Unread(18, 9)
    other.load_state_dict(grown, strict=True)
    same(model, other, x)
    unseen = {entry.name for entry in result.entries if entry.relation == "not in the graph"}
    assert unseen == {"residuals.2.weight", "residuals.2.bias", "auxiliary.weight", "average.first.weight",
                      "average.first.bias"}  # fmt: skip
    assert any(note.startswith("warning: 5 entries are not in the graph") for note in result.notes)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_layers_of_one_recurrent_module_have_one_size(tmp_path, kind):
    """The state of the last one is the output, and keeps its size: so do the others."""

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(nn, kind)(5, 8, num_layers=2, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    export(Stack(), torch.randn(2, 7, 5), tmp_path / "t.onnx", "TorchScript")
    with pytest.raises(RefusedError, match="is the model's output"):
        widen(tmp_path / "t.onnx", factor=1.5, framework="torch")


class Block(nn.Module):
    def __init__(self, width, inner, is_normed):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 1, bias=not is_normed)
        self.bn2 = nn.BatchNorm2d(width) if is_normed else nn.Identity()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.conv1(x)))) * self.scale)


class Residual(nn.Module):
    """Stages of numbered blocks, and a flat Sequential with what is no block behind them."""

    def __init__(self, depths=(2, 2), width=6, inner=8, is_normed=True):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.layer1 = nn.Sequential(*(Block(width, inner, is_normed) for _ in range(depths[0])))
        blocks = [Block(width, inner, is_normed) for _ in range(depths[1])]
        self.features = nn.Sequential(*blocks, nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.Conv2d(2 * width, 5, 1))

    def forward(self, x):
        return self.features(self.layer1(self.stem(x))).mean((2, 3))


def drawn(model):
    """Give a model different values everywhere."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for name, b in model.named_buffers() if "running" in name)):
            tensor += 0.3 * torch.rand_like(tensor)
        for name, buffer in model.named_buffers():
            buffer += 7 if name.endswith("num_batches_tracked") else 0
    return model


@pytest.mark.parametrize(("exporter", "is_normed"), [("dynamo", True), ("TorchScript", True), ("TorchScript", False)])
def test_copies_of_blocks_have_the_numbers_of_a_deeper_class(tmp_path, exporter, is_normed):
    pytest.importorskip("onnxscript")
    model, x = drawn(Residual(is_normed=is_normed)), torch.randn(2, 3, 9, 9)

    def deeper(file):
        return deepen(file, repeat={"layer1.0": 1, "features": 2}, framework="torch")

    grown, result = taken_back(model, x, tmp_path, exporter, deeper)
    other = Residual((3, 4), is_normed=is_normed)
    other.load_state_dict(grown, strict=True)
    same(model, other, x)
    assert list(grown) == list(other.state_dict())
    assert {entry.relation for entry in result.entries if entry.name.startswith("layer1.1.")} == {"copied"}
    torch.testing.assert_close(grown["layer1.2.conv1.weight"], model.state_dict()["layer1.1.conv1.weight"])
    if is_normed:
        assert grown["layer1.1.bn2.num_batches_tracked"] == 7
        torch.testing.assert_close(grown["layer1.1.bn2.running_var"], model.state_dict()["layer1.0.bn2.running_var"])


def test_wider_and_deeper_in_turns(tmp_path):
    model, x = drawn(Residual()), torch.randn(2, 3, 9, 9)

    def deeper(file):
        return deepen(file, repeat={"layer1": 1}, append=True, framework="torch")

    grown, _ = taken_back(model, x, tmp_path, "TorchScript", wider(2), deeper, wider(1.5), deeper)
    other = Residual((4, 2), 18, 24)
    other.features[2], other.features[4] = nn.Conv2d(18, 36, 1), nn.Conv2d(36, 5, 1)
    other.load_state_dict(grown, strict=True)
    same(model, other, x)


class Alternating(nn.Module):
    """Every other block turns its input over, by its number."""

    def __init__(self, depth=2, width=6):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = x + (block(torch.tanh(x)) if number % 2 else block(torch.sigmoid(x)))
        return self.head(x)


def test_blocks_that_differ_do_not_change_places(tmp_path):
    model, x = Alternating(), torch.randn(5, 4)
    with pytest.raises(RefusedError, match="by their numbers"):
        taken_back(model, x, tmp_path, "TorchScript", lambda file: deepen(file, depth=2, framework="torch"))
    with pytest.raises(RefusedError, match="by their numbers"):
        taken_back(model, x, tmp_path, "TorchScript", lambda file: deepen(file, depth=2))
    grown, _ = taken_back(model, x, tmp_path, "TorchScript", lambda file: deepen(file, depth=2, append=True))
    other = Alternating(4)
    other.load_state_dict(grown, strict=True)
    same(model, other, x)


def test_layers_that_no_class_has_are_refused(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 4)
    with pytest.raises(RefusedError, match="by transfer"):
        taken_back(model, x, tmp_path, "TorchScript", lambda file: deepen(file, all=True, framework="torch"))
    with pytest.raises(RefusedError, match="by transfer"):
        taken_back(model, x, tmp_path, "TorchScript", lambda file: deepen(file, all=True))
    residual, image = drawn(Residual()), torch.randn(2, 3, 9, 9)
    with pytest.raises(RefusedError, match="by transfer"):
        taken_back(residual, image, tmp_path, "TorchScript",
                   lambda file: deepen(file, repeat={"layer1": 1}, way="cancel"))  # fmt: skip
