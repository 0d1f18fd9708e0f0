"""Charts as files: one self-contained HTML page, PNG and SVG. Needs `pip install 'rwc_wandb[view]'` (vl-convert)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rwc_wandb.files import whole_file
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import Chart, charts, filled, spec
from rwc_wandb.view.findings import findings
from rwc_wandb.view.page import INK, page
from rwc_wandb.view.series import Series, series

WIDTH = 860
"""Pixels of every chart's plot."""

MOST_ROWS_LOCAL = 40_000
"""A page with more rows takes seconds to open; 161 layers x 150 epochs are 24,150."""

MOST_MEASUREMENTS = WIDTH // 2
"""More would make lines thick and cells narrower than can be seen."""

VEGA_LITE = "6.4"


def write_pictures(
    histories: History | Sequence[History],
    folder: str | Path,
    title: str = "",
    elementwise: bool = False,
    pictures: Literal["png", "svg"] | None = None,
) -> list[Path]:
    """Write `rwc.html` (all charts) and `rwc.png` (the heat map) into `folder`, which is made if need be.

    Args:
        histories: one run, or several whose mean is drawn with a band.
        title: stands before what each chart shows: the run's name, say.
        elementwise: draw the element-wise variant; the files are then called `rwc_elementwise...`.
        pictures: every chart as a file of its own too, `rwc_curves.svg` and so on.

    Returns:
        The files written.

    Raises:
        UserError: nothing to draw, or runs that cannot be averaged.
        OSError: a file cannot be written.
        ModuleNotFoundError: vl-convert is missing.
    """
    _vl_convert()
    drawn = series([histories] if isinstance(histories, History) else histories, elementwise)
    made = charts(drawn, title, MOST_ROWS_LOCAL, MOST_MEASUREMENTS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "rwc_elementwise" if elementwise else "rwc"
    files = {folder / f"{stem}.html": html_page(drawn, made, title).encode()}
    files[folder / f"{stem}.png"] = png(concrete("rwc_heatmap", made["rwc_heatmap"], drawn))
    for name, chart in made.items() if pictures else ():
        spec_with_data = concrete(name, chart, drawn)
        data = png(spec_with_data) if pictures == "png" else svg(spec_with_data).encode()
        files[folder / f"{stem}{name.removeprefix('rwc')}.{pictures}"] = data
    for path, data in files.items():
        with whole_file(path) as unfinished:
            unfinished.write_bytes(data)
    return list(files)


def html_page(drawn: Series, made: dict[str, Chart], title: str = "") -> str:
    """All charts in one self-contained page."""
    specs = {name: _sized(name, chart, drawn) for name, chart in made.items()}
    library = _vl_convert().javascript_bundle(vl_version=VEGA_LITE)
    return page(title or "Relative weight change", _introduction(drawn), findings(drawn), specs, made, library)


def concrete(name: str, chart: Chart, drawn: Series) -> dict[str, Any]:
    """The chart's Vega-Lite spec with its data in it and a size that fits the number of layers."""
    rows = [dict(zip(chart.columns, row, strict=True)) for row in chart.rows]
    return _sized(name, chart, drawn) | {"data": {"values": rows}}


def png(concrete_spec: dict[str, Any], scale: float = 2) -> bytes:
    """A PNG on white: it will be pasted anywhere, and most of those places are white."""
    convert = _vl_convert().vegalite_to_png
    return bytes(convert(_on_white(concrete_spec), vl_version=VEGA_LITE, scale=scale, allowed_base_urls=[]))


def svg(concrete_spec: dict[str, Any]) -> str:
    """An SVG on white."""
    return str(_vl_convert().vegalite_to_svg(_on_white(concrete_spec), vl_version=VEGA_LITE, allowed_base_urls=[]))


def _on_white(concrete_spec: dict[str, Any]) -> dict[str, Any]:
    data = concrete_spec["data"]
    described: dict[str, Any] = json.loads(json.dumps(concrete_spec | {"data": None}).replace(INK, "#23272e"))
    return described | {"data": data, "background": "white", "padding": 16}


def _sized(name: str, chart: Chart, drawn: Series) -> dict[str, Any]:
    # Whole pixels per row: fractions leave seams between the cells.
    row_height = max(5, min(24, 700 // len(drawn.layers)))
    by_layer = max(row_height * len(drawn.layers), 60)
    height = by_layer if name in ("rwc_heatmap", "rwc_profile") else 360
    described: dict[str, Any] = filled(spec(name), chart.fields, chart.strings)
    # The file says version 5, for W&B; it means the same in the newer one that is bundled here.
    del described["$schema"]
    return described | {"width": WIDTH, "height": height}


def _introduction(drawn: Series) -> list[str]:
    if drawn.elementwise:
        formula = (
            "the mean over its weights of |w_t - w_(t-1)| / |w_(t-1)| "
            "(the element-wise variant: it leaps where a weight is near 0)"
        )
    else:
        formula = "sum |w_t - w_(t-1)| / sum |w_(t-1)| over its weights"
    apart = f"one {drawn.clock}" if drawn.interval == 1 else f"{drawn.interval:,} {drawn.clock}s"
    runs = f"The mean of {drawn.runs} runs is drawn." if drawn.runs > 1 else ""
    return [
        f"Relative weight change (RWC, arXiv 2011.06735) of a layer: {formula}, here between measurements {apart} "
        f"apart. 0.01 means that the layer moved by one percent of its size. {runs}",
        "Which layers learn? The bright rows of the heat map. Which have stopped? Rows that turn dark and stay dark, "
        "lines that level off low. What is odd? Light grey marks a layer that did not change at all (frozen, or no "
        "gradient), orange one without a finite value (NaN or infinite).",
    ]


def _vl_convert() -> ModuleType:
    try:
        import vl_convert
    except ImportError:
        raise ModuleNotFoundError(
            "Drawing charts needs vl-convert: pip install 'rwc_wandb[view]'", name="vl_convert"
        ) from None
    return vl_convert
