"""Folders of runs whose RWC is known: what `rwc-wandb train` leaves, without the training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rwc_wandb import History
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.output import write_result

STAGES = {
    "resnet18": ["stem", "layer1", "layer1", "layer2", "layer2", "layer3", "layer3", "layer4", "layer4", "head"],
    "vgg19_bn": ["early", "early", "middle", "middle", "later", "later", "head"],
    "alexnet": ["early", "middle", "middle", "later", "later", "head"],
}
_FACTORS = {1: [1.0], 2: [0.9, 1.1]}

Levels = Mapping[str, Any]
"""Stage: its RWC, one number or [T]; the two layers of a stage lie 10 % below and above it. Others have 1."""


def made_up_history(model: str, levels: Levels, elementwise: Levels | None = None, epochs: int = 20) -> History:
    stages = STAGES[model]
    history = History([str(depth) for depth in range(len(stages))], stages, [100] * len(stages), steps_per_epoch=5)

    factors = [factor for _, twins in groupby(stages) for factor in _FACTORS[len(list(twins))]]

    def values(of_stages: Levels) -> Any:
        columns = [np.broadcast_to(of_stages.get(stage, 1.0), epochs) for stage in stages]
        return np.stack(columns, axis=1) * factors

    history.append([5 * (epoch + 1) for epoch in range(epochs)], values(levels), values(elementwise or levels))
    return history


def leave_run(
    folder: Path,
    model: str,
    dataset: str,
    seed: int,
    levels: Levels,
    elementwise: Levels | None = None,
    accuracy: float = 0.9,
    epochs: int = 20,
    **settings: Any,
) -> Path:
    """The run's own folder in `folder`. A model that is not the paper's gets AlexNet's layers."""
    config = TrainConfig(model=model, dataset=dataset, seed=seed, epochs=epochs, output=str(folder), **settings)
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    shape = model if model in STAGES else "alexnet"
    made_up_history(shape, levels, elementwise, epochs).save(config.run_folder / "rwc.safetensors")
    write_result(config.run_folder, {"epochs": epochs, "best_test_accuracy": accuracy, "last_test_accuracy": accuracy})
    return config.run_folder
