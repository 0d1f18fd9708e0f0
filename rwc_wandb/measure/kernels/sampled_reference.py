"""The reductions over samples in plain torch, on any device; compiled ones replace `_gather` and `measure`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rwc_wandb.measure.kernels.flat_memory import flat
from rwc_wandb.measure.kernels.reference import ReferenceReduction
from rwc_wandb.measure.kernels.sampling import Sample
from rwc_wandb.measure.kernels.single_precision import CHUNK, columns, sums_of_chunks


class ReferenceSampledReduction:
    """`kernels.SampledReduction` with torch operations in float64."""

    dense: type[Any] = ReferenceReduction
    """What makes histograms of the values and snapshots of a draw."""

    def __init__(self, weights: Sequence[Tensor], samples: Sequence[Sample]) -> None:
        self.weights = [flat(weight) for weight in weights]
        self.samples = list(samples)
        self.number = 0
        self.counts = [sample.last - sample.first for sample in samples]
        self._snapshot = weights[0].new_empty(sum(self.counts))
        self.snapshots = list(self._snapshot.split(self.counts))

    @torch.no_grad()
    def draw(self, number: int) -> None:
        self.number = number
        self._gather(self._snapshot)

    def value(self, layer: int) -> Tensor:
        weight, (places, ours) = self.weights[layer], self._places(self.samples[layer])
        return torch.where(ours, weight[places.clamp(0, weight.numel() - 1)], torch.nan)

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        values = torch.empty_like(self._snapshot)
        self._gather(values)
        return list(values.split(self.counts))

    @torch.no_grad()
    def measure(self, statistics: Tensor) -> None:
        for row, sample, new, old in zip(statistics, self.samples, self.values(), self.snapshots, strict=True):
            now, before = self._ours(sample, new).double(), self._ours(sample, old).double()
            change, norm = (now - before).abs_(), before.abs()
            counted = norm != 0
            row[0] = change.sum()
            row[1] = norm.sum()
            row[2] = torch.where(counted, change / norm, 0).sum()
            row[3] = counted.sum()
            row[4] = (~now.isfinite()).sum()
            of_change, of_norm = self._differences(sample, change), self._differences(sample, norm)
            row[5] = sample.spread * of_change.square().sum()
            row[6] = sample.spread * of_norm.square().sum()
            row[7] = sample.spread * (of_change * of_norm).sum()
            old.copy_(new)

    def move(self, weights: Sequence[Tensor]) -> None:
        self.weights = [flat(weight) for weight in weights]

    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.dense(self.values(), self.snapshots).histograms(bins, is_part)
        return found

    def _gather(self, target: Tensor) -> None:
        """Copy the weights at the places of the draw into `target`; NaN where another rank has them."""
        for layer, part in enumerate(target.split(self.counts)):
            part.copy_(self.value(layer))

    def _ours(self, sample: Sample, values: Tensor) -> Tensor:
        """The values, 0 where another rank has them: that adds nothing to any sum."""
        return torch.where(self._places(sample)[1], values, 0)

    def _differences(self, sample: Sample, values: Tensor) -> Tensor:
        """Those between the two elements of each pair; 0 where another rank has one of them."""
        first, second = values.view(-1, 2).unbind(1)
        return torch.where(self._places(sample)[1].view(-1, 2).all(1), first - second, 0)

    def _places(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Where the draw stands among this rank's elements, and what of it does."""
        places = sample.places(self.number, self._snapshot.device) - sample.start
        return places, (places >= 0) & (places < sample.stop - sample.start)


class SinglePrecisionSampledReduction(ReferenceSampledReduction):
    """The same in float32; its statistics are a chunk's, not a layer's: see `single_precision`.

    Changes below 1e-19 are 0 in the squares of float32, and so in the error.
    """

    def __init__(self, weights: Sequence[Tensor], samples: Sequence[Sample]) -> None:
        super().__init__(weights, samples)
        *self.first_rows, self.rows = accumulate((-(-count // CHUNK) for count in self.counts), initial=0)

    @torch.no_grad()
    def measure(self, statistics: Tensor) -> None:
        """Write each chunk's statistics into `statistics` (float32 [rows, 8]); layer i's start at `first_rows[i]`."""
        parts = zip(self.first_rows, self.samples, self.values(), self.snapshots, strict=True)
        for row, sample, new, old in parts:
            now, before = self._ours(sample, new).float(), self._ours(sample, old).float()
            of_change = self._differences(sample, (now - before).abs_())
            of_norm = self._differences(sample, before.abs())
            # As many pairs as a chunk of elements has, so that chunks agree.
            products = torch.stack([of_change.square(), of_norm.square(), of_change * of_norm])
            products = torch.stack([products, torch.zeros_like(products)], -1).flatten(1)
            sums = torch.cat([sums_of_chunks(columns(now, before)), sums_of_chunks(sample.spread * products)], 1)
            statistics[row : row + len(sums)] = sums
            old.copy_(new)
