"""`rwc-wandb bench --everything`: what only a GPU can prove, in parts."""
