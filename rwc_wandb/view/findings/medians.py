"""Medians of many short rows: `np.nanmedian` takes as long for a few rows as this does for thousands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

BLOCK = 1_000_000
"""Values at a time, 8 MB: the windows of a long run are several times its size."""


def medians(values: Values) -> Values:
    """[T, ...] of `values` [T, ..., n]: the median of what is not NaN along the last axis, NaN where nothing is."""
    result = np.empty(values.shape[:-1])
    for part in blocks(len(values), values[:1].size):
        ordered = np.sort(values[part], axis=-1)  # NaN comes last.
        known = (~np.isnan(ordered)).sum(-1, keepdims=True)
        low = np.take_along_axis(ordered, np.maximum(known - 1, 0) // 2, -1)
        high = np.take_along_axis(ordered, known // 2, -1)
        result[part] = ((low + high) / 2)[..., 0]
    return result


def blocks(count: int, size: int) -> list[slice]:
    """`count` rows of `size` values each, in parts of about `BLOCK` values."""
    rows = max(1, BLOCK // max(1, size))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
