"""The reductions in plain torch: slow, obvious, on any device; memory use does not grow with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rwc_wandb.measure.kernels.flat_memory import flat
from rwc_wandb.measure.kernels.nested_bins import nested

CPU_PIECE = 1 << 16
"""Elements at a time on a CPU: intermediate results stay in its cache."""
DEVICE_PIECE = 1 << 24
"""Elements at a time elsewhere, where each operation has a cost of its own."""


class ReferenceReduction:
    """`kernels.Reduction` with torch operations in float64."""

    dtype = torch.float64

    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> None:
        self.weights = [flat(weight) for weight in weights]
        self.snapshots = [flat(snapshot) for snapshot in snapshots]
        self.piece = CPU_PIECE if weights[0].device.type == "cpu" else DEVICE_PIECE

    @torch.no_grad()
    def measure(self, statistics: Tensor) -> None:
        statistics.zero_()
        for row, weight, snapshot in zip(statistics, self.weights, self.snapshots, strict=True):
            for new, old in self._pieces(weight, snapshot):
                change, norm = (new - old).abs_(), old.abs()
                counted = norm != 0
                row[0] += change.sum()
                row[1] += norm.sum()
                row[2] += torch.where(counted, change / norm, 0).sum()
                row[3] += counted.sum()
                row[4] += (~new.isfinite()).sum()
            snapshot.copy_(weight)

    def move(self, weights: Sequence[Tensor]) -> None:
        self.weights = [flat(weight) for weight in weights]

    @torch.no_grad()
    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        device = self.weights[0].device
        counts = torch.zeros(2, len(self.weights), bins, dtype=torch.int64, device=device)
        ranges = torch.zeros(2, len(self.weights), 2, device=device)
        for index, (weight, snapshot) in enumerate(zip(self.weights, self.snapshots, strict=True)):
            if weight.numel():
                ranges[:, index, 0] = torch.inf
                ranges[:, index, 1] = -torch.inf
            for new, old in self._pieces(weight, snapshot):
                for kind, values in enumerate((new.float(), new.float() - old.float())):
                    _widen(values, ranges[kind, index])
            ranges[:, index] = torch.where((ranges[:, index, :1] <= ranges[:, index, 1:]), ranges[:, index], 0)
            if is_part:
                ranges[:, index] = nested(ranges[:, index], bins)
            for new, old in self._pieces(weight, snapshot):
                for kind, values in enumerate((new.float(), new.float() - old.float())):
                    _count(values, ranges[kind, index], counts[kind, index], is_part)
        return counts, ranges

    def _pieces(self, weight: Tensor, snapshot: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for new, old in zip(weight.split(self.piece), snapshot.split(self.piece), strict=True):
            if not new.numel():  # An empty tensor is split into one empty part.
                return
            yield new.to(self.dtype), old.to(self.dtype)


def _widen(values: Tensor, limits: Tensor) -> None:
    finite = values.isfinite()
    limits[0] = torch.minimum(limits[0], torch.where(finite, values, torch.inf).amin())
    limits[1] = torch.maximum(limits[1], torch.where(finite, values, -torch.inf).amax())


def _count(values: Tensor, limits: Tensor, counts: Tensor, is_part: bool) -> None:
    """Bin of x: floor((x - low) / (high - low) * bins) in float32, the upper end in the last bin; all kernels agree.

    Of a part, where x - low would round: floor(x / (high - low) * bins) less that of `low`.
    """
    finite = values.isfinite()
    low, high = limits
    width = torch.where(high > low, high - low, 1)
    zero = torch.zeros_like(low) if is_part else low
    bins, first = ((x - zero) / width * counts.numel() for x in (torch.where(finite, values, low), low))
    # In float32, exact up to 2^24 elements: not every device scatters integers.
    added = torch.zeros_like(counts, dtype=torch.float32)
    counts += added.scatter_add_(0, (bins.floor() - first).long().clamp(0, counts.numel() - 1), finite.float()).long()
