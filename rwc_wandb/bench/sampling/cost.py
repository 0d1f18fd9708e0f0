"""What a sample saves: one measurement from it beside one of all weights, in time and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import rwc_wandb
from rwc_wandb.bench.tally import Tally
from rwc_wandb.bench.timing import Spread, clock_for, spread


@dataclass(frozen=True)
class Cost:
    """One model measured from all its weights and from samples, in turns.

    Attributes:
        weights, drawn: of all layers; drawn at most.
        milliseconds: of a measurement, from all and from the sample.
        times_faster: the ratio of the two within a round.
        memory: bytes beyond the model, from all and from the sample; see `Tally`.
    """

    model: str
    weights: int
    drawn: int
    milliseconds: tuple[Spread, Spread]
    times_faster: Spread
    memory: tuple[int, int]

    @property
    def times_smaller(self) -> float:
        return self.memory[0] / self.memory[1]


def cost(name: str, model: nn.Module, count: int, rounds: int) -> Cost:
    """Measure `model` `rounds` times from all weights and from `count` of each layer, in turns, each with what the
    other left in the caches."""
    weights = list(model.parameters())
    device = weights[0].device
    # Imports and compilation count for neither.
    for sample in (None, 8):
        rwc_wandb.watch(nn.Linear(8, 8, device=device), run=False, histogram_every=None, sample=sample).measure()
    memory, monitors = [], []
    for sample in (None, count):
        with Tally(device) as tally:
            monitors.append(rwc_wandb.watch(model, run=False, histogram_every=None, sample=sample))
            monitors[-1].measure()
        memory.append(tally.extra_memory)
    clock = clock_for(device)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1.001)
        for own, monitor in zip(times, monitors, strict=True):
            own.append(clock(monitor.measure))
    for monitor in monitors:
        monitor.close()
    return Cost(
        model=name,
        weights=sum(weight.numel() for weight in weights),
        drawn=sum(min(count, weight.numel()) for weight in weights),
        milliseconds=(spread(times[0]), spread(times[1])),
        times_faster=spread([whole / part for whole, part in zip(times[0], times[1], strict=True)]),
        memory=(memory[0], memory[1]),
    )
