"""Optimizers as users hold them: one or several, in wrappers of Accelerate or Lightning."""

from __future__ import annotations

from typing import Any

import torch

from rwc_wandb.errors import UserError


def torch_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The torch optimizers in `optimizer`: one, several, or None.

    Raises:
        ValueError: an empty list.
        TypeError: what is no optimizer and holds none.
        UserError: DeepSpeed's.
    """
    if optimizer is None:
        return []
    if not isinstance(optimizer, (list, tuple)):
        return [_unwrapped(optimizer)]
    if not optimizer:
        raise ValueError(
            "optimizer=[]: it takes an optimizer, several, or None: you then call monitor.measure() yourself."
        )
    return [_unwrapped(one) for one in optimizer]


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a wrapper (Accelerate's, Lightning's, Opacus') that may imitate one but calls no
    hooks."""
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) or "_optimizer_step_post_hooks" not in vars(inner):
        if "DeepSpeed" in type(inner).__name__:
            raise UserError(
                "watch cannot follow DeepSpeed's optimizer, which steps partitions of flattened copies: call "
                "watch(model) without it, and monitor.measure() after each step of the engine."
            )
        inner = getattr(inner, "optimizer", getattr(inner, "_optimizer", None)) or _only_optimizer(inner)
        if inner is None:
            kind = type(optimizer)
            raise TypeError(
                f"watch needs a torch.optim.Optimizer, not {kind.__name__} (of {kind.__module__}): give it that of the "
                "model, or none and call monitor.measure() after each step."
            )
    return inner


def _only_optimizer(wrapper: Any) -> torch.optim.Optimizer | None:
    held = [one for one in getattr(wrapper, "__dict__", {}).values() if isinstance(one, torch.optim.Optimizer)]
    return held[0] if len(held) == 1 else None
