"""Small real trainings on handwritten digits, clean or with an anomaly planted, whose histories findings are made from.

All of them: `python tests/view/trainings.py`, 4 minutes on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rwc_wandb import History, watch

STEPS = 100

Act = Callable[[int, nn.Module, torch.optim.Optimizer], None]


class Residual(nn.Module):
    """A multilayer perceptron of six residual blocks."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)}) for _ in range(6)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        values = self.stem(images.flatten(1))
        for block in self.blocks:
            values = values + block["fc2"](torch.relu(block["fc1"](values)))
        return self.head(values)


class Transformer(nn.Module):
    """Eight rows of an image as eight tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, width)
        self.project = nn.Linear(8 * width, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = (images[:, 0] * 16).round().long()
        return self.head(self.encoder(self.project(self.embedding(tokens).flatten(2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, 3, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.lstm(images[:, 0])[0][:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Residual,
    "transformer": Transformer,
    "lstm": Recurrent,
    **{
        name: (lambda name=name: timm.create_model(f"test_{name}", in_chans=1, num_classes=10))
        for name in ("resnet", "efficientnet", "vit", "convnext")
    },
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, 0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, 0.02, momentum=0.9, weight_decay=5e-4),
    "adam": lambda groups: torch.optim.Adam(groups, 1e-3),
    "adamw": lambda groups: torch.optim.AdamW(groups, 1e-3, weight_decay=0.05),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, 3e-4),
}

SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS)),
    "warm-up": lambda step: min((step + 1) / 10, (STEPS - step) / (STEPS - 10)),
    "step": lambda step: 0.1 ** (step // 50),
    "restarts": lambda step: 0.5 * (1 + math.cos(math.pi * (step % 50) / 50)),
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """[1797, 1, 8, 8] from 0 to 1, and their classes."""
    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(classes)


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
        factors: part of a parameter's name: its learning rate, compared with the others'.
        act: called after every step.
    """

    model: str
    optimizer: str = "adamw"
    schedule: str = "constant"
    seed: int = 0
    factors: tuple[tuple[str, float], ...] = ()
    act: Act | None = None
    every: int = 1

    def __call__(self) -> History:
        torch.manual_seed(self.seed)
        model = MODELS[self.model]()
        images, classes = digits()
        if self.model in ("resnet", "efficientnet", "vit", "convnext"):
            side = {"vit": 160, "convnext": 64}.get(self.model, 32)
            images = nn.functional.interpolate(images[:400], size=side)
        optimizer = OPTIMIZERS[self.optimizer](list(self._groups(model)))
        rates = [group["lr"] * group.pop("factor", 1.0) for group in optimizer.param_groups]
        monitor = watch(model, optimizer, run=False, every=self.every)
        for step in range(STEPS):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * SCHEDULES[self.schedule](step)
            chosen = torch.randint(len(images), (32,))
            loss = nn.functional.cross_entropy(model(images[chosen]), classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            if self.act:
                self.act(step, model, optimizer)
            optimizer.step()
        monitor.close()
        return monitor.history

    def _groups(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        for name, parameter in model.named_parameters():
            factor = next((factor for part, factor in self.factors if part in name), 1.0)
            parameter.requires_grad_(factor > 0)
            yield {"params": [parameter], "factor": factor}
