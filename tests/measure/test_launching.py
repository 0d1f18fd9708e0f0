"""Launches without Triton's search, and with it where compiled kernels are called in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from rwc_wandb.measure.kernels.gpu import launcher, launching_on


class Kernel:
    """As Triton's: called by itself it searches, and returns what it has compiled."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.searched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def search(*arguments: object, **named: object) -> Any:
            self.searched.append((grid, arguments, named))
            return self.compiled

        return search


class Compiled:
    """Takes `count` arguments, as a compiled kernel does."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object) -> None:
            if len(arguments) != self.count:
                raise TypeError(f"function takes exactly {self.count} arguments ({len(arguments)} given)")
            self.launched.append((grid, arguments))

        return launch


CONSTANTS, OPTIONS = {"ELEMENT": "fp32", "BLOCK": 8}, {"num_warps": 4}


def test_the_compiled_kernel_is_launched_as_it_is() -> None:
    compiled = Compiled(count=4)
    kernel = Kernel(compiled)
    launch = launcher(kernel, (5, 2, 1), CONSTANTS, OPTIONS, "table", "sums")
    assert kernel.searched == [((0, 1, 1), ("table", "sums"), CONSTANTS | OPTIONS)]
    launch("table", "others")
    assert compiled.launched[1:] == [((5, 2, 1), ("table", "others", "fp32", 8))]
    assert len(kernel.searched) == 1


@pytest.mark.parametrize("compiled", [Compiled(count=2), None], ids=["before Triton 3.3", "the interpreter"])
def test_else_triton_searches_at_each_launch(compiled: Compiled | None) -> None:
    kernel = Kernel(compiled)
    launch = launcher(kernel, (5, 2, 1), CONSTANTS, OPTIONS, "table", "sums")
    launch("table", "others")
    assert kernel.searched[1:] == [((5, 2, 1), ("table", "others"), CONSTANTS | OPTIONS)]
    assert not (compiled and compiled.launched)


@pytest.mark.gpu
def test_the_device_is_that_of_the_tensors() -> None:
    """Where it is the current one already nothing is switched, which takes the host longer than to look."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in [torch.device("cpu"), *devices]:
        with launching_on(device):
            assert device.type == "cpu" or torch.cuda.current_device() == device.index
