"""The keys of rows in W&B, and the axis of their panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb import Run


def define_axes(run: Run, prefix: str = "rwc") -> None:
    """Make PREFIX/step the axis of all that `RunRows` logs."""
    run.define_metric(f"{prefix}/step", hidden=True)
    # W&B makes a panel for every key that is not hidden: 54 layers would be 54 panels. The charts show them.
    for group in (prefix, histogram_prefix(prefix)):
        run.define_metric(f"{group}/*", step_metric=f"{prefix}/step", hidden=True)
    run.define_metric(f"{prefix}_stage/*", step_metric=f"{prefix}/step")


def histogram_prefix(prefix: str) -> str:
    return "hist" if prefix == "rwc" else f"{prefix}_hist"


def slashed(layer: str) -> str:
    """W&B loses settings of keys with dots in them: layer names are written with `/`."""
    return layer.replace(".", "/")
