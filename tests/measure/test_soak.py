"""Long trainings and many monitors: memory, files, threads and handles.

A thorough look: RWC_SOAK=100000 measurements, RWC_SOAK_MONITORS=100, and `-s` to see the memory.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import wandb
from torch import nn

from rwc_wandb import watch

MEASUREMENTS = int(os.environ.get("RWC_SOAK", "3000"))
MONITORS = int(os.environ.get("RWC_SOAK_MONITORS", "20"))
NOISE = 8 * 2**20
"""Bytes by which a process may grow for other reasons."""


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No run, or an offline one."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    # With registered charts the run gets no page of them, which takes seconds to make.
    monkeypatch.setenv("RWC_WANDB_CHARTS", "me")
    return wandb.init(project="p", dir=tmp_path) if request.param else False


def network(width: int = 16) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(4)])


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@pytest.mark.parametrize("run", [False, True], indirect=True, ids=["no run", "offline"])
def test_a_long_training_takes_what_its_series_takes(run: Any, tmp_path: Path) -> None:
    process = psutil.Process()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with watch(model, optimizer, run=run, prefix="first", log_every=50, histogram_every=200):
        steps(model, optimizer, 200)
    gc.collect()
    threads, handles = threading.active_count(), process.num_fds()
    monitor = watch(model, optimizer, run=run, log_every=50, histogram_every=1000)
    sizes = []
    for part in range(20):
        for _ in range(MEASUREMENTS // 20 // 10):
            steps(model, optimizer, 10)
            if run:
                run.log({"loss": part})
        sizes.append(process.memory_info().rss)
    monitor.close()
    history = monitor.history
    count = len(history)
    assert count == MEASUREMENTS // 200 * 200
    assert (threading.active_count(), process.num_fds()) == (threads, handles)
    # A step, and a float32 of each layer in two series; the arrays hold at most twice what is in them.
    series = count * (8 + 4 * (4 + 4))
    growth = sizes[-1] - sizes[4]
    shown = ", ".join(f"{size / 2**20:.1f}" for size in sizes)
    print(f"{count} measurements, series {series / 2**20:.2f} MiB; RSS in MiB: {shown}")
    assert growth < 2 * series + NOISE
    history.save(tmp_path / "rwc.safetensors")
    assert_size(tmp_path / "rwc.safetensors", series)
    if run:
        assert_size(Path(run.dir) / "rwc.safetensors", series)
        run.finish()


def assert_size(path: Path, series: int) -> None:
    content = path.read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + series


@pytest.mark.parametrize("run", [False, True], indirect=True, ids=["no run", "offline"])
def test_many_monitors_leave_nothing_behind(run: Any) -> None:
    process = psutil.Process()
    kept = network()
    kept_optimizer = torch.optim.SGD(kept.parameters(), lr=1e-6)
    traces: list[weakref.ref[Any]] = []
    counts = []
    for number in range(MONITORS):
        own = network(256)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-6)
        monitors = [
            watch(model, one, run=run, prefix=f"rwc{number}{letter}", log_every=2, histogram_every=3)
            for letter, model, one in (("a", own, optimizer), ("b", kept, kept_optimizer))
        ]
        steps(own, optimizer, 5)
        steps(kept, kept_optimizer, 5)
        snapshots = [snapshot for group in monitors[0]._measuring.tracked.groups for snapshot in group.snapshots]
        traces += [weakref.ref(one) for one in (*monitors, own, optimizer, *own.parameters(), *snapshots)]
        for monitor in monitors:
            monitor.close()
        assert len(monitor.history) == 5
        assert not kept_optimizer._optimizer_step_post_hooks
        assert not any(module._load_state_dict_post_hooks for module in kept.modules())
        del own, optimizer, monitors, monitor, snapshots
        counts.append((threading.active_count(), process.num_fds()))
    gc.collect()
    assert not [trace() for trace in traces if trace() is not None]
    assert counts[-1] == counts[1]
    if run:
        run.finish()
