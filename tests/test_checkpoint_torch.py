"""The whole way with torch: export, grow, checkpoint, load strictly into the wider class, compare."""

import warnings

import numpy as np
import onnxruntime as ort
import pytest

from onnx_net2net import checkpoint, widen

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
