"""How much a whole training step is slowed down by a measurement at every step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

import rwc_wandb
from rwc_wandb.bench.methods import OURS, WATCH_ALL
from rwc_wandb.bench.timing import Call, Spread, spread
from rwc_wandb.errors import UserError
from rwc_wandb.study.models import build_model

if TYPE_CHECKING:
    from wandb import Run

CLASSES = 10
IMAGE_SIDES = (32, 64, 224)
SECONDS_PER_MODEL = 40.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 50
STEPS_PER_SAMPLE_ON_A_GPU = 20
"""On a GPU steps are queued ahead of it; waiting for each one would hide what the queue hides."""


def model_and_side(name: str) -> tuple[nn.Module, int]:
    """The network on the CPU, for the smallest images of `IMAGE_SIDES` that it takes, of three channels.

    Raises:
        UserError: no such model, or none of these sizes fits.
    """
    for side in IMAGE_SIDES:
        try:
            model = build_model(name, channels=3, classes=CLASSES, image_size=side)
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, side, side))
            return model.train(), side
        except (RuntimeError, AssertionError):
            continue
    raise UserError(f"--model {name}: it takes images of none of {IMAGE_SIDES} pixels; use another model.")


def step_slow_downs(model: nn.Module, side: int, batch_size: int, run: Run) -> dict[str, Spread]:
    """Per cent by which a training step gets longer with ours, and with `wandb.watch(log="all", log_freq=1)`.

    A step: forward, cross entropy and backward of a batch of random images, SGD with momentum, a row of the W&B run.
    Steps with and without take turns; what counts is the ratio within a turn. Ours measures at every step with the
    settings of `watch` otherwise (a row of values every 50 steps, histograms every 1000: too few to be in the median).
    """
    import wandb

    device = next(model.parameters()).device
    images = torch.randn(batch_size, 3, side, side, device=device)
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    steps = STEPS_PER_SAMPLE_ON_A_GPU if device.type == "cuda" else 1

    def seconds(after_step: Call) -> float:
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            after_step()
            run.log({"loss": 0.0})
        wait_for(device)
        return time.perf_counter() - start

    def watched_by_wandb() -> float:
        wandb.watch(model, log="all", log_freq=1)
        try:
            return seconds(lambda: None)
        finally:
            wandb.unwatch(model)

    # Called by hand, the monitor can sit out the other steps; as a hook of the optimizer it does the same.
    monitor = rwc_wandb.watch(model, run=run)
    variants = [lambda: seconds(lambda: None), lambda: seconds(monitor.measure), watched_by_wandb]
    needed = sum(variant() for variant in variants)  # The first steps are for warming up, and tell how long they take.
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(SECONDS_PER_MODEL / needed)))
    slower: list[list[float]] = [[], []]
    for turn in range(rounds):
        order = [(turn + index) % 3 for index in range(3)]
        taken = {index: variants[index]() for index in order}
        for index in (1, 2):
            slower[index - 1].append(100 * (taken[index] / taken[0] - 1))
    monitor.close()
    return {OURS: spread(slower[0]), WATCH_ALL: spread(slower[1])}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
