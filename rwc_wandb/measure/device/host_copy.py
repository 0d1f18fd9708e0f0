"""From device to host without a wait, and in order when work is spread over several streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class HostMemory:
    """Memory in which copies arrive, on a GPU's host pinned; kept for the next copy once its content has been read."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Memory, and a view of it with the dtype and shape of `like`."""
        size = like.numel() * like.element_size()
        large_enough = [index for index, memory in enumerate(self._free) if memory.numel() >= size]
        if large_enough:
            memory = self._free.pop(min(large_enough, key=lambda index: self._free[index].numel()))
        else:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=like.is_cuda, device="cpu")
        return memory, memory[:size].view(like.dtype).view(like.shape)

    def give_back(self, memory: Sequence[Tensor]) -> None:
        self._free += memory


class HostCopy:
    """Tensors on their way to the host: an asynchronous copy into `memory`, or the tensors themselves on a CPU."""

    def __init__(self, tensors: Sequence[Tensor], memory: HostMemory) -> None:
        device = tensors[0].device
        self._memory = memory
        self._taken: list[Tensor] = []
        self._event: Any = _new_event(device)
        if self._event is None:
            # Copied by numpy where it is on the host already: torch would wake threads for it.
            self._tensors = [torch.from_numpy(tensor.cpu().numpy().copy()) for tensor in tensors]
            return
        self._tensors = []
        for tensor in tensors:
            taken, target = memory.take(tensor)
            target.copy_(tensor, non_blocking=True)
            self._taken.append(taken)
            self._tensors.append(target)
        stream = current_stream(device)
        self._event.record() if stream is None else self._event.record(stream)

    def arrived(self) -> bool:
        return self._event is None or bool(self._event.query())

    def wait(self) -> list[Tensor]:
        """The tensors on the host, until `release`; blocks until they are there.

        Events know no limit: the wait ends when the device has done what was launched before, or reports an error.
        """
        if self._event is not None:
            self._event.synchronize()
        return self._tensors

    def release(self) -> None:
        """The tensors have been read: later copies may overwrite them."""
        self._memory.give_back(self._taken)
        self._taken = []


class StreamOrder:
    """Makes each use of some memory wait, on the device, for the use before it, where that was on another stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = current_stream(device)

    def follow(self) -> None:
        """Call it before each use."""
        if self._last is None:
            return
        stream = current_stream(self._device)
        if stream != self._last:
            stream.wait_stream(self._last)
            self._last = stream


def current_stream(device: torch.device) -> Any:
    """The device's current stream; None where there are no streams to choose from (a CPU, Apple's mps)."""
    current = None if device.type == "cpu" else getattr(torch.get_device_module(device), "current_stream", None)
    return current and current(device)


def _new_event(device: torch.device) -> Any:
    """An event of the device's kind; None on a CPU, and where copies cannot be waited for one by one."""
    kind = None if device.type == "cpu" else getattr(torch.get_device_module(device), "Event", None)
    return kind and kind()
