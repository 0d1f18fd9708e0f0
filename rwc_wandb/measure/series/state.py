"""A monitor's state in a checkpoint: tensors and plain values, which `torch.load(weights_only=True)` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwc_wandb.errors import UserError
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.series.history import History

Snapshot = Tensor | dict[str, Any]
"""Of a whole layer; where it is sampled the `values` drawn, and what tells which elements these are."""


def pack(history: History, snapshots: dict[str, Snapshot], counters: dict[str, Any]) -> dict[str, Any]:
    series = {key: torch.from_numpy(values.copy()) for key, values in history.series().items()}
    return {"layers": list(history.layers), "history": series, "snapshots": snapshots, "counters": counters}


def unpack(
    state: dict[str, Any], layers: Sequence[Layer], history: History
) -> tuple[History, dict[int, Snapshot], dict[str, Any]]:
    """The history, the snapshots by index of layer, and the counters.

    Raises:
        UserError: the state is another model's, or not rank 0's.
    """
    if "counters" not in state:
        raise UserError("This state of a monitor is empty: save and load the state_dict of rank 0, which has it all.")
    names = [layer.name for layer in layers]
    if state["layers"] != names:
        odd = sorted(set(state["layers"]) ^ set(names))[:3] or ["their order"]
        raise UserError(
            f"The state has {len(state['layers'])} layers and the model {len(names)} (difference: {', '.join(odd)}): "
            "load it with the model and layers= that it was saved with."
        )
    snapshots = {index: state["snapshots"][name] for index, name in enumerate(names) if name in state["snapshots"]}
    for index, snapshot in snapshots.items():
        if isinstance(snapshot, Tensor) and tuple(snapshot.shape) != layers[index].shape:
            raise UserError(
                f"{names[index]} has the shape {tuple(snapshot.shape)} in the state and {layers[index].shape} in the "
                "model: load it with the model that it was saved with."
            )
    loaded = history.without_measurements()
    loaded.append(**{key: values.numpy() for key, values in state["history"].items()})
    return loaded, snapshots, state["counters"]
