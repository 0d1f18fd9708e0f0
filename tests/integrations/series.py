"""The oracle's series, from the weights that a training really had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rwc_wandb import History, relative_weight_change


class Weights:
    """The state dicts of a training, at its start and after each optimizer step."""

    def __init__(self, states: Sequence[dict[str, Tensor]] = ()) -> None:
        self.states = list(states)

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """Those that a script saved as 0.pt, 1.pt, ..."""
        return cls([torch.load(folder / f"{step}.pt") for step in range(len(list(folder.glob("*.pt"))))])

    def save(self, model: nn.Module) -> None:
        self.states.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    def check(self, history: History, prefix: str = "") -> None:
        """Every measurement equals the oracle's, to 1e-6; there is one per step."""
        assert len(history) == len(self.states) - 1 > 0
        assert history.layers
        for column, layer in enumerate(history.layers):
            name = prefix + layer if prefix + layer in self.states[0] else f"{prefix}{layer}.weight"
            expected = [
                float(relative_weight_change(after[name].double(), before[name].double()))
                for before, after in zip(self.states, self.states[1:], strict=False)
            ]
            np.testing.assert_allclose(history.rwc[:, column], expected, rtol=1e-6, err_msg=layer)
