"""`fill`: the user's own larger module computes what a trained smaller one does, or stays as it was."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402

from onnx_net2net import BadInputError, RefusedError, fill  # noqa: E402


class Net(nn.Module):
    """Convolutions, residual blocks of one norm, a buffer that no state dict has, and a parameter that is an output."""

    def __init__(self, width, depth, activation=nn.ReLU):
        super().__init__()
        self.stem, self.act = nn.Conv1d(3, width, 3, padding=1), activation()
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.head, self.log_std = nn.Linear(width, 2), nn.Parameter(torch.randn(2))
        self.register_buffer("unit", torch.ones(1), persistent=False)

    def forward(self, x, gain=1.0):
        x = self.act(self.stem(x)) * self.unit
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + self.act(norm(block(x)))
        return {"mean": self.head(x.mean(2)) * gain, "log_std": self.log_std}


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    net = Net(6, 1)
    net.norms[0].running_mean += torch.randn(6)
    return net


EXAMPLE = {"x": torch.randn(2, 3, 8), "gain": 2.0}


def test_a_wider_and_deeper_module_computes_what_its_teacher_does(teacher):
    target = Net(9, 3)
    result = fill(target, teacher, EXAMPLE)
    assert result.module is target
    assert target.training
    assert result.error < 1e-6
    assert 0.3 < result.filled <= 1.0
    x = torch.randn(4, 3, 11)
    before, after = (net.eval()(x) for net in (teacher, target))
    assert torch.allclose(before["mean"], after["mean"], atol=1e-5)
    assert torch.equal(before["log_std"], after["log_std"])


def test_half_precision_is_filled_in_its_own_type(teacher):
    target = Net(9, 1).bfloat16()
    fill(target, teacher.bfloat16(), {"x": EXAMPLE["x"].bfloat16()})
    assert {one.dtype for one in target.parameters()} == {torch.bfloat16}
    assert torch.equal(target.log_std, teacher.log_std)


def test_a_refusal_names_the_layer_and_leaves_the_target_as_it_was(teacher):
    target = Net(9, 1, nn.Tanh)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(RefusedError, match="the teacher has Relu and the target has Tanh"):
        fill(target, teacher, EXAMPLE)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_inputs_that_the_teacher_does_not_take(teacher):
    with pytest.raises(BadInputError, match="the teacher cannot be called with example_inputs"):
        fill(Net(9, 1), teacher, torch.randn(2, 5, 8))
