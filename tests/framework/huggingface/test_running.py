"""A model runs with its weights on the disk: a part of one is read for the operation that needs it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from onnx_net2net.framework.formats.stored import Stored  # noqa: E402
from onnx_net2net.framework.huggingface import running  # noqa: E402
from onnx_net2net.framework.huggingface.skeleton import Skeleton  # noqa: E402


class Net(nn.Module):
    """Has a table, tied to its head, a stack of experts, a norm, statistics, and weights that a parent reads."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.experts = nn.Parameter(torch.randn(4, 8, 8))
        self.norm = nn.LayerNorm(8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.statistics = nn.BatchNorm1d(8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(self.norm(x)).to(self.norm.weight.device)
        for place in torch.tensor([2, 0]):
            x = x + x @ self.experts[place]
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.statistics(x.transpose(1, 2)).transpose(1, 2) + self.lstm(x)[0]
        return self.head(x @ self.blocks[0].weight.T)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    model.statistics.running_mean.normal_()
    return model


def on_disk(model, read):
    """Return the weights as files have them, noting what is read of which."""
    found = {}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().copy()

        def elements(start, stop, name=name, values=values):
            read.append((name, (stop - start) * values.itemsize))
            return values.reshape(-1)[start:stop]

        found[name] = Stored(values.shape, values.dtype, lambda values=values: values, elements=elements)
    return found


def skeleton_of(model):
    bare = Net().eval()
    for module in bare.modules():
        for leaf, tensor in list(module._parameters.items()):
            if tensor is not None:
                module._parameters[leaf] = nn.Parameter(torch.empty_like(tensor, device="meta"))
    bare.head.weight = bare.table.weight
    bare.lstm._init_flat_weights()
    return Skeleton(bare, None, {}, {})


@pytest.mark.parametrize("memory", [400, running.MEMORY])
def test_a_run_from_the_disk_computes_what_the_module_does(net, memory):
    read = []
    ids = torch.tensor([[1, 5, 5], [39, 0, 1]])
    found = running.run_blocks(skeleton_of(net), on_disk(net, read), {"ids": ids}, torch.float64, memory=memory)
    with torch.no_grad():
        torch.testing.assert_close(found.output, net.double()(ids), rtol=1e-9, atol=1e-9)
    assert list(found.blocks) == ["blocks.0", "blocks.1"]
    tables = [size for name, size in read if name == "head.weight"]
    assert max(tables) <= (memory / 4 if memory == 400 else 40 * 8 * 4)
    assert max(size for name, size in read if name == "experts") == 8 * 8 * 4


def test_weights_that_are_moved_are_moved_by_so_much(net):
    ids = torch.tensor([[1, 2]])
    skeleton, weights = skeleton_of(net), on_disk(net, [])
    runs = [
        running.run_blocks(skeleton, weights, {"ids": ids}, torch.float64, moved).output
        for moved in ({}, {"blocks.0.weight": 1e-4}, {"blocks.0.weight": 1e-6}, {"blocks.0.weight": 1e-6})
    ]
    far, near, again = (float((one - runs[0]).abs().max()) for one in runs[1:])
    assert 0 < near == again
    np.testing.assert_allclose(far / near, 100, rtol=0.2)
