"""`rwc-wandb run`: monitoring for scripts that know nothing of it. Uses the public face, and `log` to open a run."""
