"""The training loop of Table 1: SGD with momentum at a constant learning rate, driven by Accelerate."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from rich.console import Console

import rwc_wandb
from rwc_wandb.errors import UserError
from rwc_wandb.files import new_folders
from rwc_wandb.study.models import paper_stages
from rwc_wandb.study.train.checkpoint import Checkpoints
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.epoch import evaluate, train_epoch
from rwc_wandb.study.train.learner import build
from rwc_wandb.study.train.output import (
    METRICS_FILE,
    RESULT_FILE,
    WriteFailures,
    append_metrics,
    draw,
    folder_to_resume,
    make_folder,
    print_layers,
    progress_bar,
    read_result,
    say_epoch,
    write_result,
)
from rwc_wandb.study.train.session import Session, start_of
from rwc_wandb.study.train.signals import StopSignals
from rwc_wandb.study.train.tracking.ending import (
    SERIES_FILE,
    accuracies,
    end_run,
    send_rest_anew,
    send_rest_of_finished,
)
from rwc_wandb.study.train.tracking.opening import open_training_run
from rwc_wandb.study.train.tracking.recorded import RecordedRun
from rwc_wandb.study.train.tracking.rows_file import RowsFile

if TYPE_CHECKING:
    from wandb import Run

STOP_EVERY = 50
"""Steps on a GPU after which several processes ask one another whether to stop, which waits for it; 1 on a CPU."""


def train(config: TrainConfig, resume: bool = False) -> int:
    """Train, measure and log one run.

    Args:
        resume: go on from the last checkpoint of this run, where it has been started; do nothing where it has finished.

    Returns:
        The exit code: 0; 1 where a result could not be written; 130 or 143 where SIGINT or SIGTERM has stopped it.

    Raises:
        UserError: the configuration, the data or the output folder cannot be used.
    """
    signals = StopSignals()
    started = folder_to_resume(config) if resume else None
    if started and (result := read_result(started)):
        Checkpoints(started).remove()
        send_rest_of_finished(config, started, result)
        return 0
    learner = build(config)
    accelerator, steps_per_epoch = learner.accelerator, len(learner.loader)
    every = _steps(config.rwc_every, steps_per_epoch) or steps_per_epoch
    if every > config.epochs * steps_per_epoch:
        raise UserError(f"--rwc-every {every}: it takes at most the run's {config.epochs * steps_per_epoch} steps.")
    console = Console(quiet=not accelerator.is_main_process)
    failures = WriteFailures(console)
    folder, run = None, None
    if accelerator.is_main_process:
        with new_folders(config.run_folder):
            folder = started or make_folder(config)
            try:
                opened, where = open_training_run(config, folder)
            except UserError:
                if not started:
                    shutil.rmtree(folder)
                raise
        failures.say(where)
        run = RecordedRun(opened, RowsFile(folder), failures.say)
    monitor = rwc_wandb.watch(
        learner.model,
        learner.optimizer,
        every=every,
        log_every=1 if config.rwc_every == "epoch" else 50,
        histogram_every=_steps(config.histogram_every, steps_per_epoch),
        layers=config.layers,
        sample=config.sample,
        stages=paper_stages(config.model, learner.module),
        run=cast("Run | None", run),
        rows="attached" if config.rwc_every == "epoch" and config.histogram_every in ("epoch", None) else "own",
    )
    monitor.history.steps_per_epoch = steps_per_epoch
    session = Session(learner, monitor, start_of(1, learner), 0, 0.0, console, failures, folder, run)
    if started:
        session.go_on(Checkpoints(started).latest())
    with signals:
        metrics = train_epochs(session, signals)
    if metrics is None:
        status = 128 + (signals.heard() or signal.SIGINT)
        monitor.close()
        # With its status: a run that W&B calls finished would count among the finished ones of the paper's claims.
        _finish_run(session, status)
        _leave(session)
        console.print(f"Stopped after {session.steps} steps; the same command with --resume goes on.", highlight=False)
        return status
    if run is not None and folder is not None:
        finish(session, folder, run, metrics)
    _leave(session)
    return 1 if session.failures.missing else 0


def train_epochs(session: Session, signals: StopSignals) -> dict[str, float] | None:
    """Train to the end; returns the last epoch's metrics, or None if a signal has stopped it (after a checkpoint)."""
    learner, config, folder = session.learner, session.learner.config, session.folder
    accelerator, steps_per_epoch = learner.accelerator, len(learner.loader)
    checkpoints = Checkpoints(folder) if folder is not None else None
    checkpoint_every = _steps(config.checkpoint_every, steps_per_epoch)
    metrics: dict[str, float] | None = None

    def save(is_last: bool = False) -> None:
        if is_last:
            session.log_waiting()
        state = session.state()
        if checkpoints is not None:
            checkpoints.save(session.steps, state)

    with progress_bar(session.console, accelerator.is_main_process) as progress:
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
                save(is_last=True)
                return True
            if checkpoint_every and session.steps % checkpoint_every == 0 and not is_last:
                save()
            return False

        while session.place.epoch <= config.epochs:
            epoch = session.place.epoch
            trained = train_epoch(learner, session.place, after_step, None if progress.disable else show)
            if trained is None:
                return None
            tested = evaluate(learner, lambda: accelerator.num_processes == 1 and signals.heard() is not None)
            if tested is None:
                save(is_last=True)
                return None
            metrics = trained | tested
            progress.update(bar, completed=session.steps, refresh=True)
            session.best = max(session.best, metrics["test/accuracy"])
            if session.run is not None and folder is not None:
                session.monitor.flush()
                session.unwritten.append({"epoch": epoch} | metrics)
                session.run.log({"epoch": epoch} | metrics)
                with session.failures.of(METRICS_FILE):
                    append_metrics(folder, session.unwritten)
                    session.unwritten.clear()
                say_epoch(session.console, progress, config, epoch, metrics)
            session.place = start_of(epoch + 1, learner)
            if config.target_accuracy is not None and metrics["test/accuracy"] >= config.target_accuracy:
                break
            if checkpoint_every and session.steps % checkpoint_every == 0 and epoch < config.epochs:
                save()
    return metrics


def finish(session: Session, folder: Path, run: RecordedRun, metrics: dict[str, float]) -> None:
    """What a run leaves: the series, the charts, the closing table and, as its very last act, the result."""
    monitor, config, failures = session.monitor, session.learner.config, session.failures
    monitor.close()
    summary = accuracies(session.best, metrics["test/accuracy"])
    run.summary.update(summary)
    with failures.of(SERIES_FILE):
        monitor.history.save(folder / SERIES_FILE)
    _finish_run(session)
    is_complete = send_rest_anew(config, folder, summary, failures.say) if run.failure else run.is_complete
    look = ""
    if len(monitor.history):
        with failures.of("rwc.html and rwc.png"):
            look = f" {draw(monitor.history, folder, f'{config.model} on {config.dataset}')}"
    print_layers(session.console, monitor.history)
    failures.say(f"Best test accuracy {session.best:.2%}.{look}")
    if failures.missing:
        # Without a result the run counts as unfinished.
        lacks = f"{folder} lacks {', '.join(failures.missing)}"
        failures.say(f"{lacks}: make room there, and the same command with --resume writes it.")
        return
    result = {
        "epochs": session.place.epoch - 1,
        "best_test_accuracy": session.best,
        "last_test_accuracy": metrics["test/accuracy"],
    }
    with failures.of(RESULT_FILE):
        write_result(folder, result)
        Checkpoints(folder).remove()
        if is_complete:
            RowsFile(folder).remove()


def _finish_run(session: Session, exit_code: int | None = None) -> None:
    with session.failures.of("W&B's files"):
        if session.run is not None and (line := end_run(session.run, exit_code)):
            session.failures.say(line)


def _leave(session: Session) -> None:
    session.learner.accelerator.wait_for_everyone()
    session.learner.accelerator.end_training()


def _must_stop(session: Session, signals: StopSignals) -> bool:
    accelerator = session.learner.accelerator
    if accelerator.num_processes == 1:
        return signals.heard() is not None
    if accelerator.device.type != "cpu" and session.steps % STOP_EVERY:
        return False
    heard = torch.tensor(float(signals.heard() is not None), device=accelerator.device)
    return bool(accelerator.reduce(heard, "sum") > 0)


def _steps(cadence: str | int | None, steps_per_epoch: int) -> int | None:
    return steps_per_epoch if cadence == "epoch" else cadence  # type: ignore[return-value]
