"""What `watch(sample=...)` must have measured: the oracle on the places that were drawn, from an outsider's record."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rwc_wandb import elementwise_relative_weight_change, relative_weight_change
from rwc_wandb.measure.kernels.sampling import Sample, key_of


def in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def drawn(weight: Tensor, name: str, count: int, draw: int) -> Tensor:
    """Of a whole layer, dense, what is compared; all of it where it has no more than `count` weights."""
    size = weight.numel()
    if count >= size:
        return in_memory_order(weight)
    places = Sample(size, count, key_of(0, name), 0, size).places(draw)
    return in_memory_order(weight)[places[places < size]]


def series(
    records: Sequence[Sequence[Tensor]], names: Sequence[str], count: int, row: int, elementwise: bool = False
) -> np.ndarray:
    """[T, L] from the weights before and after each of T measurements, in rows of `row`."""
    metric = elementwise_relative_weight_change if elementwise else relative_weight_change
    return np.array(
        [
            [
                metric(drawn(now, name, count, index // row), drawn(old, name, count, index // row)).item()
                for old, now, name in zip(before, after, names, strict=True)
            ]
            for index, (before, after) in enumerate(pairwise(records))
        ]
    )


def error(new: Tensor, old: Tensor, name: str, count: int, draw: int) -> float:
    """The standard error by its definition, of residuals of neighbours."""
    size = old.numel()
    sample = Sample(size, count, key_of(0, name), 0, size)
    places = sample.places(draw)
    inside = places < size
    places = places.clamp(max=size - 1)
    v = in_memory_order(old).double()[places].abs()
    d = (in_memory_order(new).double()[places] - in_memory_order(old).double()[places]).abs()
    rate = d[inside].sum() / v[inside].sum()
    residuals = (d - rate * v).view(-1, 2)[inside.view(-1, 2).all(1)]
    squares = (1 - 1 / sample.length) * (residuals[:, 0] - residuals[:, 1]).square().sum()
    return float(torch.sqrt(squares) / v[inside].sum())
