"""The self-contained HTML page: all charts, one copy of the drawing library, no request to anywhere."""

from __future__ import annotations

import html
import json
from typing import Any

from rwc_wandb.view.charts import Chart

# The page may run what is in it and nothing else; Vega compiles expressions, hence unsafe-eval.
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"

INK = "#767d87"
"""The colour of words in the specs: readable on white and on nearly black, so perfect on neither."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1160px; margin: 2rem auto; padding: 0 1rem;
       color: light-dark(#23272e, #d8dce2); background: light-dark(#ffffff, #1a1c1f); }
h1 { font-size: 1.4rem; margin-bottom: .2rem; }
p, li { max-width: 52rem; margin: .4rem 0; }
.chart { overflow-x: auto; margin: 2rem 0; }
.vega-bind { font-size: 13px; color: #767d87; }
.vega-bind input { width: 360px; vertical-align: middle; }
"""

_SCRIPT = """
const ink = matchMedia("(prefers-color-scheme: dark)").matches ? "#d8dce2" : "#23272e";
const described = document.getElementById("charts").textContent.replaceAll(INK, ink);
for (const {id, spec, table} of JSON.parse(described)) {
  // Every chart gets rows of its own: Vega writes into them.
  const {columns, texts} = TABLES[table];
  const names = Object.keys(columns);
  const values = Array.from({length: columns[names[0]].length}, (_, row) =>
    Object.fromEntries(names.map(name => [name, texts[name] ? texts[name][columns[name][row]] : columns[name][row]])));
  spec.data = {values};
  // Errors only (1): Vega warns of a mark that has no rows, and most runs have no zeros to mark.
  await vegaEmbed("#" + id, spec, {logLevel: 1, mode: "vega-lite", renderer: "canvas", bind: `#${id}_controls`,
    actions: {export: true, source: false, compiled: false, editor: false}});
  // The heat map is seen while the others are still being drawn.
  await new Promise(resolve => setTimeout(resolve));
}
"""


def page(
    title: str,
    introduction: list[str],
    findings: list[str],
    specs: dict[str, dict[str, Any]],
    made: dict[str, Chart],
    library: str,
) -> str:
    """The page as text.

    Args:
        title: the heading; any text, it is escaped.
        introduction: paragraphs, escaped as well.
        findings: what the run shows, a list; escaped as well.
        specs: chart name: its spec, filled and sized, without data.
        made: the charts' rows.
        library: JavaScript that defines `vegaEmbed`.
    """
    tables: dict[str, dict[str, Any]] = {}
    listed = []
    for name, described in specs.items():
        table = ",".join(made[name].columns)
        tables.setdefault(table, _columnar(made[name]))
        listed.append({"id": name, "spec": described, "table": table})
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
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{paragraphs}
<ul>
{found}
</ul>
{places}
<script type="application/json" id="tables">{_json(tables)}</script>
<script type="application/json" id="charts">{_json(listed)}</script>
<script type="module">{library}</script>
<script type="module">
const INK = "{INK}";
const TABLES = JSON.parse(document.getElementById("tables").textContent);
{_SCRIPT}</script>
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
