"""Histories in, pictures and sentences out: one set of Vega-Lite charts for W&B, local files and notebooks."""
