"""Weights sharded over ranks, measured from a sample: the error is what it is said to be, on any number of ranks."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from processes import Case, verdicts
from torch import nn
from torch.distributed.fsdp import fully_shard

import rwc_wandb

STEPS = 80
SAMPLE = 2000


def network() -> nn.Module:
    """Layers of 12,445, 17,161 (three times) and 13,493 weights: rows are uneven on 2 and 4 ranks, and cut slices."""
    torch.manual_seed(0)
    widths = (95, 131, 131, 131, 131, 103)
    layers = [nn.Sequential(nn.Linear(*pair), nn.Tanh()) for pair in pairwise(widths)]
    return nn.Sequential(*layers)


def histories(model: nn.Module) -> tuple[rwc_wandb.History, rwc_wandb.History]:
    """Trained by AdamW, measured from all weights and from samples, a new draw at every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitors = [
        rwc_wandb.watch(model, optimizer, run=False, histogram_every=None, log_every=1, sample=sample)
        for sample in (None, SAMPLE)
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randn(16, 95, generator=generator)
        optimizer.zero_grad()
        (model(batch) - batch.sum(1, keepdim=True).tanh()).square().sum().backward()
        optimizer.step()
    for monitor in monitors:
        monitor.close()
    exact, sampled = monitors
    return exact.history, sampled.history


def check(exact: rwc_wandb.History, sampled: rwc_wandb.History) -> None:
    assert exact.rwc.shape == sampled.rwc.shape == (STEPS, 5)
    assert not exact.rwc_error.any()
    scores = (sampled.rwc.astype(np.float64) - exact.rwc) / sampled.rwc_error
    assert scores.std() == pytest.approx(1, abs=0.1)
    assert (np.abs(scores) < 2).mean() == pytest.approx(0.95, abs=0.02)
    assert abs(scores.mean()) < 0.1
    assert 0.005 < np.median(sampled.rwc_error / sampled.rwc) < 0.04


def sharded(folder: Path) -> None:
    model = network()
    for block in model:
        fully_shard(block)
    fully_shard(model)
    exact, sampled = histories(model)
    if distributed.get_rank() == 0:
        check(exact, sampled)
        sampled.save(folder / f"{distributed.get_world_size()}.safetensors")


def test_on_one_rank() -> None:
    check(*histories(network()))


@pytest.mark.parametrize("size", [2, 4] if "RWC_SLOW" in os.environ else [2])
def test_on_ranks(size: int, tmp_path: Path) -> None:
    case: Case = sharded
    assert verdicts([case], size, tmp_path) == {"sharded": ""}
    # The same elements are drawn as on one rank, and trained alike but for the order of sums.
    alone = histories(network())[1]
    found = rwc_wandb.History.load(tmp_path / f"{size}.safetensors")
    np.testing.assert_allclose(found.rwc[:5], alone.rwc[:5], rtol=1e-3)
