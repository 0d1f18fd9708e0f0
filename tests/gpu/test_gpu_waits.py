"""No step waits for the GPU: 200 steps with rows and histograms, where any synchronisation is an error.

On a CPU the reads that would wait on a GPU are counted instead.
"""

from __future__ import annotations

import statistics
import time
import warnings

import pytest
import torch
from gpu.machine import DEVICE, ON_GPU
from torch import Tensor, nn

from rwc_wandb import MonitoringStopped, watch
from rwc_wandb.bench.methods import offline_run
from rwc_wandb.bench.tally import Tally
from rwc_wandb.study.models import build_model

pytestmark = pytest.mark.gpu
STEPS, ROW, HISTOGRAMS = (200, 10, 25) if ON_GPU else (20, 5, 10)


def trainee() -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build_model("resnet18" if ON_GPU else "timm:test_resnet", channels=3, classes=10, image_size=32).to(DEVICE)
    images = torch.randn(128 if ON_GPU else 2, 3, 32, 32, device=DEVICE)
    labels = torch.randint(10, (len(images),), device=DEVICE)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True), images, labels


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("sample", [None, 2000])
def test_no_step_waits(sample: int | None) -> None:
    model, optimizer, images, labels = trainee()
    with offline_run() as run, warnings.catch_warnings():
        warnings.simplefilter("error", MonitoringStopped)
        monitor = watch(model, optimizer, run=run, rows="own", log_every=ROW, histogram_every=HISTOGRAMS, sample=sample)
        groups = monitor._measuring.tracked.groups
        step_of(model, optimizer, images, labels)
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(STEPS - 1):
                    step_of(model, optimizer, images, labels)
                # As each of several ranks makes them.
                parts = [group.histograms(are_parts=True) for group in groups]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            with Tally(DEVICE) as tally:
                for _ in range(STEPS - 1):
                    step_of(model, optimizer, images, labels)
            parts = [group.histograms(are_parts=True) for group in groups]
            # A set of histograms and a row of measurements are one copy each, asynchronous on a GPU.
            assert tally.host_reads <= len(groups) * (STEPS // ROW + 2 * (STEPS // HISTOGRAMS))
        monitor.close()
    assert monitor.history.steps.tolist() == list(range(1, STEPS + 1))
    counted = sum(part.wait()[0].sum(-1).sum(-1) for part in parts)
    layers = [min(layer.size, layer.sample or layer.size) for layer in monitor.layers]
    assert sum(layers) / 2 < counted[0] <= sum(layers)


@pytest.mark.skipif(not ON_GPU, reason="the mode is CUDA's")
def test_the_mode_sees_a_step_that_waits() -> None:
    """Else the test above could not fail."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=DEVICE).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_hook_costs_less_time_on_the_host_than_a_step_leaves() -> None:
    """The GPU works on a step for longer than the host takes to queue it. Printed; asserted on a GPU."""
    model, optimizer, images, labels = trainee()
    for _ in range(5):
        step_of(model, optimizer, images, labels)
    repeats = 20 if ON_GPU else 2
    queued, whole = [], []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        step_of(model, optimizer, images, labels)
        queued.append(time.perf_counter() - start)
    for _ in range(3):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            step_of(model, optimizer, images, labels)
        wait()
        whole.append((time.perf_counter() - start) / repeats)
    monitor = watch(model, run=False, histogram_every=None)
    hook = []
    for _ in range(200):
        wait()
        start = time.perf_counter()
        monitor.measure()
        hook.append(time.perf_counter() - start)
    monitor.close()
    queue, step, own = (1e6 * statistics.median(values) for values in (queued, whole, hook))
    print(
        f"a step is queued in {queue:.0f} us, takes {step:.0f} us: slack {step - queue:.0f} us; the hook {own:.0f} us"
    )
    assert not ON_GPU or own < step - queue


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()
