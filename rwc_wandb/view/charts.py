"""From a series to charts: rows for W&B tables, and the Vega-Lite specs, one set for W&B and for local files.

A spec takes its data from `{"name": "wandb"}`, its columns from `${field:NAME}`, its words from `${string:NAME}`. Ours
name the field after the column, so that the mapping that W&B asks for is the identity.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.view.compared import Comparison
from rwc_wandb.view.errors import percent, typical_error
from rwc_wandb.view.series import Series, Values

MOST_ROWS = 10_000
"""W&B cuts a table in a run file here, silently."""

LAYER_COLUMNS = ["layer", "depth", "stage", "start", "time", "rwc", "role", "block"]
RATIO_COLUMNS = ["ratio" if column == "rwc" else column for column in LAYER_COLUMNS] + ["error"]
STAGE_COLUMNS = ["stage", "order", "time", "mean", "low", "high"]

CHARTS = {
    "rwc_map": "RWC by role and block, at a chosen time",
    "rwc_heatmap": "RWC of every layer over time",
    "rwc_curves": "RWC over time, one line per layer",
    "rwc_stages": "RWC over time, one line per stage",
    "rwc_profile": "RWC over depth, at a chosen time",
}
"""Chart name, which is also its spec's file and its name in W&B: what it shows."""

VERSIONS = dict.fromkeys(CHARTS, 1)
"""Of each chart's spec. W&B has no call that changes a registered chart: a changed spec is registered beside it."""

RATIO_CHARTS = {
    "rwc_ratio": "ratio of every layer's RWC over time",
    "rwc_ratio_stages": "ratio of RWC over time, one line per stage",
}
"""Charts of two groups of runs compared, which are drawn locally only."""

Row = list[Any]


@dataclass(frozen=True)
class Chart:
    """What one chart needs, in W&B or here.

    Attributes:
        columns: names of the table's columns.
        rows: the table's rows; None stands for "no finite value".
        fields: the spec's fields: column. For `wandb.plot_table(..., fields=)`.
        strings: the spec's strings: text. For `wandb.plot_table(..., string_fields=)`.
    """

    columns: list[str]
    rows: list[Row]
    fields: dict[str, str]
    strings: dict[str, str]


def charts(
    series: Series, title: str = "", most_rows: int = MOST_ROWS, most_measurements: int = MOST_ROWS
) -> dict[str, Chart]:
    """Chart name: its table and words. Thinned evenly to at most `most_rows` rows and `most_measurements` times each;
    then a row holds the mean of its interval (`interval_means`), and the title says so. Where no role repeats there is
    no map."""
    reading = _how_to_read(series)
    by_layer, by_stage = (
        thinned(len(series.steps), min(most_rows // len(names), most_measurements))
        for names in (series.layers, series.stage_names)
    )
    layer_rows, stage_rows = _layer_rows(series, by_layer), _stage_rows(series, by_stage)
    layer_columns = LAYER_COLUMNS
    if series.errors is not None:
        layer_columns = [*LAYER_COLUMNS, "error"]
        # At most, were the draws of an interval one; two digits: it is an estimate itself.
        errors = (float(f"{error:.2g}") for error in interval_means(series.errors, by_layer).ravel())
        layer_rows = [[*row, _finite(error)] for row, error in zip(layer_rows, errors, strict=True)]
    result = {}
    for name, shows in CHARTS.items():
        if name == "rwc_map" and not series.repeats:
            continue
        columns, rows, shown = (
            (STAGE_COLUMNS, stage_rows, by_stage) if name == "rwc_stages" else (layer_columns, layer_rows, by_layer)
        )
        words = f"{title}: {shows}" if title else shows
        if len(shown) < len(series.steps):
            words += f" (means of {len(shown):,} intervals of {len(series.steps):,} measurements)"
        if series.errors is not None:
            typical = typical_error(series)
            words += " (estimates)" if math.isnan(typical) else f" (estimates, standard error {percent(typical)})"
        strings = {"title": words, "subtitle": reading[name], "value": value_title(series), "time": series.clock}
        result[name] = Chart(columns, rows, {column: column for column in columns}, strings)
    return result


def ratio_charts(
    comparison: Comparison, title: str, most_rows: int = MOST_ROWS, most_measurements: int = MOST_ROWS
) -> dict[str, Chart]:
    """Chart name: its table and words; thinned as in `charts`."""
    drawn = comparison.drawn
    shown = thinned(len(drawn.steps), min(most_rows // len(drawn.layers), most_measurements))
    errors = interval_means(comparison.errors, shown).ravel().tolist()
    rows = [[*row, _finite(error)] for row, error in zip(_layer_rows(drawn, shown), errors, strict=True)]
    of_runs = " of all pairs of runs" if max(comparison.runs) > 1 else " layer of the stage"
    subtitles = {
        "rwc_ratio": "Red: the layer changes more in the first. Blue: more in the second. White: equal.",
        "rwc_ratio_stages": f"Above 1: more in the first. Line: mean of log2; band: lowest to highest{of_runs}.",
    }
    result = {}
    for name, shows in RATIO_CHARTS.items():
        columns, own = (RATIO_COLUMNS, rows) if name == "rwc_ratio" else (STAGE_COLUMNS, _stage_rows(drawn, shown))
        strings = {"title": f"{title}: {shows}", "subtitle": subtitles[name], "time": drawn.clock}
        strings["value"] = "ratio of RWC, first to second (log scale)"
        result[name] = Chart(columns, own, {column: column for column in columns}, strings)
    return result


def value_title(series: Series) -> str:
    """What the values are and what they are per."""
    kind = "element-wise RWC" if series.elementwise else "RWC"
    unit = series.clock.removeprefix("optimizer ")
    per = unit if series.interval == 1 else f"{series.interval:,} {unit}s"
    return f"{kind} per {per} (no unit, log scale)"


def thinned(length: int, most: int) -> NDArray[np.int64]:
    """At most `most`, but at least one, of the indices below `length`: evenly spread, with the last and (from two on)
    the first."""
    if length <= most:
        return np.arange(length)
    return np.round(np.linspace(length - 1, 0, max(most, 1))).astype(np.int64)[::-1]


def interval_means(values: Values, shown: NDArray[np.int64]) -> Values:
    """`values` [T, ...] thinned to [len(shown), ...]: the arithmetic mean of all up to each index in `shown`, from the
    one after the index before.

    Arithmetic, though the axis is logarithmic: it is the rate per step over the interval, the number that W&B's rows
    and the summary hold too. The geometric mean would hide a leap of one measurement in a hundred, and one measurement
    without any change (RWC 0) would make it 0. (Ratios are logarithms already: their mean is geometric.)

    An interval with a value that is not finite has none (NaN): charts mark it.
    """
    if not len(shown):
        return values[shown]
    starts = np.concatenate([[0], shown[:-1] + 1])
    counts = np.diff(starts, append=shown[-1] + 1).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(np.add.reduceat(values[: shown[-1] + 1], starts, axis=0) / counts)


def spec(name: str) -> dict[str, Any]:
    """The Vega-Lite spec of a chart in W&B's template language."""
    loaded: dict[str, Any] = json.loads((Path(__file__).parent / "specs" / f"{name}.json").read_text("utf-8"))
    return loaded


def registered_name(name: str) -> str:
    """What a chart is called in W&B: `rwc_heatmap`, then `rwc_heatmap_v2`. Runs logged with an earlier one keep it."""
    return name if VERSIONS[name] == 1 else f"{name}_v{VERSIONS[name]}"


def filled(template: Any, fields: dict[str, str], strings: dict[str, str]) -> Any:
    """`template` with every `${field:NAME}` and `${string:NAME}` replaced, as W&B does when it draws."""
    if isinstance(template, dict):
        return {key: filled(value, fields, strings) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, fields, strings) for value in template]
    if isinstance(template, str):
        return re.sub(
            r"\$\{(field|string):(\w+)\}",
            lambda match: (fields if match[1] == "field" else strings)[match[2]],
            template,
        )
    return template


def _layer_rows(series: Series, shown: NDArray[np.int64]) -> list[Row]:
    times = series.times[shown]
    return [
        [layer, depth, stage, start, time, _finite(value), role, block]
        for start, time, row in zip(
            _starts(times), times.tolist(), interval_means(series.values, shown).tolist(), strict=True
        )
        for depth, (layer, stage, value, role, block) in enumerate(
            zip(series.layers, series.stages, row, series.roles, series.blocks, strict=True)
        )
    ]


def _stage_rows(series: Series, shown: NDArray[np.int64]) -> list[Row]:
    bands = np.stack([series.stage_means, series.stage_low, series.stage_high], 2)
    return [
        [stage, order, time, *map(_finite, numbers)]
        for time, stages in zip(series.times[shown].tolist(), interval_means(bands, shown).tolist(), strict=True)
        for order, (stage, numbers) in enumerate(zip(series.stage_names, stages, strict=True))
    ]


def _starts(times: NDArray[np.number]) -> list[float]:
    """Where the heat map's cell of each measurement begins: at the measurement before it.

    Where much more than the usual interval lies between (a gap after resuming), one usual interval before it, so that
    the gap stays blank.
    """
    if len(times) == 1:
        return [0]
    gaps = np.diff(times)
    usual = np.median(gaps).astype(times.dtype)
    widths = np.where(gaps <= 2 * usual, gaps, usual)
    return np.maximum(times - np.concatenate([[usual], widths]), 0).tolist()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _how_to_read(series: Series) -> dict[str, str]:
    runs = f"Mean over {series.runs} runs. " if series.runs > 1 else ""
    band = (
        f"band: lowest to highest of {series.runs} runs"
        if series.runs > 1
        else "band: lowest to highest layer that changes"
    )
    return {
        "rwc_map": runs + "Move the slider to see when each part of the network learns. Bright: it changes much.",
        "rwc_heatmap": runs + "Bright: the layer changes much. Dark: it hardly learns. Blank: not measured.",
        "rwc_curves": runs + "A line that falls and stays low has stopped learning. Point at a line to see its layer.",
        "rwc_stages": f"Line: mean over the stage's layers{runs and f' and {series.runs} runs'}; {band}.",
        "rwc_profile": runs + "Dots: the chosen time. Grey bars: the layer's range over all times that are drawn.",
    }
