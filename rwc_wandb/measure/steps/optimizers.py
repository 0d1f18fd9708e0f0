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
        UserError: one that DeepSpeed's engine steps.
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


def is_deepspeed(optimizer: Any) -> bool:
    """Whether DeepSpeed's engine steps it, or Accelerate's wrapper of it. Its own (`DeepSpeedZeroOptimizer`,
    `BF16_Optimizer`, ...) are subclasses of `DeepSpeedOptimizer`."""
    return not _has_hooks(optimizer) and any("DeepSpeed" in one.__name__ for one in type(optimizer).__mro__)


def _has_hooks(optimizer: Any) -> bool:
    return isinstance(optimizer, torch.optim.Optimizer) and "_optimizer_step_post_hooks" in vars(optimizer)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a wrapper (Accelerate's, Lightning's, Opacus') that may imitate one but calls no
    hooks."""
    inner = optimizer
    while not _has_hooks(inner):
        if is_deepspeed(inner):
            raise UserError(
                "watch cannot follow DeepSpeed's optimizer, which steps partitions of flattened copies: call "
                "watch(model) without it, and monitor.measure() after each step of the engine (not for ZeRO-3)."
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
