"""Histograms of a layer's parts, added up, against numpy's of the whole layer; by every implementation.

`test_interpreter.py` runs this file once more, with the Triton kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import INTERPRETED, Kind, every_kind, every_kind_and_dtype, pair, quickly
from torch import Tensor

from rwc_wandb.measure.kernels.nested_bins import common, moved, reach

pytestmark = pytest.mark.gpu
BINS = 64
NAN, INF = float("nan"), float("inf")


def expected(values: np.ndarray) -> tuple[list[int], list[float]]:
    """Counts and ends in float64: the narrowest bins, a power of two wide, of which 64 hold all and 2^23 reach them."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return [0] * BINS, [0, 0]
    low, high = values.min(), values.max()
    width = next(
        width
        for width in (2.0**exponent for exponent in range(-126, 124))
        if high // width - low // width < BINS and np.abs(values).max() < 2**23 * width
    )
    ends = low // width * width, (low // width + BINS) * width
    return np.histogram(values, np.linspace(*ends, BINS + 1))[0].tolist(), list(ends)


def added(kind: Kind, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Counts [2, 1, 64] and ends [2, 1, 2] of parts (weights, snapshots), as ranks add them up."""
    made = [kind.build()([new], [old]).histograms(BINS, is_part=True) for new, old in parts]
    found = [tuple(tensor.cpu().numpy() for tensor in one) for one in made]
    ends = common(np.max([reach(*one) for one in found], 0), BINS)
    return np.sum([moved(*one, ends) for one in found], 0), ends


def check(kind: Kind, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    counts, ends = added(kind, parts)
    new, old = (torch.cat([part[which] for part in parts]).cpu().float().numpy() for which in (0, 1))
    with np.errstate(invalid="ignore"):
        kinds = (new, new - old)
    for which, values in enumerate(kinds):
        wanted, wanted_ends = expected(values)
        assert ends[which, 0].tolist() == wanted_ends
        assert counts[which, 0].tolist() == wanted


numbers = st.floats(-1000, 1000, width=32) | st.floats(0.5, 1, width=32).map(lambda value: value * 2.0**-40)
numbers |= st.sampled_from([0.0, -0.0, 1.0, NAN, INF, -INF, -(2.0**-30), 2.0**-10, 1 - 2.0**-24])


@every_kind_and_dtype
@quickly
@given(st.lists(st.lists(numbers, max_size=40), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_parts_of_any_values(kind: Kind, dtype: torch.dtype, values: list[list[float]], random: object) -> None:
    parts = []
    for part in values:
        new = torch.tensor(part, dtype=dtype, device=kind.device)
        old = new.clone()
        old[::2] = 0
        old[1::3] = old[1::3] * 1.5
        parts.append((new, old))
    check(kind, parts)


@every_kind_and_dtype
def test_of_large_layers(kind: Kind, dtype: torch.dtype) -> None:
    new, old = pair(kind, dtype, 9001)
    for bounds in ((0, 9001), (0, 4096, 9001), (0, 3, 3, 5000, 9001)):
        check(kind, [(new[start:stop].clone(), old[start:stop].clone()) for start, stop in pairwise(bounds)])


@every_kind
@pytest.mark.parametrize(
    "values",
    [
        [[]],
        [[0.0], [0.0, 0.0], []],
        [[2.5] * 3, [2.5]],
        [[1000.0] * 3, [2.0**-100, -(2.0**-100)]],
        [[NAN, INF], [1.0, 2.0]],
        [[NAN], [-INF]],
        [[-(2.0**-60), 0.0, 2.0**-60], [1.0], [-1.0]],
        [[1.0, 1 + 2.0**-23], [1 - 2.0**-24]],
        [[2.0**100], [-(2.0**119)]],
        [[1.0, 2.0], [-3e38]],
        [[2.0**-126 * number for number in range(-9, 100)], [2.0**-126]],
    ],
    ids=str,
)
def test_at_the_edges(kind: Kind, values: list[list[float]]) -> None:
    tensors = [torch.tensor(part, device=kind.device) for part in values]
    check(kind, [(tensor, torch.zeros_like(tensor)) for tensor in tensors])
    check(kind, [(tensor, tensor.clone()) for tensor in tensors])


@every_kind
def test_values_that_are_too_large_leave_no_histogram_that_lacks_them(kind: Kind) -> None:
    for large in ([3e38, -3e38], [3e38]):
        parts = [torch.tensor(values, device=kind.device) for values in ([1.0, 2.0], large)]
        counts, ends = added(kind, [(part, part.clone()) for part in parts])
        assert not counts[0].any()
        assert not ends[0].any()
        assert counts[1].sum() == 2 + len(large)


@pytest.mark.skipif(INTERPRETED, reason="of numpy")
def test_most_bins_are_used() -> None:
    """Of 64 bins more than half, whatever the values, if they are further apart than float32 tells."""
    generator = np.random.default_rng(0)
    for scale in 10.0 ** generator.uniform(-20, 20, 200):
        counts, _ = expected((scale * generator.normal(generator.uniform(-9, 9), 1, 500)).astype(np.float32))
        assert np.nonzero(counts)[0][[0, -1]].tolist() >= [0, 31]
