"""History in, pictures out: Vega-Lite charts for W&B and for local files, and reports."""
