"""One pass over the training images, and one over the test images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import skip_first_batches
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn import functional

from rwc_wandb.study.learner import Learner

TEST_BATCH = 512
SHOW_EVERY = 100
"""Steps on a GPU between two looks at the loss, which wait for it."""


@dataclass
class Place:
    """Where training is: so much of epoch `epoch` (from 1) is done.

    Attributes:
        step: optimizer steps of the epoch that are done.
        totals: float64 [3] of these, on the device: sum of losses, correct answers, images; this process's share.
    """

    epoch: int
    step: int
    totals: Tensor


def train_epoch(learner: Learner, place: Place, after_step: Callable[[str, str], bool]) -> dict[str, float] | None:
    """Train from `place`, which is kept up to date, to the end of its epoch.

    Args:
        after_step: called after each step with the loss so far and images per second (both "" where they are not
            looked at); True: stop here.

    Returns:
        The loss and accuracy of the epoch, and images per second; None if it was stopped.
    """
    accelerator, config = learner.accelerator, learner.config
    learner.model.train()
    learner.train.start_epoch(place.epoch)
    learner.loader.set_epoch(place.epoch)  # type: ignore[attr-defined]
    show_every = 1 if accelerator.device.type == "cpu" else SHOW_EVERY
    loader = skip_first_batches(learner.loader, place.step) if place.step else learner.loader
    start, images_before = time.perf_counter(), place.totals[2].item()

    def speed(count: float) -> float:
        return (count - images_before) * accelerator.num_processes / (time.perf_counter() - start)

    for numbers in loader:
        # So that dropout depends on the step alone, also after a resume.
        torch.manual_seed(hash((config.seed, place.epoch, place.step, accelerator.process_index)) % 2**63)
        images, labels = learner.train(numbers)
        with accelerator.autocast():
            logits = learner.model(images)
            loss = functional.cross_entropy(logits, labels)
        accelerator.backward(loss)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        place.totals += _tally(loss.detach() * len(labels), logits.detach(), labels)
        place.step += 1
        words = ("", "")
        if (place.step - 1) % show_every == 0:
            loss_sum, _, count = place.totals.tolist()
            words = (f"{loss_sum / count:.3f}", f"{speed(count):,.0f}")
        if after_step(*words):
            return None
    images_per_second = speed(place.totals[2].item())
    loss_sum, correct, count = accelerator.reduce(place.totals, "sum").tolist()
    return {
        "train/loss": loss_sum / count,
        "train/accuracy": correct / count,
        "images_per_second": images_per_second,
    }


@torch.no_grad()
def evaluate(learner: Learner) -> dict[str, float]:
    """Loss and accuracy on the test images, which the processes share among them."""
    accelerator = learner.accelerator
    model = accelerator.unwrap_model(learner.model)
    model.eval()
    if accelerator.num_processes > 1:
        # Batch-norm statistics differ between processes until DDP's next forward pass: take those of the main one.
        for buffer in model.buffers():
            broadcast(buffer)
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    mine = torch.arange(accelerator.process_index, len(learner.test.labels), accelerator.num_processes)
    for numbers in mine.split(TEST_BATCH):
        images, labels = learner.test(numbers)
        with accelerator.autocast():
            logits = model(images)
        totals += _tally(functional.cross_entropy(logits, labels, reduction="sum"), logits, labels)
    loss_sum, correct, count = accelerator.reduce(totals, "sum").tolist()
    return {"test/loss": loss_sum / count, "test/accuracy": correct / count}


def _tally(loss_sum: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """[sum of losses, correct answers, images], on the device."""
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([loss_sum.double(), correct.double(), torch.full_like(correct, len(labels)).double()])
