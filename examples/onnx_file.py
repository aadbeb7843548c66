"""Only an ONNX file: grow it, train it as a module of PyTorch, put the weights back. Runs in a minute on a CPU.

pip install 'onnx-net2net[torch]' scikit-learn
"""

import sys

import torch
from sklearn.datasets import load_digits

from onnx_net2net import Model, load, refit, to_torch, verify, widen

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1297], order[1297:]


def moved(some: torch.Tensor) -> torch.Tensor:
    """Return images, each shifted by up to one pixel in both directions."""
    shifts = torch.randint(-1, 2, (len(some), 2)).tolist()
    return torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(some, shifts, strict=True)])


def tell(what: str, model: Model) -> None:
    """Print how many moved images the network tells right, in onnxruntime."""
    torch.manual_seed(1)
    (logits,) = model.session().run(["logits"], {"image": moved(x[test]).numpy()})
    print(f"{what}: {model.parameters:,} parameters, {(logits.argmax(1) == y[test].numpy()).mean():.1%} right")


def trained(model: Model, steps: int = 150, rate: float = 2e-3) -> Model:
    """Train a file: it becomes a module, and the module's weights go back into the file."""
    module = to_torch(model).train()
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for some in torch.randint(len(train), (steps, 128)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(moved(x[train[some]])), y[train[some]]).backward()
        optimizer.step()
        schedule.step()
    return refit(model, module.state_dict())


if __name__ == "__main__":
    teacher = load(sys.argv[1] if len(sys.argv) > 1 else "models/digits_resnet.onnx")
    tell("teacher", teacher)
    student = widen(teacher, factor=1.5).student
    verify(teacher, student).raise_if_different()
    tell("student", student)
    tell("trained", trained(student))
