"""Tensors as flat memory: a sum does not care about the order of elements, as long as weight and snapshot agree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


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
