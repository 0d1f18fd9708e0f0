"""Charts as files: one self-contained HTML page, PNG and SVG. Needs `pip install 'rwc_wandb[view]'` (vl-convert)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rwc_wandb.measure.history import History
from rwc_wandb.view.charts import Chart, charts, filled, spec
from rwc_wandb.view.page import page
from rwc_wandb.view.series import Series, series

WIDTH = 860
"""Pixels of every chart's plot."""

MOST_ROWS_LOCAL = 40_000
"""A page with more rows takes seconds to open; 161 layers x 150 epochs are 24,150."""

VEGA_LITE = "6.4"


def write_pictures(
    histories: History | Sequence[History], folder: str | Path, title: str = "", elementwise: bool = False
) -> list[Path]:
    """Write `rwc.html` (all charts) and `rwc.png` (the heat map) into `folder`, which is made if need be.

    Args:
        histories: one run, or several whose mean is drawn with a band.
        title: stands before what each chart shows: the run's name, say.
        elementwise: draw the element-wise variant; the files are then `rwc_elementwise.*`.

    Returns:
        The files written.

    Raises:
        ValueError: nothing to draw, or runs that cannot be averaged.
        ImportError: vl-convert is missing.
    """
    vl_convert = _vl_convert()
    drawn = series([histories] if isinstance(histories, History) else histories, elementwise)
    made = charts(drawn, title, MOST_ROWS_LOCAL)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = "rwc_elementwise" if elementwise else "rwc"
    page_file, picture_file = folder / f"{name}.html", folder / f"{name}.png"
    specs = {name: _sized(name, chart, drawn) for name, chart in made.items()}
    library = vl_convert.javascript_bundle(vl_version=VEGA_LITE)
    page_file.write_text(page(title or "Relative weight change", _introduction(drawn), specs, made, library), "utf-8")
    picture_file.write_bytes(png(concrete("rwc_heatmap", made["rwc_heatmap"], drawn)))
    return [page_file, picture_file]


def concrete(name: str, chart: Chart, series: Series) -> dict[str, Any]:
    """The chart's Vega-Lite spec with its data in it and a size that fits the number of layers."""
    return _sized(name, chart, series) | {"data": {"values": [dict(zip(chart.columns, row, strict=True)) for row in chart.rows]}}


def png(concrete_spec: dict[str, Any], scale: float = 2) -> bytes:
    """A PNG on white: it will be pasted anywhere, and most of those places are white."""
    convert = _vl_convert().vegalite_to_png
    return bytes(convert(_on_white(concrete_spec), vl_version=VEGA_LITE, scale=scale, allowed_base_urls=[]))


def svg(concrete_spec: dict[str, Any]) -> str:
    """An SVG on white."""
    return str(_vl_convert().vegalite_to_svg(_on_white(concrete_spec), vl_version=VEGA_LITE, allowed_base_urls=[]))


def _on_white(concrete_spec: dict[str, Any]) -> dict[str, Any]:
    return concrete_spec | {"background": "white", "padding": 16}


def _sized(name: str, chart: Chart, series: Series) -> dict[str, Any]:
    # Whole pixels per row: fractions leave seams between the cells.
    row_height = max(5, min(24, 700 // len(series.layers)))
    by_layer = max(row_height * len(series.layers), 60)
    height = by_layer if name in ("rwc_heatmap", "rwc_profile") else 360
    described: dict[str, Any] = filled(spec(name), chart.fields, chart.strings)
    # The file says version 5, for W&B; it means the same in the newer one that is bundled here.
    del described["$schema"]
    return described | {"width": WIDTH, "height": height}


def _introduction(series: Series) -> list[str]:
    if series.elementwise:
        formula = "the mean over its weights of |w_t - w_(t-1)| / |w_(t-1)| (the element-wise variant: it leaps where a weight is near 0)"
    else:
        formula = "sum |w_t - w_(t-1)| / sum |w_(t-1)| over its weights"
    apart = "one optimizer step" if series.interval == 1 else f"{series.interval:,} optimizer steps"
    runs = f"The mean of {series.runs} runs is drawn." if series.runs > 1 else ""
    return [
        f"Relative weight change (RWC, arXiv 2011.06735) of a layer: {formula}, here between measurements {apart} apart. "
        f"0.01 means that the layer moved by one percent of its size. {runs}",
        "Which layers learn? The bright rows of the heat map. Which have stopped? Rows that turn dark and stay dark, lines "
        "that level off low. What is odd? Light grey marks a layer that did not change at all (frozen, or no gradient), "
        "orange one without a finite value (NaN or infinite).",
    ]


def _vl_convert() -> ModuleType:
    try:
        import vl_convert
    except ImportError:
        raise ImportError("Drawing charts needs vl-convert: pip install 'rwc_wandb[view]'") from None
    return vl_convert
