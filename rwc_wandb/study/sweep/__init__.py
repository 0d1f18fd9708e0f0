"""Grids of runs: registered at W&B, or all done on this machine."""
