"""The paper: models, data sets and the training loop of Table 1. Uses the public face only, as an outsider would."""
