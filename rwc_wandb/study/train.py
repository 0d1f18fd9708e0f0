"""The training loop of Table 1: SGD with momentum at a constant learning rate, driven by Accelerate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import rwc_wandb
from rwc_wandb.errors import UserError
from rwc_wandb.study.checkpoint import Checkpoints
from rwc_wandb.study.config import TrainConfig
from rwc_wandb.study.epoch import evaluate, train_epoch
from rwc_wandb.study.folders import new_folders
from rwc_wandb.study.learner import build
from rwc_wandb.study.models import paper_stages
from rwc_wandb.study.results import (
    append_metrics,
    folder_to_resume,
    make_folder,
    print_layers,
    read_result,
    write_result,
)
from rwc_wandb.study.session import Session, start_of
from rwc_wandb.study.signals import StopSignals
from rwc_wandb.study.tracking import open_training_run
from rwc_wandb.view.render import write_pictures

if TYPE_CHECKING:
    from wandb import Run

STOP_EVERY = 50
"""Steps on a GPU after which several processes ask one another whether to stop, which waits for it; 1 on a CPU."""


def train(config: TrainConfig, resume: bool = False) -> int:
    """Train, measure and log one run.

    Args:
        resume: go on from the last checkpoint of this run, where it has been started; do nothing where it has finished.

    Returns:
        The exit code: 0, or 130 or 143 where SIGINT or SIGTERM has stopped it.

    Raises:
        UserError: the configuration, the data or the output folder cannot be used.
    """
    started = folder_to_resume(config) if resume else None
    if started and read_result(started):
        Checkpoints(started).remove()
        print(f"{started} has finished: nothing to resume.")
        return 0
    learner = build(config)
    accelerator, steps_per_epoch = learner.accelerator, len(learner.loader)
    every = _steps(config.rwc_every, steps_per_epoch) or steps_per_epoch
    if every > config.epochs * steps_per_epoch:
        raise UserError(f"--rwc-every {every}: it takes at most the run's {config.epochs * steps_per_epoch} steps.")
    console = Console(quiet=not accelerator.is_main_process)
    folder, run = None, None
    if accelerator.is_main_process:
        with new_folders(config.run_folder):
            folder = started or make_folder(config)
            try:
                run, where = open_training_run(config, folder)
            except UserError:
                if not started:
                    shutil.rmtree(folder)
                raise
        console.print(where, soft_wrap=True, markup=False, highlight=False)
    monitor = rwc_wandb.watch(
        learner.model,
        learner.optimizer,
        every=every,
        log_every=1 if config.rwc_every == "epoch" else 50,
        histogram_every=_steps(config.histogram_every, steps_per_epoch),
        layers=config.layers,
        stages=paper_stages(config.model, accelerator.unwrap_model(learner.model)),
        run=run,
        rows="attached" if config.rwc_every == "epoch" else "own",
    )
    monitor.history.steps_per_epoch = steps_per_epoch
    session = Session(learner, monitor, start_of(1, learner), 0, 0.0, console, folder, run)
    state = Checkpoints(started).latest() if started else None
    if state is not None:
        session.load(state)
        console.print(f"Resumed in epoch {state['epoch']}, after {state['steps']} steps.", highlight=False)
    with StopSignals() as signals:
        metrics = train_epochs(session, signals)
    if metrics is None:
        _leave(session)
        console.print(f"Stopped after {session.steps} steps; the same command with --resume goes on.", highlight=False)
        return 128 + (signals.received or 2)
    if run is not None and folder is not None:
        finish(session, folder, run, metrics)
    _leave(session)
    return 0


def train_epochs(session: Session, signals: StopSignals) -> dict[str, float] | None:
    """Train to the end; returns the last epoch's metrics, or None if a signal has stopped it (after a checkpoint)."""
    learner, config, folder = session.learner, session.learner.config, session.folder
    accelerator, steps_per_epoch = learner.accelerator, len(learner.loader)
    checkpoints = Checkpoints(folder) if folder is not None else None
    checkpoint_every = _steps(config.checkpoint_every, steps_per_epoch)
    metrics: dict[str, float] | None = None

    def save() -> None:
        state = session.state()
        if checkpoints is not None:
            checkpoints.save(session.steps, state)

    with _progress(session.console, accelerator.is_main_process) as progress:
        total = config.epochs * steps_per_epoch
        bar = progress.add_task("", total=total, completed=session.steps, loss="", speed="")

        def show(loss: float, speed: float) -> None:
            progress.update(
                bar,
                completed=session.steps + 1,  # The step that is shown is made, but not yet counted.
                description=f"epoch {session.place.epoch}/{config.epochs}",
                loss=f"{loss:.3f}",
                speed=f"{speed:,.0f}",
                refresh=True,
            )

        def after_step() -> bool:
            session.steps += 1
            is_last = session.place.step == steps_per_epoch
            if _must_stop(session, signals):
                save()
                return True
            if checkpoint_every and session.steps % checkpoint_every == 0 and not is_last:
                save()
            return False

        while session.place.epoch <= config.epochs:
            epoch = session.place.epoch
            trained = train_epoch(learner, session.place, after_step, None if progress.disable else show)
            if trained is None:
                return None
            metrics = trained | evaluate(learner)
            progress.update(bar, completed=session.steps, refresh=True)
            session.best = max(session.best, metrics["test/accuracy"])
            if session.run is not None and folder is not None:
                session.monitor.flush()
                session.run.log({"epoch": epoch} | metrics)
                append_metrics(folder, {"epoch": epoch} | metrics)
                _say(session.console, progress, config, epoch, metrics)
            session.place = start_of(epoch + 1, learner)
            if config.target_accuracy is not None and metrics["test/accuracy"] >= config.target_accuracy:
                break
            if checkpoint_every and session.steps % checkpoint_every == 0 and epoch < config.epochs:
                save()
    return metrics


def finish(session: Session, folder: Path, run: Run, metrics: dict[str, float]) -> None:
    """What a run leaves: the series, the charts, the closing table and, as its very last act, the result."""
    monitor, config, console = session.monitor, session.learner.config, session.console
    monitor.close()
    run.summary.update({"test/best_accuracy": session.best, "test/last_accuracy": metrics["test/accuracy"]})
    monitor.history.save(folder / "rwc.safetensors")
    run.finish()
    if len(monitor.history):
        write_pictures(monitor.history, folder, title=f"{config.model} on {config.dataset}")
    print_layers(console, monitor.history)
    console.print(
        f"Best test accuracy {session.best:.2%}. Look at {folder / 'rwc.html'}", soft_wrap=True, highlight=False
    )
    result = {
        "epochs": session.place.epoch - 1,
        "best_test_accuracy": session.best,
        "last_test_accuracy": metrics["test/accuracy"],
    }
    write_result(folder, result)
    Checkpoints(folder).remove()


def _leave(session: Session) -> None:
    session.monitor.close()
    if session.run is not None:
        session.run.finish()
    session.learner.accelerator.wait_for_everyone()
    session.learner.accelerator.end_training()


def _must_stop(session: Session, signals: StopSignals) -> bool:
    accelerator = session.learner.accelerator
    if accelerator.num_processes == 1:
        return signals.received is not None
    if accelerator.device.type != "cpu" and session.steps % STOP_EVERY:
        return False
    heard = torch.tensor(float(signals.received is not None), device=accelerator.device)
    return bool(accelerator.reduce(heard, "sum") > 0)


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
        # Drawn where the loss is looked at: a thread of its own would take the interpreter from training.
        auto_refresh=False,
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
