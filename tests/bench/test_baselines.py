"""What the benchmark compares with is what it says: each baseline's numbers against the float64 oracle."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
import wandb
from standin import StandIn
from torch import Tensor, nn

import rwc_wandb
from rwc_wandb.bench.baselines import (
    AuthorsCode,
    ComposerNorms,
    PlainTorch,
    TorchForeach,
    WandbWatch,
    tracked_weights,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 40, 5), nn.BatchNorm2d(40), nn.Flatten(), nn.Linear(1000, 1000))


@torch.no_grad()
def train(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def check_three_measurements(
    model: nn.Module,
    measure: Callable[[], Sequence[Any]],
    oracle: Callable[[Tensor, Tensor], Tensor],
    error: float,
) -> None:
    for _ in range(3):
        before = [weight.clone() for weight in tracked_weights(model)]
        train(model)
        expected = [float(oracle(w, s)) for w, s in zip(tracked_weights(model), before, strict=True)]
        assert len(expected) == 2
        np.testing.assert_allclose([float(value) for value in measure()], expected, rtol=error)


@pytest.mark.parametrize(("baseline", "error"), [(PlainTorch, 1e-4), (TorchForeach, 1e-3)])
def test_plain_torch_is_equation_1(baseline: type[PlainTorch] | type[TorchForeach], error: float) -> None:
    model = network()
    check_three_measurements(model, baseline(model), rwc_wandb.relative_weight_change, error)


def test_the_authors_code_is_the_element_wise_mean() -> None:
    model = network()
    baseline = AuthorsCode(model)
    check_three_measurements(
        model,
        lambda: [layer["mean"] for layer in baseline()],
        rwc_wandb.elementwise_relative_weight_change,
        1e-5,
    )


def steps_of_adam(weight_decay: float) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Composer's numbers after two steps; the true L2 norms of the second step and of the weights by layer."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=weight_decay)
    for _ in range(2):
        before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    after = {name: p.detach().double() for name, p in model.named_parameters()}
    updates = {name: float((after[name] - before[name]).norm()) for name in after}
    return ComposerNorms(model, optimizer)(), updates, {name: float(after[name].norm()) for name in after}


def test_composers_norms_are_those_of_the_step() -> None:
    metrics, updates, sizes = steps_of_adam(weight_decay=0)
    assert len(metrics) == 4 * len(updates) + 1
    for name in updates:
        np.testing.assert_allclose(metrics[f"l2_norm/update/{name}"], updates[name], rtol=1e-3)
        np.testing.assert_allclose(metrics[f"l2_norm/param/{name}"], sizes[name], rtol=1e-3)


def test_composers_update_is_wrong_under_weight_decay_as_documented() -> None:
    metrics, updates, _ = steps_of_adam(weight_decay=0.5)
    assert abs(metrics["l2_norm/update/3.weight"] / updates["3.weight"] - 1) > 0.1


@pytest.mark.parametrize("log", ["parameters", "all"])
def test_wandb_watch_logs_histograms_of_every_parameter(standin: StandIn, log: Literal["parameters", "all"]) -> None:
    model = network()
    gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
    run = wandb.init(project="bench")
    baseline = WandbWatch(model, log, run, gradients)
    baseline()
    baseline.close()
    baseline()
    run.finish()
    # wandb numbers the networks that one process watches.
    watched, unwatched = (
        {re.sub(r"graph_\d+", "", key): value for key, value in row.items()} for row in standin.run(run.id).rows
    )
    assert not [key for key in unwatched if key.startswith(("parameters", "gradients"))]
    expected = {f"parameters/model.{name}": p.detach() for name, p in model.named_parameters()}
    if log == "all":
        names = [f"gradients/model.{name}" for name, _ in model.named_parameters()]
        expected |= dict(zip(names, gradients, strict=True))
    assert {key for key in watched if "/" in key} == set(expected)
    for key, tensor in expected.items():
        counts = np.array(watched[key]["values"])
        assert counts.sum() == tensor.numel()
        if tensor.min() < tensor.max():
            truth, _ = np.histogram(tensor.numpy(), bins=64)
            assert np.abs(counts - truth).sum() <= 2 + 1e-4 * tensor.numel()
