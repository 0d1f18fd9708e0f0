"""`rwc-wandb view`: a run's charts from the file that it left, without W&B; several runs: their mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import FILE, History, HistoryError
from rwc_wandb.view.render import write_pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help=f"the folder of a run, or its {FILE}; several runs of one architecture: their mean with a band",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the charts go; default: beside the run, of several: here"
    )
    parser.add_argument(
        "--elementwise",
        action="store_true",
        help="the mean of |change| / |weight| over elements, as the authors drew it",
    )
    parser.add_argument("--pictures", choices=["png", "svg"], help="every chart as a picture of its own, too")


def run(arguments: argparse.Namespace) -> None:
    """Write the charts and print where they are.

    Raises:
        UserError: a run that cannot be read, runs that cannot be averaged, a folder that cannot be written.
    """
    paths = [find_history(path) for path in arguments.runs]
    try:
        histories = [History.load(path) for path in paths]
    except (HistoryError, OSError) as error:
        raise UserError(str(error)) from error
    folder = arguments.output or (paths[0].parent if len(paths) == 1 else Path())
    try:
        written = write_pictures(histories, folder, _title(paths), arguments.elementwise, arguments.pictures)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--output {folder}: charts cannot be written there ({reason}); name another folder."
        ) from error
    for path in written:
        print(path)


def find_history(path: Path) -> Path:
    """The history file of a run's folder, ours or W&B's; a file is taken as it is.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    for candidate in (path / FILE, path / "files" / FILE):
        if candidate.is_file():
            return candidate
    lacks = f"this folder holds no {FILE}" if path.is_dir() else "there is no such file or folder"
    raise UserError(f"{path}: {lacks}; name the folder of a run that has measured something, or its {FILE}.")


def _title(paths: list[Path]) -> str:
    first = paths[0].resolve().parent
    # W&B keeps a run's files one folder deeper.
    name = first.parent.name if first.name == "files" else first.name
    return name if len(paths) == 1 else f"{name} and {len(paths) - 1} more"
