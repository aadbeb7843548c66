"""Trained weights back into the file: by the names of the module, and from a class of the user's own."""

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import net

from onnx_net2net import BadInputError, RefusedError, checkpoint, deepen, load, refit, to_torch, verify, widen
from onnx_net2net.cli.main import main
from onnx_net2net.framework.formats.state_dicts import write
from onnx_net2net.model.history import history

torch = pytest.importorskip("torch")
nn = torch.nn
functional = nn.functional

RESNET = "models/digits_resnet.onnx"


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model, x):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(x)})[0]


def trained(module, inputs, steps=3):
    """Train a module to some other outputs; return its state dict, and what it computes of the inputs."""
    optimizer = torch.optim.SGD(module.train().parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(inputs) ** 2).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return module.state_dict(), module.eval()(inputs).numpy()


def exported(module, inputs, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (inputs,), path, dynamo=False, opset_version=17, **options)
    return path


@pytest.fixture
def digits():
    return torch.from_numpy(np.load("models/digits_test.npz")["image"][:32])


def test_its_own_weights_give_the_file_itself(tmp_path):
    pytest.importorskip("onnx2fx")
    refit(RESNET, to_torch(RESNET).state_dict()).save(tmp_path / "same.onnx")
    with open(RESNET, "rb") as before, open(tmp_path / "same.onnx", "rb") as after:
        assert before.read() == after.read()


@pytest.mark.parametrize("name", ["digits_resnet", "digits_inception_bn", "digits_mlp"])
def test_onnxruntime_computes_what_the_trained_module_does(name, tmp_path, digits):
    pytest.importorskip("onnx2fx")
    student = widen(f"models/{name}.onnx", factor=1.5).student
    student.save(tmp_path / "student.onnx")
    state, expected = trained(to_torch(student), digits)
    back = refit(tmp_path / "student.onnx", state)
    back.save(tmp_path / "trained.onnx")
    assert not np.allclose(run(tmp_path / "student.onnx", digits), expected, atol=1e-3)
    assert np.allclose(run(tmp_path / "trained.onnx", digits), expected, rtol=1e-4, atol=1e-5)
    assert history(back) == history(student)


def test_a_trained_student_grows_on(tmp_path, digits):
    pytest.importorskip("onnx2fx")
    path = tmp_path / "trained.onnx"
    student = widen("models/digits_mlp.onnx", factor=1.5).student
    refit(student, trained(to_torch(student), digits)[0]).save(path)
    wider, deeper = widen(path, factor=2).student, deepen(path, all=True).student
    wider.save(tmp_path / "wider.onnx")
    verify(path, tmp_path / "wider.onnx").raise_if_different()
    verify(path, deeper).raise_if_different()
    assert [step["operation"] for step in history(wider)] == ["widen", "widen"]


def test_a_trained_student_is_no_damaged_one(tmp_path):
    teacher, path = "models/digits_mlp.onnx", tmp_path / "trained.onnx"
    student = widen(teacher, factor=1.5).student
    moved = {
        name: np.nextafter(value, np.float32(9)) * np.float32(1 + 1e-4) for name, value in weights(student).items()
    }
    refit(student, {name: torch.from_numpy(value) for name, value in moved.items()}).save(path)
    assert verify(teacher, path).departure is None


def weights(model):
    return {tensor.name: np.array(model.tensor(tensor).numpy()) for tensor in model.proto.graph.initializer}


def test_external_data_stays_external(tmp_path):
    proto = onnx.load("models/digits_mlp.onnx")
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    own = weights(load(tmp_path / "m.onnx"))
    new = {name: torch.from_numpy(2 * value) for name, value in own.items()}
    refit(tmp_path / "m.onnx", new).save(tmp_path / "out.onnx")
    after = load(tmp_path / "out.onnx")
    assert after.external
    assert all(np.array_equal(value, 2 * own[name]) for name, value in weights(after).items())


def test_tensors_in_memory_are_taken_as_they_are_now():
    own = {name: torch.from_numpy(value) for name, value in weights(load("models/digits_mlp.onnx")).items()}
    model = refit("models/digits_mlp.onnx", own)
    for value in own.values():
        value.zero_()
    assert all(value.any() for value in weights(model).values())


def test_all_initializers_come_back_by_their_names_in_the_file(tmp_path):
    """As JAX has them: constants that are no weights, too, and names that a module cannot have."""
    text = "(float[n, 6] x) => (float[n, 8] y) { a = MatMul(x, model.0.float) y = Reshape(a, shape) }"
    proto = net(text.replace("model.0.float", "w"), w=array(6, 8), shape=np.array([-1, 8], np.int64))
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "model.0.float"
    given = {"model.0.float": array(6, 8) + 1, "shape": np.array([-1, 8], np.int64)}
    write(tmp_path / "all.safetensors", given, given.__getitem__)
    assert np.array_equal(weights(refit(proto, tmp_path / "all.safetensors"))["model.0.float"], array(6, 8) + 1)
    given["shape"][1] = 4
    write(tmp_path / "all.safetensors", given, given.__getitem__)
    with pytest.raises(BadInputError, match="the model has no shape"):
        refit(proto, tmp_path / "all.safetensors")


def test_constants_of_bodies_are_no_part_of_a_modules_state(tmp_path):
    pytest.importorskip("onnx2fx")
    text = """(float[2, 6] x, bool flag) => (float[2, 8] y) {
        a = MatMul(x, w)
        y = If(flag)<then_branch = yes () => (float[2, 8] p) {
                two = Constant<value = float[2] {2.0, 3.0}>()
                shape = Constant<value = int64[2] {2, 1}>()
                column = Reshape(two, shape)
                p = Mul(a, column) },
            else_branch = no () => (float[2, 8] q) { q = Tanh(a) }>
    }"""
    proto = net(text, w=array(6, 8))
    state = to_torch(proto).state_dict()
    assert list(state) == ["w"]
    onnx.save(proto, tmp_path / "if.onnx")
    assert np.array_equal(weights(refit(tmp_path / "if.onnx", state))["w"], array(6, 8))


MLP = """(float[n, 6] x) => (float[n, 5] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    y = MatMul(b, w2)
}"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("w1"), "it has no w1"),
        (lambda state: state.update(extra=torch.zeros(2)), "the model has no extra"),
        (lambda state: state.update(w1=torch.zeros(6, 9)), r"w1 has the shape \[6, 9\], in the model \[6, 8\]"),
        (lambda state: state.update(w1=torch.zeros(6, 8).half()), "w1 is float16, in the model float32"),
        (lambda state: state["b1"].fill_(float("nan")), "b1 has values that are not finite"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change, message):
    proto = net(MLP, w1=array(6, 8), b1=array(8), w2=array(8, 5))
    state = {name: torch.from_numpy(value) for name, value in weights(load(proto)).items()}
    change(state)
    with pytest.raises(BadInputError, match=message):
        refit(proto, state)


def test_the_command_writes_the_file(tmp_path, capsys):
    own = weights(load("models/digits_mlp.onnx"))
    state, out = tmp_path / "state.safetensors", tmp_path / "out.onnx"
    write(state, own, lambda name: own[name] + 1)
    assert main(["refit", "models/digits_mlp.onnx", "--state-dict", str(state), "-o", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    assert all(np.array_equal(value, own[name] + 1) for name, value in weights(load(out)).items())
    assert main(["refit", RESNET, "--state-dict", str(state), "-o", str(out), "--force"]) == 2
    assert "is not that of to_torch(model)" in capsys.readouterr().err


# --- A class of the user's own -------------------------------------------------------------------------------


class Convolutional(nn.Module):
    """Convolutions whose normalisations the export folds, one with a bias, a transposed one."""

    def __init__(self, width=8, inner=12):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width, eps=1e-3)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, groups=width), nn.BatchNorm2d(width)
        self.up, self.bn3 = nn.ConvTranspose2d(width, inner, 2, 2), nn.BatchNorm2d(inner, affine=False)
        self.head = nn.Linear(inner, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(torch.relu(self.bn3(self.up(x))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind="LSTM"):
        super().__init__()
        self.rnn = getattr(nn, kind)(4, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class Attention(nn.Module):
    def __init__(self, inner=16):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, inner, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x))


class Biased(nn.Module):
    """Scores with a table that is looked up at constant places, as in Swin."""

    def __init__(self):
        super().__init__()
        self.q, self.table = nn.Linear(6, 8), nn.Parameter(torch.randn(7, 2))
        self.register_buffer("places", (torch.arange(4)[:, None] - torch.arange(4)[None] + 3).clone())

    def forward(self, x):
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        bias = self.table[self.places.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        return ((q @ q.transpose(-1, -2) + bias).softmax(-1) @ q).flatten(1)


CASES = {
    "folded": (Convolutional, (2, 3, 12, 12)),
    "lstm": (Recurrent, (2, 7, 4)),
    "gru": (lambda: Recurrent("GRU"), (2, 7, 4)),
    "attention": (Attention, (2, 7, 8)),
    "looked up": (Biased, (2, 4, 6)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_class_of_ones_own_goes_back_too(name, tmp_path):
    make, shape = CASES[name]
    torch.manual_seed(0)
    module, x = make(), torch.randn(shape)
    with torch.no_grad():
        for parameter in module.parameters():  # an export makes one tensor of those that are equal, like zero biases
            parameter += 0.1 * torch.randn_like(parameter)
    for key, buffer in module.named_buffers():
        if "running" in key:
            buffer += torch.rand_like(buffer)
    path = exported(module, x, tmp_path / "m.onnx")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    after, expected = trained(module, x)
    assert not np.allclose(run(path, x), expected, atol=1e-3)
    refit(path, after, before=before).save(tmp_path / "trained.onnx")
    assert np.allclose(run(tmp_path / "trained.onnx", x), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_values_of_nodes_come_back(tmp_path):
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    proto = onnx.load(exported(module, x, tmp_path / "model.onnx"))
    values = [onnx.helper.make_node("Constant", [], [one.name], value=one) for one in proto.graph.initializer]
    nodes = [*values, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "model.onnx")
    state, expected = trained(module, x)
    refit(tmp_path / "model.onnx", state, before=before).save(tmp_path / "trained.onnx")
    assert np.allclose(run(tmp_path / "trained.onnx", x), expected, atol=1e-6)


def test_a_grown_class_goes_back_from_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    module, x = Convolutional(), torch.randn(2, 3, 12, 12)
    path = exported(module, x, tmp_path / "m.onnx")
    student, grown = tmp_path / "student.onnx", tmp_path / "grown.pt"
    widen(path, factor=1.5, framework="torch").student.save(student)
    checkpoint(path, student, module.state_dict()).save(grown)
    wider = Convolutional(12, 18)
    wider.load_state_dict(torch.load(grown, weights_only=True), strict=True)
    after, expected = trained(wider, x)
    torch.save(after, tmp_path / "after.pt")
    out = tmp_path / "trained.onnx"
    options = ["--state-dict", str(tmp_path / "after.pt"), "--before", str(grown), "-o", str(out)]
    assert main(["refit", str(student), *options]) == 0
    assert np.allclose(run(out, x), expected, rtol=1e-4, atol=1e-5)
    assert history(load(out)) == history(load(student))


def test_what_a_class_has_and_the_model_lacks_is_named(tmp_path):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    module, x = Normed(), torch.randn(3, 6)
    path = exported(module, x, tmp_path / "m.onnx")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    before["layer.parametrizations.weight.original0"] *= 1.5  # and so they explain nothing in the file
    after, _ = trained(module, x)
    with pytest.raises(RefusedError, match=r"were trained, and are not in the model: .*original0"):
        refit(path, after, before=before)


def test_what_is_one_tensor_in_the_file_cannot_be_trained_apart(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.tanh(self.one(x)))

    torch.manual_seed(0)
    module, x = Tied(), torch.randn(3, 6)
    path = exported(module, x, tmp_path / "m.onnx")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    after, expected = trained(module, x)
    refit(path, after, before=before).save(tmp_path / "trained.onnx")
    assert np.allclose(run(tmp_path / "trained.onnx", x), expected, rtol=1e-4, atol=1e-5)
    apart = {**after, "two.weight": after["two.weight"] + 1}
    with pytest.raises(RefusedError, match="are one tensor"):
        refit(path, apart, before=before)


def test_state_dicts_of_two_classes_are_told():
    proto = net(MLP, w1=array(6, 8), b1=array(8), w2=array(8, 5))
    state = {name: torch.from_numpy(value) for name, value in weights(load(proto)).items()}
    with pytest.raises(BadInputError, match="differ in more than values: it has no b1"):
        refit(proto, {k: v for k, v in state.items() if k != "b1"}, before=state)
