"""The paper's figure: one line per layer over epochs, coloured by stage, in one panel or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rwc_wandb.view.charts import filled, interval_means, spec, thinned, value_title
from rwc_wandb.view.render import MOST_ROWS_LOCAL
from rwc_wandb.view.series import Series

_WIDTHS = {1: 640, 2: 420}
"""Pixels of a panel by how many there are; from three on, 300."""


def figure(drawn: Series, title: str, subtitle: str, panels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The figure's Vega-Lite spec with its data, for `render.png` and `render.svg`.

    Args:
        drawn: the mean over runs.
        title, subtitle: what stands above.
        panels: panel title -> the stages whose layers it shows. A stage has the same colour in every panel.
    """
    shown = thinned(len(drawn.steps), MOST_ROWS_LOCAL // len(drawn.layers))
    times, values = drawn.times[shown].tolist(), interval_means(drawn.values, shown).tolist()
    rows = [
        {"panel": panel, "layer": layer, "stage": stage, "time": time, "rwc": value if value > 0 else None}
        for panel, stages in panels.items()
        for time, measured in zip(times, values, strict=True)
        for layer, stage, value in zip(drawn.layers, drawn.stages, measured, strict=True)
        if stage in stages
    ]
    strings = {"title": title, "subtitle": subtitle, "time": drawn.clock, "value": value_title(drawn)}
    described: dict[str, Any] = filled(spec("rwc_figure"), {}, strings)
    # vl-convert is told the version; the file has the one of its siblings, which are W&B's, too.
    del described["$schema"]
    described["spec"]["width"] = _WIDTHS.get(len(panels), 300)
    if len(panels) == 1:
        # Its name would be an empty line.
        described["facet"]["column"]["header"]["labels"] = False
    of_panels = {stage for stages in panels.values() for stage in stages}
    colour = described["spec"]["encoding"]["color"]
    colour["scale"]["domain"] = [stage for stage in drawn.stage_names if stage in of_panels]
    return described | {"data": {"values": rows}}
