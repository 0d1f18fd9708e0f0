"""`rwc-wandb run`: monitoring for scripts that do not import it. Calls `watch`, and `log` for a run of its own."""
