"""The reductions on a CPU: one compiled pass over weights and snapshots. Needs numba (the extra `cpu`).

The work is cut into chunks of fixed size and their sums are added in a fixed order: results are the same bits
whatever the number of threads. Weights beyond 6e35 overflow (512 of them are summed in float32).

The threads are Python's own, because the compiled code releases the interpreter lock. Numba's threading layers are not
used: they fail when two threads call them, or after a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from rwc_wandb.measure.kernels.flat_memory import flat, shifts
from rwc_wandb.measure.kernels.nested_bins import nested

CHUNK = 1 << 15
"""Elements per chunk."""
BLOCK = 512
"""Elements summed in the weights' own precision before the sum goes on in float64: both fit the first-level cache."""
ELEMENTS_PER_THREAD = 1 << 18
"""Below this, starting a thread takes longer than it saves."""
DTYPES = (torch.float32, torch.float64)

_REORDER = {"reassoc", "nsz", "contract"}
"""What lets the compiler sum in vector lanes; NaN and infinity keep their meaning."""


class CPUReduction:
    """`kernels.Reduction` for float32 and float64 weights on a CPU.

    Args:
        bins: compile what histograms of so many bins need, too.
    """

    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int | None = None) -> None:
        # Keep the tensors alive: the table below holds bare addresses.
        self.weights = [flat(weight) for weight in weights]
        self.snapshots = [flat(snapshot) for snapshot in snapshots]
        self._one = np.float32(1) if weights[0].dtype == torch.float32 else np.float64(1)
        table = [
            (weight[start:].data_ptr(), snapshot[start:].data_ptr(), min(CHUNK, weight.numel() - start), layer)
            for layer, (weight, snapshot) in enumerate(zip(self.weights, self.snapshots, strict=True))
            for start in range(0, weight.numel(), CHUNK)
        ]
        self._table = np.array(table, np.int64).reshape(-1, 4)
        self._sums = np.zeros((len(table), 5))
        self._threads = Threads(len(table), int(self._table[:, 2].sum()) // ELEMENTS_PER_THREAD)
        # A call with no chunks compiles: here, not in the middle of the first step.
        _measure(self._table[:0], self._sums[:0], self._one)
        if bins is not None:
            _limits(self._table[:0], np.empty((0, 2, 2)), self._one)
            counts = np.zeros((2, len(weights), bins), np.int64)
            _count(self._table[:0], np.zeros((2, len(weights), 2), np.float32), counts, False, self._one)

    def measure(self, statistics: Tensor) -> None:
        self._threads.run(lambda start, stop: _measure(self._table[start:stop], self._sums[start:stop], self._one))
        totals = statistics.numpy()
        totals[:] = 0
        np.add.at(totals, self._table[:, 3], self._sums)

    def move(self, weights: Sequence[Tensor]) -> None:
        self._table[:, 0] += np.array(shifts(weights, self.weights))[self._table[:, 3]]
        self.weights = list(weights)

    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        layers = len(self.weights)
        limits = np.empty((len(self._table), 2, 2))
        self._threads.run(lambda start, stop: _limits(self._table[start:stop], limits[start:stop], self._one))
        ranges = np.zeros((2, layers, 2), np.float32)
        for layer in range(layers):
            of_layer = limits[self._table[:, 3] == layer]
            if len(of_layer):
                low, high = of_layer[:, :, 0].min(0), of_layer[:, :, 1].max(0)
                ranges[:, layer] = np.where((low <= high)[:, None], np.stack([low, high], 1), 0)
        if is_part:
            ranges = nested(torch.from_numpy(ranges), bins).numpy()
        starts = self._threads.bounds[:-1]
        parts = np.zeros((len(starts), 2, layers, bins), np.int64)
        counts = dict(zip(starts, parts, strict=True))

        def count(start: int, stop: int) -> None:
            _count(self._table[start:stop], ranges, counts[start], is_part, self._one)

        self._threads.run(count)
        return torch.from_numpy(parts.sum(0)), torch.from_numpy(ranges)


class Threads:
    """Works on chunks 0..count in up to `most` threads, or as many as torch has: each takes consecutive ones."""

    def __init__(self, count: int, most: int) -> None:
        threads = max(1, min(torch.get_num_threads(), most))
        # The pool's threads end when this object is collected.
        self._pool = ThreadPoolExecutor(threads - 1, "rwc_wandb") if threads > 1 else None
        self.bounds: list[int] = np.linspace(0, count, threads + 1).astype(int).tolist()

    def run(self, work: Callable[[int, int], None]) -> None:
        """Call `work` with the first and the last bound of each thread's chunks."""
        first, *others = pairwise(self.bounds)
        running = [_begun(self._pool, work, *span) for span in others] if self._pool else []
        work(*first)
        # Without a limit: these are the sums themselves, which wait for nothing.
        for future in running:
            if future is not None:
                future.result()


def _begun(pool: ThreadPoolExecutor, work: Callable[[int, int], None], start: int, stop: int) -> Future[None] | None:
    """The span in a thread; None: it is done, because the interpreter ends, and its pools take no work in `atexit`."""
    try:
        return pool.submit(work, start, stop)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
    work(start, stop)
    return None


@intrinsic
def pointer(context: Any, address: Any, element: Any) -> Any:
    """The pointer to elements of the type of `element` at an address; numba offers no such cast."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, element), build


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:  # Numba finds no folder that it can write its cache to.
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


@compiled(fastmath=_REORDER)
def _measure(table: NDArray[np.int64], sums: NDArray[np.float64], one: Any) -> None:
    """Statistics of each chunk, which then becomes its snapshot.

    Rows of `table`: weight address, snapshot address, elements.
    """
    zero = one - one
    for chunk in range(len(table)):
        weights = carray(pointer(table[chunk, 0], one), table[chunk, 2])
        snapshots = carray(pointer(table[chunk, 1], one), table[chunk, 2])
        sums[chunk] = 0
        for start in range(0, weights.size, BLOCK):
            new, old = weights[start : start + BLOCK], snapshots[start : start + BLOCK]
            change, norm, ratio, counted, nonfinite = zero, zero, zero, zero, zero
            for i in range(new.size):
                difference, size = abs(new[i] - old[i]), abs(old[i])
                is_counted = one if size != zero else zero
                change += difference
                norm += size
                # The compiler does not vectorise a division under a condition: divide by 1 and multiply by 0 instead.
                ratio += difference / (size if size != zero else one) * is_counted
                counted += is_counted
                nonfinite += zero if abs(new[i]) < np.inf else one
                old[i] = new[i]
            sums[chunk, 0] += change
            sums[chunk, 1] += norm
            sums[chunk, 2] += ratio
            sums[chunk, 3] += counted
            sums[chunk, 4] += nonfinite


@compiled()
def _limits(table: NDArray[np.int64], limits: NDArray[np.float64], one: Any) -> None:
    """The least and the largest finite value of each chunk's weights [chunk, 0] and updates [chunk, 1], as float32."""
    for chunk in range(len(table)):
        new = carray(pointer(table[chunk, 0], one), table[chunk, 2])
        old = carray(pointer(table[chunk, 1], one), table[chunk, 2])
        limits[chunk, :, 0] = np.inf
        limits[chunk, :, 1] = -np.inf
        for i in range(new.size):
            weight, update = np.float32(new[i]), np.float32(new[i]) - np.float32(old[i])
            if abs(weight) < np.inf:
                limits[chunk, 0, 0] = min(limits[chunk, 0, 0], weight)
                limits[chunk, 0, 1] = max(limits[chunk, 0, 1], weight)
            if abs(update) < np.inf:
                limits[chunk, 1, 0] = min(limits[chunk, 1, 0], update)
                limits[chunk, 1, 1] = max(limits[chunk, 1, 1], update)


@compiled()
def _count(
    table: NDArray[np.int64], ranges: NDArray[np.float32], counts: NDArray[np.int64], is_part: bool, one: Any
) -> None:
    """Add each chunk to the bins of its layer; the rule of `reference._count`, in float32."""
    bins = counts.shape[2]
    for chunk in range(len(table)):
        new = carray(pointer(table[chunk, 0], one), table[chunk, 2])
        old = carray(pointer(table[chunk, 1], one), table[chunk, 2])
        layer = table[chunk, 3]
        for kind in range(2):
            low, high = ranges[kind, layer, 0], ranges[kind, layer, 1]
            width = high - low if high > low else np.float32(1)
            zero = np.float32(0) if is_part else low
            first = (low - zero) / width * np.float32(bins)
            for i in range(new.size):
                value = np.float32(new[i]) if kind == 0 else np.float32(new[i]) - np.float32(old[i])
                if abs(value) < np.inf:
                    bin = np.int64(np.floor((value - zero) / width * np.float32(bins)) - first)
                    counts[kind, layer, min(max(bin, 0), bins - 1)] += 1
