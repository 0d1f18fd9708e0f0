"""Histograms of weights and updates at one step, on their way to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwc_wandb.measure.device.group import HISTOGRAM_BINS, DeviceGroup
from rwc_wandb.measure.distributed.ranks import Ranks, finished
from rwc_wandb.measure.kernels.nested_bins import common, moved, reach


@dataclass
class Histograms:
    """Per-layer histograms at one optimizer step.

    Attributes:
        step: the optimizer step.
        counts: int64 [2, L, bins]; 0 the weights, 1 the updates w - s.
        ranges: float32 [2, L, 2]: low and high end of the evenly spaced bins. Those of a process that measures alone
            are the least and the largest value; several ranks' are multiples of the bins' width, a power of two.
    """

    step: int
    counts: Tensor
    ranges: Tensor


class HistogramsUnderway:
    """Histograms of all `layers` on their way to the host; those of all ranks where there are several.

    Each rank counts its parts at once, in bins of its own. Then the ranks find the bins for all, as the largest of what
    each needs (`compare`), and add up the counts, which each has moved into these (`add`). No step waits for either.
    """

    def __init__(self, groups: Sequence[DeviceGroup], layers: int, ranks: Ranks | None) -> None:
        self._copies = [(group.indices, group.histograms(are_parts=ranks is not None)) for group in groups]
        self._counts = np.zeros((2, layers, HISTOGRAM_BINS), np.int64)
        self._ranges = np.zeros((2, layers, 2), np.float32)
        self._ranks = ranks
        self._reach = torch.empty(0, device="cpu")
        self._compared: Any = None
        self._added: Any = None

    def compare(self, ranks: Ranks, wait: bool) -> bool:
        """Begin to find the bins for all ranks, once counts are on the host; whether that has begun."""
        if not (wait or self._has_copies()):
            return False
        self._read()
        self._reach = torch.from_numpy(reach(self._counts, self._ranges))
        self._compared = ranks.max(self._reach)
        return True

    def add(self, ranks: Ranks, wait: bool) -> bool:
        """Begin to add up the counts, once the bins are there; whether that has begun.

        Raises:
            RuntimeError: with `wait`, what other ranks need does not come.
        """
        if not finished(self._compared, ranks.patience() if wait else None):
            return False
        ranges = common(self._reach.numpy(), HISTOGRAM_BINS)
        self._counts, self._ranges = moved(self._counts, self._ranges, ranges), ranges
        self._added = ranks.sum(torch.from_numpy(self._counts))
        return True

    def arrived(self, wait: bool) -> bool:
        """Whether they are there.

        Raises:
            RuntimeError: with `wait`, the other ranks' counts do not come.
        """
        if self._ranks is None:
            return wait or self._has_copies()
        return self._added is not None and finished(self._added, self._ranks.patience() if wait else None)

    def joined(self, step: int) -> Histograms:
        """Those of all groups and ranks, as of `step`, once they have arrived."""
        if self._ranks is None:
            self._read()
        return Histograms(step, torch.from_numpy(self._counts), torch.from_numpy(self._ranges))

    def _has_copies(self) -> bool:
        return all(copy.arrived() for _, copy in self._copies)

    def _read(self) -> None:
        for indices, copy in self._copies:
            self._counts[:, indices], self._ranges[:, indices] = (tensor.numpy() for tensor in copy.wait())
            copy.release()
