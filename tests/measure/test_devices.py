"""A training on every device of this machine, against the definition on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rwc_wandb import relative_weight_change, watch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no GPU of a Mac")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_gives_the_numbers_of_the_definition(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = watch(model, optimizer, log_every=3, run=False)
    weights = [model[0].weight, model[3].weight]
    expected = []
    for _ in range(7):
        before = [weight.detach().cpu().clone() for weight in weights]
        model(torch.randn(4, 3, 8, 8, device=device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = [weight.detach().cpu() for weight in weights]
        expected.append([relative_weight_change(*pair).item() for pair in zip(after, before, strict=True)])
    monitor.close()
    assert monitor.history.steps.tolist() == list(range(1, 8))
    # Without float64 on the device (mps) the sums of a chunk are in float32.
    tolerance = 1e-5 if device == "mps" else 1e-6
    torch.testing.assert_close(
        torch.from_numpy(monitor.history.rwc).double(), torch.tensor(expected).double(), rtol=tolerance, atol=0
    )
