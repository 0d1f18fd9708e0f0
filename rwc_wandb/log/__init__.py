"""Numbers in, W&B rows out. This is the only room that talks to a run."""
