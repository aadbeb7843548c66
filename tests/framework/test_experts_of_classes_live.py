"""In classes of transformers every copy of an expert and every row of a router has a gradient within two steps."""

import contextlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnx2fx")

from checkpoint_table import import_torchvision  # noqa: E402

with contextlib.suppress(ImportError):
    import_torchvision()
transformers = pytest.importorskip("transformers")

from expert_table import make  # noqa: E402

from onnx_net2net import to_torch, widen  # noqa: E402
from onnx_net2net.framework.huggingface.grow import grow_checkpoint  # noqa: E402
from onnx_net2net.framework.huggingface.skeleton import IMPLEMENTATIONS  # noqa: E402
from onnx_net2net.framework.huggingface.student import Request  # noqa: E402
from onnx_net2net.framework.huggingface.teacher import open_teacher  # noqa: E402

pytestmark = pytest.mark.slow

CLASSES = ["Mixtral", "DeepseekV3", "GptOss"]
EXPERTS = 6
"""Of the classes in tools/expert_table.py."""


@pytest.fixture(scope="module", params=CLASSES)
def teacher(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    make(request.param, folder)
    return open_teacher(folder)


def gradients(model, logits, length):
    """The largest gradient of each expert and of each row of a router in the first two steps, by parameter.

    What masks are made of are constants.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    learning = {name: value for name, value in model.named_parameters()
                if len(value) == 2 * EXPERTS and "_copies_" not in name}  # fmt: skip
    largest = {name: torch.zeros(len(value)) for name, value in learning.items()}
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(24):  # so many positions that the teacher chooses each of its experts often
            ids = torch.randint(0, 120, (2, length), generator=generator)
            torch.nn.functional.cross_entropy(logits(ids).flatten(0, 1).float(), ids.flatten()).backward()
        for name, value in learning.items():
            if value.grad is not None:
                found = value.grad.float().abs().reshape(len(value), -1).amax(1)
                largest[name] = torch.maximum(largest[name], found)
        optimizer.step()
    return largest


def assert_alive(largest, how):
    learnt = [name for name, found in largest.items() if (found > 0).all()]
    dead = {name: found for name, found in largest.items() if name not in learnt}
    # A correction bias only chooses: the class's own balancer moves it, and no gradient.
    assert not [name for name in dead if not name.endswith("e_score_correction_bias")], (how, dead)
    assert any("experts" in name for name in learnt), how
    assert any("experts" not in name for name in learnt), how


def test_copies_behind_masks_learn(teacher):
    student = widen(teacher.graph, sizes={"experts": "2x"}).student
    length = student.proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    module = to_torch(student)
    assert_alive(gradients(module, module, length), "split")


@pytest.mark.parametrize("how", ["topk", "granular"])
def test_copies_and_parts_learn_in_the_class_itself(teacher, how, tmp_path):
    grow_checkpoint(teacher, tmp_path / "student", Request(sizes={"experts": "2x"}, how=how))
    kind = type(teacher.skeleton.model)
    model = kind.from_pretrained(tmp_path / "student", dtype=torch.float32, **IMPLEMENTATIONS)
    assert_alive(gradients(model, lambda ids: model(input_ids=ids, use_cache=False).logits, 20), how)
