"""How far training is: a bar in a terminal, elsewhere a line per epoch."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rwc_wandb.study.train.config import TrainConfig


def progress_bar(console: Console, is_main: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
        TimeRemainingColumn(),
        console=console,
        # Drawn where the loss is looked at: a thread of its own would take the interpreter from training.
        auto_refresh=False,
        disable=not (is_main and console.is_terminal),
    )


def say_epoch(console: Console, progress: Progress, config: TrainConfig, epoch: int, metrics: dict[str, float]) -> None:
    """Where there is no terminal for the bar: a line per epoch."""
    if progress.disable:
        console.print(
            f"epoch {epoch}/{config.epochs}  loss {metrics['train/loss']:.4f}  train {metrics['train/accuracy']:.2%}  "
            f"test {metrics['test/accuracy']:.2%}  {metrics['images_per_second']:,.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
