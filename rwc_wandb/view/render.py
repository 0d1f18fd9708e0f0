"""Charts as files: one self-contained HTML page, PNG and SVG. Needs `pip install 'rwc_wandb[view]'` (vl-convert)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from rwc_wandb.files import whole_file
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import Chart, charts, filled, ratio_charts, spec
from rwc_wandb.view.compared import Comparison
from rwc_wandb.view.differences import differences
from rwc_wandb.view.errors import add_error_band, of_estimates
from rwc_wandb.view.findings import told
from rwc_wandb.view.page import INK, page
from rwc_wandb.view.series import Series, series

WIDTH = 860
"""Pixels of every chart's plot."""

ROW_PER_LAYER = ("rwc_heatmap", "rwc_profile", "rwc_ratio")
LOWEST_ROW, HIGHEST_ROW, TYPICAL_HEIGHT = 11, 24, 700
"""Pixels of a row of the heat map: not lower than its name, and in all about 700 where that is possible."""

ROLE_HEIGHT, WIDEST_CELL = 26, 70
"""Pixels of a row of the map, and of its widest column."""

PIXELS_PER_LETTER = 8
"""Of an axis' labels, with what must stay free around them."""

MOST_LAYERS_DOUBLED = 100
"""Up to so many layers pictures have two pixels for each of the page."""

LONGEST_NAME = 400
"""Pixels of a layer's name on its axis."""

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
    files[folder / f"{stem}.png"] = png(concrete("rwc_heatmap", made["rwc_heatmap"], drawn), _scale(drawn))
    files |= _pictures(folder / stem, made, drawn, pictures)
    return _written(files)


def write_comparison(
    comparison: Comparison, folder: str | Path, title: str, pictures: Literal["png", "svg"] | None = None
) -> list[Path]:
    """Write `rwc_ratio.html` (both charts, and the differences in words) and `rwc_ratio.png` (the ratio of every
    layer) into `folder`; arguments, result and errors are those of `write_pictures`."""
    _vl_convert()
    drawn = comparison.drawn
    made = ratio_charts(comparison, title, MOST_ROWS_LOCAL, MOST_MEASUREMENTS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "rwc_elementwise_ratio" if drawn.elementwise else "rwc_ratio"
    shown = _page(drawn, made, title, [_formula(drawn), _RATIO], differences(comparison))
    files = {folder / f"{stem}.html": shown.encode()}
    files[folder / f"{stem}.png"] = png(concrete("rwc_ratio", made["rwc_ratio"], drawn), _scale(drawn))
    files |= _pictures(folder / stem.removesuffix("_ratio"), made, drawn, pictures)
    return _written(files)


def html_page(drawn: Series, made: dict[str, Chart], title: str = "") -> str:
    """All charts in one self-contained page."""
    of_runs = [f"The mean of {drawn.runs} runs is drawn."] if drawn.runs > 1 else []
    introduction = [_formula(drawn), *of_runs, *filter(None, [of_estimates(drawn)]), _HOW_TO_READ]
    return _page(drawn, made, title or "Relative weight change", introduction, told(drawn))


def _page(drawn: Series, made: dict[str, Chart], title: str, introduction: list[str], said: list[str]) -> str:
    # What is higher than a screen comes last.
    order = sorted(made, key=lambda name: name in ROW_PER_LAYER and len(drawn.layers) * LOWEST_ROW > TYPICAL_HEIGHT)
    specs = {name: _sized(name, made[name], drawn) for name in order}
    convert = _vl_convert()
    without_rows: dict[str, Any] = {"data": {"values": []}}
    compiled = {
        name: convert.vegalite_to_vega(described | without_rows, vl_version=VEGA_LITE)
        for name, described in specs.items()
    }
    library = convert.javascript_bundle(vl_version=VEGA_LITE)
    heights = {"lowest": LOWEST_ROW, "highest": HIGHEST_ROW, "typical": TYPICAL_HEIGHT}
    return page(title, introduction, said, specs, compiled, made, heights, library)


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
    described: dict[str, Any] = filled(spec(name), chart.fields, chart.strings)
    # The file says version 5, for W&B; it means the same in the newer one that is bundled here.
    del described["$schema"]
    described["config"]["axis"]["labelLimit"] = LONGEST_NAME
    if name != "rwc_map":
        # It averages the runs of a W&B panel; here every layer has one row for each measurement.
        assert "aggregate" in described["transform"].pop(0)
    if name == "rwc_curves" and "error" in chart.columns:
        add_error_band(described)
    if name == "rwc_map":
        columns = len(set(drawn.blocks))
        width = min(WIDTH, columns * WIDEST_CELL)
        is_level = PIXELS_PER_LETTER * max(map(len, drawn.blocks)) < width / columns
        for layer in (described["layer"][0]["layer"][1], described["layer"][1]):
            # Upright, names of 9 pixels stand side by side in up to 85 columns.
            layer["encoding"]["x"]["axis"] |= {"labelAngle": 0} if is_level else {"labelFontSize": 9}
        return described | {"width": width, "height": {"step": ROLE_HEIGHT}}
    if name == "rwc_ratio":
        known = np.abs(drawn.values[np.isfinite(drawn.values)])
        # The hundredth part that is largest does not make the others pale.
        most = math.ceil(max(1.0, np.quantile(known, 0.99)) - 0.01) if len(known) else 1
        described["layer"][0]["encoding"]["color"]["scale"]["domain"] = [-most, most]
    if name in ROW_PER_LAYER:
        # Whole pixels: fractions leave seams between the cells.
        row_height = max(LOWEST_ROW, min(HIGHEST_ROW, TYPICAL_HEIGHT // len(drawn.layers)))
        return described | {"width": WIDTH, "height": {"step": row_height}}
    return described | {"width": WIDTH, "height": 360}


_HOW_TO_READ = (
    "Which layers learn? The bright rows of the heat map. Which have stopped? Rows that turn dark and stay dark, lines "
    "that level off low. What is odd? Light grey marks a layer that did not change at all (frozen, or no gradient), "
    "orange one without a finite value (NaN or infinite)."
)

_RATIO = (
    "Two groups of runs are compared: the mean over the first of log2 RWC, less that over the second. 2 means that a "
    "layer changes twice as much in the first. Light grey: no ratio, since one of them did not change or is not finite."
)


def _formula(drawn: Series) -> str:
    if drawn.elementwise:
        formula = (
            "the mean over its weights of |w_t - w_(t-1)| / |w_(t-1)| "
            "(the element-wise variant: it leaps where a weight is near 0)"
        )
    else:
        formula = "sum |w_t - w_(t-1)| / sum |w_(t-1)| over its weights"
    apart = f"one {drawn.clock}" if drawn.interval == 1 else f"{drawn.interval:,} {drawn.clock}s"
    return (
        f"Relative weight change (RWC, arXiv 2011.06735) of a layer: {formula}, here between measurements {apart} "
        f"apart. 0.01 means that the layer moved by one percent of its size."
    )


def _scale(drawn: Series) -> float:
    """Of a picture: a row for each of 500 layers is 6,000 pixels high as it is."""
    return 2 if len(drawn.layers) <= MOST_LAYERS_DOUBLED else 1


def _pictures(
    stem: Path, made: dict[str, Chart], drawn: Series, kind: Literal["png", "svg"] | None
) -> dict[Path, bytes]:
    """Every chart as a file of its own, where a kind is asked for."""
    files = {}
    for name, chart in made.items() if kind else ():
        described = concrete(name, chart, drawn)
        data = png(described, _scale(drawn)) if kind == "png" else svg(described).encode()
        files[stem.with_name(f"{stem.name}{name.removeprefix('rwc')}.{kind}")] = data
    return files


def _written(files: dict[Path, bytes]) -> list[Path]:
    for path, data in files.items():
        with whole_file(path) as unfinished:
            unfinished.write_bytes(data)
    return list(files)


def _vl_convert() -> ModuleType:
    try:
        import vl_convert
    except ImportError:
        raise ModuleNotFoundError(
            "Drawing charts needs vl-convert: pip install 'rwc_wandb[view]'", name="vl_convert"
        ) from None
    return vl_convert
