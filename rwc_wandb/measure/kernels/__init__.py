"""The reductions behind a measurement: one signature, one implementation per device.

A `Reduction` is built once for a fixed list of weights and their snapshots (same device, same strides pairwise) and
then called once per measurement. `reduction_for` picks the implementation.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from rwc_wandb.measure.kernels.reference import ReferenceReduction


class Statistic(IntEnum):
    """The columns of the statistics of one layer; each is a plain sum, so partial results of shards just add up."""

    CHANGE = 0
    """sum |w - s|, with s the snapshot: the numerator of eq. 1."""
    NORM = 1
    """sum |s|: the denominator of eq. 1."""
    RATIO_SUM = 2
    """sum |w - s| / |s| over elements with s != 0."""
    RATIO_COUNT = 3
    """The number of elements with s != 0."""
    NONFINITE = 4
    """The number of elements of w that are NaN or infinite."""


class Reduction(Protocol):
    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> None:
        """Weights and snapshots of L layers: pairwise equal in shape, strides, dtype and device; dense."""

    def measure(self, statistics: Tensor) -> None:
        """Write the statistics of all layers into `statistics` (float64 [L, 5], columns as in `Statistic`) and copy the
        weights into the snapshots, without synchronising with the host."""

    def histograms(self, bins: int) -> tuple[Tensor, Tensor]:
        """Histograms of the weights w and of the updates w - s, without touching the snapshots or synchronising.

        Returns counts (int64 [2, L, bins]; 0 weights, 1 updates) and ranges (float32 [2, L, 2]: low, high; the bins are
        even between them). The range is that of the finite values; non-finite elements are left out.
        """


def reduction_for(weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int | None = None) -> Reduction:
    """The fastest reduction for where the weights live (one device, which has float64) and for their dtype.

    Args:
        bins: compile what histograms of so many bins need, too; None: there will be none.
    """
    device, dtype = weights[0].device.type, weights[0].dtype
    # Where numba (the extra `cpu`) or triton is missing or does not load, plain torch computes the same.
    if device == "cpu" and dtype in (torch.float32, torch.float64):
        with contextlib.suppress(ImportError):
            from rwc_wandb.measure.kernels.cpu import CPUReduction

            return CPUReduction(weights, snapshots, bins)
    if device == "cuda" and dtype in (torch.float32, torch.bfloat16, torch.float16):
        with contextlib.suppress(ImportError):
            from rwc_wandb.measure.kernels.gpu import GPUReduction

            return _compiled_or_reference(GPUReduction, weights, snapshots, bins)
    return ReferenceReduction(weights, snapshots)


def _compiled_or_reference(
    compiled: Callable[..., Reduction], weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int | None
) -> Reduction:
    """Compilation may fail where triton can be imported: no C compiler for its launcher, a GPU that is too old."""
    reference = ReferenceReduction(weights, snapshots)
    try:
        return compiled(weights, snapshots, bins)
    except Exception as error:
        warnings.warn(
            f"rwc_wandb measures with plain torch, which is slower: its GPU kernels cannot be compiled here "
            f"({type(error).__name__}: {str(error).strip()[:300]}).",
            stacklevel=2,
        )
        return reference


def rates(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """RWC (eq. 1) and its element-wise form from summed statistics [..., 5]; edge cases as in `measure.metric`."""
    change, norm, ratio_sum, ratio_count, nonfinite = statistics.unbind(-1)
    from_nothing = torch.where(change == 0, 0.0, torch.inf).to(statistics.dtype)

    def rate(numerator: Tensor, denominator: Tensor) -> Tensor:
        value = torch.where(denominator == 0, from_nothing, numerator / denominator)
        return torch.where(nonfinite > 0, torch.nan, value)

    return rate(change, norm), rate(ratio_sum, ratio_count)
