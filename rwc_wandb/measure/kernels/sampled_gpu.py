"""The reductions over samples on a GPU: one launch for all layers, and a small one that sums per layer. Needs triton.

Per element of the sample a measurement moves one sector of the weights (32 bytes), and reads and writes the snapshot:
40 bytes in float32, 36 in half precision. Sums are in float64, of differences rounded to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rwc_wandb.measure.kernels import triton_kernels
from rwc_wandb.measure.kernels.flat_memory import shifts
from rwc_wandb.measure.kernels.gpu import _LAYER_OPTIONS, DTYPES, GPUReduction, launching_on, sent
from rwc_wandb.measure.kernels.sampled_reference import ReferenceSampledReduction
from rwc_wandb.measure.kernels.sampled_triton import gather_sample, measure_sample
from rwc_wandb.measure.kernels.sampling import Sample

CHUNK = 512
"""Elements of a sample per program: 4 for each of its threads."""
# Without fusion, because fused multiply-adds round differently from all other kernels.
_OPTIONS: dict[str, Any] = {"BLOCK": CHUNK, "num_warps": 4, "enable_fp_fusion": False}


class GPUSampledReduction(ReferenceSampledReduction):
    """`kernels.SampledReduction` for float32, bfloat16 and float16 weights on a GPU, or, under Triton's interpreter, on
    a CPU. Beyond the snapshots it holds 136 bytes per chunk of 512 elements of a sample.

    Args:
        bins: compile the kernels of histograms of so many bins, too.
    """

    dense = GPUReduction

    def __init__(self, weights: Sequence[Tensor], samples: Sequence[Sample], bins: int | None = None) -> None:
        super().__init__(weights, samples)
        self._device = weights[0].device
        self._element = DTYPES[weights[0].dtype]
        first_slots = accumulate(self.counts, initial=0)
        parts = [
            _chunks(weight, slot, count, layer, sample)
            for layer, (weight, slot, count, sample) in enumerate(
                zip(self.weights, first_slots, self.counts, samples, strict=False)
            )
        ]
        self._table = torch.cat(parts).to(self._device)
        self._firsts = torch.tensor([0] + [len(part) for part in parts]).cumsum(0).to(self._device)
        self._spreads = torch.tensor([sample.spread for sample in samples], dtype=torch.float64, device=self._device)
        self._sums = torch.empty(8, len(self._table), dtype=torch.float64, device=self._device)
        # Launches of no programs compile: here, not in the middle of the first step.
        self._launch_gather(self._snapshot, chunks=0)
        self._measure(torch.empty(0, 8, dtype=torch.float64, device=self._device), chunks=0)
        if bins is not None:
            self.histograms(bins)

    def measure(self, statistics: Tensor) -> None:
        if statistics.dtype != torch.float64 or not statistics.is_contiguous():
            raise ValueError("The statistics must be a contiguous float64 tensor.")
        self._measure(statistics, len(self._table))

    def move(self, weights: Sequence[Tensor]) -> None:
        by_layer = sent(torch.tensor(shifts(weights, self.weights)), self._device)
        self._table[:, 0].add_(by_layer[self._table[:, 4]])
        super().move(weights)

    def _measure(self, statistics: Tensor, chunks: int) -> None:
        with launching_on(self._device):
            measure_sample[(chunks,)](
                self._table, self.number, self._spreads, self._snapshot, self._sums, ELEMENT=self._element, **_OPTIONS
            )
            grid = (len(statistics), 8)
            triton_kernels.sum_layers[grid](self._sums, self._firsts, statistics, **_LAYER_OPTIONS)

    def _gather(self, target: Tensor) -> None:
        self._launch_gather(target, len(self._table))

    def _launch_gather(self, target: Tensor, chunks: int) -> None:
        with launching_on(self._device):
            gather_sample[(chunks,)](self._table, self.number, target, ELEMENT=self._element, **_OPTIONS)


def _chunks(weight: Tensor, slot: int, count: int, layer: int, sample: Sample) -> Tensor:
    """The rows of a layer in the kernels' table: int64 [ceil(count / CHUNK), 9]."""
    starts = torch.arange(0, count, CHUNK)
    same = [sample.key, sample.length, sample.start]
    varying = [slot + starts, (count - starts).clamp(max=CHUNK), torch.full_like(starts, layer), sample.first + starts]
    fixed = [torch.full_like(starts, number) for number in (weight.data_ptr(), weight.numel())]
    return torch.stack([*fixed, *varying, *(torch.full_like(starts, number) for number in same)], 1)
