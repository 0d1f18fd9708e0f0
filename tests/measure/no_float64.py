"""A device that refuses float64 as Apple's mps does and works asynchronously: it lives in this process's memory.

Importing this registers it, once and for all, as the device type `nodouble`: only for processes of their own. Tensors
are wrappers of tensors on the CPU, made within `no_float64`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "nodouble"
DEVICE = torch.device("privateuseone:0")
copies: list[Callable[[], object]] = []
"""Asynchronous copies to the host, in order, that have not been waited for."""
waits: list[str] = []
"""What has made the host wait for the device so far."""


class Event:
    """Has happened when it is asked for the second time, or waited for."""

    def __init__(self) -> None:
        self._asked = 0

    def record(self) -> None:
        self._mark = len(copies)

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 1:
            self._arrive()
        return self._asked > 1

    def synchronize(self) -> None:
        if self._asked < 2:
            waits.append("event")
            self._asked = 2
        self._arrive()

    def _arrive(self) -> None:
        for index in range(self._mark):
            copies[index]()
            copies[index] = lambda: None


class Module:
    """What `torch.nodouble` is."""

    Event = Event

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    manual_seed = manual_seed_all


_setup_privateuseone_for_python_backend(NAME, Module())


class OnDevice(Tensor):
    """A tensor on the device."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        if host.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a tensor to {host.dtype}: this device doesn't support float64.")
        made = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.host = host
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.data_ptr:
            return args[0].host.data_ptr()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As a checkpoint is read by a process that does not have the device.
        return self.host.__reduce_ex__(protocol)


class _Dispatch(TorchDispatchMode):
    """Makes tensors on the device where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Tensors(TorchFunctionMode):
    """`torch.tensor` passes by every dispatch mode: let it make what it makes on the host, and move that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def no_float64() -> Iterator[None]:
    """Here tensors can be made on the device."""
    with _Tensors(), _Dispatch():
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    from_device = any(isinstance(tensor, OnDevice) for tensor in inputs)
    asked = kwargs.get("device")
    on_device = from_device if asked is None else torch.device(asked).type == NAME
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    host_args, host_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.host, (args, kwargs))
    if func is torch.ops.aten._local_scalar_dense.default and from_device:
        waits.append("item")
    if func is torch.ops.aten._to_copy.default and from_device and not on_device:
        waits.append("copy")
    if func is torch.ops.aten.copy_.default and not isinstance(args[0], OnDevice) and isinstance(args[1], OnDevice):
        if not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
            waits.append("copy_")
        else:
            target, source = args[0], host_args[1].clone()
            target.view(torch.uint8).fill_(255)  # NaN
            copies.append(lambda: target.copy_(source))
            return target
    result = func(*host_args, **host_kwargs)
    return tree_map_only(Tensor, OnDevice, result) if on_device else result
