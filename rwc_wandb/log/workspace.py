"""`rwc-wandb workspace ENTITY/PROJECT`: save a W&B workspace that shows what the project's runs have measured."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

from rwc_wandb.errors import UserError
from rwc_wandb.log.api import checked_name, said_by_wandb
from rwc_wandb.log.charts import ENTITY_VARIABLE
from rwc_wandb.view.charts import LAYER_COLUMNS, registered_name

NEWEST_RUNS = 20
"""Runs that are asked for the names of their layers and metrics."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="the W&B project that gets the workspace")
    parser.add_argument("--prefix", default="rwc", help="what the keys start with, as in watch(prefix=...) [rwc]")


def run(arguments: argparse.Namespace) -> None:
    """Save the workspace and print its address.

    Raises:
        UserError: no such project, no server, or no run in it that has been measured.
    """
    entity, _, project = arguments.project.partition("/")
    if not project:
        raise UserError(f"{arguments.project!r}: it takes ENTITY/PROJECT, such as my-team/rwc.")
    for name in (entity, project):
        checked_name(name)
    keys = said_by_wandb(lambda: summary_keys(entity, project))
    if not any(key.startswith(f"{arguments.prefix}/") for key in keys):
        raise UserError(
            f"{entity}/{project}: none of its {NEWEST_RUNS} newest runs has a key that starts with "
            f"{arguments.prefix}/: log a run with rwc_wandb.watch first, or name its --prefix."
        )
    built = build(entity, project, keys, arguments.prefix)
    said_by_wandb(built.save)
    print(built.url)


def summary_keys(entity: str, project: str) -> list[str]:
    """Every key of numbers and histograms in the newest runs' summaries, in the order in which W&B gives them.

    Raises:
        wandb.Error, ValueError: no such project, or no server.
    """
    import wandb

    found: dict[str, None] = {}
    for run in islice(wandb.Api().runs(f"{entity}/{project}", order="-created_at"), NEWEST_RUNS):
        for key, value in dict(run.summary).items():
            is_histogram = hasattr(value, "get") and value.get("_type") == "histogram"
            if not key.startswith("_") and (is_histogram or isinstance(value, (int, float))):
                found[key] = None
    return list(found)


def build(entity: str, project: str, keys: Sequence[str], prefix: str = "rwc") -> Any:
    """The workspace, not saved yet: sections with an overview, heat maps, training and histograms."""
    ws = importlib.import_module("wandb_workspaces.workspaces")
    wr = importlib.import_module("wandb_workspaces.reports.v2")
    histograms = "hist" if prefix == "rwc" else f"{prefix}_hist"
    ours = tuple(
        f"{start}/" for start in (prefix, f"{prefix}_stage", f"{prefix}_summary", f"{prefix}_charts", histograms)
    )
    settings = ws.SectionLayoutSettings(columns=2, rows=2)
    sections = {
        "Overview": _overview(wr, keys, prefix),
        "Heat maps": _heat_maps(wr, os.environ.get(ENTITY_VARIABLE) or entity, prefix),
        "Training": [wr.LinePlot(title=key, y=[key]) for key in keys if not key.startswith(ours) and key != "epoch"],
        "Histograms of weights and their changes": [
            wr.LinePlot(title=key, x=f"{prefix}/step", y=[key]) for key in keys if key.startswith(f"{histograms}/")
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Relative weight change" if prefix == "rwc" else f"Relative weight change, {prefix}",
        sections=[
            # W&B loads the panels of a section when it is opened: two histograms per layer may be hundreds.
            ws.Section(name=name, panels=panels, is_open=not name.startswith("Histograms"), layout_settings=settings)
            for name, panels in sections.items()
            if panels
        ],
    )


def all_layers(prefix: str) -> str:
    """A regular expression for the key of every layer, but not for PREFIX/step: that is the axis.

    Without a look ahead, which not every engine has.
    """
    return f"^{prefix}/([^s]|s($|[^t])|st($|[^e])|ste($|[^p])|step.)"


def _overview(wr: Any, keys: Sequence[str], prefix: str) -> list[Any]:
    axes = {"x": f"{prefix}/step", "title_x": "optimizer step", "title_y": "RWC (no unit, log scale)", "log_y": True}
    last = [key for key in keys if key.startswith(f"{prefix}_summary/") and key.endswith("/last")]
    panels = [
        wr.LinePlot(title="Mean RWC of each stage", metric_regex=f"^{prefix}_stage/", **axes),
        wr.LinePlot(title="RWC of every layer", metric_regex=all_layers(prefix), **axes),
    ]
    if last:
        panels.append(wr.BarPlot(title="RWC of each stage at the end", metrics=[wr.SummaryMetric(key) for key in last]))
    if f"{prefix}_summary/depth_trend" in keys:
        title = "Do later layers change more? Spearman's rho of depth and RWC: 1 always, -1 never"
        panels.append(wr.ScalarChart(title=title, metric=wr.SummaryMetric(f"{prefix}_summary/depth_trend")))
    return panels


def heat_map(wr: Any, charts_of: str, prefix: str, title: str, subtitle: str, **options: Any) -> Any:
    """The panel of a workspace or report that draws the heat map, which `charts_of` has registered.

    Args:
        options: further ones of `wr.CustomChart`, such as its layout.
    """
    return wr.CustomChart(
        chart_name=f"{charts_of}/{registered_name('rwc_heatmap')}",
        # The curves' table has the same rows and is there where the charts were not registered, too.
        query={"summaryTable": {"tableKey": f"{prefix}_charts/rwc_curves_table"}},
        chart_fields={column: column for column in LAYER_COLUMNS},
        chart_strings={
            "title": title,
            "subtitle": subtitle,
            "value": "RWC (no unit, log scale)",
            "time": "epoch (of rwc-wandb train), or optimizer step",
        },
        **options,
    )


def _heat_maps(wr: Any, charts_of: str, prefix: str) -> list[Any]:
    subtitle = "Bright: the layer changes much. Dark: it hardly learns. Blank: not measured."
    return [
        heat_map(wr, charts_of, prefix, "RWC of every layer over time", subtitle),
        wr.MediaBrowser(title="All charts of a run in one page", media_keys=[f"{prefix}_charts/page"]),
        wr.MarkdownPanel(
            markdown=f"The heat map needs the custom charts in W&B: `rwc-wandb charts push {charts_of}`, once. Runs "
            f"that were logged without `{ENTITY_VARIABLE}` have the same charts in their page."
        ),
    ]
