"""Callbacks of trainers write what `chain` and `explore` follow, with tiny models."""

import contextlib
import json
import signal

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from checkpoint_table import import_torchvision  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from onnx_net2net.framework.callbacks import hugging_face, lightning  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def torchvision():
    """Both libraries import torchvision, whose operators may not fit the installed torch."""
    with contextlib.suppress(ImportError):  # neither needs it
        import_torchvision()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x=None, labels=None):
        result = self.down(torch.relu(self.up(x)))
        return {"loss": functional.mse_loss(result[:, 0], labels), "logits": result}


def examples():
    draw = torch.Generator().manual_seed(1)
    xs = torch.randn(64, 4, generator=draw)
    return [{"x": x, "labels": x.sum()} for x in xs]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check(out, metric, steps):
    """A first line before all steps, falling values, and a checkpoint that says which parameter is which."""
    told = lines(out)
    assert [line["step"] for line in told] == steps
    assert told[-1][metric] < told[0][metric]
    state = torch.load(out / "state.pt", weights_only=True)
    assert {name.removeprefix("net.") for name in state} == {"up.weight", "up.bias", "down.weight", "down.bias"}
    optimizer = torch.load(out / "optimizer.pt", weights_only=True)
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(state)
    return state, optimizer


def run_hugging_face(out, start=0, steps=20, init=None, optimizer="", extra=()):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    out.mkdir()
    model = Net()
    if init:
        model.load_state_dict(init)
    arguments = transformers.TrainingArguments(
        str(out / "hf"), max_steps=steps - start, eval_on_start=True, eval_strategy="steps", eval_steps=10,
        save_strategy="no", learning_rate=0.05, lr_scheduler_type="constant", report_to=[], disable_tqdm=True,
        use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=examples(), eval_dataset=examples(),
                         callbacks=[hugging_face(out, optimizer, start), *extra]).train()  # fmt: skip


def test_hugging_face(tmp_path):
    run_hugging_face(tmp_path / "a")
    state, optimizer = check(tmp_path / "a", "eval_loss", [0, 10, 20])
    run_hugging_face(tmp_path / "b", 20, 40, state, tmp_path / "a" / "optimizer.pt")
    _, later = check(tmp_path / "b", "eval_loss", [20, 30, 40])
    assert lines(tmp_path / "b")[0]["eval_loss"] == pytest.approx(lines(tmp_path / "a")[-1]["eval_loss"])
    counts = [float(next(iter(o["state"].values()))["step"]) for o in (optimizer, later)]
    assert counts == [20, 40]


def run_lightning(out, start=0, steps=20, init=None, optimizer="", extra=()):
    pytest.importorskip("lightning")
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return self.net(**batch)["loss"]

        def validation_step(self, batch, _):
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.05)

    out.mkdir()
    module = Module()
    if init:
        module.load_state_dict(init)
    data = torch.utils.data.DataLoader(examples(), batch_size=16)
    pl.Trainer(
        max_steps=steps - start, num_sanity_val_steps=-1, val_check_interval=2, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[lightning(out, optimizer, start), *extra], default_root_dir=out,
    ).fit(module, data, data)  # fmt: skip


def test_lightning(tmp_path):
    run_lightning(tmp_path / "a", steps=4)
    state, optimizer = check(tmp_path / "a", "val_loss", [0, 2, 4])
    run_lightning(tmp_path / "b", 4, 8, state, tmp_path / "a" / "optimizer.pt")
    _, later = check(tmp_path / "b", "val_loss", [4, 6, 8])
    assert lines(tmp_path / "b")[0]["val_loss"] == pytest.approx(lines(tmp_path / "a")[-1]["val_loss"])
    counts = [float(next(iter(o["state"].values()))["step"]) for o in (optimizer, later)]
    assert counts == [4, 8]


def test_sigterm_ends_a_training_with_a_checkpoint(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    before = signal.getsignal(signal.SIGTERM)

    class Ask(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                signal.raise_signal(signal.SIGTERM)

    try:
        run_lightning(tmp_path / "a", steps=1000, extra=[Ask()])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert 3 <= lines(tmp_path / "a")[-1]["step"] < 20
    assert (tmp_path / "a" / "state.pt").exists()
