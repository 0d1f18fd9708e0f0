"""W&B runs: opened now or late, watched by a monitor, and ended with a word on what W&B lacks."""
