"""One pass over the training images, and one over the test images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import skip_first_batches
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn import functional

from rwc_wandb.study.train.learner import Learner
from rwc_wandb.study.train.totals import add_batch, new_totals, on_host

TEST_BATCH = 512
LOOK_EVERY = 1.0
"""Seconds between two looks at the loss, which wait for the device."""


@dataclass
class Place:
    """Where training is: so much of epoch `epoch` (from 1) is done.

    Attributes:
        step: optimizer steps of the epoch that are done.
        totals: of these, as `totals.new_totals` makes them; this process's share.
    """

    epoch: int
    step: int
    totals: Tensor


def train_epoch(
    learner: Learner,
    place: Place,
    after_step: Callable[[], bool],
    show: Callable[[float, float], None] | None = None,
) -> dict[str, float] | None:
    """Train from `place`, which is kept up to date, to the end of its epoch.

    Args:
        after_step: called after each step; True: stop here.
        show: called every `LOOK_EVERY` seconds with the loss so far and images per second; None: there is no bar,
            and no step waits for the device.

    Returns:
        The loss and accuracy of the epoch, and images per second; None if it was stopped.
    """
    accelerator, config = learner.accelerator, learner.config
    learner.model.train()
    learner.train.start_epoch(place.epoch)
    learner.loader.set_epoch(place.epoch)  # type: ignore[attr-defined]
    loader = skip_first_batches(learner.loader, place.step) if place.step else learner.loader
    dropout = _generator(accelerator.device)
    start, looked, images_done = time.perf_counter(), -math.inf, 0

    def speed() -> float:
        return images_done * accelerator.num_processes / (time.perf_counter() - start)

    for numbers in loader:
        # So that dropout depends on the step alone, also after a resume.
        dropout.manual_seed(hash((config.seed, place.epoch, place.step, accelerator.process_index)) % 2**63)
        images, labels = learner.train(numbers)
        with accelerator.autocast():
            logits = learner.model(images)
            loss = functional.cross_entropy(logits, labels)
        accelerator.backward(loss)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        add_batch(place.totals, loss.detach(), logits.detach(), labels)
        place.step += 1
        images_done += len(labels)
        if show is not None and time.perf_counter() - looked >= LOOK_EVERY:
            loss_sum, _, count = on_host(place.totals).tolist()
            show(loss_sum / count, speed())
            looked = time.perf_counter()
        if after_step():
            return None
    loss_sum, correct, count = on_host(accelerator.reduce(place.totals, "sum")).tolist()
    return {"train/loss": loss_sum / count, "train/accuracy": correct / count, "images_per_second": speed()}


@torch.no_grad()
def evaluate(learner: Learner, must_stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Loss and accuracy on the test images, which the processes share among them; None where `must_stop` became true.

    Args:
        must_stop: asked before each batch. Several processes must all give the same answers.
    """
    accelerator = learner.accelerator
    # Not the compiled one: it would be compiled twice more, for evaluation and for the last batch.
    model = learner.module
    model.eval()
    if accelerator.num_processes > 1:
        # Batch-norm statistics differ between processes until DDP's next forward pass: take those of the main one. As
        # DDP's own collectives it ends with an error after the process group's time-out.
        for buffer in model.buffers():
            broadcast(buffer)
    totals = new_totals(accelerator.device)
    mine = torch.arange(
        accelerator.process_index, len(learner.test.labels), accelerator.num_processes, device=learner.test.home
    )
    for numbers in mine.split(TEST_BATCH):
        if must_stop():
            return None
        images, labels = learner.test(numbers)
        with accelerator.autocast():
            logits = model(images).float()
        add_batch(totals, functional.cross_entropy(logits, labels), logits, labels)
    loss_sum, correct, count = on_host(accelerator.reduce(totals, "sum")).tolist()
    return {"test/loss": loss_sum / count, "test/accuracy": correct / count}


def _generator(device: torch.device) -> torch.Generator:
    """The one that dropout on this device draws from. `torch.manual_seed` seeds it too, but also those of all other
    kinds of devices, present or not: 0.1 ms a step."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator
