"""The reduction on devices without float64, such as Apple's mps: float32 sums of chunks, which the host adds up.

A chunk's sums come from three sums over 16 values each, so that no float32 sum has more than 16 terms: whatever the
order in which the device adds, its relative error stays below 5e-7. Everything beyond a chunk is added in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from rwc_wandb.measure.kernels.reference import ReferenceReduction

TERMS = 16
CHUNK = TERMS**3
"""Elements per chunk: 5 sums of 4 bytes for 16 KB of float32 weights."""
PIECE = 1 << 22
"""Elements at a time, a multiple of the chunk: they take 100 MB of intermediate results."""


class SinglePrecisionReduction(ReferenceReduction):
    """`kernels.Reduction` in float32; its statistics are a chunk's, not a layer's."""

    dtype = torch.float32

    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> None:
        super().__init__(weights, snapshots)
        self.piece = PIECE
        *self.first_rows, self.rows = accumulate((-(-weight.numel() // CHUNK) for weight in weights), initial=0)

    @torch.no_grad()
    def measure(self, statistics: Tensor) -> None:
        """Write each chunk's statistics into `statistics` (float32 [rows, 5]) and copy the weights into the snapshots.

        The chunks of layer i start at row `first_rows[i]`.
        """
        row = 0
        for weight, snapshot in zip(self.weights, self.snapshots, strict=True):
            for new, old in self._pieces(weight, snapshot):
                sums = sums_of_chunks(columns(new, old))
                statistics[row : row + len(sums)] = sums
                row += len(sums)
            snapshot.copy_(weight)


def columns(new: Tensor, old: Tensor) -> Tensor:
    """What the columns of `Statistic` are sums of: float32 [5, n]."""
    change, norm = (new - old).abs_(), old.abs()
    counted = norm != 0
    ratio = torch.where(counted, change / norm, 0)
    return torch.stack([change, norm, ratio, counted.float(), (~new.isfinite()).float()])


def sums_of_chunks(values: Tensor) -> Tensor:
    """Of float32 [k, n] the sums of each chunk, [chunks, k]."""
    values = functional.pad(values, (0, -values.shape[1] % CHUNK)).view(len(values), -1, TERMS, TERMS, TERMS)
    return values.sum(-1).sum(-1).sum(-1).T


@cache
def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64; found out by trying, because torch offers no question for it."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.ones(2, dtype=torch.float64, device=device).sum()
    except (TypeError, RuntimeError):
        return False
    return True
