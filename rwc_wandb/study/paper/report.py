"""`rwc-wandb report ENTITY/PROJECT`: a W&B report of a project's runs, or with `--dry-run` its JSON in a file."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import Any

from rwc_wandb.errors import UserError
from rwc_wandb.log.api import checked_name, said_by_wandb
from rwc_wandb.log.summary import NOTHING
from rwc_wandb.log.workspace import heat_map
from rwc_wandb.study.paper.accuracies import PAPER_ACCURACY, Accuracies, accuracies_of, accuracy_table
from rwc_wandb.study.paper.claims import READING, markdown, with_disagreements
from rwc_wandb.study.paper.runs import read_groups
from rwc_wandb.study.paper.trends import trends

_INTRODUCTION = """\
**Relative Weight Change (RWC)** tells how much a layer learns: by what part of its own size its weights moved between
two measurements (arXiv 2011.06735, eq. 1). It has no unit. 0.01: the layer moved by one percent of its size. 0: it did
not change at all (frozen, or no gradient)."""

_READING = """\
* **Stage curves**: the mean RWC of a group of layers (blocks, or early / middle / later), averaged over seeds; the band
  runs from the lowest to the highest seed. A curve that falls and stays low has stopped learning.
* **Heat maps**: a row per layer, input first, a column per measurement. Bright rows learn, rows that turn dark have
  stopped, light grey did not change at all, orange has no finite value (NaN or infinite).
* **Histograms**: how the weights, and their changes between two measurements, are distributed in the first and the last
  layer. A spike at 0 among the changes: most weights stand still.
* **What the paper found**: later layers have a higher RWC than earlier ones, early layers level off first, and harder
  data (CIFAR-100 against CIFAR-10, Fashion-MNIST against MNIST) keep RWC higher. Compare levels only between runs that
  measure at the same distance: RWC per epoch is far larger than RWC per step."""

_ONE_LINE = """\
monitor = rwc_wandb.watch(model, optimizer)  # once, after both are built; the training loop stays as it is"""

_HEAT_MAPS = """\
Heat maps need the custom charts in W&B: `rwc-wandb charts push {charts_of}` registers them, once. Until then their
panels are empty; the page of charts in each run (`rwc_charts/page`), or `rwc-wandb view RUN`, has the same heat map."""

_STAGES = {
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
    "vgg19_bn": ["early", "middle", "later", "head"],
    "alexnet": ["early", "middle", "later", "head"],
}
_ENDS = {
    "resnet18": ["conv1", "fc"],
    "vgg19_bn": ["features/0", "classifier"],
    "alexnet": ["features/0", "classifier/6"],
}
"""First and last layer, as they stand in keys."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="the W&B project whose runs are reported")
    parser.add_argument(
        "--dry-run",
        type=Path,
        metavar="FILE",
        help="write the report as JSON, with a section for each of the paper's experiments; needs no server",
    )


def run(arguments: argparse.Namespace) -> None:
    """Save the report in W&B and print its address, or write it to a file.

    Raises:
        UserError: no such project, no server, or a file that cannot be written.
    """
    entity, slash, project = arguments.project.partition("/")
    if not slash or not project:
        raise UserError(f"{arguments.project!r}: it takes ENTITY/PROJECT, such as my-team/rwc.")
    for name in (entity, project):
        checked_name(name)
    if arguments.dry_run:
        # W&B asks its server for the id of a project that is named: without one it is the report's own.
        report = build(entity, project, dict.fromkeys(PAPER_ACCURACY, ()), runs_from=("", ""))
        try:
            arguments.dry_run.write_text(report._to_model().model_dump_json(by_alias=True, exclude_none=True), "utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--dry-run {arguments.dry_run}: it cannot be written ({reason}).") from error
        print(arguments.dry_run)
        return
    accuracies = said_by_wandb(lambda: accuracies_of(entity, project))
    if not accuracies:
        raise UserError(
            f"{entity}/{project} has no run whose config names a model and a dataset: nothing to report on."
        )
    found = said_by_wandb(lambda: findings_of_runs(arguments.project))
    report = build(entity, project, accuracies, (entity, project), verdicts(arguments.project), found)
    said_by_wandb(report.save)
    print(report.url)


def verdicts(project: str) -> str:
    """Markdown: what the project's runs say to the paper's claims, or why they cannot be judged."""
    try:
        groups = read_groups(argparse.Namespace(runs=[], project=project, where=[]))
    except UserError as error:
        return f"Not judged: {error}"
    judged = with_disagreements(trends(groups), trends(groups, elementwise=True))
    return markdown(judged) + "\n\n" + READING.replace("\n", "  \n")


def findings_of_runs(project: str) -> str:
    """Markdown: what stands out in each of the project's runs, as their summaries say it; "" where nothing does."""
    import wandb

    said = {run.name: str(run.summary.get("rwc_summary/findings") or NOTHING) for run in wandb.Api().runs(project)}
    return "\n".join(
        f"* **{name}**: {' '.join(lines.splitlines())}" for name, lines in said.items() if lines != NOTHING
    )


def build(
    entity: str,
    project: str,
    accuracies: Accuracies,
    runs_from: tuple[str, str],
    judged: str = "",
    found: str = "",
) -> Any:
    """The report, not saved yet.

    Args:
        entity, project: where it will live.
        accuracies: (model, data set): test accuracies of its runs. One section each.
        runs_from: entity and project of the runs; empty for the report's own.
        judged: Markdown that stands under the paper's claims; empty: no such section.
        found: Markdown of what stands out in the runs; empty: no such section.
    """
    wr = importlib.import_module("wandb_workspaces.reports.v2")
    charts_of = os.environ.get("RWC_WANDB_CHARTS") or entity
    blocks: list[Any] = [
        wr.MarkdownBlock(text=_INTRODUCTION),
        wr.LatexBlock(text=r"\mathrm{RWC}_L = \frac{\lVert w_t - w_{t-1} \rVert_1}{\lVert w_{t-1} \rVert_1}"),
        wr.MarkdownBlock(text="One line measures a training:"),
        wr.CodeBlock(code=_ONE_LINE, language="python"),
        wr.TableOfContents(),
        wr.H1(text="How to read the charts"),
        wr.MarkdownBlock(text=_READING),
        wr.MarkdownBlock(text=_HEAT_MAPS.format(charts_of=charts_of)),
        *([wr.H1(text="What stands out"), wr.MarkdownBlock(text=found)] if found else []),
        *([wr.H1(text="What the paper claims"), wr.MarkdownBlock(text=judged)] if judged else []),
        wr.H1(text="Test accuracy"),
        wr.MarkdownBlock(text=accuracy_table(accuracies)),
        wr.PanelGrid(
            runsets=[wr.Runset(*runs_from, name="all runs")],
            panels=[
                wr.BarPlot(
                    title=f"last test accuracy, mean over runs, by {key}",
                    metrics=["test/accuracy"],
                    groupby=wr.Config(key),
                    groupby_aggfunc="mean",
                    groupby_rangefunc="minmax",
                    layout=wr.Layout(x=12 * index, y=0, w=12, h=8),
                )
                for index, key in enumerate(("model", "dataset"))
            ]
            + [
                wr.ScalarChart(
                    title="Do later layers change more? Spearman's rho of depth and RWC (1: always), mean over runs",
                    metric=wr.SummaryMetric("rwc_summary/depth_trend"),
                    groupby_aggfunc="mean",
                    layout=wr.Layout(x=0, y=8, w=8, h=6),
                ),
                wr.ParameterImportancePlot(with_respect_to="test/accuracy", layout=wr.Layout(x=8, y=8, w=16, h=6)),
                wr.RunComparer(diff_only="split", layout=wr.Layout(x=0, y=14, w=24, h=10)),
            ],
        ),
    ]
    model = None
    for pair in accuracies:
        if pair[0] != model:
            model = pair[0]
            blocks.append(wr.H1(text=model))
        blocks += [wr.H2(text=f"{pair[0]} on {pair[1]}"), _section(wr, *pair, runs_from, charts_of)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Relative Weight Change: {project}"[:128],
        description="Which layers learn, which have stopped, what is odd.",
        blocks=blocks,
        width="fluid",
    )


def _section(wr: Any, model: str, dataset: str, runs_from: tuple[str, str], charts_of: str) -> Any:
    """The panels of one architecture on one data set."""
    name = f"{model} on {dataset}"
    of_stages = (
        {"y": [f"rwc_stage/{stage}" for stage in _STAGES[model]]}
        if model in _STAGES
        else {"metric_regex": "rwc_stage/.*"}
    )
    panels = [
        wr.LinePlot(
            title=f"{name}: mean RWC of each stage; band: lowest to highest run",
            x="rwc/step",
            title_x="optimizer step",
            title_y="RWC (no unit, log scale)",
            log_y=True,
            groupby=wr.Config("dataset"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=wr.Layout(x=0, y=0, w=12, h=12),
            **of_stages,
        ),
        heat_map(
            wr,
            charts_of,
            "rwc",
            f"{name}: RWC of every layer over time",
            "Mean over the runs. Bright: the layer changes much. Dark: it hardly learns.",
            layout=wr.Layout(x=12, y=0, w=12, h=12),
        ),
    ]
    for row, layer in enumerate(_ENDS.get(model, [])):
        for column, (kind, title) in enumerate((("update", "changes of the weights"), ("weight", "weights"))):
            panels.append(
                wr.LinePlot(
                    title=f"{layer}: histogram of the {title}",
                    x="rwc/step",
                    y=[f"hist/{kind}/{layer}"],
                    layout=wr.Layout(x=12 * column, y=12 + 7 * row, w=12, h=7),
                )
            )
    runs = wr.Runset(*runs_from, name=name, filters=f"Config('model') = {model!r} and Config('dataset') = {dataset!r}")
    return wr.PanelGrid(runsets=[runs], panels=panels)
