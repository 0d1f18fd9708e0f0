"""The reductions on a GPU: one launch for all chunks of all layers, and a small one that sums per layer. Needs triton.

Per element a measurement reads the weight, reads the snapshot and writes the snapshot, once. A lane adds at most 8
values in float32, everything beyond that is added in float64: the relative error of a sum is below 5e-7, that of the
sum of ratios, whose division may be off by 2 units in the last place, below 8e-7. Elements beyond 4e37 and ratios
beyond 3.4e38 overflow to infinity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwc_wandb.measure.kernels import triton_kernels as kernels
from rwc_wandb.measure.kernels.flat_memory import flat, shifts
from rwc_wandb.measure.kernels.nested_bins import nested

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK = 1024
"""Elements that a program works on at a time: 8 for each of its threads, two accesses of 16 bytes in float32."""
CHUNK = 4 * BLOCK
"""Elements per program."""
LARGE_CHUNK = 8 * BLOCK
LARGE = 1 << 25
"""From this many elements on chunks are twice as large: enough for all multiprocessors, and fewer partial sums."""
# Without fusion, because fused multiply-adds round differently from all other kernels.
_OPTIONS = {"BLOCK": BLOCK, "num_warps": 4, "enable_fp_fusion": False}
# ptxas alone stops at 56 registers on sm_90, and spills; it spills on sm_100 with 64. ROCm's Triton has no such option.
_LIMIT_OPTIONS = _OPTIONS if torch.version.hip else _OPTIONS | {"maxnreg": 72}
# One program per layer adds up the partial sums block after block: few and large blocks, so that it waits seldom.
_LAYER_OPTIONS = {"BLOCK": 4 * BLOCK, "num_warps": 8, "enable_fp_fusion": False}


class GPUReduction:
    """`kernels.Reduction` for float32, bfloat16 and float16 weights on a GPU, or, under Triton's interpreter, on a CPU.

    Beyond the arguments it holds 72 bytes per chunk of 4096 elements (of 8192 from 33 million elements on).

    Args:
        bins: compile the kernels of histograms of so many bins, too.
    """

    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int | None = None) -> None:
        # Keep the tensors alive: the table below holds bare addresses.
        self.weights = [flat(weight) for weight in weights]
        self.snapshots = [flat(snapshot) for snapshot in snapshots]
        self._device = weights[0].device
        self._element = DTYPES[weights[0].dtype]
        chunk = CHUNK if sum(weight.numel() for weight in self.weights) < LARGE else LARGE_CHUNK
        parts = [
            _chunks(*pair, layer, chunk) for layer, pair in enumerate(zip(self.weights, self.snapshots, strict=True))
        ]
        self._table = sent(torch.cat(parts), self._device)
        self._firsts = sent(torch.tensor([0] + [len(part) for part in parts]).cumsum(0), self._device)
        self._sums = torch.empty(5, len(self._table), dtype=torch.float64, device=self._device)
        # A launch of no programs compiles: here, not in the middle of the first step.
        self._measure(torch.empty(0, 5, dtype=torch.float64, device=self._device), chunks=0)
        if bins is not None:
            # A whole run: Triton compiles anew for a number of layers that 16 divides.
            self.histograms(bins)

    def measure(self, statistics: Tensor) -> None:
        if statistics.dtype != torch.float64 or not statistics.is_contiguous():
            raise ValueError("The statistics must be a contiguous float64 tensor.")
        self._measure(statistics, len(self._table))

    def move(self, weights: Sequence[Tensor]) -> None:
        by_layer = sent(torch.tensor(shifts(weights, self.weights)), self._device)
        self._table[:, 0].add_(by_layer[self._table[:, 3]])
        self.weights = list(weights)

    def _measure(self, statistics: Tensor, chunks: int) -> None:
        with launching_on(self._device):
            kernels.measure_chunks[(chunks,)](self._table, self._sums, ELEMENT=self._element, **_OPTIONS)
            kernels.sum_layers[(len(statistics), 5)](self._sums, self._firsts, statistics, **_LAYER_OPTIONS)

    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        layers, chunks = len(self.weights), len(self._table)
        limits = torch.empty(4, chunks, device=self._device)
        ranges = torch.empty(2, layers, 2, device=self._device)
        counts = torch.zeros(2, layers, bins, dtype=torch.int64, device=self._device)
        slots = triton.next_power_of_2(bins)
        with launching_on(self._device):
            kernels.limit_chunks[(chunks,)](self._table, limits, ELEMENT=self._element, **_LIMIT_OPTIONS)
            kernels.limit_layers[(layers, 2)](limits, self._firsts, ranges, **_LAYER_OPTIONS)
            if is_part:
                ranges = nested(ranges, bins)
            kernels.count_chunks[(chunks,)](
                self._table, ranges, counts, layers, int(is_part),
                BINS=bins, SLOTS=slots, ELEMENT=self._element, **_OPTIONS,
            )  # fmt: skip
        return counts, ranges


def launching_on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the weights."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def sent(table: Tensor, device: torch.device) -> Tensor:
    """On its way to the device, for which the host does not wait: histograms of samples have a new table each time."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _chunks(weight: Tensor, snapshot: Tensor, layer: int, chunk: int) -> Tensor:
    """The rows of a layer in the kernels' table: int64 [ceil(elements / chunk), 4]."""
    starts = torch.arange(0, weight.numel(), chunk)
    addresses = [tensor.data_ptr() + starts * tensor.element_size() for tensor in (weight, snapshot)]
    return torch.stack([*addresses, (weight.numel() - starts).clamp(max=chunk), torch.full_like(starts, layer)], 1)
