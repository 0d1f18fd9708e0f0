"""Histograms of weights and updates at one step, on their way to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rwc_wandb.measure.device.group import HISTOGRAM_BINS, DeviceGroup


@dataclass
class Histograms:
    """Per-layer histograms at one optimizer step.

    Attributes:
        step: the optimizer step.
        counts: int64 [2, L, bins]; 0 the weights, 1 the updates w - s.
        ranges: float32 [2, L, 2]: low and high end of the evenly spaced bins.
    """

    step: int
    counts: Tensor
    ranges: Tensor


class HistogramsUnderway:
    """Histograms of all `layers` on their way to the host."""

    def __init__(self, groups: Sequence[DeviceGroup], layers: int) -> None:
        self._layers = layers
        self._copies = [(group.indices, group.histograms()) for group in groups]

    def arrived(self) -> bool:
        return all(copy.arrived() for _, copy in self._copies)

    def joined(self, step: int) -> Histograms:
        """Those of all groups, as of `step`; waits for what is not there yet."""
        counts = torch.zeros(2, self._layers, HISTOGRAM_BINS, dtype=torch.int64)
        ranges = torch.zeros(2, self._layers, 2)
        for indices, copy in self._copies:
            counts[:, indices], ranges[:, indices] = copy.wait()
            copy.release()
        return Histograms(step, counts, ranges)
