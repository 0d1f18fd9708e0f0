"""An outsider's record of the weights after every step, and what the series must be by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from rwc_wandb import Monitor, relative_weight_change, watch


class Recorder:
    """Copies of `parameters` at its creation and at every `note`."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.weights = [self.copy()]

    def copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def note(self) -> None:
        self.weights.append(self.copy())

    def series(self, metric: Callable[[Tensor, Tensor], Tensor] = relative_weight_change, every: int = 1) -> np.ndarray:
        kept = self.weights[::every]
        return np.array([[metric(new, old).item() for new, old in zip(b, a, strict=True)] for a, b in pairwise(kept)])


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(7 * 36, 5)).to(dtype)


def weights(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]


def step(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def run(
    network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, **options: object
) -> tuple[Monitor, Recorder]:
    monitor = watch(network, optimizer, run=False, **options)  # type: ignore[arg-type]
    recorder = Recorder([layer.parameter for layer in monitor.layers])
    for _ in range(steps):
        step(optimizer, network)
        recorder.note()
    monitor.close()
    return monitor, recorder


def assert_equals(monitor: Monitor, recorder: Recorder) -> None:
    """One measurement per noted step, each equal to the oracle."""
    assert monitor.history.steps.tolist() == list(range(1, len(recorder.weights)))
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(), rtol=1e-6)
