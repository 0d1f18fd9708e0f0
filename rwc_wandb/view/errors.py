"""How the error of what was measured from samples is told: in words, and as a band."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from rwc_wandb.view.series import Series

STANDARD_ERRORS = 2
"""Half of the band's height: 95 % of the errors are smaller."""

_TOOLTIP = {"field": "error", "title": "standard error", "format": ".2~e"}


def typical_error(series: Series) -> float:
    """The median of the standard errors over RWC, where there are errors; NaN where they are not known."""
    if series.errors is None:
        return float("nan")
    known = (series.errors > 0) & (series.values > 0)
    return float(np.median(series.errors[known] / series.values[known])) if known.any() else float("nan")


def of_estimates(series: Series) -> str:
    """That the values of a series are estimates, and how good they are; "" where all are exact."""
    if series.errors is None:
        return ""
    typical = typical_error(series)
    if np.isnan(typical):
        return "The values of large layers are estimates, from a sample of their weights; their error is not known."
    return (
        f"RWC of large layers is an estimate, from a sample of their weights: its standard error is "
        f"{percent(typical)} of it in the median. The curves' bands are two standard errors to each side."
    )


def percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part < 1 else f"{100 * part:,.0f} %"


def add_error_band(described: dict[str, Any]) -> None:
    """Give the curves (`rwc_curves`, filled, of rows that are not averaged) a band of two standard errors, from the
    column `error`, and a line of the tooltip."""
    described["transform"] += [
        # The same part of the value up and down: a logarithmic axis has no place for what is below 0.
        {"calculate": f"datum.shown * exp({-STANDARD_ERRORS} * datum.error / datum.rwc)", "as": "bottom"},
        {"calculate": f"datum.shown * exp({STANDARD_ERRORS} * datum.error / datum.rwc)", "as": "top"},
    ]
    lines = described["layer"][0]["layer"]
    line, points = (layer["encoding"] for layer in lines)
    points["tooltip"].append(_TOOLTIP)
    # Below the lines, which readers point at.
    band = {name: copy.deepcopy(line[name]) for name in ("x", "y", "detail")} | {"fill": copy.deepcopy(points["fill"])}
    band["y"]["field"] = "bottom"
    lines.insert(
        0, {"mark": {"type": "area", "aria": False, "opacity": 0.25}, "encoding": band | {"y2": {"field": "top"}}}
    )
