"""What a notebook shows of a history: the heat map, which Jupyter, VS Code and Colab draw by themselves."""

from __future__ import annotations

import importlib.util
from base64 import b64encode
from typing import Any

from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import charts
from rwc_wandb.view.render import WIDTH, concrete, png
from rwc_wandb.view.series import series

MIME = "application/vnd.vegalite.v5+json"
"""Version 5, the one of our specs, is the newest that JupyterLab 4 draws without an extension."""

MOST_ROWS_NOTEBOOK = 4_000
"""A notebook file keeps what it has shown: 4,000 rows are 0.6 MB."""


def mime_bundle(text: str, history: History) -> dict[str, Any]:
    """Mime type: content, for IPython's `_repr_mimebundle_`; the front end takes the richest that it can draw.

    Args:
        text: stands where nothing can be drawn.
        history: what is drawn, thinned to 4,000 values; without a measurement there is the text only.

    Returns:
        `text/plain`, the Vega-Lite chart, and `image/png` where vl-convert is installed.
    """
    bundle: dict[str, Any] = {"text/plain": text}
    if not len(history):
        return bundle
    drawn = series([history])
    chart = charts(drawn, "", MOST_ROWS_NOTEBOOK, WIDTH // 2)["rwc_heatmap"]
    described = concrete("rwc_heatmap", chart, drawn)
    bundle[MIME] = described | {"$schema": "https://vega.github.io/schema/vega-lite/v5.json"}
    if importlib.util.find_spec("vl_convert"):
        # Above the resolution of most screens it would weigh more than the chart.
        bundle["image/png"] = b64encode(png(described, scale=1)).decode()
    return bundle
