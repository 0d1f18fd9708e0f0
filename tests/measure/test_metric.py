"""The definition against closed forms and a float64 computation by numpy."""

import math

import numpy as np
import pytest
import torch

from rwc_wandb import elementwise_relative_weight_change, relative_weight_change


def test_closed_form() -> None:
    old = torch.tensor([[1.0, -2.0], [4.0, 0.0]])
    new = torch.tensor([[1.5, -1.0], [4.0, 0.5]])
    assert relative_weight_change(new, old).item() == (0.5 + 1 + 0 + 0.5) / 7
    assert elementwise_relative_weight_change(new, old).item() == (0.5 + 0.5 + 0) / 3


def test_is_not_the_elementwise_mean() -> None:
    old, new = torch.tensor([1e-6, 1.0]), torch.tensor([1e-6 + 0.1, 1.1])
    assert relative_weight_change(new, old).item() == pytest.approx(0.2, rel=1e-5)
    assert elementwise_relative_weight_change(new, old).item() == pytest.approx(5e4, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 123, 3), (1,), (64, 3, 3, 3)])
def test_against_numpy(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    new = (old.double() + 0.01 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    a, b = new.double().numpy(), old.double().numpy()
    assert relative_weight_change(new, old).item() == pytest.approx(np.abs(a - b).sum() / np.abs(b).sum(), rel=1e-12)
    expected = (np.abs(a - b) / np.abs(b)).mean()
    assert elementwise_relative_weight_change(new, old).item() == pytest.approx(expected, rel=1e-12)
    assert relative_weight_change(new, old, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("metric", [relative_weight_change, elementwise_relative_weight_change])
def test_edges(metric) -> None:  # type: ignore[no-untyped-def]
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert metric(zeros, zeros).item() == 0
    assert metric(ones, ones).item() == 0
    assert metric(ones, zeros).item() == math.inf
    assert metric(zeros, ones).item() == 1
    assert metric(torch.empty(0), torch.empty(0)).item() == 0
    assert math.isnan(metric(torch.tensor([1.0, math.nan, 1.0]), ones).item())
    assert math.isnan(metric(torch.tensor([1.0, math.inf, 1.0]), ones).item())
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        metric(ones, torch.ones(2))
