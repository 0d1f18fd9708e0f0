"""Numbers in, W&B rows out: opens runs, logs to them what monitors measure, and pushes the charts' specs."""
