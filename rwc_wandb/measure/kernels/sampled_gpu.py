"""The reductions over samples on a GPU: one launch for all layers, and a small one that sums per layer. Needs triton.

Per element of the sample a measurement moves one sector of the weights (32 bytes), and reads and writes the snapshot:
40 bytes in float32, 36 in half precision. Sums are in float64, of differences rounded to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rwc_wandb.measure.kernels.flat_memory import shifts
from rwc_wandb.measure.kernels.gpu import DTYPES, GPUReduction, launcher, launching_on, layer_sums, sent
from rwc_wandb.measure.kernels.sampled_reference import ReferenceSampledReduction
from rwc_wandb.measure.kernels.sampled_triton import gather_sample, measure_sample
from rwc_wandb.measure.kernels.sampling import Sample

CHUNK = 512
"""Elements of a sample per program: 4 for each of its threads."""
# Without fusion, because fused multiply-adds round differently from all other kernels.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


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
        first_slots = accumulate(self.counts, initial=0)
        parts = [
            _chunks(weight, slot, count, layer, sample)
            for layer, (weight, slot, count, sample) in enumerate(
                zip(self.weights, first_slots, self.counts, samples, strict=False)
            )
        ]
        self._table = torch.cat(parts).to(self._device)
        self._firsts = torch.tensor([0] + [len(part) for part in parts], device="cpu").cumsum(0).to(self._device)
        self._spreads = torch.tensor([sample.spread for sample in samples], dtype=torch.float64, device=self._device)
        self._sums = torch.empty(8, len(self._table), dtype=torch.float64, device=self._device)
        statistics = torch.empty(len(weights), 8, dtype=torch.float64, device=self._device)
        grid, constants = (len(self._table), 1, 1), {"ELEMENT": DTYPES[weights[0].dtype], "BLOCK": CHUNK}
        with launching_on(self._device):
            self._gather_sample = launcher(
                gather_sample, grid, constants, _OPTIONS, self._table, self.number, self._snapshot
            )
            arguments = self._table, self.number, self._spreads, self._snapshot, self._sums
            self._measure_sample = launcher(measure_sample, grid, constants, _OPTIONS, *arguments)
            self._sum_layers = layer_sums(self._sums, self._firsts, statistics)
        if bins is not None:
            self.histograms(bins)

    def measure(self, statistics: Tensor) -> None:
        if statistics.dtype != torch.float64 or not statistics.is_contiguous():
            raise ValueError("The statistics must be a contiguous float64 tensor.")
        with launching_on(self._device):
            self._measure_sample(self._table, self.number, self._spreads, self._snapshot, self._sums)
            self._sum_layers(self._sums, self._firsts, statistics)

    def move(self, weights: Sequence[Tensor]) -> None:
        by_layer = sent(torch.tensor(shifts(weights, self.weights), device="cpu"), self._device)
        self._table[:, 0].add_(by_layer[self._table[:, 4]])
        super().move(weights)

    def _gather(self, target: Tensor) -> None:
        with launching_on(self._device):
            self._gather_sample(self._table, self.number, target)


def _chunks(weight: Tensor, slot: int, count: int, layer: int, sample: Sample) -> Tensor:
    """The rows of a layer in the kernels' table: int64 [ceil(count / CHUNK), 9]."""
    starts = torch.arange(0, count, CHUNK, device="cpu")
    same = [sample.key, sample.length, sample.start]
    varying = [slot + starts, (count - starts).clamp(max=CHUNK), torch.full_like(starts, layer), sample.first + starts]
    fixed = [torch.full_like(starts, number) for number in (weight.data_ptr(), weight.numel())]
    return torch.stack([*fixed, *varying, *(torch.full_like(starts, number) for number in same)], 1)
