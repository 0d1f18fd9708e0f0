"""The layers of one device and dtype: snapshots, reduction and the ring buffer from which the host reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rwc_wandb.measure.kernels import Statistic, reduction_for
from rwc_wandb.measure.kernels.flat_memory import is_dense

HISTOGRAM_BINS = 64


@dataclass
class Histograms:
    """Per-layer histograms at one optimizer step.

    Attributes:
        step: the optimizer step.
        counts: int64 [2, L, bins]; 0 the weights, 1 the updates w - s.
        ranges: float32 [2, L, 2]: low and high end of the evenly spaced bins.
    """

    step: int
    counts: Tensor
    ranges: Tensor


class HostCopy:
    """Tensors on their way to the host: an asynchronous copy to pinned memory, or the tensors themselves on a CPU."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if tensors[0].device.type != "cuda":
            # Copied by numpy where it is on the host already: torch would wake threads for it.
            self._tensors = [torch.from_numpy(tensor.cpu().numpy().copy()) for tensor in tensors]
            return
        self._tensors = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for target, source in zip(self._tensors, tensors, strict=True):
            target.copy_(source, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensors[0].device))

    def arrived(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self) -> list[Tensor]:
        """The tensors on the host; blocks until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


class DeviceGroup:
    """Measures the layers `indices` (all on one device, of one dtype) into a buffer of `capacity` measurements."""

    def __init__(self, indices: Sequence[int], weights: Sequence[Tensor], capacity: int) -> None:
        self.indices = list(indices)
        # Reductions read memory in order: a weight with gaps (a slice, an expanded tensor) is copied before each.
        self._gapped = [(weight, weight.contiguous()) for weight in weights if not is_dense(weight)]
        copies = iter(copy for _, copy in self._gapped)
        self.weights = [weight if is_dense(weight) else next(copies) for weight in weights]
        # preserve_format keeps channels_last and other dense strides, so that memory order agrees pairwise.
        self.snapshots = [torch.empty_like(weight).copy_(weight) for weight in self.weights]
        self.reduction = reduction_for(self.weights, self.snapshots)
        device = self.weights[0].device
        self.buffer = torch.zeros(capacity, len(self.weights), len(Statistic), dtype=torch.float64, device=device)

    def measure(self, slot: int) -> None:
        self._refresh()
        self.reduction.measure(self.buffer[slot])

    def histograms(self, bins: int) -> HostCopy:
        self._refresh()
        return HostCopy(self.reduction.histograms(bins))

    def read(self, count: int) -> HostCopy:
        """Start copying the first `count` measurements to the host: float64 [count, layers, 5]."""
        return HostCopy([self.buffer[:count]])

    def _refresh(self) -> None:
        for weight, copy in self._gapped:
            copy.copy_(weight)


class HistogramsUnderway:
    """Histograms of all `layers` on their way to the host."""

    def __init__(self, step: int, groups: Sequence[DeviceGroup], layers: int) -> None:
        self._step = step
        self._layers = layers
        self._copies = [(group.indices, group.histograms(HISTOGRAM_BINS)) for group in groups]

    def arrived(self) -> bool:
        return all(copy.arrived() for _, copy in self._copies)

    def joined(self) -> Histograms:
        """Waits for what is not there yet."""
        counts = torch.zeros(2, self._layers, HISTOGRAM_BINS, dtype=torch.int64)
        ranges = torch.zeros(2, self._layers, 2)
        for indices, copy in self._copies:
            counts[:, indices], ranges[:, indices] = copy.wait()
        return Histograms(self._step, counts, ranges)


def device_groups(weights: Sequence[Tensor], capacity: int) -> list[DeviceGroup]:
    """One group per device and dtype among `weights`; those without elements are in none."""
    indices_of: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, weight in enumerate(weights):
        if weight.numel():
            indices_of.setdefault((weight.device, weight.dtype), []).append(index)
    return [DeviceGroup(indices, [weights[index] for index in indices], capacity) for indices in indices_of.values()]
