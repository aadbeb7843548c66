"""A chain that tests run: small networks, and a training command that trains one number of them."""

import sys
from pathlib import Path

import yaml
from commands import MLP

TRAINER = Path(__file__).parent / "search" / "trainer.py"
TRAIN = f"{sys.executable} {TRAINER} --init {{init}} --out {{out}} --steps {{steps}}"


def write(folder, **changes):
    stages = [
        {"name": "m", "widen": {"factor": 1.25}},
        {"name": "l", "widen": {"sizes": {"fc2": "2x"}}, "deepen": {"after": ["fc1"]}},
    ]
    (folder / "small.onnx").write_bytes(MLP.read_bytes())
    chain = {
        "start": {"model": "small.onnx", "train": True}, "work": "runs", "train": TRAIN,
        "stop": {"metric": "val_loss", "steps": 3, "silence": 30}, "stages": stages, **changes,
    }  # fmt: skip
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump(chain))
    return path
