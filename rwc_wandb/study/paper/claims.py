"""`rwc-wandb claims`: the paper's six trends, judged on runs at hand."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rwc_wandb.errors import UserError
from rwc_wandb.study.paper.runs import add_arguments as add_run_arguments
from rwc_wandb.study.paper.runs import read_groups
from rwc_wandb.study.paper.trends import CLAIMS, Trend, trends

HEADINGS = ("claim", "of", "statement", "effect [95 % interval]", "seeds", "verdict")

READING = """\
The effect is the mean over seeds, with its t interval: Spearman's rho of depth and RWC; the share of the training \
until a stage stays within a factor 2 of its final level; the ratio b / a of "a < b", or of the two compared.
holds: the whole interval agrees with the claim; does not hold: no part of it does; undecided: some does. \
Every interval has 95 % of its own.
(*) the paper does not speak of this architecture or data set.
By eq. 1; a second line gives the element-wise mean, which the authors plotted, where its verdict is another or, \
with one seed, where only one of the two agrees with the claim."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table as Markdown, too")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for every statement of the paper that the runs speak to.

    Raises:
        UserError: see `read_groups`; or the file cannot be written.
    """
    groups = read_groups(arguments)
    judged = with_disagreements(trends(groups), trends(groups, elementwise=True))
    missing = [f"{claim} ({CLAIMS[claim]})" for claim in CLAIMS if claim not in {trend.claim for trend in judged}]
    notes = READING + (f"\nNo run speaks to claim {', '.join(missing)}." if missing else "")
    table = Table(title="What the paper claims, and what these runs say")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading == "seeds" else "left")
    for trend in judged:
        table.add_row(*line(trend))
    console = Console()
    # rich takes 80 columns for a file, which would cut the statements.
    console = console if console.is_terminal else Console(width=120)
    console.print(table)
    console.print(notes, highlight=False, markup=False)
    if arguments.output:
        try:
            arguments.output.write_text(markdown(judged) + "\n\n" + notes.replace("\n", "  \n") + "\n", "utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--output {arguments.output}: it cannot be written ({reason}); name another.") from error


def with_disagreements(by_definition: Sequence[Trend], elementwise: Sequence[Trend]) -> list[Trend]:
    """Every trend by eq. 1, and after it the element-wise one where that says something else."""
    pairs = zip(by_definition, elementwise, strict=True)
    return [trend for ours, theirs in pairs for trend in ((ours, theirs) if _disagree(ours, theirs) else (ours,))]


def _disagree(ours: Trend, theirs: Trend) -> bool:
    """Whether the verdicts differ; of one run, which gets no verdict, whether one agrees with the claim."""
    if ours.lacks or not len(ours.values) == len(theirs.values) == 1:
        return ours.verdict != theirs.verdict
    return ours.mean_agrees != theirs.mean_agrees


def line(trend: Trend) -> tuple[str, ...]:
    """The cells of a trend's row, in the order of `HEADINGS`."""
    statement = f"{trend.statement}, element-wise" if trend.elementwise else trend.statement
    subject = trend.subject if trend.in_paper else f"{trend.subject} (*)"
    return str(trend.claim), subject, statement, effect(trend), str(len(trend.values)), trend.verdict


def effect(trend: Trend) -> str:
    """Such as `x1.31 [1.20, 1.43]`."""
    if not trend.values:
        return ""
    interval = trend.interval
    numbers = interval.mean, interval.low, interval.high
    if trend.scale == "ratio":
        mean, low, high = (f"{math.exp(min(number, 700)):.3g}" for number in numbers)
    elif trend.scale == "share":
        mean, low, high = (f"{100 * number:.0f}" for number in numbers)
    else:
        mean, low, high = (f"{number:.2f}" for number in numbers)
    sign = {"ratio": "x", "rho": "rho ", "share": "", "difference": ""}[trend.scale]
    unit = " %" if trend.scale == "share" else ""
    return f"{sign}{mean}{unit}" + (f" [{low}, {high}]" if len(trend.values) > 1 else "")


def markdown(judged: Sequence[Trend]) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(line, judged)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
