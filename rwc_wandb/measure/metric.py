"""Relative Weight Change as pure functions: the definition, and the oracle that every kernel is tested against.

Source: Agrawal et al., *Investigating Learning in Deep Neural Networks using Layer-Wise Weight Change*,
arXiv 2011.06735, eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_weight_change(new: Tensor, old: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """RWC = ||new - old||_1 / ||old||_1 of one layer (eq. 1 of arXiv 2011.06735).

    Args:
        new, old: the layer's weights now and before: same shape, any floating dtype, any strides.
        dtype: what to compute in; `torch.float64` makes this the oracle.

    Returns:
        A scalar tensor of `dtype`, without unit. 0/0 is 0 (nothing changed), x/0 is inf,
        and a layer with a non-finite weight is NaN. An empty layer is 0.

    Raises:
        ValueError: when the shapes differ.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([1.0, -3.0]), torch.tensor([1.5, -3.5])
        >>> relative_weight_change(new, old).item()  # (0.5 + 0.5) / (1 + 3)
        0.25
    """
    new, old = _checked(new, old, dtype)
    change = (new - old).abs().sum()
    return _nan_where_not_finite(new, _divided(change, old.abs().sum(), change))


def elementwise_relative_weight_change(new: Tensor, old: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The mean of |new - old| / |old| over the elements with old != 0.

    This is what the paper's authors plotted (their code, not eq. 1): it spikes where an old weight is close to zero.
    Arguments, result and errors as in `relative_weight_change`.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([1.5, -3.0, 4.0])
        >>> elementwise_relative_weight_change(new, old).item()  # (0.5 / 1 + 1 / 2) / 2: the third has no ratio
        0.5
    """
    new, old = _checked(new, old, dtype)
    change = (new - old).abs()
    counted = old != 0
    ratios = torch.where(counted, change / torch.where(counted, old, 1).abs(), 0)
    return _nan_where_not_finite(new, _divided(ratios.sum(), counted.sum(), change.sum()))


def _checked(new: Tensor, old: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if new.shape != old.shape:
        raise ValueError(f"new has the shape {tuple(new.shape)} and old {tuple(old.shape)}: both must be equal.")
    return new.detach().to(dtype), old.detach().to(dtype)


def _divided(numerator: Tensor, denominator: Tensor, change: Tensor) -> Tensor:
    """numerator / denominator, with 0 where nothing changed and inf where something changed from nothing."""
    empty = torch.where(change == 0, 0.0, torch.inf).to(numerator.dtype)
    return torch.where(denominator == 0, empty, numerator / denominator)


def _nan_where_not_finite(new: Tensor, value: Tensor) -> Tensor:
    return torch.where(new.isfinite().all(), value, torch.nan)
