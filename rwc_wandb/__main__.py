"""`python -m rwc_wandb`, for `accelerate launch -m rwc_wandb train ...`."""

import sys

from rwc_wandb.cli import main

sys.exit(main())
