"""The reductions over samples on a CPU, compiled. Needs numba (the extra `cpu`).

A chunk's places are computed first, its weights gathered then, and summed from the cache: so many loads wait at once.
All sums are taken in float64, and in a fixed order: results are the same bits whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from numpy.typing import NDArray
from torch import Tensor

from rwc_wandb.measure.kernels.cpu import DTYPES, CPUReduction, Threads, compiled, pointer
from rwc_wandb.measure.kernels.flat_memory import shifts
from rwc_wandb.measure.kernels.reference import ReferenceReduction
from rwc_wandb.measure.kernels.sampled_reference import ReferenceSampledReduction
from rwc_wandb.measure.kernels.sampling import MASK, MULTIPLIERS, Sample

CHUNK = 1 << 12
"""Elements of a sample per chunk."""
ELEMENTS_PER_THREAD = 1 << 16
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FIRST, SECOND = MULTIPLIERS


class CPUSampledReduction(ReferenceSampledReduction):
    """`kernels.SampledReduction` on a CPU; weights in half precision are gathered here and summed by torch.

    Args:
        bins: compile what histograms of so many bins need, too.
    """

    def __init__(self, weights: Sequence[Tensor], samples: Sequence[Sample], bins: int | None = None) -> None:
        super().__init__(weights, samples)
        self.is_compiled = weights[0].dtype in DTYPES
        self.dense = CPUReduction if self.is_compiled else ReferenceReduction
        self._one = np.float32(1) if weights[0].dtype == torch.float32 else np.float64(1)
        self._bits = BITS[weights[0].element_size()]
        self._nan = self._as_bits(torch.tensor([torch.nan], dtype=weights[0].dtype, device="cpu"))[0]
        slots = np.cumsum([0, *self.counts])
        table = [
            (weight.data_ptr(), weight.numel(), slot + start, min(CHUNK, count - start), layer, sample.first + start,
             sample.key, sample.length, sample.start)
            for layer, (weight, slot, count, sample) in enumerate(
                zip(self.weights, slots[:-1].tolist(), self.counts, samples, strict=True)
            )
            for start in range(0, count, CHUNK)
        ]  # fmt: skip
        self._table = np.array(table, np.int64).reshape(-1, 9)
        self._spreads = np.array([sample.spread for sample in samples])
        self._sums = np.zeros((len(table), 8))
        self._threads = Threads(len(table), sum(self.counts) // ELEMENTS_PER_THREAD)
        # Calls with no chunks compile: here, not in the middle of the first step.
        nothing = self._table[:0]
        _gather(nothing, 0, self._as_bits(self._snapshot), self._nan)
        if self.is_compiled:
            _measure(nothing, 0, self._spreads, self._snapshot.numpy(), self._sums[:0], self._one)
        if bins is not None:
            self.dense([weights[0].new_empty(0)], [weights[0].new_empty(0)]).histograms(bins)

    def measure(self, statistics: Tensor) -> None:
        if not self.is_compiled:
            super().measure(statistics)
            return
        snapshot = self._snapshot.numpy()

        def work(start: int, stop: int) -> None:
            sums = self._sums[start:stop]
            _measure(self._table[start:stop], self.number, self._spreads, snapshot, sums, self._one)

        self._threads.run(work)
        totals = statistics.numpy()
        totals[:] = 0
        np.add.at(totals, self._table[:, 4], self._sums)

    def move(self, weights: Sequence[Tensor]) -> None:
        self._table[:, 0] += np.array(shifts(weights, self.weights))[self._table[:, 4]]
        super().move(weights)

    def _gather(self, target: Tensor) -> None:
        bits = self._as_bits(target)
        self._threads.run(lambda start, stop: _gather(self._table[start:stop], self.number, bits, self._nan))

    def _as_bits(self, tensor: Tensor) -> NDArray[Any]:
        found: NDArray[Any] = tensor.view(self._bits).numpy()
        return found


@compiled()
def _mixed(bits: Any) -> Any:
    bits = ((bits ^ (bits >> 16)) * FIRST) & MASK
    bits = ((bits ^ (bits >> 15)) * SECOND) & MASK
    return bits ^ (bits >> 16)


@compiled()
def _find(chunk: NDArray[np.int64], slice: Any, draw: Any, places: NDArray[np.int64]) -> None:
    """Where the elements that are drawn from `slice` and the next ones stand among the rank's; see `Sample.places`."""
    key, length, start = chunk[6], chunk[7], chunk[8]
    for i in range(places.size):
        random = _mixed((_mixed((slice + i + key) & MASK) + draw) & MASK) >> 1
        places[i] = (slice + i) * length + (random * length >> 31) - start


@compiled()
def _load(weights: NDArray[Any], places: NDArray[np.int64], outside: Any, target: NDArray[Any]) -> None:
    """The weights at the places, which ascend; `outside` where another rank has them, before or behind its own."""
    first, last = 0, places.size
    while first < last and places[first] < 0:
        target[first] = outside
        first += 1
    while last > first and places[last - 1] >= weights.size:
        last -= 1
        target[last] = outside
    # Nothing else is in this loop, so that as many loads as possible wait for memory at the same time.
    for i in range(first, last):
        target[i] = weights[places[i]]


@compiled()
def _gather(table: NDArray[np.int64], draw: int, target: NDArray[Any], nan: Any) -> None:
    """Copy each chunk's weights, as bits, to its slots of `target`; `nan` where another rank has them.

    Rows of `table`: weight address, the rank's elements, first slot, elements of the chunk (an even number), layer,
    first slice, key, length of a slice and start of the sample.
    """
    places = np.empty(CHUNK, np.int64)
    for index in range(len(table)):
        chunk = table[index]
        weights = carray(pointer(chunk[0], nan), chunk[1])
        found = places[: chunk[3]]
        _find(chunk, chunk[5], draw, found)
        _load(weights, found, nan, target[chunk[2] : chunk[2] + chunk[3]])


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _measure(
    table: NDArray[np.int64],
    draw: int,
    spreads: NDArray[np.float64],
    snapshot: NDArray[Any],
    sums: NDArray[np.float64],
    one: Any,
) -> None:
    """Statistics of each chunk (rows of `table` as in `_gather`), whose weights then become its snapshot."""
    nan = one * np.nan
    places, values = np.empty(CHUNK, np.int64), np.empty(CHUNK, snapshot.dtype)
    changes, sizes = np.empty(CHUNK), np.empty(CHUNK)
    for index in range(len(table)):
        chunk = table[index]
        weights = carray(pointer(chunk[0], one), chunk[1])
        found = places[: chunk[3]]
        _find(chunk, chunk[5], draw, found)
        _load(weights, found, nan, values)
        olds = snapshot[chunk[2] : chunk[2] + chunk[3]]
        change, norm, ratio, counted, nonfinite = 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(found.size):
            is_ours = 0 <= found[i] < weights.size
            new = np.float64(values[i]) if is_ours else 0.0
            old = np.float64(olds[i]) if is_ours else 0.0
            difference, size = abs(new - old), abs(old)
            is_counted = 1.0 if size != 0.0 else 0.0
            change += difference
            norm += size
            # The compiler does not vectorise a division under a condition: divide by 1 and multiply by 0 instead.
            ratio += difference / (size if size != 0.0 else 1.0) * is_counted
            counted += is_counted
            nonfinite += 0.0 if abs(new) < np.inf else 1.0
            changes[i], sizes[i] = difference, size
            olds[i] = values[i]
        change_2, norm_2, product = 0.0, 0.0, 0.0
        for i in range(0, found.size, 2):
            is_ours = found[i] >= 0 and found[i + 1] < weights.size
            of_change = changes[i] - changes[i + 1] if is_ours else 0.0
            of_norm = sizes[i] - sizes[i + 1] if is_ours else 0.0
            change_2 += of_change * of_change
            norm_2 += of_norm * of_norm
            product += of_change * of_norm
        spread = spreads[chunk[4]]
        sums[index, 0] = change
        sums[index, 1] = norm
        sums[index, 2] = ratio
        sums[index, 3] = counted
        sums[index, 4] = nonfinite
        sums[index, 5] = spread * change_2
        sums[index, 6] = spread * norm_2
        sums[index, 7] = spread * product
