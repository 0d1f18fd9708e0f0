"""The self-contained HTML page: all charts, one copy of the drawing library, no request to anywhere."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from rwc_wandb.view.charts import Chart

# The page may run what is in it and nothing else; Vega compiles expressions, hence unsafe-eval.
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"

INK = "#767d87"
"""The colour of words in the specs: readable on white and on nearly black."""

_HINT = "Click on a cell, a line or a dot to see its role alone in all charts, and again to see all."

_CONTROLS = """
<form id="controls" autocomplete="off">
<label>Role <select name="role"><option value="">all</option></select></label>
<label>Stage <select name="stage"><option value="">all</option></select></label>
<label>Rows and lines <select name="group">
<option value="">every layer, input first</option>
<option value="by role">every layer, by role</option>
<option value="role">mean of each role</option>
<option value="stage">mean of each stage</option>
</select></label>
<label>Colour of lines <select name="colour">
<option>depth</option><option>role</option><option>stage</option>
</select></label>
</form>
"""


def page(
    title: str,
    introduction: list[str],
    findings: list[str],
    specs: dict[str, dict[str, Any]],
    compiled: dict[str, dict[str, Any]],
    made: dict[str, Chart],
    heights: dict[str, int],
    library: str,
) -> str:
    """The page as text.

    Args:
        title: the heading; any text, it is escaped.
        introduction: paragraphs, escaped as well.
        findings: what the run shows, a list; escaped as well.
        specs: chart name: its spec, filled and sized, without data.
        compiled: chart name: what Vega-Lite makes of its spec with an empty list of values; the page opens with it.
        made: the charts' rows.
        heights: pixels of the rows of the heat map and the profile: lowest, highest, and typical of all together.
        library: JavaScript that defines `vegaEmbed`.
    """
    own = Path(__file__).parent
    style, script = (own / "page.css").read_text("utf-8"), (own / "page.js").read_text("utf-8")
    tables: dict[str, dict[str, Any]] = {}
    listed = []
    for name, described in specs.items():
        table = ",".join(made[name].columns)
        tables.setdefault(table, _columnar(made[name]))
        listed.append({"id": name, "spec": described, "compiled": compiled[name], "table": table})
    paragraphs = "\n".join(f"<p>{html.escape(text)}</p>" for text in introduction)
    found = "\n".join(f"<li>{html.escape(text)}</li>" for text in findings)
    places = "\n".join(f'<div class="chart"><div id="{id}_controls"></div><div id="{id}"></div></div>' for id in specs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{paragraphs}
<ul>
{found}
</ul>
{_CONTROLS}
<p class="hint">{_HINT}</p>
{places}
<script type="application/json" id="tables">{_json(tables)}</script>
<script type="application/json" id="charts">{_json({"charts": listed, "ink": INK, "heights": heights})}</script>
<script type="module">{library}</script>
<script type="module">
{script}</script>
</body>
</html>
"""


def _columnar(chart: Chart) -> dict[str, Any]:
    """The rows by column, texts as indices into the list of different ones: a fraction of the size."""
    columns: dict[str, list[Any]] = {}
    texts: dict[str, list[str]] = {}
    for name, values in zip(chart.columns, zip(*chart.rows, strict=True), strict=True):
        if isinstance(values[0], str):
            texts[name] = list(dict.fromkeys(values))
            index = {text: number for number, text in enumerate(texts[name])}
            columns[name] = [index[text] for text in values]
        else:
            # Four digits are more than a pixel shows.
            columns[name] = [float(f"{value:.4g}") if isinstance(value, float) else value for value in values]
    return {"columns": columns, "texts": texts}


def _json(value: Any) -> str:
    """JSON that is safe inside a script element: no name in it can close the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
