"""What is compared: ours and the baselines, each built for a model and then called once per measurement."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import rwc_wandb
from rwc_wandb.bench.baselines import (
    AuthorsCode,
    ComposerNorms,
    PlainTorch,
    TorchForeach,
    WandbWatch,
    tracked_weights,
)
from rwc_wandb.bench.tally import Tally
from rwc_wandb.bench.timing import Call, Floor, Timing, clock_for, interleaved

if TYPE_CHECKING:
    from wandb import Run

OURS = "rwc_wandb"
HISTOGRAMS = "rwc_wandb with histograms"
WATCH_ALL = 'wandb.watch(log="all")'
FLOOR = "memory floor"


@dataclass
class Case:
    """A model in training: its weights have gradients, and an Adam that has stepped (Composer reads its state)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


METHODS: dict[str, Callable[[Case], Call]] = {
    OURS: lambda case: rwc_wandb.watch(case.model, run=False, histogram_every=None).measure,
    HISTOGRAMS: lambda case: rwc_wandb.watch(case.model, run=False, histogram_every=1).measure,
    "one copy, for comparison": lambda case: _copy_of(tracked_weights(case.model)),
    "plain torch": lambda case: PlainTorch(case.model),
    "torch._foreach": lambda case: TorchForeach(case.model),
    "the authors' code": lambda case: AuthorsCode(case.model),
    "Composer's norms": lambda case: ComposerNorms(case.model, case.optimizer),
    'wandb.watch(log="parameters")': lambda case: WandbWatch(case.model, "parameters", case.run, []),
    WATCH_ALL: lambda case: WandbWatch(
        case.model, "all", case.run, [p.grad for p in case.model.parameters() if p.grad is not None]
    ),
}
"""Name -> from a case to what measures once when called. `rwc_wandb` is the public `watch` and its `measure`: what a
training step pays, up to the hook's own call."""
WITHOUT_TRAINING = (OURS, HISTOGRAMS, "one copy, for comparison", "plain torch", "torch._foreach")
"""Those that need neither gradients nor Adam's moments, for which the largest models leave no room."""


@dataclass(frozen=True)
class Result:
    """What was measured of one method with one model.

    Attributes:
        timing: milliseconds and ratio to the floor.
        extra_memory: bytes beyond model and optimizer, while it stands and measures; see `Tally`.
        host_reads: per measurement; see `Tally`.
    """

    method: str
    timing: Timing
    extra_memory: int
    host_reads: int


@contextmanager
def offline_run() -> Iterator[Run]:
    """A W&B run, offline, whose files are gone afterwards."""
    import wandb

    # Windows cannot delete what W&B's own process still holds open for a moment.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = wandb.Settings(silent=True, console="off")
        with wandb.init(project="rwc-bench", dir=folder, mode="offline", settings=settings) as run:
            yield run


def case_of(model: nn.Module, run: Run) -> Case:
    """`model` with random gradients, after one step of Adam."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    on_gpu = next(model.parameters()).device.type == "cuda"
    # On a GPU Composer's optimizer keeps its step's number there, as a capturable one of torch does.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=on_gpu)
    optimizer.step()
    return Case(model, optimizer, run)


def untrained_case_of(model: nn.Module, run: Run) -> Case:
    """`model` for the methods `WITHOUT_TRAINING`: it has no gradients."""
    return Case(model, torch.optim.SGD(model.parameters(), lr=1e-3), run)


def compare(case: Case, rounds: int, names: Sequence[str] = tuple(METHODS)) -> tuple[Result, list[Result]]:
    """Count and time the methods on one model; returns the floor and the methods."""
    methods = {name: METHODS[name] for name in names}
    with warnings.catch_warnings():
        # Our monitor never raises; here a failure must not pass for a fast measurement.
        warnings.simplefilter("error", rwc_wandb.MonitoringStopped)
        _load_all(case, methods)
        calls: dict[str, Call] = {}
        memory: dict[str, int] = {}
        reads: dict[str, int] = {}
        for name, build in methods.items():
            with Tally(case.device) as tally:
                calls[name] = build(case)
                calls[name]()
            memory[name] = tally.extra_memory
            with Tally(case.device) as tally:
                calls[name]()
            reads[name] = tally.host_reads
        clock = clock_for(case.device)
        floor = Floor(tracked_weights(case.model), clock)
        floor_timing, timings = interleaved(calls, floor.milliseconds, clock, rounds, lambda: _train(case.model))
    for call in calls.values():
        if isinstance(call, WandbWatch):
            call.close()
    results = [Result(name, timings[name], memory[name], reads[name]) for name in names]
    return Result(FLOOR, floor_timing, 0, 0), results


def _copy_of(weights: list[Tensor]) -> Call:
    source = torch.cat([weight.flatten() for weight in weights])
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _load_all(case: Case, methods: Mapping[str, Callable[[Case], Call]]) -> None:
    """Run everything once on a small network, so that imports and compilation count for no method."""
    small = case_of(nn.Linear(8, 8, device=case.device), case.run)
    for build in methods.values():
        call = build(small)
        call()
        if isinstance(call, WandbWatch):
            call.close()


@torch.no_grad()
def _train(model: nn.Module) -> None:
    """Change the weights a little, so that there is something to measure."""
    for parameter in model.parameters():
        parameter.mul_(1.001)
