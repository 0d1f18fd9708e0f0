"""The paper: models, data sets and the training loop of Table 1. And its sweeps, figures, claims and W&B report."""
