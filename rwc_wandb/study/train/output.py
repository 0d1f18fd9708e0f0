"""What a run writes: the files of its folder, which of them failed, and what the terminal shows."""

from __future__ import annotations

import csv
import errno
import io
import secrets
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rwc_wandb import History
from rwc_wandb.errors import UserError
from rwc_wandb.files import new_folders, write_whole
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.view.render import write_pictures

RESULT_FILE = "result.yaml"
METRICS_FILE = "metrics.csv"


def make_folder(config: TrainConfig) -> Path:
    """OUTPUT/NAME/ with `config.yaml` in it, with a number behind NAME where that exists already.

    Raises:
        UserError: it cannot be written.
    """
    wanted = config.run_folder
    # Filled under another name, then renamed: a process that is killed in between leaves no folder that cannot resume.
    fresh = wanted.with_name(f".{secrets.token_hex(8)}")
    try:
        with new_folders(fresh):
            fresh.mkdir(parents=True)
            try:
                (fresh / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), "utf-8")
                return _renamed(fresh, wanted)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
    except OSError as error:
        raise unwritable(config.output, wanted, error) from error


def _renamed(fresh: Path, wanted: Path) -> Path:
    """To the first name that is free; an empty folder's is."""
    for folder in _numbered(wanted):
        try:
            return fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    raise FileExistsError(errno.EEXIST, "too many runs have its name")


def _numbered(wanted: Path) -> Iterator[Path]:
    """NAME, NAME-2, NAME-3 ..."""
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in range(2, 10_000))


def folders_of(config: TrainConfig) -> list[Path]:
    """The folders of this very run, the newest last: it has more than one where it was started anew."""
    there = takewhile(Path.is_dir, _numbered(config.run_folder))
    return [folder for folder in there if (folder / "config.yaml").is_file() and not _other_setting(config, folder)]


def folder_to_resume(config: TrainConfig) -> Path | None:
    """The newest folder of this very run that has not finished; if all have, the newest; None if there is none.

    Raises:
        UserError: there is none, and OUTPUT/NAME/ holds a run of other settings.
    """
    folders = folders_of(config)
    if not folders and (config.run_folder / "config.yaml").is_file():
        raise UserError(
            f"{config.run_folder} holds a run with {_other_setting(config, config.run_folder)}: name another --output."
        )
    candidates = [folder for folder in folders if read_result(folder) is None] or folders
    return candidates[-1] if candidates else None


def _other_setting(config: TrainConfig, folder: Path) -> str:
    """The first setting in which the run in `folder` is another one, such as `lr 0.02, not 0.5`; "" if it is this."""
    found = read_mapping(folder / "config.yaml")
    for name, value in config.to_dict().items():
        if name not in ("output", "data_dir") and found.get(name) != value:
            return f"{name} {found.get(name)}, not {value}"
    return ""


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run reached: `epochs`, `best_test_accuracy`, `last_test_accuracy`; None if it has not finished.

    Raises:
        UserError: the file is not what `write_result` writes.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    result = read_mapping(path)
    if not {"epochs", "best_test_accuracy", "last_test_accuracy"} <= set(result):
        raise UserError(f"{path} is not what a finished run writes: take it away, or name another --output.")
    return result


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that a run wrote. Raises: UserError, when it cannot be read or holds no mapping."""
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, or name another --output.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not what a run writes: take it away, or name another --output.")
    return found


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """The last thing that a run writes: it has finished when this file is there."""
    write_whole(folder / RESULT_FILE, yaml.safe_dump(result, sort_keys=False))


def append_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add epochs to `metrics.csv`, in place of these epochs and later ones of a run that was stopped."""
    path = folder / METRICS_FILE
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [old for old in csv.DictReader(file) if (old["epoch"] or "").isdigit()]
    kept = [old for old in kept if int(old["epoch"]) < rows[0]["epoch"]]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_whole(path, text.getvalue())


def unwritable(output: str, path: Path, error: OSError) -> UserError:
    """The sentence for a `path` below `--output` that the disk or its owner refuses."""
    return UserError(f"--output {output}: {path} cannot be written ({error.strerror or error}); name another.")


class WriteFailures:
    """Notes what a run cannot write: it is said once, and training goes on.

    Attributes:
        missing: what is not there: why. What was written at a later attempt is taken out.
    """

    def __init__(self, console: Console) -> None:
        self.missing: dict[str, str] = {}
        self._console = console
        self._said: set[str] = set()

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """The block writes `what`. An error is noted, printed the first time, and not raised."""
        try:
            yield
        except Exception as error:
            self.missing[what] = str(getattr(error, "strerror", None) or error or type(error).__name__)
            if what not in self._said:
                self._said.add(what)
                self.say(f"{what} cannot be written ({self.missing[what]}): training goes on without.")
        else:
            self.missing.pop(what, None)

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


def progress_bar(console: Console, is_main: bool) -> Progress:
    """Steps done, loss and speed; drawn on the main process, in a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
        TimeRemainingColumn(),
        console=console,
        # `show` in the loop draws it: a thread that draws would take the interpreter from training.
        auto_refresh=False,
        disable=not (is_main and console.is_terminal),
    )


def say_epoch(console: Console, progress: Progress, config: TrainConfig, epoch: int, metrics: dict[str, float]) -> None:
    """Print a line per epoch where there is no terminal for the bar."""
    if progress.disable:
        console.print(
            f"epoch {epoch}/{config.epochs}  loss {metrics['train/loss']:.4f}  train {metrics['train/accuracy']:.2%}  "
            f"test {metrics['test/accuracy']:.2%}  {metrics['images_per_second']:,.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )


def draw(history: History, folder: Path, title: str) -> str:
    """Draw the run's charts into its folder; returns where to look or, without the extra `view`, what draws them."""
    try:
        write_pictures(history, folder, title)
    except ModuleNotFoundError as error:
        if error.name != "vl_convert":
            raise
        return f"{error}; then: rwc-wandb view {shlex.quote(str(folder))}"
    return f"Look at {folder / 'rwc.html'}"


def print_layers(console: Console, history: History) -> None:
    """The closing table: layer, stage, weights, first, last and mean RWC."""
    table = Table(title="Relative Weight Change: ||w_t - w_{t-1}||_1 / ||w_{t-1}||_1")
    for heading in ("layer", "stage"):
        table.add_column(heading)
    for heading in ("weights", "first", "last", "mean"):
        table.add_column(heading, justify="right")
    if len(history):
        rows = zip(history.layers, history.stages, history.sizes, history.rwc.T, strict=True)
        for layer, stage, size, values in rows:
            numbers = (f"{value:.4g}" for value in (values[0], values[-1], values.mean(dtype=np.float64)))
            table.add_row(layer, stage, f"{size:,}", *numbers)
    console.print(table)
