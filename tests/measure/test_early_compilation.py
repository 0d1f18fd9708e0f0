"""The GPU kernels of histograms are compiled when the monitor is made. There is no GPU: launches are recorded."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import pytest
import torch
from outsider import model, step

from rwc_wandb import watch
from rwc_wandb.measure import kernels
from rwc_wandb.measure.device import group

HISTOGRAMS = ["limit_chunks", "limit_layers", "count_chunks"]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


class Launches:
    """Stands for the module of kernels: notes which are launched, and fails as one whose compilation fails."""

    def __init__(self, failing: str = "") -> None:
        self.made: list[str] = []
        self._failing = failing

    def __getattr__(self, kernel: str) -> Any:
        def launch(*_: object, **__: object) -> None:
            if kernel == self._failing:
                raise RuntimeError("ptxas has died")
            self.made.append(kernel)

        class Grid:
            def __getitem__(self, grid: object) -> Any:
                return launch

        return Grid()


def tensors() -> list[torch.Tensor]:
    return [torch.randn(7, 5), torch.randn(3)]


@needs_triton
@pytest.mark.parametrize("bins", [None, 64])
def test_all_kernels_that_will_be_needed_are_compiled_as_the_reduction_is_made(
    bins: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rwc_wandb.measure.kernels import gpu

    launches = Launches()
    monkeypatch.setattr(gpu, "kernels", launches)
    gpu.GPUReduction(tensors(), tensors(), bins)
    assert launches.made == ["measure_chunks", "sum_layers", *(HISTOGRAMS if bins else [])]


@needs_triton
@pytest.mark.parametrize("failing", ["measure_chunks", *HISTOGRAMS])
def test_where_one_of_them_cannot_be_compiled_plain_torch_measures(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rwc_wandb.measure.kernels import gpu

    monkeypatch.setattr(gpu, "kernels", Launches(failing))
    weights, snapshots = tensors(), tensors()
    exact: Any = kernels.ReferenceReduction(weights, snapshots)
    with pytest.warns(UserWarning, match=r"cannot be compiled here \(RuntimeError: ptxas has died\)"):
        made = kernels._compiled_or(exact, partial(gpu.GPUReduction, weights, snapshots, 64))
    assert made is exact
    counts, _ = made.histograms(64)
    assert counts.sum(-1).tolist() == [[35, 3], [35, 3]]


@pytest.mark.parametrize("histogram_every", [None, 1000])
def test_watch_asks_for_them_at_once(histogram_every: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reduction_for(weights: Any, snapshots: Any, bins: int | None = None) -> Any:
        asked.append(bins)
        return kernels.reduction_for(weights, snapshots, bins)

    monkeypatch.setattr(group, "reduction_for", reduction_for)
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with watch(network, optimizer, run=False, histogram_every=histogram_every):
        assert asked == [histogram_every and group.HISTOGRAM_BINS]
        step(optimizer, network)
