"""What a call makes the host wait for, and how much memory it takes: counted, not timed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tally:
    """Counts host reads and extra memory of the torch and numpy operations inside `with Tally() as tally:`.

    Attributes:
        host_reads: how often the host waits for a value: `aten::_local_scalar_dense` (`.item()`, `bool()`, `float()`)
            and copies from device to host that are not asynchronous. On a CPU a `.cpu()` costs nothing and is counted
            all the same: on a GPU the same line waits.
        extra_memory: the largest number of bytes that was allocated inside and not yet freed. Tensors: on a GPU
            `torch.cuda.max_memory_allocated`, elsewhere and for tensors on the host the sizes of the storages that
            operations return (what an operation allocates and frees within itself is not seen). Numpy: `tracemalloc`'s
            peak. The two peaks are added.
    """

    def __init__(self, device: torch.device) -> None:
        self.host_reads = 0
        self.extra_memory = 0
        self._device = device
        self._alive: list[tuple[StorageWeakRef, int]] = []
        self._tensor_peak = 0
        self._operations = _Operations(self)

    def __enter__(self) -> Tally:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        tracemalloc.start()
        # A method of its own and not a TorchFunctionMode, which does not see what hooks of a backward pass call.
        Tensor.cpu = self._counted_cpu()  # type: ignore[method-assign]
        self._operations.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._operations.__exit__(kind, error, traceback)
        del Tensor.cpu  # Its base class has the original.
        self.extra_memory = self._tensor_peak + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if self._device.type == "cuda":
            self.extra_memory += torch.cuda.max_memory_allocated(self._device) - self._before

    def _counted_cpu(self) -> Callable[..., Tensor]:
        original = Tensor.cpu

        def cpu(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
            # From a GPU it is a copy, which the operations count.
            self.host_reads += tensor.device.type == "cpu"
            return original(tensor, *arguments, **options)

        return cpu

    def note(self, inputs: list[Any], results: list[Any]) -> None:
        """Take notice of the storages among an operation's results that are none of its inputs'."""
        known = {storage_of(value)._cdata for value in inputs if is_counted(value)}
        for value in results:
            if is_counted(value) and storage_of(value)._cdata not in known:
                storage = storage_of(value)
                known.add(storage._cdata)
                self._alive.append((StorageWeakRef(storage), storage.nbytes()))
        self._alive = [(storage, size) for storage, size in self._alive if not storage.expired()]
        self._tensor_peak = max(self._tensor_peak, sum(size for _, size in self._alive))


def storage_of(value: Tensor) -> torch.UntypedStorage:
    return value.untyped_storage()


def is_counted(value: Any) -> bool:
    """Tensors on a GPU are in its allocator's own statistics."""
    return isinstance(value, Tensor) and value.device.type != "cuda"


class _Operations(TorchDispatchMode):
    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default or _waits_for_copy(func, args, kwargs, result):
            self.tally.host_reads += 1
        self.tally.note(tree_leaves((args, kwargs)), tree_leaves(result))
        return result


def _waits_for_copy(func: Any, args: Any, kwargs: Any, result: Any) -> bool:
    if func is torch.ops.aten.copy_.default:
        target, source = args[:2]
        is_asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    elif func is torch.ops.aten._to_copy.default:
        target, source = result, args[0]
        is_asynchronous = kwargs.get("non_blocking", False)
    else:
        return False
    return source.device.type != "cpu" and target.device.type == "cpu" and not is_asynchronous
