"""The training loops' speeds as a table: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from rwc_wandb.bench.loops import EVERY_EPOCH, workers
from rwc_wandb.bench.table import bracketed, markdown_page, quartiles, short, terminal_rows, write_rows
from rwc_wandb.bench.timing import Spread
from rwc_wandb.bench.training import TrainingResults
from rwc_wandb.study.models import PAPER_MODELS

HEADERS = ("", "images/s", "x ceiling", "x ours", "s/50,000", "Table 1, h")
TABLE_1_IMAGES = 5 * 150 * (2 * 50_000 + 2 * 60_000)
"""Per architecture: 5 seeds, 150 epochs, two data sets of 50,000 images and two of 60,000."""
NOTE = (
    "Medians, with the quartiles in brackets; all loops take turns in one run and train the same model with the same "
    "optimizer. The ceiling is our loop without its data: one batch, on the device; bare steps are forward, backward "
    "and optimizer, and nothing else. Ratios are of speeds in the same round. torchvision's loop varies image by image "
    f"(PIL) with {workers()} worker processes. RWC every step is logged every 50 steps; histograms are made once an "
    "epoch. The last two columns follow from images/s: 50,000 training images, and the architecture's 20 runs of Table "
    "1, without the test images."
)


def title(results: TrainingResults) -> str:
    config, (channels, side, _) = results.config, results.image_shape
    return (
        f"{config.model}, {side} x {side} x {channels} images, batch {config.batch_size}, {config.precision}"
        f"{', compiled' if config.compile else ''}; an epoch here has {results.steps} steps"
    )


def cells(results: TrainingResults, written: Callable[[Spread], str]) -> list[tuple[str, ...]]:
    """The rows under `HEADERS`; `written` says how a median and its quartiles look."""
    return [
        (
            name,
            written(speed),
            written(results.to_ceiling[name]),
            written(results.to_ours[name]),
            short(50_000 / speed.median),
            short(hours(speed)) if is_the_paper_s(results) else "",
        )
        for name, speed in results.images_per_second.items()
    ]


def is_the_paper_s(results: TrainingResults) -> bool:
    return results.config.model in PAPER_MODELS and results.image_shape[1] == 32


def hours(speed: Spread) -> float:
    """Of one architecture's 20 runs of Table 1."""
    return TABLE_1_IMAGES / speed.median / 3600


def table_1(all_results: Sequence[TrainingResults]) -> str:
    """How long all of Table 1 takes; nothing where not all its architectures were measured."""
    found = {one.config.model: hours(one.images_per_second[EVERY_EPOCH]) for one in all_results if is_the_paper_s(one)}
    if not set(PAPER_MODELS) <= set(found):
        return ""
    return f"Table 1, 60 runs with RWC every epoch: {short(sum(found[model] for model in PAPER_MODELS))} h of training."


def terminal_table(results: TrainingResults) -> Table:
    """The medians alone: with quartiles it would not fit a terminal."""
    return terminal_rows(title(results), HEADERS, cells(results, lambda values: short(values.median)))


def markdown(all_results: Sequence[TrainingResults], conditions: Mapping[str, str]) -> str:
    sections = [(title(results), cells(results, bracketed)) for results in all_results]
    page = markdown_page("What training costs", conditions, NOTE, HEADERS, sections)
    return "\n".join([page, table_1(all_results), ""])


def write_csv(path: Path, all_results: Sequence[TrainingResults], conditions: Mapping[str, str]) -> None:
    """One line per model and loop, every number in full, the conditions on every line."""
    rows = [
        {
            "model": results.config.model,
            "loop": name,
            "batch_size": results.config.batch_size,
            "precision": results.config.precision,
            "compile": results.config.compile,
            "image_shape": "x".join(map(str, results.image_shape)),
            "steps": results.steps,
            **quartiles("images_per_second", speed),
            **quartiles("to_ceiling", results.to_ceiling[name]),
            **quartiles("to_ours", results.to_ours[name]),
            **conditions,
        }
        for results in all_results
        for name, speed in results.images_per_second.items()
    ]
    write_rows(path, rows)
