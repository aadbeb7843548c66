"""A trained network becomes a larger one that is ready for training: weights and optimizer under the class's names."""

import json
import sys
from pathlib import Path

import pytest

from onnx_net2net import verify
from onnx_net2net.search.features import features, write_features
from onnx_net2net.search.growing import begin, grow_network, trained

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
import train as example  # noqa: E402

STEPS = [
    {"operation": "widen", "sizes": {"stem": "2x", "ffn": "1.5x"}},
    {"operation": "deepen", "repeat": ["blocks=+1"]},
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network as a user exports it, fresh: many of its vectors are merged in the file."""
    folder = tmp_path_factory.mktemp("small")
    sys.argv = ["train.py", "--export", str(folder / "small.onnx"), "--state", str(folder / "small.pt")]
    example.main()
    return begin(folder / "small.onnx", folder / "small.pt", None, folder)


def train(network, out, steps=3, *more):
    """Train a little, as the example does."""
    arguments = ["--init", network.state, "--optimizer", network.optimizer or "", "--out", out, "--steps", steps, *more]
    sys.argv = ["train.py", *map(str, arguments)]
    example.main()
    return trained(network, out, out)


def module_of(network):
    state = torch.load(network.state, weights_only=True)
    module = example.net_of(state)
    module.load_state_dict(state)
    return module.eval()


def test_vectors_that_an_export_merged_are_trained_apart(small, tmp_path):
    after = train(small, tmp_path / "run")
    state = torch.load(after.state, weights_only=True)
    assert not torch.equal(state["blocks.0.norm.weight"], state["blocks.1.norm.weight"])
    module = module_of(after)

    def run(feeds):
        return {"logits": module(torch.from_numpy(feeds["image"])).detach().numpy()}

    assert verify(after.model, run).equivalent


def test_what_is_grown_trains_on_and_grows_again(small, tmp_path):
    network = train(small, tmp_path / "first")
    for name in ("second", "third"):
        folder = tmp_path / name
        folder.mkdir()
        grown = grow_network(network, STEPS[:1] if name == "third" else STEPS, folder)
        assert grown.exact
        assert not grown.notes
        assert grown.network.optimizer
        before, after = module_of(network), module_of(grown.network)
        images = torch.rand(20, 1, 8, 8)
        assert torch.allclose(before(images), after(images), atol=1e-5)
        network = train(grown.network, folder / "run")
        assert torch.allclose(before(images), after(images), atol=1e-5)


def test_copies_of_blocks_have_no_past_in_the_optimizer_and_others_keep_theirs(small, tmp_path):
    network = train(small, tmp_path / "first")
    grown = grow_network(network, STEPS[1:], tmp_path).network
    module = module_of(grown)
    optimizer = torch.optim.AdamW(module.named_parameters())
    optimizer.load_state_dict(torch.load(grown.optimizer, weights_only=True))
    known = {name for name, value in module.named_parameters() if value in optimizer.state}
    assert known == {name for name, _ in module.named_parameters() if not name.startswith("blocks.2")}
    old = torch.load(network.optimizer, weights_only=True)
    places = [name for name, _ in module_of(network).named_parameters()]
    own = dict(module.named_parameters())["blocks.0.up.weight"]
    before = old["state"][places.index("blocks.0.up.weight")]
    assert torch.equal(optimizer.state[own]["exp_avg"], before["exp_avg"])
    module(torch.rand(4, 1, 8, 8)).sum().backward()
    optimizer.step()


def test_features_of_a_student_are_those_of_its_teacher(small, tmp_path):
    """The loss that compares them is zero at step 0."""
    network = train(small, tmp_path / "first")
    grown = grow_network(network, STEPS, tmp_path).network
    pairs = features(network, grown)
    assert [pair.teacher.module for pair in pairs] == [
        "stem", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head",
    ]  # fmt: skip
    images = torch.rand(20, 1, 8, 8)
    seen = [results(module_of(one), images) for one in (network, grown)]
    for pair in pairs:
        mapped = seen[1][pair.student.module][:, pair.index] * torch.from_numpy(pair.scale)
        assert torch.allclose(mapped.float(), seen[0][pair.teacher.module], atol=1e-5), pair.teacher.module
    assert [pair.teacher.module for pair in features(network, grown, ["blocks.*.up"])] == ["blocks.0.up", "blocks.1.up"]


def test_a_loss_on_features_starts_at_zero_in_the_example(small, tmp_path):
    network = train(small, tmp_path / "first")
    (tmp_path / "grown").mkdir()
    grown = grow_network(network, STEPS, tmp_path / "grown").network
    write_features(network, grown, tmp_path / "features.json", ["blocks.*"], {"weight": 0.3})
    train(grown, tmp_path / "second", 3, "--features", tmp_path / "features.json", "--every", 1)
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["hint"] < 1e-10
    assert lines[-1]["hint"] > 1e-6  # it does compare what is trained


def results(module, images):
    found = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _, __, result, name=name: found.__setitem__(name, result.detach()))
    module(images)
    return found
