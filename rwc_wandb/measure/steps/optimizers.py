"""Optimizers as users hold them: several, in wrappers of Accelerate or Lightning, or with a step unknown to torch."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from rwc_wandb.errors import UserError


def hooked_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The torch optimizers in `optimizer`: one, several, or None; each calls its hooks when it steps.

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
    """The torch optimizer inside Accelerate's or Lightning's wrapper, which may imitate one but calls no hooks."""
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) or "_optimizer_step_post_hooks" not in vars(inner):
        if "DeepSpeed" in type(inner).__name__:
            raise UserError(
                "watch cannot follow DeepSpeed's optimizer, which steps partitions of flattened copies: call "
                "watch(model) without it, and monitor.measure() after each step of the engine."
            )
        inner = getattr(inner, "optimizer", getattr(inner, "_optimizer", None))
        if inner is None:
            raise TypeError(f"watch needs a torch.optim.Optimizer, not {type(optimizer).__name__}.")
    hook_step(inner)
    return inner


def hook_step(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer call hooks when it steps.

    `torch.optim.Optimizer.__init__` does this. timm's Lookahead skips that `__init__`, and would call hooks from its
    first `zero_grad` on, or never where a scheduler of torch has wrapped its `step` before.
    """
    if not hasattr(type(optimizer).step, "hooked"):
        optimizer._patch_step_function()
    kept = vars(optimizer).get("step")
    if kept is not None and hasattr(kept, "_wrapped_by_lr_sched") and not hasattr(kept, "hooked"):
        # The scheduler's wrapper calls the step as it was before the class's was hooked.
        step = torch.optim.Optimizer.profile_hook_step(lambda _, *words, **options: kept(*words, **options))
        vars(step).update(hooked=True, _wrapped_by_lr_sched=True)
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
