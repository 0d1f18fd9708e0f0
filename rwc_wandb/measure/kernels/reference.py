"""The reductions in plain torch: slow, obvious, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ReferenceReduction:
    """`kernels.Reduction` with torch operations in float64."""

    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> None:
        self.weights = weights
        self.snapshots = snapshots

    @torch.no_grad()
    def measure(self, statistics: Tensor) -> None:
        for row, weight, snapshot in zip(statistics, self.weights, self.snapshots, strict=True):
            new, old = weight.double(), snapshot.double()
            change, norm = (new - old).abs(), old.abs()
            counted = norm != 0
            row[0] = change.sum()
            row[1] = norm.sum()
            row[2] = torch.where(counted, change / norm, 0).sum()
            row[3] = counted.sum()
            row[4] = (~new.isfinite()).sum()
            snapshot.copy_(weight)

    @torch.no_grad()
    def histograms(self, bins: int) -> tuple[Tensor, Tensor]:
        device = self.weights[0].device
        counts = torch.zeros(2, len(self.weights), bins, dtype=torch.int64, device=device)
        ranges = torch.zeros(2, len(self.weights), 2, device=device)
        for index, (weight, snapshot) in enumerate(zip(self.weights, self.snapshots, strict=True)):
            for kind, values in enumerate((weight.float(), weight.float() - snapshot.float())):
                _histogram(values.flatten(), counts[kind, index], ranges[kind, index])
        return counts, ranges


def _histogram(values: Tensor, counts: Tensor, limits: Tensor) -> None:
    if not values.numel():
        return
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin()
    high = torch.where(finite, values, -torch.inf).amax()
    limits[0], limits[1] = torch.where(low <= high, torch.stack([low, high]), 0)
    width = torch.where(high > low, high - low, 1)
    places = ((torch.where(finite, values, low) - low) / width * counts.numel()).nan_to_num()
    counts.scatter_add_(0, places.long().clamp(0, counts.numel() - 1), finite.long())
