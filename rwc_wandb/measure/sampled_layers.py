"""Which layers are measured from a sample of their weights, and when that is worth saying."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from rwc_wandb.measure.distributed.sharding import is_dtensor
from rwc_wandb.measure.layers import Layer

SampleChoice = int | Mapping[str, int | None] | None
"""How many weights of each layer: all (None), at most n, or by the first of several regular expressions that is found
in the layer's name (none: all)."""
ADVISED = 65_536
MOST_OF_FREE = 0.1


def with_samples(layers: list[Layer], choice: SampleChoice) -> list[Layer]:
    """The layers; those with more weights than are chosen now have that as their `sample`."""
    for layer in layers:
        count = _chosen(layer.name, choice)
        layer.sample = count if count is not None and count < layer.size else None
    return layers


def advise(layers: Sequence[Layer]) -> None:
    """Warn where this rank's snapshots take more than a tenth of what is free on a device, and samples take less."""
    snapshots: Counter[torch.device] = Counter()
    samples: Counter[torch.device] = Counter()
    for layer in layers:
        weight = layer.parameter.to_local() if is_dtensor(layer.parameter) else layer.parameter
        for sizes, most in ((snapshots, layer.sample), (samples, min(ADVISED, layer.sample or ADVISED))):
            share = 1.0 if most is None else min(1.0, most / max(layer.size, 1))
            sizes[weight.device] += round(share * weight.numel() * weight.element_size())
    for device, size in snapshots.items():
        free = _free(device)
        if free is not None and size > MOST_OF_FREE * free and samples[device] < size / 2:
            warnings.warn(
                f"rwc_wandb: the copy of the weights that watch compares with takes {size / 1e9:.1f} GB of the "
                f"{free / 1e9:.1f} GB that are free on {device}. watch(sample={ADVISED:_}) estimates each layer from "
                f"as many of its weights, with a standard error, and takes {samples[device] / 1e9:.2g} GB.",
                stacklevel=3,
            )


def _chosen(name: str, choice: SampleChoice) -> int | None:
    if not isinstance(choice, Mapping):
        return choice
    return next((count for pattern, count in choice.items() if re.search(pattern, name)), None)


def _free(device: torch.device) -> int | None:
    """Bytes; None where that cannot be asked."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        with contextlib.suppress(ImportError):
            import psutil

            return int(psutil.virtual_memory().available)
    return None
