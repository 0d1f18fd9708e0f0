"""Tensors as flat memory: a sum does not care about the order of elements, as long as weight and snapshot agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CHECKED_AT_ONCE = 1 << 22
"""Elements whose bits are added up at once: of those in 16 bits torch makes a copy for it."""
_INTEGERS = {1: torch.uint8, 2: torch.int16}


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap: contiguous, channels_last, transposed."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in memory order: a view of shape [numel].

    Raises:
        ValueError: the tensor is not dense: expanded, or a slice of a larger one.
    """
    if tensor.numel() and not is_dense(tensor):
        raise ValueError(
            f"A tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not dense in memory "
            "(expanded, or a slice of a larger one): make it contiguous."
        )
    return tensor.as_strided((tensor.numel(),), (1,))


def shifts(weights: Sequence[Tensor], before: Sequence[Tensor]) -> list[int]:
    """How many bytes each of the weights begins behind the one before it: what its address grows by."""
    return [new.data_ptr() - old.data_ptr() for new, old in zip(weights, before, strict=True)]


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """int64, on the host: the sum of dense tensors, their bits taken as integers. Modulo 2^32 it is the same on any
    device, in any order of memory, and as a sum over ranks that have a part each."""
    parts = [part for tensor in tensors for part in flat(tensor).split(CHECKED_AT_ONCE)]
    integers = [part.view(_INTEGERS.get(part.element_size(), torch.int32)) for part in parts]
    # As int32, which wraps round: torch then makes no copy of those in 32 and 64 bits.
    sums = [part.sum(dtype=torch.int32).to("cpu") for part in integers]
    return torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.int64, device="cpu")
