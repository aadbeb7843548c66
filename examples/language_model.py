"""A language model of Hugging Face: train, grow its folder, go on training. Runs in a minute on a CPU.

pip install 'onnx-net2net[hf]'
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

LENGTH = 32
text = torch.frombuffer(bytearray(Path(subprocess.__file__).read_bytes()), dtype=torch.uint8).long()
train, held_out = text[:60_000], text[60_000 : 60_000 + 128 * LENGTH].reshape(-1, LENGTH)


def fit(model: PreTrainedModel, steps: int, rate: float = 3e-3) -> None:
    """Train on the source of a module of Python, byte by byte."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for starts in torch.randint(len(train) - LENGTH, (steps, 16, 1)):
        batch = train[starts + torch.arange(LENGTH)]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
    tell("trained", model)


def tell(what: str, model: PreTrainedModel) -> None:
    """Print the loss on bytes that the network has not seen."""
    model.eval()
    with torch.no_grad():
        loss = model(held_out, labels=held_out).loss
    print(f"{what}: {sum(p.numel() for p in model.parameters()):,} parameters, loss {loss:.4f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=LENGTH)  # fmt: skip
    model: PreTrainedModel = LlamaForCausalLM(config)
    fit(model, 100)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/small")
        grow = [
            "-m",
            "onnx_net2net",
            "grow",
            f"{folder}/small",
            "-o",
            f"{folder}/large",
            "--factor",
            "2",
            "--depth",
            "2x",
        ]
        subprocess.run([sys.executable, *grow], check=True)
        larger = AutoModelForCausalLM.from_pretrained(f"{folder}/large")
    tell("grown", larger)
    fit(larger, 100)
