"""Histories that look like those of a training run."""

from __future__ import annotations

import numpy as np

from rwc_wandb.measure.series.history import History


def made_up(layers: int = 6, measurements: int = 20, seed: int = 0, every: int = 10) -> History:
    """RWC that decays over time, from about 1e-2 to 1e-5; later layers are higher. Three stages by depth, one role."""
    random = np.random.default_rng(seed)
    names = [f"layer{3 * depth // layers + 1}.{depth}.conv" for depth in range(layers)]
    stages = [name.split(".")[0] for name in names]
    history = History(names, stages, [100] * layers, roles=["conv"] * layers, blocks=list(range(layers)))
    depth, time = np.linspace(0, 1, layers), np.linspace(0, 1, measurements)[:, None]
    rwc = 10 ** (-2.2 + 0.8 * depth - time * (2.5 - depth)) * np.exp(
        0.1 * random.standard_normal((measurements, layers))
    )
    history.append([every * (number + 1) for number in range(measurements)], rwc, 7 * rwc)
    return history


def filled_with(value: float, layers: int = 4, measurements: int = 5) -> History:
    """Every measurement is `value`."""
    history = made_up(layers, measurements)
    history.rwc[:] = value
    return history


def transformer(blocks: int = 4, measurements: int = 6, seed: int = 0) -> History:
    """`blocks` blocks of three roles, an embedding before and a head after them; all values differ."""
    parts = ("attention.query", "attention.value", "mlp")
    names = ["embed", *(f"layers.{block}.{part}" for block in range(blocks) for part in parts), "head"]
    stages = [("early", "middle", "later")[3 * depth // len(names)] for depth in range(len(names))]
    history = History(names, stages, [100] * len(names))
    rwc = np.random.default_rng(seed).uniform(1e-4, 1e-2, (measurements, len(names)))
    history.append([10 * (number + 1) for number in range(measurements)], rwc, 7 * rwc)
    return history
