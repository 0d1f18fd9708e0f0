"""The layers of one device and dtype: snapshots, reduction and the buffer from which the host reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwc_wandb.measure.device.host_copy import HostCopy, HostMemory, StreamOrder
from rwc_wandb.measure.kernels import (
    EXACT,
    Reduction,
    SampledReduction,
    Statistic,
    reduction_for,
    sampled_reduction_for,
)
from rwc_wandb.measure.kernels.flat_memory import is_dense
from rwc_wandb.measure.kernels.sampled_reference import SinglePrecisionSampledReduction
from rwc_wandb.measure.kernels.sampling import Sample
from rwc_wandb.measure.kernels.single_precision import SinglePrecisionReduction

HISTOGRAM_BINS = 64
MOST_BUFFERED = 50
"""Measurements that wait on the device, before the host fetches them: the buffer stays small in long rows."""


class DeviceGroup:
    """Measures the layers `indices` (all on one device, of one dtype) into a buffer of `capacity` measurements.

    Args:
        histograms: whether `histograms` will be called: what it needs is then compiled here.
        samples: what is drawn from each of the layers; None: all of each is measured. Then call `draw` first.
    """

    def __init__(
        self,
        indices: Sequence[int],
        weights: Sequence[Tensor],
        capacity: int,
        histograms: bool = False,
        samples: Sequence[Sample] | None = None,
    ) -> None:
        self.indices = list(indices)
        self._places = {index: place for place, index in enumerate(indices)}
        # Reductions read memory in order: a weight with gaps (a slice, an expanded tensor) is copied before each.
        self._gapped = {place: weight for place, weight in enumerate(weights) if not is_dense(weight)}
        self.weights = [weight if is_dense(weight) else weight.contiguous() for weight in weights]
        device = self.weights[0].device
        self._order = StreamOrder(device)
        self._host_memory = HostMemory()
        self._sampled: SampledReduction | None = None
        bins = HISTOGRAM_BINS if histograms else None
        self.reduction: Reduction | SampledReduction
        if samples is not None:
            self.reduction = self._sampled = sampled_reduction_for(self.weights, samples, bins)
            self._snapshots = self._sampled.snapshots
        else:
            # preserve_format keeps channels_last and other dense strides, so that memory order agrees pairwise.
            self._snapshots = [torch.empty_like(weight).copy_(weight) for weight in self.weights]
            self.reduction = reduction_for(self.weights, self._snapshots, bins)
        self._first_rows: list[int] | None = None
        rows, dtype = len(self.weights), torch.float64
        if isinstance(self.reduction, (SinglePrecisionReduction, SinglePrecisionSampledReduction)):
            self._first_rows, rows, dtype = self.reduction.first_rows, self.reduction.rows, torch.float32
        columns = EXACT if samples is None else len(Statistic)
        self.buffer = torch.zeros(capacity, rows, columns, dtype=dtype, device=device)
        self._slots = self.buffer.unbind()

    @property
    def snapshots(self) -> list[Tensor]:
        """What the next measurement compares with, one per layer."""
        self._order.follow()
        return self._snapshots

    def renew(self) -> None:
        """Take all snapshots anew."""
        for index in self.indices:
            now, snapshot = self.pair(index)
            snapshot.copy_(now)

    def draw(self, number: int) -> None:
        """Compare other elements from here on, where samples are drawn: with what they are now."""
        if self._sampled is not None:
            self._refresh(self._gapped)
            self._sampled.draw(number)

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """The weights of the layer `index` as they are now, or what of them is drawn, and its snapshot."""
        place = self._places[index]
        self._refresh({place} & self._gapped.keys())
        now = self.weights[place] if self._sampled is None else self._sampled.value(place)
        return now, self._snapshots[place]

    def measure(self, slot: int) -> None:
        self._refresh(self._gapped)
        self.reduction.measure(self._slots[slot])

    def move(self, weights: Sequence[Tensor]) -> None:
        """Measure these from here on: as those before in shape, strides, dtype and device, in other memory."""
        self._order.follow()
        for place, weight in enumerate(weights):
            if place in self._gapped:
                self._gapped[place] = weight
            else:
                self.weights[place] = weight
        self.reduction.move(self.weights)

    def histograms(self, are_parts: bool = False) -> HostCopy:
        """Start copying the histograms of weights and updates to the host, as in `Reduction.histograms`."""
        self._refresh(self._gapped)
        return HostCopy(self.reduction.histograms(HISTOGRAM_BINS, are_parts), self._host_memory)

    def read(self, count: int) -> GroupStatistics:
        """Start copying the first `count` measurements to the host."""
        self._order.follow()
        return GroupStatistics(self.indices, HostCopy([self.buffer[:count]], self._host_memory), self._first_rows)

    def _refresh(self, places: Iterable[int]) -> None:
        self._order.follow()
        for place in places:
            self.weights[place].copy_(self._gapped[place])


class GroupStatistics:
    """A group's measurements on their way to the host.

    Args:
        first_rows: the first row of each layer, where the host adds up several; None: one row is one layer.
    """

    def __init__(self, indices: list[int], copy: HostCopy, first_rows: list[int] | None) -> None:
        self._indices = indices
        self._copy = copy
        self._first_rows = first_rows

    def arrived(self) -> bool:
        return self._copy.arrived()

    def write(self, statistics: NDArray[np.float64]) -> None:
        """Write this group's layers and columns into `statistics` (float64 [n, L, 5 or 8]); waits for what is not there
        yet."""
        (rows,) = (tensor.numpy() for tensor in self._copy.wait())
        if self._first_rows is not None:
            rows = np.add.reduceat(rows, self._first_rows, axis=1, dtype=np.float64)
        statistics[:, self._indices, : rows.shape[-1]] = rows
        self._copy.release()


def device_groups(
    weights: Sequence[Tensor], row: int, histograms: bool = False, samples: Sequence[Sample | None] | None = None
) -> list[DeviceGroup]:
    """One group per device and dtype among `weights`, and another for those of which samples are drawn, for rows of
    `row` measurements; empty weights are in none."""
    indices_of: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
    drawn = samples or [None] * len(weights)
    for index, (weight, sample) in enumerate(zip(weights, drawn, strict=True)):
        if weight.numel():
            indices_of.setdefault((weight.device, weight.dtype, sample is not None), []).append(index)
    return [
        DeviceGroup(
            indices,
            [weights[index] for index in indices],
            min(row, MOST_BUFFERED),
            histograms,
            [sample for index in indices if (sample := drawn[index]) is not None] if is_sampled else None,
        )
        for (*_, is_sampled), indices in indices_of.items()
    ]
