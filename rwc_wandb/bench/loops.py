"""The training loops that are compared: each trains one model for so many steps when it is called."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import rwc_wandb
from rwc_wandb.bench.timing import Call
from rwc_wandb.study.data.sets import DataSet, Images, check_data_set
from rwc_wandb.study.train.epoch import Place, train_epoch
from rwc_wandb.study.train.learner import Learner
from rwc_wandb.study.train.totals import new_totals

if TYPE_CHECKING:
    from wandb import Run

OURS = "ours"
CEILING = "ceiling: one fixed batch"
BARE = "bare steps on that batch"
TORCHVISION = "torchvision and DataLoader"
EVERY_EPOCH = "RWC every epoch"
EVERY_STEP = "RWC every step"
HISTOGRAMS = "RWC every step, histograms"


def loops(learner: Learner, images: Images, run: Run) -> dict[str, Call]:
    """Name -> what trains `learner`'s model for one epoch of `images`.

    All train the same model with the same optimizer. Monitors are called by hand after a step, so that they can sit
    out the other loops; as hooks of the optimizer they do the same. `HISTOGRAMS` has one set of histograms an epoch.
    """
    steps = len(learner.loader)
    fixed = OneBatch(learner, steps)
    monitors = [
        rwc_wandb.watch(learner.model, run=run, prefix=f"rwc{number}", rows="own", histogram_every=histogram_every)
        for number, histogram_every in enumerate((None, None, steps))
    ]
    return {
        OURS: _epoch_of(learner, lambda: False),
        CEILING: _epoch_of(replace(learner, loader=fixed, train=fixed), lambda: False),  # type: ignore[arg-type]
        BARE: bare(learner, steps),
        TORCHVISION: _with_torchvision(learner, images),
        EVERY_EPOCH: _epoch_of(learner, _measuring(monitors[0], steps)),
        EVERY_STEP: _epoch_of(learner, _measuring(monitors[1], 1)),
        HISTOGRAMS: _epoch_of(learner, _measuring(monitors[2], 1)),
    }


def bare(learner: Learner, steps: int) -> Call:
    """So many steps on one batch, and nothing else."""
    batch = OneBatch(learner, steps).batch
    return lambda: _train(learner, itertools.repeat(batch, steps))


class OneBatch:
    """One batch on the device, again and again: `Batches` and the loader of its numbers, if they cost nothing."""

    def __init__(self, learner: Learner, steps: int) -> None:
        self.steps = steps
        learner.train.start_epoch(0)
        self.batch = learner.train(torch.arange(learner.config.batch_size))

    def set_epoch(self, epoch: int) -> None: ...

    def start_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None, self.steps)

    def __call__(self, numbers: None) -> tuple[Tensor, Tensor]:
        return self.batch


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: each alone, through PIL and `torchvision.transforms`."""

    def __init__(self, images: Images, data_set: DataSet) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        side, channels = self.pixels.shape[1], self.pixels.shape[3]
        varied: list[Any] = [transforms.RandomCrop(side, padding=data_set.padding)] if data_set.padding else []
        varied += [transforms.RandomHorizontalFlip()] if data_set.flip else []
        mean, std = ([*values] * (channels // len(values)) for values in (data_set.mean, data_set.std))
        self.transform = transforms.Compose([*varied, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        pixels = self.pixels[number]
        return self.transform(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)), self.labels[number]


def workers() -> int:
    """Processes that load images: one for each core but one, at most 8."""
    return min(8, (os.cpu_count() or 1) - 1)


def _with_torchvision(learner: Learner, images: Images) -> Call:
    config, device = learner.config, learner.accelerator.device
    loader = DataLoader(
        PerImage(images, check_data_set(config.dataset)),
        config.batch_size,
        shuffle=True,
        num_workers=workers(),
        pin_memory=device.type == "cuda",
        persistent_workers=workers() > 0,
    )

    def on_device() -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in loader:
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return lambda: _train(learner, on_device())


def _train(learner: Learner, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """The loop of PyTorch's tutorials."""
    learner.model.train()
    for images, labels in batches:
        with learner.accelerator.autocast():
            loss = nn.functional.cross_entropy(learner.model(images), labels)
        loss.backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()


def _epoch_of(learner: Learner, after_step: Callable[[], bool]) -> Call:
    """Our own loop, without a progress bar."""
    numbers = itertools.count(1)

    def train() -> None:
        totals = new_totals(learner.accelerator.device)
        train_epoch(learner, Place(next(numbers), 0, totals), after_step)

    return train


def _measuring(monitor: rwc_wandb.Monitor, every: int) -> Callable[[], bool]:
    steps = itertools.count(1)

    def after_step() -> bool:
        if next(steps) % every == 0:
            monitor.measure()
        return False

    return after_step
