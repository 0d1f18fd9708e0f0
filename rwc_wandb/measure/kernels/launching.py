"""Launching Triton kernels: on the device of their tensors, and without Triton's search for what it has compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch


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

    At each launch Triton looks at all arguments to find what it has compiled for them, which takes the host three times
    as long as the launch itself. What it finds does not change here: so it is called as it is.

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
    except Exception:
        # Triton's interpreter compiles nothing; before 3.3 compiled kernels take no constants.
        return lambda *arguments: kernel[grid](*arguments, **constants, **options)
    return lambda *arguments: launch(*arguments, *values)
