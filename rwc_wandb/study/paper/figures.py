"""`rwc-wandb figures`: the paper's figures and its table of accuracies, from runs at hand."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from rwc_wandb.errors import UserError
from rwc_wandb.study.paper.accuracies import accuracy_table
from rwc_wandb.study.paper.figure_spec import figure
from rwc_wandb.study.paper.runs import Group, read_groups
from rwc_wandb.study.paper.runs import add_arguments as add_run_arguments
from rwc_wandb.view.render import png, svg
from rwc_wandb.view.series import series

ACCURACIES = "accuracies.md"
METRICS = ("rwc", "rwc_elementwise")

_THIRDS: dict[str, tuple[str, ...]] = {"": ("early", "middle", "later")}
PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "resnet18": {f"Blocks {n}-{n + 1}": (f"layer{n}", f"layer{n + 1}") for n in (1, 2, 3)},
    "vgg19_bn": _THIRDS,
    "alexnet": _THIRDS,
}
"""Architecture: panel title -> stages, as the paper draws them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--metric", choices=METRICS, default="rwc", help="eq. 1, or the authors' element-wise mean")
    parser.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR", help="[figures]")
    parser.add_argument("--format", choices=["png", "svg"], default="png", help="[png]")


def run(arguments: argparse.Namespace) -> None:
    """Write a figure for every architecture and data set, and `accuracies.md`; print both.

    Raises:
        UserError: see `read_groups`; or the folder cannot be written.
    """
    groups = read_groups(arguments)
    table = accuracy_table({(group.model, group.dataset): group.accuracies for group in groups})
    written = []
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / ACCURACIES).write_text(table + "\n", "utf-8")
        for group in groups:
            described = describe(group, arguments.metric)
            data = png(described) if arguments.format == "png" else svg(described).encode()
            name = re.sub(r"[^\w.-]+", "-", f"{group.model}-{group.dataset}-{arguments.metric}")
            written.append(arguments.output / f"{name}.{arguments.format}")
            written[-1].write_bytes(data)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output {arguments.output}: it cannot be written ({reason}); name another.") from error
    Console().print(Markdown(table))
    print(*written, arguments.output / ACCURACIES, sep="\n")


def describe(group: Group, metric: str) -> dict[str, Any]:
    """The Vega-Lite spec of one figure, with its data.

    Of the paper's architectures the stages that the paper draws; of others all of them, in one panel.
    """
    drawn = series([run.history for run in group.runs], elementwise=metric == "rwc_elementwise")
    panels = PANELS.get(group.model, {"": tuple(drawn.stage_names)})
    averaged = f", the mean over {len(group.runs)} seeds" if len(group.runs) > 1 else ""
    left_out = [stage for stage in drawn.stage_names if not any(stage in stages for stages in panels.values())]
    without = f", without {' and '.join(left_out)}, as in the paper" if left_out else ""
    subtitle = f"One line per layer{averaged}{without}."
    return figure(drawn, f"{group.title}: how much each layer changes", subtitle, panels)
