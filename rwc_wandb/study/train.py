"""The training loop of Table 1: SGD with momentum at a constant learning rate, driven by Accelerate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import rwc_wandb
from rwc_wandb.errors import UserError
from rwc_wandb.study.batches import Batches
from rwc_wandb.study.config import TrainConfig
from rwc_wandb.study.data import check_data_set, load_data
from rwc_wandb.study.models import build_model, check_model, paper_stages, smallest_image
from rwc_wandb.study.results import append_metrics, make_folder, print_layers
from rwc_wandb.study.tracking import open_run
from rwc_wandb.view.render import write_pictures

TEST_BATCH = 512


@dataclass
class Learner:
    """What trains: everything that an epoch needs."""

    accelerator: Accelerator
    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader[int]
    train: Batches
    test: Batches


def train(config: TrainConfig) -> Path | None:
    """Train, measure and log one run.

    Returns:
        The run's folder; None on processes other than the main one.

    Raises:
        UserError: the configuration, the data or the output folder cannot be used.
    """
    learner = build(config)
    accelerator = learner.accelerator
    console = Console()
    folder, run = None, None
    if accelerator.is_main_process:
        folder = make_folder(config)
        run, where = open_run(config, folder)
        console.print(where, soft_wrap=True, markup=False, highlight=False)
    steps_per_epoch = len(learner.loader)
    monitor = rwc_wandb.watch(
        learner.model,
        learner.optimizer,
        every=_steps(config.rwc_every, steps_per_epoch) or steps_per_epoch,
        log_every=1 if config.rwc_every == "epoch" else 50,
        histogram_every=_steps(config.histogram_every, steps_per_epoch),
        layers=config.layers,
        stages=paper_stages(config.model, accelerator.unwrap_model(learner.model)),
        run=run,
        rows="attached" if config.rwc_every == "epoch" else "own",
    )
    monitor.history.steps_per_epoch = steps_per_epoch
    best = 0.0
    with _progress(console, accelerator.is_main_process) as progress:
        bar = progress.add_task("", total=config.epochs * steps_per_epoch, loss="", speed="")
        for epoch in range(1, config.epochs + 1):
            metrics = train_epoch(learner, epoch, progress, bar) | evaluate(learner)
            best = max(best, metrics["test/accuracy"])
            if run is not None and folder is not None:
                monitor.flush()
                run.log({"epoch": epoch} | metrics)
                append_metrics(folder, {"epoch": epoch} | metrics)
                _say(console, progress, config, epoch, metrics)
            if config.target_accuracy is not None and metrics["test/accuracy"] >= config.target_accuracy:
                break
    if run is not None and folder is not None:
        monitor.close()
        run.summary.update({"test/best_accuracy": best, "test/last_accuracy": metrics["test/accuracy"]})
        monitor.history.save(folder / "rwc.safetensors")
        run.finish()
        write_pictures(monitor.history, folder, title=f"{config.model} on {config.dataset}")
        print_layers(console, monitor.history)
        console.print(f"Best test accuracy {best:.2%}. Look at {folder / 'rwc.html'}", soft_wrap=True, highlight=False)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def build(config: TrainConfig) -> Learner:
    """Data, model and optimizer, prepared by Accelerate for the processes that there are."""
    data_set = check_data_set(config.dataset)
    check_model(config.model)
    side = config.image_size or max(data_set.side, smallest_image(config.model))
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        # Table 1's batch size holds for all processes together, however many there are.
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=config.seed * 1_000_003
        ),
    )
    if config.batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch-size {config.batch_size}: it takes a multiple of the {accelerator.num_processes} processes."
        )
    set_seed(config.seed)
    with accelerator.main_process_first():
        images, test_images = load_data(
            config.dataset, Path(config.data_dir), side, config.limit_train, config.limit_test
        )
    classes = data_set.classes or int(images.labels.max()) + 1
    model = build_model(config.model, images.images.shape[1], classes, side)
    try:
        rwc_wandb.find_layers(model, config.layers)
    except ValueError as error:
        raise UserError(f"--layers {config.layers}: {error}") from error
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # A last batch of one image per process has no variance: batch norm cannot train on it.
    lone = len(images) % config.batch_size < 2 * accelerator.num_processes and len(images) > config.batch_size
    numbers: Any = range(len(images))
    loader: DataLoader[int] = DataLoader(numbers, config.batch_size, shuffle=True, drop_last=lone)
    if config.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    device = accelerator.device
    return Learner(
        accelerator,
        config,
        model,
        optimizer,
        loader,
        Batches(images, data_set, device, seed=config.seed),
        Batches(test_images, data_set, device, seed=None),
    )


def train_epoch(learner: Learner, epoch: int, progress: Progress, bar: Any) -> dict[str, float]:
    """One pass over the training images; the loss and accuracy of it, and images per second."""
    accelerator, config = learner.accelerator, learner.config
    learner.model.train()
    learner.train.start_epoch(epoch)
    learner.loader.set_epoch(epoch)  # type: ignore[attr-defined]
    # Reading the loss waits for the GPU: seldom there; a CPU has it at hand.
    show_every = 1 if accelerator.device.type == "cpu" else 100
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    start = time.perf_counter()
    for step, numbers in enumerate(learner.loader):
        # So that dropout depends on the step alone, also after a resume.
        torch.manual_seed(hash((config.seed, epoch, step, accelerator.process_index)) % 2**63)
        images, labels = learner.train(numbers)
        with accelerator.autocast():
            logits = learner.model(images)
            loss = functional.cross_entropy(logits, labels)
        accelerator.backward(loss)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        totals += _tally(loss.detach() * len(labels), logits.detach(), labels)
        if step % show_every == 0:
            loss_sum, _, count = totals.tolist()
            speed = count * accelerator.num_processes / (time.perf_counter() - start)
            progress.update(bar, loss=f"{loss_sum / count:.3f}", speed=f"{speed:,.0f}")
        progress.update(bar, advance=1, description=f"epoch {epoch}/{config.epochs}")
    loss_sum, correct, count = accelerator.reduce(totals, "sum").tolist()
    return {
        "train/loss": loss_sum / count,
        "train/accuracy": correct / count,
        "images_per_second": count / (time.perf_counter() - start),
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


def _steps(cadence: str | int | None, steps_per_epoch: int) -> int | None:
    return steps_per_epoch if cadence == "epoch" else cadence  # type: ignore[return-value]


def _progress(console: Console, is_main: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not (is_main and console.is_terminal),
    )


def _say(console: Console, progress: Progress, config: TrainConfig, epoch: int, metrics: dict[str, float]) -> None:
    """Where there is no terminal for the bar: a line per epoch."""
    if progress.disable:
        console.print(
            f"epoch {epoch}/{config.epochs}  loss {metrics['train/loss']:.4f}  train {metrics['train/accuracy']:.2%}  "
            f"test {metrics['test/accuracy']:.2%}  {metrics['images_per_second']:,.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
