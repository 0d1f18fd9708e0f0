"""`rwc-wandb view`: charts of one run, of the mean of several, or of two groups compared, from the files they left."""

from __future__ import annotations

import argparse
from pathlib import Path

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import FILE, History, HistoryError
from rwc_wandb.view.compared import compare
from rwc_wandb.view.differences import differences
from rwc_wandb.view.errors import of_estimates
from rwc_wandb.view.findings import odd_or_not
from rwc_wandb.view.render import write_comparison, write_pictures
from rwc_wandb.view.series import series


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help=f"the folder of a run, or its {FILE}; several runs of one architecture: their mean with a band",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="compare with these runs: which layers change more in RUN..., how much and when",
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
    """Write the charts; print what stands out, a finding a line, or that nothing does, and where the charts are.

    Raises:
        UserError: a run that cannot be read, runs that cannot be averaged or compared, a folder that cannot be written.
    """
    paths = [find_history(path) for path in arguments.runs]
    others = [find_history(path) for path in arguments.against or ()]
    try:
        histories, other_histories = ([History.load(path) for path in group] for group in (paths, others))
    except (HistoryError, OSError) as error:
        raise UserError(str(error)) from error
    folder = arguments.output or (paths[0].parent if len(paths) == 1 and not others else Path())
    try:
        if others:
            compared = compare(histories, other_histories, arguments.elementwise)
            title = " against ".join(_told_apart(paths, others))
            said = [f"{title}:", *differences(compared)]
            written = write_comparison(compared, folder, title, arguments.pictures)
        else:
            drawn = series(histories, arguments.elementwise)
            said = [*odd_or_not(drawn), *filter(None, [of_estimates(drawn)])]
            written = write_pictures(histories, folder, _title(paths), arguments.elementwise, arguments.pictures)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--output {folder}: charts cannot be written there ({reason}); name another folder."
        ) from error
    print(*said, *written, sep="\n")


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
    name = _name(paths[0])
    return name if len(paths) == 1 else f"{name} and {len(paths) - 1} more"


def _name(path: Path) -> str:
    folder = path.resolve().parent
    # W&B keeps a run's files one folder deeper.
    return folder.parent.name if folder.name == "files" else folder.name


def _told_apart(*groups: list[Path]) -> list[str]:
    """The words of each group's names, split at "-", that all its runs have and that not all groups have:
    `lr0.1` and `lr0.01` of `resnet18-lr0.1-seed0`, `resnet18-lr0.1-seed1` and `resnet18-lr0.01-seed0`."""
    words = [[_name(path).split("-") for path in paths] for paths in groups]
    shared = [[word for word in named[0] if all(word in other for other in named)] for named in words]
    apart = [[word for word in own if not all(word in other for other in shared)] for own in shared]
    named = ["-".join(own) for own in apart]
    return named if all(named) and len(set(named)) == len(named) else [_title(paths) for paths in groups]
