"""Bins for histograms of parts of a layer, such as ranks have, whose counts are then added up.

A part's bins are 2^k wide and begin at multiples of 2^k; k is the least at which `bins` of them hold all of its values.
They nest in those of any larger k: counts move into the bins of all parts together, exactly and without the values, and
are then what one pass over the whole layer finds. So each part is counted at once, before it knows the others' ranges.

Widths are powers of two in float32, by which division rounds nothing: value x is in bin floor(x / 2^k).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_WIDTHS = 23
"""Values are below 2^23 widths, so that the ends of all bins are exact in float32; a width is at least 2^-126."""


def nested(ranges: Tensor, bins: int) -> Tensor:
    """The low and high ends of the bins for values between these limits.

    Args:
        ranges: float32 [..., 2]: least and largest value; on any device, which nothing here waits for.
        bins: how many, a power of two from 2 on.

    Returns:
        float32 [..., 2]; infinite where the ends lie beyond float32, as those of values beyond 2^120 may.
    """
    low, high = ranges.unbind(-1)
    size = torch.maximum(low.abs(), high.abs())
    narrow = _exponent(high - low) - bins.bit_length()
    exponent = torch.maximum(narrow, _exponent(size) - MOST_WIDTHS).clamp(min=-126)
    for _ in range(2):  # At most twice are these too narrow.
        width = _power(exponent)
        exponent = exponent + ((high / width).floor() - (low / width).floor() >= bins).int()
    width = _power(exponent)
    first = (low / width).floor()
    return torch.stack([first * width, (first + bins) * width], -1)


def reach(counts: NDArray[np.int64], ranges: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of a part's histograms ([..., bins] and [..., 2]) what the parts must know of each other: the largest of each
    number over all parts goes to `common`.

    Returns:
        float64 [..., 3]: minus the begin of the first bin that is not empty, that of the last one, and the width.
    """
    starts, width = _bins(ranges, counts.shape[-1])
    empty = counts == 0
    found = np.stack([np.where(empty, -np.inf, -starts).max(-1), np.where(empty, -np.inf, starts).max(-1), width], -1)
    found[empty.all(-1)] = -np.inf
    found[~empty.all(-1) & ~np.isfinite(width)] = np.inf
    return found


def common(reach: NDArray[np.float64], bins: int) -> NDArray[np.float32]:
    """The ends [..., 2] of the bins for all parts; 0 where no part has a value, or where they lie beyond float32."""
    known = np.isfinite(reach).all(-1, keepdims=True)
    low, last, width = np.moveaxis(np.where(known, reach * (-1, 1, 1), 1), -1, 0)
    while (narrow := np.floor(last / width) - np.floor(low / width) >= bins).any():
        width = np.where(narrow, 2 * width, width)
    first = np.floor(low / width)
    with np.errstate(over="ignore"):
        ends = np.stack([first * width, (first + bins) * width], -1).astype(np.float32)
    return np.where(known & np.isfinite(ends).all(-1, keepdims=True), ends, np.float32(0))


def moved(counts: NDArray[np.int64], ranges: NDArray[np.float32], onto: NDArray[np.float32]) -> NDArray[np.int64]:
    """A part's counts [..., bins] in the bins `onto`, those that `common` gives."""
    starts, _ = _bins(ranges, counts.shape[-1])
    new_starts, width = _bins(onto, counts.shape[-1])
    found = np.zeros_like(counts)
    full = np.nonzero((counts > 0) & (width[..., None] > 0))
    layers = full[:-1]
    # Each divided for itself: their difference would be rounded.
    places = np.floor(starts[full] / width[layers]) - new_starts[..., 0][layers] / width[layers]
    np.add.at(found, (*layers, places.astype(np.int64)), counts[full])
    return found


def _bins(ranges: NDArray[np.float32], bins: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where the bins begin, [..., bins], and how wide they are, [...]: exact."""
    low, high = np.moveaxis(ranges.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore"):  # Both ends may be infinite.
        width = (high - low) / bins
        return low[..., None] + width[..., None] * np.arange(bins), width


def _exponent(values: Tensor) -> Tensor:
    """int32 k with values < 2^k and, from 2^-126 on, values >= 2^(k-1). By bits, because logarithms round."""
    return (values.view(torch.int32) >> 23) - 126


def _power(exponents: Tensor) -> Tensor:
    """float32 2^k, for k from -126 to 127."""
    return ((exponents + 127) << 23).view(torch.float32)
