"""The finished runs of a study, from their folders or from W&B, grouped as the paper groups them."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rwc_wandb import History
from rwc_wandb.errors import UserError
from rwc_wandb.log.api import checked_name, said_by_wandb
from rwc_wandb.measure.series.history import FILE
from rwc_wandb.study.train.config import OPTIONS, TrainConfig
from rwc_wandb.study.train.output import read_mapping, read_result

FREE = ("seed", "name", "project", "group", "output", "data_dir", "checkpoint_every", "histogram_every")
"""Settings in which averaged runs may differ; they have to differ in their seed."""


@dataclass(frozen=True)
class StudyRun:
    """One finished run.

    Attributes:
        name: its folder, or its name and id in W&B.
        config: every setting by its option name: `model`, `dataset`, `seed` ...
        history: its series.
        accuracy: the last test accuracy, 0 to 1; None where W&B has none.
    """

    name: str
    config: Mapping[str, Any]
    history: History
    accuracy: float | None


@dataclass(frozen=True)
class Group:
    """The runs of one architecture on one data set, one for each seed, with the same settings otherwise."""

    model: str
    dataset: str
    runs: Sequence[StudyRun]

    @property
    def title(self) -> str:
        return f"{self.model} on {self.dataset}"

    @property
    def accuracies(self) -> list[float]:
        return [run.accuracy for run in self.runs if run.accuracy is not None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUNS_DIR",
        help="what `train` and `sweep --local` left: a folder of runs, or the folders of single ones",
    )
    parser.add_argument("--from", dest="project", metavar="ENTITY/PROJECT", help="take the runs of this W&B project")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="take only runs with this setting, such as lr=0.1; may be given several times",
    )


def read_groups(arguments: argparse.Namespace) -> list[Group]:
    """The groups that the command line names, by model and data set.

    What is not a finished run of `rwc-wandb train` is left out, and so is a run that was done again with the same seed
    and settings: a line on stderr says so.

    Raises:
        UserError: no runs, broken files, runs of other settings, which `--where` tells apart; W&B refuses.
    """
    if bool(arguments.runs) == bool(arguments.project):
        raise UserError("it takes folders of runs, such as runs/, or --from ENTITY/PROJECT: one of the two.")
    if arguments.project:
        entity, _, project = arguments.project.partition("/")
        if not project:
            raise UserError(f"--from {arguments.project}: it takes ENTITY/PROJECT, such as my-team/rwc.")
        source = f"{checked_name(entity)}/{checked_name(project)}"
        runs = said_by_wandb(lambda: list(_runs_in_project(source)))
    else:
        source = " ".join(map(str, arguments.runs))
        runs = [run for path in arguments.runs for run in _runs_in_folder(path)]
    if not runs:
        raise UserError(f"{source}: there is no finished run of rwc-wandb train or rwc-wandb sweep in it.")
    for condition in arguments.where:
        runs = _with_setting(runs, condition)
    grouped: dict[tuple[str, str], list[StudyRun]] = defaultdict(list)
    for run in runs:
        grouped[run.config["model"], run.config["dataset"]].append(run)
    return [_group(*key, of_key) for key, of_key in sorted(grouped.items())]


def _with_setting(runs: Sequence[StudyRun], condition: str) -> list[StudyRun]:
    """The runs that meet one `--where`."""
    name, _, text = condition.partition("=")
    if name not in OPTIONS:
        raise UserError(f"--where {shlex.quote(condition)}: it takes OPTION=VALUE with one of {', '.join(OPTIONS)}.")
    kind = OPTIONS[name].metadata["kind"]
    try:
        wanted = kind.parse(text)
    except ValueError:
        raise UserError(f"--where {shlex.quote(condition)}: {name} takes {kind.takes}.") from None
    chosen = [run for run in runs if run.config.get(name) == wanted]
    if not chosen:
        there = ", ".join(sorted({str(run.config.get(name)) for run in runs}))
        raise UserError(f"--where {shlex.quote(condition)}: no finished run has it; {name} is {there} in these runs.")
    return chosen


def _group(model: str, dataset: str, runs: Sequence[StudyRun]) -> Group:
    """One run of each seed, the last one given. Runs with other settings or layers cannot be averaged."""
    group, first = Group(model, dataset, runs), runs[0]
    for run in runs[1:]:
        for key in TrainConfig().to_dict():
            ours, theirs = run.config.get(key), first.config.get(key)
            if key not in FREE and ours != theirs:
                raise UserError(
                    f"{group.title}: {first.name} has {key} {theirs}, {run.name} has {ours}; only runs that differ in "
                    f"nothing but the seed can be averaged: choose by --where {key}={theirs} or --where {key}={ours}."
                )
        if (run.history.layers, run.history.stages) != (first.history.layers, first.history.stages):
            raise UserError(f"{group.title}: {first.name} and {run.name} have other layers; they cannot be averaged.")
    of_seed: dict[int, StudyRun] = {}
    for run in runs:
        if twin := of_seed.get(run.config["seed"]):
            _leave_out(twin.name, f"the same run and seed as {run.name}")
        of_seed[run.config["seed"]] = run
    return replace(group, runs=[of_seed[seed] for seed in sorted(of_seed)])


def _runs_in_folder(path: Path) -> Iterator[StudyRun]:
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; name the --output of rwc-wandb train or sweep --local.")
    folders = [path] if (path / "config.yaml").is_file() else sorted(path.iterdir())
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            continue
        config, result = read_mapping(folder / "config.yaml"), read_result(folder)
        if not _is_of_study(config):
            raise UserError(f"{folder / 'config.yaml'} names no model, dataset and seed: move the run away.")
        if result is None:
            _leave_out(str(folder), "it has not finished")
            continue
        history = _with_measurements(History.load(folder / FILE), str(folder / FILE))
        yield StudyRun(str(folder), config, history, _accuracy(result["last_test_accuracy"]))


def _is_of_study(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("seed"), int) and all(isinstance(config.get(key), str) for key in ("model", "dataset"))


def _accuracy(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _with_measurements(history: History, name: str) -> History:
    if not len(history):
        raise UserError(f"{name} holds no measurement: move the run away.")
    return history


def _runs_in_project(project: str) -> Iterator[StudyRun]:
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        for run in wandb.Api().runs(project):
            name = f"{run.name} ({run.id})"
            if not _is_of_study(run.config):
                _leave_out(name, "its config names no model, dataset and seed")
                continue
            saved = list(run.files(names=[FILE]))
            if run.state != "finished" or not saved:
                _leave_out(name, f"it is {run.state} and has saved {'its' if saved else 'no'} {FILE}")
                continue
            saved[0].download(root=str(Path(folder) / run.id)).close()
            history = _with_measurements(History.load(Path(folder) / run.id / FILE), f"{FILE} of {name}")
            yield StudyRun(name, dict(run.config), history, _accuracy(run.summary.get("test/accuracy")))


def _leave_out(name: str, reason: str) -> None:
    print(f"{name} is left out: {reason}.", file=sys.stderr)
