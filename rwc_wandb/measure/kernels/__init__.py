"""The reductions behind a measurement: one signature, one implementation per device.

A `Reduction` is built once for a fixed list of weights and their snapshots (same device, same strides pairwise) and
then called once per measurement. `reduction_for` picks the implementation.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rwc_wandb.measure.kernels.reference import ReferenceReduction
from rwc_wandb.measure.kernels.sampled_reference import ReferenceSampledReduction, SinglePrecisionSampledReduction
from rwc_wandb.measure.kernels.sampling import Sample, standard_error
from rwc_wandb.measure.kernels.single_precision import SinglePrecisionReduction, has_float64

Kernel = TypeVar("Kernel")


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
    CHANGE_SQUARES = 5
    """Where a sample is measured, the sum of (d_a - d_b)^2 over its pairs, d = |w - s|, times `Sample.spread`; 0 where
    all elements are. `sampling.standard_error` tells the error of the rate from this and the next two."""
    NORM_SQUARES = 6
    """Likewise the sum of (v_a - v_b)^2, v = |s|."""
    PRODUCTS = 7
    """Likewise the sum of (d_a - d_b) (v_a - v_b)."""


EXACT = Statistic.CHANGE_SQUARES.value
"""The number of columns where all elements are measured: those before the squares."""


class Reduction(Protocol):
    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> None:
        """Weights and snapshots of L layers: pairwise equal in shape, strides, dtype and device; dense."""

    def measure(self, statistics: Tensor) -> None:
        """Write the statistics of all layers into `statistics` (float64 [L, 5], columns as in `Statistic`) and copy the
        weights into the snapshots, without synchronising with the host."""

    def move(self, weights: Sequence[Tensor]) -> None:
        """Measure these from here on: as those before in shape, strides, dtype and device, in other memory."""

    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        """Histograms of the weights w and of the updates w - s, without touching the snapshots or synchronising.

        Returns counts (int64 [2, L, bins]; 0 weights, 1 updates) and ranges (float32 [2, L, 2]: low, high; the bins are
        even between them). The range is that of the finite values, or for a part of a layer of `nested_bins.nested`,
        so that counts of all parts can be added up; non-finite elements are left out.
        """


class SampledReduction(Protocol):
    """As `Reduction`, from a sample of each layer's elements; its snapshots hold no others.

    Attributes:
        snapshots: of each layer the elements of the draw, in the order of its slices; NaN where another rank has them.
    """

    snapshots: list[Tensor]

    def __init__(self, weights: Sequence[Tensor], samples: Sequence[Sample]) -> None:
        """This rank's elements of L layers, dense, and what is drawn from them. Snapshots are there after `draw`."""

    def draw(self, number: int) -> None:
        """Draw anew: from here on the draw is `number` (below 2^31), and the weights there now are the snapshots."""

    def value(self, layer: int) -> Tensor:
        """The elements of a layer's draw as they are now, like its snapshot."""

    def measure(self, statistics: Tensor) -> None:
        """As `Reduction.measure`, with all columns: float64 [L, 8]."""

    def move(self, weights: Sequence[Tensor]) -> None:
        """As `Reduction.move`."""

    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        """As `Reduction.histograms`, of the elements of the draw."""


def reduction_for(weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int | None = None) -> Reduction:
    """The fastest reduction for where the weights live (one device) and for their dtype.

    Args:
        bins: compile what histograms of so many bins need, too; None: there will be none.
    """
    if not has_float64(weights[0].device):
        return SinglePrecisionReduction(weights, snapshots)
    device, dtype = weights[0].device.type, weights[0].dtype
    # Where numba (the extra `cpu`) or triton is missing or does not load, plain torch computes the same.
    if device == "cpu" and dtype in (torch.float32, torch.float64):
        with contextlib.suppress(ImportError):
            from rwc_wandb.measure.kernels.cpu import CPUReduction

            return CPUReduction(weights, snapshots, bins)
    if device == "cuda" and dtype in (torch.float32, torch.bfloat16, torch.float16):
        with contextlib.suppress(ImportError):
            from rwc_wandb.measure.kernels.gpu import GPUReduction

            exact: Reduction = ReferenceReduction(weights, snapshots)
            return _compiled_or(exact, partial(GPUReduction, weights, snapshots, bins))
    return ReferenceReduction(weights, snapshots)


def sampled_reduction_for(
    weights: Sequence[Tensor], samples: Sequence[Sample], bins: int | None = None
) -> SampledReduction:
    """As `reduction_for`, for samples."""
    if not has_float64(weights[0].device):
        return SinglePrecisionSampledReduction(weights, samples)
    device, dtype = weights[0].device.type, weights[0].dtype
    if device == "cpu":
        with contextlib.suppress(ImportError):
            from rwc_wandb.measure.kernels.sampled_cpu import CPUSampledReduction

            return CPUSampledReduction(weights, samples, bins)
    if device == "cuda" and dtype in (torch.float32, torch.bfloat16, torch.float16):
        with contextlib.suppress(ImportError):
            from rwc_wandb.measure.kernels.sampled_gpu import GPUSampledReduction

            sampled: SampledReduction = ReferenceSampledReduction(weights, samples)
            return _compiled_or(sampled, partial(GPUSampledReduction, weights, samples, bins))
    return ReferenceSampledReduction(weights, samples)


def _compiled_or(reference: Kernel, compiled: Callable[[], Kernel]) -> Kernel:
    """Compilation may fail where triton can be imported: no C compiler for its launcher, a GPU that is too old."""
    try:
        return compiled()
    except Exception as error:
        warnings.warn(
            f"rwc_wandb measures with plain torch, which is slower: its GPU kernels cannot be compiled here "
            f"({type(error).__name__}: {str(error).strip()[:300]}).",
            stacklevel=2,
        )
        return reference


def rates(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """RWC (eq. 1) and its element-wise form from summed statistics [..., 5 or 8]; edge cases as in `measure.metric`."""
    change, norm, ratio_sum, ratio_count, nonfinite = statistics[..., :EXACT].unbind(-1)
    from_nothing = torch.where(change == 0, 0.0, torch.inf).to(statistics.dtype)

    def rate(numerator: Tensor, denominator: Tensor) -> Tensor:
        value = torch.where(denominator == 0, from_nothing, numerator / denominator)
        return torch.where(nonfinite > 0, torch.nan, value)

    return rate(change, norm), rate(ratio_sum, ratio_count)


def errors(statistics: Tensor) -> Tensor:
    """The standard errors of RWC from summed statistics [..., 8], as in `sampling.standard_error`."""
    change, norm = statistics[..., Statistic.CHANGE], statistics[..., Statistic.NORM]
    return standard_error(change, norm, *statistics[..., EXACT:].unbind(-1))
