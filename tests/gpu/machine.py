"""Where the tests of this room run: on the GPU where there is one, else small and on the CPU, as a rehearsal."""

from __future__ import annotations

import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SLICE = 1 << 26


def sums(new: Tensor, old: Tensor) -> Tensor:
    """The statistics of a layer (float64 [5], columns as in `Statistic`) as the definition has them, in float64, by
    slices: a layer of 10^9 elements has no room for all its differences at once."""
    total = torch.zeros(5, dtype=torch.float64, device=new.device)
    order = tuple(sorted(range(new.dim()), key=lambda axis: -new.stride(axis)))
    flat = (tensor.permute(order).reshape(-1) for tensor in (new, old))
    for w, s in zip(*(tensor.split(SLICE) for tensor in flat), strict=True):
        w, s = w.double(), s.double()
        change = (w - s).abs()
        ratios = change[s != 0] / s[s != 0].abs()
        nonfinite = (~w.isfinite()).sum()
        parts = [change.sum(), s.abs().sum(), ratios.sum(), (s != 0).sum(), nonfinite]
        total += torch.stack([part.double() for part in parts])
    return total


def rwc(new: Tensor, old: Tensor) -> float:
    """Eq. 1 in float64."""
    change, norm, *_ = sums(new, old).tolist()
    return change / norm
