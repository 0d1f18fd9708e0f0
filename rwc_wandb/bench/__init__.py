"""`rwc-wandb bench`: what a measurement costs here, beside what others do and beside what memory allows."""
