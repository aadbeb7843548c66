"""States of optimizers grow with a checkpoint, in the files and folders that training writes."""

import json
import pickle

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch.distributed.checkpoint as dcp  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from onnx_net2net import BadInputError, RefusedError  # noqa: E402
from onnx_net2net.framework.huggingface import distributed, optimizer  # noqa: E402
from onnx_net2net.framework.huggingface.grow import Request, grow_checkpoint  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self, width=6, layers=2):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.last = nn.Linear(width, 4)
        self.example_input_array = torch.zeros(2, 5)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.last(x)


X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(net, steps=1):
    """Return an optimizer whose means are those of the gradients of `steps` batches."""
    made = torch.optim.AdamW(net.named_parameters(), lr=0.0)
    for _ in range(steps):
        made.zero_grad()
        net(X).pow(2).sum().backward()
        made.step()
    return made


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    net = Net().double()
    state = trained(net)
    (tmp_path / "teacher").mkdir()
    save_file(net.state_dict(), tmp_path / "teacher" / "model.safetensors")
    everything = {"model": get_model_state_dict(net), "optim": get_optimizer_state_dict(net, state), "epoch": 3}
    dcp.save(everything, checkpoint_id=tmp_path / "dcp", no_dist=True)
    torch.save(state.state_dict(), tmp_path / "optimizer.pt")
    return tmp_path


def grown(folder, source, **request):
    grow_checkpoint(
        folder / "teacher", folder / "out", Request(**request), module=f"{__name__}:Net", optimizer=folder / source
    )
    net = Net(**json.loads((folder / "out" / "config.json").read_text())).double()
    net.load_state_dict(
        {name: value for path in (folder / "out").glob("*.safetensors") for name, value in load_file(path).items()}
    )
    return net


def assert_means(net, state):
    """The means of a student are those of its own gradients, as far as its parameters are grown and no copies."""
    wanted = trained(net)
    for name, parameter in net.named_parameters():
        own = wanted.state[parameter]
        torch.testing.assert_close(state[name]["exp_avg"], own["exp_avg"], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(state[name]["exp_avg_sq"], own["exp_avg_sq"], rtol=1e-6, atol=1e-12)
        assert state[name]["step"] == own["step"]


def test_a_distributed_checkpoint_grows_and_is_loaded_by_torch(folder):
    net = grown(folder, "dcp", factor=2.0)
    state = torch.optim.AdamW(net.named_parameters(), lr=1.0)
    loaded = {"optim": get_optimizer_state_dict(net, state), "epoch": 0}
    dcp.load(loaded, checkpoint_id=folder / "out" / "optimizer", no_dist=True)
    set_optimizer_state_dict(net, state, loaded["optim"])
    assert loaded["epoch"] == 3
    assert state.param_groups[0]["lr"] == 0.0
    assert_means(net, {name: state.state[parameter] for name, parameter in net.named_parameters()})
    assert not [
        name for name in distributed.read_checkpoint(folder / "out" / "optimizer").keys if name.startswith("model")
    ]


def test_copies_of_layers_begin_without_a_past(folder):
    net = grown(folder, "dcp", depth="2x")
    state = torch.optim.AdamW(net.named_parameters(), lr=1.0)
    loaded = {"optim": get_optimizer_state_dict(net, state)}
    dcp.load(loaded, checkpoint_id=folder / "out" / "optimizer", no_dist=True)
    own = loaded["optim"]["state"]
    assert sorted(loaded["optim"]["param_groups"][0]["params"]) == sorted(name for name, _ in net.named_parameters())
    fresh = [name for name in own if not own[name]["exp_avg"].any()]
    assert fresh == ["layers.1.weight", "layers.1.bias", "layers.3.weight", "layers.3.bias"]
    assert all(own[name]["step"] == (0 if name in fresh else 1) for name in own)


def test_a_file_of_torch_grows(folder):
    net = grown(folder, "optimizer.pt", factor=2.0)
    saved = torch.load(folder / "out" / "optimizer.pt", weights_only=True)
    names = [name for name, _ in net.named_parameters()]
    assert_means(net, {names[number]: values for number, values in saved["state"].items()})


def test_what_is_no_such_state_is_said(folder):
    with pytest.raises(BadInputError, match="no checkpoint of torch"):
        distributed.read_checkpoint(folder / "teacher")
    (folder / "deep").mkdir()
    (folder / "deep" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("")
    with pytest.raises(RefusedError, match="DeepSpeed"):
        optimizer.optimizer_of(None, folder / "deep")
    dcp.save({"state": {"other": {"exp_avg": torch.zeros(2)}}}, checkpoint_id=folder / "else", no_dist=True)
    with pytest.raises(BadInputError, match="state of 'other'"):
        grown(folder, "else", factor=2.0)
    dcp.save({"state": {"first.bias": {"exp_avg": torch.zeros(7)}}}, checkpoint_id=folder / "flat", no_dist=True)
    with pytest.raises(BadInputError, match=r"is \[7\], and the parameter \[6\]"):
        grown(folder, "flat", factor=2.0)
    dcp.save({"state": {"first.bias": {"row_var": torch.zeros(6)}}}, checkpoint_id=folder / "fact", no_dist=True)
    with pytest.raises(RefusedError, match="row_var"):
        grown(folder, "fact", factor=2.0)
    assert not (folder / "out").exists()


class Bomb:
    def __reduce__(self):
        return (print, ("code was run",))


def test_no_code_in_a_table_is_run(folder, capsys):
    (folder / "dcp" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadInputError, match="has no place in a table of tensors"):
        distributed.read_checkpoint(folder / "dcp")
    assert "code was run" not in capsys.readouterr().out
