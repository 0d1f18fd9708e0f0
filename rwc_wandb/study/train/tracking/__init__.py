"""The W&B run of a training: whatever is killed, and when, `--resume` brings it every row, once and in order."""
