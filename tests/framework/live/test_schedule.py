"""`GrowthSchedule`: the loss does not jump, and a run that is resumed on either side ends with the same weights."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402

from onnx_net2net import BadInputError, GrowthSchedule, RefusedError, grow_in_place  # noqa: E402
from onnx_net2net.framework.live.schedule import Rates  # noqa: E402

TOTAL, GROWS = 8, 4
GROWTH = {GROWS: {"factor": 2}}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).double()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator).double()
    return x, x[:, :3].sin()


class Run:
    """A loop that can be ended and resumed, with an average of the weights."""

    def __init__(self, moments=True):
        self.module = net()
        self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.01)
        self.schedule = GrowthSchedule(self.module, self.optimizer, batch(0)[0], at=GROWTH, warmup=2, total=TOTAL,
                                       averages=[self.average], moments=moments)  # fmt: skip

    def loss(self, step, module=None):
        x, y = batch(step)
        return nn.functional.mse_loss((module or self.module)(x), y)

    def to(self, end):
        while self.schedule.steps < end:
            self.loss(self.schedule.steps).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.update_parameters(self.module)
            probe = [float(self.loss(99)), float(self.loss(99, self.average))]
            if self.schedule.step():
                assert [float(self.loss(99)), float(self.loss(99, self.average))] == pytest.approx(probe, abs=1e-9)
        return self

    def saved(self):
        file = io.BytesIO()
        parts = {"schedule": self.schedule, "module": self.module, "optimizer": self.optimizer, "average": self.average}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        return file.getvalue()

    @classmethod
    def resumed(cls, saved):
        state = torch.load(io.BytesIO(saved), weights_only=True)
        run = cls()
        run.schedule.load_state_dict(state["schedule"])
        for name in ("module", "optimizer", "average"):
            getattr(run, name).load_state_dict(state[name])
        return run


@pytest.fixture(scope="module")
def ended():
    run = Run()
    before = run.to(GROWS - 1).saved()
    behind = run.to(GROWS + 1).saved()
    return run.to(TOTAL), before, behind


def test_it_grows_in_place_and_decays(ended):
    run = ended[0]
    assert run.module[0].out_features == 16
    assert run.schedule.reports[GROWS].difference < 1e-12
    assert run.optimizer.param_groups[0]["lr"] < 0.01 * 0.1
    assert all(run.optimizer.state[p]["step"] == TOTAL for p in run.module.parameters())


@pytest.mark.parametrize("side", ["before", "behind"])
def test_a_resumed_run_ends_with_the_same_weights(ended, side):
    run = Run.resumed(ended[1] if side == "before" else ended[2]).to(TOTAL)
    for name, wanted in ended[0].module.state_dict().items():
        assert torch.equal(run.module.state_dict()[name], wanted), name
    for name, wanted in ended[0].average.state_dict().items():
        assert torch.equal(run.average.state_dict()[name], wanted), name


def test_without_moments_the_rate_warms_up_again():
    run = Run(moments=False).to(GROWS)
    assert not run.optimizer.state[run.module[0].weight]
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    run.to(TOTAL)


def test_an_accumulation_goes_on_behind_a_growth_and_so_does_a_compiled_module():
    module, (x, y) = net(), batch(0)
    compiled = torch.compile(module, backend="eager")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    kept = nn.functional.mse_loss(compiled(x), y)  # a graph of the old shapes that is still alive
    kept.backward()
    optimizer.step()
    nn.functional.mse_loss(compiled(x), y).backward()
    wanted = compiled(x)
    grow_in_place(compiled, x, optimizer, factor=2)
    assert torch.allclose(compiled(x), wanted, rtol=1e-9)
    before = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    nn.functional.mse_loss(compiled(x), y).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.shape == parameter.shape
        assert not torch.equal(parameter.grad, before[name])
    optimizer.step()


@pytest.mark.parametrize(("has_norm", "part"), [(False, 1e-9), (True, 0.15)])
def test_gradients_that_are_accumulated_follow_the_law_of_means(has_norm, part):
    """Half of a batch before a growth and half behind it: the sum is the gradient of the grown module for both.

    What goes through the statistic of a norm is shared evenly among copies, and misses some hundredths.
    """
    module, (x, y) = net(), batch(0)
    if not has_norm:
        del module[1]

    def accumulate(rows):
        nn.functional.mse_loss(module(x[rows]), y[rows], reduction="sum").backward()

    accumulate(slice(0, 8))
    report = grow_in_place(module, x, factor=2 if has_norm else 1.5)
    assert report.difference < 1e-12
    accumulate(slice(8, 16))
    summed = [parameter.grad.clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = None
    accumulate(slice(0, 16))
    for parameter, found in zip(module.parameters(), summed, strict=True):
        scale = float(parameter.grad.abs().max())
        assert float((found - parameter.grad).abs().max()) <= part * scale


def test_mixed_precision_does_not_blur_the_proof():
    module = net().float()
    x = batch(0)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x)
        assert grow_in_place(module, x, factor=2).difference < 1e-12
        assert module(x).dtype == torch.bfloat16


def test_what_is_spread_over_processes_is_refused_with_a_way():
    class DistributedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    module = net()
    with pytest.raises(RefusedError, match=r"give the schedule its `\.module`, and wrap that again"):
        grow_in_place(DistributedDataParallel(module), batch(0)[0], factor=2)


def test_rates_and_options_are_checked():
    rates = Rates(warmup=4, total=100, decay=0.2, floor=0.1)
    assert [rates.at(step) for step in (0, 3, 50, 80, 100)] == pytest.approx([0.25, 1, 1, 1, 0.1])
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(BadInputError, match="counted from 1"):
        GrowthSchedule(module, optimizer, batch(0)[0], at={0: {"factor": 2}})
    schedule = GrowthSchedule(module, optimizer, batch(0)[0], at=GROWTH)
    other = copy.deepcopy(schedule.state_dict())
    other.update(grown=[4], at={4: {"factor": 3}})
    with pytest.raises(BadInputError, match="another schedule"):
        schedule.load_state_dict(other)


@pytest.mark.parametrize(
    ("at", "why"),
    [({4: {"repeat": 2}}, "options are factor, sizes, only, depth and seed"), ({4: {"moments": False}}, "options are"),
     ({0: {"factor": 2}}, "counted from 1")],
)  # fmt: skip
def test_options_that_there_are_not_are_refused_before_the_training(at, why):
    module = net()
    with pytest.raises(BadInputError, match=why):
        GrowthSchedule(module, torch.optim.SGD(module.parameters(), 0.1), batch(0)[0], at=at)


def test_an_optimizer_that_nobody_knows_keeps_its_state_and_grows_without_moments():
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for parameter in module.parameters():
        optimizer.state[parameter]["odd"] = torch.ones_like(parameter)
    with pytest.raises(RefusedError):
        grow_in_place(module, batch(0)[0], optimizer, factor=2)
    assert all("odd" in optimizer.state[parameter] for parameter in module.parameters())
    assert module[0].out_features == 8
    grow_in_place(module, batch(0)[0], optimizer, factor=2, moments=False)
    assert module[0].out_features == 16
    assert not any("odd" in optimizer.state.get(parameter, {}) for parameter in module[0].parameters())
