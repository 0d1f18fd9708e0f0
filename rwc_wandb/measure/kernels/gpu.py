"""The reductions on a GPU: one launch for all chunks of all layers, and a small one that sums per layer. Needs triton.

Per element a measurement reads the weight, reads the snapshot and writes the snapshot, once. A lane adds at most 8
values in float32, everything beyond that is added in float64: the relative error of a sum is below 5e-7, that of the
sum of ratios, whose division may be off by 2 units in the last place, below 8e-7. Elements beyond 4e37 and ratios
beyond 3.4e38 overflow to infinity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
CHUNK = 8 * BLOCK
"""Elements per program: fewer make more partial sums, with more the last programs leave multiprocessors idle."""
# Without fusion, because fused multiply-adds round differently from all other kernels.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# ptxas alone stops at 56 registers on sm_90, and spills; it spills on sm_100 with 64. ROCm's Triton has no such option.
_LIMIT_OPTIONS = _OPTIONS if torch.version.hip else _OPTIONS | {"maxnreg": 72}
LAYER_BLOCK = 4 * BLOCK
# One program per layer adds up the partial sums block after block: few and large blocks, so that it waits seldom, and
# as many threads as a program may have. AMD's warps are twice as large.
_LAYER_OPTIONS = {"num_warps": 16 if torch.version.hip else 32, "enable_fp_fusion": False}


class GPUReduction:
    """`kernels.Reduction` for float32, bfloat16 and float16 weights on a GPU, or, under Triton's interpreter, on a CPU.

    Beyond the arguments it holds 72 bytes per chunk of 8192 elements.

    Args:
        bins: compile the kernels of histograms of so many bins, too.
    """

    def __init__(self, weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int | None = None) -> None:
        # Keep the tensors alive: the table below holds bare addresses.
        self.weights = [flat(weight) for weight in weights]
        self.snapshots = [flat(snapshot) for snapshot in snapshots]
        self._device = weights[0].device
        self._element = DTYPES[weights[0].dtype]
        parts = [_chunks(*pair, layer) for layer, pair in enumerate(zip(self.weights, self.snapshots, strict=True))]
        self._table = sent(torch.cat(parts), self._device)
        self._firsts = sent(torch.tensor([0] + [len(part) for part in parts], device="cpu").cumsum(0), self._device)
        self._sums = torch.empty(5, len(self._table), dtype=torch.float64, device=self._device)
        statistics = torch.empty(len(weights), 5, dtype=torch.float64, device=self._device)
        with launching_on(self._device):
            grid, constants = (len(self._table), 1, 1), {"ELEMENT": self._element, "BLOCK": BLOCK}
            self._measure_chunks = launcher(kernels.measure_chunks, grid, constants, _OPTIONS, self._table, self._sums)
            self._sum_layers = layer_sums(self._sums, self._firsts, statistics)
        if bins is not None:
            # A whole run: Triton compiles anew for a number of layers that 16 divides.
            self.histograms(bins)

    def measure(self, statistics: Tensor) -> None:
        if statistics.dtype != torch.float64 or not statistics.is_contiguous():
            raise ValueError("The statistics must be a contiguous float64 tensor.")
        with launching_on(self._device):
            self._measure_chunks(self._table, self._sums)
            self._sum_layers(self._sums, self._firsts, statistics)

    def move(self, weights: Sequence[Tensor]) -> None:
        by_layer = sent(torch.tensor(shifts(weights, self.weights), device="cpu"), self._device)
        self._table[:, 0].add_(by_layer[self._table[:, 3]])
        self.weights = list(weights)

    def histograms(self, bins: int, is_part: bool = False) -> tuple[Tensor, Tensor]:
        layers, chunks = len(self.weights), len(self._table)
        limits = torch.empty(4, chunks, device=self._device)
        ranges = torch.empty(2, layers, 2, device=self._device)
        counts = torch.zeros(2, layers, bins, dtype=torch.int64, device=self._device)
        slots = triton.next_power_of_2(bins)
        with launching_on(self._device):
            kernels.limit_chunks[(chunks,)](self._table, limits, ELEMENT=self._element, BLOCK=BLOCK, **_LIMIT_OPTIONS)
            kernels.limit_layers[(layers, 2)](limits, self._firsts, ranges, BLOCK=LAYER_BLOCK, **_LAYER_OPTIONS)
            if is_part:
                ranges = nested(ranges, bins)
            kernels.count_chunks[(chunks,)](
                self._table, ranges, counts, layers, int(is_part),
                BINS=bins, SLOTS=slots, ELEMENT=self._element, BLOCK=BLOCK, **_OPTIONS,
            )  # fmt: skip
        return counts, ranges


def launching_on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the weights."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def launcher(
    kernel: Any, grid: tuple[int, ...], constants: Mapping[str, object], options: Mapping[str, object], *like: object
) -> Callable[..., object]:
    """Compile `kernel`; what it returns launches it on `grid` when it is called with arguments of the types and
    alignment of `like`.

    At each launch Triton looks at all arguments to find what it has compiled for them, which takes the host longer than
    the launch itself. What it finds does not change here: so it is called as it is.

    Args:
        grid: of three dimensions.
        constants: the kernel's last parameters, in its order.
    """
    nothing = (0, 1, 1)
    # A launch of no programs compiles, now and not in the middle of the first step.
    compiled = kernel[nothing](*like, **constants, **options)
    values = tuple(constants.values())
    try:
        compiled[nothing](*like, *values)
        launch = compiled[grid]
    except TypeError:
        # Triton's interpreter compiles nothing; before 3.3 compiled kernels take no constants.
        return lambda *arguments: kernel[grid](*arguments, **constants, **options)
    return lambda *arguments: launch(*arguments, *values)


def layer_sums(sums: Tensor, firsts: Tensor, statistics: Tensor) -> Callable[..., object]:
    """What launches `triton_kernels.sum_layers` on such tensors."""
    grid, constants = (*statistics.shape, 1), {"BLOCK": LAYER_BLOCK}
    return launcher(kernels.sum_layers, grid, constants, _LAYER_OPTIONS, sums, firsts, statistics)


def sent(table: Tensor, device: torch.device) -> Tensor:
    """On its way to the device, for which the host does not wait: histograms of samples have a new table each time."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _chunks(weight: Tensor, snapshot: Tensor, layer: int) -> Tensor:
    """The rows of a layer in the kernels' table: int64 [ceil(elements / CHUNK), 4]."""
    starts = torch.arange(0, weight.numel(), CHUNK, device="cpu")
    addresses = [tensor.data_ptr() + starts * tensor.element_size() for tensor in (weight, snapshot)]
    return torch.stack([*addresses, (weight.numel() - starts).clamp(max=CHUNK), torch.full_like(starts, layer)], 1)
