"""`rwc-wandb bench --sample`: both experiments, as tables in the terminal and in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from rwc_wandb.bench.decoder import decoder
from rwc_wandb.bench.sampling.cost import Cost, cost
from rwc_wandb.bench.sampling.trainings import TRAININGS
from rwc_wandb.bench.sampling.truth import COUNTS, Trial, together, trials
from rwc_wandb.bench.table import bracketed, markdown_page, quartiles, short, terminal_rows, write_rows

STEPS = 120
COST_HEADERS = ("", "all weights", "from the sample", "ratio")
TRUTH_HEADERS = ("", "weights drawn", "layers x steps", "standard error, of RWC", "std of z", "within 2", "mean of z")
NOTE = (
    "z = (RWC of the sample - RWC) / standard error, for every layer at every step, each with a draw of its own: "
    "errors are what they are said to be where z has a standard deviation of 1, 95 % within 2, and a mean of 0. Times "
    "are medians, with the quartiles in brackets, of one measurement of all layers, in turns; extra memory is the peak "
    "beyond the model."
)


def run(
    models: Sequence[str], device: torch.device, rounds: int, steps: int, path: Path, found: dict[str, str]
) -> None:
    """Measure the cost on `models` (`llama:DEPTHxWIDTH`), then the truth in all trainings; write `path` and, beside
    it, the same as Markdown."""
    console = Console()
    costs, said = [], []
    for name in models:
        with console.status(f"measuring {name}"):
            torch.manual_seed(0)
            costs.append(cost(name, decoder(name, device), COUNTS[0], rounds))
        console.print(terminal_rows(_title(costs[-1]), COST_HEADERS, _cost_cells(costs[-1])))
    for training in TRAININGS:
        with console.status(f"training: {training}"):
            said += trials(training, steps)
        own = [trial for trial in said if trial.training == training]
        console.print(terminal_rows(f"{training}, {steps} steps", TRUTH_HEADERS, map(_truth_cells, own)))
    said += [together(said, count) for count in COUNTS]
    console.print(terminal_rows("all trainings", TRUTH_HEADERS, map(_truth_cells, said[-len(COUNTS) :])))
    console.print(NOTE, highlight=False, markup=False)
    rows = [_cost_row(each) for each in costs] + [_truth_row(trial) for trial in said]
    names = list(dict.fromkeys(key for row in rows for key in row))
    write_rows(path, [{name: row.get(name, "") for name in names} | found for row in rows])
    truth = markdown_page(
        "A sample beside all weights", found, NOTE, TRUTH_HEADERS, [("Is the error true?", map(_truth_cells, said))]
    )
    tables = markdown_page("What it saves", {}, "", COST_HEADERS, [(_title(each), _cost_cells(each)) for each in costs])
    path.with_suffix(".md").write_text(f"{truth}\n{tables}", encoding="utf-8")


def _title(each: Cost) -> str:
    return f"{each.model}: {each.weights / 1e6:,.0f} M weights, {each.drawn / 1e6:,.1f} M drawn"


def _cost_cells(each: Cost) -> list[tuple[str, ...]]:
    return [
        ("ms", *map(bracketed, each.milliseconds), f"1/{short(each.times_faster.median)}"),
        ("extra MB", *(f"{size / 1e6:,.1f}" for size in each.memory), f"1/{short(each.times_smaller)}"),
    ]


def _truth_cells(trial: Trial) -> tuple[str, ...]:
    return (
        f"{trial.training}: {trial.layers}",
        f"{trial.count:,}",
        f"{len(trial.scores):,}",
        f"{100 * np.median(trial.relative):.2g} %",
        f"{trial.deviation:.2f}",
        f"{100 * trial.within_2:.1f} %",
        f"{trial.bias:+.2f}",
    )


def _cost_row(each: Cost) -> Mapping[str, object]:
    return {
        "model": each.model,
        "weights": each.weights,
        "drawn": each.drawn,
        **quartiles("milliseconds_all", each.milliseconds[0]),
        **quartiles("milliseconds_sample", each.milliseconds[1]),
        **quartiles("times_faster", each.times_faster),
        "extra_bytes_all": each.memory[0],
        "extra_bytes_sample": each.memory[1],
    }


def _truth_row(trial: Trial) -> Mapping[str, object]:
    return {
        "training": trial.training,
        "layers": trial.layers,
        "count": trial.count,
        "scores": len(trial.scores),
        "relative_error_median": float(np.median(trial.relative)),
        "score_deviation": trial.deviation,
        "score_within_2": trial.within_2,
        "score_mean": trial.bias,
    }
