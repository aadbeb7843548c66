"""A CNN in PyTorch: train, grow, go on training. Runs in half a minute on a CPU.

pip install 'onnx-net2net[torch]' scikit-learn
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from onnx_net2net import grow


class Net(nn.Module):
    """A small network with a residual block."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of shape (N, 1, 8, 8)."""
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
train, test = slice(0, 1297), slice(1297, None)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Train, and print how good the network is on images that it has not seen."""
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(1297).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[train][batch]), y[train][batch]).backward()
            optimizer.step()
    tell("trained", model)


def tell(what: str, model: nn.Module) -> None:
    """Print the loss and the accuracy on images that the network has not seen."""
    model.eval()
    with torch.no_grad():
        logits = model(x[test])
    loss = nn.functional.cross_entropy(logits, y[test])
    right = int((logits.argmax(1) == y[test]).sum())
    size = sum(p.numel() for p in model.parameters())
    print(f"{what}: {size:,} parameters, loss {loss:.4f}, {right} of {len(y[test])} right")


if __name__ == "__main__":
    torch.manual_seed(0)
    model: nn.Module = Net()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    fit(model, optimizer, 8)

    grown = grow(model, (x[:2],), factor=2, optimizer=optimizer)
    print(grown.report)
    tell("grown", grown.module)

    fit(grown.module, grown.optimizer, 8)
