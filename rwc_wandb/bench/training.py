"""Images per second of the training loop, beside its ceiling and what others write."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import rwc_wandb
from rwc_wandb.bench.loops import CEILING, OURS, bare, loops
from rwc_wandb.bench.step import wait_for
from rwc_wandb.bench.timing import Call, Spread, spread
from rwc_wandb.study.data.sets import Images
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.learner import accelerator_for, assemble, load_images

if TYPE_CHECKING:
    from wandb import Run

STEPS_ON_A_GPU = 390
"""An epoch of CIFAR at batch 128."""
SECONDS_PER_SAMPLE = 4.0
"""On a CPU a loop makes as many steps as take so long."""
SECONDS_PER_MODEL = 180.0
FEWEST_ROUNDS = 3
SYNTHETIC = "cifar10"
"""Images made here are varied and normalised as those of this data set, and have their shape."""


@dataclass(frozen=True)
class TrainingResults:
    """What was measured with one model.

    Attributes:
        steps: of each sample, which is an epoch of as many images.
        images_per_second, to_ceiling, to_ours: by loop; the ratios are those within a round.
    """

    config: TrainConfig
    image_shape: tuple[int, ...]
    steps: int
    images_per_second: Mapping[str, Spread]
    to_ceiling: Mapping[str, Spread]
    to_ours: Mapping[str, Spread]


def measure(
    config: TrainConfig, device: torch.device, is_synthetic: bool, steps: int | None, rounds: int, run: Run
) -> TrainingResults:
    """Time all loops in turns.

    Args:
        is_synthetic: random images instead of the data set's own.
        steps: of each sample; None: an epoch of CIFAR on a GPU, on a CPU what takes `SECONDS_PER_SAMPLE`.
        rounds: samples of each loop, fewer where they would take longer than `SECONDS_PER_MODEL`.
    """
    accelerator = accelerator_for(config, on_cpu=device.type == "cpu")
    images = _random_images(config.batch_size) if is_synthetic else load_images(config)[0]
    if steps is None and device.type == "cuda":
        steps = STEPS_ON_A_GPU
    elif steps is None:
        step = bare(assemble(config, accelerator, _first(images, config.batch_size), images), 1)
        steps = max(1, round(SECONDS_PER_SAMPLE / min(_seconds(step, device) for _ in range(3))))
    if is_synthetic:
        images = _random_images(steps * config.batch_size)
    # Whole batches only, so that all steps are the same work.
    steps = max(1, min(steps, len(images) // config.batch_size))
    images = _first(images, steps * config.batch_size)
    learner = assemble(config, accelerator, images, _first(images, 1))
    with warnings.catch_warnings():
        # Our monitor never raises; here a failure must not pass for a fast measurement.
        warnings.simplefilter("error", rwc_wandb.MonitoringStopped)
        taken = _in_turns(loops(learner, images, run), rounds, device)

    def ratios(base: str) -> dict[str, Spread]:
        pairs = {name: zip(taken[base], seconds, strict=True) for name, seconds in taken.items()}
        return {name: spread([other / own for other, own in both]) for name, both in pairs.items()}

    speeds = {name: spread([len(images) / one for one in seconds]) for name, seconds in taken.items()}
    return TrainingResults(config, tuple(images.images.shape[1:]), steps, speeds, ratios(CEILING), ratios(OURS))


def _in_turns(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call in each round; the order changes from round to round."""
    names = list(calls)
    needed = sum(_seconds(calls[name], device) for name in names)  # A first time each, to warm up.
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(min(rounds, max(FEWEST_ROUNDS, int(SECONDS_PER_MODEL / needed)))):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(_seconds(calls[name], device))
    return taken


def _seconds(call: Call, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start


def _random_images(count: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 10, (count,), generator=generator))


def _first(images: Images, count: int) -> Images:
    return Images(images.images[:count], images.labels[:count])
