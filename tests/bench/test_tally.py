"""Host reads and memory are counted, reads in disguise (`bool(tensor)`, `tolist`) too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rwc_wandb
from rwc_wandb.bench.baselines import TorchForeach
from rwc_wandb.bench.tally import Tally

CPU = torch.device("cpu")


def gradient_hook_copies(tensor: Tensor) -> None:
    leaf = tensor.clone().requires_grad_()
    leaf.register_hook(lambda gradient: gradient.cpu())
    leaf.sum().backward()


@pytest.mark.parametrize(
    ("action", "reads"),
    [
        (lambda tensor: tensor.abs().sum().sqrt(), 0),
        (lambda tensor: tensor.sum().item(), 1),
        (lambda tensor: bool((tensor > 0).all()), 1),
        (lambda tensor: [float(value) for value in tensor[:3]], 3),
        (lambda tensor: tensor.cpu().numpy(), 1),
        (gradient_hook_copies, 1),
    ],
)
def test_host_reads(action: Callable[[Tensor], object], reads: int) -> None:
    tensor = torch.ones(10)
    with Tally(CPU) as tally:
        action(tensor)
    assert tally.host_reads == reads
    assert "cpu" not in vars(Tensor)


def test_memory_is_the_peak_of_what_lives_at_once() -> None:
    with Tally(CPU) as tally:
        kept = torch.zeros(1 << 20)
        for _ in range(3):
            # 8 MiB, freed each time; views take no memory.
            kept[1:].view(-1).double().sum()
        kept.add_(1)
        array = np.zeros(1 << 18)
    assert tally.extra_memory == pytest.approx((4 << 20) + (8 << 20) + array.nbytes, rel=0.01)


def test_ours_takes_one_copy_of_the_weights_and_reads_nothing() -> None:
    model = nn.Linear(1000, 1000)
    rwc_wandb.watch(model, run=False).measure()
    with Tally(CPU) as tally:
        monitor = rwc_wandb.watch(model, run=False, histogram_every=None)
        monitor.measure()
        monitor.measure()
    assert tally.extra_memory == pytest.approx(4e6, rel=0.05)
    assert tally.host_reads == 0


def test_a_method_that_needs_two_copies_shows_two() -> None:
    model = nn.Linear(1000, 1000)
    with Tally(CPU) as tally:
        TorchForeach(model)()
    assert tally.extra_memory == pytest.approx(8e6, rel=0.05)
