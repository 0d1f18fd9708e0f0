"""A training on every device of this machine, against the definition on the CPU."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rwc_wandb import Monitor, relative_weight_change, watch
from rwc_wandb.measure import kernels

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


@pytest.mark.parametrize("sample", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_default_device_changes_nothing(dtype: torch.dtype, sample: int | None) -> None:
    """As in scripts that begin with `torch.set_default_device("cuda")`."""

    def measured(default: str) -> tuple[Monitor, dict[str, Any]]:
        torch.manual_seed(0)
        model = nn.Linear(12, 10).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
        with torch.device(default):
            monitor = watch(model, optimizer, run=False, log_every=2, histogram_every=2, sample=sample)
            for _ in range(5):
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            monitor.flush()
            monitor.flush()
            state = monitor.state_dict()
            monitor.load_state_dict(state)
            monitor.close()
        return monitor, state

    (monitor, state), (expected, _) = measured("meta"), measured("cpu")
    assert monitor.history.steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(monitor.history.rwc, expected.history.rwc)
    assert [tensor.device.type for tensor in tensors(state)] == ["cpu"] * len(list(tensors(state)))


def tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def test_every_tensor_is_made_on_a_device_that_is_named() -> None:
    """Else it would be on the default device. Only a GPU runs some of these lines."""
    factories = {"tensor", "empty", "zeros", "ones", "full", "arange", "empty_strided", "linspace", "rand", "randint"}
    unnamed = []
    for path in Path(kernels.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_torchs = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_torchs and ast.unparse(node.func) in {f"torch.{name}" for name in factories}:
                unnamed += [ast.unparse(node)] * all(keyword.arg != "device" for keyword in node.keywords)
    assert unnamed == []
