"""The layers of one device and dtype: snapshots, reduction and the buffer from which the host reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwc_wandb.measure.device.host_copy import HostCopy, HostMemory, StreamOrder
from rwc_wandb.measure.kernels import Reduction, Statistic, reduction_for
from rwc_wandb.measure.kernels.flat_memory import is_dense
from rwc_wandb.measure.kernels.single_precision import SinglePrecisionReduction, has_float64

HISTOGRAM_BINS = 64
MOST_BUFFERED = 50
"""Measurements that wait on the device, before the host fetches them: the buffer stays small in long rows."""


class DeviceGroup:
    """Measures the layers `indices` (all on one device, of one dtype) into a buffer of `capacity` measurements.

    Args:
        histograms: whether `histograms` will be called: what it needs is then compiled here.
    """

    def __init__(
        self, indices: Sequence[int], weights: Sequence[Tensor], capacity: int, histograms: bool = False
    ) -> None:
        self.indices = list(indices)
        # Reductions read memory in order: a weight with gaps (a slice, an expanded tensor) is copied before each.
        self._gapped = [(weight, weight.contiguous()) for weight in weights if not is_dense(weight)]
        copies = iter(copy for _, copy in self._gapped)
        self.weights = [weight if is_dense(weight) else next(copies) for weight in weights]
        # preserve_format keeps channels_last and other dense strides, so that memory order agrees pairwise.
        self._snapshots = [torch.empty_like(weight).copy_(weight) for weight in self.weights]
        device = self.weights[0].device
        self._order = StreamOrder(device)
        self._host_memory = HostMemory()
        self._first_rows: list[int] | None = None
        self.reduction: Reduction
        if has_float64(device):
            bins = HISTOGRAM_BINS if histograms else None
            self.reduction = reduction_for(self.weights, self._snapshots, bins)
            rows, dtype = len(self.weights), torch.float64
        else:
            self.reduction = SinglePrecisionReduction(self.weights, self._snapshots)
            self._first_rows = self.reduction.first_rows
            rows, dtype = self.reduction.rows, torch.float32
        self.buffer = torch.zeros(capacity, rows, len(Statistic), dtype=dtype, device=device)

    @property
    def snapshots(self) -> list[Tensor]:
        """What the next measurement compares with, one per layer."""
        self._order.follow()
        return self._snapshots

    def measure(self, slot: int) -> None:
        self._refresh()
        self.reduction.measure(self.buffer[slot])

    def histograms(self) -> HostCopy:
        """Start copying the histograms of weights and updates to the host, as in `Reduction.histograms`."""
        self._refresh()
        return HostCopy(self.reduction.histograms(HISTOGRAM_BINS), self._host_memory)

    def read(self, count: int) -> GroupStatistics:
        """Start copying the first `count` measurements to the host."""
        self._order.follow()
        return GroupStatistics(self.indices, HostCopy([self.buffer[:count]], self._host_memory), self._first_rows)

    def _refresh(self) -> None:
        self._order.follow()
        for weight, copy in self._gapped:
            copy.copy_(weight)


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
        """Write this group's layers into `statistics` (float64 [n, L, 5]); waits for what is not there yet."""
        (rows,) = (tensor.numpy() for tensor in self._copy.wait())
        if self._first_rows is not None:
            rows = np.add.reduceat(rows, self._first_rows, axis=1, dtype=np.float64)
        statistics[:, self._indices] = rows
        self._copy.release()


def device_groups(weights: Sequence[Tensor], row: int, histograms: bool = False) -> list[DeviceGroup]:
    """One group per device and dtype among `weights`, for rows of `row` measurements; empty weights are in none."""
    indices_of: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, weight in enumerate(weights):
        if weight.numel():
            indices_of.setdefault((weight.device, weight.dtype), []).append(index)
    return [
        DeviceGroup(indices, [weights[index] for index in indices], min(row, MOST_BUFFERED), histograms)
        for indices in indices_of.values()
    ]
