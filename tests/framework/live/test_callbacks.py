"""Growth inside of the trainers of transformers and of Lightning, resumed on either side of it."""

import contextlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from checkpoint_table import import_torchvision  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.slow

TOTAL, GROWS = 4, 2


@pytest.fixture(autouse=True, scope="module")
def torchvision():
    """Both libraries import torchvision, whose operators may not fit the installed torch."""
    with contextlib.suppress(ImportError):  # neither needs it
        import_torchvision()


def test_a_trainer_of_transformers_grows_its_model_and_resumes(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from onnx_net2net import TrainerGrowth

    torch.manual_seed(0)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 50, (16, 6))]
    probe = {"input_ids": torch.stack([row["input_ids"] for row in data[:4]])}

    def fresh():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                                          num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    def train(model, folder, checkpoint=None):
        growth = TrainerGrowth(probe, {GROWS: {"factor": 2}})
        if checkpoint and model.config.hidden_size == 16:
            growth.restore(model, checkpoint)
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=TOTAL, per_device_train_batch_size=4, learning_rate=1e-3, save_steps=1, seed=0,
            save_strategy="steps", report_to=[], use_cpu=True, disable_tqdm=True,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": 1}, warmup_steps=1)  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[growth])
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return model, growth

    model, growth = train(fresh(), tmp_path / "run")
    assert growth.reports[GROWS].difference < 1e-12
    assert growth.reports[GROWS].loads
    assert (model.config.hidden_size, model.config.intermediate_size) == (32, 48)
    for step in (GROWS - 1, GROWS + 1):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        made = transformers.LlamaForCausalLM.from_pretrained(checkpoint)
        for start in (made, fresh()):
            again, _ = train(start, tmp_path / f"again{step}", checkpoint)
            for name, wanted in model.state_dict().items():
                assert torch.equal(again.state_dict()[name], wanted), (step, name)


def test_a_fit_of_lightning_grows_its_module_and_resumes(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from onnx_net2net import LightningGrowth

    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.gain = (
                nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
                nn.Parameter(torch.ones(())),
            )

        def training_step(self, batch, _):
            return nn.functional.mse_loss(self.net(batch[0]) * self.gain, batch[0][:, :3].sin())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    def fit(checkpoint=None):
        task, growth = Task(), LightningGrowth("net", x[:4], {GROWS: {"factor": 2}})
        saving = lightning.callbacks.ModelCheckpoint(
            tmp_path, "{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True
        )
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=32)
        trainer = lightning.Trainer(max_steps=TOTAL, callbacks=[growth, saving], logger=False, accelerator="cpu",
                                    enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(task, loader, ckpt_path=checkpoint, weights_only=False)
        return task, growth

    task, growth = fit()
    assert growth.reports[GROWS].difference < 1e-12
    assert task.net[0].out_features == 16
    for step in (GROWS - 1, GROWS + 1):
        again, _ = fit(str(tmp_path / f"step={step}.ckpt"))
        for name, wanted in task.state_dict().items():
            assert torch.equal(again.state_dict()[name], wanted), (step, name)
