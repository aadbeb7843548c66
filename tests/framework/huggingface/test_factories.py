"""Modules that factories make grow from their checkpoints, with the arguments that the factory takes."""

import contextlib
import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from checkpoint_table import import_torchvision  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from onnx_net2net import BadInputError  # noqa: E402
from onnx_net2net.cli.main import main  # noqa: E402
from onnx_net2net.framework.huggingface import factories  # noqa: E402

pytestmark = pytest.mark.slow

WHERE = f"{__name__}:Net"


class Net(nn.Module):
    """A residual network whose heads no shape shows; a buffer is made where its weights are."""

    def __init__(self, width=12, heads=3, inner=20, layers=2):
        super().__init__()
        self.heads = heads
        self.first = nn.Linear(5, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)) for _ in range(layers)
        )
        self.last = nn.Linear(width, 4)
        self.register_buffer("gain", torch.full((1,), 0.5, device=self.first.weight.device), persistent=False)

    def forward(self, x):
        x = self.first(x)
        count, length, width = x.shape
        q, k, v = self.qkv(x).view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(count, length, width))
        for layer in self.layers:
            x = x + layer(x) * self.gain
        return self.last(x)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint in two files without an index, the arguments that made it, and inputs."""
    torch.manual_seed(0)
    state = Net(width=15).state_dict()
    path = tmp_path / "teacher"
    path.mkdir()
    names = sorted(state)
    for number, own in enumerate((names[:5], names[5:])):
        save_file({name: state[name] for name in own}, path / f"part{number}.safetensors")
    (path / "config.json").write_text(json.dumps({"width": 15}))
    save_file({"x": torch.randn(2, 6, 5)}, tmp_path / "inputs.safetensors")
    return path


def loaded(path, **arguments):
    net = Net(**arguments).double().eval()
    state = {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("options", [["--factor", "2"], ["--set", "inner=1.5x", "--depth", "2x"]], ids=str)
def test_the_factory_makes_the_student_of_its_new_arguments(folder, tmp_path, options, capsys):
    out = tmp_path / "out"
    options = ["--module", WHERE, "--samples", str(tmp_path / "inputs.safetensors"), *options]
    if "inner=1.5x" in options:
        options[options.index("inner=1.5x")] = "layers.*.0=1.5x"
    assert main(["grow", str(folder), "-o", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "equivalent in float64" in said
    arguments = json.loads((out / "config.json").read_text())
    assert arguments["heads"] == 6 if "--factor" in options else arguments == {"width": 15, "inner": 30, "layers": 4}
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(out, **arguments)(x), loaded(folder, width=15)(x), rtol=1e-6, atol=1e-7)


def test_a_module_has_no_weights_and_its_buffers_are_real(folder, tmp_path):
    skeleton = factories.of_user(WHERE, {"width": 15}, {"x": torch.zeros(1, 2, 5)})({"width": 30})
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert skeleton.model.gain.tolist() == [0.5]
    assert skeleton.shapes["first.weight"] == (30, 5)
    assert skeleton.config.to_dict() == {"width": 30, "heads": 3, "inner": 20, "layers": 2}


def test_what_cannot_be_used_is_said_in_one_line(folder, tmp_path, capsys):
    samples = ["--samples", str(tmp_path / "inputs.safetensors")]
    cases = {
        "no module of torch": [f"{__name__}:loaded_nothing", *samples],
        "cannot be imported": [f"{__name__}:Missing", *samples],
        "write package.module:factory": ["Net", *samples],
        "say what": [WHERE],
    }
    for said, (where, *rest) in cases.items():
        code = main(["grow", str(folder), "--dry-run", "--factor", "2", "--module", where, *rest])
        error = capsys.readouterr().err.strip()
        assert code == BadInputError.exit_code, error
        assert said in error
        assert "\n" not in error
    with pytest.raises(BadInputError, match="does not take what config"):
        factories.of_user(WHERE, {"breadth": 3}, None)
    with pytest.raises(BadInputError, match="none is called y"):
        factories.of_user(WHERE, {}, {"y": torch.zeros(1)})({})


def loaded_nothing(width):
    return [width]


def test_a_folder_of_timm_grows_and_is_loaded_by_timm(tmp_path, capsys):
    with contextlib.suppress(ImportError):
        import_torchvision()
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    teacher = timm.create_model("vit_tiny_patch16_224", **sizes)
    save_for_hf(teacher, tmp_path / "teacher", safe_serialization=True)
    shutil.copy(tmp_path / "teacher" / "config.json", tmp_path / "teacher" / "labels.json")
    assert main(["grow", str(tmp_path / "teacher"), "-o", str(tmp_path / "out"), "--factor", "2", "--depth", "2x"]) == 0
    student = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).double().eval()
    assert (student.embed_dim, len(student.blocks), student.blocks[0].attn.num_heads) == (48, 4, 6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_features"] == 48
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(student(x), teacher.double().eval()(x), rtol=1e-6, atol=1e-7)
    assert (tmp_path / "out" / "labels.json").exists()
